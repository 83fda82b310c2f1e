"""Linear probe: logistic regression on frozen, mean-pooled features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.learner import Backbone
from tubelet.registry import register
from tubelet.tasks.features import features
from tubelet.tasks.protocol import Protocol, Result, Task, conclude, folds
from tubelet.types import TubeletError

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 1e-5, 1e-6)


@register("linear")
class LinearProbe(Task):
    """Multinomial logistic regression with an L2 penalty on standardised features.

    The penalty is chosen on the training videos alone: on a fifth of them kept apart, or by five-fold
    cross-validation where there are fewer than 500; then all of them are used.

    Args:
        penalties: to choose from; the loss is the mean cross-entropy + penalty / 2 times the sum of squared weights.
    """

    def __init__(self, penalties: list[float] | None = None) -> None:
        self.penalties = sorted(PENALTIES if penalties is None else penalties, reverse=True)
        if not self.penalties or self.penalties[-1] <= 0:
            raise TubeletError("linear.penalties needs at least one value, all above 0")

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        started = time.perf_counter()
        train, test = (features(backbone, part, protocol) for part in (protocol.train, protocol.test))
        rows = train.readable.nonzero().flatten()
        x, y = train.values[rows].double(), train.labels[rows]  # N D, N
        parts = folds(protocol.train.take(rows.tolist()), 5, protocol.seed)
        penalty, tried = self.choose(x, y, parts, len(protocol.classes))
        probe = path(x, y, len(protocol.classes), [p for p in self.penalties if p >= penalty])[-1]
        return conclude(
            probe.logits(test.values[test.readable].double()).softmax(dim=1), test.readable, protocol, out,
            started=started, train_readable=train.readable, penalty=penalty, tried=tried,
            train_top1=(probe.logits(x).argmax(1) == y).double().mean().item(),
        )  # fmt: skip

    def choose(self, x: Tensor, y: Tensor, parts: Tensor, classes: int) -> tuple[float, dict[str, float]]:
        """The penalty with the best held-out accuracy (between equals the lower loss), and every one's accuracy."""
        right, loss, held = torch.zeros(len(self.penalties)), torch.zeros(len(self.penalties)), 0
        for fit, kept in slices(parts):
            held += len(kept)
            for i, probe in enumerate(path(x[fit], y[fit], classes, self.penalties)):
                logits = probe.logits(x[kept])
                right[i] += (logits.argmax(1) == y[kept]).sum()
                loss[i] += functional.cross_entropy(logits, y[kept], reduction="sum")
        if held == 0:  # one group only: nothing can be kept apart, the middle of the grid it is
            return self.penalties[len(self.penalties) // 2], {}
        best = min(range(len(self.penalties)), key=lambda i: (-right[i].item(), loss[i].item()))
        tried = {f"{p:g}": right[i].item() / held for i, p in enumerate(self.penalties)}
        return self.penalties[best], tried


def slices(parts: Tensor, few: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows to fit on and rows to choose by: the first of five parts is kept apart, in turn every one when rows are few.

    Parts that would leave nothing on one side are passed over.
    """
    for part in range(5 if len(parts) < few else 1):
        fit, kept = (parts != part).nonzero().flatten(), (parts == part).nonzero().flatten()
        if len(fit) and len(kept):
            yield fit, kept


class Probe(NamedTuple):
    """A fitted linear classifier on raw (not yet standardised) features."""

    mean: Tensor  # D
    deviation: Tensor  # D
    weight: Tensor  # D K
    bias: Tensor  # K

    def logits(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation @ self.weight + self.bias  # N K


def path(x: Tensor, y: Tensor, classes: int, penalties: list[float]) -> list[Probe]:
    """Fits one probe a penalty, from the strongest to the weakest, each starting where the one before ended.

    The search runs in coordinates in which the loss at zero weights is equally curved in every direction (along the
    principal axes, each divided by the root of its curvature): features of deep networks are so nearly collinear
    that it would take thousands of steps otherwise. The answer is the same.

    Args:
        x: N D float64.
        y: N int64.
        penalties: falling, above 0.
    """
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 1e-8, deviation, 1.0)  # a feature that never varies tells nothing
    variance, axes = torch.linalg.eigh(torch.cov(((x - mean) / deviation).T, correction=0))  # D, D D
    used = variance > 1e-10 * variance.max()  # nothing varies along the others: their weights stay zero
    variance, axes = variance[used], axes[:, used]  # R, D R
    along = torch.cat([(x - mean) / deviation @ axes, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)  # N R+1: then bias
    target = functional.one_hot(y, classes).double()  # N K
    weights, probes = torch.zeros(along.shape[1], classes, dtype=x.dtype), []  # R+1 K
    for penalty in penalties:
        decay = torch.cat([torch.full_like(variance, penalty), variance.new_zeros(1)])[:, None]  # R+1 1
        curvature = torch.cat([variance, variance.new_ones(1)])[:, None] / classes + decay  # R+1 1
        unit = curvature.rsqrt()

        def slope(scaled: Tensor, decay: Tensor = decay, unit: Tensor = unit) -> tuple[float, Tensor]:
            weights = scaled * unit
            logs = (along @ weights).log_softmax(dim=1)  # N K
            loss = -(target * logs).sum() / len(x) + 0.5 * (decay * weights * weights).sum()
            return loss.item(), (along.T @ (logs.exp() - target) / len(x) + decay * weights) * unit

        weights = minimise(slope, weights / unit) * unit
        probes.append(Probe(mean, deviation, axes @ weights[:-1], weights[-1]))
    return probes


def minimise(slope: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, steps: int = 150) -> Tensor:
    """L-BFGS (strong Wolfe) from `start`, with the value and gradient that `slope` gives."""
    weights = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=steps, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        with torch.no_grad():
            loss, weights.grad = slope(weights)
        return loss

    optimiser.step(closure)
    return weights.detach()
