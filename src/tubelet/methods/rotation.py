"""Rotation: say by how much a clip was turned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

TURNS = 4
"""By 0, 90, 180 and 270 degrees, anticlockwise."""


@register("rotation")
class Rotation(Learner):
    """Predicts the rotation of a clip (Jing, Yang, Liu, Tian: 3DRotNet, 2018, https://arxiv.org/abs/1811.11387).

    All frames are turned alike, and the four versions of each clip are in one batch (section 3), so a step costs four
    times what its clips would. The loss is cross-entropy over the four angles. A still picture gives the angle away as
    well as a video does: this is a task about appearance, and what has no upright position cannot teach it.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, TURNS)

    def logits(self, video: Tensor) -> Tensor:
        """B C T H W -> B 4: of each angle."""
        return self.head(self.backbone(video).tokens.mean(dim=1)).float()  # B 4

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T H W
        height, width = video.shape[-2:]
        if height != width:
            raise TubeletError(f"rotation turns square clips, not {height} x {width} pixels")
        turned = torch.cat([video.rot90(turn, dims=(3, 4)) for turn in range(TURNS)])  # 4B C T H W
        angle = torch.arange(TURNS, device=video.device).repeat_interleave(len(video))  # 4B
        logits = self.logits(turned)
        accuracy = (logits.argmax(dim=1) == angle).float().mean()
        return Output(F.cross_entropy(logits, angle), {"accuracy": accuracy})
