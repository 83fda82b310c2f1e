"""Losses of two that work against each other: a critic, and a generator of what it takes for real."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Adversarial = Literal["cross_entropy", "hinge"]


def of_critic(real: Tensor, made: Tensor, kind: Adversarial) -> Tensor:
    """How badly the critic tells what is real (high scores) from what is made (low ones): a scalar.

    "cross_entropy" is Goodfellow et al. 2014, equation 1, the mean of both halves: log 2 where it cannot tell at all.
    "hinge" is Lim and Ye 2017, section 3: scores beyond 1 and -1 are good enough.

    Args:
        real: B, scores of any size.
        made: B, likewise.
    """
    if kind == "cross_entropy":
        return (F.softplus(-real.float()).mean() + F.softplus(made.float()).mean()) / 2
    return (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()) / 2


def of_generator(made: Tensor, kind: Adversarial) -> Tensor:
    """How badly it passes for real: a scalar.

    With "cross_entropy" it maximises the chance to be taken for real (Goodfellow et al. 2014, end of section 3), with
    "hinge" the score itself.

    Args:
        made: B, the critic's scores.
    """
    return F.softplus(-made.float()).mean() if kind == "cross_entropy" else -made.float().mean()
