"""A plain Vision Transformer with joint space-time attention over cubes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tubelet.learner import Backbone
from tubelet.nn import masks
from tubelet.nn.patches import CubeEmbedding, cube_grid, cubes, inflated
from tubelet.nn.positions import Positions
from tubelet.nn.transformer import Block, run_blocks, start_weights
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

ADJUSTABLE = ("size", "drop_path", "checkpointing", "last_norm", "made_for", "tubelet")
"""Settings in which a network may differ from the one whose weights it starts from."""


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
        positions: "flat" is the published table over the flattened index, "separable" has one table an axis, "learned"
            a learnt one for space and one for time (mae_st).
        made_for: frames, height and width of the clips whose positions are used as they are; those of other clips are
            interpolated from them. None = the clips of the recipe.
        background: "keep" is as published; "remove" takes each pixel's mean over the clip out of it, so that only what
            changes is seen. It suits cameras that hardly move, and small budgets.
        class_token: a learnt token that takes part in the attention, as in image ViTs and mae_st; it is not among the
            tokens that come out.
        last_norm: a LayerNorm after the last block. Published fine-tuned networks have none: their head has it.
        attention: "softmax" of scaled products, or "cosine" (VideoMAE V2's option).
        checkpointing: keep less for the backward pass and compute it again there: less memory, a third more work.
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
        positions: Literal["flat", "separable", "learned"] = "flat",
        made_for: tuple[int, int, int] | None = None,
        background: Literal["keep", "remove"] = "keep",
        class_token: bool = False,
        last_norm: bool = True,
        attention: Literal["softmax", "cosine"] = "softmax",
        checkpointing: bool = False,
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
            "name": "vit", "size": size, **given, "patch": patch, "tubelet": tubelet, "drop_path": drop_path,
            "positions": positions, "made_for": None if made_for is None else list(made_for),
            "background": background, "class_token": class_token, "last_norm": last_norm, "attention": attention,
            "checkpointing": checkpointing,
        }  # fmt: skip
        self.shape = shape
        self.dim, self.patch, self.tubelet = shape["dim"], patch, tubelet
        self.background, self.checkpointing = background, checkpointing
        self.embed = CubeEmbedding(self.dim, tubelet, patch)
        self.place = Positions(positions, self.dim, None if made_for is None else self.grid(*made_for))
        self.class_token = nn.Parameter(torch.empty(self.dim)) if class_token else None
        rates = [drop_path * i / max(1, shape["depth"] - 1) for i in range(shape["depth"])]
        cosine = attention == "cosine"
        self.blocks = nn.ModuleList(Block(self.dim, shape["heads"], shape["mlp"], rate, cosine) for rate in rates)
        self.norm = nn.LayerNorm(self.dim, eps=1e-6) if last_norm else nn.Identity()
        self.blocks.apply(start_weights)
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)
        # ImageNet's mean and standard deviation, as published; inside, so that weights need nothing beside them
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1), persistent=False)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return cube_grid(frames, height, width, self.tubelet, self.patch)

    def forward(self, video: Tensor, hidden: Tensor | None = None) -> Features:
        grid = self.grid(*video.shape[2:])
        pieces = cubes(self.prepare(video), self.tubelet, self.patch)  # B N C tubelet patch patch
        place = self.place(grid, video.device)[None]  # 1 N D
        if hidden is not None:
            pieces = masks.visible(pieces, hidden)  # B N-M C tubelet patch patch
            place = masks.visible(place, hidden)  # B N-M D
        tokens = self.embed((pieces - self.mean) / self.deviation) + place  # B N-M D
        if self.class_token is not None:
            first = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)  # B 1 D
            tokens = torch.cat([first, tokens], dim=1)  # B 1+N-M D
        tokens = self.norm(run_blocks(self.blocks, tokens, self.checkpointing))
        return Features(tokens if self.class_token is None else tokens[:, 1:], grid)  # B N-M D

    def prepare(self, video: Tensor) -> Tensor:
        if self.background == "keep":
            return video
        # what is removed leaves the mean colour of the world behind, which the normalisation turns into zero
        return video - video.mean(dim=2, keepdim=True) + self.mean

    def layers(self) -> list[list[nn.Parameter]]:
        first = [*self.embed.parameters(), *self.place.parameters()]
        if self.class_token is not None:
            first.append(self.class_token)
        return [first, *(list(block.parameters()) for block in self.blocks), list(self.norm.parameters())]

    def start_from(self, source: Backbone) -> None:
        """Takes the weights of ``source``, fitted to this network.

        Learnt positions are interpolated, the last norm is left behind where this network has none, and an image
        network (a tubelet of one frame) is inflated.
        """
        assert isinstance(source, VisionTransformer)
        theirs = source.config | source.shape  # a size and the same numbers written out are one
        for name, ours in (self.config | self.shape).items():
            if name not in ADJUSTABLE and theirs[name] != ours:
                raise TubeletError(f"backbone.{name} is {theirs[name]!r} there and {ours!r} here")
        if self.config["last_norm"] and not source.config["last_norm"]:
            raise TubeletError("it has no last norm: set backbone.last_norm false")
        if source.tubelet not in (1, self.tubelet):
            raise TubeletError(f"backbone.tubelet is {source.tubelet} there and {self.tubelet} here")
        tensors = inflate(source, self.tubelet).state_dict()
        if not self.config["last_norm"]:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("norm.")}
        if self.place.kind == "learned" and self.place.made_for is not None:
            tensors["place.temporal"], tensors["place.spatial"] = source.place.learnt(self.place.made_for)
        self.load_state_dict(tensors)


def inflate(
    source: VisionTransformer, tubelet: int, how: Literal["average", "central"] = "average"
) -> VisionTransformer:
    """An image network (a tubelet of one frame) as one of video, or ``source`` itself where nothing is to be done.

    Its positions in time are those of its kind: learnt ones start at what every picture had.

    Args:
        how: see `nn.patches.inflated`.
    """
    if source.tubelet == tubelet:
        return source
    config = {name: value for name, value in source.config.items() if name not in ("name", "tubelet", "made_for")}
    made_for = source.config["made_for"] if source.place.kind == "learned" else None
    if made_for is not None:
        made_for = (made_for[0] * tubelet, made_for[1], made_for[2])
    video = VisionTransformer(**config, tubelet=tubelet, made_for=made_for)
    video.load_state_dict({**source.state_dict(), "embed.weight": inflated(source.embed.weight.data, tubelet, how)})
    return video.train(source.training)
