"""Something-Something V2 (Goyal et al. 2017, arXiv:1706.04261): 220,847 clips of 174 templates."""

from __future__ import annotations

from pathlib import Path

from tubelet.data.listing import MOST_CLASSES, by_number
from tubelet.data.official import Listed, Official, annotation_file, entry, read_json
from tubelet.registry import register
from tubelet.types import TubeletError

FILES = "the official JSON of Something-Something V2: labels, train, validation, test"


@register("ssv2")
def ssv2(annotations: str) -> Official:
    """Something-Something V2: labels.json, train.json, validation.json and test.json; videos ID.webm.

    Instead of a file, a folder ID/ of its pictures, 12 a second, is taken. A label is a template without its brackets
    ("Holding [something]"); the sentence of the clip and what its somethings are become columns. The test clips have no
    labels: published accuracies are on ``val``. Do not mirror clips in training: left and right are labels.

    Args:
        annotations: folder of the official files, whose names may begin with something-something-v2-.

    Raises:
        TubeletError: a file is missing or damaged, or a template is not among the labels.
    """
    index = _file(annotations, "labels")
    numbers = read_json(index, dict)
    names = {int(number): name for name, number in numbers.items() if str(number).isdecimal()}
    if len(names) < len(numbers) or max(names) >= MOST_CLASSES:
        raise TubeletError(f"{index} is damaged: it must give each template a number of its own")
    videos = []
    for split, name in (("train", "train"), ("val", "validation")):
        file = _file(annotations, name)
        for place, row in enumerate(read_json(file, list), start=1):
            where = f"{file}, entry {place}"
            label = entry(row, "template", where).replace("[", "").replace("]", "")
            if label not in numbers:
                raise TubeletError(f"{where}: {index.name} has no {label!r}")
            things = row.get("placeholders") or []
            extra = {"sentence": str(row.get("label", "")), "something": "|".join(map(str, things))}
            videos.append(Listed((f"{entry(row, 'id', where)}.webm",), label, split, extra=extra))
    test = _file(annotations, "test")
    for place, row in enumerate(read_json(test, list), start=1):
        videos.append(Listed((f"{entry(row, 'id', f'{test}, entry {place}')}.webm",), split="test"))
    return Official(videos, by_number(names), {"published": {"train": 168_913, "val": 24_777, "test": 27_157}}, fps=12)


def _file(annotations: str, name: str) -> Path:
    return annotation_file(annotations, [f"something-something-v2-{name}.json", f"{name}.json"], FILES)
