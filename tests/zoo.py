"""Bad and odd video files, made here from nothing: `python tests/zoo.py FOLDER` writes them all and prints the table.

Each case is a function that writes one file, with its number in the project's list of bad inputs, what is wrong with it
(the docstring), and what is to come of it: the frames on display, by the number painted in each, or the reason why it is
refused; and what the doctor finds. `tests/data/test_zoo.py` holds the reader and the doctor to it.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy

from videos import make_sound, make_video, painted

FPS, FRAMES, FIRST = 30, 70, 100
"""70 frames are more than a clip of 16 with stride 4; their numbers, from 100, turn each bit on and off, so that no
column of the picture stays dark like a bar."""
SIZE = (48, 64)

Shown = Sequence[tuple[float, int]]
"""When frames' displays start, in seconds from the first, and the numbers painted in them."""


@dataclass(frozen=True)
class Case:
    number: int
    name: str
    write: Callable[[Path], Any]
    shown: Shown
    """Frames that must be exact; those that damage may touch are not listed. Empty: the file is refused."""
    reason: str
    """A pattern of the reason why it is refused."""
    findings: frozenset[str]
    read_too: bool
    """Whether a file that the doctor refuses is read all the same: it is quarantined for what a reader cannot know."""

    @property
    def about(self) -> str:
        return " ".join((getattr(self.write, "func", self.write).__doc__ or "").split())


CASES: list[Case] = []

ELSEWHERE = {
    13: "the same file as 10 to a reader: the test of times past the end, tests/data/test_decode.py",
    47: "forked readers: tests/data/test_workers.py, test_loader.py",
    48: "a decoder that hangs: tests/data/test_workers.py",
    49: "one file read by two workers: tests/data/test_loader.py",
    51: "shards: tests/data/test_shards.py",
    56: "manifests of bad files only: tests/data/test_inspect.py, test_loader.py",
    57: "labels beyond the class list: tests/data/test_listing.py",
    58: "layout of channels: tests/data/test_read.py",
    59: "number types of threads: no thread reads here; tests/data/test_loader.py has its dtype",
    60: "mixed rates: tests/data/test_check.py; times are seconds, not frame numbers: test_sample.py",
}


def case(
    number: int, name: str, *, shown: Shown = (), reason: str = "", findings: str = "", read_too: bool = False
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def add(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
        CASES.append(Case(number, name, write, shown, reason, frozenset(findings.split()), read_too))
        return write

    return add


def steady(numbers: Iterable[int] = range(FRAMES), fps: float = FPS) -> Shown:
    """Frames of these places in a video of constant rate."""
    return [(k / fps, FIRST + k) for k in numbers]


def in_a_row(numbers: Iterable[int], fps: float = FPS) -> Shown:
    """Frames of these places, one after the other from time 0."""
    return [(k / fps, FIRST + number) for k, number in enumerate(numbers)]


# ---- writing: films, and surgery on them


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
        extra = {"x265-params": "log-level=none:pools=1:frame-threads=1"}
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
    data = film(path, **choices).read_bytes()
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


# ---- 1 to 4: nothing there


@case(1, "zero_bytes.mp4", reason="empty", findings="empty")
def _(path: Path) -> None:
    """no bytes at all"""
    path.touch()


@case(1, "a_few_bytes.mp4", reason="index .moov. is missing", findings="no_index")
def _(path: Path) -> None:
    """the first 40 bytes of a video"""
    path.write_bytes(film(path).read_bytes()[:40])


@case(2, "missing.mp4", reason="no such file", findings="missing")
def _(path: Path) -> None:
    """no such file"""


@case(3, "locked.mp4", reason="permission", findings="no_permission")
def _(path: Path) -> None:
    """no right to read it; to the superuser it is a video like others"""
    film(path).chmod(0)


@case(4, "folder.mp4", reason="folder", findings="folder")
def _(path: Path) -> None:
    """a folder whose name ends like a video's"""
    path.mkdir()


@case(4, "dangling.mp4", reason="no such file", findings="missing")
def _(path: Path) -> None:
    """a link to a file that is gone"""
    path.symlink_to(path.with_name("gone.mp4"))


@case(4, "round.mp4", reason="[Ll]ink|cannot be opened", findings="missing")
def _(path: Path) -> None:
    """a link to itself"""
    path.symlink_to(path)


@case(31, "pipe.mp4", reason="not a (regular )?file|pipe", findings="not_a_file")
def _(path: Path) -> None:
    """a named pipe that nobody writes to: opening it waits for ever"""
    os.mkfifo(path)


# ---- 5 and 6: interrupted


@case(5, "no_moov.mp4", reason="index .moov. is missing", findings="no_index")
def _(path: Path) -> None:
    """a recording that was interrupted before its index was written"""
    data = film(path).read_bytes()
    path.write_bytes(data[: box(data, "moov")[0]])


@case(5, "half_moov.mp4", reason="index .moov. is missing or damaged", findings="no_index")
def _(path: Path) -> None:
    """a download that was interrupted inside the index"""
    data = film(path).read_bytes()
    path.write_bytes(data[: box(data, "moov")[0] + 100])


def cut(path: Path, after: int, **choices: Any) -> None:
    """a whole index, but of the pictures only the first part, up to the middle of one"""
    place, size, _ = packets(film(path, **choices))[after]
    path.write_bytes(path.read_bytes()[: place + size // 2])


front = {"movflags": "faststart"}
case(6, "cut_early.mp4", reason="breaks off", findings="breaks_off", shown=steady(range(20)), read_too=True)(
    functools.partial(cut, after=24, muxer=front)
)
case(6, "cut_late.mp4", findings="cut_short", shown=steady(range(45)))(functools.partial(cut, after=50, muxer=front))
case(6, "cut_early.mkv", reason="breaks off", findings="breaks_off", shown=steady(range(20)), read_too=True)(
    functools.partial(cut, after=24)
)
case(6, "cut_late.mkv", findings="cut_short", shown=steady(range(45)))(functools.partial(cut, after=50))
case(6, "cut.ts", shown=steady(range(45)))(functools.partial(cut, after=50))
case(6, "cut.avi", findings="cut_short no_timestamps", shown=steady(range(45)))(
    functools.partial(cut, after=50, codec="mpeg4", b_frames=0)
)


# ---- 7 to 9: something else


@case(7, "page.mp4", reason="text", findings="text")
def _(path: Path) -> None:
    """a web page that was saved in place of the video"""
    path.write_text("<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n" * 40)


@case(7, "answer.mp4", reason="text", findings="text")
def _(path: Path) -> None:
    """an answer in JSON that was saved in place of the video"""
    path.write_text('{"error": "quota exceeded", "code": 429}')


@case(7, "playlist.mp4", reason="text|not a video|playlist", findings="text")
def _(path: Path) -> None:
    """a playlist (HLS) that names another file, which must not be played in its place"""
    film(path.with_name("playlist_target.ts"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.3,\nplaylist_target.ts\n#EXT-X-ENDLIST\n")


def photograph(path: Path, codec: str, pix_fmt: str) -> None:
    """a photograph whose name ends like a video's"""
    film(path, numbered([5]), codec=codec, pix_fmt=pix_fmt, kind="image2pipe", b_frames=0)


case(7, "photograph.mp4", reason="still image", findings="still_image")(
    functools.partial(photograph, codec="mjpeg", pix_fmt="yuvj420p")
)
case(7, "drawing.mp4", reason="still image", findings="still_image")(
    functools.partial(photograph, codec="png", pix_fmt="rgb24")
)


@case(7, "archive.mp4", reason="not a video", findings="not_a_video")
def _(path: Path) -> None:
    """a zip archive whose name ends like a video's"""
    path.write_bytes(b"PK\x03\x04" + noise(4000))


@case(7, "noise.mp4", reason="not a video", findings="not_a_video")
def _(path: Path) -> None:
    """bytes without any meaning"""
    path.write_bytes(noise(20_000))


@case(8, "._name.mp4", reason="resource fork|not a video", findings="resource_fork")
def _(path: Path) -> None:
    """what macOS leaves beside a file on foreign disks (AppleDouble)"""
    head = struct.pack(">II16sHIII", 0x00051607, 0x00020000, b"Mac OS X", 1, 2, 38, 300)
    path.write_bytes(head + noise(300))


@case(8, "Thumbs.db", reason="not a video", findings="not_a_video")
def _(path: Path) -> None:
    """what Windows leaves in folders of pictures"""
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + noise(4000))


@case(8, "name.mp4.part", reason="index .moov. is missing", findings="no_index")
def _(path: Path) -> None:
    """a download that goes on or was given up"""
    data = film(path, kind="mp4").read_bytes()
    path.write_bytes(data[: len(data) // 2])


def animation(path: Path, kind: str = "gif", codec: str = "gif", pix_fmt: str = "rgb8", **choices: Any) -> None:
    """an animated picture: readable, but seldom meant as a video"""
    film(path, kind=kind, codec=codec, pix_fmt=pix_fmt, fps=25, **choices)


case(9, "animation.gif", shown=steady(fps=25), findings="animation")(animation)
case(9, "animation.mp4", shown=steady(fps=25), findings="animation wrong_ending")(animation)


@case(9, "webm_inside.mp4", shown=steady(), findings="wrong_ending")
def _(path: Path) -> None:
    """another container than the name says"""
    film(path, kind="webm", codec="libvpx-vp9", b_frames=0, options={"deadline": "realtime", "cpu-used": "8"})


# ---- 10 to 13: counts that are not true


def promised(path: Path, frames: int) -> None:
    """its index counts frames that are not there (the bytes in their place are no pictures)"""
    data = film(path, b_frames=0).read_bytes()
    table = "moov.trak.mdia.minf.stbl."
    ticks = payload(data, table + "stts")[12:16]
    sizes = payload(data, table + "stsz")[12:] + struct.pack(">I", 50) * (frames - FRAMES)
    chunks = payload(data, table + "stsc")
    assert chunks[4:8] == struct.pack(">I", 1), "more than one kind of chunk"
    data = with_box(data, table + "stts", struct.pack(">III", 0, 1, frames) + ticks)
    data = with_box(data, table + "stsz", struct.pack(">III", 0, 0, frames) + sizes)
    data = with_box(data, table + "stsc", chunks[:12] + struct.pack(">I", frames) + chunks[16:])
    start = box(data, "moov.trak.edts.elst")[0] + 16
    path.write_bytes(data[:start] + struct.pack(">I", 1000 * frames // FPS) + data[start + 4 :])


case(10, "counts_98.mp4", shown=steady(), findings="cut_short")(functools.partial(promised, frames=98))
case(10, "counts_431.mp4", shown=steady(), reason="breaks off", findings="breaks_off", read_too=True)(
    functools.partial(promised, frames=431)
)


def promised_avi(path: Path, frames: int) -> None:
    """its header counts frames that are not there"""

    def lie(data: bytearray) -> None:
        struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, frames)
        struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, frames)

    film(path, codec="mpeg4", b_frames=0)
    damage(path, lie)


case(10, "counts_98.avi", shown=steady(), findings="no_timestamps cut_short")(
    functools.partial(promised_avi, frames=98)
)
case(10, "counts_431.avi", shown=steady(), reason="breaks off", findings="no_timestamps breaks_off", read_too=True)(
    functools.partial(promised_avi, frames=431)
)


@case(11, "hidden_lead.mp4", shown=in_a_row(range(13, 70)), findings="edit_list")
def _(path: Path) -> None:
    """70 frames in the header, of which the first 13 are never shown (decoded, then dropped)"""
    edited(path, [(57 / FPS, 13)], gop=250)


@case(12, "says_60.mkv", shown=[(k / 20, FIRST + k) for k in range(70)], findings="rate_differs")
def _(path: Path) -> None:
    """its header says 60 frames a second, its clock 20"""
    film(path, fps=60, starts_s=[k / 20 for k in range(FRAMES)])


# ---- the table


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in CASES:
        one.write(folder / one.name)
    for one in sorted(CASES, key=lambda c: c.number):
        outcome = f"refused: {one.reason}" if one.reason else f"{len(one.shown)} frames exact"
        print(f"{one.number:>3}  {one.name:<24} {outcome:<34} {' '.join(sorted(one.findings)) or '-':<34} {one.about}")
    for number, where in ELSEWHERE.items():
        print(f"{number:>3}  not of a file alone: {where}")
    print(f"{len(CASES)} files in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
