import math

import pytest
import torch

from oracles import learn, mean, moving_squares, still, tiny_backbone
from tubelet.methods.rotation import Rotation
from tubelet.types import Batch, TubeletError

SMALL = {"rotation": {}}


def falling(seed, count=16):
    """Squares that all fall, so that a turned clip is one in which they go elsewhere."""
    squares = moving_squares(count, seed)
    clips = zip(squares.batch["video"][0], squares.direction.tolist(), strict=True)
    down = torch.stack([clip.rot90(-direction, dims=(2, 3)) for clip, direction in clips])
    return {**squares.batch, "video": [down]}


def test_the_loss_against_its_definition():
    learner = Rotation(tiny_backbone()).eval()
    batch = falling(0, count=3)
    logs, right = [], 0
    for clip in batch["video"][0]:
        for turn in range(4):
            turned = clip
            for _ in range(turn):  # a quarter to the left: what was the right-hand column becomes the top row
                turned = turned.transpose(2, 3).flip(2)
            logits = learner.head(learner.backbone(turned[None]).tokens.mean(dim=1))[0]
            logs.append(logits.log_softmax(dim=0)[turn])
            right += int(logits.argmax() == turn)
    output = learner(batch, "main")
    torch.testing.assert_close(output.loss, -torch.stack(logs).mean(), atol=1e-6, rtol=0)
    assert output.metrics["accuracy"] == pytest.approx(right / 12)


def some(pool: Batch, step: int, count: int = 8) -> Batch:
    rows = torch.arange(count * step, count * (step + 1)) % len(pool["video"][0])
    return Batch(video=[pool["video"][0][rows]])


def test_it_learns_which_way_is_up():
    learner, pool = Rotation(tiny_backbone()), falling(0, count=64)
    assert mean(learn(learner, lambda step: some(pool, step), 60), "accuracy") > 0.95
    with torch.no_grad():
        assert learner(falling(1000, count=32), "main").metrics["accuracy"] > 0.95


def test_a_still_clip_is_no_control_since_it_shows_which_way_is_up():
    pool = still(falling(0, count=64))
    sky = torch.linspace(0.8, 0.2, 32)[:, None]  # brighter above
    pool["video"] = [(pool["video"][0] + sky) / 2]
    assert mean(learn(Rotation(tiny_backbone()), lambda step: some(pool, step), 60), "accuracy") > 0.95


def test_a_picture_that_a_turn_does_not_change_tells_nothing():
    """The control: each pixel is the mean of those of the four turned clips; motion and colours are left."""
    (video,) = falling(0, count=64)["video"]
    turned = torch.stack([video.rot90(turn, dims=(3, 4)) for turn in range(4)])
    pool = Batch(video=[(turned * 256).round().mean(dim=0) / 256])  # sums of whole numbers are the same in any order
    told = learn(Rotation(tiny_backbone()), lambda step: some(pool, step), 30)
    assert {found["accuracy"] for found in told} == {0.25}
    assert min(found["loss"] for found in told) >= math.log(4) - 1e-6


def test_only_squares_can_be_turned():
    with pytest.raises(TubeletError, match="square clips, not 16 x 32"):
        Rotation(tiny_backbone())({"video": [torch.rand(2, 3, 8, 16, 32)]}, "main")
