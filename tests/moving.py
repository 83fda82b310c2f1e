"""Sixteen short videos of two classes, a ramp of brightness that goes left or right: enough to train on for real.

A tone falls where the ramp goes left and rises where it goes right, and a caption says so; a few videos are silent, and
a few have no caption.
"""

from pathlib import Path

import av
import numpy as np

from tubelet.data.listing import Manifest, Video, write_manifest
from tubelet.data.synthetic_sound import RATE, add_sound

CLIP = {"frames": 4, "stride": 1, "reference_fps": 8.0, "size": 16}


def write_clip(path: Path, frames: np.ndarray, fps: int = 8, lossless: bool = False) -> Path:
    """Encodes T H W 3 uint8. What x264 decides may differ from time to time; lossless, that changes no pixel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"qp": "0"} if lossless else {"crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def tone(rising: bool, index: int, seconds: float = 1.0) -> np.ndarray:
    """A sine that goes through an octave, at a pitch of its own: S at `RATE`."""
    done = np.arange(round(seconds * RATE)) / (seconds * RATE)
    pitch = (200 + 20 * index) * 2 ** (done if rising else 1 - done)
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)).astype(np.float32)


def write_corpus(folder: Path, train: int = 12, test: int = 4, lossless: bool = False) -> Path:
    """The videos and their manifest; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    ramp = np.tile(np.linspace(20, 235, 24), (24, 1))
    for index in range(train + test):
        shifts = np.arange(8) * (1 if index % 2 else -1) * 3 + index
        frames = np.stack([np.roll(ramp, shift, axis=1) for shift in shifts])
        pixels = np.repeat(frames[..., None], 3, axis=3).astype(np.uint8)
        path = write_clip(folder / f"{index:02d}.mp4", pixels, lossless=lossless)
        if index % 6 != 5:
            add_sound(path, tone(bool(index % 2), index))
        split, label = "train" if index < train else "test", ("left", "right")[index % 2]
        said = "" if index % 6 == 4 else f"light goes {label}|number {index} goes {label}"
        videos.append(Video(path.resolve(), label=label, group=str(index), split=split, extra={"caption": said}))
    write_manifest(folder / "clips.csv", Manifest(videos))
    return folder / "clips.csv"
