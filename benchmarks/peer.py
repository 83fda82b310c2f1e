"""The pipeline that Tubelet's is measured against: what VideoMAE's loader does with a video, written anew.

decord in one thread, every frame a PIL image, TSN's multi-scale crop (four sides, thirteen places; Wang et al. 2016)
resized to 224, the frames stacked along their channels, floats in [0, 1], then the mean and deviation of ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import decord  # type: ignore[import-not-found]
import numpy
import torch
from numpy import ndarray
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES = (1.0, 0.875, 0.75, 0.66)


class Films(Dataset[Tensor]):
    """A random clip of each file: C T size size, float32."""

    def __init__(self, paths: Sequence[Path], frames: int, stride: int, size: int) -> None:
        self.paths, self.frames, self.stride, self.size = paths, frames, stride, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        draw = numpy.random.default_rng(int(torch.randint(2**31, ())))
        video = decord.VideoReader(str(self.paths[row]), num_threads=1)
        start = int(draw.integers(max(1, len(video) - self.frames * self.stride + 1)))
        wanted = (start + numpy.arange(self.frames) * self.stride).clip(max=len(video) - 1)
        return augment(video.get_batch(wanted.tolist()).asnumpy(), self.size, draw)


def decode(path: Path, wanted: Sequence[int]) -> ndarray:
    """T H W C uint8."""
    return decord.VideoReader(str(path), num_threads=1).get_batch(list(wanted)).asnumpy()


def augment(clip: ndarray, size: int, draw: Generator) -> Tensor:
    """T H W C uint8 to C T size size, float32."""
    images = [Image.fromarray(frame).convert("RGB") for frame in clip]
    left, top, width, height = box(*images[0].size, size, draw)
    area = (left, top, left + width, top + height)
    images = [image.crop(area).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    stacked = numpy.concatenate([numpy.asarray(image) for image in images], axis=2)  # H W T*C
    pixels = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)  # T*C H W
    mean, deviation = (torch.tensor(v).repeat(len(images))[:, None, None] for v in (MEAN, DEVIATION))
    pixels.sub_(mean).div_(deviation)
    return pixels.view(len(images), 3, size, size).transpose(0, 1)  # C T H W


def box(width: int, height: int, size: int, draw: Generator) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop."""
    sides = [int(min(width, height) * scale) for scale in SCALES]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    shapes = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_width, crop_height = shapes[draw.integers(len(shapes))]
    across, down = (width - crop_width) // 4, (height - crop_height) // 4
    places = [(x, y) for x in (0, 2, 4) for y in (0, 2, 4)] + [(x, y) for x in (1, 3) for y in (1, 3)]
    x, y = places[draw.integers(len(places))]
    return x * across, y * down, crop_width, crop_height
