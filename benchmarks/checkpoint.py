"""What checkpoints cost training: ViT-S VideoMAE on synthetic clips, steps without them, in the background, in the way.

Arms take turns in one process, in reversed order every other round; each is a round of steps, with one checkpoint begun
after the first. Wall time of a round over that of the arm without checkpoints says what a checkpoint costs in all, and
``blocked`` how long the loop itself stood still for it. Beside it, `torch.save` of the same state as one file.

    python benchmarks/checkpoint.py --rounds 5 --steps 6 --out checkpoint.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tubelet import registry
from tubelet.train.optim import adamw
from tubelet.train.state import RunState
from tubelet.train.step import take_step
from tubelet.types import Batch

ARMS = ("none", "in the background", "in the way", "torch.save")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "base"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="steps of a round of an arm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="disk to write to (default: the system's for temporary files)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    learner = registry.build("methods", "videomae", backbone=registry.build("backbones", "vit", size=options.size))
    optimiser = adamw(learner, "main", weight_decay=0.05, betas=(0.9, 0.95), layer_decay=1.0)
    size = options.batch, 3, 16, 224, 224
    batch = Batch(video=[torch.rand(size)], key=torch.arange(options.batch), id=torch.arange(options.batch))

    def step() -> float:
        started = time.perf_counter()
        take_step(learner, learner, "main", optimiser, batch, 1, 0.0, "auto")
        return time.perf_counter() - started

    step()
    rounds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    blocked: dict[str, list[float]] = {arm: [] for arm in ARMS}
    steps: list[float] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        runs = {
            arm: RunState(Path(folder) / str(arm), learner, {"main": optimiser}, {}, {}, keep=1, in_background=behind)
            for arm, behind in (("in the background", True), ("in the way", False))
        }
        for turn in range(options.rounds + 1):
            for arm in ARMS[:: 1 if turn % 2 else -1]:
                started, stood_still = time.perf_counter(), 0.0
                for index in range(options.steps):
                    taken = step()
                    if arm == "none" and turn:
                        steps.append(taken)
                    if index == 0 and arm in runs:
                        before = runs[arm].saver.blocked_s
                        runs[arm].step += 1
                        runs[arm].save()
                        stood_still = runs[arm].saver.blocked_s - before
                    elif index == 0 and arm == "torch.save":
                        begun = time.perf_counter()
                        _as_one_file(Path(folder) / "checkpoint.pt", learner, optimiser)
                        stood_still = time.perf_counter() - begun
                if arm in runs:
                    runs[arm].saver.wait()
                if turn:
                    rounds[arm].append(time.perf_counter() - started)
                    blocked[arm].append(stood_still)
        files = sum(file.stat().st_size for file in (Path(folder) / ARMS[1]).rglob("*") if file.is_file())
    report(rounds, blocked, statistics.median(steps), files, options.out)


def _as_one_file(path: Path, learner: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """What a plain training script does: not flushed, not checked, in place of the one before."""
    torch.save({"learner": learner.state_dict(), "optimiser": optimiser.state_dict()}, path)


def report(
    rounds: dict[str, list[float]], blocked: dict[str, list[float]], step_s: float, size: int, out: Path | None
) -> None:
    base = statistics.median(rounds["none"])
    print(f"a step takes {step_s:.2f} s; a checkpoint and the weights to use are {size / 1e6:.0f} MB")
    results: dict[str, Any] = {"step_s": step_s, "bytes": size}
    for arm in ARMS[1:]:
        cost, still = statistics.median(rounds[arm]) - base, statistics.median(blocked[arm])
        every = max(1, math.ceil(max(cost, 0) / (0.02 * step_s)))
        results[arm] = {"cost_s": cost, "blocked_s": still, "rounds_s": rounds[arm], "steps_for_2_percent": every}
        print(
            f"{arm:18} stands still {still:.2f} s, costs {cost:.2f} s in all = {cost / step_s:.2f} steps: under 2 % "
            f"when written every {every} steps or more; {100 * cost / 1800:.3f} % when every 30 minutes"
        )
    results["none"] = {"rounds_s": rounds["none"]}
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
