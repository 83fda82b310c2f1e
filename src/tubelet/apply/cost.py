"""What a recipe will cost on this machine, and what will bind: a few steps and clips are measured, the rest follows.

Steps are taken on random clips with the recipe's own learner, optimiser and precision; decoding is that of the loader,
on videos of the manifest. One process is reckoned with, and judging in between is not.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet import dist, draws
from tubelet.apply.shapes import outline
from tubelet.data import read
from tubelet.data.clips import Clips
from tubelet.data.info import UnreadableVideo
from tubelet.data.sample import step_s
from tubelet.data.workers import cores
from tubelet.learner import Learner
from tubelet.train import run, schedule
from tubelet.train.optim import adamw
from tubelet.train.parallel import autocast, shared_cores
from tubelet.train.provenance import describe_machine
from tubelet.train.step import take_step
from tubelet.types import Batch, TubeletError

WEIGHT_BYTES = 16
"""Of a float32 weight that is learnt: itself, its gradient and the two averages of AdamW."""
STATE_BYTES = 12
"""Of a weight in a checkpoint: itself and the two averages. On a CPU they are copied to be written, too."""
USED_BYTES = 8
"""Of a weight in the two files to use."""
WORTH_MORE = 1.05
"""A larger pass is tried as long as it makes so many times more clips a second."""


@dataclass(frozen=True)
class Cost:
    """What training costs. Rates are clips a second; memory and disk are bytes."""

    machine: str
    steps: int
    clips: int
    """Over the whole length."""
    in_a_pass: int
    """Clips of a forward pass."""
    share: int
    """Clips of a step, over all passes."""
    computes: float | None
    """None where a step could not be tried, since the weights alone do not fit."""
    decodes: float
    """One worker."""
    workers: int
    cores: int
    on_gpu: bool
    weights: int
    """How many."""
    fixed_bytes: int
    """For weights, gradients and the optimiser."""
    clip_bytes: int | None
    """For what a clip keeps between forward and backward."""
    memory_bytes: int
    """What there is for all that."""
    disk_bytes: int
    disk_free_bytes: int
    shorter: tuple[int, int]
    """Of the videos that were tried, how many are shorter than a clip: those and all."""

    @property
    def supply(self) -> float:
        """What all workers decode together."""
        return self.decodes * max(1, min(self.workers, self.cores))

    @property
    def needed_bytes(self) -> int:
        return self.fixed_bytes + (self.clip_bytes or 0) * self.in_a_pass

    @property
    def binds(self) -> str:
        """Memory, decoding or compute."""
        if self.computes is None or self.needed_bytes > self.memory_bytes:
            return "memory"
        return "decoding" if self.supply < self.computes else "compute"

    @property
    def hours(self) -> float | None:
        """Of training; without workers decoding and computing take turns."""
        if self.computes is None:
            return None
        compute_s, decode_s = self.clips / self.computes, self.clips / self.supply
        return (max(compute_s, decode_s) if self.workers else compute_s + decode_s) / 3600

    @property
    def remedy(self) -> str:
        """What to change first."""
        if self.binds == "memory":
            return self._less_memory()
        assert self.computes is not None
        if self.binds == "compute":
            faster = "" if self.on_gpu else "a GPU, "
            return f"nothing to gain in decoding; {faster}a smaller network, fewer frames or a shorter train.length"
        wanted = math.ceil(self.computes / self.decodes)
        spare = self.cores if self.on_gpu else self.cores - 1
        more = f"train.workers {min(wanted, spare)} (now {self.workers}), " if spare > self.workers else ""
        return (
            f"{more}data.repeats 4 (one pass over a file for four clips), or `tubelet data pack` once: it takes "
            f"{wanted:,} cores like these to decode what is computed"
        )

    @property
    def sentence(self) -> str:
        """Time and what binds, to follow the name of the recipe."""
        if self.hours is None:
            return f"does not fit into the memory of {self.machine}."
        return f"takes about {_time(self.hours)} on {self.machine}; {self.binds} binds."

    def rows(self) -> list[tuple[str, str]]:
        """A table for people."""
        kept = "not measured" if self.clip_bytes is None else f"{_size(self.clip_bytes)} a clip x {self.in_a_pass}"
        shorter, tried = self.shorter
        return [
            ("machine", self.machine),
            ("length", f"{self.steps:,} steps, {self.clips:,} clips"),
            ("computes", "not tried" if self.computes is None else f"{self.computes:,.3g} clips/s"),
            ("decodes", f"{self.decodes:,.3g} clips/s a core, {self.supply:,.3g} with train.workers {self.workers}"),
            ("memory", f"{_size(self.needed_bytes)} of {_size(self.memory_bytes)} ({kept})"),
            ("disk", f"{_size(self.disk_bytes)} for the run, {_size(self.disk_free_bytes)} free"),
            ("time", "unknown" if self.hours is None else f"{_time(self.hours)}, judging apart"),
            ("what binds", self.binds),
            ("what helps", self.remedy),
            *([("short videos", f"{shorter} of {tried} tried are shorter than a clip")] if shorter else []),
        ]

    def as_json(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in ("supply", "needed_bytes", "binds", "hours", "remedy")}
        return asdict(self) | derived

    def _less_memory(self) -> str:
        spare = self.memory_bytes - self.fixed_bytes
        if spare <= 0 or not self.clip_bytes:
            return "a smaller backbone.size, or a machine with more memory: weights and optimiser alone do not fit"
        fits = [n for n in range(1, self.share + 1) if self.share % n == 0 and n * self.clip_bytes <= spare]
        smaller = f"train.micro_batch {max(fits)} (the step stays the same), or " if fits else ""
        return f"{smaller}backbone.checkpointing true, or a smaller backbone"


def estimate(recipe: run.Recipe, budget_s: float = 10.0) -> Cost:
    """Tries the recipe for about `budget_s` seconds, half of them decoding.

    Raises:
        TubeletError: the parts of the recipe do not fit together, or the manifest has nothing to train on.
    """
    manifest = run.make_manifest(recipe)
    clips = run.make_clips(recipe, manifest, outline(recipe))
    options = recipe.train
    size = schedule.StepSize(options["batch"], clips.repeats, micro_batch=options["micro_batch"])
    per_epoch = max(1, len(clips) * clips.repeats // size.batch)
    steps = schedule.steps(options["length"], per_epoch)
    device = dist.device()
    weights = list(outline(recipe).parameters())
    learnt = sum(p.numel() for p in weights if p.requires_grad)
    held = sum(p.numel() for p in weights if not p.requires_grad)
    fixed, there = WEIGHT_BYTES * learnt + 4 * held, _memory(device)
    if device.type == "cpu":
        fixed += STATE_BYTES * learnt + 4 * held
    saved = (options["keep"] + 1) * STATE_BYTES + USED_BYTES  # while one is written, none is removed yet
    decodes, shorter = _decoding(clips, budget_s / 2)
    computes, clip_bytes = None, None
    if fixed < there:
        with shared_cores(options["workers"]):
            computes, clip_bytes = _Trial(recipe, clips, device).measure(size, budget_s / 2)
    return Cost(
        machine=describe_machine(), steps=steps, clips=steps * size.batch,
        in_a_pass=size.batch // size.passes, share=size.batch, computes=computes, decodes=decodes,
        workers=options["workers"], cores=cores(), on_gpu=device.type == "cuda", weights=learnt + held,
        fixed_bytes=fixed, clip_bytes=clip_bytes, memory_bytes=there, disk_bytes=saved * (learnt + held),
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free, shorter=shorter,
    )  # fmt: skip


class _Trial:
    """The recipe's learner and optimiser, with random clips to try them on."""

    def __init__(self, recipe: run.Recipe, clips: Clips, device: torch.device) -> None:
        self.learner: Learner = run.make_learner(recipe, clips.manifest)
        run.check(self.learner, clips)
        self.learner.to(device).train()
        self.clips, self.device, self.options = clips, device, recipe.train
        decay = {name: self.options[name] for name in ("weight_decay", "betas", "layer_decay")}
        self.optimisers = {phase: adamw(self.learner, phase, **decay) for phase in self.learner.phases}  # at rate 0

    def measure(self, size: schedule.StepSize, budget_s: float) -> tuple[float, int]:
        """Clips a second in steps of the recipe's size, and the bytes that each keeps for the backward pass.

        Passes grow as long as that pays, up to the recipe's own. From the last two follows what a clip takes and what
        a step takes besides, such as the optimiser.
        """
        most = size.batch // size.passes
        count = min(most, 2 * self.clips.repeats)  # of two videos, since some learners mix them
        clip_bytes = max(self._kept_bytes(count, phase) for phase in self.learner.phases) // count
        started = time.perf_counter()
        took = [(count, self._step_s(count))]
        while count < most and time.perf_counter() - started < budget_s:
            count = min(most, 2 * count)
            if count * clip_bytes > _memory(self.device):
                break
            took.append((count, self._step_s(count)))
            if took[-1][0] / took[-1][1] < WORTH_MORE * took[-2][0] / took[-2][1]:
                break
        return size.batch / step_of(size.batch, took), clip_bytes

    def _step_s(self, count: int) -> float:
        """Seconds of a step of one pass: the fastest of a few, after one to warm up."""
        batch = self._batch(count)
        best = math.inf
        for number in range(4):
            started = time.perf_counter()
            for phase, optimiser in self.optimisers.items():
                take_step(self.learner, self.learner, phase, optimiser, batch, 1, self.options["clip_norm"],
                          self.options["precision"])  # fmt: skip
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            took_s = time.perf_counter() - started
            best = min(best, took_s)
            if took_s > (2 if number else 5):
                break
        return best

    def _kept_bytes(self, count: int, phase: str) -> int:
        """Bytes that a forward pass keeps for the backward pass, weights aside."""
        weights = {p.untyped_storage().data_ptr() for p in self.learner.parameters()}
        kept: dict[int, Tensor] = {}  # the tensors themselves, or their addresses would be used again

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in weights:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            autocast(self.options["precision"], self.device),
        ):
            self.learner(self._batch(count), phase)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def _batch(self, count: int) -> Batch:
        clips = self.clips
        shape = count, 3, clips.frames * clips.density, clips.size, clips.size
        numbers = torch.arange(count, device=self.device)
        batch = Batch(
            video=[torch.rand(shape, device=self.device) for _ in range(clips.views)],  # B C T H W
            times=[torch.zeros(count, shape[2], device=self.device) for _ in range(clips.views)],
            label=numbers % max(1, len(clips.manifest.classes)), id=numbers % len(clips), group=numbers, key=numbers,
            readable=torch.ones(count, dtype=torch.bool, device=self.device),
        )  # fmt: skip
        if clips.has_beside:
            batch["flow"] = [torch.rand(shape, device=self.device) for _ in range(clips.views)]  # B C T H W
        if clips.audio_rate:
            batch["audio"] = [torch.rand(count, clips.samples, device=self.device) for _ in range(clips.views)]  # B S
            batch["audio_present"] = torch.ones(count, dtype=torch.bool, device=self.device)
        if clips.captions is not None:
            batch["text"] = [[clips.caption(row) for row in batch["id"].tolist()]] * clips.views
        return batch


def step_of(clips: int, took: list[tuple[int, float]]) -> float:
    """Seconds of a step of so many clips, from what smaller ones took, as (clips, seconds).

    The last two lie on a straight line, with a part that does not grow with the clips; where the clock was too uneven
    for that, time is taken to grow with the clips.
    """
    count, seconds = took[-1]
    each = seconds / count
    if len(took) > 1:
        before, seconds_before = took[-2]
        slope = (seconds - seconds_before) / (count - before)
        if 0.5 * each < slope <= each:
            return seconds + slope * (clips - count)
    return each * clips


def _decoding(clips: Clips, budget_s: float) -> tuple[float, tuple[int, int]]:
    """Clips a second of one worker, and how many of the videos that were tried are shorter than a clip."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have
    took_s: list[float] = []
    short = 0
    try:
        for row in draws.generator(clips.seed, "cost").permutation(len(clips))[:256].tolist():
            started = time.perf_counter()
            try:
                clips.take(row, 0, clips.repeats)
            except UnreadableVideo:
                continue
            took_s.append(time.perf_counter() - started)
            video = clips.manifest[row]
            info = read.probe(video.path, video.fps)
            short += info.duration_s < clips.frames * step_s(clips.stride, clips.reference_fps, info.fps)
            if sum(took_s) > budget_s:
                break
    finally:
        torch.set_num_threads(threads)
    if not took_s:
        raise TubeletError(f"no clip of {clips.manifest.source or 'the manifest'} can be decoded")
    timed = took_s[1:] or took_s  # the first warms up
    return len(timed) * clips.repeats / sum(timed), (short, len(took_s))


def _memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):
        about = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(about.partition("MemAvailable:")[2].split()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:,.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
