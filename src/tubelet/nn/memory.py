"""What a learner keeps besides what it trains: modules with a state of their own, saved and restored like any other."""

from __future__ import annotations

from torch import nn


class Frozen(nn.Module):
    """A network that is looked at and never trained: no gradients, always in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)
