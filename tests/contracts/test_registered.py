"""What every registered learner, backbone and task must keep to: a new file is under test by being there."""

import ast
import copy
import importlib
import inspect
import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from moving import CLIP
from processes import run_processes
from saved import newest
from tubelet import checkpoint, dist, draws, registry
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest, read_manifest
from tubelet.data.loader import Loader
from tubelet.data.synthetic import make_corpus
from tubelet.learner import Backbone, Learner, Now
from tubelet.log import read_metrics
from tubelet.tasks.protocol import Terms, main_number, numbers
from tubelet.train.fit import Interrupted, fit
from tubelet.train.optim import adamw, set_rate
from tubelet.train.step import take_step
from tubelet.types import TubeletError

SMALL: dict[str, dict] = {"vit": {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 4}}
DROPPING = {**SMALL["vit"], "drop_path": 0.5}
"""Draws from torch's generator, so that a resumed run must restore its state."""
"""The smallest useful arguments of each backbone; one without an entry is built with its defaults."""


def _small() -> dict[str, dict]:
    """What the tests of all methods say of their smallest forms: `SMALL`, name -> `learner`, `data` and `backbone`.

    What follows a comma in a name is only a name for other arguments; an argument that is a function is called for it.
    """
    found: dict[str, dict] = {}
    for path in sorted((Path(__file__).parents[1] / "methods").glob("test_*.py")):
        found |= getattr(importlib.import_module(f"methods.{path.stem}"), "SMALL", {})
    return found


SMALL_LEARNERS = _small()
LEARNER: dict[str, dict] = {name: small.get("learner", {}) for name, small in SMALL_LEARNERS.items()}
BACKBONE: dict[str, dict] = {name: small.get("backbone", {}) for name, small in SMALL_LEARNERS.items()}
DATA: dict[str, dict] = {name: small.get("data", {}) for name, small in SMALL_LEARNERS.items()}
VIDEOS = 12
"""Of the corpus that learners are trained on here."""
TASK: dict[str, dict] = {
    "finetune": {"length": "4 steps", "batch": 4, "lrs": (0.1,)},
    "scratch": {"length": "4 steps", "batch": 4, "lrs": (0.1,)},
    "attentive": {"epochs": 1, "least_steps": 3, "heads": 2},
}
PACKAGE = Path(registry.PACKAGE)


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


def make_clips(corpus: Path, learner: Learner, name: str = "") -> Clips:
    manifest = read_manifest(corpus, "train")
    if "flow" in learner.modalities:  # what a film shows does not matter here: the video is its own
        manifest = Manifest([replace(video, flow=video.path) for video in manifest])
    return Clips(manifest, **clip_options(learner, name))


def clip_options(learner: Learner, name: str) -> dict:
    """Of `Clips`: what the learner needs, and what its tests say."""
    needed = {part: getattr(learner, part) for part in ("views", "density", "view_times")}
    asked = {"audio": {"audio_rate": 4000}, "text": {"captions": "caption"}, "flow": {"flow": "beside"}}
    sources = {key: value for modality in learner.modalities for key, value in asked.get(modality, {}).items()}
    return CLIP | needed | sources | DATA.get(name, {})


def one_batch(corpus: Path, learner: Learner, name: str = ""):
    return to_device(next(Loader(make_clips(corpus, learner, name), 4).batches()), "cpu")


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


learners = pytest.mark.parametrize("name", sorted({*registry.names("methods"), *LEARNER}))
backbones = pytest.mark.parametrize("name", registry.names("backbones"))
tasks = pytest.mark.parametrize("name", registry.names("tasks"))


@learners
def test_a_learner_has_a_finite_loss_and_a_gradient_everywhere(name, corpus):
    learner = build_learner(name)
    batch = ready_batch(corpus, learner, name)
    for phase in learner.phases:
        output = learner(batch, phase)
        assert output.loss is not None
        assert output.loss.ndim == 0
        assert output.loss.isfinite()
        output.loss.backward()
        for key, parameter in learner.parameters_of(phase):
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().sum() > 0, key
        learner.zero_grad()


@pytest.mark.parametrize("name", registry.names("methods"))
def test_a_senseless_temperature_or_momentum_is_named(name):
    known = inspect.signature(registry.find("methods", name)).parameters
    for setting, values in {"temperature": (0.0, math.nan, math.inf), "momentum": (-0.1, 1.5, math.nan)}.items():
        for value in values if setting in known else ():
            backbone = registry.build("backbones", "vit", **SMALL["vit"] | BACKBONE.get(name, {}))
            with pytest.raises(TubeletError, match=rf"learner\.{setting} must be"):
                registry.build("methods", name, backbone=backbone, **arguments(name) | {setting: value})


@learners
def test_a_learner_is_a_pure_function_of_its_batch(name, corpus):
    """Every draw comes from the keys of the batch: with dropout off, twice the same is twice the same."""
    learner = build_learner(name).eval()
    batch = ready_batch(corpus, learner, name)
    for phase in learner.phases:
        first, _ = learner(batch, phase).loss, torch.rand(7)
        assert torch.equal(learner(batch, phase).loss, first)


@learners
def test_a_learner_moves_nothing_in_forward(name, corpus):
    """Queues, banks and teachers wait for `after_step`: a step may be skipped. Only batch norms may count."""
    learner = build_learner(name)
    batch, before = ready_batch(corpus, learner, name), copy.deepcopy(learner.state_dict())
    counting = [part for part, module in learner.named_modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    for phase in learner.phases:
        learner(batch, phase).loss.backward()
    changed = [key for key, tensor in learner.state_dict().items() if not torch.equal(before[key], tensor)]
    assert [key for key in changed if key.rpartition(".")[0] not in counting] == []


class NotFinite(nn.Module):
    """A learner whose loss has become infinite, and whose gradients have not."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, batch, phase):
        output = self.learner(batch, phase)
        return output._replace(loss=output.loss + math.inf)


@learners
def test_a_skipped_step_leaves_a_learner_as_it_was(name, corpus):
    learner = build_learner(name)
    batch, before = ready_batch(corpus, learner, name), copy.deepcopy(learner.state_dict())
    for phase in learner.phases:
        optimiser = adamw(learner, phase, weight_decay=0.1, betas=(0.9, 0.95), layer_decay=1.0)
        set_rate(optimiser, 0.1)
        assert take_step(NotFinite(learner), learner, phase, optimiser, batch, 2, 1.0, "float32").flaw == "loss"
        assert not optimiser.state
    for key, tensor in learner.state_dict().items():
        assert torch.equal(before[key], tensor), key


@learners
def test_a_learner_embeds_and_is_saved_whole(name, corpus, tmp_path):
    learner = build_learner(name).eval()
    batch = ready_batch(corpus, learner, name)
    assert learner.embed(batch).shape == (4, learner.backbone.dim)
    checkpoint.save_weights(tmp_path / "w.safetensors", learner.state_dict())
    torch.manual_seed(99)
    built = registry.build("backbones", "vit", **SMALL["vit"] | BACKBONE.get(name, {}))
    again = registry.build("methods", name.partition(",")[0], backbone=built, **arguments(name))
    checkpoint.load_weights(again, tmp_path / "w.safetensors")
    for phase in learner.phases:
        assert torch.equal(again.eval()(batch, phase).loss, learner(batch, phase).loss)


@learners
def test_a_learner_resumes_bit_for_bit(name, corpus, tmp_path):
    options = {"length": "6 steps", "batch": 4, "lr": 0.1, "workers": 0, "quiet": True, "log_steps": 1}

    def train(out: Path, stop: int | None = None) -> Learner:
        learner = build_learner(name, DROPPING)
        if stop:
            before = learner.after_step

            def after_step(now):
                before(now)
                if now.step == stop:
                    os.kill(os.getpid(), signal.SIGTERM)

            learner.after_step = after_step
        resumes = (out / "checkpoints").exists()
        torch.manual_seed(1 if resumes else 0)  # where the generator stands when a run goes on must not matter
        fit(learner, make_clips(corpus, learner, name), out, **options)
        return learner

    whole = train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", stop=3)
    resumed = train(tmp_path / "parts")
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def train_small(name: str, corpus: Path, out: Path) -> None:
    """A process of a run of the smallest form of a learner."""
    torch.set_num_threads(1)
    dist.start()
    learner = build_learner(name)
    options = {"length": "5 steps", "batch": 4, "lr": 0.1, "workers": 0, "quiet": True, "log_steps": 1}
    fit(learner, make_clips(corpus, learner, name), out, **options, precision="float32")
    dist.stop()


@learners
def test_two_processes_equal_one(name, corpus, tmp_path):
    if name == "supervised, all on":
        pytest.skip("clips mix within one process, and dropout is each process's own")
    train_small(name, corpus, tmp_path / "one")
    run_processes(train_small, 2, name, corpus, tmp_path / "two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one and two == pytest.approx(one, rel=1e-5)
    other = newest(tmp_path / "two").read("learner.")
    for key, tensor in newest(tmp_path / "one").read("learner.").items():
        torch.testing.assert_close(other[key], tensor, atol=1e-5, rtol=1e-4)


@backbones
def test_a_backbone_keeps_its_contract(name):
    backbone = build_backbone(name).eval()
    video = torch.rand(2, 3, 4, 16, 16)
    tokens, grid = backbone(video)
    assert grid == backbone.grid(4, 16, 16)
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], backbone.dim)
    hidden = torch.zeros(2, tokens.shape[1], dtype=torch.bool)
    hidden[0, :5], hidden[1, -5:] = True, True
    seen = backbone(video, hidden).tokens
    assert seen.shape == (2, tokens.shape[1] - 5, backbone.dim)
    torch.testing.assert_close(backbone(video[:1], hidden[:1]).tokens, seen[:1], atol=1e-5, rtol=1e-4)
    first = video.clone()
    first[0, :, :2, :4, :4] = torch.rand(3, 2, 4, 4)  # cube 0, hidden in the first clip
    assert hidden[0, 0]
    assert torch.equal(backbone(first, hidden).tokens, seen)
    flat = [id(p) for layer in backbone.layers() for p in layer]
    assert sorted(flat) == sorted(id(p) for p in backbone.parameters())
    config = json.loads(json.dumps(backbone.config))
    assert registry.build("backbones", config.pop("name"), **config).config == backbone.config


@pytest.fixture(scope="session")
def tracked(tmp_path_factory) -> Path:
    """The manifest of four generated videos that have masks too, of two motions."""
    made = {"clips": 2, "test": 4, "size": 16, "frames": 4, "motions": ("left", "right"), "workers": 0}
    return make_corpus(tmp_path_factory.mktemp("tracked") / "corpus", **made)


@tasks
def test_a_task_judges_every_test_video_once(name, corpus, tracked, tmp_path):
    manifest = tracked if name == "propagation" else corpus
    subject = build_learner("supervised") if name == "classify" else build_backbone("vit")
    task = registry.build("tasks", name, **TASK.get(name, {}))
    result = task(subject, task.data(Terms(lambda: read_manifest(manifest), CLIP)), tmp_path / "out")
    assert result["videos"] == 4
    assert all(0 <= result[number] <= 1 for number in numbers(result) if result[number] is not None)
    assert result["interval"][0] <= main_number(result) <= result["interval"][1]
    assert result["seconds"] > 0
    if numbers(result)[0] == "top1":
        assert sum(map(sum, result["confusion"])) == 4
    json.dumps(result)
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 5
    assert all((tmp_path / "out" / picture).exists() for picture in result.get("pictures", []))


@pytest.mark.parametrize("folder", ["methods", "backbones", "tasks", "data/formats"])
def test_every_registered_thing_says_what_it_is(folder):
    """A docstring, a described argument for each setting, a type and a default for each argument of a recipe."""
    for name, place in registry.catalogue(folder).items():
        schema = registry.schema(*place)
        doc = schema.__doc__ or ""
        assert doc.strip(), name
        for argument in registry_arguments(schema):
            assert f"{argument}:" in doc, f"{name}: {argument} is not described"
        source = ast.parse((PACKAGE.parent / place.module.replace(".", "/")).with_suffix(".py").read_text())
        assert ast.get_docstring(source), place.module


def registry_arguments(schema) -> list[str]:
    return list(inspect.signature(schema).parameters)


def test_draws_do_not_depend_on_the_process_or_the_batch():
    keys = torch.tensor([draws.key(0, "a"), draws.key(0, "b"), 7])
    together = draws.uniform(keys, 50, "mask")
    assert torch.equal(together[2:], draws.uniform(keys[2:], 50, "mask"))
    assert not torch.equal(together, draws.uniform(keys, 50, "other"))
    assert draws.key(1, "x", 2) == 3612704042612786211
