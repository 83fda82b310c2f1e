"""Which pictures are wanted, on packets of made-up films, against the whole list of what is on display when."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from tubelet.data.packets import MOST_AHEAD, Doubt, Packets


def film(draw: numpy.random.Generator, frames: int) -> list[Any]:
    """Packets in the order of decoding: groups whose last picture comes first, the others in any order after it."""
    starts = numpy.cumsum(draw.integers(1, 50, frames)).tolist()
    order: list[int] = []
    while len(order) < frames:
        group = list(range(len(order), min(frames, len(order) + draw.integers(1, 9))))
        order += [group[-1], *draw.permutation(group[:-1]).tolist()]
    # A picture is decoded no later than it is displayed: the first in the order waits for the deepest of the rest.
    latest, decoded = float("inf"), []
    for number in reversed(order):
        latest = min(latest, starts[number])
        decoded.append(latest)
    times = zip(order, reversed(decoded), strict=True)
    return [packet(starts[number], when) for number, when in times]


def packet(start: int | None, decoded: int | None, **flags: bool) -> Any:
    return SimpleNamespace(pts=start, dts=decoded, **{"is_discard": False, "is_corrupt": False} | flags)


@pytest.mark.parametrize("seed", range(40))
def test_wanted_are_those_on_display_and_no_others(seed):
    draw = numpy.random.default_rng(seed)
    source = film(draw, 120)
    starts = numpy.array(sorted(p.pts for p in source))
    moments = numpy.sort(draw.uniform(starts[0], starts[-1] * 1.1, draw.integers(1, 30))).tolist()
    shown = {int(starts[numpy.searchsorted(starts, moment, side="right") - 1]) for moment in moments}
    if seed % 2:
        for held in source[::3]:
            held.dts = None  # some containers have none for some
    packets = Packets(iter(source), trusted=True)
    packets.want(moments)
    ahead, came = [], []
    for held, wanted in packets:
        came.append((held.pts, wanted))
        ahead.append(len(packets.ahead))
    assert {start for start, wanted in came if wanted} == shown
    assert [start for start, _ in came] == [p.pts for p in source[: len(came)]]
    assert max(ahead) < 20
    assert packets.trusted
    if moments[-1] < starts[60]:
        assert len(came) < 80  # and it ends there


def test_answers_are_certain_or_none():
    source = film(numpy.random.default_rng(0), 60)
    starts = sorted(p.pts for p in source)
    packets = Packets(iter(source), trusted=True)
    assert packets.answer(starts[3]) is None
    for _ in packets:
        pass
    for start, after in pairwise(starts):
        assert packets.answer(start) == packets.answer(after - 0.5) == start
    assert packets.answer(1e9) == starts[-1]


@pytest.mark.parametrize(
    "wrong",
    [packet(None, None), packet(40, 41), packet(20, 20), packet(50, 2), packet(50, 40, is_corrupt=True)],
    ids=["no time", "decoded after display", "twice the same", "backwards", "corrupt"],
)
def test_doubt(wrong):
    before = [packet(10 * number, 10 * number) for number in range(4)]
    packets = Packets(iter([*before, wrong]), trusted=True)
    packets.want([35.0])
    with pytest.raises(Doubt):
        list(packets)
    packets = Packets(iter([*before, wrong]), trusted=True)
    assert [wanted for _, wanted in packets] == [True] * 5  # nothing had been left out: it goes on
    assert not packets.trusted
    packets = Packets(iter([*before, wrong]), trusted=False)
    packets.want([35.0])
    assert [wanted for _, wanted in packets] == [True] * 5


def test_what_an_edit_list_cuts_off_is_not_wanted():
    packets = Packets(iter([packet(number, number, is_discard=number < 5) for number in range(9)]), trusted=True)
    packets.want([3.0, 6.0])
    assert [held.pts for held, wanted in packets if wanted] == [6]


def test_few_are_held_though_decoding_times_are_missing():
    source = [packet(1000 - number, None) for number in range(500)]
    packets = Packets(iter(source), trusted=True)
    packets.want([2000.0])
    assert next(iter(packets))[1]
    assert len(packets.ahead) < MOST_AHEAD
