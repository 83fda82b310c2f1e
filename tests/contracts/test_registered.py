"""What every registered learner, backbone and task must keep to: a new file is under test by being there."""

import ast
import copy
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moving import CLIP
from saved import newest
from tubelet import checkpoint, draws, registry
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import read_manifest
from tubelet.data.loader import Loader
from tubelet.learner import Backbone, Learner
from tubelet.log import read_metrics
from tubelet.tasks.protocol import Protocol
from tubelet.train.fit import Interrupted, fit
from tubelet.train.optim import adamw, set_rate
from tubelet.train.step import take_step

SMALL: dict[str, dict] = {"vit": {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 4}}
DROPPING = {**SMALL["vit"], "drop_path": 0.5}
"""Draws from torch's generator, so that a resumed run must restore its state."""
"""The smallest useful arguments of each backbone; one without an entry is built with its defaults."""
LEARNER: dict[str, dict] = {
    "videomae": {"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1},
    "supervised": {"classes": 2},
    "supervised, all on": {"classes": 2, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.5, "ema": 0.9, "dropout": 0.1},
    "supervised, without mixing": {"classes": 2, "erasing": 0.5, "ema": 0.9},
}
"""What follows a comma is only a name for other arguments."""
DATA: dict[str, dict] = {"supervised, all on": {"randaugment": "m7-n4-mstd0.5", "repeats": 2, "scale": (0.08, 1.0)}}
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
    built = registry.build("backbones", "vit", **(backbone or SMALL["vit"]))
    return registry.build("methods", name.partition(",")[0], backbone=built, **LEARNER.get(name, {}))


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def make_clips(corpus: Path, learner: Learner, name: str = "") -> Clips:
    return Clips(read_manifest(corpus, "train"), **CLIP, views=learner.views, **DATA.get(name, {}))


def one_batch(corpus: Path, learner: Learner):
    return to_device(next(Loader(make_clips(corpus, learner), 4).batches()), "cpu")


learners = pytest.mark.parametrize("name", sorted({*registry.names("methods"), *LEARNER}))
backbones = pytest.mark.parametrize("name", registry.names("backbones"))
tasks = pytest.mark.parametrize("name", registry.names("tasks"))


@learners
def test_a_learner_has_a_finite_loss_and_a_gradient_everywhere(name, corpus):
    learner = build_learner(name)
    batch = one_batch(corpus, learner)
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


@learners
def test_a_learner_is_a_pure_function_of_its_batch(name, corpus):
    """Every draw comes from the keys of the batch: with dropout off, twice the same is twice the same."""
    learner = build_learner(name).eval()
    batch = one_batch(corpus, learner)
    for phase in learner.phases:
        first, _ = learner(batch, phase).loss, torch.rand(7)
        assert torch.equal(learner(batch, phase).loss, first)


@learners
def test_a_learner_moves_nothing_in_forward(name, corpus):
    """Queues, banks and teachers wait for `after_step`: a step may be skipped. Only batch norms may count."""
    learner = build_learner(name)
    batch, before = one_batch(corpus, learner), copy.deepcopy(learner.state_dict())
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
    batch, before = one_batch(corpus, learner), copy.deepcopy(learner.state_dict())
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
    batch = one_batch(corpus, learner)
    assert learner.embed(batch).shape == (4, learner.backbone.dim)
    checkpoint.save_weights(tmp_path / "w.safetensors", learner.state_dict())
    torch.manual_seed(99)
    again = registry.build(
        "methods", name.partition(",")[0], backbone=registry.build("backbones", "vit", **SMALL["vit"]), **LEARNER[name]
    )
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


TWO = """
import json, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
torch.set_num_threads(1)
from tubelet import dist
dist.start()
from test_registered import build_learner, make_clips
from tubelet.train.fit import fit
learner = build_learner({name!r})
fit(learner, make_clips(Path({corpus!r}), learner), Path({out!r}), length="5 steps", batch=4, lr=0.1, workers=0,
    quiet=True, log_steps=1, precision="float32")
dist.stop()
"""


@learners
def test_two_processes_equal_one(name, corpus, tmp_path):
    if name == "supervised, all on":
        pytest.skip("clips mix within one process, and dropout is each process's own")
    learner = build_learner(name)
    options = {"length": "5 steps", "batch": 4, "lr": 0.1, "workers": 0, "quiet": True, "log_steps": 1}
    fit(learner, make_clips(corpus, learner), tmp_path / "one", **options, precision="float32")
    here = Path(__file__).parent
    script = tmp_path / "two.py"
    path = [str(here), str(here.parent), str(PACKAGE.parent)]
    script.write_text(TWO.format(path=path, name=name, corpus=str(corpus), out=str(tmp_path / "two")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-5)
    other = newest(tmp_path / "two").read("learner.")
    for key, tensor in learner.state_dict().items():
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


@tasks
def test_a_task_judges_every_test_video_once(name, corpus, tmp_path):
    protocol = Protocol.from_manifest(read_manifest(corpus), CLIP)
    subject = build_learner("supervised") if name == "classify" else build_backbone("vit")
    result = registry.build("tasks", name, **TASK.get(name, {}))(subject, protocol, tmp_path / "out")
    assert result["videos"] == 4
    assert 0 <= result["top1"] <= 1
    assert result["interval"][0] <= result["top1"] <= result["interval"][1]
    assert sum(map(sum, result["confusion"])) == 4
    json.dumps(result)
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 5


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
    import inspect

    return list(inspect.signature(schema).parameters)


def test_draws_do_not_depend_on_the_process_or_the_batch():
    keys = torch.tensor([draws.key(0, "a"), draws.key(0, "b"), 7])
    together = draws.uniform(keys, 50, "mask")
    assert torch.equal(together[2:], draws.uniform(keys[2:], 50, "mask"))
    assert not torch.equal(together, draws.uniform(keys, 50, "other"))
    assert draws.key(1, "x", 2) == 3612704042612786211
