"""From a place and times in seconds to pixels: exact to the frame, one open and one pass for all times.

Times are relative to the first frame that is displayed. The frame of a time is the one on display then: the
last whose start is not later. Times before the first frame answer the first, times past the end the last.

What a place is decides who reads it: a video file, here or at a URL (`decode.py`), pictures in a folder, a zip or a tar
(`pictures.py`), or a sample of a shard (`shards.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy

from tubelet.data import decode, pictures, shards, storage
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.storage import Place, Url

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UnreadableVideo", "VideoInfo", "check", "frames", "probe", "read"]


def probe(place: str | Path | Url, fps: float | None = None) -> VideoInfo:
    """Duration, rate and size of a video. Decodes its first frame; remembers the answer while the file stays.

    Args:
        fps: the rate of pictures without a clock; None = 30, so that a stride counts pictures.

    Raises:
        UnreadableVideo: it gives no frame.
    """
    where = storage.place(place)
    with _told(where):
        return _probe(where, fps, storage.stamp(where))


@lru_cache(maxsize=1 << 16)
def _probe(where: Place, fps: float | None, _stamp: storage.Stamp | None) -> VideoInfo:
    if shards.is_place(where):
        return shards.probe(where, fps)
    if pictures.is_place(where):
        return pictures.probe(where, fps)
    return decode.probe(where, _file(where))


def read(
    place: str | Path | Url, times_s: numpy.ndarray, short_side: int | None = None, fps: float | None = None
) -> Tensor:
    """The frames on display at `times_s`, in the order of `times_s` (any order, repeats allowed).

    Args:
        times_s: T seconds from the first displayed frame.
        short_side: shrink frames to this shorter side while decoding, keeping the aspect ratio; smaller ones
            stay as they are.
        fps: the rate of pictures without a clock; None = 30.

    Returns:
        T C H W uint8, RGB, turned as the file says it is to be displayed. In memory the channels are last.

    Raises:
        UnreadableVideo: it gives no frame.
    """
    import torch

    where, times_s = storage.place(place), numpy.asarray(times_s, dtype=numpy.float64)
    with _told(where):
        if shards.is_place(where):
            clip = shards.read(where, times_s, short_side, fps)
        elif pictures.is_place(where):
            clip = pictures.read(where, times_s, short_side, fps)
        else:
            clip = decode.read(where, times_s, short_side, _file(where))
    return torch.from_numpy(clip).permute(0, 3, 1, 2)  # T C H W


def check(place: str | Path | Url, fps: float | None = None) -> VideoInfo:
    """`probe`, and decodes up to the middle: what a scan does with every file.

    Raises:
        UnreadableVideo: it gives no frame, or breaks off in its first half.
    """
    where = storage.place(place)
    with _told(where):
        if shards.is_place(where):
            return shards.check(where, fps)
        if pictures.is_place(where):
            return pictures.check(where, fps)
        info = probe(where, fps)
        decode.check(where, info, _file(where))
        return info


def frames(
    place: str | Path | Url,
    start_s: float = 0.0,
    end_s: float = math.inf,
    short_side: int | None = None,
    fps: float | None = None,
) -> Iterator[tuple[float, numpy.ndarray]]:
    """Every frame that is on display between two times, one at a time and in one pass.

    Yields:
        The earliest time at which `read` answers the frame, and the frame itself: H W C uint8.

    Raises:
        UnreadableVideo: it gives no frame.
    """
    where = storage.place(place)
    with _told(where):
        if shards.is_place(where):
            yield from shards.frames(where, start_s, end_s, short_side, fps)
        elif pictures.is_place(where):
            yield from pictures.frames(where, start_s, end_s, short_side, fps)
        else:
            yield from decode.frames(where, start_s, end_s, short_side, _file(where))


def is_file(place: str | Path | Url) -> bool:
    """Whether a place is a video file, here or at a URL, for readers of nothing else: not pictures, no sample."""
    where = storage.place(place)
    with _told(where):
        return not (shards.is_place(where) or pictures.is_place(where))


def _file(where: Place) -> Callable[[], BinaryIO] | None:
    """What opens the bytes of a URL; FFmpeg opens a file of this machine itself."""
    return partial(storage.opened, where) if isinstance(where, Url) else None


@contextmanager
def _told(where: Place) -> Iterator[None]:
    """Says why a place cannot be read, also where storage fails amid decoding."""
    try:
        yield
    except OSError as error:
        raise UnreadableVideo(where, storage.words(error)) from None
    except UnreadableVideo as error:
        reason = error.reason
        if isinstance(where, Path) and "\\" in str(where) and not where.exists():
            reason = "no such file: its path is one of Windows, write it with / and as it is on this machine"
        raise UnreadableVideo(where, reason) from None
