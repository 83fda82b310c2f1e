"""RandAugment for clips: a few random operations on colour or geometry, the same ones in every frame.

The operations, their ranges and the notation "m7-n4-mstd0.5" are those of timm's RandAugment with the increasing set
(``rand-m7-n4-mstd0.5-inc1``), which VideoMAE fine-tunes with. Each does what Pillow does to a picture, to within a
level or two of 255 (the tests compare them), but for all frames at once: a table of 256 values where a pixel's new
value depends on its old one alone, and one set of weights for all frames where pixels move.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch
from numpy import ndarray
from numpy.random import Generator
from torch import Tensor

from tubelet.types import TubeletError

CHANCE = 0.5
"""Of each drawn operation to be carried out, as published."""
GREY = 128
"""Fills what moves into the picture from outside."""

_NOTATION = re.compile(r"(?:rand-)?m(?P<m>\d+\.?\d*)(?:-n(?P<n>\d+))?(?:-mstd(?P<mstd>\d*\.?\d+))?(?:-inc1)?")


class RandAugment(NamedTuple):
    """Draws ``operations`` of the increasing set, with replacement, each done half of the time (Cubuk et al. 2020)."""

    operations: int
    magnitude: float
    """0..10: how far an operation goes."""
    deviation: float
    """Of the normal noise on the magnitude, drawn for each operation."""

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Reads "m7-n4-mstd0.5"; without n there are two operations, without mstd there is no noise.

        Raises:
            TubeletError: it is not in that notation.
        """
        found = _NOTATION.fullmatch(text)
        if found is None or not 0 <= float(found["m"]) <= 10 or found["n"] == "0":
            raise TubeletError(
                f"data.randaugment {text!r} is not understood: write it like 'm7-n4-mstd0.5' (magnitude in 0..10, "
                "number of operations, deviation of the magnitude)"
            )
        return cls(int(found["n"] or 2), float(found["m"]), float(found["mstd"] or 0))

    def __call__(self, clip: Tensor, draw: Generator) -> Tensor:
        """T C H W uint8 -> the same shape."""
        frames = clip.permute(0, 2, 3, 1).numpy()  # T H W C, as it comes from the decoder
        names = list(OPERATIONS)
        for index in draw.integers(len(names), size=self.operations):
            done, noise, sign = draw.random() < CHANCE, draw.standard_normal(), 1 if draw.random() < 0.5 else -1
            if done:
                level = min(10.0, max(0.0, self.magnitude + self.deviation * noise)) / 10
                frames = OPERATIONS[names[int(index)]](frames, level, sign)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)  # T C H W


# Operations: frames (T H W C uint8), a level in 0..1 and a sign -> frames. Contrast is each frame's own, as published.


def auto_contrast(frames: ndarray, level: float, sign: int) -> ndarray:
    """Stretches each channel to 0..255."""
    low = frames.min(1).min(1)[..., None].astype(float)  # T C 1; over whole rows first: one call takes 8 times as long
    high = frames.max(1).max(1)[..., None].astype(float)  # T C 1
    scale = 255 / numpy.maximum(high - low, 1)
    values = numpy.arange(256)
    stretched = (values * scale - low * scale).clip(0, 255)  # T C 256
    return _by_channel(frames, numpy.where(high > low, stretched, values).astype(numpy.uint8))


def equalise(frames: ndarray, level: float, sign: int) -> ndarray:
    """Makes each channel's histogram flat."""
    tables = numpy.tile(numpy.arange(256, dtype=numpy.uint8), (len(frames), frames.shape[-1], 1))  # T C 256
    for t, c in numpy.ndindex(tables.shape[:2]):
        counts = numpy.bincount(frames[t, ..., c].ravel(), minlength=256)
        present = counts[counts > 0]
        step = int(present.sum() - present[-1]) // 255
        if len(present) > 1 and step:
            below = numpy.cumsum(counts) - counts
            tables[t, c] = ((below + step // 2) // step).clip(0, 255)
    return _by_channel(frames, tables)


def invert(frames: ndarray, level: float, sign: int) -> ndarray:
    return 255 - frames


def posterise(frames: ndarray, level: float, sign: int) -> ndarray:
    """Keeps the highest 4 to 0 bits."""
    bits = 4 - int(level * 4)
    return frames & numpy.uint8(256 - 2 ** (8 - bits))


def solarise(frames: ndarray, level: float, sign: int) -> ndarray:
    """Inverts what is bright: from a threshold of 256 (nothing) down to 0."""
    values = numpy.arange(256)
    return _look_up(frames, numpy.where(values < 256 - int(level * 256), values, 255 - values))


def solarise_add(frames: ndarray, level: float, sign: int) -> ndarray:
    """Adds up to 110 to what is dark."""
    values = numpy.arange(256)
    return _look_up(frames, numpy.where(values < 128, (values + int(level * 110)).clip(max=255), values))


def colour(frames: ndarray, level: float, sign: int) -> ndarray:
    """From grey (factor 0.1) to more colour (1.9)."""
    return _blend(_grey(frames)[..., None].astype(numpy.float32), frames, 1 + sign * 0.9 * level)


def contrast(frames: ndarray, level: float, sign: int) -> ndarray:
    """From a frame's mean grey (factor 0.1) to more contrast (1.9)."""
    means = [int(grey.mean() + 0.5) for grey in _grey(frames)]  # T
    values = numpy.arange(256, dtype=numpy.uint8)
    tables = [_blend(numpy.float32(mean), values, 1 + sign * 0.9 * level) for mean in means]  # T 256
    return numpy.stack([_look_up(frame, table) for frame, table in zip(frames, tables, strict=True)])


def brightness(frames: ndarray, level: float, sign: int) -> ndarray:
    """From black (factor 0.1) to brighter (1.9)."""
    values = numpy.arange(256, dtype=numpy.uint8)
    return _look_up(frames, _blend(numpy.float32(0), values, 1 + sign * 0.9 * level))


def sharpness(frames: ndarray, level: float, sign: int) -> ndarray:
    """From smoothed (factor 0.1) to sharper (1.9); the smoothing is 3 x 3, with 5/13 in the middle."""
    smooth = frames.astype(numpy.uint16)
    rows = smooth[:, :-2] + smooth[:, 1:-1] + smooth[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth[:, 1:-1, 1:-1] = (2 * (around + 4 * smooth[:, 1:-1, 1:-1]) + 13) // 26  # the rim stays as it is
    return _blend(smooth.astype(numpy.float32), frames, 1 + sign * 0.9 * level)


def rotate(frames: ndarray, level: float, sign: int) -> ndarray:
    """Up to 30 degrees around the centre."""
    turn = -math.radians(30 * level * sign)
    x, y = frames.shape[2] / 2, frames.shape[1] / 2
    cos, sin = math.cos(turn), math.sin(turn)
    return _affine(frames, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y))


def shear_x(frames: ndarray, level: float, sign: int) -> ndarray:
    return _affine(frames, (1, 0.3 * level * sign, 0), (0, 1, 0))


def shear_y(frames: ndarray, level: float, sign: int) -> ndarray:
    return _affine(frames, (1, 0, 0), (0.3 * level * sign, 1, 0))


def translate_x(frames: ndarray, level: float, sign: int) -> ndarray:
    """By up to 45 % of the width."""
    return _affine(frames, (1, 0, 0.45 * level * sign * frames.shape[2]), (0, 1, 0))


def translate_y(frames: ndarray, level: float, sign: int) -> ndarray:
    """By up to 45 % of the height."""
    return _affine(frames, (1, 0, 0), (0, 1, 0.45 * level * sign * frames.shape[1]))


Operation = Callable[[ndarray, float, int], ndarray]
OPERATIONS: dict[str, Operation] = {
    operation.__name__: operation
    for operation in (
        auto_contrast, equalise, invert, rotate, posterise, solarise, solarise_add, colour, contrast, brightness,
        sharpness, shear_x, shear_y, translate_x, translate_y,
    )
}  # fmt: skip


def _look_up(values: ndarray, table: ndarray) -> ndarray:
    return table.astype(numpy.uint8).take(values)


def _by_channel(frames: ndarray, tables: ndarray) -> ndarray:
    """Looks each frame's channels up in tables of their own, T C 256."""
    changed = numpy.empty_like(frames)
    for t, c in numpy.ndindex(tables.shape[:2]):
        changed[t, ..., c] = tables[t, c].take(frames[t, ..., c])
    return changed


def _grey(frames: ndarray) -> ndarray:
    """Luma of ITU-R 601 in Pillow's whole numbers: T H W C -> T H W."""
    red, green, blue = (frames[..., c].astype(numpy.uint32) for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16  # T H W


def _blend(base: ndarray | numpy.float32, values: ndarray, factor: float) -> ndarray:
    """From ``base`` (factor 0) to ``values`` (1) and beyond, as uint8."""
    mixed = values - base
    mixed *= numpy.float32(factor)
    mixed += base
    return mixed.clip(0, 255, out=mixed).astype(numpy.uint8)


def _affine(frames: ndarray, across: tuple[float, float, float], down: tuple[float, float, float]) -> ndarray:
    """Takes each pixel (x, y) from ``across`` and ``down`` (a x + b y + c), by Pillow's bicubic interpolation.

    Frames and channels lie side by side, so that places and weights are found once for all of them. Weights that are
    0 everywhere cost nothing: moving along one axis alone takes 4 neighbours instead of 16.
    """
    count, height, width, channels = frames.shape
    x, y = numpy.arange(width) + 0.5, (numpy.arange(height) + 0.5)[:, None]
    column = across[0] * x + across[1] * y + across[2]  # H W
    row = down[0] * x + down[1] * y + down[2]  # H W
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    left, of_columns = _cubic(column - 0.5)
    top, of_rows = _cubic(row - 0.5)
    pixels = torch.from_numpy(frames).permute(1, 2, 0, 3).reshape(height * width, count * channels).float()  # H*W T*C
    total, taken = torch.zeros_like(pixels), torch.empty_like(pixels)
    for i, j in numpy.ndindex(4, 4):
        weight = of_rows[i] * of_columns[j]
        if weight.any():
            place = (top + i).clip(0, height - 1) * width + (left + j).clip(0, width - 1)  # H W
            torch.index_select(pixels, 0, torch.from_numpy(place.ravel()), out=taken)
            total.addcmul_(taken, torch.from_numpy(weight.ravel().astype(numpy.float32))[:, None])
    total[torch.from_numpy(outside.ravel())] = GREY
    total += 1e-3  # fractions are cut off, as in Pillow, but 76.99999 is meant to be 77
    moved = total.clamp_(0, 255).to(torch.uint8).view(height, width, count, channels)
    return moved.permute(2, 0, 1, 3).contiguous().numpy()  # T H W C


def _cubic(places: ndarray) -> tuple[ndarray, ndarray]:
    """The first of four neighbours of each place, and their weights (cubic convolution with a = -1): H W, 4 H W."""
    whole = numpy.floor(places)
    d = places - whole
    weights = [-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, d**3 - d**2]
    return whole.astype(numpy.int64) - 1, numpy.stack(weights)
