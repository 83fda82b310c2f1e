"""Bad and odd video files, made here from nothing: `python tests/zoo.py FOLDER` writes them all and prints the table.

Each case is a function that writes one file, with its number in the project's list of bad inputs, what is wrong with
it (the docstring), and what is to come of it: the frames on display, by the number painted in each, or the reason why
it is refused; and what the doctor finds. `tests/data/test_zoo.py` holds the reader and the doctor to it.
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

from films import (
    FIRST,
    FPS,
    FRAMES,
    QUIET_X265,
    SIZE,
    box,
    damage,
    edited,
    film,
    noise,
    numbered,
    packets,
    payload,
    remux,
    together,
    with_box,
)
from videos import make_sound, painted

Shown = Sequence[tuple[float, int]]
"""When frames' displays start, in seconds from the first, and the numbers painted in them."""


@dataclass(frozen=True)
class Case:
    number: int
    name: str
    write: Callable[[Path], Any]
    shown: Shown
    """Frames that must be exact; those that damage may touch are not listed. Empty: the reader refuses the file."""
    reason: str
    """A pattern of the reason why the reader refuses it, or the doctor alone; empty: neither does."""
    findings: frozenset[str]
    about: str
    fault: str
    """What the reader does wrong as yet, if anything."""


CASES: list[Case] = []

ELSEWHERE = {
    13: "a reader that tries the end again and again: every case that is cut short; times past the end, test_read.py",
    47: "forked readers: tests/data/test_workers.py, test_loader.py",
    48: "a decoder that hangs: tests/data/test_workers.py",
    49: "one file read by two workers: tests/data/test_loader.py",
    50: "files that change while they are known: tests/data/test_zoo.py; short reads: test_storage.py",
    51: "shards: tests/data/test_shards.py",
    53: "copies, exact and near: tests/data/test_examine.py (hashes), test_duplicates.py",
    56: "manifests of bad files only: tests/data/test_inspect.py, test_loader.py",
    57: "labels beyond the class list: tests/data/test_listing.py",
    58: "layout of channels: tests/data/test_read.py",
    59: "number types of threads: no thread reads here; tests/data/test_loader.py has its dtype",
    60: "mixed rates: tests/data/test_check.py; times are seconds, not frame numbers: test_sample.py",
}


def case(
    number: int, name: str, *, shown: Shown = (), reason: str = "", findings: str = "", about: str = "", fault: str = ""
) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    """Lists a function as a case. What the case is about is the function's docstring, unless said."""

    def add(write: Callable[[Path], Any]) -> Callable[[Path], Any]:
        told = " ".join((about or getattr(write, "func", write).__doc__ or "").split())
        CASES.append(Case(number, name, write, shown, reason, frozenset(findings.split()), told, fault))
        return write

    return add


def steady(numbers: Iterable[int] = range(FRAMES), fps: float = FPS) -> Shown:
    """Frames of these places in a video of constant rate."""
    return [(k / fps, FIRST + k) for k in numbers]


def in_a_row(numbers: Iterable[int], fps: float = FPS) -> Shown:
    """Frames of these places, one after the other from time 0."""
    return [(k / fps, FIRST + number) for k, number in enumerate(numbers)]


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


@case(5, "half_moov.mp4", reason="index is damaged", findings="no_index")
def _(path: Path) -> None:
    """a download that was interrupted inside the index"""
    data = film(path).read_bytes()
    path.write_bytes(data[: box(data, "moov")[0] + 100])


def cut(path: Path, after: int, **choices: Any) -> None:
    """a whole index, but of the pictures only the first part, up to the middle of one"""
    place, size, _ = packets(film(path, **choices))[after]
    path.write_bytes(path.read_bytes()[: place + size // 2])


front = {"movflags": "faststart"}
case(6, "cut_early.mp4", reason="breaks off", findings="breaks_off", shown=steady(range(20)))(
    functools.partial(cut, after=24, muxer=front)
)
case(6, "cut_late.mp4", findings="cut_short damaged_middle", shown=steady(range(45)))(
    functools.partial(cut, after=50, muxer=front)
)
case(6, "cut_early.mkv", reason="breaks off", findings="breaks_off", shown=steady(range(20)))(
    functools.partial(cut, after=24)
)
case(6, "cut_late.mkv", findings="cut_short", shown=steady(range(45)))(functools.partial(cut, after=50))
case(6, "cut.ts", shown=steady(range(45)))(functools.partial(cut, after=50))
case(6, "cut.avi", findings="cut_short", shown=steady(range(45)))(
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


case(9, "animation.gif", shown=steady(fps=25), findings="animation alpha")(animation)
case(9, "animation.mp4", shown=steady(fps=25), findings="animation wrong_ending alpha")(animation)


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
    for name, scale in (("moov.mvhd", 12), ("moov.trak.mdia.mdhd", 12)):
        clock = payload(data, name)
        length = frames * struct.unpack_from(">I", clock, scale)[0] // FPS
        data = with_box(data, name, clock[: scale + 4] + struct.pack(">I", length) + clock[scale + 8 :])
    (_, edits, *edit) = struct.unpack(">IIIiI", payload(data, "moov.trak.edts.elst"))
    whole = struct.pack(">IIIiI", 0, edits, 1000 * frames // FPS, *edit[1:])
    path.write_bytes(with_box(data, "moov.trak.edts.elst", whole))


case(10, "counts_98.mp4", shown=steady(), findings="cut_short")(functools.partial(promised, frames=98))
case(10, "counts_431.mp4", shown=steady(), reason="breaks off", findings="breaks_off")(
    functools.partial(promised, frames=431)
)


def promised_avi(path: Path, frames: int) -> None:
    """its header counts frames that are not there, or not all that are"""

    def lie(data: bytearray) -> None:
        struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, frames)
        struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, frames)

    film(path, codec="mpeg4", b_frames=0)
    damage(path, lie)


case(10, "counts_98.avi", shown=steady(), findings="cut_short")(functools.partial(promised_avi, frames=98))
case(10, "counts_40.avi", shown=steady(), findings="duration_differs")(functools.partial(promised_avi, frames=40))
case(10, "counts_431.avi", shown=steady(), reason="breaks off", findings="breaks_off")(
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


# ---- 14 to 18: damage


def spoil(path: Path, change: Callable[[int], bytes], which: Callable[[int, bool], bool], **choices: Any) -> None:
    """Changes the bytes of some packets; `which` gets a packet's place and whether it is a key frame."""
    stored = packets(film(path, **choices))

    def overwrite(data: bytearray) -> None:
        for number, (place, size, key) in enumerate(stored):
            if which(number, key):
                start = place + min(size, 8)  # the length of the first piece stays, as in a mend by hand
                data[start : place + size] = change(place + size - start)

    damage(path, overwrite)


@case(14, "middle_is_gone.mp4", shown=steady([*range(22), *range(60, 70)]), findings="damaged_middle")
def _(path: Path) -> None:
    """zeros in place of the pictures 24 to 35 of 70, as after a disk error; the next key frame makes it good"""
    spoil(path, bytes, lambda number, key: 24 <= number < 36, b_frames=0)


@case(14, "middle_is_gone.mkv", shown=steady([*range(20), *range(60, 70)]), findings="damaged_middle")
def _(path: Path) -> None:
    """noise in place of containers and pictures: the next piece that is whole has to be searched for"""
    stored = packets(film(path, b_frames=0, muxer={"cluster_time_limit": "300"}))
    start, end = stored[24][0] - 20, stored[35][0]
    damage(path, lambda data: data.__setitem__(slice(start, end), noise(end - start)))


@case(15, "every_seventh.mp4", reason="none of its frames", findings="nothing_decodes")
def _(path: Path) -> None:
    """every seventh byte of the pictures is another"""

    def flip(data: bytearray) -> None:
        start, end = box(bytes(data), "mdat")
        for at in range(start + 60, end, 7):
            data[at] ^= 0xFF

    film(path)
    damage(path, flip)


@case(15, "header_flips.mp4", reason="index is damaged", findings="no_index")
def _(path: Path) -> None:
    """every seventh byte of the index is another"""

    def flip(data: bytearray) -> None:
        start, end = box(bytes(data), "moov")
        for at in range(start + 8, end, 7):
            data[at] ^= 0xFF

    film(path)
    damage(path, flip)


@case(16, "one_picture.mp4", shown=steady([*range(30), *range(36, 70)]), findings="damaged_middle")
def _(path: Path) -> None:
    """one picture in the middle is noise, and those that build on it suffer"""
    spoil(path, noise, lambda number, key: number == 30, b_frames=0)


@case(
    16,
    "two_of_three.mp4",
    reason="damaged: 46 of 70 frames",
    findings="mostly_damaged repeats_frames",
    shown=steady(range(0, 70, 3)),
)
def _(path: Path) -> None:
    """noise in place of two of three pictures, each a key frame: most of any clip is another frame's"""
    spoil(path, noise, lambda number, key: number % 3 > 0, gop=1, b_frames=0)


@case(
    16,
    "scratched.avi",
    reason="damaged: 5. of 70 frames",
    findings="mostly_damaged repeats_frames",
    shown=[(0, FIRST)],
)
def _(path: Path) -> None:
    """a bit of each picture but the first is flipped: decoders make something of it that nobody painted"""
    stored = packets(film(path, codec="mpeg4", b_frames=0, gop=1))

    def scratch(data: bytearray) -> None:
        for place, size, _ in stored[1:]:
            data[place + size * 2 // 3] ^= 0x10

    damage(path, scratch)


@case(17, "hevc_noise.mp4", reason="none of its frames", findings="nothing_decodes")
def _(path: Path) -> None:
    """HEVC whose pictures are all noise: decoders have crashed on it"""
    spoil(path, noise, lambda number, key: True, codec="libx265", size=(64, 128))


@case(17, "hevc_part_noise.mp4", shown=steady(range(20)), findings="damaged_middle cut_short")
def _(path: Path) -> None:
    """HEVC, of whose pictures each fifth from the middle on is noise"""
    spoil(path, noise, lambda number, key: number > 40 and number % 5 == 0, codec="libx265", size=(64, 128), b_frames=0)


def header_changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = film(path).read_bytes()
    start = data.index(b"avcC") - 4
    size = struct.unpack_from(">I", data, start)[0]
    old = data[start : start + size]
    new = change(old)
    assert len(new) == len(old) and new != old
    path.write_bytes(data[:start] + new + data[start + size :])


@case(18, "broken_sps.mp4", reason="none of its frames", findings="nothing_decodes")
def _(path: Path) -> None:
    """the parameters of the sequence (H.264 SPS) are damaged"""
    header_changed(path, lambda avcc: avcc[:20] + bytes(b ^ 0xA5 for b in avcc[20:30]) + avcc[30:])


@case(18, "unescaped.mp4", shown=steady())
def _(path: Path) -> None:
    """the parameters of the sequence lack the bytes that keep start codes out of them; their end is filled up"""

    def unescape(avcc: bytes) -> bytes:
        length = struct.unpack_from(">H", avcc, 14)[0]
        sps = avcc[16 : 16 + length]
        bare = sps.replace(b"\0\0\3", b"\0\0")
        return avcc[:14] + struct.pack(">H", length) + bare + bytes(length - len(bare)) + avcc[16 + length :]

    header_changed(path, unescape)


@case(18, "reference_missing.mp4", shown=steady([*range(12), *range(36, 70)]), findings="damaged_middle")
def _(path: Path) -> None:
    """a key frame is missing, so that those after it build on a picture of another time"""
    whole = film(path.with_name("reference_whole.mp4"), b_frames=0)
    remux(whole, path, lambda number, packet: number != 24)


# ---- 19 to 26: time


case(19, "no_times.avi", shown=steady(), about="a container without times (AVI): frames are counted")(
    functools.partial(film, codec="mpeg4", b_frames=0)
)
case(
    20,
    "no_times_b_frames.avi",
    shown=steady(),
    findings="no_timestamps",
    about="the same with B-frames, whose numbers are not in the order of display",
)(film)


@case(20, "no_times_b_frames.h264", shown=steady(fps=25), findings="no_timestamps")
def _(path: Path) -> None:
    """a bare stream without container, clock or length"""
    film(path, fps=25)


def later(path: Path) -> None:
    """its clock starts at 7.5 seconds"""
    film(path, starts_s=[7.5 + k / FPS for k in range(FRAMES)])


for suffix in ("mp4", "mkv", "ts"):
    case(21, f"starts_late.{suffix}", shown=steady(), findings="starts_late")(later)


@case(22, "key_frame_hidden.mp4", shown=in_a_row(range(5, 70)), findings="edit_list")
def _(path: Path) -> None:
    """its edit list begins after the first key frame: five frames are decoded and not shown"""
    edited(path, [(65 / FPS, 5)])


case(
    22, "negative_offsets.mp4", shown=steady(), about="decoding starts before time 0 (negative offsets of composition)"
)(functools.partial(film, muxer={"movflags": "negative_cts_offsets"}))


@case(
    22,
    "first_without_times.mkv",
    findings="no_timestamps timestamps_not_increasing",
    shown=[*steady(range(9)), *((k / FPS, FIRST + 10 + k) for k in range(10, 60))],
)
def _(path: Path) -> None:
    """ten frames before time 0, which lose their times; they are counted, and then the clock holds"""
    film(path, starts_s=[(k - 10) / FPS for k in range(FRAMES)], muxer={"avoid_negative_ts": "disabled"})


@case(23, "no_first_key.mp4", shown=in_a_row(range(12, 70)), findings="starts_without_key_frame")
def _(path: Path) -> None:
    """its first picture is no key frame: what cannot be decoded before the first one is not shown"""
    whole = film(path.with_name("no_first_key_whole.mp4"), b_frames=0)
    remux(whole, path, lambda number, packet: number >= 1)


open_gop = {"x264-params": "open-gop=1:keyint=12:bframes=2:b-adapt=0:scenecut=0"}
case(
    24,
    "open_gop.mp4",
    shown=steady(),
    about="open groups of pictures: some before a key frame in display come after it in the file",
)(functools.partial(film, options=open_gop))
case(24, "open_gop.ts", shown=steady(), about="the same in a stream without an index")(
    functools.partial(film, options=open_gop)
)


@case(24, "open_gop_hevc.mp4", shown=steady())
def _(path: Path) -> None:
    """open groups of pictures, HEVC: pictures before a key frame in display, after it in the file"""
    film(
        path,
        codec="libx265",
        size=(64, 128),
        options={"x265-params": f"{QUIET_X265}:open-gop=1:keyint=12:min-keyint=12:bframes=2:scenecut=0"},
    )


@case(24, "open_gop_cut.ts", shown=in_a_row(range(12, 70)), findings="starts_without_key_frame")
def _(path: Path) -> None:
    """starts inside an open group: frames before the first key frame refer to what is not there"""
    whole = film(path.with_name("open_gop_whole.ts"), options=open_gop)
    remux(whole, path, lambda number, packet: number >= 5, kind="mpegts")


case(
    25,
    "one_edit.mp4",
    shown=in_a_row(range(20, 50)),
    findings="edit_list",
    about="an edit list that cuts off both ends, between key frames",
)(functools.partial(edited, edits=[(30 / FPS, 20)]))
case(
    25,
    "ends_on_b_frame.mp4",
    shown=in_a_row(range(23)),
    findings="edit_list",
    about="an edit list that ends on a B-frame",
)(functools.partial(edited, edits=[(23 / FPS, 0)], gop=250))
case(
    25,
    "three_edits.mp4",
    shown=in_a_row([*range(10), *range(30, 40), *range(55, 65)]),
    findings="edit_list",
    about="three edits, which start between key frames",
)(functools.partial(edited, edits=[(10 / FPS, 0), (10 / FPS, 30), (10 / FPS, 55)], b_frames=0))
case(
    25,
    "edits_at_keys.mp4",
    shown=in_a_row([*range(10), *range(36, 46), *range(60, 70)]),
    findings="edit_list",
    about="three edits, which start at key frames, with B-frames",
)(functools.partial(edited, edits=[(10 / FPS, 0), (10 / FPS, 36), (10 / FPS, 60)]))
case(
    25,
    "edits_between_keys.mp4",
    shown=in_a_row([*range(10), *range(30, 40), *range(55, 65)]),
    findings="edit_list timestamps_not_increasing",
    fault="FFmpeg gives frames after an edit between key frames times a frame late, where there are B-frames",
    about="three edits, which start between key frames, with B-frames",
)(functools.partial(edited, edits=[(10 / FPS, 0), (10 / FPS, 30), (10 / FPS, 55)]))
case(
    25,
    "repeated_edit.mp4",
    shown=in_a_row([*range(12, 36), *range(12, 36)]),
    findings="edit_list",
    about="the same second twice, by two edits",
)(functools.partial(edited, edits=[(24 / FPS, 12), (24 / FPS, 12)]))
case(25, "empty_edit.mp4", shown=steady(), findings="starts_late", about="an edit that shows nothing for 1.5 seconds")(
    functools.partial(edited, edits=[(1.5, -1), (70 / FPS, 0)])
)


def timed(path: Path, ticks: Sequence[tuple[int, int]], **choices: Any) -> None:
    """An MP4 whose frames last so long: (frames, multiples of a frame) each."""
    data = film(path, b_frames=0, **choices).read_bytes()
    table = "moov.trak.mdia.minf.stbl.stts"
    tick = struct.unpack(">I", payload(data, table)[12:16])[0]
    rows = b"".join(struct.pack(">II", count, factor * tick) for count, factor in ticks)
    path.write_bytes(with_box(data, table, struct.pack(">II", 0, len(ticks)) + rows))


@case(
    26,
    "same_times.mp4",
    findings="timestamps_not_increasing",
    shown=[*steady(range(28)), (28 / FPS, FIRST + 30), *steady(range(31, 70))],
)
def _(path: Path) -> None:
    """two frames have the time of a third, which alone is seen"""
    timed(path, [(28, 1), (2, 0), (1, 3), (39, 1)])


@case(
    26,
    "times_go_back.mkv",
    findings="timestamps_not_increasing full_range",
    shown=steady([*range(29), *range(40, 70)]),
)
def _(path: Path) -> None:
    """the clock of ten frames is a third of a second slow: they come when their time is over"""
    stored = packets(film(path, codec="mjpeg", pix_fmt="yuvj420p", b_frames=0))

    def slow(data: bytearray) -> None:
        for place, _, _ in stored[30:40]:
            at = data.index(b"\x81", place) + 1  # the number of the track; then comes the time within the cluster
            struct.pack_into(">h", data, at, struct.unpack_from(">h", data, at)[0] - 333)

    damage(path, slow)


# ---- 27 to 31: rate, seeking


UNEVEN_S = [0.0, *(numpy.cumsum(numpy.random.default_rng(0).choice([1, 1, 2, 5], FRAMES - 1)) / FPS).tolist()]
UNEVEN = [(start_s, FIRST + k) for k, start_s in enumerate(UNEVEN_S)]
for suffix in ("mp4", "mkv", "ts"):
    case(27, f"variable_rate.{suffix}", shown=UNEVEN, findings="variable_rate", about="frames last differently")(
        functools.partial(film, starts_s=UNEVEN_S)
    )


@case(28, "rate_0.avi", shown=steady(fps=25))
def _(path: Path) -> None:
    """its header says 0/0 frames a second"""

    def lie(data: bytearray) -> None:
        struct.pack_into("<II", data, data.index(b"strh") + 8 + 20, 0, 0)
        struct.pack_into("<I", data, data.index(b"avih") + 8, 0)

    film(path, codec="mpeg4", b_frames=0)
    damage(path, lie)


case(28, "rate_1.mp4", shown=steady(fps=1), findings="rate_unbelievable", about="one frame a second")(
    functools.partial(film, fps=1)
)
case(28, "rate_1000.mp4", shown=steady(fps=1000), findings="rate_unbelievable", about="a thousand frames a second")(
    functools.partial(film, fps=1000)
)
case(
    29, "backward.mp4", shown=steady(), about="HEVC with three B-frames, read backward, which must give no stale frame"
)(functools.partial(film, codec="libx265", size=(64, 128), b_frames=3))


@case(30, "all_are_keys.mp4", shown=steady())
def _(path: Path) -> None:
    """its index has no list of key frames, and so says that all are"""
    data = film(path, gop=250).read_bytes()
    start, _ = box(data, "moov.trak.mdia.minf.stbl.stss")
    path.write_bytes(data[: start + 4] + b"free" + data[start + 8 :])


@case(30, "wrong_keys.mp4", shown=steady())
def _(path: Path) -> None:
    """its index calls pictures key frames that are none"""
    film(path)

    def lie(data: bytearray) -> None:
        start = box(bytes(data), "moov.trak.mdia.minf.stbl.stss")[0] + 16
        for row in range(6):
            struct.pack_into(">I", data, start + 4 * row, (1, 5, 20, 33, 50, 66)[row])

    damage(path, lie)


@case(30, "no_cues.mkv", shown=steady())
def _(path: Path) -> None:
    """a recording as it was streamed: no length, no index"""
    film(path, muxer={"live": "1"})


@case(30, "fragments.mp4", shown=steady())
def _(path: Path) -> None:
    """in fragments, as cameras and streams write it: the index is spread over the file"""
    film(path, muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"})


case(
    31,
    "program_stream.mpg",
    shown=steady(fps=25),
    findings="starts_late",
    about="a program stream (MPEG-PS), which has no index and whose length is an estimate",
)(functools.partial(film, codec="mpeg2video", size=(48, 128), fps=25))

# ---- 32 to 40: length, size, shape


def short(path: Path, frames: int) -> None:
    """fewer frames than a clip, or just as many"""
    film(path, numbered(range(frames)))


case(32, "one_frame.mp4", shown=steady(range(1)), findings="one_frame")(functools.partial(short, frames=1))
case(32, "frames_15.mp4", shown=steady(range(15)), findings="shorter_than_a_clip")(functools.partial(short, frames=15))
case(32, "frames_16.mp4", shown=steady(range(16)))(functools.partial(short, frames=16))


@case(33, "ten_hours.mp4", shown=[(600 * k, FIRST + k) for k in range(61)], findings="very_long rate_unbelievable")
def _(path: Path) -> None:
    """ten hours, a frame each ten minutes"""
    film(path, numbered(range(61)), fps=30, starts_s=[600.0 * k for k in range(61)])


def of_size(path: Path, size: tuple[int, int], frames: int = FRAMES, **choices: Any) -> None:
    """an unusual size"""
    film(path, numbered(range(frames), size), size=size, **choices)


case(34, "of_4k.mp4", shown=steady(range(3)), findings="huge_picture shorter_than_a_clip", about="4K")(
    functools.partial(of_size, size=(2160, 3840), frames=3, codec="mpeg4", b_frames=0)
)


@case(35, "one_pixel.mkv", shown=[(k / FPS, 255) for k in range(70)], findings="tiny constant")
def _(path: Path) -> None:
    """one white pixel"""
    pictures = (numpy.full((1, 1, 3), 255, dtype=numpy.uint8) for _ in range(FRAMES))
    film(path, pictures, codec="ffv1", size=(1, 1), pix_fmt="yuv444p", b_frames=0)


case(35, "under_a_patch.mp4", shown=steady(), findings="tiny", about="smaller than a patch")(
    functools.partial(of_size, size=(8, 14))
)
case(35, "odd.mkv", shown=steady(), findings="odd_size full_range", about="odd sides, in JPEG")(
    functools.partial(of_size, size=(47, 67), codec="mjpeg", pix_fmt="yuvj420p", b_frames=0)
)
case(35, "odd_444.mp4", shown=steady(), findings="odd_size", about="odd sides, in H.264")(
    functools.partial(of_size, size=(35, 33), pix_fmt="yuv444p")
)
case(35, "width_not_of_32.mp4", shown=steady(), about="a width that is no multiple of 32, nor of 4")(
    functools.partial(of_size, size=(66, 90))
)
case(35, "ten_to_one.mp4", shown=steady(), findings="extreme_aspect", about="ten times as wide as high")(
    functools.partial(of_size, size=(32, 320))
)


def two_sizes(path: Path, second: tuple[int, int]) -> None:
    """the size changes in the middle; later frames are brought to the first size"""
    halves = []
    for part, numbers_, size in (("a", range(36), SIZE), ("b", range(36, 70), second)):
        half = path.with_name(f"{path.name}_{part}.h264")
        film(half, numbered(numbers_, size), size=size, b_frames=0, fps=25)
        halves.append(half.read_bytes())
        half.unlink()
    path.with_name(f"{path.name}_both.h264").write_bytes(b"".join(halves))
    with av.open(str(path.with_name(f"{path.name}_both.h264"))) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for k, packet in enumerate(p for p in old.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = k
            new.mux(packet)


case(36, "larger_later.ts", shown=steady(fps=25), findings="size_changes")(
    functools.partial(two_sizes, second=(96, 128))
)
case(36, "smaller_later.ts", shown=steady(fps=25), findings="size_changes")(
    functools.partial(two_sizes, second=(32, 64))
)


def turned(path: Path, degrees: int) -> None:
    """to be turned for display"""
    stored = (numpy.ascontiguousarray(numpy.rot90(p, -degrees // 90)) for p in floored())
    size = SIZE if degrees == 180 else SIZE[::-1]
    film(path, stored, size=size, prepare=lambda stream: stream.set_display_rotation(degrees))


def floored() -> Iterable[numpy.ndarray]:
    """Numbered pictures with a white floor, which shows whether they are upright."""
    for picture in numbered():
        picture[-6:] = 255
        yield picture


for degrees in (90, 180, 270):
    case(37, f"turned_{degrees}.mp4", shown=steady(), findings="rotated")(functools.partial(turned, degrees=degrees))


@case(37, "mirrored.mp4", shown=steady(), findings="mirrored")
def _(path: Path) -> None:
    """to be mirrored for display, as cameras on the front of telephones write"""
    film(path, (numpy.ascontiguousarray(p[:, ::-1]) for p in floored()))

    def mirror(data: bytearray) -> None:
        start = box(bytes(data), "moov.trak.tkhd")[0] + 8 + 40
        assert struct.unpack_from(">i", data, start) == (1 << 16,)
        struct.pack_into(">9i", data, start, -1 << 16, 0, 0, 0, 1 << 16, 0, SIZE[1] << 16, 0, 1 << 30)

    damage(path, mirror)


@case(38, "anamorphic.mp4", shown=steady(), findings="non_square_pixels")
def _(path: Path) -> None:
    """pixels twice as wide as high; they are read as they are stored"""

    def widen(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    film(path, prepare=widen)


interlacing = {"x264-params": "interlaced=1"}
case(39, "interlaced.mp4", shown=steady(), findings="interlaced", about="interlaced")(
    functools.partial(film, options=interlacing)
)
case(39, "interlaced_crop.mp4", shown=steady(), findings="interlaced", about="interlaced, of a size that is cropped")(
    functools.partial(of_size, size=(52, 66), options=interlacing)
)


@case(40, "cropped.ts", shown=steady())
def _(path: Path) -> None:
    """stored with borders, of which the stream says that they are to be cropped"""
    bordered = (numpy.pad(p, ((0, 16), (0, 32), (0, 0)), constant_values=200) for p in numbered())
    whole = film(path.with_name("bordered.ts"), bordered, size=(64, 96))
    with av.open(str(whole)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        crop = av.BitStreamFilterContext("h264_metadata=crop_right=32:crop_bottom=16", template)
        stream = new.add_stream_from_template(template)
        for packet in old.demux(template):
            for filtered in crop.filter(packet if packet.dts is not None else None):
                filtered.stream = stream
                new.mux(filtered)


# ---- 41 to 46: pictures, codecs, streams

WIDE = {"codec": "libx265", "size": (64, 128)}


def coloured(path: Path, pix_fmt: str, **choices: Any) -> None:
    """an unusual kind of pixel"""
    film(path, pix_fmt=pix_fmt, **choices)


case(41, "ten_bits.mp4", shown=steady(), findings="high_bit_depth")(
    functools.partial(coloured, pix_fmt="yuv420p10le", options={"profile": "high10"})
)
case(41, "twelve_bits_hevc.mp4", shown=steady(), findings="high_bit_depth")(
    functools.partial(coloured, pix_fmt="yuv420p12le", **WIDE)
)
case(41, "chroma_422.mp4", shown=steady())(functools.partial(coloured, pix_fmt="yuv422p"))
case(41, "chroma_444.mp4", shown=steady())(functools.partial(coloured, pix_fmt="yuv444p"))
case(41, "grey.mp4", shown=steady())(functools.partial(coloured, pix_fmt="gray"))
case(41, "full_range.mp4", shown=steady(), findings="full_range")(functools.partial(coloured, pix_fmt="yuvj420p"))
case(41, "alpha.mkv", shown=steady(), findings="alpha")(
    functools.partial(coloured, pix_fmt="yuva420p", codec="ffv1", b_frames=0)
)
case(41, "rgb.avi", shown=steady())(functools.partial(coloured, pix_fmt="rgb24", codec="rawvideo", b_frames=0))


@case(41, "hdr.mp4", shown=steady(), findings="high_bit_depth hdr")
def _(path: Path) -> None:
    """high dynamic range (BT.2020, PQ): read without tone mapping"""
    film(
        path,
        pix_fmt="yuv420p10le",
        codec="libx265",
        size=(64, 128),
        options={"x265-params": f"{QUIET_X265}:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"},
    )


@case(42, "unknown_codec.mp4", reason="codec", findings="unknown_codec")
def _(path: Path) -> None:
    """a codec that nobody knows"""
    damage(film(path), lambda data: data.__setitem__(slice(data.rindex(b"avc1"), data.rindex(b"avc1") + 4), b"zzzz"))


def other_codec(path: Path, **choices: Any) -> None:
    """a codec that other builds lack"""
    film(path, b_frames=0, **choices)


case(42, "av1.mp4", shown=steady())(
    functools.partial(other_codec, codec="libsvtav1", size=(64, 128), options={"preset": "12", "crf": "20"})
)
case(42, "vp9.webm", shown=steady())(
    functools.partial(other_codec, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
)
case(42, "vp8.webm", shown=steady())(
    functools.partial(other_codec, codec="libvpx", options={"deadline": "realtime", "cpu-used": "8", "b": "1M"})
)


@case(43, "sound_only.mp4", reason="no video stream", findings="no_video")
def _(path: Path) -> None:
    """sound and no picture"""
    make_sound(path)


def with_cover(path: Path, video: bool) -> None:
    """a cover picture, beside a video or beside sound alone"""
    source = path.with_name(f"{path.name}_source.mp4")
    if video:
        film(source)
    else:
        make_sound(source)
    picture = path.with_name(f"{path.name}_picture.jpg")
    cover = film(
        picture, numbered([155]), codec="mjpeg", pix_fmt="yuvj420p", b_frames=0, kind="image2pipe"
    ).read_bytes()
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic
        copied = new.add_stream_from_template(old.streams[0])
        picture = av.Packet(cover)
        picture.stream, picture.pts, picture.dts, picture.is_keyframe = stream, 0, 0, True
        picture.time_base = Fraction(1, 90_000)
        new.mux(picture)
        for packet in old.demux(old.streams[0]):
            if packet.dts is not None:
                packet.stream = copied
                new.mux(packet)


case(44, "cover_only.mp4", reason="only a cover", findings="cover_only")(functools.partial(with_cover, video=False))
case(44, "cover_beside.mp4", shown=steady())(functools.partial(with_cover, video=True))


@case(45, "two_videos.mkv", shown=steady(), findings="several_videos")
def _(path: Path) -> None:
    """two videos, of which the first is read"""
    first = film(path.with_name("two_videos_first.mp4"))
    together(path, [first, film(path.with_name("two_videos_second.mp4"), numbered(range(70, 140)))])


@case(46, "sound_first.mkv", shown=steady())
def _(path: Path) -> None:
    """the first stream is sound"""
    together(path, [make_sound(path.with_name("sound_first.m4a"), 2.0), film(path.with_name("sound_first_video.mp4"))])


# ---- 50 to 55: while it is read, what is in the pictures, names


def one_colour(path: Path, value: int) -> None:
    """the same everywhere and always"""
    film(path, (numpy.full((*SIZE, 3), value, dtype=numpy.uint8) for _ in range(FRAMES)))


case(52, "black.mp4", shown=[(k / FPS, 0) for k in range(70)], findings="black")(functools.partial(one_colour, value=0))
case(52, "white.mp4", shown=[(k / FPS, 255) for k in range(70)], findings="constant")(
    functools.partial(one_colour, value=255)
)


@case(52, "frozen.mp4", shown=[(k / FPS, FIRST + 55) for k in range(70)], findings="frozen")
def _(path: Path) -> None:
    """a picture that never changes"""
    film(path, (painted(FIRST + 55) for _ in range(FRAMES)))


@case(52, "each_thrice.mp4", shown=[(k / FPS, FIRST + k // 3) for k in range(90)], findings="repeats_frames")
def _(path: Path) -> None:
    """ten frames a second, written as thirty: each is there three times"""
    film(path, numbered(k // 3 for k in range(90)))


@case(54, "letterbox.mp4", shown=steady(), findings="letterbox")
def _(path: Path) -> None:
    """black bars above and below"""

    def barred(picture: numpy.ndarray) -> numpy.ndarray:
        return numpy.pad(picture, ((24, 24), (0, 0), (0, 0)))

    film(path, (barred(p) for p in numbered()), size=(96, 64))


case(
    55,
    " naïve, 'quoted' #1 100%20 ünï – 動画.MP4",
    shown=steady(),
    about="a name with blanks, quotes, signs, letters of many alphabets, and a large ending",
)(film)


# ---- the table


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in CASES:
        one.write(folder / one.name)
    for one in sorted(CASES, key=lambda c: c.number):
        exact = f"{len(one.shown)} frames exact" if one.shown else ""
        outcome = ", ".join(filter(None, [exact, f"refused: {one.reason}" if one.reason else ""]))
        print(f"{one.number:>3}  {one.name:<24} {outcome:<40} {' '.join(sorted(one.findings)) or '-':<34} {one.about}")
    for number, where in ELSEWHERE.items():
        print(f"{number:>3}  not of a file alone: {where}")
    print(f"{len(CASES)} files in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
