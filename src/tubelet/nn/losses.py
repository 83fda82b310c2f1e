"""Losses that several learners share."""

from __future__ import annotations

import torch
from torch import Tensor


def contrast(
    queries: Tensor, keys: Tensor, positive: Tensor, temperature: float | Tensor, ignored: Tensor | None = None
) -> Tensor:
    """How badly each query tells its positive keys from all others: ``-log(sum of positives / sum of all)``.

    The terms are ``exp(query . key / temperature)``. With one positive a query it is InfoNCE (van den Oord et al. 2018,
    equation 4) or, with both views among queries and keys, NT-Xent (Chen et al. 2020, equation 1); with several it is
    MIL-NCE (Miech et al. 2020, equation 1): one positive that fits is enough.

    Args:
        queries: B D, normalised by the caller where similarity is a cosine.
        keys: K D, likewise.
        positive: B K bool, at least one a row.
        ignored: B K bool: keys that are neither, such as the query itself; a positive one must not be among them.

    Returns:
        B float32, not less than 0.
    """
    scores = queries.float() @ keys.float().T / temperature  # B K
    if ignored is not None:
        scores = scores.masked_fill(ignored, -torch.inf)
    return scores.logsumexp(dim=1) - scores.masked_fill(~positive, -torch.inf).logsumexp(dim=1)  # B
