"""What is to be seen in a video, from its frames as they come: perceptual hashes, black, still, doubled, bars.

Frames are shrunk to small grey squares first, so that memory stays the same for any size and length.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from tubelet.data.cases import Finding
from tubelet.data.info import VideoInfo

SIDE = 64
"""Pixels of the grey squares."""
HASHED = 8
"""Frames that are hashed, at the middles of as many equal parts of the duration."""
SMALL = 16
"""Pixels of the grey squares that are kept of those, to compare what hashes take for copies."""
THUMBNAIL = 160
"""Pixels of the longer side of the picture for people."""
BLACK = 32
"""Of 255: no pixel of a black frame is brighter. Black is 0 with a little noise; night scenes have lamps."""
BAR = 20
"""Of 255: no pixel of a bar is brighter, in any frame."""
BAR_WIDTH = 2
"""Of 64 rows or columns: narrower bars are stripes that scanning and encoding leave."""
FLAT = 3.0
"""Standard deviation, of 255, below which a frame has nothing to see: what noise and encoding do to one colour."""
EQUAL = 1
"""Of 255: frames that differ nowhere by more are the same. Key frames are encoded anew, with other errors."""
FROZEN = 0.95
"""Share of frames equal to those before them from which on a video is a still picture."""
REPEATS = 0.19
"""The same, from which on frames were doubled to reach a rate: of 24 frames that became 30, a fifth is."""
NEARLY_ALL = 0.95
"""Share of frames that are black, or flat, for the video to be: leaders and fades are shorter."""

_PLACES = numpy.arange(SIDE)
_TRANSFORM = numpy.sqrt(2 / SIDE) * numpy.cos(numpy.pi / SIDE * (_PLACES[None] + 0.5) * _PLACES[:, None])
"""The discrete cosine transform: a row for each frequency."""
_LOWEST = sorted(((i, j) for i in range(12) for j in range(12)), key=lambda place: (sum(place), place))[1:65]
_ROWS, _COLUMNS = numpy.array(_LOWEST).T
_NOISE = 16.0
"""Of the transform: what errors of a grey level or two come to, where they are alike over many pixels. Of 0, 2, ... 32
it made copies of 36 real clips, shrunk to 96 lines and encoded badly, nearest to them: 1.5 bits, 3 at most."""


class Appearance:
    """Frames are added in the order of display; then `findings`, `hashes`, `squares` and `thumbnail` are known."""

    def __init__(self, info: VideoInfo) -> None:
        self.turns, self.mirrored = info.rotation // 90, info.mirrored
        self.mercy_s = 0.25 / info.fps  # starts of frames are rounded, in each container otherwise
        self.moments_s = [(k + 0.5) / HASHED * info.duration_s for k in range(HASHED)]
        self.hashes: list[int] = []
        self.squares = b""
        self.thumbnail = b""
        self.frames = self.black = self.flat = self.equal = 0
        self.brightest = numpy.zeros((SIDE, SIDE), dtype=numpy.uint8)
        self._reformatter = VideoReformatter()
        self._before: tuple[VideoFrame, numpy.ndarray] | None = None

    def add(self, start_s: float, picture: VideoFrame) -> None:
        small = self._reformatter.reformat(picture, SIDE, SIDE, "gray", interpolation="AREA", threads=1)
        grey = self._upright(small.to_ndarray())  # H W
        self.frames += 1
        self.black += bool(grey.max() <= BLACK)
        self.flat += bool(grey.std() < FLAT)
        numpy.maximum(self.brightest, grey, out=self.brightest)
        if self._before is None:
            self.thumbnail = self._encode(picture)
        else:
            difference = numpy.maximum(grey, self._before[1]) - numpy.minimum(grey, self._before[1])
            self.equal += bool(difference.max() <= EQUAL)
        self._sample(start_s - self.mercy_s)
        self._before = picture, grey

    def end(self, end_s: float) -> None:
        self._sample(end_s)

    def findings(self) -> list[Finding]:
        if self.black >= NEARLY_ALL * self.frames:
            return [Finding("black", f"{self.black:,} of {self.frames:,} frames")]
        found = []
        repeated = self.equal / max(1, self.frames - 1)
        detail = f"{self.equal:,} of {self.frames:,} frames are like the one before"
        if self.flat >= NEARLY_ALL * self.frames:
            found.append(Finding("constant", f"{self.flat:,} of {self.frames:,} frames"))
        elif repeated >= FROZEN:
            found.append(Finding("frozen", detail))
        elif repeated >= REPEATS:
            found.append(Finding("repeats_frames", detail))
        bars = [*_bars(self.brightest), *_bars(self.brightest.T)]
        if any(bars) and self.frames >= HASHED:  # a dark edge of a few frames is none
            names = ("above", "below", "left", "right")
            shares = [f"{width / SIDE:.0%} {name}" for width, name in zip(bars, names, strict=True) if width]
            found.append(Finding("letterbox", ", ".join(shares)))
        return found

    def _sample(self, until_s: float) -> None:
        """Takes the frame before as the one on display at the moments until then."""
        if self._before is None:
            return
        picture, grey = self._before
        while self.moments_s and self.moments_s[0] < until_s:
            if len(self.moments_s) == (HASHED + 1) // 2:
                self.thumbnail = self._encode(picture)
            self.moments_s.pop(0)
            number = perceptual_hash(grey)
            if number is not None:
                self.hashes.append(number)
                square = grey.reshape(SMALL, SIDE // SMALL, SMALL, SIDE // SMALL).mean(axis=(1, 3))
                self.squares += square.round().astype(numpy.uint8).tobytes()

    def _upright(self, pixels: numpy.ndarray) -> numpy.ndarray:
        return numpy.rot90(pixels[:, ::-1] if self.mirrored else pixels, self.turns)

    def _encode(self, picture: VideoFrame) -> bytes:
        """A small JPEG, upright."""
        scale = min(1.0, THUMBNAIL / max(picture.width, picture.height))
        width, height = (max(1, round(side * scale)) for side in (picture.width, picture.height))
        rgb = VideoReformatter().reformat(picture, width, height, "rgb24", interpolation="AREA", threads=1)
        upright = self._upright(rgb.to_ndarray())  # H W C
        encoder = av.CodecContext.create("mjpeg", "w")
        encoder.width, encoder.height = upright.shape[1], upright.shape[0]
        encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, 25)
        frame = av.VideoFrame.from_ndarray(upright.astype(numpy.uint8), format="rgb24")
        made = encoder.encode(frame.reformat(format="yuvj420p", dst_color_range="JPEG"))
        return b"".join(bytes(packet) for packet in [*made, *encoder.encode(None)])


def perceptual_hash(grey: numpy.ndarray) -> int | None:
    """64 bits that scaling, encoding and brightness leave nearly alone; None for a picture with nothing to see.

    Which of the 64 lowest frequencies of the discrete cosine transform, but the mean, are above their median (after
    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1).

    Args:
        grey: `SIDE` x `SIDE`, 0 to 255.
    """
    if grey.std() < FLAT:
        return None
    lowest = (_TRANSFORM @ grey @ _TRANSFORM.T)[_ROWS, _COLUMNS]  # 64
    # A frequency that is absent counts as below: the sign of its noise says nothing.
    bits = lowest > max(numpy.median(lowest), 0.0) + _NOISE
    return int.from_bytes(numpy.packbits(bits).tobytes(), "big")


def _bars(brightest: numpy.ndarray) -> tuple[int, int]:
    """Rows at both ends that are never bright; none unless there are some at both."""
    bright = numpy.flatnonzero(brightest.max(axis=1) > BAR)
    if not len(bright):
        return 0, 0
    first, last = int(bright[0]), len(brightest) - 1 - int(bright[-1])
    return (first, last) if min(first, last) >= BAR_WIDTH else (0, 0)
