"""A few small videos with labels, and the smallest runs that can be trained on them through the command line."""

from __future__ import annotations

from pathlib import Path

import yaml

from tubelet import cli
from videos import make_video


def make_clips(folder: Path, count: int = 8, classes: int = 2) -> Path:
    """A manifest of `count` videos for training and half as many for testing."""
    lines = ["path,label,split"]
    for number in range(count + count // 2):
        path = make_video(folder / f"{number}.mp4", 8 + number, fps=15, size=(32, 40))
        lines.append(f"{path.name},class {number % classes},{'train' if number < count else 'test'}")
    manifest = folder / "clips.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def make_recipe(path: Path, manifest: Path, learner: str = "videomae", **sections: dict) -> Path:
    recipe = {
        "data": {"manifest": str(manifest), "frames": 4, "stride": 1, "reference_fps": 15, "size": 16},
        "backbone": {"name": "vit", "dim": 16, "depth": 1, "heads": 1, "patch": 8},
        "learner": {"name": learner, **({"ratio": 0.5, "decoder_depth": 1} if learner == "videomae" else {})},
        "train": {"length": "2 steps", "batch": 4, "workers": 0, "quiet": True},
    }
    for name, section in sections.items():
        recipe[name] = recipe.get(name, {}) | section
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def train(recipe: Path, out: Path, *overrides: str) -> Path:
    assert cli.main(["train", str(recipe), "--out", str(out), *overrides]) == 0
    return out
