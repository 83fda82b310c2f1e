"""The optimiser: AdamW without weight decay where it does harm, and layer-wise learning rates."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from tubelet.learner import Learner


def adamw(
    learner: Learner, phase: str, *, weight_decay: float, betas: tuple[float, float], layer_decay: float
) -> torch.optim.AdamW:
    """AdamW over what `phase` trains.

    Biases, norms and single tokens (all 1-D) are not decayed. With ``layer_decay`` d the backbone's group i of n has
    its learning rate times d ** (n - 1 - i), everything outside the backbone times 1 (BEiT's rule, as in VideoMAE);
    the factor stands in each group as ``scale``.
    """
    layers = learner.backbone.layers()
    factor = {id(p): layer_decay ** (len(layers) - 1 - i) for i, layer in enumerate(layers) for p in layer}
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for _, parameter in learner.parameters_of(phase):
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups[decay, factor.get(id(parameter), 1.0)].append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "scale": scale} for (decay, scale), parameters in groups.items()
    ]
    return torch.optim.AdamW(described, lr=0.0, betas=betas, eps=1e-8, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]
