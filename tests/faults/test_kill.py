"""kill -9, at any moment: the run that goes on is the run that was never killed."""

import random
import signal

import pytest

from lives import Run, assert_same, equal, finish, kill_at_random, live, losses, saved
from saved import newest
from smallest import NAMES
from toys import TOYS, keys_of

KILLED = {"momentum contrast", "videomae", "supervised, all on"}
"""By default; the others are slow tests. That what they keep comes back is in the contract of learners too."""
learners = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in KILLED else pytest.mark.slow)
        for name in sorted({*NAMES, *TOYS})
    ],
)
SLOW_DISK_S = 0.003
"""A save takes as long as several steps, so that steps and kills fall into it."""


def kill(run: Run, kills: int, world: int = 1) -> None:
    """Kills a run so many times, each time at another moment, and compares its end with that of one left alone."""
    chance = random.Random(run.learner)
    whole = finish(run._replace(out=run.out / "whole"), world)
    killed = run._replace(out=run.out / "killed", slow_disk_s=SLOW_DISK_S)
    step_s = newest(whole.out).facts["seconds"] / newest(whole.out).facts["step"]
    for number in range(kills):
        kill_at_random(killed, world, 4 * step_s, chance, saving=number > 0)
    assert_same(whole, finish(killed, world))


@learners
def test_a_run_killed_at_random_is_the_same(name, corpus, tmp_path):
    """Fails where something is not in the checkpoint, such as the state of the random generators (drop path)."""
    kill(Run(name, corpus, tmp_path, data={"repeats": 2}), kills=3)


def test_a_checkpoint_is_of_its_moment_however_long_it_is_written(corpus, tmp_path):
    """Fails without the copies (of tensors, of facts) in `Saver.save`: later steps would be in what is written."""
    options = {"length": "12 steps", "save": "every 4 steps", "keep": 3, "log_steps": 20}
    whole = finish(Run("momentum contrast", corpus, tmp_path / "whole", options))
    slow = finish(whole._replace(out=tmp_path / "slow", slow_disk_s=0.02))
    for step in (4, 8, 12):
        first, second = (saved(run, step) for run in (whole, slow))
        assert first.facts | {"seconds": 0} == second.facts | {"seconds": 0}
        tensors = second.read("")
        assert all(equal(tensor, tensors[name]) for name, tensor in first.read("").items())
        assert len(first.facts["stretch"]["loss"]) == step % 12


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_same(corpus, tmp_path):
    kill(Run("momentum contrast", corpus, tmp_path, {"length": "400 steps"}, data={"repeats": 2}), kills=20)


def test_two_processes_killed_at_random_are_the_same(corpus, tmp_path):
    """Fails where all processes get the random state of the first, and where looking at the run's health moves it."""
    run = Run("momentum contrast", corpus, tmp_path, {"health": "every 6 steps"}, data={"repeats": 2})
    kill(run, kills=2, world=2)


def test_a_run_that_skips_and_goes_back_is_the_same_when_it_is_killed(corpus, tmp_path):
    """Fails where what was skipped in a row, or passed over, is not in the checkpoint."""
    run = Run("siamese", corpus, tmp_path, {"patience": 2})
    bad = [key for step in (6, 13, 14) for key in keys_of(run.clips, 4, step)]
    kill(run._replace(poison=(bad, "gradient")), kills=2)


@pytest.mark.parametrize("count", [3, pytest.param(80, marks=pytest.mark.slow)])
def test_a_kill_between_two_operations_on_the_disk_loses_nothing(count, corpus, tmp_path):
    """So many of the 80 moments of a run with three saves, of which one checkpoint is kept.

    Fails where a checkpoint has its name before it is whole, and where older ones go before it has.
    """
    options = {"length": "6 steps", "save": "every 2 steps", "keep": 1, "log_steps": 1}
    whole = finish(Run("momentum contrast", corpus, tmp_path / "whole", options))
    chance = random.Random(0)
    for part in range(count):
        number = chance.randrange(part * 80 // count, (part + 1) * 80 // count) + 1
        killed = whole._replace(out=tmp_path / str(number), dies_at=number)
        (end,) = live(killed)
        assert end.exit_code == -signal.SIGKILL, number
        reached = len(losses(killed))
        (end,) = live(killed._replace(dies_at=None))
        assert end.exit_code == 0, (number, end)
        assert min(end.value[0], default=6) >= (reached - 3) // 2 * 2, number  # a save waits for the one before it
        assert_same(whole, killed)
