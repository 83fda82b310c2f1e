"""A run goes on with another number of processes, replicated or sharded, and is the same run."""

from typing import NamedTuple

import pytest

from lives import Run, ask_to_stop, live, losses

OPTIONS = {"batch": 12, "length": "15 steps", "lr": 0.01, "log_steps": 1, "save": "every 4 steps"}
STOPS = (5, 10, None)
SLOW = pytest.mark.slow


class Life(NamedTuple):
    world: int
    parallel: str


def goes_on(run: Run, lives: list[Life]) -> list[dict]:
    """What all processes of each life were given at each step, joined in the order of their ranks."""
    given: list[dict] = []
    for (world, parallel), stop in zip(lives, STOPS, strict=True):
        life = run._replace(options={**run.options, "parallel": parallel}, befalls={stop: ask_to_stop})
        ends = live(life, world)
        assert all(end.exit_code == 0 for end in ends), [end.error or end.output for end in ends]
        assert all(end.value[1] == (stop is None) for end in ends)
        seen = [end.value[0] for end in ends]
        given.append({step: [sample for part in seen for sample in part[step]] for step in seen[0]})
    return given


@pytest.mark.parametrize(
    ("name", "lives"),
    [
        pytest.param("videomae", [Life(4, "replicated"), Life(2, "replicated"), Life(3, "replicated")], marks=SLOW),
        ("videomae", [Life(4, "sharded"), Life(2, "sharded"), Life(3, "sharded")]),
        ("momentum contrast", [Life(4, "sharded"), Life(2, "replicated"), Life(3, "sharded")]),
        pytest.param(
            "momentum contrast", [Life(2, "replicated"), Life(3, "sharded"), Life(1, "replicated")], marks=SLOW
        ),
    ],
    ids=["replicated", "sharded", "both", "to one"],
)
def test_four_processes_then_two_then_three_are_one_run(name, lives, corpus, tmp_path):
    """Fails where the order of the data, or of what goes into a queue, depends on which process takes it."""
    alone = Run(name, corpus, tmp_path / "alone", OPTIONS, backbone={})
    (end,) = live(alone)
    (whole, done) = end.value
    assert done
    several = alone._replace(out=tmp_path / "several")
    given = goes_on(several, lives)
    assert [sorted(part) for part in given] == [list(range(5)), list(range(5, 10)), list(range(10, 15))]
    assert given[0] | given[1] | given[2] == whole  # which videos, and the keys that masks are drawn from
    assert losses(several) == pytest.approx(losses(alone), rel=1e-6)
