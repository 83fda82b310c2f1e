import math

import pytest
import torch

from tasks import colours
from tubelet.tasks import knn
from tubelet.tasks.knn import NearestNeighbours, vote, whitened
from tubelet.tasks.protocol import Protocol
from tubelet.types import TubeletError


def slow_vote(query, bank, labels, classes, k, temperature):
    cosines = [
        sum(a * b for a, b in zip(query, row, strict=True)) / (math.hypot(*query) * math.hypot(*row)) for row in bank
    ]
    nearest = sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]
    weights = [math.exp(cosines[i] / temperature) for i in nearest]
    shares = [0.0] * classes
    for i, weight in zip(nearest, weights, strict=True):
        shares[labels[i]] += weight / sum(weights)
    return shares


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_votes_like_its_slow_twin(k, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(40, 6, generator=generator), torch.randn(9, 6, generator=generator)
    labels = torch.randint(0, 3, (40,), generator=generator)
    expected = [slow_vote(q, bank.tolist(), labels.tolist(), 3, k, 0.1) for q in queries.tolist()]
    torch.testing.assert_close(vote(queries, bank, labels, 3, k, 0.1), torch.tensor(expected))


def test_blocks_change_nothing(monkeypatch):
    bank, queries, labels = torch.randn(100, 4), torch.randn(15, 4), torch.arange(100) % 2
    whole = vote(queries, bank, labels, 2, 20, 0.07)
    monkeypatch.setattr(knn, "BLOCK", 250)  # two queries at a time
    torch.testing.assert_close(vote(queries, bank, labels, 2, 20, 0.07), whole)


def test_whitened_features_have_no_covariance():
    bank = torch.randn(200, 8) @ torch.randn(8, 8) + 5
    white, queries = whitened(bank, bank[:3])
    torch.testing.assert_close(torch.cov(white.T), torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(queries, white[:3])


@pytest.mark.parametrize("whiten", [False, True])
def test_tells_colours_apart(protocol, tmp_path, whiten):
    result = NearestNeighbours(k=5, whiten=whiten)(colours.backbone(), protocol, tmp_path)
    assert result["top1"] > 0.8 if not whiten else result["top1"] > 1 / 3
    assert (result["videos"], result["unreadable"], result["train_videos"]) == (12, 0, 24)
    assert (tmp_path / "predictions.csv").exists()


def test_unreadable_videos_neither_vote_nor_are_judged(broken_videos, tmp_path):
    protocol = Protocol.from_manifest(broken_videos, colours.CLIP)
    result = NearestNeighbours(k=30)(colours.backbone(), protocol, tmp_path)
    counts = {name: result[name] for name in ("videos", "unreadable", "train_videos", "unreadable_train")}
    assert counts == {"videos": 11, "unreadable": 1, "train_videos": 23, "unreadable_train": 1}
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 12


def test_options_that_make_no_sense():
    with pytest.raises(TubeletError, match="k >= 1"):
        NearestNeighbours(k=0)
