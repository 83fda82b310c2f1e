"""The words and shapes that every floor shares.

Legend of shapes (one for the whole package; a line of code that changes a shape ends with it):
    B batch       V views        C channels     T frames       H W pixels
    N tokens      M hidden tokens                D width        P values of one cube
    K classes, prototypes or queue entries

Decoded clips are ``T C H W`` uint8; batches are ``B C T H W`` floats in [0, 1], RGB.
Masks: True = hidden, always. Times are seconds (``_s``); boxes are xyxy in 0..1; ratios are in 0..1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int, int]
"""Cubes along time, height and width: tokens are numbered time first, then rows, then columns."""


class Batch(TypedDict, total=False):
    """What a loader yields and a learner takes. Every modality is a list of views, even when there is one."""

    video: list[Tensor]
    """One tensor a view: B C T H W, uint8 from the loader, float in [0, 1] once it is on the device."""
    flow: list[Tensor]
    """Likewise, where the loader is asked for optical flow beside the video: the same moments and crops of its film."""
    audio: list[Tensor]
    """One tensor a view, where the loader is asked for sound: B S float32 in [-1, 1], of the seconds of the clip."""
    audio_present: Tensor
    """B bool, with `audio`: False where a file has no sound; its samples are zero."""
    text: list[list[str]]
    """One list a view, where the loader is asked for captions: the words of each sample, empty where there are none."""
    times: list[Tensor]
    """One tensor a view: B T, the seconds at which its frames were taken."""
    label: Tensor
    """B int64; -1 where a video has none."""
    id: Tensor
    """B int64: the row of the manifest, the same in every epoch, process and restart."""
    group: Tensor
    """B int64: the number of its group, which videos of one source share."""
    key: Tensor
    """B int64: hash(seed, epoch, id, repeat), from which every random draw for this sample is made."""
    readable: Tensor
    """B bool: False where a file could not be decoded and, in evaluation, nothing stands in for it."""


class TubeletError(Exception):
    """Something the user can mend. The message names the thing and the remedy; the command line prints it alone."""


class Output(NamedTuple):
    """What a learner answers: a scalar loss (None = nothing to learn from this batch yet) and numbers to log."""

    loss: Tensor | None
    metrics: dict[str, float | Tensor] = {}  # noqa: RUF012 - a NamedTuple default is never written to


class Features(NamedTuple):
    """What a backbone answers."""

    tokens: Tensor
    """B N D after the last norm; only the visible tokens (in ascending order) when `hidden` was given."""
    grid: Grid
    """The grid of the whole clip, hidden cubes included."""
