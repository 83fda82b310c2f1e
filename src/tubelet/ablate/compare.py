"""The comparison of methods: every learner with one backbone, one corpus and one budget, judged by the same tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tubelet import chain, recipe, registry
from tubelet.ablate.command import carry_out, make_plan
from tubelet.ablate.plan import BASELINE, Plan, listing, split_words
from tubelet.ablate.tables import Row, Table
from tubelet.apply.shapes import outline
from tubelet.data.clips import any_sound
from tubelet.log import say
from tubelet.recipe import Recipe, UsageError
from tubelet.types import TubeletError

FOLDER = "tiny"
"""Of the recipes that methods are compared by, one each."""
SET_HERE = {
    "--train.length": "--clips says how long each learner trains",
    "--seed": "--seeds has them all",
    "--name": "runs are named by what they depend on",
}
"""Options of a recipe that are not for the command line here."""


def compare(
    dotted: Sequence[str],
    *,
    out: Path,
    learners: Sequence[str] = (),
    clips: int = 16000,
    seeds: Sequence[int] = (0, 1, 2),
    tasks: Sequence[str] = ("knn", "linear", "attentive", "finetune", "retrieval"),
    labels_per_class: int | None = None,
    only: Sequence[str] = (),
    dry_run: bool = False,
    report: bool = False,
) -> None:
    """Trains what is missing, judges it, and writes ``out/comparison.md``, ``.csv``, ``.json`` and ``.png``.

    Each learner is trained by its recipe ``tiny/NAME``, with `dotted` on top, until it has seen `clips` clips: each
    view that is loaded counts, however much of it is encoded and how often; of a chain all runs together. Above those
    of one form of the backbone stands that network untrained; its fine-tuning is training from scratch.

    Args:
        dotted: words such as ``--data.manifest clips.csv`` (of all recipes) and ``--knn.k 5`` (of a task).
        learners: names of recipes in ``tiny``; none = every one whose modalities the videos have.

    Raises:
        TubeletError: an option does not fit, the videos lack what a learner that is named needs, `out` has another
            comparison, a row failed (all others are done), or there is nothing to report.
    """
    known = [name.partition("/")[2] for name in recipe.packaged() if name.startswith(f"{FOLDER}/")]
    for name in learners:
        if name not in known:
            raise UsageError(f"no learner to compare is called {name!r}{registry.nearest(name, known)}")
    words, _ = split_words(dotted)
    _refuse_what_is_set_here(words)
    forms = _by_form(list(dict.fromkeys(learners or known)), words, clips, named=bool(learners))
    rows = _in_order(forms)
    each = " Below each such network stand those that begin like it." if len(forms) > 1 else ""
    table = Table(
        "comparison", "Comparison of methods", tuple(rows),
        note=f"Each sees {clips:,} clips: each view that is loaded counts. What is not pre-trained is fine-tuned from "
        f"scratch.{each}",
        recipe=f"{FOLDER}/NAME", numbers={"retrieval": 2},
    )  # fmt: skip
    plan = make_plan(table, str(rows[0].recipe), dotted, out, seeds, tasks, labels_per_class, (), None)
    if not dry_run:
        _refuse_another(plan)
    carry_out(plan, only, dry_run, report)


def _by_form(names: Sequence[str], words: Sequence[str], clips: int, named: bool) -> dict[str, list[Row]]:
    """The learners that the videos have everything for, by the form of their backbone; all must be there if named."""
    forms: dict[str, list[Row]] = {}
    least: dict[str, int] = {}
    for name in names:
        links = _links(name, words)
        lacks = _lacks(links)
        if lacks is not None and named:
            raise TubeletError(f"{name} cannot be compared: {lacks}")
        if lacks is not None:
            say(f"{name} is left out: {lacks}")
            continue
        views = links[0].data["views"] or outline(links[0]).views
        least[name] = views * sum(link.train["batch"] for link in links)
        settings = {"data.views": views, "train.length": f"{clips // least[name]} steps"}
        forms.setdefault(_form(links[-1]), []).append(Row(name, settings, recipe=f"{FOLDER}/{name}"))
    if not forms:
        raise TubeletError("there is nothing to compare: the videos have what no learner needs")
    longest = max(least, key=lambda name: least[name])
    if clips < least[longest]:
        raise UsageError(f"--clips must be {least[longest]} or more, not {clips}: a step of {longest} takes so many")
    return forms


def _in_order(forms: dict[str, list[Row]]) -> list[Row]:
    """The most usual form of the backbone first; of each the untrained network, and below it what begins as it is."""
    usual, *_ = ordered = sorted(forms, key=lambda form: -len(forms[form]))
    rows: list[Row] = []
    for form in ordered:
        untrained = _named(form, usual)
        rows.append(Row(untrained, {"backbone.init": None}, trained=False, recipe=forms[form][0].recipe))
        rows += [row._replace(untrained=untrained) for row in forms[form]]
    return rows


def _refuse_what_is_set_here(words: Sequence[str]) -> None:
    """Raises a UsageError for options of a recipe that the comparison sets itself, also those of a link of a chain."""
    for word in words:
        option = word.partition("=")[0]
        option = "--train.length" if option.endswith(".train.length") else option
        if option in SET_HERE:
            raise UsageError(f"compare takes no {option}: {SET_HERE[option]}")


def _refuse_another(plan: Plan) -> None:
    """Raises a TubeletError where the table in the plan's folder is of runs that are not among the plan's."""
    path = plan.out / f"{plan.table.name}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    kept = {cell.run.name for cell in plan.cells if cell.run is not None}
    for row in before:
        if any(int(seed) in plan.seeds and name not in kept for seed, name in row.get("runs", {}).items()):
            raise TubeletError(
                f"{plan.out} has another comparison, whose {row['name']!r} would be lost: ask for all of its learners "
                "with the same options, or choose another folder with --out"
            )


def _links(name: str, words: Sequence[str]) -> list[Recipe]:
    """The recipe of a learner, or the recipes of its chain."""
    path = chain.find(f"{FOLDER}/{name}")
    try:
        links = [recipe.load(f"{FOLDER}/{name}", words)] if path is None else chain.load(path, words).preview()
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    links[0].needs()
    return links


def _form(chosen: Recipe) -> str:
    """What two backbones have in common that are untrained alike."""
    return json.dumps({key: value for key, value in chosen.backbone.items() if key != "init"}, sort_keys=True)


def _named(form: str, usual: str) -> str:
    """The name of an untrained network: what it has that most have not."""
    plain = json.loads(usual)
    own = [f"{option} {value}" for option, value in json.loads(form).items() if plain.get(option) != value]
    return ", ".join([BASELINE.name, *own])


def _lacks(links: Sequence[Recipe]) -> str | None:
    """What a learner needs and the videos do not have."""
    asked = links[0].data
    manifest = listing(asked["manifest"], asked["root"])
    videos = manifest.videos
    column = asked["captions"]
    if column is not None and not any(video.extra.get(column) for video in videos):
        return f"the manifest has no column {column!r} with words"
    if asked["audio_rate"] and not any_sound(manifest):
        return "the videos have no sound"
    if any(link.data["flow"] != "none" for link in links) and not all(video.flow for video in videos):
        return "the manifest has no column 'flow', which `tubelet data flow` makes"
    return None
