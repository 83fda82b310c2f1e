"""What a learner must solve in seconds: squares that move, in memory, whose direction, speed and colour are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tubelet import draws, registry
from tubelet.learner import Backbone, Learner, Now
from tubelet.train.step import take_step
from tubelet.types import Batch

DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Down, right, up, left as (x, y); y points down."""


class Squares(NamedTuple):
    """Clips of a square on a noisy ground, and what each of them is."""

    batch: Batch
    """One view; `label` is the direction."""
    direction: Tensor
    """B int64, of `DIRECTIONS`."""
    speed: Tensor
    """B float32, pixels a frame."""
    colour: Tensor
    """B 3."""
    place: Tensor
    """B T 2: the middle of the square in pixels (x, y)."""


def moving_squares(
    count: int, seed: int, frames: int = 8, size: int = 32, side: float = 10.0, speed: tuple[float, float] = (1.5, 2.5),
    views: int = 1, noise: float = 0.02, colour: Tensor | None = None, direction: Tensor | None = None,
) -> Squares:  # fmt: skip
    """Squares that cross the middle of their clip half-way through; nothing but their motion tells the direction.

    Views are of one square; each has noise of its own.

    Args:
        colour: of each square, B 3; drawn where not given.
        direction: of each, B; likewise.
    """
    keys = torch.tensor([draws.key(seed, index) for index in range(count)])
    drawn = draws.uniform(keys, 7, "squares")
    direction = (drawn[:, 0] * 4).long() if direction is None else direction  # B
    pixels = speed[0] + (speed[1] - speed[0]) * drawn[:, 1]  # B
    colour = 0.4 + 0.6 * drawn[:, 2:5] if colour is None else colour
    middle = size / 2 + (drawn[:, 5:7] - 0.5) * size / 4  # B 2
    way = torch.tensor(DIRECTIONS, dtype=torch.float32)[direction] * pixels[:, None]  # B 2
    since = torch.arange(frames) - (frames - 1) / 2
    place = middle[:, None] + way[:, None] * since[:, None]  # B T 2
    axis = torch.arange(size) + 0.5
    x, y = ((side / 2 + 0.5 - (axis - place[..., i, None]).abs()).clamp(0, 1) for i in (0, 1))  # B T W, B T H
    cover = (y[..., :, None] * x[..., None, :])[:, None]  # B 1 T H W
    clip = 0.2 + cover * (colour[:, :, None, None, None] - 0.2)  # B C T H W
    clips = [
        (clip + noise * draws.normal(keys, clip[0].numel(), f"noise {view}").view_as(clip)).clamp(0, 1)
        for view in range(views)
    ]
    batch = Batch(
        video=clips, times=[torch.arange(frames).expand(count, -1) / 8] * views, label=direction,
        id=torch.arange(count), key=keys, readable=torch.ones(count, dtype=torch.bool),
    )  # fmt: skip
    return Squares(batch, direction, pixels, colour, place)


def still(batch: Batch) -> Batch:
    """The same clips with nothing that moves: each frame is the first. What looks at motion must be at chance."""
    return Batch(**{**batch, "video": [video[:, :, :1].expand_as(video).clone() for video in batch["video"]]})


def tiny_backbone(seed: int = 0, **changes) -> Backbone:
    """For clips of 8 frames and 32 x 32 pixels: 4 x 4 x 4 tokens."""
    torch.manual_seed(seed)
    made = {"dim": 64, "depth": 2, "heads": 2, "patch": 8, "tubelet": 2, "positions": "separable"}
    return registry.build("backbones", "vit", **made | changes)


def learn(
    learner: Learner, batches: Callable[[int], Batch], steps: int, lr: float = 1e-3, passed: Batch | None = None,
    epoch: int | None = None,
) -> list[dict[str, float]]:  # fmt: skip
    """Trains as the loop does, with its steps and hooks; returns each step's loss and metrics.

    Args:
        batches: the batch of a step.
        passed: what `now.ordered()` goes through, in one piece.
        epoch: steps of an epoch; None = all are one.
    """
    epoch = steps if epoch is None else epoch
    torch.manual_seed(0)
    optimisers = {
        phase: torch.optim.AdamW([p for _, p in learner.parameters_of(phase)], lr=lr, weight_decay=0.01)
        for phase in learner.phases
    }

    def ordered() -> Iterator[Batch]:
        assert passed is not None
        yield passed

    told = []
    learner.train()
    for step in range(steps):
        learner.before_step(Now(step, step // epoch, step % epoch == 0, step / steps, ordered))
        batch = batches(step)
        found = {}
        for phase, optimiser in optimisers.items():
            stepped = take_step(learner, learner, phase, optimiser, batch, 1, 1.0, "float32")
            assert stepped.flaw is None
            found |= {"loss" if len(learner.phases) == 1 else f"loss {phase}": stepped.loss, **stepped.metrics}
        learner.after_step(Now(step + 1, step // epoch, step % epoch == 0, (step + 1) / steps, ordered))
        told.append(found)
    learner.eval()
    return told


def mean(told: list[dict[str, float]], name: str, last: int = 10) -> float:
    """A metric's mean over the last steps."""
    return sum(found[name] for found in told[-last:]) / last
