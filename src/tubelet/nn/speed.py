"""Clips at speeds of their own, out of clips that were taken more densely."""

from __future__ import annotations

import torch
from torch import Tensor

from tubelet import draws


def at_speed(clip: Tensor, times: Tensor, speed: Tensor, frames: int, keys: Tensor, stream: str) -> Tensor:
    """Every ``speed``-th frame of each clip, from a random start at which ``frames`` of them fit.

    A file that is too short begins again from its first frame, as published for pace prediction: the loader repeats its
    last frame instead, and how long that lasts would give the speed away.

    Args:
        clip: B C T' H W.
        times: B T', the seconds at which its frames were taken.
        speed: B int64.
        keys: B int64, from which the starts are drawn.

    Returns:
        B C ``frames`` H W.
    """
    length = 1 + (times < times[:, -1:]).sum(dim=1)  # B: up to where the last frame is reached
    room = (length - 1 - (frames - 1) * speed).clamp(min=0)  # B
    start = draws.choice(keys, room + 1, stream)  # B
    steps = torch.arange(frames, device=clip.device)
    place = (start[:, None] + speed[:, None] * steps) % length[:, None]  # B T
    return torch.take_along_dim(clip, place[:, None, :, None, None], dim=2)  # B C T H W
