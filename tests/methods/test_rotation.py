import pytest
import torch

from oracles import learn, mean, moving_squares, still, tiny_backbone
from tubelet.methods.rotation import Rotation
from tubelet.types import TubeletError

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


def test_it_learns_which_way_is_up():
    learner = Rotation(tiny_backbone())
    assert mean(learn(learner, falling, 80), "accuracy") > 0.95
    with torch.no_grad():
        assert learner(falling(1000, count=64), "main").metrics["accuracy"] > 0.95


def test_a_still_clip_is_no_control_for_it_shows_which_way_is_up():
    """The first frame has the square above: the angle is a matter of appearance."""
    told = learn(Rotation(tiny_backbone()), lambda step: still(falling(step)), 80)
    assert mean(told, "accuracy") > 0.9


def test_a_picture_that_a_turn_does_not_change_tells_nothing():
    """The control: each pixel the mean of the four turned clips, as before everything else moving and in colour."""

    def symmetric(seed):
        (video,) = falling(seed)["video"]
        return {"video": [torch.stack([video.rot90(turn, dims=(3, 4)) for turn in range(4)]).mean(dim=0)]}

    told = learn(Rotation(tiny_backbone()), symmetric, 40)
    assert mean(told, "accuracy") == pytest.approx(0.25, abs=0.02)  # turned, sums of floats differ in the last digit
    assert mean(told, "loss") == pytest.approx(torch.tensor(4.0).log().item(), abs=0.02)


def test_only_squares_can_be_turned():
    with pytest.raises(TubeletError, match="square clips, not 16 x 32"):
        Rotation(tiny_backbone())({"video": [torch.rand(2, 3, 8, 16, 32)]}, "main")
