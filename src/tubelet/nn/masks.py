"""Which cubes are hidden. True = hidden; every clip of a batch has exactly the same number of them.

Each mask is a function of the samples' keys alone, so the same sample in the same epoch gets the same mask on any
device, with any number of processes, and after any restart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tubelet import draws
from tubelet.types import Grid, TubeletError


def tube(keys: Tensor, grid: Grid, ratio: float) -> Tensor:
    """The same places hidden in every frame (VideoMAE section 3.3): no cube can be copied from its neighbour in time.

    Args:
        keys: B int64.
        ratio: share of the places to hide; ``int(ratio * places)`` are.

    Returns:
        B N bool.
    """
    frames, rows, columns = grid
    places = _lowest(keys, rows * columns, hidden_count(rows * columns, ratio))  # B rows*columns
    return places.repeat(1, frames)  # B N


def random(keys: Tensor, grid: Grid, ratio: float) -> Tensor:
    """Cubes hidden anywhere in space and time (the ablation of VideoMAE table 1b; mae_st's choice)."""
    frames, rows, columns = grid
    count = frames * rows * columns
    return _lowest(keys, count, hidden_count(count, ratio))  # B N


def frame(keys: Tensor, grid: Grid, ratio: float) -> Tensor:
    """Whole frames hidden (the ablation of VideoMAE table 1b); at least one frame is left to see."""
    frames, rows, columns = grid
    return _lowest(keys, frames, hidden_count(frames, ratio)).repeat_interleave(rows * columns, dim=1)  # B N


KINDS: dict[str, Callable[[Tensor, Grid, float], Tensor]] = {"tube": tube, "random": random, "frame": frame}


def hidden_count(count: int, ratio: float) -> int:
    """How many of `count` are hidden: rounded down, as published (176 of 196 at .9).

    Raises:
        TubeletError: that would hide nothing or everything.
    """
    hidden = int(ratio * count)
    if not 0 < hidden < count:
        raise TubeletError(
            f"a mask ratio of {ratio} hides {hidden} of {count} places: it must leave some and hide some"
        )
    return hidden


def visible(tokens: Tensor, hidden: Tensor) -> Tensor:
    """The tokens that are not hidden, in ascending order: B N ... -> B N-M ..."""
    return _select(tokens, ~hidden)


def masked(tokens: Tensor, hidden: Tensor) -> Tensor:
    """The hidden tokens, in ascending order: B N ... -> B M ..."""
    return _select(tokens, hidden)


def _select(tokens: Tensor, chosen: Tensor) -> Tensor:
    if tokens.shape[0] != chosen.shape[0]:
        tokens = tokens.expand(chosen.shape[0], *tokens.shape[1:])
    return tokens[chosen].reshape(tokens.shape[0], -1, *tokens.shape[2:])


def _lowest(keys: Tensor, count: int, hidden: int) -> Tensor:
    """B count bool, True at the `hidden` lowest of `count` draws for each key."""
    order = draws.uniform(keys, count, "mask").argsort(dim=1, stable=True)  # B count
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return mask.scatter_(1, order[:, :hidden], True)
