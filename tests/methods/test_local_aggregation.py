import math

import pytest
import torch
import torch.nn.functional as F

from directions import Videos, agreement
from oracles import learn, tiny_backbone
from tubelet.learner import Now
from tubelet.methods.local_aggregation import LocalAggregation
from tubelet.nn.cluster import kmeans
from tubelet.types import TubeletError

SMALL = {
    "local_aggregation": {
        "learner": {"dim": 8, "clusters": [2, 3], "neighbours": 6, "instance_epochs": 1, "temperature": 0.5}
    }
}
"""Six steps of four clips of twelve videos are two epochs: runs are interrupted where clusters are made first."""


def learner(videos: int, **options) -> LocalAggregation:
    torch.manual_seed(0)
    settings = {"dim": 16, "clusters": (3, 4), "neighbours": 8, "instance_epochs": 1, "strength": "none", **options}
    return LocalAggregation(tiny_backbone(background="remove"), videos, **settings)


def begin(model: LocalAggregation, epoch: int) -> None:
    model.before_step(Now(0, epoch, True, 0.0, lambda: iter(())))


def slow_loss(embedding: torch.Tensor, ids: list[int], model: LocalAggregation) -> float:
    """Equations 2 to 4: P is a softmax over the bank, summed over the background and over its close part."""
    total = 0.0
    for vector, video in zip(embedding, ids, strict=True):
        scores = (model.bank.values @ vector).tolist()
        terms = [math.exp(score / model.temperature) for score in scores]
        chances = [term / sum(terms) for term in terms]
        nearest = sorted(range(len(scores)), key=lambda n: -scores[n])[: model.neighbours]
        background = {*nearest, video}
        close = {n for n in background for clusters in model.clusters.tolist() if clusters[n] == clusters[video]}
        total -= math.log(sum(chances[n] for n in close) / sum(chances[n] for n in background))
    return total / len(ids)


def test_the_loss_is_the_papers():
    model, videos = learner(24), Videos(24)
    begin(model, epoch=1)
    ids = torch.tensor([3, 17, 8, 11])
    batch = videos.batch(ids, 0)
    embedding = F.normalize(model.enter(model.backbone(batch["video"][0]).tokens.mean(dim=1)), dim=1)
    found = model(batch, "main")
    assert found.loss.item() == pytest.approx(slow_loss(embedding, ids.tolist(), model), rel=1e-5)
    assert 1 <= found.metrics["close"] <= 8


def test_it_begins_with_instance_recognition():
    model, videos = learner(24), Videos(24)
    begin(model, epoch=0)
    ids = torch.tensor([3, 17, 8, 11])
    batch = videos.batch(ids, 0)
    embedding = F.normalize(model.enter(model.backbone(batch["video"][0]).tokens.mean(dim=1)), dim=1)
    expected = F.cross_entropy(embedding @ model.bank.values.T / 0.07, ids)
    torch.testing.assert_close(model(batch, "main").loss, expected)


def test_clusters_are_made_anew_at_each_epoch_and_kept_within_it():
    model, videos = learner(24), Videos(24)
    assert torch.equal(model.clusters, torch.arange(24).repeat(2, 1))
    learn(model, videos.batches(8), steps=4, epoch=3)
    first = model.clusters.clone()
    assert [len(clusters.unique()) for clusters in first] == [3, 4]
    model.before_step(Now(5, 1, False, 0.0, lambda: iter(())))
    assert torch.equal(model.clusters, first)
    model.bank.values.copy_(F.normalize(torch.randn(24, 16), dim=1))
    begin(model, epoch=2)
    assert not torch.equal(model.clusters, first)


def test_the_bank_moves_after_the_step_alone():
    model, videos = learner(24), Videos(24)
    begin(model, epoch=0)
    before = model.bank.values.clone()
    ids = torch.tensor([3, 17])
    batch = videos.batch(ids, 0)
    model(batch, "main")
    assert torch.equal(model.bank.values, before)
    embedding = F.normalize(model.enter(model.backbone(batch["video"][0]).tokens.mean(dim=1)), dim=1).detach()
    model.after_step(Now(1, 0, False, 0.0, lambda: iter(())))
    expected = before.clone()
    expected[ids] = F.normalize(0.5 * before[ids] + 0.5 * embedding, dim=1)
    torch.testing.assert_close(model.bank.values, expected)


def clustered(moving: bool) -> float:
    """How well the bank divides by direction; training knows more clusters than there are directions."""
    videos = Videos(128, moving)
    model = learner(128, clusters=(6, 8, 10), neighbours=64, instance_epochs=24, temperature=0.2)
    learn(model, videos.batches(32), steps=160, epoch=4)
    return agreement(videos.direction, kmeans(model.bank.values, 4, seed=0)[1])


def test_its_clusters_are_the_directions_where_something_moves():
    assert clustered(moving=True) > 0.9
    assert clustered(moving=False) < 0.1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"clusters": (3, 25)}, r"learner\.clusters must each be in 2\.\.24, the number of videos, not 3, 25"),
        ({"clusters": ()}, r"learner\.clusters must each .*, not none"),
        ({"neighbours": 1}, r"learner\.neighbours must be 2 or more"),
        ({"temperature": 0.0}, r"learner\.temperature must be more than 0"),
        ({"momentum": 1.0}, r"learner\.momentum must be in 0\.\.1 \(1 excluded\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(option, said):
    with pytest.raises(TubeletError, match=said):
        learner(24, **option)
