"""The one loop that trains any learner."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from tubelet import dist, draws
from tubelet.data.clips import Clips
from tubelet.data.inspect import write_unreadable
from tubelet.data.loader import Loader
from tubelet.data.storage import place
from tubelet.data.workers import cores
from tubelet.learner import Learner, Now
from tubelet.log import Metrics, read_metrics, say, warn
from tubelet.train import schedule
from tubelet.train.guard import Guard
from tubelet.train.health import FEWEST, VIDEOS, Health, plain
from tubelet.train.optim import adamw, set_rate
from tubelet.train.parallel import Precision, distribute, shared_cores, whole
from tubelet.train.progress import Progress, Stretch, advice
from tubelet.train.state import RunState
from tubelet.train.step import take_steps
from tubelet.train.stop import Abandoned, Interrupted, Preempted, Stop, stop_signals
from tubelet.train.verdict import verdict
from tubelet.train.watchdog import Watchdog
from tubelet.types import Batch, TubeletError

Judge = Callable[[Learner, int], dict[str, float]]
"""Judges a learner, in evaluation mode, after some step; its numbers are logged."""


class Fitted(NamedTuple):
    steps: int
    clips_seen: int
    seconds: float
    """Time spent training, restarts included."""
    loss: float
    """Mean over the last logged stretch that had any."""


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
    limit_s: float = 60.0,
    max_unreadable: float = 0.1,
    save: str = "every 5 % or 30 minutes",
    keep: int = 2,
    grace_s: float = 25.0,
    stall_s: float = 600.0,
    patience: int = 3,
    health: str | None = "auto",
    parallel: Literal["replicated", "sharded"] = "replicated",
    log_steps: int = 20,
    seed: int = 0,
    about: dict[str, Any] | None = None,
    judges: dict[str, tuple[str, Judge]] | None = None,
    reached: Callable[[int, float, float], None] | None = None,
    best: str | None = None,
    quiet: bool = False,
) -> Fitted:
    """Trains ``learner`` on ``clips`` and leaves a usable run in ``out``; resumes by itself when one is there.

    Args:
        length: how long, such as "40 epochs" or "10k steps".
        batch: clips for each optimiser step, over all processes, repeats of a video included.
        micro_batch: clips for each forward pass of one process; None = its share of the batch in one go.
        lr: peak learning rate for 256 videos a step; it is scaled by videos / 256, where repeats do not count.
        min_lr: learning rate at the end, scaled likewise.
        warmup: how long the learning rate rises from 0.
        weight_decay: of matrices; biases, norms and tokens are not decayed.
        betas: of AdamW.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        layer_decay: factor on the learning rate from one layer of the backbone to the one before it.
        precision: "auto" is bfloat16 where the hardware multiplies in it, else float32.
        workers: processes that decode; 0 = decode in this one.
        limit_s: seconds that the clips of one video may take; then its decoder is stopped and it counts as unreadable.
        max_unreadable: share of unreadable videos above which training stops, at the next line of the log; below it
            others stand in for them.
        save: when to write a checkpoint, such as "every 2 epochs or 30 minutes"; training goes on meanwhile.
        keep: how many checkpoints stay, besides the best weights.
        grace_s: seconds from SIGTERM or SIGUSR1 in which the step must end and be saved; torchrun kills after 30.
        stall_s: seconds without a finished step after which each process says what it waits for.
        patience: steps in a row whose loss or gradient is not finite: each is skipped, so many go back to a checkpoint.
        health: when to look whether the run is healthy, such as "every 5 %"; "auto" is that, in runs without labels
            that are so long (32,000 clips) that it costs a 20th at most.
        parallel: what each of several processes has: all weights, or a part of them ("sharded", FSDP2), for networks
            that do not fit one GPU.
        log_steps: steps between two lines of metrics.jsonl.
        seed: of the data order, the augmentation and the masks.
        about: written into backbone.json beside the weights.
        judges: name -> (when, function): judged during training, logged as "name/metric".
        reached: told step, seconds of training and loss at the start and of each checkpoint that is on the disk, on
            every process.
        best: number of a judge, such as "classify/top1": the weights with the highest are kept in the folder "best".
        quiet: no progress bar, and no line on what a step is made of.

    Raises:
        TubeletError: losses or gradients that are not finite step after step, a checkpoint of another run, a state that
            could not be saved at the end, settings that do not fit together, or no step that had a loss.
        Interrupted: asked to stop; a checkpoint is saved.
    """
    _refuse_nonsense(
        more={
            "batch": batch, "micro_batch": micro_batch, "lr": lr, "log_steps": log_steps, "layer_decay": layer_decay,
            "limit_s": limit_s, "keep": keep, "grace_s": grace_s, "stall_s": stall_s, "patience": patience,
        },
        not_less={
            "weight_decay": weight_decay, "clip_norm": clip_norm, "min_lr": min_lr, "max_unreadable": max_unreadable,
        },
    )  # fmt: skip
    judges = judges or {}
    if best is not None and best.partition("/")[0] not in judges:
        raise TubeletError(
            f"train.best {best} is a number of no task in the section evaluate: write it like classify/top1 and keep "
            "evaluate.classify, or set train.best to none"
        )
    loader = Loader(clips, batch, workers=workers, rank=dist.rank(), world=dist.world_size(), limit_s=limit_s)
    size = schedule.StepSize(batch, clips.repeats, dist.world_size(), micro_batch)
    total = schedule.steps(length, loader.steps_per_epoch)
    if total == 0:
        raise TubeletError(f"train.length {length!r} is no step at all")
    warm = schedule.steps(warmup, loader.steps_per_epoch, total)
    rates = size.rate(lr), size.rate(min_lr)
    with _of_setting("save"):
        save, save_s = schedule.by_clock(save)
    plan = _Plan(
        total, loader.steps_per_epoch, warm, *rates, batch, size.passes, clip_norm, precision, log_steps,
        max_unreadable, save, save_s, best,
    )  # fmt: skip
    looking, videos = _when_to_look(health, plan, learner)
    for setting, when in (("save", plan.save), ("health", looking)):
        with _of_setting(setting):  # what cannot be read is said now, and not when it would be due
            plan.due(when or "end", 0)
    if parallel == "sharded" and dist.world_size() == 1:
        warn("train.parallel sharded: there is one process, so nothing is sharded")
    look = Health(clips, seed, videos, precision=precision, workers=workers, limit_s=limit_s) if looking else None
    if not quiet:
        say(size.describe(lr))
    replica = copy.deepcopy(learner) if parallel == "sharded" and dist.is_main() and dist.world_size() > 1 else None
    model = distribute(learner, dist.device(), parallel).train()
    optimisers: dict[str, torch.optim.Optimizer] = {
        phase: adamw(learner, phase, weight_decay=weight_decay, betas=betas, layer_decay=layer_decay)
        for phase in learner.phases
    }
    identity = {"seed": seed, "batch": batch, "steps": total, "data": clips.manifest.fingerprint}
    run = RunState(out, learner, optimisers, identity, {"clip": clips.clip, **(about or {})}, keep)
    run.restore()
    if reached:
        reached(run.step, run.seconds, run.loss)
    if dist.world_size() > 1 and run.step == 0:  # or all processes would drop the same paths
        torch.manual_seed(draws.key(seed, "process", dist.rank()))
    with (
        stop_signals(grace_s, lambda: f"what came after step {run.saver.written}") as stop,
        shared_cores(workers),
        Watchdog(stall_s, out, lambda: loader.under_way() + (look.loader.under_way() if look else [])) as watchdog,
        run.saver,
        Progress(total, run.step, batch, quiet or not dist.is_main()) as bar,
    ):
        metrics = Metrics(out, after=run.step) if dist.is_main() else None
        guard = Guard(out, clips.manifest, patience)
        training = _Training(
            plan, run, model, replica, loader, guard, judges, reached, metrics, stop, watchdog, looking, look
        )
        training.begin()
        from_here = Stretch(run, loader)
        while run.step < total:
            training.step()
            bar.show(run.step, run.loss, loader.waited_s)
            training.after_step()
        training.end()
    if math.isnan(run.loss):
        raise TubeletError(
            f"{type(learner).__name__} learnt nothing, since no step had a loss: a queue that is larger than the clips "
            "of a run is never full; lower learner.queue or raise train.length"
        )
    if not quiet and run.step > from_here.first_step:
        say(advice(from_here.waiting(run, loader), workers, cores()))
    return Fitted(run.step, run.step * batch, run.seconds, run.loss)


class _Plan(NamedTuple):
    """What is the same at every step."""

    total: int
    epoch: int
    warmup: int
    peak: float
    low: float
    batch: int
    passes: int
    clip_norm: float
    precision: Precision
    log_steps: int
    max_unreadable: float
    save: str
    save_s: float
    best: str | None

    def due(self, when: str, step: int) -> bool:
        return schedule.due(when, step, self.epoch, self.total)

    def rate(self, step: int) -> float:
        return schedule.warmup_cosine(step, self.total, self.warmup, self.peak, self.low)


@dataclass
class _Training:
    """A run while it trains: what is done at each step, and what now and then."""

    plan: _Plan
    run: RunState
    model: nn.Module
    """The learner as it is called for training: by itself, replicated or sharded."""
    replica: Learner | None
    """On the first process of a sharded run: what it is judged by."""
    loader: Loader
    guard: Guard
    judges: dict[str, tuple[str, Judge]]
    reached: Callable[[int, float, float], None] | None
    metrics: Metrics | None
    """On the first process."""
    stop: Stop
    watchdog: Watchdog
    looking: str | None
    """When to look at its health."""
    health: Health | None

    def __post_init__(self) -> None:
        self.stretch = Stretch(self.run, self.loader, self.run.stretch)
        self.batches = self._batches()
        self.saved = time.monotonic()
        self.guard.skipped, self.guard.in_a_row = self.run.skipped, self.run.in_a_row
        self.telling: tuple[int, float, float] | None = None
        self.said: set[str] = set()
        """What is wrong with the run, as far as it was said."""

    def begin(self) -> None:
        """Looks at the untrained learner, or makes up for what a kill came before."""
        logged = _logged(self.run)
        step = self.run.step
        if self.looking and "health" not in logged and (step == 0 or self.plan.due(self.looking, step)):
            self._look()
        if step:
            due = [name for name, (when, _) in self.judges.items() if self.plan.due(when, step)]
            self._judge([name for name in due if name not in logged])

    def step(self) -> None:
        """One step of every phase, with the learner's hooks around it; a flawed one changes nothing but counters."""
        started = time.perf_counter()
        run, plan, learner, batch = self.run, self.plan, self.run.learner, next(self.batches)
        epoch, within = divmod(run.step, plan.epoch)
        learner.before_step(Now(run.step, epoch, within == 0, run.step / plan.total, self._ordered))
        for optimiser in run.optimisers.values():
            set_rate(optimiser, plan.rate(run.step))
        measure = (run.step + 1) % plan.log_steps == 0
        taken = take_steps(
            self.model, learner, run.optimisers, batch, plan.passes, plan.clip_norm, plan.precision, measure
        )
        flawed = next((phase for phase, stepped in taken.items() if stepped.flaw), None)
        if flawed is not None:
            self.guard.note(run.step, flawed, taken[flawed], batch)
        run.step += 1
        if flawed is None:
            self.stretch.add(taken)
            self.guard.good()
            learner.after_step(Now(run.step, epoch, within == 0, run.step / plan.total, self._ordered))
        run.skipped, run.in_a_row = self.guard.skipped, self.guard.in_a_row
        run.seconds += time.perf_counter() - started
        run.loss = run.loss if math.isnan(self.stretch.loss) else self.stretch.loss
        self.watchdog.beat()

    def after_step(self) -> None:
        """Goes back, logs, saves, judges or stops, where it is time to.

        Raises:
            Interrupted: asked to stop, and saved.
            TubeletError: too many videos cannot be read, or going back does not help.
        """
        run, plan = self.run, self.plan
        if self.guard.must_roll_back:
            self._roll_back()
            return
        if run.step % plan.log_steps == 0 or run.step % plan.epoch == 0 or run.step == plan.total:
            _report_unreadable(self.loader, run, plan.max_unreadable)
        if run.step % plan.log_steps == 0 or run.step == plan.total:
            self._log()
        stopping, late = dist.any_of(self.stop.asked, time.monotonic() - self.saved > plan.save_s)
        due = [name for name, (when, _) in self.judges.items() if plan.due(when, run.step)]
        if stopping or late or due or plan.due(plan.save, run.step):
            self._save()  # before it is judged, which can take long
        complete = not stopping or not due
        if not stopping:
            if self.looking and plan.due(self.looking, run.step):
                self._look()
            complete = self._judge(due)
        if stopping or due:
            self._stop_if_asked(complete)

    def end(self) -> None:
        """Waits until all is on the disk.

        Raises:
            TubeletError: it could not be written.
        """
        self.run.close()
        self._tell()
        dist.from_first(lambda: self.metrics.close() if self.metrics else None)

    def _ordered(self) -> Iterator[Batch]:
        """This process's part of the training set in the order of id: one view of each video, not augmented."""
        own, clips = self.loader, self.loader.clips
        loader = Loader(
            plain(clips, list(range(len(clips))), views=1), self.plan.batch, workers=own.workers, rank=own.rank,
            world=own.world, limit_s=own.limit_s,
        )  # fmt: skip
        for batch in loader.once():
            self.watchdog.beat()  # a pass may take longer than a step ever does
            yield batch

    def _batches(self) -> Generator[Batch, None, None]:
        return self.loader.batches(self.run.position, dist.device())

    def _log(self) -> None:
        run, plan = self.run, self.plan
        if self.metrics:
            found = {
                "epoch": run.step / plan.epoch, "lr": plan.rate(run.step - 1), "unreadable": len(run.unreadable_rows),
                "skipped": run.skipped, "saving_s": round(run.saver.blocked_s, 3),
            }  # fmt: skip
            self.metrics.write(run.step, **found, **self.stretch.summary(run, self.loader, plan.batch))
        self.stretch = Stretch(run, self.loader)

    def _look(self) -> None:
        """Looks at the health of the run, and says what is wrong, once."""
        assert self.health is not None
        numbers = self.health.examine(self.run.learner)
        self.watchdog.beat()
        if self.metrics:
            self.metrics.write(self.run.step, **{f"health/{name}": value for name, value in numbers.items()})
            found = verdict(read_metrics(self.metrics.path), self.run.learner.needs_labels)
            for name in found.keys() - self.said:
                warn(f"step {self.run.step}: {found[name]}")
            self.said = set(found)

    def _save(self) -> None:
        run = self.run
        run.stretch = self.stretch.values
        run.saver.wait()
        self._tell()
        run.save()
        self.saved = time.monotonic()
        self.telling = run.step, run.seconds, run.loss

    def _tell(self) -> None:
        """Tells what the last checkpoint has, now that it is on the disk."""
        if self.telling and self.reached and self.run.saver.written == self.telling[0]:
            self.reached(*self.telling)
        self.telling = None

    def _roll_back(self) -> None:
        """Back to the last checkpoint, and on with other data."""
        self.run.roll_back()
        self.guard.good()
        if self.metrics:
            self.metrics.keep_until(self.run.step)
        self.stretch = Stretch(self.run, self.loader, self.run.stretch)
        self.batches.close()
        self.batches = self._batches()

    def _stop_if_asked(self, complete: bool) -> None:
        """Saves and stops; at the last step only where something was left out that the next start makes up for."""
        stopping, preempted = dist.any_of(self.stop.asked, self.stop.preempted)
        run, plan = self.run, self.plan
        if not stopping or (run.step == plan.total and complete):
            return
        self.end()
        self.stop.saved()
        raise (Preempted if preempted else Interrupted)(
            f"stopped at step {run.step} of {plan.total} and saved in {run.out}: the same command goes on from there"
        )

    def _judge(self, names: list[str]) -> bool:
        """Judges on the first process, and leaves the run as it was: its mode and random state included.

        Returns:
            Whether all was judged: a wish to stop ends it, and the next start judges again.
        """
        for name in names:
            learner = whole(self.run.learner, self.replica)
            with self.watchdog.paused():
                done = dist.from_first(partial(self._judge_here, name, learner))
            self.run.learner.train()
            if not done:
                return False
        return True

    def _judge_here(self, name: str, learner: Learner | None) -> bool:
        """Judges, keeps the best and logs; False where that was ended by a wish to stop."""
        assert learner is not None
        device, best, (_, judge) = dist.device(), self.plan.best, self.judges[name]
        learner.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                with self.stop.abandoning():
                    numbers = judge(learner, self.run.step)
            except Abandoned:
                return False
            except (TubeletError, OSError) as error:  # no judgement is worth a run
                warn(f"{name} left out at step {self.run.step}: {error}")
                numbers = {}
        named = {f"{name}/{key}": value for key, value in numbers.items()}
        if best in named:
            self.run.keep_best(best, named[best])  # before it is logged: what is in the log is not judged again
        elif best is not None and best.startswith(f"{name}/") and named:
            raise TubeletError(f"train.best {best} is not known: {name} gives {', '.join(named)}")
        if self.metrics:
            self.metrics.write(self.run.step, **named)
        return True


def _refuse_nonsense(more: dict[str, float | None], not_less: dict[str, float]) -> None:
    """Settings that must be more than 0, and those that must not be less."""
    for name, value in more.items():
        if value is not None and value <= 0:
            raise TubeletError(f"train.{name} must be more than 0, not {value:g}")
    for name, value in not_less.items():
        if value < 0:
            raise TubeletError(f"train.{name} must be 0 or more, not {value:g}")


def _when_to_look(health: str | None, plan: _Plan, learner: Learner) -> tuple[str | None, int]:
    """When to look at the health of a run, and at how many videos.

    With "auto" no more than cost a 20th of the work where nine tenths of a clip are hidden: then the two clips of a
    video and the loss of one, all cubes seen, cost as much as training on five clips.
    """
    if health != "auto":
        return health, VIDEOS
    videos = min(VIDEOS, plan.total // 20 * plan.batch // 100)
    return (None, 0) if learner.needs_labels or videos < FEWEST else ("every 5 %", videos)


@contextmanager
def _of_setting(name: str) -> Iterator[None]:
    """Names the setting in the message of an error."""
    try:
        yield
    except TubeletError as error:
        raise TubeletError(f"train.{name}: {error}") from None


def _logged(run: RunState) -> set[str]:
    """What the log has of judgements and the like at the step of the checkpoint, as the first process sees it."""

    def read() -> set[str]:
        lines = [line for line in read_metrics(run.out / "metrics.jsonl") if line["step"] == run.step]
        return {key.partition("/")[0] for line in lines for key in line}

    return dist.from_first(read)


def _report_unreadable(loader: Loader, run: RunState, limit: float) -> None:
    """Writes new unreadable files into the run's list and says so; more than `limit` of all videos end the run."""
    videos, listed = len(loader.clips.manifest), run.out / "unreadable.csv"
    parts = dist.gather((dict(loader.unreadable), set(loader.unreadable_rows)))
    new = {path: reason for part, _ in parts for path, reason in part.items() if path not in run.unreadable}
    run.unreadable.update(new)
    run.unreadable_rows = run.unreadable_rows.union(*(rows for _, rows in parts))
    if new and dist.is_main():
        for path, reason in list(new.items())[:5]:
            warn(f"{path} cannot be read ({reason}): another video stands in for it")
        count = f"{len(run.unreadable_rows):,} of {videos:,} videos"
        warn(f"epoch {run.step / loader.steps_per_epoch:.2f}: {count} cannot be read so far; listed in {listed}")
        try:
            write_unreadable(listed, [(place(path), reason) for path, reason in run.unreadable.items()])
        except OSError as error:
            warn(f"{listed} cannot be written ({error.strerror})")
    allowed = max(1, int(limit * videos)) if limit > 0 else 0  # one of a handful is no share that says anything
    if len(run.unreadable_rows) > allowed:
        raise TubeletError(
            f"{len(run.unreadable_rows)} of {videos} videos cannot be read (see {listed}), and train.max_unreadable is "
            f"{limit:g}: check them with `tubelet data check` and train on the manifest that it writes"
        )
