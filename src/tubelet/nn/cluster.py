"""Clusters: balanced assignments of a batch, and k-means of a whole set, with what comes before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tubelet import dist, draws
from tubelet.types import Batch


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, earlier: Tensor | None = None) -> Tensor:
    """Shares of each clip in the clusters, such that every cluster gets as much of the batch of all processes.

    Rows and columns of ``exp(scores / epsilon)`` are brought to equal sums in turn (Cuturi 2013; as in SwAV, Caron et
    al. 2020, section 3.1).

    Args:
        scores: B K, this process's part.
        epsilon: less makes assignments harder.
        earlier: Q K, the same on all processes: clips of earlier batches that are divided up with this one's.

    Returns:
        B K float32, rows sum to 1.
    """
    scores = dist.gather_rows(scores.double() / epsilon)  # all B K
    own = len(scores)
    if earlier is not None:
        scores = torch.cat([scores, earlier.double() / epsilon])  # all B+Q K
    logarithm = scores - scores.logsumexp(dim=(0, 1))
    count, clusters = logarithm.shape
    for _ in range(iterations):
        logarithm = logarithm - logarithm.logsumexp(dim=0, keepdim=True) - math.log(clusters)
        logarithm = logarithm - logarithm.logsumexp(dim=1, keepdim=True) - math.log(count)
    shares = (logarithm + math.log(count)).exp().float()
    return dist.own_part(shares[:own])  # B K


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


@torch.no_grad()
def encode_all(
    batches: Iterable[Batch], network: nn.Module, encode: Callable[[Batch], Tensor]
) -> tuple[Tensor, Tensor]:
    """Goes through the training set, as `now.ordered()` of a hook does; all processes get all of it.

    All do equally many forward passes, as sharded weights need.

    Args:
        network: what ``encode`` calls; it is in evaluation mode meanwhile.
        encode: makes one vector of each clip, B D; the batch is on the network's device, clips as floats in [0, 1].

    Returns:
        N D float32, in the order of `id`, and N bool: which of the videos can be read.
    """
    device, training = next(network.parameters()).device, network.training
    network.eval()
    remaining, batch = iter(batches), None
    vectors, readable = [], []
    while dist.any_process((following := next(remaining, None)) is not None):
        batch = batch if following is None else _floats(following, device)
        assert batch is not None, "every process has a part"
        encoded = encode(batch).float()  # B D
        if following is not None:
            vectors.append(encoded.cpu())
            readable.append(batch["readable"].cpu())
    network.train(training)
    if isinstance(network, FSDPModule):  # its own weights stay gathered after a pass, and the hook may change them
        network.reshard()
    parts = dist.gather((torch.cat(vectors), torch.cat(readable)))
    return torch.cat([part for part, _ in parts]).to(device), torch.cat([part for _, part in parts]).to(device)


def _floats(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, with bytes as floats in [0, 1]."""

    def moved(value: object) -> object:
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not isinstance(value, Tensor):
            return value
        value = value.to(device)
        return value.float() / 255 if value.dtype == torch.uint8 else value

    return cast("Batch", {name: moved(value) for name, value in batch.items()})


@torch.no_grad()
def whitened(points: Tensor, components: int) -> Tensor:
    """Unit vectors along the principal axes of points, each axis scaled to variance 1 (DeepCluster, section 3.3).

    Args:
        points: N D.
        components: how many axes at most; those along which nothing varies are left out.

    Returns:
        N components float32.
    """
    centred = points.double() - points.double().mean(dim=0)
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))  # D, D D: smallest first
    kept = (variances > 1e-9 * variances[-1]).nonzero().flatten()[-components:]
    return F.normalize(centred @ axes[:, kept] / variances[kept].sqrt(), dim=1).float()  # N components
