import math

import pytest
import torch

from tubelet.nn.positions import Positions, flat, resample, separable, sine_cosine
from tubelet.types import TubeletError


def test_against_the_formula_one_entry_at_a_time():
    table = sine_cosine(torch.arange(30), 16)
    for n in range(30):
        for j in range(16):
            angle = n / 10000 ** (2 * (j // 2) / 16)
            assert table[n, j] == pytest.approx(math.sin(angle) if j % 2 == 0 else math.cos(angle), abs=1e-6)


def test_the_published_table_runs_over_the_flattened_index():
    """Neighbours by column are alike (.97), by row less (.66), by time hardly (.36): a trait of the published table."""
    table = flat((8, 14, 14), 768)
    assert table.shape == (1568, 768)
    similarity = torch.nn.functional.cosine_similarity
    base = table[3 * 196 + 5 * 14 + 5][None]
    assert similarity(base, table[3 * 196 + 5 * 14 + 6][None]).item() == pytest.approx(0.97, abs=0.005)
    assert similarity(base, table[3 * 196 + 6 * 14 + 5][None]).item() == pytest.approx(0.66, abs=0.01)
    assert similarity(base, table[4 * 196 + 5 * 14 + 5][None]).item() == pytest.approx(0.36, abs=0.01)


def test_separable_positions_differ_everywhere_and_depend_on_one_axis_each():
    table = separable((4, 5, 6), 64).view(4, 5, 6, 64)
    assert len({tuple(row.tolist()) for row in table.view(-1, 64)}) == 120
    assert torch.equal(table[:, 0, 0, 16:], table[:1, 0, 0, 16:].expand(4, -1))
    assert torch.equal(table[0, 0, :, :40], table[0, 0, :1, :40].expand(6, -1))


def test_a_width_that_does_not_split_is_refused():
    with pytest.raises(TubeletError, match="multiple of 16"):
        separable((2, 2, 2), 24)


GRIDS = [
    (frames // 2, size // 16, size // 16) for frames in (8, 16, 32, 64) for size in (112, 160, 224, 320)
]  # of clips of 8 to 64 frames and 112 to 320 pixels


@pytest.mark.parametrize("kind", ["flat", "separable", "learned"])
@pytest.mark.parametrize("grid", GRIDS)
def test_positions_for_any_clip_keep_the_place_in_the_clip(kind, grid):
    """A token is nearest to that token of the published grid that lies at the same share of the clip."""
    torch.manual_seed(0)
    made_for = (8, 14, 14)
    place = Positions(kind, 96, made_for)
    if kind == "learned":  # smooth, as learnt tables become
        with torch.no_grad():
            place.spatial.copy_(separable((1, 14, 14), 96))
            place.temporal.copy_(separable((8, 1, 1), 96))
    table = place(grid, torch.device("cpu")).detach()
    base = place(made_for, torch.device("cpu")).detach()
    assert table.shape == (grid[0] * grid[1] * grid[2], 96) and table.isfinite().all()
    if grid == made_for:
        assert torch.equal(table, base)
    for share in ((0.5, 0.5), (0.1, 0.9)):
        t, y, x = (int(n * s) for n, s in zip(grid, (share[0], share[1], share[0]), strict=True))
        own = table[(t * grid[1] + y) * grid[2] + x]
        nearest = int((base - own).norm(dim=1).argmin())
        found = nearest // 196, nearest // 14 % 14, nearest % 14
        wanted = [(i + 0.5) / n * m - 0.5 for i, n, m in zip((t, y, x), grid, made_for, strict=True)]
        # the flat table changes more from row to row than from column to column, so its columns are less sharp
        slack = 2.6 if kind == "flat" else 1.0
        assert all(abs(a - b) <= slack for a, b in zip(found, wanted, strict=True)), (found, wanted)


def test_trap_8_a_table_made_anew_for_a_larger_clip_carries_the_positions_of_other_places():
    """What the published code does at 320 pixels or 32 frames; the reason for `made_for`."""
    similarity = torch.nn.functional.cosine_similarity
    for grid in ((8, 20, 20), (16, 14, 14)):
        anew, interpolated = flat(grid, 768), flat(grid, 768, (8, 14, 14))
        assert similarity(anew, interpolated).mean() < 0.4
    assert torch.equal(flat((8, 14, 14), 768, (8, 14, 14)), flat((8, 14, 14), 768))


def test_separable_positions_between_places_have_their_own_sines():
    table = separable((2, 8, 4), 64, (2, 4, 4)).view(2, 8, 4, 64)
    rows = (torch.arange(8) + 0.5) / 2 - 0.5  # -.25, .25, .75 ... in rows of the base
    torch.testing.assert_close(table[0, :, 0, 16:40], sine_cosine(rows, 24))


def test_interpolating_a_constant_changes_nothing():
    table = torch.full((3, 4, 5, 6), 0.7)
    torch.testing.assert_close(resample(table, (7, 9, 2)), torch.full((7, 9, 2, 6), 0.7))


def test_a_table_that_rises_in_time_still_does_when_there_are_twice_the_frames():
    table = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 2, 3)
    wanted = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0])
    torch.testing.assert_close(resample(table, (8, 2, 2))[:, 0, 0, 0], wanted)


def test_learnt_positions_need_the_clip_that_they_are_for():
    with pytest.raises(TubeletError, match="made_for"):
        Positions("learned", 32)
