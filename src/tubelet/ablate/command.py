"""What `tubelet ablate` does: plans a table, runs what is missing, writes what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tubelet import recipe
from tubelet.ablate import tables
from tubelet.ablate.plan import FOLDERS, Plan, begin, by_contents, judgements, listing, split_words
from tubelet.ablate.tables import Table
from tubelet.log import console, say, table
from tubelet.recipe import UsageError
from tubelet.registry import nearest
from tubelet.types import TubeletError


def ablate(
    name: str,
    recipe_name: str,
    dotted: Sequence[str],
    *,
    out: Path,
    seeds: Sequence[int] = (0,),
    tasks: Sequence[str] = ("finetune",),
    labels_per_class: int | None = None,
    manifests: Sequence[Path] = (),
    init: Path | None = None,
    only: Sequence[str] = (),
    dry_run: bool = False,
    report: bool = False,
) -> None:
    """Runs what is missing of a table and writes ``out/TABLE.md``, ``.csv``, ``.json`` and ``.png``.

    Args:
        name: the table.
        recipe_name: what its rows change.
        dotted: words such as ``--data.manifest clips.csv`` (of the recipe) and ``--finetune.lrs [1e-2]`` (of a task).
        seeds: each row is trained and judged once with each.
        tasks: how encoders are judged.
        labels_per_class: tasks learn from that many videos of each class.
        manifests: the rows of the tables data and transfer.
        init: an encoder that is judged as it is, beside the rows.
        only: names of rows to run.
        dry_run: only print what there is to run.
        report: run nothing.

    Raises:
        TubeletError: the table, the recipe, an option or the videos do not fit, a row failed (all others are done), or
            there is nothing to report.
    """
    plan = make_plan(
        tables.find(name), recipe_name, dotted, out, seeds, tasks, labels_per_class, manifests, init
    )
    carry_out(plan, only, dry_run, report)


def carry_out(plan: Plan, only: Sequence[str] = (), dry_run: bool = False, report: bool = False) -> None:
    """Runs what is missing of a plan and writes what came out; see `ablate`."""
    known = [row.name for row in plan.rows]
    for row in only:
        if row not in known:
            raise UsageError(f"table {plan.table.name} has no row {row!r}{nearest(row, known)}")
    from tubelet.ablate.work import missing, record, work

    out = plan.out
    if dry_run:
        print(_listed(plan, record, missing))
        return
    runs = [record(out, cell.run) for cell in plan.cells if cell.run is not None]
    if report and not any(one["judged"] or one["errors"] for one in runs):
        raise TubeletError(f"{out} has nothing of these rows to report: the same command without --report makes them")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    from tubelet.ablate import summary

    try:
        if not report:
            work(plan, only)
    finally:
        found = summary.summarise(plan)
        paths = summary.write(found, out)
    console.print(_shown(found))
    say(f"wrote {', '.join(str(path) for path in paths)}")
    if found["failed"]:
        more = f" (and {len(found['failed']) - 1} more)" if len(found["failed"]) > 1 else ""
        raise TubeletError(f"{found['failed'][0]}{more}")


def make_plan(
    found: Table, recipe_name: str, dotted: Sequence[str], out: Path, seeds: Sequence[int], tasks: Sequence[str],
    labels_per_class: int | None, manifests: Sequence[Path], init: Path | None,
) -> Plan:  # fmt: skip
    """A plan that is checked as far as it can be before anything is run.

    Raises:
        TubeletError: an option, a manifest or the folder of another run is not there or does not fit.
    """
    words, of_tasks = split_words(dotted)
    asked = recipe.task_options(tasks, of_tasks)
    if bool(found.manifests) != bool(manifests):
        raise UsageError(
            f"table {found.name} needs --manifests A.csv B.csv ..." if found.manifests else
            f"--manifests is for the tables data and transfer; {found.name} takes --data.manifest"
        )  # fmt: skip
    manifests = [path.resolve() for path in manifests]
    if found.manifests == "all" and not any(word.partition("=")[0] == "--data.manifest" for word in words):
        words = [*words, f"--data.manifest={manifests[0]}"]
    if labels_per_class is not None and labels_per_class < 1:
        raise UsageError(f"--labels-per-class must be 1 or more, not {labels_per_class}")
    if min(seeds) < 0:
        raise UsageError(f"--seeds must be 0 or more, not {min(seeds)}")
    plan = Plan(found, recipe_name, words, list(dict.fromkeys(seeds)), [], out, manifests, init and init.resolve())
    for path in manifests:
        listing(str(path))  # refuses one that is not there
    chosen = plan.load({}, plan.seeds[0])
    for section in FOLDERS:
        by_contents(section, getattr(chosen, section))  # refuses a folder without its weights
    if plan.init is not None:
        from tubelet.train.run import make_backbone

        make_backbone(begin(chosen, str(plan.init)))
    plan.judgements.extend(judgements(found, asked, chosen, manifests, labels_per_class, plan.seeds[0]))
    return plan


def _listed(plan: Plan, record: Any, missing: Any) -> str:
    lines = []
    for cell in plan.cells:
        if cell.run is None:
            lines.append(f"{cell.row.name:28} seed {cell.seed}  cannot be run: {cell.error}")
            continue
        todo = [judgement.column for judgement in missing(plan, cell.run)]
        done = record(plan.out, cell.run)["encoder"] is not None
        state = "done" if not todo else f"{'trained' if done else 'to train'}, to judge: {', '.join(todo)}"
        lines.append(
            f"{cell.row.name:28} seed {cell.seed}  {cell.run.name}  {cell.run.steps:>7} steps  "
            f"{len(cell.run.videos) if cell.run.trained else 0:>7} videos  {state}"
        )
    return "\n".join(lines)


def _shown(found: dict[str, Any]) -> Any:
    from tubelet.ablate.summary import spread

    axis = [found["axis"]] if found["axis"] else []
    published = ["published"] if any(row["published"] is not None for row in found["rows"]) else []
    rows = [
        [row["name"], *(f"{row['x']:.4g}" if row["x"] is not None else "" for _ in axis),
         *(f"{row['published']:.1f}" if row["published"] is not None else "" for _ in published),
         *(spread(row, column) for column in found["columns"])]
        for row in found["rows"]
    ]  # fmt: skip
    heads = ["row", *axis, *published, *found["columns"]]
    return table(f"{found['title']}: top-1 %, unless a column says otherwise", heads, rows)
