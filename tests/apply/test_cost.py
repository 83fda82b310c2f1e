from dataclasses import replace

import pytest
import torch

from tiny_run import make_clips, make_recipe
from tubelet import recipe
from tubelet.apply import cost
from tubelet.apply.cost import Cost, estimate, step_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> recipe.Recipe:
    folder = tmp_path_factory.mktemp("cost")
    return recipe.load(make_recipe(folder / "tiny.yaml", make_clips(folder / "clips")))


@pytest.fixture(scope="module")
def measured(tiny) -> Cost:
    return estimate(tiny, budget_s=1.0)


def test_what_is_measured_makes_sense(measured, tiny):
    assert measured.computes and measured.computes > 0 and measured.decodes > 0
    assert measured.clips == measured.steps * tiny.train["batch"]
    assert 0 < measured.needed_bytes < measured.memory_bytes
    assert measured.binds in ("decoding", "compute") and measured.hours and measured.hours > 0
    rows = dict(measured.rows())
    assert {"computes", "decodes", "memory", "disk", "time", "what binds", "what helps"} <= set(rows)
    assert measured.as_json()["hours"] == measured.hours
    assert measured.sentence.startswith("takes about ")


def test_bytes_that_are_kept_are_those_that_autograd_saves(tiny):
    """A slow twin of counting: of a chain of known tensors."""
    trial = object.__new__(cost._Trial)

    class Chain(torch.nn.Module):
        phases = ("main",)

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(10))

        def forward(self, batch, phase):
            return (batch["x"] * self.weight).exp().sum()

    trial.learner, trial.device, trial.options = Chain(), torch.device("cpu"), {"precision": "float32"}
    trial._batch = lambda count: {"x": torch.ones(count, 10)}
    # the input of the product and the output of exp; not the weight
    assert trial._kept_bytes(8, "main") == 2 * 8 * 10 * 4


def test_a_step_is_drawn_out_of_smaller_ones():
    assert step_of(64, [(2, 1.0)]) == 32.0
    assert step_of(64, [(2, 1.5), (4, 2.5)]) == pytest.approx(32.5)  # 0.5 s, and 0.5 s a clip
    assert step_of(64, [(2, 3.0), (4, 3.1)]) == pytest.approx(64 * 3.1 / 4)  # too uneven a clock
    assert step_of(4, [(2, 1.5), (4, 2.5)]) == 2.5


KNOWN = Cost(
    machine="a machine", steps=100, clips=3600, in_a_pass=8, share=32, computes=10.0, decodes=2.0, workers=2, cores=8,
    on_gpu=True, weights=10, fixed_bytes=100, clip_bytes=10, memory_bytes=1000, disk_bytes=10, disk_free_bytes=100,
    shorter=(0, 5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "binds", "hours", "helps"),
    [
        ({}, "decoding", 0.25, "train.workers 5 (now 2)"),
        ({"workers": 5}, "compute", 0.1, "nothing to gain in decoding"),
        ({"workers": 8, "computes": 100.0}, "decoding", 3600 / 16 / 3600, "data.repeats 4"),
        ({"workers": 0}, "decoding", 0.6, "train.workers 5 (now 0)"),
        ({"clip_bytes": 200}, "memory", 0.25, "train.micro_batch 4"),
        ({"computes": None, "clip_bytes": None, "fixed_bytes": 2000}, "memory", None, "do not fit"),
        ({"on_gpu": False, "workers": 4, "computes": 3.0}, "compute", 1 / 3, "a GPU"),
    ],
)
def test_what_binds_and_what_helps(changes, binds, hours, helps):
    found = replace(KNOWN, **changes)
    assert (found.binds, found.hours) == (binds, pytest.approx(hours) if hours else None)
    assert helps in found.remedy
    assert dict(found.rows())["what binds"] == binds


def test_weights_that_do_not_fit_are_not_tried(tiny, monkeypatch):
    monkeypatch.setattr(cost, "_memory", lambda device: 1000)
    found = estimate(tiny, budget_s=0.1)
    assert found.computes is None and found.binds == "memory" and found.hours is None
    assert "does not fit" in found.sentence
