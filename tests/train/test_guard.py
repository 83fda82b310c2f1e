"""Skipped steps are counted, listed with their videos and said, once for all processes."""

import json
import math
from pathlib import Path

import pytest
import torch

from processes import Processes
from tubelet import dist
from tubelet.data.listing import Manifest, Video
from tubelet.train.guard import Guard
from tubelet.train.step import Stepped

FLAWED = Stepped(math.nan, math.nan, {}, "loss", math.nan)


def make_guard(out: Path, patience: int = 3) -> Guard:
    return Guard(out, Manifest([Video(Path(f"clip {row}.mp4")) for row in range(20)]), patience)


def lines_of(out: Path) -> list[dict]:
    """Strict JSON: NaN and Infinity are no part of it."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (out / "not_finite.jsonl").read_text().splitlines()]


def test_only_skips_in_a_row_lead_back(tmp_path):
    """Fails when `good` does not begin anew, or when all skips count as in a row."""
    guard, batch = make_guard(tmp_path), {"id": torch.tensor([1])}
    for flawed, expected in zip("xx.xxx", (False, False, False, False, False, True), strict=True):
        guard.note(5, "main", FLAWED, batch) if flawed == "x" else guard.good()
        assert guard.must_roll_back == expected
    assert (guard.skipped, guard.in_a_row) == (5, 3)
    guard.good()
    assert (guard.skipped, guard.in_a_row, guard.must_roll_back) == (5, 0, False)
    assert len(lines_of(tmp_path)) == 5


def test_a_line_has_what_is_needed_to_look_for_the_video(tmp_path, capsys):
    stepped = Stepped(0.5, math.inf, {}, "gradient", 0.5)
    make_guard(tmp_path).note(7, "critic", stepped, {"id": torch.tensor([4, 4, 9, 2, 3, 3])})
    (line,) = lines_of(tmp_path)
    assert line.pop("time") > 1e9
    paths = ["clip 4.mp4", "clip 9.mp4", "clip 2.mp4", "clip 3.mp4"]
    assert line == {
        "step": 7, "phase": "critic", "flaw": "gradient", "grad_norm": "inf",
        "processes": [{"rank": 0, "loss": 0.5, "ids": [4, 9, 2, 3], "paths": paths}],
    }  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step 7 is skipped and changes nothing: the gradient is not finite. It saw clip 4.mp4, clip 9.mp4" in said
    assert f"clip 2.mp4 and 1 more (listed in {tmp_path / 'not_finite.jsonl'})" in said
    assert "train.lr" in said


@pytest.mark.parametrize("fault", ["full disk", "no folder"])
def test_a_list_that_cannot_be_written_stops_nothing(tmp_path, capsys, fault):
    """Fails when the OSError is not caught."""
    if fault == "full disk":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        (tmp_path / "not_finite.jsonl").symlink_to("/dev/full")
    guard = make_guard(tmp_path if fault == "full disk" else tmp_path / "gone")
    guard.note(7, "main", FLAWED, {"id": torch.tensor([4])})
    assert guard.in_a_row == 1
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "It saw clip 4.mp4. If" in said


def note_in_two(out: str) -> tuple[int, bool]:
    dist.start()
    guard = make_guard(Path(out), patience=1)
    loss = math.nan if dist.rank() else 0.25
    stepped = Stepped(math.nan, math.nan, {}, "loss", loss)
    guard.note(3, "main", stepped, {"id": torch.tensor([2 * dist.rank(), 2 * dist.rank() + 1])})
    dist.stop()
    return guard.skipped, guard.must_roll_back


def test_two_processes_write_one_line_and_the_guilty_one_is_named(tmp_path):
    """Fails when each process writes for itself, counts for itself, or when all videos are named instead of its own."""
    first, second = Processes(note_in_two, 2, str(tmp_path)).wait(60)
    assert first.value == second.value == (1, True), first.error or second.error
    (line,) = lines_of(tmp_path)
    assert [(p["rank"], p["loss"], p["ids"]) for p in line["processes"]] == [(0, 0.25, [0, 1]), (1, "nan", [2, 3])]
    assert "on 1 of 2 processes. It saw clip 2.mp4, clip 3.mp4 (listed" in first.output
    assert "not finite" not in second.output
