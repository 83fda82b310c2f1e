"""Pictures of dim tiles that slide by one token a frame: which token of a frame is which of another is known."""

from __future__ import annotations

from collections.abc import Callable

import torch

from oracles import DIRECTIONS
from tubelet import draws
from tubelet.learner import Backbone
from tubelet.nn.affinity import transition
from tubelet.types import Batch

PATCH = 8


def dim(drawn: torch.Tensor) -> torch.Tensor:
    """Colours, RGB, of three numbers in 0..1 each."""
    return 0.5 + 0.1 * (drawn - 0.5)


def tiles(
    count: int, seed: int, frames: int = 4, size: int = 32, alike: bool = True,
    paint: Callable[[torch.Tensor], torch.Tensor] = dim,
) -> tuple[Batch, torch.Tensor]:  # fmt: skip
    """Clips, and where each goes: B 2 (columns, rows a frame).

    Tiles differ so little that an untrained network, which knows places better than colours, finds the same place.

    Args:
        alike: False = each frame has tiles of its own, and nothing in common with another.
    """
    keys = torch.tensor([draws.key(seed, index, "tiles") for index in range(count)])
    steps = frames - 1
    side = size // PATCH + 2 * steps
    canvases = 1 if alike else frames
    colours = paint(draws.uniform(keys, canvases * side * side * 3, "colours").view(count, canvases, side, side, 3))
    canvas = colours.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)  # B canvases H W C
    way = torch.tensor(DIRECTIONS)[(draws.uniform(keys, 1, "way")[:, 0] * 4).long()]  # B 2
    clips = []
    for pictures, (right, down) in zip(canvas.expand(-1, frames, -1, -1, -1), way.tolist(), strict=True):
        corners = [((steps + down * t) * PATCH, (steps + right * t) * PATCH) for t in range(frames)]
        seen = zip(pictures, corners, strict=True)
        clips.append(torch.stack([picture[y : y + size, x : x + size] for picture, (y, x) in seen]))  # T H W C
    video = torch.stack(clips).permute(0, 4, 1, 2, 3)  # B C T H W
    video = (video + 0.01 * draws.normal(keys, video[0].numel(), "noise").view_as(video)).clamp(0, 1)
    return Batch(video=[video], key=keys, id=torch.arange(count), label=torch.zeros(count).long()), way


@torch.no_grad()
def recovered(backbone: Backbone) -> float:
    """Of how many tokens of the second frame the most alike one of the first frame shows the same tile."""
    batch, way = tiles(32, seed=9999)
    video = batch["video"][0]
    frames = [backbone(video[:, :, t : t + 1].expand(-1, -1, 2, -1, -1)).tokens for t in (0, 1)]
    guess = transition(frames[1], frames[0], 0.1).argmax(dim=-1)  # B N
    side = video.shape[-1] // PATCH
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    row, column = row + way[:, 1:], column + way[:, :1]  # B N: where it was
    there = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return (guess == row * side + column)[there].float().mean().item()
