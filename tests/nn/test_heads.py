import copy

import torch
from torch import nn

from processes import run_processes
from tubelet import dist
from tubelet.nn.heads import BatchNorm, Projector


def test_the_norm_is_pytorchs_and_keeps_nothing():
    torch.manual_seed(0)
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5, track_running_stats=False)
    values = 3 * torch.randn(7, 5) + 2
    mine, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    torch.testing.assert_close(ours(mine), theirs(other))
    torch.testing.assert_close(ours.eval()(mine), theirs(other))
    weights = torch.randn(7, 5)
    (ours(mine) * weights).sum().backward()
    (theirs(other) * weights).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)
    assert set(ours.state_dict()) == {"weight", "bias"}
    assert ours(values.bfloat16()).dtype == torch.bfloat16


def test_maps_before_a_norm_have_no_bias():
    head = Projector(6, 8, 4, layers=3, last_norm=True)
    assert [type(part).__name__ for part in head] == [
        "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm",
    ]  # fmt: skip
    assert all(part.bias is None for part in head if isinstance(part, nn.Linear))
    assert head[-1].weight is None
    assert head(torch.randn(5, 6)).shape == (5, 4)
    plain = Projector(6, 8, 4, norm=False)
    assert [type(part).__name__ for part in plain] == ["Linear", "ReLU", "Linear"]
    assert all(part.bias is not None for part in plain if isinstance(part, nn.Linear))
    assert Projector(6, 8, 4, last_bias=False)[-1].bias is None


def over_two(values: torch.Tensor, head: nn.Module, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one of two processes: what comes out of the head, and its gradient by what went in."""
    dist.start()
    mine = dist.own_part(values).requires_grad_()
    out = head(mine)
    joined = dist.gather_rows(out)
    # the mean over processes of the loss of each one's rows, compared with all rows
    (dist.own_part(weights) * (out @ joined.T)).sum().backward()
    dist.stop()
    return out.detach(), mine.grad


def test_two_processes_share_their_statistics_and_rows():
    torch.manual_seed(0)
    values, weights, head = torch.randn(6, 5), torch.randn(6, 6), Projector(5, 4, 3, last_norm=True)
    whole = values.clone().requires_grad_()
    out = copy.deepcopy(head)(whole)
    (weights * (out @ out.T)).sum().backward()
    parts = run_processes(over_two, 2, values, head, weights)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), out)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), whole.grad, atol=1e-5, rtol=1e-4)


def apart(values: torch.Tensor) -> torch.Tensor:
    dist.start()
    with dist.apart():
        found = BatchNorm(5)(values[: 2 + dist.rank()])  # parts of different sizes
        assert dist.gather_rows(found) is found and dist.own_part(found) is found
    assert dist.peers() == 2
    dist.stop()
    return found.detach()


def test_processes_can_compute_by_themselves():
    values = torch.randn(4, 5)
    for rank, found in enumerate(run_processes(apart, 2, values)):
        torch.testing.assert_close(found, BatchNorm(5)(values[: 2 + rank]).detach())
