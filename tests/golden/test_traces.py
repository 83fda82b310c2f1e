"""Losses that must not drift: a change that moves them changes what a recipe means, and has to say so here.

`losses.json` has the first losses of every learner in its smallest form; steps with nothing to learn from have none.
`GOLDEN=write pytest tests/golden -k NAME` writes those of a learner that is new, or that is meant to differ.
"""

import json
import os
from pathlib import Path

import pytest

import smallest
from moving import write_corpus
from smallest import NAMES
from tubelet.log import read_metrics
from tubelet.train.fit import fit

FILE = Path(__file__).with_name("losses.json")
ALIKE = 1e-3
"""Relative. Instruction sets from SSE4 to AVX-512 differ by 2e-4 at most, 5 % of a temperature by more than this."""
UNSTEADY = {"colour_copy, quantised"}
"""The videos are grey: a rounding error decides on which side of a border a colour lies."""
STEADY = [name for name in NAMES if name not in UNSTEADY]
Trace = dict[str, list[float]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Clips whose pixels do not depend on what the encoder decides: learners with batch norms magnify a grey level."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), lossless=True)


def trace(name: str, corpus: Path, out: Path) -> Trace:
    """The losses of six steps; where there are several phases, those of each and their mean."""
    learner = smallest.build_learner(name)
    fit(
        learner, smallest.make_clips(corpus, learner, name), out, length="6 steps", batch=4, lr=0.1,
        precision="float32", workers=0, quiet=True, log_steps=1,
    )  # fmt: skip
    lines = read_metrics(out / "metrics.jsonl")
    keys = ["loss", *(f"loss_{phase}" for phase in learner.phases if len(learner.phases) > 1)]
    return {key: [line[key] for line in lines if line.get(key) is not None] for key in keys}


def golden() -> dict[str, Trace]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(name: str, found: Trace) -> None:
    """One line a learner, so that what has changed is seen."""
    traces = golden() | {name: {key: [round(loss, 6) for loss in losses] for key, losses in found.items()}}
    lines = [f"  {json.dumps(name)}: {json.dumps(traces[name])}" for name in sorted(traces)]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def same(found: Trace, known: Trace) -> bool:
    return found == {key: pytest.approx(losses, rel=ALIKE, abs=1e-6) for key, losses in known.items()}


@pytest.mark.parametrize("name", STEADY)
def test_the_first_losses_are_what_they_were(name, corpus: Path, tmp_path: Path):
    found = trace(name, corpus, tmp_path)
    if os.environ.get("GOLDEN") == "write" and not same(found, golden().get(name, {})):
        write(name, found)
    known = golden()
    assert name in known, f"no losses of {name} yet: GOLDEN=write pytest tests/golden -k '{name}' writes them"
    assert same(found, known[name]), f"\nnow {found}\nwas {known[name]}"


def test_only_learners_that_are_there_are_remembered():
    assert golden().keys() == {*STEADY}


@pytest.mark.parametrize(("name", "usual"), [("clip", 0.07), ("moco", 0.1), ("simclr", 0.1)])
def test_another_temperature_is_noticed(name, usual, corpus: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(smallest.LEARNER, name, smallest.LEARNER[name] | {"temperature": 1.05 * usual})
    assert not same(trace(name, corpus, tmp_path), golden()[name])
