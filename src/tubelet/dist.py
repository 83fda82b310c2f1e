"""One process or several: the few questions that the rest of the package asks. `torchrun` is the launcher."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor


def start(timeout_s: float = 1800.0) -> None:
    """Joins the process group when `torchrun` started this process; does nothing otherwise.

    The store is prefixed by the restart attempt: `torchrun` keeps its store across restarts, and without the prefix
    a restarted process reads the addresses of dead ones (pytorch#135712).
    """
    if "RANK" not in os.environ or distributed.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(seconds=timeout_s)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(address, port, is_master=False, timeout=timeout)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        prefixed = distributed.PrefixStore(f"attempt_{attempt}", store)
        distributed.init_process_group(
            backend, store=prefixed, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]),
            timeout=timeout,
        )  # fmt: skip
    else:
        distributed.init_process_group(backend, timeout=timeout)


def stop() -> None:
    """Leaves the process group together: the process that hosts the store must not go first."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_world_size() -> int:
    """How many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if distributed.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if not distributed.is_initialized():
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / world_size()


def any_process(flag: bool) -> bool:
    """True on every process when it is true on at least one, so that all decide alike."""
    if not distributed.is_initialized():
        return flag
    vote = torch.tensor(float(flag), device=device())
    distributed.all_reduce(vote, op=distributed.ReduceOp.MAX)
    return bool(vote.item())


def gather(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def device() -> torch.device:
    """This process's device: its own GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
