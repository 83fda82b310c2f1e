"""Does the recipe `tiny` learn from real clips? Lip reading (MIRACL-VC1, cropped mouths), several seeds, two tests.

Pre-training and heads see 12 speakers' repetitions 1 to 8. Judged are the same speakers' repetitions 9 and 10
("seen"), and three speakers who were never seen ("unseen", by the linear probe alone).

    python benchmarks/words.py FOLDER_WITH_manifest.csv runs/words --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tubelet import recipe
from tubelet.apply.evaluate import Results, evaluate
from tubelet.checkpoint import write_json
from tubelet.data.listing import Manifest, read_manifest, write_manifest
from tubelet.log import say
from tubelet.metrics.classification import paired_spread
from tubelet.train import run

ATTENTIVE = {"attentive": {"lrs": [3e-3]}}
TUNING = {"finetune": {"length": "200 steps", "batch": 16, "drop_path": 0.0, "lrs": (1.6e-2,), "layer_decay": 1.0}}
SCRATCH = {"scratch": {"length": "200 steps", "batch": 16, "drop_path": 0.0, "lrs": (4e-3, 1.6e-2)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels-per-class", type=int, default=20)
    options = parser.parse_args()
    manifests = split(read_manifest(options.folder / "manifest.csv"), options.out)
    found: dict[str, dict[int, Results]] = {test: {} for test in manifests}
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        arguments = ["--data.manifest", str(manifests["seen"]), "--data.flip", "false", "--seed", str(seed)]
        chosen = recipe.load("tiny", arguments)
        run.train(chosen, out)
        for test, manifest in manifests.items():
            terms = {"seeds": [seed], "flip": False, "workers": 1}
            results = evaluate(out, {"linear": {}}, manifest, baseline=True, still=True, **terms)
            if test == "seen":
                results |= evaluate(out, ATTENTIVE, manifest, baseline=True, **terms)
                few = {"labels_per_class": options.labels_per_class, **terms}
                results |= evaluate(out, TUNING, manifest, **few) | evaluate(out, SCRATCH, manifest, **few)
            found[test][seed] = results
    summary = summarise(found)
    write_json(options.out / "words.json", summary)
    for (test, task, encoder), spread in ((tuple(k.split("/")), v) for k, v in summary.items()):
        say(f"{test:7} {task:10} {encoder:10} {100 * spread['mean']:5.1f} ± {100 * (spread['std'] or 0):.1f}")


def split(words: Manifest, out: Path) -> dict[str, Path]:
    """Two manifests with the same training rows, and another test."""
    speakers = sorted(set(words.groups))
    unseen = speakers[::5]
    paths = {}
    for test in ("seen", "unseen"):
        rows = []
        for video in words.videos:
            late = int(video.extra["repetition"]) > 8
            if video.group not in unseen and not late:
                rows.append(replace(video, split="train", group=None))
            elif (video.group in unseen) == (test == "unseen"):
                rows.append(replace(video, split="test", group=None))
        paths[test] = out / f"{test}.csv"
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(paths[test], Manifest(rows))
    return paths


def summarise(found: dict[str, dict[int, Results]]) -> dict[str, dict]:
    """Test / task / encoder -> mean and spread of top-1 over the seeds."""
    values: dict[str, list[float]] = {}
    for test, by_seed in found.items():
        for results in by_seed.values():
            for task, encoders in results.items():
                for encoder, result in encoders.items():
                    values.setdefault(f"{test}/{task}/{encoder}", []).append(result["top1"])
    return {name: paired_spread(seen) for name, seen in values.items()}


if __name__ == "__main__":
    main()
