import math

import pytest
import torch
import torch.nn.functional as F

from peers import lightly_losses
from processes import run_processes
from tubelet import dist
from tubelet.nn.losses import contrast, nt_xent


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


def test_it_is_exact_under_autocast():
    """Fails where cosines are rounded to bfloat16, of which a temperature of .07 makes errors of .05."""
    one, other = two_views(6)
    exact = nt_xent(one, other, torch.arange(6), 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(one, other, torch.arange(6), 0.07), exact)


def two_views(count: int, dim: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return F.normalize(torch.randn(count, dim), dim=1), F.normalize(torch.randn(count, dim), dim=1)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 1, 1, 2]])
@pytest.mark.parametrize("further", [0, 3])
def test_nt_xent_against_its_slow_twin(ids, further):
    one, other = two_views(4)
    negatives = F.normalize(torch.randn(further, 8), dim=1) if further else None
    rows = [(ids[clip], clip, view[clip]) for clip in range(4) for view in (one, other)]
    found = nt_xent(one, other, torch.tensor(ids), 0.2, negatives).tolist()
    for loss, (i, (video, clip, row)) in zip(found, enumerate(rows), strict=True):
        partner = math.exp(float(row @ rows[i ^ 1][2]) / 0.2)
        others = [math.exp(float(row @ key) / 0.2) for their, _, key in rows if their != video]
        others += [] if negatives is None else [math.exp(float(row @ key) / 0.2) for key in negatives]
        assert loss == pytest.approx(-math.log(partner / (partner + sum(others))), abs=1e-6), clip


def test_nt_xent_is_that_of_lightly():
    losses = lightly_losses()
    one, other = two_views(6)
    theirs = losses.NTXentLoss(temperature=0.2)(one, other)
    torch.testing.assert_close(nt_xent(one, other, torch.arange(6), 0.2).mean(), theirs, atol=1e-6, rtol=0)


def test_nt_xent_is_that_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    one, other = two_views(6)
    theirs = losses.NTXentLoss(temperature=0.2)(torch.cat([one, other]), torch.arange(6).repeat(2))
    torch.testing.assert_close(nt_xent(one, other, torch.arange(6), 0.2).mean(), theirs, atol=1e-6, rtol=0)


def nt_xent_of_half(one: torch.Tensor, other: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    dist.start()
    ids, parts = dist.own_part(torch.arange(4)), [dist.own_part(rows) for rows in (one, other, negatives)]
    found = nt_xent(parts[0], parts[1], ids, 0.2, parts[2])
    dist.stop()
    return found


def test_nt_xent_is_over_the_views_of_all_processes():
    one, other = two_views(4)
    negatives = F.normalize(torch.randn(6, 8), dim=1)
    halves = run_processes(nt_xent_of_half, 2, one, other, negatives)
    torch.testing.assert_close(torch.cat(halves), nt_xent(one, other, torch.arange(4), 0.2, negatives))
