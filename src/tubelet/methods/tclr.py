"""TCLR: moments of one video must differ from each other, and match the part of the whole video that they are of."""

from __future__ import annotations

from itertools import product
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner
from tubelet.nn.heads import UNSEEN, Projector
from tubelet.nn.losses import contrast, nt_xent
from tubelet.nn.settings import check_positive
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


class Encoded(NamedTuple):
    """One view of a video in unit vectors."""

    whole: Tensor
    """B D: the whole span, sparsely seen."""
    slices: Tensor
    """B P D: the parts of that span, from the same sparse clip."""
    parts: Tensor
    """B P D: the parts, each seen as a dense clip of its own."""


@register("tclr")
class TCLR(Learner):
    """Temporal contrastive learning (Dave, Gupta, Rizve, Shah, CVIU 2022, arXiv 2101.07974).

    A span of video is seen once sparsely, as one clip, and in consecutive parts densely, as one clip each; all of it in
    two views. The loss is the sum of three (section 3), each a mean over its terms: instance contrast tells videos
    apart, by their whole spans and by their parts; local-local tells a part from the other parts of its video, its
    other view being the positive; global-local finds the slice of the sparse clip's tokens that a part belongs to, and
    the reverse. The published code adds terms up instead, and its instance contrast of parts pairs all moments.

    Args:
        backbone: what turns clips into tokens.
        parts: into how many parts the span is cut; they divide the tokens along time. Frames are loaded so many times
            as densely as data.stride says.
        dim: width of the vectors that are compared.
        hidden: width of the head's inner layer.
        temperature: the cosines are divided by it.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    views = 2
    view_times = "same"
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        parts: int = 4,
        dim: int = 128,
        hidden: int = 512,
        temperature: float = 0.1,
        strength: Literal["none", "moco", "slowfast"] = "moco",
    ) -> None:
        super().__init__()
        if parts < 2:
            raise TubeletError(f"learner.parts must be 2 or more, as they are told apart, not {parts}")
        check_positive(temperature=temperature)
        self.backbone = backbone
        self.head = Projector(backbone.dim, hidden, dim, last_norm=True)
        self.density = parts
        self.temperature, self.strength = temperature, strength

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in super().parameters_of(phase) if name != UNSEEN]

    def forward(self, batch: Batch, phase: str) -> Output:
        one, other = (
            self.encode(augmented(video, batch["key"], f"view {view}", self.strength))  # of B C T*P H W
            for view, video in enumerate(batch["video"])
        )
        losses = {
            "instance": self.instance(one, other, batch["id"]),
            "local_local": self.local_local(one, other),
            "global_local": self.global_local(one, other),
        }
        return Output(torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in losses.items()})

    def encode(self, video: Tensor) -> Encoded:
        """B C T*P H W -> the vectors of its whole, of the slices of that and of its parts."""
        whole = video[:, :, :: self.density]
        times = self.backbone.grid(*whole.shape[2:])[0]
        if times % self.density:
            raise TubeletError(
                f"learner.parts ({self.density}) must divide the clip's {times} tokens along time: change data.frames"
            )
        tokens = self.backbone(whole).tokens  # B N D
        slices = tokens.unflatten(1, (self.density, -1)).mean(dim=2)  # B P D
        clips = video.unflatten(2, (self.density, -1)).transpose(1, 2).flatten(0, 1)  # B*P C T H W
        parts = self.backbone(clips).tokens.mean(dim=1).unflatten(0, (-1, self.density))  # B P D
        return Encoded(self.project(tokens.mean(dim=1)), self.project(slices), self.project(parts))

    def project(self, values: Tensor) -> Tensor:
        """Unit vectors of whatever comes in the last axis; a batch norm's statistics are over all other axes."""
        return F.normalize(self.head(values.flatten(0, -2)), dim=1).view(*values.shape[:-1], -1)

    def instance(self, one: Encoded, other: Encoded, ids: Tensor) -> Tensor:
        """NT-Xent between videos: of their wholes, and of their parts at the same moment."""
        wholes = nt_xent(one.whole, other.whole, ids, self.temperature).mean()
        pairs = zip(one.parts.unbind(1), other.parts.unbind(1), strict=True)  # P pairs of B D
        parts = [nt_xent(*pair, ids, self.temperature).mean() for pair in pairs]
        return wholes + torch.stack(parts).mean()

    def local_local(self, one: Encoded, other: Encoded) -> Tensor:
        """NT-Xent between the parts of a video, in both views."""
        rows = torch.cat([one.parts, other.parts], dim=1)  # B 2P D
        itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)  # 2P 2P
        return self.within(rows, rows, itself.roll(self.density, dims=1), ignored=itself)

    def global_local(self, one: Encoded, other: Encoded) -> Tensor:
        """InfoNCE between parts and slices of a video, either way, for each two of the views."""
        own = torch.eye(self.density, dtype=torch.bool, device=one.parts.device)  # P P
        pairs = product((one.slices, other.slices), (one.parts, other.parts))  # 4 pairs of B P D
        losses = [self.within(a, b, own) + self.within(b, a, own) for a, b in pairs]
        return torch.stack(losses).mean()

    def within(self, queries: Tensor, keys: Tensor, positive: Tensor, ignored: Tensor | None = None) -> Tensor:
        """The mean of `contrast` within each video: B Q D with B K D, by Q K masks that hold for all of them."""
        losses = torch.vmap(
            lambda some, others: contrast(some, others, positive, self.temperature, ignored)
        )(queries, keys)  # B Q
        return losses.mean()
