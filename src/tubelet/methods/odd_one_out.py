"""Odd one out: of several clips of a video, which has its frames in a wrong order?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import tuples
from tubelet.nn.heads import Projector
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("odd_one_out")
class OddOneOut(Learner):
    """Finds the clip whose frames are shuffled (Fernando, Bilen, Gavves, Gould: O3N, CVPR 2017, sections 3 and 4).

    The features of the clips, after a layer of their own, are fused by their differences, v_j - v_i over all i < j,
    before a classifier names the odd one. https://arxiv.org/abs/1611.06646

    Where the paper makes a picture of each clip first, the backbone sees its frames; the mean of the differences, in
    place of their sum, keeps the scale for any number of clips. Chance is 1 / clips.

    Args:
        clips: how many there are, one of them odd. Of an odd number the middle one has no weight in the mean.
        hidden: width of the layers.
    """

    density = 2
    """So a clip of the backbone's length is half of what was loaded, and several lie at different times."""

    def __init__(self, backbone: Backbone, clips: int = 6, hidden: int = 512) -> None:
        super().__init__()
        if clips < 2:
            raise TubeletError(f"learner.clips must be 2 or more for one of them to be odd, not {clips}")
        self.clips = clips
        self.backbone = backbone
        self.enter = nn.Linear(backbone.dim, hidden, bias=False)
        self.head = Projector(hidden, hidden, clips, norm=False)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C 2T H W
        odd = draws.choice(batch["key"], self.clips, "odd")  # B
        clips = tuples.taken(video, self.times(odd, batch["key"], video.shape[2]))  # B n C T H W
        # what all features share cancels in the differences: a bias would, and without the ReLU that of the last norm
        seen = F.relu(self.enter(tuples.encode(self.backbone, clips)))  # B n hidden
        logits = self.head(fused(seen)).float()  # B n
        return Output(F.cross_entropy(logits, odd), {"accuracy": (logits.argmax(dim=1) == odd).float().mean()})

    def times(self, odd: Tensor, keys: Tensor, frames: int) -> Tensor:
        """The frames of each clip, those of the odd one shuffled: B n T int64."""
        length = frames // self.density
        times = tuples.spread(frames, self.clips, length, odd.device).repeat(len(odd), 1, 1)  # B n T
        rows = torch.arange(len(odd), device=odd.device)
        times[rows, odd] = times[rows, odd].gather(1, draws.uniform(keys, length, "shuffle").argsort(dim=1))
        return times


def fused(items: Tensor) -> Tensor:
    """The mean of v_j - v_i over all i < j, B n D -> B D: item k comes k times with plus and n - 1 - k with minus."""
    count = items.shape[1]
    weight = 2 * torch.arange(count, device=items.device, dtype=items.dtype) - (count - 1)  # n
    return torch.einsum("bnd,n->bd", items, weight / math.comb(count, 2))
