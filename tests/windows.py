"""Views for learners that contrast clips: windows of videos in which a square moves, and what such a learner learnt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import moving_squares
from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.types import Batch

SIDE = 24
"""Of a window; the videos are larger, so that the place of a square in a window says nothing."""
FRAMES = 8


def windows(count: int, seed: int, views: int = 2, moments: int = 1, density: int = 1) -> Batch:
    """Clips of 8 x density frames and 24 x 24 pixels; each view of a video is a window of its own.

    Args:
        moments: at how many moments a view may begin; with 1 all views have the same frames.
        density: frames of a clip for each of the 8, among which a square moves as far as among those.
    """
    frames = FRAMES * density
    videos = moving_squares(
        count, seed, frames=frames + moments - 1, size=SIDE + 8, side=8.0, speed=(1.0 / density, 2.0 / density),
        views=views,
    ).batch  # fmt: skip
    clips = []
    for view, video in enumerate(videos["video"]):
        top, left, start = (draws.uniform(videos["key"], 3, f"window {view}") * torch.tensor([9, 9, moments])).long().T
        clips.append(
            torch.stack([
                clip[:, t : t + frames, y : y + SIDE, x : x + SIDE]
                for clip, t, y, x in zip(video, start.tolist(), top.tolist(), left.tolist(), strict=True)
            ])  # B C T H W
        )  # fmt: skip
    return Batch(**{**videos, "video": clips})


def recalled(backbone: Backbone, density: int = 1) -> float:
    """Share of clips whose direction is that of most of the five clips nearest to them, by whitened mean tokens."""
    known, asked = windows(192, 1001, views=1, density=density), windows(192, 1002, views=1, density=density)
    with torch.no_grad():
        pooled = [backbone(batch["video"][0][:, :, ::density]).tokens.mean(dim=1) for batch in (known, asked)]  # B D
    mean, deviation = pooled[0].mean(dim=0), pooled[0].std(dim=0)
    one, other = (F.normalize((values - mean) / deviation, dim=1) for values in pooled)
    nearest = (other @ one.T).topk(5, dim=1).indices  # B 5
    return float((known["label"][nearest].mode(dim=1).values == asked["label"]).float().mean())


def directions_used(learner: Learner, batch: Batch) -> float:
    """The effective rank of a batch's embeddings: the exponential of the entropy of their singular values."""
    with torch.no_grad():
        values = learner.embed(batch)
    shares: Tensor = torch.linalg.svdvals(values - values.mean(dim=0))
    shares = shares / shares.sum()
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))
