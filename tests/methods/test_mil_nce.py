"""MIL-NCE: captions are found though half of what is said is about something else."""

import pytest
import torch

from oracles import learn, tiny_backbone
from pairs import drawn, found, one_of_each, pairs, shuffled
from tubelet.methods.mil_nce import MilNce
from tubelet.types import Batch, TubeletError

SMALL = {"mil_nce": {"learner": {"dim": 16, "text_dim": 32, "words": 64}}}
ASIDES = ("welcome to my channel", "it is a nice day", "do not forget to subscribe", "we come to that later")


def make() -> MilNce:
    torch.manual_seed(0)
    return MilNce(tiny_backbone(patch=4, background="remove"), dim=64, candidates=2, text_dim=64, words=256)


def with_asides(batch: Batch) -> Batch:
    """Each caption has a second sentence, which says nothing of the clip."""
    said = [f"{ASIDES[row % 4]}|{text}" for row, text in enumerate(batch["text"][0])]
    return Batch(**{**batch, "text": [said]})


@torch.no_grad()
def retrieved(learner: MilNce) -> float:
    test = one_of_each()
    seen = learner.video_head(learner.backbone(test["video"][0]).tokens.mean(dim=1))
    return found(seen, learner.text_head(learner.text(test["text"][0])))


def test_captions_are_found_among_asides():
    learner, pool = make(), with_asides(pairs(512, seed=1))
    learn(learner, lambda step: drawn(pool, step), 150, lr=2e-3)
    assert retrieved(learner) > 0.9


def test_with_captions_of_other_clips_it_is_at_chance():
    learner, pool = make(), shuffled(pairs(256, seed=1))
    learn(learner, lambda step: drawn(pool, step), 60, lr=2e-3)
    assert retrieved(learner) < 0.3


def test_a_clip_without_words_takes_no_part():
    learner, batch = make(), one_of_each()
    batch["text"] = [[""] * 8 + batch["text"][0][8:]]
    video = batch["video"][0].requires_grad_()
    learner(batch, "main").loss.backward()
    assert (video.grad.abs().flatten(1).sum(dim=1) > 0).tolist() == [False] * 8 + [True] * 8


def test_senseless_arguments_are_named():
    with pytest.raises(TubeletError, match=r"learner\.candidates must be 1 or more, not 0"):
        MilNce(tiny_backbone(), candidates=0)
