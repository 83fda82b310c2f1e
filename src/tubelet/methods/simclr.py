"""SimCLR: a clip must recognise itself after a change of crop and colours, among all other clips of the batch."""

from __future__ import annotations

from typing import Literal

from tubelet.learner import Backbone, Learner
from tubelet.nn.heads import Projector, embedded
from tubelet.nn.losses import nt_xent
from tubelet.nn.settings import check_positive
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output


@register("simclr")
class SimCLR(Learner):
    """Contrast of two views of the same frames (Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709).

    Both views see the same moments of a video, each with a crop and colours of its own that are the same in all frames.
    The loss is NT-Xent (equation 1) over the views of all processes. Head, temperature and colours are those of the
    study on video by Feichtenhofer et al. (CVPR 2021, arXiv 2104.14558; PySlowFast's configuration), whose views are of
    different moments: for those see `cvrl`.

    Args:
        backbone: what turns clips into tokens.
        dim: width of the vectors that are compared.
        hidden: width of the head's inner layers.
        layers: linear maps of the head.
        temperature: the cosines are divided by it.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    views = 2
    view_times = "same"
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        hidden: int = 2048,
        layers: int = 3,
        temperature: float = 0.1,
        strength: Literal["none", "moco", "slowfast"] = "slowfast",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.backbone = backbone
        self.head = Projector(backbone.dim, hidden, dim, layers, norm=False)
        self.temperature, self.strength = temperature, strength

    def forward(self, batch: Batch, phase: str) -> Output:
        one, other = (
            embedded(augmented(video, batch["key"], f"view {view}", self.strength), self)
            for view, video in enumerate(batch["video"])
        )  # B D each
        return Output(nt_xent(one, other, batch["id"], self.temperature).mean())
