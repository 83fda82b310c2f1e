from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy
import pytest

from tubelet.data.listing import Manifest, Video
from tubelet.data.order import Order, Slot, candidates
from tubelet.types import TubeletError


def mixed(**sizes: int) -> Manifest:
    return Manifest([Video(Path(f"{name}{i}.mp4"), corpus=name) for name, count in sizes.items() for i in range(count)])


def epoch_of(order: Order, number: int) -> list[tuple[int, int]]:
    return [order[place] for place in range(number * order.used, (number + 1) * order.used)]


def test_places_are_answered_in_any_order():
    order = Order(mixed(a=30, b=10), 0, 4, weights={"a": 1, "b": 1})
    forward = [order[place] for place in range(200)]
    assert [order[place] for place in reversed(range(200))] == forward[::-1]
    again = Order(mixed(a=30, b=10), 0, 4, weights={"a": 1, "b": 1})
    assert [again[place] for place in (199, 3, 120)] == [forward[place] for place in (199, 3, 120)]


def test_a_mixture_has_the_shares_that_its_weights_say():
    manifest = mixed(large=70, small=20, tiny=10)
    order = Order(manifest, 1, 10, weights={"large": 2, "small": 1, "tiny": 1})
    assert order.used == len(manifest) and order.counts.tolist() == [50, 25, 25]
    for number in range(4):
        found = Counter(manifest[row].corpus for _, row in epoch_of(order, number))
        assert found == {"large": 50, "small": 25, "tiny": 25}


def test_shares_are_even_within_an_epoch():
    manifest = mixed(large=70, small=30)
    order = Order(manifest, 1, 10, weights={"large": 0.8, "small": 0.2})
    for step in range(30):
        found = Counter(manifest[order[place][1]].corpus for place in range(10 * step, 10 * step + 10))
        assert 1 <= found["small"] <= 3


def test_each_corpus_is_gone_through_in_permutations_of_its_own():
    manifest = mixed(large=70, small=30)
    order = Order(manifest, 1, 10, weights={"large": 0.2, "small": 0.8})
    seen: dict[str, list[tuple[int, int]]] = {"large": [], "small": []}
    for place in range(10 * order.used):
        epoch, row = order[place]
        seen[manifest[row].corpus].append((epoch, row))
    for name, rows in (("large", range(70)), ("small", range(70, 100))):
        for own_epoch in range(len(seen[name]) // len(rows)):
            part = seen[name][own_epoch * len(rows) : (own_epoch + 1) * len(rows)]
            assert {epoch for epoch, _ in part} == {own_epoch}
            assert sorted(row for _, row in part) == list(rows)
    assert len(set(seen["small"])) == len(seen["small"])  # an epoch and a row make a key: none comes twice


@pytest.mark.parametrize("shuffle", [True, False])
def test_without_weights_a_mixture_is_one_set(shuffle):
    order = Order(mixed(a=5, b=3), 0, 4, shuffle)
    assert sorted(row for _, row in epoch_of(order, 0)) == list(range(8))
    if not shuffle:
        assert [row for _, row in epoch_of(order, 1)] == list(range(8))


def test_without_shuffling_a_mixture_alternates():
    order = Order(mixed(a=4, b=4), 0, 4, shuffle=False, weights={"a": 3, "b": 1})
    assert [row for _, row in epoch_of(order, 0)] == [0, 1, 4, 2, 3, 0, 5, 1]


@pytest.mark.parametrize("seed", range(5))
def test_counts_add_up(seed):
    draw = numpy.random.default_rng(seed)
    sizes = {f"c{i}": int(draw.integers(20, 60)) for i in range(4)}
    order = Order(mixed(**sizes), seed, 8, weights={name: float(draw.random() + 0.1) for name in sizes})
    assert order.counts.sum() == order.used


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "c": 1}, "names 'c', which is no corpus"),
        ({"a": 1}, "says nothing of the corpus 'b'"),
        ({"a": 1, "b": 0}, "'b' must weigh more than 0"),
        ({"a": 1, "b": float("nan")}, "'b' must weigh more than 0"),
        ({"a": 1000, "b": 0.1}, "not one video of 'b' is seen"),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    with pytest.raises(TubeletError, match=message):
        Order(mixed(a=8, b=8), 0, 4, weights=weights)


def test_weights_need_the_column():
    with pytest.raises(TubeletError, match="tubelet data join"):
        Order(Manifest([Video(Path("a.mp4"))]), 0, 1, weights={"a": 1})


def test_candidates_are_all_others_once():
    slot = Slot(3, 5, 1, substitute=True)
    peers = numpy.arange(40)
    found = list(candidates(slot, peers, 0))
    assert found[0] == 5 and sorted(found) == list(range(40))
    assert found == list(candidates(slot, peers, 0)) != list(candidates(slot._replace(epoch=4), peers, 0))
    assert list(candidates(slot._replace(substitute=False), peers, 0)) == [5]


def test_what_stands_in_is_of_the_same_corpus():
    order = Order(mixed(a=9, b=5), 0, 2, weights={"a": 1, "b": 1})
    assert order.peers(3).tolist() == list(range(9)) and order.peers(11).tolist() == list(range(9, 14))
    assert Order(mixed(a=9, b=5), 0, 2).peers(3).tolist() == list(range(14))
