"""kill -9, at any moment: the run that goes on is the run that was never killed."""

import random

import pytest

from contracts.test_registered import LEARNER
from lives import Run, assert_same, finish, kill_at_random
from saved import newest
from toys import TOYS
from tubelet import registry

REPEATED = {"data": {"repeats": 2}}


@pytest.mark.parametrize("name", sorted({*registry.names("methods"), *LEARNER, *TOYS}))
def test_a_run_that_is_killed_at_random_is_the_same(name, corpus, tmp_path):
    _kill(name, corpus, tmp_path, world=1, kills=3)


def _kill(name, corpus, tmp_path, world, kills, **options):
    chance = random.Random(name)
    whole = finish(Run(name, corpus, tmp_path / "whole", options, **REPEATED), world)
    killed = whole._replace(out=tmp_path / "killed")
    seconds = newest(whole.out).facts["seconds"]
    print(seconds)
    for _ in range(kills):
        assert kill_at_random(killed, world, seconds / 3, chance)
    assert_same(whole, finish(killed, world))
