"""Packing: a corpus decoded once, and rewritten into shards from which clips are read many times faster.

Videos are divided into shards by their place in the manifest, so many to each. Worker processes encode them one by one;
this process lays what they made into the tar of the shard, in order. A shard is written beside its place, moved there
when it is on the disk, and then its index is written: what has an index is finished. So the same command goes on
after any end, and the bytes are the same whatever the number of workers. `shards.py` says what is in a shard.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

import numpy
from rich.progress import Progress

from tubelet import log
from tubelet.data import encode, pictures, read, sample, shards, storage
from tubelet.data.encode import OnDisk
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.inspect import write_unreadable
from tubelet.data.listing import Manifest, Video, write_manifest, written
from tubelet.data.storage import Place
from tubelet.data.workers import Failure, Workers
from tubelet.types import TubeletError

CAPTIONS = ("caption", "text")
"""Columns that become ``KEY.txt``."""
QUALITIES = {"jpeg": (2, 2, 31), "webp": (90, 1, 100), "video": (18, 0, 51)}
"""Of each format: the quality if none is given, and the scale."""
BYTES_OF_PIXEL = {"jpeg": 0.13, "webp": 0.09, "video": 0.02, "raw": 3.0}
"""What a pixel of natural video takes at the usual quality, for a first guess of the space that is needed."""
PROBED = 16
"""So many videos are looked at for that guess."""
UNHURRIED = 100 << 20
"""The time limit is for videos of up to so many bytes; larger ones get more in proportion."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
CODECS = {"jpeg": "mjpeg", "webp": "webp", "raw": "rawvideo", "video": "h264"}
PLAN = "pack.json"
ROUNDING_S = 1e-6
TAR_END = bytes(2 * shards.BLOCK)


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


@dataclass(frozen=True)
class Packed:
    """What there is in the end."""

    manifest: Place
    videos: int
    shards: int
    seconds: float
    source_bytes: float
    bytes: int
    left_out: list[tuple[Place, str]]
    """Source and reason."""
    took_s: float

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table for people: what, how much."""
        return [
            ("videos", f"{self.videos:,}"),
            ("hours", f"{self.seconds / 3600:,.2f}"),
            ("shards", f"{self.shards:,}"),
            ("before", gigabytes(self.source_bytes)),
            ("after", gigabytes(self.bytes)),
            ("seconds taken", f"{self.took_s:,.1f}"),
            ("left out", f"{len(self.left_out):,}"),
        ]


def pack(
    manifest: Manifest, out: Place, packing: Packing, workers: int | None = None, limit_s: float = 600.0
) -> Packed:
    """Packs the videos of a manifest into shards below `out`, or goes on where an earlier call was ended.

    Beside the shards: ``clips.csv``, the manifest of the packed videos with all that the first one says;
    ``unreadable.csv``, what was left out, where anything was; ``pack.json``, the options.

    Args:
        workers: processes; None = one per core, 0 = encode in this one, without a limit of time.
        limit_s: seconds after which a video of up to 100 MB is given up; larger ones get more in proportion.

    Raises:
        TubeletError: `out` holds another pack or cannot be written to; the disk is, or will be, too small; nothing of
            the manifest can be read.
    """
    started = time.monotonic()
    units, rows = _units(manifest, packing)
    size = packing.per_shard
    members = [units[first : first + size] for first in range(0, len(units), size)]
    with _workplace(out, packing, manifest, len(units)) as folder:
        finished = {number for number in range(len(members)) if _is_finished(out, number)}
        todo = [unit for number, some in enumerate(members) if number not in finished for unit in some]
        crew: Workers[int, Made] = Workers(
            lambda number: _make(units[number], packing, manifest.source, folder),
            cores() if workers is None else workers,
            lambda number: limit_s * max(1.0, _size(units[number].video.path) / UNHURRIED),
        )  # fmt: skip
        try:
            _look_for_space(todo, packing, out)
            with progress("packing", len(units), len(units) - len(todo)) as advance:
                results = (made for _, made in crew.map([unit.number for unit in todo]))
                with closing(results):
                    for number, some in enumerate(members):
                        if number not in finished:
                            _write_shard(out, folder, number, some, results, advance)
                            finished.add(number)
            return _finish(manifest, packing, out, folder, units, rows, started)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {_goes_on(finished, members)}") from None
        except OSError as error:
            problem = f"cannot write to {out}: {os.strerror(error.errno) if error.errno else error}"
            raise TubeletError(f"{problem}; {_goes_on(finished, members)}") from None


def verify(out: Place, workers: int | None = None) -> tuple[int, list[tuple[Place, str]]]:
    """Reads a pack through and compares every checksum.

    Returns:
        How many samples are whole, and the places that are not, with what is wrong.

    Raises:
        TubeletError: there is no pack.
    """
    plan = _plan_of(out)
    if plan is None:
        raise TubeletError(f"no pack in {out}: {PLAN} is missing")
    count = -(-plan["videos"] // plan["per_shard"])
    crew: Workers[int, tuple[int, list[tuple[Place, str]]]] = Workers(
        lambda number: _verify_shard(out / shard_name(number)), cores() if workers is None else workers, math.inf
    )
    whole, damaged = 0, []
    with progress("verifying", count) as advance:
        for number, answer in crew.map(range(count)):
            if isinstance(answer, Failure):
                answer = 0, [(out / shard_name(number), answer.reason)]
            whole, damaged = whole + answer[0], damaged + answer[1]
            advance()
    return whole, damaged


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


# What is packed, and where


def _units(manifest: Manifest, packing: Packing) -> tuple[list[Unit], list[int]]:
    """The samples to make, and the number of the one that each row is in."""
    shared = packing.format == "original"
    members: dict[Any, list[int]] = {}
    for row, video in enumerate(manifest):
        members.setdefault(video.path if shared else row, []).append(row)
    units = []
    for number, mine in enumerate(members.values()):
        labels = {manifest.labels[row] for row in mine}
        one = len(labels) == 1  # a file with spans of several classes has none of its own
        video = manifest[mine[0]]
        units.append(Unit(number, video, video.label if one else None, labels.pop() if one else -1))
    numbers = {key: number for number, key in enumerate(members)}
    return units, [numbers[video.path if shared else row] for row, video in enumerate(manifest)]


def _plan(manifest: Manifest, packing: Packing, videos: int) -> dict[str, Any]:
    """All that the bytes of a pack depend on."""
    digest = hashlib.sha256(repr(manifest.classes).encode())
    for v in manifest:
        row = replace(v, path=Path()), written(v.path, manifest.source), dict(v.extra)
        digest.update(repr(row).encode(errors="surrogateescape"))
    options = asdict(packing) | {"short_side": packing.side, "quality": packing.grade}
    return {"tubelet": shards.VERSION, "videos": videos, **options, "manifest": digest.hexdigest()}


def _plan_of(out: Place) -> dict[str, Any] | None:
    try:
        with storage.opened(out / PLAN) as file:
            return json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise TubeletError(f"cannot read {out / PLAN}: {error}") from None


@contextmanager
def _workplace(out: Place, packing: Packing, manifest: Manifest, videos: int) -> Iterator[Path]:
    """Claims `out` for this pack, or refuses; the answer is a folder for what is not finished."""
    plan = _plan(manifest, packing, videos)
    try:
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
            if _plan_of(out) is None and any(not path.name.startswith(".packing-") for path in out.iterdir()):
                raise TubeletError(f"{out} is not empty, and holds no pack: choose another folder")
            folder = Path(tempfile.mkdtemp(prefix=".packing-", dir=out))
        else:
            folder = Path(tempfile.mkdtemp(prefix="tubelet-pack-"))
        try:
            if _plan_of(out) is None:
                (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
                storage.put(folder / PLAN, out / PLAN)
            with _alone(out):
                _compare(out, plan)
                if isinstance(out, Path):
                    for other in out.glob(".packing-*"):  # of a process that was killed
                        if other != folder:
                            shutil.rmtree(other, ignore_errors=True)
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise TubeletError(f"cannot write to {out}: {error.strerror or error}") from None


@contextmanager
def _alone(out: Place) -> Iterator[None]:
    """Keeps a second process from packing into the same folder. The lock ends with this process; forks have no part."""
    if not isinstance(out, Path) or fcntl is None:
        yield
        return
    with (out / PLAN).open("r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TubeletError(f"another process is packing into {out}: wait for it, or end it") from None
        yield


def _compare(out: Place, plan: dict[str, Any]) -> None:
    there = _plan_of(out) or {}
    for name, value in plan.items():
        if there.get(name) == value:
            continue
        if name in ("manifest", "videos"):
            what = "it is of another manifest, or this one has changed"
        else:
            what = f"{name} is {there.get(name)} there, and {value} here"
        raise TubeletError(f"{out} holds another pack: {what}; choose another folder")


def _is_finished(out: Place, number: int) -> bool:
    tar = out / shard_name(number)
    try:
        with storage.opened(shards.index_place(tar)) as file:
            return shards.parse_index(file.read().decode()).shard["bytes"] == storage.size(tar)
    except (OSError, ValueError):
        return False


def _goes_on(finished: set[int], members: list[list[Unit]]) -> str:
    return f"{len(finished):,} of {len(members):,} shards are finished, and the same command goes on from there"


def _look_for_space(todo: list[Unit], packing: Packing, out: Place) -> None:
    """Guesses from a few videos what the rest will take.

    Raises:
        TubeletError: the disk is too small by far.
    """
    if not todo or not isinstance(out, Path):
        return
    free = shutil.disk_usage(out).free
    if packing.format == "original":
        needed = float(sum(_size(unit.video.path) for unit in todo))
    else:
        some = todo[:: max(1, len(todo) // PROBED)][:PROBED]
        crew: Workers[int, float] = Workers(lambda number: _guess(some[number], packing), 1)
        each = [guess for _, guess in crew.map(range(len(some))) if isinstance(guess, float)]
        needed = len(todo) * sum(each) / max(1, len(each))
    if needed / 2 > free:
        raise TubeletError(
            f"packing takes about {gigabytes(needed)}, and {gigabytes(free)} are free in {out}: choose another disk, "
            "a smaller --short-side, or --format video"
        )
    if needed > 0.9 * free:
        log.warn(f"packing takes about {gigabytes(needed)}, and {gigabytes(free)} are free in {out}")


def _guess(unit: Unit, packing: Packing) -> float:
    """Bytes that a video will take."""
    try:
        info = read.probe(unit.video.path, unit.video.fps)
    except UnreadableVideo:
        return 0.0
    _, seconds = sample.span(unit.video.start_s, unit.video.end_s, info.duration_s, info.fps)
    shrunk = min(1.0, (packing.side or math.inf) / min(info.width, info.height))
    pixels = info.width * info.height * shrunk**2
    return max(0.0, seconds) * min(info.fps, packing.fps or math.inf) * pixels * BYTES_OF_PIXEL[packing.format]


# One video, in a worker


def _make(unit: Unit, packing: Packing, source: Place | None, folder: Path) -> Made:
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
    share = _size(place) * (seconds / info.duration_s)
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
    if isinstance(place, Path) and place.is_file() and not pictures.is_place(place):
        return encode.original(key, place.suffix.lower().removeprefix(".") or "video", place)
    path = folder / f"{key}.original"
    if shards.is_place(place):
        sample_there = shards.sample(place)
        ending = shards.video_of(sample_there)
        if ending == "pictures":
            stored = sample_there.pictures
            assert stored is not None
            contents = (sample_there.encoded([number])[0] for number in range(len(stored.sizes)))
            return encode.stored(contents, stored.suffix, key, path)
        opened = partial(sample_there.opened, ending)
    elif pictures.is_place(place):
        found = pictures.series(place)
        suffix = found.names[0].rpartition(".")[2].lower()
        return encode.stored((found.encoded(number) for number in range(len(found.names))), suffix, key, path)
    else:
        ending, opened = place.suffix.lower().removeprefix(".") or "video", partial(storage.opened, place)
    with opened() as file, path.open("wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    return encode.original(key, ending, path)


def _size(place: Place) -> int:
    """Bytes of a file; 0 where that is not known at once."""
    try:
        return place.stat().st_size if isinstance(place, Path) else 0
    except OSError:
        return 0


# One shard


def _write_shard(
    out: Place,
    folder: Path,
    number: int,
    units: list[Unit],
    results: Iterator[Made | Failure],
    advance: Callable[[], None],
) -> None:
    """Lays what workers made into a tar, in order; its index comes last and says that it is whole."""
    tar = folder / shard_name(number)
    lines: list[str] = []
    shard: dict[str, Any] = {"tubelet": shards.VERSION, "samples": 0, "bytes": 0, "sha256": "", "left_out": {}}
    shard |= {"seconds": 0.0, "source_bytes": 0.0}
    digest = hashlib.sha256()
    with tar.open("wb") as file:
        for unit in units:
            made = next(results)
            advance()
            if isinstance(made, Failure):
                made = Made(left_out=made.reason)
            if made.no_space:
                raise OSError(made.no_space, os.strerror(made.no_space))
            if made.left_out is not None:
                shard["left_out"][unit.key] = made.left_out
                continue
            offset, checksum = file.tell(), 0
            for block in _blocks(made.pieces, folder):
                file.write(block)
                digest.update(block)
                checksum = zlib.crc32(block, checksum)
            lines.append(f"{unit.key} {offset} {file.tell() - offset} {made.json_size} {checksum:08x}")
            shard["seconds"] += made.seconds
            shard["source_bytes"] += made.source_bytes
        file.write(TAR_END)
        digest.update(TAR_END)
        shard |= {"samples": len(lines), "bytes": file.tell(), "sha256": digest.hexdigest()}
    index = tar.with_suffix(".index")
    index.write_text("".join(f"{line}\n" for line in [json.dumps(shard), *lines]), encoding="utf-8")
    storage.put(tar, out / tar.name)
    storage.put(index, out / index.name)


def _blocks(pieces: list[bytes | OnDisk], folder: Path) -> Iterator[bytes]:
    """The bytes of a sample; files that were made for it are removed."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        left = piece.bytes
        with piece.path.open("rb") as file:
            while left > 0:
                block = file.read(min(left, 1 << 20))
                if not block:
                    raise TubeletError(f"{piece.path} became shorter while it was packed")
                left -= len(block)
                yield block
        if piece.path.parent == folder:
            piece.path.unlink()


def _verify_shard(tar: Place) -> tuple[int, list[tuple[Place, str]]]:
    try:
        index = shards.index(tar)
        assert index.checksums is not None
        damaged: list[tuple[Place, str]] = []
        digest = hashlib.sha256()
        with storage.opened(tar) as file:
            for key, size, expected in zip(index.keys, index.sizes, index.checksums, strict=True):
                checksum, left = 0, int(size)
                while left > 0:
                    block = file.read(min(left, 1 << 20))
                    if not block:
                        break
                    left -= len(block)
                    digest.update(block)
                    checksum = zlib.crc32(block, checksum)
                if left or checksum != expected:
                    damaged.append((tar / key.decode(), "it is not what was packed: its checksum is another"))
            digest.update(file.read())
    except UnreadableVideo as error:
        return 0, [(error.path, error.reason)]
    except OSError as error:
        return 0, [(tar, error.strerror or "it cannot be read")]
    if not damaged and digest.hexdigest() != index.shard["sha256"]:
        damaged.append((tar, "its end is damaged; the samples are whole"))
    return len(index.keys) - len(damaged), damaged


# The end


def _finish(
    manifest: Manifest, packing: Packing, out: Place, folder: Path, units: list[Unit], rows: list[int], started: float
) -> Packed:
    """Writes the manifest of what there is, and the list of what there is not."""
    indexes = [shards.index(out / shard_name(number)) for number in range(-(-len(units) // packing.per_shard))]
    left_out = {int(key): reason for index in indexes for key, reason in index.shard["left_out"].items()}
    sources = [written(unit.video.path, manifest.source) for unit in units]
    if len(left_out) == len(units):
        raise TubeletError(f"none of the {len(units):,} videos can be read; {sources[0]}: {left_out[0]}")
    folder = folder.resolve()
    packed = []
    for video, number in zip(manifest, rows, strict=True):
        if number not in left_out:
            tar = folder / shard_name(number // packing.per_shard)
            packed.append(_row(video, tar / units[number].key, sources[number], packing))
    write_manifest(folder / "clips.csv", Manifest(packed, manifest.classes))
    storage.put(folder / "clips.csv", out / "clips.csv")
    unreadable = [(units[number].video.path, reason) for number, reason in sorted(left_out.items())]
    if unreadable:
        write_unreadable(folder / "unreadable.csv", unreadable)
        storage.put(folder / "unreadable.csv", out / "unreadable.csv")
    told = [index.shard for index in indexes]
    return Packed(
        manifest=out / "clips.csv", videos=len(units) - len(left_out), shards=len(indexes),
        seconds=sum(shard["seconds"] for shard in told), source_bytes=sum(shard["source_bytes"] for shard in told),
        bytes=sum(shard["bytes"] for shard in told), left_out=unreadable, took_s=time.monotonic() - started,
    )  # fmt: skip


def _row(video: Video, place: Place, source: str, packing: Packing) -> Video:
    """The row of a packed video: all that was known of it, but the span, which is all that there is of it now."""
    extra = {"source": source, **video.extra}
    group = source if video.group is None else video.group  # spans of one file still belong together
    if packing.format == "original":
        return replace(video, path=place, group=group, extra=extra)
    for name in ("start_s", "end_s"):
        if (second := getattr(video, name)) is not None:
            extra[f"source_{name}"] = f"{second:g}"
    return replace(video, path=place, start_s=None, end_s=None, fps=None, group=group, extra=extra)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; the answer is called after each step."""
    with Progress(console=log.console, transient=True, disable=not log.console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda: bar.advance(task)
