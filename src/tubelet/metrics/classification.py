"""How well videos are classified: the numbers that every task reports, made in one place to be comparable."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tubelet.types import TubeletError


def judge(scores: Tensor, labels: Tensor, classes: list[str]) -> dict[str, Any]:
    """Judges one prediction a video.

    Precision, recall and class-mean accuracy are means over the classes that occur among the labels (for a class
    that is never predicted precision counts as 0); class-mean accuracy and macro recall are the same number.

    Args:
        scores: B K, higher is better (probabilities, logits, votes). Between equal scores the first class wins.
        labels: B int64 in 0..K-1.
        classes: the K names.

    Returns:
        Plain numbers and lists, in shares of 1: ``top1``, ``top5`` (None unless K > 5), ``class_mean``, ``precision``,
        ``recall``, ``majority`` (top-1 of always answering the commonest label), ``interval`` (95 % Wilson interval
        of top-1), ``videos``, ``per_class`` (``class, videos, precision, recall`` for each of the K) and ``confusion``
        (K x K counts: row = label, column = prediction).

    Raises:
        TubeletError: there is nothing to judge, or a score is not a number.
    """
    if len(labels) == 0:
        raise TubeletError("there is no video to judge: the test split is empty or nothing in it could be read")
    if not torch.isfinite(scores).all():
        raise TubeletError("the scores are not finite: the network gives NaN or infinity; look at the loss of its run")
    scores, labels = scores.detach().cpu().double(), labels.cpu()
    order = scores.argsort(dim=1, descending=True, stable=True)  # B K
    guess = order[:, 0]  # B
    confusion = torch.bincount(labels * len(classes) + guess, minlength=len(classes) ** 2)
    confusion = confusion.view(len(classes), len(classes)).double()  # K K
    right, of_label, of_guess = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision = right / of_label.clamp(min=1), right / of_guess.clamp(min=1)  # K
    occurs = of_label > 0
    hits = int(right.sum())
    top5 = (order[:, :5] == labels[:, None]).any(1).double().mean().item() if len(classes) > 5 else None
    return {
        "top1": hits / len(labels),
        "top5": top5,
        "class_mean": recall[occurs].mean().item(),
        "precision": precision[occurs].mean().item(),
        "recall": recall[occurs].mean().item(),
        "majority": of_label.max().item() / len(labels),
        "interval": list(wilson(hits, len(labels))),
        "videos": len(labels),
        "per_class": [
            {"class": name, "videos": int(of_label[k]), "precision": precision[k].item(), "recall": recall[k].item()}
            for k, name in enumerate(classes)
        ],
        "confusion": confusion.long().tolist(),
    }


def wilson(hits: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), 95 % unless told: honest for few trials and near 0 and 1."""
    share, spread = hits / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_spread(values: list[float]) -> dict[str, float | None]:
    """Several seeds of one experiment: ``mean``, ``std`` (over n - 1; None for one value), ``min`` and ``max``."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    std = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else None
    return {"mean": mean, "std": std, "min": min(values), "max": max(values)}
