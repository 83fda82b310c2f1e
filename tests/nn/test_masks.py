import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.nn import masks
from tubelet.types import TubeletError

KEYS = torch.arange(7, dtype=torch.int64) * 12345


@pytest.mark.parametrize("kind", get_args(masks.Kind))
@given(frames=st.integers(2, 5), rows=st.integers(2, 6), columns=st.integers(2, 6), ratio=st.floats(0.5, 0.75))
def test_every_clip_has_exactly_the_same_number_of_hidden_cubes(kind, frames, rows, columns, ratio):
    video = torch.rand(7, 3, 2 * frames, 4 * rows, 4 * columns, generator=torch.Generator().manual_seed(0))
    hidden = masks.draw(kind, KEYS, video, (frames, rows, columns), ratio)
    units, size = {
        "random": (frames * rows * columns, 1),
        "block": (frames * rows * columns, 1),
        "frame": (frames, rows * columns),
    }.get(kind, (rows * columns, frames))
    assert hidden.dtype == torch.bool
    assert hidden.shape == (7, frames * rows * columns)
    count = units - int(units * (1 - ratio)) if kind == "random" else int(ratio * units)
    assert hidden.sum(dim=1).tolist() == [count * size] * 7


def test_published_counts():
    """176 of 196 places at .9, hence 160 visible tokens of 1568; 26 of 256 visible for patches of 14; mae_st: 156."""
    assert masks.random(KEYS, (8, 14, 14), 0.9).logical_not().sum(dim=1).tolist() == [156] * 7
    assert masks.tube(KEYS, (8, 14, 14), 0.9).logical_not().sum(dim=1).tolist() == [160] * 7
    assert masks.tube(KEYS, (8, 14, 14), 0.75).logical_not().sum(dim=1).tolist() == [392] * 7
    assert masks.tube(KEYS, (8, 16, 16), 0.9).logical_not().sum(dim=1).tolist() == [208] * 7


def test_tubes_hide_the_same_places_in_every_frame_and_differ_between_clips():
    hidden = masks.tube(KEYS, (4, 6, 6), 0.75).view(7, 4, 36)
    assert (hidden == hidden[:, :1]).all()
    assert len({tuple(row.tolist()) for row in hidden[:, 0]}) == 7


def test_frames_are_hidden_whole():
    hidden = masks.frame(KEYS, (8, 3, 3), 0.75).view(7, 8, 9)
    assert (hidden.all(dim=2) | ~hidden.any(dim=2)).all()


def test_a_mask_depends_on_its_own_key_alone():
    alone = masks.random(KEYS[3:4], (4, 6, 6), 0.9)
    assert torch.equal(alone[0], masks.random(KEYS, (4, 6, 6), 0.9)[3])


def test_every_place_is_hidden_equally_often():
    share = masks.tube(torch.arange(4000), (1, 5, 5), 0.8).float().mean(dim=0)
    assert (share - 0.8).abs().max() < 0.03


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0])
def test_hiding_nothing_or_everything_is_refused(ratio):
    with pytest.raises(TubeletError, match="mask ratio"):
        masks.tube(KEYS, (2, 4, 4), ratio)


def test_visible_and_masked_keep_ascending_order():
    tokens = torch.arange(24).view(1, 12, 2)
    hidden = torch.zeros(3, 12, dtype=torch.bool)
    for row, places in zip(hidden, ([1, 5, 7], [0, 1, 2], [3, 10, 11]), strict=True):
        row[places] = True
    seen, rest = masks.visible(tokens, hidden), masks.masked(tokens, hidden)
    for i in range(3):
        assert seen[i].tolist() == [t for t, h in zip(tokens[0].tolist(), hidden[i].tolist(), strict=True) if not h]
        assert rest[i].tolist() == [t for t, h in zip(tokens[0].tolist(), hidden[i].tolist(), strict=True) if h]


def test_the_running_cell_is_the_published_one():
    """The four maps of VideoMAE V2's decoder at .5, in the order in which they follow each other (phase 0 and on)."""
    maps = [[[1, 0], [0, 1]], [[0, 0], [1, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]]
    hidden = masks.running(torch.arange(40), (8, 14, 14), 0.5).view(40, 8, 7, 2, 7, 2)
    starts = set()
    for clip in hidden:
        cells = clip.permute(0, 1, 3, 2, 4).reshape(8, 49, 2, 2).long()
        assert (cells == cells[:, :1]).all()  # every cell of a frame alike
        start = maps.index(cells[0, 0].tolist())
        assert [cell.tolist() for cell in cells[:, 0]] == [maps[(start + t) % 4] for t in range(8)]
        starts.add(start)
    assert starts == {0, 1, 2, 3}


def test_dual_masking_has_the_published_counts():
    """Of 1,568 cubes 784 are decoded, and 704 of those are hidden from the encoder (videomae v2 at .9 and .5)."""
    keys = torch.arange(20) * 77
    decoded = ~masks.running(keys, (8, 14, 14), 0.5)
    assert decoded.sum(dim=1).tolist() == [784] * 20
    assert (decoded & masks.tube(keys, (8, 14, 14), 0.9)).sum(dim=1).tolist() == [704] * 20


@pytest.mark.parametrize("ratio", [0.25, 0.3, 0.5, 0.6, 0.75, 0.9])
def test_a_running_cell_hides_as_many_in_every_frame(ratio):
    hidden = masks.running(KEYS, (6, 7, 5), ratio).view(7, 6, 35)
    assert (hidden.sum(dim=2) == int(ratio * 35)).all()


def slow_boxes(draw, grid):
    """The boxes one after the other: the turn of each cube, or None."""
    turn = {}
    for i, box in enumerate(draw.tolist()):
        ranges = []
        for axis, (least, most) in enumerate(((0.5, 1.0), (0.25, 0.5), (0.25, 0.5))):
            side = math.ceil(torch.tensor(grid[axis] * (least + (most - least) * box[axis])).item())
            first = math.floor((grid[axis] - side + 1) * box[3 + axis])
            ranges.append(range(first, first + side))
        for place in itertools.product(*ranges):
            turn.setdefault(place, i)
    return turn


def test_blocks_against_their_slow_twin():
    grid = (4, 8, 8)
    keys = torch.arange(5) * 31 + 7
    hidden = masks.block(keys, grid, 0.75)
    for key, mask in zip(keys, hidden, strict=True):
        draw = masks.draws.uniform(key[None], 6 * masks.BOXES, "boxes").view(masks.BOXES, 6)
        turn = slow_boxes(draw, grid)
        turns = torch.tensor([turn.get(place, masks.BOXES) for place in itertools.product(*map(range, grid))])
        last = turns[mask].max()
        assert mask[turns < last].all() and not mask[turns > last].any()  # only the last box is cut


def test_motion_is_hidden_and_what_is_still_is_seen():
    video = torch.full((200, 3, 8, 32, 32), 0.5)
    video[:, :, :, 8:16, 8:24] = torch.rand(200, 3, 8, 8, 16)  # two of sixteen places move
    hidden = masks.draw("motion", torch.arange(200), video, (4, 4, 4), 0.5).view(200, 4, 4, 4)
    assert (hidden == hidden[:, :1]).all()
    share = hidden[:, 0].float().mean(dim=0)
    assert share[1, 1:3].min() > 0.95
    assert share.flatten()[[0, 3, 12, 15]].max() < 0.6


def test_a_still_clip_is_hidden_evenly():
    share = masks.draw("motion", torch.arange(3000), torch.zeros(3000, 3, 2, 5, 5), (1, 5, 5), 0.6).float().mean(dim=0)
    assert (share - 0.6).abs().max() < 0.04


def test_the_decoders_running_cell_is_not_the_encoders():
    """With one and the same draw, what is hidden would be what is left out, and there would be nothing to learn."""
    keys = torch.arange(400) * 13
    hidden, left_out = masks.running(keys, (4, 4, 4), 0.5), masks.running(keys, (4, 4, 4), 0.5, "decoder")
    same = (hidden == left_out).all(dim=1).float().mean()
    assert 0.15 < same < 0.35  # one phase of four


def test_one_frame_has_no_motion():
    with pytest.raises(TubeletError, match="two frames"):
        masks.draw("motion", KEYS, torch.rand(7, 3, 1, 8, 8), (1, 4, 4), 0.5)
