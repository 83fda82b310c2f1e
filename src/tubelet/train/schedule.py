"""Durations and learning rates: pure functions of the step, so nothing has to be saved or restored."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from tubelet.types import TubeletError

_DURATION = re.compile(r"\s*([\d.]+)\s*([kKmM]?)\s*(epochs?|steps?|%)\s*")
_CLOCK = re.compile(r"\s*([\d.]+)\s*(seconds?|minutes?|hours?)\s*")


class StepSize(NamedTuple):
    """What an optimiser step is made of: the one rule for its clips and its learning rate."""

    batch: int
    """Clips."""
    repeats: int = 1
    """Clips of each video."""
    processes: int = 1
    micro_batch: int | None = None
    """Clips of one forward pass of one process; None = all that it has."""

    @property
    def videos(self) -> int:
        return self.batch // self.repeats

    @property
    def passes(self) -> int:
        """Forward passes of each process, whose gradients add up.

        Raises:
            TubeletError: the micro-batch does not divide a process's share.
        """
        share = self.batch // self.processes
        if self.micro_batch is not None and share % self.micro_batch:
            raise TubeletError(
                f"train.micro_batch ({self.micro_batch}) must divide each process's share of train.batch, {share}"
            )
        return 1 if self.micro_batch is None else share // self.micro_batch

    def rate(self, lr: float) -> float:
        """The learning rate for a rate per 256 *videos*, as published: repeats of a video do not count."""
        return lr * self.videos / 256

    def describe(self, lr: float) -> str:
        share = self.batch // self.processes // self.passes
        return (
            f"{self.batch} clips a step = {self.videos} videos x repeats {self.repeats} = processes {self.processes} x "
            f"micro-batch {share} x accumulation {self.passes}; "
            f"peak learning rate {lr:g} x {self.videos} / 256 = {self.rate(lr):g}"
        )


def steps(duration: str, steps_per_epoch: int, total: int | None = None) -> int:
    """How many steps "40 epochs", "10k steps" or "5 %" (of `total`) are; at least 1 unless the number is 0.

    Raises:
        TubeletError: it is not such a duration.
    """
    match = _DURATION.fullmatch(duration)
    if match is None or (match[3] == "%" and total is None):
        raise TubeletError(f"{duration!r} is not a duration: write it like '40 epochs', '10k steps' or '5 %'")
    try:
        number = float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()]
    except ValueError as error:
        raise TubeletError(f"{match[1]!r} in {duration!r} is not a number") from error
    unit = {"e": steps_per_epoch, "s": 1, "%": (total or 0) / 100}[match[3][0]]
    return max(1, round(number * unit)) if number else 0


def due(when: str, step: int, steps_per_epoch: int, total: int) -> bool:
    """Whether something that happens "every 10 epochs", "every 5 %" or at the "end" happens after `step` steps.

    What happens every so often happens at the end too.
    """
    if when == "end":
        return step == total
    if not when.startswith("every "):
        raise TubeletError(f"{when!r} is not a schedule: write it like 'every 10 epochs', 'every 5 %' or 'end'")
    interval = steps(when.removeprefix("every "), steps_per_epoch, total)
    if interval == 0:
        raise TubeletError(f"{when!r} is no interval")
    return step == total or step % interval == 0


def by_clock(when: str) -> tuple[str, float]:
    """What remains of "every 5 % or 30 minutes" without its times, and the shortest of these in seconds.

    Returns:
        A schedule as `due` takes it ("end" where nothing but times was asked for), and infinity where no time was.
    """
    parts = when.removeprefix("every ").split(" or ") if when.startswith("every ") else []
    matches = [(part, _CLOCK.fullmatch(part)) for part in parts]
    try:
        seconds = [float(m[1]) * {"s": 1, "m": 60, "h": 3600}[m[2][0]] for _, m in matches if m]
    except ValueError as error:
        raise TubeletError(f"{when!r} has something that is not a number") from error
    if 0 in seconds:
        raise TubeletError(f"{when!r} is no interval")
    others = [part for part, m in matches if not m]
    if len(others) > 1:
        raise TubeletError(f"{when!r} has two durations: write one, or one and a time, like 'every 5 % or 30 minutes'")
    if not seconds:
        return when, math.inf
    return (f"every {others[0]}" if others else "end"), min(seconds)


def warmup_cosine(step: int, total: int, warmup: int, peak: float, low: float) -> float:
    """The rate of `step`: a straight line from 0 to `peak` over `warmup` steps, then half a cosine down to `low`."""
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
