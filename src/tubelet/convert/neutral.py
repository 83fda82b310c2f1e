"""What every format is read into and written from: a built learner or encoder, and what stands beside its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tubelet import registry
from tubelet.backbones.vit import SIZES, VisionTransformer
from tubelet.convert.load import Found
from tubelet.learner import Backbone, Learner
from tubelet.nn.patches import CubeEmbedding
from tubelet.types import TubeletError

Kind = Literal["pretraining", "classifier", "encoder"]
Rename = Callable[[str], list[str]]
"""A name in our learner -> its name in a format; several names are parts of our tensor, along its first axis."""
HEADS = {shape["dim"]: shape["heads"] for shape in SIZES.values()} | {512: 8, 640: 8}
"""Attention heads of the published widths: encoders, and the decoders of L and H (512: V1 and V2; 640: V1's H)."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which VideoMAE is trained with and which our backbone subtracts itself."""


@dataclass(frozen=True)
class Options:
    """What a checkpoint does not say itself.

    Args:
        heads: attention heads of the encoder; needed when the file does not say and its width is not a published one.
        decoder_heads: attention heads of the decoder, likewise.
        pooling: "kept" reads out a classifier as its file says; "mean" replaces the first token, which Hugging Face
            folders can read, by the published mean of the tokens, with the last norm after it.
        classes: file with the names of the classes, one a line or JSON; without, those of the checkpoint or numbers.
        head_map: JSON list; row i of the new head is that row of the old one (K710 to K400, K600 or K700).
        mean: of the pixels that the checkpoint was trained with, when not the usual one of its format.
        std: likewise their standard deviation.
        stride: frames between two frames of a clip, when the file does not say; published: 4, Something-Something 2.
        segments: it was trained on clips of a frame from each equal part of the film, as classifiers of
            Something-Something are, and is used so; when the file does not say.
        tubelet: frames of a cube, for an image model.
        inflate: an image model's weights become a cube's as an "average" over frames (I3D), or in its "central" frame.
        encoder: take the encoder alone, without its decoder or head.
        ema: take the moving average of the weights that the file has beside them.
        allow_zero: accept tensors that are wholly zero.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    pooling: Literal["kept", "mean"] = "kept"
    classes: str | None = None
    head_map: str | None = None
    mean: float | None = None
    std: float | None = None
    stride: int | None = None
    segments: bool = False
    tubelet: int = 2
    inflate: Literal["average", "central"] = "average"
    encoder: bool = False
    ema: bool = False
    allow_zero: bool = False

    def __post_init__(self) -> None:
        for name in ("heads", "decoder_heads", "stride", "tubelet"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TubeletError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        if self.std is not None and not self.std > 0:
            raise TubeletError(f"--std must be more than 0, not {self.std:g}")


@dataclass
class Neutral:
    """A checkpoint in Tubelet's own terms."""

    module: Learner | Backbone
    options: dict[str, Any]
    """``{"name": ..., **arguments}`` of the learner; empty for an encoder alone."""
    clip: dict[str, Any]
    """``frames``, ``stride``, ``reference_fps``, ``size`` and maybe ``segments``, as in ``backbone.json``."""
    classes: list[str]
    taken_for: str
    """What the source was recognised as."""
    notes: list[str] = field(default_factory=list)
    """What a user must know: what was left out, assumed or changed."""

    @property
    def kind(self) -> Kind:
        return {"videomae": "pretraining", "supervised": "classifier"}.get(self.options.get("name", ""), "encoder")  # type: ignore[return-value]

    @property
    def backbone(self) -> VisionTransformer:
        backbone = self.module.backbone if isinstance(self.module, Learner) else self.module
        assert isinstance(backbone, VisionTransformer)
        return backbone

    @property
    def heads(self) -> int:
        return _heads(self.backbone)

    @property
    def decoder_heads(self) -> int | None:
        return _heads(self.module) if self.kind == "pretraining" else None

    def state(self) -> dict[str, Tensor]:
        """The tensors by the names that they have in a learner: ``backbone.*`` also for an encoder alone."""
        prefix = "" if isinstance(self.module, Learner) else "backbone."
        return {f"{prefix}{name}": tensor for name, tensor in self.module.state_dict().items()}


def _heads(module: Any) -> int:
    return module.blocks[0].attention.heads


def make_backbone(
    tensors: Mapping[str, Tensor], rename: Rename, heads: int | None, **options: Any
) -> VisionTransformer:
    """An untrained ViT of the sizes that the tensors have.

    Args:
        heads: None = those that are published for the width.
        options: other arguments of the ViT.

    Raises:
        TubeletError: the heads are not known.
    """
    weight = _one(tensors, rename, "backbone.embed.weight")  # D 3 tubelet patch patch
    if weight.ndim != 5 or weight.shape[1] != 3 or weight.shape[3] != weight.shape[4]:
        raise TubeletError(
            f"the cube embedding is {tuple(weight.shape)}: expected width x 3 x frames x side x side, of RGB"
        )
    dim, hidden = weight.shape[0], _one(tensors, rename, "backbone.blocks.0.mlp.into.weight").shape[0]
    heads = heads or published_heads(dim, "heads")
    shape = {"dim": dim, "depth": depth(tensors, rename, "backbone.blocks."), "heads": heads, "mlp": ratio(hidden, dim)}
    size = next((name for name, published in SIZES.items() if published == shape), None)
    given = {"size": size} if size else shape
    return VisionTransformer(**given, patch=weight.shape[3], tubelet=weight.shape[2], **options)


def published_heads(dim: int, option: str) -> int:
    if dim not in HEADS:
        flag = f"--{option.replace('_', '-')}"
        raise TubeletError(
            f"a width of {dim} is not a published one, and its file does not say how many attention heads it has: give "
            f"{flag}, such as {flag} {max(1, dim // 64)}"
        )
    return HEADS[dim]


def depth(tensors: Mapping[str, Tensor], rename: Rename, blocks: str) -> int:
    count = 0
    while rename(f"{blocks}{count}.norm1.weight")[0] in tensors:
        count += 1
    return count


def ratio(hidden: int, dim: int) -> float:
    """The MLP's width in token widths, such that ``int(dim * ratio)`` is ``hidden`` again."""
    found = next((s["mlp"] for s in SIZES.values() if int(dim * s["mlp"]) == hidden), hidden / dim)
    return found if int(dim * found) == hidden else math.nextafter(found, math.inf)


def _one(tensors: Mapping[str, Tensor], rename: Rename, name: str) -> Tensor:
    theirs = rename(name)[0]
    if theirs not in tensors:
        raise TubeletError(f"missing {theirs}")
    return tensors[theirs]


def fill(module: Learner | Backbone, found: Found, rename: Rename) -> None:
    """Loads the tensors of a file into ``module``, each of which must be there, be used and fit.

    Raises:
        TubeletError: tensors are missing, left over or of another shape; the message names them.
    """
    left, state, problems = dict(found.tensors), {}, []
    prefix = "" if isinstance(module, Learner) else "backbone."
    for name, own in module.state_dict().items():
        parts = rename(f"{prefix}{name}")
        missing = [part for part in parts if part not in left]
        problems += [f"missing {part}" for part in missing]
        if missing:
            continue
        tensor = torch.cat([left.pop(part) for part in parts]) if len(parts) > 1 else left.pop(parts[0])
        if name == "mask_token" or name.endswith("attention.scale"):  # 1 1 d and heads 1 1 there
            tensor = tensor.flatten()
        if tensor.shape != own.shape:
            problems.append(f"{parts[0]} is {tuple(tensor.shape)}, not {tuple(own.shape)}")
        state[name] = tensor
    problems += [f"unexpected {name}" for name in left]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TubeletError(f"{found.path} does not fit: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(state)


def spread(neutral: Neutral, rename: Rename) -> dict[str, Tensor]:
    """The tensors by the names of a format: the inverse of `fill`."""
    named: dict[str, Tensor] = {}
    for name, tensor in neutral.state().items():
        parts = rename(name)
        pieces = [piece.detach().contiguous() for piece in tensor.chunk(len(parts))]
        named |= dict(zip(parts, pieces, strict=True))
    shapes = {"mask_token": (1, 1, -1), "scale": (-1, 1, 1)}
    return {name: tensor.reshape(shapes.get(name.rpartition(".")[2], tensor.shape)) for name, tensor in named.items()}


def renormalise(embed: CubeEmbedding, mean: float, deviation: float) -> None:
    """Makes a cube embedding that was trained on ``(x - mean) / deviation`` expect ImageNet's: the same map.

    With ``y = (x - m) / s`` of ImageNet, ``(x - mean) / deviation = (s y + m - mean) / deviation``, linear in ``y``.
    """
    m, s = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1) for values in (MEAN, DEVIATION))  # 3 1 1 1
    with torch.no_grad():
        weight = embed.weight.double()  # D 3 tubelet patch patch
        shift = (weight * (m - mean) / deviation).flatten(1).sum(dim=1)  # D
        embed.bias.copy_(embed.bias.double() + shift)
        embed.weight.copy_(weight * s / deviation)


def clip_of(frames: int, size: int, stride: int | None) -> dict[str, Any]:
    """A clip as `backbone.json` describes it, at 30 frames a second."""
    return {"frames": frames, "stride": stride or 4, "reference_fps": 30.0, "size": size}


def numbers(count: int) -> list[str]:
    """Names for classes that have none."""
    return [str(number) for number in range(count)]


def make_pretraining(
    backbone: Backbone, tensors: Mapping[str, Tensor], rename: Rename, heads: int | None, **options: Any
) -> tuple[Learner, dict[str, Any]]:
    """An untrained VideoMAE with the decoder that the tensors have, and the options that it is made with.

    Args:
        heads: of the decoder; None = those that are published for its width.
        options: other arguments of the learner.
    """
    dim = _one(tensors, rename, "enter.weight").shape[0]
    hidden = _one(tensors, rename, "blocks.0.mlp.into.weight").shape[0]
    options |= {
        "decoder_dim": dim, "decoder_depth": depth(tensors, rename, "blocks."),
        "decoder_heads": heads or published_heads(dim, "decoder_heads"),
    }  # fmt: skip
    if hidden != 4 * dim:
        options["decoder_mlp"] = ratio(hidden, dim)
    return registry.build("methods", "videomae", backbone=backbone, **options), {"name": "videomae", **options}


def make_classifier(
    backbone: Backbone, tensors: Mapping[str, Tensor], rename: Rename, **options: Any
) -> tuple[Learner, dict[str, Any], int]:
    """An untrained classifier with as many classes as the head has, the options that it is made with, and that number.

    Args:
        options: other arguments of the learner.
    """
    classes = _one(tensors, rename, "head.weight").shape[0]
    learner = registry.build("methods", "supervised", backbone=backbone, classes=classes, **options)
    return learner, {"name": "supervised", **options}, classes
