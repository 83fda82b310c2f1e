"""A classifier on top of a backbone: for fine-tuning and, from a random start, for training with labels alone."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.checkpoint import fit_tensors
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.memory import Ema
from tubelet.nn.mixing import erase, mix
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("supervised")
class Supervised(Learner):
    """Learns labels with cross-entropy, the way VideoMAE is fine-tuned.

    The mean of the tokens goes through a norm of its own, dropout and a linear head that starts close to zero.
    The published encoder has no norm of its own before that (``backbone.last_norm: false``). Mixing, erasing and
    smoothing are for training only. With ``ema``, what is judged, exported and predicted with is the moving average
    of the weights.

    Source: Tong et al. 2022, VideoMAE, https://arxiv.org/abs/2203.12602

    Args:
        backbone: what turns clips into tokens.
        classes: how many there are.
        pool: what the head sees: the "mean" of the tokens, as published, or the "first" one, which is the cube at the
            upper left of the first frames (a class token of the backbone is not among its tokens).
        head_norm: a norm between pooling and head, as published.
        dropout: share of the pooled values that is dropped before the head.
        smoothing: label smoothing: the share of probability that is spread evenly over all classes.
        head_scale: the head's first weights are multiplied by this.
        mixup: clips are added up in shares from Beta(a, a), this is a (published 0.8); 0 = never. They mix within one
            forward pass of one process.
        cutmix: likewise with a box of one clip put into another (published 1); with both, each half of the time.
        erasing: chance of a clip to lose a random box to noise, the same box in all frames (published 0.25).
        ema: share of the moving average of the weights that is kept at a step, such as 0.9999; 0 = no average. It
            begins at the first weights: 1 / (1 - ema) steps should be a small part of the run.
    """

    needs_labels = True
    fc_norm: nn.Module

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        pool: Literal["mean", "first"] = "mean",
        head_norm: bool = True,
        dropout: float = 0.0,
        smoothing: float = 0.1,
        head_scale: float = 0.001,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        shares = {"dropout": dropout, "smoothing": smoothing, "ema": ema}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise TubeletError(f"learner.{name} must be in 0..1 (1 excluded), not {value:g}")
        if not 0 <= erasing <= 1:
            raise TubeletError(f"learner.erasing must be in 0..1, not {erasing:g}")
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise TubeletError(f"learner.{name} must be 0 (off) or more, not {value:g}")
        self.pool: Literal["mean", "first"] = pool
        self.smoothing, self.mixup, self.cutmix, self.erasing = smoothing, mixup, cutmix, erasing
        self.backbone = backbone
        self.fc_norm = nn.LayerNorm(backbone.dim, eps=1e-6) if head_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)
        self.ema = Ema(self.parts, ema) if ema else None

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What has weights."""
        return {"backbone": self.backbone, "fc_norm": self.fc_norm, "head": self.head}

    @property
    def exported(self) -> Backbone:
        return self.backbone if self.ema is None else self.ema.get_submodule("backbone")  # type: ignore[return-value]

    def start_from(self, source: Learner) -> None:
        """Takes norm and head of another classifier (of its moving average, where it has one).

        A head of another number of classes stays behind, as in the published code.
        """
        assert isinstance(source, Supervised)
        trained = source if source.ema is None else source.ema
        parts = ["fc_norm", "head"] if source.head.out_features == self.head.out_features else ["fc_norm"]
        for part, own in product(parts, filter(None, (self, self.ema))):
            fit_tensors(own.get_submodule(part), trained.get_submodule(part).state_dict(), f"its {part}")

    def logits(self, video: Tensor) -> Tensor:
        """B C T H W in [0, 1] -> B K; in evaluation mode those of the moving average where there is one."""
        own: Any = self if self.training or self.ema is None else self.ema
        tokens = own.backbone(video).tokens  # B N D
        pooled = tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0]  # B D
        return own.head(self.dropout(own.fc_norm(pooled)))  # B K

    def forward(self, batch: Batch, phase: str) -> Output:
        labels = batch["label"]
        labelled = labels >= 0
        if not labelled.any():
            return Output(None)
        video, share = batch["video"][0], 1.0
        if not labelled.all():
            video, labels = video[labelled], labels[labelled]
        if self.training and self.erasing:
            video = erase(video, batch["key"][labelled], self.erasing, self.backbone.mean, self.backbone.deviation)
        if self.training and (self.mixup or self.cutmix):
            video, share = mix(video, batch["key"][labelled], self.mixup, self.cutmix)
        logits = self.logits(video).float()  # B K
        guess, loss, accuracy = logits.argmax(dim=1), logits.new_zeros(()), logits.new_zeros(())
        for weight, target in ((share, labels), (1 - share, labels.flip(0))):  # the partner's label, as in `mix`
            if weight:
                loss = loss + weight * functional.cross_entropy(logits, target, label_smoothing=self.smoothing)
                accuracy += weight * (guess == target).float().mean()
        return Output(loss, {"accuracy": accuracy.detach()})

    def after_step(self, now: Now) -> None:
        if self.ema is not None:
            self.ema.move(self.parts)
