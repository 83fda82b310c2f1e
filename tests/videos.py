"""Small real video files for tests, with each frame's number painted in, so that a wrong frame is noticed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy

BITS = 8
CLOCK = Fraction(1, 90_000)


@contextmanager
def usual_priority() -> Iterator[None]:
    """Undoes what libsvtav1 does to a process of root: it makes it a real-time one, which starves all others."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def make_video(
    path: Path,
    frames: int = 30,
    *,
    fps: float = 30.0,
    size: tuple[int, int] = (48, 64),
    gop: int = 12,
    b_frames: int = 2,
    codec: str = "libx264",
    times_s: Sequence[float] | None = None,
    start_s: float = 0.0,
    rotation: int = 0,
    sound: bool = False,
) -> Path:
    """Writes `frames` frames of `size` (height, width); frame n shows n in eight black or white columns.

    Args:
        times_s: when each frame starts; at a constant `fps` if not given.
        rotation: degrees counter-clockwise that the file says it is to be turned for display.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "bf": str(b_frames)}
        if codec == "libx264":
            options |= {"crf": "12", "preset": "veryfast", "sc_threshold": "0"}
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if times_s is not None or start_s:
            stream.codec_context.time_base = CLOCK
        if rotation:
            stream.set_display_rotation(rotation)
        tone = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(painted(number, size), format="rgb24")
            if times_s is not None or start_s:
                seconds = times_s[number] if times_s is not None else number / float(rate)
                frame.pts, frame.time_base = round((start_s + seconds) / CLOCK), CLOCK
            else:
                frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tone is not None:
            container.mux(_hum(tone, frames / fps))
    return path


def make_sound(path: Path, seconds: float = 0.5) -> Path:
    """Writes a file with sound and no picture."""
    with av.open(str(path), "w") as container:
        container.mux(_hum(container.add_stream("aac", rate=16_000, layout="mono"), seconds))
    return path


def painted(number: int, size: tuple[int, int] = (48, 64)) -> numpy.ndarray:
    """The picture of `number`: H W 3 uint8, the highest bit at the left."""
    height, width = size
    bits = [(number >> shift) & 1 for shift in reversed(range(BITS))]
    row = numpy.repeat(numpy.array(bits, dtype=numpy.uint8) * 255, width // BITS)
    row = numpy.pad(row, (0, width - len(row)))
    return numpy.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def numbers(clip: Any) -> list[int]:
    """The numbers painted in the frames of a T C H W clip."""
    found = []
    for frame in numpy.asarray(clip):
        row = frame.mean(axis=(0, 1))
        middles = (numpy.arange(BITS) + 0.5) * (len(row) // BITS)
        bits = row[middles.astype(int)] > 127
        found.append(int("".join("1" if bit else "0" for bit in bits), 2))
    return found


def _hum(stream: Any, seconds: float) -> list[Any]:
    count = int(16_000 * seconds)
    wave = (0.2 * numpy.sin(numpy.arange(count) * 0.1)).astype(numpy.float32)[None]
    frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    frame.sample_rate = 16_000
    frame.pts = 0
    return [*stream.encode(frame), *stream.encode(None)]
