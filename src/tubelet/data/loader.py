"""From clips to batches: videos in their order, read by watched workers into shared memory, moved to the device.

Nothing here has a state that matters. The place of a clip in the run (`Slot`) is a pure function of the global step,
and every draw is a hash of that place. Therefore batches are the same for any number of workers, from any step on, and
in any number of processes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from tubelet import draws
from tubelet.data.clips import Clips, Piece
from tubelet.data.device import copied, squares, to_device
from tubelet.data.info import UnreadableVideo
from tubelet.data.order import SUBSTITUTES, Order, Slot, candidates
from tubelet.data.ring import Ring
from tubelet.data.workers import LIMIT_S, Failure, Workers
from tubelet.types import Batch, TubeletError

_BATCHES_AHEAD = 2
_TASKS_AHEAD = 3
"""For each worker: small batches alone would leave workers without work."""
_RING_BYTES = 2 << 30
"""Above this, one batch is read ahead instead of two."""


class _Row(NamedTuple):
    """Shape and type of what one slot takes in a ring."""

    shape: tuple[int, ...]
    kind: type[numpy.generic]


class _Task(NamedTuple):
    """What a worker is asked: to read a row of the manifest into a row of the rings."""

    place: int
    """Of the rings."""
    slot: Slot
    row: int
    """Of the manifest: the slot's own or that of a substitute."""
    ends: bool
    """Whether it is the last of its batch."""
    refused: Failure | None = None
    """Why it need not even be tried: it was, before."""


class _Cut(NamedTuple):
    """What a clip in the ring is: a `Piece` without its pixels."""

    height: int
    width: int
    mirrored: bool
    is_flow: bool = False


class _Read(NamedTuple):
    """What a worker answers when the pixels are in the rings; otherwise a `Failure`."""

    times: list[list[numpy.ndarray]]
    """Of each repeat and view."""
    cuts: list[list[_Cut]]
    """Likewise, and then of what comes beside each view."""
    heard: bool
    """Whether there was sound."""


_Done = tuple[_Task, _Read | Failure]


class Reading(NamedTuple):
    """A file that is being read."""

    path: str
    seconds: float
    """For how long."""
    pid: int
    """Of the process that reads it."""


class Loader:
    """Batches of clips, endlessly for training (`batches`) or every row once (`once`).

    A training step takes ``batch / repeats`` videos in their `Order`. A video that cannot be read, on which the decoder
    crashes, or that takes too long, is listed in `unreadable` with the reason. In training another one, drawn by hash,
    stands in for it; in testing nothing does.

    Args:
        clips: what a sample is.
        batch: clips of a step over all processes.
        workers: processes that decode; 0 decodes in this one, where a crash or a hang of a decoder is not survived.
        shuffle: False takes the rows in their order, in every epoch.
        rank: this process; it takes the ``rank``-th of ``world`` contiguous parts of every batch.
        world: number of processes.
        limit_s: seconds that the clips of one video may take before their worker is stopped.

    Raises:
        TubeletError: the batch cannot be divided among repeats and processes, or the weights of a mixture do not fit.
    """

    def __init__(
        self,
        clips: Clips,
        batch: int,
        *,
        workers: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        limit_s: float = LIMIT_S,
    ) -> None:
        if batch < 1:
            raise TubeletError(f"batch must be at least 1, not {batch}")
        if workers < 0:
            raise TubeletError(f"workers must be at least 0, not {workers}")
        if batch % clips.repeats:
            raise TubeletError(f"batch {batch} is not divisible by repeats {clips.repeats}; change one")
        if (batch // clips.repeats) % world:
            raise TubeletError(
                f"a batch of {batch} clips ({batch // clips.repeats} videos) cannot be divided among {world} "
                "processes; change the batch or the number of processes"
            )
        self.clips = clips
        self.batch, self.workers, self.limit_s = batch, workers, limit_s
        self.rank, self.world = rank, world
        self.order = Order(clips.manifest, clips.seed, batch // clips.repeats, shuffle, clips.weights)
        self.unreadable: dict[str, str] = {}
        """Path and reason of the files that could not be read so far."""
        self.waited_s = 0.0
        """Seconds spent waiting for clips that were not ready when they were asked for."""
        self.unreadable_rows: dict[int, Failure] = {}
        """Likewise by row of the manifest: of several spans of one file some may be readable."""
        self._readers: Workers[_Task, _Read | Failure] | None = None

    def under_way(self) -> list[Reading]:
        """The files that are being read, longest first; to be asked from any thread."""
        busy = self._readers.under_way() if self._readers else []
        found = [
            Reading(str(self.clips.manifest[task.row].path), seconds, pid)
            for task, seconds, pid in busy if task.refused is None
        ]  # fmt: skip
        return sorted(found, key=lambda reading: -reading.seconds)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.clips) * self.clips.repeats // self.batch)

    def batches(self, start: int = 0, device: torch.device | str | None = None) -> Generator[Batch, None, None]:
        """Batches for training, from global step ``start`` on, without end.

        Clips are uint8 ``B C T H W``; on a ``device`` that is given they are floats, as `to_device` makes them.
        """
        return self._load((self.slots(step) for step in itertools.count(start)), self.clips.repeats, device)

    def once(self, device: torch.device | str | None = None) -> Generator[Batch, None, None]:
        """Each row once, in the order of id; the last batch may be smaller.

        One sample a row, whatever ``repeats`` says; nothing stands in for what cannot be read, so that ids
        stay whole. With several processes each takes a contiguous part of the rows: joined by rank they are
        in order again.
        """
        count = len(self.clips)
        rows = range(self.rank * count // self.world, (self.rank + 1) * count // self.world)
        size = max(1, self.batch // self.world)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return self._load(([Slot(0, row, 1, substitute=False) for row in part] for part in parts), 1, device)

    def slots(self, step: int) -> list[Slot]:
        """The videos of this process at a global step: a pure function of the step."""
        videos = self.batch // self.clips.repeats
        first = step * videos + self.rank * (videos // self.world)
        substitute = self.clips.sampling != "grid"
        places = (self.order[place] for place in range(first, first + videos // self.world))
        return [Slot(epoch, row, self.clips.repeats, substitute) for epoch, row in places]

    def _load(
        self, groups: Iterable[list[Slot]], repeats: int, device: torch.device | str | None
    ) -> Generator[Batch, None, None]:
        """One pass over groups of slots; its workers live as long as it does, which for training is the whole run."""
        most = max(1, self.batch // repeats // self.world)  # slots of a group
        bytes_each = most * sum(math.prod(shape) * numpy.dtype(kind).itemsize for shape, kind in self._rows(repeats))
        groups_ahead = _BATCHES_AHEAD if (1 + _BATCHES_AHEAD) * bytes_each <= _RING_BYTES else 1
        groups_ahead = max(groups_ahead, math.ceil(_TASKS_AHEAD * self.workers / most)) if self.workers else 0
        # Of the group that is handed out none is written over: at most `ahead` slots beyond it are under way.
        rings = [Ring((1 + groups_ahead) * most, shape, kind) for shape, kind in self._rows(repeats)]
        if device is not None and torch.device(device).type == "cuda":
            for ring in rings:
                ring.pin()
        tasks = (
            self._task(slot, place=number % (1 + groups_ahead) * most + index, ends=index == len(slots) - 1)
            for number, slots in enumerate(groups)
            for index, slot in enumerate(slots)
        )
        self._readers = Workers(partial(_fill, self.clips, rings), self.workers, self.limit_s)
        results = self._readers.map(tasks, ahead=groups_ahead * most, again=self._again)
        try:
            while group := self._wait_for(results):
                yield self._batch(group, rings, device)
        finally:
            results.close()
            for ring in rings:
                ring.unpin()

    def _rows(self, repeats: int) -> list[_Row]:
        """What one slot takes: the pictures of each view, then those beside each, then the sound of each."""
        clips = self.clips
        pictures = _Row((repeats, clips.frames * clips.density * clips.largest_piece * 3), numpy.uint8)
        sound = [_Row((repeats, clips.samples), numpy.float32)] if clips.audio_rate else []
        return [pictures] * (clips.views * (1 + clips.has_beside)) + sound * clips.views

    def _wait_for(self, results: Iterator[_Done]) -> list[_Done]:
        """The next group, complete; nothing after the last."""
        started = time.perf_counter()
        group = []
        for done in results:
            group.append(done)
            if done[0].ends:
                break
        self.waited_s += time.perf_counter() - started
        return group

    def _task(self, slot: Slot, place: int, ends: bool) -> _Task:
        row = self._next_row(slot)
        if row is None:
            return _Task(place, slot, slot.id, ends, self.unreadable_rows[slot.id])
        return _Task(place, slot, row, ends)

    def _next_row(self, slot: Slot) -> int | None:
        """The first row for a slot that is not known to be unreadable."""
        if slot.id not in self.unreadable_rows:
            return slot.id
        rows = candidates(slot, self.order.peers(slot.id), self.clips.seed)
        return next((row for row in rows if row not in self.unreadable_rows), None)

    def _again(self, task: _Task, result: _Read | Failure) -> _Task | None:
        """Notes what could not be read, and answers what to read instead."""
        if isinstance(result, _Read) or task.refused is not None:
            return None
        self.unreadable[str(self.clips.manifest[task.row].path)] = result.reason
        self.unreadable_rows[task.row] = result
        row = self._next_row(task.slot)
        return None if row is None else task._replace(row=row)

    def _batch(
        self, group: list[_Done], rings: list[Ring], device: torch.device | str | None
    ) -> Batch:
        """Samples side by side, in memory of their own, on the device where there is one."""
        clips, first, slot = self.clips, group[0][0].place, group[0][0].slot
        readable = [isinstance(result, _Read) for _, result in group]
        for (task, _), good in zip(group, readable, strict=True):
            if not good:
                self._insist_on_one(task)
                for ring in rings:
                    ring.array[task.place] = 0
        nothing = [[numpy.zeros(clips.frames * clips.density)] * clips.views] * slot.repeats
        times = [result.times if isinstance(result, _Read) else nothing for _, result in group]
        rows = [task.row if good else task.slot.id for (task, _), good in zip(group, readable, strict=True)]
        keys = [draws.key(clips.seed, t.slot.epoch, t.slot.id, r) for t, _ in group for r in range(slot.repeats)]
        ids = torch.tensor(rows).repeat_interleave(slot.repeats)  # B
        here = slice(first, first + len(group))
        batch = Batch(
            video=[self._video(group, view, rings[view], device) for view in range(clips.views)],
            times=[
                torch.from_numpy(numpy.stack([views[view] for video in times for views in video]))
                for view in range(clips.views)
            ],  # B T
            label=clips.labels[ids],
            id=ids,
            group=clips.groups[ids],
            key=torch.tensor(keys),
            readable=torch.tensor(readable).repeat_interleave(slot.repeats),
        )
        if clips.has_beside:
            beside = range(clips.views, 2 * clips.views)
            batch["flow"] = [self._video(group, place, rings[place], device) for place in beside]
        if clips.audio_rate:
            batch["audio"] = [ring[here].flatten(0, 1).clone() for ring in rings[-clips.views :]]  # B S
            present = [isinstance(result, _Read) and result.heard for _, result in group]
            batch["audio_present"] = torch.tensor(present).repeat_interleave(slot.repeats)
        if clips.captions is not None:
            batch["text"] = [[clips.caption(row) for row in ids.tolist()]] * clips.views
        return batch if device is None else to_device(batch, device)

    def _video(
        self, group: list[_Done], view: int, ring: Ring, device: torch.device | str | None
    ) -> Tensor:
        """The clips of a view, or of what comes beside it, out of the ring: B C T H W."""
        clips = self.clips
        frames, size = clips.frames * clips.density, clips.size
        if clips.resize_on == "worker":
            first, count = group[0][0].place, len(group)
            rows = ring.array[first : first + count].reshape(-1, frames, size, size, 3)
            if device is not None and torch.device(device).type == "cuda":
                return copied(torch.from_numpy(rows), torch.device(device)).permute(0, 4, 1, 2, 3)  # B C T H W
            return torch.from_numpy(numpy.ascontiguousarray(rows.transpose(0, 4, 1, 2, 3)))  # B C T H W
        pieces = []
        for task, result in group:
            for repeat in range(task.slot.repeats):
                cut = result.cuts[repeat][view] if isinstance(result, _Read) else _Cut(size, size, False)
                pixels = ring.array[task.place, repeat, : frames * cut.height * cut.width * 3]
                pixels = torch.from_numpy(pixels.reshape(frames, cut.height, cut.width, 3))
                pieces.append(Piece(pixels.permute(0, 3, 1, 2), cut.mirrored, cut.is_flow))  # T C H W
        return squares(pieces, size, torch.device(device or "cpu"))

    def _insist_on_one(self, task: _Task) -> None:
        if task.slot.substitute:
            tried = min(len(self.order.peers(task.slot.id)), SUBSTITUTES)
            path, reason = self.clips.manifest[task.slot.id].path, self.unreadable_rows[task.slot.id].reason
            raise TubeletError(
                f"{self.clips.manifest.source or 'the manifest'}: none of {tried} videos could be read, such as "
                f"{path}: {reason}; `tubelet data check` lists what is readable, and why the rest is not"
            )


def _fill(clips: Clips, rings: list[Ring], task: _Task) -> _Read | Failure:
    """Reads the clips of a task into its row of the rings: the work of a worker."""
    if task.refused is not None:
        return task.refused
    try:
        taken = clips.take(task.row, task.slot.epoch, task.slot.repeats, task.slot.id)
    except UnreadableVideo as error:
        return Failure(error.reason)
    pieces = [views + beside for views, beside in zip(taken.clips, taken.beside, strict=True)]
    for repeat, films in enumerate(pieces):
        for ring, piece in zip(rings, films, strict=False):
            pixels = piece.pixels.permute(0, 2, 3, 1).numpy()  # T H W C
            ring.array[task.place, repeat, : pixels.size].reshape(pixels.shape)[:] = pixels
    for repeat, waves in enumerate(taken.sound):
        for ring, wave in zip(rings[-clips.views :], waves, strict=False):
            ring.array[task.place, repeat] = 0 if wave is None else wave.numpy()
    heard = any(wave is not None for waves in taken.sound for wave in waves)
    cuts = [[_Cut(*p.pixels.shape[-2:], mirrored=p.mirrored, is_flow=p.is_flow) for p in films] for films in pieces]
    return _Read(taken.times, cuts, heard)
