"""Judges the encoder of a run by tasks, beside its baselines, and keeps what came out in ``RUN/evaluation``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet import registry
from tubelet.checkpoint import load_backbone, read_about, weights_hash, write_json
from tubelet.data.division import train_and_validation
from tubelet.data.listing import Manifest, read_manifest
from tubelet.data.storage import Place
from tubelet.learner import Backbone, Learner
from tubelet.log import say, warn
from tubelet.methods.supervised import Supervised
from tubelet.metrics.classification import paired_spread, wilson
from tubelet.tasks.classify import Classify
from tubelet.tasks.protocol import Protocol, Result, Task, Terms, main_number, numbers
from tubelet.train.run import load_learner
from tubelet.types import Features, Grid, TubeletError

Judge = Callable[[Learner, int], dict[str, float]]
Results = dict[str, dict[str, Result]]
"""Task -> whose encoder ("videomae", "untrained", "scratch") -> result."""
AVERAGED_TOO = ("precision", "recall")
"""Besides a result's own numbers."""


def judges(
    evaluate: Mapping[str, Mapping[str, Any]], manifest: Place, clip: Mapping[str, Any], out: Path, *,
    variant: str, root: str | Place | None = None, seed: int = 0, **terms: Any,
) -> dict[str, tuple[str, Judge]]:  # fmt: skip
    """What `train` calls while it trains: task -> (when, function of learner and step that answers numbers).

    Every judgement also goes into ``out/evaluation``, where the last one stays. Videos without labels are no reason
    not to train: then the tasks are left out, with a warning.

    Args:
        evaluate: a recipe's section: task -> its options and ``every``.
        variant: the name of the learner.
        root: what no video may lie outside of; see `tubelet.data.root`.
        terms: other fields of `Protocol`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        tuned = [name for name in evaluate if name in ("finetune", "scratch")]
        if tuned:
            warn(
                f"{', '.join(tuned)} left out during training: with several processes use `tubelet evaluate` afterwards"
            )
        evaluate = {name: options for name, options in evaluate.items() if name not in tuned}
    if "classify" in evaluate and variant != "supervised":
        raise TubeletError(f"evaluate.classify judges the classes that a learner answers, and {variant} answers none")
    if not evaluate:
        return {}
    common = Terms(cache(partial(read_manifest, manifest, root=root)), dict(clip), seed=seed, options=terms)
    asked: dict[str, tuple[str, Judge]] = {}
    left_out: dict[str, list[str]] = {}
    for name, options in evaluate.items():
        when = options["every"] if options["every"] == "end" else f"every {options['every']}"
        task = registry.build("tasks", name, **{key: value for key, value in options.items() if key != "every"})
        try:
            data = task.data(common)
            if name == "classify":
                data = for_choosing(data, common.manifest())
        except TubeletError as error:
            left_out.setdefault(str(error), []).append(name)
            continue
        asked[name] = (when, partial(_judge, task, name, data, out, variant))
    for error, names in left_out.items():
        warn(f"{', '.join(names)} left out during training: {error}")
    return asked


def for_choosing(protocol: Protocol, listing: Manifest) -> Protocol:
    """The protocol with the videos that a classifier's weights are chosen by in place of the test videos."""
    learnt, chosen = train_and_validation(listing)
    if chosen.fingerprint == protocol.test.fingerprint:
        warn(
            "too few videos to keep any for choosing: `classify` judges the test videos during training, so that "
            "numbers of the best weights on them will be too good; a split `val` beside `test` mends it"
        )
    else:
        say(f"classify judges {len(chosen)} videos that are neither trained on nor for the final test")
    return replace(protocol, train=learnt, test=chosen)


def _judge(
    task: Task, name: str, data: Any, out: Path, variant: str, learner: Learner, step: int
) -> dict[str, float]:
    with torch.enable_grad():  # the loop judges without gradients, but a task may train a head
        subject = learner if name == "classify" else learner.exported
        judged = named(name, subject)
        result = task(subject, data, folder(out, name, variant))
    keep(out, {name: {variant: {**result, **judged, "step": step}}})
    return {key: result[key] for key in numbers(result) if result.get(key) is not None}


def evaluate(
    run: Path,
    tasks: Mapping[str, Mapping[str, Any]],
    manifest: Place | None,
    *,
    seeds: Sequence[int] = (0,),
    baseline: bool = False,
    still: bool = False,
    labels_per_class: int | None = None,
    root: str | Place | None = None,
    **terms: Any,
) -> Results:
    """Judges the encoder of ``run`` by each task, once for each seed.

    Args:
        tasks: name -> options.
        manifest: the videos, with labels; None where every task has videos of its own.
        seeds: the learning rate that the first one chooses (on training videos) serves the others too. They are of the
            drawing of labels, of folds, of a head's first weights and of untrained networks.
        baseline: judge the same network untrained too; for ``finetune`` that is the task ``scratch``.
        still: judge the pixels of the middle frame too.
        labels_per_class: learn from that many videos of each class only.
        root: what no video may lie outside of; see `tubelet.data.root`.
        terms: other fields of `Protocol`.

    Returns:
        Task -> variant -> result; with several seeds their mean, and ``seeds``, the top-1 of each. It is also written
        to ``run/evaluation/results.json``.
    """
    if "classify" in tasks:
        raise TubeletError("a classifier is judged as it is by `tubelet evaluate RUN`, without --tasks")
    about = read_about(run)

    @cache
    def listing() -> Manifest:
        if manifest is None:
            raise TubeletError(f"{run} has no recipe.yaml that names a manifest: give --manifest clips.csv")
        return read_manifest(manifest, root=root)

    tried: dict[tuple[str, str], dict[int, Result]] = {}
    for seed in seeds:
        common = Terms(
            listing, dict(about["clip"]), labels_per_class, seed, {"cache": run / "evaluation" / "features", **terms}
        )
        for name, options in tasks.items():
            for variant, task, backbone in contestants(run, name, seed, baseline, still):
                say(f"{name}: {variant}, seed {seed}")
                own = dict(options)
                before = next(iter(tried.get((name, variant), {}).values()), {})
                if "lr" in before:
                    own["lrs"] = (before["lr"],)  # the first seed has chosen for all
                out = folder(run, name, variant, seed if len(seeds) > 1 else None)
                judged = named(task, backbone)
                judge: Task = registry.build("tasks", task, **own)
                result = judge(backbone, judge.data(common), out)
                tried.setdefault((name, variant), {})[seed] = {**result, **judged}
    results: Results = {}
    for (name, variant), by_seed in tried.items():
        own = by_seed[min(by_seed)].get("judged_on")
        facts: dict[str, Any] = {"step": about.get("step")}
        if own is None:
            facts |= {"manifest": str(manifest), "labels_per_class": labels_per_class}
        results.setdefault(name, {})[variant] = {**average(by_seed), **facts}
    keep(run, results)
    return results


def classifier(run: Path, manifest: Place, root: str | Place | None = None, **terms: Any) -> Results:
    """Judges a classifier as it is, by the mean softmax over views: ``run`` is one that `tubelet train finetune` made.

    ``run`` has the weights of the last step, ``run/best`` those that did best on the videos kept for choosing.

    Args:
        manifest: the videos, with labels; those that are not for training are judged.
        root: what no video may lie outside of; see `tubelet.data.root`.
        terms: fields of `Protocol`.
    """
    about, learner = read_about(run), load_learner(run)
    if not isinstance(learner, Supervised):
        raise TubeletError(f"{run} has no classifier: its learner is {about['learner']['name']}")
    classes, weights = about["classes"], which_weights(about)
    protocol = Protocol.from_manifest(read_manifest(manifest, root=root), dict(about["clip"]), **terms)
    strange = sorted(set(classes) ^ set(protocol.classes))
    if strange:
        raise TubeletError(
            f"{run} knows {len(classes)} classes, and {manifest} has {len(protocol.classes)}; the first that is not in "
            f"both is {strange[0]!r}, {'known' if strange[0] in classes else 'in the manifest'}: use the known names "
            "as labels, or name a converted classifier's by `tubelet convert SRC DST --to tubelet --classes FILE`"
        )
    judged = named("classify", learner)
    order = [classes.index(name) for name in protocol.classes]  # a converted head has its publisher's
    for rows in learner.head.parameters():
        rows.data = rows.data[order]
    say(f"judging the weights of {weights} on {len(protocol.test)} videos, {protocol.test_clips} x "
        f"{protocol.test_crops} views each")  # fmt: skip
    result = Classify()(learner, protocol, folder(run, "classifier", "supervised"))
    facts = {"manifest": str(manifest), "step": about.get("step"), "weights": weights}
    results: Results = {"classifier": {"supervised": {**result, **judged, **facts}}}
    keep(run, results)
    return results


def named(task: str, judged: nn.Module) -> dict[str, str]:
    """What a result names the weights by that it judges; those of ``scratch`` are made by the task itself."""
    return {} if task == "scratch" else {"weights_hash": weights_hash(judged)}


def which_weights(about: Mapping[str, Any]) -> str:
    """Which weights a folder holds: of the last step, or the best by what; and whether they are averages."""
    found = f"the last step ({about['step']})" if "step" in about else "a converted checkpoint"
    if "chosen_by" in about:
        found = f"step {about['step']}, the best by {about['chosen_by']} ({about['value']:.4f})"
    return f"{found}, moving average" if about.get("weights") == "moving average" else found


def contestants(run: Path, task: str, seed: int, baseline: bool, still: bool) -> Iterator[tuple[str, str, Backbone]]:
    """Who is judged by a task: name, the task that judges it, and the encoder."""
    if task == "scratch":  # it takes the shape of the network, not its weights
        yield "scratch", task, load_backbone(run)
        return
    yield read_about(run).get("learner", {}).get("name", "encoder"), task, load_backbone(run)
    if baseline and task == "finetune":
        yield "scratch", "scratch", load_backbone(run)
    elif baseline:
        yield "untrained", task, untrained(run, seed)
    if still and registry.find("tasks", task).one_frame:
        yield "one-frame", task, MiddleFrame()


class MiddleFrame(Backbone):
    """Not an encoder but a control: a clip's middle frame, made small. What it gets right needs no motion."""

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        self.side, self.dim, self.config = side, 3 * side * side, {"name": "middle frame", "side": side}

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return 1, 1, 1

    def forward(self, video: Tensor, hidden: Tensor | None = None) -> Features:
        frame = video[:, :, video.shape[2] // 2]  # B C H W
        small = nn.functional.adaptive_avg_pool2d(frame, self.side)  # B C side side
        return Features(small.flatten(1)[:, None], (1, 1, 1))  # B 1 D

    def layers(self) -> list[list[nn.Parameter]]:
        return []


def untrained(run: Path, seed: int) -> Backbone:
    """The network of a run with random weights: what its training is measured against."""
    config = dict(read_about(run)["backbone"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build("backbones", config.pop("name"), **config).eval()


def average(by_seed: Mapping[int, Result]) -> Result:
    """One result for several seeds: mean numbers and the spread of the main one; the tables are those of the first."""
    results = list(by_seed.values())
    first = results[0]
    if len(results) == 1:
        return {**first, "seed": next(iter(by_seed))}
    main, *_ = names = numbers(first)
    known = [key for key in (*names, *AVERAGED_TOO) if first.get(key) is not None]
    means = {key: sum(result[key] for result in results) / len(results) for key in known}
    return {
        **first,
        **means,
        "interval": interval(means[main], results),
        "spread": paired_spread([main_number(result) for result in results]),
        "seeds": [
            {"seed": seed} | {key: result[key] for key in (main, "weights_hash") if key in result}
            for seed, result in by_seed.items()
        ],
        "seconds": sum(result["seconds"] for result in results),
    }


def interval(mean: float, results: Sequence[Result]) -> list[float]:
    """That of a mean over seeds: of a share of videos Wilson's, of other numbers the mean of the intervals' ends."""
    if numbers(results[0])[0] == "top1":
        videos = results[0]["videos"]
        return list(wilson(round(mean * videos), videos))
    return [sum(result["interval"][end] for result in results) / len(results) for end in (0, 1)]


def folder(run: Path, task: str, variant: str, seed: int | None = None) -> Path:
    """Where a judgement leaves its files."""
    return run / "evaluation" / (f"{task}-{variant}" + ("" if seed is None else f"-seed{seed}"))


def keep(run: Path, results: Results) -> None:
    """Adds results to ``run/evaluation/results.json``; one of the same task and variant is replaced.

    Results of the same task on other terms (other videos, or numbers of them) go: side by side they would mislead.
    """

    def terms_of(result: Result) -> tuple[Any, ...]:
        return result.get("train_videos"), result.get("videos"), result.get("judged_on")

    path = run / "evaluation" / "results.json"
    kept: Results = {}
    if path.exists():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            warn(f"{path} is damaged and is written afresh")
    for task, variants in results.items():
        terms = {terms_of(result) for result in variants.values()}
        alike = {name: result for name, result in kept.get(task, {}).items() if terms_of(result) in terms}
        kept[task] = {**alike, **variants}
    write_json(path, kept)
