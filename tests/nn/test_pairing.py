"""Losses between modalities against loops over clips, and with modalities missing."""

import math

import pytest
import torch
import torch.nn.functional as F

from processes import run_processes
from tubelet import dist
from tubelet.nn.pairing import mean_present, mil_nce, recall, symmetric


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return F.normalize(torch.randn(*shape), dim=-1)


def slow_symmetric(one, other, present, names, temperature) -> float:
    rows = [row for row in range(len(one)) if present[row]]
    losses = []
    for a, b in ((one, other), (other, one)):
        for i in rows:
            terms = {j: math.exp(float(a[i] @ b[j]) / temperature) for j in rows}
            right = sum(term for j, term in terms.items() if names[j] == names[i])
            losses.append(-math.log(right / sum(terms.values())))
    return sum(losses) / len(losses)


def slow_mil_nce(video, texts, said, names, temperature) -> float:
    rows = [row for row in range(len(video)) if said[row].any()]
    losses = []
    for i in rows:
        mine = [texts[i, p] for p in range(texts.shape[1]) if said[i, p]]
        right = sum(math.exp(float(video[i] @ text) / temperature) for text in mine)
        wrong = 0.0
        for j in rows:
            if names[j] != names[i]:
                theirs = [texts[j, p] for p in range(texts.shape[1]) if said[j, p]]
                wrong += sum(math.exp(float(video[i] @ text) / temperature) for text in theirs)
                wrong += sum(math.exp(float(video[j] @ text) / temperature) for text in mine)
        losses.append(-math.log(right / (right + wrong)))
    return sum(losses) / len(losses)


def test_symmetric_is_its_slow_twin():
    one, other = vectors(7, 5), vectors(7, 5, seed=1)
    present = torch.tensor([True, True, False, True, True, True, False])
    names = torch.tensor([1, 2, 1, 3, 1, 4, 5])
    fast = symmetric(one, other, present, names, 0.3)
    assert fast.item() == pytest.approx(slow_symmetric(one, other, present, names, 0.3), abs=1e-6)


def test_symmetric_of_distinct_names_is_the_mean_of_two_cross_entropies():
    """As CLIP's figure 3 has it."""
    one, other, rows = vectors(6, 5), vectors(6, 5, seed=1), torch.arange(6)
    scores = one @ other.T / 0.07
    expected = (F.cross_entropy(scores, rows) + F.cross_entropy(scores.T, rows)) / 2
    loss = symmetric(one, other, torch.ones(6, dtype=torch.bool), rows, 0.07)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_mil_nce_is_its_slow_twin():
    video, texts = vectors(6, 4), vectors(6, 3, 4, seed=1)
    said = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]]).bool()
    for names in (torch.arange(6), torch.tensor([0, 1, 2, 0, 4, 0])):
        expected = slow_mil_nce(video, texts, said, names, 0.4)
        assert mil_nce(video, texts, said, names, 0.4).item() == pytest.approx(expected, abs=1e-6)


def test_repeats_of_a_clip_are_no_negatives():
    """Two of each video with one caption: told from each other, no loss could be less than log 2."""
    video = torch.eye(4).repeat(2, 1)
    said, names = torch.ones(8, 1, dtype=torch.bool), torch.arange(4).repeat(2)
    assert mil_nce(video, 20 * video[:, None], said, names).item() < 0.01


def test_one_candidate_that_fits_is_enough():
    video = torch.eye(4)
    texts = torch.stack([10 * torch.eye(4), -10 * torch.eye(4)], dim=1)  # 4 2 4: the second says the contrary
    said, names = torch.ones(4, 2, dtype=torch.bool), torch.arange(4)
    assert mil_nce(video, texts, said, names).item() < 0.01
    assert mil_nce(video, texts[:, 1:], said[:, 1:], names).item() > 1


@pytest.mark.parametrize("there", [[True, False, True, False], [False] * 4])
def test_what_is_missing_gets_no_gradient_and_gives_no_nan(there):
    present = torch.tensor(there)
    one, other = vectors(4, 5).requires_grad_(), vectors(4, 5, seed=1).requires_grad_()
    texts = vectors(4, 2, 5, seed=2).requires_grad_()
    said = present[:, None] & torch.tensor([True, False])
    names = torch.arange(4)
    loss = symmetric(one, other, present, names, 0.1) + mil_nce(one, texts, said, names, 0.1)
    loss.backward()
    assert loss.isfinite()
    assert (loss > 0) == present.any()
    for tensor in (one, other):
        assert tensor.grad.isfinite().all()
        assert (tensor.grad.abs().sum(dim=1) > 0).tolist() == there
    assert texts.grad.isfinite().all()
    assert (texts.grad.abs().sum(dim=2) > 0).tolist() == said.tolist()


def test_recall_counts_the_nearest_of_those_that_are_there():
    clips = torch.eye(4)
    others = torch.stack([torch.eye(4), 2 * torch.eye(4)[[1, 0, 2, 3]]], dim=1)  # 4 2 4
    names, both = torch.arange(4), torch.ones(4, 2, dtype=torch.bool)
    assert recall(clips, others, both, names) == 0.5
    assert recall(clips, others, both & torch.tensor([True, False]), names) == 1
    assert recall(clips, others, both, torch.tensor([0, 0, 2, 3])) == 1
    assert recall(clips, others, both & torch.tensor([False, False, True, True])[:, None], names) == 1
    assert recall(clips, others, torch.zeros(4, 2, dtype=torch.bool), names) == 0


def test_mean_of_those_present():
    assert mean_present(torch.tensor([1.0, 3.0]), torch.tensor([True, False, True])) == 2
    assert mean_present(torch.zeros(0), torch.zeros(3, dtype=torch.bool)) == 0


def of_both(there: list[bool]) -> tuple[float, list[torch.Tensor]]:
    """The loss of both over all processes, and its gradients with respect to this one's clips, sides and captions."""
    dist.start()
    whole = (vectors(8, 5), vectors(8, 5, seed=1), vectors(8, 2, 5, seed=2))
    mine = [dist.own_part(rows).clone().requires_grad_() for rows in whole]
    present = dist.own_part(torch.tensor(there))
    names = dist.own_part(torch.tensor([0, 1, 2, 0, 4, 1, 6, 0]))
    one, other, texts = mine
    loss = symmetric(one, other, present, names, 0.3)
    loss = loss + mil_nce(one, texts, present[:, None] & torch.tensor([True, False]), names, 0.4)
    loss.backward()
    told = dist.mean(loss.detach()).item()
    gradients = [rows.grad / dist.world_size() for rows in mine]
    dist.stop()
    return told, gradients


@pytest.mark.parametrize("there", [[True] * 3 + [False] * 5, [False, True, True, True, False, False, True, False]])
def test_two_processes_that_have_not_as_many_equal_one(there):
    """The second has nothing at all, or less."""
    loss, gradients = of_both(there)
    (one, first), (two, second) = run_processes(of_both, 2, there)
    assert one == two == pytest.approx(loss, rel=1e-6)
    assert len(gradients) == 3
    for whole, *parts in zip(gradients, first, second, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole)
