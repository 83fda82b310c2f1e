import itertools

import numpy
import pytest
import torch

from tubelet import draws
from tubelet.nn import tuples
from tubelet.types import TubeletError

KEYS = torch.tensor([draws.key("tuple", index) for index in range(400)])


def test_orders_are_each_there_once():
    assert tuples.permutations(3).tolist() == [list(order) for order in itertools.permutations(range(3))]
    for orders in (tuples.permutations(4), tuples.orders_either_way(5), tuples.coherent(2, 3)):
        assert (numpy.sort(orders, axis=1) == numpy.arange(orders.shape[1])).all()  # bijective
        assert len(numpy.unique(orders, axis=0)) == len(orders)


def test_cells_of_a_picture_stay_together_in_all_orders_that_keep_them():
    orders = tuples.coherent(3, 2)
    slow = [
        order for order in itertools.permutations(range(6))
        if all(order[i] // 2 == order[i + 1] // 2 for i in (0, 2, 4))
    ]  # fmt: skip
    assert sorted(map(tuple, orders.tolist())) == slow
    assert len(tuples.coherent(3, 4)) == 82944


def test_orders_that_are_far_apart_against_a_slow_search():
    candidates = tuples.coherent(2, 3)
    rows = candidates.tolist()

    def distance(first, second):
        return sum(a != b for a, b in zip(first, second, strict=True))

    chosen = [0]
    while len(chosen) < 8:
        far = [[distance(row, rows[other]) for other in chosen] for row in rows]
        best = max((min(apart), sum(apart)) for apart in far)
        chosen.append(next(i for i, apart in enumerate(far) if (min(apart), sum(apart)) == best))
    found = tuples.far_apart(candidates, 8)
    assert numpy.array_equal(found, candidates[chosen])
    between = [distance(*pair) for pair in itertools.combinations(found.tolist()[:6], 2)]
    assert min(between) == 6  # the first six differ everywhere, which is the most there is


def test_clips_are_the_frames_asked_for():
    video = torch.rand(2, 3, 9, 4, 4)
    times = torch.tensor([[[0, 1], [7, 8]], [[3, 2], [5, 5]]])
    clips = tuples.taken(video, times)
    for i, j in itertools.product(range(2), range(2)):
        assert torch.equal(clips[i, j], video[i][:, times[i, j]])
    assert tuples.spread(64, 3, 16, video.device)[:, [0, -1]].tolist() == [[0, 15], [24, 39], [48, 63]]
    assert tuples.spread(9, 1, 2, video.device).tolist() == [[0, 1]]


def test_frames_come_from_where_it_moves():
    video = torch.zeros(400, 3, 16, 4, 4)
    video[:, :, 12:] = torch.rand(400, 3, 4, 4, 4)  # nothing moves before the eleventh
    places = tuples.moving_places(video, KEYS, 3, 0.3, "places")
    assert (places.diff(dim=1) > 0).all() and places.min() >= 7 and places.max() <= 15
    still = tuples.moving_places(torch.zeros_like(video), KEYS, 3, 0.3, "places")
    assert still[:, 0].min() == 0 and still[:, -1].max() == 15
    assert abs(still.float().mean() - 7.5) < 0.6
    one = tuples.moving_places(video[5:6], KEYS[5:6], 3, 0.3, "places")
    assert torch.equal(one[0], places[5])
    with pytest.raises(TubeletError, match=r"raise data.frames"):
        tuples.moving_places(video, KEYS, 17, 0.3, "places")


def test_all_sets_of_frames_are_equally_likely():
    stills = torch.zeros(10_000, 1, 6, 1, 1)
    places = tuples.moving_places(stills, torch.arange(len(stills)), 3, 1.0, "places")
    sets, counts = places.unique(dim=0, return_counts=True)
    assert sets.tolist() == [list(frames) for frames in itertools.combinations(range(6), 3)]
    assert (counts - 500).abs().max() < 90


def test_quarters_are_numbered_row_by_row_clip_by_clip():
    clips = torch.rand(2, 3, 3, 2, 8, 6)
    cells = tuples.squares(clips)
    assert cells.shape == (2, 12, 3, 2, 4, 3)
    for item, row, column in itertools.product(range(3), range(2), range(2)):
        own = clips[:, item, :, :, 4 * row : 4 * row + 4, 3 * column : 3 * column + 3]
        assert torch.equal(cells[:, 4 * item + 2 * row + column], own)


def test_a_cut_shows_a_random_part_of_each_item():
    ramp = torch.arange(20.0)[:, None] + 100 * torch.arange(20.0)
    clips = ramp.expand(400, 2, 3, 2, 20, 20)
    parts = tuples.cut(clips, KEYS, "gap", 0.2, patch=8)
    assert parts.shape == (400, 2, 3, 2, 16, 16)  # 16 of 20 pixels, and two patches
    top = parts[:, :, 0, 0, 0, 0] % 100  # at a gap of 16 of 20 nothing is resized
    left = parts[:, :, 0, 0, 0, 0] // 100
    for offset in (top, left):
        assert sorted(offset.unique().tolist()) == [0, 1, 2, 3, 4]
    assert (top[:, 0] != top[:, 1]).any() and (top != left).any()
    own = clips[3, 1, 0, 0, int(top[3, 1]) :, int(left[3, 1]) :][:16, :16]
    assert torch.equal(parts[3, 1, 2, 1], own)
    assert tuples.cut(clips[:2], KEYS[:2], "gap", 0.5, patch=8).shape[-2:] == (16, 16)
    torch.testing.assert_close(tuples.cut(clips[:2, ..., :16, :16], KEYS[:2], "gap", 0.0, 8), clips[:2, ..., :16, :16])


def test_each_item_shows_one_channel_in_all_three():
    clips = torch.rand(400, 2, 3, 2, 4, 4)
    shown = tuples.one_channel(clips, KEYS, "channel")
    assert torch.equal(shown[:, :, 0], shown[:, :, 1]) and torch.equal(shown[:, :, 0], shown[:, :, 2])
    which = (shown[:, :, :1] == clips).flatten(3).all(dim=3)  # B n C
    assert (which.sum(dim=2) == 1).all()
    assert which.float().mean(dim=0).sub(1 / 3).abs().max() < 0.1


def test_a_pairwise_head_sees_every_pair():
    torch.manual_seed(0)
    head = tuples.PairwiseHead(5, 4, 7, hidden=6, dropout=0.0)
    items = torch.randn(3, 4, 5)
    pairs = [torch.relu(head.pair(torch.cat([items[:, i], items[:, j]], 1))) for i in range(4) for j in range(i + 1, 4)]
    torch.testing.assert_close(head(items), head.classes(torch.cat(pairs, 1)))
