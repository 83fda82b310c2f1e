"""The sound of a video: the waveform of the same seconds that `read.py` reads frames of.

Seconds are on the clock of the pictures: 0 is when the first displayed frame starts, whatever the file's own clock
says then and whenever its sound begins. Decoding is PyAV's, and so is resampling (FFmpeg's polyphase filter); the
mixing to mono is ours, since FFmpeg's makes two channels louder than one, or not, as the sample format is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import av
import numpy
from av.stream import Discard

from tubelet.data import read, storage
from tubelet.data.container import FORMATS, PICTURES
from tubelet.data.info import UnreadableVideo
from tubelet.data.storage import Place

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from torch import Tensor

PREROLL_S = 0.5
"""Decoding starts so much earlier: codecs need the frames before (MP3 up to 0.3 s of them, Opus 0.08 s, AAC one)."""
GAP_S = 0.01
"""Stamps that stray so far from counted samples mean a gap, an overlap or a clock that drifts; less is rounding."""
REACH = 64
"""Samples on each side that the filter of the resampler is given at least, at the lower of the two rates."""


@dataclass(frozen=True)
class SoundInfo:
    """What a file says of its sound."""

    rate: int
    """Samples a second of each channel."""
    channels: int
    codec: str
    duration_s: float | None
    """None where neither the track nor the file says."""


def sound_of(place: str | Place, file: Callable[[], BinaryIO] | None = None) -> SoundInfo | None:
    """What the file says of the track that `waveform` reads, or None where it has no sound.

    Raises:
        UnreadableVideo: the file cannot be opened.
    """
    with Track(storage.place(place), file) as track:
        stream = track.stream
        if stream is None:
            return None
        codec, duration_s = stream.codec_context, None
        if stream.duration is not None:
            duration_s = stream.duration * track.tick_s
        elif track.container.duration is not None:
            duration_s = track.container.duration / av.time_base
        return SoundInfo(codec.sample_rate, codec.channels, codec.codec.canonical_name, duration_s)


def waveform(
    place: str | Place,
    start_s: float,
    seconds: float,
    rate: int = 16_000,
    *,
    origin_s: float | None = None,
    file: Callable[[], BinaryIO] | None = None,
) -> Tensor | None:
    """The sound from `start_s` on, mixed to one channel (the mean of all).

    A slice equals the same slice of the whole as far as the codec allows; damaged packets are silent. Sample k is at
    ``start_s + k / rate`` seconds, with `start_s` rounded to a sample. Containers that stamp whole milliseconds
    (Matroska, FLV) place sound no better than that.

    Args:
        start_s: seconds from the first displayed frame; may be negative.
        seconds: length; the answer has ``round(seconds * rate)`` samples.
        rate: samples a second.
        origin_s: when the first displayed frame starts on the file's own clock (`VideoInfo.start_s`); looked up with
            `read.probe` if not given, and 0 for a file without pictures.
        file: opens the bytes where `place` is only their name, such as the FLAC member of a sample in a shard.

    Returns:
        S float32 in [-1, 1], zero where the file has no sound yet or no longer; None where it has none at all.

    Raises:
        UnreadableVideo: the file cannot be opened.
    """
    import torch

    place = storage.place(place)
    with Track(place, file) as track:
        if track.stream is None:
            return None
        if origin_s is None:
            origin_s = read.probe(place).start_s if track.has_pictures() else 0.0
        track_begin_s = track.start_s - origin_s
        wave = numpy.zeros(round(seconds * rate), dtype=numpy.float32)
        frames = track.decode(origin_s + start_s, origin_s + start_s + seconds)
        for run in _runs(frames, track_begin_s, origin_s):
            begin, samples = run.resampled(rate, run.begin(track_begin_s, track.tick_s))
            begin -= round(start_s * rate)
            start, stop = max(0, begin), min(len(wave), begin + len(samples))
            if start < stop:
                wave[start:stop] = samples[start - begin : stop - begin]
    return torch.from_numpy(wave.clip(-1, 1))  # S


@dataclass
class _Run:
    """Decoded samples without a gap between them."""

    rate: int
    pieces: list[numpy.ndarray] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    """Where the stamp of each piece says that the run begins, in samples from the first displayed frame."""
    count: int = 0

    def goes_on(self, frame: AudioFrame, stamp_s: float | None) -> bool:
        if frame.sample_rate != self.rate:
            return False
        return stamp_s is None or abs(stamp_s * self.rate - self.count - self.begins[0]) <= GAP_S * self.rate

    def add(self, piece: numpy.ndarray, stamp_s: float | None) -> None:
        if stamp_s is not None:
            self.begins.append(stamp_s * self.rate - self.count)
        self.pieces.append(piece)
        self.count += len(piece)

    def begin(self, track_begin_s: float, tick_s: float) -> int:
        """Where the run begins, in samples from the first displayed frame.

        Stamps are rounded to the container's tick; their median is nearly free of that. Where all frames are of one
        length, a run begins a whole number of them after the track, and that is exact.
        """
        begin = float(numpy.median(self.begins))
        lengths = {len(piece) for piece in self.pieces[:-1]}
        if len(lengths) == 1:
            length, track_begin = lengths.pop(), track_begin_s * self.rate
            whole = track_begin + round((begin - track_begin) / length) * length
            if abs(whole - begin) <= tick_s * self.rate:
                begin = whole
        return math.floor(begin + 0.501)  # a little over a half: the same way for all slices, if it is a half

    def resampled(self, rate: int, begin: int) -> tuple[int, numpy.ndarray]:
        """Where a run that begins at this sample begins at another rate, and its samples.

        Both grids of samples count from the first displayed frame, wherever the run begins: the filter starts where
        both have a sample, so that every slice of a file meets the same phases of it.
        """
        samples = numpy.concatenate(self.pieces)
        if rate == self.rate:
            return begin, samples
        shared = math.gcd(rate, self.rate)
        period, period_out = self.rate // shared, rate // shared
        reach = REACH * math.ceil(max(1, self.rate / rate))
        periods = (begin - reach) // period
        padded = numpy.pad(samples, (begin - periods * period, reach))
        out_begin, out_end = (math.ceil(n * period_out / period) for n in (begin, begin + self.count))
        skipped = periods * period_out
        return out_begin, _resample(padded, self.rate, rate)[out_begin - skipped : out_end - skipped]


def _runs(frames: Iterable[AudioFrame], track_begin_s: float, origin_s: float) -> Iterator[_Run]:
    """Frames, joined where their stamps say that they follow each other."""
    run = None
    for frame in frames:
        stamp_s = None if frame.pts is None or frame.time is None else frame.time - origin_s
        if run is None or not run.goes_on(frame, stamp_s):
            if stamp_s is None:
                stamp_s = track_begin_s if run is None else (run.begins[0] + run.count) / run.rate
            if run is not None:
                yield run
            run = _Run(frame.sample_rate)
        run.add(_mono(frame), stamp_s)
    if run is not None:
        yield run


class Track:
    """The sound of an open file. `stream` is None where it has none that can be decoded."""

    def __init__(self, place: Place, file: Callable[[], BinaryIO] | None) -> None:
        self.place, self.file = place, file
        self._open()

    def __enter__(self) -> Track:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def has_pictures(self) -> bool:
        """Whether the file is a video with a clock of its own, covers of songs apart."""
        return any(not stream.disposition & PICTURES for stream in self.container.streams.video)

    def decode(self, from_s: float, until_s: float) -> Iterator[AudioFrame]:
        """Frames that cover the seconds on the file's clock, and some before; damaged packets are skipped."""
        for packet in self._packets(from_s - PREROLL_S, until_s + PREROLL_S):
            assert self.stream is not None
            try:
                yield from self.stream.codec_context.decode(packet)
            except av.FFmpegError:
                continue

    def _packets(self, from_s: float, until_s: float) -> Iterator[Packet | None]:
        """Packets of these seconds, and None at the end, which asks the decoder for what it still holds."""
        packets = self._demux(from_s)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the file breaks off here
                packet = None
            if packet is None or packet.size == 0 or (packet.pts is not None and packet.pts * self.tick_s > until_s):
                yield None
                return
            if packet.pts is None or packet.pts * self.tick_s >= from_s:
                yield packet

    def _demux(self, from_s: float) -> Iterator[Packet]:
        """Packets from `from_s` or earlier; where the file misleads, from its start."""
        assert self.stream is not None
        if from_s > self.start_s:
            ticks = int(from_s / self.tick_s)
            try:
                self.container.seek(ticks, stream=self.stream, backward=True)
                packets = self.container.demux(self.stream)
                packet = next(packets, None)
                if packet is not None and packet.pts is not None and packet.pts <= ticks:
                    yield packet
                    yield from packets
                    return
            except av.FFmpegError:
                pass
            self._close()
            self._open()
        yield from self.container.demux(self.stream)

    def _open(self) -> None:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        try:
            self.source = self._source()
            self.container = av.open(self.source, "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise UnreadableVideo(self.place, reason or "FFmpeg finds neither pictures nor sound in it") from error
        self.stream = _sound_stream(self.container)
        if self.stream is not None:
            self.tick_s = float(self.stream.time_base or 1 / self.stream.codec_context.sample_rate)
            self.start_s = (self.stream.start_time or 0) * self.tick_s

    def _source(self) -> str | BinaryIO:
        if self.file is not None:
            return self.file()
        return str(self.place) if isinstance(self.place, Path) else storage.opened(self.place)

    def _close(self) -> None:
        self.container.close()
        if not isinstance(self.source, str):
            self.source.close()


def _sound_stream(container: InputContainer) -> AudioStream | None:
    """The sound that FFmpeg calls best, if its codec is known; the other streams are dropped."""
    known = [s for s in container.streams.audio if s.codec_context is not None and s.codec_context.sample_rate > 0]
    best = container.streams.best("audio")
    stream = best if best in known else next(iter(known), None)
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all  # the demuxer need not fetch them
    return stream  # pyright: ignore[reportReturnType]


def _mono(frame: AudioFrame) -> numpy.ndarray:
    """The mean of the channels: S float32. What is no number is silence, or the filter would spread it."""
    samples = frame.to_ndarray()  # channels S, or 1 S x channels where they take turns
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    mean = samples.mean(axis=0, dtype=numpy.float64)
    if samples.dtype == numpy.uint8:
        mean -= 128
    if samples.dtype.kind in "iu":
        mean /= 2.0 ** (8 * samples.dtype.itemsize - 1)
    return numpy.nan_to_num(mean, posinf=0.0, neginf=0.0).astype(numpy.float32)


def _resample(samples: numpy.ndarray, from_rate: int, to_rate: int) -> numpy.ndarray:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = from_rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=to_rate)
    return numpy.concatenate([out.to_ndarray()[0] for out in resampler.resample(frame) + resampler.resample(None)])
