"""AVID: a clip is told from others by the memory of its sound, and its sound by the memory of the pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import draws
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.heads import Projector
from tubelet.nn.memory import Bank
from tubelet.nn.pairing import mean_present
from tubelet.nn.settings import check_positive, check_share
from tubelet.nn.towers import audio_tower
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("avid")
class Avid(Learner):
    """Discriminates instances across video and sound, with memories of both (Morgado et al.: AVID-CMA, CVPR 2021).

    Source: Morgado, Vasconcelos, Misra 2021, Audio-visual instance discrimination with cross-modal agreement,
    https://arxiv.org/abs/2004.12943: Cross-AVID (section 3.1) and, with ``agreement``, CMA (section 3.2).

    Each video has a slow average of both embeddings in two banks. A clip is to be nearer to the remembered sound of its
    video than to that of videos drawn at random, and its sound to the remembered pictures likewise. With CMA there are
    positives besides: the videos that resemble it in both at once (by the lesser of the two similarities), which it is
    to be near to *within* a modality. Negatives are normalised by a softmax over those drawn; the published runs
    estimate the normaliser (Wu et al. 2018). Banks begin at random, as published; after the first epoch a video that
    was not in it, or silent, is no negative, and it never agrees with another. A silent clip takes no part.

    Args:
        backbone: what turns clips into tokens.
        videos: how many rows the training manifest has.
        dim: width of the embeddings.
        negatives: how many videos are drawn for each clip.
        momentum: share of a remembered embedding that is kept when its video comes again.
        temperature: of the cosines.
        agreement: how many positives CMA finds for each video (published 32); 0 = AVID alone.
        agreement_from: share of the run after which it does, at the beginning of each epoch.
        audio_model: a sound encoder of transformers, folder or name, which stays as it is; None = a small one, trained.
        audio_dim: width of the small one.
        audio_depth: blocks of the small one's transformer.
        audio_rate: samples a second of the sound, as `data.audio_rate`.
    """

    modalities = ("video", "audio")
    compares_clips = True  # its loss is the mean over those that have sound
    agreeing: Tensor | None
    """N P int64: the videos that resemble each in both modalities; -1 where there is none, or none was looked for."""

    def __init__(
        self,
        backbone: Backbone,
        videos: int,
        dim: int = 128,
        negatives: int = 1024,
        momentum: float = 0.5,
        temperature: float = 0.07,
        agreement: int = 0,
        agreement_from: float = 0.5,
        audio_model: str | None = None,
        audio_dim: int = 128,
        audio_depth: int = 2,
        audio_rate: int = 16000,
    ) -> None:
        super().__init__()
        if not 0 <= agreement < videos:
            raise TubeletError(f"learner.agreement must be less than the {videos} videos, not {agreement}")
        check_positive(negatives=negatives, temperature=temperature)
        check_share(momentum=momentum)
        self.videos, self.negatives, self.temperature = videos, negatives, temperature
        self.agreement, self.agreement_from, self.audio_rate = agreement, agreement_from, audio_rate
        self.backbone = backbone
        self.audio = audio_tower(audio_model, audio_dim, audio_depth, audio_rate)
        self.video_head = Projector(backbone.dim, backbone.dim, dim, norm=False)
        self.audio_head = Projector(self.audio.dim, self.audio.dim, dim, norm=False)
        self.seen, self.heard = Bank(videos, dim, momentum), Bank(videos, dim, momentum)
        self.begun = False
        self.register_buffer("agreeing", torch.full((videos, agreement), -1) if agreement else None)

    def forward(self, batch: Batch, phase: str) -> Output:
        ids, present = batch["id"], batch["audio_present"]
        video = F.normalize(self.video_head(self.backbone(batch["video"][0]).tokens.mean(dim=1)).float(), dim=1)  # B D
        sound = F.normalize(self.audio_head(self.audio(batch["audio"][0])).float(), dim=1)  # B D
        self.seen.remember(ids, video, present)
        self.heard.remember(ids, sound, present)
        drawn = (draws.uniform(batch["key"], self.negatives, "negatives") * self.videos).long()  # B N
        own = ids[:, None]  # B 1
        loss = self.distance(video, self.heard, own, drawn) + self.distance(sound, self.seen, own, drawn)  # B
        if self.agreeing is not None and (self.agreeing >= 0).any():
            alike = self.agreeing[ids]  # B P
            loss = loss + self.distance(video, self.seen, alike, drawn) + self.distance(sound, self.heard, alike, drawn)
        return Output(mean_present(loss[present], present))

    def distance(self, queries: Tensor, bank: Bank, positives: Tensor, drawn: Tensor) -> Tensor:
        """How badly the queries tell each of their positives from the videos drawn, the mean over positives.

        Args:
            queries: B D.
            positives: B P, the videos that they are to be near to; -1 = none.
            drawn: B N; those among the positives do not count.

        Returns:
            B; 0 where there are no positives.
        """
        with torch.autocast(queries.device.type, enabled=False):  # as `products`
            near = torch.einsum("bd,bpd->bp", queries.float(), bank.values[positives]) / self.temperature  # B P
            far = torch.einsum("bd,bnd->bn", queries.float(), bank.values[drawn]) / self.temperature  # B N
        left_out = (drawn[..., None] == positives[:, None]).any(dim=2)  # B N
        if self.begun:
            left_out |= ~bank.known[drawn]
        far = far.masked_fill(left_out, -torch.inf)
        everything = torch.cat([near[..., None], far[:, None].expand(-1, near.shape[1], -1)], dim=2)  # B P 1+N
        there = positives >= 0  # B P
        return ((everything.logsumexp(dim=2) - near) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)  # B

    def before_step(self, now: Now) -> None:
        self.begun = now.epoch > 0
        for bank in (self.seen, self.heard):
            bank.forget()
        if self.agreeing is not None and now.new_epoch and now.done >= self.agreement_from:
            self.agreeing.copy_(agreeing(self.seen.values, self.heard.values, self.heard.known, self.agreement))

    def after_step(self, now: Now) -> None:
        for bank in (self.seen, self.heard):
            bank.push()


def agreeing(seen: Tensor, heard: Tensor, known: Tensor, count: int) -> Tensor:
    """The known videos (N bool) that resemble each one most in both modalities, by the lesser similarity: N count.

    Where there are fewer of them, -1.
    """
    found = []
    for rows in torch.arange(len(seen), device=seen.device).split(1024):
        alike = torch.minimum(seen[rows] @ seen.T, heard[rows] @ heard.T)  # R N
        alike[torch.arange(len(rows)), rows] = -torch.inf
        likeness, videos = alike.masked_fill(~known, -torch.inf).topk(count, dim=1)
        found.append(videos.masked_fill(likeness == -torch.inf, -1))
    return torch.cat(found)
