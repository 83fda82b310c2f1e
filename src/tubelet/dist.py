"""One process or several: the few questions that the rest of the package asks. `torchrun` is the launcher."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from tubelet.types import TubeletError

Answer = TypeVar("Answer")

_PATIENT = timedelta(days=14)
"""How long processes wait for one that judges or writes: as long as it lives. One that dies is noticed at once."""
_groups: dict[str, Any] = {}
_apart = False


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
    group("waiting")
    group("saving")


def stop() -> None:
    """Leaves the process group together: the process that hosts the store must not go first."""
    if distributed.is_initialized():
        barrier()
        _groups.clear()
        distributed.destroy_process_group()


def group(purpose: str) -> Any:
    """The processes once more, over the network of their CPUs, for "waiting" (long) or "saving" (in another thread).

    Collectives of a thread of its own, or of a wait that takes an hour, must not be mixed with those of training.
    The first call for a purpose must be made by all processes alike.
    """
    if not distributed.is_initialized():
        return None
    if purpose not in _groups:
        _groups[purpose] = distributed.new_group(backend="gloo", timeout=_PATIENT)
    return _groups[purpose]


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
    """Waits for all processes, however long one of them takes."""
    if distributed.is_initialized():
        distributed.barrier(group("waiting"))


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if not distributed.is_initialized():
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / world_size()


@contextmanager
def apart() -> Iterator[None]:
    """Within it `peers` is 1: each process computes by itself, such as on parts of different sizes."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def peers() -> int:
    """How many processes a batch is spread over, whose rows `gather_rows` joins."""
    return 1 if _apart else world_size()


def own_part(rows: Tensor) -> Tensor:
    """This process's part of the rows of all, as `gather_rows` joins them."""
    return rows if peers() == 1 else rows.chunk(peers())[rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, equally many of each; gradients find their way back.

    Where every process takes the mean over its own rows of a loss that compares them with these, the mean of all
    processes' gradients, which training takes, is that of one process with all of the rows.
    """
    return rows if peers() == 1 else _GatherRows.apply(rows)  # type: ignore[return-value]


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes; gradients find their way back."""
    return value if peers() == 1 else _Total.apply(value)  # type: ignore[return-value]


class _GatherRows(torch.autograd.Function):
    """What came from everywhere is needed everywhere: the gradients of all processes for one's rows add up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return own_part(gradient)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


def any_of(*flags: bool) -> Sequence[bool]:
    """Each flag is True on every process when it is true on at least one, so that all decide alike."""
    if not distributed.is_initialized():
        return flags
    votes = torch.tensor(flags, dtype=torch.float32, device=device())
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def any_process(flag: bool) -> bool:
    """`any_of` for one flag."""
    return any_of(flag)[0]


def gather(value: Any, purpose: str = "waiting") -> list[Any]:
    """The values of all processes, in the order of their ranks; they may come at very different times."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, group=group(purpose))
    return values


def from_first(ask: Callable[[], Answer]) -> Answer:
    """Asks the first process alone: all get its answer, or raise what it raised, instead of waiting for it.

    Raises:
        TubeletError: on the others, with the first one's words.
    """
    answer: Any = None
    failure: Exception | None = None
    if is_main():
        try:
            answer = ask()
        except Exception as error:
            failure = error
    answer, words = gather((answer, None if failure is None else str(failure)))[0]
    if failure is not None:
        raise failure
    if words is not None:
        raise TubeletError(words)
    return answer


def device() -> torch.device:
    """This process's device: its own GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
