import pytest
import torch

from oracles import learn, mean, moving_squares, still, tiny_backbone
from tubelet import draws
from tubelet.methods.pace import Pace
from tubelet.nn.views import jitter
from tubelet.types import TubeletError

SMALL = {"pace": {}, "pace, of two": {"learner": {"paces": 2, "jitter": 0.0}}}


def squares(seed, count=32):
    """Four times as many frames as the backbone sees, of squares of one speed: what differs is the pace."""
    return moving_squares(count, seed, frames=32, speed=(0.4, 0.45)).batch


def test_the_loss_against_its_definition():
    learner = Pace(tiny_backbone()).eval()
    batch = squares(0, count=5)
    losses, right = [], 0
    for clip, key in zip(batch["video"][0], batch["key"][:, None], strict=True):
        pace = 1 + int(4 * draws.uniform(key, 1, "pace"))
        start = int(draws.uniform(key, 1, "pace start") * (32 - 7 * pace))
        video = torch.stack([clip[:, start + pace * frame] for frame in range(8)], dim=1)[None]
        video = jitter(video, key, "pace jitter", 0.4, 0.4, 0.4, 0.1, per_frame=True)
        logits = learner.head(learner.backbone(video).tokens.mean(dim=1))[0]
        losses.append(logits.exp().sum().log() - logits[pace - 1])
        right += int(logits.argmax() == pace - 1)
    output = learner(batch, "main")
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-6, rtol=0)
    assert output.metrics["accuracy"] == pytest.approx(right / 5)


def test_it_learns_the_pace_of_what_moves_and_is_at_chance_where_nothing_does():
    learner = Pace(tiny_backbone())
    told = learn(learner, squares, 300, lr=2e-3)
    assert mean(told, "accuracy") > 0.95
    unseen = squares(1000, count=512)
    with torch.no_grad():
        assert learner(unseen, "main").metrics["accuracy"] > 0.95
        assert learner(still(unseen), "main").metrics["accuracy"] == pytest.approx(0.25, abs=0.06)


def test_still_clips_cannot_teach_it():
    learner = Pace(tiny_backbone())
    learn(learner, lambda step: still(squares(step)), 60)
    with torch.no_grad():
        output = learner(still(squares(1000, count=512)), "main")
    assert output.metrics["accuracy"] == pytest.approx(0.25, abs=0.06)
    assert output.loss > 1.3  # log 4 = 1.386


@pytest.mark.parametrize(
    ("options", "words"),
    [({"paces": 1}, "paces must be 2 or more, not 1"), ({"jitter": -0.1}, "jitter must be in 0..1, not -0.1")],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(TubeletError, match=words):
        Pace(tiny_backbone(), **options)
