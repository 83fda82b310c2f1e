"""The folder of a run's checkpoints: only whole ones count, the newest good one is used, the last few are kept.

A checkpoint is a folder ``step-000000120`` of safetensors (one file a process, written by
`torch.distributed.checkpoint`), ``state.json`` (what are no tensors) and ``SHA256SUMS`` (which ``sha256sum -c`` reads).
It gets its name when all of it is on the disk. Nothing in it can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from tubelet.log import warn
from tubelet.types import TubeletError

FORMAT = 2
"""1 was one file, checkpoint.pt (`train.migrate` reads it)."""
SUMS, FACTS = "SHA256SUMS", "state.json"

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is no accident


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on the disk, whose checksums are right."""

    folder: Path
    facts: dict[str, Any]
    """What are no tensors: step, counters, identity."""

    def tensors(self) -> dict[str, torch.Size]:
        """The name and shape of each tensor (of all processes together)."""
        return {name: tensor.size for name, tensor in self._described().items()}

    def read_into(self, state: dict[str, Tensor], alone: bool = False) -> None:
        """Fills tensors, sharded ones too, with what is saved under their names.

        Args:
            alone: this process reads by itself; otherwise all read together, each its part.

        Raises:
            TubeletError: a disk, on any process, fails.
        """
        reader = HuggingFaceStorageReader(str(self.folder))
        try:
            distributed_checkpoint.load(dict(state), storage_reader=reader, no_dist=alone)
        except CheckpointException as error:  # which is no Exception
            raise TubeletError(f"{self.folder} cannot be read: {in_words(error)}") from error

    def read(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix``, whole and on the CPU, by the rest of their names."""
        state = {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
            for name, tensor in self._described().items()
            if name.startswith(prefix)
        }
        self.read_into(state, alone=True)
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}

    def _described(self) -> dict[str, TensorStorageMetadata]:
        described = HuggingFaceStorageReader(str(self.folder)).read_metadata().state_dict_metadata
        return {name: tensor for name, tensor in described.items() if isinstance(tensor, TensorStorageMetadata)}


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are, such as ``runs/first/checkpoints``.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of a step into; what a kill left half-written is cleared away."""
        for unfinished in self.folder.glob("*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        fresh = self._place(step).with_suffix(".tmp")
        fresh.mkdir(parents=True)
        return fresh

    def finish(self, fresh: Path, facts: dict[str, Any], sums: dict[str, str]) -> Checkpoint:
        """Writes what belongs to ``fresh`` besides its tensors, gives it its name, and removes what is too old.

        Later ones, which a damaged newest one is, neither count nor go.

        Args:
            sums: file -> checksum of what all processes have written.

        Raises:
            OSError: the disk is full, or the like.
            TubeletError: a file of another process is not there.
        """
        for name in sums:
            if not (fresh / name).exists():
                raise TubeletError(f"{fresh} lacks {name}, which another process wrote: all must share the folder")
        _write(fresh / FACTS, json.dumps({"format": FORMAT, **facts}))
        sums = {**sums, FACTS: checksum(fresh / FACTS)}
        _write(fresh / SUMS, "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))
        _flush_folder(fresh)
        place = self._place(facts["step"])
        if place.exists():  # of a stretch that was rolled back, or that a newer one's damage made it go through again
            shutil.rmtree(place)
        fresh.rename(place)
        _flush_folder(self.folder)
        if not facts.get("in_a_row"):  # or those from before the steps that failed could be gone when they are wanted
            for old in [earlier for earlier in self._places() if earlier <= place][self.keep :]:
                shutil.rmtree(old, ignore_errors=True)
        return Checkpoint(place, facts)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none at all. A damaged one is said and left.

        Raises:
            TubeletError: there are some, and all are damaged; or one is of a newer format.
        """
        found = next(self.whole(), None)
        if found is None and self._places():
            raise TubeletError(f"no checkpoint in {self.folder} can be read: move them away to start afresh")
        if found is not None and found.folder != self._places()[0]:
            warn(f"going on from {found.folder} instead (step {found.facts['step']})")
        return found

    def whole(self) -> Iterator[Checkpoint]:
        """Those that are as they were written, newest first. The others are said."""
        for place in self._places():
            try:
                yield _verified(place)
            except Damaged as error:
                warn(str(error))

    def set_aside(self, checkpoint: Checkpoint) -> None:
        """Keeps a checkpoint from being gone on with, without deleting it."""
        aside = self.folder / "aside"
        aside.mkdir(exist_ok=True)
        number = sum(1 for _ in aside.glob(f"{checkpoint.folder.name}*"))
        checkpoint.folder.rename(aside / (checkpoint.folder.name + (f"-{number}" if number else "")))

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _places(self) -> list[Path]:
        """Newest first."""
        return sorted((p for p in self.folder.glob("step-*") if p.suffix != ".tmp"), reverse=True)


class Damaged(TubeletError):
    """A checkpoint that is not what was written."""


def checksum(path: Path) -> str:
    """SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_words(error: BaseException) -> str:
    """The cause in one line, out of what several processes may have wrapped around it."""
    failures = getattr(error, "failures", None)  # torch's CheckpointException: rank -> (error, trace)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[-1].split())


def _verified(place: Path) -> Checkpoint:
    """The checkpoint in a folder, if every file is as it was written.

    Raises:
        Damaged: a file is missing, shorter or changed.
        TubeletError: it is of a newer format.
    """
    try:
        for name, expected in _sums(place):
            if checksum(place / name) != expected:
                raise Damaged(f"{place} is damaged: {name} is not what was written")
        found = Checkpoint(place, json.loads((place / FACTS).read_text(encoding="utf-8")))
        found.tensors()  # right checksums alone do not make it one
        newer = found.facts["format"] > FORMAT
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise Damaged(f"{place} is damaged: {error}") from error
    if newer:
        theirs = found.facts["format"]
        raise TubeletError(f"{place} has format {theirs}, this Tubelet reads up to {FORMAT}: upgrade Tubelet")
    return found


def _sums(place: Path) -> Iterator[tuple[str, str]]:
    lines = (place / SUMS).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    names = {name for _, name in pairs}
    if FACTS not in names or len(names) < 2:
        raise ValueError(f"{SUMS} does not list all files")
    for value, name in pairs:
        if Path(name).name != name:
            raise ValueError(f"{SUMS} names a file elsewhere: {name}")
        yield name, value


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes the names in a folder last, not only what is in the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
