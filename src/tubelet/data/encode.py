"""Frames and sound to the files of a sample: JPEG or WebP pictures, a short-GOP video, a NumPy array, FLAC.

The encoders are FFmpeg's, each in one thread and without a date or a version in what it writes, so that the same
frames give the same bytes. Pictures go to the disk one by one: a video of hours needs no more memory than a short one.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import av
import numpy
from av.codec.context import Flags

from tubelet.data.audio import GAP_S, Track
from tubelet.data.shards import padded
from tubelet.data.storage import Place

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

Frames = Iterable[tuple[float, numpy.ndarray]]
"""When the display of each frame starts, from 0 and rising, and the frame: H W C uint8."""

CLOCK = 90_000
SAMPLE_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
"""The rates that AAC knows."""


class OnDisk(NamedTuple):
    """Bytes of a shard that lie in a file: so many from its beginning."""

    path: Path
    bytes: int


@dataclass
class Encoded:
    """The frames of a sample as its files are laid into a tar, and what its JSON says of them."""

    video: str
    """Which file holds the frames, or "pictures"."""
    starts_s: list[float] = field(default_factory=list)
    height: int = 0
    width: int = 0
    pieces: list[bytes | OnDisk] = field(default_factory=list)
    pictures: dict[str, Any] | None = None
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Ending -> (bytes, CRC-32)."""
    checksums: list[int] = field(default_factory=list)
    """CRC-32 of each frame of an array."""

    def add(self, key: str, ending: str, content: bytes) -> None:
        """Adds a small file."""
        self.files[ending] = len(content), zlib.crc32(content)
        self.pieces.append(member(f"{key}.{ending}", content))

    def add_file(self, key: str, ending: str, path: Path, head: bytes = b"") -> None:
        """Adds a file from the disk, with `head` before what it has."""
        size, checksum = len(head) + path.stat().st_size, zlib.crc32(head)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                checksum = zlib.crc32(block, checksum)
        self.files[ending] = size, checksum
        self.pieces += [header(f"{key}.{ending}", size) + head, OnDisk(path, size - len(head)), padding(size)]

    def noted(self, frames: Frames) -> Iterator[tuple[float, numpy.ndarray]]:
        """The frames, whose times and size are noted as they pass."""
        for start_s, frame in frames:
            self.starts_s.append(start_s)
            self.height, self.width = frame.shape[:2]
            yield start_s, frame


def header(name: str, size: int) -> bytes:
    """The header of a file in a tar, without date or owner."""
    about = tarfile.TarInfo(name)
    about.size = size
    return about.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """What follows a file in a tar."""
    return bytes(padded(size) - size)


def member(name: str, content: bytes) -> bytes:
    """A file as it stands in a tar."""
    return header(name, len(content)) + content + padding(len(content))


def original(key: str, ending: str, path: Path) -> Encoded:
    """A video file as it is."""
    result = Encoded(ending)
    result.add_file(key, ending, path)
    return result


@dataclass
class Sound:
    """The sound of a video in 16 bits, mono or stereo; sample 0 is where its first frame starts."""

    rate: int
    layout: str
    chunks: Iterator[AudioFrame]


def pictures(frames: Frames, kind: str, quality: int, key: str, path: Path) -> Encoded:
    """Each frame as a picture of its own: "jpeg" (full range, 4:2:0) or "webp". Laid into `path` one after another."""
    noted = Encoded("pictures")
    result = stored(_encoded(noted.noted(frames), kind, quality), "jpg" if kind == "jpeg" else kind, key, path)
    result.starts_s, result.height, result.width = noted.starts_s, noted.height, noted.width
    return result


def stored(contents: Iterable[bytes], suffix: str, key: str, path: Path) -> Encoded:
    """Pictures as they are, laid into `path` one after another."""
    result = Encoded("pictures")
    sizes: list[int] = []
    checksums: list[int] = []
    with path.open("wb") as file:
        for number, content in enumerate(contents):
            file.write(member(f"{key}.{number:06d}.{suffix}", content))
            sizes.append(len(content))
            checksums.append(zlib.crc32(content))
        result.pieces.append(OnDisk(path, file.tell()))
    result.pictures = {"suffix": suffix, "bytes": sizes, "crc32": checksums}
    return result


def video(
    frames: Frames,
    sound: Sound | None,
    quality: int,
    gop: int,
    fps: float,
    key: str,
    path: Path,
    *,
    pixels: Literal["yuv420p", "rgb24"] = "yuv420p",
) -> Encoded:
    """H.264 in MP4 that decodes cheaply from anywhere: a key frame every `gop` frames, no B-frames, no CABAC.

    Every frame keeps its time. The last row or column of an odd picture is cut off, as 4:2:0 has even ones only. With
    "rgb24" the three channels are kept as they are, each at its full size, which few players other than FFmpeg's know.
    """
    codec, fitting = ("libx264", _even) if pixels == "yuv420p" else ("libx264rgb", numpy.asarray)
    result = Encoded("mp4")
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream(
            codec, rate=Fraction(fps).limit_denominator(60_000),
            # With macroblock trees, which use assembly, a few files in a hundred came out other than the time before.
            options={"crf": str(quality), "g": str(gop), "bf": "0", "preset": "veryfast", "tune": "fastdecode",
                     "mbtree": "0"},
        )  # fmt: skip
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, CLOCK)
        track: Any = None if sound is None else container.add_stream("aac", rate=sound.rate, layout=sound.layout)
        ticks = -1
        for start_s, frame in result.noted((start_s, fitting(frame)) for start_s, frame in frames):
            if ticks < 0:
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], pixels
            ticks = max(ticks + 1, round(start_s * CLOCK))
            container.mux(stream.encode(_picture(frame, pixels, ticks, Fraction(1, CLOCK))))
        container.mux(stream.encode(None))
        if sound is not None and track is not None:
            for chunk in sound.chunks:
                container.mux(track.encode(chunk))
            container.mux(track.encode(None))
    result.add_file(key, "mp4", path)
    return result


def raw(frames: Frames, key: str, path: Path) -> Encoded:
    """All frames as one NumPy array, T H W C uint8."""
    result = Encoded("npy")
    with path.open("wb") as file:
        for _, frame in result.noted(frames):
            content = frame.tobytes()
            file.write(content)
            result.checksums.append(zlib.crc32(content))
    head = io.BytesIO()
    shape = (len(result.starts_s), result.height, result.width, 3)  # T H W C
    numpy.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    result.add_file(key, "npy", path, head.getvalue())
    return result


def sound(place: Place, file: Callable[[], BinaryIO] | None, begin_s: float, seconds: float) -> Sound | None:
    """The sound from `begin_s` on a file's own clock on; None where it has none that can be decoded.

    What lies between two stretches of sound, or before the first, is silence. More than two channels become two.

    Args:
        file: opens the bytes where `place` is only their name.

    Raises:
        UnreadableVideo: the file cannot be opened.
    """
    with Track(place, file) as track:
        if track.stream is None:
            return None
        codec = track.stream.codec_context
        rate = codec.sample_rate if codec.sample_rate in SAMPLE_RATES else 48_000
        layout = "mono" if codec.channels == 1 else "stereo"
    return Sound(rate, layout, _chunks(place, file, rate, layout, begin_s, round(seconds * rate)))


def flac(found: Sound, path: Path) -> None:
    """Writes sound without loss."""
    with av.open(str(path), "w", format="flac", options={"fflags": "+bitexact"}) as container:
        track: Any = container.add_stream("flac", rate=found.rate, layout=found.layout)
        for chunk in found.chunks:
            container.mux(track.encode(chunk))
        container.mux(track.encode(None))


def _chunks(
    place: Place, file: Callable[[], BinaryIO] | None, rate: int, layout: str, begin_s: float, total: int
) -> Iterator[AudioFrame]:
    """`total` samples, or fewer where the track ends before, without a gap."""
    with Track(place, file) as track:
        written, at, known, resampler = 0, None, None, None
        for frame in track.decode(begin_s, begin_s + total / rate):
            kind = frame.format.name, frame.layout.name, frame.sample_rate
            if resampler is None or kind != known:
                known, resampler = kind, av.AudioResampler(format="s16", layout=layout, rate=rate)
            if frame.time is not None and frame.pts is not None:
                stamp = round((frame.time - begin_s) * rate)
                at = stamp if at is None or abs(stamp - at) > GAP_S * rate else at
            at = at or 0
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray().reshape(piece.samples, -1)  # S channels
                begin, at = at, at + len(samples)
                while written < min(begin, total):
                    silence = numpy.zeros((min(begin - written, total - written, rate), samples.shape[1]), numpy.int16)
                    yield _chunk(silence, written, rate, layout)
                    written += len(silence)
                samples = samples[max(0, written - begin) : max(0, total - begin)]
                if len(samples):
                    yield _chunk(samples, written, rate, layout)
                    written += len(samples)
            if written >= total:
                return


def _chunk(samples: numpy.ndarray, first: int, rate: int, layout: str) -> AudioFrame:
    frame = av.AudioFrame.from_ndarray(numpy.ascontiguousarray(samples).reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    return frame


def _encoded(frames: Frames, kind: str, quality: int) -> Iterator[bytes]:
    encoder = None
    for number, (_, frame) in enumerate(frames):
        if encoder is None:
            encoder = _picture_encoder(kind, quality, frame)
        yield b"".join(bytes(packet) for packet in encoder.encode(_picture(frame, encoder.pix_fmt, number)))


def _picture_encoder(kind: str, quality: int, frame: numpy.ndarray) -> Any:
    encoder: Any = av.CodecContext.create({"jpeg": "mjpeg", "webp": "libwebp"}[kind], "w")
    encoder.height, encoder.width = frame.shape[:2]
    encoder.pix_fmt = "yuvj420p" if kind == "jpeg" else "yuv420p"
    scale = str(quality)
    encoder.options = {"qmin": scale, "qmax": scale, "huffman": "optimal"} if kind == "jpeg" else {"quality": scale}
    encoder.time_base = Fraction(1, 1000)
    encoder.thread_count = 1
    encoder.flags |= Flags.bitexact
    return encoder


def _picture(frame: numpy.ndarray, pixels: str, ticks: int, tick: Fraction = Fraction(1, 1000)) -> Any:
    picture = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(frame), format="rgb24").reformat(format=pixels)
    picture.pts, picture.time_base = ticks, tick
    return picture


def _even(frame: numpy.ndarray) -> numpy.ndarray:
    height, width = frame.shape[:2]
    if min(height, width) < 2:
        raise ValueError(f"a picture of {width}x{height} is too small for a video")
    return frame[: height // 2 * 2, : width // 2 * 2]
