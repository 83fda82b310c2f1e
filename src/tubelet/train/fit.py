"""The one loop that trains any learner."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tubelet import dist, draws
from tubelet.data.inspect import write_unreadable
from tubelet.data.loader import Clips, Loader, to_device
from tubelet.learner import Backbone, Learner, Now
from tubelet.log import Metrics, warn
from tubelet.train import schedule
from tubelet.train.optim import adamw, set_rate
from tubelet.train.parallel import autocast, distribute, shared_cores
from tubelet.train.progress import Progress, Stretch
from tubelet.train.state import RunState
from tubelet.types import Batch, TubeletError

Judge = Callable[[Backbone, int], dict[str, float]]
"""Judges a backbone after some step; its numbers are logged."""


class Fitted(NamedTuple):
    steps: int
    clips_seen: int
    seconds: float
    """Time spent training, restarts included."""
    loss: float
    """Mean over the last logged stretch."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C or SIGTERM) and has saved; the message says how to go on."""


def fit(
    learner: Learner,
    clips: Clips,
    out: Path,
    *,
    length: str = "100 epochs",
    batch: int = 64,
    micro_batch: int | None = None,
    lr: float = 1.5e-4,
    min_lr: float = 1e-5,
    warmup: str = "5 %",
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
    clip_norm: float = 0.0,
    layer_decay: float = 1.0,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    workers: int = 1,
    save: str = "every 5 %",
    log_steps: int = 20,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    judges: dict[str, tuple[str, Judge]] | None = None,
    quiet: bool = False,
) -> Fitted:
    """Trains ``learner`` on ``clips`` and leaves a usable run in ``out``; resumes by itself when one is there.

    Args:
        length: how long, such as "40 epochs" or "10k steps".
        batch: clips for each optimiser step, over all processes.
        micro_batch: clips for each forward pass of one process; None = its share of the batch in one go.
        lr: peak learning rate for a batch of 256 clips; it is scaled by batch / 256.
        min_lr: learning rate at the end, scaled likewise.
        warmup: how long the learning rate rises from 0.
        weight_decay: of matrices; biases, norms and tokens are not decayed.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        layer_decay: factor on the learning rate from one layer of the backbone to the one before it.
        precision: "auto" is bfloat16 where the hardware multiplies in it, else float32.
        workers: processes that decode; 0 = decode in this one.
        save: when to write a checkpoint.
        log_steps: steps between two lines of metrics.jsonl.
        seed: of the data order, the augmentation and the masks.
        about: written into backbone.json beside the weights.
        judges: name -> (when, function): judged during training, logged as "name/metric".
        quiet: no progress bar.

    Raises:
        TubeletError: a loss or gradient that is not finite (before the step that would use it), a checkpoint of
            another run, or settings that do not fit together.
        Interrupted: asked to stop; a checkpoint is saved.
    """
    _refuse_nonsense(
        more={"batch": batch, "micro_batch": micro_batch, "lr": lr, "log_steps": log_steps, "layer_decay": layer_decay},
        not_less={"weight_decay": weight_decay, "clip_norm": clip_norm, "min_lr": min_lr},
    )
    device, judges = dist.device(), judges or {}
    loader = Loader(clips, batch, workers=workers, rank=dist.rank(), world=dist.world_size())
    epoch_steps = loader.steps_per_epoch
    total = schedule.steps(length, epoch_steps)
    if total == 0:
        raise TubeletError(f"train.length {length!r} is no step at all")
    warm = schedule.steps(warmup, epoch_steps, total)
    pieces = _pieces(batch, micro_batch)
    model = distribute(learner, device).train()
    optimisers = {
        phase: adamw(learner, phase, weight_decay=weight_decay, betas=betas, layer_decay=layer_decay)
        for phase in learner.phases
    }
    identity = {"seed": seed, "batch": batch, "steps": total, "data": clips.manifest.fingerprint}
    run = RunState(out, learner, optimisers, identity, {"clip": clips.clip, **(about or {})})
    run.restore()
    if dist.world_size() > 1 and run.step == 0:  # or all processes would drop the same paths
        torch.manual_seed(draws.key(seed, "process", dist.rank()))
    metrics = Metrics(out, after=run.step) if dist.is_main() else None

    with (
        _stop_signals() as stop,
        shared_cores(workers),
        Progress(total, run.step, batch, quiet or not dist.is_main()) as bar,
    ):
        batches = loader.batches(run.step) if run.step < total else iter(())
        stretch = Stretch(run)
        while run.step < total:
            started = time.perf_counter()
            data = to_device(next(batches), device)
            epoch, within = divmod(run.step, epoch_steps)
            rate = schedule.warmup_cosine(run.step, total, warm, lr * batch / 256, min_lr * batch / 256)
            learner.before_step(Now(run.step, epoch, within == 0, run.step / total, loader.once))
            for phase, optimiser in optimisers.items():
                set_rate(optimiser, rate)
                stretch.add(_step(model, learner, phase, optimiser, data, pieces, clip_norm, precision, clips))
            run.step += 1
            learner.after_step(Now(run.step, epoch, within == 0, run.step / total, loader.once))
            run.seconds += time.perf_counter() - started
            run.loss = stretch.loss
            bar.show(run.step, run.loss)
            if run.step % log_steps == 0 or run.step == total:
                _report_unreadable(loader, run)
                if metrics:
                    metrics.write(run.step, epoch=run.step / epoch_steps, lr=rate, **stretch.summary(run, batch))
                stretch = Stretch(run)
            stopping = dist.any_process(stop.asked)
            due = [name for name, (when, _) in judges.items() if schedule.due(when, run.step, epoch_steps, total)]
            if stopping or due or schedule.due(save, run.step, epoch_steps, total):
                run.save()  # before it is judged, which can take long
            for name in due:
                _judge(learner, name, judges[name][1], run.step, metrics)
            if stopping and run.step < total:
                raise Interrupted(
                    f"stopped at step {run.step} of {total} and saved in {out}: the same command goes on from there"
                )
    if metrics:
        metrics.close()
    return Fitted(run.step, run.step * batch, run.seconds, run.loss)


def _refuse_nonsense(more: dict[str, float | None], not_less: dict[str, float]) -> None:
    """Settings that must be more than 0, and those that must not be less."""
    for name, value in more.items():
        if value is not None and value <= 0:
            raise TubeletError(f"train.{name} must be more than 0, not {value:g}")
    for name, value in not_less.items():
        if value < 0:
            raise TubeletError(f"train.{name} must be 0 or more, not {value:g}")


class _Stepped(NamedTuple):
    """What one step of one phase gave; not a number where the learner had nothing to learn from."""

    loss: float
    grad_norm: float
    metrics: dict[str, float]


def _step(
    model: nn.Module,
    learner: Learner,
    phase: str,
    optimiser: torch.optim.Optimizer,
    data: Batch,
    pieces: int,
    clip_norm: float,
    precision: Literal["auto", "float32", "bfloat16"],
    clips: Clips,
) -> _Stepped:
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
        return _Stepped(math.nan, math.nan, numbers)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf, foreach=True)
    value = float(dist.mean(total))
    if dist.any_process(not math.isfinite(value) or not math.isfinite(float(norm))):
        optimiser.zero_grad(set_to_none=True)
        videos = ", ".join(str(clips.manifest[row].path) for row in data["id"].tolist()[:8])
        raise TubeletError(
            f"the {'gradient' if math.isfinite(value) else 'loss'} is not finite (loss {value:g}); stopped before "
            f"the weights were touched, the last checkpoint is good. Videos of this batch (the first 8): {videos}. "
            "Try a lower train.lr, train.clip_norm 1.0 or train.precision float32"
        )
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return _Stepped(value, float(norm), numbers)


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


def _pieces(batch: int, micro_batch: int | None) -> int:
    """How many forward passes of one process make a step."""
    share = batch // dist.world_size()
    if micro_batch is None:
        return 1
    if share % micro_batch:
        raise TubeletError(
            f"train.micro_batch ({micro_batch}) must divide each process's share of train.batch, {share}"
        )
    return share // micro_batch


def _judge(learner: Learner, name: str, judge: Judge, step: int, metrics: Metrics | None) -> None:
    """Judges the backbone on the first process, and leaves the run as it was: mode and random state included."""
    if dist.is_main():
        device = dist.device()
        learner.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                numbers = judge(learner.backbone, step)
            except TubeletError as error:  # no judgement is worth a run
                warn(f"{name} left out at step {step}: {error}")
                numbers = {}
        learner.train()
        if metrics:
            metrics.write(step, **{f"{name}/{key}": value for key, value in numbers.items()})
    dist.barrier()


def _report_unreadable(loader: Loader, run: RunState, limit: float = 0.1) -> None:
    """Writes new unreadable files into the run's list and says so; more than `limit` of all videos end the run."""
    videos, listed = len(loader.clips.manifest), run.out / "unreadable.csv"
    seen = {path: reason for part in dist.gather(dict(loader.unreadable)) for path, reason in part.items()}
    new = {path: reason for path, reason in seen.items() if path not in run.unreadable}
    run.unreadable.update(new)
    if new and dist.is_main():
        for path, reason in new.items():
            warn(f"{path} cannot be read ({reason}): another video stands in for it; listed in {listed}")
        write_unreadable(listed, [(Path(path), reason) for path, reason in run.unreadable.items()])
    if len(run.unreadable) > max(1, limit * videos):
        raise TubeletError(
            f"{len(run.unreadable)} of {videos} videos cannot be read (see {listed}): "
            "check the folder with `tubelet data scan` and train on the manifest that it writes"
        )


class _Stop:
    asked = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after the step; a second Ctrl-C stops at once."""
    stop = _Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours to take
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
