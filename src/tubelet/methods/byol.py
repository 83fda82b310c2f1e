"""BYOL: from one clip of a video, predict what a slow teacher sees in another; there are no negatives."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.heads import UNSEEN, Projector, projected
from tubelet.nn.memory import Ema, rising
from tubelet.nn.settings import check_share
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output


@register("byol")
class BYOL(Learner):
    """Bootstrap your own latent (Grill et al., NeurIPS 2020, arXiv 2006.07733), on clips of a video.

    Each of two clips, at moments of their own, is predicted from the other: the squared distance between unit vectors
    (equation 2), for both directions. The teacher is an average whose momentum rises to 1 along half a cosine. Momentum
    and colours are those of the study on video by Feichtenhofer et al. (CVPR 2021, arXiv 2104.14558; PySlowFast's
    configuration), which trains with LARS; here the optimiser is the loop's.

    Args:
        backbone: what turns clips into tokens.
        momentum: share of the teacher that is kept at a step, in the beginning.
        dim: width of the vectors that are predicted.
        hidden: width of the inner layers of projector and predictor.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    views = 2
    compares_clips = True  # by the batch norms

    def __init__(
        self,
        backbone: Backbone,
        momentum: float = 0.996,
        dim: int = 256,
        hidden: int = 4096,
        strength: Literal["none", "moco", "slowfast"] = "slowfast",
    ) -> None:
        super().__init__()
        check_share(momentum=momentum)
        self.backbone = backbone
        self.head = Projector(backbone.dim, hidden, dim, last_bias=False)
        self.predict = Projector(dim, hidden, dim)
        self.teacher = Ema(self.parts, momentum)
        self.momentum, self.strength = momentum, strength

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What the teacher is an average of."""
        return {"backbone": self.backbone, "head": self.head}

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in super().parameters_of(phase) if name != UNSEEN]

    def forward(self, batch: Batch, phase: str) -> Output:
        one, other = (
            augmented(video, batch["key"], f"view {view}", self.strength) for view, video in enumerate(batch["video"])
        )
        there = distance(self.predict(projected(one, self)), self.seen(other))  # B
        back = distance(self.predict(projected(other, self)), self.seen(one))  # B
        return Output((there + back).mean())

    @torch.no_grad()
    def seen(self, video: Tensor) -> Tensor:
        """What the teacher sees: B D."""
        return projected(video, self.teacher)

    def after_step(self, now: Now) -> None:
        self.teacher.move(self.parts, rising(self.momentum, now.done))


def distance(guess: Tensor, target: Tensor) -> Tensor:
    """``2 - 2 cos``, which is the squared distance between the unit vectors (equation 2): B D each -> B float32."""
    return 2 - 2 * F.cosine_similarity(guess.float(), target.float(), dim=1)
