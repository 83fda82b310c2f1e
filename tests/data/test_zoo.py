"""Every file of the zoo has its documented outcome: exact frames, or a refusal with the right reason; never silence."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest

import zoo
from tubelet.data import read
from tubelet.data.examine import CASES, Examination, examine
from tubelet.data.info import UnreadableVideo
from tubelet.data.workers import Failure, Workers
from videos import make_video, numbers

NAMES = [case.name for case in zoo.CASES]


class Outcome:
    """What came of a case, in a worker: answers of the reader and of the doctor."""

    def __init__(self, path: Path, case: zoo.Case) -> None:
        self.refusals: dict[str, str] = {}
        self.info = self._try("probe", lambda: read.probe(path))
        self._try("check", lambda: read.check(path))
        times, wanted = moments(case)
        clip = self._try("read", lambda: read.read(path, times, short_side=96).numpy())
        self.together = None if clip is None else numbers(clip)
        self.first = None if clip is None else clip[0].mean(axis=(0, 1))  # the levels of a row
        self.floor = None if clip is None else clip[0, :, -1].mean()
        few = sorted({0, 1, len(times) // 3, len(times) // 2, len(times) - 2, len(times) - 1} & set(range(len(times))))
        self.alone = {wanted[k]: self._alone(path, times[k]) for k in reversed(few) if wanted}
        self.examination = examine(path, frames=16, stride=1, reference_fps=0)

    def _alone(self, path: Path, time_s: float) -> int | None:
        clip = self._try("read", lambda: read.read(path, numpy.array([time_s]), short_side=96).numpy())
        return None if clip is None else numbers(clip)[0]

    def _try(self, name: str, act: Any) -> Any:
        try:
            return act()
        except UnreadableVideo as error:
            self.refusals[name] = error.reason
            return None


def moments(case: zoo.Case) -> tuple[numpy.ndarray, list[int]]:
    """Times in the middles of what is to be seen, and the numbers there."""
    if not case.shown:
        return numpy.zeros(1), []
    starts = numpy.array([start_s for start_s, _ in case.shown])
    shortest = min([*numpy.diff(starts), 1 / zoo.FPS])  # damaged frames between those that are listed are not asked for
    return starts + 0.5 * shortest, [number for _, number in case.shown]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome | Failure]:
    folder = tmp_path_factory.mktemp("zoo")
    by_name = {case.name: case for case in zoo.CASES}

    def work(name: str) -> Outcome:
        by_name[name].write(folder / name)
        return Outcome(folder / name, by_name[name])

    return dict(Workers(work, 2, limit_s=30).map(NAMES))


def outcome_of(outcomes: dict[str, Outcome | Failure], case: zoo.Case) -> Outcome:
    outcome = outcomes[case.name]
    assert isinstance(outcome, Outcome), outcome.reason  # neither a crash nor a hang
    if case.number == 3 and os.getuid() == 0:
        pytest.skip("the superuser may read everything")
    return outcome


def each(cases: Sequence[zoo.Case]) -> Any:
    marked = [pytest.mark.xfail(strict=True, reason=case.fault) if case.fault else () for case in cases]
    return pytest.mark.parametrize(
        "case", [pytest.param(case, marks=mark, id=case.name) for case, mark in zip(cases, marked, strict=True)]
    )


@each([case for case in zoo.CASES if case.shown])
def test_frames_are_exact(outcomes, case):
    outcome = outcome_of(outcomes, case)
    wanted = moments(case)[1]
    assert {name: why for name, why in outcome.refusals.items() if name != "check"} == {}
    assert outcome.together == wanted
    assert outcome.alone == {number: number for number in outcome.alone}


@each([case for case in zoo.CASES if not case.shown])
def test_what_cannot_be_read_is_refused_in_one_line(outcomes, case):
    refusals = outcome_of(outcomes, case).refusals
    assert set(refusals) == {"probe", "check", "read"}
    for reason in refusals.values():
        assert "\n" not in reason
        assert case.findings == {"resource_fork"} or re.search(case.reason, reason)


@pytest.mark.parametrize("case", zoo.CASES, ids=NAMES)
def test_the_doctor_finds_it(outcomes, case):
    found: Examination = outcome_of(outcomes, case).examination
    assert {finding.code for finding in found.findings} == case.findings, found.findings
    assert bool(found.reason) == bool(case.reason), found.reason
    assert not case.reason or re.search(case.reason, found.reason or "")
    assert (found.reason is not None) == any(CASES[code].severity == "unreadable" for code in case.findings)
    again = Examination.from_json(found.as_json())
    assert again == found
    if case.shown:
        assert found.frames and found.decode_s > 0 and found.thumbnail.startswith(b"\xff\xd8")


OTHER_LENGTH = {"duration_differs", "cut_short", "breaks_off"}


@each([case for case in zoo.CASES if case.shown and not case.findings & OTHER_LENGTH and not case.fault])
def test_lengths_are_as_shown(outcomes, case):
    """Unless the doctor says otherwise."""
    outcome = outcome_of(outcomes, case)
    assert outcome.examination.seconds == pytest.approx(outcome.info.duration_s, abs=2 / outcome.info.fps)
    assert outcome.info.duration_s > case.shown[-1][0]


@each([case for case in zoo.CASES if case.number == 41])
def test_black_is_black_and_white_is_white(outcomes, case):
    """In any kind of pixel: 8 or 10 bits, limited or full range, grey, transparent."""
    levels = outcome_of(outcomes, case).first
    dark = levels < 127
    assert levels[dark].min() < 12
    assert levels[~dark].max() > 243


@pytest.mark.parametrize("name", ["turned_90.mp4", "turned_180.mp4", "turned_270.mp4", "mirrored.mp4"])
def test_the_floor_is_below(outcomes, name):
    assert outcomes[name].floor > 200


def test_a_bare_stream_has_its_length(outcomes):
    assert outcomes["no_times_b_frames.h264"].info.duration_s == pytest.approx(70 / 25)


@pytest.mark.parametrize("name", ["no_first_key.mp4", "open_gop_cut.ts"])
def test_a_length_counts_from_the_first_frame_that_can_be_decoded(outcomes, name):
    assert outcomes[name].info.duration_s == pytest.approx(58 / 30, abs=1e-3)


def test_the_length_of_a_program_stream_is_that_of_its_frames(outcomes):
    assert outcomes["program_stream.mpg"].info.duration_s == pytest.approx(70 / 25)


def test_every_number_of_the_list_is_somewhere():
    assert {case.number for case in zoo.CASES} | set(zoo.ELSEWHERE) == set(range(1, 61))
    assert len({case.name for case in zoo.CASES}) == len(zoo.CASES) >= 50
    assert all(case.about and "Args:" not in case.about for case in zoo.CASES)
    assert all(bool(case.shown) or case.reason for case in zoo.CASES)


def test_every_finding_has_a_case_in_the_zoo():
    assert {code for case in zoo.CASES for code in case.findings} == set(CASES) - {"unreadable", "bad_picture"}


def test_whatever_the_damage_there_is_an_answer(tmp_path):
    """Bytes of good files are changed, cut out or put in by chance: frames or a refusal, and no crash, no hang."""
    names = ["keys.mp4", "edits.mp4", "sound.mkv", "stream.ts", "old.avi", "anim.gif"]
    zoo.film(tmp_path / "keys.mp4", b_frames=0)
    zoo.edited(tmp_path / "edits.mp4", [(1, 5), (1, 30)])
    make_video(tmp_path / "sound.mkv", 40, sound=True)
    zoo.film(tmp_path / "stream.ts", codec="mpeg2video", size=(48, 128))
    zoo.film(tmp_path / "old.avi", codec="mpeg4")
    zoo.animation(tmp_path / "anim.gif")

    def work(seed: int) -> bool:
        draw = numpy.random.default_rng(seed)
        name = names[seed % len(names)]
        data = bytearray((tmp_path / name).read_bytes())
        for _ in range(int(draw.integers(1, 12))):
            at, count = int(draw.integers(len(data))), int(draw.integers(1, 40))
            data[at : at + int(draw.choice([0, count]))] = draw.bytes(int(draw.choice([0, count])))
        path = tmp_path / f"{seed}_{name}"
        path.write_bytes(data)
        found = examine(path)
        try:
            return len(read.read(path, numpy.array([0.0, 1.0, 9.0]))) == 3
        except UnreadableVideo as error:
            return found.info is None and "\n" not in error.reason

    answers = list(Workers(work, 2, limit_s=20).map(range(60)))
    assert [(seed, answer) for seed, answer in answers if answer is not True] == []


def test_files_that_change_while_they_are_known(tmp_path):
    """50: replaced, shortened, gone, between the first look and the reading."""
    path = zoo.film(tmp_path / "a.mp4")
    times = numpy.array([0.5, 2.0]) / zoo.FPS
    assert read.probe(path).frames == zoo.FRAMES
    zoo.film(path, zoo.numbered(range(40, 50)))
    assert numbers(read.read(path, times)) == [140, 142]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UnreadableVideo, match="moov"):
        read.read(path, times)
    path.unlink()
    for look in (read.probe, read.check, lambda p: read.read(p, times)):
        with pytest.raises(UnreadableVideo, match="no such file"):
            look(path)
