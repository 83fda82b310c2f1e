"""A plain Vision Transformer with joint space-time attention over cubes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.learner import Backbone
from tubelet.nn import masks, positions
from tubelet.nn.patches import CubeEmbedding, cube_grid, cubes
from tubelet.nn.transformer import Block, start_weights
from tubelet.registry import register
from tubelet.types import Features, Grid, TubeletError

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3, "mlp": 4.0},
    "small": {"dim": 384, "depth": 12, "heads": 6, "mlp": 4.0},
    "base": {"dim": 768, "depth": 12, "heads": 12, "mlp": 4.0},
    "large": {"dim": 1024, "depth": 24, "heads": 16, "mlp": 4.0},
    "huge": {"dim": 1280, "depth": 32, "heads": 16, "mlp": 4.0},
    "giant": {"dim": 1408, "depth": 40, "heads": 16, "mlp": 48 / 11},
}
"""The published sizes (VideoMAE V1 and V2; "giant" has patches of 14)."""


@register("vit")
class VisionTransformer(Backbone):
    """A plain ViT over space-time cubes (Dosovitskiy 2021; Tong 2022 section 3.1), any clip length and picture size.

    Args:
        size: a published size; any of the next four replaces its number.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads; they divide the width.
        mlp: width of the MLP's inner layer, in token widths.
        patch: side of a cube in pixels.
        tubelet: length of a cube in frames.
        drop_path: share of residual branches left out in the last block; it grows linearly from 0 in the first.
        positions: "flat" is the published table over the flattened index, "separable" has one table an axis.
        background: "keep" is as published; "remove" takes each pixel's mean over the clip out of it, so that only what
            changes is seen. It suits cameras that hardly move, and small budgets.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        size: Literal["tiny", "small", "base", "large", "huge", "giant"] = "base",
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        mlp: float | None = None,
        patch: int = 16,
        tubelet: int = 2,
        drop_path: float = 0.0,
        positions: Literal["flat", "separable"] = "flat",
        background: Literal["keep", "remove"] = "keep",
    ) -> None:
        super().__init__()
        given = {"dim": dim, "depth": depth, "heads": heads, "mlp": mlp}
        shape = SIZES[size] | {name: value for name, value in given.items() if value is not None}
        for name, value in {**shape, "patch": patch, "tubelet": tubelet}.items():
            if value < (0 if name == "depth" else 1):
                raise TubeletError(f"backbone.{name} must be 1 or more, not {value}")
        if not 0 <= drop_path < 1:
            raise TubeletError(f"backbone.drop_path must be in 0..1 (1 excluded), not {drop_path:g}")
        if shape["dim"] % shape["heads"]:
            raise TubeletError(f"backbone.heads ({shape['heads']}) must divide backbone.dim ({shape['dim']})")
        self.config = {
            "name": "vit", "size": size, **given, "patch": patch, "tubelet": tubelet,
            "drop_path": drop_path, "positions": positions, "background": background,
        }  # fmt: skip
        self.dim, self.patch, self.tubelet = shape["dim"], patch, tubelet
        self.positions, self.background = positions, background
        self.embed = CubeEmbedding(self.dim, tubelet, patch)
        rates = [drop_path * i / max(1, shape["depth"] - 1) for i in range(shape["depth"])]
        self.blocks = nn.ModuleList(Block(self.dim, shape["heads"], shape["mlp"], rate) for rate in rates)
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.blocks.apply(start_weights)
        # ImageNet's mean and standard deviation, as published; inside, so that weights need nothing beside them
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1), persistent=False)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return cube_grid(frames, height, width, self.tubelet, self.patch)

    def forward(self, video: Tensor, hidden: Tensor | None = None) -> Features:
        grid = self.grid(*video.shape[2:])
        pieces = cubes(self.prepare(video), self.tubelet, self.patch)  # B N C tubelet patch patch
        place = positions.table(self.positions, grid, self.dim, video.device)[None]  # 1 N D
        if hidden is not None:
            pieces = masks.visible(pieces, hidden)  # B N-M C tubelet patch patch
            place = masks.visible(place, hidden)  # B N-M D
        tokens = self.embed((pieces - self.mean) / self.deviation) + place  # B N-M D
        for block in self.blocks:
            tokens = block(tokens)
        return Features(self.norm(tokens), grid)

    def prepare(self, video: Tensor) -> Tensor:
        if self.background == "keep":
            return video
        # what is removed leaves the mean colour of the world behind, which the normalisation turns into zero
        return video - video.mean(dim=2, keepdim=True) + self.mean

    def layers(self) -> list[list[nn.Parameter]]:
        groups = [self.embed, *self.blocks, self.norm]
        return [list(group.parameters()) for group in groups]
