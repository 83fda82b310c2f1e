"""From a manifest to batches: which video is next, which of its moments and pixels, decoded by workers.

Nothing here has a state. The place of a clip in the run (`Slot`) is a pure function of the global step, and
every draw is a hash of that place. Therefore batches are the same for any number of workers, from any step
on, and in any number of processes.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy
import torch
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tubelet import draws, registry
from tubelet.data import read, sample, transform
from tubelet.data.augment import RandAugment
from tubelet.data.listing import Manifest, Video
from tubelet.types import Batch, TubeletError

Sampling = Literal["random", "dense", "segments", "grid"]
Crop = Literal["resized", "multiscale", "center", "grid"]

_SUBSTITUTES = 100
"""So many unreadable videos in a row are taken for a training set of which nothing can be read."""


class Slot(NamedTuple):
    """The place of a video in a run: all that its clips depend on, besides the seed."""

    epoch: int
    id: int
    repeats: int
    """How many clips are taken, each with a key of its own."""
    substitute: bool
    """Whether another video stands in when this one cannot be read."""


@dataclass
class Taken:
    """What decoding one video gave; plain data, because it crosses from a worker to the main process."""

    id: int
    label: int
    keys: list[int]
    clips: list[list[Tensor]]
    """For each repeat, for each view: T C H W uint8."""
    times: list[list[numpy.ndarray]]
    readable: bool
    unreadable: list[tuple[str, str]]
    """Path and reason of each file that was tried in vain."""
    error: str | None = None


class Clips(Dataset[Taken]):
    """Clips of the videos of a manifest: sampled in time, cropped to a square, uint8.

    Every draw comes from ``hash(seed, epoch, id, repeat, view)``. One open and one pass over a file serve all
    its views and repeats. Large pictures are decoded at a smaller size, the smallest that leaves the crops
    (of a square picture) nothing to enlarge: a short side of ``size / sqrt(scale[0])``, ``size / 0.66`` or
    ``size``, as ``crop`` says.

    Args:
        manifest: which videos.
        frames: frames of a clip.
        stride: frames of the video (at the reference frame rate) from one frame of the clip to the next.
        reference_fps: the frame rate that the stride counts in; 0 counts each file's own frames.
        size: height and width of a clip, in pixels.
        sampling: "random" start, "dense" (VideoMAE's fine-tuning), one frame from each of equal "segments"
            (TSN), or the fixed "grid" of a test: evenly spaced clips x crops, one view each, nothing random.
        crop: "resized" (random area and shape), "multiscale" (VideoMAE's pre-training) or "center"; sampling
            "grid" always takes "grid", squares along the long side.
        scale: smallest and largest share of the picture's area that "resized" takes.
        ratio: smallest and largest width over height that "resized" takes.
        flip: mirror half of the clips; leave it off where left and right mean something.
        randaugment: random changes of colour and geometry before the crop, the same in all frames, in timm's notation
            (published for fine-tuning: "m7-n4-mstd0.5"); None = none.
        views: clips that are taken independently for each sample.
        repeats: samples that are taken from each video when it is opened, each at times of its own (as in mae_st;
            VideoMAE's share their frames and differ in augmentation alone).
        density: frames are taken so many times as densely as the stride says, for learners that predict the frames
            between those that the backbone sees; a clip then has frames x density of them.
        clips: how many clips a grid takes along time.
        crops: how many squares a grid takes along the long side.
        segments: a grid takes its clips in segments; what is trained in segments is tested so in any case.
        seed: another seed gives other draws.

    Raises:
        TubeletError: the manifest is empty, or an option makes no sense.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        frames: int = 16,
        stride: int = 4,
        reference_fps: float = 30.0,
        size: int = 224,
        sampling: Literal["random", "dense", "segments", "grid"] = "random",
        crop: Literal["resized", "multiscale", "center", "grid"] = "resized",
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (0.75, 1.3333),
        flip: bool = True,
        randaugment: str | None = None,
        views: int = 1,
        repeats: int = 1,
        density: int = 1,
        clips: int = 1,
        crops: int = 1,
        segments: bool = False,
        seed: int = 0,
    ) -> None:
        self.manifest = manifest
        self.frames, self.stride, self.reference_fps, self.size = frames, stride, reference_fps, size
        self.sampling: Sampling = sampling
        self.crop: Crop = crop
        self.scale, self.ratio, self.flip = (scale[0], scale[1]), (ratio[0], ratio[1]), flip
        self.grid = (clips, crops)
        self.views = clips * crops if sampling == "grid" and min(self.grid) > 0 else views
        self.repeats, self.density = repeats, density
        self.seed = seed
        self.in_segments = segments or sampling == "segments"
        self.randaugment = RandAugment.parse(randaugment) if randaugment is not None else None
        self._check()
        self.labels = torch.tensor(manifest.labels, dtype=torch.int64)
        """One a row; -1 where a video has none."""

    def _check(self) -> None:
        if not len(self.manifest):
            source = self.manifest.source or "the manifest"
            raise TubeletError(f"{source} lists no videos; check its path and split")
        counts = {name: getattr(self, name) for name in ("frames", "stride", "size", "views", "repeats", "density")}
        for name, value in {**counts, "clips": self.grid[0], "crops": self.grid[1]}.items():
            if value < 1:
                raise TubeletError(f"{name} must be at least 1, not {value}")
        for name, known in (("sampling", get_args(Sampling)), ("crop", get_args(Crop))):
            choice = getattr(self, name)
            if choice not in known:
                raise TubeletError(f"{name} {choice!r} is not known{registry.nearest(str(choice), known)}")
        if self.density > 1 and self.sampling != "random":
            raise TubeletError(f"density {self.density} needs sampling 'random', not {self.sampling!r}")
        if self.reference_fps < 0:
            raise TubeletError(f"reference_fps must be 0 (the file's own) or more, not {self.reference_fps}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise TubeletError(f"scale must be two growing shares such as [0.5, 1.0], not {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise TubeletError(f"ratio must be two growing numbers like [0.75, 1.5], not {list(self.ratio)}")
        if self.crop == "grid" and self.sampling != "grid":
            raise TubeletError(f"crop 'grid' needs sampling 'grid'; with {self.sampling!r} take 'center'")

    def for_testing(self, manifest: Manifest | None = None, clips: int = 1, crops: int = 1) -> Clips:
        """The same shape of clip from fixed places of `manifest` (or of this one): clips x crops views.

        What was trained in segments is tested in segments. Nothing stands in for a file that cannot be read.
        """
        return Clips(
            self.manifest if manifest is None else manifest, **self.clip, sampling="grid", crop="grid",
            flip=False, clips=clips, crops=crops, seed=self.seed,
        )  # fmt: skip

    @property
    def clip(self) -> dict[str, Any]:
        """The shape of a clip, as it is stored beside a backbone; with ``segments`` where it is tested in them."""
        shape = {name: getattr(self, name) for name in ("frames", "stride", "reference_fps", "size")}
        return shape | ({"segments": True} if self.in_segments else {})

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, slot: Slot | int) -> Taken:
        """The clips of one slot; a plain number stands for the first epoch's slot of that row."""
        if not isinstance(slot, Slot):
            slot = Slot(0, range(len(self))[slot], self.repeats, substitute=self.sampling != "grid")
        keys = [draws.key(self.seed, slot.epoch, slot.id, repeat) for repeat in range(slot.repeats)]
        unreadable: list[tuple[str, str]] = []
        for row in self._candidates(slot):
            video = self.manifest[row]
            try:
                clips, times = self._take(video, slot)
            except read.UnreadableVideo as error:
                unreadable.append((str(error.path), error.reason))
                continue
            return Taken(row, int(self.labels[row]), keys, clips, times, True, unreadable)
        nothing = torch.zeros(self.frames * self.density, 3, self.size, self.size, dtype=torch.uint8)
        taken = Taken(
            slot.id, int(self.labels[slot.id]), keys, [[nothing] * self.views] * slot.repeats,
            [[numpy.zeros(self.frames * self.density)] * self.views] * slot.repeats, False, unreadable,
        )  # fmt: skip
        if slot.substitute:
            path, reason = unreadable[0]
            taken.error = (
                f"{self.manifest.source or 'the manifest'}: none of {len(unreadable)} videos could be read, "
                f"such as {path}: {reason}; `tubelet data scan` lists what is readable"
            )
        return taken

    def _candidates(self, slot: Slot) -> Iterator[int]:
        """The slot's own row and, where substitution is allowed, others in an order drawn by hash."""
        yield slot.id
        if slot.substitute:
            others = draws.generator(self.seed, slot.epoch, slot.id, "substitute").permutation(len(self))
            yield from [int(row) for row in others if row != slot.id][: _SUBSTITUTES - 1]

    def _take(self, video: Video, slot: Slot) -> tuple[list[list[Tensor]], list[list[numpy.ndarray]]]:
        """Clips and times for each repeat and view: times are read together, views cropped alone."""
        info = read.probe(video.path)
        start_s, duration_s = _span(video, info)
        gap_s = sample.step_s(self.stride, self.reference_fps, info.fps)
        place = (self.seed, slot.epoch, slot.id)
        streams = [
            [draws.generator(*place, repeat, view, "clip") for view in range(self._reads)]
            for repeat in range(slot.repeats)
        ]
        times = [start_s + t for views in streams for t in self._times(duration_s, info.fps, gap_s, views)]
        pixels = read.read(video.path, numpy.concatenate(times), self._decode_side).split(self.frames * self.density)
        clips, kept = [], []
        for repeat, views in enumerate(streams):
            mine = slice(repeat * self._reads, (repeat + 1) * self._reads)
            decoded = zip(pixels[mine], views, strict=True)
            clips.append([square for clip, stream in decoded for square in self._crop(clip, stream)])
            kept.append([t for t in times[mine] for _ in range(self.views // self._reads)])
        return clips, kept

    @property
    def _reads(self) -> int:
        """Clips that are decoded for each sample; the squares of one moment share theirs."""
        return self.grid[0] if self.sampling == "grid" else self.views

    def _times(self, duration_s: float, fps: float, gap_s: float, streams: list[Generator]) -> list[numpy.ndarray]:
        if self.sampling == "grid" and self.in_segments:
            return [sample.segments(duration_s, fps, self.frames, at=at) for at in sample.segment_shares(len(streams))]
        if self.sampling == "grid":
            return sample.grid(duration_s, fps, self.frames, gap_s, len(streams))
        if self.sampling == "segments":
            return [sample.segments(duration_s, fps, self.frames, stream) for stream in streams]
        draw = sample.dense if self.sampling == "dense" else sample.random_clip
        frames, gap_s = self.frames * self.density, gap_s / self.density
        return [draw(duration_s, fps, frames, gap_s, stream) for stream in streams]

    def _crop(self, clip: Tensor, stream: Generator) -> list[Tensor]:
        """The squares of a test grid, or one square at random."""
        if self.sampling == "grid":
            return transform.crops(clip, self.size, self.grid[1])
        if self.randaugment is not None:
            clip = self.randaugment(clip, stream)
        if self.crop == "resized":
            clip = transform.random_resized_crop(clip, self.size, self.scale, self.ratio, stream)
        elif self.crop == "multiscale":
            clip = transform.multi_scale_crop(clip, self.size, stream)
        else:
            clip = transform.center_crop(clip, self.size)
        return [transform.flip(clip) if self.flip and stream.random() < 0.5 else clip]

    @property
    def _decode_side(self) -> int:
        """The short side to decode at; files that are smaller stay as they are."""
        share = 1.0
        if self.sampling != "grid" and self.crop in ("resized", "multiscale"):
            share = math.sqrt(self.scale[0]) if self.crop == "resized" else transform.MULTI_SCALES[-1]
        return math.ceil(self.size / share)


class Loader:
    """Batches of clips, endlessly for training (`batches`) or every row once (`once`).

    A training step takes ``batch / repeats`` videos of the epoch's permutation; the rest that fills no batch
    is left out of that epoch. A set smaller than a batch is chained, permutation after permutation.

    Args:
        clips: what a sample is.
        batch: clips of a step over all processes.
        workers: processes that decode; 0 decodes in this one.
        shuffle: False takes the rows in their order, in every epoch.
        rank: this process; it takes the ``rank``-th of ``world`` contiguous parts of every batch.
        world: number of processes.

    Raises:
        TubeletError: the batch cannot be divided among repeats and processes.
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
        self.batch, self.workers, self.shuffle = batch, workers, shuffle
        self.rank, self.world = rank, world
        self.unreadable: dict[str, str] = {}
        """Path and reason of the files that could not be read, as far as their batches have been yielded."""

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.clips) * self.clips.repeats // self.batch)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches for training, from global step ``start`` on, without end. Clips are uint8 ``B C T H W``."""
        return self._load(_Endless(self, start))

    def once(self) -> Iterator[Batch]:
        """Each row once, in the order of id; the last batch may be smaller.

        One sample a row, whatever ``repeats`` says; nothing stands in for what cannot be read, so that ids
        stay whole. With several processes each takes a contiguous part of the rows: joined by rank they are
        in order again.
        """
        count = len(self.clips)
        rows = range(self.rank * count // self.world, (self.rank + 1) * count // self.world)
        size = max(1, self.batch // self.world)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return self._load([[Slot(0, row, 1, substitute=False) for row in part] for part in parts])

    def slots(self, step: int) -> list[Slot]:
        """The videos of this process at a global step: a pure function of the step."""
        videos = self.batch // self.clips.repeats
        count = len(self.clips)
        used = count // videos * videos or count
        first = step * videos + self.rank * (videos // self.world)
        substitute = self.clips.sampling != "grid"
        slots = []
        for place in range(first, first + videos // self.world):
            epoch, position = divmod(place, used)
            row = int(_order(self.clips.seed, epoch, count)[position]) if self.shuffle else position
            slots.append(Slot(epoch, row, self.clips.repeats, substitute))
        return slots

    def _load(self, slots: Iterable[list[Slot]]) -> Iterator[Batch]:
        """One pass over `slots`; its workers live as long as it does, which for training is the whole run."""
        data = DataLoader(
            self.clips, batch_sampler=slots, collate_fn=_collate, num_workers=self.workers,
            worker_init_fn=_start_worker, pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each pass draws from the global one, and a resumed run differs
        )  # fmt: skip
        for batch, unreadable, error in data:
            self.unreadable.update(unreadable)
            if error is not None:
                raise TubeletError(error)
            yield batch


class _Endless:
    """The slots of every step from `start` on, as a batch sampler."""

    def __init__(self, loader: Loader, start: int) -> None:
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator[list[Slot]]:
        step = self.start
        while True:
            yield self.loader.slots(step)
            step += 1


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`, with clips as floats in [0, 1]: ``B C T H W``, contiguous."""
    moved: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, list):
            moved[name] = [tensor.to(device, non_blocking=True) for tensor in value]
        else:
            moved[name] = value.to(device, non_blocking=True)  # type: ignore[attr-defined]
    moved["video"] = [v.float().div_(255) if v.dtype == torch.uint8 else v for v in moved["video"]]
    return Batch(**moved)


def _collate(taken: list[Taken]) -> tuple[Batch, list[tuple[str, str]], str | None]:
    """Stacks samples, view by view; what could not be read, and an error, travel beside the batch."""
    samples = [(one, repeat) for one in taken for repeat in range(len(one.keys))]
    views = range(len(taken[0].clips[0]))
    batch = Batch(
        video=[torch.stack([s.clips[r][v].transpose(0, 1) for s, r in samples]) for v in views],  # B C T H W
        times=[torch.from_numpy(numpy.stack([s.times[r][v] for s, r in samples])) for v in views],  # B T
        label=torch.tensor([s.label for s, _ in samples]),
        id=torch.tensor([s.id for s, _ in samples]),
        key=torch.tensor([s.keys[r] for s, r in samples]),
        readable=torch.tensor([s.readable for s, _ in samples]),
    )
    unreadable = [pair for one in taken for pair in one.unreadable]
    return batch, unreadable, next((one.error for one in taken if one.error is not None), None)


def _start_worker(worker: int) -> None:
    """Workers share the cores and leave Ctrl-C and SIGTERM to the main process, which saves and then ends them.

    Both often go to the whole process group; a worker that died of one would take the main process with it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> numpy.ndarray:
    return draws.generator(seed, epoch, "order").permutation(count)


def _span(video: Video, info: read.VideoInfo) -> tuple[float, float]:
    """Start and duration of the part of the file that a row means; it starts with a whole frame."""
    first = math.floor((video.start_s or 0.0) * info.fps + 1e-6) / info.fps
    end = info.duration_s if video.end_s is None else min(video.end_s, info.duration_s)
    if end <= first:
        raise read.UnreadableVideo(video.path, f"a span from {first:g} s, but it ends at {end:g} s")
    return first, end - first
