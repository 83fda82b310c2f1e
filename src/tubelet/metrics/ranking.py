"""How well a ranking brings what belongs together to its top."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at(scores: Tensor, relevant: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """The share of queries with something relevant among their first k; all of the gallery where it is smaller.

    Equal scores count as if their order were drawn: the chance that one of the relevant is among those that are taken.
    Rules that rank what is relevant first (or last) among equals make a collapsed encoder look perfect (or hopeless).

    Args:
        scores: Q G, larger is closer.
        relevant: Q G bool; a query without any counts as missed.
    """
    found = {}
    ordered = scores.sort(dim=1, descending=True).values  # Q G
    for k in ks:
        last = ordered[:, min(k, scores.shape[1]) - 1 : min(k, scores.shape[1])]  # Q 1
        above, level = scores > last, scores == last
        room = min(k, scores.shape[1]) - above.sum(dim=1)  # Q: how many of those with the last score are taken
        missed = _none_of(room, level.sum(dim=1), (level & relevant).sum(dim=1))
        hit = torch.where((above & relevant).any(dim=1), torch.ones_like(missed), 1 - missed)
        found[k] = float(hit.mean())
    return found


def _none_of(drawn: Tensor, among: Tensor, wanted: Tensor) -> Tensor:
    """The chance that `drawn` of `among` things, without putting back, hold none of the `wanted`."""
    free, drawn, among = (count.double() for count in (among - wanted, drawn, among))
    # (free choose drawn) / (among choose drawn)
    logarithm = (
        torch.lgamma(free + 1) - torch.lgamma((free - drawn).clamp(min=0) + 1)
        - torch.lgamma(among + 1) + torch.lgamma(among - drawn + 1)
    )  # fmt: skip
    return torch.where(free >= drawn, logarithm.exp(), torch.zeros_like(logarithm))


def mean_average_precision(scores: Tensor, relevant: Tensor) -> float:
    """The mean over queries (that have something relevant) of the precision at each relevant place.

    Equal scores are one place, as in scikit-learn's `average_precision_score`.

    Args:
        scores: Q G, larger is closer.
        relevant: Q G bool.
    """
    values = []
    for row, wanted in zip(scores, relevant, strict=True):
        if wanted.any():
            ordered, order = row.sort(descending=True)
            hits = wanted[order].double().cumsum(dim=0)  # G
            ends = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool, device=row.device)])
            places = (torch.arange(len(row), device=row.device) + 1)[ends]
            gained = torch.diff(hits[ends], prepend=hits.new_zeros(1))
            values.append(float((gained * hits[ends] / places).sum() / hits[-1]))
    return sum(values) / len(values) if values else 0.0
