"""One optimiser step of one phase: forward passes, gradients that add up, and nothing touched unless all is finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tubelet import dist
from tubelet.data.listing import Manifest
from tubelet.learner import Learner
from tubelet.train.parallel import Precision, autocast
from tubelet.types import Batch, TubeletError


class Stepped(NamedTuple):
    """What one step of one phase gave; not a number where the learner had nothing to learn from."""

    loss: float
    grad_norm: float
    metrics: dict[str, float]


def take_step(
    model: nn.Module,
    learner: Learner,
    phase: str,
    optimiser: torch.optim.Optimizer,
    data: Batch,
    pieces: int,
    clip_norm: float,
    precision: Precision,
    manifest: Manifest,
) -> Stepped:
    """One optimiser step of one phase. Nothing is touched when the loss or the gradient is not finite."""
    device = dist.device()
    parameters = [p for _, p in learner.parameters_of(phase)]
    total, numbers, learnt = torch.zeros((), device=device), {}, False
    frozen = _freeze_others(learner, parameters)
    for index, piece in enumerate(_split(data, pieces)):
        synchronise = index == pieces - 1 or not isinstance(model, DistributedDataParallel)
        with nullcontext() if synchronise else model.no_sync():  # type: ignore[union-attr]
            with autocast(precision, device):
                loss, metrics = model(piece, phase)
            if loss is None:
                continue
            learnt = True
            (loss / pieces).backward()
        total += loss.detach() / pieces
        for name, value in metrics.items():
            numbers[name] = numbers.get(name, 0.0) + float(dist.mean(torch.as_tensor(value, device=device))) / pieces
    for parameter in frozen:
        parameter.requires_grad_(True)
    if not dist.any_process(learnt):
        return Stepped(math.nan, math.nan, numbers)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf, foreach=True)
    value = float(dist.mean(total))
    if dist.any_process(not math.isfinite(value) or not math.isfinite(float(norm))):
        optimiser.zero_grad(set_to_none=True)
        videos = ", ".join(str(manifest[row].path) for row in data["id"].tolist()[:8])
        raise TubeletError(
            f"the {'gradient' if math.isfinite(value) else 'loss'} is not finite (loss {value:g}); stopped before "
            f"the weights were touched, the last checkpoint is good. Videos of this batch (the first 8): {videos}. "
            "Try a lower train.lr, train.clip_norm 1.0 or train.precision float32"
        )
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return Stepped(value, float(norm), numbers)


def _freeze_others(learner: Learner, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Freezes what another phase trains, so that no gradient of this one reaches it; returns what was frozen."""
    if len(learner.phases) == 1:
        return []
    own = {id(p) for p in parameters}
    others = [p for p in learner.parameters() if p.requires_grad and id(p) not in own]
    for parameter in others:
        parameter.requires_grad_(False)
    return others


def _split(data: Batch, pieces: int) -> Iterator[Batch]:
    """Cuts a batch into `pieces` of one size: a list of views is cut view by view."""
    for index in range(pieces):
        piece: dict[str, Any] = {}
        for name, value in data.items():
            piece[name] = (
                [_part(v, index, pieces) for v in value] if isinstance(value, list) else _part(value, index, pieces)
            )
        yield piece  # type: ignore[misc]


def _part(value: Any, index: int, pieces: int) -> Tensor:
    size = len(value) // pieces
    return value[index * size : (index + 1) * size]
