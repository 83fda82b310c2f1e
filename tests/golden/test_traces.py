"""Losses that must not drift: a change that moves them changes what a recipe means, and has to say so here."""

from pathlib import Path

import pytest
import torch

from moving import CLIP
from tubelet import registry
from tubelet.data.clips import Clips
from tubelet.data.listing import read_manifest
from tubelet.log import read_metrics
from tubelet.train.fit import fit

BACKBONE = {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 4}
TRACES = {
    "videomae": (
        {"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1},
        [1.224434, 1.245318, 1.191, 1.2217, 1.193333, 1.181947],
    ),
    "supervised": ({"classes": 2}, [0.693136, 0.693119, 0.705057, 0.688216, 0.69743, 0.695589]),
}


@pytest.mark.parametrize("name", TRACES)
def test_the_first_losses_are_what_they_were(name, corpus: Path, tmp_path: Path):
    options, golden = TRACES[name]
    torch.manual_seed(0)
    learner = registry.build("methods", name, backbone=registry.build("backbones", "vit", **BACKBONE), **options)
    fit(
        learner, Clips(read_manifest(corpus, "train"), **CLIP), tmp_path, length="6 steps", batch=4, lr=0.1,
        precision="float32", workers=0, quiet=True, log_steps=1,
    )  # fmt: skip
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert losses == pytest.approx(golden, rel=2e-3)
