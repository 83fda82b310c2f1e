import math

import pytest
import torch

from oracles import learn, moving_squares, tiny_backbone
from tubelet import draws
from tubelet.methods.denoising import KINDS, Denoising
from tubelet.types import TubeletError

SMALL = {
    "denoising": {},
    "denoising, only noise": {"learner": {"corruptions": ("noise",), "loss": "l1"}},
}


def make(**options) -> Denoising:
    return Denoising(tiny_backbone(depth=1, **options.pop("backbone", {})), **options)


def squares(seed: int, count: int = 16):
    return moving_squares(count, seed).batch


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).square().mean().item()


@pytest.mark.parametrize(("loss", "power"), [("mse", 2), ("l1", 1)])
def test_the_loss_against_its_slow_twin(loss, power):
    """Cube by cube, from the tokens: what the head says of each value, against the clip before it was spoilt."""
    learner = make(loss=loss, backbone={"background": "remove"}).eval()
    batch = moving_squares(2, 0, frames=2, size=16).batch
    video = batch["video"][0]
    with torch.no_grad():
        values = learner.head(learner.backbone(learner.spoil(video, batch["key"])).tokens)  # B N P
        found = learner(batch, "main").loss.item()
    wanted = video - video.mean(dim=2, keepdim=True) + learner.backbone.mean
    total = 0.0
    for b in range(2):
        for n in range(4):
            for index, value in enumerate(values[b, n].tolist()):
                channel, frame, row, column = index // 128, index // 64 % 2, index // 8 % 8, index % 8
                truth = wanted[b, channel, frame, n // 2 * 8 + row, n % 2 * 8 + column].item()
                total += abs(value - truth) ** power
    assert found == pytest.approx(total / video.numel(), rel=1e-5)


def test_each_clip_is_spoilt_in_the_way_that_its_key_says():
    learner, batch = make(), squares(0, count=40)
    video, keys = batch["video"][0], batch["key"]
    spoilt = learner.spoil(video, keys)
    ways = [learner.spoilt_by(kind, video, keys) for kind in KINDS]
    drawn = draws.uniform(keys, 1, "corruption")[:, 0].tolist()
    for b, share in enumerate(drawn):
        assert torch.equal(spoilt[b], ways[int(4 * share)][b])
    assert {int(4 * share) for share in drawn} == {0, 1, 2, 3}
    assert torch.equal(spoilt[7:9], learner.spoil(video[7:9], keys[7:9]))  # whatever they are beside


def test_what_each_way_does():
    learner, batch = make(), squares(0, count=8)
    video, keys = batch["video"][0], batch["key"]
    noisy, lost, blurred, shuffled = (learner.spoilt_by(kind, video, keys) for kind in KINDS)
    middle = (video > 0.3) & (video < 0.7)  # far from where values end
    assert 0.15 < (noisy - video)[middle].std() < 0.26
    for b in range(8):
        changed = [not torch.equal(lost[b, c], video[b, c]) for c in range(3)]
        assert sum(changed) == 1
        assert (lost[b, changed.index(True)] == learner.backbone.mean[changed.index(True)]).all()
    reach = math.ceil(3 * 1.6)  # of a deviation of .05 x 32 pixels
    weights = [math.exp(-0.5 * (d / 1.6) ** 2) for d in range(-reach, reach + 1)]
    expected = sum(
        wy * wx / sum(weights) ** 2 * video[0, 0, 0, min(max(20 + dy, 0), 31), min(max(3 + dx, 0), 31)].item()
        for wy, dy in zip(weights, range(-reach, reach + 1), strict=True)
        for wx, dx in zip(weights, range(-reach, reach + 1), strict=True)
    )
    assert blurred[0, 0, 0, 20, 3].item() == pytest.approx(expected, rel=1e-4)
    for b in range(8):
        order = [next(t for t in range(8) if torch.equal(video[b, :, t], frame)) for frame in shuffled[b].unbind(1)]
        assert sorted(order) == list(range(8))
    assert not torch.equal(shuffled, video)


def test_noise_is_taken_away_where_there_is_something_to_know():
    """The oracle: better than the noisy clip, and than the best filter that knows each pixel alone.

    The control: where every pixel is a draw of its own there is nothing but that filter, Wiener's, and it stays above.
    """
    learner = make(corruptions=("noise",), noise=0.2)
    learn(learner, squares, 60, lr=3e-3)
    batch = squares(10_000, count=64)
    video = batch["video"][0]
    with torch.no_grad():
        noisy = learner.spoil(video, batch["key"])
        restored = learner.restore(noisy)
    power = video.var().item()
    wiener = power * 0.2**2 / (power + 0.2**2)
    assert error(restored, video) < 0.8 * wiener < error(noisy, video)

    def static(seed: int):
        keys = torch.tensor([draws.key(seed, row) for row in range(16)])
        values = draws.normal(keys, 3 * 8 * 32 * 32, "static").view(16, 3, 8, 32, 32)
        return {"video": [0.5 + 0.1 * values], "key": keys}

    control = make(corruptions=("noise",), noise=0.1)
    learn(control, static, 15, lr=3e-3)
    batch = static(10_000)
    with torch.no_grad():
        restored = control.restore(control.spoil(batch["video"][0], batch["key"]))
    assert error(restored, batch["video"][0]) > 0.1**2 * 0.1**2 / (0.1**2 + 0.1**2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"corruptions": ()}, "must be one or more of noise, channel, blur, shuffle, not none"),
        ({"corruptions": ("noise", "rain")}, "not noise, rain"),
        ({"noise": 0.0}, "learner.noise must be more than 0"),
        ({"blur": -1.0}, "learner.blur must be more than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(TubeletError, match=said):
        make(**options)
