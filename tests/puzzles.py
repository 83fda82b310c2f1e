"""The oracle of learners that shuffle: small squares that move, and how well their order is found again."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles import learn, moving_squares, still, tiny_backbone
from tubelet import draws, registry
from tubelet.learner import Learner
from tubelet.types import Batch

SIZE = 16


def squares(count: int, seed: int, frames: int, directions: tuple[int, ...], **options) -> Batch:
    """Bright squares of ``count`` drawn that move in one of ``directions``, on 16 x 16 pixels."""
    found = moving_squares(count, seed, frames, SIZE, colour=torch.full((count, 3), 0.9), **options)
    kept = torch.isin(found.direction, torch.tensor(directions))
    return Batch(video=[found.batch["video"][0][kept]], key=found.batch["key"][kept])


def built(name: str, backbone: dict | None = None, **arguments) -> Learner:
    """A learner on a backbone of one token a picture, or of one a quarter with ``patch`` 8."""
    return registry.build("methods", name, backbone=tiny_backbone(**{"patch": SIZE, **(backbone or {})}), **arguments)


def solve(
    learner: Learner, frames: int, steps: int, lr: float, directions: tuple[int, ...] = (0, 1, 2, 3), batch: int = 32,
    **options,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trains; the metrics on squares that were never seen, and on the same where nothing moves."""
    torch.set_num_threads(1)
    known = squares(384, 0, frames, directions, **options)["video"][0]

    def batches(step: int) -> Batch:
        keys = torch.tensor([draws.key(step, index) for index in range(batch)])
        return Batch(video=[known[(draws.uniform(keys, 1, "which")[:, 0] * len(known)).long()]], key=keys)

    learn(learner, batches, steps, lr)
    other = squares(1024, 1, frames, directions, **options)
    with torch.no_grad():
        return learner(other, "main").metrics, learner(still(other), "main").metrics  # type: ignore[return-value]
