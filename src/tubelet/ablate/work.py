"""Does what a plan lacks: pre-trains, judges, keeps the numbers. Any number of processes may share one folder.

In ``out/runs`` a run NAME is its folder, ``NAME.json`` (what is done) and, while somebody is at it, ``NAME.lock``.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tubelet.ablate.plan import Cell, Judgement, Plan, Run, encoder, folder
from tubelet.apply.evaluate import evaluate
from tubelet.checkpoint import save_backbone, write_json
from tubelet.data.listing import write_manifest
from tubelet.log import say, warn
from tubelet.tasks.protocol import numbers
from tubelet.train.provenance import read_provenance
from tubelet.train.run import make_backbone, train

WAIT_S = 2.0
BULKY = ("checkpoints", "learner.safetensors", "tensorboard")
"""What is needed to go on with a run, and not to judge it."""
JUDGED = ("evaluation/features", "evaluation/*/run", "evaluation/*/sweep")
"""What judging leaves besides numbers and predictions."""
KEPT = ("numbers", "interval", "train_videos", "videos", "lr", "seconds")
"""Of a result, besides its numbers."""


class Busy(Exception):
    """Another process is at this run."""


def work(plan: Plan, only: Collection[str] = ()) -> None:
    """Runs what is missing, rows named in `only` alone where given. A run that fails does not stop the others.

    What fails is kept in the run's ``NAME.json`` and tried again by the next call.
    """
    pending = [cell for cell in plan.cells if cell.run is not None and (not only or cell.row.name in only)]
    told = False
    while pending:
        busy = []
        for cell in pending:
            try:
                _finish(plan, cell)
            except Busy as who:
                busy.append(cell)
                if not told:
                    say(f"{cell.row.name}, seed {cell.seed}: {who}; the others first")
        if len(busy) == len(pending):  # nothing is left but what others are at
            told = True
            time.sleep(WAIT_S)
        pending = busy


def _finish(plan: Plan, cell: Cell) -> None:
    """Trains and judges one run, as far as that is not done."""
    run = cell.run
    assert run is not None
    if not missing(plan, run):
        return
    with hold(plan.out, run):
        place = f"{plan.cells.index(cell) + 1} of {len(plan.cells)}"
        title = f"{plan.table.name}, run {place}: {cell.row.name}, seed {cell.seed}"
        if not _attempt(plan, run, title):
            return
        for judgement in missing(plan, run):
            with _errors_kept(plan.out, run, judgement.column):
                _judge(plan.out, run, judgement, cell.seed)
        if not missing(plan, run):
            _remove(encoder(plan.out, run), JUDGED)


def missing(plan: Plan, run: Run) -> list[Judgement]:
    """The judgements that a run still needs."""
    done = record(plan.out, run)["judged"]
    return [judgement for judgement in plan.judgements if judgement.key(run.recipe.seed) not in done]


def _attempt(plan: Plan, run: Run, title: str) -> bool:
    """Makes the encoder of a run, and before it that of the run it begins with; False when that fails."""
    if record(plan.out, run)["encoder"] is not None:
        return True
    with _errors_kept(plan.out, run, "pre-training"):
        if run.first is not None and record(plan.out, run.first)["encoder"] is None:
            with hold(plan.out, run.first):
                _make(plan.out, run.first, f"{title} (images first)")
        _make(plan.out, run, title)
    return record(plan.out, run)["encoder"] is not None


def _make(out: Path, run: Run, title: str) -> None:
    """The encoder of a run, in its folder."""
    if record(out, run)["encoder"] is not None:
        return
    home, chosen = folder(out, run), run.recipe
    facts: dict[str, Any] = {"steps": 0, "seconds": 0.0}
    if run.trained:
        say(f"{title}: {run.steps} steps on {len(run.videos)} videos", "bold")
        manifest = Path(chosen.data["manifest"])
        if not manifest.exists():  # a part of another
            write_manifest(manifest, run.videos)
        if run.chain is not None:
            run.chain.train(home)
            done = [read_provenance(home / link.folder / "provenance.json") for link in run.chain.links]
            facts = {"steps": run.steps, "seconds": sum(one["seconds"] for one in done)}
        else:
            fitted = train(chosen, home)
            facts = {"steps": fitted.steps, "seconds": round(fitted.seconds, 1)}
    else:
        say(f"{title}: not pre-trained", "bold")
        torch.manual_seed(chosen.seed)
        save_backbone(home, make_backbone(chosen), step=0, clip=chosen.clip)
    _note(out, run, encoder=facts)
    for link in [] if run.chain is None else run.chain.links:
        _remove(home / link.folder, BULKY)
    _remove(home, BULKY)


def _judge(out: Path, run: Run, judgement: Judgement, seed: int) -> None:
    scratch = not run.trained and run.first is None and run.recipe.backbone["init"] is None
    task = "scratch" if scratch and judgement.task == "finetune" else judgement.task
    results = evaluate(
        encoder(out, run), {task: judgement.options}, judgement.manifest, seeds=(seed,),
        labels_per_class=judgement.labels_per_class, **judgement.terms,
    )  # fmt: skip
    (result,) = results[task].values()
    told = {name: result[name] for name in (*numbers(result), *KEPT) if name in result}
    about = {"task": judgement.task, "manifest": str(judgement.manifest), "seed": seed}
    _note(out, run, judged={**record(out, run)["judged"], judgement.key(seed): {**about, **told}})


@contextmanager
def _errors_kept(out: Path, run: Run, what: str) -> Iterator[None]:
    """Whatever fails is said and noted; other runs may do better. Interrupts pass."""
    errors = {name: text for name, text in record(out, run)["errors"].items() if name != what}
    try:
        yield
    except Busy:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        warn(f"{what} failed: {text}")
        errors[what] = text
    _note(out, run, errors=errors)


def record(out: Path, run: Run) -> dict[str, Any]:
    """What is known of a run: ``encoder`` (what it took, None until it is made), ``judged``, ``errors``."""
    path = folder(out, run).with_suffix(".json")
    empty = {"encoder": None, "judged": {}, "errors": {}}
    return empty | json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def _note(out: Path, run: Run, **facts: Any) -> None:
    write_json(folder(out, run).with_suffix(".json"), {**record(out, run), **facts})


@contextmanager
def hold(out: Path, run: Run) -> Iterator[None]:
    """Keeps other processes from a run. The system lets go when the process ends, however it ends.

    Whoever holds the lock removes its file at the end. Another process may have opened it before and get hold of it
    after: a file without a name, which keeps nobody out. So the name is looked for once the lock is held.

    Raises:
        Busy: another process is at it.
    """
    path = folder(out, run).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy(f"process {file.read().strip() or '?'} is at it") from None
        if os.fstat(file.fileno()).st_nlink == 0:
            raise Busy("another process has just ended with it")
        try:
            file.truncate(0)
            file.write(f"{os.getpid()} on {platform.node()}")
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)


def _remove(home: Path, patterns: Collection[str]) -> None:
    for path in [found for pattern in patterns for found in home.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
