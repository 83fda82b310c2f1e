"""The doctor: decodes every file from end to end, says what is wrong, and writes a manifest without the bad ones.

Four files stand beside each other: the clean manifest; ``NAME-quarantine.csv``, each row that was left out, with code
and reason; ``NAME-check.json``, everything; and ``NAME-check.jsonl``, the journal. The same command again, after a kill
or not, looks only at files that are new or have changed, and writes the same manifest and the same quarantine.

What is left out: rows whose file cannot be used. Copies and leaks between splits are told of and kept, since which of
them should go is a decision, unless `check` is asked to drop them. Of copies one is kept: that in test before one in
val, before others, before one in train, and the first of several; what is judged on never changes for the sake of what
is learnt from. Copies with two labels are kept, since nobody here knows which is right.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy

from tubelet.data import cases, corpus, examine, inspect
from tubelet.data.appearance import SMALL
from tubelet.data.cases import Case, Finding
from tubelet.data.corpus import Copies, Corpus, Leak, Remark
from tubelet.data.examine import Examination
from tubelet.data.inspect import Look
from tubelet.data.journal import Journal
from tubelet.data.listing import Manifest, Video, write_manifest
from tubelet.data.storage import Place
from tubelet.data.workers import LIMIT_S
from tubelet.types import TubeletError

STOPPED = Case(
    "unreadable", "A decoder crashed on it, or did not come to an end.",
    "Encode it again or leave it out; where it is only large, give it more time with --limit-s.",
)  # fmt: skip
INTERNAL = Case(
    "unreadable", "Looking at it failed in a way that nobody foresaw: that is a fault of Tubelet.",
    "Leave it out, and report it with the reason that is told.",
)  # fmt: skip
CASES: dict[str, Case] = cases.CASES | corpus.CASES | {"stopped": STOPPED, "internal_error": INTERNAL}
_OF_THE_MOMENT = {"missing", "no_permission", "unreadable", "stopped", "internal_error"}
"""What the next run finds out again: the bytes of a file do not tell whether it can be reached, or read in time."""


class LeftOut(NamedTuple):
    """A row that is not in the clean manifest, and why."""

    row: int
    path: Place
    code: str
    reason: str


class Outputs(NamedTuple):
    """Where everything is written, beside the clean manifest."""

    manifest: Path

    def _beside(self, ending: str) -> Path:
        return self.manifest.with_name(f"{self.manifest.stem}-{ending}")

    @property
    def quarantine(self) -> Path:
        return self._beside("quarantine.csv")

    @property
    def json(self) -> Path:
        return self._beside("check.json")

    @property
    def page(self) -> Path:
        return self._beside("check.html")

    @property
    def journal(self) -> Path:
        return self._beside("check.jsonl")

    def __contains__(self, file: object) -> bool:
        ours = (self.manifest, self.quarantine, self.json, self.page, self.journal)
        return isinstance(file, Path) and file.exists() and any(our.exists() and our.samefile(file) for our in ours)


@dataclass(frozen=True)
class Checked:
    """All that was found out."""

    source: Path
    out: Outputs
    manifest: Manifest
    """As it was."""
    clean: Manifest
    files: list[Examination]
    """One for each row of `manifest`, without thumbnails."""
    looks: list[Look]
    """Likewise."""
    others: dict[str, int]
    left_out: list[LeftOut]
    copies: list[Copies]
    leaks: list[Leak]
    remarks: list[Remark]

    @cached_property
    def findings(self) -> dict[str, list[tuple[int, Finding]]]:
        """Code -> rows that are in the clean manifest, with what their files have; the most serious codes first."""
        found: dict[str, list[tuple[int, Finding]]] = {}
        gone = {left.row for left in self.left_out}
        for row, file in enumerate(self.files):
            if row not in gone:
                for finding in file.findings:
                    found.setdefault(finding.code, []).append((row, finding))
        order = ("unreadable", "warning", "note")
        return dict(sorted(found.items(), key=lambda item: (order.index(CASES[item[0]].severity), -len(item[1]))))

    @property
    def warnings(self) -> list[str]:
        """The codes of all warnings: of the corpus first, then of files, commonest first."""
        codes = [*(remark.code for remark in self.remarks), *self.findings]
        return list(dict.fromkeys(code for code in codes if CASES[code].severity == "warning"))

    @property
    def quarantined(self) -> dict[str, list[LeftOut]]:
        """Code -> rows that were left out, commonest first."""
        codes = [code for code, _ in Counter(left.code for left in self.left_out).most_common()]
        return {code: [left for left in self.left_out if left.code == code] for code in codes}

    @property
    def usable(self) -> list[tuple[Video, Examination]]:
        """The clean rows with their files."""
        gone = {left.row for left in self.left_out}
        pairs = zip(self.manifest, self.files, strict=True)
        return [pair for row, pair in enumerate(pairs) if row not in gone]

    def speed(self) -> dict[str, float]:
        """How fast one core decoded whole files, when they were looked at."""
        pairs = zip(self.looks, self.files, strict=True)
        files = {look: file for look, file in pairs if file.info and file.decode_s > 0}
        taken_s = sum(file.decode_s for file in files.values())
        if not taken_s:
            return {}
        return {
            "frames_per_s": sum(file.frames for file in files.values()) / taken_s,
            "times_real_time": sum(file.info.duration_s for file in files.values() if file.info) / taken_s,
            "cpu_s": taken_s,
        }

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table for people: what, how much."""
        rows = [("rows", f"{len(self.manifest):,}"), ("kept", f"{len(self.clean):,}")]
        if self.left_out:
            rows.append(("left out", _counted({code: len(left) for code, left in self.quarantined.items()})))
        rows += [(f"{CASES[remark.code].severity}: {remark.code}", remark.detail) for remark in self.remarks]
        for severity in ("warning", "note"):
            counts = {code: len(found) for code, found in self.findings.items() if CASES[code].severity == severity}
            if counts:
                rows.append((f"{severity}s of files", _counted(counts)))
        seconds = [file.info.duration_s for _, file in self.usable if file.info]
        if seconds:
            rows.append(("seconds a file", inspect.spread(seconds)))
        if speed := self.speed():
            rate, real_time = speed["frames_per_s"], speed["times_real_time"]
            rows.append(("decoding, a core", f"{rate:,.0f} frames/s, {real_time:,.0f} x real time"))
        if self.others:
            rows.append(("passed over", ", ".join(f"{count:,} {kind}" for kind, count in self.others.items())))
        return rows

    def as_json(self) -> dict[str, Any]:
        gone = {left.row: left for left in self.left_out}
        rows = []
        for row, (video, file) in enumerate(zip(self.manifest, self.files, strict=True)):
            told = {key: value for key, value in file.as_json().items() if key not in ("thumbnail", "squares")}
            given = {key: getattr(video, key) for key in ("start_s", "end_s", "label", "group", "split")}
            left = gone.get(row)
            rows.append({"row": row, **given, "left_out": left and {"code": left.code, "reason": left.reason}, **told})
        return {
            "source": str(self.source), "manifest": str(self.out.manifest), "rows": len(self.manifest),
            "kept": len(self.clean), "passed_over": self.others, "speed": self.speed(),
            "remarks": [remark._asdict() for remark in self.remarks],
            "copies": [asdict(group) for group in self.copies], "leaks": [asdict(leak) for leak in self.leaks],
            "cases": {code: asdict(case) for code, case in CASES.items()}, "files": rows,
        }  # fmt: skip


def check(
    source: str | Path,
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    limit_s: float = LIMIT_S,
    root: str | Place | None = None,
    drop_duplicates: Literal["exact", "near"] | None = None,
    drop_leaks: bool = False,
) -> Checked:
    """Looks at every file of a tree or manifest and writes the clean manifest and the quarantine.

    Args:
        source: a tree of videos, a manifest, or a `path label` list.
        out: the clean manifest; its default is ``clips.csv`` for a tree, and ``NAME-clean.csv`` for ``NAME.csv``.
        workers: processes that decode; None = one a core, 0 = this one, which no crash and no hang is survived in.
        limit_s: seconds that a file may take beyond what its size explains.
        root: what no video may lie outside of; see `tubelet.data.root`.
        drop_duplicates: leave out copies that are the same byte for byte, or those that look the same too.
        drop_leaks: leave out of training (and of val) what shares its group with what is judged on.

    Raises:
        TubeletError: there is nothing to look at, a video lies outside of the root, or the source is one of the files
            that are to be written.
    """
    source = Path(source)
    places = Outputs(Path(out) if out is not None else _default(source))
    if source in places:
        raise TubeletError(f"{source} would be written over: give the clean manifest another name with -o")
    manifest, others = inspect.videos_of(source, root)
    looks = [inspect.look_at(video) for video in manifest]
    with Journal(places.journal) as journal:
        _look_at_what_is_new(looks, journal, workers, limit_s)
        files = [journal[look] for look in looks]
        left_out = _unusable(manifest, files)
        seen = _others(manifest, files, left_out)

        @lru_cache(maxsize=1 << 12)
        def squares(row: int) -> numpy.ndarray:
            content = numpy.frombuffer(journal.whole(looks[row]).squares, dtype=numpy.uint8)
            return content.reshape(-1, SMALL, SMALL)  # K H W

        copies, leaks = seen.copies(squares), seen.leaks()
    remarks = seen.remarks(copies, leaks)
    if len(left_out) > 0.1 * len(manifest):
        rows = [left.row for left in left_out]
        remarks.insert(0, Remark("many_unreadable", f"{len(left_out):,} of {len(manifest):,} rows", rows))
    if drop_duplicates:
        left_out += _spare_copies(manifest, copies, drop_duplicates)
    if drop_leaks:  # not for the sake of a copy that has gone
        left_out += _leaked(manifest, _others(manifest, files, left_out).leaks())
    left_out = sorted({left.row: left for left in reversed(left_out)}.values())
    clean = manifest.take(_others(manifest, files, left_out).rows)
    if len(clean):
        write_manifest(places.manifest, clean)
    else:
        places.manifest.unlink(missing_ok=True)  # nobody is to train on that of a run before
    rows = [(left.path, left.code, left.reason, left.row) for left in left_out]
    inspect.write_text(places.quarantine, inspect.table(("path", "code", "reason", "row"), rows))
    return Checked(source, places, manifest, clean, files, looks, others, left_out, copies, leaks, remarks)


def write_json(checked: Checked, **also: Any) -> None:
    """Writes ``NAME-check.json``, with what is to stand there also."""
    inspect.write_text(checked.out.json, json.dumps(checked.as_json() | also, indent=1, ensure_ascii=False) + "\n")


def thumbnails(checked: Checked, rows: list[int]) -> dict[int, bytes]:
    """A small JPEG for each of some rows, where there is one."""
    with Journal(checked.out.journal) as journal:
        found = {row: journal.whole(checked.looks[row]).thumbnail for row in rows if checked.files[row].info}
        return {row: picture for row, picture in found.items() if picture}


def _look_at_what_is_new(looks: list[Look], journal: Journal, workers: int | None, limit_s: float) -> None:
    """Decodes the files that the journal has no answer for; answers that say nothing of a file's bytes do not last."""
    new = [look for look in looks if look not in journal]
    for look, answer in inspect.decoded(_examine, new, "decoding videos", workers, limit_s):
        if isinstance(answer, str):
            answer = _refusal(look, "stopped", answer)
        if answer.reason is None or answer.findings[0].code not in _OF_THE_MOMENT:
            journal.add(look, answer)
        else:
            journal.pass_over(look, answer)


def _examine(look: Look) -> Examination | str:
    try:
        return examine.examine(look.place, look.fps)
    except Exception as error:  # one file must never end the check
        return _refusal(look, "internal_error", " ".join(f"internal error: {type(error).__name__}: {error}".split()))


def _refusal(look: Look, code: str, reason: str) -> Examination:
    return Examination(look.place, reason=reason, findings=[Finding(code, reason)])


def _others(manifest: Manifest, files: list[Examination], left_out: list[LeftOut]) -> Corpus:
    """The rows that are not left out."""
    gone = {left.row for left in left_out}
    rows = [row for row in range(len(manifest)) if row not in gone]
    return Corpus(manifest, rows, [files[row] for row in rows])


def _default(source: Path) -> Path:
    return Path("clips.csv") if source.is_dir() else source.with_name(f"{source.stem}-clean.csv")


def _unusable(manifest: Manifest, files: list[Examination]) -> list[LeftOut]:
    left_out = []
    for row, (video, file) in enumerate(zip(manifest, files, strict=True)):
        if file.reason is not None:
            code = next(f.code for f in file.findings if CASES[f.code].severity == "unreadable")
            left_out.append(LeftOut(row, video.path, code, file.reason))
        elif file.info is not None and (reason := inspect.beyond(video, file.info)):
            left_out.append(LeftOut(row, video.path, "span_beyond", reason))
    return left_out


def _spare_copies(manifest: Manifest, copies: list[Copies], kind: Literal["exact", "near"]) -> list[LeftOut]:
    left_out = []
    for group in copies:
        if len(group.labels) > 1 or (group.kind == "near" and kind == "exact"):
            continue
        kept, *spare = sorted(group.rows, key=lambda row: (corpus.precedence(manifest[row].split), row))
        code = "duplicate" if group.kind == "exact" else "near_duplicate"
        how = "the same bytes as" if group.kind == "exact" else "it looks the same as"
        where = f" (split {manifest[kept].split})" if manifest[kept].split else ""
        left_out += [LeftOut(row, manifest[row].path, code, f"{how} {manifest[kept].path}{where}") for row in spare]
    return left_out


def _leaked(manifest: Manifest, leaks: list[Leak]) -> list[LeftOut]:
    left_out = []
    for leak in leaks:
        first, *others = leak.rows.items()
        for _, rows in others:
            reason = f"its group {leak.group} is in {first[0]} too"
            left_out += [LeftOut(row, manifest[row].path, "leak", reason) for row in rows]
    return left_out


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{code} ({count:,})" for code, count in counts.items())
