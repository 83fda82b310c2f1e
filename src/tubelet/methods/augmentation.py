"""Augmentation prediction: say in which way a clip was changed, and how strongly."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn.views import blurred, noise
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

RIGHT_ANGLES = 4
"""Severities of a rotation: 0, 90, 180 and 270 degrees."""
COLOUR = 0.6
"""The strongest cast: red times 1.6 and blue times 0.4."""
BLUR = 1 / 12
"""Deviation of the strongest blur, as a share of the side."""
NOISE = 0.3
"""Deviation of the strongest noise; pixels are in [0, 1]."""


@register("augmentation")
class Augmentation(Learner):
    """Predicts what was done to a clip, the task that Schiappa, Rawat, Shah call appearance statistics prediction.

    (Self-supervised learning for videos: a survey, ACM Computing Surveys 2022, https://arxiv.org/abs/2207.00419. It
    names colour, rotation and noise, and no single paper with a number to reach.) Here every operation has a severity
    of its own, drawn for each clip and the same in all its frames, from none in equal steps up to the strongest. A
    linear head for each operation predicts its severity; the loss is the mean of their cross-entropies. A still picture
    gives them away as well as a video does: this is a task about appearance.

    Args:
        operations: any of "rotation", "colour", "blur" and "noise", which are done in this order. Colour is a cast
            towards red, the blur is Gaussian, the noise normal and fresh in each frame.
        severities: how many there are of each, no change included; of rotation there are four, by right angles.
    """

    def __init__(
        self,
        backbone: Backbone,
        operations: tuple[Literal["rotation", "colour", "blur", "noise"], ...] = ("colour", "blur", "noise"),
        severities: int = 3,
    ) -> None:
        super().__init__()
        unknown = set(operations) - {"rotation", "colour", "blur", "noise"}
        if not operations or unknown or len(set(operations)) < len(operations):
            raise TubeletError(
                f"learner.operations must name some of rotation, colour, blur and noise, each once, not "
                f"{', '.join(operations) or 'none'}"
            )
        if severities < 2:
            raise TubeletError(f"learner.severities must be 2 or more, not {severities}")
        self.severities = severities
        self.counts = {name: RIGHT_ANGLES if name == "rotation" else severities for name in operations}
        self.backbone = backbone
        self.heads = nn.ModuleDict({name: nn.Linear(backbone.dim, count) for name, count in self.counts.items()})

    def logits(self, video: Tensor) -> dict[str, Tensor]:
        """B C T H W -> for each operation B K: of each severity."""
        pooled = self.backbone(video).tokens.mean(dim=1)  # B D
        return {name: head(pooled).float() for name, head in self.heads.items()}

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,), keys = batch["video"], batch["key"]  # B C T H W
        labels = {name: draws.choice(keys, count, f"augmentation {name}") for name, count in self.counts.items()}
        logits = self.logits(self.changed(video, keys, labels))
        losses, right = [], {}
        for name, label in labels.items():
            losses.append(F.cross_entropy(logits[name], label))
            right[f"accuracy_{name}"] = (logits[name].argmax(dim=1) == label).float().mean()
        accuracy = torch.stack(list(right.values())).mean()
        return Output(torch.stack(losses).mean(), {"accuracy": accuracy, **right})

    def changed(self, video: Tensor, keys: Tensor, severity: dict[str, Tensor]) -> Tensor:
        """The clips B C T H W with operations done, each of a severity B, int64 from 0 = none."""
        height, width = video.shape[-2:]
        strength = {name: level / (self.severities - 1) for name, level in severity.items()}  # B each, 0..1
        if "rotation" in severity:
            if height != width:
                raise TubeletError(f"rotation turns square clips, not {height} x {width} pixels")
            turned = torch.stack([video.rot90(turn, dims=(3, 4)) for turn in range(RIGHT_ANGLES)])  # 4 B C T H W
            video = turned[severity["rotation"], torch.arange(len(video), device=video.device)]  # B C T H W
        if "colour" in severity:
            cast = COLOUR * strength["colour"]  # B
            gain = torch.stack([1 + cast, torch.ones_like(cast), 1 - cast], dim=1)  # B C
            video = (video * gain[:, :, None, None, None]).clamp(0, 1)
        if "blur" in severity:
            widest = BLUR * max(height, width)
            video = blurred(video, widest * strength["blur"], reach=math.ceil(3 * widest))
        if "noise" in severity:
            video = noise(video, keys, "augmentation, each value", NOISE * strength["noise"])
        return video
