"""SwAV: the cluster that one view of a video is assigned to is predicted from another view of it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.cluster import sinkhorn
from tubelet.nn.heads import UNSEEN, Projector
from tubelet.nn.losses import products
from tubelet.nn.memory import Queue
from tubelet.nn.settings import check_positive
from tubelet.nn.views import augmented
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("swav")
class SwAV(Learner):
    """Swapped prediction of the cluster codes of two views (Caron et al.: SwAV, NeurIPS 2020).

    Source: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin 2020, Unsupervised learning of visual features by
    contrasting cluster assignments, https://arxiv.org/abs/2006.09882

    Each view is compared with K prototypes. Its code is its share in each, such that all are used equally in a batch
    (section 3.1, Sinkhorn); the loss is the cross-entropy of each view's softmax and the other's code (equation 2). On
    video, two clips of other times of one video are views, as in Feichtenhofer et al. 2021
    (https://arxiv.org/abs/2104.14558). There is no multi-crop: all views are of one size.

    Args:
        backbone: what turns clips into tokens.
        prototypes: K, how many clusters.
        dim: width of what is compared with them.
        hidden: width of the inner layer of the projector.
        temperature: of the softmax that predicts a code.
        epsilon: of the codes: less makes them harder.
        iterations: of the Sinkhorn algorithm.
        frozen_epochs: epochs in which the prototypes stay as they are.
        queue: clips of earlier batches that codes are made with, for batches that are small beside the prototypes
            (published 3840); 0 = none. It is used once it is full.
        queue_epochs: epochs before the queue begins.
        strength: how views are changed in colour and sharpness: not at all ("none"), which flow needs, as by MoCo v2
            ("moco") or by PySlowFast ("slowfast").
    """

    views = 2
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        prototypes: int = 1000,
        dim: int = 128,
        hidden: int = 2048,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        frozen_epochs: int = 1,
        queue: int = 0,
        queue_epochs: int = 15,
        strength: Literal["none", "moco", "slowfast"] = "slowfast",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, epsilon=epsilon)
        if queue < 0:
            raise TubeletError(f"learner.queue must be 0 (none) or more, not {queue}")
        for name, value in {"prototypes": prototypes, "iterations": iterations}.items():
            if value < 1:
                raise TubeletError(f"learner.{name} must be 1 or more, not {value}")
        self.backbone = backbone
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.frozen_epochs, self.queue_epochs, self.strength = frozen_epochs, queue_epochs, strength
        self.project = Projector(backbone.dim, hidden, dim)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))  # K D
        self.queue = Queue(queue, first=dim, second=dim) if queue else None
        self.frozen = self.queueing = False

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in super().parameters_of(phase) if name != UNSEEN]

    def forward(self, batch: Batch, phase: str) -> Output:
        prototypes = self.prototypes
        if self.frozen:  # a gradient of zero, not none: processes that train together wait for one of every weight
            prototypes = prototypes.detach() + 0 * prototypes
        features = [self.encode(video, batch["key"], f"view {v}") for v, video in enumerate(batch["video"])]  # V x B D
        scores = [products(one, prototypes) for one in features]  # V x B K
        codes = [self.code(one, column) for one, column in zip(scores, ("first", "second"), strict=True)]  # V x B K
        guesses = [F.log_softmax(one / self.temperature, dim=1) for one in scores]  # V x B K
        right = torch.stack([code * guess for code, guess in zip(codes, reversed(guesses), strict=True)])  # V B K
        loss = -right.sum(dim=2).mean()
        if self.queueing and self.queue is not None:
            self.queue.remember(first=features[0], second=features[1])
        agree = codes[0].argmax(dim=1) == codes[1].argmax(dim=1)  # B
        return Output(loss, {"agreement": agree.float().mean()})

    def encode(self, video: Tensor, keys: Tensor, stream: str) -> Tensor:
        """The unit vector of a view: B C T H W -> B D float32."""
        video = augmented(video, keys, stream, self.strength)
        return F.normalize(self.project(self.backbone(video).tokens.mean(dim=1)).float(), dim=1)  # B D

    def code(self, scores: Tensor, column: str) -> Tensor:
        """Shares in the prototypes, B K: of the batch and, where there is a full queue, of earlier ones, together."""
        earlier = None
        if self.queueing and self.queue is not None and self.queue.full:
            earlier = products(self.queue.get_buffer(column), self.prototypes.detach())  # Q K
        return sinkhorn(scores.detach(), self.epsilon, self.iterations, earlier)

    def before_step(self, now: Now) -> None:
        self.frozen, self.queueing = now.epoch < self.frozen_epochs, now.epoch >= self.queue_epochs
        if self.queue is not None:
            self.queue.forget()

    @torch.no_grad()
    def after_step(self, now: Now) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        if self.queue is not None:
            self.queue.push()
