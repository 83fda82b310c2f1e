import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.nn import masks
from tubelet.types import TubeletError

KEYS = torch.arange(7, dtype=torch.int64) * 12345


@pytest.mark.parametrize("kind", masks.KINDS)
@given(frames=st.integers(2, 5), rows=st.integers(2, 6), columns=st.integers(2, 6), ratio=st.floats(0.5, 0.75))
def test_every_clip_has_exactly_the_same_number_of_hidden_cubes(kind, frames, rows, columns, ratio):
    hidden = masks.KINDS[kind](KEYS, (frames, rows, columns), ratio)
    units, size = {
        "tube": (rows * columns, frames),
        "random": (frames * rows * columns, 1),
        "frame": (frames, rows * columns),
    }[kind]
    assert hidden.dtype == torch.bool
    assert hidden.shape == (7, frames * rows * columns)
    assert hidden.sum(dim=1).tolist() == [int(ratio * units) * size] * 7


def test_published_counts():
    """176 of 196 places at .9, hence 160 visible tokens of 1568; 26 of 256 visible for patches of 14."""
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
