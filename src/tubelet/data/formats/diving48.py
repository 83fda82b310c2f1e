"""Diving48 (Li, Li & Vasconcelos, RESOUND, ECCV 2018), version 2 of its labels: 16,997 clips of 48 dives."""

from __future__ import annotations

from tubelet.data.official import Listed, Official, annotation_file, entry, read_json
from tubelet.registry import register
from tubelet.types import TubeletError

FILES = "Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json"


@register("diving48")
def diving48(annotations: str) -> Official:
    """Diving48 V2: Diving48_V2_train.json, Diving48_V2_test.json, Diving48_vocab.json; videos VID_NAME.mp4.

    A label is take-off, somersaults, twists and position ("Back 15som 05Twis FREE"). The group of a clip is the video
    of the competition that it was cut from, whose YouTube id begins its name. Do not use the first version of the
    lists: many of its labels were wrong.

    Args:
        annotations: folder of the three files.

    Raises:
        TubeletError: a file is missing or damaged, or a label is not in the vocabulary.
    """
    index = annotation_file(annotations, ["Diving48_vocab.json"], FILES)
    classes = [" ".join(map(str, row)) if isinstance(row, list) else str(row) for row in read_json(index, list)]
    videos = []
    for split in ("train", "test"):
        file = annotation_file(annotations, [f"Diving48_V2_{split}.json"], FILES)
        for place, row in enumerate(read_json(file, list), start=1):
            where = f"{file}, entry {place}"
            name, number = entry(row, "vid_name", where), entry(row, "label", where)
            if not number.isdecimal() or int(number) >= len(classes):
                raise TubeletError(f"{where}: label {number!r} is no number below the {len(classes)} of {index.name}")
            competition = name.rpartition("_")[0] or None
            videos.append(Listed((f"{name}.mp4",), classes[int(number)], split, competition))
    return Official(videos, classes, {"published": {"train": 15_027, "test": 1_970}})
