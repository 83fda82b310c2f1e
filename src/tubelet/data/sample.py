"""Which moments of a video a clip is made of: pure functions from a duration to seconds.

They all think in frames of the file (``fps`` a second, numbered from 0) and answer the *middle* of each
chosen frame, so that no rounding further down can land on a neighbour. ``gap_s`` is the time between two
frames of a clip (`step_s`). A gap that is no whole number of frames takes the frame on display at that time.

Files shorter than the clip: the clip starts at 0, and what would lie past the end repeats the last frame.

Two conventions come from VideoMAE's code (its frame counts N, clip length T and stride are ``duration_s *
fps``, ``frames`` and ``gap_s * fps`` here). A clip *takes up* ``frames * gap_s`` seconds, although its last
frame is taken one gap earlier; and where a file is longer than that, every start that fits is equally likely.
"""

from __future__ import annotations

import math

import numpy
from numpy import ndarray
from numpy.random import Generator

_SLACK = 1e-6
"""In frames: 2 seconds at 29.97 a second may come out as 59.9999999 frames."""


def step_s(stride: int, reference_fps: float, fps: float) -> float:
    """Seconds between two frames of a clip: ``stride`` frames of a video of ``reference_fps``.

    Thus a clip lasts equally long whatever the frame rate of its file. ``reference_fps`` 0 counts the file's
    own frames.
    """
    return stride / (reference_fps or fps)


def span(start_s: float | None, end_s: float | None, duration_s: float, fps: float) -> tuple[float, float]:
    """Start and duration of a part of a video, from a whole frame on. Nothing is left of it where that is 0 or less."""
    first = math.floor((start_s or 0.0) * fps + _SLACK) / fps
    return first, (duration_s if end_s is None else min(end_s, duration_s)) - first


def random_clip(duration_s: float, fps: float, frames: int, gap_s: float, generator: Generator) -> ndarray:
    """Evenly spaced times from a random start at which the clip fits.

    VideoMAE's pre-training sampler, in seconds: ``off = randint(N - T * stride + 1)``, frames ``off + i *
    stride``. In short files VideoMAE repeats the last frame *of its grid* (0 4 8 8 of ten frames), this one
    the last of the file (0 4 8 9).

    Returns:
        T float64, seconds from the start of the video.
    """
    start = int(generator.random() * (_room(duration_s, fps, frames, gap_s) + 1))
    return _times(start + numpy.arange(frames) * gap_s * fps, duration_s, fps)


def near_clips(duration_s: float, fps: float, frames: int, gap_s: float, generators: list[Generator]) -> list[ndarray]:
    """Clips as `random_clip` takes them, each (after the first) near the first rather than far from it.

    The gap between the two starts, forwards or backwards, has a density that falls linearly from the shortest to 0 at
    the longest that the file allows: CVRL's sampler (Qian et al. 2021, section 3.2, "decreasing linear"). A pair of
    that gap is then equally likely wherever it fits, as there.

    Returns:
        For each generator T float64, seconds from the start of the video.
    """
    room = _room(duration_s, fps, frames, gap_s)
    shifts = [0, *(_near(room, generator) for generator in generators[1:])]
    low, high = max(0, -min(shifts)), min(room, room - max(shifts))
    if low > high:  # more than two clips can reach too far in both directions
        shifts = [round(shift * room / (max(shifts) - min(shifts))) for shift in shifts]
        low = high = -min(shifts)
    first = low + int(generators[0].random() * (high - low + 1))
    return [_times(first + shift + numpy.arange(frames) * gap_s * fps, duration_s, fps) for shift in shifts]


def _near(room: int, generator: Generator) -> int:
    """A gap of -room..room frames, the longer the rarer."""
    share = 1 - math.sqrt(1 - generator.random())  # of density 2 (1 - x)
    gap = int(share * (room + 1))
    return gap if generator.random() < 0.5 else -gap


def dense(duration_s: float, fps: float, frames: int, gap_s: float, generator: Generator) -> ndarray:
    """Times from the very start to the very end of a randomly placed window of ``frames * gap_s`` seconds.

    VideoMAE's (and I3D's) fine-tuning sampler: ``linspace(end - T * stride, end, T)``, whose gaps are a
    little longer than the stride. A shorter file is spread over ``N // stride`` frames from first to last,
    then the last repeats. VideoMAE never lets a window end with the last frame of the file; here it may.

    Returns:
        T float64, seconds from the start of the video.
    """
    gap = gap_s * fps
    total = _count(duration_s, fps)
    if total <= frames * gap:
        spread = numpy.linspace(0, total, max(1, int(total / gap + _SLACK)))
        positions = numpy.concatenate([spread, numpy.full(frames - len(spread), total)])
    else:
        start = int(generator.random() * (_room(duration_s, fps, frames, gap_s) + 1))
        window = frames * gap
        positions = start + numpy.linspace(0, window, frames).clip(0, max(window - 1, 0))
    return _times(positions, duration_s, fps)


def segments(
    duration_s: float, fps: float, frames: int, generator: Generator | None = None, at: float = 0.5
) -> ndarray:
    """One time in each of ``frames`` equal parts of the video: random, or at the share ``at`` of each part.

    TSN's sampler, as VideoMAE uses it for Something-Something. There the segments of training are ``N // T``
    frames long and leave the tail of the file out; these cover all of it. Test clips take frame ``int(tick *
    (x + at))`` of segments of ``tick = N / T`` frames, as published.

    Returns:
        T float64, seconds from the start of the video.
    """
    shares = generator.random(frames) if generator is not None else at
    positions = (numpy.arange(frames) + shares) * (duration_s * fps / frames)
    return _times(positions, duration_s, fps)


def segment_shares(clips: int) -> list[float]:
    """Where the test clips lie in their segments: k / K, as published for two (VideoMAE) and more (V2).

    They lean to the beginning: (k + 0.5) / K would be even, but not what published numbers were measured with.
    One clip is taken from the centres; V2 would take the first frame of each segment.
    """
    return [0.5] if clips == 1 else [k / clips for k in range(clips)]


def grid(duration_s: float, fps: float, frames: int, gap_s: float, clips: int = 1) -> list[ndarray]:
    """Clips whose starts are evenly spaced from the first that fits to the last; a single one is central.

    VideoMAE's dense test, which takes every stride-th frame and starts clip k at ``int(k * (n - T) / (K -
    1))`` of those (a division by zero for one clip); here the starts are rounded to frames of the file, not
    to strides.

    Returns:
        For each clip T float64, seconds from the start of the video.
    """
    room = _room(duration_s, fps, frames, gap_s)
    starts = [room // 2] if clips == 1 else [k * room // (clips - 1) for k in range(clips)]
    return [_times(start + numpy.arange(frames) * gap_s * fps, duration_s, fps) for start in starts]


def _count(duration_s: float, fps: float) -> int:
    """Frames of the file."""
    return max(1, round(duration_s * fps))


def _room(duration_s: float, fps: float, frames: int, gap_s: float) -> int:
    """How many frames the start of a clip can move without its end leaving the file."""
    return max(0, int(_count(duration_s, fps) - frames * gap_s * fps + _SLACK))


def _times(positions: ndarray, duration_s: float, fps: float) -> ndarray:
    """The middles, in seconds, of the frames on display at `positions` (in frames); past the end the last."""
    chosen = numpy.floor(positions + _SLACK).clip(0, _count(duration_s, fps) - 1)
    return ((chosen + 0.5) / fps).clip(0, duration_s)
