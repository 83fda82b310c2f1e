"""A small run as `tubelet train` leaves it: random weights, tiny films, made-up numbers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tubelet import registry
from tubelet.checkpoint import save_backbone
from tubelet.report.pictures import film

CLIP = {"frames": 4, "stride": 2, "reference_fps": 10.0, "size": 16}
EVIL = "<script>alert(1)</script>"


def make_film(path: Path, seed: int) -> None:
    """Twelve frames of a square that moves over noise, 48 x 32."""
    video = torch.randint(0, 80, (12, 3, 32, 48), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    for frame in range(12):
        video[frame, seed % 3, 8:20, 2 * frame : 2 * frame + 12] = 250
    film(path, video, 10)


def save_run(folder: Path, learner: str, **options: object) -> None:
    torch.manual_seed(0)
    backbone = registry.build("backbones", "vit", dim=16, depth=1, heads=2, patch=8, tubelet=2)
    made = registry.build("methods", learner, backbone=backbone, **options)
    classes = {"classes": ["a", "b"]} if learner == "supervised" else {}
    kept = {key: value for key, value in options.items() if key != "classes"}
    save_backbone(folder, backbone, clip=CLIP, learner={"name": learner, **kept}, step=100, **classes)
    save_file(made.state_dict(), folder / "learner.safetensors")


def result(top1: float, classes: list[str], **more: object) -> dict:
    """A result with `top1`; the first class is judged 10 times, the others once."""
    count = len(classes)
    confusion = [[0] * count for _ in range(count)]
    for row in range(count):
        confusion[row][row if row else count - 1] += 10 if row == 0 else 1
    return {
        "top1": top1, "top5": None if count < 6 else min(1.0, top1 + 0.2), "class_mean": top1, "majority": 1 / count,
        "interval": [top1 - 0.04, top1 + 0.04], "videos": 500, "confusion": confusion,
        "per_class": [{"class": name, "videos": 1, "precision": 0.5, "recall": 0.5} for name in classes], **more,
    }  # fmt: skip


def fill(folder: Path, classes: list[str]) -> None:
    """Adds what training and evaluation write beside the weights."""
    (folder / "recipe.yaml").write_text("learner:\n  name: videomae  # <b>\n")
    provenance = {
        "command": "tubelet train tiny.yaml --out 'runs/a & b'", "started": "2026-01-01T00:00:00", "seconds": 3725.0,
        "clips_seen": 6400, "steps": 100, "versions": {"torch": "2.13.0"}, "machine": "2 CPU cores", "seed": 0,
        "parameters": {"backbone": 484128},
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(provenance))
    lines = [{"step": step, "time": 0.0, "loss": 1 / step, "lr": 1e-3, "clips_per_s": 90.0} for step in range(1, 60)]
    lines += [{"step": step, "time": 0.0, "knn/top1": step / 100} for step in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    (folder / "unreadable.csv").write_text(f"path,reason\n/videos/{EVIL}.mp4,the file is empty\n")
    results = {
        "linear": {"untrained": result(0.457, classes), "videomae": result(0.713, classes)},
        "finetune": {
            "videomae": result(
                0.861, classes, seeds=[{"seed": 0, "top1": 0.851}, {"seed": 1, "top1": 0.871}], spread={"std": 0.01}
            )
        },
        "scratch": {"scratch": result(0.842, classes, seeds=[0.832, 0.856])},
    }
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "results.json").write_text(json.dumps(results))
