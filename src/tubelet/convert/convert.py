"""Turns a checkpoint of one codebase into one of another: recognised, loaded strictly, compared, written whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tubelet import __version__
from tubelet.checkpoint import write_json
from tubelet.convert import check, huggingface, image, mae_st, mmaction2, original, tubelet
from tubelet.convert.load import Found, load
from tubelet.convert.neutral import Neutral, Options, renormalise
from tubelet.types import TubeletError

IN = (huggingface, mmaction2, mae_st, original, image)
"""Formats of files, in the order in which they are asked whether a checkpoint is theirs."""
OUT: dict[str, Any] = {"tubelet": tubelet, "huggingface": huggingface, "original": original}
DEFAULTS = Options()
MARK = "conversion.json"
"""What tells a folder that we wrote from one that we must not write over."""
WRITTEN = {
    MARK, "backbone.json", "backbone.safetensors", "learner.safetensors",
    "config.json", "model.safetensors", "preprocessor_config.json",
}  # fmt: skip
"""All that a conversion writes into a folder."""


class Converted(NamedTuple):
    """What `convert` did."""

    taken_for: str
    notes: list[str]
    """What a user must know."""
    proof: list[str]
    """What was compared, and the largest differences."""


def convert(source: Path, out: Path, to: str, options: Options = DEFAULTS) -> Converted:
    """Converts the checkpoint at ``source`` into ``out``.

    Args:
        out: a folder, or for "original" a file; written whole or not at all.
        to: "tubelet", "huggingface" or "original".

    Raises:
        TubeletError: the source is no checkpoint that is known here, does not fit, is empty in parts, or has what the
            format has no place for; ``out`` is something else than a conversion, or the source itself; or the
            comparison fails.
    """
    _refuse_source(source, out)
    _refuse_other(out)
    neutral = read(source, options)
    with tempfile.TemporaryDirectory(prefix="tubelet-") as scratch, written_whole(out) as fresh:
        OUT[to].write(neutral, fresh)
        if to != "tubelet" and neutral.options.get("decoder_ratio"):
            said = neutral.options["decoder_ratio"]
            neutral.notes.append(f"learner.decoder_ratio {said:g} is left out: it is of training, not of the network")
        proof = [_prove_back(neutral, fresh, options)]
        proof += _prove_elsewhere(neutral, source, fresh, to, Path(scratch), options)
        result = Converted(neutral.taken_for, neutral.notes, proof)
        if fresh.is_dir():
            about = {"from": str(source), "by": f"tubelet {__version__}", **result._asdict()}
            write_json(fresh / MARK, about)
    return result


def read(source: Path, options: Options = DEFAULTS) -> Neutral:
    """Recognises a checkpoint by its tensors, never by its name, and loads it.

    Raises:
        TubeletError: as `convert`.
    """
    if tubelet.recognises(source):
        neutral = tubelet.read(source, options)
    else:
        found = load(source, options.ema)
        chosen = next((form for form in IN if form.recognises(found)), None)
        if chosen is None:
            raise TubeletError(
                f"{source} is no video or image transformer that is known here (VideoMAE, VideoMAE V2, transformers, "
                f"mmaction2, mae_st, PySlowFast, MAE, timm): its tensors are {_listed(found)}"
            )
        neutral = chosen.read(found, options)
    if options.segments:
        neutral.clip["segments"] = True
    if options.encoder:
        neutral.module, neutral.options, neutral.classes = neutral.backbone, {}, []
    _change_head(neutral, options)
    if neutral.kind == "classifier" and not tubelet.recognises(source):
        neutral.notes.append(_sampling(neutral.clip))
    if options.pooling == "mean" and neutral.options.get("pool") == "first":
        _pool_mean(neutral)
    if options.mean is not None or options.std is not None:
        mean, std = options.mean, options.std
        if mean is None or std is None:
            raise TubeletError("--mean and --std go together")
        renormalise(neutral.backbone.embed, mean, std)
        neutral.notes.append(f"pixels: expected as (x - {mean:g}) / {std:g}; the first map is changed for ImageNet's")
    neutral.module.eval()
    return neutral


def _sampling(clip: dict[str, Any]) -> str:
    """How a classifier looks at a film, which few files say."""
    if clip.get("segments"):
        return f"sampling: a frame from each of {clip['frames']} equal parts of the film"
    return (
        f"sampling: dense clips, {clip['frames']} frames {clip['stride']} apart; if it was trained on a frame from "
        "each equal part of the film (Something-Something), say --segments"
    )


def _listed(found: Found) -> str:
    names = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(found.tensors.items())[:3]]
    more = len(found.tensors) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _change_head(neutral: Neutral, options: Options) -> None:
    """Chooses rows of the head and names its classes."""
    if (options.head_map or options.classes) and neutral.kind != "classifier":
        raise TubeletError(f"--head-map and --classes are for classifiers, and this is {neutral.taken_for}")
    if options.head_map:
        rows = _read_json(Path(options.head_map))
        whole = isinstance(rows, list) and all(type(row) is int and 0 <= row < len(neutral.classes) for row in rows)
        if not whole or not rows:
            raise TubeletError(
                f"{options.head_map} must be a JSON list of rows of the head, each 0 to {len(neutral.classes) - 1}"
            )
        module: Any = neutral.module
        chosen = nn.Linear(module.head.in_features, len(rows))
        with torch.no_grad():
            chosen.weight.copy_(module.head.weight[rows])
            chosen.bias.copy_(module.head.bias[rows])
        module.head = chosen
        neutral.classes = [neutral.classes[row] for row in rows]
    if options.classes:
        names = _read_classes(Path(options.classes))
        if len(names) != len(neutral.classes) or len(set(names)) != len(names):
            has = len(neutral.classes)
            raise TubeletError(f"{options.classes} names {len(set(names))} classes, and the head has {has}")
        neutral.classes = names


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise TubeletError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TubeletError(f"{path} is not text: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise TubeletError(f"{path} is not JSON: {error}") from error


def _read_classes(path: Path) -> list[str]:
    """Names in order: one a line, a JSON list, or a JSON object from number to name or from name to number."""
    if path.suffix != ".json":
        return [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    names = _read_json(path)
    if isinstance(names, dict):
        by_row = names if all(key.isdecimal() for key in names) else {str(row): name for name, row in names.items()}
        names = [by_row.get(str(row)) for row in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TubeletError(f"{path} must be a JSON list of names, or an object from row (0, 1, ...) to name or back")
    return [str(name) for name in names]


def _pool_mean(neutral: Neutral) -> None:
    """Reads out the mean of the tokens, and puts the encoder's last norm after it: the published classifier."""
    from tubelet import registry

    config = {**neutral.backbone.config, "last_norm": False}
    options = {**neutral.options, "pool": "mean", "head_norm": True}
    backbone = registry.build("backbones", config.pop("name"), **config)
    arguments = {name: value for name, value in options.items() if name != "name"}
    learner = registry.build(
        "methods", options["name"], backbone=backbone, classes=len(neutral.classes), **arguments
    )
    tensors = {name.replace("backbone.norm.", "fc_norm."): tensor for name, tensor in neutral.state().items()}
    learner.load_state_dict(tensors)
    neutral.module, neutral.options = learner, options
    neutral.notes.append("--pooling mean: the head was trained on the first token, so judge it before you trust it")


def _prove_back(neutral: Neutral, fresh: Path, options: Options) -> str:
    """Reads what was written and compares every tensor, bit for bit."""
    known = Options(heads=neutral.heads, decoder_heads=neutral.decoder_heads, allow_zero=options.allow_zero)
    before, back = neutral.state(), read(fresh, known).state()
    other = [name for name in before.keys() | back.keys() if name not in before or name not in back
             or not torch.equal(before[name], back[name])]  # fmt: skip
    if other:
        raise TubeletError(f"nothing is written: {', '.join(sorted(other)[:3])} do not read back as they were")
    return f"read back: all {len(before)} tensors are equal"


def _prove_elsewhere(
    neutral: Neutral, source: Path, fresh: Path, to: str, scratch: Path, options: Options
) -> list[str]:
    """Compares with transformers wherever its network can express this one: the source itself, if it is for it."""
    as_it_is = Options(
        classes=options.classes, stride=options.stride, segments=options.segments, allow_zero=options.allow_zero,
        encoder=options.encoder,
    )  # fmt: skip
    if neutral.taken_for.startswith("Hugging Face") and options == as_it_is:
        return check.compare(neutral, source if source.is_dir() else source.parent)
    folder = fresh if to == "huggingface" else scratch
    if to != "huggingface":
        try:
            huggingface.write(neutral, folder)
        except TubeletError as error:
            return [f"compared with nothing more: {error}"]
    return check.compare(neutral, folder)


def _refuse_source(source: Path, out: Path) -> None:
    """Raises TubeletError when writing would change what is read; links and other ways to the same place count."""
    read_from, written_to = source.resolve(), out.resolve()
    if read_from == written_to or read_from in written_to.parents or written_to in read_from.parents:
        raise TubeletError(f"{out} is, holds or is within {source}, which is read: choose another place")


def _refuse_other(out: Path) -> None:
    """Raises TubeletError when there is something that we did not write."""
    if out.is_dir():
        inside = {path.name for path in out.iterdir()}
        if inside and MARK in inside and inside - WRITTEN:
            raise TubeletError(
                f"{out} is a conversion that was used since ({sorted(inside - WRITTEN)[0]}): choose another place"
            )
        if inside and MARK not in inside:
            raise TubeletError(f"{out} holds something that is not a conversion: choose another place")
    elif out.exists():
        try:
            ours = "conversion" in load(out).inside
        except TubeletError:
            ours = False
        if not ours:
            raise TubeletError(f"{out} is something that is not a conversion: choose another place")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A neighbour of ``out`` to write to, which takes its place at the end, or vanishes when there is an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        yield fresh
        for file in fresh.rglob("*") if fresh.is_dir() else [fresh]:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if out.exists():
            out.replace(old)
        fresh.replace(out)
    finally:
        if old.exists() and not out.exists():
            old.replace(out)
        for left in (fresh, old):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
