"""A quick look: lists the videos of a folder or a manifest, decodes a little of each, and says what is there.

Files that cannot be read are named with the reason, never dropped in silence. Decoding happens in watched worker
processes, so that a file on which a decoder crashes or hangs costs that file only. `check.py` looks at whole files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from tubelet import log
from tubelet.data import pictures, read, shards, storage
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.listing import Manifest, Video, natural_sort, read_manifest
from tubelet.data.root import root_of, way_out
from tubelet.data.storage import Place
from tubelet.data.workers import LIMIT_S, Failure, Workers, cores
from tubelet.types import TubeletError

VIDEO_SUFFIXES = {
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".wmv", ".flv", ".ts", ".mts",
    ".m2ts", ".3gp", ".ogv", ".vob",
}  # fmt: skip
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Names of first-level folders that say what is for training and what for testing."""

ARCHIVES = {".zip", ".tar"}
SLOWEST_BYTES_PER_S = 500_000
"""Of a file that is decoded from end to end; few are slower on any core."""
MOST_S = 3600.0
"""What a file's size may add to its time limit."""

Result = TypeVar("Result")


class Look(NamedTuple):
    """A file to look at. All that an answer depends on: a file that has changed is another one."""

    place: Place
    fps: float | None
    """Of pictures without a clock."""
    bytes: int
    state: int
    """When it was changed, in nanoseconds; of a folder a digest of its list of files, with their sizes and dates."""


@dataclass(frozen=True)
class Scan:
    """What was found: the readable videos with their infos (row by row), and the others with the reason."""

    manifest: Manifest
    unreadable: list[tuple[Place, str]]
    infos: list[VideoInfo]
    others: dict[str, int] = field(default_factory=dict)
    """How many files of each suffix were passed over, since videos do not end so."""

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table for people: what, how much."""
        seconds = [seconds_of(v, i) for v, i in zip(self.manifest, self.infos, strict=True)]
        rows = [
            ("videos", f"{len(self.manifest):,}"),
            ("hours", f"{sum(seconds) / 3600:,.2f}"),
            ("seconds each", spread(seconds)),
            ("classes", self._classes()),
        ]
        if self.manifest.splits:
            rows.append(("splits", _counts([v.split or "none" for v in self.manifest])))
        others = [("other files", ", ".join(f"{n:,} {name}" for name, n in self.others.items()))] if self.others else []
        return [
            *rows,
            ("frames a second", _counts([f"{i.fps:.4g}" for i in self.infos])),
            ("sizes", _counts([f"{i.width}x{i.height}" for i in self.infos])),
            ("codecs", _counts([i.codec for i in self.infos])),
            ("unreadable", f"{len(self.unreadable):,}"),
            *others,
        ]

    def _classes(self) -> str:
        if not self.manifest.classes:
            return "none: no labels"
        counts = Counter(label for label in self.manifest.labels if label >= 0)
        fewest, most = min(counts.values(), default=0), max(counts.values(), default=0)
        videos = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        return f"{len(self.manifest.classes):,}, {videos} videos each"


def scan(
    folder: str | Path, workers: int | None = None, limit_s: float = LIMIT_S, root: str | Place | None = None
) -> Scan:
    """Looks over a tree of videos, or the videos of a manifest or `path label` list.

    Args:
        workers: processes that decode; 0 decodes in this one, None takes as many as there are cores.
        limit_s: seconds that a file may take, beyond what its size explains, before its process is stopped.
        root: what no video may lie outside of; see `tubelet.data.root`.

    Raises:
        TubeletError: there is no such folder, no video in it, one lies outside of the root, or none can be read.
    """
    listed, others = videos_of(folder, root)
    looks = [look_at(video) for video in listed]
    found = dict(decoded(_check, looks, "looking at videos", workers, limit_s))
    unreadable: list[tuple[Place, str]] = []
    kept: list[tuple[Video, VideoInfo]] = []
    for video, look in zip(listed, looks, strict=True):
        info = found[look]
        reason = info if isinstance(info, str) else beyond(video, info)
        if reason:
            unreadable.append((video.path, reason))
        else:
            assert not isinstance(info, str)
            kept.append((video, info))
    if not kept:
        place, reason = unreadable[0]
        raise TubeletError(f"none of the {len(found)} videos of {folder} can be read; {place.name}: {reason}")
    return Scan(
        manifest=Manifest([v for v, _ in kept], listed.classes, listed.source, listed.root),
        unreadable=list(dict.fromkeys(unreadable)),  # a file once, and each span beyond an end
        infos=[i for _, i in kept],
        others=others,
    )


def videos_of(source: str | Path, root: str | Place | None = None) -> tuple[Manifest, dict[str, int]]:
    """The videos of a tree, or of a manifest or list, and how many files of each kind were passed over in a tree.

    In a tree the folder that a video lies in is its label, unless all would have the same one; first-level folders
    called train, val or test become the split.

    Raises:
        TubeletError: there is no such folder or list, no video in it, or one lies outside of ``root``.
    """
    source = Path(source)
    if not source.exists():
        raise TubeletError(f"no such folder or list: {source}")
    if not source.is_dir():
        return read_manifest(source, root=root), {}
    folder = source.resolve()
    places, others = below(folder)
    if not places:
        raise TubeletError(
            f"no videos in {source}: looked for {', '.join(sorted(VIDEO_SUFFIXES))}, folders of frames, zips and tars"
        )
    bound = None if root is None else root_of(root)
    for place in places:
        if bound is not None and (target := way_out(place, bound)) is not None:
            raise TubeletError(f"{place} is outside of the root {bound}, it leads to {target}: take it away")
    return Manifest(_labelled(folder, places), root=bound), dict(others.most_common(5))


def look_at(video: Video) -> Look:
    """What there is to look at for a row of a manifest."""
    return Look(video.path, video.fps, *_state(video.path))


def decoded(
    function: Callable[[Look], Result | str],
    looks: Iterable[Look],
    doing: str,
    workers: int | None = None,
    limit_s: float = LIMIT_S,
) -> Iterator[tuple[Look, Result | str]]:
    """Each file once, with what `function` says of it in a worker process or why that came to nothing, and a bar."""
    looks = list(dict.fromkeys(looks))
    count = min(len(looks), cores() if workers is None else workers)

    def limit(look: Look) -> float:
        return limit_s + min(MOST_S, max(0, look.bytes) / SLOWEST_BYTES_PER_S)

    with log.progress(doing, len(looks)) as advance:
        for look, answer in Workers(function, count, limit).map(looks, ahead=16 * count):
            yield look, answer.reason if isinstance(answer, Failure) else answer
            advance()


def beyond(video: Video, info: VideoInfo) -> str | None:
    """The reason against a row whose span lies beyond the end of its file."""
    if (video.start_s or 0.0) < info.duration_s:
        return None
    return f"its span starts at {video.start_s:g} s, but the file ends at {info.duration_s:.3f} s"


def write_unreadable(path: str | Path, unreadable: Sequence[tuple[Place, str]]) -> None:
    """Writes the quarantine list, a CSV of path and reason; whole or not at all."""
    write_text(Path(path), table(("path", "reason"), unreadable))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Names of files that are not UTF-8 stay as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    storage.put(temporary, path)


def is_video(path: Place) -> bool:
    """Whether a file ends as videos do."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def below(root: Path) -> tuple[list[Place], Counter[str]]:
    """Every video below `root` in natural order, and the number of the other files of each suffix.

    A video is a file that ends like one, a folder of pictures, a zip or tar of pictures or a folder within one, or
    a sample of a tar in the WebDataset convention.
    """
    found: dict[str, Place] = {}
    others: Counter[str] = Counter()
    still: dict[Path, list[Path]] = {}  # folder -> its pictures
    for file in walk(root, others):
        inner = _inside(file) if file.suffix.lower() in ARCHIVES else [file] if is_video(file) else []
        found |= {str(place): place for place in inner}
        if file.suffix.lower() in pictures.SUFFIXES:
            still.setdefault(file.parent, []).append(file)
        elif not inner:
            others[file.suffix.lower() or "without suffix"] += 1
    beside = {Path(place).parent for place in found}
    for folder, files in still.items():
        if folder not in beside and pictures.is_sequence(folder):
            found[str(folder)] = folder
        else:  # posters of the videos that lie there, or photographs
            others.update(file.suffix.lower() for file in files)
    return [found[name] for name in natural_sort(found)], others


def _inside(archive: Path) -> list[Place]:
    """The videos of a zip or tar."""
    tar = archive.suffix.lower() == ".tar"
    try:
        if not (tar and archive.with_suffix(".index").exists()):
            series = [archive / folder for folder in pictures.folders(archive)]
            series = [place for place in series if pictures.is_sequence(place)]
            if series or not tar:
                return list(series)
        return [archive / key for key in shards.keys(archive)]
    except UnreadableVideo:
        return [archive]  # looking at it will say what is wrong


def _labelled(root: Path, places: list[Place]) -> list[Video]:
    parents = [
        tuple(part for part in Path(place).relative_to(root).parent.parts if Path(part).suffix.lower() not in ARCHIVES)
        for place in places
    ]
    has_splits = bool(parents) and all(parts and parts[0].lower() in SPLITS for parts in parents)
    folders = [parts[1:] if has_splits else parts for parts in parents]
    has_labels = len({inner[-1] for inner in folders if inner}) > 1
    return [
        Video(
            place,
            label=inner[-1] if has_labels and inner else None,
            split=SPLITS[outer[0].lower()] if has_splits else None,
        )
        for place, outer, inner in zip(places, parents, folders, strict=True)
    ]


def walk(root: Path, hidden: Counter[str] | None = None) -> Iterator[Path]:
    """Files below `root`, through links too, but into no folder twice; hidden ones are passed over.

    Args:
        hidden: counts the hidden files that were met, under "hidden".
    """
    visited = set()
    for folder, names, files in os.walk(root, followlinks=True):
        status = os.stat(folder)  # noqa: PTH116 - a plain string from os.walk
        if (status.st_dev, status.st_ino) in visited:
            names.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        names[:] = sorted(name for name in names if not name.startswith("."))
        for file in files:
            if not file.startswith("."):
                yield Path(folder, file)
            elif hidden is not None:
                hidden["hidden"] += 1


def _state(place: Place) -> tuple[int, int]:
    """Bytes and state as in `Look`; of the archive where a place is inside one. Missing files have -1 bytes."""
    if not isinstance(place, Path):
        try:
            return storage.size(place), 0
        except OSError:
            return -1, 0
    try:
        if not place.is_dir():
            outer = next((p for p in (place, *place.parents) if p.is_file()), place)
            status = outer.stat()
            return status.st_size, status.st_mtime_ns
        states = [(os.fsencode(file.name), file.stat()) for file in os.scandir(place)]
    except OSError:
        return -1, 0
    listed = sorted((name, status.st_size, status.st_mtime_ns) for name, status in states)
    digest = hashlib.blake2b(repr(listed).encode(), digest_size=8).digest()
    return sum(size for _, size, _ in listed), int.from_bytes(digest, "big")


def _check(look: Look) -> VideoInfo | str:
    try:
        return read.check(look.place, look.fps)
    except UnreadableVideo as error:
        return error.reason
    except Exception as error:  # a file must never stop the scan
        return f"{type(error).__name__}: {error}".splitlines()[0]


def seconds_of(video: Video, info: VideoInfo) -> float:
    """How long the part of a file is that a row is about."""
    end_s = info.duration_s if video.end_s is None else min(info.duration_s, video.end_s)
    return end_s - (video.start_s or 0.0)


def spread(values: list[float]) -> str:
    """Smallest, largest and median in words."""
    return f"{min(values):.2f} to {max(values):.2f}, median {statistics.median(values):.2f}"


def _counts(words: list[str], most: int = 4) -> str:
    """The commonest words with their counts: '30 (1,200), 25 (300), 7 others'."""
    counts = Counter(words).most_common()
    if len(counts) == 1:
        return counts[0][0]
    shown = [f"{word} ({count:,})" for word, count in counts[:most]]
    others = len(counts) - most
    return ", ".join([*shown, f"{others:,} others"] if others > 0 else shown)
