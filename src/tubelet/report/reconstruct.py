"""Shows what a masked autoencoder sees of a video and what it imagines: a film and a strip of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from tubelet import draws
from tubelet.checkpoint import read_about
from tubelet.data.flow import shown
from tubelet.data.read import probe, read
from tubelet.data.sample import grid, step_s
from tubelet.data.storage import Place
from tubelet.data.transform import center_crop
from tubelet.report.pictures import as_bytes, enlarge, film, png
from tubelet.train.run import load_learner
from tubelet.types import TubeletError

HEIGHT, STRIP = 224, 96
"""Panels of the film and of the strip are at least so many pixels high, by repeating pixels: nothing is smoothed."""
GAP = 4
"""White pixels between panels."""


class ReconstructionFiles(NamedTuple):
    """What `reconstruct` wrote."""

    mp4: Path
    """Three panels side by side: original, masked, reconstructed; as fast as the clip."""
    png: Path
    """Three rows: original, masked, reconstructed; one column a frame."""
    told: str
    """What the hidden cubes were given besides the prediction."""


def reconstruct(
    run: Path,
    video: Place,
    out: Path,
    *,
    ratio: float | None = None,
    start_s: float | None = None,
    true_statistics: bool = True,
    seed: int = 0,
    fps: float | None = None,
) -> ReconstructionFiles:
    """Hides cubes of one clip of ``video``, lets the run's learner fill them in, and writes both to the folder ``out``.

    The files are named after the video and after where the statistics of hidden cubes came from; the same words stand
    in the title of the MP4 and the description of the PNG.

    Args:
        ratio: share of the cubes to hide; None = as in training.
        start_s: where the clip begins, in seconds; None = so that it lies in the middle of the video.
        true_statistics: take mean and deviation of each hidden cube from the original (the decoder predicts pixels
            relative to them); otherwise from the nearest visible cube.
        seed: another seed hides other cubes.
        fps: pictures a second, where the video is pictures without a clock; None = 30.

    Raises:
        TubeletError: the run's learner cannot reconstruct, the ratio hides nothing or everything, the video cannot be
            read or ends before ``start_s``.
    """
    learner = load_learner(run).eval()
    if not hasattr(learner, "reconstruct"):
        name = getattr(learner, "registered_name", type(learner).__name__)
        raise TubeletError(f"{run} was trained with {name!r}, which cannot reconstruct: use a run of videomae")
    if ratio is not None:
        learner.ratio = ratio  # type: ignore[assignment]
    clip, gap_s = read_clip(video, read_about(run)["clip"], start_s, fps)  # T C H W
    keys = torch.tensor([draws.key(seed, "reconstruct")])
    batch = (clip.float() / 255).transpose(0, 1)[None]  # 1 C T H W
    made: Any = learner.reconstruct(batch, None, keys, true_statistics)  # type: ignore[operator]
    rows = [as_bytes(panel[0].transpose(0, 1)) for panel in (made.original, made.masked, made.reconstructed)]  # T C H W
    hidden = f"{made.hidden.float().mean():.0%} of the cubes hidden"
    caption = f"{video.name}: original, masked, reconstructed; {hidden}; filled in with: {made.told}"
    stem = out / f"{video.stem}-{'true' if true_statistics else 'nearest'}-statistics"
    files = ReconstructionFiles(stem.with_name(f"{stem.name}.mp4"), stem.with_name(f"{stem.name}.png"), made.told)
    film(files.mp4, side_by_side([enlarge(row, HEIGHT) for row in rows], -1), 1 / gap_s, caption)
    frames = [side_by_side(list(enlarge(row, STRIP)), -1) for row in rows]  # three of C H T*W
    files.png.write_bytes(png(side_by_side(frames, -2), caption))
    return files


def read_clip(
    video: Place, shape: dict[str, Any], start_s: float | None = None, fps: float | None = None
) -> tuple[Tensor, float]:
    """One clip in the shape of a run (its ``clip``), the middle of the picture, and the seconds between frames.

    Returns:
        T C S S uint8; the gap in seconds.
    """
    info = probe(video, fps)
    gap_s = step_s(shape["stride"], shape["reference_fps"], info.fps)
    if start_s is None:
        times = grid(info.duration_s, info.fps, shape["frames"], gap_s)[0]
    else:
        if not 0 <= start_s < info.duration_s:
            raise TubeletError(f"{video} lasts {info.duration_s:.2f} s: start_s must lie in it, not at {start_s:g}")
        times = start_s + 0.5 / info.fps + numpy.arange(shape["frames"]) * gap_s  # T
    with shown(video, shape, fps) as place:
        return center_crop(read(place, times, shape["size"], fps), shape["size"]), gap_s


def side_by_side(panels: list[Tensor], dim: int) -> Tensor:
    """Puts panels beside (dim -1) or below (dim -2) each other, with a white line between them."""
    shape = list(panels[0].shape)
    shape[dim] = GAP
    line = panels[0].new_full(shape, 255)
    return torch.cat([part for panel in panels for part in (line, panel)][1:], dim=dim)
