"""The main job in one go, on a laptop: from generated video files to an encoder that is judged, and a page about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet import recipe
from tubelet.apply.evaluate import evaluate, judges
from tubelet.checkpoint import write_json
from tubelet.data.inspect import scan
from tubelet.data.listing import write_manifest
from tubelet.data.synthetic import make_corpus
from tubelet.log import console, say, table
from tubelet.report.page import gather, write_report
from tubelet.report.reconstruct import reconstruct
from tubelet.train import run

CORPUS: dict[str, Any] = {
    "clips": 2200, "test": 550, "size": 48, "background_brightness": (0.05, 0.2), "background_contrast": 0.04,
    "camera": 0.04, "noise": 0.01, "mover_brightness": (0.45, 0.85), "mover_size": (0.35, 0.5), "mover_contrast": 0.2,
}  # fmt: skip
"""Large movers before a dark and slowly sliding background: a motion that minutes are enough to learn."""
PROBES: dict[str, dict[str, Any]] = {"attentive": {}, "knn": {"whiten": True}}
PROBE_LABELS = 50
TUNING_LABELS = 10


def main(
    out: Path,
    steps: int = 2500,
    clips: int = 2200,
    test: int = 550,
    tuning_steps: int = 200,
    seeds: int = 3,
    seed: int = 0,
) -> None:
    """Makes a corpus, scans it, pre-trains, judges against honest baselines, and writes the page and the numbers.

    Args:
        steps: of pre-training.
        clips: videos to pre-train on.
        test: videos to be judged on.
        tuning_steps: of fine-tuning, and of training from scratch.
        seeds: how often each judgement is repeated, with other labels and other random networks.
        seed: of the corpus and of pre-training.
    """
    started = time.perf_counter()
    say("1/6  rendering a corpus of moving shapes, as mp4 files", "bold")
    corpus = make_corpus(out.with_name(f"{out.name}-corpus"), seed=seed, **{**CORPUS, "clips": clips, "test": test})

    say("2/6  scanning it", "bold")
    found = scan(corpus)
    manifest = corpus.with_name("scanned.csv")
    write_manifest(manifest, found.manifest)
    console.print(table("corpus", ["", ""], [list(row) for row in found.summary()]))

    say("3/6  pre-training VideoMAE on its training videos, without labels", "bold")
    chosen = recipe.load(
        "demo", ["--data.manifest", str(manifest.resolve()), "--train.length", f"{steps} steps", "--seed", str(seed)]
    )
    run.train(chosen, out, judges(chosen.evaluate, manifest, chosen.clip, out, variant="videomae", seed=seed))

    terms: dict[str, Any] = {"seeds": range(seeds), "baseline": True, "workers": 1}
    say(
        f"4/6  probing the frozen encoder with {PROBE_LABELS} labels a class, beside the same network untrained", "bold"
    )
    results = evaluate(out, {"linear": {}}, manifest, labels_per_class=PROBE_LABELS, **terms, still=True)
    results |= evaluate(out, PROBES, manifest, labels_per_class=PROBE_LABELS, **terms)

    say(f"5/6  fine-tuning with {TUNING_LABELS} labels a class, beside the same network from scratch", "bold")
    options = {"length": f"{tuning_steps} steps", "batch": 16, "drop_path": 0.0, "layer_decay": 1.0}
    tuning = {"finetune": {**options, "lrs": (4e-3, 1.6e-2)}}
    results |= evaluate(out, tuning, manifest, labels_per_class=TUNING_LABELS, **terms)

    say("6/6  writing the page", "bold")
    first = next(video for video in found.manifest.videos if video.split == "test")
    reconstruct(out, first.path, out / "reconstructions")
    page = write_report(out, gather(out, found.manifest))
    summary = summarise(results, classes=len(found.manifest.classes))
    write_json(out / "results.json", summary)
    console.print(show(summary))
    say(f"{(time.perf_counter() - started) / 60:.1f} minutes in all")
    say(f"look at     {page}")
    say(f"numbers     {out / 'results.json'}")
    tool = sys.argv[0] if Path(sys.argv[0]).name == "tubelet" else "tubelet"
    say(f"a video     {tool} predict {out} {first.path}")
    say(f"your own    {tool} data scan VIDEOS -o clips.csv && {tool} train tiny --data.manifest clips.csv")


def summarise(results: Mapping[str, Mapping[str, Mapping[str, Any]]], classes: int) -> dict[str, Any]:
    """Task -> encoder -> top-1 with its 95 % interval, and the spread over seeds; and what guessing gives."""
    kept = ("top1", "interval", "class_mean", "spread", "seeds", "train_videos", "videos")
    return {
        task: {name: {key: result[key] for key in kept if key in result} for name, result in encoders.items()}
        for task, encoders in results.items()
    } | {"chance": 1 / classes}


def show(summary: Mapping[str, Any]) -> Any:
    rows = []
    for task, encoders in summary.items():
        if task == "chance":
            continue
        for name, result in encoders.items():
            low, high = result["interval"]
            spread = f"{100 * result['spread']['std']:.1f}" if result.get("spread") else "-"
            rows.append([task, name, f"{100 * result['top1']:.1f}", f"{100 * low:.1f} - {100 * high:.1f}", spread])
    title = f"top-1 accuracy in % on test videos (chance {100 * summary['chance']:.1f})"
    return table(title, ["task", "encoder", "mean", "95 % interval", "± over seeds"], rows)
