"""How a run goes, step by step: means between two lines of the log, and a bar for people."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tubelet.log import console, say


class Stepped(Protocol):
    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def metrics(self) -> dict[str, float]: ...


class Clock(Protocol):
    step: int
    seconds: float


class Source(Protocol):
    waited_s: float


MEASURED = ("loss", "grad_norm", "update_ratio")
"""What every phase has, whatever its learner adds."""
_NONE_YET = "not yet"
"""Of a loss: before the first step, and while a queue fills."""
_LATELY = 50
"""Steps over which the line of progress says what binds."""
DECODE_BOUND = 0.2
"""Share of the time spent waiting for clips from which decoding is what binds."""


def advice(waiting: float, workers: int, cores: int) -> str:
    """What binds, and what to change."""
    if waiting <= DECODE_BOUND:
        return f"compute-bound: {100 * waiting:.0f} % of the time is spent waiting for clips"
    more = f"raise train.workers (now {workers}, and there are {cores} cores), " if workers < cores else ""
    return (
        f"decode-bound: {100 * waiting:.0f} % of the time is spent waiting for clips. To change that, {more}"
        "raise data.repeats, or decode once: tubelet data pack"
    )


class Stretch:
    """The steps since the last line of metrics.jsonl, and their means.

    Args:
        values: what was measured before the run was interrupted; its means are those of an uninterrupted run.
    """

    def __init__(self, clock: Clock, source: Source, values: dict[str, list[float]] | None = None) -> None:
        self.first_step, self.first_seconds, self.first_waited = clock.step, clock.seconds, source.waited_s
        self.values = {"loss": [], "grad_norm": []} | (values or {})

    def add(self, taken: Mapping[str, Stepped]) -> None:
        """Adds what the phases of a step gave.

        Where there are several, means are over all of them, and each has its own besides, such as ``loss_critic``.
        """
        for phase, stepped in taken.items():
            numbers = {"loss": stepped.loss, "grad_norm": stepped.grad_norm, **stepped.metrics}
            if len(taken) > 1:
                numbers |= {f"{name}_{phase}": numbers[name] for name in MEASURED if name in numbers}
            for name, value in numbers.items():
                if math.isfinite(value):
                    self.values.setdefault(name, []).append(value)

    @property
    def loss(self) -> float:
        losses = self.values["loss"]
        return sum(losses) / len(losses) if losses else math.nan

    def waiting(self, clock: Clock, source: Source) -> float:
        """Share of the time that was spent waiting for clips."""
        return min(1.0, (source.waited_s - self.first_waited) / max(1e-9, clock.seconds - self.first_seconds))

    def summary(self, clock: Clock, source: Source, batch: int) -> dict[str, Any]:
        """Clips a second, the share of waiting, and the mean of what was added (None where nothing was)."""
        seconds = max(1e-9, clock.seconds - self.first_seconds)
        means = {name: sum(values) / len(values) if values else None for name, values in self.values.items()}
        speed = (clock.step - self.first_step) * batch / seconds
        return {"clips_per_s": speed, "waiting": self.waiting(clock, source), **means}


class Progress:
    """A bar on a terminal, a line every tenth of the run elsewhere. Shows steps, loss, clips/s and the time left.

    Args:
        total: steps of the whole run.
        done: steps done before this start.
        batch: clips a step.
    """

    def __init__(self, total: int, done: int, batch: int, quiet: bool) -> None:
        self.total, self.first, self.batch, self.quiet = total, done, batch, quiet
        self.started = time.perf_counter()
        self.lately: deque[tuple[float, float]] = deque([(self.started, 0.0)], maxlen=_LATELY)
        self.bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and console.is_terminal:
            columns = (
                TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}  {task.fields[speed]:.0f} clips/s, {task.fields[bound]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = RichProgress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(
                "training", total=self.total, completed=self.first, loss=_NONE_YET, speed=0, bound=""
            )
            self.bar.start()
        return self

    def show(self, step: int, loss: float, waited_s: float) -> None:
        """Shows that `step` steps are done, and how much of the last steps' time was spent waiting for clips."""
        self.lately.append((time.perf_counter(), waited_s))
        (since, before), (now, waited_s) = self.lately[0], self.lately[-1]
        waiting = min(1.0, (waited_s - before) / max(1e-9, now - since))
        seconds = time.perf_counter() - self.started
        speed = (step - self.first) * self.batch / max(1e-9, seconds)
        bound = f"{'decode' if waiting > DECODE_BOUND else 'compute'}-bound ({100 * waiting:.0f} % waiting)"
        shown = _NONE_YET if math.isnan(loss) else f"{loss:.4f}"
        if self.bar:
            self.bar.update(self.task, completed=step, loss=shown, speed=speed, bound=bound)
        elif not self.quiet and (step == self.total or step % max(1, self.total // 10) == 0):
            left = (self.total - step) * self.batch / max(1e-9, speed)
            say(f"step {step}/{self.total}  loss {shown}  {speed:.0f} clips/s, {bound}  {left / 60:.1f} min left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
