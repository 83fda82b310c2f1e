import math

import pytest
import torch

from directions import Videos, agreement
from oracles import learn, tiny_backbone
from tubelet.learner import Now
from tubelet.methods.deepcluster import DeepCluster
from tubelet.types import TubeletError

SMALL = {"deepcluster": {"learner": {"clusters": 3, "components": 4}}}
"""Six steps of four clips of twelve videos are two epochs: runs are interrupted where assignments are made anew."""


def learner(videos: int, **options) -> DeepCluster:
    return DeepCluster(tiny_backbone(background="remove"), videos, **{"clusters": 4, "strength": "none", **options})


def begin(model: DeepCluster, videos: Videos, epoch: int = 0, **changes) -> None:
    batch = {**videos.all(), **changes}
    model.before_step(Now(0, epoch, True, 0.0, lambda: iter([batch])))


def test_each_clip_counts_by_the_size_of_its_cluster():
    """As drawing evenly from the clusters would: in an epoch, clips of each cluster count as much."""
    model, videos = learner(16), Videos(16)
    begin(model, videos)
    batch = videos.batch(torch.arange(16), 0)
    logits = model.classifier(model.backbone(batch["video"][0]).tokens.mean(dim=1)).tolist()
    sizes = torch.bincount(model.assignment, minlength=4).tolist()
    assert len(set(sizes)) > 1 and min(sizes) > 0
    total = 0.0
    for row, cluster in zip(logits, model.assignment.tolist(), strict=True):
        log = row[cluster] - math.log(sum(map(math.exp, row)))
        total -= log / sizes[cluster] / 4
    assert model(batch, "main").loss.item() == pytest.approx(total, rel=1e-6)


def test_a_giant_cluster_is_no_way_out():
    """One that holds all but one video counts as much as that one."""
    model = learner(32, clusters=2)
    features = torch.cat([torch.randn(31, 8) * 1e-3, torch.ones(1, 8)])
    model.assign(features, torch.ones(32, dtype=torch.bool))
    giant = model.assignment[0]
    if (model.assignment == giant).sum() == 31:  # whitening may have spread it
        assert model.weight[giant] * 31 == pytest.approx(float(model.weight[1 - giant]))
    assert sum(float(model.weight[k]) for k in model.assignment) == pytest.approx(32)


def test_what_cannot_be_read_has_no_cluster_and_counts_nothing():
    model, videos = learner(16), Videos(16)
    readable = torch.arange(16) != 5
    begin(model, videos, readable=readable)
    assert torch.equal(model.assignment >= 0, readable)
    alone = videos.batch(torch.tensor([5]), 0)
    assert model(alone, "main").loss == 0
    both, other = (model(videos.batch(torch.tensor(ids), 0), "main").loss for ids in ([5, 6], [6]))
    torch.testing.assert_close(2 * both, other)


def test_it_waits_for_the_first_clusters_and_starts_the_classifier_anew():
    model, videos = learner(16, every=2), Videos(16)
    assert model(videos.all(), "main").loss is None
    begin(model, videos)
    learn(model, videos.batches(8), steps=4, lr=1e-2, passed=videos.all(), epoch=2)
    before = model.assignment.clone(), model.classifier.weight.detach().clone()
    model.train()
    begin(model, videos, epoch=3)  # not due
    assert torch.equal(model.assignment, before[0]) and torch.equal(model.classifier.weight, before[1])
    begin(model, videos, epoch=4)
    assert not torch.equal(model.classifier.weight, before[1])
    assert model.classifier.weight.detach().std() == pytest.approx(0.01, rel=0.2) and not model.classifier.bias.any()
    assert model.backbone.training  # as before the pass


def clustered(moving: bool) -> float:
    torch.manual_seed(0)
    videos = Videos(256, moving)
    model = learner(256, components=4)
    learn(model, videos.batches(32), steps=165, passed=videos.all(), epoch=15)
    begin(model, videos)
    return agreement(videos.direction, model.assignment)


def test_its_clusters_are_the_directions_where_something_moves():
    assert clustered(moving=True) > 0.9
    assert clustered(moving=False) < 0.1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"clusters": 1}, r"learner\.clusters must be in 2\.\.16, the number of videos, not 1"),
        ({"clusters": 17}, r"learner\.clusters must be in 2\.\.16"),
        ({"every": 0}, r"learner\.every must be 1 or more"),
        ({"components": 0}, r"learner\.components must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(option, said):
    with pytest.raises(TubeletError, match=said):
        learner(16, **option)
