"""Clips to cubes and back."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.types import Grid, TubeletError


def cube_grid(frames: int, height: int, width: int, tubelet: int, patch: int) -> Grid:
    """How many cubes of ``tubelet`` frames and ``patch`` x ``patch`` pixels a clip has along time, height and width.

    Raises:
        TubeletError: the cubes do not divide the clip.
    """
    if frames % tubelet:
        raise TubeletError(f"{frames} frames are not a multiple of the tubelet of {tubelet} frames: change data.frames")
    if height % patch or width % patch:
        nearest = max(patch, round(height / patch) * patch)
        raise TubeletError(
            f"a picture of {height}x{width} is not a multiple of the patch of {patch} pixels: "
            f"set data.size to {nearest}, or change backbone.patch"
        )
    return frames // tubelet, height // patch, width // patch


def cubes(video: Tensor, tubelet: int, patch: int) -> Tensor:
    """Cuts a clip into cubes, each with its pixels still in order.

    Args:
        video: B C T H W.

    Returns:
        B N C tubelet patch patch, a view where possible.
    """
    batch, channels, frames, height, width = video.shape
    grid = cube_grid(frames, height, width, tubelet, patch)
    video = video.reshape(batch, channels, grid[0], tubelet, grid[1], patch, grid[2], patch)
    video = video.permute(0, 2, 4, 6, 1, 3, 5, 7)  # B t h w C tubelet patch patch
    return video.reshape(batch, math.prod(grid), channels, tubelet, patch, patch)  # B N C tubelet patch patch


def join(pieces: Tensor, grid: Grid) -> Tensor:
    """The inverse of `cubes`.

    Args:
        pieces: B N C tubelet patch patch.

    Returns:
        B C T H W.
    """
    batch, _, channels, tubelet, patch, _ = pieces.shape
    pieces = pieces.reshape(batch, *grid, channels, tubelet, patch, patch)
    pieces = pieces.permute(0, 4, 1, 5, 2, 6, 3, 7)  # B C t tubelet h patch w patch
    return pieces.reshape(batch, channels, grid[0] * tubelet, grid[1] * patch, grid[2] * patch)  # B C T H W


def inflated(weight: Tensor, tubelet: int, how: Literal["average", "central"]) -> Tensor:
    """The embedding of pictures as one of cubes: D C 1 patch patch -> D C tubelet patch patch.

    "average" shares the weights out evenly over the frames (I3D, Carreira and Zisserman 2017, section 2.4), so that a
    still cube gets the token of its picture; "central" gives them to the middle frame (ViViT, Arnab 2021, equation 9).
    """
    if how == "average":
        return weight.expand(-1, -1, tubelet, -1, -1) / tubelet  # D C tubelet patch patch
    video = weight.new_zeros(*weight.shape[:2], tubelet, *weight.shape[3:])  # D C tubelet patch patch
    video[:, :, tubelet // 2] = weight[:, :, 0]
    return video


class CubeEmbedding(nn.Module):
    """One linear map of a cube's pixels to a token: the published Conv3d whose stride is its kernel.

    The weight has the shape of that convolution, so that published checkpoints fit, but only the cubes that are asked
    for are embedded.
    """

    def __init__(self, dim: int, tubelet: int, patch: int, channels: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, channels, tubelet, patch, patch))
        self.bias = nn.Parameter(torch.empty(dim))
        # The start of a Conv3d, as published: uniform in one over the root of a cube's number of values
        bound = (channels * tubelet * patch**2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, pieces: Tensor) -> Tensor:
        """B N C tubelet patch patch -> B N D."""
        return nn.functional.linear(pieces.flatten(2), self.weight.flatten(1), self.bias)  # B N D
