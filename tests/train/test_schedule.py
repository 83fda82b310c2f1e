import itertools
import math

import pytest

from tubelet.train import schedule
from tubelet.types import TubeletError


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("40 epochs", 4000),
        ("1 epoch", 100),
        ("10k steps", 10_000),
        ("2.5k steps", 2500),
        ("1M steps", 1_000_000),
        ("5 %", 50),
        ("7 steps", 7),
        ("0 steps", 0),
        ("0.001 %", 1),
        (".5 epochs", 50),
    ],
)
def test_durations(duration, expected):
    assert schedule.steps(duration, steps_per_epoch=100, total=1000) == expected


@pytest.mark.parametrize("duration", ["40", "epochs", "4 apochs", "-3 steps", "1.2.3 steps", ""])
def test_what_is_not_a_duration_is_named(duration):
    with pytest.raises(TubeletError, match=r"duration|number"):
        schedule.steps(duration, 100, 1000)


def test_a_share_needs_a_whole():
    with pytest.raises(TubeletError, match="5 %"):
        schedule.steps("5 %", 100)


def test_due():
    happened = [s for s in range(1, 26) if schedule.due("every 10 steps", s, 5, 25)]
    assert happened == [10, 20, 25]
    assert [s for s in range(1, 26) if schedule.due("end", s, 5, 25)] == [25]
    assert [s for s in range(1, 26) if schedule.due("every 2 epochs", s, 5, 25)] == [10, 20, 25]
    with pytest.raises(TubeletError, match="sometimes"):
        schedule.due("sometimes", 3, 5, 25)


def test_warmup_then_half_a_cosine():
    rates = [schedule.warmup_cosine(s, 100, 10, 1.0, 0.1) for s in range(101)]
    assert rates[:11] == pytest.approx([s / 10 for s in range(11)])
    assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
