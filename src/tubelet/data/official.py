"""The official lists of a data set, and which of their videos lie on a disk.

A format (`data/formats`) reads annotation files into an `Official`; `gather` finds its videos below a folder and makes
the manifest of them. Where no file has a video's name, a folder of pictures with that name is it. What is missing is
listed with the reason. Counts other than the published ones are said, never refused, since people's copies of the large
data sets differ.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tubelet.data import pictures
from tubelet.data.info import PICTURES_FPS
from tubelet.data.inspect import is_video, walk
from tubelet.data.listing import Manifest, Video, natural_sort
from tubelet.types import TubeletError

NO_SPLIT = "no split"


@dataclass(frozen=True)
class Listed:
    """One video of an official list."""

    names: tuple[str, ...]
    """Where it may lie below the folder of the videos, with slashes and its usual ending; the first is official."""
    label: str | None = None
    split: str | None = None
    group: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def at(self, path: Path, fps: float | None = None) -> Video:
        return Video(path, self.start_s, self.end_s, self.label, self.group, self.split, self.extra, fps)


class Official(NamedTuple):
    """What the annotation files say."""

    videos: list[Listed]
    classes: list[str]
    """In the official order: class k of a published classifier is class k here."""
    published: dict[str, dict[str, int]]
    """Who counted -> split (or `NO_SPLIT`) -> videos."""
    fps: float | None = None
    """Of its videos, for those that are folders of pictures; None where it differs or is not known."""

    def only(self, splits: Sequence[str]) -> Official:
        """Some of the splits.

        Raises:
            TubeletError: there is none of that name.
        """
        known = natural_sort({video.split for video in self.videos if video.split})
        for split in splits:
            if split not in known:
                raise TubeletError(f"these annotations have no split {split!r}; there are: {', '.join(known)}")
        published = {who: {s: n for s, n in counts.items() if s in splits} for who, counts in self.published.items()}
        return self._replace(videos=[video for video in self.videos if video.split in splits], published=published)

    def checksum(self) -> str:
        """Of names, labels, groups, splits and classes. It does not depend on any disk."""
        return Manifest([video.at(Path(video.names[0])) for video in self.videos], self.classes).fingerprint


@dataclass(frozen=True)
class Gathered:
    """A manifest of the videos that are there, and how they compare with the official list."""

    manifest: Manifest
    official: Official
    present: Official
    """The part of the list that is there."""
    missing: list[tuple[Path, str]]
    """Where each other video was looked for first, and why it counts as missing."""
    unlisted: list[Path]
    """Videos on the disk that are not in the list."""

    def by_split(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of a table: the videos of each split, and how many others counted."""
        listed, there = (Counter(v.split or NO_SPLIT for v in o.videos) for o in (self.official, self.present))
        counted = list(self.official.published.values())
        rows = []
        for split in dict.fromkeys([*(split for counts in counted for split in counts), *listed]):
            others = (f"{counts[split]:,}" if split in counts else "" for counts in counted)
            rows.append([split, f"{listed[split]:,}", f"{there[split]:,}", *others])
        total = ["all", *(f"{sum(count.values()):,}" for count in (listed, there, *counted))]
        return ["split", "listed", "there", *self.official.published], [*rows, total]

    def by_class(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of a table: the videos of each class that are there, in each split."""
        splits = natural_sort({video.split or NO_SPLIT for video in self.present.videos})
        counts = Counter((video.label, video.split or NO_SPLIT) for video in self.present.videos)
        rows = [
            [str(number), name, *(f"{counts[name, split]:,}" for split in splits)]
            for number, name in enumerate(self.official.classes)
        ]
        return ["class", "name", *splits], rows

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table for people: what, how much."""
        counts = Counter(video.label for video in self.present.videos if video.label is not None)
        fewest, most = min(counts.values(), default=0), max(counts.values(), default=0)
        each = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        sides = defaultdict[str, set[str]](set)
        for video in self.present.videos:
            if video.group is not None and video.split is not None:
                sides[video.group].add(video.split)
        divided = sum(len(splits) > 1 for splits in sides.values())
        groups = [("groups", f"{len(sides):,}, {divided:,} of them in several splits")] if sides else []
        repeated = sum(count > 1 for count in Counter(video.names[0] for video in self.official.videos).values())
        return [
            ("classes", f"{len(counts):,} of {len(self.official.classes):,}, {each} videos each"),
            *groups,
            *([("listed more than once", f"{repeated:,}")] if repeated else []),
            *self._folders(),
            ("missing on the disk", f"{len(self.missing):,}"),
            ("on the disk, not in the list", f"{len(self.unlisted):,}"),
            ("checksum of the list", self.official.checksum()),
            ("checksum of what is there", self.present.checksum()),
        ]


    def _folders(self) -> list[tuple[str, str]]:
        rates = Counter(video.fps for video in self.manifest if video.fps is not None)
        return [("folders of pictures", f"{count:,}, taken to be {fps:g} a second") for fps, count in rates.items()]


def gather(
    official: Official, root: str | Path, keep_missing: bool = False, fps: float | None = None
) -> Gathered:
    """Finds the videos of a list below `root`.

    A file is that of a listed video when it has its name, whatever the ending. Of several the one is taken that lies
    in the listed folder; a file elsewhere only if no other video of the list has that name, so that equal names in
    different folders stay different videos. Folders of pictures count as files without an ending, where there are none.

    Args:
        keep_missing: videos that are not there are in the manifest too, at the first place that was tried.
        fps: of folders of pictures; None = that of the data set, or 30 where it has none.

    Raises:
        TubeletError: there is no such folder, or none of the videos is in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise TubeletError(f"no such folder of videos: {root}")
    root = root.resolve()
    disk, rate = _Disk(root, official.videos), fps or official.fps or PICTURES_FPS
    kept: list[Video] = []
    present: list[Listed] = []
    missing: list[tuple[Path, str]] = []
    for video in official.videos:
        answer = disk.find(video.names)
        if isinstance(answer, Path):
            present.append(video)
            kept.append(video.at(answer, rate if answer in disk.pictures else None))
            continue
        missing.append((root / video.names[0], answer))
        if keep_missing:
            kept.append(video.at(root / video.names[0]))
    if not kept:
        path, reason = missing[0]
        raise TubeletError(
            f"none of the {len(missing):,} listed videos is below {root}; the first, {path}: {reason}; "
            "--videos is the folder that holds them"
        )
    used = {video.path for video in kept}
    unlisted = [path for paths in disk.videos.values() for path in paths if path not in used]
    if used & disk.pictures:
        unlisted += [path for name, paths in disk.folders.items() if name not in disk.listed for path in paths]
    there = official._replace(videos=present)
    return Gathered(Manifest(kept, official.classes), official, there, missing, unlisted)


class _Disk:
    """The videos below a folder, found by what a list calls them."""

    def __init__(self, root: Path, listed: Sequence[Listed]) -> None:
        self.root = root
        self.videos = defaultdict[str, list[Path]](list)
        self.pictures: set[Path] = set()
        """Folders with pictures in them."""
        for path in walk(root):
            if is_video(path):
                self.videos[path.stem].append(path)
            elif path.suffix.lower() in pictures.SUFFIXES:
                self.pictures.add(path.parent)
        self.folders = defaultdict[str, list[Path]](list)
        for path in sorted(self.pictures - {root}):
            self.folders[path.name].append(path)
        self.listed = Counter(stem for video in listed for stem in {_stem(name) for name in video.names})

    def find(self, names: Sequence[str]) -> Path | str:
        """The file or folder of a listed video, or why there is none."""
        for name, there in [(name, there) for there in (self.videos, self.folders) for name in names]:
            candidates = there.get(_stem(name), [])
            rank = {path: self._rank(path, PurePosixPath(name)) for path in candidates}
            best = max(rank.values(), default=None)
            if best is None or ("/" in name and best[0] == 0 and self.listed[_stem(name)] > 1):
                continue
            chosen = [path for path in candidates if rank[path] == best]
            if len(chosen) > 1:
                return f"two files could be it: {chosen[0]} and {chosen[1]}"
            return chosen[0]
        return "no such file, nor one of that name in another folder"

    def _rank(self, path: Path, name: PurePosixPath) -> tuple[int, bool, bool]:
        """How well a file fits a listed name: folders in common from it upwards, none above them, the same ending."""
        lies, said = path.relative_to(self.root).parts[-2::-1], name.parts[-2::-1]
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lies, said, strict=False)))
        return common, len(lies) == common, path.suffix == name.suffix


def _stem(name: str) -> str:
    """The last part of a listed name, without its ending."""
    last = name.rpartition("/")[2]
    return last.rpartition(".")[0] or last


def annotation_file(folder: str | Path, names: Sequence[str], what: str) -> Path:
    """The first of `names` (patterns are allowed) in a folder of annotations or just below it.

    Args:
        what: whose annotations they are, for the error message.

    Raises:
        TubeletError: there is no such folder or none of the files, or several fit.
    """
    files = annotation_files(folder, names, what)
    if len(files) > 1:
        raise TubeletError(f"which one is meant: {files[0]} or {files[1]}? Keep one of them in {folder}")
    return files[0]


def annotation_files(folder: str | Path, names: Sequence[str], what: str) -> list[Path]:
    """All files that the first fitting one of `names` means; see `annotation_file`."""
    root = Path(folder)
    if not root.is_dir():
        raise TubeletError(f"no such folder of annotations: {root}")
    for name in names:
        for pattern in (name, f"*/{name}"):
            if files := natural_sort(str(path) for path in root.glob(pattern) if path.is_file()):
                return [Path(file) for file in files]
    raise TubeletError(f"{root} has no {' or '.join(names)}: --annotations is the folder of {what}")


def lines(path: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not empty, each with where it is.

    Raises:
        TubeletError: it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TubeletError(f"{path} is damaged: it is not UTF-8 text") from None
    numbered = enumerate(text.splitlines(), start=1)
    return [(f"{path}, line {number}", line.strip()) for number, line in numbered if line.strip()]


def read_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """What a JSON file holds.

    Raises:
        TubeletError: it is damaged, or holds something other than a list (or a dictionary).
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise TubeletError(f"{path} is damaged: it is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise TubeletError(f"{path}, line {error.lineno}: damaged JSON, {error.msg}") from None
    if not isinstance(found, kind) or not found:
        raise TubeletError(f"{path} is not the expected JSON: it must hold a {kind.__name__} that is not empty")
    return found


def entry(row: Any, key: str, where: str) -> str:
    """A cell of a JSON object, as text.

    Raises:
        TubeletError: it is not an object with that key.
    """
    if not isinstance(row, dict) or row.get(key) is None:
        raise TubeletError(f"{where} has no {key!r}")
    return str(row[key])
