"""Randomness without state: every draw is a hash of what it is for.

A draw for a sample is made from ``hash(seed, epoch, id, view)``, never from the state of a worker. Therefore results
do not depend on the number of workers, on prefetching, on a restart or on the number of processes.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from torch import Tensor


def key(*parts: int | str) -> int:
    """A 63-bit hash of `parts` (not Python's `hash`, which differs between processes)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> numpy.random.Generator:
    """A NumPy generator that is the same wherever it is made from the same `parts`."""
    return numpy.random.Generator(numpy.random.PCG64(key(*parts)))


def uniform(keys: Tensor, count: int, stream: str = "") -> Tensor:
    """``count`` numbers in [0, 1) for each key, on the keys' device, the same on every device.

    A counter-based generator: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) over key and counter.

    Args:
        keys: B int64, such as a batch's ``key``.
        stream: what the draw is for; different names give independent numbers.

    Returns:
        B count, float32.
    """
    import torch

    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    mixed = keys[:, None] ^ _signed(key("stream", stream))  # B 1
    mixed = _mix(mixed) + counters * _signed(0x9E3779B97F4A7C15)  # B count
    return (_shift(_mix(mixed), 40)).to(torch.float32) / float(1 << 24)  # 24 bits: exact in float32


def choice(keys: Tensor, count: int | Tensor, stream: str = "") -> Tensor:
    """One of ``count`` (of as many for all keys, or B) for each key, all equally likely: B int64."""
    return (uniform(keys, 1, stream)[:, 0] * count).long()  # B; the largest number below 1 does not round up to count


def normal(keys: Tensor, count: int, stream: str = "") -> Tensor:
    """``count`` numbers of a standard normal distribution for each key, B count float32 (Box and Muller 1958)."""
    import torch

    first, second = uniform(keys, 2 * count, stream).chunk(2, dim=1)  # B count each
    return (-2 * (1 - first).log()).sqrt() * (2 * torch.pi * second).cos()  # 1 - first is never 0


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """A logical right shift: int64 shifts in the sign otherwise."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
