import math

import pytest
import torch

from tubelet.nn.adversarial import of_critic, of_generator


def chance(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def test_both_losses_against_their_slow_twins():
    real, made = torch.randn(5), torch.randn(5)
    missed = -sum(math.log(chance(r)) for r in real.tolist()) / 5
    believed = -sum(math.log(1 - chance(m)) for m in made.tolist()) / 5
    assert of_critic(real, made).item() == pytest.approx((missed + believed) / 2, rel=1e-6)
    fooled = -sum(math.log(chance(m)) for m in made.tolist()) / 5
    assert of_generator(made).item() == pytest.approx(fooled, rel=1e-6)


def test_a_critic_that_cannot_tell_is_at_log_2_and_one_that_is_sure_leaves_the_generator_a_gradient():
    nothing = torch.zeros(3)
    assert of_critic(nothing, nothing).item() == pytest.approx(math.log(2))
    sure = torch.full((3,), -80.0, requires_grad=True)
    of_generator(sure).backward()
    torch.testing.assert_close(sure.grad, torch.full((3,), -1 / 3))
