"""Opening a video file with PyAV, and the plain reason where that fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import av
from av.stream import Discard, Disposition

from tubelet.data.info import UnreadableVideo
from tubelet.data.storage import Place, opened, words

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is said once, by UnreadableVideo

PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Streams that FFmpeg calls video and that are covers, thumbnails or photographs."""

LEADS_ELSEWHERE = {"concat", "dash", "hls", "image2", "imf", "mlv", "rtp", "rtsp", "sap", "sdp", "vobsub"}
"""Formats of FFmpeg that are no video but name others, here or on a network, which it would open in their place."""
FORMATS = ",".join(sorted(av.formats_available - LEADS_ELSEWHERE))
"""For FFmpeg's option ``format_whitelist``. Without it a playlist that is called a video shows any video there is."""
PLAYLISTS = (b"#EXTM3U", b"ffconcat version")

NOT_VIDEO_CODECS = {"ansi", "bintext", "xbin", "idf"}  # text drawn as pictures
FALLBACK_FPS = 25.0


class Bytes:
    """A file for PyAV to read. An error ends the file and is kept, to be raised where PyAV is not in between."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, count: int) -> bytes:
        try:
            return self.file.read(count)
        except Exception as error:  # object storage raises what its library pleases
            self.error = error
            return b""


def open_container(path: Place, file: Callable[[], BinaryIO] | None) -> tuple[InputContainer, Bytes]:
    """The container, and the file of its bytes, which is to be closed after it."""
    is_local = file is None and isinstance(path, Path)
    try:
        if is_local and Path(path).is_dir():
            raise UnreadableVideo(path, "it is a folder")
        if is_local and Path(path).exists() and not Path(path).is_file():
            raise UnreadableVideo(path, "not a file but a pipe, a socket or a device")  # opening one may never end
        source = Bytes(opened(path) if file is None else file())
    except OSError as error:
        raise UnreadableVideo(path, words(error)) from None
    head = source.read(64)
    try:
        source.seek(0)
        # FFmpeg reads a local file itself; bytes from elsewhere must not lead it to files of this machine.
        container = av.open(
            str(path) if is_local else source,
            mode="r",
            options={"protocol_whitelist": "file" if is_local else "none", "format_whitelist": FORMATS},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError):
        source.close()
        # The cause tells those who may come again that it is the storage that fails, not the video.
        raise UnreadableVideo(path, words(source.error) if source.error else _guess_what_it_is(head)) from source.error
    name = container.format.name
    if name in ("image2", "tty") or name.endswith("_pipe"):
        container.close()
        source.close()
        raise UnreadableVideo(path, "a text file, not a video" if name == "tty" else "a still image, not a video")
    return container, source


def _guess_what_it_is(head: bytes) -> str:
    """Why FFmpeg may have refused a file that starts with `head`."""
    if not head:
        return "the file is empty (zero bytes)"
    if head[4:8] in (b"ftyp", b"mdat", b"moov"):
        return "its index (moov) is missing or damaged: an interrupted download or recording"
    if head.startswith(PLAYLISTS):
        return "a text file, not a video: a playlist, name the files that it names"
    if re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]+", head):
        return "a text file, not a video"
    return "not a video file, or its header is damaged"


def video_stream(container: InputContainer, path: Place) -> VideoStream:
    """The video stream FFmpeg calls best, but never a cover picture; set to one thread, others dropped."""
    streams = [s for s in container.streams.video if not s.disposition & PICTURES]
    best = container.streams.best("video")
    stream = best if best in streams else next(iter(streams), None)
    if not len(container.streams):
        raise UnreadableVideo(path, "its index is damaged: it names no streams")
    if stream is None:
        kinds = ", ".join(sorted({s.type or "unknown" for s in container.streams}))
        has = "a cover picture" if container.streams.video else kinds or "nothing"
        raise UnreadableVideo(path, f"it has no video stream, only {has}")
    try:
        codec = stream.codec_context
        name = codec.name
    except AttributeError:
        raise UnreadableVideo(path, "its codec is not known to this FFmpeg") from None
    if name in NOT_VIDEO_CODECS:
        raise UnreadableVideo(path, "a text file, not a video")
    codec.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all  # the demuxer need not fetch them
    return stream  # pyright: ignore[reportReturnType]


def rate(stream: VideoStream) -> float:
    """Frames per second: the average, or what the header claims where nothing was measured."""
    for claim in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if claim is not None and 0 < claim <= 1000:
            return float(claim)
    return FALLBACK_FPS


@contextmanager
def opened_stream(
    path: Place, file: Callable[[], BinaryIO] | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and the stream of it that is read, for those who decode in their own way. See `probe` for `file`.

    Raises:
        UnreadableVideo: it is no video file.
    """
    container, source = open_container(path, file)
    try:
        yield container, video_stream(container, path)
    finally:
        container.close()
        source.close()
