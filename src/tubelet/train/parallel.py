"""Precision and processes: how a learner is run on the hardware at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tubelet import dist
from tubelet.data.workers import cores
from tubelet.learner import Learner

Precision = Literal["auto", "float32", "bfloat16"]


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


def distribute(learner: Learner, device: torch.device) -> nn.Module:
    """The learner on its device, inside DistributedDataParallel when there are several processes."""
    learner.to(device)
    if dist.world_size() == 1:
        return learner
    return DistributedDataParallel(
        learner,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=len(learner.phases) > 1,
        gradient_as_bucket_view=True,
    )
