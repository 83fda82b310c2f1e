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
