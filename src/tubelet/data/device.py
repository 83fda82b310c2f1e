"""From the memory that workers write to the device that trains: crops resized, pixels made floats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tubelet.data.clips import Piece
from tubelet.types import Batch


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`, with clips as floats in [0, 1]: ``B C T H W``, contiguous."""
    device = torch.device(device)
    moved: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, list):
            moved[name] = [copied(one, device) if isinstance(one, Tensor) else one for one in value]
        else:
            moved[name] = copied(value, device)  # type: ignore[arg-type]
    for name in ("video", "flow"):
        if name in moved:
            moved[name] = [
                v.to(torch.float32, memory_format=torch.contiguous_format).div_(255) if v.dtype == torch.uint8 else v
                for v in moved[name]
            ]
    return Batch(**moved)


def squares(pieces: Sequence[Piece], size: int, device: torch.device) -> Tensor:
    """Pieces of different sizes as one batch.

    Returns:
        B C T size size: uint8 on a CPU, as the workers make them, and floats in [0, 1] on a GPU, which resizes floats.
    """
    if device.type != "cuda":
        return torch.stack([piece.square(size).transpose(0, 1) for piece in pieces])  # B C T size size
    made = []
    for piece in pieces:
        whole = copied(piece.pixels, device).float().div_(255)  # T C H W
        square = interpolate(whole, (size, size), mode="bilinear", antialias=True)
        made.append(piece.turned(square).transpose(0, 1))  # C T size size
    return torch.stack(made)  # B C T size size


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device. A copy to a GPU is complete when this returns, while earlier work of the GPU goes on.

    The memory that it comes from may then be written over.
    """
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    stream = _copies(device)
    with torch.cuda.stream(stream):
        moved = tensor.to(device, non_blocking=True)
    stream.synchronize()
    moved.record_stream(torch.cuda.current_stream(device))
    return moved


@lru_cache(maxsize=8)
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
