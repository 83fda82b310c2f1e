"""Opens whatever a checkpoint comes in, without ever running code: the tensors, and what was saved beside them."""

from __future__ import annotations

import argparse
import json
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from tubelet.types import TubeletError

WRAPPERS = ("model", "module", "model_state", "state_dict")
"""Where files keep their weights: VideoMAE and mae_st, DeepSpeed, PySlowFast, mmaction2."""
HARMLESS: list[Any] = [
    argparse.Namespace,  # the settings of a training script
    # plain numbers of NumPy: VideoMAE's optimiser state has its learning rates so
    multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar"), numpy.dtype,
    numpy.dtypes.Float64DType, numpy.dtypes.Float32DType, numpy.dtypes.Int64DType,
]  # fmt: skip
QUERY_VALUE_BIAS = re.compile(r"(q_bias|v_bias|query_bias|value_bias|(attention\.(query|value)|attn\.[qv])\.bias)$")


@dataclass
class Found:
    """An opened checkpoint."""

    path: Path
    tensors: dict[str, Tensor]
    """By their names in the file, without the prefixes that wrappers add; floating point as float32."""
    config: dict[str, Any] = field(default_factory=dict)
    """The ``config.json`` of a Hugging Face folder."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the training script was started with, where the file says."""
    inside: dict[str, Any] = field(default_factory=dict)
    """The file as a whole: what else is in it beside the weights."""


def load(path: Path, ema: bool = False) -> Found:
    """Opens a checkpoint file or a folder with one.

    Args:
        ema: take the moving average of the weights (``model_ema``) that VideoMAE's scripts can save beside them.

    Raises:
        TubeletError: it is not there, is damaged, holds code, or holds no weights.
    """
    if not path.exists():
        raise TubeletError(f"{path} does not exist")
    if path.is_dir():
        return _folder(path)
    if _is_safetensors(path):
        return Found(path, _float(_safetensors(path)), config=_config(path.parent))
    inside = _pickle(path)
    if ema and not isinstance(inside.get("model_ema"), dict):
        raise TubeletError(f"{path} has no model_ema: leave --ema out; it has {', '.join(map(str, list(inside)[:6]))}")
    weights: Any = inside.get("model_ema") if ema else next((inside[k] for k in WRAPPERS if k in inside), inside)
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)} if _is_named(weights) else {}
    if not tensors:
        raise TubeletError(f"{path} holds no weights: no tensors at the top or in {', '.join(WRAPPERS)}")
    args = inside.get("args")
    settings = vars(args) if isinstance(args, argparse.Namespace) else {}
    return Found(path, _float(_unwrapped(tensors)), _config(path.parent), settings, inside)


def refuse_empty(tensors: dict[str, Tensor], source: str, allow_zero: bool) -> None:
    """Refuses tensors that no training leaves behind: not finite, or wholly zero.

    A bias may be zero. But when every query and value bias is, a loader has dropped them on the way (transformers 5
    before 5.18 does, and runs on). Positions in time may be: an image has none.

    Raises:
        TubeletError: there are such tensors; it names them.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TubeletError(f"{source} has values that are not finite in {_some(broken)}")
    zero = [name for name, tensor in tensors.items() if not tensor.any() and not name.endswith("place.temporal")]
    attention = [name for name in tensors if QUERY_VALUE_BIAS.search(name)]
    refused = [name for name in zero if not name.endswith("bias")]
    if attention and all(name in zero for name in attention):
        refused += attention
    if refused and not allow_zero:
        raise TubeletError(
            f"{source} is wholly zero in {_some(refused)}: something dropped them on the way; if they are meant to be "
            "zero (a network that was never trained), say --allow-zero"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what `torch.compile` (``_orig_mod.``) and data parallelism (``module.``) put before every name."""
    for prefix in ("_orig_mod.", "module.") * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _float(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _folder(path: Path) -> Found:
    """A Hugging Face folder (whole or in shards), or one of DeepSpeed's."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if (path / name).is_file():
            return load(path / name)
        if index.is_file():
            listed = read_json(index).get("weight_map")
            shards = set(map(str, listed.values())) if isinstance(listed, dict) else set()
            if not shards or any(Path(shard).parts != (shard,) or shard == ".." for shard in shards):
                raise TubeletError(f"{index} is damaged: it must name files beside it")
            tensors: dict[str, Tensor] = {}
            for shard in sorted(shards):
                tensors |= load(path / shard).tensors
            return Found(path, tensors, config=_config(path))
    if (path / "mp_rank_00_model_states.pt").is_file():
        return load(path / "mp_rank_00_model_states.pt")
    what = "a config.json but no weights" if (path / "config.json").is_file() else "no checkpoint"
    raise TubeletError(
        f"{path} has {what}: expected backbone.json, model.safetensors or pytorch_model.bin (or their index) in it"
    )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        TubeletError: it is damaged, or something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TubeletError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise TubeletError(f"{path} is not a JSON object")
    return value


def _is_safetensors(path: Path) -> bool:
    """They begin with the length of a JSON header, which begins with a brace."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TubeletError(f"{path} cannot be read as safetensors (truncated?): {error}") from error


def _pickle(path: Path) -> dict[str, Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                raise TubeletError(f"{path} is a zip file of something else: it has no weights of PyTorch in it")
    try:
        with safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            inside = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error))
        if named:
            raise TubeletError(
                f"{path} holds {named[1]} beside tensors and plain values; that could run code, so it was not opened: "
                "where you trust it, load it and save its weights alone"
            ) from error
        raise TubeletError(
            f"{path} cannot be read as a checkpoint: it is truncated, not of PyTorch, or a pickle that may hold code "
            "(none was run)"
        ) from error
    if not isinstance(inside, dict):
        raise TubeletError(f"{path} holds a {type(inside).__name__}, not a dictionary of weights")
    return inside
