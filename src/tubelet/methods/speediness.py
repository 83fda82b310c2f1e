"""Speediness: tell clips that play at their normal speed from those that play twice as fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner
from tubelet.nn.speed import at_speed
from tubelet.nn.views import blur
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("speediness")
class Speediness(Learner):
    """Tells fast from normal (Benaim et al.: SpeedNet, CVPR 2020, https://arxiv.org/abs/2004.06130).

    Both versions of each clip are in one batch, so that appearance cannot tell (section 3.1); the loss is the binary
    cross-entropy of "fast". Tokens are averaged over space, then the largest of each value over time is taken (section
    3.2): a clip is as fast as its fastest part. The paper resizes clips to random sizes, whose blur hides traces of
    compression; here the size is that of the recipe and the blur a Gaussian, the same for both versions. The paper's
    speeds vary a little (1 to 1.2 and 1.7 to 2.2 frames), these are 1 and 2. Fast is the speed of ``data.stride``, with
    which the backbone is judged.

    Args:
        blur: largest deviation of the blur in pixels of a picture of 224, of which smaller ones get less; 0 = none.
    """

    density = 2

    def __init__(self, backbone: Backbone, blur: float = 2.0) -> None:
        super().__init__()
        if blur < 0:
            raise TubeletError(f"learner.blur must be 0 (none) or more, not {blur:g}")
        self.blur = blur
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 1)

    def logits(self, video: Tensor) -> Tensor:
        """B C T H W -> B: above 0 where it seems fast."""
        tokens, (time, _, _) = self.backbone(video)  # B N D
        moments = tokens.unflatten(1, (time, -1)).mean(dim=2)  # B t D
        return self.head(moments.amax(dim=1)).squeeze(1).float()  # B

    def forward(self, batch: Batch, phase: str) -> Output:
        (clip,), (times,), keys = batch["video"], batch["times"], batch["key"]  # B C 2T H W
        if self.blur:
            clip = blur(clip, keys, "speediness blur", chance=1.0, sigma=(0.0, self.blur))
        frames, one = clip.shape[2] // self.density, torch.ones_like(keys)
        both = [at_speed(clip, times, speed * one, frames, keys, f"speediness start {speed}") for speed in (1, 2)]
        fast = torch.tensor([0.0, 1.0], device=clip.device).repeat_interleave(len(clip))  # 2B
        logits = self.logits(torch.cat(both))  # 2B
        accuracy = ((logits > 0) == (fast > 0)).float().mean()
        return Output(F.binary_cross_entropy_with_logits(logits, fast), {"accuracy": accuracy})
