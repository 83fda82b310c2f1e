"""Videos that have nothing of their own but the direction of a square: in each clip it is elsewhere, in another colour,
at another speed. What makes the clips of a video alike, or clusters them, must find the directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from oracles import DIRECTIONS, Squares, moving_squares
from tubelet import draws
from tubelet.types import Batch


class Videos:
    """As many videos of each direction.

    Args:
        count: how many videos.
        moving: without it each clip is its middle frame, which does not tell the direction.
    """

    def __init__(self, count: int, moving: bool = True) -> None:
        squares = _squares()
        self.direction = torch.arange(count) % len(DIRECTIONS)  # N
        self.rows = [(squares.direction == way).nonzero().flatten() for way in range(len(DIRECTIONS))]
        (video,) = squares.batch["video"]
        self.clips = video if moving else video[:, :, 4:5].expand_as(video)

    def batch(self, ids: Tensor, seed: int, views: int = 1) -> Batch:
        """Clips of the videos `ids`; other seeds give other clips."""
        keys = torch.tensor([draws.key(seed, video) for video in ids.tolist()])
        drawn = draws.uniform(keys, views, "clips")  # B V
        ways = [self.rows[way] for way in self.direction[ids].tolist()]
        rows = [[rows[int(share * len(rows))] for rows, share in zip(ways, view, strict=True)] for view in drawn.T]
        return Batch(
            video=[self.clips[torch.stack(view)] for view in rows], id=ids, key=keys, label=self.direction[ids],
            readable=torch.ones(len(ids), dtype=torch.bool),
        )  # fmt: skip

    def all(self) -> Batch:
        """One clip of each, in the order of id."""
        return self.batch(torch.arange(len(self.direction)), seed=-1)

    def batches(self, size: int, views: int = 1) -> Callable[[int], Batch]:
        """The batch of a step: videos of a random order that is drawn anew for each epoch."""
        epoch = len(self.direction) // size

        def batch(step: int) -> Batch:
            order = draws.generator("order", step // epoch).permutation(len(self.direction))
            ids = torch.from_numpy(order[step % epoch * size :][:size])
            return self.batch(ids, step, views)

        return batch


@cache
def _squares() -> Squares:
    return moving_squares(512, seed=7)


def agreement(truth: Tensor, found: Tensor) -> float:
    """Normalised mutual information of two divisions of the same things, N int64 each: 1 = the same division.

    2 I(truth; found) / (H(truth) + H(found)), as scikit-learn has it.
    """
    joint = torch.zeros(int(truth.max()) + 1, int(found.max()) + 1, dtype=torch.float64)
    joint.index_put_((truth, found), torch.tensor(1 / len(truth), dtype=torch.float64), accumulate=True)
    rows, columns = joint.sum(dim=1), joint.sum(dim=0)

    def entropy(shares: Tensor) -> float:
        return float(-(shares * shares.clamp(min=1e-300).log()).sum())

    both = entropy(rows) + entropy(columns)
    return 2 * (both - entropy(joint.flatten())) / both if both else 0.0
