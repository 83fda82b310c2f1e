import math

import pytest
import torch

from tubelet.nn.positions import flat, separable, sine_cosine
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
