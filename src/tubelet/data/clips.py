"""What a sample is: from a row of the manifest to clips, sampled in time, cropped, uint8, with what goes with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy
import torch
from numpy.random import Generator
from torch import Tensor

from tubelet import draws, registry
from tubelet.data import audio, read, sample, shards, torchcodec, transform
from tubelet.data.augment import RandAugment
from tubelet.data.info import UnreadableVideo, VideoInfo
from tubelet.data.listing import Manifest, Video
from tubelet.data.root import look_again
from tubelet.data.storage import Place
from tubelet.types import TubeletError

Sampling = Literal["random", "dense", "segments", "grid"]
Crop = Literal["resized", "multiscale", "center", "grid"]
ViewTimes = Literal["independent", "same", "near"]
Flow = Literal["none", "beside", "instead", "exchanged"]
READ: dict[Flow, tuple[Literal["path", "flow"], ...]] = {
    "none": ("path",), "beside": ("path", "flow"), "instead": ("flow",), "exchanged": ("flow", "path"),
}  # fmt: skip
"""Which places of a row are read: the first is the video of a sample, the second what comes beside it."""


class Piece(NamedTuple):
    """A part of a clip that is a square, or is yet to be resized to one and perhaps mirrored."""

    pixels: Tensor
    """T C H W uint8."""
    mirrored: bool = False
    is_flow: bool = False
    """Whether its first channel is a displacement, which a mirror turns round."""

    def square(self, size: int) -> Tensor:
        """T C size size, uint8."""
        return self.turned(transform.fit(self.pixels, size, size))

    def turned(self, square: Tensor) -> Tensor:
        """What became of its pixels, mirrored if they are to be."""
        if not self.mirrored:
            return square
        return transform.flip_flow(square) if self.is_flow else transform.flip(square)


class Taken(NamedTuple):
    """What reading one video gave."""

    clips: list[list[Piece]]
    """For each repeat, for each view."""
    times: list[list[numpy.ndarray]]
    """Likewise: T seconds."""
    sound: list[list[Tensor | None]]
    """Likewise, where sound is asked for: S float32; None where a file has none."""
    beside: list[list[Piece]]
    """The same moments and crops of a second film, where flow comes beside the video; else for each repeat none."""


class Clips:
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
        views: clips that are taken for each sample; None = as many as the learner needs, or one.
        view_times: the views of a sample lie in time "independent" of each other, at the "same" times, or "near" each
            other: the gap between their starts is the more likely the shorter it is, falling linearly to 0 at the
            longest that fits (CVRL); each is cropped by itself in any case. None = as the learner needs.
        repeats: samples that are taken from each video when it is opened, each at times of its own (as in mae_st;
            VideoMAE's share their frames and differ in augmentation alone).
        density: frames are taken so many times as densely as the stride says, for learners that predict what lies
            between, or cut it into clips of their own; a clip then has frames x density of them. A density above the
            stride shows frames of a file of the reference rate several times. None = as the learner needs.
        weights: how much of the training comes from each corpus, by the names in the manifest's column `corpus`; None =
            as many videos as there are of each. An epoch keeps its length.
        strides: the stride of each corpus that has one of its own (in V2's hybrid pre-training: 2 for
            Something-Something, 4 for the others).
        resize_on: where random crops are resized: by the "worker" that decodes, or on the "device" that trains, which
            takes work from the workers and sends larger pictures. On a CPU it is the same work, with the same result.
        audio_rate: samples a second of the sound of each clip's seconds, mixed to one channel; 0 = no sound.
        captions: column of the manifest whose words come along; None = no text.
        flow: optical flow, of the same moments and crops, of a manifest that `tubelet data flow` has made: "beside" the
            video, or "instead" of it, so that any method trains a network of flow; "exchanged" puts the video beside
            its flow, for networks of flow that learn with a look at the video.
        reader: "pyav", "torchcodec" (which has to be installed), or, for a run, "auto": the faster one on a few of its
            files, measured when it is started first. Their pixels differ a little where pictures are shrunk.
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
        views: int | None = None,
        view_times: Literal["independent", "same", "near"] | None = None,
        repeats: int = 1,
        density: int | None = None,
        weights: dict[str, float] | None = None,
        strides: dict[str, int] | None = None,
        resize_on: Literal["worker", "device"] = "worker",
        audio_rate: int = 0,
        captions: str | None = None,
        flow: Literal["none", "beside", "instead", "exchanged"] = "none",
        reader: Literal["pyav", "torchcodec", "auto"] = "pyav",
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
        views = 1 if views is None else views
        self.views = clips * crops if sampling == "grid" and min(self.grid) > 0 else views
        self.view_times: ViewTimes = "independent" if view_times is None else view_times
        self.repeats, self.density = repeats, 1 if density is None else density
        self.weights, self.strides = weights, strides or {}
        self.resize_on = resize_on
        self.audio_rate, self.captions = audio_rate, captions
        self.flow: Flow = flow
        self.reader: torchcodec.Reader = reader
        self.seed = seed
        self.in_segments = segments or sampling == "segments"
        self.randaugment = RandAugment.parse(randaugment) if randaugment is not None else None
        self._check()
        self.labels = torch.tensor(manifest.labels, dtype=torch.int64)
        """One a row; -1 where a video has none."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(manifest.groups))}
        self.groups = torch.tensor([numbers[name] for name in manifest.groups])
        """The number of each row's group, which it shares with its siblings."""

    def _check(self) -> None:
        if not len(self.manifest):
            source = self.manifest.source or "the manifest"
            raise TubeletError(f"{source} lists no videos; check its path and split")
        counts = {name: getattr(self, name) for name in ("frames", "stride", "size", "views", "repeats", "density")}
        for name, value in {**counts, "clips": self.grid[0], "crops": self.grid[1]}.items():
            if value < 1:
                raise TubeletError(f"{name} must be at least 1, not {value}")
        choices = {"sampling": Sampling, "crop": Crop, "view_times": ViewTimes, "flow": Flow}
        for name, known in ((name, get_args(kind)) for name, kind in choices.items()):
            choice = getattr(self, name)
            if choice not in known:
                raise TubeletError(f"{name} {choice!r} is not known{registry.nearest(str(choice), known)}")
        if self.density > 1 and self.sampling != "random":
            raise TubeletError(f"density {self.density} needs sampling 'random', not {self.sampling!r}")
        if self.view_times == "near" and self.sampling != "random":
            raise TubeletError(f"view_times 'near' needs sampling 'random', not {self.sampling!r}")
        if self.reference_fps < 0:
            raise TubeletError(f"reference_fps must be 0 (the file's own) or more, not {self.reference_fps}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise TubeletError(f"scale must be two growing shares such as [0.5, 1.0], not {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise TubeletError(f"ratio must be two growing numbers like [0.75, 1.5], not {list(self.ratio)}")
        if self.crop == "grid" and self.sampling != "grid":
            raise TubeletError(f"crop 'grid' needs sampling 'grid'; with {self.sampling!r} take 'center'")

        self._check_corpora()
        self._check_modalities()
        self._check_flow()

    def _check_corpora(self) -> None:
        known = {video.corpus for video in self.manifest.videos if video.corpus is not None} if self.strides else set()
        for name, stride in self.strides.items():
            if name not in known:
                raise TubeletError(f"data.strides names {name!r}, which is no corpus{registry.nearest(name, known)}")
            if stride < 1:
                raise TubeletError(f"data.strides: the stride of {name!r} must be at least 1, not {stride}")

    def _check_modalities(self) -> None:
        if self.captions is not None:
            columns = {name for video in self.manifest.videos for name in video.extra}
            if self.captions not in columns:
                where = self.manifest.source or "the manifest"
                known = registry.nearest(self.captions, columns) if columns else ": it has none of its own"
                raise TubeletError(f"data.captions: {where} has no column {self.captions!r}{known}")
        if self.audio_rate < 0:
            raise TubeletError(f"audio_rate must be 0 (no sound) or more, not {self.audio_rate}")
        if self.audio_rate and (self.in_segments or self.strides or not self.reference_fps):
            raise TubeletError(
                "audio_rate needs clips that all last equally long: a reference_fps above 0, no data.strides, and a "
                "sampling other than 'segments'"
            )

    def _check_flow(self) -> None:
        if self.flow == "none":
            return
        lacking = sum(video.flow is None for video in self.manifest.videos)
        if lacking:
            source = self.manifest.source or "clips.csv"
            raise TubeletError(
                f"data.flow {self.flow}: {lacking:,} of {len(self.manifest):,} videos of {source} have no flow: "
                f"`tubelet data flow {source} --out flow/` computes it, and then --data.manifest flow/clips.csv"
            )
        if self.randaugment is not None:
            raise TubeletError(f"data.flow {self.flow}: randaugment knows pictures alone: set data.randaugment to none")

    @property
    def has_beside(self) -> bool:
        """Whether a second film comes beside the video."""
        return len(READ[self.flow]) > 1

    @property
    def samples(self) -> int:
        """Of the sound of a clip."""
        return round(self.audio_rate * self.frames * self.stride / self.reference_fps) if self.audio_rate else 0

    def choose_reader(self, before: torchcodec.Reader | None = None) -> torchcodec.Chosen:
        """Settles what the reader "auto" means: what it meant ``before``, in the part of the run that there is, or now.

        Raises:
            TubeletError: torchcodec is asked for and cannot be used.
        """
        asked = before if self.reader == "auto" and before is not None else self.reader
        chosen = torchcodec.chosen(asked, [video.path for video in self.manifest.videos], self._decode_side)
        self.reader = chosen
        return chosen

    def for_testing(self, manifest: Manifest | None = None, clips: int = 1, crops: int = 1) -> Clips:
        """The same shape of clip from fixed places of `manifest` (or of this one): clips x crops views.

        What was trained in segments is tested in segments. Nothing stands in for a file that cannot be read.
        """
        return Clips(
            self.manifest if manifest is None else manifest, **self.clip, sampling="grid", crop="grid",
            flip=False, clips=clips, crops=crops, reader=self.reader, seed=self.seed,
        )  # fmt: skip

    @property
    def clip(self) -> dict[str, Any]:
        """The shape of a clip, as it is stored beside a backbone; with ``segments`` where it is tested in them.

        Likewise with ``flow``, where that is what the backbone sees.
        """
        shape = {name: getattr(self, name) for name in ("frames", "stride", "reference_fps", "size")}
        shape |= {"segments": True} if self.in_segments else {}
        return shape | ({"flow": "instead"} if READ[self.flow][0] == "flow" else {})

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Taken:
        """The clips of a row in its first epoch.

        Raises:
            UnreadableVideo: its file gives no frame.
        """
        return self.take(range(len(self))[row], 0, self.repeats)

    def take(self, row: int, epoch: int, repeats: int, place: int | None = None) -> Taken:
        """The clips of a row in some epoch.

        Times are read together, in one pass over the file; views are cropped alone.

        Args:
            place: the row from which the draws are made, where this one only stands in for it.

        Raises:
            UnreadableVideo: its file gives no frame.
        """
        video = self.manifest[row]
        for name in ("path", *READ[self.flow]):
            look_again(getattr(video, name), self.manifest.root)
        info = read.probe(video.path, video.fps)
        start_s, duration_s = _span(video, info)
        stride = self.strides.get(video.corpus, self.stride) if video.corpus is not None else self.stride
        gap_s = sample.step_s(stride, self.reference_fps, info.fps)
        key = (self.seed, epoch, row if place is None else place)
        streams = [
            [draws.generator(*key, repeat, view, "clip") for view in range(self._reads)] for repeat in range(repeats)
        ]
        times = [start_s + t for views in streams for t in self._times(duration_s, info.fps, gap_s, views)]
        films = self._films(video, numpy.concatenate(times))
        sound = [self._sound(video, info, t) for t in times] if self.audio_rate else []
        clips, kept, heard, beside = [], [], [], []
        for repeat, views in enumerate(streams):
            mine = slice(repeat * self._reads, (repeat + 1) * self._reads)
            cropped = [self._cropped(film[mine], views, is_flow) for is_flow, film in films]
            clips.append(cropped[0])
            beside.append(cropped[1] if self.has_beside else [])
            kept.append([t for t in times[mine] for _ in range(self.views // self._reads)])
            heard.append([wave for wave in sound[mine] for _ in range(self.views // self._reads)])
        return Taken(clips, kept, heard, beside)

    def _films(self, video: Video, times_s: numpy.ndarray) -> list[tuple[bool, tuple[Tensor, ...]]]:
        """What is read of a row, in pictures of one size: of each film whether it is of flow, and its clips."""
        films = [self._pixels(getattr(video, name), video.fps, times_s) for name in READ[self.flow]]
        films = [transform.fit(film, *films[0].shape[-2:]) for film in films]
        clips = (film.split(self.frames * self.density) for film in films)
        return [(name == "flow", parts) for name, parts in zip(READ[self.flow], clips, strict=True)]

    def _pixels(self, place: Place, fps: float | None, times_s: numpy.ndarray) -> Tensor:
        if self.reader == "torchcodec" and read.is_file(place):
            return torchcodec.read(place, times_s, self._decode_side)
        return read.read(place, times_s, self._decode_side, fps)

    def _cropped(self, clips: Sequence[Tensor], streams: Sequence[Generator], is_flow: bool) -> list[Piece]:
        """The squares of each view. The draws are made of copies: each film of a video gets the same."""
        pairs = zip(clips, copy.deepcopy(streams), strict=True)
        return [piece for clip, stream in pairs for piece in self._crop(clip, stream, is_flow)]

    def _sound(self, video: Video, info: VideoInfo, times_s: numpy.ndarray) -> Tensor | None:
        """The sound from when the first frame of a clip is shown, of the length of all clips; None = there is none."""
        there, file = _ears(video.path)
        if not there:
            return None
        first_s = float(times_s[0]) - 0.5 / info.fps  # times are the middles of frames
        seconds = self.samples / self.audio_rate
        return audio.waveform(video.path, first_s, seconds, self.audio_rate, origin_s=info.start_s, file=file)

    def caption(self, row: int) -> str:
        """The words of a row; none where it has none."""
        return self.manifest[row].extra.get(self.captions or "", "")

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
            times = [sample.segments(duration_s, fps, self.frames, stream) for stream in streams]
            return [times[0]] * len(times) if self.view_times == "same" else times
        draw = sample.dense if self.sampling == "dense" else sample.random_clip
        frames, gap_s = self.frames * self.density, gap_s / self.density
        if self.view_times == "near":
            return sample.near_clips(duration_s, fps, frames, gap_s, streams)
        times = [draw(duration_s, fps, frames, gap_s, stream) for stream in streams]
        return [times[0]] * len(times) if self.view_times == "same" else times

    def _crop(self, clip: Tensor, stream: Generator, is_flow: bool = False) -> list[Piece]:
        """The squares of a test grid, or one square at random, or the part of the picture that it is yet to be."""
        if self.sampling == "grid":
            return [Piece(square) for square in transform.crops(clip, self.size, self.grid[1])]
        if self.randaugment is not None:
            clip = self.randaugment(clip, stream)
        height, width = clip.shape[-2:]
        if self.crop == "resized":
            part = transform.cut(clip, transform.random_resized_box(height, width, self.scale, self.ratio, stream))
        elif self.crop == "multiscale":
            part = transform.cut(clip, transform.multi_scale_box(height, width, self.size, stream))
        else:
            part = transform.center_crop(clip, self.size)
        piece = Piece(part, self.flip and stream.random() < 0.5, is_flow)
        if self.resize_on == "device" and part.shape[-2] * part.shape[-1] <= self.largest_piece:
            return [piece]
        return [Piece(piece.square(self.size))]

    @property
    def largest_piece(self) -> int:
        """Pixels of the largest piece that a worker hands over: pictures twice as long as high fit in whole."""
        return 2 * self._decode_side**2 if self.resize_on == "device" else self.size**2

    @property
    def _decode_side(self) -> int:
        """The short side to decode at; files that are smaller stay as they are."""
        share = 1.0
        if self.sampling != "grid" and self.crop in ("resized", "multiscale"):
            share = math.sqrt(self.scale[0]) if self.crop == "resized" else transform.MULTI_SCALES[-1]
        return math.ceil(self.size / share)


def _span(video: Video, info: VideoInfo) -> tuple[float, float]:
    """Start and duration of the part of the file that a row means; it starts with a whole frame."""
    first, duration_s = sample.span(video.start_s, video.end_s, info.duration_s, info.fps)
    if duration_s <= 0:
        raise UnreadableVideo(video.path, f"a span from {first:g} s, but it ends at {first + duration_s:g} s")
    return first, duration_s


def any_sound(manifest: Manifest, most: int = 64) -> bool:
    """Whether there is a track of sound in any of so many videos at most, evenly spread over all."""
    for video in manifest.videos[:: -(-len(manifest) // most) or 1]:
        try:
            look_again(video.path, manifest.root)
            there, file = _ears(video.path)
            if there and audio.sound_of(video.path, file) is not None:
                return True
        except UnreadableVideo:
            continue
    return False


def _ears(place: Place) -> tuple[bool, Callable[[], BinaryIO] | None]:
    """Whether a place may have sound, and what opens it where it does not lie in the file itself."""
    file = shards.sound(place) if shards.is_place(place) else None
    return file is not None or read.is_file(place), file  # stills have none, nor what was packed without it
