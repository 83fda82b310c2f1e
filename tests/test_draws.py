import pytest
import torch

from tubelet import draws

KEYS = torch.tensor([draws.key("a", index) for index in range(4)])


def test_normal_draws_are_normal_and_belong_to_their_key():
    drawn = draws.normal(KEYS, 100_000, "x").double()
    assert drawn.isfinite().all()
    assert drawn.mean() == pytest.approx(0, abs=0.01) and drawn.std() == pytest.approx(1, abs=0.01)
    assert drawn.pow(4).mean() == pytest.approx(3, abs=0.1)
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.02
    assert torch.equal(draws.normal(KEYS[2:3], 50, "y"), draws.normal(KEYS, 50, "y")[2:3])


def test_all_choices_are_equally_likely_and_there_is_none_beyond(monkeypatch):
    counts = draws.choice(torch.arange(6000), 6, "which").bincount()
    assert len(counts) == 6 and (counts - 1000).abs().max() < 150
    each = draws.choice(KEYS, torch.arange(1, 5), "which")
    assert all(each[row] == draws.choice(KEYS[row : row + 1], row + 1, "which")[0] for row in range(4))
    largest = 1 - 2**-24
    monkeypatch.setattr(draws, "uniform", lambda keys, count, stream: torch.full((len(keys), count), largest))
    counts = torch.arange(1, 5000)
    assert torch.equal(draws.choice(counts, counts), counts - 1)
