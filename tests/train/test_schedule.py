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


@pytest.mark.parametrize(
    ("row", "videos", "repeats", "lr", "published"),
    [  # VideoMAE's fine-tuning scripts: base rate -> rate
        ("K400 S", 12 * 32, 2, 5e-4, 7.5e-4),
        ("K400 B 800", 8 * 64, 1, 1e-3, 2e-3),
        ("K400 B 1600", 6 * 64, 2, 5e-4, 7.5e-4),
        ("K400 L", 2 * 64, 2, 2e-3, 1e-3),
        ("K400 H", 8 * 64, 2, 1e-3, 2e-3),
        ("SSv2 S", 384, 2, 1e-3, 1.5e-3),
        ("SSv2 B 800", 512, 1, 5e-4, 1e-3),
        ("SSv2 B 2400", 384, 2, 5e-4, 7.5e-4),
        ("UCF101 B", 16 * 8, 2, 5e-4, 2.5e-4),
        ("V2 B pre-training", 1024, 4, 1e-3, 4e-3),
        ("V2 g pre-training", 2048, 4, 6e-4, 4.8e-3),
    ],
)
def test_the_rate_is_the_published_one_which_counts_videos(row, videos, repeats, lr, published):
    size = schedule.StepSize(videos * repeats, repeats)
    assert size.videos == videos
    assert size.rate(lr) == pytest.approx(published, rel=1e-6), row


def test_what_a_step_is_made_of_is_said():
    size = schedule.StepSize(batch=64, repeats=2, processes=4, micro_batch=8)
    assert size.passes == 2
    assert size.describe(1e-3) == (
        "64 clips a step = 32 videos x repeats 2 = processes 4 x micro-batch 8 x accumulation 2; "
        "peak learning rate 0.001 x 32 / 256 = 0.000125"
    )
    assert schedule.StepSize(64).passes == 1
    with pytest.raises(TubeletError, match=r"micro_batch \(5\) must divide"):
        _ = schedule.StepSize(64, micro_batch=5).passes


@pytest.mark.parametrize(
    ("when", "rest", "seconds"),
    [
        ("every 5 % or 30 minutes", "every 5 %", 1800),
        ("every 30 minutes or 2 epochs", "every 2 epochs", 1800),
        ("every 2 hours", "end", 7200),
        ("every 90 seconds or 1 minute", "end", 60),
        ("every 3 steps", "every 3 steps", math.inf),
        ("end", "end", math.inf),
    ],
)
def test_times_are_told_apart_from_durations(when, rest, seconds):
    assert schedule.by_clock(when) == (rest, seconds)


@pytest.mark.parametrize("when", ["every 2 epochs or 5 %", "every 0 minutes", "every 1.2.3 hours"])
def test_times_that_make_no_sense_are_refused(when):
    with pytest.raises(TubeletError, match=repr(when)):
        schedule.by_clock(when)


@pytest.mark.parametrize("when", ["every 0 %", "every 0 steps"])
def test_no_interval_is_refused(when):
    with pytest.raises(TubeletError, match="is no interval"):
        schedule.due(when, 3, steps_per_epoch=100, total=1000)
