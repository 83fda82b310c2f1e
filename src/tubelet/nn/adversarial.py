"""Losses of two that work against each other: a critic, and a generator of what it takes for real.

Goodfellow et al.: Generative Adversarial Networks, NIPS 2014, arXiv:1406.2661.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def of_critic(real: Tensor, made: Tensor) -> Tensor:
    """How badly the critic tells what is real from what is made (equation 1): log 2 where it cannot tell at all.

    The mean of both halves, each a cross-entropy of the scores' sigmoid with 1 and with 0.

    Args:
        real: B, its scores, high = real.
        made: B, likewise.

    Returns:
        A scalar, float32.
    """
    return (F.softplus(-real.float()).mean() + F.softplus(made.float()).mean()) / 2


def of_generator(made: Tensor) -> Tensor:
    """How badly what is made passes for real: the form of section 3 whose gradient does not vanish, a scalar, float32.

    Args:
        made: B, the critic's scores.
    """
    return F.softplus(-made.float()).mean()
