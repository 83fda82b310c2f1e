"""Small video files that show something: blobs that move, another scene for each seed, the same in any size or codec."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy


def make_scene(
    path: Path, seed: int, *, frames: int = 24, fps: int = 12, size: tuple[int, int] = (64, 96), codec: str = "libx264",
    quality: int = 20,
) -> Path:  # fmt: skip
    """Writes a scene; `size` is height and width, `quality` a constant rate factor or a quantiser."""
    draw = numpy.random.default_rng(seed)
    coarse = draw.random((2, 5, 7, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        options = {"crf": str(quality), "preset": "ultrafast"} if codec == "libx264" else {"qscale": str(quality)}
        stream: Any = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            share = number / frames
            blend = (1 - share) * numpy.roll(coarse[0], number // 6, axis=1) + share * coarse[1]
            small = av.VideoFrame.from_ndarray((255 * blend).astype(numpy.uint8), format="rgb24")
            frame = small.reformat(size[1], size[0], "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
