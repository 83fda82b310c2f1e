"""One step of all phases: forward passes, gradients that add up, and nothing changed unless all is finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tubelet import dist
from tubelet.learner import Learner
from tubelet.train.parallel import Precision, autocast
from tubelet.types import Batch


class Stepped(NamedTuple):
    """What one step of one phase gave; not a number where the learner had nothing to learn from."""

    loss: float
    """The mean over all processes."""
    grad_norm: float
    """Before it is clipped."""
    metrics: dict[str, float]
    flaw: Literal["loss", "gradient"] | None = None
    """What was not finite on at least one process: then nothing was changed on any. The same on all."""
    own_loss: float = math.nan
    """That of this process alone."""


def take_steps(
    model: nn.Module,
    learner: Learner,
    optimisers: dict[str, torch.optim.Optimizer],
    data: Batch,
    pieces: int,
    clip_norm: float,
    precision: Precision,
    measure: bool = False,
) -> dict[str, Stepped]:
    """One optimiser step of each phase, in order (see `take_step`): all phases on all processes, or none.

    Where one is flawed, those before it are put back, weights and optimiser alike, and those after it are not tried. So
    a critic never moves without its generator, and a skipped step has changed nothing, whatever a learner's phases are.
    It costs a copy of what the earlier phases train, where there are any.

    Returns:
        What each phase gave, by its name; a flawed one is the last.
    """
    *earlier, _ = optimisers.values()
    buffers = _persistent_buffers(learner) if earlier else {}
    before = [(optimiser, *_copied(optimiser)) for optimiser in earlier]
    taken: dict[str, Stepped] = {}
    for phase, optimiser in optimisers.items():
        stepped = take_step(model, learner, phase, optimiser, data, pieces, clip_norm, precision, measure)
        taken[phase] = stepped
        if stepped.flaw:
            _put_back(learner, buffers)
            for changed, weights, state in before:
                _restore(changed, weights, state)
            break
    return taken


def take_step(
    model: nn.Module,
    learner: Learner,
    phase: str,
    optimiser: torch.optim.Optimizer,
    data: Batch,
    pieces: int,
    clip_norm: float,
    precision: Precision,
    measure: bool = False,
) -> Stepped:
    """One optimiser step of one phase, which all processes take, or none does.

    Where the loss or the norm of the gradient is not finite on any process, none steps: weights and the state of the
    optimiser are as they were, no gradient is left, and persistent buffers that the forward passes changed (the
    statistics of a batch norm) are put back.

    Args:
        model: the learner, or what distributes it: DistributedDataParallel, or the learner itself once it is sharded.
        pieces: forward passes that the batch is cut into.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        measure: adds to the metrics ``update_ratio``, the norm of the change of this phase's weights over their norm.
    """
    device = dist.device()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    before = _persistent_buffers(learner)
    total, numbers, learnt = torch.zeros((), device=device), {}, False
    with _alone(learner, parameters):
        for index, piece in enumerate(_split(data, pieces)):
            with _adding_up(model, last=index == pieces - 1):
                with autocast(precision, device):
                    loss, metrics = model(piece, phase)
                if loss is None:
                    continue
                learnt = True
                (loss / pieces).backward()
            total += loss.detach() / pieces
            for name, value in metrics.items():
                shared = dist.mean(torch.as_tensor(value, device=device))
                numbers[name] = numbers.get(name, 0.0) + float(shared) / pieces
    if not dist.any_process(learnt):
        return Stepped(math.nan, math.nan, numbers)
    norm = _norm(p.grad for p in parameters if p.grad is not None)
    value, length = float(dist.mean(total)), float(norm)
    flaw: Literal["loss", "gradient"] | None = None
    if dist.any_process(not (math.isfinite(value) and math.isfinite(length))):
        flaw = "gradient" if math.isfinite(value) else "loss"
        _put_back(learner, before)
    else:
        if clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm, foreach=True)
        old = [p.detach().clone() for p in parameters] if measure else []
        optimiser.step()
        if measure:
            numbers["update_ratio"] = _change(old, parameters)
    learner.zero_grad(set_to_none=True)
    return Stepped(value, length, numbers, flaw, float(total))


@contextmanager
def _alone(learner: Learner, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Freezes what another phase trains, so that no gradient of this one reaches it."""
    own = {id(p) for p in parameters}
    others = [p for p in learner.parameters() if p.requires_grad and id(p) not in own]
    if len(learner.phases) == 1:
        others = []
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def _adding_up(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients of several forward passes add up within a process; the processes share them at the last."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


def _persistent_buffers(learner: Learner) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> the buffer and a copy of what is in it."""
    kept = learner.state_dict().keys()
    return {name: (buffer, buffer.clone()) for name, buffer in learner.named_buffers() if name in kept}


@torch.no_grad()
def _put_back(learner: Learner, buffers: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Also where a learner has put another tensor in a buffer's place."""
    for name, (buffer, copy) in buffers.items():
        owner, _, own_name = name.rpartition(".")
        setattr(learner.get_submodule(owner), own_name, buffer.copy_(copy))


_State = dict[Tensor, dict[str, Any]]
"""What an optimiser keeps of each parameter."""


def _copied(optimiser: torch.optim.Optimizer) -> tuple[list[tuple[Tensor, Tensor]], _State]:
    """The weights, each with a copy, and a copy of the optimiser's state, which is empty before its first step."""
    weights = [(p, p.detach().clone()) for group in optimiser.param_groups for p in group["params"]]
    return weights, {p: {key: value.clone() for key, value in kept.items()} for p, kept in optimiser.state.items()}


@torch.no_grad()
def _restore(optimiser: torch.optim.Optimizer, weights: list[tuple[Tensor, Tensor]], state: _State) -> None:
    for parameter, copy in weights:
        parameter.copy_(copy)
    optimiser.state.clear()
    optimiser.state.update(state)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of them all together; of sharded ones, over all shards."""
    norm = nn.utils.get_total_norm(list(tensors), foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@torch.no_grad()
def _change(old: list[Tensor], parameters: list[nn.Parameter]) -> float:
    """||new - old|| / ||old||."""
    size = float(_norm(old))
    change = float(_norm(parameter.sub_(new) for parameter, new in zip(old, parameters, strict=True)))
    return change / size if size else math.inf


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
