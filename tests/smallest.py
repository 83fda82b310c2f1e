"""Every registered learner and backbone in its smallest form, and the clips that it can be trained on."""

import importlib
import inspect
from dataclasses import replace
from pathlib import Path

import torch

from moving import CLIP
from tubelet import registry
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest, read_manifest
from tubelet.data.loader import Loader
from tubelet.learner import Backbone, Learner, Now
from tubelet.log import read_metrics

SMALL: dict[str, dict] = {"vit": {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 4}}
"""The smallest useful arguments of each backbone; one without an entry is built with its defaults."""


def _small() -> dict[str, dict]:
    """What the tests of all methods say of their smallest forms: `SMALL`, name -> `learner`, `data` and `backbone`.

    What follows a comma in a name is only a name for other arguments; an argument that is a function is called for it.
    """
    found: dict[str, dict] = {}
    for path in sorted((Path(__file__).parent / "methods").glob("test_*.py")):
        found |= getattr(importlib.import_module(f"methods.{path.stem}"), "SMALL", {})
    return found


SMALL_LEARNERS = _small()
LEARNER: dict[str, dict] = {name: small.get("learner", {}) for name, small in SMALL_LEARNERS.items()}
BACKBONE: dict[str, dict] = {name: small.get("backbone", {}) for name, small in SMALL_LEARNERS.items()}
DATA: dict[str, dict] = {name: small.get("data", {}) for name, small in SMALL_LEARNERS.items()}
VIDEOS = 12
"""Of the corpus that learners are trained on here."""
NAMES = sorted({*registry.names("methods"), *LEARNER})


def build_backbone(name: str) -> Backbone:
    torch.manual_seed(0)
    return registry.build("backbones", name, **SMALL.get(name, {}))


def build_learner(name: str, backbone: dict | None = None) -> Learner:
    torch.manual_seed(0)
    built = registry.build("backbones", "vit", **(backbone or SMALL["vit"]) | BACKBONE.get(name, {}))
    return registry.build("methods", name.partition(",")[0], backbone=built, **arguments(name))


def arguments(name: str) -> dict:
    """The smallest ones of a learner; of those that are counted in the manifest, the number of videos."""
    found = registry.find("methods", name.partition(",")[0])
    counted = {"videos": VIDEOS} if "videos" in inspect.signature(found).parameters else {}
    return counted | {key: value() if callable(value) else value for key, value in LEARNER.get(name, {}).items()}


def losses(run: Path) -> list[float]:
    """Of the steps that had one: a queue that is not full yet gives none."""
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line.get("loss") is not None]


def make_clips(corpus: Path, learner: Learner, name: str = "", more: dict | None = None) -> Clips:
    manifest = read_manifest(corpus, "train")
    if "flow" in learner.modalities:  # what a film shows does not matter here: the video is its own
        manifest = Manifest([replace(video, flow=video.path) for video in manifest])
    return Clips(manifest, **clip_options(learner, name) | (more or {}))


def clip_options(learner: Learner, name: str) -> dict:
    """Of `Clips`: what the learner needs, and what its tests say."""
    needed = {part: getattr(learner, part) for part in ("views", "density", "view_times")}
    asked = {"audio": {"audio_rate": 4000}, "text": {"captions": "caption"}, "flow": {"flow": "beside"}}
    sources = {key: value for modality in learner.modalities for key, value in asked.get(modality, {}).items()}
    return CLIP | needed | sources | DATA.get(name, {})


def ready_batch(corpus: Path, learner: Learner, name: str):
    """A batch that the learner can learn from: those before it have filled its queues."""
    loader = Loader(make_clips(corpus, learner, name), 4)
    batches = loader.batches()
    for step in range(20):
        learner.before_step(Now(step, step, True, 0.0, loader.once))
        batch = to_device(next(batches), "cpu")
        with torch.no_grad():
            waits = [learner(batch, phase).loss is None for phase in learner.phases]
        if not any(waits):
            learner.before_step(Now(step, step, False, 0.0, loader.once))  # forgets what the passes left
            return batch
        learner.after_step(Now(step + 1, step, False, 0.0, loader.once))
    raise AssertionError(f"{name} has not learnt from any of 20 batches")
