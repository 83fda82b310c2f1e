"""The doctor: looks over a folder or a list of videos, decodes a little of each, and says what is there.

Files that cannot be read are named with the reason, never dropped in silence. Decoding happens in worker processes,
so that a file on which a decoder crashes costs that file only.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import Progress

from tubelet import log
from tubelet.data import read
from tubelet.data.listing import Manifest, Video, natural_sort, read_manifest
from tubelet.data.read import UnreadableVideo, VideoInfo
from tubelet.data.storage import Place
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

CRASHED = "the decoder crashed on it"


@dataclass(frozen=True)
class Scan:
    """What was found: the readable videos with their infos (row by row), and the others with the reason."""

    manifest: Manifest
    unreadable: list[tuple[Path, str]]
    infos: list[VideoInfo]
    others: dict[str, int] = field(default_factory=dict)
    """How many files of each suffix were passed over, since videos do not end so."""

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table for people: what, how much."""
        seconds = [_seconds(v, i) for v, i in zip(self.manifest, self.infos, strict=True)]
        rows = [
            ("videos", f"{len(self.manifest):,}"),
            ("hours", f"{sum(seconds) / 3600:,.2f}"),
            ("seconds each", _spread(seconds)),
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


def scan(folder: str | Path, workers: int | None = None) -> Scan:
    """Looks over a tree of videos, or the videos of a manifest or `path label` list.

    In a tree the folder a video lies in is its label, unless all lie in one; first-level folders called train, val
    or test become the split. Hidden files and folders are passed over.

    Args:
        workers: processes that decode; 0 decodes in this one, None takes as many as there are cores.

    Raises:
        TubeletError: there is no such folder, no video in it, or none that can be read.
    """
    folder = Path(folder)
    if not folder.exists():
        raise TubeletError(f"no such folder or list: {folder}")
    if folder.is_dir():
        files = list(walk(folder.resolve()))
        videos, classes, source = _videos_below(folder.resolve(), [f for f in files if is_video(f)]), None, None
        others = Counter(file.suffix.lower() or "without suffix" for file in files if not is_video(file))
        if not videos:
            raise TubeletError(f"no videos in {folder}: looked for {', '.join(sorted(VIDEO_SUFFIXES))}")
    else:
        listed, others = read_manifest(folder), Counter[str]()
        videos, classes, source = listed.videos, listed.classes, listed.source
    found = _check_all(list(dict.fromkeys(v.path for v in videos)), _cores() if workers is None else workers)
    unreadable = {path: answer for path, answer in found.items() if isinstance(answer, str)}
    kept: list[tuple[Video, VideoInfo]] = []
    for video in videos:
        info = found[video.path]
        if isinstance(info, str):
            continue
        if (video.start_s or 0.0) >= info.duration_s:
            reason = f"its span starts at {video.start_s:g} s, but the file ends at {info.duration_s:.3f} s"
            unreadable[video.path] = reason
            continue
        kept.append((video, info))
    if not kept:
        path, reason = next(iter(unreadable.items()))
        raise TubeletError(f"none of the {len(found)} videos of {folder} can be read; {path.name}: {reason}")
    return Scan(
        manifest=Manifest([v for v, _ in kept], classes, source),
        unreadable=list(unreadable.items()),
        infos=[i for _, i in kept],
        others=dict(others.most_common(5)),
    )


def write_unreadable(path: str | Path, unreadable: Sequence[tuple[Place, str]]) -> None:
    """Writes the quarantine list, a CSV of path and reason; whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "reason"))
        writer.writerows(unreadable)
    temporary.replace(path)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _videos_below(root: Path, files: list[Path]) -> list[Video]:
    paths = [Path(p) for p in natural_sort(str(p) for p in files)]
    parents = [p.relative_to(root).parent.parts for p in paths]
    has_splits = bool(parents) and all(parts and parts[0].lower() in SPLITS for parts in parents)
    folders = [parts[1:] if has_splits else parts for parts in parents]
    has_labels = len(set(folders)) > 1
    return [
        Video(
            path,
            label=inner[-1] if has_labels and inner else None,
            split=SPLITS[outer[0].lower()] if has_splits else None,
        )
        for path, outer, inner in zip(paths, parents, folders, strict=True)
    ]


def walk(root: Path) -> Iterator[Path]:
    """Files below `root`, through links too, but into no folder twice; hidden ones are passed over."""
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


Answer = VideoInfo | str
"""What is known of a file after looking: its info, or why it cannot be read."""


def _check(path: Path) -> Answer:
    try:
        return read.check(path)
    except UnreadableVideo as error:
        return error.reason
    except Exception as error:  # a file must never stop the scan
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _check_all(paths: list[Path], workers: int) -> dict[Path, Answer]:
    """An answer for every path, in the order of `paths`."""
    answers: dict[Path, Answer] = {}
    with Progress(console=log.console, transient=True, disable=not log.console.is_terminal) as progress:
        bar = progress.add_task("looking at videos", total=len(paths))

        def keep(path: Path, answer: Answer) -> None:
            answers[path] = answer
            progress.advance(bar)

        if workers < 1:
            for path in paths:
                keep(path, _check(path))
        waiting = [path for path in reversed(paths) if path not in answers]
        while waiting:
            for path in _check_until_crash(waiting, min(workers, len(waiting)), keep):
                keep(path, _check_alone(path))  # one of these it was: each gets a process of its own
    return {path: answers[path] for path in paths}


def _check_until_crash(waiting: list[Path], workers: int, keep: Callable[[Path, Answer], None]) -> list[Path]:
    """Works `waiting` off, from its end. Returns the files that were under way when a worker died, if one did."""
    pool = _pool(workers)
    under_way: dict[Future[Answer], Path] = {}
    try:
        while waiting or under_way:
            while waiting and len(under_way) < 4 * workers:
                path = waiting.pop()
                try:
                    under_way[pool.submit(_check, path)] = path
                except BrokenProcessPool:
                    waiting.append(path)
                    break
            if not under_way:
                return []  # the pool broke between files: the next one goes on
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            crashed = False
            for future in done:
                if isinstance(future.exception(), BrokenProcessPool):
                    crashed = True
                else:
                    keep(under_way.pop(future), future.result())
            if crashed:
                return list(under_way.values())
        return []
    finally:
        pool.shutdown(wait=not under_way, cancel_futures=True)


def _check_alone(path: Path) -> Answer:
    with _pool(1) as pool:
        try:
            return pool.submit(_check, path).result()
        except BrokenProcessPool:
            return CRASHED


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked workers need no `if __name__ == "__main__"` in a user's script; they only decode.
    method = "fork" if sys.platform == "linux" else "spawn"
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(video: Video, info: VideoInfo) -> float:
    start_s = video.start_s or 0.0
    return min(info.duration_s, video.end_s or info.duration_s) - start_s


def _spread(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}, median {statistics.median(values):.2f}"


def _counts(words: list[str], most: int = 4) -> str:
    """The commonest words with their counts: '30 (1,200), 25 (300), 7 others'."""
    counts = Counter(words).most_common()
    if len(counts) == 1:
        return counts[0][0]
    shown = [f"{word} ({count:,})" for word, count in counts[:most]]
    others = len(counts) - most
    return ", ".join([*shown, f"{others:,} others"] if others > 0 else shown)
