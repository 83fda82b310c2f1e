import json
import math

import pytest
import torch
from sklearn import metrics

from tubelet.metrics.classification import judge, paired_spread, wilson
from tubelet.types import TubeletError

CLASSES = [f"class {k}" for k in range(7)]


@pytest.fixture
def predictions():
    """Of seven classes the first never occurs as a label and the last is never predicted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 7, (200,), generator=generator)
    scores = torch.randn(200, 7, generator=generator)
    scores[torch.arange(200), labels] += 1.5
    scores[:, 6] -= 100
    return scores, labels


def test_agrees_with_scikit_learn(predictions):
    scores, labels = predictions
    result = judge(scores, labels, CLASSES)
    guess, occurring = scores.argmax(1), range(1, 7)
    assert result["top1"] == pytest.approx(metrics.accuracy_score(labels, guess))
    top5 = metrics.top_k_accuracy_score(labels, scores, k=5, labels=range(7))
    assert result["top5"] == pytest.approx(top5)
    averaged = {"labels": occurring, "average": "macro", "zero_division": 0}
    assert result["precision"] == pytest.approx(metrics.precision_score(labels, guess, **averaged))
    assert result["recall"] == pytest.approx(metrics.recall_score(labels, guess, **averaged))
    assert result["class_mean"] == pytest.approx(metrics.recall_score(labels, guess, **averaged))
    assert result["confusion"] == metrics.confusion_matrix(labels, guess, labels=range(7)).tolist()
    each = {"labels": range(7), "average": None, "zero_division": 0}
    for name, score in (("precision", metrics.precision_score), ("recall", metrics.recall_score)):
        assert [c[name] for c in result["per_class"]] == pytest.approx(score(labels, guess, **each).tolist())
    assert result["videos"] == 200
    assert result["majority"] == torch.bincount(labels).max().item() / 200
    json.dumps(result, allow_nan=False)


def test_class_mean_is_not_accuracy_when_classes_differ_in_size():
    labels = torch.tensor([0, 0, 0, 1])
    result = judge(torch.tensor([[1.0, 0]] * 4), labels, ["a", "b"])
    assert (result["top1"], result["class_mean"], result["majority"]) == (0.75, 0.5, 0.75)


def test_top5_needs_more_than_five_classes():
    scores, labels = torch.eye(5), torch.arange(5)
    assert judge(scores, labels, CLASSES[:5])["top5"] is None
    assert judge(torch.eye(6), torch.arange(6), CLASSES[:6])["top5"] == 1.0


def test_a_constant_network_is_not_flattered_by_ties():
    labels = torch.arange(7).repeat(10)
    result = judge(torch.zeros(70, 7), labels, CLASSES)
    assert result["top1"] == pytest.approx(1 / 7)
    assert result["top5"] == pytest.approx(5 / 7)


def test_wilson_against_published_values():
    # Newcombe 1998, table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_nothing_to_judge_and_scores_that_are_not_numbers():
    with pytest.raises(TubeletError, match="no video to judge"):
        judge(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ["a", "b"])
    with pytest.raises(TubeletError, match="not finite"):
        judge(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), ["a", "b"])


def test_spread():
    assert paired_spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}
    assert paired_spread([0.5])["std"] is None
