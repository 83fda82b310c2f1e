"""CLIP for video: a clip finds its caption among those of the batch, and a caption its clip."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner, Now
from tubelet.nn.pairing import recall, symmetric
from tubelet.nn.towers import candidates, text_tower, words_of
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

LARGEST_SCALE = 100.0
"""Of one over the temperature, as published: a larger one makes training unstable."""


@register("clip")
class Clip(Learner):
    """Tells by symmetric InfoNCE which caption is a clip's (Radford et al.: CLIP, ICML 2021), as VideoCLIP does.

    Sources: Radford et al. 2021, Learning transferable visual models from natural language supervision,
    https://arxiv.org/abs/2103.00020 (figure 3; the learnt temperature and its limit: section 2.5); Xu et al. 2021,
    VideoCLIP, EMNLP, https://arxiv.org/abs/2109.14084 (equations 3 and 4, video and text of one dual encoder).

    Both towers are trained from the start, unlike VideoCLIP's, and batches are random, not made of neighbours. Clips of
    a batch with the same words count as right for each other: in small corpora many captions are alike. A caption with
    several sentences (separated by ``|``) gives one of them at a time, drawn. A clip without a caption takes no part.

    Args:
        backbone: what turns clips into tokens.
        dim: width of the space that both are mapped into.
        temperature: with which training starts; it is learnt.
        text_model: a text encoder of transformers, folder or name, which stays as it is; None = a small one, trained.
        text_dim: width of the small one.
        text_depth: blocks of the small one's transformer; 0 = the largest value over the words, as in MIL-NCE.
        words: rows of the small one's table of words, which are found by a hash.
    """

    modalities = ("video", "text")
    compares_clips = True

    def __init__(
        self,
        backbone: Backbone,
        dim: int = 128,
        temperature: float = 0.07,
        text_model: str | None = None,
        text_dim: int = 128,
        text_depth: int = 2,
        words: int = 4096,
    ) -> None:
        super().__init__()
        if not 1 / LARGEST_SCALE <= temperature < math.inf:
            raise TubeletError(f"learner.temperature must be {1 / LARGEST_SCALE:g} or more, not {temperature:g}")
        self.backbone = backbone
        self.text = text_tower(text_model, text_dim, text_depth, words)
        self.video_head = nn.Linear(backbone.dim, dim, bias=False)
        self.text_head = nn.Linear(self.text.dim, dim, bias=False)
        # of the cosines, its logarithm; not a scalar, which could not be sharded
        self.scale = nn.Parameter(torch.tensor([-math.log(temperature)]))

    def embed_text(self, texts: list[str]) -> Tensor:
        """Unit vectors in the common space, B D."""
        return F.normalize(self.text_head(self.text(texts)).float(), dim=1)

    def embed_video(self, video: Tensor) -> Tensor:
        """Likewise of clips, B C T H W in [0, 1]."""
        return F.normalize(self.video_head(self.backbone(video).tokens.mean(dim=1)).float(), dim=1)

    def forward(self, batch: Batch, phase: str) -> Output:
        texts, said = candidates(batch["text"][0], batch["key"], 1)  # B, B 1
        seen, read = self.embed_video(batch["video"][0]), self.embed_text(texts)  # B D each
        names = torch.tensor([draws.key("words", *words_of(text)) for text in texts], device=said.device)  # B
        loss = symmetric(seen * self.scale.exp(), read, said[:, 0], names, 1.0)
        found = recall(seen, read[:, None], said, names)
        return Output(loss, {"recall": found, "temperature": (-self.scale.detach()).exp()[0]})

    def after_step(self, now: Now) -> None:
        with torch.no_grad():
            self.scale.clamp_(max=math.log(LARGEST_SCALE))
