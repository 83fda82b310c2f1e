"""HMDB51 (Kuehne et al., ICCV 2011): 6,766 clips of 51 actions, from films and YouTube."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal

from tubelet.data.official import NO_SPLIT, Listed, Official, annotation_files, lines
from tubelet.registry import register
from tubelet.types import TubeletError

FILES = "the official lists of HMDB51: brush_hair_test_split1.txt and so on, one of each class and split"
SPLITS = {"0": None, "1": "train", "2": "test"}
NAME = re.compile(
    r"(?P<source>.+)_(?P<visible>[hulf])_(?P<camera>cm|nm)_np(?P<people>\d)_(?P<view>fr|ba|le|ri)_"
    r"(?P<quality>goo|med|bad)_\d+"
)
"""What a file name says: film or video and action; then body parts, camera motion, people, viewpoint and quality."""


@register("hmdb51")
def hmdb51(annotations: str, split_number: Literal[1, 2, 3] = 1) -> Official:
    """HMDB51: CLASS_test_splitN.txt, where 1 is for training, 2 for testing and 0 for neither.

    The files number no classes; people sort their names, and so does this. The group of a clip is the film or video
    that begins its name, the same one in every class. The official splits divide no source within a class, but a film
    may train one action and test another: such groups are counted.

    Args:
        annotations: folder of the official lists.
        split_number: which of the three divisions into training and testing; accuracies are for one, or their mean.

    Raises:
        TubeletError: a list is missing or damaged.
    """
    ending = f"_test_split{split_number}.txt"
    videos, classes = [], []
    for file in annotation_files(annotations, [f"*{ending}"], FILES):
        label = file.name.removesuffix(ending)
        classes.append(label)
        for where, line in lines(file):
            name, _, flag = line.rpartition(" ")
            if not name.strip() or flag not in SPLITS:
                raise TubeletError(f"{where}: expected `video.avi 0`, 1 or 2, got {line[:60]!r}")
            said = NAME.fullmatch(PurePosixPath(name.strip()).stem)
            tags = said.groupdict() if said else {}
            source = tags.pop("source", None)
            group = source and source.removesuffix(f"_{label}")
            videos.append(Listed((f"{label}/{name.strip()}",), label, SPLITS[flag], group, extra=tags))
    return Official(videos, sorted(classes), {"published": {"train": 3_570, "test": 1_530, NO_SPLIT: 1_666}})
