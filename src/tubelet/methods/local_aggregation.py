"""Local aggregation: a video comes close to those that it is clustered with, away from others that are near."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.cluster import kmeans
from tubelet.nn.losses import contrast, products
from tubelet.nn.memory import Bank
from tubelet.nn.settings import check_positive
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("local_aggregation")
class LocalAggregation(Learner):
    """Local aggregation of the embeddings of videos (Zhuang et al.: LA, ICCV 2019; VIE, CVPR 2020).

    Source: Zhuang, Zhai, Yamins 2019, Local aggregation for unsupervised learning of visual embeddings,
    https://arxiv.org/abs/1903.12355; on video Zhuang, She, Andonian, Mark, Yamins 2020, Unsupervised learning from
    video with deep neural embeddings, https://arxiv.org/abs/1905.11954

    A memory bank has a slow average of each video's embedding v. B, its background neighbours, are the nearest of the
    bank; C, its close ones, are those that share its cluster in any of several k-means of the bank, made anew every
    epoch. The loss is -log P(C and B | v) / P(B | v), where P is a softmax over the bank (equations 2 to 4 of the first
    paper). As published it begins with instance recognition, where each video is close to itself alone and all others
    are background. VIE's second path, at another frame rate, is not here.

    Args:
        backbone: what turns clips into tokens.
        videos: how many rows the training manifest has.
        dim: width of an embedding.
        clusters: the number of clusters of each k-means.
        neighbours: how many of the bank are background.
        temperature: of the softmax.
        momentum: how much of a video's old embedding is kept when it comes again.
        instance_epochs: epochs of instance recognition, before there are clusters.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    clusters: Tensor
    """H N int64: the cluster of each video by its `id`, in each k-means."""

    def __init__(
        self,
        backbone: Backbone,
        videos: int,
        dim: int = 128,
        clusters: tuple[int, ...] = (1000, 1000, 1000),
        neighbours: int = 4096,
        temperature: float = 0.07,
        momentum: float = 0.5,
        instance_epochs: int = 10,
        strength: Literal["none", "moco", "slowfast"] = "moco",
    ) -> None:
        super().__init__()
        if not clusters or not all(2 <= count <= videos for count in clusters):
            told = ", ".join(map(str, clusters)) or "none"
            raise TubeletError(f"learner.clusters must each be in 2..{videos}, the number of videos, not {told}")
        if neighbours < 2:
            raise TubeletError(f"learner.neighbours must be 2 or more, not {neighbours}")
        check_positive(temperature=temperature)
        if not 0 <= momentum < 1:
            raise TubeletError(f"learner.momentum must be in 0..1 (1 excluded), not {momentum:g}")
        self.backbone = backbone
        self.counts, self.neighbours = tuple(clusters), min(neighbours, videos)
        self.temperature, self.instance_epochs, self.strength = temperature, instance_epochs, strength
        self.enter = nn.Linear(backbone.dim, dim)
        self.bank = Bank(videos, dim, momentum)
        self.register_buffer("clusters", torch.arange(videos).repeat(len(clusters), 1))
        self.aggregating = False

    def before_step(self, now: Now) -> None:
        self.bank.forget()
        self.aggregating = now.epoch >= self.instance_epochs
        if self.aggregating and now.new_epoch:
            for number, count in enumerate(self.counts):
                seed = draws.key("local aggregation", now.epoch, number)
                self.clusters[number] = kmeans(self.bank.values, count, seed)[1]

    def forward(self, batch: Batch, phase: str) -> Output:
        video = augmented(batch["video"][0], batch["key"], "local aggregation", self.strength)  # B C T H W
        embedding = F.normalize(self.enter(self.backbone(video).tokens.mean(dim=1)).float(), dim=1)  # B D
        self.bank.remember(batch["id"], embedding)
        close, background = self.close(batch["id"]), self.background(embedding, batch["id"])  # B N
        both = close & background
        loss = contrast(embedding, self.bank.values, both, self.temperature, ignored=~background).mean()
        return Output(loss, {"close": both.sum(dim=1).float().mean()})

    def close(self, ids: Tensor) -> Tensor:
        """B N bool: who shares a cluster with each video, itself included; before there are clusters, itself alone."""
        if not self.aggregating:
            return ids[:, None] == torch.arange(len(self.bank.values), device=ids.device)
        close = torch.zeros(len(ids), len(self.bank.values), dtype=torch.bool, device=ids.device)
        for clusters in self.clusters:  # N
            close |= clusters[ids, None] == clusters
        return close

    @torch.no_grad()
    def background(self, embedding: Tensor, ids: Tensor) -> Tensor:
        """B N bool: the nearest of the bank and the video itself; before there are clusters, all."""
        background = torch.ones(len(ids), len(self.bank.values), dtype=torch.bool, device=ids.device)
        if self.aggregating:
            nearest = products(embedding, self.bank.values).topk(self.neighbours, dim=1).indices  # B neighbours
            background.fill_(False).scatter_(1, nearest, True).scatter_(1, ids[:, None], True)
        return background

    def after_step(self, now: Now) -> None:
        self.bank.push()
