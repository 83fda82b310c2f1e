"""How a run goes, step by step: means between two lines of the log, and a bar for people."""

from __future__ import annotations

import math
import time
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


class Stretch:
    """The steps since the last line of metrics.jsonl, and their means."""

    def __init__(self, clock: Clock) -> None:
        self.first_step, self.first_seconds = clock.step, clock.seconds
        self.values: dict[str, list[float]] = {"loss": [], "grad_norm": []}

    def add(self, stepped: Stepped) -> None:
        for name, value in {"loss": stepped.loss, "grad_norm": stepped.grad_norm, **stepped.metrics}.items():
            if math.isfinite(value):
                self.values.setdefault(name, []).append(value)

    @property
    def loss(self) -> float:
        losses = self.values["loss"]
        return sum(losses) / len(losses) if losses else math.nan

    def summary(self, clock: Clock, batch: int) -> dict[str, Any]:
        """Clips a second, and the mean of everything that was added (None where nothing was)."""
        seconds = max(1e-9, clock.seconds - self.first_seconds)
        means = {name: sum(values) / len(values) if values else None for name, values in self.values.items()}
        return {"clips_per_s": (clock.step - self.first_step) * batch / seconds, **means}


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
        self.bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and console.is_terminal:
            columns = (
                TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:.0f} clips/s"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = RichProgress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(
                "training", total=self.total, completed=self.first, loss=float("nan"), speed=0
            )
            self.bar.start()
        return self

    def show(self, step: int, loss: float) -> None:
        """Shows that `step` steps are done."""
        seconds = time.perf_counter() - self.started
        speed = (step - self.first) * self.batch / max(1e-9, seconds)
        if self.bar:
            self.bar.update(self.task, completed=step, loss=loss, speed=speed)
        elif not self.quiet and (step == self.total or step % max(1, self.total // 10) == 0):
            left = (self.total - step) * self.batch / max(1e-9, speed)
            say(f"step {step}/{self.total}  loss {loss:.4f}  {speed:.0f} clips/s  {left / 60:.1f} min left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
