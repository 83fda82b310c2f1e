"""Memory that worker processes write and the main process reads: clips reach a batch without being copied or sent."""

from __future__ import annotations

import mmap
from typing import Any

import numpy
import torch
from torch import Tensor


class Ring:
    """Rows of one shape in memory that processes share which are forked later. Rows are written over, turn by turn.

    It is anonymous memory, so that the small /dev/shm of a container is no limit.

    Args:
        rows: how many.
        shape: of a row.
        dtype: of its numbers.
    """

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: type[numpy.generic]) -> None:
        count = rows * int(numpy.prod(shape))
        self.memory = mmap.mmap(-1, max(1, count * numpy.dtype(dtype).itemsize))
        self.array = numpy.frombuffer(self.memory, dtype, count).reshape(rows, *shape)
        self.pinned = False

    def __getitem__(self, rows: slice) -> Tensor:
        """Some rows as a tensor of this very memory."""
        return torch.from_numpy(self.array[rows])

    def pin(self) -> None:
        """Locks the memory in place, so that a GPU fetches from it by itself. Where that fails it is only slower."""
        runtime: Any = torch.cuda.cudart()
        self.pinned = int(runtime.cudaHostRegister(self.array.ctypes.data, self.array.nbytes, 0)) == 0

    def unpin(self) -> None:
        """Undoes `pin`, which must be done before the memory is given back."""
        if self.pinned:
            runtime: Any = torch.cuda.cudart()
            runtime.cudaHostUnregister(self.array.ctypes.data)
            self.pinned = False
