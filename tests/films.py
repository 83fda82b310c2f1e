"""Films for tests that want more say than `make_video` gives, and surgery on their bytes, boxes and packets."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy

from videos import painted, usual_priority

os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder is talkative

FPS, FRAMES, FIRST = 30, 70, 100
"""Numbers from 100 on turn each bit on and off within 70, so that no column of the picture stays dark like a bar."""
SIZE = (48, 64)
QUIET_X265 = "log-level=none:pools=1:frame-threads=1"


@usual_priority()
def film(
    path: Path,
    pictures: Iterable[numpy.ndarray] | None = None,
    *,
    codec: str = "libx264",
    fps: float = FPS,
    starts_s: Sequence[float] | None = None,
    size: tuple[int, int] = SIZE,
    gop: int = 12,
    b_frames: int = 2,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    kind: str | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Writes pictures (H W 3 uint8), numbered ones by default, as a video file.

    Args:
        starts_s: when each frame starts; at a constant `fps` if not given.
        kind: the container, where the file's ending does not say it.
        prepare: sets what else there is to be set of the stream.
    """
    rate = Fraction(fps).limit_denominator(1001)
    clock = 1 / rate if starts_s is None else Fraction(1, 90_000)
    extra = {"crf": "12", "preset": "veryfast", "sc_threshold": "0"} if codec == "libx264" else {}
    if codec == "libx265":
        extra = {"x265-params": QUIET_X265}
    with av.open(str(path), "w", format=kind, options=muxer or {}) as container:
        choices = {"g": str(gop), "bf": str(b_frames)} | extra | (options or {})
        stream: Any = container.add_stream(codec, rate=rate, options=choices)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if starts_s is not None:
            stream.codec_context.time_base = clock
        prepare(stream)
        for k, picture in enumerate(numbered(size=size) if pictures is None else pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = k if starts_s is None else round(starts_s[k] / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered(numbers: Iterable[int] = range(FRAMES), size: tuple[int, int] = SIZE) -> Iterable[numpy.ndarray]:
    return (painted(FIRST + number, size) for number in numbers)


def remux(source: Path, target: Path, keep: Callable[[int, Any], bool], kind: str | None = None) -> None:
    """Copies the packets of the video that are kept; the first argument of `keep` counts them."""
    with av.open(str(source)) as old, av.open(str(target), "w", format=kind) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.dts is not None and keep(number, packet):
                packet.stream = stream
                new.mux(packet)


def packets(path: Path) -> list[tuple[int, int, bool]]:
    """Place in the file, bytes, and whether it is a key frame, of each packet of the video as stored."""
    with av.open(str(path)) as container:
        found = container.demux(container.streams.video[0])
        return [(p.pos, p.size, p.is_keyframe) for p in found if p.size and p.pos is not None]


def box(data: bytes, path: str) -> tuple[int, int]:
    """Where the box of an MP4 file is, such as "moov.trak.mdia.mdhd": its first byte and the one after its last."""
    start, end = 0, len(data)
    for name in path.split("."):
        while data[start + 4 : start + 8] != name.encode():
            start += struct.unpack_from(">I", data, start)[0]
            assert start < end, f"no box {path}"
        end = start + struct.unpack_from(">I", data, start)[0]
        if name != path.split(".")[-1]:
            start += 8
    return start, end


def with_box(data: bytes, path: str, payload: bytes) -> bytes:
    """An MP4 file, its moov box the last, in which a box has another payload."""
    start, end = box(data, path)
    grown = 8 + len(payload) - (end - start)
    whole = bytearray(data)
    whole[start:end] = struct.pack(">I", 8 + len(payload)) + data[start + 4 : start + 8] + payload
    names = path.split(".")
    for depth in range(1, len(names)):
        outer, _ = box(data, ".".join(names[:depth]))
        struct.pack_into(">I", whole, outer, struct.unpack_from(">I", data, outer)[0] + grown)
    return bytes(whole)


def payload(data: bytes, path: str) -> bytes:
    start, end = box(data, path)
    return data[start + 8 : end]


def edited(path: Path, edits: Sequence[tuple[float, int]], **choices: Any) -> None:
    """A film with an edit list: seconds of display, and the frame it starts with (-1: nothing is shown)."""
    data = film(path, muxer={"movie_timescale": "15360"}, **choices).read_bytes()
    movie_ticks = struct.unpack(">I", payload(data, "moov.mvhd")[12:16])[0]
    ticks = struct.unpack(">I", payload(data, "moov.trak.mdia.mdhd")[12:16])[0]
    zero = struct.unpack(">i", payload(data, "moov.trak.edts.elst")[12:16])[0]  # where the first frame is shown
    rows = [
        struct.pack(">IiI", round(seconds * movie_ticks), -1 if frame < 0 else zero + frame * ticks // FPS, 1 << 16)
        for seconds, frame in edits
    ]
    path.write_bytes(with_box(data, "moov.trak.edts.elst", struct.pack(">II", 0, len(rows)) + b"".join(rows)))


def damage(path: Path, change: Callable[[bytearray], Any]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def noise(count: int, seed: int = 0) -> bytes:
    return numpy.random.default_rng(seed).bytes(count)


def together(path: Path, sources: Sequence[Path]) -> None:
    """The first streams of files, as those of one."""
    with av.open(str(path), "w") as new:
        opened = [av.open(str(source)) for source in sources]
        streams = [new.add_stream_from_template(old.streams[0]) for old in opened]
        mixed = [(k, p) for k, old in enumerate(opened) for p in old.demux(old.streams[0]) if p.dts is not None]
        for k, packet in sorted(mixed, key=lambda row: row[1].dts * row[1].time_base):
            packet.stream = streams[k]
            new.mux(packet)
        for old in opened:
            old.close()
