"""Pre-emption and stalls: who is asked to leave leaves in time, who hangs is found, and the same command goes on."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from lives import Run, assert_same, command, finish, hang, live, train
from processes import Processes
from tiny_run import make_clips, make_recipe

OPTIONS = {"length": "12 steps", "save": "every 4 steps"}


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, file
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_pre_empted_command_saves_says_so_by_its_exit_code_and_goes_on(number, tmp_path):
    """Of two processes one is told. Fails without the handlers, and where the processes do not decide together."""
    recipe = make_recipe(tmp_path / "recipe.yaml", make_clips(tmp_path), train={"length": "40 steps", "workers": 1})
    arguments = ["train", str(recipe), "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    (end, _) = Processes(command, 2, *arguments, str(whole)).wait(90)
    assert end.exit_code == 0, end
    processes = Processes(command, 2, *arguments, str(parts))
    wait_for(parts / "metrics.jsonl")
    time.sleep(random.Random(number).uniform(0, 0.1))
    os.kill(processes.pids[1], number)
    ends = processes.wait(60)
    assert [end.exit_code for end in ends] == [75, 75], ends
    assert "the same command goes on from there" in " ".join(ends[0].output.split())
    ends = Processes(command, 2, *arguments, str(parts)).wait(90)
    assert [end.exit_code for end in ends] == [0, 0], ends
    assert_same(Run("", tmp_path, whole), Run("", tmp_path, parts))


def test_a_step_that_does_not_end_in_time_is_given_up(corpus, tmp_path):
    """One process hangs, the other waits for it; both leave `grace_s` after the signal. Fails without the deadline."""
    whole = finish(Run("momentum contrast", corpus, tmp_path / "whole", OPTIONS), world=2)
    run = whole._replace(out=tmp_path / "parts")
    hanging = run._replace(befalls={6: hang}, options={**OPTIONS, "grace_s": 1.0})
    processes = Processes(train, 2, hanging)
    wait_for(run.out / "checkpoints" / "step-000000004" / "SHA256SUMS")
    time.sleep(0.5)
    for pid in processes.pids:
        os.kill(pid, signal.SIGTERM)
    asked = time.monotonic()
    ends = processes.wait(30)
    assert [end.exit_code for end in ends] == [75, 75], ends
    assert time.monotonic() - asked < 10
    assert "leaving without what came after step 4" in ends[0].output
    assert_same(whole, finish(run, world=2))


def test_processes_of_which_one_hangs_for_good_leave_and_can_be_started_again(corpus, tmp_path):
    """Fails without the watchdog: both would wait for ever."""
    whole = finish(Run("momentum contrast", corpus, tmp_path / "whole", OPTIONS), world=2)
    run = whole._replace(out=tmp_path / "parts")
    ends = live(run._replace(befalls={6: hang}, options={**OPTIONS, "stall_s": 0.5}), world=2)
    assert {76} <= {end.exit_code for end in ends} <= {76, 1}, ends  # the other may notice that its peer is gone
    assert "no step is done for" in ends[0].output
    assert "waiting for other processes" in ends[1].output
    assert_same(whole, finish(run, world=2))


def test_the_file_that_a_decoder_hangs_on_is_named(corpus, tmp_path):
    """Fails where the loader does not tell what is being read."""
    run = Run("momentum contrast", corpus, tmp_path / "run", {**OPTIONS, "stall_s": 0.5, "limit_s": 100.0})
    victim = run.clips.manifest[4].path
    (end,) = live(run._replace(endless=victim), timeout_s=10)  # on a fast machine it leaves before that
    assert end.exit_code in (76, -signal.SIGKILL)
    assert f"{victim} for " in end.output, end
    finish(run)
