"""A chain: runs of which later ones start from earlier ones, or learn with a look at them.

It is written as a recipe with a list `chain`. Each link of it has a `name` and the sections of a recipe; what stands
beside the list is shared by all links, and a link's own words win. ``$NAME`` stands for the folder of an earlier link:

    data: {manifest: "???"}
    chain:
      - name: first
        learner: {name: videomae}
      - name: second
        backbone: {init: $first}
        learner: {name: supervised}

Each link is a run like any other, in a folder of its own within that of the chain: ``1-first``, ``2-second``. What is
finished is passed over by the next start, what was interrupted goes on. `tubelet train` trains single runs here too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tubelet import recipe
from tubelet.data import storage
from tubelet.recipe import CHAIN, MISSING, SECTIONS, Recipe, UsageError, read_overrides
from tubelet.types import TubeletError

FILE = "chain.yaml"
"""In the folder of a chain: its links as they were asked for."""
PLACES = (
    ("data", "manifest"), ("data", "root"), ("backbone", "init"), ("learner", "init"), ("learner", "teacher"),
    ("learner", "oracle"),
)  # fmt: skip
"""Options that are places, which are written down whole, since a run is looked at from anywhere."""


@dataclass(frozen=True)
class Link:
    """One run of a chain."""

    name: str
    folder: str
    """Within that of the chain."""
    written: dict[str, Any]
    """What it says: section -> option -> value, the chain's shared words included; earlier links as ``$NAME``."""
    given: dict[str, str]
    """What the command line says of it."""


@dataclass(frozen=True)
class Chain:
    """Links in their order."""

    name: str
    source: str
    links: list[Link]

    def resolved(self, link: Link, out: Path) -> Recipe:
        """The recipe of a link, whose earlier links are there.

        Raises:
            UsageError, TubeletError: as `recipe.load`.
        """
        folders = {f"${other.name}": str(storage.resolved(out / other.folder)) for other in self.links}
        return self._resolve(link, _replaced(link.written, folders))

    def preview(self) -> list[Recipe]:
        """The recipe of each link as it will be, with ``$NAME`` where an earlier link is meant.

        Raises:
            UsageError: a key, an option or a value of some link is not understood.
        """
        previews: dict[str, Recipe] = {}
        for link in self.links:
            start = (link.written.get("backbone") or {}).get("init")
            source = previews.get(str(start)) if "backbone.init" not in link.given else None
            open_ones = _replaced(link.written, {f"${other.name}": MISSING for other in self.links})
            found = self._resolve(link, open_ones, None if source is None else _handed_on(source))
            for section in SECTIONS:
                for option, value in references(link.written.get(section)).items():
                    if f"{section}.{option}" not in link.given:
                        getattr(found, section)[option] = value
            previews[f"${link.name}"] = found
        return list(previews.values())

    def _resolve(self, link: Link, written: dict[str, Any], inherited: dict[str, Any] | None = None) -> Recipe:
        told_as = f"{self.source}, link {link.name}"
        return recipe.resolve(written, dict(link.given), f"{self.name}-{link.folder}", told_as, told_as, inherited)

    def unjudged(self) -> Chain:
        """The same, of which no run judges itself."""
        return replace(self, links=[replace(link, written={**link.written, "evaluate": {}}) for link in self.links])

    def train(self, out: Path) -> None:
        """Trains each link that is not finished, in its folder below ``out``.

        Raises:
            TubeletError: ``out`` holds another chain, or something else; the videos lack what some link needs; or as a
                run of a link.
        """
        from tubelet import dist
        from tubelet.data.listing import read_manifest
        from tubelet.log import say
        from tubelet.train.provenance import read_provenance
        from tubelet.train.run import open_clips

        for asked in self.preview():
            asked.needs()
            videos, split = read_manifest(asked.data["manifest"], root=asked.data["root"]), asked.data["split"]
            open_clips(asked, videos if split is None else videos.where(split))
        dist.start()
        dist.from_first(lambda: self._claim(out))
        for number, link in enumerate(self.links, start=1):
            place = out / link.folder
            if dist.from_first(lambda p=place: "finished" in read_provenance(p / "provenance.json")):
                say(f"{place} is finished")
                continue
            say(f"link {number} of {len(self.links)}: {link.name}", "bold")
            train(self.resolved(link, out), place)

    def _claim(self, out: Path) -> None:
        """Writes the chain into ``out``; what has begun there must be of this chain."""
        from tubelet.checkpoint import write_atomically
        from tubelet.train.lock import NAME as LOCK

        path, now = out / FILE, self._written_whole()
        if path.exists():
            for number, before in enumerate(recipe.read(path)[CHAIN], start=1):
                place = out / _folder(number, before["name"])
                if (place / "recipe.yaml").exists():
                    _compare(before, now[number - 1] if number <= len(now) else None, place)
        elif out.exists() and any(file.name != LOCK for file in out.iterdir()):
            raise TubeletError(f"{out} holds something that is not this chain. Choose another folder with --out")
        text = recipe.as_yaml({CHAIN: now})
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _written_whole(self) -> list[dict[str, Any]]:
        """Every option of each link, with whole places, to be read back from anywhere."""
        links = []
        for link, resolved in zip(self.links, self.preview(), strict=True):
            whole_places(resolved)
            links.append(resolved.as_dict() | {"name": link.name})
        return links


def find(path_or_name: str | Path) -> Path | None:
    """The file of a chain; None where a recipe is of one run.

    Raises:
        UsageError: there is no such recipe.
    """
    inside = Path(path_or_name) / FILE
    path = inside if inside.is_file() else recipe.find(path_or_name)
    return path if CHAIN in recipe.read(path) else None


def load(path: Path, overrides: Sequence[str] = ()) -> Chain:
    """Reads a chain, and makes sure that each link is understood before the first is trained.

    Args:
        overrides: words of a command line: ``--train.length "10 epochs"`` is of each link, and
            ``--NAME.train.length`` of one.

    Raises:
        UsageError: a key, an option or a value is not understood.
    """
    source = recipe.name_of(path)
    name = path.parent.name if path.name == FILE else path.stem if source == str(path) else source.replace("/", "-")
    chain = Chain(name, source, _links(recipe.read(path), source, overrides))
    chain.preview()
    return chain


def train(chosen: Recipe, out: Path) -> None:
    """Trains one run in the folder ``out``, and judges it as its recipe says.

    Raises:
        TubeletError: as `tubelet.train.run.train`; and an option still has to be given.
    """
    chosen.needs()
    whole_places(chosen)
    from tubelet.apply.evaluate import judges
    from tubelet.train import run

    asked = judges(
        chosen.evaluate, storage.place(chosen.data["manifest"]), chosen.clip, out,
        variant=chosen.learner["name"], root=chosen.data["root"], seed=chosen.seed, workers=chosen.train["workers"],
    )  # fmt: skip
    run.train(chosen, out, asked)


def whole_places(chosen: Recipe) -> None:
    """Writes places so that they can be found from anywhere."""
    for section, option in PLACES:
        values = getattr(chosen, section)
        place = values.get(option)
        if place not in (None, MISSING) and not is_reference(place):
            values[option] = str(storage.resolved(storage.place(place)))


def _compare(before: dict[str, Any], now: dict[str, Any] | None, place: Path) -> None:
    """A link that has begun must be the one that is asked for now."""
    from tubelet.train.run import difference

    same = now is not None and now["name"] == before["name"]
    found = difference(before, now) if same and now is not None else "this chain has no such link"
    if found:
        raise TubeletError(
            f"{place} was begun as a link of another chain: {found}. Choose another folder with --out, or delete that "
            "of the link and those of the links after it"
        )


def _folder(number: int, name: str) -> str:
    return f"{number}-{name}"


def _links(written: dict[str, Any], source: str, overrides: Sequence[str]) -> list[Link]:
    shared = {key: value for key, value in written.items() if key != CHAIN}
    listed = written[CHAIN]
    if not isinstance(listed, list) or not listed or not all(isinstance(link, dict) for link in listed):
        raise UsageError(f"{source}: chain must be a list of runs, each with a name and sections of its own")
    names = [link.get("name") for link in listed]
    for number, name in enumerate(names, start=1):
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in SECTIONS:
            raise UsageError(f"{source}: link {number} needs a name of letters and digits, not {name!r}")
        if name in names[: number - 1]:
            raise UsageError(f"{source}: two links are called {name!r}")
    everywhere, own = _divided(overrides, names)
    links = []
    for number, link in enumerate(listed, start=1):
        told_as, before = f"{source}, link {link['name']}", names[: number - 1]
        merged = _merged(shared, {key: value for key, value in link.items() if key != "name"}, told_as)
        for value in (value for section in SECTIONS for value in references(merged[section]).values()):
            if value[1:] not in before:
                known = f"; there are {', '.join(f'${name}' for name in before)}" if before else ""
                raise UsageError(f"{told_as}: {value} is no earlier link{known}")
        given = read_overrides([*everywhere, *own[link["name"]]])
        links.append(Link(link["name"], _folder(number, link["name"]), merged, given))
    return links


def _divided(words: Sequence[str], names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words of a command line that are of all links, and those of each."""
    everywhere: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in names}
    target = everywhere
    for word in words:
        if word.startswith("--"):
            owner, _, option = word[2:].partition(".")
            target = own.get(owner, everywhere)
            word = word if target is everywhere else f"--{option}"
        target.append(word)
    return everywhere, own


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any], told_as: str) -> dict[str, Any]:
    """What a link says, and what all links say where it says nothing."""
    merged = {**shared, **own}
    for section in SECTIONS:
        ours, theirs = own.get(section) or {}, shared.get(section) or {}
        if not isinstance(ours, dict) or not isinstance(theirs, dict):
            raise UsageError(f"{told_as}: {section} must be a mapping of options")
        other = section in ("backbone", "learner") and "name" in ours and ours["name"] != theirs.get("name")
        merged[section] = dict(ours) if other else {**theirs, **ours}  # options of another class do not carry over
    return merged


def references(section: Mapping[str, Any] | None) -> dict[str, str]:
    """The options of a section that are an earlier link, as ``$NAME``."""
    return {option: value for option, value in (section or {}).items() if is_reference(value)}


def is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$")


def _replaced(written: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
    """With the folders of earlier links in place of their names."""
    return {
        key: _replaced(value, folders) if isinstance(value, dict)
        else folders.get(value, value) if isinstance(value, str) else value
        for key, value in written.items()
    }  # fmt: skip


def _handed_on(source: Recipe) -> dict[str, Any]:
    """What a run gives to one that starts from it, as its backbone.json will say."""
    backbone = {key: value for key, value in source.backbone.items() if key not in ("init", "made_for")}
    return {f"backbone.{key}": value for key, value in backbone.items()} | {
        f"data.{key}": value for key, value in source.clip.items()
    }
