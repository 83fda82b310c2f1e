"""The recipes of the comparison of methods: one for every method, and each trains, is judged and is loaded."""

import json
import math
import re
from pathlib import Path

import pytest

from headers import NAMES, facts
from tubelet import chain, cli, recipe, registry
from tubelet.checkpoint import load_backbone
from tubelet.log import read_metrics

TINY = [name for name in NAMES if name.startswith("tiny/")]
FEW = {
    "tiny/moco": ["--learner.queue", "16"],  # nothing is learnt before it is full
    "tiny/coclr": ["--learner.queue", "16"],
    "tiny/deepcluster": ["--learner.clusters", "8", "--learner.components", "8"],
    "tiny/local_aggregation": ["--learner.clusters", "[4, 8]", "--learner.neighbours", "16"],
    "tiny/xdc": ["--learner.clusters", "8", "--learner.components", "8"],
}
"""What of a recipe is too much for a few videos; its networks stay as they are."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "corpus"
    words = ["--clips", "22", "--test", "11", "--frames", "40", "--sound", "--workers", "0"]
    assert cli.main(["data", "synth", str(folder), *words]) == 0
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def filmed(corpus) -> Path:
    """The same videos with their flow."""
    pytest.importorskip("cv2")
    folder = corpus.parent / "flow"
    assert cli.main(["data", "flow", str(corpus), "--out", str(folder), "--limit-px", "4", "--workers", "0"]) == 0
    return folder / "clips.csv"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_recipe_trains_is_judged_and_is_loaded(name, corpus, tmp_path, request):
    manifest = request.getfixturevalue("filmed") if chain.find(name) else corpus
    few = ["--train.length", "4 steps", "--train.batch", "8", "--train.workers", "0", "--train.log_steps", "1"]
    few += ["--train.quiet", "true", *FEW.get(name, [])]
    assert cli.main(["train", name, "--data.manifest", str(manifest), "--out", str(tmp_path / "run"), *few]) == 0
    runs = sorted(path.parent for path in (tmp_path / "run").rglob("backbone.json"))
    for run in runs:
        losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if line.get("loss") is not None]
        assert losses and all(map(math.isfinite, losses)), run
    words = ["evaluate", str(runs[-1]), "--tasks", "knn", "--baseline", "--workers", "0"]
    assert cli.main(words) == 0
    judged = json.loads((runs[-1] / "evaluation" / "results.json").read_text())["knn"]
    assert judged.keys() == {name.removeprefix("tiny/"), "untrained"}
    assert all(math.isfinite(result["top1"]) for result in judged.values())
    assert load_backbone(runs[-1]).dim == 96


def test_every_method_has_a_recipe_that_names_its_paper_and_its_cost():
    """Of the same name; a chain ends with the method that it is named by."""
    assert sorted(f"tiny/{name}" for name in registry.names("methods") if name != "supervised") == TINY
    for name in TINY:
        path = chain.find(name)
        last = chain.load(path).preview()[-1] if path else recipe.load(name)
        assert last.learner["name"] == name.removeprefix("tiny/")
        said = facts(name)
        assert re.search(r"minute.* CPU core", said["Cost"]), name
        assert re.search(r"\b(19|20)\d\d\b", said["Source"]), name
