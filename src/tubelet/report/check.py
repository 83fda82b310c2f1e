"""Writes the page of a check: one HTML file that needs nothing else, with what was found and what to do about it."""

from __future__ import annotations

import base64
import itertools
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tubelet.data.check import CASES, Checked, LeftOut, thumbnails
from tubelet.data.corpus import Remark, precedence
from tubelet.data.inspect import seconds_of, write_text
from tubelet.data.listing import natural_sort

SHOWN = 12
"""Videos of each kind of finding that are shown."""
NAMED = 6
"""Kinds of finding that the first paragraph names."""
STEPS = 12
"""Things to do next."""
SETS = 24
"""Sets of copies that are shown."""
LISTED = 200
"""Rows of the quarantine that are listed for each reason."""
LENGTHS_S = (0, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
SIDES = (0, 64, 128, 224, 256, 320, 400, 480, 720, 1080, 2160)
CLASSES = 20
"""Of the largest and of the smallest classes, where there are more than twice as many."""


class Card(NamedTuple):
    """A video as the page shows it."""

    row: int
    name: str
    picture: bytes | None
    lines: list[str]


class Section(NamedTuple):
    """Rows with one code: what that means, what helps, and some of them."""

    code: str
    severity: str
    meaning: str
    remedy: str
    detail: str
    number: int
    cards: list[Card]


def write_page(
    checked: Checked, cost: Sequence[tuple[str, str]] = (), verdict_on_cost: str = "", command: Sequence[str] = ()
) -> Path:
    """Writes ``NAME-check.html`` beside the clean manifest.

    Args:
        cost: what a recipe will cost, as names and values.
        verdict_on_cost: the same in a sentence.
        command: the words that the check was started with.
    """
    pictures = _Pictures(checked)
    findings = [*map(_remark, checked.remarks), *(_finding(checked, code, pictures) for code in checked.findings)]
    context = {
        "name": checked.out.manifest.name,
        "verdict": " ".join(part for part in (verdict(checked), verdict_on_cost) if part),
        "steps": steps(checked),
        "quarantine": [_quarantined(checked, code, left, pictures) for code, left in checked.quarantined.items()],
        "findings": sorted(findings, key=lambda section: section.severity != "warning"),
        "copies": [
            (group, [_card(checked, row, pictures) for row in group.rows[:SHOWN]]) for group in checked.copies[:SETS]
        ],
        "copies_across": any(len(group.splits) > 1 for group in checked.copies),
        "more_copies": max(0, len(checked.copies) - SETS),
        "leaks": checked.leaks[:LISTED],
        "histograms": histograms(checked),
        "speed": checked.speed(),
        "cost": list(cost),
        "summary": checked.summary(),
        "files": checked.out,
        "listed": LISTED,
        "command": shlex.join(command),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["uri"] = lambda content: f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
    text = environment.get_template("check.html").render(context)
    write_text(checked.out.page, text)
    return checked.out.page


def verdict(checked: Checked) -> str:
    """What was found, in a few sentences."""
    rows, kept = len(checked.manifest), len(checked.clean)
    if not kept:
        return f"None of the {rows:,} rows can be used: no manifest was written."
    seconds = sum(seconds_of(video, file.info) for video, file in checked.usable if file.info)
    text = f"{kept:,} of {rows:,} rows can be used ({100 * kept / rows:.1f} %), {_duration(seconds)} of video."
    if checked.left_out:
        text += f" {rows - kept:,} were left out: "
        text += f"{_named([f'{_words(code)} ({len(left):,})' for code, left in checked.quarantined.items()])}."
    if checked.warnings:
        text += f" Worth a look: {_named([_words(code) for code in checked.warnings])}."
    elif not checked.left_out:
        text += " Nothing was found that is worth a warning."
    return text


def steps(checked: Checked) -> list[str]:
    """What to do about the most pressing things: what was left out, then what the corpus has, then what files have."""
    remedies: dict[str, list[str]] = {}
    for code in dict.fromkeys([*checked.quarantined, *checked.warnings]):
        remedies.setdefault(CASES[code].remedy, []).append(_words(code))
    return [f"{_named(words).capitalize()}: {remedy}" for remedy, words in remedies.items()][:STEPS]


def histograms(checked: Checked) -> list[tuple[str, list[tuple[str, int]]]]:
    """Title, and label and count of each bar, for the rows that can be used."""
    usable = [(video, file.info) for video, file in checked.usable if file.info is not None]
    lengths = _binned([seconds_of(video, info) for video, info in usable], LENGTHS_S)
    sides = _binned([min(info.width, info.height) for _, info in usable], SIDES)
    rates = Counter(f"{info.fps:.4g}" for _, info in usable)
    found = [
        ("Length (s)", lengths),
        ("Shorter side (pixels)", sides),
        ("Frames a second", [(rate, rates[rate]) for rate in natural_sort(dict(rates.most_common(15)))]),
        ("Codec", Counter(info.codec for _, info in usable).most_common(15)),
    ]
    splits = Counter(video.split for video, _ in usable if video.split)
    if splits:
        found.append(("Split", sorted(splits.items(), key=lambda item: (precedence(item[0]), item[0]))[::-1]))
    classes = Counter(video.label for video, _ in usable if video.label).most_common()
    if len(classes) > 2 * CLASSES:
        title = f"The {CLASSES} largest and {CLASSES} smallest of {len(classes):,} classes"
        found.append((title, classes[:CLASSES] + classes[-CLASSES:]))
    elif classes:
        found.append(("Class", classes))
    return [(title, bars) for title, bars in found if bars]


class _Pictures:
    """Thumbnails of all rows that the page shows, read together."""

    def __init__(self, checked: Checked) -> None:
        rows = {row for found in checked.findings.values() for row, _ in found[:SHOWN]}
        rows |= {row for group in checked.copies[:SETS] for row in group.rows[:SHOWN]}
        rows |= {left.row for left_out in checked.quarantined.values() for left in left_out[:SHOWN]}
        self.of = thumbnails(checked, sorted(rows))


def _quarantined(
    checked: Checked, code: str, left_out: list[LeftOut], pictures: _Pictures
) -> tuple[Section, list[tuple[str, str]]]:
    case = CASES[code]
    listed = [(_name(checked, left.row), left.reason) for left in left_out[:LISTED]]
    cards = [_card(checked, left.row, pictures) for left in left_out[:SHOWN] if left.row in pictures.of]
    return Section(code, case.severity, case.meaning, case.remedy, "", len(left_out), cards), listed


def _remark(remark: Remark) -> Section:
    case = CASES[remark.code]
    return Section(remark.code, case.severity, case.meaning, case.remedy, remark.detail, len(remark.rows), [])


def _finding(checked: Checked, code: str, pictures: _Pictures) -> Section:
    case, found = CASES[code], checked.findings[code]
    cards = [_card(checked, row, pictures, finding.detail) for row, finding in found[:SHOWN]]
    return Section(code, case.severity, case.meaning, case.remedy, "", len(found), cards)


def _card(checked: Checked, row: int, pictures: _Pictures, detail: str = "") -> Card:
    video, info = checked.manifest[row], checked.files[row].info
    lines = [detail] if detail else []
    lines += [f"{info.width}x{info.height}, {info.duration_s:.2f} s, {info.fps:.4g} fps"] if info else []
    told = [part for part in (video.split, video.label) if part]
    lines += [" · ".join(told)] if told else []
    return Card(row, _name(checked, row), pictures.of.get(row), lines)


def _name(checked: Checked, row: int) -> str:
    """A row's path as short as it can be, and its span."""
    video = checked.manifest[row]
    root = checked.source if checked.source.is_dir() else checked.source.parent
    path = str(video.path).removeprefix(f"{root.resolve()}/")
    if video.start_s is None and video.end_s is None:
        return path
    return f"{path} ({video.start_s or 0:g} to {'the end' if video.end_s is None else f'{video.end_s:g}'} s)"


def _binned(values: Iterable[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """Counts between the edges, from the first bin that holds something to the last."""
    bins = [*itertools.pairwise(edges), (edges[-1], float("inf"))]
    values = list(values)
    counts = [sum(low <= value < high for value in values) for low, high in bins]
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return []
    labels = [f"{low:g} – {high:g}" if high < float("inf") else f"{low:g} and more" for low, high in bins]
    span = slice(filled[0], filled[-1] + 1)
    return list(zip(labels[span], counts[span], strict=True))


def _named(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def _words(code: str) -> str:
    return code.replace("_", " ")


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"
