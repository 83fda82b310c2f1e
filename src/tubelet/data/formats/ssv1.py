"""Something-Something V1 (Goyal et al. 2017, arXiv:1706.04261): 108,499 clips of 174 templates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tubelet.data.official import Listed, Official, annotation_file, lines
from tubelet.registry import register
from tubelet.types import TubeletError

FILES = "the official lists of Something-Something V1: something-something-v1-labels.csv, -train, -validation, -test"


@register("ssv1")
def ssv1(annotations: str, order: Literal["file", "alphabet"] = "file") -> Official:
    """Something-Something V1: something-something-v1-labels.csv, -train, -validation and -test.csv, of `id;label`.

    It comes as folders ID/ of JPEG files, 12 a second, which are read as they are; a file ID.mp4, or another ending, is
    preferred. The test clips have no labels: published accuracies are on ``val``.

    Args:
        annotations: folder of the official files.
        order: of the classes, as in the file of labels, or sorted, as TSN's and TSM's lists have them.

    Raises:
        TubeletError: a file is missing or damaged, or a label is not among the labels.
    """
    index = _file(annotations, "labels")
    classes = [line for _, line in lines(index)]
    known = set(classes)
    if order == "alphabet":
        classes.sort()
    videos = []
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        for where, line in lines(_file(annotations, name)):
            number, _, label = line.partition(";")
            if not number.isdecimal() or (split != "test" and not label):
                raise TubeletError(f"{where}: expected `id;label`, got {line[:60]!r}")
            if label and label not in known:
                raise TubeletError(f"{where}: {index.name} has no {label!r}")
            videos.append(Listed((f"{number}.mp4",), label or None, split))
    return Official(videos, classes, {"published": {"train": 86_017, "val": 11_522, "test": 10_960}}, fps=12)


def _file(annotations: str, name: str) -> Path:
    return annotation_file(annotations, [f"something-something-v1-{name}.csv", f"{name}.csv"], FILES)
