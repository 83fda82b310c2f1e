"""Kinetics (Kay et al. 2017, arXiv:1705.06950, and its successors): clips of 10 s from YouTube.

Videos vanish from YouTube, so no two copies are the same. The counts are of copies that others trained on: those of
VideoMAE V2's lists (its docs/DATASET.md), which for Kinetics-400 are OpenDataLab's too; the copies of OpenDataLab that
MMAction2 uses; and those of CVDF.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from tubelet.data.inspect import SPLITS
from tubelet.data.listing import read_manifest, written
from tubelet.data.official import Listed, Official, annotation_files, lines
from tubelet.registry import register
from tubelet.types import TubeletError

FILES = "the lists of Kinetics: train.csv, validate.csv, test.csv, or k710's train.csv and val.csv with their label map"
COUNTED: dict[str, dict[str, dict[str, int]]] = {
    "400": {"VideoMAE V2": {"train": 240_436, "val": 19_796}},
    "600": {
        "VideoMAE V2": {"train": 366_006, "val": 27_935},
        "MMAction2": {"train": 383_393, "val": 27_910},
        "CVDF": {"train": 427_549, "val": 29_793, "test": 72_924},
    },
    "700": {"MMAction2": {"train": 542_357, "val": 34_824}},
    "700-2020": {"CVDF": {"train": 534_073, "val": 33_914, "test": 64_260}},
    "710": {"VideoMAE V2": {"train": 658_340, "val": 66_803}},
}
SPLIT = re.compile(r"(?:^|[_-])(train|validate|validation|val|test)(?:[_-]|$)")
YOUTUBE = re.compile(r"([\w-]{11})(?:_\d{6}_\d{6})?")
"""The name of a clip: the id of its film, and perhaps the seconds at which it begins and ends."""


@register("kinetics")
def kinetics(
    annotations: str, edition: Literal["400", "600", "700", "700-2020", "710"] = "400", trimmed: bool = True
) -> Official:
    """Kinetics-400, 600, 700, 700-2020, 710: the official csv, or lists of `path label` with a label map.

    The csv has the columns label, youtube_id, time_start, time_end, split; a video is called ID_000123_000133.mp4 or
    ID.mp4 and lies in a folder of its class or in any other. The classes are sorted by name, which for Kinetics-400 is
    the order of VideoMAE V2's and MMAction2's label maps too.

    A list has paths and numbers of classes; the label map beside it (label_map_k710.txt, k400, k600, k700: a name a
    line, as in VideoMAE V2's folder misc) names them. V2's classifiers of Kinetics-600, 700 and 710 number their
    classes so, in no sorted order and with some names of its own: import V2's lists for them.

    Published accuracies are on ``val``.

    Args:
        annotations: folder of the lists, of one edition.
        edition: whose label map to take, and whose counts to compare with.
        trimmed: a video is the clip of 10 s itself; otherwise the whole film, in which the clip is marked.

    Raises:
        TubeletError: a list is missing or damaged, or a label is not in the label map.
    """
    label_map = Path(annotations) / f"label_map_k{edition.partition('-')[0]}.txt"
    classes: list[str] = []
    videos: list[Listed] = []
    read: dict[str, Path] = {}
    for file in annotation_files(annotations, ["*.csv", "*.txt"], FILES):
        found = SPLIT.search(file.stem)
        if found is None:
            continue
        split = SPLITS[found[1]]
        if split in read:
            raise TubeletError(f"{read[split]} and {file} both list {split}: keep one of them in {annotations}")
        read[split] = file
        first = next((line for _, line in lines(file)), "")
        if "youtube_id" in first:
            videos += _clips(file, split, trimmed)
        else:
            if not label_map.is_file():
                raise TubeletError(f"{file} numbers its classes: put the label map that names them at {label_map}")
            classes = [line for _, line in lines(label_map)]
            videos += _paths(file, split, classes)
    if not videos:
        raise TubeletError(f"{annotations} has no list with train, val or test in its name: it must hold {FILES}")
    named = sorted({video.label for video in videos if video.label is not None})
    if classes and not set(named) <= set(classes):
        raise TubeletError(f"{annotations}: a list names classes that {label_map.name} lacks: import each alone")
    return Official(videos, classes or named, COUNTED[edition])


def _clips(file: Path, split: str, trimmed: bool) -> Iterator[Listed]:
    """The rows of an official csv."""
    for row in csv.DictReader(line for _, line in lines(file)):
        film, cells = row.get("youtube_id") or "", (row.get("time_start") or "", row.get("time_end") or "")
        try:
            start, end = (float(cell) for cell in cells)
            span = f"{int(start):06d}_{int(end):06d}"
        except (ValueError, OverflowError):
            raise TubeletError(f"{file}: {film!r} has no numbers as time_start and time_end, but {cells}") from None
        label = (row.get("label") or "").strip()
        folders = (f"{label}/", f"{label.replace(' ', '_')}/") if label else ("",)
        stems = (f"{film}_{span}", film)
        yield Listed(
            tuple(f"{folder}{stem}.mp4" for stem in stems for folder in folders),
            label or None, split, film, *((None, None) if trimmed else (start, end)),
            extra={"youtube_id": film, "time_start": cells[0], "time_end": cells[1]},
        )  # fmt: skip


def _paths(file: Path, split: str, classes: list[str]) -> Iterator[Listed]:
    """The lines of a list of `path label`."""
    for video in read_manifest(file):
        label = video.label or ""
        if not label.isdecimal() or int(label) >= len(classes):
            raise TubeletError(f"{file}: {label!r} of {video.path.name} is not a number below {len(classes)}")
        said = written(video.path, file.resolve())
        path = PurePosixPath(said.partition("://")[2] or said)
        path = path.relative_to(path.anchor)
        film = YOUTUBE.fullmatch(path.stem)
        yield Listed((path.as_posix(),), classes[int(label)], split, film and film[1])
