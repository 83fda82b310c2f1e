"""Denoising: spoil a clip, and restore it as it was."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import views
from tubelet.nn.patches import join
from tubelet.nn.transformer import start_weights
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

KINDS = ("noise", "channel", "blur", "shuffle")


@register("denoising")
class Denoising(Learner):
    """Restores clips that were spoilt (Vincent, Larochelle, Bengio, Manzagol: denoising autoencoders, ICML 2008).

    Each clip is spoilt in one of several ways; the backbone sees it and one linear map of each token gives the pixels
    of its cube as they were. The loss is over all pixels. Besides noise (section 2.3) there are what later work had to
    be undone: a lost colour (Zhang, Isola, Efros: Split-Brain Autoencoders, CVPR 2017), blur, and frames out of order.
    That the head is one linear map is SimMIM's finding (Xie et al., CVPR 2022, table 2), not of these papers.

    Args:
        corruptions: those that a clip's own is drawn from: "noise" on every value, a "channel" of colour that is lost,
            "blur", and a "shuffle" of frames, of which either direction of time may be the right one.
        noise: deviation of the noise, for pixels in 0..1.
        blur: deviation of the blur, as a share of the picture's height.
        loss: "mse" or "l1".
    """

    def __init__(
        self,
        backbone: Backbone,
        corruptions: tuple[Literal["noise", "channel", "blur", "shuffle"], ...] = KINDS,
        noise: float = 0.25,
        blur: float = 0.05,
        loss: Literal["mse", "l1"] = "mse",
    ) -> None:
        super().__init__()
        if not corruptions or set(corruptions) - set(KINDS):
            raise TubeletError(
                f"learner.corruptions must be one or more of {', '.join(KINDS)}, not {', '.join(corruptions) or 'none'}"
            )
        for name, value in {"noise": noise, "blur": blur}.items():
            if value <= 0:
                raise TubeletError(f"learner.{name} must be more than 0, not {value:g}: name what is wanted in "
                                   "learner.corruptions")  # fmt: skip
        self.backbone = backbone
        self.corruptions, self.noise, self.blur = tuple(corruptions), noise, blur
        self.distance = {"mse": F.mse_loss, "l1": F.l1_loss}[loss]
        self.patch, self.tubelet = backbone.config["patch"], backbone.config["tubelet"]
        self.head = nn.Linear(backbone.dim, 3 * self.tubelet * self.patch**2)
        start_weights(self.head)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T H W in [0, 1]
        restored = self.restore(self.spoil(video, batch["key"]))  # B C T H W
        return Output(self.distance(restored.float(), self.backbone.prepare(video)))

    def spoil(self, video: Tensor, keys: Tensor) -> Tensor:
        """Each clip spoilt in one way, drawn from its key: B C T H W in [0, 1]."""
        chosen = draws.choice(keys, len(self.corruptions), "corruption").view(-1, 1, 1, 1, 1)
        spoilt = video
        for number, kind in enumerate(self.corruptions):
            spoilt = torch.where(chosen == number, self.spoilt_by(kind, video, keys), spoilt)
        return spoilt

    def spoilt_by(self, kind: str, video: Tensor, keys: Tensor) -> Tensor:
        """All clips spoilt in the same way: B C T H W in [0, 1]."""
        if kind == "noise":
            return views.noise(video, keys, "noise", self.noise)
        if kind == "channel":
            lost = draws.choice(keys, 3, "channel")[:, None] == torch.arange(3, device=keys.device)  # B C
            return torch.where(lost[:, :, None, None, None], self.backbone.mean, video)
        if kind == "blur":
            deviation = video.new_full((len(video),), self.blur * video.shape[3])  # B
            return views.blurred(video, deviation, reach=math.ceil(3 * self.blur * video.shape[3]))
        order = draws.uniform(keys, video.shape[2], "shuffle").argsort(dim=1)  # B T
        return video.gather(2, order[:, None, :, None, None].expand_as(video))

    def restore(self, video: Tensor) -> Tensor:
        """What a spoilt clip was: B C T H W -> B C T H W, as the backbone prepares it."""
        tokens, grid = self.backbone(video)  # B N D
        pieces = self.head(tokens).unflatten(2, (3, self.tubelet, self.patch, self.patch))  # B N C tubelet patch patch
        return join(pieces, grid)  # B C T H W
