"""Losses that several learners share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import dist


def products(one: Tensor, other: Tensor) -> Tensor:
    """The product of each row of one (B D) with each of the other (K D): B K, in float32 under autocast too.

    Cosines of bfloat16 are wrong in their third digit, and a temperature of .07 makes .05 of that.
    """
    with torch.autocast(one.device.type, enabled=False):
        return one.float() @ other.float().T  # B K


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
    scores = products(queries, keys) / temperature  # B K
    if ignored is not None:
        scores = scores.masked_fill(ignored, -torch.inf)
    return scores.logsumexp(dim=1) - scores.masked_fill(~positive, -torch.inf).logsumexp(dim=1)  # B


def nt_xent(
    one: Tensor, other: Tensor, ids: Tensor, temperature: float, negatives: Tensor | None = None
) -> Tensor:
    """How badly each of two views of a clip finds the other among the views of all processes.

    Source: Chen et al. 2020, SimCLR, equation 1. Other views of the same video, which are in a batch
    where it is taken several times, are no negatives.

    Args:
        one, other: B D each, normalised by the caller.
        ids: B int64, of the videos.
        negatives: K D: further keys that fit no view, such as clips played backwards; those of all processes count.

    Returns:
        2B float32: of the first clip's two views, then of the second's.
    """
    views = torch.stack([one, other], dim=1).flatten(0, 1)  # 2B D
    videos = ids.repeat_interleave(2)  # 2B
    keys = dist.gather_rows(views)  # 2B*processes D, here K D
    partner = torch.eye(len(keys), dtype=torch.bool, device=keys.device).unflatten(1, (-1, 2)).flip(2).flatten(1)  # K K
    positive = dist.own_part(partner)  # 2B K
    ignored = (videos[:, None] == dist.gather_rows(videos)) & ~positive  # 2B K
    if negatives is not None:
        more = dist.gather_rows(negatives)
        keys = torch.cat([keys, more])
        positive, ignored = (F.pad(mask, (0, len(more))) for mask in (positive, ignored))
    return contrast(views, keys, positive, temperature, ignored)  # 2B
