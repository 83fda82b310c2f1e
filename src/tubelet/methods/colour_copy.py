"""Colour copy: the colours of a frame that are hidden from the network are copied from the frames before it.

Vondrick, Shrivastava, Fathi, Guadarrama, Murphy: Tracking Emerges by Colorizing Videos, ECCV 2018,
https://arxiv.org/abs/1806.09594; Lai, Xie: Self-supervised Learning for Video Correspondence Flow (CorrFlow), BMVC
2019, https://arxiv.org/abs/1905.00875
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn.affinity import copy, needs_background, neighbours, still
from tubelet.nn.colour import to_lab, to_rgb
from tubelet.nn.settings import check_positive
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

MIDDLE = (50.0, 0.0, 0.0)
"""What stands in a hidden channel of Lab."""
REACH = (50.0, 100.0, 100.0)
"""How far the values of a channel lie from its middle, at most (of a and b hardly any do)."""


@register("colour_copy")
class ColourCopy(Learner):
    """Tokens that are alike in the grey of two frames must agree in the colours that were hidden from both.

    Each token of a frame points to those of the frames before it by the softmax of cosine / temperature, and the mean
    of their true colours, so weighted, is the guess of its own (Vondrick, equation 1). Which channels of Lab are hidden
    is drawn for each clip: as in CorrFlow any one of the three, or as in Vondrick the two of colour. Colours are the
    means over the pixels of a token.

    Args:
        backbone: sees each frame alone, repeated to the length of a cube; it must keep the background.
        hidden: the "colour" channels a and b, or "any" one of L, a and b, drawn for each clip.
        target: what is copied: values in "lab", by the Huber loss, or "quantised" ones, by cross-entropy: each channel
            in equal bins, which stand for Vondrick's clusters of colours.
        bins: of each channel where it is quantised.
        references: how many frames just before may be copied from.
        radius: rows and columns of tokens from which may be copied; 0 = from anywhere.
        dim: width in which tokens are compared.
        temperature: of the softmax over cosines.
    """

    def __init__(
        self,
        backbone: Backbone,
        hidden: Literal["any", "colour"] = "any",
        target: Literal["lab", "quantised"] = "lab",
        bins: int = 16,
        references: int = 2,
        radius: int = 0,
        dim: int = 64,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        needs_background(backbone, "colour_copy")
        least = {"bins": (bins, 2), "references": (references, 1), "radius": (radius, 0)}
        for name, (value, smallest) in least.items():
            if value < smallest:
                raise TubeletError(f"learner.{name} must be {smallest} or more, not {value}")
        check_positive(temperature=temperature)
        self.backbone = backbone
        self.hidden: Literal["any", "colour"] = hidden
        self.target: Literal["lab", "quantised"] = target
        self.bins, self.references, self.radius, self.temperature = bins, references, radius, temperature
        self.head = nn.Linear(backbone.dim, dim)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T H W
        frames, height, width = video.shape[2:]
        if frames < 2:
            raise TubeletError("colour_copy needs clips of two frames or more: raise data.frames")
        _, rows, columns = self.backbone.grid(self.backbone.config["tubelet"], height, width)
        lab = to_lab(video.permute(0, 2, 3, 4, 1))  # B T H W 3
        hidden = self.channels(batch["key"])  # B 3
        tokens = self.embedded(lab, hidden)  # B T N D
        colours = F.adaptive_avg_pool2d(lab.flatten(0, 1).permute(0, 3, 1, 2), (rows, columns))  # B*T 3 h w
        colours = colours.flatten(2).mT.unflatten(0, (-1, frames))  # B T N 3
        values = binned(colours, self.bins) if self.target == "quantised" else colours / colours.new_tensor(REACH)
        near = neighbours((rows, columns), self.radius, video.device) if self.radius else None  # N N
        guesses = []
        for t in range(1, frames):
            seen = slice(max(0, t - self.references), t)
            allowed = None if near is None else near.repeat(1, seen.stop - seen.start)
            of_them = values[:, seen].flatten(1, 2)  # B r*N C
            keys = tokens[:, seen].flatten(1, 2)  # B r*N D
            guesses.append(copy(of_them, tokens[:, t], keys, self.temperature, allowed))  # B N C
        guess = torch.stack(guesses, dim=1)  # B T-1 N C
        return Output(self.error(guess, values[:, 1:], hidden))

    def channels(self, keys: Tensor) -> Tensor:
        """Which channels of Lab are hidden from each clip: B 3 bool, True = hidden."""
        if self.hidden == "colour":
            return torch.tensor([False, True, True], device=keys.device).expand(len(keys), 3)
        return F.one_hot((draws.uniform(keys, 1, "hidden channel")[:, 0] * 3).long(), 3).bool()

    def embedded(self, lab: Tensor, hidden: Tensor) -> Tensor:
        """The tokens of each frame without its hidden channels, in the width of the comparison: B T N D."""
        batch, frames = lab.shape[:2]
        seen = torch.where(hidden[:, None, None, None], lab.new_tensor(MIDDLE), lab)  # B T H W 3
        pictures = to_rgb(seen).permute(0, 1, 4, 2, 3).flatten(0, 1)  # B*T 3 H W
        return self.head(still(self.backbone, pictures)).unflatten(0, (batch, frames))  # B T N D

    def error(self, guess: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """The mean loss over the hidden channels; every clip weighs the same.

        Args:
            guess: B T N 3, or B T N 3*K where values are quantised.
            values: likewise, the truth.
            hidden: B 3.
        """
        if self.target == "lab":
            loss = F.huber_loss(guess, values, reduction="none", delta=0.1)  # B T N 3
        else:
            shares, truth = (part.unflatten(-1, (3, self.bins)) for part in (guess, values))  # B T N 3 K
            loss = -((shares * truth).sum(dim=-1) + 1e-6).log()  # B T N 3
        of_channel = hidden.float() / hidden.sum(dim=1, keepdim=True)  # B 3
        return (loss.mean(dim=(1, 2)) * of_channel).sum(dim=1).mean()


def binned(colours: Tensor, bins: int) -> Tensor:
    """Colours of Lab, ... 3, with each channel in one of equal bins: ... 3*K, a one in each channel."""
    middle, reach = colours.new_tensor(MIDDLE), colours.new_tensor(REACH)
    place = ((colours - middle + reach) / (2 * reach) * bins).long().clamp(0, bins - 1)  # ... 3
    return F.one_hot(place, bins).flatten(-2).float()
