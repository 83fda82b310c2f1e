import itertools

import pytest
import torch

from tubelet.metrics.ranking import mean_average_precision, recall_at


def slow_recall(scores, relevant, k):
    """Over all orders of what is equal."""
    hits = []
    for row, wanted in zip(scores, relevant, strict=True):
        shares = []
        for order in itertools.permutations(range(len(row))):
            ordered = sorted(order, key=lambda i: -row[i])  # stable: equals stay in the drawn order
            shares.append(any(wanted[i] for i in ordered[:k]))
        hits.append(sum(shares) / len(shares))
    return sum(hits) / len(hits)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 9])
def test_recall_with_equal_scores_is_the_mean_over_their_orders(k):
    torch.manual_seed(0)
    scores, relevant = torch.randint(0, 3, (12, 6)).float(), torch.rand(12, 6) < 0.3
    found = recall_at(scores, relevant, [k])[k]
    assert found == pytest.approx(slow_recall(scores.tolist(), relevant.tolist(), k), abs=1e-9)


def test_an_encoder_that_has_collapsed_is_at_chance():
    labels = torch.arange(10).repeat(5)
    relevant = labels[:, None] == labels[None]
    found = recall_at(torch.zeros(50, 50), relevant, [1, 5])
    assert found[1] == pytest.approx(0.1)
    assert found[5] == pytest.approx(1 - 45 * 44 * 43 * 42 * 41 / (50 * 49 * 48 * 47 * 46))


def test_average_precision_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    scores, relevant = torch.randint(0, 20, (8, 30)).float(), torch.rand(8, 30) < 0.2
    relevant[0] = False  # says nothing
    theirs = [metrics.average_precision_score(w, s) for s, w in zip(scores[1:], relevant[1:], strict=True)]
    assert mean_average_precision(scores, relevant) == pytest.approx(sum(theirs) / len(theirs))
    assert mean_average_precision(scores, torch.zeros_like(relevant)) == 0
