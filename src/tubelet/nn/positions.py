"""Where a token is: fixed sine-cosine tables."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tubelet.types import Grid, TubeletError


@lru_cache(maxsize=64)
def table(kind: str, grid: Grid, dim: int, device: torch.device) -> Tensor:
    """The "flat" or "separable" table of a grid, N dim, on a device; made once for each."""
    return {"flat": flat, "separable": separable}[kind](grid, dim).to(device)


def sine_cosine(positions: Tensor, dim: int) -> Tensor:
    """Sines (even columns) and cosines (odd columns) of ``positions``, as in the Transformer (Vaswani 2017, 3.5).

    Column ``j`` has the angle ``position / 10000 ** (2 * (j // 2) / dim)``. Computed in float64.

    Args:
        positions: N, any real numbers.

    Returns:
        N dim, float32.
    """
    column = torch.arange(dim, dtype=torch.float64)
    angle = positions.to(torch.float64)[:, None] / 10000 ** (2 * (column // 2) / dim)  # N D
    table = torch.where(column.long() % 2 == 0, angle.sin(), angle.cos())
    return table.to(torch.float32)


def flat(grid: Grid, dim: int) -> Tensor:
    """The table of the published VideoMAE: one index over the flattened tokens (time first, then rows, then columns).

    Returns:
        N dim.
    """
    frames, rows, columns = grid
    return sine_cosine(torch.arange(frames * rows * columns), dim)


def separable(grid: Grid, dim: int) -> Tensor:
    """One table for each axis, side by side: a quarter of the width for time, three eighths each for row and column.

    Unlike `flat`, neighbours above and below, before and after are near each other in it too.

    Raises:
        TubeletError: ``dim`` is not a multiple of 16.
    """
    if dim % 16:
        raise TubeletError(f"separable positions need a width that is a multiple of 16, not {dim}")
    widths = (dim // 4, dim * 3 // 8, dim * 3 // 8)
    axes = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    return torch.cat(
        [sine_cosine(axis.flatten(), width) for axis, width in zip(axes, widths, strict=True)], dim=1
    )  # N D
