"""k nearest neighbours: is a video's class that of the videos whose features are closest? Nothing is trained."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.learner import Backbone
from tubelet.registry import register
from tubelet.tasks.features import features
from tubelet.tasks.protocol import Protocol, Result, Task, conclude
from tubelet.types import TubeletError

BLOCK = 2**24
"""Similarities that are in memory at a time (64 MiB)."""


@register("knn")
class NearestNeighbours(Task):
    """Weighted vote of the nearest training videos by cosine, on mean-pooled frozen features.

    Source: Wu et al. 2018, https://arxiv.org/abs/1805.01978; k and temperature as in DINO.

    Args:
        k: number of neighbours; all training videos when there are fewer.
        temperature: a neighbour's vote is the softmax over the k of cosine / temperature.
        whiten: compare along the principal axes of the training features, each scaled to variance 1. Features that
            were trained by reconstruction differ most in what matters least; needs many more videos than dimensions.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, whiten: bool = False) -> None:
        if k < 1 or temperature <= 0:
            raise TubeletError(f"knn needs k >= 1 and temperature > 0, not k {k} and temperature {temperature}")
        self.k, self.temperature, self.whiten = k, temperature, whiten

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        started = time.perf_counter()
        train, test = (features(backbone, part, protocol) for part in (protocol.train, protocol.test))
        bank, queries = train.values[train.readable], test.values[test.readable]
        if self.whiten:
            bank, queries = whitened(bank, queries)
        labels = train.labels[train.readable]
        probabilities = vote(queries, bank, labels, len(protocol.classes), self.k, self.temperature)
        return conclude(probabilities, test.readable, protocol, out, started=started, train_readable=train.readable)


def vote(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """The share of the weighted votes for each class.

    Args:
        queries: B D.
        bank: N D.
        labels: N int64, the class of each row of the bank.

    Returns:
        B K, rows sum to 1.
    """
    bank = functional.normalize(bank.float(), dim=1)
    shares = []
    for block in queries.float().split(max(1, BLOCK // len(bank))):
        cosine, nearest = (functional.normalize(block, dim=1) @ bank.T).topk(min(k, len(bank)))  # b k
        weight = (cosine / temperature).softmax(dim=1)  # b k
        shares.append(torch.zeros(len(block), classes).scatter_add_(1, labels[nearest], weight))  # b K
    return torch.cat(shares)  # B K


def whitened(bank: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Both, N D and B D, along the principal axes of the bank (N R and B R): the bank has mean 0 and variance 1."""
    mean = bank.double().mean(dim=0)
    variance, axes = torch.linalg.eigh(torch.cov(bank.double().T))
    used = variance > 1e-6 * variance.max()
    to_unit = axes[:, used] / variance[used].sqrt()  # D R
    return (bank - mean) @ to_unit, (queries - mean) @ to_unit
