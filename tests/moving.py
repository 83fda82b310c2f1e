"""Sixteen short videos of two classes, a ramp of brightness that goes left or right: enough to train on for real."""

from pathlib import Path

import av
import numpy as np

from tubelet.data.listing import Manifest, Video, write_manifest

CLIP = {"frames": 4, "stride": 1, "reference_fps": 8.0, "size": 16}


def write_clip(path: Path, frames: np.ndarray, fps: int = 8) -> Path:
    """Encodes T H W 3 uint8."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_corpus(folder: Path, train: int = 12, test: int = 4) -> Path:
    """The videos and their manifest; returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    ramp = np.tile(np.linspace(20, 235, 24), (24, 1))
    for index in range(train + test):
        shifts = np.arange(8) * (1 if index % 2 else -1) * 3 + index
        frames = np.stack([np.roll(ramp, shift, axis=1) for shift in shifts])
        path = write_clip(folder / f"{index:02d}.mp4", np.repeat(frames[..., None], 3, axis=3).astype(np.uint8))
        split = "train" if index < train else "test"
        videos.append(Video(path.resolve(), label=("left", "right")[index % 2], group=str(index), split=split))
    write_manifest(folder / "clips.csv", Manifest(videos))
    return folder / "clips.csv"
