"""Files of facebookresearch/mae_st and of PySlowFast's masked autoencoders: their encoder, or mae_st's classifier."""

from __future__ import annotations

import re

from torch import Tensor

from tubelet.convert import original
from tubelet.convert.image import split_attention
from tubelet.convert.load import Found, refuse_empty
from tubelet.convert.neutral import Kind, Neutral, Options, clip_of, renormalise
from tubelet.types import TubeletError

LEFT_OUT = re.compile(r"(decoder_|mask_token$|pred_head\.|head\.projection\.)")
MEAN, DEVIATION = 0.45, 0.225
"""Of the pixels that they are trained with."""


def recognises(found: Found) -> bool:
    weight = found.tensors.get("patch_embed.proj.weight")
    named = any(f"blocks.0.attn.{part}" in found.tensors for part in ("q.weight", "qkv.bias"))
    return weight is not None and weight.ndim == 5 and named


def read(found: Found, options: Options) -> Neutral:
    """The encoder, with its class token and learned positions. The first map is changed to expect ImageNet's pixels.

    Raises:
        TubeletError: tensors are missing, unexpected or empty, or the positions are not a sum of space and time.
    """
    left_out = sorted({match[0] for name in found.tensors if (match := LEFT_OUT.match(name))})
    tensors = {name: tensor for name, tensor in found.tensors.items() if not LEFT_OUT.match(name)}
    refuse_empty(tensors, str(found.path), options.allow_zero)
    tensors = split_attention(tensors)
    kind: Kind = "classifier" if "head.weight" in tensors else "encoder"
    if kind == "classifier":  # it norms the mean of the tokens, and calls that norm `norm`
        tensors = {name.replace("norm.", "fc_norm.", 1) if name.startswith("norm.") else name: tensor
                   for name, tensor in tensors.items()}  # fmt: skip
    tubelet, patch = tensors["patch_embed.proj.weight"].shape[2::2]
    if "pos_embed" in tensors:
        joint = tensors.pop("pos_embed")[0]  # N D, or 1+N D with a class token
        own = joint[0] if "cls_token" in tensors else None
        joint = joint[1:] if own is not None else joint
        clip = int(found.settings.get("num_frames") or 16)
        frames = clip // tubelet
        if frames == 0 or len(joint) % frames:
            raise TubeletError(
                f"{found.path} has {len(joint)} positions (pos_embed), which are no clip of {clip} frames: other "
                "lengths of clips are known from pos_embed_spatial and pos_embed_temporal alone"
            )
        spatial, temporal = _apart(joint.unflatten(0, (frames, -1)), found)
    elif "pos_embed_spatial" in tensors and "pos_embed_temporal" in tensors:
        spatial, temporal = tensors.pop("pos_embed_spatial")[0], tensors.pop("pos_embed_temporal")[0]
        own = tensors.pop("pos_embed_class")[0, 0] if "pos_embed_class" in tensors else None
    else:
        raise TubeletError(f"{found.path} has no positions: no pos_embed, and no pos_embed_spatial with _temporal")
    if "cls_token" in tensors:
        tensors["class_token"] = tensors.pop("cls_token")[0, 0] + (0 if own is None else own)
    tensors |= {"place.spatial": spatial, "place.temporal": temporal}
    frames, size = len(temporal) * tubelet, round(len(spatial) ** 0.5) * patch
    notes = [f"{', '.join(left_out)}* left out"] if left_out else []
    if kind == "classifier" and "class_token" not in tensors:
        notes.append("its own code leaves the first cube out of the mean even without a class token; here it is in")
    found.tensors = tensors
    neutral = original.assemble(
        found, kind, options, (frames, size, size), notes, positions="learned", class_token="class_token" in tensors
    )
    if options.mean is None and options.std is None:
        renormalise(neutral.backbone.embed, MEAN, DEVIATION)
        notes.append("its cube embedding is changed to expect pixels normalised as ImageNet's, not by 0.45 and 0.225")
    neutral.clip, neutral.taken_for = clip_of(frames, size, options.stride), f"mae_st or PySlowFast, {kind}"
    return neutral


def _apart(table: Tensor, found: Found) -> tuple[Tensor, Tensor]:
    """A joint table (T N D) as the sum of one in space (N D) and one in time (T D), where it is one.

    Raises:
        TubeletError: it is not.
    """
    spatial = table.mean(dim=0)  # N D
    temporal = table.mean(dim=1) - spatial.mean(dim=0)  # T D
    rest = (table - spatial - temporal[:, None]).abs().max()
    if rest > 1e-5 * table.abs().max():
        raise TubeletError(
            f"{found.path} has one joint table of positions (pos_embed) that is no sum of one in space and one in time "
            f"(it differs by up to {rest:.2g}): there is no place for it here"
        )
    return spatial, temporal
