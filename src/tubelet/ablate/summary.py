"""What came out of a table: means over seeds beside the published numbers, and what agrees."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tubelet.ablate.figure import draw
from tubelet.ablate.plan import BASELINE, Cell, Judgement, Plan
from tubelet.ablate.work import record
from tubelet.checkpoint import write_atomically, write_csv, write_json
from tubelet.log import warn
from tubelet.metrics.classification import paired_spread
from tubelet.tasks.protocol import in_words
from tubelet.types import TubeletError

Summary = dict[str, Any]


def summarise(plan: Plan) -> Summary:
    """All numbers of a table that there are, in per cent, ready for JSON."""
    rows = [_row(plan, [cell for cell in plan.cells if cell.row is row]) for row in plan.rows]
    columns = {column: number for column, _, number in _columns(plan)}
    published = plan.table.published
    return {
        "table": plan.table.name,
        "title": plan.table.title,
        "paper": plan.table.paper,
        "note": plan.table.note,
        "axis": plan.table.axis,
        "baseline": BASELINE.name,
        "recipe": plan.table.recipe or plan.recipe,
        "options": plan.words,
        "tasks": {judgement.task: judgement.options for judgement in plan.judgements},
        "labels_per_class": plan.judgements[0].labels_per_class,
        "seeds": list(plan.seeds),
        "columns": list(columns),
        "numbers": columns,
        "published": None if published is None else published._asdict(),
        "rows": rows,
        "agreement": {column: agreement(rows, column) for column in columns},
        "failed": [f"{row['name']}: {text}" for row in rows for text in row["errors"]],
        "missing": sum(len(plan.seeds) - len(row["values"][column]) for row in rows for column in columns),
    }


def _columns(plan: Plan) -> list[tuple[str, Judgement, str]]:
    """What is shown: its heading, which names all numbers but top-1, whose it is, and which of its numbers."""
    return [
        (judgement.column if number == "top1" else f"{judgement.column} {in_words(number)}", judgement, number)
        for judgement in plan.judgements
        for number in judgement.numbers[: plan.table.numbers.get(judgement.task, 1)]
    ]


def _row(plan: Plan, cells: list[Cell]) -> dict[str, Any]:
    """One row over its seeds."""
    row, columns = cells[0].row, [column for column, _, _ in _columns(plan)]
    values: dict[str, dict[str, float]] = {column: {} for column in columns}
    errors, made = [cell.error for cell in cells if cell.error], []
    for cell in cells:
        if cell.run is None:
            continue
        known = record(plan.out, cell.run)
        errors += [f"{what}, seed {cell.seed}: {text}" for what, text in known["errors"].items()]
        made += [known["encoder"]] if known["encoder"] else []
        for column, judgement, number in _columns(plan):
            result = known["judged"].get(judgement.key(cell.seed))
            if result is not None:
                values[column][str(cell.seed)] = 100 * result[number]
    spreads = {column: paired_spread(list(found.values())) for column, found in values.items() if found}
    run = next((cell.run for cell in cells if cell.run is not None), None)
    count = len(run.videos) if run and run.trained else None
    counted = {"epochs": run.epochs, "videos": count} if run else {}
    return {
        "name": row.name,
        "untrained": row.untrained or BASELINE.name,
        "x": row.x if row.x is not None else counted.get(plan.table.axis or "") if row.trained else None,
        "published": row.published,
        "values": values,
        "mean": {column: spread["mean"] for column, spread in spreads.items()},
        "std": {column: spread["std"] for column, spread in spreads.items()},
        "steps": run.steps if run else None,
        "clips": run.clips if run else None,
        "runs": {str(cell.seed): cell.run.name for cell in cells if cell.run is not None},
        "epochs": run.epochs if run and run.trained else None,
        "videos": count,
        "seconds": sum(one["seconds"] for one in made) / len(made) if made else None,
        "errors": list(dict.fromkeys(errors)),
    }


def agreement(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any] | None:
    """How our means and the published numbers go together, over the rows that have both; None for fewer than two.

    Returns:
        ``tau`` (Kendall's) and ``pairs``: of each two rows the published difference (second minus first), our mean
        difference, its spread (standard deviation over the seeds that both rows have, seed by seed; None for one
        seed) and a verdict.
    """
    both = [row for row in rows if row["published"] is not None and column in row["mean"]]
    if len(both) < 2:
        return None
    tau = kendall([row["published"] for row in both], [row["mean"][column] for row in both])
    return {"tau": tau, "pairs": [_pair(one, other, column) for one, other in itertools.combinations(both, 2)]}


def _pair(one: Mapping[str, Any], other: Mapping[str, Any], column: str) -> dict[str, Any]:
    theirs = other["published"] - one["published"]
    first, second = one["values"][column], other["values"][column]
    shared = [seed for seed in first if seed in second]
    spread = paired_spread([second[seed] - first[seed] for seed in shared]) if shared else {"mean": None, "std": None}
    verdict = judge(theirs, spread["mean"], spread["std"])
    return {"rows": [one["name"], other["name"]], "published": theirs, "ours": spread["mean"], "spread": spread["std"],
            "verdict": verdict}  # fmt: skip


def judge(theirs: float, ours: float | None, spread: float | None) -> str:
    """Whether our difference says the same as theirs. One that is not larger than its spread says nothing."""
    if ours is None or spread is None:
        return "unknown: one seed"
    if abs(ours) <= spread:
        return "within the spread"
    return "agrees" if ours * theirs > 0 else "disagrees"


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's rank correlation with ties (tau-b, Kendall 1945): 1 = same order; None where one side is all equal."""
    signs = [
        (_sign(first[j] - first[i]), _sign(second[j] - second[i]))
        for i, j in itertools.combinations(range(len(first)), 2)
    ]
    known = math.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    return sum(a * b for a, b in signs) / known if known else None


def _sign(value: float) -> int:
    return (value > 1e-9) - (value < -1e-9)  # means of equal values may differ in their last bit


def write(summary: Summary, out: Path) -> list[Path]:
    """Writes ``TABLE.json``, ``.csv``, ``.md`` and, where Matplotlib is installed, ``.png``."""
    stem = out / summary["table"]
    paths = [stem.with_suffix(suffix) for suffix in (".json", ".csv", ".md", ".png")]
    write_json(paths[0], summary)
    write_csv(paths[1], as_rows(summary))
    write_atomically(paths[2], lambda file: file.write_text(as_markdown(summary), encoding="utf-8", newline=""))
    try:
        write_atomically(paths[3], lambda file: draw(summary, file))
    except TubeletError as error:
        warn(f"no figure: {error}")
        return paths[:3]
    return paths


def as_rows(summary: Summary) -> list[list[object]]:
    """One line for each row, task and seed; the first has the names of the columns."""
    lines: list[list[object]] = [["table", "row", summary["axis"] or "x", "published", "task", "seed", "value"]]
    for row in summary["rows"]:
        for column in summary["columns"]:
            for seed, value in row["values"][column].items():
                start = [summary["table"], row["name"], _number(row["x"], "g"), _number(row["published"], "g")]
                lines.append([*start, column, seed, f"{value:.4f}"])
    return lines


def as_markdown(summary: Summary) -> str:
    columns, published = summary["columns"], summary["published"]
    paper = f" (VideoMAE, table {summary['paper']})" if summary["paper"] else ""
    lines = [f"# {summary['title']}{paper}", ""]
    lines += [summary["note"], ""] if summary["note"] else []
    lines += [f"{'Ours' if published else 'Terms'}: {_how(summary)}. Per cent (top-1, unless a column says otherwise), "
              "mean ± standard deviation over seeds.", ""]
    if published:
        lines += [f"Published: {published['measure']}. Source: {published['source']}.", ""]
    axis = [summary["axis"]] if summary["axis"] else []
    theirs = ["published"] if published else []
    lines += _grid(
        ["row", *axis, *theirs, *columns, "steps", "clips seen", "seconds a run", "seconds an epoch"],
        [
            [row["name"], *[_number(row["x"], ".4g") for _ in axis],
             *[_number(row["published"], ".1f") for _ in theirs], *[spread(row, column) for column in columns],
             _number(row["steps"], "d"), _number(row["clips"], ",d"), _number(row["seconds"], ".0f"),
             _number(_epoch_s(row), ".2f")]
            for row in summary["rows"]
        ]
        + [[f"published only: {one['name']}", *["" for _ in axis], _number(one["value"], ".1f"),
            *["" for _ in columns], "", "", "", ""] for one in (published or {}).get("also", ())],
    )  # fmt: skip
    for column, found in summary["agreement"].items():
        if found is not None:
            lines += ["", f"## What agrees: {column}", "", _agreement_in_words(found, column), ""]
            lines += _grid(
                ["pair (second minus first)", "published", "ours ± spread", "verdict"],
                [
                    [" → ".join(pair["rows"]), _number(pair["published"], "+.1f"),
                     f"{_number(pair['ours'], '+.1f')} ± {_number(pair['spread'], '.1f')}", pair["verdict"]]
                    for pair in found["pairs"]
                ],
            )  # fmt: skip
    if summary["failed"]:
        lines += ["", "## What failed", "", *[f"- {line}" for line in summary["failed"]]]
    if summary["missing"]:
        lines += ["", f"{summary['missing']} judgements are missing: the same command makes them."]
    return "\n".join(lines) + "\n"


def _epoch_s(row: Mapping[str, Any]) -> float | None:
    """Seconds of training in which each video is taken once."""
    return row["seconds"] / row["epochs"] if row["seconds"] is not None and row["epochs"] else None


def _how(summary: Summary) -> str:
    """The terms under which our numbers were made; options as a shell takes them."""
    options = f" with `{shlex.join(summary['options'])}`" if summary["options"] else ""
    of_tasks = [
        word for task, given in summary["tasks"].items() for key, value in given.items()
        for word in (f"--{task}.{key}", value if isinstance(value, str) else json.dumps(value))
    ]  # fmt: skip
    tasks = f"; `{shlex.join(of_tasks)}`" if of_tasks else ""
    labels = f"; {summary['labels_per_class']} labels a class" if summary["labels_per_class"] else ""
    return f"recipe `{summary['recipe']}`{options}{tasks}{labels}; seeds {' '.join(map(str, summary['seeds']))}"


def _agreement_in_words(found: Mapping[str, Any], column: str) -> str:
    verdicts = [pair["verdict"] for pair in found["pairs"]]
    tau = "not defined (all equal)" if found["tau"] is None else f"{found['tau']:.2f} (1 = same order)"
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    return f"Kendall's tau between our means and the published numbers: {tau}. Of {len(verdicts)} pairs: {counts}."


def spread(row: Mapping[str, Any], column: str) -> str:
    """Mean and standard deviation as people read them."""
    if column not in row["mean"]:
        return "failed" if row["errors"] else "-"
    std = row["std"][column]
    return f"{row['mean'][column]:.1f}" + ("" if std is None else f" ± {std:.1f}")


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)


def _grid(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows]]
