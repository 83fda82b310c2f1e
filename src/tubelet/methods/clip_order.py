"""Clip order prediction: in which order were these clips of a video shuffled?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import tuples
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("clip_order")
class ClipOrder(Learner):
    """Names the order of shuffled clips (Xu, Xiao, Zhao, Shao, Xie, Zhuang: VCOP, CVPR 2019, section 3).

    The clips are evenly spread over four times the backbone's frames: three of 16 have gaps of 8 between them, as
    published. So data.stride should be 4 or more, or files have no such frames. The label is the order's number in
    `itertools.permutations`; chance is 1 / clips!.

    Args:
        clips: how many are shuffled. Four have no gaps between them, five overlap.
        hidden: width of what is made of a pair of clips.
        dropout: before the last layer.
    """

    density = 4
    orders: Tensor

    def __init__(self, backbone: Backbone, clips: int = 3, hidden: int = 512, dropout: float = 0.5) -> None:
        super().__init__()
        if not 2 <= clips <= 5:
            raise TubeletError(f"learner.clips must be 2 to 5, not {clips}: there are clips! orders to tell apart")
        self.clips = clips
        self.backbone = backbone
        self.register_buffer("orders", torch.tensor(tuples.permutations(clips)), persistent=False)  # K n
        self.head = tuples.PairwiseHead(backbone.dim, clips, len(self.orders), hidden, dropout)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C 4T H W
        label = draws.choice(batch["key"], len(self.orders), "order")  # B
        times = tuples.spread(video.shape[2], self.clips, video.shape[2] // self.density, video.device)  # n T
        clips = tuples.taken(video, times[self.orders[label]])  # B n C T H W
        logits = self.head(tuples.encode(self.backbone, clips)).float()  # B K
        return Output(F.cross_entropy(logits, label), {"accuracy": (logits.argmax(dim=1) == label).float().mean()})
