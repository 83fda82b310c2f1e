"""Files of MCG-NJU/VideoMAE (V1) and OpenGVLab/VideoMAEv2: pre-training, fine-tuned, DeepSpeed and compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tubelet.convert.load import Found, refuse_empty
from tubelet.convert.neutral import (
    Kind,
    Neutral,
    Options,
    clip_of,
    fill,
    make_backbone,
    make_classifier,
    make_pretraining,
    numbers,
    spread,
)
from tubelet.types import TubeletError

WORDS = {
    "embed.": "patch_embed.proj.", "attention.query_bias": "attn.q_bias", "attention.value_bias": "attn.v_bias",
    "attention.out.": "attn.proj.", "attention.": "attn.", "mlp.into.": "mlp.fc1.", "mlp.out.": "mlp.fc2.",
}  # fmt: skip
"""Our words and theirs, in the order in which they are replaced."""


def rename(kind: Kind, name: str) -> list[str]:
    """The published name of a tensor of our learner; an encoder alone has the names of a fine-tuned one."""
    for ours, theirs in WORDS.items():
        name = name.replace(ours, theirs)
    if name.startswith("backbone."):
        return [name.replace("backbone.", "encoder." if kind == "pretraining" else "")]
    if kind == "pretraining" and name != "mask_token":
        return [name.replace("enter.", "encoder_to_decoder.") if "enter." in name else f"decoder.{name}"]
    return [name]


def recognises(found: Found) -> bool:
    for prefix in ("encoder.", "backbone.", ""):
        weight = found.tensors.get(f"{prefix}patch_embed.proj.weight")
        if weight is not None and f"{prefix}blocks.0.norm1.weight" in found.tensors:
            return weight.ndim == 5
    return False


def read(found: Found, options: Options) -> Neutral:
    """V1 or V2; pre-training with its decoder, fine-tuned with its head, or an encoder alone.

    Raises:
        TubeletError: tensors are missing, unexpected or empty, or the file does not say how many heads there are.
    """
    refuse_empty(found.tensors, str(found.path), options.allow_zero)
    kind: Kind = "pretraining" if "encoder_to_decoder.weight" in found.tensors else "encoder"
    if kind != "pretraining":
        found.tensors = {_bare(name): tensor for name, tensor in found.tensors.items()}
        kind = "classifier" if "head.weight" in found.tensors else "encoder"
    settings, notes = found.settings, list[str]()
    tubelet, patch = found.tensors[rename(kind, "backbone.embed.weight")[0]].shape[2:4]
    frames = int(settings.get("num_frames") or 16 // tubelet * tubelet)
    size = int(settings.get("input_size") or 224 // patch * patch)
    if not settings:
        notes.append(f"the file does not say what clips it is for: taken as {frames} frames of {size} x {size}")
    neutral = assemble(found, kind, options, (frames, size, size), notes)
    stride = options.stride or settings.get("sampling_rate")
    neutral.clip, neutral.taken_for = clip_of(frames, size, stride), f"original VideoMAE, {kind}"
    if settings.get("data_set") == "SSV2":  # the published scripts sample it by parts, and every other set densely
        neutral.clip["segments"] = True
    return neutral


def assemble(
    found: Found, kind: Kind, options: Options, made_for: tuple[int, int, int], notes: list[str], **more: Any
) -> Neutral:
    """Builds what the tensors, in published names, are of, and loads them; also for formats that translate into these.

    Args:
        more: arguments of the ViT.
    """

    def theirs(name: str) -> list[str]:
        return rename(kind, name)

    tensors = found.tensors
    heads = options.heads
    cosine = tensors.get(theirs("backbone.blocks.0.attention.scale")[0])
    if cosine is not None:
        more["attention"], heads = "cosine", heads or cosine.shape[0]
    has_norm = theirs("backbone.norm.weight")[0] in tensors
    backbone = make_backbone(tensors, theirs, heads, made_for=made_for, last_norm=has_norm, **more)
    if kind == "pretraining":
        learner, arguments = make_pretraining(backbone, tensors, theirs, options.decoder_heads)
        module, classes = learner, []
    elif kind == "classifier":
        pooled = "fc_norm.weight" in tensors
        if not pooled:
            notes.append("this classifier reads the first token after the last norm, not the mean of all")
        learner, arguments, count = make_classifier(
            backbone, tensors, theirs, pool="mean" if pooled else "first", head_norm=pooled
        )
        module, classes = learner, numbers(count)
    else:
        module, arguments, classes = backbone, {}, []
    fill(module, found, theirs)
    return Neutral(module, arguments, {}, classes, "", notes)


def _bare(name: str) -> str:
    for prefix in ("encoder.", "backbone."):
        name = name.removeprefix(prefix)
    return name


def write(neutral: Neutral, out: Path) -> None:
    """A file that the published scripts read: ``model`` and, beside it, where it came from.

    Raises:
        TubeletError: the network has parts that the published one has not.
    """
    refuse_parts(neutral, "original")
    tensors = spread(neutral, lambda name: rename(neutral.kind, name))
    torch.save({"model": tensors, "conversion": {"from": neutral.taken_for, "classes": neutral.classes}}, out)


def refuse_parts(neutral: Neutral, target: str, **allowed: Any) -> None:
    """Names what a format has no place for.

    Raises:
        TubeletError: there is such a part.
    """
    plain = {"positions": "flat", "background": "keep", "class_token": False, "attention": "softmax"}
    config, options = neutral.backbone.config, neutral.options
    for name, value in plain.items():
        if config.get(name, value) not in (value, allowed.get(name, value)):
            raise TubeletError(f"the {target} format has no place for backbone.{name} {config[name]}")
    for name, values in {"target": ("pixels",), "target_frames": ("seen",), "normalise": ("channel", "none")}.items():
        if options.get(name, values[0]) not in values:
            raise TubeletError(
                f"the {target} format has no place for a decoder of learner.{name} {options[name]}: --encoder takes "
                "the encoder alone"
            )
    if neutral.kind == "classifier" and config["last_norm"] == options.get("head_norm", True):
        raise TubeletError(
            f"the {target} format has one norm before the head, and this classifier has "
            f"{'two' if config['last_norm'] else 'none'}: fine-tune with backbone.last_norm false and "
            "learner.head_norm true"
        )
