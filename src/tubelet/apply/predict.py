"""Says what a video shows, segment by segment, with the classifier of a run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from tubelet import dist
from tubelet.checkpoint import read_about, weights_hash
from tubelet.data import sample
from tubelet.data.flow import shown
from tubelet.data.read import probe, read
from tubelet.data.storage import Place
from tubelet.data.transform import center_crop
from tubelet.train.run import load_learner
from tubelet.types import TubeletError

TOGETHER = 16
"""Segments that are decoded in one pass and classified in one batch."""


class Segment(NamedTuple):
    """A stretch of a video and its likeliest classes, best first, with their probabilities."""

    start_s: float
    end_s: float
    classes: list[tuple[str, float]]


class Prediction(NamedTuple):
    """What `predict` answers."""

    whole: Segment
    """The whole video: the mean of the segments' probabilities."""
    segments: list[Segment]
    weights_hash: str
    """Of the classifier."""
    step: int | None
    """At which training had its weights; None = it was converted."""


@torch.no_grad()
def predict(
    run: Path, video: Place, top: int = 5, segment_s: float | None = None, fps: float | None = None
) -> Prediction:
    """Classifies ``video`` in consecutive segments; of each the clip in its middle is looked at.

    Args:
        run: the folder of a supervised run, or of a pre-training run that has one within.
        top: how many classes to name.
        segment_s: length of a segment in seconds; None = that of the run's clip, or all of the video where the run was
            trained on clips that span it (``sampling: segments``). The last segment may be up to half
            a segment longer or shorter.
        fps: pictures a second, where the video is pictures without a clock; None = 30.

    Raises:
        TubeletError: there is no classifier, or the video cannot be read.
    """
    if top < 1:
        raise TubeletError(f"top must be 1 or more, not {top}")
    if segment_s is not None and not segment_s > 0:
        raise TubeletError(f"a segment must last longer than 0 s, not {segment_s:g}")
    classifier = find_classifier(run)
    about, device = read_about(classifier), dist.device()
    learner = load_learner(classifier).to(device).eval()
    clip, info = about["clip"], probe(video, fps)
    gap_s = sample.step_s(clip["stride"], clip["reference_fps"], info.fps)
    whole_s = info.duration_s if clip.get("segments") else clip["frames"] * gap_s
    spans = segments(info.duration_s, segment_s or whole_s)
    shares = []
    with shown(video, clip, fps) as place:
        for begin in range(0, len(spans), TOGETHER):
            part = spans[begin : begin + TOGETHER]
            times = [start + _times(end - start, info.fps, clip, gap_s) for start, end in part]
            pixels = center_crop(read(place, numpy.concatenate(times), clip["size"], fps), clip["size"])  # B*T C S S
            batch = pixels.unflatten(0, (len(part), -1)).transpose(1, 2).to(device).float() / 255  # B C T S S
            shares.append(learner.logits(batch).float().softmax(dim=1).cpu())  # type: ignore[operator]  # B K
    probabilities = torch.cat(shares)  # segments K
    named = [Segment(start, end, _best(row, about["classes"], top))
             for (start, end), row in zip(spans, probabilities, strict=True)]  # fmt: skip
    whole = Segment(0.0, info.duration_s, _best(probabilities.mean(dim=0), about["classes"], top))
    return Prediction(whole, named, weights_hash(learner), about.get("step"))


def segments(duration_s: float, segment_s: float) -> list[tuple[float, float]]:
    """Consecutive stretches that cover a video; the last one takes what is left."""
    count = max(1, round(duration_s / segment_s))
    edges = [i * segment_s for i in range(count)] + [duration_s]
    return list(pairwise(edges))


def _times(duration_s: float, fps: float, clip: dict[str, Any], gap_s: float) -> numpy.ndarray:
    """The moments of the one clip of a segment, taken as the classifier's test clips are: T seconds."""
    if clip.get("segments"):
        return sample.segments(duration_s, fps, clip["frames"])
    return sample.grid(duration_s, fps, clip["frames"], gap_s)[0]


def find_classifier(run: Path) -> Path:
    """The run itself when it has a classifier, else the one fine-tuned from it.

    Raises:
        TubeletError: there is none; the message has the command that makes one.
    """
    about = read_about(run)  # complains when it is not a run
    inside = [path for path in sorted(run.glob("evaluation/finetune*/run")) if "scratch" not in path.parent.name]
    found = next((place for place in (run, run / "finetune", *inside) if _classifies(place)), None)
    if found is None:
        raise TubeletError(
            f"{run} ({about.get('learner', {}).get('name', 'an encoder')}) knows no classes: make a classifier with "
            f"`tubelet train finetune --backbone.init {run} --data.manifest clips.csv --out {run / 'finetune'}`"
        )
    return found


def _classifies(place: Path) -> bool:
    if not (place / "backbone.json").is_file() or not (place / "learner.safetensors").is_file():
        return False
    about = read_about(place)
    return bool(about.get("classes")) and about.get("learner", {}).get("name") == "supervised"


def _best(probabilities: Tensor, classes: list[str], top: int) -> list[tuple[str, float]]:
    values, rows = probabilities.topk(min(top, len(classes)))
    return [(classes[row], value) for value, row in zip(values.tolist(), rows.tolist(), strict=True)]
