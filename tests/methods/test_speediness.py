import math

import pytest
import torch

from oracles import learn, mean, moving_squares, still, tiny_backbone
from tubelet import draws
from tubelet.methods.speediness import Speediness
from tubelet.nn.views import blur
from tubelet.types import Batch, TubeletError

SMALL = {"speediness": {}, "speediness, not blurred": {"learner": {"blur": 0.0}}}


def squares(count=64):
    return moving_squares(count, 0, frames=16, speed=(0.7, 0.9)).batch


def some(pool: Batch, step: int, count: int = 16) -> Batch:
    """Clips of the pool, from starts that are drawn anew."""
    rows = torch.arange(count * step, count * (step + 1)) % len(pool["key"])
    keys = torch.tensor([draws.key(step, place) for place in range(count)])
    return Batch(video=[pool["video"][0][rows]], times=[pool["times"][0][rows]], key=keys)


def test_the_loss_against_its_definition():
    learner = Speediness(tiny_backbone()).eval()
    batch = squares(count=4)
    losses, right = [], 0
    for clip, key in zip(batch["video"][0], batch["key"][:, None], strict=True):
        clip = blur(clip[None], key, "speediness blur", 1.0, (0.0, 2.0))[0]
        for speed in (1, 2):
            start = int(draws.uniform(key, 1, f"speediness start {speed}") * (16 - 7 * speed))
            video = torch.stack([clip[:, start + speed * frame] for frame in range(8)], dim=1)
            tokens = learner.backbone(video[None]).tokens.view(4, 16, 64)  # t h*w D
            largest = torch.stack([tokens[time].mean(dim=0) for time in range(4)]).max(dim=0).values
            fast = 1 / (1 + math.exp(-float(learner.head(largest))))
            losses.append(-math.log(fast if speed == 2 else 1 - fast))
            right += int((fast > 0.5) == (speed == 2))
    output = learner(batch, "main")
    assert output.loss.item() == pytest.approx(sum(losses) / 8, abs=1e-6)
    assert output.metrics["accuracy"] == pytest.approx(right / 8)


def test_it_learns_the_speed_of_what_moves_and_is_at_chance_where_nothing_does():
    learner, pool = Speediness(tiny_backbone()), squares()
    assert mean(learn(learner, lambda step: some(pool, step), 150), "accuracy") > 0.95
    with torch.no_grad():
        assert learner(some(pool, 1000, count=64), "main").metrics["accuracy"] > 0.95
        assert learner(some(still(pool), 1000, count=64), "main").metrics["accuracy"] == 0.5  # they are the same


def test_still_clips_cannot_teach_it():
    pool = still(squares())
    told = learn(Speediness(tiny_backbone()), lambda step: some(pool, step), 30)
    assert {found["accuracy"] for found in told} == {0.5}
    assert min(found["loss"] for found in told) >= math.log(2) - 1e-6


def test_what_makes_no_sense_is_refused():
    with pytest.raises(TubeletError, match="blur must be 0"):
        Speediness(tiny_backbone(), blur=-1)
