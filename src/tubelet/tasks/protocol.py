"""Which videos a task learns from and which it is judged on, and what it reports: the same rules for every task.

A task never sees the labels of the test videos before it is judged: what it has to choose (a regularisation, a
learning rate) it chooses on `folds` of the training videos. Every readable test video counts once, whatever the number
of its views; an unreadable one is left out and counted, and nothing stands in for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from tubelet import draws
from tubelet.checkpoint import write_csv
from tubelet.data.division import few_labels, train_and_test
from tubelet.data.listing import Manifest
from tubelet.log import say, warn
from tubelet.metrics.classification import judge
from tubelet.types import TubeletError

Result = dict[str, Any]
"""What a task answers, ready for JSON: what `judge` returns, and ``seconds``, ``missing``, ``train_videos`` ...

A task that is not about classes names its own ``numbers``, as `Task.numbers` has them. The 95 % ``interval`` is
the main one's, ``videos`` is how many were judged, and ``judged_on`` says where they are from, if not from the labelled
videos of the manifest. ``pictures`` names files beside ``predictions.csv`` to be looked at.
"""
CLASSIFICATION = ("top1", "top5", "class_mean")
"""The numbers of a result that names none."""


class Task:
    """Judges a backbone. Options are the arguments of its constructor."""

    numbers: Sequence[str] = CLASSIFICATION
    """The names of what it finds, the main one first: shares, of which more is better."""
    one_frame: bool = True
    """Whether the pixels of a clip's middle frame can be judged in place of an encoder's tokens, as a control."""

    def data(self, terms: Terms) -> Any:
        """What is judged on, as `__call__` takes it: labelled videos of two classes or more, unless a task says else.

        Raises:
            TubeletError: there is nothing that the task can be done on.
        """
        return terms.labelled

    def __call__(self, backbone: Any, data: Any, out: Path, /) -> Result:
        """Judges a `Backbone` (`classify`: a whole learner) on ``data``; files to be kept go into ``out``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Terms:
    """The terms of a comparison, from which each task takes the data that it needs."""

    manifest: Callable[[], Manifest]
    """Reads the whole listing; a task that has its videos from elsewhere does not ask."""
    clip: dict[str, Any]
    """``frames``, ``stride``, ``reference_fps``, ``size``."""
    labels_per_class: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """The other fields of `Protocol`."""

    @cached_property
    def labelled(self) -> Protocol:
        """The labelled videos; the same for all tasks that ask."""
        few = self.labels_per_class
        return Protocol.from_manifest(
            self.manifest(), self.clip, labels_per_class=few, seed=self.seed, **self.options
        )


@dataclass(frozen=True)
class Protocol:
    """The terms of a comparison: two backbones under one protocol see the same videos, frames and labels.

    Raises:
        TubeletError: a split is empty, a video has no label, there is one class only, or a class to be judged is
            not among the training videos.
    """

    train: Manifest
    test: Manifest
    clip: dict[str, Any]
    """``frames``, ``stride``, ``reference_fps``, ``size``."""
    test_clips: int = 1
    test_crops: int = 1
    seed: int = 0
    workers: int = 0
    batch: int = 32
    cache: Path | None = None
    """Folder for features, which are then computed once."""
    flip: bool = False
    """Whether a mirrored video keeps its class: False where left and right mean something."""

    def __post_init__(self) -> None:
        for name, manifest in (("train", self.train), ("test", self.test)):
            if len(manifest) == 0:
                raise TubeletError(f"the {name} split is empty{_of(manifest)}: give it rows in the column `split`")
            unlabelled = [video.path for video in manifest.videos if video.label is None]
            if unlabelled:
                raise TubeletError(
                    f"{len(unlabelled)} of {len(manifest)} {name} videos have no label{_of(manifest)} (the first is "
                    f"{unlabelled[0]}): fill in the column `label`"
                )
        learnt = {video.label for video in self.train.videos}
        if len(learnt) < 2:
            raise TubeletError(f"there is only one class, {learnt.pop()!r}{_of(self.train)}: a task needs two or more")
        strange = sorted({str(video.label) for video in self.test.videos if video.label not in learnt})
        if strange:
            raise TubeletError(f"no training video has the class {', '.join(map(repr, strange[:5]))} of a test video")
        shared = set(self.train.groups) & set(self.test.groups)
        if shared:
            warn(f"{len(shared)} groups are in train and in test, such as {min(shared)}: the numbers will be too good")

    @property
    def classes(self) -> list[str]:
        return self.train.classes

    @classmethod
    def from_manifest(
        cls, manifest: Manifest, clip: dict[str, Any], *, labels_per_class: int | None = None, **options: Any
    ) -> Protocol:
        """Takes the splits of a manifest, or keeps a fifth of it for testing: see `train_and_test`.

        Args:
            manifest: the whole listing.
            clip: as in `Protocol`.
            labels_per_class: learn from that many videos of each class, drawn by the protocol's seed.
            options: the other fields of `Protocol`.
        """
        train, test = train_and_test(manifest)
        unlabelled = sum(label < 0 for label in manifest.labels)
        if unlabelled:
            say(f"{unlabelled} of {len(manifest)} videos have no label and take no part")
        if not {"test", "val"} & set(manifest.splits):
            say(f"no train and test split{_of(manifest)}: {len(train)} videos to learn from, {len(test)} to judge on")
        if labels_per_class is not None:
            train = few_labels(train, labels_per_class, options.get("seed", 0))
        return cls(train, test, clip, **options)


def labels_of(manifest: Manifest, classes: list[str]) -> Tensor:
    """N int64: the index of each video's label among `classes` (two manifests may number their own differently)."""
    index = {name: k for k, name in enumerate(classes)}
    return torch.tensor([index[str(video.label)] for video in manifest.videos])  # N


def folds(manifest: Manifest, count: int, seed: int) -> Tensor:
    """N int64: divides videos into `count` parts, each label spread evenly and no group in two parts.

    Large groups are placed first, each into the part that has the fewest videos of its label, then the fewest in all.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(manifest.groups):
        members.setdefault(group, []).append(row)
    everyone = list(members.values())
    order = draws.generator(seed, "folds").permutation(len(members))
    groups = sorted((everyone[i] for i in order), key=len, reverse=True)
    labels = numpy.array(manifest.labels)
    filled = numpy.zeros((count, len(manifest.classes)), dtype=numpy.int64)
    part = torch.empty(len(manifest), dtype=torch.int64)
    for rows in groups:
        counts = numpy.bincount(labels[rows], minlength=len(manifest.classes))
        best = int(numpy.lexsort((filled.sum(axis=1), filled[:, counts.argmax()]))[0])  # the last key counts first
        filled[best] += counts
        part[rows] = best
    return part


def quality(probabilities: Tensor, labels: Tensor) -> tuple[float, float]:
    """What settings are chosen by: accuracy, then minus the mean cross-entropy. Larger is better."""
    loss = functional.nll_loss(probabilities.clamp(min=1e-9).log(), labels)
    return (probabilities.argmax(dim=1) == labels).double().mean().item(), -loss.item()


def conclude(
    probabilities: Tensor,
    readable: Tensor,
    protocol: Protocol,
    out: Path,
    *,
    started: float,
    train_readable: Tensor | None = None,
    **more: Any,
) -> Result:
    """Judges, and writes ``predictions.csv`` with one line for each readable test video.

    Args:
        probabilities: M K, one row for each *readable* test video, in the order of the manifest.
        readable: N bool over all test videos.
        started: `time.perf_counter` at the beginning of the task.
        train_readable: N bool over the training videos, where they were counted.
        more: goes into the result.
    """
    rows = readable.nonzero().flatten().tolist()
    result = judge(probabilities, labels_of(protocol.test, protocol.classes)[rows], protocol.classes)
    share, guess = probabilities.max(dim=1)
    lines: list[list[object]] = [["path", "label", "prediction", "probability", "id"]]
    for row, k, probability in zip(rows, guess.tolist(), share.tolist(), strict=True):
        video = protocol.test.videos[row]
        lines.append([video.path, video.label, protocol.classes[k], f"{probability:.6g}", row])
    write_csv(out / "predictions.csv", lines)
    missing = [str(protocol.test.videos[row].path) for row in (~readable).nonzero().flatten().tolist()]
    counts: dict[str, Any] = {"unreadable": len(missing), "missing": missing, "train_videos": len(protocol.train)}
    if train_readable is not None:
        counts |= {"unreadable_train": int((~train_readable).sum()), "train_videos": int(train_readable.sum())}
    return {**result, **counts, **more, "seconds": round(time.perf_counter() - started, 3)}


def numbers(result: Result) -> tuple[str, ...]:
    """The names of a result's numbers, the main one first."""
    return tuple(result.get("numbers", CLASSIFICATION))


def main_number(result: Result) -> float:
    return result[numbers(result)[0]]


def in_words(number: str) -> str:
    """The name of a number, for people."""
    return {"top1": "top-1", "j_and_f": "J&F", "j": "J", "f": "F"}.get(number, number.replace("_", " "))


def counted(result: Result) -> str:
    """How many test videos a result counts, for people: "97 of 100" where some could not be read."""
    videos, unreadable = result.get("videos"), result.get("unreadable", 0)
    return "–" if videos is None else f"{videos} of {videos + unreadable}" if unreadable else str(videos)


def _of(manifest: Manifest) -> str:
    return f" in {manifest.source}" if manifest.source else ""
