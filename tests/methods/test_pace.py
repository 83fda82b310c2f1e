import pytest
import torch

from oracles import learn, mean, moving_squares, still, tiny_backbone
from tubelet import draws
from tubelet.methods.pace import Pace
from tubelet.nn.views import jitter
from tubelet.types import Batch, TubeletError

SMALL = {"pace": {}, "pace, of two": {"learner": {"paces": 2, "jitter": 0.0}}}


def squares(count=128):
    """Four times as many frames as the backbone sees, of squares of one speed: what differs is the pace."""
    return moving_squares(count, 0, frames=16, speed=(1.0, 1.0)).batch


def some(pool: Batch, step: int, count: int = 32) -> Batch:
    """Clips of the pool, at paces that are drawn anew."""
    rows = torch.arange(count * step, count * (step + 1)) % len(pool["key"])
    keys = torch.tensor([draws.key(step, place) for place in range(count)])
    return Batch(video=[pool["video"][0][rows]], times=[pool["times"][0][rows]], key=keys)


@torch.no_grad()
def accuracy(learner: Pace, pool: Batch) -> float:
    """Of 640 clips at paces that it was not trained with."""
    return sum(learner(some(pool, 1000 + part), "main").metrics["accuracy"].item() for part in range(20)) / 20


def test_the_loss_against_its_definition():
    learner = Pace(tiny_backbone()).eval()
    batch = squares(count=5)
    losses, right = [], 0
    for clip, key in zip(batch["video"][0], batch["key"][:, None], strict=True):
        pace = 1 + int(4 * draws.uniform(key, 1, "pace"))
        start = int(draws.uniform(key, 1, "pace start") * (16 - 3 * pace))
        video = torch.stack([clip[:, start + pace * frame] for frame in range(4)], dim=1)[None]
        video = jitter(video, key, "pace jitter", 0.4, 0.4, 0.4, 0.1, per_frame=True)
        logits = learner.head(learner.backbone(video).tokens.mean(dim=1))[0]
        losses.append(logits.exp().sum().log() - logits[pace - 1])
        right += int(logits.argmax() == pace - 1)
    output = learner(batch, "main")
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), atol=1e-6, rtol=0)
    assert output.metrics["accuracy"] == pytest.approx(right / 5)


def test_it_learns_the_pace_of_what_moves_and_is_at_chance_where_nothing_does():
    learner, pool = Pace(tiny_backbone(dim=96, background="remove"), jitter=0.0), squares()
    assert mean(learn(learner, lambda step: some(pool, step), 220), "accuracy") > 0.95
    assert accuracy(learner, pool) > 0.95
    assert accuracy(learner, still(pool)) == pytest.approx(0.25, abs=0.06)


def test_still_clips_cannot_teach_it():
    learner, pool = Pace(tiny_backbone()), still(squares())
    learn(learner, lambda step: some(pool, step), 60)
    assert accuracy(learner, pool) == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"paces": 1}, "paces must be 2 or more, not 1"), ({"jitter": -0.1}, "jitter must be in 0..1, not -0.1")],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(TubeletError, match=words):
        Pace(tiny_backbone(), **options)
