"""One video to one sample: the options of packing, and what a worker does with each video."""

from __future__ import annotations

import errno
import json
import math
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy

from tubelet.data import encode, pictures, read, sample, shards, storage
from tubelet.data.encode import OnDisk
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.listing import Video, written
from tubelet.data.storage import Place
from tubelet.types import TubeletError

CAPTIONS = ("caption", "text")
"""Columns that become ``KEY.txt``."""
QUALITIES = {"jpeg": (2, 2, 31), "webp": (90, 1, 100), "video": (18, 0, 51)}
"""Of each format: the quality if none is given, and the scale."""
BYTES_OF_PIXEL = {"jpeg": 0.13, "webp": 0.09, "video": 0.02, "raw": 3.0}
"""What a pixel of natural video takes at the usual quality, for a first guess of the space that is needed."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
CODECS = {"jpeg": "mjpeg", "webp": "webp", "raw": "rawvideo", "video": "h264"}
ROUNDING_S = 1e-6
"""Frames that start so near to k / fps are on an even clock."""


@dataclass(frozen=True)
class Packing:
    """How videos are packed. Other options, or another manifest, need another folder.

    Args:
        format: "jpeg" or "webp" pictures (any clip at the cost of its own frames), "video" (H.264 with short GOPs: a
            fifth of the space, slower to read), "raw" arrays (large; without loss), or "original": the bytes as they
            are, for object storage.
        short_side: shrink frames to this shorter side, never enlarging any; 0 = keep their size. If not given, 256, and
            0 for raw; original changes nothing.
        fps: keep so many frames a second only: those on display at each tick. Clips then show these frames, not
            exactly those that the source would give. Videos with fewer stay as they are; None = keep all.
        quality: in the format's own scale: of jpeg 2 (best) to 31, by default 2; of webp 1 to 100 (best), by default
            90; of video 0 (best) to 51 (CRF), by default 18.
        gop: of video: frames from one key frame to the next; fewer make clips cheaper to read, and files larger.
        per_shard: videos in a shard.

    Raises:
        TubeletError: an option makes no sense.
    """

    format: Literal["jpeg", "webp", "video", "raw", "original"] = "jpeg"
    short_side: int | None = None
    fps: float | None = None
    quality: int | None = None
    gop: int = 12
    per_shard: int = 100

    def __post_init__(self) -> None:
        if self.format == "original" and (self.fps is not None or self.short_side or self.quality is not None):
            raise TubeletError("--format original keeps the bytes: leave out --short-side, --fps and --quality")
        if self.quality is not None and self.format not in QUALITIES:
            raise TubeletError(f"--format {self.format} is without loss: leave out --quality")
        _, low, high = QUALITIES.get(self.format, (0, 0, 0))
        if self.quality is not None and not low <= self.quality <= high:
            raise TubeletError(f"--quality of {self.format} lies between {low} and {high}, not {self.quality}")
        for name, least in (("short_side", 0), ("gop", 1), ("per_shard", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise TubeletError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise TubeletError(f"--fps must be above 0 and at most 1000, not {self.fps:g}")

    @property
    def side(self) -> int | None:
        """The short side that frames are shrunk to."""
        usual = 0 if self.format in ("raw", "original") else 256
        return (usual if self.short_side is None else self.short_side) or None

    @property
    def grade(self) -> int:
        """The quality, on the format's scale."""
        return QUALITIES.get(self.format, (0,))[0] if self.quality is None else self.quality


@dataclass(frozen=True)
class Unit:
    """What becomes one sample: a row of the manifest; of files that stay as they are, all rows of a file."""

    number: int
    video: Video
    label: str | None
    class_number: int

    @property
    def key(self) -> str:
        return f"{self.number:08d}"


@dataclass
class Made:
    """What a worker made of a unit."""

    pieces: list[bytes | OnDisk] = field(default_factory=list)
    json_size: int = 0
    seconds: float = 0.0
    source_bytes: float = 0.0
    """Bytes of the source, or the share of them that a span takes."""
    left_out: str | None = None
    """Why there is no sample."""
    no_space: int | None = None
    """The number of the error, where the disk is full."""


# One video, in a worker


def make(unit: Unit, packing: Packing, source: Place | None, folder: Path) -> Made:
    """A sample, or why there is none: a video must never stop the others."""
    try:
        return _encode(unit, packing, source, folder)
    except UnreadableVideo as error:
        reason = error.reason
    except TubeletError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return Made(no_space=error.errno)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    for path in folder.glob(f"{unit.key}.*"):
        path.unlink()
    return Made(left_out=reason)


def _encode(unit: Unit, packing: Packing, source: Place | None, folder: Path) -> Made:
    video, place, key = unit.video, unit.video.path, unit.key
    info = read.probe(place, video.fps)
    start_s, seconds = sample.span(video.start_s, video.end_s, info.duration_s, info.fps)
    if seconds <= 0:
        raise UnreadableVideo(place, f"its span starts at {start_s:g} s, but ends at {start_s + seconds:g} s")
    about: dict[str, Any] = {"tubelet": shards.VERSION, "format": packing.format, "source": written(place, source)}
    if packing.format == "original":
        start_s, seconds, fps = 0.0, info.duration_s, info.fps
        made = _original(place, key, folder)
        made.height, made.width, codec = info.height, info.width, info.codec
    else:
        fps = info.fps if packing.fps is None else min(packing.fps, info.fps)
        frames = _frames(video, info, start_s, start_s + seconds, packing)
        sound = _sound(place, info, start_s, seconds)
        path = folder / f"{key}.frames"
        if packing.format == "video":
            made = encode.video(frames, sound, packing.grade, packing.gop, fps, key, path)
        elif packing.format == "raw":
            made = encode.raw(frames, key, path)
        else:
            made = encode.pictures(frames, packing.format, packing.grade, key, path)
        if sound is not None and packing.format != "video":
            encode.flac(sound, folder / f"{key}.flac")
            made.add_file(key, "flac", folder / f"{key}.flac")
        codec = CODECS[packing.format]
        if video.start_s is not None or video.end_s is not None:
            about["span_s"] = [video.start_s, video.end_s]
    if unit.class_number >= 0:
        made.add(key, "cls", str(unit.class_number).encode())
    if caption := next((text for name in CAPTIONS if (text := video.extra.get(name, "").strip())), None):
        made.add(key, "txt", caption.encode())
    about |= {name: value for name in ("group", "split") if (value := getattr(video, name)) is not None}
    about |= {} if unit.label is None else {"label": unit.label}
    about |= {"duration_s": seconds, "fps": fps, "width": made.width, "height": made.height}
    about |= {"codec": codec, "source_codec": info.codec, "video": made.video, "files": made.files}
    if made.pictures is not None:
        about |= {"frames": len(made.pictures["bytes"]), "pictures": made.pictures}
    if made.starts_s:
        about["frames"] = len(made.starts_s)
        even = numpy.arange(len(made.starts_s)) / fps
        if numpy.abs(even - made.starts_s).max() > ROUNDING_S:
            about["starts_s"] = [round(start_s, 6) for start_s in made.starts_s]
    told = json.dumps(about, separators=(",", ":")).encode()
    share = size_of(place) * (seconds / info.duration_s)
    return Made([encode.member(f"{key}.json", told), *made.pieces], len(told), seconds, share)


def _frames(video: Video, info: VideoInfo, start_s: float, end_s: float, packing: Packing) -> encode.Frames:
    """The frames of a span on a clock of their own."""
    whole = video.end_s is None
    fps = info.fps if packing.fps is None else min(packing.fps, info.fps)
    earliest = read.frames(video.path, start_s, math.inf if whole else end_s, packing.side, video.fps)
    if fps == info.fps:
        # A reader will be as merciful as `shards.mercy` when it is asked for a time.
        for number, (from_s, frame) in enumerate(earliest):
            yield (from_s - start_s + shards.mercy(fps) if number else 0.0), frame
        return
    ticks = max(1, math.ceil((end_s - start_s) * fps - 1e-6))
    tick, shown = 0, None
    for from_s, frame in earliest:
        while shown is not None and tick < ticks and start_s + tick / fps < from_s:
            yield tick / fps, shown
            tick += 1
        shown = frame
    while shown is not None and tick < ticks:
        yield tick / fps, shown
        tick += 1


def _sound(place: Place, info: VideoInfo, start_s: float, seconds: float) -> encode.Sound | None:
    """The sound of a span, from its first frame on."""
    if shards.is_place(place):
        opened = shards.sound(place)
    else:
        opened = None if pictures.is_place(place) else partial(storage.opened, place)
    return None if opened is None else encode.sound(opened(), info.start_s + start_s, seconds)


def _original(place: Place, key: str, folder: Path) -> encode.Encoded:
    """The bytes of a video as they are; those that lie elsewhere are fetched into `folder`."""
    if shards.is_place(place):
        raise UnreadableVideo(place, "a sample of a shard already: copy the shards, or choose another --format")
    path = folder / f"{key}.original"
    if pictures.is_place(place):
        found = pictures.series(place)
        suffix = found.names[0].rpartition(".")[2].lower()
        return encode.stored((found.encoded(number) for number in range(len(found.names))), suffix, key, path)
    if isinstance(place, Path):
        path = place
    else:
        with storage.opened(place) as file, path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    return encode.original(key, place.suffix.lower().removeprefix(".") or "video", path)


def size_of(place: Place) -> int:
    """Bytes of a file; 0 where that is not known at once."""
    try:
        return place.stat().st_size if isinstance(place, Path) else 0
    except OSError:
        return 0


def guess(unit: Unit, packing: Packing) -> float:
    """Bytes that a video will take."""
    try:
        info = read.probe(unit.video.path, unit.video.fps)
    except UnreadableVideo:
        return 0.0
    _, seconds = sample.span(unit.video.start_s, unit.video.end_s, info.duration_s, info.fps)
    shrunk = min(1.0, (packing.side or math.inf) / min(info.width, info.height))
    pixels = info.width * info.height * shrunk**2
    return max(0.0, seconds) * min(info.fps, packing.fps or math.inf) * pixels * BYTES_OF_PIXEL[packing.format]
