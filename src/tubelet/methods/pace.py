"""Pace prediction: say how fast a clip is played."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn.speed import at_speed
from tubelet.nn.views import jitter
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("pace")
class Pace(Learner):
    """Predicts the pace of a clip (Wang, Jiao, Liu: ECCV 2020, https://arxiv.org/abs/2008.05861).

    Of each clip every frame is taken, or every second, up to every ``paces``-th, from a random start; the loss is
    cross-entropy over the paces. The greatest pace is that of ``data.stride``, with which the backbone is judged, so
    files should have ``paces`` frames in a stride: those that they have not are repeated, which gives the pace away.
    The colours of each frame change by themselves, without which a network finds the pace in flicker and compression
    instead of motion. The paper's contrastive term, which is added to this loss, is not here: that is what sets of
    learners are for.

    Args:
        paces: how many there are, from 1.
        jitter: how far brightness, contrast and saturation of each frame are changed, as a share; hue turns by up to a
            quarter of that; 0 = not at all.
    """

    def __init__(self, backbone: Backbone, paces: int = 4, jitter: float = 0.4) -> None:
        super().__init__()
        if paces < 2:
            raise TubeletError(f"learner.paces must be 2 or more, not {paces}")
        if not 0 <= jitter <= 1:
            raise TubeletError(f"learner.jitter must be in 0..1, not {jitter:g}")
        self.density, self.jitter = paces, jitter
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, paces)

    def logits(self, video: Tensor) -> Tensor:
        """B C T H W -> B K: of each pace."""
        return self.head(self.backbone(video).tokens.mean(dim=1)).float()  # B K

    def forward(self, batch: Batch, phase: str) -> Output:
        (clip,), (times,), keys = batch["video"], batch["times"], batch["key"]  # B C T*paces H W
        label = draws.choice(keys, self.density, "pace")  # B
        video = at_speed(clip, times, label + 1, clip.shape[2] // self.density, keys, "pace start")  # B C T H W
        if self.jitter:
            far = self.jitter
            video = jitter(video, keys, "pace jitter", far, far, far, far / 4, per_frame=True)
        logits = self.logits(video)
        accuracy = (logits.argmax(dim=1) == label).float().mean()
        return Output(F.cross_entropy(logits, label), {"accuracy": accuracy})
