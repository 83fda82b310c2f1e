"""XDC: the clusters of the sound are the classes of the pictures, and the reverse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.cluster import encode_all, kmeans, whitened
from tubelet.nn.heads import restart
from tubelet.nn.pairing import mean_present
from tubelet.nn.towers import audio_tower
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("xdc")
class Xdc(Learner):
    """Cross-modal deep clustering (Alwassel et al.: XDC, NeurIPS 2020).

    Source: Alwassel, Mahajan, Korbar, Torresani, Ghanem, Tran 2020, Self-supervised learning by cross-modal audio-video
    clustering, https://arxiv.org/abs/1911.12667, section 3.

    At the beginning of an epoch k-means clusters the features of each modality over the whole training set. Then each
    learns by cross-entropy which cluster the *other* put the video into; the classifiers start anew each time, as the
    clusters have other numbers. Features are whitened first (as in DeepCluster), the published ones are not. A silent
    video has no cluster of sound, and no clip of it is asked for one.

    Args:
        backbone: what turns clips into tokens.
        videos: how many rows the training manifest has.
        clusters: of each modality (published 64 to 256).
        every: epochs from one clustering to the next.
        components: principal components of the features that are clustered.
        audio_model: a sound encoder of transformers, folder or name, which stays as it is; None = a small one, trained.
        audio_dim: width of the small one.
        audio_depth: blocks of the small one's transformer.
        audio_rate: samples a second of the sound, as `data.audio_rate`.
    """

    modalities = ("video", "audio")
    compares_clips = True  # its loss is the mean over those that have sound
    seen: Tensor
    """N int64: the cluster of each video's pictures, by its `id`; -1 where there is none."""
    heard: Tensor
    """Likewise of its sound."""

    def __init__(
        self,
        backbone: Backbone,
        videos: int,
        clusters: int = 64,
        every: int = 1,
        components: int = 64,
        audio_model: str | None = None,
        audio_dim: int = 128,
        audio_depth: int = 2,
        audio_rate: int = 16000,
    ) -> None:
        super().__init__()
        if not 2 <= clusters <= videos:
            raise TubeletError(f"learner.clusters must be in 2..{videos}, the number of videos, not {clusters}")
        for name, value in {"every": every, "components": components}.items():
            if value < 1:
                raise TubeletError(f"learner.{name} must be 1 or more, not {value}")
        self.clusters, self.every, self.components, self.audio_rate = clusters, every, components, audio_rate
        self.backbone = backbone
        self.audio = audio_tower(audio_model, audio_dim, audio_depth, audio_rate)
        self.video_head = nn.Linear(backbone.dim, clusters)
        self.audio_head = nn.Linear(self.audio.dim, clusters)
        self.register_buffer("seen", torch.full((videos,), -1))
        self.register_buffer("heard", torch.full((videos,), -1))

    def before_step(self, now: Now) -> None:
        if now.new_epoch and now.epoch % self.every == 0:
            self.assign(now)
            heads = nn.ModuleDict({"video": self.video_head, "audio": self.audio_head})
            for name, parameter in heads.named_parameters():
                spread = draws.generator("xdc", name, now.epoch).standard_normal(tuple(parameter.shape))
                restart(parameter, 0.01 * torch.from_numpy(spread))

    def assign(self, now: Now) -> None:
        """Clusters what is seen and what is heard in all videos."""

        def encode(batch: Batch) -> Tensor:
            sound = self.audio(batch["audio"][0])  # B E
            present = batch["audio_present"][:, None].to(sound)  # B 1
            return torch.cat([self.embed(batch), sound, present], dim=1)  # B D+E+1

        features, readable = encode_all(now.ordered(), self, encode)  # N D+E+1, N
        video, sound, present = features.split([self.backbone.dim, self.audio.dim, 1], dim=1)
        for assignment, points, there in (
            (self.seen, video, readable), (self.heard, sound, readable & (present[:, 0] > 0)),
        ):  # fmt: skip
            assignment.fill_(-1)
            if there.any():
                found = whitened(points[there], self.components)
                assignment[there] = kmeans(found, min(self.clusters, len(found)), seed=now.epoch)[1]

    def forward(self, batch: Batch, phase: str) -> Output:
        if (self.heard < 0).all():
            return Output(None)
        ids, present = batch["id"], batch["audio_present"] & (self.heard[batch["id"]] >= 0)
        video = self.video_head(self.backbone(batch["video"][0]).tokens.mean(dim=1)).float()  # B K
        sound = self.audio_head(self.audio(batch["audio"][0])).float()  # B K
        seen, heard = self.seen[ids][present], self.heard[ids][present]
        loss = F.cross_entropy(video[present], heard, reduction="none") + F.cross_entropy(
            sound[present], seen, reduction="none"
        )
        right = (video[present].argmax(dim=1) == heard).float()
        return Output(mean_present(loss, present), {"accuracy": mean_present(right, present)})
