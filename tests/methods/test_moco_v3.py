import math

import pytest
import torch

from oracles import learn, still, tiny_backbone
from tubelet import registry
from tubelet.learner import Now
from tubelet.methods.moco_v3 import MoCoV3
from tubelet.nn.heads import projected
from tubelet.nn.views import augmented
from tubelet.types import TubeletError
from windows import directions_used, recalled, windows

SMALL = {  # a batch of four is hard on batch norms: at the published temperature their rounding errors would show
    "moco_v3": {"learner": {"dim": 8, "hidden": 16, "momentum": 0.9, "temperature": 1.0}},
    "moco_v3, patches trained": {"learner": {"dim": 8, "hidden": 16, "temperature": 1.0, "freeze_patches": False}},
}


def make(**options) -> MoCoV3:
    return MoCoV3(tiny_backbone(dim=48, background="remove"), dim=32, hidden=64, **options)


def slow_contrast(queries, keys, temperature: float) -> float:
    """`ctr` of algorithm 1, query by query."""
    total = 0.0
    for i, query in enumerate(queries):
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        total -= math.log(math.exp(cosines[i] / temperature) / sum(math.exp(c / temperature) for c in cosines))
    return 2 * temperature * total / len(queries)


def test_the_loss_against_algorithm_1():
    learner, batch = make().eval(), windows(4, seed=0)
    with torch.no_grad():
        for parameter in learner.teacher.parameters():
            parameter.mul_(1.1)  # a teacher that is not its student
        one, other = batch["video"]
        x1 = augmented(one, batch["key"], "first", "byol, first")
        x2 = augmented(other, batch["key"], "second", "byol, second")
        q1, q2 = (learner.predict(learner.head(learner.backbone(x).tokens.mean(dim=1))) for x in (x1, x2))
        k1, k2 = (learner.teacher.head(learner.teacher.backbone(x).tokens.mean(dim=1)) for x in (x1, x2))
    expected = slow_contrast(q1, k2, 0.2) + slow_contrast(q2, k1, 0.2)
    assert learner(batch, "main").loss.item() == pytest.approx(expected, abs=1e-6)


def test_views_may_stay_as_they_are():
    learner, batch = make(strength="none").eval(), windows(4, seed=0)
    with torch.no_grad():
        queries = [learner.predict(projected(video, learner)) for video in batch["video"]]
        keys = [projected(video, learner.teacher) for video in batch["video"]]
    expected = slow_contrast(queries[0], keys[1], 0.2) + slow_contrast(queries[1], keys[0], 0.2)
    assert learner(batch, "main").loss.item() == pytest.approx(expected, abs=1e-6)


def test_clips_of_one_video_are_no_negatives():
    learner, queries, keys = make(), torch.randn(4, 32), torch.randn(4, 32)
    ids = torch.tensor([0, 1, 1, 2])
    loss = learner.compare(queries, keys, ids).item()
    kept = [[0, 1, 2, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]]
    each = []
    for i, others in enumerate(kept):
        order = [i, *(j for j in others if j != i)]  # `slow_contrast` takes the first key for the first query
        each.append(slow_contrast(queries[i : i + 1], keys[order], 0.2))
    assert loss == pytest.approx(sum(each) / 4, abs=1e-6)


def test_published_number_of_weights():
    """Projector and predictor of moco-v3's ViT-B: linear maps without bias, batch norms, the last without weights."""
    with torch.device("meta"):
        learner = MoCoV3(registry.build("backbones", "vit", size="base"))
    counts = {name: sum(p.numel() for p in getattr(learner, name).parameters()) for name in ("head", "predict")}
    assert counts["head"] == 768 * 4096 + 2 * 4096 + 4096 * 4096 + 2 * 4096 + 4096 * 256
    assert counts["predict"] == 256 * 4096 + 2 * 4096 + 4096 * 256


def test_patches_are_frozen_unless_told():
    trained = {name for name, _ in make().parameters_of("main")}
    assert not any(name.startswith("backbone.embed.") for name in trained) and "backbone.blocks.0.norm1.bias" in trained
    free = {name for name, _ in make(freeze_patches=False).parameters_of("main")}
    assert free - trained == {"backbone.embed.weight", "backbone.embed.bias"}
    assert "backbone.norm.bias" not in free  # which the projector's batch norm takes away


def test_the_teacher_follows_ever_more_slowly_and_gets_no_gradient():
    learner = make()
    learner(windows(4, seed=0), "main").loss.backward()
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())
    before = learner.teacher.head[0].weight.clone()
    with torch.no_grad():
        learner.head[0].weight.add_(1)
    learner.after_step(Now(1, 0, False, 0.5, lambda: iter(())))
    torch.testing.assert_close(learner.teacher.head[0].weight, before + 0.005)  # 1 - (1 - 0.99) / 2 is kept
    assert torch.equal(learner.teacher.backbone.embed.weight, learner.backbone.embed.weight)


def test_a_momentum_out_of_range_is_refused():
    with pytest.raises(TubeletError, match="momentum must be in"):
        make(momentum=-0.1)


def test_it_learns_to_see_which_way_squares_move():
    learner, batches = make(momentum=0.9), [windows(32, seed) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=60, lr=3e-3)
    assert recalled(learner.backbone) > 0.82 > untrained + 0.1
    assert directions_used(learner, windows(64, seed=7, views=1)) > 4


def test_where_nothing_moves_it_learns_nothing_of_directions():
    """The control, of as many steps as are enough to see them where squares move."""
    learner, batches = make(momentum=0.9), [still(windows(32, seed)) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=30, lr=3e-3)
    assert recalled(learner.backbone) < untrained + 0.08
