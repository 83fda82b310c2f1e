"""Writes a run's page: one HTML file that needs nothing else, with what the run learnt, how well, and at what cost."""

from __future__ import annotations

import base64
import csv
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tubelet import registry
from tubelet.checkpoint import write_atomically
from tubelet.log import read_metrics
from tubelet.report import figures
from tubelet.report.gather import ReportData, gather
from tubelet.tasks.protocol import counted, in_words, main_number, numbers
from tubelet.train.verdict import verdict
from tubelet.types import TubeletError

__all__ = ["ReportData", "gather", "write_report"]

BASELINES = ("scratch", "untrained", "one-frame")
"""Names of encoders that nothing was learnt with in pre-training; any other one in a task is the run's."""
Results = dict[str, dict[str, dict[str, Any]]]
"""Task -> encoder -> result."""


class Line(NamedTuple):
    """One line of the accuracy table, ready to print; shares are in per cent."""

    task: str
    variant: str
    best: bool
    top1: str
    interval: str
    top5: str
    class_mean: str
    train_videos: str
    videos: str
    seeds: str


class Judgement(NamedTuple):
    """What a task that is not about classes says of the encoders, ready to print; shares are in per cent."""

    task: str
    numbers: list[str]
    lines: list[list[str]]
    """Encoder, each number, the interval of the first one, videos."""
    pictures: list[tuple[str, bytes]]
    """Encoder and a PNG."""


class Trouble(NamedTuple):
    """Something that was wrong with the run while it trained."""

    step: int
    """From when on."""
    text: str
    over: bool
    """Whether it had passed by the end."""


def write_report(run: Path, data: ReportData | None = None) -> Path:
    """Writes ``run/report.html`` from the files of the run, and from ``data`` what `gather` found of single clips.

    A part whose input is missing is left out, and one sentence says which command makes it.

    Raises:
        TubeletError: there is no such run, or one of its files is damaged.
    """
    if not run.is_dir():
        raise TubeletError(f"{run} does not exist; give the folder of a run, such as runs/NAME")
    about, provenance = _json(run / "backbone.json"), _json(run / "provenance.json")
    results, metrics = read_results(run), read_metrics(run / "metrics.jsonl")
    others = read_others(run)
    learner = about.get("learner", {}).get("name", "")
    chance = _chance(results)
    context = {
        "name": run.resolve().name,
        "command_name": shlex.quote(str(run)),
        "summary": " ".join([summarise(results, about, provenance, chance), *told(others, learner)]),
        "lines": table(results, learner),
        "judgements": [judgement(run, task, variants, learner) for task, variants in others.items()],
        "judged": judged(results | others),
        "chance": _percent(chance) if chance is not None else "",
        "bars": _figure(figures.bars, results, chance) if results else "",
        "curves": curves(metrics, chance),
        "health": health_curves(metrics),
        "looks": sum(any(key.startswith("health/") for key in line) for line in metrics),
        "troubles": troubles(metrics, labelled="classes" in about),
        "confusion": best_confusion(results, about, learner),
        "map": _map(data),
        "data": data,
        "recipe": _text(run / "recipe.yaml"),
        "cost": cost(provenance, metrics),
        "starts": starts(provenance),
        "unreadable": unreadable(run / "unreadable.csv"),
        "command": _command(provenance.get("command")),
        "provenance": provenance,
    }
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters["uri"] = lambda content, kind: f"data:{kind};base64,{base64.b64encode(content).decode()}"
    environment.filters["breakable"] = lambda name: name.replace("_", "_\u200b")  # a line may break there
    text = environment.get_template("page.html").render(context)
    out = run / "report.html"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(out, write)
    return out


def read_results(run: Path) -> Results:
    """The run's results; training from scratch stands beside fine-tuning, as the baseline that it is."""
    results: Results = {}
    for task, variants in _json(run / "evaluation" / "results.json").items():
        for variant, result in variants.items() if isinstance(variants, dict) else ():
            if isinstance(result, dict) and "top1" in result:
                results.setdefault(task, {})["scratch" if task == "scratch" else variant] = result
    if "finetune" in results and "scratch" in results:
        results["finetune"] = results.pop("scratch") | results["finetune"]
    return results


def read_others(run: Path) -> Results:
    """The results of tasks that are not about classes."""
    found = _json(run / "evaluation" / "results.json")
    return {
        task: variants for task, variants in found.items()
        if isinstance(variants, dict) and variants and all("numbers" in result for result in variants.values())
    }  # fmt: skip


def judgement(run: Path, task: str, variants: dict[str, dict[str, Any]], learner: str) -> Judgement:
    """A table of a task's own numbers, and the pictures that it left."""
    ordered = sorted(variants.items(), key=lambda item: not is_trained(item[0], learner))
    lines, pictures = [], []
    for variant, result in ordered:
        low, high = result["interval"]
        shares = [_percent(result[name]) for name in numbers(result)]
        lines.append([variant, *shares, f"{_percent(low)} – {_percent(high)}", counted(result)])
        seed = "".join(f"-seed{one['seed']}" for one in result.get("seeds", [])[:1])  # of several the first one's
        folder = run / "evaluation" / f"{task}-{variant}{seed}"
        files = [folder / name for name in result.get("pictures", [])]
        pictures += [(variant, file.read_bytes()) for file in files if file.is_file()]
    return Judgement(task, [in_words(name) for name in numbers(ordered[0][1])], lines, pictures)


def told(others: Results, learner: str) -> list[str]:
    """A sentence on each task that is not about classes: the main number of every encoder, the run's own first."""
    sentences = []
    for task, variants in others.items():
        ordered = sorted(variants.items(), key=lambda item: not is_trained(item[0], learner))
        name = in_words(numbers(ordered[0][1])[0])
        shares = [f"{_percent(main_number(result))} % for {variant}" for variant, result in ordered]
        sentences.append(f"{task.capitalize()}: {name} is {', '.join(shares)}.")
    return sentences


def is_trained(variant: str, learner: str) -> bool:
    """Whether the encoder called ``variant`` in a result is the run's own."""
    return variant == learner or variant not in BASELINES


def table(results: Results, learner: str) -> list[Line]:
    """A line for each task and encoder, the run's own first."""
    lines = []
    for task, variants in results.items():
        best = max(result["top1"] for result in variants.values())
        for variant, result in sorted(variants.items(), key=lambda item: not is_trained(item[0], learner)):
            seeds = figures.seed_values(result)
            low, high = result.get("interval") or (math.nan, math.nan)
            spread = f"{_percent(min(seeds))} – {_percent(max(seeds))} ({len(seeds)})" if seeds else ""
            lines.append(
                Line(
                    task, variant, result["top1"] == best, _percent(result["top1"]),
                    f"{_percent(low)} – {_percent(high)}", _percent(result.get("top5")),
                    _percent(result.get("class_mean")),
                    str(result.get("train_videos", "–")), counted(result), spread,
                )
            )  # fmt: skip
    return lines


def summarise(results: Results, about: dict[str, Any], provenance: dict[str, Any], chance: float | None) -> str:
    """The outcome: the best number of the run's encoder against its baselines, and in which tasks it beats them."""
    learner = about.get("learner", {}).get("name", "")
    steps = about.get("step") or provenance.get("steps")
    after = f"After {steps:,} steps " if isinstance(steps, int) else ""
    own, compared, verdicts = [], [], {}
    for task, variants in results.items():
        ours = [(result["top1"], task, variant) for variant, result in variants.items() if is_trained(variant, learner)]
        theirs = [result for variant, result in variants.items() if not is_trained(variant, learner)]
        own += ours
        if ours and theirs:
            compared += ours
            baseline = max(theirs, key=lambda result: result["top1"])
            verdicts.setdefault(_verdict(variants[max(ours)[2]], baseline), []).append(task)
    if not own:
        return f"{after}{'this' if after else 'This'} encoder has not been judged yet."
    top1, task, variant = max(compared or own)
    against = [f"{_percent(result['top1'])} % for {name}" for name, result in results[task].items()
               if not is_trained(name, learner)]  # fmt: skip
    if chance is not None:
        against.append(f"{_percent(chance)} % by chance")
    sentence = f"{after}{variant} gets {_percent(top1)} % of the test videos right ({task})"
    sentence += f", against {' and '.join(against)}." if against else "."
    if verdicts:
        found = "; ".join(f"{verdict} in {', '.join(tasks)}" for verdict, tasks in verdicts.items())
        sentence += f" Compared with the best baseline it is {found}."
    return sentence


def _verdict(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """Whether a difference is larger than luck makes: by the seeds where there are several, else by the intervals."""
    own, other = figures.seed_values(ours), figures.seed_values(theirs)
    several = len(own) > 1 and len(other) > 1
    (low, high), (other_low, other_high) = (
        ((min(own), max(own)), (min(other), max(other))) if several else (ours["interval"], theirs["interval"])
    )
    reason = "every seed" if several else "intervals apart"
    if low > other_high:
        return f"better ({reason})"
    if high < other_low:
        return f"worse ({reason})"
    return f"not clearly different ({'seeds' if several else 'intervals'} overlap)"


def curves(metrics: list[dict[str, Any]], chance: float | None) -> list[Markup]:
    """Loss, learning rate and accuracy of the probes over the steps, as far as they were logged."""

    probes = sorted({key for line in metrics for key in line if key.endswith("/top1")})
    others = main_numbers(metrics)
    made = []
    if any("loss" in line for line in metrics):
        losses = {"loss": _pick(metrics, "loss")}
        made.append(_figure(figures.curve, "Loss", losses, "training loss (no unit)", smooth=True))
    if probes:
        lines = {key.removesuffix("/top1"): _pick(metrics, key) for key in probes}
        level = None if chance is None else ("chance", chance)
        made.append(_figure(figures.curve, "Probe", lines, "accuracy during training (%)", percent=True, level=level))
    for task, key in others.items():
        name = in_words(key.partition("/")[2])
        lines = {name: _pick(metrics, key)}
        made.append(_figure(figures.curve, f"Probe {task}", lines, f"{name} of {task} (%)", percent=True))
    if any("lr" in line for line in metrics):
        rates = {"learning rate": _pick(metrics, "lr")}
        made.append(_figure(figures.curve, "Learning rate", rates, "learning rate (1 / step)"))
    return made


def main_numbers(metrics: list[dict[str, Any]]) -> dict[str, str]:
    """Task -> what its main number is logged as, which is the first of its numbers; of those not about classes."""
    found: dict[str, str] = {}
    for key in (key for line in metrics for key in line):
        task, _, number = key.partition("/")
        if number and task in registry.names("tasks"):
            found.setdefault(task, key)
    return {task: key for task, key in found.items() if not key.endswith("/top1")}


def health_curves(metrics: list[dict[str, Any]]) -> list[tuple[Markup, str]]:
    """What was examined during training, with a sentence on how to read it; nothing where nothing was."""
    losses = sorted({key for line in metrics for key in line if key.startswith("health/loss")})
    shown: list[tuple[str, dict[str, str], str, bool, str]] = [
        ("Effective rank", {"effective rank": "health/effective_rank"}, "effective rank (directions)", False,
         "How many directions the embeddings use (RankMe). A fall towards 1 is a collapse."),
        ("Spread", {"spread": "health/spread", "dead dimensions": "health/dead"}, "share (%)", True,
         "How far embeddings lie apart, beside their length; and the share of dimensions that are the same for all."),
        ("Consistency", {"same video": "health/same", "other videos": "health/other", "nearest is the same video":
         "health/nearest"}, "cosine, or share of clips (no unit)", False,
         "How alike two clips of one video are, and clips of different videos; and how often a clip's nearest is the "
         "other one of its video."),
        ("Loss on fixed clips", {key.removeprefix("health/"): key for key in losses}, "loss (no unit)", False,
         "Always the same clips under the same masks. It should not rise for long."),
        ("Gradient", {"norm of the gradient": "grad_norm"}, "norm of the gradient (no unit)", False,
         "Before clipping. A jump of many times the usual comes before divergence."),
        ("Update", {"update": "update_ratio"}, "change of the weights in one step (%)", True,
         "Beside the weights' size. 0.1 to 1 % is usual."),
    ]  # fmt: skip
    if not any(key.startswith("health/") for line in metrics for key in line):
        return []
    made = []
    for name, keys, unit, percent, meaning in shown:
        lines = {label: picked for label, key in keys.items() if (picked := _pick(metrics, key))[0]}
        if lines:
            smooth = name == "Gradient"
            made.append((_figure(figures.curve, name, lines, unit, percent=percent, smooth=smooth), meaning))
    return made


def troubles(metrics: list[dict[str, Any]], labelled: bool) -> list[Trouble]:
    """What was wrong at any examination, as it was said first."""
    first: dict[str, tuple[int, str]] = {}
    for index, line in enumerate(metrics):
        if any(key.startswith("health/") for key in line):
            for name, text in verdict(metrics[: index + 1], labelled).items():
                first.setdefault(name, (line["step"], text))
    last = verdict(metrics, labelled)
    return [Trouble(step, text, name not in last) for name, (step, text) in first.items()]


def _pick(metrics: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The steps at which a number was logged, and its values."""
    chosen = [(line["step"], line[key]) for line in metrics if isinstance(line.get(key), int | float)]
    return [float(step) for step, _ in chosen], [float(value) for _, value in chosen]


def best_confusion(results: Results, about: dict[str, Any], learner: str) -> dict[str, Any]:
    """The confusion matrix of the run's encoder in the task it is best at, and the pairs it mixes up most."""
    own = [(result["top1"], task, variant) for task, variants in results.items() for variant, result in variants.items()
           if result.get("confusion") and is_trained(variant, learner)]  # fmt: skip
    if not own:
        return {}
    _, task, variant = max(own)
    result = results[task][variant]
    matrix = result["confusion"]
    known = [entry["class"] for entry in result.get("per_class", [])] or about.get("classes") or []
    classes = known if len(known) == len(matrix) else [str(number) for number in range(len(matrix))]
    mixed = sorted(((count, row, column) for row, line in enumerate(matrix) for column, count in enumerate(line)
                    if row != column and count), reverse=True)[:5]  # fmt: skip
    pairs = [(classes[row], classes[column], count, sum(matrix[row])) for count, row, column in mixed]
    figure = _figure(figures.confusion, matrix, classes)
    return {"task": task, "variant": variant, "figure": figure, "pairs": pairs,
            "width": 520 if len(classes) <= 12 else 760 if len(classes) <= 30 else 1040}  # fmt: skip


def judged(results: Results) -> list[str]:
    """Which weights the numbers are of, by their hash, and the tasks that judged them."""
    tasks: dict[str, list[str]] = {}
    for task, variants in results.items():
        for variant, result in variants.items():
            if "weights_hash" in result:
                step = "" if variant in BASELINES or result.get("step") is None else f" of step {result['step']:,}"
                tasks.setdefault(f"{variant}{step} {result['weights_hash']}", []).append(task)
    return [f"{weights} ({', '.join(names)})" for weights, names in tasks.items()]


def starts(provenance: dict[str, Any]) -> list[list[str]]:
    """A line for each start of the training: when, on what, by which code, its steps and seconds, how it ended."""
    lines = []
    for start in provenance.get("starts", []):
        count = start.get("processes")
        where = f"{start.get('machine', '–')}{f', {count} processes' if count and count > 1 else ''}"
        steps = "–" if start.get("from_step") is None else f"{start['from_step']:,} – {start['to_step']:,}"
        took = _duration(start["seconds"]) if "seconds" in start else "–"
        ended = start["ended"] or "not yet, or killed"
        lines.append([start["started"][:16].replace("T", " "), where, _code(start.get("code")), steps, took, ended])
    return lines


def _code(code: dict[str, Any] | None) -> str:
    """The code of a start: "0.1.0, commit 1a2b3c4 with changes"."""
    if not code:
        return "–"
    commit = f", commit {code['commit'][:7]}" if "commit" in code else ""
    return f"{code['version']}{commit}{' with changes' if code.get('changed') else ''}"


def cost(provenance: dict[str, Any], metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What the run took, as names and values."""
    seconds, clips = provenance.get("seconds"), provenance.get("clips_seen")
    rates = sorted(line["clips_per_s"] for line in metrics if line.get("clips_per_s"))
    waits = sorted(line["waiting"] for line in metrics if "waiting" in line)
    wall = provenance.get("wall_seconds")
    last = (provenance.get("starts") or [provenance])[-1]  # before there were starts, it stood in the run itself
    rows: list[tuple[str, Any]] = [
        ("training time", _duration(seconds) if seconds else None),
        ("wall time", f"{_duration(wall)} in all, judging and starting included" if wall else None),
        ("GPU-hours", _hours(provenance.get("gpu_hours"))),
        ("core-hours", _hours(provenance.get("core_hours"))),
        ("optimiser steps", provenance.get("steps")),
        ("clips seen", clips),
        ("clips per second", f"{rates[len(rates) // 2]:,.1f} (median)" if rates else None),
        ("waiting for clips", f"{100 * waits[len(waits) // 2]:.0f} % of the time (median)" if waits else None),
        ("parameters", provenance.get("parameters")),
        ("machine", last.get("machine")),
        ("hosts", [_host(host) for host in last.get("hosts", [])]),
        ("processes", last.get("processes")),
        ("Tubelet", _code(last["code"]) if "code" in last else None),
        ("versions", last.get("versions")),
        ("seed", str(provenance.get("seed", ""))),
        *((name, provenance.get(name)) for name in ("started", "finished", "manifest", "fingerprint", "recipe")),
    ]  # fmt: skip
    return [(name, _plain(value)) for name, value in rows if value not in (None, "", {}, [])]


def _host(host: dict[str, Any]) -> str:
    """A machine: "node1: Intel(R) Xeon(R), 64 cores, 251.5 GiB, 2 x NVIDIA H100 (79.1 GiB)"."""
    cards = Counter(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in host["gpus"])
    gpus = "".join(f", {count} x {card}" for card, count in cards.items())
    return f"{host['host']}: {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB{gpus}"


def _hours(hours: float | None) -> str | None:
    return None if hours is None else f"{hours:,.3g}"


def unreadable(path: Path) -> list[tuple[str, str]]:
    """Path and reason of each file that could not be read."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [(line.get("path") or "", line.get("reason") or "") for line in csv.DictReader(file)]


def _map(data: ReportData | None) -> dict[str, Any]:
    """The map of embeddings, and for the script each point's clip by class, in the order in which they are drawn."""
    if data is None:
        return {}
    order: dict[str, list[int]] = {}
    for row, label in enumerate(data.labels):
        order.setdefault(f"map-{label}", []).append(row)
    classes = [data.classes[label] if label >= 0 else "" for label in data.labels]
    names = [list(pair) for pair in zip(data.names, classes, strict=True)]
    figure = _figure(figures.embedding_map, data.points, data.labels, data.classes, data.projection, data.pictures)
    return {"figure": figure, "order": order, "names": names, "labelled": any(label >= 0 for label in data.labels),
            "many": len(data.classes) > figures.DISTINCT}  # fmt: skip


def _figure(draw: Callable[..., str], *arguments: Any, **options: Any) -> Markup:
    """A figure, or the sentence that says what it needs."""
    try:
        return Markup(draw(*arguments, **options))  # figures escape what they write
    except TubeletError as error:
        return Markup('<p class="missing">{}.</p>').format(str(error))


def _chance(results: Results) -> float | None:
    """Accuracy of always answering the commonest class of the test videos."""
    shares = [result.get("majority") for variants in results.values() for result in variants.values()]
    return max((share for share in shares if share is not None), default=None)


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "under 1 s"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _command(command: Any) -> str:
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except json.JSONDecodeError as error:
        raise TubeletError(f"{path} is damaged ({error}): run the command that wrote it again") from error
    return value if isinstance(value, dict) else {}
