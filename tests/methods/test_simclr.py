import math

import pytest
import torch
import torch.nn.functional as F

from oracles import learn, still, tiny_backbone
from tubelet.methods.simclr import SimCLR
from tubelet.nn.views import augmented
from windows import directions_used, recalled, windows

SMALL = {"simclr": {"learner": {"dim": 8, "hidden": 16}}}


def make(**options) -> SimCLR:
    return SimCLR(tiny_backbone(dim=48, background="remove"), dim=32, hidden=64, **options)


def test_the_loss_against_its_slow_twin():
    """Equation 1, view by view, from the vectors of a batch."""
    learner, batch = make(temperature=0.2).eval(), windows(4, seed=0)
    views = [augmented(video, batch["key"], f"view {v}", "slowfast") for v, video in enumerate(batch["video"])]
    with torch.no_grad():
        vectors = [F.normalize(learner.head(learner.backbone(view).tokens.mean(dim=1)), dim=1) for view in views]
    rows = [vectors[view][clip] for clip in range(4) for view in range(2)]
    total = 0.0
    for i, row in enumerate(rows):
        terms = [math.exp(float(row @ other) / 0.2) for other in rows]
        total -= math.log(terms[i ^ 1] / sum(term for j, term in enumerate(terms) if j != i))
    assert learner(batch, "main").loss.item() == pytest.approx(total / 8, abs=1e-6)


def test_it_learns_to_see_which_way_squares_move():
    learner, batches = make(), [windows(32, seed) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=60, lr=3e-3)
    assert recalled(learner.backbone) > 0.9 > untrained + 0.15
    assert directions_used(learner, windows(64, seed=7, views=1)) > 4


def test_where_nothing_moves_it_learns_nothing_of_directions():
    """The control, of as many steps as are enough to see them where squares move."""
    learner, batches = make(), [still(windows(32, seed)) for seed in range(6)]
    untrained = recalled(learner.backbone)
    told = learn(learner, lambda step: batches[step % 6], steps=30, lr=3e-3)
    assert told[-1]["loss"] == pytest.approx(math.log(63), abs=0.01)  # of 64 views, itself aside
    assert recalled(learner.backbone) < untrained + 0.08
