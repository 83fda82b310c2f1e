"""DeepCluster: every epoch the videos are clustered by what the backbone sees, and then it learns these clusters."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.cluster import encode_all, kmeans, whitened
from tubelet.nn.heads import restart
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("deepcluster")
class DeepCluster(Learner):
    """Learns as classes what k-means finds in its own features (Caron et al.: DeepCluster, ECCV 2018).

    Source: Caron, Bojanowski, Joulin, Douze 2018, Deep clustering for unsupervised learning of visual features,
    https://arxiv.org/abs/1807.05520

    At the beginning of an epoch all videos are encoded without augmentation, and their features reduced, whitened and
    clustered (section 3.3); the classifier starts anew, since the clusters have other numbers now. Empty clusters are
    refilled. Where the paper draws clips evenly from the clusters, here each counts by 1 / the size of its cluster: the
    mean gradient is the same, and a giant cluster is no way out. Clips are not filtered by Sobel's operator: colours
    are changed instead.

    Args:
        backbone: what turns clips into tokens.
        videos: how many rows the training manifest has.
        clusters: K. More than the classes that one hopes for: published 10 times as many.
        every: epochs from one clustering to the next.
        components: principal components of the features that are clustered.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    assignment: Tensor
    """N int64: the cluster of each video by its `id`; -1 where it could not be read."""
    weight: Tensor
    """K: how much a clip of each cluster counts."""

    def __init__(
        self,
        backbone: Backbone,
        videos: int,
        clusters: int = 256,
        every: int = 1,
        components: int = 256,
        strength: Literal["none", "moco", "slowfast"] = "moco",
    ) -> None:
        super().__init__()
        if not 2 <= clusters <= videos:
            raise TubeletError(f"learner.clusters must be in 2..{videos}, the number of videos, not {clusters}")
        for name, value in {"every": every, "components": components}.items():
            if value < 1:
                raise TubeletError(f"learner.{name} must be 1 or more, not {value}")
        self.backbone = backbone
        self.clusters, self.every, self.components, self.strength = clusters, every, components, strength
        self.classifier = nn.Linear(backbone.dim, clusters)
        self.register_buffer("assignment", torch.full((videos,), -1))
        self.register_buffer("weight", torch.zeros(clusters))

    def before_step(self, now: Now) -> None:
        if now.new_epoch and now.epoch % self.every == 0:
            features, readable = encode_all(now.ordered(), self, self.embed)  # N D, N
            self.assign(features, readable)
            spread = draws.generator("deepcluster", now.epoch).standard_normal(tuple(self.classifier.weight.shape))
            restart(self.classifier.weight, 0.01 * torch.from_numpy(spread))
            restart(self.classifier.bias, torch.zeros(self.clusters))

    def assign(self, features: Tensor, readable: Tensor) -> None:
        """Clusters the features, N D, of those videos that can be read, N bool."""
        points = whitened(features[readable], self.components)
        _, found = kmeans(points, min(self.clusters, len(points)), seed=0)
        self.assignment.fill_(-1)
        self.assignment[readable] = found
        sizes = torch.bincount(found, minlength=self.clusters)
        self.weight.copy_(torch.where(sizes > 0, len(points) / (sizes.clamp(min=1) * (sizes > 0).sum()), 0))

    def forward(self, batch: Batch, phase: str) -> Output:
        if not self.weight.any():
            return Output(None)
        video = augmented(batch["video"][0], batch["key"], "deepcluster", self.strength)  # B C T H W
        logits = self.classifier(self.backbone(video).tokens.mean(dim=1)).float()  # B K
        cluster = self.assignment[batch["id"]]  # B
        known = cluster >= 0
        target = cluster.clamp(min=0)
        weight = self.weight[target] * known  # B
        error = F.cross_entropy(logits, target, reduction="none")  # B
        right = (logits.argmax(dim=1) == cluster).float().mean()
        return Output((weight * error).mean(), {"accuracy": right})
