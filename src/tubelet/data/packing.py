"""One video to one sample: the options of packing, and what a worker does with each video."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy

from tubelet.data import decode, encode, pictures, read, sample, shards, storage
from tubelet.data.encode import OnDisk
from tubelet.data.info import UnreadableVideo, VideoInfo, mercy_s
from tubelet.data.listing import Video, written
from tubelet.data.root import look_again
from tubelet.data.storage import Place
from tubelet.types import TubeletError

CAPTIONS = ("caption", "text")
"""Columns that become ``KEY.txt``."""
QUALITIES = {"jpeg": (2, 2, 31), "webp": (90, 1, 100), "video": (18, 0, 51)}
"""Of each format: the quality if none is given, and the scale."""
BYTES_OF_PIXEL = {"jpeg": 0.13, "webp": 0.09, "video": 0.02, "raw": 3.0}
"""What a pixel of natural video takes at the usual quality, for a first guess of the space that is needed."""
CODECS = {"jpeg": "mjpeg", "webp": "webp", "raw": "rawvideo", "video": "h264"}
ROUNDING_S = 1e-6
"""Frames that start so near to k / fps are on an even clock."""
STILL = 3
"""A last frame that is shown for longer than so many is told of: perhaps the source breaks off there."""

Item = TypeVar("Item")


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

    def rate(self, info: VideoInfo) -> float:
        """Frames a second that are kept of a video."""
        return info.fps if self.fps is None else min(self.fps, info.fps)


@dataclass(frozen=True)
class Unit:
    """What becomes one sample: a row of the manifest; of files that stay as they are, all rows of a file.

    Of several rows, `video` says what all of them do.
    """

    number: int
    video: Video
    class_number: int

    @property
    def key(self) -> str:
        return f"{self.number:08d}"


@dataclass
class Made:
    """What a worker made of a unit."""

    pieces: list[bytes | OnDisk] = field(default_factory=list)
    json_size: int = 0
    json_checksum: int = 0
    seconds: float = 0.0
    source_bytes: float = 0.0
    """Bytes of the source, or the share of them that a span takes."""
    stamp: str = ""
    """What tells the source from a later one."""
    left_out: str | None = None
    """Why there is no sample."""
    is_passing: bool = False
    """Whether that may be otherwise the next time: what failed is not what the file holds."""
    error: OSError | None = None
    """Why nothing can be written."""


# One video, in a worker


def make(unit: Unit, packing: Packing, source: Place | None, folder: Path, root: Place | None = None) -> Made:
    """A sample, or why there is none: a video that is bad must never stop the others, and all else must stop."""
    stamp = source_stamp(unit.video.path)  # before it is read: what changes meanwhile is noticed by the next start
    try:
        look_again(unit.video.path, root)
        return replace(_encode(unit, packing, source, folder), stamp=stamp)
    except UnreadableVideo as error:
        return Made(left_out=error.reason, is_passing=_is_of_storage(error), stamp=stamp)
    except OSError as error:  # those of reading are UnreadableVideo
        return Made(error=OSError(error.errno, error.strerror or str(error)))
    except av.FFmpegError as error:
        reason = f"it cannot be encoded as {packing.format}: {error.strerror}"
        return Made(left_out=reason, stamp=stamp)


def _is_of_storage(error: BaseException | None) -> bool:
    """Whether an error came of one of the file system: a file that is missing, a disk or a network that fails."""
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _reading(place: Place) -> Iterator[None]:
    """Tells errors of the storage of a source from those of writing."""
    try:
        yield
    except OSError as error:
        raise UnreadableVideo(place, storage.words(error)) from error


def _from(place: Place, items: Iterable[Item]) -> Iterator[Item]:
    """What is read of a source, one by one."""
    with _reading(place):
        yield from items


def _encode(unit: Unit, packing: Packing, source: Place | None, folder: Path) -> Made:
    """The files of a sample, and before them the JSON that tells of them."""
    video, key = unit.video, unit.key
    info = read.probe(video.path, video.fps)
    start_s, seconds = sample.span(video.start_s, video.end_s, info.duration_s, info.fps)
    if seconds <= 0:
        raise UnreadableVideo(video.path, f"its span starts at {start_s:g} s, but ends at {start_s + seconds:g} s")
    if packing.format == "original":
        made = _original(video.path, key, folder)
        made.height, made.width = info.height, info.width
    else:
        made = _rewritten(video, info, start_s, seconds, packing, key, folder)
        if packing.fps is not None or made.starts_s[-1] < seconds / 2:  # at another rate the last tick says nothing
            _check_end(video, info, start_s, seconds)
    if unit.class_number >= 0:
        made.add(key, "cls", str(unit.class_number).encode())
    if caption := next((text for name in CAPTIONS if (text := video.extra.get(name, "").strip())), None):
        made.add(key, "txt", caption.encode())
    about = {"tubelet": shards.VERSION, "format": packing.format, "source": written(video.path, source)}
    about |= _about(video, info, seconds, packing, made)
    told = json.dumps(about, separators=(",", ":")).encode()
    share = size_of(video.path) * (seconds / info.duration_s)
    return Made([encode.member(f"{key}.json", told), *made.pieces], len(told), zlib.crc32(told), seconds, share)


def _rewritten(
    video: Video, info: VideoInfo, start_s: float, seconds: float, packing: Packing, key: str, folder: Path
) -> encode.Encoded:
    """The frames of a span in another format, and its sound."""
    if packing.format == "video" and min(info.width, info.height) < 2:
        raise UnreadableVideo(video.path, f"pictures of {info.width} x {info.height} are too small for a video")
    frames = _frames(video, info, start_s, start_s + seconds, packing)
    sound = _sound(video.path, info, start_s, seconds)
    path = folder / f"{key}.frames"
    if packing.format == "video":
        return encode.video(frames, sound, packing.grade, packing.gop, packing.rate(info), key, path)
    if packing.format == "raw":
        made = encode.raw(frames, key, path)
    else:
        made = encode.pictures(frames, packing.format, packing.grade, key, path)
    if sound is not None:
        encode.flac(sound, folder / f"{key}.flac")
        made.add_file(key, "flac", folder / f"{key}.flac")
    return made


def _check_end(video: Video, info: VideoInfo, start_s: float, seconds: float) -> None:
    """Looks whether a file breaks off in the first half of a span.

    Raises:
        UnreadableVideo: it does. What was packed would not show it: the frame would stand still to a regular end.
    """
    if not read.is_file(video.path):
        read.check(video.path, video.fps)
        return
    as_if = replace(info, duration_s=2 * start_s + seconds)  # the middle of which is that of the span
    opener = None if isinstance(video.path, Path) else partial(storage.opened, video.path)
    try:
        decode.check(video.path, as_if, opener)
    except UnreadableVideo as error:
        is_whole = video.start_s is None and video.end_s is None
        reason = error.reason if is_whole else "the file breaks off before the middle of this span"
        raise UnreadableVideo(video.path, reason) from error


def _about(video: Video, info: VideoInfo, seconds: float, packing: Packing, made: encode.Encoded) -> dict[str, Any]:
    """What the JSON says of a sample, but for where it came from."""
    is_original = packing.format == "original"
    fps = info.fps if is_original else packing.rate(info)
    about: dict[str, Any] = {}
    if not is_original and (video.start_s is not None or video.end_s is not None):
        about["span_s"] = [video.start_s, video.end_s]
    about |= {name: said for name in ("group", "split", "label") if (said := getattr(video, name)) is not None}
    about |= {"duration_s": seconds, "fps": fps, "width": made.width, "height": made.height}
    about |= {"codec": info.codec if is_original else CODECS[packing.format], "source_codec": info.codec}
    about |= {"video": made.video, "files": made.files}
    if made.pictures is not None:
        about |= {"frames": len(made.pictures["bytes"]), "pictures": made.pictures}
    if made.checksums:
        about["crc32"] = made.checksums
    if made.starts_s:
        about["frames"] = len(made.starts_s)
        even = numpy.arange(len(made.starts_s)) / fps
        if numpy.abs(even - made.starts_s).max() > ROUNDING_S:
            about["starts_s"] = [round(start_s, 6) for start_s in made.starts_s]
        if made.starts_s[-1] + STILL / fps < seconds:
            about["still_s"] = round(made.starts_s[-1], 6)
    return about


def _frames(video: Video, info: VideoInfo, start_s: float, end_s: float, packing: Packing) -> encode.Frames:
    """The frames of a span on a clock of their own."""
    whole = video.end_s is None
    fps = packing.rate(info)
    earliest = read.frames(video.path, start_s, math.inf if whole else end_s, packing.side, video.fps)
    if fps == info.fps:
        # A reader will be as merciful when it is asked for a time.
        for number, (from_s, frame) in enumerate(earliest):
            yield (from_s - start_s + mercy_s(fps) if number else 0.0), frame
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
    file = shards.sound(place) if shards.is_place(place) else None
    if file is None and not read.is_file(place):
        return None
    found = encode.sound(place, file, info.start_s + start_s, seconds)
    return None if found is None else replace(found, chunks=_from(place, found.chunks))


def _original(place: Place, key: str, folder: Path) -> encode.Encoded:
    """The bytes of a video as they are; those that lie elsewhere are fetched into `folder`."""
    if shards.is_place(place):
        raise UnreadableVideo(place, "a sample of a shard already: copy the shards, or choose another --format")
    path = folder / f"{key}.original"
    if pictures.is_place(place):
        found = pictures.series(place)
        suffix = found.names[0].rpartition(".")[2].lower()
        return encode.stored(_from(place, map(found.encoded, range(len(found.names)))), suffix, key, path)
    if isinstance(place, Path):
        path = place
    else:
        with path.open("wb") as copy:
            for block in _from(place, _blocks(place)):
                copy.write(block)
    return encode.original(key, place.suffix.lower().removeprefix(".") or "video", path)


def _blocks(place: Place) -> Iterator[bytes]:
    with storage.opened(place) as file:
        while block := file.read(1 << 20):
            yield block


def size_of(place: Place) -> int:
    """Bytes of a file; 0 where that is not known."""
    try:
        return storage.size(place)
    except OSError:
        return 0


def source_stamp(place: Place) -> str:
    """Letters that change when a file does. Those of one that is missing, and of every URL, are the same."""
    return hashlib.blake2b(repr(storage.stamp(place)).encode(), digest_size=4).hexdigest()


def guess(unit: Unit, packing: Packing) -> float:
    """Bytes that a video will take."""
    if packing.format == "original":
        return float(size_of(unit.video.path))
    try:
        info = read.probe(unit.video.path, unit.video.fps)
    except UnreadableVideo:
        return 0.0
    _, seconds = sample.span(unit.video.start_s, unit.video.end_s, info.duration_s, info.fps)
    shrunk = min(1.0, (packing.side or math.inf) / min(info.width, info.height))
    pixels = info.width * info.height * shrunk**2
    return max(0.0, seconds) * min(info.fps, packing.fps or math.inf) * pixels * BYTES_OF_PIXEL[packing.format]
