import pytest
import torch

from oracles import learn, still, tiny_backbone
from peers import lightly_losses
from tubelet.learner import Now
from tubelet.methods.byol import BYOL, distance
from tubelet.nn.views import augmented
from tubelet.types import TubeletError
from windows import directions_used, recalled, windows

SMALL = {"byol": {"learner": {"dim": 8, "hidden": 16, "momentum": 0.9}}}


def make(**options) -> BYOL:
    return BYOL(tiny_backbone(dim=48, background="remove"), dim=32, hidden=64, **options)


def test_the_loss_against_its_slow_twin():
    """Equation 2 as a squared distance, clip by clip and in both directions."""
    learner, batch = make().eval(), windows(4, seed=0)
    with torch.no_grad():
        for parameter in learner.teacher.parameters():
            parameter.mul_(1.1)  # a teacher that is not its student
        views = [augmented(video, batch["key"], f"view {v}", "slowfast") for v, video in enumerate(batch["video"])]
        guesses = [learner.predict(learner.head(learner.backbone(view).tokens.mean(dim=1))) for view in views]
        seen = [learner.teacher.head(learner.teacher.backbone(view).tokens.mean(dim=1)) for view in views]
    total = 0.0
    for mine, theirs in ((0, 1), (1, 0)):
        for guess, target in zip(guesses[mine], seen[theirs], strict=True):
            total += float((guess / guess.norm() - target / target.norm()).square().sum())
    assert learner(batch, "main").loss.item() == pytest.approx(total / 4, abs=1e-6)


def test_the_distance_is_that_of_lightly():
    losses = lightly_losses()
    one, other = torch.randn(2, 6, 8)
    theirs = 2 + 2 * losses.NegativeCosineSimilarity()(one, other)
    torch.testing.assert_close(distance(one, other).mean(), theirs, atol=1e-6, rtol=0)


def test_the_teacher_follows_ever_more_slowly_and_gets_no_gradient():
    learner = make(momentum=0.8)
    learner(windows(4, seed=0), "main").loss.backward()
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())
    before = learner.teacher.head[0].weight.clone()
    with torch.no_grad():
        learner.head[0].weight.add_(1)
    learner.after_step(Now(1, 0, False, 0.5, lambda: iter(())))
    torch.testing.assert_close(learner.teacher.head[0].weight, before + 0.1)  # 1 - (1 - 0.8) / 2 is kept
    learner.after_step(Now(2, 0, False, 1.0, lambda: iter(())))
    torch.testing.assert_close(learner.teacher.head[0].weight, before + 0.1)


def test_a_momentum_out_of_range_is_refused():
    with pytest.raises(TubeletError, match="momentum must be in"):
        make(momentum=1.5)


def test_it_learns_to_see_which_way_squares_move_without_collapse():
    learner, batches = make(momentum=0.9), [windows(32, seed, moments=5) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=60, lr=3e-3)
    assert recalled(learner.backbone) > 0.9 > untrained + 0.15
    assert directions_used(learner, windows(64, seed=7, views=1)) > 4


def test_where_nothing_moves_it_learns_nothing_of_directions():
    """The control, of as many steps as are enough to see them where squares move."""
    learner, batches = make(momentum=0.9), [still(windows(32, seed, moments=5)) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=30, lr=3e-3)
    assert recalled(learner.backbone) < untrained + 0.08
