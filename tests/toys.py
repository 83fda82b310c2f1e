"""Small learners that keep what faults could spoil: a teacher, a queue, batch statistics, two optimisers, poison."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import dist, draws, registry
from tubelet.data.clips import Clips
from tubelet.data.loader import Loader
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.memory import Ema
from tubelet.types import Batch, Output

BACKBONE = {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 4}
DROPPING = {**BACKBONE, "drop_path": 0.5}
"""Draws from torch's generator, whose state must come back too."""


def make_backbone(**changes) -> Backbone:
    return registry.build("backbones", "vit", **BACKBONE | changes)


class MomentumContrast(Learner):
    """Tells a clip's other view, as a slow teacher sees it, from those of earlier clips (He et al. 2020, algorithm 1).

    The teacher and the queue move in `after_step` alone.
    """

    views = 2
    queue: Tensor
    place: Tensor

    def __init__(self, backbone: Backbone, entries: int = 30, decay: float = 0.9) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 8)
        self.teacher = Ema({"backbone": backbone, "head": self.head}, decay)
        self.register_buffer("queue", F.normalize(torch.randn(entries, 8), dim=1))  # K D
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.seen: list[Tensor] = []
        """What the teacher saw in this step, not yet in the queue."""

    def forward(self, batch: Batch, phase: str) -> Output:
        one, other = batch["video"]
        query = F.normalize(self.head(self.backbone(one).tokens.mean(dim=1)), dim=1)  # B D
        with torch.no_grad():
            tokens = self.teacher.get_submodule("backbone")(other).tokens
            key = F.normalize(self.teacher.get_submodule("head")(tokens.mean(dim=1)), dim=1)  # B D
        self.seen.append(key)
        scores = torch.cat([(query * key).sum(dim=1, keepdim=True), query @ self.queue.T], dim=1)  # B 1+K
        return Output(F.cross_entropy(scores / 0.2, torch.zeros(len(scores), dtype=torch.long)))

    def before_step(self, now: Now) -> None:
        self.seen.clear()  # of a step that was skipped

    def after_step(self, now: Now) -> None:
        self.teacher.move({"backbone": self.backbone, "head": self.head})
        keys = torch.cat(dist.gather(torch.cat(self.seen)))
        self.queue[(self.place + torch.arange(len(keys))) % len(self.queue)] = keys
        self.place.add_(len(keys)).remainder_(len(self.queue))


class Siamese(Learner):
    """Two views predict each other, through batch norm, without negatives (SimSiam: Chen and He 2021, algorithm 1)."""

    views = 2

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Sequential(nn.Linear(backbone.dim, 16, bias=False), nn.BatchNorm1d(16))
        self.predict = nn.Linear(16, 16)

    def forward(self, batch: Batch, phase: str) -> Output:
        one, other = (self.project(self.backbone(view).tokens.mean(dim=1)) for view in batch["video"])  # B D
        pairs = ((one, other), (other, one))
        return Output(-sum(F.cosine_similarity(self.predict(a), b.detach()).mean() for a, b in pairs) / 2)


class TwoPhases(Learner):
    """A reader learns to tell a clip's brightness from its tokens; then a writer, the backbone, to make that easy."""

    phases = ("reader", "writer")

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.reader = nn.Linear(backbone.dim, 1)

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        part = "reader." if phase == "reader" else "backbone."
        return [(name, p) for name, p in super().parameters_of(phase) if name.startswith(part)]

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]
        guess = self.reader(self.backbone(video).tokens.mean(dim=1))[:, 0]  # B
        return Output(F.mse_loss(guess, video.mean(dim=(1, 2, 3, 4))))


TOYS = {"momentum contrast": MomentumContrast, "siamese": Siamese, "two phases": TwoPhases}


def poison(learner: Learner, keys: list[int], where: str = "loss") -> None:
    """Makes the loss of batches that hold one of these samples, or its gradient alone, not a number.

    As a damaged video or a division by zero would, on the process that has the sample.

    Args:
        where: "loss", "gradient", or the one of several phases whose loss alone it is.
    """
    bad, healthy = torch.tensor(keys), learner.forward

    def forward(batch: Batch, phase: str) -> Output:
        output = healthy(batch, phase)
        if output.loss is None or not torch.isin(batch["key"], bad).any() or where in set(learner.phases) - {phase}:
            return output
        if where != "gradient":
            return output._replace(loss=output.loss * math.nan)
        output.loss.register_hook(lambda gradient: gradient * math.inf)
        return output

    learner.forward = forward


def keys_of(clips: Clips, batch: int, step: int) -> list[int]:
    """The keys of the samples of a step, over all processes."""
    slots = Loader(clips, batch).slots(step)
    return [draws.key(clips.seed, slot.epoch, slot.id, repeat) for slot in slots for repeat in range(slot.repeats)]
