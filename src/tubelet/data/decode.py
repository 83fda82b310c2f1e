"""Decoding a video file: exact to the frame, one open and one pass for all times.

Decoding is PyAV's, with the FFmpeg inside its wheel, in one thread: it is in workers that files are read side
by side. `read.py` says what times mean and which reader a place needs.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

import av
import numpy
from av.video.reformatter import VideoReformatter

from tubelet.data.container import FALLBACK_FPS, open_container, rate, video_stream
from tubelet.data.info import UnreadableVideo, VideoInfo, mercy_s, shrunk
from tubelet.data.packets import Doubt, Packets
from tubelet.data.storage import Place, words

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

KNOW_WHAT_REFERS = {"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"}
"""Decoders that can be told to leave out pictures that no other refers to."""

PROGRESSIVE = (0, 1)
"""Orders of fields, unknown or none: otherwise the two fields of a picture may come in packets of their own."""

SCALED_AS = {"yuv420p": "yuv444p", "yuv422p": "yuv444p", "yuvj420p": "yuvj444p", "yuvj422p": "yuvj444p"}
"""Scaling these planes and then converting is 1.5 times cheaper than both at once, which halves the colours' width."""

INDEX_MISLEADS = {"mpeg", "mpegts"}
"""Containers without an index, for which FFmpeg lists any packet it has seen as a key frame."""

TAIL_S = 2.0
"""So much of the end of a program stream is read to find its last frame."""

UNINDEXED_JUMP_S = 5.0
"""Without an index nobody knows where the next key frame is: a gap longer than this is worth a seek."""


def probe(path: Place, file: Callable[[], BinaryIO] | None = None) -> VideoInfo:
    """Duration, rate and size of a video file. Decodes its first frame.

    Args:
        file: opens a seekable file of the bytes, where `path` is none on this machine. May be called repeatedly.

    Raises:
        UnreadableVideo: the file gives no frame.
    """
    with _Player(path, file) as player:
        stream, picture = player.stream, player.shown.picture
        turns, mirrored = _orientation(picture)
        duration_s = player.duration_s()
        return VideoInfo(
            duration_s=duration_s,
            fps=player.fps,
            frames=max(1, round(duration_s * player.fps)),
            width=picture.height if turns % 2 else picture.width,
            height=picture.width if turns % 2 else picture.height,
            codec=stream.codec_context.codec.canonical_name,
            start_s=player.origin * player.tick_s,
            rotation=90 * turns,
            mirrored=mirrored,
        )


def read(
    path: Place,
    times_s: numpy.ndarray,
    short_side: int | None = None,
    file: Callable[[], BinaryIO] | None = None,
) -> numpy.ndarray:
    """The frames on display at `times_s`: T H W C uint8, RGB. See `tubelet.data.read.read`, and `probe` for `file`."""
    order = numpy.argsort(times_s, kind="stable")
    with _Player(path, file) as player:
        paint = _Painter(player.shown.picture, short_side)
        clip = numpy.empty((len(times_s), *paint.shape), dtype=numpy.uint8)  # T H W C
        painted, row_painted = None, -1
        for row, shown in zip(order, player.play(times_s[order].tolist()), strict=True):
            if shown is painted:
                clip[row] = clip[row_painted]
            else:
                clip[row] = paint(shown.picture)
                painted, row_painted = shown, row
    return clip


def frames(
    path: Place,
    start_s: float = 0.0,
    end_s: float = math.inf,
    short_side: int | None = None,
    file: Callable[[], BinaryIO] | None = None,
) -> Iterator[tuple[float, numpy.ndarray]]:
    """Every frame that is on display between two times, in one pass, one at a time. See `probe` for `file`.

    Yields:
        The earliest time at which `read` answers the frame, and the frame itself: H W C uint8.

    Raises:
        UnreadableVideo: the file gives no frame.
    """
    with _Player(path, file) as player:
        paint = _Painter(player.shown.picture, short_side)
        coming_ones = player.play_all(start_s)
        coming, shown = next(coming_ones, None), player.shown
        while True:
            if coming is None or coming.start > shown.start:  # of two that start together the last is displayed
                yield (shown.start - player.origin - player.mercy) * player.tick_s, paint(shown.picture)
            if coming is None or (coming.start - player.origin - player.mercy) * player.tick_s > end_s:
                return
            coming, shown = next(coming_ones, None), coming


def check(path: Place, info: VideoInfo, file: Callable[[], BinaryIO] | None = None) -> None:
    """Decodes up to the middle. See `probe` for `file`.

    Raises:
        UnreadableVideo: the file gives no frame, or breaks off in its first half.
    """
    middle_s = info.duration_s / 2
    with _Player(path, file) as player:
        (last,) = player.play([middle_s])
        end_s = (last.start - player.origin + (last.picture.duration or 0)) * player.tick_s
        if player.is_at_the_end and end_s + 2 / player.fps < middle_s:
            raise UnreadableVideo(path, f"it breaks off after {end_s:.1f} of {info.duration_s:.1f} seconds")
        _Painter(last.picture, short_side=32)(last.picture)


class _Painter:
    """Turns decoded pictures into upright RGB arrays of one size: that of the first picture, or smaller.

    Pixels that are not square stay as they are stored: a crop changes the aspect ratio by more than they do.
    """

    def __init__(self, first: VideoFrame, short_side: int | None) -> None:
        self.quarter_turns, self.mirrored = _orientation(first)
        self.width, self.height = shrunk(first.width, first.height, short_side)
        turned = self.quarter_turns % 2
        self.shape = (self.width, self.height, 3) if turned else (self.height, self.width, 3)
        self.scaler, self.converter = VideoReformatter(), VideoReformatter()  # for all pictures: they keep their tables

    def __call__(self, picture: VideoFrame) -> numpy.ndarray:
        if (picture.width, picture.height) != (self.width, self.height):
            planes = SCALED_AS.get(picture.format.name, "rgb24")
            picture = self.scaler.reformat(picture, self.width, self.height, planes, interpolation="AREA", threads=1)
        rgb = self.converter.reformat(picture, format="rgb24", threads=1)
        pixels = rgb.to_ndarray()  # H W C
        return numpy.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.quarter_turns)


@dataclass(frozen=True, eq=False)
class _Shown:
    """A decoded picture and when its display starts, in ticks of the stream's clock."""

    start: int
    picture: VideoFrame


class _Player:
    """An open video, played forward from its first frame; it jumps to key frames where that saves decoding.

    `shown` is the picture on display and `coming` one that was decoded and comes later.
    """

    def __init__(self, path: Place, file: Callable[[], BinaryIO] | None) -> None:
        self.path, self.file = path, file
        self.seekable = self.trusting = True
        self._rewind()
        self.origin = self.shown.start
        self.mercy = mercy_s(self.fps, self.tick_s) / self.tick_s

    def __enter__(self) -> _Player:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def play(self, times_s: Iterable[float]) -> Iterator[_Shown]:
        """The pictures on display at `times_s`, which rise. Once: a player does not go back.

        It falls into runs. One is decoded in a go up to its last picture and no further, which the decoder is then
        made to give out; from there one jumps to a key frame before the next. When leaving out pictures proves to
        have been a mistake, what is not yet answered is done over with every picture decoded.
        """
        moments = deque(self.origin + time_s / self.tick_s + self.mercy for time_s in times_s)
        at_the_start = True
        while moments:
            try:
                run = self._until_a_jump(moments)
                if not at_the_start or self._is_far(self.origin, run[0]):
                    run = run if self._jump(run) else list(moments)
                self.packets.want(run)
                for moment in run:
                    self._go_to(moment)
                    moments.popleft()
                    yield self.shown
                at_the_start = False
            except Doubt:
                self.trusting, at_the_start = False, True
                self._close()
                self._rewind()

    def play_all(self, from_s: float) -> Iterator[_Shown]:
        """All pictures from the one on display at `from_s` on; that one is `shown` before the first comes."""
        self.trusting = False  # nothing is left out
        moment = self.origin + max(0.0, from_s) / self.tick_s + self.mercy
        if self._is_far(self.origin, moment):
            self._jump([moment])
        coming = next(self.pictures, None)
        while coming is not None and coming.start <= moment:
            self.shown, coming = coming, next(self.pictures, None)
        while coming is not None:
            yield coming
            coming = next(self.pictures, None)

    @property
    def is_at_the_end(self) -> bool:
        """Whether the file has nothing after `shown`."""
        return self.packets.ended and self.coming is None and not self.packets.is_after(self.shown.start)

    def duration_s(self) -> float:
        """From the start of the first displayed frame to the end of the last. To be asked before playing.

        The header says it. Where that is silent (live recordings, streams without a container) all packets are read.
        """
        end = self._announced_end()
        if end is None:
            end = self._last_packet_end()
        elif self.container.format.name == "mpeg":  # the last stamp that FFmpeg found, and not each frame has one
            with suppress(av.FFmpegError):
                self.container.seek(int(end - TAIL_S / self.tick_s), stream=self.stream)
            end = max(end, self._last_packet_end())
        return max(float((end - self.origin) * self.tick_s), 1 / self.fps)

    def _announced_end(self) -> float | None:
        if self.stream.duration:
            start = self.stream.start_time  # of the first packet, which it may not be possible to decode
            return self.stream.duration + (self.origin if start is None else min(start, self.origin))
        if self.container.duration is not None:  # its clock does not start at the first frame
            return self.container.duration / av.time_base / self.tick_s + min(0, self.origin)
        return None

    def _last_packet_end(self) -> float:
        for _ in self._demux():
            pass
        return self.end

    def _until_a_jump(self, moments: deque[float]) -> list[float]:
        """The first of `moments` and those for which one plays on from there."""
        run = [moments[0]]
        for moment in itertools.islice(moments, 1, None):
            if self._is_far(run[-1], moment):
                break
            run.append(moment)
        return run

    def _is_far(self, here: float, moment: float) -> bool:
        """Whether one can jump to a key frame that lies between."""
        if not self.seekable:
            return False
        if self.container.format.name not in INDEX_MISLEADS:
            index = self.stream.index_entries
            row = index.search_timestamp(int(moment - self.delay))
            if 0 <= row < len(index) - 1 or (row >= 0 and index[row].timestamp > here):
                return index[row].timestamp > here
        return (moment - here) * self.tick_s > UNINDEXED_JUMP_S

    def _go_to(self, moment: float) -> None:
        """Plays on until `shown` is what is on display then."""
        while (answer := self.packets.answer(moment)) != self.shown.start:
            if self.coming is None:
                self.coming = next(self.pictures, None)
            if self.coming is None or self.coming.start > moment:
                if answer is not None:  # it did not come out of the decoder
                    self.packets.doubt()
                return
            self.shown, self.coming = self.coming, None
            if self.shown.picture.interlaced_frame or self.shown.picture.is_corrupt:
                self.packets.doubt()

    def _jump(self, run: list[float]) -> bool:
        """Goes to a key frame not later than `run`. False where the file misleads: it then plays from its start."""
        for back in (0, self.delay, 3 / self.tick_s, 15 / self.tick_s):
            try:
                ticks = max(self.origin, int(run[0] - back))
                self.container.seek(ticks, stream=self.stream, backward=True)
            except av.FFmpegError:
                break
            self._play_from_here()
            self.packets.want(run)
            first = self.packets.first
            if first is not None and first.pts is not None and first.pts > run[0]:
                continue
            # Pictures before the first key frame refer to ones that were not decoded.
            shown = next((s for s in self.pictures if s.picture.key_frame), None)
            if shown is not None and shown.picture.pts is not None and shown.start <= run[0]:
                self.shown = shown
                return True
        self.seekable = False
        self._close()
        self._rewind()
        return False

    def _rewind(self) -> None:
        """Opens the file and decodes its first picture."""
        self.container, self.source = open_container(self.path, self.file)
        try:
            self.stream = video_stream(self.container, self.path)
            self.tick_s = float(self.stream.time_base or 1 / FALLBACK_FPS)
            self.fps = rate(self.stream)
            codec = self.stream.codec_context
            # AVI numbers frames as they are stored, which with B-frames is not the order of display.
            self.in_order_of_storage = self.container.format.name == "avi" and bool(codec.has_b_frames)
            self.trusting &= not self.in_order_of_storage and codec.field_order in PROGRESSIVE
            # How much earlier than displayed a picture may be decoded: files are searched by either time.
            self.delay = codec.reorder_depth / self.fps / self.tick_s
            self.end = -math.inf  # of the packets that came by, in ticks
            self._play_from_here()
            shown = next(self.pictures, None)
            if shown is None:
                raise UnreadableVideo(self.path, "none of its frames can be decoded (damaged or cut short)")
            self.shown = shown
        except BaseException:
            self._close_file()
            raise

    def _play_from_here(self) -> None:
        self.demuxed = self._demux()
        self.packets = Packets(self.demuxed, self.trusting)
        self.pictures, self.coming = self._decode(), None

    def _close(self) -> None:
        # These refer back to the player, and decoders are too large to wait for the garbage collector.
        self.pictures.close()
        self.demuxed.close()
        self._close_file()

    def _close_file(self) -> None:
        self.container.close()
        self.source.close()

    def _decode(self) -> Generator[_Shown, None, None]:
        """Pictures in the order of display from where the container stands; damaged ones are skipped."""
        step = 1 / self.fps / self.tick_s
        start = None
        for picture in self._decode_packets():
            stamp = None if self.in_order_of_storage else picture.pts
            if stamp is None:  # then frames are counted, from the start
                self.seekable = False
                self.packets.doubt()
                stamp = 0 if start is None else round(start + step)
            start = stamp if start is None else max(start, stamp)
            yield _Shown(start, picture)

    def _decode_packets(self) -> Iterator[VideoFrame]:
        codec = self.stream.codec_context
        can_leave_out = codec.name in KNOW_WHAT_REFERS
        for packet, wanted in self.packets:
            codec.skip_frame = "NONREF" if can_leave_out and not wanted else "DEFAULT"
            try:
                yield from codec.decode(packet)
            except av.FFmpegError:
                self.packets.doubt()
        with suppress(av.FFmpegError):
            yield from codec.decode(None)  # what the decoder still holds

    def _demux(self) -> Generator[Packet, None, None]:
        step = 1 / self.fps / self.tick_s
        with suppress(av.FFmpegError):  # the file breaks off there
            for packet in self.container.demux(self.stream):
                if packet.size == 0 and packet.dts is None:  # PyAV's mark of the end
                    break
                start = max(self.end, 0) if packet.pts is None else packet.pts  # without times they are counted
                self.end = max(self.end, start + (packet.duration or step))
                yield packet
        if self.source.error:
            raise UnreadableVideo(self.path, words(self.source.error)) from self.source.error



def _orientation(picture: VideoFrame) -> tuple[int, bool]:
    """Quarter turns counter-clockwise that bring a picture upright, and whether it is mirrored before, left to right.

    The matrix of display (ISO/IEC 14496-12, 8.3.2) takes a point (p, q), q downward, to (a p + c q, b p + d q).
    """
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d, *_ = numpy.frombuffer(matrix, dtype=numpy.int32).tolist()
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return round(math.atan2(-b, a) / (math.pi / 2)) % 4, mirrored
