"""Weights on disk: `backbone.safetensors` and a small JSON to use the encoder of a run (to go on: `train.state`).

Every file is written beside its place, flushed to the disk and renamed, so that a kill leaves the old one or the
new one, never half of one. Nothing that could run code is ever loaded.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tubelet import registry
from tubelet.learner import Backbone, Learner
from tubelet.types import TubeletError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls ``write`` on a temporary neighbour of ``path``, flushes it to the disk and moves it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows, the first of which names the columns."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)

    write_atomically(path, write)


@contextmanager
def replace_folder(place: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``place`` when all is written.

    After a kill between the two moves `settle_folder` ends what was begun.
    """
    fresh, before = _beside(place)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(before, ignore_errors=True)
    if place.exists():
        place.replace(before)
    fresh.replace(place)
    shutil.rmtree(before, ignore_errors=True)


def settle_folder(place: Path) -> None:
    """Ends what a killed `replace_folder` began: where the old folder was moved away, the new one is whole."""
    fresh, before = _beside(place)
    if before.exists() and not place.exists():
        (fresh if fresh.exists() else before).replace(place)
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(before, ignore_errors=True)


def _beside(place: Path) -> tuple[Path, Path]:
    return place.with_name(f"next-{place.name}"), place.with_name(f"previous-{place.name}")


def save_backbone(folder: Path, backbone: Backbone, **about: Any) -> None:
    """Writes ``backbone.safetensors`` and ``backbone.json`` (how to build it, and what is worth knowing `about` it)."""
    save_weights(folder / "backbone.safetensors", backbone.state_dict())
    write_json(folder / "backbone.json", {"backbone": backbone.config, **about})


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes the persistent tensors of a module, as its ``state_dict()`` has them, as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}

    def write(temporary: Path) -> None:
        temporary.touch()
        permissions = temporary.stat().st_mode
        save_file(tensors, temporary)
        temporary.chmod(permissions)  # safetensors' are for the owner alone, whatever others may read

    write_atomically(path, write)


def backbone_files(path: str | Path) -> tuple[Path, Path]:
    """The JSON and the weights that `path` (a run's folder, or either file) stands for.

    Raises:
        TubeletError: they are not there.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    about, weights = folder / "backbone.json", folder / "backbone.safetensors"
    if not path.exists():
        raise TubeletError(f"{path} does not exist; give the folder of a run, such as runs/NAME")
    for file in (about, weights):
        if not file.exists():
            raise TubeletError(
                f"{folder} has no {file.name}: it is not the folder of a finished or checkpointed run; of a checkpoint "
                f"of another codebase `tubelet convert {path} DST --to tubelet` makes one"
            )
    return about, weights


def read_about(path: str | Path) -> dict[str, Any]:
    """What stands beside the weights: ``backbone`` (its configuration), ``clip``, ``step`` and so on."""
    about, _ = backbone_files(path)
    try:
        told = json.loads(about.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TubeletError(f"{about} is damaged: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get("backbone"), dict) or "name" not in told["backbone"]:
        raise TubeletError(f"{about} is damaged: it describes no backbone")
    return told


def load_backbone(path: str | Path) -> Backbone:
    """The trained encoder of a run, in evaluation mode.

    Args:
        path: the folder of a run, or its ``backbone.safetensors``.

    Returns:
        A module that takes ``B C T H W`` floats in [0, 1] (RGB) and returns `Features`, tokens ``B N D``.

    Raises:
        TubeletError: no such run, or weights that do not fit their description.
    """
    _, weights = backbone_files(path)
    config = dict(read_about(path)["backbone"])
    backbone: Backbone = registry.build("backbones", config.pop("name"), **config)
    load_weights(backbone, weights)
    return backbone.eval()


def load_learner(run: Path) -> Learner:
    """The whole trained learner of a run, decoder or head included, in evaluation mode.

    Raises:
        TubeletError: ``run`` is not the folder of a run, or its weights do not fit.
    """
    about = read_about(run)
    backbone, options = dict(about["backbone"]), dict(about.get("learner", {}))
    if "name" not in options or not (Path(run) / "learner.safetensors").exists():
        raise TubeletError(f"{run} has an encoder alone, without the learner that trained it")
    if "classes" in about:
        options["classes"] = len(about["classes"])
    if "videos" in about:
        options["videos"] = about["videos"]
    built = registry.build("backbones", backbone.pop("name"), **backbone)
    learner: Learner = registry.build("methods", options.pop("name"), backbone=built, **options)
    load_weights(learner, Path(run) / "learner.safetensors")
    return learner.eval()


def load_weights(module: nn.Module, weights: Path) -> None:
    """Loads a safetensors file strictly.

    Raises:
        TubeletError: it is damaged, or a tensor is missing, unexpected or of another shape.
    """
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise TubeletError(f"{weights} cannot be read: {_first_line(error)}") from error
    fit_tensors(module, tensors, str(weights))


def fit_tensors(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Loads ``tensors`` into ``module`` strictly; `source` names them in the error."""
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = [f"{k} is {tuple(tensors[k].shape)}, not {tuple(own[k].shape)}" for k in own.keys() & tensors.keys()
             if own[k].shape != tensors[k].shape]  # fmt: skip
    problems = [f"missing {k}" for k in missing] + [f"unexpected {k}" for k in unexpected] + sorted(other)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise TubeletError(
            f"{source} does not fit this {type(module).__name__}: {'; '.join(problems[:3])}{more}. "
            "Use the backbone settings that it was made with"
        )
    module.load_state_dict(tensors)


def weights_hash(module: nn.Module) -> str:
    """A short fingerprint of a module's weights, which results and cached features are named by."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """`weights_hash` of a module with this ``state_dict()``."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
