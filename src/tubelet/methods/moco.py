"""MoCo: clips of a video must recognise each other, as a slow teacher sees them, among a queue of earlier clips."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.heads import Projector, embedded
from tubelet.nn.losses import contrast
from tubelet.nn.memory import Ema, Queue, rising
from tubelet.nn.settings import check_positive, check_share
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("moco")
class MoCo(Learner):
    """Momentum contrast with a queue (He, Fan, Wu, Xie, Girshick, CVPR 2020, arXiv 1911.05722), as on video.

    The form is that of Feichtenhofer et al., A Large-Scale Study on Unsupervised Spatiotemporal Representation Learning
    (CVPR 2021, arXiv 2104.14558; PySlowFast's configuration): each of several clips of a video, at moments of their
    own, is a query; its positives are the teacher's keys of the others (equation 1), its negatives the keys in the
    queue. All keys enter the queue after the step, and nothing is learnt until it is full. The teacher's momentum rises
    to 1 along half a cosine.

    Their code averages over the positives one by one; where there are two clips it is the same. A queue longer than an
    epoch holds older keys of a query's own video: they are no negatives here.

    Args:
        backbone: what turns clips into tokens.
        clips: how many clips of each video; the study has 2 and 4.
        queue: how many keys are kept.
        momentum: share of the teacher that is kept at a step, in the beginning.
        dim: width of the vectors that are compared.
        hidden: width of the head's inner layers.
        layers: linear maps of the head.
        temperature: the cosines are divided by it.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    def __init__(
        self,
        backbone: Backbone,
        clips: int = 2,
        queue: int = 65536,
        momentum: float = 0.994,
        dim: int = 128,
        hidden: int = 2048,
        layers: int = 3,
        temperature: float = 0.1,
        strength: Literal["none", "moco", "slowfast"] = "slowfast",
    ) -> None:
        super().__init__()
        if clips < 2:
            raise TubeletError(f"learner.clips must be 2 or more, as clips of a video are compared, not {clips}")
        if queue < 1:
            raise TubeletError(f"learner.queue must be 1 or more, not {queue}")
        check_share(momentum=momentum)
        check_positive(temperature=temperature)
        self.backbone = backbone
        self.head = Projector(backbone.dim, hidden, dim, layers, norm=False)
        self.teacher = Ema(self.parts, momentum)
        self.queue = Queue(queue, keys=dim, video=0)
        self.views, self.momentum, self.temperature, self.strength = clips, momentum, temperature, strength

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What the teacher is an average of."""
        return {"backbone": self.backbone, "head": self.head}

    def forward(self, batch: Batch, phase: str) -> Output:
        videos = [
            augmented(video, batch["key"], f"view {view}", self.strength) for view, video in enumerate(batch["video"])
        ]
        with torch.no_grad():
            keys = torch.stack([embedded(video, self.teacher) for video in videos], dim=1)  # B V D
        self.queue.remember(keys=keys.flatten(0, 1), video=batch["id"].repeat_interleave(self.views))
        if not self.queue.full:
            return Output(None)
        losses = [self.compare(embedded(video, self), view, keys, batch["id"]) for view, video in enumerate(videos)]
        return Output(torch.cat(losses).mean())

    def compare(self, queries: Tensor, view: int, keys: Tensor, ids: Tensor) -> Tensor:
        """InfoNCE of one view's queries (B D) with the keys of their other views (B V D) and the queue: B."""
        own = torch.eye(len(ids), dtype=torch.bool, device=ids.device)[:, :, None]  # B B 1
        other = torch.arange(self.views, device=ids.device) != view  # V
        positive = (own & other).flatten(1)  # B B*V
        known = self.queue.get_buffer("video") == ids[:, None]  # B K
        everything = torch.cat([keys.flatten(0, 1), self.queue.get_buffer("keys")])  # B*V+K D
        return contrast(
            queries,
            everything,
            torch.cat([positive, torch.zeros_like(known)], dim=1),
            self.temperature,
            ignored=torch.cat([~positive, known], dim=1),
        )

    def before_step(self, now: Now) -> None:
        self.queue.forget()  # what a skipped step left

    def after_step(self, now: Now) -> None:
        self.teacher.move(self.parts, rising(self.momentum, now.done))
        self.queue.push()
