"""Folders of Hugging Face's transformers (VideoMAE models): of 4.x and 5.x, with every pooling and epsilon."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tubelet.checkpoint import write_json
from tubelet.convert import original
from tubelet.convert.load import Found, read_json, refuse_empty
from tubelet.convert.neutral import (
    DEVIATION,
    MEAN,
    Kind,
    Neutral,
    Options,
    clip_of,
    fill,
    make_backbone,
    make_classifier,
    make_pretraining,
    numbers,
    published_heads,
    spread,
)
from tubelet.types import TubeletError

ENCODER = {"embed.": "embeddings.patch_embeddings.projection.", "norm.": "layernorm."}
BLOCK = {
    "norm1.": "layernorm_before.", "norm2.": "layernorm_after.", "attention.query_bias": "attention.attention.q_bias",
    "attention.value_bias": "attention.attention.v_bias", "attention.out.": "attention.output.dense.",
    "mlp.into.": "intermediate.dense.", "mlp.out.": "output.dense.",
}  # fmt: skip
"""Our words and theirs. The biases have the names of 4.x and of all published files; 5.18 and later read these too."""
HEADS: dict[Kind, dict[str, str]] = {
    "pretraining": {"enter.": "encoder_to_decoder.", "norm.": "decoder.norm.", "head.": "decoder.head."},
    "classifier": {"head.": "classifier."},
    "encoder": {},
}
ARCHITECTURES: dict[Kind, str] = {
    "pretraining": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
    "encoder": "VideoMAEModel",
}


def rename(kind: Kind, name: str) -> list[str]:
    """Their name of a tensor of our learner; queries, keys and values have one weight each."""
    encoder, name = name.startswith("backbone."), name.removeprefix("backbone.")
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        layer = f"{'encoder.layer' if encoder else 'decoder.decoder_layers'}.{number}"
        if rest == "attention.qkv.weight":
            names = [f"{layer}.attention.attention.{which}.weight" for which in ("query", "key", "value")]
        else:
            names = [f"{layer}.{_replaced(rest, BLOCK)}"]
    else:
        names = [_replaced(name, ENCODER if encoder else HEADS[kind])]
    return [f"videomae.{one}" for one in names] if encoder and kind != "encoder" else names


def _replaced(name: str, words: dict[str, str]) -> str:
    """``name`` with its first words, if they are among ours, in theirs."""
    ours = next((word for word in words if name.startswith(word)), "")
    return words.get(ours, "") + name.removeprefix(ours)


def recognises(found: Found) -> bool:
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in found.tensors)


def read(found: Found, options: Options) -> Neutral:
    """A folder for pre-training, of a classifier, or of an encoder alone.

    Raises:
        TubeletError: tensors are missing, unexpected or empty, or ``config.json`` contradicts them.
    """
    _refuse_others(found)
    refuse_empty(found.tensors, str(found.path), options.allow_zero)
    kind, found.tensors = _kind({_bias_of_4(name): tensor for name, tensor in found.tensors.items()})
    config, tensors = found.config, found.tensors

    def theirs(name: str) -> list[str]:
        return rename(kind, name)

    notes = list[str]()
    has_norm = theirs("backbone.norm.weight")[0] in tensors
    frames, size = int(_number(found, "num_frames", 16)), _size(found)
    heads = options.heads or int(_number(found, "num_attention_heads", 12))
    backbone = make_backbone(tensors, theirs, heads, made_for=(frames, size, size), last_norm=has_norm)
    _compare_heads(backbone.dim, heads, "num_attention_heads", "heads", notes)
    classes, arguments = list[str](), dict[str, Any]()
    module: Any = backbone
    if kind == "pretraining":
        heads = options.decoder_heads or int(_number(found, "decoder_num_attention_heads", 6))
        normalise = "channel" if config.get("norm_pix_loss", True) else "none"
        module, arguments = make_pretraining(backbone, tensors, theirs, heads, normalise=normalise)
        _compare_heads(arguments["decoder_dim"], heads, "decoder_num_attention_heads", "decoder_heads", notes)
        if not has_norm:
            notes.append("its encoder has no last norm: use_mean_pooling true took it away (the published one has it)")
    elif kind == "classifier":
        pooled = "fc_norm.weight" in tensors
        if pooled != bool(config.get("use_mean_pooling", True)):
            raise TubeletError(
                f"{found.path}: config.json says use_mean_pooling {str(not pooled).lower()}, and the weights have "
                f"{'an' if pooled else 'no'} fc_norm"
            )
        module, arguments, count = make_classifier(
            backbone, tensors, theirs, pool="mean" if pooled else "first", head_norm=pooled
        )
        classes = _classes(found, count)
        if not pooled:
            notes.append(
                "its head reads the first token alone (use_mean_pooling false; VideoMAE has no class token). That is "
                "kept for its classes, and the encoder is mean-pooled elsewhere; --pooling mean takes the mean for both"
            )
    _compare_config(backbone.config | {"dim": backbone.dim}, tensors, theirs, found)
    fill(module, found, theirs)
    _look_at_pixels(found, notes)
    epsilon = _number(found, "layer_norm_eps", 1e-12)
    if epsilon != 1e-6:
        notes.append(f"config.json says layer_norm_eps {epsilon:g}; here it is 1e-6, as published")
    return Neutral(module, arguments, clip_of(frames, size, options.stride), classes, f"Hugging Face, {kind}", notes)


def _refuse_others(found: Found) -> None:
    """Raises TubeletError where ``config.json`` is of another network than ours."""
    if found.config.get("model_type") != "videomae":
        raise TubeletError(f"{found.path} has VideoMAE's names but no config.json of a videomae model beside it")
    for key, only in {"hidden_act": "gelu", "num_channels": 3, "qv_bias": True}.items():
        if found.config.get(key, only) != only:
            said, known = json.dumps(found.config[key]), json.dumps(only)
            raise TubeletError(f"{found.path}: config.json says {key} {said}, and only {known} is known here")


def _kind(tensors: dict[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
    """What the tensors are of, by names that only it has; those of an encoder without its ``videomae.``."""
    if "encoder_to_decoder.weight" in tensors:
        return "pretraining", tensors
    if "classifier.weight" in tensors:
        return "classifier", tensors
    return "encoder", {name.removeprefix("videomae."): tensor for name, tensor in tensors.items()}


def _bias_of_4(name: str) -> str:
    name = name.replace("attention.attention.query.bias", "attention.attention.q_bias")
    return name.replace("attention.attention.value.bias", "attention.attention.v_bias")


def _number(found: Found, key: str, usual: float) -> float:
    """A positive number of ``config.json``, whole where the usual one is; one that is written as text is read too."""
    said, whole = found.config.get(key, usual), isinstance(usual, int)
    try:
        number = float(said)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < math.inf or (whole and number % 1):
        kind = "a whole number" if whole else "a number"
        raise TubeletError(f"{found.path}: config.json says {key} {json.dumps(said)}: it must be {kind} above 0")
    return number


def _size(found: Found) -> int:
    size = found.config.get("image_size", 224)
    if isinstance(size, list):
        if len(size) != 2 or size[0] != size[1]:
            raise TubeletError(f"{found.path}: config.json says image_size {size}: pictures must be square")
        found.config["image_size"] = size[0]
    return int(_number(found, "image_size", 224))


def _classes(found: Found, count: int) -> list[str]:
    """Names of the head's rows; numbers where ``id2label`` is of another head or left out."""
    labels = found.config.get("id2label", {})
    if not isinstance(labels, dict) or not all(key.isdecimal() for key in labels):
        raise TubeletError(
            f'{found.path}: config.json says id2label {str(labels)[:60]}: it must be names by row, as {{"0": "run"}}'
        )
    named = {int(row): str(name) for row, name in labels.items()}
    return [named[row] for row in range(count)] if sorted(named) == list(range(count)) else numbers(count)


def _compare_heads(dim: int, heads: int, key: str, option: str, notes: list[str]) -> None:
    """Heads are in no tensor's shape: a wrong number runs, and answers something else."""
    try:
        published = published_heads(dim, option)
    except TubeletError:
        return
    if heads != published:
        flag = f"--{option.replace('_', '-')}"
        notes.append(
            f"it has {heads} attention heads ({key}), and a width of {dim} is published with {published}: {heads} is "
            f"right if it was trained so; {flag} {published} if a script that converts the published file wrote it"
        )


def _compare_config(config: dict[str, Any], tensors: Any, theirs: Any, found: Found) -> None:
    """Raises TubeletError where ``config.json`` says other sizes than the tensors have."""
    depth = sum(theirs(f"backbone.blocks.{n}.norm1.weight")[0] in tensors for n in range(len(tensors)))
    hidden = tensors[theirs("backbone.blocks.0.mlp.into.weight")[0]].shape[0]
    has = {
        "hidden_size": config["dim"], "num_hidden_layers": depth, "intermediate_size": hidden,
        "patch_size": config["patch"], "tubelet_size": config["tubelet"],
    }  # fmt: skip
    for key, value in has.items():
        if key in found.config and str(found.config[key]) not in (str(value), str([value, value])):
            said = found.config[key]
            raise TubeletError(f"{found.path}: config.json says {key} {said}, and the weights have {value}")


def _look_at_pixels(found: Found, notes: list[str]) -> None:
    """Processors of transformers start with a mean of 0.5: a folder may have kept that by mistake."""
    folder = found.path if found.path.is_dir() else found.path.parent
    path = folder / "preprocessor_config.json"
    about = read_json(path) if path.is_file() else {}
    mean, deviation = about.get("image_mean", list(MEAN)), about.get("image_std", list(DEVIATION))
    for key, values in {"image_mean": mean, "image_std": deviation}.items():
        if not isinstance(values, list) or [type(value) in (int, float) for value in values] != [True] * 3:
            raise TubeletError(f"{path} says {key} {json.dumps(values)}: it must be three numbers")
    if any(abs(a - b) > 1e-3 for a, b in zip(mean, MEAN, strict=True)):
        notes.append(
            f"preprocessor_config.json says image_mean {mean}; VideoMAE is trained with ImageNet's, which is used "
            f"here. If this one really was trained so: --mean {mean[0]} --std {deviation[0]}"
        )


def write(neutral: Neutral, out: Path) -> None:
    """A folder for ``from_pretrained``: weights, ``config.json`` and ``preprocessor_config.json``.

    Raises:
        TubeletError: transformers' VideoMAE has no place for a part of the network.
    """
    original.refuse_parts(neutral, "Hugging Face", attention="softmax")
    out.mkdir(parents=True, exist_ok=True)
    tensors = spread(neutral, lambda name: rename(neutral.kind, name))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", config_of(neutral))
    size = neutral.clip["size"]
    processor = {
        "image_processor_type": "VideoMAEImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
        "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(MEAN), "image_std": list(DEVIATION),
    }  # fmt: skip
    write_json(out / "preprocessor_config.json", processor)


def config_of(neutral: Neutral) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    ``use_mean_pooling`` must be false for pre-training, or the last norm of the encoder is silently left out.
    """
    ours, state = neutral.backbone.config, neutral.state()
    config = {
        "architectures": [ARCHITECTURES[neutral.kind]], "model_type": "videomae", "num_channels": 3,
        "image_size": neutral.clip["size"], "num_frames": neutral.clip["frames"],
        "patch_size": ours["patch"], "tubelet_size": ours["tubelet"], "hidden_size": neutral.backbone.dim,
        "num_hidden_layers": len(neutral.backbone.blocks), "num_attention_heads": neutral.heads,
        "intermediate_size": state["backbone.blocks.0.mlp.into.weight"].shape[0],
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02, "layer_norm_eps": 1e-6, "qv_bias": True, "torch_dtype": "float32",
        "use_mean_pooling": not ours["last_norm"],
    }  # fmt: skip
    if neutral.kind == "pretraining":
        config |= {
            "norm_pix_loss": neutral.options.get("normalise", "channel") == "channel",
            "decoder_hidden_size": state["mask_token"].shape[0],
            "decoder_num_hidden_layers": neutral.options["decoder_depth"],
            "decoder_num_attention_heads": neutral.decoder_heads,
            "decoder_intermediate_size": state["blocks.0.mlp.into.weight"].shape[0],
        }
    if neutral.kind == "classifier":
        config["id2label"] = {str(row): name for row, name in enumerate(neutral.classes)}
        config["label2id"] = {name: row for row, name in enumerate(neutral.classes)}
    return config
