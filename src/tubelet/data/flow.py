"""Optical flow: where each pixel of a picture moves until the next one, computed once and kept as films.

The flow film of a video is a video of the same times, read like any other. Its red is the displacement to the right and
its green that downwards, in pixels of the film and up to `Flow.limit_px`, beyond which it is cut off: 1 is the limit
to the left or upwards, 128 is still, 255 the limit to the right or downwards. Its blue is the length of the
displacement, 0 where all is still. The last picture, which moves nowhere, repeats the one before it. Cutting off at 20
pixels and 8 bits are the customary way of keeping flow (Simonyan and Zisserman, NeurIPS 2014; Wang et al., ECCV 2016).

Films are encoded in worker processes and carry a digest of all they depend on in their names: what is there is never
made again, and a source that has changed gets another film.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy

from tubelet.data import encode, read, storage
from tubelet.data.info import UnreadableVideo, VideoInfo, mercy_s
from tubelet.data.inspect import Look, decoded, look_at, write_unreadable
from tubelet.data.listing import Manifest, write_manifest, written
from tubelet.data.pack import alone, gigabytes
from tubelet.data.root import look_again
from tubelet.data.storage import Place
from tubelet.data.workers import cores
from tubelet.types import TubeletError

QUALITY = 12
"""CRF of the films: of a hundred values one or less comes back by more than one of the 256 levels off."""
GOP = 12
SMALLEST = 16
"""Height or width, in pixels: with fewer there are too few patches to follow."""
VERSION = 1
"""Another one where the same video would be given another film."""


Measure = Callable[[numpy.ndarray, numpy.ndarray], numpy.ndarray]
"""From two pictures, H W 3 uint8, to the displacement from the first to the second: H W 2, pixels."""


@dataclass(frozen=True)
class Flow:
    """How flow is computed.

    Args:
        method: "dis" (dense inverse search: Kroeger et al., ECCV 2016) or "farneback" (Farneback, SCIA 2003), which
            takes two to three times as long.
        short_side: compute it on pictures that are shrunk to this shorter side, in whose pixels it is counted; 0 =
            keep their size.
        limit_px: the longest displacement, in pixels from one picture to the next, that is told from longer ones.

    Raises:
        TubeletError: an option makes no sense.
    """

    method: Literal["dis", "farneback"] = "dis"
    short_side: int = 256
    limit_px: float = 20.0

    def __post_init__(self) -> None:
        if self.short_side < 0:
            raise TubeletError(f"--short-side must be 0 (their own) or more, not {self.short_side}")
        if not 0 < self.limit_px <= 1000:
            raise TubeletError(f"--limit-px must be above 0 and at most 1000, not {self.limit_px:g}")

    def picture(self, displacement: numpy.ndarray) -> numpy.ndarray:
        """Displacements (H W 2, pixels) as a picture of a film: H W 3 uint8."""
        share = (displacement / self.limit_px).clip(-1, 1)
        length = numpy.linalg.norm(displacement, axis=-1, keepdims=True) / self.limit_px
        levels = numpy.concatenate([128 + 127 * share, 255 * length.clip(0, 1)], axis=-1)  # H W 3
        return (levels + 0.5).astype(numpy.uint8)

    def displacement(self, picture: numpy.ndarray) -> numpy.ndarray:
        """What `picture` was made of: ... H W 3 uint8 -> ... H W 2, pixels."""
        return (picture[..., :2].astype(numpy.float32) - 128) * (self.limit_px / 127)

    def name(self, look: Look, source: Place | None) -> str:
        """The name of the film of a video of the manifest at `source`."""
        of = (VERSION, written(look.place, source), look.fps, look.bytes, look.state, sorted(asdict(self).items()))
        digest = hashlib.blake2b(repr(of).encode(errors="surrogateescape"), digest_size=8).hexdigest()
        return f"{look.place.stem[:80]}-{digest}.mp4"


class Filmed(NamedTuple):
    """What there is in the end."""

    manifest: Path
    films: int
    made: int
    """Of these now."""
    bytes: int
    left_out: list[tuple[Place, str]]
    """Video and reason."""
    took_s: float

    def summary(self) -> list[tuple[str, str]]:
        """Rows of a table for people: what, how much."""
        return [
            ("films", f"{self.films:,}"),
            ("made now", f"{self.made:,}"),
            ("size", gigabytes(self.bytes)),
            ("seconds taken", f"{self.took_s:,.1f}"),
            ("left out", f"{len(self.left_out):,}"),
        ]


def make_films(manifest: Manifest, out: Path, flow: Flow, workers: int | None = None, limit_s: float = 600.0) -> Filmed:
    """Makes the flow film of each video file of a manifest, or goes on where an earlier call was ended.

    A film is of a whole file, whatever spans its rows are about, and they share it. Beside the films: ``clips.csv``,
    the manifest with their places in its column `flow`, and ``unreadable.csv``, the videos that have none, if any.

    Args:
        workers: processes; None = one per core, 0 = in this one, without a limit of time.
        limit_s: seconds after which a video is given up; large files get more.

    Raises:
        TubeletError: OpenCV is not installed, ``out`` cannot be written to or is the manifest's own folder and would
            lose it, or none of the videos can be read.
    """
    started = time.monotonic()
    _opencv()
    listing = out / "clips.csv"
    if listing.exists() and isinstance(manifest.source, Path) and listing.samefile(manifest.source):
        raise TubeletError(f"{listing} would be written over: choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with alone(out, f"computing flow into {out}"):
            before = {path.name for path in out.glob("*.mp4")}
            found = _films(manifest, out, flow, cores() if workers is None else workers, limit_s)
            films = [found[look_at(video)] for video in manifest]
            kept = [replace(v, flow=film) for v, film in zip(manifest, films, strict=True) if isinstance(film, Path)]
            unreadable = [(look.place, reason) for look, reason in found.items() if isinstance(reason, str)]
            if not kept:
                place, reason = unreadable[0]
                raise TubeletError(f"none of the {len(found)} videos has flow; {place.name}: {reason}")
            write_manifest(listing, Manifest(kept, manifest.classes, listing, manifest.root))
            (out / "unreadable.csv").unlink(missing_ok=True)  # of an earlier start
            if unreadable:
                write_unreadable(out / "unreadable.csv", unreadable)
    except OSError as error:
        raise TubeletError(f"cannot write to {out}: {error.strerror or error}") from None
    there = [film for film in found.values() if isinstance(film, Path)]
    made = sum(film.name not in before for film in there)
    size = sum(film.stat().st_size for film in there)
    return Filmed(listing, len(there), made, size, unreadable, time.monotonic() - started)


def _films(manifest: Manifest, out: Path, flow: Flow, workers: int, limit_s: float) -> dict[Look, Path | str]:
    """The film of each file, or the reason why there is none."""
    for folder in out.glob(".making-*"):  # of a process that was killed
        shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=out) as desk:
        one = partial(_film, Path(desk), out.resolve(), flow, manifest.source, manifest.root)
        looks = [look_at(video) for video in manifest]
        return dict(decoded(one, looks, "computing flow", workers, limit_s))


def _film(desk: Path, out: Path, flow: Flow, source: Place | None, root: Place | None, look: Look) -> Path | str:
    """The film of a video, or why there is none: a video that is bad must never stop the others, and all else must."""
    place = out / flow.name(look, source)
    if place.exists():
        return place
    try:
        look_again(look.place, root)
        film(look.place, desk / place.name, flow, look.fps)
        storage.put(desk / place.name, place)
    except UnreadableVideo as error:
        return error.reason
    except OSError as error:  # those of reading are UnreadableVideo
        raise TubeletError(f"cannot write to {out}: {error.strerror or error}") from None
    except av.FFmpegError as error:
        return f"its flow cannot be encoded: {error.strerror}"
    return place


def film(video: Place, path: Path, flow: Flow, fps: float | None = None) -> None:
    """Computes the flow of a video, all of it, and writes its film to ``path``.

    Args:
        fps: the rate of pictures without a clock; None = 30.

    Raises:
        UnreadableVideo: the video gives no frame, or is too small for flow.
        TubeletError: OpenCV is not installed.
    """
    info = read.probe(video, fps)
    compare = measure(flow)
    encode.video(_pictures(video, info, flow, compare, fps), None, QUALITY, GOP, info.fps, "", path, pixels="rgb24")


@contextmanager
def shown(video: Place, clip: Mapping[str, Any], fps: float | None = None) -> Iterator[Place]:
    """What a network whose clips are like ``clip`` looks at: the video, or a film of its flow that is made for it now.

    Raises:
        UnreadableVideo, TubeletError: as `film`.
    """
    if clip.get("flow") != "instead":
        yield video
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flow.mp4")
        film(video, path, Flow(), fps)
        yield path


def _pictures(video: Place, info: VideoInfo, flow: Flow, compare: Measure, fps: float | None) -> encode.Frames:
    """The pictures of a film, each from when its frame of the video is shown."""
    before, start_s, picture = None, 0.0, None
    for number, (from_s, frame) in enumerate(read.frames(video, short_side=flow.short_side or None, fps=fps)):
        if min(frame.shape[:2]) < SMALLEST:
            raise UnreadableVideo(video, f"pictures of {info.width} x {info.height} are too small for flow")
        if before is not None:
            picture = flow.picture(compare(before, frame))
            yield start_s, picture
        # A reader will be as merciful when it is asked for a time.
        before, start_s = frame, from_s + mercy_s(info.fps) if number else 0.0
    if before is not None:
        yield start_s, flow.picture(numpy.zeros((*before.shape[:2], 2))) if picture is None else picture


def measure(flow: Flow) -> Measure:
    """What measures, in one thread."""
    cv2 = _opencv()
    cv2.setNumThreads(1)  # there are as many processes as cores
    grey = partial(cv2.cvtColor, code=cv2.COLOR_RGB2GRAY)
    if flow.method == "dis":
        dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return lambda first, second: dis.calc(grey(first), grey(second), None)
    settings = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2}
    return lambda first, second: cv2.calcOpticalFlowFarneback(grey(first), grey(second), None, **settings, flags=0)


def _opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError:
        raise TubeletError("optical flow needs OpenCV: pip install 'tubelet[flow]'") from None
