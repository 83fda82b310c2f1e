"""What a learner keeps besides what it trains: modules with a state of their own, saved and restored like any other."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
    def move(self, modules: dict[str, nn.Module]) -> None:
        """average = decay * average + (1 - decay) * weights; buffers are taken as they are."""
        for name, module in modules.items():
            average = self.get_submodule(name)
            pairs = list(zip(average.parameters(), module.parameters(), strict=True))
            if pairs:
                mine, theirs = zip(*pairs, strict=True)
                torch._foreach_lerp_(list(mine), list(theirs), 1 - self.decay)
            for own, other in zip(average.buffers(), module.buffers(), strict=True):
                own.copy_(other)
