"""What a video costs by one method and by another: a training step of each recipe, as ratios within one run.

All arms run in one process, interleaved, in reversed order every other round; times are medians of the process's CPU
time. A step is forward, backward, AdamW and what the learner does after it; clips are there already. By default it is
the comparison of VideoMAE's paper (table 2): VideoMAE and MoCo v3 as each is trained on Something-Something V2.

    python benchmarks/cost.py --size small --rounds 3 --out cost.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from step import Arm, measure, ratio

from tubelet import recipe, registry
from tubelet.learner import Now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["v1/pretrain_ssv2_base_800e", "moco_v3/pretrain_ssv2_base_300e"])
    parser.add_argument("--size", default="small", choices=("tiny", "small", "base"))
    parser.add_argument("--batch", type=int, default=2, help="videos a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = measure({name: arm(name, options) for name in options.recipes}, options.rounds)
    for name, row in results.items():
        videos = f"{row['median_s'] / options.batch:8.2f} s a video"
        print(f"{name:44} {videos}  [{row['min_s'] / options.batch:.2f} .. {row['max_s'] / options.batch:.2f}]")
    first, *others = options.recipes
    for name in others:
        print(f"{name} / {first}: {ratio(results, name, first):.2f}x")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def arm(name: str, options: argparse.Namespace) -> Arm:
    """One step of a recipe's learner at another size of its backbone; its head is the recipe's."""
    torch.manual_seed(0)
    words = ["--data.manifest", "none", "--backbone.size", options.size]
    chosen = recipe.load(name, words)
    backbone, learner = (dict(section) for section in (chosen.backbone, chosen.learner))
    for section in (backbone, learner):
        section.pop("init", None)
    made = registry.build("backbones", backbone.pop("name"), **backbone)
    trained = registry.build("methods", learner.pop("name"), backbone=made, **learner)
    optimiser = torch.optim.AdamW([p for _, p in trained.parameters_of("main")], lr=1e-5, fused=True)
    frames, size = chosen.data["frames"], chosen.data["size"]
    views = [torch.rand(options.batch, 3, frames, size, size) for _ in range(trained.views)]
    batch = {"video": views, "key": torch.arange(options.batch), "id": torch.arange(options.batch)}
    now = Now(0, 0, False, 0.0, lambda: iter(()))

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16"):
            loss = trained(batch, "main").loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        trained.after_step(now)

    return run


if __name__ == "__main__":
    main()
