"""What every registered learner, backbone and task must keep to: a new file is under test by being there."""

import ast
import copy
import inspect
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from moving import CLIP
from processes import run_processes
from saved import newest
from smallest import (
    BACKBONE,
    NAMES,
    SMALL,
    arguments,
    build_backbone,
    build_learner,
    losses,
    make_clips,
    ready_batch,
)
from tubelet import checkpoint, dist, draws, registry
from tubelet.data.listing import read_manifest
from tubelet.data.synthetic import make_corpus
from tubelet.learner import Learner
from tubelet.tasks.protocol import Terms, main_number, numbers
from tubelet.train.fit import Interrupted, fit
from tubelet.train.optim import adamw, set_rate
from tubelet.train.step import take_step
from tubelet.types import TubeletError

DROPPING = {**SMALL["vit"], "drop_path": 0.5}
"""Draws from torch's generator, so that a resumed run must restore its state."""
TASK: dict[str, dict] = {
    "finetune": {"length": "4 steps", "batch": 4, "lrs": (0.1,)},
    "scratch": {"length": "4 steps", "batch": 4, "lrs": (0.1,)},
    "attentive": {"epochs": 1, "least_steps": 3, "heads": 2},
}
PACKAGE = Path(registry.PACKAGE)

learners = pytest.mark.parametrize("name", NAMES)
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


@learners
def test_a_loss_is_computed_in_float32_under_autocast(name, corpus):
    """The networks may round to 8 bits; cosines and losses may not, or temperatures and small distances magnify it."""
    learner = build_learner(name)
    batch = ready_batch(corpus, learner, name)
    far = 0.05 if name.startswith("moco_v3") else 0.005  # five batch norms in a row, over four clips
    for phase in learner.phases:
        torch.manual_seed(0)  # of dropout
        plain = learner(batch, phase).loss
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = learner(batch, phase).loss
        torch.testing.assert_close(rounded, plain, rtol=far, atol=0.0)  # of one type, too


@learners
def test_the_loss_of_a_batch_is_the_mean_of_its_parts_unless_clips_are_compared(name, corpus):
    """A smaller `train.micro_batch` changes nothing, or the learner says so and the run warns of it."""
    learner = build_learner(name).eval()
    batch = ready_batch(corpus, learner, name)
    parts = [
        {key: [one[rows] for one in value] if isinstance(value, list) else value[rows] for key, value in batch.items()}
        for rows in (slice(2), slice(2, 4))
    ]
    for phase in learner.phases:
        mean = torch.stack([learner(part, phase).loss for part in parts]).mean()
        assert learner.compares_clips or torch.allclose(mean, learner(batch, phase).loss, rtol=1e-5)


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


def train_small(name: str, corpus: Path, out: Path, parallel: str = "replicated") -> None:
    """A process of a run of the smallest form of a learner."""
    torch.set_num_threads(1)
    dist.start()
    learner = build_learner(name)
    options = {"length": "5 steps", "batch": 4, "lr": 0.1, "workers": 0, "quiet": True, "log_steps": 1}
    fit(learner, make_clips(corpus, learner, name), out, **options, precision="float32", parallel=parallel)
    dist.stop()


@learners
@pytest.mark.parametrize("parallel", ["replicated", pytest.param("sharded", marks=pytest.mark.slow)])
def test_two_processes_equal_one(name, parallel, corpus, tmp_path):
    if name == "supervised, all on":
        pytest.skip("clips mix within one process, and dropout is each process's own")
    if parallel == "sharded" and len(build_learner(name).phases) > 1:
        pytest.skip("phases cannot be sharded")
    train_small(name, corpus, tmp_path / "one")
    run_processes(train_small, 2, name, corpus, tmp_path / "two", parallel)
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
    assert result["videos"] == 4 and numbers(result) == tuple(task.numbers)
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
