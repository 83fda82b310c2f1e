"""Reading a video file with torchcodec, where that is installed: the same frames as `decode.py`, or that one's own.

torchcodec (https://github.com/meta-pytorch/torchcodec) decodes with the FFmpeg of the system, on the processor or on
an NVIDIA card's decoder (NVDEC). It needs the build that goes with the build of torch; `problem` says what is wrong.
Which reader is faster depends on the machine and the files: `chosen` measures.

It is never trusted with the time: the stamps of the frames that it gives must be the ones that the packets promise.
Where they are not (AVI with B-frames, transport streams, discarded key frames), the file is read with PyAV instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import av
import numpy

from tubelet import log
from tubelet.data import read as reading
from tubelet.data import storage
from tubelet.data.container import FORMATS, PICTURES
from tubelet.data.info import UnreadableVideo, VideoInfo, mercy_s, shrunk
from tubelet.data.storage import Place
from tubelet.data.workers import Failure, Workers
from tubelet.types import TubeletError

if TYPE_CHECKING:
    from torch import Tensor

Chosen = Literal["pyav", "torchcodec"]
Reader = Literal["pyav", "torchcodec", "auto"]

TRIALS = 5
"""So many files are measured by `fastest`."""
WORTH = 0.9
"""torchcodec is chosen if it costs less than this share of PyAV's time; nearer than that is a tie."""
SAME_LEVELS = 4.0
"""Mean difference up to which frames count as the same: FFmpegs differ by 3 levels in the colours of ten bits."""


def read(
    place: str | Place,
    times_s: numpy.ndarray,
    short_side: int | None = None,
    *,
    device: str = "cpu",
    file: Callable[[], BinaryIO] | None = None,
) -> Tensor:
    """The frames on display at `times_s`: T C H W uint8 on `device`. See `tubelet.data.read.read`.

    Args:
        device: "cpu", or "cuda" for the card's decoder; a codec that the card does not know is decoded on the
            processor. Not "cuda" in a forked worker: CUDA does not survive a fork.
        file: opens the bytes where `place` is only their name.

    Raises:
        TubeletError: torchcodec cannot be used on this machine.
        UnreadableVideo: the file gives no frame.
    """
    wrong = problem(device)
    if wrong is not None:
        raise TubeletError(wrong)
    place, times_s = storage.place(place), numpy.asarray(times_s, dtype=numpy.float64)
    clip = _exactly(place, times_s, reading.probe(place), device, file or _opener(place))
    if clip is None:
        return reading.read(place, times_s, short_side).to(device)
    return _shrink(clip, short_side)


@cache
def problem(device: str = "cpu") -> str | None:
    """In one line, why torchcodec cannot be used; None where it can."""
    if importlib.util.find_spec("torchcodec") is None:
        return "torchcodec is not installed: pip install 'tubelet[torchcodec]'"
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        return _diagnosis(str(error))
    import torch

    if not device.startswith("cpu") and not torch.cuda.is_available():
        return f"torchcodec cannot decode on {device}: torch finds no CUDA device"
    return None


def chosen(reader: Reader, places: Sequence[str | Place], short_side: int | None = None) -> Chosen:
    """The reader that a setting means on this machine for these files. "auto" measures, and says what it found.

    Raises:
        TubeletError: torchcodec is asked for and cannot be used.
    """
    if reader == "pyav":
        return "pyav"
    wrong = problem()
    if reader == "torchcodec":
        if wrong is not None:
            raise TubeletError(f"{wrong}; or take the reader 'pyav'")
        return "torchcodec"
    if wrong is not None:
        log.say(f"Reading with PyAV: {wrong}")
        return "pyav"
    return fastest(places, short_side)


def fastest(places: Sequence[str | Place], short_side: int | None = None) -> Chosen:
    """Reads a clip of sixteen frames from a few of the files both ways and answers which costs less CPU time.

    What counts is the median over files of the ratio of the two. PyAV is the answer if they are about equal, if a
    frame differs, if torchcodec crashes or hangs (it is tried in a process of its own), or if no file can be read.
    """
    few = list(places[:: max(1, len(places) // TRIALS)][:TRIALS])
    ratios = []
    for place, ratio in Workers(partial(_ratio, short_side=short_side), count=1).map(few):
        if isinstance(ratio, Failure):
            log.say(f"Reading with PyAV: torchcodec fails on {place}: {ratio.reason}")
            return "pyav"
        if ratio == math.inf:
            log.say(f"Reading with PyAV: torchcodec gives other frames of {place}")
            return "pyav"
        if ratio is not None:
            ratios.append(ratio)
    if not ratios:
        return "pyav"
    ratio = statistics.median(ratios)
    winner: Chosen = "torchcodec" if ratio < WORTH else "pyav"
    name = "torchcodec" if winner == "torchcodec" else "PyAV"
    log.say(f"Reading with {name}: torchcodec takes {ratio:.2f} of PyAV's time (the median of {len(ratios)} files)")
    return winner


def _ratio(place: str | Place, short_side: int | None) -> float | None:
    """torchcodec's CPU time over PyAV's for a clip, the better of three turns each.

    None where the file cannot be read or is none (pictures, a sample), infinity where the frames are not the same.
    """
    try:
        if not reading.is_file(place):
            return None
        info = reading.probe(place)
        times_s = info.duration_s / 3 + numpy.arange(16) * 4 / info.fps
        ours, theirs = reading.read(place, times_s[::5]), read(place, times_s[::5])  # shrinking differs a little
    except UnreadableVideo:
        return None
    if ours.shape != theirs.shape or (ours.float() - theirs.float()).abs().mean() > SAME_LEVELS:
        return math.inf
    ours_s, theirs_s = [], []
    for _ in range(3):
        ours_s.append(_cpu_s(lambda: reading.read(place, times_s, short_side)))
        theirs_s.append(_cpu_s(lambda: read(place, times_s, short_side)))
    return min(theirs_s) / min(ours_s)


def _exactly(
    place: Place, times_s: numpy.ndarray, info: VideoInfo, device: str, source: Callable[[], str | BinaryIO]
) -> Tensor | None:
    """T C H W at the stored size, or None where torchcodec fails, gives frames of other times, or would not mirror."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    found = _starts(source)
    if found is None or info.mirrored:
        return None
    starts_s, tick_s = found
    early_s = mercy_s(info.fps, tick_s)
    rows = numpy.searchsorted(starts_s, info.start_s + times_s + early_s, side="right") - 1
    rows = rows.clip(int(numpy.searchsorted(starts_s, info.start_s - early_s)), len(starts_s) - 1)
    try:
        with _opened(source) as opened:
            decoder = VideoDecoder(opened, device=device, num_ffmpeg_threads=1)
            if len(decoder) != len(starts_s):
                return None
            frames = decoder.get_frames_at(rows.tolist())
            stamps_s, pixels = frames.pts_seconds.cpu().numpy(), frames.data
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        if "Unsupported device" in str(error):
            raise TubeletError(f"torchcodec cannot decode on {device}: install its CUDA build") from None
        return None
    return None if numpy.abs(stamps_s - starts_s[rows]).max(initial=0.0) > early_s else pixels


def _starts(source: Callable[[], str | BinaryIO]) -> tuple[numpy.ndarray, float] | None:
    """When the display of each frame starts, by the packets: seconds of the file's clock, rising; and its tick.

    None where packets have no stamps, or the stream that torchcodec would take is a cover and no video.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        with _opened(source) as opened, av.open(opened, "r", options=options, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & PICTURES or stream.time_base is None:
                return None
            tick_s = float(stream.time_base)  # a closed container must not be asked
            stamps = [p.pts for p in container.demux(stream) if p.size and not p.is_discard]
    except (av.FFmpegError, OSError, ValueError):
        return None
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) < len(stamps) or not known:
        return None
    return numpy.sort(known) * tick_s, tick_s


@contextmanager
def _opened(source: Callable[[], str | BinaryIO]) -> Iterator[str | BinaryIO]:
    opened = source()
    with nullcontext() if isinstance(opened, str) else closing(opened):
        yield opened


def _opener(place: Place) -> Callable[[], str | BinaryIO]:
    return lambda: str(place) if isinstance(place, Path) else storage.opened(place)


def _shrink(clip: Tensor, short_side: int | None) -> Tensor:
    """To the size that `decode.py` shrinks to."""
    from torch.nn.functional import interpolate

    height, width = clip.shape[-2:]
    size = shrunk(width, height, short_side)[::-1]
    if size == (height, width):
        return clip
    return interpolate(clip, size=size, mode="bilinear", antialias=True)  # T C h w


def _diagnosis(error: str) -> str:
    """What is wrong with an install, from the many lines that importing it gave."""
    import torch

    mine = f"torch {torch.__version__}"
    if any(library in error for library in ("libtorch_cuda", "libnvrtc", "libcudart", "libnpp")):
        reason, remedy = f"it is a CUDA build, and {mine} here is not", "pip install torchcodec==0.13.0"
    elif "undefined symbol" in error:
        reason, remedy = f"it was built for another torch than {mine}", "pip install torchcodec==0.13.0"
    elif "libavutil" in error or "libavcodec" in error:
        reason, remedy = "it finds no FFmpeg (4 to 8)", "apt-get install ffmpeg"
    else:
        reason, remedy = (error.strip().splitlines() or ["no reason given"])[-1], "install it anew"
    return f"torchcodec is installed and cannot be loaded: {reason}; {remedy}"


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
