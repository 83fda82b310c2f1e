"""Which place of one frame is which of another: affinities between tokens, and what is copied along them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24
"""Affinities of a clip that `copy` has in memory at a time (64 MiB)."""


def transition(
    queries: Tensor, keys: Tensor, temperature: float, allowed: Tensor | None = None, dropped: Tensor | None = None
) -> Tensor:
    """The chance of a step from each query to each key: the softmax of cosine / temperature. Rows sum to 1.

    Args:
        queries: B N D, of any length.
        keys: B M D.
        allowed: N M bool, at least one a row: where a step may lead.
        dropped: B N M bool: steps that are left out; a row that would lose all of them keeps all.

    Returns:
        B N M float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        cosine = F.normalize(queries.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).mT  # B N M
    open_ = torch.ones_like(cosine, dtype=torch.bool) if allowed is None else allowed.expand_as(cosine)
    if dropped is not None:
        left = open_ & ~dropped
        open_ = torch.where(left.any(dim=-1, keepdim=True), left, open_)
    return (cosine / temperature).masked_fill(~open_, -torch.inf).softmax(dim=-1)  # B N M


def copy(
    values: Tensor,
    queries: Tensor,
    keys: Tensor,
    temperature: float,
    allowed: Tensor | None = None,
    top: int | None = None,
) -> Tensor:
    """What each query finds at the keys that are like it: the mean of their values, weighted by `transition`.

    Args:
        values: B M C, what is at the keys.
        queries: B N D.
        keys: B M D.
        allowed: N M bool, at least one a row: which keys a query may look at.
        top: only so many of the likeliest keys count; None = all.

    Returns:
        B N C float32.
    """
    found = []
    size = max(1, BLOCK // keys.shape[1])
    for start in range(0, queries.shape[1], size):
        rows = slice(start, start + size)
        chance = transition(queries[:, rows], keys, temperature, None if allowed is None else allowed[rows])  # B n M
        if top is not None and top < chance.shape[-1]:
            least = chance.topk(top, dim=-1).values[..., -1:]  # B n 1
            chance = chance.masked_fill(chance < least, 0)
            chance = chance / chance.sum(dim=-1, keepdim=True)
        found.append(chance @ values.float())  # B n C
    return torch.cat(found, dim=1)  # B N C


def neighbours(grid: tuple[int, int], radius: float, device: torch.device | None = None) -> Tensor:
    """Which tokens of a frame are at most ``radius`` rows and columns from each other: N N bool.

    Args:
        grid: rows and columns of the tokens.
    """
    rows, columns = (torch.arange(count, device=device) for count in grid)
    y, x = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])  # N each
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)  # N N
