"""From a table to the runs that it takes: each row and seed is a resolved recipe, and equal recipes are one run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from tubelet import chain, draws, recipe, registry
from tubelet.ablate.tables import Row, Table
from tubelet.chain import Chain
from tubelet.data.listing import Manifest, read_manifest
from tubelet.recipe import Recipe, UsageError
from tubelet.train import schedule
from tubelet.types import TubeletError

NO_EFFECT = ("workers", "quiet", "log_steps", "save")
"""Options of train that do not change what is learnt."""
FOLDERS = {
    "backbone": {"init": "backbone.safetensors"},
    "learner": {"init": "learner.safetensors", "teacher": "backbone.safetensors"},
}
"""Options that name the folder of another run, and the weights that are taken from it."""


@dataclass(frozen=True)
class Run:
    """An encoder to be judged: what a recipe trains, or what it begins with."""

    recipe: Recipe
    videos: Manifest
    """What it is pre-trained on; a part of a manifest is written when it is trained."""
    trained: bool = True
    first: Run | None = None
    """The run whose encoder this one begins with."""
    chain: Chain | None = None
    """Whose last link the recipe is; the earlier ones are trained before it."""

    @cached_property
    def links(self) -> list[Recipe]:
        """What is trained, one after the other."""
        return [self.recipe] if self.chain is None else self.chain.preview()

    @cached_property
    def name(self) -> str:
        """A hash of all that the encoder depends on; manifests and folders of other runs count by what is in them."""
        about, before = self._about(self.recipe), [self._about(link) for link in self.links[:-1]]
        return _hash(about | {"before": before} if before else about)

    def _about(self, told: Recipe) -> dict[str, Any]:
        backbone = {**told.backbone, "init": self.first.name} if self.first else by_contents("backbone", told.backbone)
        about: dict[str, Any] = {"seed": told.seed, "clip": told.clip, "backbone": backbone}
        if self.trained:
            data = {key: value for key, value in told.data.items() if key not in ("manifest", "root")}
            train = {key: value for key, value in told.train.items() if key not in NO_EFFECT}
            learner = by_contents("learner", told.learner)
            about |= {"data": data, "learner": learner, "train": train, "videos": self.videos.fingerprint}
        return about

    @property
    def steps(self) -> int:
        return sum(total_steps(link, len(self.videos)) for link in self.links) if self.trained else 0

    @property
    def epochs(self) -> float:
        return sum(
            total_steps(link, len(self.videos)) * link.train["batch"] / (len(self.videos) * link.data["repeats"])
            for link in self.links
        ) if self.trained else 0.0  # fmt: skip

    @property
    def clips(self) -> int:
        """That are seen while it trains: each view that is loaded counts, however much of it is encoded."""
        return sum(
            total_steps(link, len(self.videos)) * link.train["batch"] * (link.data["views"] or 1) for link in self.links
        ) if self.trained else 0  # fmt: skip


class Judgement(NamedTuple):
    """One way of judging an encoder, on the videos of one manifest."""

    column: str
    task: str
    options: dict[str, Any]
    manifest: Path
    labels_per_class: int | None
    terms: dict[str, Any]
    """``root`` of the manifest, and other fields of `tasks.protocol.Protocol`."""
    numbers: Sequence[str]
    """Those of the task, its main one first."""

    def key(self, seed: int) -> str:
        terms = {name: value for name, value in self.terms.items() if name not in ("workers", "root")}
        videos = listing(str(self.manifest), self.terms["root"]).fingerprint
        return _hash([self.task, self.options, videos, self.labels_per_class, terms, seed])


class Cell(NamedTuple):
    """One row with one seed."""

    row: Row
    seed: int
    run: Run | None
    error: str | None = None
    """Why the row makes no run."""


@dataclass(frozen=True)
class Plan:
    """A table on somebody's videos."""

    table: Table
    recipe: str
    words: list[str]
    """What the command line changes in the recipe."""
    seeds: Sequence[int]
    judgements: list[Judgement]
    out: Path
    manifests: list[Path] = field(default_factory=list)
    init: Path | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the table, written out over the manifests; and the untrained network, to compare with."""
        rows = list(self.table.rows)
        if self.table.manifests:
            stems = distinct_names(self.manifests)
            rows = [
                row._replace(name=row.name.format(manifest=stem), manifest=str(path))
                for row in rows for path, stem in zip(self.manifests, stems, strict=True)
            ]  # fmt: skip
        if self.init is not None:
            rows.append(Row(f"{self.init.name}, as it is", trained=False, init=str(self.init)))
        return rows if any(_from_scratch(row) for row in rows) else [BASELINE, *rows]

    @cached_property
    def cells(self) -> list[Cell]:
        """All rows of the first seed, then of the next, so that rows can be compared as early as may be."""
        return [self._cell(row, seed) for seed in self.seeds for row in self.rows]

    def _cell(self, row: Row, seed: int) -> Cell:
        try:
            return Cell(row, seed, self._run(row, seed))
        except TubeletError as error:
            return Cell(row, seed, None, str(error))

    def _run(self, row: Row, seed: int) -> Run:
        other = {} if row.manifest is None else {"data.manifest": row.manifest}
        chosen = self.load(row.set | other, seed, row.recipe)
        if row.init is not None:
            chosen = begin(chosen, row.init)
        whole = videos(chosen)
        if row.length != 1:
            steps = max(1, round(row.length * total_steps(chosen, len(whole))))
            chosen = replace(chosen, train={**chosen.train, "length": f"{steps} steps"})
        if row.videos != 1:
            source, whole = Path(chosen.data["manifest"]), part(whole, row.videos, seed)
            path = self.out.resolve() / "manifests" / f"{source.stem}-{len(whole)}-{whole.fingerprint}.csv"
            chosen = replace(chosen, data={**chosen.data, "manifest": str(path)})
        if row.first is None:
            links = self._chain(row.set | other, seed, row.recipe) if row.trained else None
            return Run(chosen, whole, row.trained, chain=links)
        first = Run(self.load(row.set | row.first, seed, row.recipe), whole)
        return Run(begin(chosen, str(folder(self.out, first))), whole, trained=False, first=first)

    def load(self, settings: Mapping[str, Any], seed: int, name: str | None = None) -> Recipe:
        """The recipe with what every row needs, then the command line's words, then a row's own settings.

        Of a chain it is that of the last link.

        Args:
            name: of another recipe than the plan's.
        """
        whole = self._chain(settings, seed, name)
        chosen = whole.preview()[-1] if whole else recipe.load(name or self.recipe, self._all_words(settings, seed))
        chosen.needs()
        named = {key: chosen.data[key] for key in ("manifest", "root") if chosen.data[key] is not None}
        places = {key: str(Path(path).resolve()) for key, path in named.items()}
        return replace(
            chosen, data={**chosen.data, **places}, backbone=absolute("backbone", chosen.backbone),
            learner=absolute("learner", chosen.learner), evaluate={},
        )  # fmt: skip

    def _chain(self, settings: Mapping[str, Any], seed: int, name: str | None) -> Chain | None:
        """The chain of runs that a recipe is, if it is one."""
        path = chain.find(name or self.recipe)
        return chain.load(path, self._all_words(settings, seed)).unjudged() if path else None

    def _all_words(self, settings: Mapping[str, Any], seed: int) -> list[str]:
        return [*_words(self.table.common), *self.words, *_words(settings), f"--seed={seed}"]


BASELINE = Row("not pre-trained", trained=False)


def _from_scratch(row: Row) -> bool:
    return not row.trained and row.first is None and row.init is None


def judgements(
    table: Table, tasks: Mapping[str, Mapping[str, Any]], chosen: Recipe, manifests: Sequence[Path],
    labels_per_class: int | None, seed: int,
) -> list[Judgement]:  # fmt: skip
    """How the rows of a table are judged: by each task on the recipe's manifest, or on each of several.

    Raises:
        TubeletError: a task finds nothing to judge by, such as a manifest without labels.
    """
    from tubelet.tasks.protocol import Terms

    if "classify" in tasks:
        raise UsageError("--tasks classify is of classifiers as they are, and these are encoders: finetune makes one")
    several = table.manifests == "all"
    judged = list(manifests) if several else [Path(chosen.data["manifest"])]
    root, workers = chosen.data["root"], chosen.train["workers"]
    terms = [Terms(partial(listing, str(path), root), chosen.clip, labels_per_class, seed) for path in judged]
    found = []
    for name, options in tasks.items():
        task = registry.build("tasks", name, **options)
        for path, place, of_it in zip(judged, distinct_names(judged), terms, strict=True):
            task.data(of_it)
            column, more = f"{name} on {place}" if several else name, {"root": root, "workers": workers}
            found.append(Judgement(column, name, dict(options), path, labels_per_class, more, task.numbers))
    return found


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides the dotted options of a command line into those of the recipe and those of tasks."""
    tasks = registry.names("tasks")
    sides: tuple[list[str], list[str]] = ([], [])
    side = sides[0]
    for word in words:
        if word.startswith("--"):
            side = sides[word[2:].partition("=")[0].partition(".")[0] in tasks]
        side.append(word)
    return sides


def folder(out: Path, run: Run) -> Path:
    return out.resolve() / "runs" / run.name


def encoder(out: Path, run: Run) -> Path:
    """The folder of what is judged: of a chain the last link's."""
    return folder(out, run) / run.chain.links[-1].folder if run.chain else folder(out, run)


def begin(chosen: Recipe, encoder: str) -> Recipe:
    """The recipe with the weights of an encoder to begin with."""
    return replace(chosen, backbone={**chosen.backbone, "init": encoder})


def videos(chosen: Recipe) -> Manifest:
    """What a recipe trains on, as a learner without labels sees it."""
    whole = listing(chosen.data["manifest"], chosen.data["root"])
    return whole if chosen.data["split"] is None else whole.where(chosen.data["split"])


def absolute(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a section with whole paths for the folders that it names."""
    return {**options, **{key: str(Path(path).resolve()) for key, path, _ in _folders(section, options)}}


def by_contents(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a section with a digest of what is in a folder in place of its path.

    Raises:
        TubeletError: a folder is not there, or it has no such weights.
    """
    return {**options, **{key: digest(path, weights) for key, path, weights in _folders(section, options)}}


def _folders(section: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Option, folder and file of weights of those options that name a folder."""
    for key, weights in FOLDERS[section].items():
        if options.get(key) is not None and not chain.is_reference(options[key]):
            yield key, options[key], weights


@cache
def digest(folder: str, weights: str) -> str:
    """A hash of a run's description and of one of its files of weights, read once."""
    from tubelet.checkpoint import backbone_files

    about, _ = backbone_files(folder)
    file = about.with_name(weights)
    if not file.exists():
        raise TubeletError(f"{folder} has no {weights}: give the folder of a run that still has it")
    both = hashlib.blake2b(digest_size=8)
    for path in (about, file):
        with path.open("rb") as opened:
            hashlib.file_digest(opened, lambda: both)
    return both.hexdigest()


@cache
def listing(path: str, root: str | None = None) -> Manifest:
    """A manifest, read once."""
    return read_manifest(path, root=root)


def total_steps(chosen: Recipe, count: int) -> int:
    """How many steps a recipe is on `count` videos."""
    epoch = max(1, count * chosen.data["repeats"] // chosen.train["batch"])
    return schedule.steps(chosen.train["length"], epoch)


def part(manifest: Manifest, share: float, seed: int) -> Manifest:
    """A share of the videos, drawn by `seed`: of each class alike where there are classes, each share within a larger.

    Labels only balance the draw, nothing learns from them.
    """
    places = numpy.empty(len(manifest))  # N, where each video stands in its class, in 0..1
    for label in sorted(set(manifest.labels)):
        rows = [row for row, other in enumerate(manifest.labels) if other == label]
        order = draws.generator(seed, "part", label).permutation(len(rows))
        places[rows] = (order + draws.generator(seed, "offset", label).random()) / len(rows)
    first = places.argsort(kind="stable")[: max(1, round(share * len(manifest)))]
    return manifest.take(sorted(first.tolist()))


def distinct_names(manifests: Sequence[Path]) -> list[str]:
    """A short name for each manifest: its stem, or its folder's where stems are equal (``clips.csv`` in each)."""
    stems = [path.stem for path in manifests]
    if len(set(stems)) == len(stems):
        return stems
    folders = [path.resolve().parent.name for path in manifests]
    if len(set(folders)) == len(folders):
        return folders
    raise UsageError("the manifests need names of their own, as files or folders")


def _words(settings: Mapping[str, Any]) -> list[str]:
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
