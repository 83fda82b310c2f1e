"""Image models as a start for video: files of facebookresearch/mae and of timm's plain ViTs."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from tubelet.convert import original
from tubelet.convert.load import Found, refuse_empty
from tubelet.convert.neutral import Neutral, Options, clip_of
from tubelet.nn.patches import inflated
from tubelet.types import TubeletError

LEFT_OUT = re.compile(r"(decoder_|mask_token$|head\.|fc_norm\.|pre_logits\.)")
FRAMES = 16


def recognises(found: Found) -> bool:
    weight = found.tensors.get("patch_embed.proj.weight")
    return weight is not None and weight.ndim == 4 and "blocks.0.norm1.weight" in found.tensors


def read(found: Found, options: Options) -> Neutral:
    """The encoder of an image model; its patches become cubes, and its positions are the same in every frame.

    Raises:
        TubeletError: tensors are missing, unexpected or empty, or the picture is not square.
    """
    if FRAMES % options.tubelet:
        raise TubeletError(f"--tubelet {options.tubelet} must divide the {FRAMES} frames that a clip is taken to have")
    left_out = sorted({match[0] for name in found.tensors if (match := LEFT_OUT.match(name))})
    tensors = {name: tensor for name, tensor in found.tensors.items() if not LEFT_OUT.match(name)}
    refuse_empty(tensors, str(found.path), options.allow_zero)
    tensors = split_attention(tensors)
    weight = tensors["patch_embed.proj.weight"]  # D 3 p p
    tensors["patch_embed.proj.weight"] = inflated(weight[:, :, None], options.tubelet, options.inflate)
    if "pos_embed" not in tensors:
        raise TubeletError(f"{found.path} has no pos_embed: it is no plain image ViT")
    table = tensors.pop("pos_embed")[0]  # N D, or 1+N D with a class token
    if "cls_token" in tensors:
        own, table = (table[0], table[1:]) if _side(table[1:]) else (0, table)
        tensors["class_token"] = tensors.pop("cls_token")[0, 0] + own
    side = _side(table)
    if not side:
        raise TubeletError(f"{found.path} has {len(table)} positions, which make no square picture")
    tensors["place.spatial"] = table
    tensors["place.temporal"] = table.new_zeros(FRAMES // options.tubelet, table.shape[1])
    size, found.tensors = side * weight.shape[-1], tensors
    notes = [f"{', '.join(left_out)}* left out"] if left_out else []
    token = "class_token" in tensors
    neutral = original.assemble(
        found, "encoder", options, (FRAMES, size, size), notes, positions="learned", class_token=token
    )
    neutral.clip, neutral.taken_for = clip_of(FRAMES, size, options.stride), "an image ViT (MAE, timm), encoder"
    return neutral


def split_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The attention of other ViTs under VideoMAE's names: one ``qkv.weight``, and biases of queries and values only.

    A bias of the keys adds the same number, query times bias, to all scores of a query, and softmax takes it out
    again: it is dropped without effect. Attention without biases has zeros.
    """
    named = dict(tensors)
    for name in tensors:
        block, found, part = name.partition(".attn.")
        prefix = f"{block}.attn."
        if not found or part not in ("q.weight", "qkv.weight"):
            continue
        if part == "q.weight":
            named[f"{prefix}qkv.weight"] = torch.cat([named.pop(f"{prefix}{which}.weight") for which in "qkv"])
            biases = [named.pop(f"{prefix}{which}.bias", None) for which in "qkv"]
        else:
            bias = named.pop(f"{prefix}qkv.bias", None)
            biases = [None] * 3 if bias is None else bias.chunk(3)
        for which, bias in zip("qv", (biases[0], biases[2]), strict=True):
            zeros = tensors[name].new_zeros(tensors[name].shape[1])
            named.setdefault(f"{prefix}{which}_bias", zeros if bias is None else bias)
    return named


def _side(table: Tensor) -> int:
    """The side of the square that the positions make, or 0."""
    side = round(len(table) ** 0.5)
    return side if side * side == len(table) else 0
