"""Films to measure decoders on: layers of texture that move over each other, under noise, with numbered frames.

Moving texture gives an encoder the motion and the residuals that filmed pictures have; flat test pictures decode
several times faster. The number stands in ten cells along the lower edge, black or white, so that a wrong frame is
noticed whatever a store did to the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy
import torch
from numpy import ndarray
from numpy.random import Generator
from torch.nn.functional import interpolate

BITS = 10


class Kind(NamedTuple):
    """How a film is stored."""

    codec: str
    size: tuple[int, int]
    """Height and width."""
    options: dict[str, str]
    suffix: str = ".mp4"


H264 = {"preset": "medium", "bf": "3"}
KINDS = {
    "h264 340x256": Kind("libx264", (256, 340), {**H264, "g": "250"}),
    "h264 340x256 gop 25": Kind("libx264", (256, 340), {**H264, "g": "25"}),
    "h264 320x240": Kind("libx264", (240, 320), {**H264, "g": "250"}),
    "h264 1920x1080": Kind("libx264", (1080, 1920), {**H264, "g": "250"}),
    "hevc 340x256": Kind("libx265", (256, 340), {"preset": "fast", "x265-params": "keyint=250:log-level=none"}),
    "vp9 340x256": Kind("libvpx-vp9", (256, 340), {"g": "128", "crf": "32", "b": "0", "cpu-used": "5"}, ".webm"),
    "mpeg4 340x256": Kind("mpeg4", (256, 340), {"g": "12", "b": "800k"}, ".avi"),
}


def make_film(path: Path, kind: Kind, frames: int = 250, fps: int = 25, seed: int = 0) -> Path:
    """Writes a film, unless it is there already."""
    if path.exists():
        return path
    temporary = path.with_stem(f"{path.stem}.part")
    with av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream(kind.codec, rate=fps, options=kind.options)
        (stream.height, stream.width), stream.pix_fmt = kind.size, "yuv420p"
        for picture in pictures(kind.size, frames, numpy.random.default_rng(seed)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return temporary.rename(path)


def pictures(size: tuple[int, int], frames: int, draw: Generator) -> Any:
    """Yields H W 3 uint8: a background that is panned over, two discs that circle, noise of five grey levels."""
    height, width = size
    scale = height / 256
    background = texture(height * 2, width * 2, draw)
    discs = [texture(height, width, draw) for _ in range(2)]
    noises = draw.normal(0, 5, (4, height, width, 1)).round().astype(numpy.int16)
    y, x = numpy.mgrid[:height, :width]
    for number in range(frames):
        turn = 2 * numpy.pi * number / 240
        top, left = (int(height * (0.5 + 0.45 * f(turn / 2))) for f in (numpy.sin, numpy.cos))
        picture = background[top : top + height, left : left + width].astype(numpy.int16)
        for which, disc in enumerate(discs):
            angle = turn * (2 - which) + 3 * which
            centre = height * (0.5 + 0.25 * numpy.sin(angle)), width * (0.5 + 0.3 * numpy.cos(angle))
            inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (45 * scale + 20 * scale * which) ** 2
            picture[inside] = numpy.roll(disc, round(2 * scale * number), axis=which)[inside]
        picture += numpy.roll(noises[number % 4], int(draw.integers(height)), axis=0)
        yield paint_number(picture.clip(0, 255).astype(numpy.uint8), number)


def texture(height: int, width: int, draw: Generator) -> ndarray:
    """H W 3 uint8: random grids from coarse to cells of three pixels, the finer the weaker."""
    total = torch.full((1, 3, height, width), 128.0)
    cells, strength = 4, 60.0
    while 3 * cells <= height:
        grid = torch.from_numpy(draw.uniform(-1, 1, (1, 3, cells, cells * width // height)))
        total += strength * interpolate(grid.float(), (height, width), mode="bicubic")
        cells, strength = 2 * cells, 0.8 * strength
    return total[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()  # H W C


def paint_number(picture: ndarray, number: int) -> ndarray:
    """Writes the number's bits into `picture` (H W 3) and hands it back, the highest bit at the left."""
    height, width = picture.shape[:2]
    for cell in range(BITS):
        white = number >> (BITS - 1 - cell) & 1
        picture[-height // 12 :, cell * width // BITS : (cell + 1) * width // BITS] = 255 * white
    return picture


def numbers(clip: ndarray) -> list[int]:
    """The numbers painted in the frames of a T H W 3 clip of any size."""
    height, width = clip.shape[1:3]
    columns = ((numpy.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = clip[:, height - height // 24 - 1][:, columns].mean(axis=-1) > 127  # T BITS
    return (bits @ (1 << numpy.arange(BITS)[::-1])).tolist()
