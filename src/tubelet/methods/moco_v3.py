"""MoCo v3 on a video ViT: from each of two clips the other must be recognised, as a slow teacher sees it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import dist
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.heads import UNSEEN, Projector, projected
from tubelet.nn.losses import contrast
from tubelet.nn.memory import Ema, rising
from tubelet.nn.settings import check_positive, check_share
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output


@register("moco_v3")
class MoCoV3(Learner):
    """Momentum contrast without a queue (Chen, Xie, He, ICCV 2021, arXiv 2104.02057), VideoMAE's comparison.

    Algorithm 1: queries by backbone, projector and predictor, keys by a teacher without predictor, each view once in
    either part, and for each pair ``2 temperature`` times the cross-entropy over the keys of all processes. One view is
    always blurred, the other rarely blurred and sometimes solarised (appendix of BYOL). The embedding of patches stays
    as it began, which keeps a ViT's training stable (section 4.2).

    Tong et al. (VideoMAE, NeurIPS 2022, table 2) report such a network on video and released neither code nor settings
    (VideoMAE#28, VideoMAE#87). So the clips here are two of independent moments, the changes are the same in all frames
    of a clip, tokens are averaged (published image networks read a class token), and all else is as for pictures, but
    for the start of the weights, which is VideoMAE's: the embedding that stays as it began is half as wide as theirs.

    Args:
        backbone: what turns clips into tokens.
        momentum: share of the teacher that is kept at a step, in the beginning; it rises to 1 along half a cosine.
        temperature: the cosines are divided by it; 0.2 is published for ViTs.
        dim: width of the vectors that are compared.
        hidden: width of the inner layers of projector (three linear maps) and predictor (two).
        freeze_patches: the embedding of patches is not trained.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, or by the two
            rules of BYOL and MoCo v3 ("byol").
    """

    views = 2
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        momentum: float = 0.99,
        temperature: float = 0.2,
        dim: int = 256,
        hidden: int = 4096,
        freeze_patches: bool = True,
        strength: Literal["none", "byol"] = "byol",
    ) -> None:
        super().__init__()
        check_share(momentum=momentum)
        check_positive(temperature=temperature)
        if freeze_patches:
            backbone.get_submodule("embed").requires_grad_(False)
        self.backbone = backbone
        self.head = Projector(backbone.dim, hidden, dim, layers=3, last_norm=True)
        self.predict = Projector(dim, hidden, dim, last_norm=True)
        self.teacher = Ema(self.parts, momentum)
        self.momentum, self.temperature, self.strength = momentum, temperature, strength

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What the teacher is an average of."""
        return {"backbone": self.backbone, "head": self.head}

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in super().parameters_of(phase) if name != UNSEEN]

    def forward(self, batch: Batch, phase: str) -> Output:
        one, other = batch["video"]
        if self.strength == "byol":
            one = augmented(one, batch["key"], "first", "byol, first")
            other = augmented(other, batch["key"], "second", "byol, second")
        queries = [self.predict(projected(video, self)) for video in (one, other)]  # B D each
        with torch.no_grad():
            keys = [projected(video, self.teacher) for video in (one, other)]  # B D each
        ids = batch["id"]
        return Output(self.compare(queries[0], keys[1], ids) + self.compare(queries[1], keys[0], ids))

    def compare(self, queries: Tensor, keys: Tensor, ids: Tensor) -> Tensor:
        """``2 temperature`` times the InfoNCE of queries with the keys of all processes, B D each.

        Further keys of the same video, which are there where it is taken several times, are no negatives.
        """
        keys = dist.gather_rows(F.normalize(keys, dim=1))  # K D
        positive = dist.own_part(torch.eye(len(keys), dtype=torch.bool, device=keys.device))  # B K
        ignored = (ids[:, None] == dist.gather_rows(ids)) & ~positive  # B K
        losses = contrast(F.normalize(queries, dim=1), keys, positive, self.temperature, ignored)  # B
        return 2 * self.temperature * losses.mean()

    def after_step(self, now: Now) -> None:
        self.teacher.move(self.parts, rising(self.momentum, now.done))
