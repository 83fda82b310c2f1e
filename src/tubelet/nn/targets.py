"""What a masked autoencoder predicts of a hidden cube: its pixels in some normalisation, their change, or gradients."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.types import TubeletError

Normalise = Literal["channel", "cube", "none"]


def values(pieces: Tensor) -> Tensor:
    """The values of a cube in the published order: frame, row, column, channel (innermost).

    Args:
        pieces: B M C t p p.

    Returns:
        B M t*p*p*C.
    """
    return pieces.flatten(3).transpose(2, 3).flatten(2)  # B M P


def statistics(pieces: Tensor, how: Normalise) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each cube, by which its pixels are made relative; variances are unbiased.

    "channel": of each channel, 1e-6 added to the deviation (VideoMAE). "cube": of all values of a cube together, the
    1e-6 inside the root, for pixels of deviation .225 as mae_st has them. "none": 0 and 1.

    Args:
        pieces: B M C t p p in [0, 1].

    Returns:
        Twice B M C 1 1 1 (B M 1 1 1 1 for "cube").
    """
    if how == "channel":
        variance, mean = torch.var_mean(pieces, dim=(3, 4, 5), keepdim=True)
        return mean, variance.sqrt() + 1e-6
    if how == "cube":
        variance, mean = torch.var_mean(pieces, dim=(2, 3, 4, 5), keepdim=True)
        return mean, (variance + 1e-6 * 0.225**2).sqrt()
    if how != "none":
        raise TubeletError(f"normalise must be channel, cube or none, not {how!r}")
    nothing = pieces.new_zeros(1, 1, 1, 1, 1, 1)
    return nothing, nothing + 1


def difference(video: Tensor) -> Tensor:
    """How each frame differs from the one before it; the first, which has none, not at all: B C T H W."""
    return F.pad(video.diff(dim=2), (0, 0, 0, 0, 1, 0))  # B C T H W


def hog(picture: Tensor, cell: int, bins: int = 9) -> Tensor:
    """Histograms of oriented gradients (Dalal and Triggs 2005), the target of MaskFeat (Wei et al. 2022, section 3.2).

    Gradients by [-1, 0, 1] of each channel; each pixel votes with its magnitude for one of ``bins`` unsigned
    orientations of its cell; a cell's histogram is divided by its length.

    Args:
        picture: B C H W.
        cell: side of a cell in pixels; it divides H and W.

    Returns:
        B C H/cell W/cell bins.
    """
    batch, channels, height, width = picture.shape
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")  # B C H+2 W+2
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]  # B C H W
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    orientation = torch.atan2(down, across) / math.pi * bins  # B C H W: in -bins..bins, opposite ones bins apart
    vote = F.one_hot(orientation.floor().long() % bins, bins).to(picture.dtype)  # B C H W bins
    vote = vote * torch.hypot(across, down)[..., None]
    histogram = vote.view(batch, channels, height // cell, cell, width // cell, cell, bins).sum(dim=(3, 5))
    return F.normalize(histogram, dim=-1)  # B C H/cell W/cell bins
