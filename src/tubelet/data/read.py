"""From a place and times in seconds to pixels: exact to the frame, one open and one pass for all times.

Times are relative to the first frame that is displayed. The frame of a time is the one on display then: the
last whose start is not later. Times before the first frame answer the first, times past the end the last.

What a place is decides who reads it: a video file, here or at a URL (`decode.py`).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from tubelet.data import decode, storage
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.storage import Place, Url

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UnreadableVideo", "VideoInfo", "check", "probe", "read"]


def probe(place: str | Path | Url, fps: float | None = None) -> VideoInfo:
    """Duration, rate and size of a video. Decodes its first frame; remembers the answer while the file stays.

    Args:
        fps: the rate of pictures without a clock; None = 30, so that a stride counts pictures.

    Raises:
        UnreadableVideo: it gives no frame.
    """
    where = storage.place(place)
    return _probe(where, fps, storage.stamp(where))


@lru_cache(maxsize=1 << 16)
def _probe(where: Place, fps: float | None, _stamp: tuple[int, int] | None) -> VideoInfo:
    return decode.probe(Path(where))


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

    where = storage.place(place)
    clip = decode.read(Path(where), numpy.asarray(times_s, dtype=numpy.float64), short_side)
    return torch.from_numpy(clip).permute(0, 3, 1, 2)  # T C H W


def check(place: str | Path | Url, fps: float | None = None) -> VideoInfo:
    """`probe`, and decodes up to the middle: what a scan does with every file.

    Raises:
        UnreadableVideo: it gives no frame, or breaks off in its first half.
    """
    where = storage.place(place)
    info = probe(where, fps)
    decode.check(Path(where), info)
    return info
