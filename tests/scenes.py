"""Small video files that show something, another scene for each seed, the same in any size and quality."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy


def enlarged(picture: numpy.ndarray) -> numpy.ndarray:
    """5 7 3 in [0, 1] -> 16 24 3."""
    frame = av.VideoFrame.from_ndarray((255 * picture).astype(numpy.uint8), format="rgb24")
    return frame.reformat(24, 16, "rgb24", interpolation="BICUBIC").to_ndarray() / 255


def make_scene(
    path: Path, seed: int, *, frames: int = 24, fps: int = 12, size: tuple[int, int] = (128, 192),
    quality: int = 20,
) -> Path:  # fmt: skip
    """Writes a scene as H.264; `size` is height and width, `quality` the constant rate factor."""
    draw = numpy.random.default_rng(seed)
    coarse = [draw.random((height, width, 3)) for height, width in ((5, 7), (5, 7), (16, 24))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": str(quality), "preset": "ultrafast"}
        stream: Any = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            share = number / frames
            blend = 0.7 * enlarged((1 - share) * coarse[0] + share * coarse[1]) + 0.3 * coarse[2]
            frame = av.VideoFrame.from_ndarray((255 * blend).astype(numpy.uint8), format="rgb24")
            frame = frame.reformat(size[1], size[0], "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
