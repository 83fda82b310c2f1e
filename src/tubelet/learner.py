"""The contracts: what the loop asks of a learner, and what a learner, a task and a report ask of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tubelet.types import Batch, Features, Grid, Output, TubeletError


@dataclass(frozen=True)
class Now:
    """Where the run stands, for the hooks of a learner."""

    step: int
    """Optimiser steps done."""
    epoch: int
    new_epoch: bool
    """True at the first step of an epoch."""
    done: float
    """Share of the run that is done, 0..1."""
    ordered: Callable[[], Iterator[Batch]]
    """Goes through the training set once, in the order of `id` and without augmentation."""


class Backbone(nn.Module):
    """Turns clips into tokens. What is exported and judged.

    Pixels come as RGB in [0, 1]: the backbone normalises them itself, so that its weights need no mean and
    standard deviation beside them.
    """

    dim: int
    config: dict[str, Any]
    """``{"name": ..., **arguments}``: enough to build it again with `registry.build`."""
    mean: Tensor
    """C 1 1 1: what is subtracted from the pixels."""
    deviation: Tensor
    """C 1 1 1: what they are then divided by."""

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The grid of cubes for a clip of that size.

        Raises:
            TubeletError: the cubes do not divide the clip.
        """
        raise NotImplementedError

    def prepare(self, video: Tensor) -> Tensor:
        """The pixels that cubes are cut from and that a learner of pixels predicts, B C T H W: all of them, or less."""
        return video

    def forward(self, video: Tensor, hidden: Tensor | None = None) -> Features:
        """Encodes ``video`` (B C T H W in [0, 1]); with ``hidden`` (B N, True = hidden) only the visible cubes.

        Every clip of the batch must have the same number of hidden cubes.
        """
        raise NotImplementedError

    def layers(self) -> list[list[nn.Parameter]]:
        """Every parameter once, grouped from the input to the output, for layer-wise learning-rate decay.

        The last group is what comes after the last block, such as a norm; it is empty where nothing does.
        """
        raise NotImplementedError

    def start_from(self, source: Backbone) -> None:
        """Takes the weights of another backbone of this class, fitted to this one where they can be.

        Raises:
            TubeletError: they cannot; the message says which setting is in the way.
        """
        if source.config != self.config:
            raise TubeletError("it was made with other settings")
        self.load_state_dict(source.state_dict())


class Learner(nn.Module):
    """Anything that is trained: a self-supervised method or a downstream head. One loop, `fit`, trains them all.

    Two arguments of a constructor are filled in from the manifest that is trained on: ``classes``, how many labels it
    has, and ``videos``, how many rows, for what is kept of each video by its `id`.
    """

    modalities: tuple[str, ...] = ("video",)
    views: int = 1
    """How many views of each video the learner needs; checked before the first decode."""
    density: int = 1
    """The loader takes frames so many times as densely as `data.stride`: a clip has so many times `data.frames`.

    What the backbone sees of them is up to `forward`: every density-th, or whatever clips of `data.frames` it makes of
    them. `embed` gets every density-th.
    """
    view_times: str | None = None
    """How the times of a sample's views must lie to each other, as in `data.view_times`; None = in any way."""
    compares_clips: bool = False
    """The loss is of the clips of one forward pass together, compared with each other or a mean over some of them, so
    that smaller passes change it."""
    audio_rate: int = 0
    """Samples a second that the learner's ears are made for, where it has any; checked against `data.audio_rate`."""
    needs_labels: bool = False
    phases: tuple[str, ...] = ("main",)
    """One optimiser each, stepped in this order, by all or by none; a phase sees what those before it have changed.

    While one is trained, what the others train is frozen. All have the recipe's rates and decay.
    """
    backbone: Backbone

    def forward(self, batch: Batch, phase: str) -> Output:
        """The loss of a batch, which may be one piece of a step's.

        A loss of None is no step, such as while a queue fills, and is answered for a whole step: by all of its pieces
        and all processes alike, since they share gradients in the last piece's backward pass. A piece of which nothing
        can be learnt has a loss of zero with a gradient of zero for every weight (`nn.pairing.mean_present`).

        It changes nothing that is kept: queues, banks and teachers move in `after_step`, and not at all where a step is
        skipped. Statistics like those of a batch norm are the exception, if they are persistent buffers: those are put
        back when the step is skipped.
        """
        raise NotImplementedError

    def check_clip(self, frames: int, height: int, width: int) -> None:
        """Called before the first decode with the size of the clips that the backbone is judged with.

        Raises:
            TubeletError: the learner cannot learn from clips so small, or its backbone does not take them.
        """
        self.backbone.grid(frames, height, width)

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """The named parameters that `phase` trains: all that require a gradient, unless a learner says otherwise."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @property
    def exported(self) -> Backbone:
        """What is exported, judged and embedded with: the backbone, or a moving average of it."""
        return self.backbone

    def embed(self, batch: Batch) -> Tensor:
        """One vector a clip, B D: the mean of the backbone's tokens."""
        return self.exported(batch["video"][0]).tokens.mean(dim=1)  # B D

    def start_from(self, source: Learner) -> None:
        """Takes the weights that another learner of this class has besides its backbone: a decoder, a head.

        Raises:
            TubeletError: it is of another class, or a part is missing or of another shape.
        """
        if type(source) is not type(self):
            raise TubeletError(f"it is a {type(source).__name__}, and the recipe has a {type(self).__name__}")
        own, theirs = (
            {name: tensor for name, tensor in learner.state_dict().items() if not name.startswith("backbone.")}
            for learner in (self, source)
        )
        for name in sorted(own.keys() | theirs.keys()):
            shapes = [tuple(part[name].shape) if name in part else "missing" for part in (theirs, own)]
            if shapes[0] != shapes[1]:
                raise TubeletError(f"{name} is {shapes[0]} there and {shapes[1]} here")
        self.load_state_dict(theirs, strict=False)

    def before_step(self, now: Now) -> None:
        """Called before each step: assign clusters, refresh a bank."""

    def after_step(self, now: Now) -> None:
        """Called after each step of all phases: move a teacher, fill a queue, clamp a temperature.

        It is not called where the step was skipped since a loss or gradient was not finite: then the phases before that
        one are as they were, too.
        """
