"""Writing a checkpoint while training goes on: copies are made in a moment, a thread of its own brings them to disk."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from threading import Thread
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tubelet import dist
from tubelet.log import say
from tubelet.train.checkpoints import Checkpoint, Checkpoints, checksum


class Saver:
    """Writes checkpoints, one at a time, all processes together.

    Args:
        checkpoints: where to.
        then: called on the first process, in the thread that writes, with a checkpoint that is on the disk.
        in_background: False = `save` returns when all is written.
    """

    def __init__(self, checkpoints: Checkpoints, then: Callable[[Checkpoint], None], in_background: bool) -> None:
        self.checkpoints, self.then, self.in_background = checkpoints, then, in_background
        cuda = torch.cuda.is_available()
        options = StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
        )
        self.stager = DefaultStager(options)
        self.thread: Thread | None = None
        self.failure: str | None = None
        """Why the last checkpoint could not be written; the same on all processes."""
        self.written = 0
        """The step of the last checkpoint that is on the disk."""
        self.blocked_s = 0.0
        """Seconds that training has waited for checkpoints: for copies, and for one that was not written in time."""

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        """However training ends, what is being written is written."""
        self.wait()

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Begins to write a checkpoint; the tensors may be changed as soon as this returns.

        Args:
            tensors: name -> tensor, sharded or the same on all processes; a name that one process alone has is its own.
            facts: what are no tensors, as JSON has it, with ``step``. Those of the first process count.
        """
        self.wait()
        started = time.perf_counter()
        copies: Any = self.stager.stage(tensors)
        facts = copy.deepcopy(facts)  # training goes on counting in what it gave
        self.thread = Thread(target=self._write, args=(copies, facts), name="saving")
        self.thread.start()
        self.blocked_s += time.perf_counter() - started
        if not self.in_background:
            self.wait()

    def wait(self) -> None:
        """Returns when no checkpoint is being written any more."""
        if self.thread is not None:
            started = time.perf_counter()
            self.thread.join()
            self.thread = None
            self.blocked_s += time.perf_counter() - started

    def _write(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        try:
            self._bring_to_disk(tensors, facts)
            self.failure, self.written = None, facts["step"]
        except (Exception, CheckpointException) as error:  # torch's is none of the former
            # a full disk must not end a run; whoever waits is told
            self.failure = _in_words(error)
            say(
                f"error: the checkpoint of step {facts['step']} could not be written: {self.failure}. The next "
                f"one is tried; what was saved before is in {self.checkpoints.folder}",
                style="bold red",
            )

    def _bring_to_disk(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Stage by stage, all processes together: what fails on one is raised on all."""
        fresh = _together(lambda: self.checkpoints.begin(facts["step"]) if dist.is_main() else None)[0]
        writer = HuggingFaceStorageWriter(str(fresh), save_distributed=True)
        distributed_checkpoint.save(
            dict(tensors), storage_writer=writer, process_group=dist.group("saving"), no_dist=dist.world_size() == 1
        )
        own = f"shard-{dist.rank() + 1:05d}-*"
        parts = _together(lambda: {file.name: checksum(file) for file in fresh.glob(own)})
        sums = {name: value for part in parts for name, value in part.items()}
        _together(lambda: self.then(self.checkpoints.finish(fresh, facts, sums)) if dist.is_main() else None)


def _together(work: Callable[[], Any]) -> list[Any]:
    """Does something on every process; each gets the answers of all, or raises what the first that failed raised."""
    try:
        answer = work()
    except Exception as error:
        answer = error
    answers = dist.gather(answer, "saving")
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _in_words(error: BaseException) -> str:
    """The cause in one line, out of what several processes may have wrapped around it."""
    failures = getattr(error, "failures", None)  # torch's CheckpointException: rank -> (error, trace)
    if failures:
        error = next(iter(failures.values()))[0]
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[-1].split())
