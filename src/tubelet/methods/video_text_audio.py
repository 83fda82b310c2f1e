"""MMV: video, sound and words in two spaces, a fine one for what sounds and a coarse one for what is said."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner
from tubelet.nn.heads import Projector
from tubelet.nn.pairing import mil_nce, recall, symmetric
from tubelet.nn.settings import check_positive
from tubelet.nn.towers import audio_tower, candidates, text_tower
from tubelet.registry import register
from tubelet.types import Batch, Output


@register("video_text_audio")
class VideoTextAudio(Learner):
    """Multimodal versatile networks, fine and coarse (Alayrac et al.: MMV-FAC, NeurIPS 2020).

    Source: Alayrac, Recasens, Schneider, Arandjelovic, Ramapuram, De Fauw, Smaira, Dieleman, Zisserman 2020,
    Self-supervised multimodal versatile networks, https://arxiv.org/abs/2006.16228, sections 3.1 and 3.2.

    Video and sound are mapped into a fine space, where InfoNCE brings them together; from there into a coarse one,
    which words are mapped into too, where MIL-NCE brings video and words together. Where a clip is silent or has no
    caption that part of the loss leaves it out. Heads have no batch norm here, since batches are small.

    Args:
        backbone: what turns clips into tokens.
        fine: width of the space of video and sound (published 512).
        coarse: width of the space that words are in too (published 256).
        temperature: of the cosines in both.
        text_weight: weight of MIL-NCE beside InfoNCE.
        candidates: how many captions a clip is matched with: sentences separated by ``|``.
        text_model: a text encoder of transformers, folder or name, which stays as it is; None = a small one, trained.
        text_dim: width of the small one.
        text_depth: blocks of the small one's transformer; 0 = the largest value over the words, as published.
        words: rows of the small one's table of words, which are found by a hash.
        audio_model: a sound encoder of transformers, folder or name, which stays as it is; None = a small one, trained.
        audio_dim: width of the small one.
        audio_depth: blocks of the small one's transformer.
        audio_rate: samples a second of the sound, as `data.audio_rate`.
    """

    modalities = ("video", "audio", "text")
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        fine: int = 128,
        coarse: int = 64,
        temperature: float = 0.07,
        text_weight: float = 1.0,
        candidates: int = 3,
        text_model: str | None = None,
        text_dim: int = 128,
        text_depth: int = 0,
        words: int = 4096,
        audio_model: str | None = None,
        audio_dim: int = 128,
        audio_depth: int = 2,
        audio_rate: int = 16000,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, candidates=candidates)
        self.temperature, self.text_weight, self.candidates = temperature, text_weight, candidates
        self.audio_rate = audio_rate
        self.backbone = backbone
        self.text = text_tower(text_model, text_dim, text_depth, words)
        self.audio = audio_tower(audio_model, audio_dim, audio_depth, audio_rate)
        self.video_head = Projector(backbone.dim, backbone.dim, fine, norm=False)
        self.audio_head = nn.Linear(self.audio.dim, fine)
        self.coarse_head = Projector(fine, fine, coarse, norm=False)
        self.text_head = nn.Linear(self.text.dim, coarse)

    def forward(self, batch: Batch, phase: str) -> Output:
        heard = batch["audio_present"]  # B
        texts, said = candidates(batch["text"][0], batch["key"], self.candidates)  # BP, B P
        video = self.video_head(self.backbone(batch["video"][0]).tokens.mean(dim=1))  # B fine
        seen, coarse = unit(video), unit(self.coarse_head(video))  # B fine, B coarse
        sound = unit(self.audio_head(self.audio(batch["audio"][0])))  # B fine
        words = unit(self.text_head(self.text(texts))).unflatten(0, said.shape)  # B P coarse
        with_sound = symmetric(seen, sound, heard, batch["id"], self.temperature)
        with_words = mil_nce(coarse, words, said, batch["id"], self.temperature)
        found: dict[str, float | Tensor] = {
            "audio_loss": with_sound.detach(), "text_loss": with_words.detach(),
            "audio_recall": recall(seen, sound[:, None], heard[:, None], batch["id"]),
            "text_recall": recall(coarse, words, said, batch["id"]),
        }  # fmt: skip
        return Output(with_sound + self.text_weight * with_words, found)


def unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1)
