"""The manifest: which videos there are, which part of each is meant, and what is known of them.

A CSV or Parquet table with a column `path` and, where known, `start_s`, `end_s`, `label`, `group`, `split`, `fps`,
`corpus`, `flow`; any other column is kept. Relative paths start at the manifest's folder; a path may be a URL
(`s3://...`), and so may the manifest. A video is a file, a folder or an archive of pictures, or a sample of a shard:
see `read.py`.
VideoMAE's own lists are read too: `path label` on each line, without a header, and V2's `path 0 -1`; of folders of
pictures `folder count label`, or for pre-training `folder first count`.

Classes are numbered as they sort, unless a column `class_number` (from 0) says otherwise, as it does where a data set
has an official order. A number that no video has is kept free, so that class k stays class k; how many classes come
after the highest number of the file is not known.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

from tubelet.data.info import PICTURES_FPS
from tubelet.data.root import root_of, way_out
from tubelet.data.storage import Place, Url, content, place, resolved, words
from tubelet.registry import nearest
from tubelet.types import TubeletError

KNOWN = ("path", "start_s", "end_s", "label", "group", "split", "fps", "corpus", "flow")
CLASS_NUMBER = "class_number"
MOST_CLASSES = 100_000
PARQUET = {".parquet", ".pq"}


@dataclass(frozen=True)
class Video:
    """One row: a video, or the part of it from `start_s` to `end_s`."""

    path: Place
    start_s: float | None = None
    end_s: float | None = None
    label: str | None = None
    group: str | None = None
    """What must not be divided between training and testing: a source video, a speaker."""
    split: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict, compare=False)
    fps: float | None = None
    """Pictures a second, where the video is pictures without a clock."""
    corpus: str | None = None
    """Which of the corpora of a mixture it belongs to."""
    flow: Place | None = field(default=None, repr=False)  # packs know their manifest by how rows look
    """The film of its optical flow, of the same times: see `tubelet.data.flow`."""


class Manifest(Sequence[Video]):
    """Videos in a fixed order: the row of a video is its id.

    `classes` belongs to the whole file and is kept by `where` and `take`, so that a class has the same number
    in training and in testing even where one of them lacks it. So is `root`, outside of which no video may lie.
    """

    def __init__(
        self,
        videos: Iterable[Video],
        classes: Sequence[str] | None = None,
        source: Place | None = None,
        root: Place | None = None,
    ) -> None:
        self.videos = list(videos)
        self.source, self.root = source, root
        if classes is None:
            classes = natural_sort({v.label for v in self.videos if v.label is not None})
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.videos)

    @overload
    def __getitem__(self, row: int) -> Video: ...
    @overload
    def __getitem__(self, row: slice) -> Manifest: ...
    def __getitem__(self, row: int | slice) -> Video | Manifest:
        return self.take(range(len(self))[row]) if isinstance(row, slice) else self.videos[row]

    def __repr__(self) -> str:
        return f"Manifest({len(self)} videos, {len(self.classes)} classes, source={self.source})"

    @cached_property
    def labels(self) -> list[int]:
        """The number of each video's class; -1 where it has none."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [-1 if v.label is None else numbers.get(v.label, -1) for v in self.videos]

    @cached_property
    def groups(self) -> list[str]:
        """Each video's group; where none is given, the file is its own."""
        return [str(v.path) if v.group is None else v.group for v in self.videos]

    @cached_property
    def splits(self) -> list[str]:
        """The names of the splits there are."""
        return natural_sort({v.split for v in self.videos if v.split is not None})

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the rows and classes. Moving manifest and videos together does not change it."""
        digest = hashlib.blake2b(repr(self.classes).encode(), digest_size=8)
        for v in self.videos:
            row = (written(v.path, self.source), v.start_s, v.end_s, v.label, v.group, v.split)
            row += () if v.fps is None and v.corpus is None else (v.fps, v.corpus)
            row += () if v.flow is None else (written(v.flow, self.source),)
            digest.update(repr(row).encode(errors="surrogateescape"))
        return digest.hexdigest()

    def where(self, split: str) -> Manifest:
        """The rows of one split.

        Raises:
            TubeletError: there is no such split.
        """
        if split not in self.splits:
            name = self.source or "this manifest"
            known = nearest(split, self.splits) if self.splits else "; its column `split` is absent or empty"
            raise TubeletError(f"{name} has no split {split!r}{known}")
        return self.take([row for row, v in enumerate(self.videos) if v.split == split])

    def take(self, rows: Iterable[int]) -> Manifest:
        """Some of the rows, in the order given."""
        return Manifest([self.videos[row] for row in rows], self.classes, self.source, self.root)


class Base(NamedTuple):
    """What the paths of a manifest start at, and what they must not lead out of."""

    folder: Place
    root: Place | None = None


def read_manifest(path: str | Place, split: str | None = None, root: str | Place | None = None) -> Manifest:
    """Reads a CSV, a Parquet table or a `path label` list (a file, or a URL), and keeps one split of it where asked.

    Args:
        root: a folder or URL that every video must lie in, links and all (see `root.py`), for a manifest that
            comes from somebody else; None = videos may lie anywhere.

    Raises:
        TubeletError: the file is missing, empty or not a manifest, a cell is wrong (the message has line and
            column), a video lies outside of the root, or there is no such split.
    """
    path = place(path)
    if isinstance(path, Path) and path.is_dir():
        raise TubeletError(f"{path} is a folder; list its videos: tubelet data scan {path} -o clips.csv")
    source = resolved(path)
    base = Base(source.parent, None if root is None else root_of(root))
    if path.suffix.lower() in PARQUET:
        videos = _read_parquet(path, _bytes(path), base)
    else:
        text = _text(path, _bytes(path))
        first = next((line for line in text.splitlines() if line.strip()), None)
        if first is None:
            raise TubeletError(f"{path} is empty: a manifest has a header with `path` and a row a video")
        read_rows = _read_list if _is_list(first) else _read_csv
        videos = read_rows(path, text, base)
    if not videos:
        raise TubeletError(f"{path} lists no videos: there is a header but no row below it")
    manifest = Manifest(videos, _numbered_classes(path, videos), source, base.root)
    return manifest if split is None else manifest.where(split)


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Writes a manifest as CSV, or as Parquet where `path` ends so; whole or not at all.

    Paths inside the manifest's folder are written relative to it, so that folder and manifest can move
    together. Columns in which nothing is known are left out. Where the classes are not those of the labels as they
    sort, `class_number` keeps their numbers.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()
    known = [c for c in KNOWN if c == "path" or any(getattr(v, c) is not None for v in manifest)]
    extra = list(dict.fromkeys(c for v in manifest for c in v.extra if c not in (*KNOWN, CLASS_NUMBER)))
    rows = []
    for video in manifest:
        row: dict[str, Any] = {c: getattr(video, c) for c in known} | {c: video.extra.get(c) for c in extra}
        places = {c: written(row[c], target) for c in ("path", "flow") if row.get(c) is not None}
        rows.append(row | places)
    if manifest.classes != Manifest(manifest.videos).classes:
        extra.append(CLASS_NUMBER)
        for row, number in zip(rows, manifest.labels, strict=True):
            row[CLASS_NUMBER] = None if number < 0 else str(number)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if path.suffix.lower() in PARQUET:
            pyarrow, parquet = _pyarrow()
            columns = {c: [row[c] for row in rows] for c in [*known, *extra]}
            parquet.write_table(pyarrow.table(columns), temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, [*known, *extra], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        temporary.replace(target)
    except OSError as error:
        raise TubeletError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def natural_sort(words: Iterable[str]) -> list[str]:
    """Sorted as people do it: '2' before '10', case aside."""

    def parts(word: str) -> tuple[list[str | int], str]:
        pieces = re.split(r"(\d+)", word.casefold())
        return [int(p) if i % 2 else p for i, p in enumerate(pieces)], word

    return sorted(words, key=parts)


def by_number(names: Mapping[int, str]) -> list[str]:
    """The classes in the order of their numbers (from 0); a number without a name gets one that says so."""
    return [names.get(number, f"(class {number}: no video)") for number in range(max(names, default=-1) + 1)]


def _numbered_classes(path: Place, videos: Sequence[Video]) -> list[str] | None:
    """The classes as the column `class_number` orders them; None where it is absent or empty."""
    numbers: dict[str, int] = {}
    labelled = [video for video in videos if video.label is not None]
    if not any(video.extra.get(CLASS_NUMBER, "").strip() for video in labelled):
        return None
    for video in labelled:
        label, text = str(video.label), video.extra.get(CLASS_NUMBER, "").strip()
        if not text.isdecimal() or int(text) >= MOST_CLASSES:
            raise TubeletError(
                f"{path}, column {CLASS_NUMBER}: {text!r} of {video.path.name} is not the number of a class (0, 1, ...)"
            )
        if numbers.setdefault(label, int(text)) != int(text):
            raise TubeletError(f"{path}, column {CLASS_NUMBER}: {label!r} is both {numbers[label]} and {text}")
    names = {number: label for label, number in numbers.items()}
    if len(names) < len(numbers):
        twice = next(label for label, number in numbers.items() if names[number] != label)
        number = numbers[twice]
        raise TubeletError(f"{path}, column {CLASS_NUMBER}: {number} is both {twice!r} and {names[number]!r}")
    return by_number(names)


def _bytes(path: Place) -> bytes:
    try:
        return content(path)
    except FileNotFoundError:
        raise TubeletError(f"no such manifest: {path}") from None
    except OSError as error:
        raise TubeletError(f"cannot read the manifest {path}: {words(error)}") from None


def _text(path: Place, encoded: bytes) -> str:
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TubeletError(f"{path} is not a manifest: it is not UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_list(line: str) -> bool:
    """Whether a first line is of a list without header: a file name with an ending, then at most a label."""
    return not _header(line) and _path_and_label(line) is not None


def _header(line: str) -> str | None:
    """The delimiter with which `line` is a header with a column `path`."""
    for delimiter in ",;\t":
        cells = [cell.strip().strip('"') for cell in line.split(delimiter)]
        if "path" in cells:
            return delimiter
    return None


def _path_and_label(line: str) -> tuple[str, str | None] | None:
    line = line.strip()
    if re.search(r"\.[A-Za-z]\w{1,4}$", line):
        return line, None
    if whole := re.match(r"(.*\.\w{2,5})\s+0\s+-1$", line):  # VideoMAE V2's pre-training lists: all frames
        return whole[1], None
    found = re.match(r"(.*?\.[A-Za-z0-9]{2,5})\s+(\S+)$", line) or re.match(r"(.*\S)\s+(-?\d+)$", line)
    return (found[1], found[2]) if found else None


def _read_list(path: Place, text: str, base: Base) -> list[Video]:
    rows: list[tuple[Place, int | None, str | None]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        found = _path_and_label(line)
        if found is None:
            raise TubeletError(f"{path}, line {number}: expected `path label`, got {line.strip()[:60]!r}")
        pictures = re.fullmatch(r"(.*\S)\s+(\d+)", found[0])  # VideoMAE V2 lists folders of pictures with two numbers
        name, count = (pictures[1], int(pictures[2])) if pictures else (found[0], None)
        rows.append((_located(f"{path}, line {number}", name, base), count, found[1]))
    stretches = _are_stretches(text, [(where, number) for where, number, _ in rows if number is not None])
    videos = []
    for where, number, label in rows:
        if number is None or not stretches:
            videos.append(Video(where, label=label))
        elif number <= 1:
            videos.append(Video(where))
        else:
            start, end = number - 1, number - 1 + int(label or 0)
            videos.append(Video(where, start / PICTURES_FPS, end / PICTURES_FPS, fps=PICTURES_FPS))
    return videos


def _are_stretches(text: str, numbered: Sequence[tuple[Place, int]]) -> bool:
    """Whether the two numbers after a folder are its first picture and how many, and not how many and the label.

    VideoMAE V2 has the former in lists for pre-training and the latter in those for fine-tuning. The former also list
    whole videos (`0 -1`), start with the first picture throughout, or have several stretches of one folder.
    """
    whole = re.search(r"\s0\s+-1\s*$", text, re.MULTILINE)
    return bool(whole) or max((n for _, n in numbered), default=0) <= 1 or len(dict(numbered)) < len(set(numbered))


def _read_csv(path: Place, text: str, base: Base) -> list[Video]:
    start = len(text) - len(text.lstrip("\r\n"))
    first = text[start:].splitlines()[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_header(first) or ",")
    videos: list[Video] = []
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = _checked_columns(path, [cell.strip() for cell in cells])
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) > len(columns):
                raise TubeletError(
                    f"{where}: {len(cells)} cells under {len(columns)} columns; "
                    "a path or label with a comma needs quotes"
                )
            videos.append(_video(where, dict(zip(columns, cells, strict=False)), base))
    except csv.Error as error:
        raise TubeletError(f"{path}, line {reader.line_num}: {error}") from None
    return videos


def _read_parquet(path: Place, encoded: bytes, base: Base) -> list[Video]:
    pyarrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(io.BytesIO(encoded))
    except (pyarrow.ArrowException, OSError):
        raise TubeletError(f"{path} is not a Parquet file, or it is damaged") from None
    _checked_columns(path, table.column_names)
    rows = ({name: _cell(value) for name, value in row.items()} for row in table.to_pylist())
    return [_video(f"{path}, row {number}", row, base) for number, row in enumerate(rows, start=1)]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TubeletError("Parquet needs pyarrow: pip install 'tubelet[table]'") from None
    return pyarrow, pyarrow.parquet


def _checked_columns(path: Place, columns: list[str]) -> list[str]:
    if "path" not in columns:
        raise TubeletError(f"{path} has no column `path`{nearest('path', [c for c in columns if c][:20])}")
    repeated = [name for name, count in Counter(columns).items() if count > 1 and name]
    if repeated:
        raise TubeletError(f"{path} has the column {repeated[0]!r} twice")
    return columns


def _cell(value: Any) -> str:
    """A table's value as a CSV would have it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with gaps comes as floats
    return str(value)


def _video(where: str, row: Mapping[str, str], base: Base) -> Video:
    if not row["path"].strip():
        raise TubeletError(f"{where}: the path is empty")
    start_s, end_s = _number(where, row, "start_s"), _number(where, row, "end_s")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise TubeletError(f"{where}: end_s ({end_s:g}) is not after start_s ({start_s or 0:g})")
    return Video(
        path=_located(where, row["path"], base),
        start_s=start_s,
        end_s=end_s,
        label=row.get("label", "").strip() or None,
        group=row.get("group", "").strip() or None,
        split=row.get("split", "").strip() or None,
        extra={name: cell for name, cell in row.items() if name and name not in KNOWN},
        fps=_number(where, row, "fps", "pictures a second above 0"),
        corpus=row.get("corpus", "").strip() or None,
        flow=_located(where, row["flow"], base) if row.get("flow", "").strip() else None,
    )


def _number(where: str, row: Mapping[str, str], column: str, of: str = "seconds") -> float | None:
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0) or (of != "seconds" and value == 0):
        raise TubeletError(f"{where}, column {column}: {text!r} is not a number of {of}")
    return value


def _located(where: str, text: str, base: Base) -> Place:
    """The place that a row names.

    Raises:
        TubeletError: it is none, or leads out of the root.
    """
    if "\0" in text:
        raise TubeletError(f"{where}: the path holds a zero byte")
    found = _absolute(text, base.folder)
    target = None if base.root is None else way_out(found, base.root)
    if target is not None:
        leads = "" if str(target) == text.strip() else f" (it leads to {target})"
        raise TubeletError(f"{where}: {text.strip()!r} is outside of the root {base.root}{leads}: leave the row out")
    return found


def _absolute(text: str, folder: Place) -> Place:
    path = place(text.strip())
    if isinstance(path, Url) or path.is_absolute():
        return path
    if isinstance(folder, Url):
        return folder / path.as_posix()
    if "\\" in str(path) and not (folder / path).exists():  # written on Windows
        turned = folder / str(path).replace("\\", "/")
        path = turned if turned.exists() else path
    path = folder / path
    return path.resolve() if ".." in path.parts else path  # links keep the names their users gave them


def written(path: Place, source: Place | None) -> str:
    """A path as a manifest at `source` says it."""
    if isinstance(path, Url):
        return path.removeprefix(f"{source.parent}/") if isinstance(source, Url) else path
    if isinstance(source, Path) and path.is_relative_to(source.parent):
        return path.relative_to(source.parent).as_posix()
    return str(path)
