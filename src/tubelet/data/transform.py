"""Crops, resizing and flips: uint8 clips ``T C H W`` in and out, treated alike in every frame.

Pixels stay uint8 until they are on the device: `torch.nn.functional.interpolate` has a kernel for uint8 that
is twice as fast as the one for floats when channels are last in memory, as they come from the decoder. A crop
that needs no resizing is a view of its source.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from numpy.random import Generator
from torch import Tensor
from torch.nn.functional import interpolate

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Sides that `multi_scale_box` tries, as shares of the short side of the picture."""

_TRIES = 10


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_resized_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draw: Generator
) -> Box:
    """A random part of a picture of ``height`` x ``width``.

    The share of the area is uniform in ``scale``, the logarithm of width over height uniform in that of
    ``ratio`` (Szegedy et al. 2015). When ten draws do not fit, the largest central part of a permitted shape
    is taken.
    """
    for _ in range(_TRIES):
        area = height * width * draw.uniform(*scale)
        shape = math.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draw.integers(height - crop_height + 1))
            left = int(draw.integers(width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    shape = min(max(width / height, ratio[0]), ratio[1])
    crop_width = max(1, min(width, round(height * shape)))
    crop_height = max(1, min(height, round(width / shape)))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def multi_scale_box(height: int, width: int, size: int, draw: Generator) -> Box:
    """A part of one of four sizes at one of thirteen places of a picture of ``height`` x ``width`` (TSN; VideoMAE).

    Height and width are drawn among `MULTI_SCALES` of the short side, at most one step apart; the places are
    the four corners, the centre, the middles of the sides and the four points half-way between the corners
    and the centre.
    """
    sides = [max(1, int(min(height, width) * share)) for share in MULTI_SCALES]
    sides = [size if abs(side - size) < 3 and size <= min(height, width) else side for side in sides]
    shapes = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_height, crop_width = shapes[int(draw.integers(len(shapes)))]
    corners_and_middles = [(y, x) for y in (0, 2, 4) for x in (0, 2, 4)]
    places = [*corners_and_middles, (1, 1), (1, 3), (3, 1), (3, 3)]
    row, column = places[int(draw.integers(len(places)))]
    top, left = row * ((height - crop_height) // 4), column * ((width - crop_width) // 4)
    return Box(top, left, crop_height, crop_width)


def center_crop(clip: Tensor, size: int) -> Tensor:
    """The square in the middle, after resizing the short side to ``size``: T C size size."""
    return crops(clip, size, 1)[0]


def crops(clip: Tensor, size: int, count: int) -> list[Tensor]:
    """Squares evenly spaced along the long side, after resizing the short side to ``size``; one is central.

    Args:
        clip: T C H W uint8.

    Returns:
        ``count`` times T C size size, uint8, from left to right or from top to bottom.
    """
    clip = resize(clip, size)
    height, width = clip.shape[-2:]
    room = max(height, width) - size
    starts = [room // 2] if count == 1 else [k * room // (count - 1) for k in range(count)]
    if width >= height:
        return [clip[..., start : start + size] for start in starts]  # T C size size
    return [clip[..., start : start + size, :] for start in starts]  # T C size size


def resize(clip: Tensor, short_side: int) -> Tensor:
    """Resizes so that the shorter of height and width is ``short_side``; the shape of the picture is kept."""
    height, width = clip.shape[-2:]
    if min(height, width) == short_side:
        return clip
    share = short_side / min(height, width)
    return fit(clip, max(short_side, round(height * share)), max(short_side, round(width * share)))


def flip(clip: Tensor) -> Tensor:
    """Swaps left and right."""
    return clip.flip(-1)


def flip_flow(clip: Tensor) -> Tensor:
    """Swaps left and right of a flow film, whose first channel (a displacement, 128 of 255 = still) then points back.

    Args:
        clip: T C H W uint8, or floats in [0, 1].
    """
    mirrored, most = flip(clip).clone(), 1.0 if clip.is_floating_point() else 255
    back = 256 / 255 - mirrored[:, 0] if clip.is_floating_point() else 256 - mirrored[:, 0].short()
    mirrored[:, 0] = back.clamp(max=most)
    return mirrored


def cut(clip: Tensor, box: Box) -> Tensor:
    """A part of the picture, in the same memory: T C height width."""
    return clip[..., box.top : box.top + box.height, box.left : box.left + box.width]


def fit(clip: Tensor, height: int, width: int) -> Tensor:
    """Resized: bilinear with antialiasing. A clip that fits already is handed back as it is."""
    if clip.shape[-2:] == (height, width):
        return clip
    clip = clip.contiguous(memory_format=torch.channels_last)
    return interpolate(clip, (height, width), mode="bilinear", antialias=True)  # T C height width
