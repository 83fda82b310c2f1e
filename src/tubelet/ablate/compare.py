"""The comparison of methods: every learner with one backbone, one corpus and one budget, judged by the same tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tubelet import recipe, registry
from tubelet.ablate.command import carry_out, make_plan
from tubelet.ablate.plan import listing, split_words
from tubelet.ablate.tables import Row, Table
from tubelet.apply.shapes import outline
from tubelet.data.audio import sound_of
from tubelet.data.info import UnreadableVideo
from tubelet.log import say
from tubelet.recipe import UsageError
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
    view of a video counts. Beside them stands the untrained network; its fine-tuning is training from scratch.

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
    rows = []
    for name in learners or known:
        row = _row(name, words, clips)
        lacks = _lacks(name, words) if not learners else None
        if lacks is not None:
            say(f"{name} is left out: {lacks}")
            continue
        rows.append(row)
    if not rows:
        raise TubeletError("there is nothing to compare: the videos have what no learner needs")
    table = Table(
        "comparison", "Comparison of methods", tuple(rows),
        note=f"Each encodes {clips:,} clips; the untrained network is in the first row, fine-tuned from scratch.",
        numbers={"retrieval": ["recall@1", "recall@5"]},
    )  # fmt: skip
    plan = make_plan(table, f"{FOLDER}/{rows[0].name}", dotted, out, seeds, tasks, labels_per_class, (), None)
    carry_out(plan, only, dry_run, report)


def _row(name: str, words: Sequence[str], clips: int) -> Row:
    """A learner with as many steps as encode so many clips."""
    chosen = recipe.load(f"{FOLDER}/{name}", words)
    views = chosen.data["views"] or outline(chosen).views
    steps = max(1, clips // (chosen.train["batch"] * views))
    settings = {"data.views": views, "train.length": f"{steps} steps"}
    return Row(name, settings, recipe=f"{FOLDER}/{name}")


def _lacks(name: str, words: Sequence[str]) -> str | None:
    """What a learner needs and the videos do not have."""
    chosen = recipe.load(f"{FOLDER}/{name}", words)
    chosen.needs()
    videos = listing(chosen.data["manifest"], chosen.data["root"]).videos
    column = chosen.data["captions"]
    if column is not None and not any(video.extra.get(column) for video in videos):
        return f"the manifest has no column {column!r} with words"
    if chosen.data["audio_rate"] and not any(_heard(video.path) for video in videos[:HEARD]):
        return "the videos have no sound"
    return None


def _heard(path: object) -> bool:
    try:
        return sound_of(path) is not None  # type: ignore[arg-type]
    except UnreadableVideo:
        return False
