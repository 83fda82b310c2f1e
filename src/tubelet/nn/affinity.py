"""Which place of one frame is which of another: affinities between tokens, and what is copied along them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.learner import Backbone
from tubelet.types import TubeletError

BLOCK = 2**24
"""Affinities of a clip that `copy` has in memory at a time (64 MiB)."""


def needs_background(backbone: Backbone, learner: str) -> None:
    """Raises a TubeletError where a backbone sees nothing in the `still` clips that a learner shows it."""
    if backbone.config["background"] == "remove":
        raise TubeletError(
            f"{learner} sees frames one by one, and a backbone with background remove sees nothing in a still picture: "
            "set backbone.background to keep"
        )


def still(backbone: Backbone, pictures: Tensor) -> Tensor:
    """The tokens of pictures, n C h w, each repeated to the length of a cube: n N D."""
    clips = pictures[:, :, None].expand(-1, -1, backbone.config["tubelet"], -1, -1)  # n C t h w
    return backbone(clips).tokens  # n N D


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
    scores = similarity(queries, keys, temperature, allowed)  # B N M
    if dropped is not None:
        left = scores.masked_fill(dropped, -torch.inf)
        scores = torch.where((left > -torch.inf).any(dim=-1, keepdim=True), left, scores)
    return scores.softmax(dim=-1)  # B N M


def similarity(queries: Tensor, keys: Tensor, temperature: float, allowed: Tensor | None = None) -> Tensor:
    """Cosine / temperature of each query, B N D, and key, B M D; minus infinity where not allowed: B N M float32."""
    with torch.autocast(queries.device.type, enabled=False):
        scores = F.normalize(queries.float(), dim=-1) @ (F.normalize(keys.float(), dim=-1) / temperature).mT  # B N M
    return scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)


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
        scores = similarity(queries[:, rows], keys, temperature, None if allowed is None else allowed[rows])  # B n M
        if top is None or top >= scores.shape[-1]:
            with torch.autocast(values.device.type, enabled=False):
                found.append(scores.softmax(dim=-1) @ values.float())  # B n C
            continue
        best, place = scores.topk(top, dim=-1)  # B n k
        clip = torch.arange(len(values), device=values.device)[:, None, None]
        found.append((best.softmax(dim=-1)[..., None] * values[clip, place]).sum(dim=2))  # B n C
    return torch.cat(found, dim=1)  # B N C


def neighbours(grid: tuple[int, int], radius: float, device: torch.device | None = None) -> Tensor:
    """Which tokens of a frame are at most ``radius`` rows and columns from each other: N N bool.

    Args:
        grid: rows and columns of the tokens.
    """
    rows, columns = (torch.arange(count, device=device) for count in grid)
    y, x = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])  # N each
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)  # N N
