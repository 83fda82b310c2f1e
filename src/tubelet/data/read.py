"""From a file and times in seconds to pixels: exact to the frame, one open and one pass for all times.

Times are relative to the first frame that is displayed. The frame of a time is the one on display then: the
last whose start is not later. Times before the first frame answer the first, times past the end the last.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy

from tubelet.data import decode
from tubelet.data.info import UnreadableVideo, VideoInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UnreadableVideo", "VideoInfo", "check", "probe", "read"]


def probe(path: str | Path) -> VideoInfo:
    """Duration, rate and size of a video. Decodes its first frame; remembers the answer while the file stays.

    Raises:
        UnreadableVideo: the file gives no frame.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError:
        return _probe(path, 0, 0)  # says what is wrong
    return _probe(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1 << 16)
def _probe(path: Path, _modified: int, _bytes: int) -> VideoInfo:
    return decode.probe(path)


def read(path: str | Path, times_s: numpy.ndarray, short_side: int | None = None) -> Tensor:
    """The frames on display at `times_s`, in the order of `times_s` (any order, repeats allowed).

    Args:
        times_s: T seconds from the first displayed frame.
        short_side: shrink frames to this shorter side while decoding, keeping the aspect ratio; smaller ones
            stay as they are.

    Returns:
        T C H W uint8, RGB, turned as the file says it is to be displayed. In memory the channels are last.

    Raises:
        UnreadableVideo: the file gives no frame.
    """
    import torch

    clip = decode.read(Path(path), numpy.asarray(times_s, dtype=numpy.float64), short_side)
    return torch.from_numpy(clip).permute(0, 3, 1, 2)  # T C H W


def check(path: str | Path) -> VideoInfo:
    """`probe`, and decodes up to the middle: what a scan does with every file.

    Raises:
        UnreadableVideo: the file gives no frame, or breaks off in its first half.
    """
    path = Path(path)
    info = probe(path)
    decode.check(path, info)
    return info
