"""VideoMAE: hide most of a video in tubes, and predict the hidden pixels from the few that are left."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner
from tubelet.nn import masks, positions
from tubelet.nn.patches import cubes, join
from tubelet.nn.transformer import Block, start_weights
from tubelet.registry import register
from tubelet.types import Batch, Grid, Output, TubeletError


class Reconstruction(NamedTuple):
    """What the learner sees and imagines; videos are B C T H W in [0, 1]."""

    original: Tensor
    masked: Tensor
    """The original with the hidden cubes grey."""
    reconstructed: Tensor
    """The visible cubes as they are, the hidden ones as predicted."""
    hidden: Tensor
    """B N, True = hidden."""
    told: str
    """What the hidden cubes were given besides the prediction, for whoever looks at the picture."""


@register("videomae")
class VideoMAE(Learner):
    """Masked autoencoding of video (Tong, Song, Wang, Wang: VideoMAE, NeurIPS 2022).

    The encoder sees only the visible cubes; a small decoder sees them and a mask token in each hidden place, and
    predicts the pixels of the hidden cubes. The loss is the mean squared error over hidden cubes only (equation 2).

    Args:
        ratio: share of the cubes that is hidden.
        mask: "tube" hides the same places in every frame, "random" any cubes, "frame" whole frames.
        decoder_dim: width of the decoder; None = half of the backbone's.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder; None = one for each 64 of its width, at least 1.
        normalise: predict pixels relative to the mean and deviation of their own cube and channel, as published.
    """

    def __init__(
        self,
        backbone: Backbone,
        ratio: float = 0.9,
        mask: Literal["tube", "random", "frame"] = "tube",
        decoder_dim: int | None = None,
        decoder_depth: int = 4,
        decoder_heads: int | None = None,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.ratio, self.mask, self.normalise = backbone, ratio, mask, normalise
        self.patch, self.tubelet = backbone.config["patch"], backbone.config["tubelet"]
        self.positions = backbone.config["positions"]
        if mask != "tube" and backbone.config.get("background") == "remove":
            raise TubeletError(
                f"learner.mask {mask} with backbone.background remove would show what is hidden, through the mean over "
                "time: use learner.mask tube or backbone.background keep"
            )
        dim = decoder_dim or backbone.dim // 2
        heads = decoder_heads or max(1, dim // 64)
        if dim % heads:
            raise TubeletError(f"learner.decoder_heads ({heads}) must divide learner.decoder_dim ({dim})")
        self.enter = nn.Linear(backbone.dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 3 * self.tubelet * self.patch**2)
        self.blocks.apply(start_weights)
        start_weights(self.head)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T H W in [0, 1]
        hidden = masks.KINDS[self.mask](batch["key"], self.backbone.grid(*video.shape[2:]), self.ratio)  # B N
        seen, grid = self.backbone(video, hidden)  # B N-M D
        guess = self.decode(self.enter(seen), hidden, grid)  # B M P
        return Output(F.mse_loss(guess.float(), self.target(video, hidden)))

    def decode(self, seen: Tensor, hidden: Tensor, grid: Grid) -> Tensor:
        """Predicts the hidden cubes: B N-M D -> B M P. Visible tokens come first and are never put back in order."""
        place = positions.table(self.positions, grid, seen.shape[-1], seen.device)[None]  # 1 N D
        seen = seen + masks.visible(place, hidden)
        asked = self.mask_token + masks.masked(place, hidden)  # B M D
        tokens = torch.cat([seen, asked.to(seen.dtype)], dim=1)  # B N D
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, -asked.shape[1] :]))  # B M P

    def target(self, video: Tensor, hidden: Tensor) -> Tensor:
        """What the hidden cubes should read: B M P, ordered frame, row, column, channel (channel innermost)."""
        pieces = cubes(self.backbone.prepare(video), self.tubelet, self.patch)  # B N C tubelet patch patch
        pixels = masks.masked(pieces, hidden)  # B M C tubelet patch patch
        pixels = pixels.flatten(3).float()  # B M C p
        if self.normalise:
            mean, deviation = self.statistics(pixels)
            pixels = (pixels - mean) / deviation
        return pixels.transpose(2, 3).flatten(2)  # B M P

    @staticmethod
    def statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each cube and channel (last axis); unbiased, 1e-6 outside the root, as published."""
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        return mean, variance.sqrt() + 1e-6

    @torch.no_grad()
    def reconstruct(
        self, video: Tensor, hidden: Tensor | None = None, keys: Tensor | None = None, true_statistics: bool = True
    ) -> Reconstruction:
        """Hides cubes of ``video`` (B C T H W) and fills them in again.

        A learner trained on normalised pixels predicts each cube up to its mean and deviation. With
        ``true_statistics`` these are taken from the original, which flatters the picture; without, from the nearest
        visible place of the same frame.

        Args:
            hidden: B N; drawn from ``keys`` (B int64; zeros when not given) otherwise.
        """
        grid = self.backbone.grid(*video.shape[2:])
        if hidden is None:
            keys = torch.zeros(len(video), dtype=torch.int64, device=video.device) if keys is None else keys
            hidden = masks.KINDS[self.mask](keys, grid, self.ratio)  # B N
        prepared = self.backbone.prepare(video)
        pieces = cubes(prepared, self.tubelet, self.patch)  # B N C tubelet patch patch
        guess = self.decode(self.enter(self.backbone(video, hidden).tokens), hidden, grid).float()  # B M P
        guess = guess.unflatten(2, (-1, 3)).transpose(2, 3)  # B M C p
        if self.normalise:
            mean, deviation = self.statistics(pieces.flatten(3))  # B N C 1
            if not true_statistics:
                source = nearest_visible(hidden, grid)[..., None, None].expand_as(mean)  # B N C 1
                mean, deviation = mean.gather(1, source), deviation.gather(1, source)
            guess = guess * masks.masked(deviation, hidden) + masks.masked(mean, hidden)
        filled, grey = pieces.clone(), cubes(video, self.tubelet, self.patch).clone()
        filled[hidden] = guess.reshape(-1, *pieces.shape[2:])
        grey[hidden] = 0.5
        # a background that the encoder never sees is put back as it is
        shown = join(hidden[..., None, None, None, None].expand_as(filled), grid)  # B C T H W
        whole = torch.where(shown, join(filled, grid) + (video - prepared), video)
        return Reconstruction(video, join(grey, grid), whole.clamp(0, 1), hidden, self.told(true_statistics))

    def told(self, true_statistics: bool) -> str:
        """What a reconstruction takes from elsewhere than the prediction."""
        if not self.normalise:
            text = "brightness and contrast are predicted"
        elif true_statistics:
            text = "the true brightness and contrast of each hidden cube, which flatters the picture"
        else:
            text = "brightness and contrast of the nearest visible cube"
        removed = self.backbone.config.get("background") == "remove"
        return f"{text}; the still background is that of the original" if removed else text


def nearest_visible(hidden: Tensor, grid: Grid) -> Tensor:
    """For each cube the index of the nearest visible one, in its own frame before any other: B N -> B N int64."""
    axes = torch.meshgrid(*(torch.arange(n, device=hidden.device) for n in grid), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], dim=1).float()  # N 3
    place[:, 0] *= grid[1] + grid[2]  # another frame is farther than any place of this one
    distance = torch.cdist(place, place)[None].expand(len(hidden), -1, -1)  # B N N
    return distance.masked_fill(hidden[:, None, :], torch.inf).argmin(dim=2)  # B N
