"""Checkpoints of earlier formats, made into ones of today's: a run goes on however old it is.

Format 1 was one file, ``checkpoint.pt``, with the one before it beside it. It stays where it is.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from tubelet.log import say, warn
from tubelet.train.checkpoints import Checkpoint, Checkpoints, checksum, in_words
from tubelet.types import TubeletError

_FILES = ("next-checkpoint.pt", "checkpoint.pt", "previous-checkpoint.pt")


def has_old(run: Path) -> bool:
    """Whether a run's folder has a checkpoint of an earlier format."""
    return any((run / name).exists() for name in _FILES)


def migrate(run: Path, checkpoints: Checkpoints, parameters: dict[str, list[str]]) -> Checkpoint:
    """Writes the newest readable checkpoint of format 1 as one of today's. For one process alone.

    Args:
        run: folder of the run.
        checkpoints: where to.
        parameters: phase -> the names of its parameters in the order in which its optimiser has them.

    Raises:
        TubeletError: there is none that can be read.
    """
    state = _newest(run)
    tensors = {f"learner.{name}": tensor for name, tensor in state["learner"].items()}
    for phase, names in parameters.items():
        for index, values in state["optimisers"][phase]["state"].items():
            tensors |= {f"optimisers.{phase}.{names[index]}.{key}": value for key, value in values.items()}
    for rank, generators in enumerate(state["random"]):
        tensors |= {f"random.{rank}.{device}": generator for device, generator in generators.items()}
    facts = {
        "step": state["step"], "seconds": state["seconds"], "loss": state["loss"], "identity": state["identity"],
        "processes": len(state["random"]), "unreadable": state["unreadable"],
        "unreadable_rows": list(state.get("unreadable_rows", ())),
    }  # fmt: skip
    fresh = checkpoints.begin(state["step"])
    _write(fresh, tensors)
    sums = {file.name: checksum(file) for file in fresh.iterdir()}
    found = checkpoints.finish(fresh, facts, sums)
    say(f"{run} has a checkpoint of an earlier Tubelet: going on from it (step {state['step']}); its file stays")
    return found


def _write(folder: Path, tensors: dict[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    distributed_checkpoint.save(dict(tensors), storage_writer=writer, no_dist=True)


def _newest(run: Path) -> dict[str, Any]:
    complaint = ""
    for path in (run / name for name in _FILES):
        if not path.exists():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or state.get("format") != 1 or not math.isfinite(state["step"]):
                raise ValueError("it is not a checkpoint of Tubelet")
        except Exception as error:  # whatever torch makes of a damaged file
            complaint = f"{path} cannot be read as a checkpoint: {in_words(error)}"
            warn(complaint)
            continue
        return state
    raise TubeletError(f"no readable checkpoint in {run} ({complaint}): move the damaged ones away to start afresh")
