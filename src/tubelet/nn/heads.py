"""Heads between a backbone and the loss of its pre-training; they are thrown away afterwards."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tubelet import dist

UNSEEN = "backbone.norm.bias"
"""The shift of a ViT's last norm. The first batch norm of a projector takes it away again: its gradient is rounding
errors, of which Adam would make whole steps. A learner with such a projector leaves it out of `parameters_of`."""


class BatchNorm(nn.Module):
    """Normalises each value over the clips of all processes (Ioffe and Szegedy 2015, algorithm 1).

    The batch is the measure in evaluation too: a head of pre-training never sees another. So nothing is kept, and
    teachers, which are always in evaluation mode, do as published ones, whose norms are in training mode.

    Args:
        dim: D.
        affine: a learnt factor and shift for each value.
    """

    def __init__(self, dim: int, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None

    def forward(self, values: Tensor) -> Tensor:
        """B D -> B D."""
        exact = values.float()
        count = len(values) * dist.peers()
        mean = dist.total(exact.sum(dim=0)) / count  # D
        centred = exact - mean
        variance = dist.total(centred.square().sum(dim=0)) / count  # D
        normal = centred * (variance + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            normal = normal * self.weight + self.bias
        return normal.to(values.dtype)


class Projector(nn.Sequential):
    """Linear maps with batch norm and ReLU between them, as projectors and predictors have.

    Linear maps before a norm have no bias, which it would take away.

    Args:
        dim: width of what comes in.
        hidden: width of the inner layers.
        out: width of what goes out.
        layers: number of linear maps.
        norm: batch norms after the inner maps.
        last_norm: one after the last map too, without factor and shift.
        last_bias: a bias of the last map, unless a norm follows; one that enters another projector is taken away there.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int,
        layers: int = 2,
        norm: bool = True,
        last_norm: bool = False,
        last_bias: bool = True,
    ) -> None:
        modules: list[nn.Module] = []
        widths = [dim, *[hidden] * (layers - 1)]
        for before, width in pairwise(widths):
            modules += [nn.Linear(before, width, bias=not norm), *([BatchNorm(width)] if norm else []), nn.ReLU()]
        modules.append(nn.Linear(widths[-1], out, bias=last_bias and not last_norm))
        if last_norm:
            modules.append(BatchNorm(out, affine=False))
        super().__init__(*modules)

    def forward(self, input: Tensor) -> Tensor:
        """B dim -> B out float32, also under autocast: what follows are unit vectors and their cosines."""
        return super().forward(input).float()


@torch.no_grad()
def restart(parameter: Tensor, values: Tensor) -> None:
    """Sets a weight, which may be sharded, to values that are the same on all processes."""
    values = values.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements)
    parameter.copy_(values)


def projected(video: Tensor, network: nn.Module) -> Tensor:
    """By what has a `backbone` and a `head`, such as a learner or its teacher: B C T H W -> B D."""
    backbone, head = network.get_submodule("backbone"), network.get_submodule("head")
    return head(backbone(video).tokens.mean(dim=1))  # B D


def embedded(video: Tensor, network: nn.Module) -> Tensor:
    """The unit vectors of that: B C T H W -> B D float32."""
    return F.normalize(projected(video, network).float(), dim=1)  # B D
