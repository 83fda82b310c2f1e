"""Sorting frames: in which order were these frames of a video shuffled?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import tuples
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("frame_order")
class FrameOrder(Learner):
    """Sorts shuffled frames (Lee, Huang, Singh, Yang: Sorting Sequences, ICCV 2017, section 3).

    An order and that of the same frames played backwards are one class, since much that moves could as well move back:
    n! / 2 classes. (Reversing the tuple after it was shuffled is another thing: then the two ends of a video can be
    told apart only by what cannot move back.) Frames come from where the video moves; each is shifted by itself and
    shows one of its channels, against shortcuts. https://arxiv.org/abs/1708.01246

    Args:
        frames: how many are sorted; each is repeated to the length of a cube.
        window: share of the clip from which they are drawn; it lies where much moves.
        jitter: share of a frame's side by which it may be shifted.
        one_channel: each frame shows one of its channels, drawn, in the place of all three.
        hidden: width of what is made of a pair of frames.
        dropout: before the last layer.
    """

    orders: Tensor

    def __init__(
        self,
        backbone: Backbone,
        frames: int = 4,
        window: float = 0.75,
        jitter: float = 0.05,
        one_channel: bool = True,
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        tuples.refuse_stills(backbone, "learner frame_order")
        if not 3 <= frames <= 6:
            raise TubeletError(f"learner.frames must be 3 to 6, not {frames}: two have one order, seven have 2520")
        if not 0 < window <= 1:
            raise TubeletError(f"learner.window must be a share of the clip, in 0..1, not {window:g}")
        if not 0 <= jitter < 1:
            raise TubeletError(f"learner.jitter must be in 0..1 (1 excluded), not {jitter:g}")
        self.frames, self.window, self.jitter, self.one_channel = frames, window, jitter, one_channel
        self.tubelet, self.patch = backbone.config["tubelet"], backbone.config["patch"]
        self.backbone = backbone
        self.register_buffer("orders", torch.tensor(tuples.orders_either_way(frames)), persistent=False)  # K n
        self.head = tuples.PairwiseHead(backbone.dim, frames, len(self.orders), hidden, dropout)

    def check_clip(self, frames: int, height: int, width: int) -> None:
        super().check_clip(frames, height, width)
        tuples.check_frames(frames, self.frames)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,), keys = batch["video"], batch["key"]  # B C T H W
        label = draws.choice(keys, len(self.orders), "order")  # B
        backwards = draws.uniform(keys, 1, "backwards") < 0.5  # B 1
        orders = torch.where(backwards, self.frames - 1 - self.orders[label], self.orders[label])  # B n
        places = tuples.moving_places(video, keys, self.frames, self.window, "places").gather(1, orders)  # B n
        frames = tuples.taken(video, places[..., None])  # B n C 1 H W
        frames = tuples.cut(frames, keys, "jitter", self.jitter, self.patch)
        if self.one_channel:
            frames = tuples.one_channel(frames, keys, "channel")
        frames = frames.repeat(1, 1, 1, self.tubelet, 1, 1)  # B n C tubelet H W
        logits = self.head(tuples.encode(self.backbone, frames)).float()  # B K
        return Output(F.cross_entropy(logits, label), {"accuracy": (logits.argmax(dim=1) == label).float().mean()})
