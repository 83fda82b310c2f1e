"""Packing: a corpus decoded once, and rewritten into shards from which clips are read many times faster.

Videos are divided into shards by their place in the manifest, so many to each. Worker processes encode them one by one;
this process lays what they made into the tar of the shard, in order. A shard is written beside its place, moved there
when it is on the disk, and then its index is written: what has an index is finished. So the same command goes on
after any end, and the bytes are the same whatever the number of workers. `shards.py`
says what is in a shard, `packing.py` makes one sample.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None


from tubelet import log
from tubelet.data import shards, storage
from tubelet.data.encode import OnDisk
from tubelet.data.inspect import write_unreadable
from tubelet.data.listing import Manifest, Video, write_manifest, written
from tubelet.data.packing import Made, Packing, Unit, guess, make, size_of, source_stamp
from tubelet.data.storage import Place
from tubelet.data.workers import Failure, Workers, cores
from tubelet.types import TubeletError

PROBED = 16
"""So many videos are looked at for that guess."""
UNHURRIED = 100 << 20
"""The time limit is for videos of up to so many bytes; larger ones get more in proportion."""
PLAN = "pack.json"
LOCK = ".lock"
TAR_END = bytes(2 * shards.BLOCK)


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
        finished = {number for number, some in enumerate(members) if _is_finished(out, number, some)}
        todo = [unit for number, some in enumerate(members) if number not in finished for unit in some]
        crew: Workers[int, Made] = Workers(
            lambda number: make(units[number], packing, manifest.source, folder, manifest.root),
            cores() if workers is None else workers,
            lambda number: limit_s * max(1.0, size_of(units[number].video.path) / UNHURRIED),
        )  # fmt: skip
        try:
            _look_for_space(todo, packing, out)
            with log.progress("packing", len(units), len(units) - len(todo)) as advance:
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


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


# What is packed, and where


def _units(manifest: Manifest, packing: Packing) -> tuple[list[Unit], list[int]]:
    """The samples to make, and the number of the one that each row is in."""
    members: dict[Any, list[int]] = {}
    for row, video in enumerate(manifest):
        members.setdefault((video.path, video.fps) if packing.format == "original" else row, []).append(row)
    units: list[Unit] = []
    numbers = [0] * len(manifest)
    for number, rows in enumerate(members.values()):
        classes = {manifest.labels[row] for row in rows}
        video = _common([manifest[row] for row in rows])
        units.append(Unit(number, video, classes.pop() if len(classes) == 1 else -1))
        for row in rows:
            numbers[row] = number
    return units, numbers


def _common(videos: list[Video]) -> Video:
    """What all rows of a file say of it: a caption or a class of one span is not that of the file."""
    first, *others = videos
    known = {
        name: getattr(first, name) if all(getattr(video, name) == getattr(first, name) for video in others) else None
        for name in ("start_s", "end_s", "label", "group", "split", "corpus")
    }
    extra = {name: cell for name, cell in first.extra.items() if all(v.extra.get(name) == cell for v in others)}
    return replace(first, **known, extra=extra)


def _plan(manifest: Manifest, packing: Packing, videos: int) -> dict[str, Any]:
    """All that the bytes of a pack depend on."""
    digest = hashlib.sha256(repr(manifest.classes).encode())
    for v in manifest:
        row = replace(v, path=Path()), written(v.path, manifest.source), dict(v.extra)
        digest.update(repr(row).encode(errors="surrogateescape"))
    options = asdict(packing) | {"short_side": packing.side, "quality": packing.grade}
    return {"tubelet": shards.VERSION, "videos": videos, **options, "manifest": digest.hexdigest()}


def plan_of(out: Place) -> dict[str, Any] | None:
    try:
        with storage.opened(out / PLAN) as file:
            found = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise TubeletError(f"cannot read {out / PLAN}: {error}") from None
    return found if isinstance(found, dict) else {}


@contextmanager
def _workplace(out: Place, packing: Packing, manifest: Manifest, videos: int) -> Iterator[Path]:
    """Claims `out` for this pack, or refuses; the answer is a folder for what is not finished."""
    plan = _plan(manifest, packing, videos)
    try:
        _refuse_others(out)
        desk = _desk(out)
        with alone(desk, f"packing into {out}"):
            there = plan_of(out)
            if there is not None:
                _compare(out, there, plan)
            for folder in desk.glob(".packing-*"):  # of a process that was killed
                shutil.rmtree(folder, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=".packing-", dir=desk))
            try:
                if there is None:
                    (folder / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
                    storage.put(folder / PLAN, out / PLAN)
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise TubeletError(f"cannot write to {out}: {error.strerror or error}") from None


def _refuse_others(out: Place) -> None:
    """Nothing is written beside what somebody else has put there."""
    try:
        found = storage.names(out)
    except FileNotFoundError:
        return
    if PLAN not in found and any(name != LOCK and not name.startswith(".packing-") for name in found):
        raise TubeletError(f"{out} is not empty, and holds no pack: choose another folder")


def _desk(out: Place) -> Path:
    """A folder of this machine for what is not finished: `out`, or for object storage one that the next start finds."""
    if isinstance(out, Path):
        desk = out
    else:
        owner = os.getuid() if hasattr(os, "getuid") else 0  # another user's is not ours to write to
        desk = Path(tempfile.gettempdir(), f"tubelet-pack-{hashlib.sha256(f'{owner} {out}'.encode()).hexdigest()[:16]}")
    desk.mkdir(parents=True, exist_ok=True)
    return desk


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Keeps a second process from `doing` the same in a folder. The lock ends with this process; forks have no part.

    It is on a file that nobody reads: such a lock is lost as soon as the process closes the file anywhere.
    """
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TubeletError(f"another process is {doing}: wait for it, or end it") from None
        yield


def _compare(out: Place, there: dict[str, Any], plan: dict[str, Any]) -> None:
    for name, value in plan.items():
        if there.get(name) == value:
            continue
        if name in ("manifest", "videos"):
            what = "it is of another manifest, or this one has changed"
        else:
            what = f"{name} is {there.get(name)} there, and {value} here"
        raise TubeletError(f"{out} holds another pack: {what}; choose another folder")


def _is_finished(out: Place, number: int, units: list[Unit]) -> bool:
    """Whether a shard is there, of these sources as they are now, and without passing failures.

    One of which a source is gone stays as it is: made again, it would lose it.
    """
    tar = out / shard_name(number)
    try:
        shard = index_now(tar).shard
        if shard["bytes"] != storage.size(tar):
            return False
    except (OSError, ValueError):
        return False
    kept = [unit.video.path for unit in units if unit.key not in shard["left_out"]]
    if any(isinstance(path, Path) and storage.stamp(path) is None for path in kept):
        if shard["passing"]:
            log.warn(f"{tar.name} stays as it is, with what it lacks: sources of it are gone")
        return True
    if shard["passing"]:
        log.say(f"{tar.name} is packed again: {shard['passing']} of its videos could not be reached, or took too long")
        return False
    is_same = shard["sources"] == "".join(source_stamp(unit.video.path) for unit in units)
    if not is_same:
        log.say(f"{tar.name} is packed again: a source of it has changed")
    return is_same


def index_now(tar: Place) -> shards.Index:
    """The index as it lies there now; `shards.index` may remember one from before."""
    with storage.opened(shards.index_place(tar)) as file:
        return shards.parse_index(file.read().decode())


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
    remedy = "choose another disk"
    if packing.format == "original" and all(isinstance(unit.video.path, Path) for unit in todo):
        needed = float(sum(size_of(path) for path in {unit.video.path for unit in todo}))
    else:
        some = todo[:: max(1, len(todo) // PROBED)][:PROBED]
        crew: Workers[int, float] = Workers(lambda number: guess(some[number], packing), 1)
        each = [guess for _, guess in crew.map(range(len(some))) if isinstance(guess, float)]
        needed = len(todo) * sum(each) / max(1, len(each))
        remedy += ", a smaller --short-side, or --format video"
    if needed / 2 > free:
        raise TubeletError(
            f"packing takes about {gigabytes(needed)}, and {gigabytes(free)} are free in {out}: {remedy}"
        )
    if needed > 0.9 * free:
        log.warn(f"packing takes about {gigabytes(needed)}, and {gigabytes(free)} are free in {out}")


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
    shard |= {"passing": 0, "sources": "", "seconds": 0.0, "source_bytes": 0.0}
    digest = hashlib.sha256()
    with tar.open("wb") as file:
        for unit in units:
            made = next(results)
            advance()
            if isinstance(made, Failure):
                made = Made(left_out=made.reason, is_passing=True)
            shard["sources"] += made.stamp
            if made.error is not None:
                raise made.error
            if made.left_out is not None:
                _remove(folder, unit.key)
                shard["left_out"][unit.key] = made.left_out
                shard["passing"] += made.is_passing
                continue
            offset, checksum = file.tell(), 0
            for block in _blocks(made.pieces, folder):
                file.write(block)
                digest.update(block)
                checksum = zlib.crc32(block, checksum)
            told = f"{made.json_size} {made.json_checksum:08x}"
            lines.append(f"{unit.key} {offset} {file.tell() - offset} {told} {checksum:08x}")
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
        try:
            file = piece.path.open("rb")
        except FileNotFoundError:
            raise TubeletError(f"{piece.path} vanished while it was packed: start again") from None
        with file:
            while left > 0:
                block = file.read(min(left, 1 << 20))
                if not block:
                    raise TubeletError(f"{piece.path} became shorter while it was packed: start again")
                left -= len(block)
                yield block
        if piece.path.parent == folder:
            piece.path.unlink()


def _remove(folder: Path, key: str) -> None:
    """Removes what was made of a sample that is left out."""
    for path in folder.glob(f"{key}.*"):
        path.unlink()


# The end


def _finish(
    manifest: Manifest, packing: Packing, out: Place, folder: Path, units: list[Unit], rows: list[int], started: float
) -> Packed:
    """Writes the manifest of what there is, and the list of what there is not."""
    indexes = [index_now(out / shard_name(number)) for number in range(-(-len(units) // packing.per_shard))]
    left_out = {int(key): reason for index in indexes for key, reason in index.shard["left_out"].items()}
    sources = [written(unit.video.path, manifest.source) for unit in units]
    if len(left_out) == len(units):
        problem = f"none of the {len(units):,} videos can be read; {sources[0]}: {left_out[0]}"
        raise TubeletError(f"{problem}; mend that, delete {out} and start again")
    folder = folder.resolve()
    packed = []
    for video, number in zip(manifest, rows, strict=True):
        if number not in left_out:
            place = folder / shard_name(number // packing.per_shard) / units[number].key
            packed.append(_row(video, place, sources[number], packing))
    write_manifest(folder / "clips.csv", Manifest(packed, manifest.classes))
    storage.put(folder / "clips.csv", out / "clips.csv")
    unreadable = [(units[number].video.path, reason) for number, reason in sorted(left_out.items())]
    if unreadable:
        write_unreadable(folder / "unreadable.csv", unreadable)
        storage.put(folder / "unreadable.csv", out / "unreadable.csv")
    else:
        storage.remove(out / "unreadable.csv")  # of an earlier start
    told = [index.shard for index in indexes]
    return Packed(
        manifest=out / "clips.csv", videos=len(units) - len(left_out), shards=len(indexes),
        seconds=sum(shard["seconds"] for shard in told), source_bytes=sum(shard["source_bytes"] for shard in told),
        bytes=sum(shard["bytes"] for shard in told), left_out=unreadable, took_s=time.monotonic() - started,
    )  # fmt: skip


def _row(video: Video, place: Place, source: str, packing: Packing) -> Video:
    """The row of a packed video: all that was known of it, but the span, which is all that there is of it now.

    Its flow is left out too: a pack may have other times and frames than its source, and flow of its own.
    """
    extra = {"packed_from" if "source" in video.extra else "source": source, **video.extra}
    group = source if video.group is None else video.group  # spans of one file still belong together
    if packing.format == "original":
        return replace(video, path=place, group=group, extra=extra, flow=None)
    for name in ("start_s", "end_s"):
        if (second := getattr(video, name)) is not None:
            extra[f"source_{name}"] = f"{second:g}"
    return replace(video, path=place, start_s=None, end_s=None, fps=None, group=group, extra=extra, flow=None)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
