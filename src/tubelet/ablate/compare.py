"""The comparison of methods: every learner with one backbone, one corpus and one budget, judged by the same tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tubelet import chain, recipe, registry
from tubelet.ablate.command import carry_out, make_plan
from tubelet.ablate.plan import BASELINE, listing, split_words
from tubelet.ablate.tables import Row, Table
from tubelet.apply.shapes import outline
from tubelet.data import read, shards
from tubelet.data.audio import sound_of
from tubelet.data.info import UnreadableVideo
from tubelet.data.storage import Place
from tubelet.log import say
from tubelet.recipe import Recipe, UsageError
from tubelet.types import TubeletError

FOLDER = "tiny"
"""Of the recipes that methods are compared by, one each."""
HEARD = 8
"""Videos of a corpus that are listened to, to find out whether it has sound."""


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

    Each learner is trained by its recipe ``tiny/NAME``, with `dotted` on top, until it has encoded `clips` clips: each
    view of a video counts; of a chain all runs together. Beside them stand the untrained networks, one for each form
    of the backbone that the recipes ask for; their fine-tuning is training from scratch.

    Args:
        dotted: words such as ``--data.manifest clips.csv`` (of all recipes) and ``--knn.k 5`` (of a task).
        learners: names of recipes in ``tiny``; none = every one whose modalities the videos have.

    Raises:
        TubeletError: an option does not fit, a row failed (all others are done), or there is nothing to report.
    """
    if clips < 1:
        raise UsageError(f"--clips must be 1 or more, not {clips}")
    known = [name.partition("/")[2] for name in recipe.packaged() if name.startswith(f"{FOLDER}/")]
    for name in learners:
        if name not in known:
            raise UsageError(f"no learner to compare is called {name!r}{registry.nearest(name, known)}")
    words, _ = split_words(dotted)
    rows: list[Row] = []
    backbones: dict[str, list[str]] = {}
    for name in learners or known:
        links = _links(name, words)
        lacks = _lacks(links) if not learners else None
        if lacks is not None:
            say(f"{name} is left out: {lacks}")
            continue
        rows.append(_row(name, links, clips))
        backbones.setdefault(_form(links[-1]), []).append(name)
    if not rows:
        raise TubeletError("there is nothing to compare: the videos have what no learner needs")
    usual = max(backbones, key=lambda form: len(backbones[form]))
    untrained = [
        Row(_named(form, usual), {"backbone.init": None}, trained=False, recipe=f"{FOLDER}/{names[0]}")
        for form, names in backbones.items()
    ]
    table = Table(
        "comparison", "Comparison of methods", (*untrained, *rows),
        note=f"Each encodes {clips:,} clips. What is not pre-trained is fine-tuned from scratch.",
        numbers={"retrieval": ["recall@1", "recall@5"]},
    )  # fmt: skip
    plan = make_plan(table, f"{FOLDER}/{rows[0].name}", dotted, out, seeds, tasks, labels_per_class, (), None)
    carry_out(plan, only, dry_run, report)


def _links(name: str, words: Sequence[str]) -> list[Recipe]:
    """The recipe of a learner, or the recipes of its chain."""
    path = chain.find(f"{FOLDER}/{name}")
    links = [recipe.load(f"{FOLDER}/{name}", words)] if path is None else chain.load(path, words).preview()
    links[0].needs()
    return links


def _row(name: str, links: Sequence[Recipe], clips: int) -> Row:
    """A learner with as many steps as encode so many clips, divided among its links."""
    views = links[0].data["views"] or outline(links[0]).views
    steps = max(1, clips // (sum(link.train["batch"] for link in links) * views))
    settings = {"data.views": views, "train.length": f"{steps} steps"}
    return Row(name, settings, recipe=f"{FOLDER}/{name}")


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
    videos = listing(asked["manifest"], asked["root"]).videos
    column = asked["captions"]
    if column is not None and not any(video.extra.get(column) for video in videos):
        return f"the manifest has no column {column!r} with words"
    if asked["audio_rate"] and not any(_heard(video.path) for video in videos[:HEARD]):
        return "the videos have no sound"
    if any(link.data["flow"] != "none" for link in links) and not all(video.flow for video in videos):
        return "the manifest has no column 'flow', which `tubelet data flow` makes"
    return None


def _heard(place: Place) -> bool:
    file = shards.sound(place) if shards.is_place(place) else None
    if file is None and not read.is_file(place):
        return False  # stills, or packed without a sound
    try:
        return sound_of(place, file) is not None
    except UnreadableVideo:
        return False
