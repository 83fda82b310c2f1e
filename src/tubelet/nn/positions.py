"""Where a token is: fixed sine-cosine tables or learnt ones, for clips of any length and pictures of any size."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.types import Grid, TubeletError

Kind = Literal["flat", "separable", "learned"]


class Positions(nn.Module):
    """A vector for each token of a grid.

    A table that is made for one grid is interpolated for any other, in time and in space, so that a token keeps the
    place that it has in the clip. (The published code makes its table anew instead, over a longer index: at 320 pixels
    or 32 frames tokens then carry the positions of other places.)

    Args:
        kind: "flat", "separable" (both fixed) or "learned" (mae_st's: a spatial and a temporal table, added).
        dim: width of a token.
        made_for: the grid whose table is used as it is; None makes fixed tables anew for each grid.

    Raises:
        TubeletError: learnt positions without a grid, or a width that the kind cannot have.
    """

    def __init__(self, kind: Kind, dim: int, made_for: Grid | None = None) -> None:
        super().__init__()
        self.kind, self.dim, self.made_for = kind, dim, made_for
        if kind == "separable":
            _check_separable(dim)
        if kind == "learned":
            if made_for is None:
                raise TubeletError("learnt positions need backbone.made_for: frames, height and width of the clips")
            self.spatial = nn.Parameter(torch.empty(made_for[1] * made_for[2], dim))
            self.temporal = nn.Parameter(torch.empty(made_for[0], dim))
            nn.init.trunc_normal_(self.spatial, std=0.02)
            nn.init.trunc_normal_(self.temporal, std=0.02)

    def forward(self, grid: Grid, device: torch.device) -> Tensor:
        """The positions of a grid's tokens, time first, then rows, then columns: N D."""
        if self.kind != "learned":
            return table(self.kind, grid, self.dim, device, self.made_for)
        temporal, spatial = self.learnt(grid)  # t D, h*w D
        return (temporal[:, None] + spatial).flatten(0, 1)  # N D

    def learnt(self, grid: Grid) -> tuple[Tensor, Tensor]:
        """The learnt tables for a grid: of time, t D, and of space, h*w D."""
        assert self.made_for is not None
        frames, rows, columns = self.made_for
        temporal = resample(self.temporal.view(frames, 1, 1, self.dim), (grid[0], 1, 1))  # t 1 1 D
        spatial = resample(self.spatial.view(1, rows, columns, self.dim), (1, grid[1], grid[2]))  # 1 h w D
        return temporal.flatten(0, 2), spatial.flatten(0, 2)

    def extra_repr(self) -> str:
        return f"{self.kind}, dim={self.dim}, made_for={self.made_for}"


@lru_cache(maxsize=64)
def table(kind: str, grid: Grid, dim: int, device: torch.device, made_for: Grid | None = None) -> Tensor:
    """The fixed table of a grid, N D, on a device; made once for each."""
    return {"flat": flat, "separable": separable}[kind](grid, dim, made_for).to(device)


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


def flat(grid: Grid, dim: int, made_for: Grid | None = None) -> Tensor:
    """The table of the published VideoMAE: one index over the flattened tokens (time first, then rows, then columns).

    Between the tokens of ``made_for`` the *table* is interpolated, not the index: half a frame later is half a
    picture further on in that index, which is another place.

    Returns:
        N dim.
    """
    frames, rows, columns = made_for or grid
    published = sine_cosine(torch.arange(frames * rows * columns), dim)  # N D
    return resample(published.view(frames, rows, columns, dim), grid).flatten(0, 2)  # N D


def separable(grid: Grid, dim: int, made_for: Grid | None = None) -> Tensor:
    """One table for each axis, side by side: a quarter of the width for time, three eighths each for row and column.

    Unlike `flat`, neighbours above and below, before and after are near each other in it too, and places between
    those of ``made_for`` have exact sines and cosines of their own.

    Raises:
        TubeletError: ``dim`` is not a multiple of 16.
    """
    _check_separable(dim)
    widths = (dim // 4, dim * 3 // 8, dim * 3 // 8)
    # the middle of each cube, in cubes of the grid that the table is made for
    places = [(torch.arange(n) + 0.5) * (base / n) - 0.5 for n, base in zip(grid, made_for or grid, strict=True)]
    axes = torch.meshgrid(*places, indexing="ij")
    return torch.cat(
        [sine_cosine(axis.flatten(), width) for axis, width in zip(axes, widths, strict=True)], dim=1
    )  # N D


def resample(table: Tensor, grid: Grid) -> Tensor:
    """A table for another grid: bicubic in space (with antialiasing, where it shrinks), linear in time.

    Args:
        table: t h w D.

    Returns:
        The same for ``grid``.
    """
    frames, rows, columns, dim = table.shape
    if (rows, columns) != grid[1:]:
        pictures = table.permute(0, 3, 1, 2)  # t D h w
        table = F.interpolate(pictures, grid[1:], mode="bicubic", antialias=True).permute(0, 2, 3, 1)  # t h' w' D
    if frames != grid[0]:
        lines = table.flatten(1).T[None]  # 1 h'*w'*D t
        table = F.interpolate(lines, grid[0], mode="linear")[0].T.reshape(*grid, dim)  # t' h' w' D
    return table


def _check_separable(dim: int) -> None:
    if dim % 16:
        raise TubeletError(f"separable positions need a width that is a multiple of 16, not {dim}")
