"""How good a representation looks without labels: pure functions of the vectors of some clips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DEAD = 0.01
"""A dimension varies so little beside the one that varies most, and is dead."""
ROUNDING = 1e-5
"""A deviation that is so small beside the values themselves is rounding in float32, not information."""


def effective_rank(features: Tensor, centre: bool = False) -> float:
    """RankMe: how many directions the vectors make use of, from 1 to min(N, D).

    The exponential of the entropy of the singular values, each divided by their sum, plus 1e-7 (Garrido, Balestriero,
    Najman, LeCun: RankMe, ICML 2023, https://arxiv.org/abs/2210.02885, equation 1). It depends on N: compare only what
    was measured on equally many vectors.

    Args:
        features: N D.
        centre: take the mean vector away first. As published it stays, so that vectors that all agree have rank 1;
            without it, what is left of them when they agree is noise, and noise has a high rank.
    """
    features = features.double()
    if centre:
        features = features - features.mean(dim=0)
    values = torch.linalg.svdvals(features)  # min(N, D)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny) + 1e-7
    return float(torch.exp(-(shares * shares.log()).sum()))


def spread(features: Tensor) -> float:
    """How far the vectors lie apart, beside their length: 0 where all agree, at most 1.

    The root mean square of what is left of them without their mean, divided by theirs.

    Args:
        features: N D.
    """
    features = features.double()
    apart = (features - features.mean(dim=0)).square().mean().sqrt()
    return float(apart / features.square().mean().sqrt().clamp(min=torch.finfo(torch.float64).tiny))


def dead_share(features: Tensor) -> float:
    """Share of the D dimensions that say nothing: they deviate under 1 % of what the liveliest does, or by rounding.

    Args:
        features: N D.
    """
    features = features.double()
    deviation = features.std(dim=0, correction=0)  # D
    rounding = ROUNDING * features.square().mean().sqrt()
    return float((deviation <= torch.maximum(DEAD * deviation.max(), rounding)).double().mean())


def consistency(first: Tensor, second: Tensor) -> dict[str, float]:
    """Whether two clips of one video are more alike than clips of different videos.

    Args:
        first: N D, one clip of each of N >= 2 videos.
        second: N D, another clip of the same videos, in the same order.

    Returns:
        ``same``: the mean cosine of the two clips of a video, the mean of all vectors taken away first; ``other``: that
        of one video's first and another's second clip; ``nearest``: of how many of all clips the most similar other
        clip is that of the same video (a share; by chance 1 / (2N - 1)).
    """
    both = torch.cat([first, second]).double()  # 2N D
    unit = F.normalize(both - both.mean(dim=0), dim=1)
    count = len(first)
    alike = unit @ unit.T  # 2N 2N
    across = alike[:count, count:]  # N N
    same = across.diagonal().mean()
    other = (across.sum() - across.diagonal().sum()) / (count * (count - 1))
    partner = torch.arange(2 * count, device=both.device).roll(count)  # 2N
    nearest = alike.fill_diagonal_(-torch.inf).argmax(dim=1)  # 2N
    return {"same": float(same), "other": float(other), "nearest": float((nearest == partner).double().mean())}
