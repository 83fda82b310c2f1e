"""Several learners on one backbone and one pass over the data: the weighted sum of their losses is minimised."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tubelet import dist, registry
from tubelet.learner import Backbone, Learner, Now
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

FRAMES = {"video": 2, "flow": 2, "times": 1}
"""The dimension of the frames in what comes once for each of them."""


@register("combined")
class Combined(Learner):
    """Trains one backbone by several learners at once: L = sum of w_i L_i over its parts.

    Each part is given the views and the frames that it would be given alone, and draws from the same keys, so that its
    loss and its gradient are those of a run of its own. What one part freezes of the backbone is frozen for all. Masked
    and contrastive learning together is CMAE-V's idea (Lu, Jin, Huang, Hou, Cheng, Feng 2023,
    https://arxiv.org/abs/2301.06018), whose two branches are here any two learners.

    Now and then it measures whether the parts agree: the cosine between their gradients on the backbone, which is
    negative where they conflict (Yu et al.: Gradient surgery for multi-task learning, NeurIPS 2020, definition 1,
    https://arxiv.org/abs/2001.06782). It is logged as ``cosine_A_B``; nothing is changed by it.

    Args:
        backbone: what all parts train.
        parts: the learners, each under a label: its ``name`` (the label unless given), its ``weight`` (1 unless given)
            and its own arguments.
        videos: how many rows the training manifest has.
        cosine_steps: steps from one measurement of the cosines to the next, each of which costs one more backward pass
            for each part; 0 = never. Where weights are sharded they are not measured.

    Raises:
        TubeletError: a part cannot be made of its arguments, learns in several phases or from labels, or two parts need
            views at different times or sound of different rates.
    """

    def __init__(self, backbone: Backbone, parts: dict[str, dict], videos: int, cosine_steps: int = 20) -> None:
        super().__init__()
        if not parts:
            raise TubeletError("learner.parts names no learner: write one or more, such as {videomae: {weight: 1.0}}")
        if cosine_steps < 0:
            raise TubeletError(f"learner.cosine_steps must be 0 (never) or more, not {cosine_steps}")
        self.backbone = backbone
        self.weights = {label: _weight(label, options) for label, options in parts.items()}
        learners = {label: _part(label, options, backbone, videos) for label, options in parts.items()}
        trained = {id(p) for part in learners.values() for _, p in part.parameters_of("main")}
        for part in learners.values():  # each knows the backbone; it is saved, moved and trained once, as the whole's
            del part.backbone
            part.__dict__["backbone"] = backbone
        self.parts = nn.ModuleDict(learners)
        self.trained = {name for name, parameter in self.named_parameters() if id(parameter) in trained}
        self.modalities = tuple(dict.fromkeys(kind for part in self._parts() for kind in part.modalities))
        self.views = max(part.views for part in self._parts())
        self.density = math.lcm(*(part.density for part in self._parts()))
        self.view_times = self._agreed("view_times", "views at different times")
        self.audio_rate = self._agreed("audio_rate", "sound of different rates")
        self.compares_clips = any(part.compares_clips for part in self._parts())
        self.cosine_steps = cosine_steps
        self.measuring = False

    def _parts(self) -> Iterator[Learner]:
        return iter(cast("dict[str, Learner]", self.parts).values())

    def check_clip(self, frames: int, height: int, width: int) -> None:
        for label, part in zip(self.parts, self._parts(), strict=True):
            with _of_part(label):
                part.check_clip(frames, height, width)

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """What any of the parts trains."""
        return [(name, parameter) for name, parameter in super().parameters_of(phase) if name in self.trained]

    def _agreed(self, name: str, differing: str) -> Any:
        """What the parts that care say of ``name``."""
        asked = {getattr(part, name): label for label, part in zip(self.parts, self._parts(), strict=True)}
        asked.pop(nobodys := getattr(Learner, name), None)
        if len(asked) > 1:
            (one, first), (other, second), *_ = asked.items()
            raise TubeletError(
                f"learner.parts {first} and {second} need {differing} ({one} and {other}): they cannot share a pass "
                "over the data"
            )
        return next(iter(asked), nobodys)

    def forward(self, batch: Batch, phase: str) -> Output:
        total, losses, metrics = None, {}, {}
        for (label, weight), part in zip(self.weights.items(), self._parts(), strict=True):
            loss, found = part(self.given(part, batch), phase)
            metrics |= {f"{label}_{name}": value for name, value in found.items()}
            if loss is None:
                continue
            losses[label] = loss
            metrics[f"{label}_loss"] = loss.detach()
            total = weight * loss if total is None else total + weight * loss
        if total is None:
            return Output(None, metrics)
        for label, part in zip(self.weights, self._parts(), strict=True):
            if label not in losses:  # a gradient of zero: processes that train together wait for one of every weight
                total = total + 0 * torch.stack([p.sum() for _, p in part.parameters_of(phase)]).sum()
        if self.measuring and torch.is_grad_enabled():
            metrics |= self._cosines(losses)
        return Output(total, metrics)

    def given(self, part: Learner, batch: Batch) -> Batch:
        """What a part would be given alone: the first of the views, every so-manieth of the frames."""
        every, alone = self.density // part.density, cast("dict[str, Any]", dict(batch))
        for name, views in alone.items():
            if isinstance(views, list):
                alone[name] = views[: part.views]
        for name, dim in FRAMES.items():
            if name in alone and every > 1:
                alone[name] = [view.movedim(dim, 0)[::every].movedim(0, dim) for view in alone[name]]
        return cast("Batch", alone)

    def _cosines(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The cosine between each two parts' gradients on the backbone, of a micro-batch of all processes together.

        What is logged of a step is the mean over its micro-batches, each of which has noisier gradients than the batch.
        """
        weights = [p for p in self.backbone.parameters() if p.requires_grad]
        if any(isinstance(p, DTensor) for p in weights):
            return {}
        gradients = {}
        for label, loss in losses.items():
            found = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            gradients[label] = dist.mean(torch.cat([gradient.flatten() for gradient in found]))
        return {
            f"cosine_{one}_{other}": F.cosine_similarity(gradients[one], gradients[other], dim=0)
            for one, other in combinations(gradients, 2)
        }

    def before_step(self, now: Now) -> None:
        self.measuring = self.cosine_steps > 0 and (now.step + 1) % self.cosine_steps == 0
        for part in self._parts():
            part.before_step(self._now(part, now))

    def after_step(self, now: Now) -> None:
        for part in self._parts():
            part.after_step(self._now(part, now))

    def _now(self, part: Learner, now: Now) -> Now:
        """The same moment, with the training set as the part would go through it alone."""
        return replace(now, ordered=lambda: (self.given(part, batch) for batch in now.ordered()))


def _weight(label: str, options: dict[str, Any]) -> float:
    weight = options.get("weight", 1.0)
    if not isinstance(weight, int | float) or not weight > 0:
        raise TubeletError(f"learner.parts.{label}.weight must be more than 0, not {weight}")
    return float(weight)


@contextmanager
def _of_part(label: str) -> Iterator[None]:
    """Mistakes are said of the part."""
    try:
        yield
    except TubeletError as error:
        raise TubeletError(str(error).replace("learner.", f"learner.parts.{label}.")) from None


def _part(label: str, options: dict[str, Any], backbone: Backbone, videos: int) -> Learner:
    """The learner of a label."""
    if hasattr(nn.ModuleDict, label) or "." in label or not label:
        raise TubeletError(f"learner.parts cannot have the label {label!r}: choose another, and write name beside it")
    options = {key: value for key, value in options.items() if key != "weight"}
    name = options.pop("name", label)
    found = registry.find("methods", name)
    if found is Combined:
        raise TubeletError(f"learner.parts.{label} is itself combined: write its parts beside the others")
    if found.needs_labels:
        raise TubeletError(f"learner.parts.{label}: {name} learns from labels, which the others do without")
    if "videos" in inspect.signature(found).parameters:
        options["videos"] = videos
    with _of_part(label):
        part: Learner = registry.build("methods", name, backbone=backbone, **options)
    if part.phases != Learner.phases:
        raise TubeletError(
            f"learner.parts.{label}: {name} learns in phases ({', '.join(part.phases)}), and parts share one step: it "
            "can only be trained alone"
        )
    return part
