"""A classifier on top of a backbone: for fine-tuning and, from a random start, for training with labels alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet.learner import Backbone, Learner
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("supervised")
class Supervised(Learner):
    """Learns labels with cross-entropy, the way VideoMAE is fine-tuned.

    The mean of the tokens goes through a norm of its own, dropout and a linear head that starts close to zero. The
    backbone keeps its last norm, so that a fine-tuned encoder is used like any other. (Published ones have
    none: backbone.last_norm false.)

    Source: Tong et al. 2022, VideoMAE, https://arxiv.org/abs/2203.12602

    Args:
        backbone: what turns clips into tokens.
        classes: how many there are.
        dropout: share of the pooled values that is dropped before the head.
        smoothing: label smoothing: the share of probability that is spread evenly over all classes.
        head_scale: the head's first weights are multiplied by this.
        pool: what of the tokens is classified: their "mean", as published, or the "first" one, as Hugging Face's
            classifiers with use_mean_pooling false do.
        head_norm: a LayerNorm between pooling and head.
    """

    needs_labels = True

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        dropout: float = 0.0,
        smoothing: float = 0.1,
        head_scale: float = 0.001,
        pool: Literal["mean", "first"] = "mean",
        head_norm: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("dropout", dropout), ("smoothing", smoothing)):
            if not 0 <= value < 1:
                raise TubeletError(f"learner.{name} must be in 0..1 (1 excluded), not {value:g}")
        self.backbone = backbone
        self.pool = pool
        self.fc_norm = nn.LayerNorm(backbone.dim, eps=1e-6) if head_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(backbone.dim, classes)
        self.smoothing = smoothing
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)

    def logits(self, video: Tensor) -> Tensor:
        """B C T H W in [0, 1] -> B K."""
        tokens = self.backbone(video).tokens  # B N D
        pooled = tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0]  # B D
        return self.head(self.dropout(self.fc_norm(pooled)))  # B K

    def forward(self, batch: Batch, phase: str) -> Output:
        labels = batch["label"]
        labelled = labels >= 0
        if not labelled.any():
            return Output(None)
        logits = self.logits(batch["video"][0]).float()  # B K
        loss = functional.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=self.smoothing)
        accuracy = (logits.argmax(dim=1) == labels)[labelled].float().mean()
        return Output(loss, {"accuracy": accuracy.detach()})
