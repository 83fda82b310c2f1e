"""Clusters: balanced assignments of a batch, and k-means of a whole set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tubelet import dist, draws


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Shares of each clip in the clusters, such that every cluster gets as much of the batch of all processes.

    Rows and columns of ``exp(scores / epsilon)`` are brought to equal sums in turn (Cuturi 2013; as in SwAV, Caron et
    al. 2020, section 3.1).

    Args:
        scores: B K, this process's part.
        epsilon: less makes assignments harder.

    Returns:
        B K float32, rows sum to 1.
    """
    scores = dist.gather_rows(scores.double() / epsilon)
    logarithm = scores - scores.logsumexp(dim=(0, 1))  # all B K
    count, clusters = logarithm.shape
    for _ in range(iterations):
        logarithm = logarithm - logarithm.logsumexp(dim=0, keepdim=True) - math.log(clusters)
        logarithm = logarithm - logarithm.logsumexp(dim=1, keepdim=True) - math.log(count)
    shares = (logarithm + math.log(count)).exp().float()
    return dist.own_part(shares)  # B K


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, seed: int, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from k-means++ starts; the same on every process that has the same points.

    A cluster that loses all of its points is given half of the largest: it starts at the largest one's centre, a little
    to the side, as in DeepCluster (Caron et al. 2018, section 3.3).

    Args:
        points: N D; normalised by the caller where the distance is to be a cosine's.
        clusters: K, not more than N.

    Returns:
        The centres, K D, and the cluster of each point, N int64.
    """
    points = points.float()
    generator = draws.generator(seed, "kmeans")
    centres = _spread(points, clusters, generator.random(clusters).tolist())  # K D
    for _ in range(iterations):
        nearest = _nearest(points, centres)  # N
        counts = torch.bincount(nearest, minlength=clusters)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / counts.clamp(min=1)[:, None]
        for empty in (counts == 0).nonzero().flatten().tolist():
            largest = int(counts.argmax())
            side = torch.from_numpy(generator.standard_normal(points.shape[1])).to(points)
            step = 1e-3 * centres[largest].norm().clamp(min=1e-6) * side / side.norm()
            centres[empty], centres[largest] = centres[largest] + step, centres[largest] - step
            counts[empty] = counts[largest] // 2
            counts[largest] -= counts[empty]
    return centres, _nearest(points, centres)


def _spread(points: Tensor, clusters: int, chances: list[float]) -> Tensor:
    """Starts far from each other: each is a point drawn by its squared distance from those before."""
    chosen = [int(chances[0] * len(points))]
    distance = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    for chance in chances[1:]:
        distance = distance.minimum((points - points[chosen[-1]]).double().square().sum(dim=1))  # N
        cumulated = distance.cumsum(dim=0)
        chosen.append(min(int(torch.searchsorted(cumulated, chance * cumulated[-1])), len(points) - 1))
    return points[chosen]  # K D


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """N: the centre of least distance."""
    norms = centres.square().sum(dim=1)  # K
    return torch.cat([(norms - 2 * block @ centres.T).argmin(dim=1) for block in points.split(16384)])
