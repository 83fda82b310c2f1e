"""Looks at one video through and through: decodes it once, from the first frame to the last, and says what it found.

What is found has a code of `cases.CASES`. A video is refused (it has a `reason`) only where training on it would fail
or lie: nothing can be decoded, or most of what its header promises is not there. All else is said and left to people.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy

from tubelet.data import pictures, read, shards, storage
from tubelet.data.appearance import Appearance
from tubelet.data.cases import CASES, Case, Finding, refusal
from tubelet.data.container import PICTURES, open_container, video_stream
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.sample import step_s
from tubelet.data.storage import Place, Url, words

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["CASES", "Case", "Examination", "Finding", "examine"]

CLIP_FRAMES, CLIP_STRIDE, CLIP_FPS = 16, 4, 30.0  # as VideoMAE is trained on Kinetics

TOLERANCE = 0.02
"""Share that a length may differ from its header's: containers round, and some leave the last frame's length out."""
TOLERANCE_FRAMES = 2
"""But so many frames always: encoders delay."""
RATE_TOLERANCE = 0.05
"""Share that a rate may differ from its header's: 29.97 is called 30, and clocks of cameras drift."""
UNEVEN = 0.02
"""Share of uneven steps from which on a rate is variable: a frame that is dropped now and then does not make one."""
RATES = 5.0, 240.0
"""Frames a second that are believed: slower are time-lapses or slides, faster are high-speed films or wrong headers."""
LATE_S = 0.5
"""Encoders' delays, and sound that begins first, make clocks start later by less."""
LONG_S = 3600.0
"""Of more than an hour, a clip is a vanishing share."""
PATCH = 16
"""Pixels: the patch of the usual backbones."""
HUGE = 2560 * 1440
"""Pixels: from here on decoding costs more than ten times that of 640 x 360."""
SQUARE = 0.02
"""Share that a pixel may be wider or higher: sizes are rounded to even numbers, and ratios made up for it."""
SLIM = 3.0
"""Ratio of sides beyond which a square crop misses most of the picture. Films in Cinemascope have 2.4."""

_AT_ONCE = 16
"""Pictures of a series that are read together, each time with the first, whose size all must have."""

_ENDINGS = {
    "mov,mp4,m4a,3gp,3g2,mj2": {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2"},
    "matroska,webm": {".mkv", ".webm"},
    "avi": {".avi", ".divx"},
    "mpegts": {".ts", ".mts", ".m2ts"},
    "mpeg": {".mpg", ".mpeg", ".vob"},
    "flv": {".flv"},
    "asf": {".wmv", ".asf"},
    "ogg": {".ogv", ".ogg"},
    "gif": {".gif"},
}
"""How files of a kind, as FFmpeg calls it, are named. Other kinds and names are not judged."""
_ANIMATIONS = {"gif", "apng", "webp_pipe"}
_HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}  # transfer characteristics, as ITU-T H.273 numbers them
_FULL_RANGE = 2  # of FFmpeg's AVColorRange
_ONE_PICTURE_EACH = {"h264", "hevc"}
"""Codecs of which each packet is a picture that is shown; others have packets that only prepare."""
_RESOURCE_FORK = b"\x00\x05\x16\x07"  # AppleDouble, RFC 1740


@dataclass(frozen=True)
class Examination:
    """All that is known of a video after one look."""

    place: Place
    info: VideoInfo | None = None
    """None: no frame can be had of it."""
    reason: str | None = None
    """Why it is not to be trained on; None: it may be."""
    findings: list[Finding] = field(default_factory=list)
    """The one that is the reason first."""
    digest: str = ""
    """BLAKE2b of the bytes, 128 bits in hexadecimal: of the file, or of pictures in order, or a sample's video."""
    bytes: int = 0
    hashes: list[int] = field(default_factory=list)
    """64 bits for each of `appearance.HASHED` frames, in order; frames with nothing to see have none."""
    squares: bytes = field(default=b"", repr=False)
    """Those frames as grey squares of `appearance.SMALL` pixels, a byte each."""
    frames: int = 0
    """Decoded and shown."""
    seconds: float = 0.0
    """From the start of the first frame to the end of the last, as found; `info.duration_s` is what the header says."""
    decode_s: float = 0.0
    """Of one core, for all frames."""
    sound: str | None = None
    """Codec and rate, if there is any."""
    thumbnail: bytes = field(default=b"", repr=False)
    """A JPEG of a frame from the middle, at most `appearance.THUMBNAIL` pixels long."""

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "place": str(self.place),
            "hashes": [f"{number:016x}" for number in self.hashes],  # readers of JSON round integers of 64 bits
            "squares": base64.b64encode(self.squares).decode(),
            "thumbnail": base64.b64encode(self.thumbnail).decode(),
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Examination:
        made = {
            "place": storage.place(row["place"]),
            "info": VideoInfo(**row["info"]) if row["info"] else None,
            "findings": [Finding(**finding) for finding in row["findings"]],
            "hashes": [int(number, 16) for number in row["hashes"]],
            "squares": base64.b64decode(row["squares"]),
            "thumbnail": base64.b64decode(row["thumbnail"]),
        }
        return cls(**{**row, **made})


def examine(
    place: str | Path | Url,
    fps: float | None = None,
    frames: int = CLIP_FRAMES,
    stride: int = CLIP_STRIDE,
    reference_fps: float = CLIP_FPS,
) -> Examination:
    """Decodes a video once and says what there is to know of it.

    What is wrong with a video is in the answer, never raised; but decoders can crash and hang: call this in a worker.

    Args:
        place: a file or URL, or whatever else `tubelet.data.read` reads.
        fps: the rate of pictures without a clock.
        frames: of a clip, to tell what is shorter than one.
        stride: of a clip, in frames of a video of `reference_fps`.
        reference_fps: 0: strides count the video's own frames.
    """
    where = storage.place(place)
    try:
        info = read.probe(where, fps)
        film = _Pictures(where, info) if pictures.is_place(where) else _Film(where, info)
        return _look(where, info, film, frames * step_s(stride, reference_fps, info.fps))
    except UnreadableVideo as error:
        finding = _refused(where, error.reason)
    except (OSError, ValueError, av.FFmpegError) as error:  # its place fails, or its pictures cannot be converted
        finding = Finding("unreadable", " ".join(str(error).split()))
    return Examination(where, reason=finding.detail, findings=[finding])


def _look(where: Place, info: VideoInfo, film: _Film | _Pictures, clip_s: float) -> Examination:
    """Args: `clip_s`: seconds that a clip spans."""
    seen = Appearance(info)
    for start_s, picture in film.play():
        seen.add(start_s, picture)
    seen.end(film.end_s)
    findings = [*film.findings(), *_about_length(info, film, clip_s), *_about_shape(info), *seen.findings()]
    findings.sort(key=lambda f: CASES[f.code].severity != "unreadable")  # a stable sort: the order stays otherwise
    refused = any(CASES[f.code].severity == "unreadable" for f in findings)
    digest, count = _digest(where)
    return Examination(
        where,
        info,
        reason=findings[0].detail if refused else None,
        findings=findings,
        digest=digest,
        bytes=count,
        hashes=seen.hashes,
        squares=seen.squares,
        frames=film.shown,
        seconds=film.end_s,
        decode_s=film.decode_s,
        sound=film.sound,
        thumbnail=seen.thumbnail,
    )


class _Film:
    """A video file that is played once, and what its streams, packets and clock tell meanwhile."""

    def __init__(self, where: Place, info: VideoInfo) -> None:
        self.where, self.info = where, info
        self.shown = self.header_frames = 0
        self.end_s = self.decode_s = 0.0
        self.tick_s = 1.0
        self.origin = self.last = 0  # ticks at which the first picture starts, and the latest one
        self.sound: str | None = None
        self.about_streams: list[Finding] = []
        self.about_pixels: list[Finding] = []
        self.sizes: dict[tuple[int, int], int] = {}  # -> the frame that it starts with
        self.steps = Counter[int]()  # ticks from one frame to the next -> how often
        self.without_time = self.interlaced = self.corrupt = self.hidden = 0
        self.begins_with_key = True
        self.waiting: set[int] = set()  # times of packets whose picture has not come, and at last of those lost
        self.failed: list[float] = []  # times of packets that the decoder refused

    def play(self) -> Iterator[tuple[float, VideoFrame]]:
        """Each picture with when its display starts, in seconds from the first."""
        file = None if isinstance(self.where, Path) else partial(storage.opened, self.where)
        container, source = open_container(self.where, file)
        with closing(source), container:
            stream = video_stream(container, self.where)
            self._note_streams(container, stream)
            self.header_frames = stream.frames
            self.tick_s = float(stream.time_base or 1 / self.info.fps)
            step = round(1 / self.info.fps / self.tick_s)
            codec = stream.codec_context
            self.one_each = codec.name in _ONE_PICTURE_EACH
            in_order_of_storage = container.format.name == "avi" and codec.has_b_frames
            for picture in self._decode(container, stream):
                stamp = None if in_order_of_storage else picture.pts
                if stamp is None:
                    self.without_time += 1
                    stamp = 0 if self.shown == 0 else self.last + step
                if self.shown == 0:
                    self.origin = self.last = stamp
                    self.about_pixels = _about_pixels(picture)
                else:
                    self.steps[stamp - self.last] += 1
                    self.last = max(self.last, stamp)
                self.sizes.setdefault((picture.width, picture.height), self.shown)
                self.interlaced += picture.interlaced_frame
                self.corrupt += picture.is_corrupt
                self.shown += 1
                start_s = (self.last - self.origin) * self.tick_s
                self.end_s = start_s + ((picture.duration or 0) * self.tick_s or 1 / self.info.fps)
                yield start_s, picture
        if source.error:  # which looked like the end of the file
            raise UnreadableVideo(self.where, words(source.error))

    def findings(self) -> list[Finding]:
        return [*self._about_end(), *self._about_damage(), *self._about_clock(), *self.about_streams,
                *self._about_pictures(), *self.about_pixels]  # fmt: skip

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """What `decode.read` shows, and beside it a count of what it had to leave out."""
        packets = container.demux(stream)
        first = True
        while True:
            started = time.thread_time()
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file breaks off here
                packet = None
            if packet is not None and packet.size:
                if first:
                    self.begins_with_key, first = packet.is_keyframe, False
                self._note_packet(packet)
            try:
                decoded = stream.codec_context.decode(packet)
            except av.EOFError:
                return
            except av.FFmpegError:
                decoded = []
                self.failed.append(numpy.inf if packet is None or packet.pts is None else packet.pts)
            self.decode_s += time.thread_time() - started
            for picture in decoded:
                self.waiting.discard(picture.pts)
                yield picture
            if packet is None:
                return

    def _note_packet(self, packet: Packet) -> None:
        if packet.is_discard:
            self.hidden += 1
        elif self.one_each and packet.pts is not None:
            self.waiting.add(packet.pts)

    def _note_streams(self, container: InputContainer, stream: VideoStream) -> None:
        kind, ending = container.format.name, self.where.suffix.lower()
        known = set().union(*_ENDINGS.values())
        if kind in _ENDINGS and ending in known and ending not in _ENDINGS[kind]:
            self.about_streams.append(Finding("wrong_ending", f"{ending}, but it is {kind.split(',')[0]}"))
        if kind in _ANIMATIONS:
            self.about_streams.append(Finding("animation", kind))
        videos = [s for s in container.streams.video if not s.disposition & PICTURES]
        if len(videos) > 1:
            detail = f"{len(videos)}, of which number {stream.index} of all streams is read"
            self.about_streams.append(Finding("several_videos", detail))
        shape = stream.sample_aspect_ratio
        if shape and abs(shape - 1) > SQUARE:
            self.about_streams.append(Finding("non_square_pixels", f"{shape.numerator}:{shape.denominator}"))
        if container.streams.audio:
            sound = container.streams.audio[0].codec_context
            self.sound = "unknown" if sound is None else f"{sound.name} {sound.sample_rate:,} Hz"

    def _about_end(self) -> list[Finding]:
        promised_s = self.info.duration_s
        missing_s = promised_s - self.end_s
        spare_s = max(TOLERANCE_FRAMES / self.info.fps, TOLERANCE * promised_s)
        if self.end_s + TOLERANCE_FRAMES / self.info.fps < promised_s / 2:
            return [Finding("breaks_off", f"it breaks off after {self.end_s:.1f} of {promised_s:.1f} seconds")]
        if missing_s > spare_s:
            return [Finding("cut_short", f"{self.end_s:.2f} of {promised_s:.2f} seconds are there")]
        if -missing_s > spare_s:
            return [Finding("duration_differs", f"{self.end_s:.2f} seconds are there, {promised_s:.2f} are announced")]
        return []

    def _about_damage(self) -> list[Finding]:
        found = []
        lost = self._lost()
        damaged, stored = self.corrupt + lost, self.shown + lost
        detail = f"damaged: {damaged:,} of {stored:,} frames"
        if 2 * damaged > stored:
            found.append(Finding("mostly_damaged", detail))
        elif damaged:
            found.append(Finding("damaged_middle", detail))
        if not self.begins_with_key:
            found.append(Finding("starts_without_key_frame", f"the first frame is at {self.info.start_s:.2f} seconds"))
        return found

    def _lost(self) -> int:
        """Frames between the first and the last that are shown of which the decoder made nothing."""
        silent = 0 if self._is_interlaced() else sum(self.origin < t < self.last for t in self.waiting)
        return max(silent, sum(self.origin < t < self.last for t in self.failed))

    def _about_clock(self) -> list[Finding]:
        found = []
        if self.without_time:
            found.append(Finding("no_timestamps", f"{self.without_time:,} of {self.shown:,} frames"))
        backward = sum(count for step, count in self.steps.items() if step <= 0)
        if backward:
            found.append(Finding("timestamps_not_increasing", f"{backward:,} of {self.shown:,} frames"))
        if self.info.start_s > LATE_S:
            found.append(Finding("starts_late", f"at {self.info.start_s:.2f} seconds"))
        is_whole = abs(self.info.duration_s - self.end_s) <= TOLERANCE_FRAMES / self.info.fps
        if self.hidden or (is_whole and self.begins_with_key and not self._lost() and self._hides_frames()):
            found.append(Finding("edit_list", f"{self.header_frames:,} frames are stored, {self.shown:,} are shown"))
        return [*found, *self._about_rate()]

    def _hides_frames(self) -> bool:
        return self.shown + TOLERANCE_FRAMES < self.header_frames

    def _about_rate(self) -> list[Finding]:
        found, fps = [], self.info.fps
        steps = sorted(step for step in self.steps.elements() if step > 0)
        if not steps:
            return []
        usual, mean = steps[len(steps) // 2], sum(steps) / len(steps)
        measured = 1 / mean / self.tick_s
        uneven = sum(abs(step - usual) > max(1, 0.1 * usual) for step in steps)
        if not RATES[0] <= measured <= RATES[1]:
            found.append(Finding("rate_unbelievable", f"{measured:.4g} frames a second"))
        if self._lost():
            return found  # the gaps are those of lost frames
        if uneven > max(1, UNEVEN * len(steps)):
            detail = f"{measured:.4g} frames a second, the longest of {steps[-1] * self.tick_s:.3f} s"
            found.append(Finding("variable_rate", detail))
        elif all(abs(step - 1 / fps / self.tick_s) > max(1, RATE_TOLERANCE * step) for step in (usual, mean)):
            found.append(Finding("rate_differs", f"{measured:.4g} frames a second, not {fps:.4g}"))
        return found

    def _about_pictures(self) -> list[Finding]:
        found = []
        if len(self.sizes) > 1:
            sizes = [f"{width}x{height} from frame {number:,}" for (width, height), number in self.sizes.items()]
            found.append(Finding("size_changes", ", ".join(sizes[:4])))
        if self._is_interlaced():
            found.append(Finding("interlaced", f"{self.interlaced:,} of {self.shown:,} frames"))
        return found

    def _is_interlaced(self) -> bool:
        return 2 * self.interlaced > self.shown


class _Pictures:
    """Pictures without a clock, which are played once; one that is damaged, or of another size, ends it all."""

    def __init__(self, where: Place, info: VideoInfo) -> None:
        self.where, self.info = where, info
        self.shown = 0
        self.end_s = self.decode_s = 0.0
        self.sound: str | None = None

    def play(self) -> Iterator[tuple[float, VideoFrame]]:
        """Each picture with when its display starts, in seconds from the first."""
        for first in range(0, self.info.frames, _AT_ONCE):
            numbers = numpy.arange(first, min(first + _AT_ONCE, self.info.frames))
            started = time.thread_time()
            clip = read.read(self.where, (numpy.append(numbers, 0) + 0.5) / self.info.fps, fps=self.info.fps)
            self.decode_s += time.thread_time() - started
            for number, picture in zip(numbers.tolist(), clip.permute(0, 2, 3, 1).numpy(), strict=False):  # H W C
                self.shown += 1
                self.end_s = self.shown / self.info.fps
                yield number / self.info.fps, av.VideoFrame.from_ndarray(picture, format="rgb24")

    def findings(self) -> list[Finding]:
        return []


def _refused(where: Place, reason: str) -> Finding:
    code = refusal(reason.replace(str(where), ""))  # what object storage says names the place, which may say anything
    if code == "not_a_video":
        with storage.opened(where) as file:
            if file.read(4) == _RESOURCE_FORK:
                return Finding("resource_fork", "what macOS leaves beside a file (a resource fork), not a video")
    return Finding(code, reason)


def _about_length(info: VideoInfo, film: _Film | _Pictures, clip_s: float) -> list[Finding]:
    seconds = film.end_s
    if film.shown == 1:
        return [Finding("one_frame")]
    if seconds + 0.5 / info.fps < clip_s:  # containers round times
        return [Finding("shorter_than_a_clip", f"{seconds:.2f} s, where a clip spans {clip_s:.2f} s")]
    return [Finding("very_long", f"{seconds / 3600:.1f} hours")] if seconds > LONG_S else []


def _about_shape(info: VideoInfo) -> list[Finding]:
    size = f"{info.width}x{info.height}"
    shorter, longer = sorted((info.width, info.height))
    found = []
    if shorter < PATCH:
        found.append(Finding("tiny", size))
    elif info.width % 2 or info.height % 2:
        found.append(Finding("odd_size", size))
    if info.width * info.height > HUGE:
        found.append(Finding("huge_picture", size))
    if longer > SLIM * shorter:
        found.append(Finding("extreme_aspect", size))
    return found


def _about_pixels(picture: VideoFrame) -> list[Finding]:
    found = []
    bits = max(component.bits for component in picture.format.components)
    if bits > 8:
        found.append(Finding("high_bit_depth", f"{bits} bits"))
    if picture.color_trc in _HIGH_DYNAMIC_RANGE:
        found.append(Finding("hdr", _HIGH_DYNAMIC_RANGE[picture.color_trc]))
    if picture.color_range == _FULL_RANGE and not picture.format.is_rgb:
        found.append(Finding("full_range", picture.format.name))
    if any(component.is_alpha for component in picture.format.components):
        found.append(Finding("alpha", picture.format.name))
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d, *_ = numpy.frombuffer(matrix, dtype=numpy.int32).tolist()
        if a * d < b * c:
            found.append(Finding("mirrored"))
        elif picture.rotation:
            found.append(Finding("rotated", f"by {picture.rotation % 360:g} degrees"))
    return found


def _digest(where: Place) -> tuple[str, int]:
    """Of what holds the frames, and how many bytes that is."""
    made = hashlib.blake2b(digest_size=16)
    count = 0
    for block in _blocks(where):
        made.update(block)
        count += len(block)
    return made.hexdigest(), count


def _blocks(where: Place) -> Iterator[bytes]:
    """The bytes of a file, of pictures in order, or of a sample's video."""
    sample = shards.sample(where) if shards.is_place(where) else None
    kind = shards.video_of(sample) if sample else ""
    if sample and sample.pictures and kind == "pictures":
        for number in range(len(sample.pictures.sizes)):
            yield from sample.encoded([number])
    elif sample is None and pictures.is_place(where):
        found = pictures.series(where)
        yield from map(found.encoded, range(len(found.names)))
    else:
        with sample.opened(kind) if sample else storage.opened(where) as file:
            yield from iter(partial(file.read, 1 << 20), b"")
