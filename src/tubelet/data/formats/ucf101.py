"""UCF101 (Soomro, Zamir & Shah 2012, arXiv:1212.0402): 13,320 clips of 101 actions, in 25 groups of each action."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from tubelet.data.listing import MOST_CLASSES, by_number
from tubelet.data.official import Listed, Official, annotation_file, lines
from tubelet.registry import register
from tubelet.types import TubeletError

FILES = "the official lists of UCF101: classInd.txt, trainlist01.txt, testlist01.txt and so on"
PUBLISHED = {
    1: {"train": 9_537, "test": 3_783},
    2: {"train": 9_586, "test": 3_734},
    3: {"train": 9_624, "test": 3_696},
}
LINE = re.compile(r"(.+\.\w{2,4})(?:\s+(\d+))?")


@register("ucf101")
def ucf101(annotations: str, split_number: Literal[1, 2, 3] = 1) -> Official:
    """UCF101: classInd.txt, trainlist0N.txt, testlist0N.txt.

    Clips of one group share person and background, so the official splits divide no group. The number of a group
    counts within its class.

    Args:
        annotations: folder of the official lists.
        split_number: which of the three divisions into training and testing; accuracies are for one, or their mean.

    Raises:
        TubeletError: a list is missing, damaged, or contradicts another.
    """
    index = annotation_file(annotations, ["classInd.txt"], FILES)
    names: dict[int, str] = {}
    for where, line in lines(index):
        number, _, name = line.partition(" ")
        if not number.isdecimal() or not 1 <= int(number) <= MOST_CLASSES or not name:
            raise TubeletError(f"{where}: expected `number class`, got {line[:60]!r}")
        names[int(number) - 1] = name.strip()
    numbers = {name: number for number, name in names.items()}
    videos = []
    for split in ("train", "test"):
        for where, line in lines(annotation_file(annotations, [f"{split}list0{split_number}.txt"], FILES)):
            found = LINE.fullmatch(line)
            path = PurePosixPath(found[1] if found else "")
            label = path.parent.name
            if found is None or not label:
                raise TubeletError(f"{where}: expected `class/video.avi number`, got {line[:60]!r}")
            if label not in numbers:
                raise TubeletError(f"{where}: {index.name} has no class {label!r}")
            if found[2] and int(found[2]) != numbers[label] + 1:
                raise TubeletError(f"{where}: class {found[2]}, but {label} is {numbers[label] + 1} in {index.name}")
            group = re.search(r"_(g\d+)_c\d+$", path.stem)
            videos.append(Listed((str(path),), label, split, group and f"{label}_{group[1]}"))
    return Official(videos, by_number(names), {"published": PUBLISHED[split_number]})
