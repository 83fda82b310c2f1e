"""What a page shows of single clips: where the encoder puts them, which it finds alike, and how it fills them in."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from tubelet import dist, draws
from tubelet.checkpoint import load_backbone, read_about
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest
from tubelet.data.loader import Loader
from tubelet.learner import Backbone
from tubelet.report.pictures import Sheet, sheet
from tubelet.report.reconstruct import reconstruct
from tubelet.types import TubeletError

SMALL, LARGE = 56, 96
"""Sides of the thumbnails of the map and of the neighbours, in pixels."""
NEIGHBOURS = 5


class Film(NamedTuple):
    """One reconstruction, ready for the page."""

    title: str
    told: str
    mp4: bytes
    png: bytes


@dataclass(frozen=True)
class ReportData:
    """What `gather` found; every list of clips has the same order."""

    names: list[str]
    labels: list[int]
    """-1 = no label."""
    classes: list[str]
    points: ndarray
    """N 2: the map."""
    projection: str
    thumbnails: Sheet
    pictures: dict[int, ndarray]
    """For a few clips that lie apart on the map one frame, H W 3."""
    rows: list[list[int]]
    """For some clips: the clip itself, then its nearest, nearest first."""
    cells: Sheet
    """The clips of `rows`, one after the other."""
    agreement: tuple[float, float] | None
    """Of how many of all clips' nearest neighbours the class is the clip's own, and of how many of all other clips
    (shares); None without labels."""
    films: list[Film] = field(default_factory=list)
    why_no_films: str = ""


def gather(run: Path, manifest: Manifest, *, clips: int = 500, queries: int = 8, films: int = 3, seed: int = 0,
           workers: int = 0, batch: int = 32) -> ReportData:  # fmt: skip
    """Embeds test clips with the encoder of ``run`` and prepares what `write_report` shows of them.

    Which clips are shown is drawn by ``seed``, not picked. Of a manifest with splits it is ``test`` (else ``val``).

    Args:
        clips: at most so many are embedded.
        queries: how many clips are shown with their nearest.
        films: how many clips are reconstructed; none where the run's learner cannot.

    Raises:
        TubeletError: there are no weights, or fewer than two clips can be read.
    """
    manifest = _sample(manifest, clips, seed)
    vectors, frames, readable = _embed(load_backbone(run), manifest, read_about(run)["clip"], workers, batch)
    if len(readable) < 2:
        raise TubeletError(f"{len(readable)} of {len(manifest)} videos can be read: a map needs two or more")
    manifest = manifest.take(readable)
    groups = [video.group for video in manifest.videos]
    near = nearest(vectors, groups, NEIGHBOURS)
    rows = [[row, *near[row]] for row in _spread(manifest.labels, queries) if near[row]]
    points, projection = project(vectors, seed)
    small = _resize(frames[:, ::2], SMALL)  # N T C S S
    made, why = _films(run, manifest, films, seed)
    return ReportData(
        names=[video.path.name for video in manifest.videos],
        labels=list(manifest.labels),
        classes=list(manifest.classes),
        points=points,
        projection=projection,
        thumbnails=sheet(small),
        pictures={row: small[row, small.shape[1] // 2].permute(1, 2, 0).numpy() for row in apart(points)},
        rows=rows,
        cells=sheet(frames[[row for line in rows for row in line]]) if rows else sheet(frames[:1]),
        agreement=_agreement(near, manifest.labels),
        films=made,
        why_no_films=why,
    )


def project(vectors: Tensor, seed: int = 0) -> tuple[ndarray, str]:
    """Places ``N D`` vectors in the plane: with t-SNE where openTSNE is installed, else on their two main axes.

    Returns:
        N 2, and the name of the method.
    """
    centred = vectors - vectors.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]  # 2 D
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()  # the sign is free: fix it
    flat = F.pad(centred @ axes.T, (0, 2 - len(axes))).numpy()  # N 2
    try:
        from openTSNE import TSNE  # type: ignore[import-not-found]
    except ImportError:
        return flat, "PCA axis"
    if len(vectors) < 10:
        return flat, "PCA axis"
    perplexity = min(30, (len(vectors) - 1) / 3)
    placed = TSNE(perplexity=perplexity, metric="cosine", initialization="pca", random_state=seed, n_jobs=1)
    return numpy.asarray(placed.fit(centred.numpy())), "t-SNE axis"


def nearest(vectors: Tensor, groups: Sequence[str | None], count: int) -> list[list[int]]:
    """For each of ``N D`` vectors the ``count`` most alike by cosine, nearest first.

    Clips of its own group (the same source video) are passed over: they would be near for the wrong reason.
    """
    unit = F.normalize(vectors, dim=1)  # N D
    alike = unit @ unit.T  # N N
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = torch.tensor([-1 - row if group is None else numbers[group] for row, group in enumerate(groups)])
    alike[member[:, None] == member[None, :]] = -torch.inf  # a clip without a group is the only one of its own
    order = alike.argsort(dim=1, descending=True, stable=True)[:, :count]
    return [[int(other) for other in line if alike[row, other] > -torch.inf] for row, line in enumerate(order)]


def apart(points: ndarray, distance: float = 0.085, limit: int = 60) -> list[int]:
    """Points that keep a distance from each other, as a share of the map's width and height."""
    width = numpy.ptp(points, axis=0)
    scaled = points / numpy.where(width > 0, width, 1)
    chosen: list[int] = []
    for row in range(len(points)):
        if all(abs(scaled[row] - scaled[other]).max() > distance for other in chosen):
            chosen.append(row)
    return chosen[:limit]


def _sample(manifest: Manifest, count: int, seed: int) -> Manifest:
    splits = {video.split for video in manifest.videos}
    split = next((name for name in ("test", "val") if name in splits), None)
    manifest = manifest.where(split) if split else manifest
    if len(manifest) <= count:
        return manifest
    chosen = draws.generator(seed, "report").permutation(len(manifest))[:count]
    return manifest.take(sorted(int(row) for row in chosen))


@torch.no_grad()
def _embed(backbone: Backbone, manifest: Manifest, clip: dict[str, Any], workers: int,
           batch: int) -> tuple[Tensor, Tensor, list[int]]:  # fmt: skip
    """The mean token of each readable clip (N D), up to eight of its frames (N T C S S uint8), and its row."""
    device = dist.device()
    backbone = backbone.to(device)
    loader = Loader(Clips(manifest, **clip).for_testing(), batch, workers=workers)
    vectors, frames, rows = [], [], []
    for some in loader.once():
        assert "readable" in some and "id" in some and "video" in some
        kept = some["readable"]
        rows += some["id"][kept].tolist()
        video = some["video"][0][kept]  # B C T H W uint8
        moments = torch.linspace(0, video.shape[2] - 1, min(8, video.shape[2])).long()
        frames.append(_resize(video[:, :, moments].transpose(1, 2), LARGE))  # B T C S S
        if len(video):
            tokens = backbone(video.to(device).float() / 255).tokens  # B n D
            vectors.append(tokens.mean(dim=1).float().cpu())  # B D
    return torch.cat(vectors) if vectors else torch.empty(0, 1), torch.cat(frames), rows


def _resize(clips: Tensor, side: int) -> Tensor:
    """N T C H W uint8 -> N T C side side."""
    if not len(clips):
        return clips.new_empty(*clips.shape[:3], side, side)
    small = F.interpolate(clips.flatten(0, 1), (side, side), mode="bilinear", antialias=True)  # N*T C side side
    return small.unflatten(0, clips.shape[:2])


def _spread(labels: Sequence[int], count: int) -> list[int]:
    """The first ``count`` rows when the classes take turns."""
    turns: dict[int, int] = {}
    order = []
    for row, label in enumerate(labels):
        turns[label] = turns.get(label, -1) + 1
        order.append((turns[label], label, row))
    return [row for _, _, row in sorted(order)[:count]]


def _agreement(near: list[list[int]], labels: Sequence[int]) -> tuple[float, float] | None:
    pairs = [labels[row] == labels[other] for row, line in enumerate(near) for other in line if labels[row] >= 0]
    if not pairs:
        return None
    counts = Counter(label for label in labels if label >= 0)
    same = sum(count * (count - 1) for count in counts.values())
    return sum(pairs) / len(pairs), same / (counts.total() * (len(labels) - 1))


def _films(run: Path, manifest: Manifest, count: int, seed: int) -> tuple[list[Film], str]:
    """Reconstructions of ``count`` clips with true statistics, and of the first one also without."""
    chosen = [manifest.videos[row] for row in _spread(manifest.labels, count)]
    asked = [(video, True) for video in chosen] + [(video, False) for video in chosen[:1]]
    films = []
    with tempfile.TemporaryDirectory() as folder:
        for video, true in asked:
            try:
                files = reconstruct(
                    run, video.path, Path(folder), start_s=video.start_s, true_statistics=true, seed=seed, fps=video.fps
                )
            except TubeletError as error:
                return films, str(error)
            films.append(Film(video.path.name, files.told, files.mp4.read_bytes(), files.png.read_bytes()))
    return films, ""
