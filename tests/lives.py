"""Runs that live in processes of their own, so that they can be killed, and what is left of them, to the last bit."""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import toys
from processes import Ended, Processes
from saved import newest
from smallest import build_learner, make_clips
from tubelet import cli, dist
from tubelet.data import read
from tubelet.data.clips import Clips
from tubelet.learner import Learner, Now
from tubelet.log import read_metrics
from tubelet.train.checkpoints import FACTS, Checkpoint
from tubelet.train.fit import fit
from tubelet.train.stop import Interrupted

OPTIONS = {
    "length": "24 steps", "batch": 4, "lr": 0.1, "precision": "float32", "workers": 1, "quiet": True, "log_steps": 5,
    "save": "every 4 steps",
}  # fmt: skip
TIMINGS = ("time", "clips_per_s", "waiting", "saving_s")
"""What differs between two runs that are the same."""


class Run(NamedTuple):
    """What is trained, and what befalls it."""

    learner: str
    """A toy, or a learner of the contracts."""
    corpus: Path
    out: Path
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to
    """Of `fit`, besides `OPTIONS`."""
    data: dict[str, Any] = {}  # noqa: RUF012
    """Of `Clips`."""
    backbone: dict[str, Any] = toys.DROPPING
    poison: tuple[list[int], str] | None = None
    """As in `toys.poison`."""
    befalls: dict[int, Callable[[Run], object]] = {}  # noqa: RUF012
    """Done by the first process after a step: one of the functions at the end of this file."""
    endless: Path | None = None
    """The video on which the decoder hangs."""
    dies_at: int | None = None
    """Killed before it opens, renames, makes or removes something in its folder for the so-manieth time."""
    slow_disk_s: float = 0.0
    """What each of these takes while a checkpoint is written: training goes on meanwhile."""

    @property
    def clips(self) -> Clips:
        return make_clips(self.corpus, _learner(self), self.learner, self.data)


class Sample(NamedTuple):
    """Of a batch: which video, and what its draws are made from."""

    id: int
    key: int


Seen = dict[int, list[Sample]]
"""What a process was given at each step that it began."""


def train(run: Run) -> tuple[Seen, bool]:
    """The life of a process: trains until the run is done, or it is asked to stop. Also answers whether it was done."""
    _without_tensorboard()
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.start()
    learner = _learner(run)
    seen = _record(learner)
    if run.poison is not None:
        toys.poison(learner, *run.poison)
    if run.endless is not None:
        healthy = read.read
        read.read = lambda path, *rest: time.sleep(1e4) if path == run.endless else healthy(path, *rest)
    if dist.is_main():
        _befall(learner, run)
    if run.dies_at is not None or run.slow_disk_s:
        _listen(run)
    # where the generator stands when a run goes on must not matter
    torch.manual_seed(1 if any((run.out / "checkpoints").glob("step-*[0-9]")) else 0)
    try:
        fit(learner, run.clips, run.out, **OPTIONS | run.options)
    except Interrupted:
        return seen, False
    dist.stop()
    return seen, True


def command(*arguments: str) -> None:
    """The life of a process that is given a command."""
    _without_tensorboard()
    raise SystemExit(cli.main(list(arguments)))


def live(run: Run, world: int = 1, timeout_s: float = 60) -> list[Ended]:
    """One life of all processes, however it ends."""
    return Processes(train, world, run).wait(timeout_s, patience_s=10)


def finish(run: Run, world: int = 1) -> Run:
    """A life that must end well, with the run done."""
    for end in (ends := live(run, world)):
        assert end.exit_code == 0 and end.value[1], [(e.exit_code, e.error, e.output) for e in ends]
    return run


def kill_at_random(run: Run, world: int, within_s: float, chance: random.Random, saving: bool) -> None:
    """One life, killed with SIGKILL at some moment after its training has begun.

    Args:
        saving: the moment comes after it has saved something, so that the next life goes on from there.
    """
    log = run.out / "metrics.jsonl"
    begun, before = _inode(log), _checkpoints(run)
    processes = Processes(train, world, run)
    deadline = time.monotonic() + 60
    # the log is written anew when training begins
    while _inode(log) == begun or (saving and not _checkpoints(run) - before):
        assert time.monotonic() < deadline, processes.wait(0)
        time.sleep(0.001)
    time.sleep(chance.uniform(0, within_s))
    processes.kill()
    ends = processes.wait(0)
    assert {end.exit_code for end in ends} == {-signal.SIGKILL}, ends


def _inode(file: Path) -> int | None:
    return file.stat().st_ino if file.exists() else None


def _checkpoints(run: Run) -> set[Path]:
    return {path for path in run.out.glob("checkpoints/step-*") if path.suffix != ".tmp"}


def saved(run: Run, step: int) -> Checkpoint:
    """The checkpoint of a step, which must be there."""
    folder = run.out / "checkpoints" / f"step-{step:09d}"
    return Checkpoint(folder, json.loads((folder / FACTS).read_text(encoding="utf-8")))


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in read_metrics(run.out / "metrics.jsonl") if "loss" in line]


def assert_same(one: Run, other: Run) -> None:
    """Nothing tells the ends of two runs apart: state, log, and the weights to use, to the last bit."""
    first, second = newest(one.out), newest(other.out)
    mine, theirs = first.read(""), second.read("")
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not equal(mine[name], theirs[name])] == []
    facts = [{k: v for k, v in found.facts.items() if k != "seconds"} for found in (first, second)]
    assert facts[0] == facts[1]
    logs = [
        [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run.out / "metrics.jsonl")]
        for run in (one, other)
    ]
    assert logs[0] == logs[1]
    for name in ("backbone.safetensors", "learner.safetensors", "backbone.json"):
        assert (one.out / name).read_bytes() == (other.out / name).read_bytes(), name


def equal(a: Tensor, b: Tensor) -> bool:
    """Bit for bit."""
    return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _without_tensorboard() -> None:
    """Which takes a second to import."""
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]


def _learner(run: Run) -> Learner:
    if run.learner in toys.TOYS:
        torch.manual_seed(0)
        return toys.TOYS[run.learner](toys.make_backbone(**run.backbone))
    return build_learner(run.learner, run.backbone)


def _record(learner: Learner) -> Seen:
    """Notes what each step is given; its forward passes together, of the first phase."""
    seen: Seen = {}
    now_at = 0
    healthy, before = learner.forward, learner.before_step

    def before_step(now: Now) -> None:
        nonlocal now_at
        now_at = now.step
        seen[now.step] = []  # of the last time, where a run goes back
        before(now)

    def forward(batch: Any, phase: str) -> Any:
        if learner.training and phase == learner.phases[0]:
            pairs = zip(batch["id"].tolist(), batch["key"].tolist(), strict=True)
            seen[now_at] += [Sample(*pair) for pair in pairs]
        return healthy(batch, phase)

    learner.before_step, learner.forward = before_step, forward
    return seen


def _befall(learner: Learner, run: Run) -> None:
    before = learner.after_step

    def after_step(now: Now) -> None:
        before(now)
        if now.step in run.befalls:
            run.befalls[now.step](run)

    learner.after_step = after_step


def _listen(run: Run) -> None:
    """Python tells of each time that it opens, renames, makes or removes something, before it does so."""
    count = 0

    def hear(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            return
        if not str(arguments[0]).startswith(str(run.out)):
            return
        count += 1
        if count == run.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if threading.current_thread() is not threading.main_thread():
            time.sleep(run.slow_disk_s)

    sys.addaudithook(hear)


def ask_to_stop(run: Run) -> None:
    """Of two or more processes only one is told."""
    os.kill(os.getpid(), signal.SIGTERM)


def fill_disk(run: Run) -> None:
    """No file can become longer than this any more: room for a line of the log, and for no tensors."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def once_saved(step: int, fault: Callable[[Run], object]) -> Callable[[Run], object]:
    """A fault that waits until a checkpoint, and the weights of it, are written: that goes on in the background."""
    return partial(_once_saved, step, fault)


def _once_saved(step: int, fault: Callable[[Run], object], run: Run) -> None:
    about, deadline = run.out / "backbone.json", time.monotonic() + 30
    while not about.exists() or json.loads(about.read_text(encoding="utf-8"))["step"] < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fault(run)


def make_room(run: Run) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def hang(run: Run) -> None:
    """As in a driver, or on a network file system that is gone."""
    time.sleep(1e4)


def make_read_only(run: Run) -> None:
    """As when a file system is mounted anew after an error."""
    for path in (run.out, *run.out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # whom permissions do not bind, as long as it has this
        _drop_capability(1)  # CAP_DAC_OVERRIDE


def make_writable(run: Run) -> None:
    for path in (run.out, *run.out.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _drop_capability(number: int) -> None:
    """From this thread and those that it starts (capset of Linux, version 3: effective, permitted, inheritable)."""
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0
    for kind in range(3):
        sets[kind] &= ~(1 << number)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
