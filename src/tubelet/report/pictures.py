"""Pixels to files with PyAV alone: PNG and JPEG pictures, H.264 films that browsers play, and sheets of clips."""

from __future__ import annotations

import math
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import torch
from av.video.stream import VideoStream
from torch import Tensor

from tubelet.types import TubeletError


class Sheet(NamedTuple):
    """Many short clips in one JPEG: clip i is at row ``i // columns``, its frames side by side."""

    jpeg: bytes
    frames: int
    columns: int
    rows: int
    side: int
    """Height and width of one frame in pixels."""


def as_bytes(video: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8; anything outside is cut off. Of any shape."""
    return (video.clamp(0, 1) * 255).round().to(torch.uint8)


def enlarge(pictures: Tensor, height: int) -> Tensor:
    """Repeats pixels of ``... C H W`` a whole number of times until the pictures are at least ``height`` high."""
    times = max(1, math.ceil(height / pictures.shape[-2]))
    return pictures.repeat_interleave(times, -2).repeat_interleave(times, -1)  # ... C h w


def png(picture: Tensor, caption: str = "") -> bytes:
    """A ``C H W`` uint8 picture as PNG; ``caption`` goes into its header (the ``Description`` text)."""
    data = _encode(picture, "png", "rgb24")
    if not caption:
        return data
    text = b"tEXtDescription\0" + caption.encode("latin-1", "replace")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    end_of_header = 8 + 4 + 4 + 13 + 4  # signature, then the IHDR chunk: length, name, content, checksum
    return data[:end_of_header] + chunk + data[end_of_header:]


def jpeg(picture: Tensor) -> bytes:
    """A ``C H W`` uint8 picture as JPEG of good quality."""
    return _encode(picture, "mjpeg", "yuvj420p")


def film(path: Path, video: Tensor, fps: float, title: str = "") -> None:
    """Writes ``T C H W`` uint8 as an H.264 MP4 that browsers play; an odd height or width gets a black line."""
    encoder = next((name for name in ("libx264", "libopenh264") if name in av.codecs_available), None)
    if encoder is None:
        raise TubeletError("this PyAV has no H.264 encoder: install its wheel from PyPI (pip install av)")
    frames, _, height, width = video.shape
    video = torch.nn.functional.pad(video, (0, width % 2, 0, height % 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1000))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = video.shape[-2:]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the same bytes on every machine
        stream.options = {"crf": "18"} if encoder == "libx264" else {"b": "4M"}
        for index in range(frames):
            container.mux(stream.encode(_frame(video[index])))
        container.mux(stream.encode(None))


def sheet(clips: Tensor, columns: int = 8) -> Sheet:
    """Puts ``N T C S S`` uint8 clips into one picture."""
    count, frames, channels, side, _ = clips.shape
    rows = math.ceil(count / columns)
    blank = clips.new_zeros(rows * columns - count, frames, channels, side, side)
    cells = torch.cat([clips, blank]).view(rows, columns, frames, channels, side, side)
    picture = cells.permute(3, 0, 4, 1, 2, 5).reshape(channels, rows * side, columns * frames * side)  # C H W
    return Sheet(jpeg(picture), frames, columns, rows, side)


def _frame(picture: Tensor) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture.permute(1, 2, 0).contiguous().numpy(), format="rgb24")  # H W C


def _encode(picture: Tensor, codec: str, pixels: str) -> bytes:
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.height, context.width = picture.shape[-2:]
    context.pix_fmt = pixels
    context.time_base = Fraction(1, 25)
    if codec == "mjpeg":
        context.qmin, context.qmax = 2, 4
    packets = [*context.encode(_frame(picture).reformat(format=pixels)), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)
