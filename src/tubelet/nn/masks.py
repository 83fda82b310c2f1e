"""Which cubes are hidden. True = hidden; every clip of a batch has exactly the same number of them.

Each mask is a function of the samples' keys alone (and, for "motion", of their pixels), so the same sample in the same
epoch gets the same mask on any device, with any number of processes, and after any restart.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
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
    """Cubes hidden anywhere in space and time (the ablation of VideoMAE table 1b; mae_st's choice).

    As in mae_st it is the number of visible ones that is rounded down: 156 of 1,568 at .9.
    """
    count = grid[0] * grid[1] * grid[2]
    hidden_count(count, ratio)  # refuses what hides nothing or everything
    return _lowest(keys, count, count - max(1, int(count * (1 - ratio))))  # B N


def frame(keys: Tensor, grid: Grid, ratio: float) -> Tensor:
    """Whole frames hidden (the ablation of VideoMAE table 1b); at least one frame is left to see."""
    frames, rows, columns = grid
    return _lowest(keys, frames, hidden_count(frames, ratio)).repeat_interleave(rows * columns, dim=1)  # B N


def block(keys: Tensor, grid: Grid, ratio: float) -> Tensor:
    """Large boxes of space and time hidden, one after the other until there are enough ("block" of mae_st's figure 5).

    Each box spans a half to all of the frames and a quarter to a half of the rows and columns. Of the last one only as
    many cubes are hidden as are wanted; what no box reaches is hidden last.
    """
    count = grid[0] * grid[1] * grid[2]
    draw = draws.uniform(keys, 6 * BOXES, "boxes").unflatten(1, (BOXES, 6))  # B boxes 6
    inside = torch.ones(len(keys), BOXES, *grid, dtype=torch.bool, device=keys.device)  # B boxes t h w
    for axis, (length, least, most) in enumerate(zip(grid, (0.5, 0.25, 0.25), (1.0, 0.5, 0.5), strict=True)):
        side = (length * (least + (most - least) * draw[..., axis])).ceil()  # B boxes
        first = ((length - side + 1) * draw[..., 3 + axis]).floor()  # B boxes
        place = torch.arange(length, device=keys.device)
        within = (place >= first[..., None]) & (place < (first + side)[..., None])  # B boxes length
        shape = [len(keys), BOXES, 1, 1, 1]
        shape[2 + axis] = length
        inside &= within.view(shape)
    turn = torch.where(inside.any(dim=1), inside.byte().argmax(dim=1), BOXES).flatten(1)  # B N: its first box
    return _first(turn + draws.uniform(keys, count, "mask"), hidden_count(count, ratio))  # B N


BOXES = 64
"""So many boxes are drawn, which cover about all there is."""


def running(keys: Tensor, grid: Grid, ratio: float, stream: str = "running") -> Tensor:
    """A cell of 2 x 2 places that runs on from frame to frame (VideoMAE V2, section 3.2; its decoder's mask).

    At .5 two places of every cell are hidden, half of them other ones in the next frame, so that in four frames each
    place is hidden twice. The published mask needs a ratio of quarters and an even grid; here other ratios add a random
    part of the place whose turn is next, and in every frame of every clip ``int(ratio * places)`` are hidden.

    Args:
        stream: another name draws independently of the first.
    """
    frames, rows, columns = grid
    # in which order the four places of a cell have their turn: upper left, lower right, lower left, upper right
    cell = torch.tensor([[0, 3], [2, 1]], device=keys.device)
    order = cell.repeat((rows + 1) // 2, (columns + 1) // 2)[:rows, :columns].flatten()  # places
    phase = draws.choice(keys, 4, f"{stream} phase")[:, None, None]  # B 1 1
    time = torch.arange(frames, device=keys.device)[:, None]  # t 1
    turn = (time - order + 1 + phase) % 4  # B t places
    score = turn + draws.uniform(keys, frames * rows * columns, stream).view(turn.shape)  # B t places
    hidden = _first(score.flatten(0, 1), hidden_count(rows * columns, ratio))  # B*t places
    return hidden.view(len(keys), -1)  # B N


def motion(keys: Tensor, movement: Tensor, grid: Grid, ratio: float) -> Tensor:
    """Tubes, hidden the likelier the more moves in them: where nothing happens there is little to predict.

    Places are drawn without replacement with odds of their movement (Efraimidis and Spirakis 2006); the idea is that of
    MGMAE (Huang et al. 2023), with the difference of frames in place of optical flow.

    Args:
        movement: B rows*columns, not negative: see `movement`.
    """
    frames, rows, columns = grid
    odds = movement / movement.mean(dim=1, keepdim=True).clamp(min=1e-6) + 0.1  # B places; a still clip: all alike
    # exponential clocks: the higher the odds, the earlier one rings
    clock = -torch.log1p(-draws.uniform(keys, rows * columns, "mask")) / odds  # B places
    return _first(clock, hidden_count(rows * columns, ratio)).repeat(1, frames)  # B N


def movement(video: Tensor, rows: int, columns: int) -> Tensor:
    """How much each place of the picture changes: the mean absolute difference of successive frames.

    Args:
        video: B C T H W.

    Returns:
        B rows*columns.

    Raises:
        TubeletError: there is one frame only, in which nothing moves.
    """
    if video.shape[2] < 2:
        raise TubeletError("learner.mask motion needs clips of two frames or more: change data.frames or the mask")
    change = video.diff(dim=2).abs().mean(dim=(1, 2))  # B H W
    return F.adaptive_avg_pool2d(change[:, None], (rows, columns)).flatten(1)  # B rows*columns


Kind = Literal["tube", "random", "frame", "block", "running", "motion"]


def draw(kind: Kind, keys: Tensor, video: Tensor, grid: Grid, ratio: float) -> Tensor:
    """A mask of any kind for clips of ``grid`` cubes: B N bool.

    Args:
        keys: B int64.
        video: B C T H W, which "motion" looks at.
    """
    if kind == "motion":
        return motion(keys, movement(video, grid[1], grid[2]), grid, ratio)
    return {"tube": tube, "random": random, "frame": frame, "block": block, "running": running}[kind](keys, grid, ratio)


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
    return _first(draws.uniform(keys, count, "mask"), hidden)


def _first(scores: Tensor, hidden: int) -> Tensor:
    """B count bool, True at the `hidden` lowest of each row of scores; between equal ones the first."""
    order = scores.argsort(dim=1, stable=True)  # B count
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return mask.scatter_(1, order[:, :hidden], True)
