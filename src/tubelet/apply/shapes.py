"""What a recipe makes, without making it: weights on the meta device have shapes only."""

from __future__ import annotations

import torch

from tubelet import registry
from tubelet.learner import Learner
from tubelet.train import schedule
from tubelet.train.run import Recipe


def outline(chosen: Recipe) -> Learner:
    """The learner of a recipe, on the meta device, with two classes where it needs some."""
    config = {key: value for key, value in chosen.backbone.items() if key not in ("name", "init")}
    options = {key: value for key, value in chosen.learner.items() if key not in ("name", "init")}
    if "made_for" in config and config["made_for"] is None:
        config["made_for"] = [chosen.data["frames"], chosen.data["size"], chosen.data["size"]]
    counted = {"classes": 2, "videos": 1_000_000}  # as many as the manifest has, once it is read
    known = registry.schema(*registry.place("methods", chosen.learner["name"])).__annotations__
    options |= {name: count for name, count in counted.items() if name in known}
    with torch.device("meta"):
        backbone = registry.build("backbones", chosen.backbone["name"], **config)
        return registry.build("methods", chosen.learner["name"], backbone=backbone, **options)


def shapes(chosen: Recipe) -> list[str]:
    """Lines for people: weights, the shapes of a batch, the grid of tokens, and what a step is made of."""
    learner = outline(chosen)
    backbone = learner.backbone
    frames, size, batch = chosen.data["frames"], chosen.data["size"], chosen.train["batch"]
    views, density = (chosen.data[name] or getattr(learner, name) for name in ("views", "density"))
    learner.check_clip(frames, size, size)
    grid = backbone.grid(frames, size, size)
    step = schedule.StepSize(batch, chosen.data["repeats"], micro_batch=chosen.train["micro_batch"])
    learnt = [p for p in learner.parameters() if p.requires_grad]
    count = sum(p.numel() for p in backbone.parameters()), sum(p.numel() for p in learnt)
    return [
        f"weights: {count[0]:,} in the backbone, {count[1]:,} in all",
        f"batch: video B C T H W = {batch} 3 {frames * density} {size} {size}, views {views}",
        f"grid: {' x '.join(map(str, grid))} = {grid[0] * grid[1] * grid[2]} tokens of width {backbone.dim}",
        f"step, in one process: {step.describe(chosen.train['lr'])}",
    ]
