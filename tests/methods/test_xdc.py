"""XDC: the pictures learn the clusters of the sound, and the reverse."""

import pytest
import torch

from oracles import learn, tiny_backbone
from pairs import KINDS, RATE, drawn, one_of_each, pairs, shuffled
from tubelet.learner import Now
from tubelet.methods.xdc import Xdc
from tubelet.types import Batch, TubeletError

SMALL = {
    "xdc": {"learner": {"clusters": 2, "components": 2, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000}},
}


def make(videos: int, **changes) -> Xdc:
    torch.manual_seed(0)
    made = {"clusters": KINDS, "audio_dim": 64, "audio_depth": 1, "audio_rate": RATE}
    return Xdc(tiny_backbone(patch=4, background="remove"), videos, **made | changes)


@torch.no_grad()
def agreement(learner: Xdc, pool: Batch) -> float:
    """Share of new clips, one of each kind, that are taken for the commonest cluster of sound of their kind."""
    test = one_of_each()
    guess = learner.video_head(learner.backbone(test["video"][0]).tokens.mean(dim=1)).argmax(dim=1)
    heard = [learner.heard[pool["label"] == kind].mode().values for kind in range(KINDS)]
    return (guess == torch.stack(heard)).float().mean().item()


def test_the_pictures_learn_what_sounds_alike():
    pool = pairs(256, seed=1)
    learner = make(256)
    learn(learner, lambda step: drawn(pool, step), 150, lr=2e-3, passed=pool)
    assert agreement(learner, pool) > 0.6


def test_with_sounds_of_other_clips_it_is_at_chance():
    pool = shuffled(pairs(256, seed=1))
    learner = make(256)
    learn(learner, lambda step: drawn(pool, step), 60, lr=2e-3, passed=pool)
    assert agreement(learner, pool) < 0.35


def now(batch: Batch, epoch: int = 0) -> Now:
    return Now(0, epoch, True, 0.0, lambda: iter([batch]))


def test_silent_videos_have_no_cluster_and_take_no_part():
    learner, batch = make(16, clusters=4), one_of_each()
    assert learner(batch, "main").loss is None  # nothing is assigned yet
    batch["audio_present"][:8] = False
    batch["readable"][15] = False
    learner.before_step(now(batch))
    assert (learner.heard >= 0).tolist() == [False] * 8 + [True] * 7 + [False]
    assert (learner.seen >= 0).tolist() == [True] * 15 + [False]
    video, sound = batch["video"][0].requires_grad_(), batch["audio"][0].requires_grad_()
    learner(batch, "main").loss.backward()
    for given in (video, sound):
        assert given.grad.isfinite().all()
        assert (given.grad.abs().flatten(1).sum(dim=1) > 0).tolist() == [False] * 8 + [True] * 7 + [False]


def test_without_any_sound_there_is_nothing_to_learn():
    learner, batch = make(16, clusters=4), one_of_each()
    batch["audio_present"][:] = False
    learner.before_step(now(batch))
    assert (learner.heard == -1).all()
    assert learner(batch, "main").loss is None


def test_classifiers_start_anew_with_the_clusters():
    learner, batch = make(16, clusters=4, every=2), one_of_each()
    learner.before_step(now(batch))
    first = learner.video_head.weight.clone()
    learner.before_step(now(batch, epoch=1))
    assert torch.equal(learner.video_head.weight, first)
    learner.before_step(now(batch, epoch=2))
    assert not torch.equal(learner.video_head.weight, first)


def test_senseless_arguments_are_named():
    with pytest.raises(TubeletError, match=r"learner\.clusters must be in 2\.\.16, the number of videos, not 17"):
        make(16, clusters=17)
    with pytest.raises(TubeletError, match=r"learner\.every must be 1 or more, not 0"):
        make(16, every=0)
