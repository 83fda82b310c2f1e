"""Several processes: replicated or sharded, the run is the same, and one may go on as the other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moving import CLIP
from processes import run_processes
from saved import newest, tensors
from tubelet import dist, registry
from tubelet.data.clips import Clips
from tubelet.data.listing import read_manifest
from tubelet.learner import Learner
from tubelet.log import read_metrics
from tubelet.train.fit import Fitted, fit

BACKBONE = {"size": "tiny", "dim": 32, "depth": 2, "heads": 2, "patch": 4}
LEARNERS: dict[str, dict[str, Any]] = {
    "videomae": {"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1},
    "supervised": {"classes": 2, "ema": 0.9},
    "combined": {
        "videos": 12,
        "parts": {
            "videomae": {"ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1},
            "deepcluster": {"clusters": 3, "components": 4},
        },
    },
}
OPTIONS: dict[str, Any] = {
    "length": "6 steps", "batch": 12, "lr": 0.02, "workers": 0, "quiet": True, "log_steps": 1, "precision": "float32",
}  # fmt: skip


def make_learner(name: str) -> Learner:
    torch.manual_seed(0)
    backbone = registry.build("backbones", "vit", **BACKBONE)
    return registry.build("methods", name, backbone=backbone, **LEARNERS[name])


def judge(learner: Learner, step: int) -> dict[str, float]:
    """A sum that any weight changes, by a learner that must be whole and work without the others."""
    with torch.no_grad():
        learner.embed({"video": [torch.rand(1, 3, 4, 16, 16)]})
        return {"sum": float(sum(p.double().abs().sum() for p in learner.parameters()))}


def train(name: str, corpus: Path, out: Path, options: dict[str, Any] | None = None) -> Fitted:
    dist.start()
    torch.set_num_threads(1)
    clips = Clips(read_manifest(corpus, "train"), **CLIP)
    judges = {"judge": ("every 2 steps", judge)}
    fitted = fit(make_learner(name), clips, out, judges=judges, **OPTIONS | (options or {}))
    dist.stop()
    return fitted


def logged(run: Path, key: str) -> list[float]:
    return [line[key] for line in read_metrics(run / "metrics.jsonl") if key in line]


@pytest.mark.parametrize("name", LEARNERS)
def test_sharded_equals_one_process(name, corpus, tmp_path):
    train(name, corpus, tmp_path / "one")
    run_processes(train, 2, name, corpus, tmp_path / "two", {"parallel": "sharded"})
    for key in ("loss", "grad_norm", "judge/sum"):
        assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / "one", key), rel=2e-6), key
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name in one:
        if not name.startswith("random."):
            torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4, msg=name)
    assert len(list(newest(tmp_path / "two").folder.glob("*.safetensors"))) == 2
