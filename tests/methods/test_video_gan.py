import copy
import math

import pytest
import torch

from oracles import Squares, learn, mean, moving_squares, tiny_backbone
from tubelet import draws
from tubelet.methods.video_gan import MapNorm, VideoGAN
from tubelet.nn.adversarial import of_critic, of_generator
from tubelet.train.step import take_step
from tubelet.types import TubeletError

CLIP = {"made_for": (4, 16, 16)}
SMALL = {  # smooth magnifies rounding errors, of which Adam makes whole steps
    "video_gan": {"learner": {"latent": 8, "width": 4}, "backbone": CLIP},
    "video_gan, smooth": {"learner": {"latent": 8, "width": 4, "smooth": 0.02}, "backbone": CLIP | {"drop_path": 0.0}},
}


def make(clip: tuple[int, int, int] | None = (8, 16, 16), patch: int = 4, **options) -> VideoGAN:
    backbone = tiny_backbone(depth=1, patch=patch, made_for=clip, **options.pop("backbone", {}))
    return VideoGAN(backbone, **{"latent": 16, "width": 8, **options})


def squares(seed: int, count: int = 16) -> Squares:
    return moving_squares(count, seed, size=16, side=5.0, speed=(0.8, 1.2))


@pytest.mark.parametrize("smooth", [0.0, 6.0])
def test_the_losses_of_both_phases_against_their_slow_twins(smooth):
    learner, batch = make(smooth=smooth, sparsity=0.7).eval(), squares(0, count=3).batch
    video, keys = batch["video"][0], batch["key"]
    with torch.no_grad():
        found = {phase: learner(batch, phase).loss.item() for phase in learner.phases}
        real = learner.score(video)
        critic = of_critic(real, learner.score(learner.generator(draws.normal(keys, 16, "critic"))[0])).item()
        made, mask = learner.generator(draws.normal(keys, 16, "generator"))
        generator = of_generator(learner.score(made)).item()
    if smooth:  # the squared length of the critic's gradient, by its definition, along the noise that is drawn
        seen = video.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(learner.score(seen).sum(), seen)
        drawn = draws.normal(keys, video[0].numel(), "near").view_as(video)
        along = (slope * drawn).sum(dim=(1, 2, 3, 4)).square().mean().item()
        published = 2 * critic + smooth / 2 * along  # of_critic is the mean of the two halves, not their sum
        assert found["critic"] == pytest.approx(published / 2, rel=0.05)  # 0.01 is no infinitesimal
    else:
        assert found["critic"] == pytest.approx(critic, rel=1e-6)
    assert found["generator"] == pytest.approx(generator + 0.7 * mask.mean().item(), rel=1e-6)


def test_a_clip_is_a_foreground_laid_over_a_background_that_stands_still():
    generator = make().generator
    noise = torch.randn(4, 16)
    made, mask = generator(noise)
    assert made.shape == (4, 3, 8, 16, 16) and mask.shape == (4, 1, 8, 16, 16)
    assert made.min() >= 0 and made.max() <= 1
    with torch.no_grad():
        generator.cover.weight.zero_()
        generator.cover.bias.fill_(-math.inf)
        still, _ = generator(noise)  # no foreground
        generator.cover.bias.fill_(math.inf)
        moving, _ = generator(noise)  # nothing else
    assert torch.equal(still, still[:, :, :1].expand_as(still))
    assert not torch.equal(moving, moving[:, :, :1].expand_as(moving))
    torch.testing.assert_close(made, mask * moving + (1 - mask) * still, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("clip", "start"), [((32, 64, 64), (2, 4, 4)), ((16, 112, 112), (1, 7, 7)), ((6, 20, 36), (3, 10, 18))]
)
def test_the_first_map_is_doubled_until_it_is_a_clip(clip, start):
    """The published size from 2 x 4 x 4; others are halved as often as all lengths can be, four times at most."""
    with torch.device("meta"):
        generator = make(clip, patch=2).generator
    assert generator.foreground[1].unflattened_size[1:] == start
    assert generator.background[1].unflattened_size[1:] == start[1:]


def test_published_number_of_channels():
    with torch.device("meta"):
        learner = VideoGAN(tiny_backbone(made_for=(32, 64, 64)))
    layers = learner.generator.foreground
    widths = [layer.weight.shape[1] for layer in layers if isinstance(layer, torch.nn.ConvTranspose3d)]
    assert layers[1].unflattened_size[0] == 512 and widths == [256, 128, 64]


def test_the_norm_of_maps_is_that_of_each_channel():
    maps = torch.randn(3, 5, 2, 4, 4) * 3 + 1
    expected = torch.nn.functional.batch_norm(maps, None, None, training=True)
    torch.testing.assert_close(MapNorm(5)(maps), expected)


def test_each_phase_trains_its_own_and_leaves_all_else_as_it_is():
    learner, moved = make(), {}
    for phase in learner.phases:
        before = copy.deepcopy(learner.state_dict())
        optimiser = torch.optim.AdamW([p for _, p in learner.parameters_of(phase)], lr=1e-3)
        take_step(learner, learner, phase, optimiser, squares(0).batch, 1, 1.0, "float32")
        after = learner.state_dict()
        moved[phase] = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved[phase] == {name for name, _ in learner.parameters_of(phase)}
    assert {name.partition(".")[0] for name in moved["critic"]} == {"backbone", "head"}
    assert moved["critic"] | moved["generator"] == {name for name, p in learner.named_parameters() if p.requires_grad}


def test_clips_come_to_look_real_and_the_critic_tells_them_apart():
    """The oracle: what is made becomes as bright as what is real, from a uniform grey, and the critic is right more
    often than not and not sure of all. What its features know of motion after so few steps is a matter of luck.

    The control: where the generator itself makes the real ones, there is nothing to tell."""
    learner, noise = make(smooth=4.0), draws.normal(torch.arange(64), 16)
    real = squares(10_000, 64).batch["video"][0].mean()
    before = (learner.generator(noise)[0].mean() - real).abs()
    told = learn(learner, lambda step: squares(step).batch, 90, lr=1e-3)
    after = (learner.generator(noise)[0].mean() - real).abs()
    assert before > 0.2 and after < 0.3 * before
    assert mean(told, "critic_accuracy", 50) > 0.7 and 0.1 < mean(told, "told_apart", 50) < 0.8 * math.log(2)

    def its_own(step: int):
        batch = squares(step).batch
        with torch.no_grad():
            made, _ = control.generator(draws.normal(batch["key"], 16, "as if real"))
        return {**batch, "video": [made]}

    control = make(smooth=4.0)
    told = learn(control, its_own, 60, lr=1e-3)
    assert mean(told, "critic_accuracy", 40) == pytest.approx(0.5, abs=0.04)
    assert mean(told, "told_apart", 40) == pytest.approx(math.log(2), abs=0.01)


def test_the_slope_is_as_steep_under_autocast():
    """Rounding to 8 bits is more than scores change over so small a distance."""
    learner, batch = make(smooth=4.0).eval(), squares(0).batch
    with torch.no_grad():
        learner.head.weight.mul_(10)
        plain = learner(batch, "critic")
        with torch.autocast("cpu", torch.bfloat16):
            rounded = learner(batch, "critic")
    slopes = [output.loss - output.metrics["told_apart"] for output in (plain, rounded)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_made_is_refused():
    with pytest.raises(TubeletError, match=r"set backbone\.made_for"):
        make(None)
    with pytest.raises(TubeletError, match="frames and size must be even"):
        make((8, 15, 16), patch=1)
    with pytest.raises(TubeletError, match=r"learner\.smooth must be 0"):
        make(smooth=-1.0)
    with pytest.raises(TubeletError, match=r"set backbone\.drop_path to 0"):
        make(smooth=1.0, backbone={"drop_path": 0.1})
    make(backbone={"drop_path": 0.1})
