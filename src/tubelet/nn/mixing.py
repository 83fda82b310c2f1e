"""What makes fine-tuning harder on purpose: clips mixed with one another, and boxes erased.

All of it is done in batches, on the device, from the samples' keys: the same after a restart and for any number of
workers. Erasing is each clip's own affair. Mixing draws once for the clips of one forward pass, as published, and
pairs the first with the last: clips never mix across processes or micro-batches, so that their number matters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor

from tubelet import draws

ERASED = (0.02, 1 / 3)
"""Smallest and largest share of a picture that is erased."""
SHAPES = (0.3, 1 / 0.3)
"""Smallest and largest height over width of what is erased."""
_TRIES = 10


class Mixed(NamedTuple):
    """Clips that are two at once."""

    video: Tensor
    """B C T H W."""
    share: float
    """Of each clip's own label; the rest is that of its partner, the clip at the same place from the end."""


def mix(video: Tensor, keys: Tensor, mixup: float, cutmix: float) -> Mixed:
    """Mixes each clip with its partner: mixup (Zhang 2018) or CutMix (Yun 2019), half and half where both are on.

    The share is drawn once for all clips, from Beta(a, a). Mixup adds the pixels up by that share; CutMix puts a box
    of the partner, the same in all frames, into the picture, and the share becomes that of the area which stays.

    Args:
        video: B C T H W.
        keys: B int64; the first one decides for all.
        mixup: a of mixup (published: 0.8); 0 = CutMix alone.
        cutmix: a of CutMix (published: 1); 0 = mixup alone. One of them is on.
    """
    draw = draws.generator(int(keys[0]), "mix")
    cut = cutmix > 0 and (not mixup or draw.random() < 0.5)
    share = draw.beta(cutmix, cutmix) if cut else draw.beta(mixup, mixup)
    partner = video.flip(0)
    if not cut:
        return Mixed(torch.lerp(partner, video, share), share)
    height, width = video.shape[-2:]
    rows = _stretch(height, math.sqrt(1 - share), int(draw.integers(height)))
    columns = _stretch(width, math.sqrt(1 - share), int(draw.integers(width)))
    mixed = video.clone()
    mixed[..., rows, columns] = partner[..., rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixed(mixed, 1 - area / (height * width))


def _stretch(length: int, share: float, centre: int) -> slice:
    """A share of a side around ``centre``, as far as it lies inside."""
    half = int(length * share) // 2
    return slice(max(0, centre - half), min(length, centre + half))


def erase(video: Tensor, keys: Tensor, chance: float, mean: Tensor, deviation: Tensor) -> Tensor:
    """Random erasing in cubes (Zhong 2020): a box of some clips, the same in all frames, becomes normal noise.

    Published for normalised pixels: there the noise has mean 0 and deviation 1, here those of the normalisation.

    Args:
        video: B C T H W in [0, 1].
        keys: B int64.
        chance: of each clip to lose a box.
        mean: C 1 1 1, what the backbone subtracts.
        deviation: C 1 1 1, what it divides by.
    """
    erased = video.clone()
    for clip, key in zip(erased, keys, strict=True):  # C T H W
        draw = draws.generator(int(key), "erase")
        box = _box(clip.shape[-2], clip.shape[-1], draw) if draw.random() < chance else None
        if box is not None:
            part = clip[..., box[0], box[1]]  # C T h w
            part.copy_(_normal(key, part.numel()).view(part.shape) * deviation + mean)
    return erased


def _box(height: int, width: int, draw: Generator) -> tuple[slice, slice] | None:
    """Rows and columns of a box inside the picture; None where ten draws do not fit."""
    for _ in range(_TRIES):
        area = height * width * draw.uniform(*ERASED)
        shape = math.exp(draw.uniform(math.log(SHAPES[0]), math.log(SHAPES[1])))
        rows, columns = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if rows < height and columns < width:
            top, left = int(draw.integers(height - rows + 1)), int(draw.integers(width - columns + 1))
            return slice(top, top + rows), slice(left, left + columns)
    return None


def _normal(key: Tensor, count: int) -> Tensor:
    """``count`` numbers of mean 0 and deviation 1 from one key (Box and Muller 1958)."""
    radius, angle = draws.uniform(key[None], 2 * count, "noise").view(2, count)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)
