"""What is known of a video before its frames are read, and the error of one that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from tubelet.data.storage import Place
from tubelet.types import TubeletError

PICTURES_FPS = 30.0
"""The rate of pictures without a clock, where nothing tells it: a stride then counts pictures."""


class UnreadableVideo(TubeletError):
    """A file that gives no frames. `.path` is the file, `.reason` says why in a few words."""

    def __init__(self, path: Place, reason: str) -> None:
        super().__init__(f"cannot read {path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[UnreadableVideo], tuple[Place, str]]:
        return UnreadableVideo, (self.path, self.reason)  # so that it crosses from a worker process


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself. Width and height are as displayed, after rotation."""

    duration_s: float
    fps: float
    frames: int
    """Duration x fps: an estimate; the header's count is worse, since it has frames that are never shown."""
    width: int
    height: int
    codec: str
    start_s: float
    """When the first displayed frame starts on the file's own clock; our times count from there."""
    rotation: int
    """Degrees counter-clockwise by which decoded frames are turned for display: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether decoded frames are mirrored for display, left to right, before they are turned."""


def shrunk(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """The size of frames that are read to a shorter side of `short_side`; smaller ones stay as they are."""
    shorter = min(width, height)
    if short_side is None or short_side >= shorter:
        return width, height
    return max(short_side, round(width * short_side / shorter)), max(short_side, round(height * short_side / shorter))
