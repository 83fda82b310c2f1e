"""CVRL: two clips of a video, rather near in time than far, must recognise each other among those of other videos."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn.heads import Projector, embedded
from tubelet.nn.losses import nt_xent
from tubelet.nn.settings import check_positive
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output


@register("cvrl")
class CVRL(Learner):
    """Spatio-temporal contrast (Qian, Meng, Gong, Yang, Wang, Belongie, Cui, CVPR 2021, arXiv 2008.03800).

    Two clips whose starts are the more likely the nearer to each other (section 3.2), each with a crop and colours that
    are the same in all of its frames (section 3.3), and InfoNCE among the clips of all processes (equation 1).

    A network can solve that by appearance alone. With ``negatives`` it must not: clips are told, besides from other
    videos, from themselves in another order of frames, as the inter-intra contrast of Tao, Wang and Yamasaki (ACM MM
    2020, arXiv 2008.02531) does with shuffled frames. A clip in which nothing moves is then its own negative.

    Args:
        backbone: what turns clips into tokens.
        times: the two clips lie "near" each other, as published, or "independent" (any moments equally likely).
        negatives: clips are told from those of other "videos" alone, as published, or besides from their own frames
            "reversed" or "shuffled".
        dim: width of the vectors that are compared.
        hidden: width of the head's inner layers.
        layers: linear maps of the head.
        temperature: the cosines are divided by it.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    views = 2
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        times: Literal["near", "independent"] = "near",
        negatives: Literal["videos", "reversed", "shuffled"] = "videos",
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
        self.view_times = times
        self.negatives, self.temperature, self.strength = negatives, temperature, strength

    def forward(self, batch: Batch, phase: str) -> Output:
        keys = batch["key"]
        videos = [
            augmented(video, keys, f"view {view}", self.strength) for view, video in enumerate(batch["video"])
        ]
        one, other = (embedded(video, self) for video in videos)  # B D each
        disturbed = None
        if self.negatives != "videos":
            clips = [self.reordered(video, keys, f"order {view}") for view, video in enumerate(videos)]
            disturbed = torch.cat([embedded(clip, self) for clip in clips])  # 2B D
        return Output(nt_xent(one, other, batch["id"], self.temperature, disturbed).mean())

    def reordered(self, video: Tensor, keys: Tensor, stream: str) -> Tensor:
        """The same frames backwards, or in an order that is drawn for each clip: B C T H W."""
        if self.negatives == "reversed":
            return video.flip(2)
        order = draws.uniform(keys, video.shape[2], stream).argsort(dim=1)  # B T
        return video.gather(2, order[:, None, :, None, None].expand_as(video))
