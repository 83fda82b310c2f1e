"""What only shows when all files of a corpus are seen together: copies, leaks between splits, labels, mixed rates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy

from tubelet.data import duplicates
from tubelet.data.cases import Case
from tubelet.data.examine import Examination
from tubelet.data.listing import Manifest, Video, natural_sort

CASES: dict[str, Case] = {
    "span_beyond": Case(
        "unreadable", "The row's span starts where its file has ended already.",
        "Correct start_s and end_s, or fetch the whole file.",
    ),
    "duplicate": Case(
        "warning", "Several rows are the same video, byte for byte.",
        "--drop-duplicates exact keeps one of each: that in test before val before the others.",
    ),
    "near_duplicate": Case(
        "warning", "Several rows look the same: the same video in another size, quality or format.",
        "Look at them below; --drop-duplicates near keeps one of each.",
    ),
    "duplicate_across_splits": Case(
        "warning", "The same video is in two splits: testing would reward remembering.",
        "--drop-duplicates keeps the one that is judged on and drops the one that is learnt from.",
    ),
    "duplicate_with_two_labels": Case(
        "warning", "The same video has two labels; at least one of them is wrong.",
        "Decide which is right: such copies are never dropped by themselves.",
    ),
    "leak": Case(
        "warning", "Videos that belong together (the same group, or parts of the same file) are in two splits.",
        "--drop-leaks drops them from training; or divide by group.",
    ),
    "many_unreadable": Case(
        "warning", "More than a tenth of the rows cannot be used.",
        "Look for one cause behind them: a broken download, a disk that is not mounted, a wrong folder.",
    ),
    "mixed_rates": Case(
        "note", "Frame rates differ: a stride counted in frames of each file is not the same time in all of them.",
        "Keep data.reference_fps above 0 (the default is 30): strides are then seconds, the same for all.",
    ),
    "mixed_sizes": Case(
        "note", "Sizes differ by more than a factor of two: crops of large and small files differ in sharpness.",
        "tubelet data pack with --short-side makes them alike, and faster to read.",
    ),
    "in_common": Case(
        "note", "Nearly all files have the same oddity: it comes from how they were made.",
        "Mend it once, where they are made or packed, rather than in training.",
    ),
    "no_splits": Case(
        "note", "No row says whether it is for training or for testing.",
        "Tubelet keeps a fifth of the labelled videos apart, by group; a column split makes it your choice.",
    ),
    "split_names": Case(
        "warning", "Some splits have names that no task looks for.",
        "Call them train, val and test.",
    ),
    "few_videos": Case(
        "warning", "Some classes have fewer than five videos to learn from.",
        "Add videos, or merge such classes with others.",
    ),
    "labels_alike": Case(
        "warning", "Some labels differ only in capitals, spaces, hyphens or underscores: perhaps they are one class.",
        "Write them in one way.",
    ),
    "only_judged": Case(
        "warning", "Some classes are in test or val but not in train: they cannot be learnt.",
        "Move some of their videos to train, or leave them out of the test.",
    ),
    "never_judged": Case(
        "note", "Some classes are in train but in neither test nor val.",
        "The accuracy will say nothing about them.",
    ),
    "class_without_video": Case(
        "warning", "Some classes have no usable video: all are left out, or class_number leaves out their number.",
        "Mend what was left out, or check that the list of classes is the one the labels were made with.",
    ),
    "some_unlabelled": Case(
        "note", "Some rows have a label and some have none.",
        "Those without are pre-trained on, and never fine-tuned or tested on.",
    ),
}  # fmt: skip
"""What each code means, as `cases.CASES` says it for single files."""

FEW = 5
ALIKE = 0.9
"""So many of all files have in common what is no accident."""
KNOWN_SPLITS = ("test", "val", "train")


class Remark(NamedTuple):
    """Something about the corpus: a code of `CASES`, what was found, and the rows it is about (none = all)."""

    code: str
    detail: str
    rows: list[int]


@dataclass(frozen=True)
class Copies:
    """Rows that are the same video."""

    kind: Literal["exact", "near"]
    rows: list[int]
    splits: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Leak:
    """A group, or a file, of which rows are in several splits."""

    group: str
    rows: dict[str, list[int]]
    """Split -> rows."""


@dataclass(frozen=True)
class Corpus:
    """The usable rows of a manifest, each with what was found out about its file."""

    manifest: Manifest
    rows: list[int]
    files: list[Examination]
    """One for each of `rows`."""

    def __iter__(self) -> Iterator[tuple[int, Video, Examination]]:
        for row, file in zip(self.rows, self.files, strict=True):
            yield row, self.manifest[row], file

    def copies(self, squares: Callable[[int], numpy.ndarray]) -> list[Copies]:
        """Exact ones first. Parts of a file are copies only of the same part.

        Args:
            squares: of a row, the pictures that `duplicates.correlation` compares, K H W.
        """

        def confirm(a: int, b: int) -> bool:
            alike = duplicates.correlation(squares(self.rows[a]), squares(self.rows[b]))
            return alike >= duplicates.LEAST_CORRELATION

        spans = [(video.start_s or 0.0, video.end_s) for _, video, _ in self]
        digests = [file.digest for file in self.files]
        exact = duplicates.same([(d, span) if d else None for d, span in zip(digests, spans, strict=True)])
        durations_s = [file.info.duration_s if file.info else 0.0 for file in self.files]
        near = [
            [group[place] for place in part]
            for group in duplicates.near([file.hashes for file in self.files], durations_s, confirm=confirm)
            for part in duplicates.same([spans[index] for index in group])
        ]
        near = [group for group in near if len({digests[index] for index in group}) > 1]
        return [*(self._copies("exact", group) for group in exact), *(self._copies("near", group) for group in near)]

    def leaks(self) -> list[Leak]:
        """Of groups, and of files, whatever those are called; once where both have the same rows."""
        groups, files = (defaultdict[str, dict[str, list[int]]](lambda: defaultdict(list)) for _ in range(2))
        for row, video, file in self:
            if video.split is not None:
                files[file.digest or str(video.path)][video.split].append(row)
                if video.group is not None:
                    groups[video.group][video.split].append(row)
        named = list(groups.items())
        for splits in files.values():
            videos = [self.manifest[row] for rows in splits.values() for row in rows]
            if len({(video.start_s, video.end_s) for video in videos}) > 1:  # or `copies` tells of them
                named.append((videos[0].path.name, splits))
        leaks: dict[str, Leak] = {}
        for name, splits in named:
            if len(splits) > 1:
                leak = Leak(name, {split: splits[split] for split in sorted(splits, key=precedence)})
                leaks.setdefault(str(leak.rows), leak)
        return list(leaks.values())

    def remarks(self, copies: Sequence[Copies], leaks: Sequence[Leak]) -> list[Remark]:
        """Everything of note but for what single files have, most serious first."""
        found = [*self._about_copies(copies), *self._about_leaks(leaks), *self._about_splits(), *self._about_labels(),
                 *self._about_pictures()]  # fmt: skip
        return sorted(found, key=lambda remark: CASES[remark.code].severity != "warning")

    def _copies(self, kind: Literal["exact", "near"], group: list[int]) -> Copies:
        videos = [self.manifest[self.rows[index]] for index in group]
        return Copies(
            kind, [self.rows[index] for index in group],
            natural_sort({v.split for v in videos if v.split}), natural_sort({v.label for v in videos if v.label}),
        )  # fmt: skip

    def _about_copies(self, copies: Sequence[Copies]) -> Iterator[Remark]:
        kinds = {
            "duplicate": [c for c in copies if c.kind == "exact"],
            "near_duplicate": [c for c in copies if c.kind == "near"],
            "duplicate_across_splits": [c for c in copies if len(c.splits) > 1],
            "duplicate_with_two_labels": [c for c in copies if len(c.labels) > 1],
        }
        for code, groups in kinds.items():
            if groups:
                rows = sorted({row for group in groups for row in group.rows})
                yield Remark(code, f"{len(rows):,} rows in {_many(len(groups), 'set')} of copies", rows)

    def _about_leaks(self, leaks: Sequence[Leak]) -> Iterator[Remark]:
        if leaks:
            between = Counter(" and ".join(leak.rows) for leak in leaks).most_common()
            rows = sorted(row for leak in leaks for rows in leak.rows.values() for row in rows)
            told = "; ".join(f"{_many(count, 'group')} in {splits}" for splits, count in between)
            yield Remark("leak", f"{told}, such as {_some([leak.group for leak in leaks])}", rows)

    def _about_splits(self) -> Iterator[Remark]:
        splits = Counter(video.split for _, video, _ in self)
        labelled = any(video.label for _, video, _ in self)
        if set(splits) == {None}:
            if labelled:
                yield Remark("no_splits", f"{splits[None]:,} rows without a split", [])
            return
        odd = natural_sort(name for name in splits if name is not None and name not in KNOWN_SPLITS)
        if odd:
            yield Remark("split_names", _some(odd), [row for row, video, _ in self if video.split in odd])

    def _about_labels(self) -> Iterator[Remark]:
        rows_of: dict[str, list[int]] = defaultdict(list)
        learnt, judged = Counter[str](), Counter[str]()
        for row, video, _ in self:
            if video.label is not None:
                rows_of[video.label].append(row)
                (judged if video.split in ("test", "val") else learnt)[video.label] += 1
        without = [row for row, video, _ in self if video.label is None]
        if not rows_of:
            return
        if without:
            yield Remark("some_unlabelled", f"{len(without):,} of {len(self.rows):,} rows", without)
        spelt: dict[str, list[str]] = defaultdict(list)
        for label in natural_sort(rows_of):
            spelt["".join(label.casefold().replace("_", " ").replace("-", " ").split())].append(label)
        for alike in spelt.values():
            if len(alike) > 1:
                rows = sorted(row for label in alike for row in rows_of[label])
                yield Remark("labels_alike", " and ".join(map(repr, alike)), rows)
        empty = [name for name in self.manifest.classes if name not in rows_of]
        few = [name for name in rows_of if 0 < learnt[name] < FEW]
        only, never = ([name for name in rows_of if not counts[name]] for counts in (learnt, judged))
        for code, names in (("few_videos", few), ("only_judged", only), ("class_without_video", empty)):
            if names:
                rows = sorted(row for name in names for row in rows_of.get(name, []))
                yield Remark(code, f"{_many(len(names), 'class')}: {_some(natural_sort(names))}", rows)
        if judged and never:
            yield Remark("never_judged", f"{_many(len(never), 'class')}: {_some(natural_sort(never))}", [])

    def _about_pictures(self) -> Iterator[Remark]:
        infos = [file.info for file in self.files if file.info is not None]
        rates = Counter(float(f"{info.fps:.4g}") for info in infos)
        if rates and max(rates) > 1.01 * min(rates):
            low, high = min(rates), max(rates)
            yield Remark(
                "mixed_rates",
                f"from {low:g} to {high:g} frames a second, mostly {rates.most_common(1)[0][0]:g}: a stride of 4 is "
                f"{4 / high:.3f} to {4 / low:.3f} s by the files' own frames, and 0.133 s by data.reference_fps 30",
                [],
            )
        sides = [min(info.width, info.height) for info in infos]
        if sides and max(sides) > 2 * min(sides):
            yield Remark("mixed_sizes", f"short sides from {min(sides)} to {max(sides)} pixels", [])
        common = Counter(code for file in self.files for code in {finding.code for finding in file.findings})
        for code, count in common.items():
            if len(self.files) >= FEW and count >= ALIKE * len(self.files):
                yield Remark("in_common", f"{code} in {count:,} of {len(self.files):,} rows", [])


def precedence(split: str | None) -> int:
    """What is judged on comes first, since it must not change; what is learnt from comes last."""
    return {"test": 0, "val": 1, "train": 3}.get(split or "", 2)


def _many(count: int, thing: str) -> str:
    plural = f"{thing}es" if thing.endswith("s") else f"{thing}s"
    return f"{count:,} {thing if count == 1 else plural}"


def _some(names: Sequence[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
