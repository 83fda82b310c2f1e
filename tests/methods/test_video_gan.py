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
SMALL = {
    "video_gan": {"learner": {"latent": 8, "width": 4}, "backbone": CLIP},
    "video_gan, smooth": {"learner": {"latent": 8, "width": 4, "smooth": 0.1, "average": 0.9}, "backbone": CLIP},
}


def make(clip: tuple[int, int, int] | None = (8, 16, 16), patch: int = 4, **options) -> VideoGAN:
    backbone = tiny_backbone(depth=1, patch=patch, made_for=clip)
    return VideoGAN(backbone, **{"latent": 16, "width": 8, "average": 0.9, **options})


def squares(seed: int, count: int = 16) -> Squares:
    return moving_squares(count, seed, size=16, side=5.0, speed=(0.8, 1.2))


@pytest.mark.parametrize("smooth", [0.0, 3.0])
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
        assert found["critic"] == pytest.approx(critic + smooth / 2 * along, rel=0.05)  # 0.01 is no infinitesimal
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


def test_a_step_moves_the_average_that_previews_come_from_and_trains_nothing_of_it():
    learner, keys = make(), torch.arange(4)
    before = learner.preview(keys)
    learn(learner, lambda step: squares(step).batch, 2)
    assert not torch.equal(learner.preview(keys), before)
    own, averaged = learner.generator.paint.weight, learner.average.get_submodule("generator").paint.weight
    assert not torch.equal(own, averaged) and not averaged.requires_grad


def nearest(learner: VideoGAN, known: Squares, asked: Squares) -> float:
    """How often the direction of a clip is that of most of its five nearest neighbours."""
    with torch.no_grad():
        there, here = learner.embed(known.batch), learner.embed(asked.batch)
    there, here = ((part - there.mean(dim=0)) / there.std(dim=0) for part in (there, here))
    close = torch.cdist(here, there).topk(5, largest=False).indices
    return (known.direction[close].mode(dim=1).values == asked.direction).float().mean().item()


def test_neither_wins_and_the_critic_comes_to_see_what_moves():
    """The oracle: the critic stays in the band below log 2, where it sees more than chance and is not sure of all, and
    directions are told by its features better than by those that it began with."""
    learner, known, asked = make(smooth=2.0), squares(10_000, 200), squares(20_000, 200)
    before = nearest(learner, known, asked)
    told = learn(learner, lambda step: squares(step).batch, 130, lr=4e-4)
    assert 0.1 < mean(told, "told_apart", 50) < 1.1 * math.log(2)
    assert nearest(learner, known, asked) > before + 0.03


def test_what_cannot_be_made_is_refused():
    with pytest.raises(TubeletError, match=r"set backbone\.made_for"):
        make(None)
    with pytest.raises(TubeletError, match="frames and size must be even"):
        make((8, 15, 16), patch=1)
    with pytest.raises(TubeletError, match=r"learner\.smooth must be 0"):
        make(smooth=-1.0)
