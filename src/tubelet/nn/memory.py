"""What a learner remembers besides its weights, as modules: so it is in the checkpoint, and resumes with it."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
        self.train(False)

    def train(self, mode: bool = True) -> Ema:
        return super().train(False)

    @torch.no_grad()
    def move(self, modules: dict[str, nn.Module]) -> None:
        """average = decay * average + (1 - decay) * weights; buffers are taken as they are."""
        for name, module in modules.items():
            average = self.get_submodule(name)
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - self.decay)
            for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
                mine.copy_(theirs)
