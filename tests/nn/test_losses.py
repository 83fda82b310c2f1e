import math

import pytest
import torch
import torch.nn.functional as F

from tubelet.nn.losses import contrast


def test_it_is_the_share_of_the_positives():
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(n, 8), dim=1) for n in (5, 9))
    positive = torch.rand(5, 9) < 0.3
    positive[:, 0] = True
    ignored = ~positive & (torch.rand(5, 9) < 0.3)
    for b, loss in enumerate(contrast(queries, keys, positive, 0.1, ignored).tolist()):
        terms = [math.exp(float(queries[b] @ keys[k]) / 0.1) for k in range(9)]
        above = sum(term for k, term in enumerate(terms) if positive[b, k])
        below = sum(term for k, term in enumerate(terms) if not ignored[b, k])
        assert loss == pytest.approx(-math.log(above / below), abs=1e-6)


def test_with_one_positive_it_is_cross_entropy():
    torch.manual_seed(0)
    queries, keys = torch.randn(6, 8), torch.randn(6, 8)
    loss = contrast(queries, keys, torch.eye(6, dtype=torch.bool), 0.5)
    assert torch.allclose(loss, F.cross_entropy(queries @ keys.T / 0.5, torch.arange(6), reduction="none"))


def test_it_is_exact_in_half_precision_and_where_all_is_positive():
    queries = 100 * torch.eye(4, dtype=torch.bfloat16)
    assert contrast(queries, queries, torch.ones(4, 4, dtype=torch.bool), 0.01).tolist() == [0.0] * 4
    assert contrast(queries, queries, torch.eye(4, dtype=torch.bool), 0.01).isfinite().all()
