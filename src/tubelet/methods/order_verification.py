"""Shuffle and learn: do three frames of a video stand in their order?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import tuples
from tubelet.nn.heads import Projector
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

ITEMS = 5
"""Frames a to e."""
NEGATIVES = 0.75
"""Their weight among the tuples (Misra et al. 2016, table 2)."""


@register("order_verification")
class OrderVerification(Learner):
    """Tells tuples in order from tuples out of it (Misra, Zitnick, Hebert: Shuffle and Learn, ECCV 2016, section 3).

    Of five frames a < b < c < d < e from where the video moves, (b, c, d) is in order, (b, a, d) and (b, e, d) are not;
    each is shown forwards or backwards. https://arxiv.org/abs/1603.08561

    All three tuples are made of each video from one encoding of its five frames, weighted as if they had been drawn;
    the head has a hidden layer. The accuracy is the mean of both kinds', so that chance is 1/2.

    Args:
        length: frames of an item: 1 = a single frame, repeated to the length of a cube, as published; more = a short
            clip, of frames that are so many times as dense, for which data.stride should be no less.
        window: share of the clip from which the five are drawn; it lies where much moves.
        hidden: width of the head.
    """

    def __init__(self, backbone: Backbone, length: int = 1, window: float = 0.75, hidden: int = 512) -> None:
        super().__init__()
        self.tubelet = backbone.config["tubelet"]
        if length != 1 and (length < 1 or length % self.tubelet):
            raise TubeletError(f"learner.length must be 1 or a multiple of {self.tubelet} (a cube), not {length}")
        if length == 1:
            tuples.refuse_stills(backbone, "learner.length 1")
        if not 0 < window <= 1:
            raise TubeletError(f"learner.window must be a share of the clip, in 0..1, not {window:g}")
        self.density, self.length, self.window = length, length, window
        self.backbone = backbone
        self.head = Projector(3 * backbone.dim, hidden, 2, norm=False)

    def check_clip(self, frames: int, height: int, width: int) -> None:
        super().check_clip(frames, height, width)
        tuples.check_frames(frames, ITEMS)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T*length H W
        seen = tuples.encode(self.backbone, self.items(video, batch["key"]))  # B 5 D
        shown = self.tuples(seen, batch["key"])  # B 3 3 D
        logits = self.head(shown.flatten(2)).float()  # B 3 2
        label = torch.tensor([1, 0, 0], device=logits.device).expand(len(logits), -1)  # B 3, 1 = in order
        weight = torch.tensor([1 - NEGATIVES, NEGATIVES / 2, NEGATIVES / 2], device=logits.device)
        error = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(label)  # B 3
        right = (logits.argmax(dim=2) == label).float()
        accuracy = (right[:, 0].mean() + right[:, 1:].mean()) / 2
        return Output((error * weight).sum(dim=1).mean(), {"accuracy": accuracy})

    def items(self, video: Tensor, keys: Tensor) -> Tensor:
        """Five items in their order, B 5 C L H W."""
        places = tuples.moving_places(video[:, :, :: self.length], keys, ITEMS, self.window, "places")  # B 5
        times = places[..., None] * self.length + torch.arange(self.length, device=video.device)  # B 5 length
        clips = tuples.taken(video, times)  # B 5 C length H W
        return clips.repeat(1, 1, 1, self.tubelet, 1, 1) if self.length == 1 else clips

    def tuples(self, seen: Tensor, keys: Tensor) -> Tensor:
        """One tuple in order and two that are not, each forwards or backwards: B 5 D -> B 3 3 D."""
        a, b, c, d, e = range(ITEMS)
        shown = seen[:, [[b, c, d], [b, a, d], [b, e, d]]]  # B 3 3 D
        backwards = draws.uniform(keys, 3, "backwards") < 0.5  # B 3
        return torch.where(backwards[..., None, None], shown.flip(2), shown)
