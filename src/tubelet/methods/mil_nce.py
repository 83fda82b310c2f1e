"""MIL-NCE: a clip is matched with several candidate captions, of which one that fits is enough."""

from __future__ import annotations

from torch import nn

from tubelet.learner import Backbone, Learner
from tubelet.nn import pairing
from tubelet.nn.towers import candidates, text_tower
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("mil_nce")
class MilNce(Learner):
    """Learns from narrations that may be about something else (Miech et al.: MIL-NCE, CVPR 2020).

    Source: Miech, Alayrac, Smaira, Laptev, Sivic, Zisserman 2020, End-to-end learning of visual representations from
    uncurated instructional videos, https://arxiv.org/abs/1912.06430, equation 1.

    The candidates of a clip are the sentences of its caption (separated by ``|``), where the paper takes those that are
    nearest in time; of more than ``candidates`` some are drawn. Similarity is the plain product, without norm or
    temperature, as published. The word table is learnt, the published one is word2vec's, frozen (``text_model`` would
    be such). A clip without a caption takes no part.

    Args:
        backbone: what turns clips into tokens.
        dim: width of the space that both are mapped into (published 512).
        candidates: how many captions a clip is matched with (published 5).
        text_model: a text encoder of transformers, folder or name, which stays as it is; None = a small one, trained.
        text_dim: width of the small one (published: words of 300, then 2048).
        text_depth: blocks of the small one's transformer; 0 = the largest value over the words, as published.
        words: rows of the small one's table of words, which are found by a hash (published 66 thousand).
    """

    modalities = ("video", "text")
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        candidates: int = 3,
        text_model: str | None = None,
        text_dim: int = 128,
        text_depth: int = 0,
        words: int = 4096,
    ) -> None:
        super().__init__()
        if candidates < 1:
            raise TubeletError(f"learner.candidates must be 1 or more, not {candidates}")
        self.candidates = candidates
        self.backbone = backbone
        self.text = text_tower(text_model, text_dim, text_depth, words)
        self.video_head = nn.Linear(backbone.dim, dim)
        self.text_head = nn.Linear(self.text.dim, dim)

    def forward(self, batch: Batch, phase: str) -> Output:
        texts, said = candidates(batch["text"][0], batch["key"], self.candidates)  # BP, B P
        seen = self.video_head(self.backbone(batch["video"][0]).tokens.mean(dim=1))  # B D
        read = self.text_head(self.text(texts)).unflatten(0, said.shape)  # B P D
        loss = pairing.mil_nce(seen, read, said, batch["id"])
        return Output(loss, {"recall": pairing.recall(seen, read, said, batch["id"])})
