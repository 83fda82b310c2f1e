import copy
import math

import pytest
import torch

from oracles import learn, mean, moving_squares, tiny_backbone
from tubelet.methods.frame_prediction import FramePrediction, gradient_difference
from tubelet.nn.adversarial import of_generator
from tubelet.train.step import take_step
from tubelet.types import TubeletError

SMALL = {"frame_prediction": {"learner": {"decoder_dim": 16, "decoder_depth": 1, "critic_dim": 4}}}


def make(**options) -> FramePrediction:
    backbone = tiny_backbone(depth=1, patch=4, **options.pop("backbone", {}))
    return FramePrediction(backbone, **{"decoder_dim": 64, "decoder_depth": 1, "critic_dim": 4, **options})


def squares(seed: int, count: int = 16):
    """Eight frames to see and what comes after them."""
    return moving_squares(count, seed, frames=16, size=16, side=5.0, speed=(0.8, 1.2), noise=0.0).batch


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).square().mean().item()


def test_the_gradient_difference_against_its_slow_twin():
    guess, truth = torch.rand(2, 3, 2, 3, 4), torch.rand(2, 3, 2, 3, 4)
    total = 0.0
    for b in range(2):
        for c in range(3):
            for f in range(2):
                g, t = guess[b, c, f].double().tolist(), truth[b, c, f].double().tolist()
                for i in range(3):
                    for j in range(4):
                        if i:
                            total += abs(abs(t[i][j] - t[i - 1][j]) - abs(g[i][j] - g[i - 1][j]))
                        if j:
                            total += abs(abs(t[i][j - 1] - t[i][j]) - abs(g[i][j - 1] - g[i][j]))
    assert gradient_difference(guess, truth).item() == pytest.approx(total / truth.numel(), rel=1e-6)


@pytest.mark.parametrize(("loss", "power"), [("l1", 1), ("l2", 2)])
def test_the_losses_of_both_phases_against_their_slow_twins(loss, power):
    """Equations 2 to 7, summed over the values of a clip and divided by their number."""
    learner = make(loss=loss, gradient=2.0, adversarial=30.0).eval()
    batch = squares(0, count=3)
    clip = batch["video"][0]
    past, future = clip[:, :, :8], clip[:, :, 8:10]
    with torch.no_grad():
        guess = learner.predict(past)
        real, made = learner.critic(past, future).tolist(), learner.critic(past, guess).tolist()
        edges = gradient_difference(guess, future).item()
        found = {phase: learner(batch, phase).loss.item() for phase in learner.phases}

    def cross_entropy(score: float, wanted: int) -> float:
        chance = 1 / (1 + math.exp(-score))
        return -math.log(chance if wanted else 1 - chance)

    critic = sum(cross_entropy(r, 1) + cross_entropy(m, 0) for r, m in zip(real, made, strict=True)) / 3
    assert found["critic"] == pytest.approx(critic / 2, rel=1e-6)
    pixels = sum(abs(g - t) ** power for g, t in zip(guess.flatten().tolist(), future.flatten().tolist(), strict=True))
    fooled = sum(cross_entropy(m, 1) for m in made) / 3
    expected = pixels / guess.numel() + 2 * edges + 30 * fooled / guess[0].numel()
    assert found["generator"] == pytest.approx(expected, rel=1e-5)


def test_each_phase_trains_its_own_and_leaves_all_else_as_it_is():
    learner, moved = make(), {}
    for phase in learner.phases:
        before = copy.deepcopy(learner.state_dict())
        optimiser = torch.optim.AdamW([p for _, p in learner.parameters_of(phase)], lr=1e-3)
        take_step(learner, learner, phase, optimiser, squares(0), 1, 1.0, "float32")
        after = learner.state_dict()
        moved[phase] = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved[phase] == {name for name, _ in learner.parameters_of(phase)}
    assert {name.partition(".")[0] for name in moved["critic"]} == {"critic"}
    assert moved["critic"] | moved["generator"] == {name for name, p in learner.named_parameters() if p.requires_grad}


def test_a_clip_begins_as_its_last_frame_and_the_future_is_not_seen():
    learner = make(future=4).eval()
    clip = squares(0, count=2)["video"][0]
    guess = learner.predict(clip[:, :, :8])
    assert guess.shape == (2, 3, 4, 16, 16)
    assert (guess - clip[:, :, 7:8]).abs().max() < 0.1
    seen = []
    learner.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    learner({"video": [clip]}, "generator")
    assert torch.equal(seen[0], clip[:, :, :8])


def test_what_the_critic_thinks_reaches_the_generator():
    learner, batch = make(), squares(0)
    past, future = batch["video"][0][:, :, :8], batch["video"][0][:, :, 8:10]
    weights, found, strong = [learner.enter.weight, learner.head.weight], {}, 1e5  # a new critic knows very little
    for learner.adversarial in (0.0, strong):
        found[learner.adversarial] = torch.autograd.grad(learner(batch, "generator").loss, weights)
    fooled = strong * of_generator(learner.critic(past, learner.predict(past))) / future[0].numel()
    for without, whole, part in zip(found[0.0], found[strong], torch.autograd.grad(fooled, weights), strict=True):
        assert part.norm() > 0.1 * without.norm()
        torch.testing.assert_close(whole, without + part, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("adversarial", "share", "told_right"), [(0.05, 0.5, (0.75, 0.95)), (5.0, 0.55, (0.5, 0.65))])
def test_it_foresees_a_square_and_fools_the_critic_where_that_counts(adversarial, share, told_right):
    """The oracle: half the error of copying the last frame. As published the critic goes on telling what is made; with
    more weight it hardly does, for a little more error."""
    learner = make(loss="l2", gradient=0.0, adversarial=adversarial)
    told = learn(learner, squares, 110, lr=3e-3)
    clip = squares(10_000, count=64)["video"][0]
    past, future = clip[:, :, :8], clip[:, :, 8:10]
    with torch.no_grad():
        guess = learner.predict(past)
    assert error(guess, future) < share * error(past[:, :, -1:], future)
    assert told_right[0] < mean(told, "critic_accuracy", 50) < told_right[1]


def test_it_foresees_nothing_of_what_does_not_follow():
    """The control: of futures of other clips, it knows nothing that the mean of all futures does not."""
    clip = squares(10_000, count=64)["video"][0]
    past, future = clip[:, :, :8], clip[:, :, 8:10]

    def parted(seed: int):
        given = squares(seed)["video"][0]
        return {"video": [torch.cat([given[:, :, :8], given.roll(1, 0)[:, :, 8:]], dim=2)]}

    control = make(loss="l2", gradient=0.0)
    learn(control, parted, 40, lr=3e-3)
    with torch.no_grad():
        guess = control.predict(past)
    assert error(guess, future.roll(1, 0)) > 0.95 * error(future.mean(dim=0, keepdim=True), future)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"future": 3}, "multiple of backbone.tubelet"),
        ({"future": 0}, "1 or more, not 0"),
        ({"gradient": -1.0}, "learner.gradient must be 0"),
        ({"adversarial": -0.1}, "learner.adversarial must be 0"),
        ({"decoder_dim": 30, "decoder_heads": 4}, "must divide learner.decoder_dim"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(TubeletError, match=said):
        make(**options)


def test_more_future_than_there_is_is_refused():
    with pytest.raises(TubeletError, match=r"no more than data\.frames"):
        make(future=10).check_clip(8, 16, 16)
