"""Files of open-mmlab/mmaction2: VideoMAE's encoder or classifier (V1, and V2 distilled)."""

from __future__ import annotations

import torch

from tubelet.convert import original
from tubelet.convert.load import Found, refuse_empty
from tubelet.convert.neutral import Neutral, Options, clip_of
from tubelet.nn.positions import sine_cosine
from tubelet.types import TubeletError

FRAMES = 16
"""Of a clip, in all published files; a file does not say it."""
WORDS = {"patch_embed.projection.": "patch_embed.proj.", "mlp.layers.0.0.": "mlp.fc1.", "mlp.layers.1.": "mlp.fc2."}


def recognises(found: Found) -> bool:
    return any(name.endswith("patch_embed.projection.weight") for name in found.tensors)


def read(found: Found, options: Options) -> Neutral:
    """A recogniser with its head, or the backbone of a detector of actions.

    Raises:
        TubeletError: tensors are missing, unexpected or empty, or its positions are not the published table, or not
            that of a square clip of 16 frames.
    """
    tensors, notes = {}, []
    for name, tensor in found.tensors.items():
        for theirs, ours in WORDS.items():
            name = name.replace(theirs, ours)
        name = name.removeprefix("backbone.").replace("cls_head.fc_cls.", "head.")
        if name.startswith("roi_head."):
            notes = ["the head that detects actions in boxes is left out"]
        elif not name.startswith("data_preprocessor."):
            tensors[name] = tensor
    refuse_empty(tensors, str(found.path), options.allow_zero)
    tubelet, patch = tensors["patch_embed.proj.weight"].shape[2::2]
    size = 224
    table = tensors.pop("pos_embed", None)  # 1 N D
    if table is not None:
        if not torch.allclose(table[0], sine_cosine(torch.arange(table.shape[1]), table.shape[2]), atol=1e-5):
            raise TubeletError(f"{found.path} has learned positions (pos_embed), for which there is no place here")
        times = FRAMES // tubelet
        side = round((table.shape[1] / times) ** 0.5)
        if side * side * times != table.shape[1]:
            raise TubeletError(
                f"{found.path} has {table.shape[1]} positions (pos_embed), which are no square clip of {FRAMES} "
                "frames: other clips of mmaction2 are not known here"
            )
        size = side * patch
    notes.append(f"the file does not say what clips it is for: taken as {FRAMES} frames of {size} x {size}")
    kind = "classifier" if "head.weight" in tensors else "encoder"
    if kind == "encoder":
        left_out = [name for name in tensors if name.startswith("fc_norm.")]
        tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    found.tensors = tensors
    neutral = original.assemble(found, kind, options, (FRAMES, size, size), notes)
    neutral.clip, neutral.taken_for = clip_of(FRAMES, size, options.stride), f"mmaction2, {kind}"
    return neutral
