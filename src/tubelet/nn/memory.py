"""What a learner keeps besides what it trains: modules with a state of their own, saved and restored like any other."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import dist


class Frozen(nn.Module):
    """A network that is looked at and never trained: no gradients, always in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Ema(nn.Module):
    """The exponential moving average of modules: a copy of each under its own name, moved after every step.

    The copies learn nothing by themselves and are always in evaluation mode.

    Args:
        modules: name -> the module to follow.
        decay: how much of the average is kept at a step, such as 0.9999.
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, module in modules.items():
            self.add_module(name, copy.deepcopy(module).requires_grad_(False))
        self.train()

    def train(self, mode: bool = True) -> Ema:
        return super().train(False)

    @torch.no_grad()
    def move(self, modules: dict[str, nn.Module], decay: float | None = None) -> None:
        """average = decay * average + (1 - decay) * weights; buffers are taken as they are.

        Args:
            decay: of this step, where it follows a schedule; None = the average's own.
        """
        decay = self.decay if decay is None else decay
        for name, module in modules.items():
            average = self.get_submodule(name)
            pairs = list(zip(average.parameters(), module.parameters(), strict=True))
            if pairs:
                mine, theirs = zip(*pairs, strict=True)
                torch._foreach_lerp_(list(mine), list(theirs), 1 - decay)
            for own, other in zip(average.buffers(), module.buffers(), strict=True):
                own.copy_(other)


def rising(momentum: float, done: float) -> float:
    """An average's decay that rises from ``momentum`` to 1 along half a cosine (Grill et al. 2020, BYOL).

    Args:
        done: share of the run that is done.
    """
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * done)) / 2


class Queue(nn.Module):
    """The newest rows of several columns, first in, first out: keys of earlier batches and what is known of them.

    Rows are remembered in `forward`, which may belong to a step that is skipped; `push` enters those of all processes,
    in the order of the batch, and `forget` drops them.

    Args:
        size: how many rows it holds, K.
        columns: name -> width; 0 is a whole number a row. Each is a buffer of that name, K D or K.
    """

    filled: Tensor
    """K bool: rows that hold something."""
    place: Tensor
    """Where the next row goes."""

    def __init__(self, size: int, **columns: int) -> None:
        super().__init__()
        self.columns = tuple(columns)
        for name, width in columns.items():
            empty = torch.zeros(size, width) if width else torch.zeros(size, dtype=torch.int64)
            self.register_buffer(name, empty)  # K D
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self._remembered: list[dict[str, Tensor]] = []

    @property
    def full(self) -> bool:
        return bool(self.filled.all())

    def remember(self, **rows: Tensor) -> None:
        """Rows of this process, for the next `push`: B D or B for each column."""
        kinds = {name: self.get_buffer(name).dtype for name in self.columns}
        self._remembered.append({name: rows[name].detach().to(kind) for name, kind in kinds.items()})

    def forget(self) -> None:
        self._remembered.clear()

    @torch.no_grad()
    def push(self) -> None:
        """Enters what all processes remember; the oldest rows give way."""
        if not self._remembered:
            return
        size, entered = len(self.filled), 0
        for name in self.columns:
            column = self.get_buffer(name)
            rows = dist.gather_rows(torch.cat([part[name] for part in self._remembered]))[-size:]
            entered = len(rows)
            column[(self.place + torch.arange(entered, device=column.device)) % size] = rows
        self.filled[(self.place + torch.arange(entered, device=self.filled.device)) % size] = True
        self.place.add_(entered).remainder_(size)
        self.forget()


class Bank(nn.Module):
    """One unit vector for each video, by its `id`: a slow average of what it was encoded as (Wu et al. 2018, 3.3).

    It begins at random, as published. Rows are remembered in `forward` and entered by `push`, as in a `Queue`.

    Args:
        size: how many videos, N.
        dim: width of a vector.
        momentum: how much of the old vector is kept when a video comes again.
    """

    values: Tensor
    """N D."""
    known: Tensor
    """N bool: videos that have been entered; the others are as random as in the beginning."""

    def __init__(self, size: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("values", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("known", torch.zeros(size, dtype=torch.bool))
        self._remembered: list[tuple[Tensor, Tensor, Tensor]] = []

    def remember(self, ids: Tensor, values: Tensor, present: Tensor | None = None) -> None:
        """What videos of this process are now, for the next `push`.

        Args:
            ids: B int64.
            values: B D.
            present: B bool: which of them are anything; None = all.
        """
        present = torch.ones_like(ids, dtype=torch.bool) if present is None else present
        self._remembered.append((ids, values.detach().float(), present))

    def forget(self) -> None:
        self._remembered.clear()

    @torch.no_grad()
    def push(self) -> None:
        """bank = normalise(momentum * bank + (1 - momentum) * value); of clips of one video the last counts."""
        if not self._remembered:
            return
        columns = zip(*self._remembered, strict=True)
        ids, values, present = (dist.gather_rows(torch.cat(parts)).to(self.values.device) for parts in columns)
        ids, values = ids[present], values[present]
        last = {video: row for row, video in enumerate(ids.tolist())}
        ids, values = ids[list(last.values())], values[list(last.values())]
        mixed = self.momentum * self.values[ids] + (1 - self.momentum) * F.normalize(values, dim=1)
        self.values[ids] = F.normalize(mixed, dim=1)
        self.known[ids] = True
        self.forget()
