"""Judges a classifier by its own head, as it is: while it is trained, or afterwards."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet import dist
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest
from tubelet.methods.supervised import Supervised
from tubelet.registry import register
from tubelet.tasks.features import say_unreadable, views
from tubelet.tasks.protocol import Protocol, Result, Task, conclude
from tubelet.train.parallel import autocast
from tubelet.types import TubeletError


@register("classify")
class Classify(Task):
    """Classifies the protocol's test videos; judges the mean softmax over clips and crops. Nothing is trained.

    In a recipe it goes with the learner `supervised`, and ``train.best: classify/top1`` keeps the weights that do best.
    Then the videos are not those of the final test: they are the split ``val`` where there is a ``test`` too, or else
    a tenth of the training videos, by group, which is not trained on.

    Args:
        test_clips: clips along time; None = the protocol's.
        test_crops: squares along the long side; None = the protocol's.
    """

    def __init__(self, test_clips: int | None = None, test_crops: int | None = None) -> None:
        self.test_clips, self.test_crops = test_clips, test_crops

    def __call__(self, learner: nn.Module, protocol: Protocol, out: Path) -> Result:
        """`learner` is the whole learner, where other tasks get its backbone."""
        if not isinstance(learner, Supervised):
            raise TubeletError(f"classify judges the classes that a learner answers; {type(learner).__name__} has none")
        started = time.perf_counter()
        clips, crops = self.test_clips or protocol.test_clips, self.test_crops or protocol.test_crops
        probabilities, readable = score(learner, protocol.test, protocol, clips, crops)
        return conclude(probabilities[readable], readable, protocol, out, started=started, views=clips * crops)


@torch.no_grad()
def score(learner: Supervised, manifest: Manifest, protocol: Protocol, clips: int, crops: int) -> tuple[Tensor, Tensor]:
    """The softmax of each video, averaged over its ``clips * crops`` views, by id.

    Returns:
        N K probabilities (zeros where unreadable) and N bool, which could be read.
    """
    device = dist.device()
    learner.to(device).eval()
    probabilities = torch.zeros(len(manifest), len(protocol.classes))
    readable = torch.zeros(len(manifest), dtype=torch.bool)
    loader = views(manifest, protocol, clips, crops)
    for batch in loader.once():
        batch = to_device(batch, device)
        with autocast("auto", device):
            logits = torch.stack([learner.logits(video).float() for video in batch["video"]])  # V B K
        rows = batch["id"].cpu()
        probabilities[rows] = logits.softmax(dim=2).mean(dim=0).cpu()  # B K
        readable[rows] = batch["readable"].cpu()
    missing = (~readable).nonzero().flatten().tolist()
    say_unreadable(manifest, {row: loader.unreadable.get(str(manifest[row].path), "unreadable") for row in missing})
    return probabilities * readable[:, None], readable
