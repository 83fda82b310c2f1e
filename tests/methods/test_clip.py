"""CLIP on video: captions are found among others, unless they were given to the wrong clips."""

import math

import pytest
import torch

from oracles import learn, tiny_backbone
from pairs import drawn, found, one_of_each, pairs, shuffled
from tubelet.learner import Now
from tubelet.methods.clip import Clip
from tubelet.types import TubeletError

SMALL = {"clip": {"learner": {"dim": 16, "text_dim": 32, "text_depth": 1, "words": 64}}}


def make() -> Clip:
    torch.manual_seed(0)
    return Clip(tiny_backbone(patch=4, background="remove"), dim=64, text_dim=64, text_depth=1, words=256)


@torch.no_grad()
def retrieved(learner: Clip) -> float:
    test = one_of_each()
    return found(learner.embed_video(test["video"][0]), learner.embed_text(test["text"][0]))


def test_captions_are_found():
    learner, pool = make(), pairs(512, seed=1)
    learn(learner, lambda step: drawn(pool, step), 220, lr=1e-3)
    assert retrieved(learner) > 0.9


def test_with_captions_of_other_clips_it_is_at_chance():
    learner, pool = make(), shuffled(pairs(256, seed=1))
    learn(learner, lambda step: drawn(pool, step), 60, lr=1e-3)
    assert retrieved(learner) < 0.3


def test_clips_with_the_same_words_are_right_for_each_other():
    learner, batch = make(), one_of_each()
    batch["text"] = [["the same words"] * 16]
    assert learner(batch, "main").loss.abs() < 1e-5


def test_a_clip_without_words_takes_no_part():
    learner, batch = make(), one_of_each()
    batch["text"] = [[""] * 8 + batch["text"][0][8:]]
    video = batch["video"][0].requires_grad_()
    learner(batch, "main").loss.backward()
    reached = video.grad.abs().flatten(1).sum(dim=1) > 0
    assert reached.tolist() == [False] * 8 + [True] * 8


def test_the_temperature_is_learnt_within_its_limit():
    learner = make()
    assert learner.scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        learner.scale.fill_(7.0)
    learner.after_step(Now(1, 0, False, 0.0, lambda: iter(())))
    assert learner.scale.item() == pytest.approx(math.log(100))
    with pytest.raises(TubeletError, match=r"learner\.temperature must be 0\.01 or more, not 0\.001"):
        Clip(tiny_backbone(), temperature=0.001)
