"""Precision and processes: how a learner is run on the hardware at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from tubelet import dist
from tubelet.data.workers import cores
from tubelet.learner import Backbone, Learner
from tubelet.nn.towers import Tower
from tubelet.nn.transformer import Block
from tubelet.types import TubeletError

Precision = Literal["auto", "float32", "bfloat16"]
Parallel = Literal["replicated", "sharded"]
"""Every process has all weights (DistributedDataParallel), or a part of them (FSDP2)."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Autocast to bfloat16 when asked for, or ("auto") where the hardware multiplies matrices in it."""
    if precision == "bfloat16" or (precision == "auto" and has_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)  # type: ignore[return-value]
    return nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 by itself: AMX on a CPU, Ampere or later on a GPU."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported()


@contextmanager
def shared_cores(workers: int) -> Iterator[None]:
    """Leaves `workers` cores to the processes that decode: on a small CPU, threads that wait for them cost a third.

    Does nothing where OMP_NUM_THREADS says how many threads there are to be.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(before, cores() // dist.local_world_size() - workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def distribute(learner: Learner, device: torch.device, parallel: Parallel = "replicated") -> nn.Module:
    """The learner on its device, as it is called for training: by itself, replicated or sharded.

    Sharded (FSDP2), each process keeps its part of the weights, their gradients and the optimiser's averages, and
    gathers those of a block while it needs them. Every backbone and tower in the learner, averages and teachers too,
    and each of their blocks, is gathered by itself, since hooks and judges call them without the learner around them.

    Raises:
        TubeletError: the learner cannot be sharded.
    """
    learner.to(device)
    if dist.world_size() == 1:
        return learner
    if parallel == "sharded":
        if len(learner.phases) > 1:
            raise TubeletError(
                f"{type(learner).__name__} trains in several phases, which cannot be sharded: set train.parallel to "
                "replicated"
            )
        mesh = init_device_mesh(device.type, (dist.world_size(),))
        for module in reversed(list(learner.modules())):  # from the inside out
            if isinstance(module, Block | Backbone | Tower):
                fully_shard(module, mesh=mesh)
        fully_shard(learner, mesh=mesh)
        register_fsdp_forward_method(learner, "embed")
        # the whole must be known as such before a hook, which may come before the first forward, calls a part of it
        fully_shard.state(learner)._lazy_init()  # type: ignore[attr-defined]
        return learner
    return DistributedDataParallel(
        learner,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=len(learner.phases) > 1,
        gradient_as_bucket_view=True,
    )


def whole(learner: Learner, replica: Learner | None) -> Learner | None:
    """The learner with all of its weights, on the first process: itself, or its unsharded `replica`, filled anew.

    Every process must call it; where weights are sharded, others than the first get None.
    """
    if not isinstance(learner, FSDPModule):
        return learner
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(learner, options=options)
    if replica is None:
        return None
    replica.load_state_dict(weights)
    return replica
