"""A recipe: what is trained, on what, for how long, and how it is judged. The constructor is the schema.

The keys of a recipe are the arguments of `data.clips.Clips`, of the backbone and the learner that it names, of
`train.fit.fit` and of the tasks; names, types, defaults and help texts are read from their source, so that nothing
is written twice and nothing here imports torch. Later words win: the defaults of the code, what the run named by
``backbone.init`` was made with, the recipe, the command line.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tubelet import registry
from tubelet.train import schedule
from tubelet.types import TubeletError

FOLDER = Path(__file__).parent / "recipes"
MISSING = "???"
"""What a recipe writes where its user must give a value."""
CHAIN = "chain"
"""The key of a recipe that is a chain of runs: see `tubelet.chain`."""
SECTIONS = ("data", "backbone", "learner", "train", "evaluate")
NOT_WRITTEN = {"data": {"seed", "segments"}, "learner": {"classes", "videos"}, "train": {"seed", "about"}}
"""Arguments that code fills in: from the recipe's one seed, from the manifest."""
PARTS = "learner.parts"
"""Where a learner is made of others: below it a label for each, with its name (the label unless given), its weight in
the sum of losses, and its arguments."""


class UsageError(TubeletError):
    """A command line or a recipe says something that is not understood. The exit code is 2."""


class Option(NamedTuple):
    """One argument of a constructor, as a user may write it."""

    type: Any
    default: Any
    help: str = ""

    @property
    def expected(self) -> str:
        return _in_words(self.type)

    def read(self, value: Any, name: str) -> Any:
        """The value in the option's own type; tuples become lists, as YAML has them.

        Args:
            value: text from a command line, or anything that YAML knows.
            name: begins the error message.

        Raises:
            UsageError: it is of another type, or not among the choices.
        """
        from jsonargparse import ArgumentError, ArgumentParser

        if value is None or value in ("null", "none"):
            if type(None) in typing.get_args(self.type):
                return None
            value = "null" if value is None else value
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=self.type)
        try:
            given = (
                parser.parse_args([f"--value={value}"])
                if isinstance(value, str)
                else parser.parse_object({"value": value})
            )
        except (ArgumentError, TypeError, ValueError):
            raise UsageError(f"{name} cannot be {_short(value)}: expected {self.expected}") from None
        return _plain(given.value)


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: every option has its value."""

    name: str
    seed: int
    data: dict[str, Any]
    """``manifest``, ``root`` (outside of which no video may lie), ``split`` (the part to train on, where the manifest
    has splits), and the arguments of `Clips`."""
    backbone: dict[str, Any]
    """``name``, ``init`` (a run whose weights to start from, or None), and the arguments of the backbone."""
    learner: dict[str, Any]
    """``name`` and the arguments of the learner."""
    train: dict[str, Any]
    """The arguments of `fit`."""
    evaluate: dict[str, dict[str, Any]] = field(default_factory=dict)
    """task -> its options and ``every``: "10 epochs", "5 %" or "end"."""
    source: str = field(default="", compare=False)
    """The file or name that it was read from."""

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed} | {section: getattr(self, section) for section in SECTIONS}

    @property
    def clip(self) -> dict[str, Any]:
        """The shape of a clip, as tasks and backbone.json have it."""
        shape = {key: self.data[key] for key in ("frames", "stride", "reference_fps", "size")}
        shape |= {"segments": True} if self.data["sampling"] == "segments" else {}
        return shape | ({"flow": "instead"} if self.data.get("flow") in ("instead", "exchanged") else {})

    def to_yaml(self) -> str:
        """All that there is to know to do the same again; `load` and `from_yaml` read it back exactly."""
        return as_yaml(self.as_dict())

    @classmethod
    def from_yaml(cls, text: str, source: str = "") -> Recipe:
        """Reads what `to_yaml` wrote.

        Raises:
            TubeletError: it is not a resolved recipe.
        """
        written = _mapping(text, source or "the recipe")
        needed = {"name", "seed", *SECTIONS}
        if missing := sorted(needed - written.keys()):
            raise TubeletError(f"{source or 'the recipe'} is not a resolved recipe: it has no {', '.join(missing)}")
        return cls(**{key: written[key] for key in needed}, source=source)

    @property
    def parts(self) -> dict[str, str]:
        """Label -> name of the learners that the learner is made of."""
        parts = self.learner.get("parts")
        return {label: part["name"] for label, part in parts.items()} if isinstance(parts, dict) else {}

    def missing(self) -> list[str]:
        """The options that still have to be given."""
        return [key for key, value in flat(self.as_dict()) if value == MISSING]

    def needs(self) -> None:
        """Raises a UsageError when an option still has to be given."""
        if missing := self.missing():
            options = " ".join(f"--{key} {EXAMPLES.get(key, 'VALUE')}" for key in missing)
            raise UsageError(f"{self.source or self.name} needs {options}")


EXAMPLES = {
    "data.manifest": "clips.csv", "backbone.init": "runs/NAME", "learner.init": "runs/NAME",
    PARTS: '"{videomae: {weight: 1.0}, swav: {weight: 0.5}}"',
}  # fmt: skip


def as_yaml(tree: dict[str, Any]) -> str:
    """Sections in blocks, lists of values on one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def packaged() -> list[str]:
    """The names of the recipes that come with Tubelet, such as "tiny" and "v1/pretrain_k400_base_1600e"."""
    names = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml")]
    return sorted(names, key=lambda name: ("/" in name, natural(name)))


def natural(name: str) -> list[str | int]:
    """Sorts 800 epochs before 1600."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def summary(name: str) -> str:
    """The first line of a packaged recipe."""
    return find(name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def find(path_or_name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a packaged one.

    Raises:
        UsageError: there is neither; the message has the nearest name.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    name = path.as_posix()
    if name in packaged():
        return FOLDER / f"{name}.yaml"
    close = _close(name, packaged(), 0.5)
    begun = [known for known in packaged() if known.startswith(name)]
    if len(begun) > 1:
        raise UsageError(f"no recipe is called {name!r}; there are {', '.join(begun[:4])} and so on: `tubelet list`")
    meant = f"did you mean {close!r}?" if close else "`tubelet list` has those that come with Tubelet"
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"no such recipe: {path}; `tubelet list` has those that come with Tubelet")
    raise UsageError(f"no recipe is called {name!r}; {meant}")


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and resolves it: every option gets its value.

    Args:
        path_or_name: a YAML file, the folder of a run, or the name of a packaged recipe.
        overrides: words of a command line: ``--learner.ratio 0.75`` or ``--learner.ratio=0.75``.

    Raises:
        UsageError: a key, an option or a value is not understood; the message names the nearest right one.
        TubeletError: ``backbone.init`` is not a run.
    """
    path = find(path_or_name)
    source = name_of(path)
    written = read(path)
    if CHAIN in written:
        raise UsageError(f"{source} is a chain of runs, not one: `tubelet train` and `tubelet show` take it")
    name = path.stem if source == str(path) else source.replace("/", "-")  # its run is one folder, not several
    return resolve(written, read_overrides(overrides), name, source, str(path))


def name_of(path: Path) -> str:
    """How a recipe's file is called: by its packaged name, or its path."""
    return path.relative_to(FOLDER).with_suffix("").as_posix() if path.is_relative_to(FOLDER) else str(path)


def read(path: Path) -> dict[str, Any]:
    """The mapping that the file of a recipe holds.

    Raises:
        UsageError: it holds none.
    """
    try:
        return _mapping(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no recipe: it is not text") from None


def resolve(
    written: dict[str, Any],
    given: dict[str, Any],
    name: str,
    source: str,
    told_as: str,
    inherited: dict[str, Any] | None = None,
) -> Recipe:
    """Gives every option of a recipe its value.

    Args:
        written: what the recipe says: section -> option -> value.
        given: what overrides say, as `read_overrides` has it.
        name: of the run, if it is given no other.
        source: what it was read from, as messages on missing options say it.
        told_as: likewise, as messages on what is not understood say it.
        inherited: dotted options that come with the run to start from, where that run is yet to be made.

    Raises:
        UsageError, TubeletError: as `load`.
    """
    written = _sections(written, given, told_as)
    init = given.get("backbone.init", written["backbone"].get("init"))
    run = _of_run(init) if inherited is None else inherited
    chosen = {
        section: _choice(section, given.get(f"{section}.name"), written, run.get(f"{section}.name"))
        for section in ("backbone", "learner")
    }
    parts = _parts(written["learner"], given, told_as) if _has_parts(chosen["learner"]) else {}
    known = options(chosen["learner"], chosen["backbone"], _tasks(written["evaluate"], given), parts)
    if chosen["backbone"] != run.get("backbone.name"):  # another architecture shares only the clip with that run
        run = {key: value for key, value in run.items() if key.startswith("data.")}
    values = {key: option.default for key, option in known.items()}
    values |= {"name": name} | {key: value for key, value in run.items() if key in known}
    for key, value in flat(written):
        if key not in known:
            raise UsageError(f"{told_as}: unknown key {key}{nearest(key, known)}")
        values[key] = value if value == MISSING else known[key].read(value, f"{told_as}: {key}")
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"unknown option --{key}{nearest(key, known, '--')}")
        values[key] = known[key].read(value, f"--{key}")
    if "split" not in written["data"] and "data.split" not in given and not _has_splits(values["data.manifest"]):
        values["data.split"] = None
    best = values["train.best"]
    if best and "train.best" not in given and f"evaluate.{best.partition('/')[0]}.every" not in known:
        values["train.best"] = None  # nothing is left to choose by: its task is switched off
    return _tree(values, source)


def of_run(run: Path) -> Recipe | None:
    """The recipe that a run was made by; None when it has none (an exported encoder, for example).

    Raises:
        TubeletError: ``run`` is not the folder of a run.
    """
    if not run.is_dir():
        what = "is a file" if run.exists() else "does not exist"
        raise TubeletError(f"{run} {what}; give the folder of a run, such as runs/NAME")
    path = run / "recipe.yaml"
    return Recipe.from_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def task_options(tasks: Sequence[str], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options that a command line (``--knn.k 5``) gives to tasks: task -> those that were given.

    Raises:
        UsageError: there is no such task, or it has no such option.
    """
    known: dict[str, Option] = {}
    for task in tasks:
        known |= arguments(*_place("tasks", task), task)
    asked: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for key, value in read_overrides(overrides).items():
        if key not in known:
            raise UsageError(f"unknown option --{key}{nearest(key, known, '--')}")
        task, _, name = key.partition(".")
        asked[task][name] = known[key].read(value, f"--{key}")
    return asked


def options(
    learner: str, backbone: str, tasks: Iterable[str] = (), parts: Mapping[str, str] | None = None
) -> dict[str, Option]:
    """Every dotted option of a recipe with this learner, this backbone and these tasks, in the order of a recipe.

    Args:
        parts: label -> name of the learners that the learner is made of.

    Raises:
        UsageError: one of them is not registered.
    """
    known = {
        "name": Option(str, "", "name of the run; the recipe's own name unless given"),
        "seed": Option(int, 0, "of the data order, the augmentation, the masks and the first weights"),
        "data.manifest": Option(
            str, MISSING, "CSV, Parquet or `path label` list of the videos; `tubelet data scan` makes one"
        ),
        "data.root": Option(
            str | None, None, "folder or URL that no video may lie outside of, for a manifest of somebody else's"
        ),
        "data.split": Option(str | None, "train", "part of the manifest to learn from, where it has splits"),
    }
    known |= arguments("tubelet.data.clips", "Clips", "data")
    known["backbone.name"] = _named("backbones", backbone)
    known["backbone.init"] = Option(str | None, None, "folder of a run whose backbone to start from")
    known |= arguments(*_place("backbones", backbone), "backbone")
    known["learner.name"] = _named("methods", learner)
    known["learner.init"] = Option(str | None, None, "folder of a run whose decoder or head to start from, too")
    known |= arguments(*_place("methods", learner), "learner")
    if parts:
        del known[PARTS]
    for label, name in (parts or {}).items():
        known[f"{PARTS}.{label}.name"] = _named("methods", name)
        known[f"{PARTS}.{label}.weight"] = Option(float, 1.0, "how much its loss counts")
        known |= arguments(*_place("methods", name), f"{PARTS}.{label}")
    known |= arguments("tubelet.train.fit", "fit", "train")
    for task in tasks:
        known[f"evaluate.{task}.every"] = Option(str, "end", 'when: "10 epochs", "5 %" or "end"; "none" leaves it out')
        known |= arguments(*_place("tasks", task), f"evaluate.{task}")
    return known


def arguments(module: str, attribute: str, section: str = "") -> dict[str, Option]:
    """The options that a constructor or function in our source gives, below ``section``; nothing is imported."""
    from docstring_parser import parse

    stand_in = registry.schema(module, attribute)
    helps = {}
    for parameter in parse(stand_in.__doc__ or "").params:
        text = " ".join((parameter.description or "").split()).removesuffix(".")
        helps |= {name.strip(): text for name in parameter.arg_name.split(",")}
    left_out = NOT_WRITTEN.get(section.partition(".")[0], set())
    return {
        f"{section}.{name}" if section else name: Option(
            parameter.annotation,
            MISSING if parameter.default is parameter.empty else _plain(parameter.default),
            helps.get(name, ""),
        )
        for name, parameter in inspect.signature(stand_in).parameters.items()
        if name not in left_out
    }


def nearest(key: str, known: Iterable[str], dashes: str = "") -> str:
    """An ending for an error message: the option that was meant, or those of its section."""
    known = list(known)
    section, _, leaf = key.rpartition(".")
    inside = [option.rpartition(".")[2] for option in known if section and option.rpartition(".")[0] == section]
    same = [f"{dashes}{option}" for option in known if option.rpartition(".")[2] == leaf]
    if close := _close(leaf, inside, 0.5):
        return f"; did you mean {dashes}{section}.{close}?"
    if close := _close(key, known, 0.8):
        return f"; did you mean {dashes}{close}?"
    if same:
        return f"; did you mean {' or '.join(same)}?"
    if inside:
        return f"; {section} takes {', '.join(inside)}"
    if close := _close(key, known, 0.5):
        return f"; did you mean {dashes}{close}?"
    sections = dict.fromkeys(f"{option.partition('.')[0]}." for option in known if "." in option)
    return f"; options begin with {', '.join(sections)}" if sections else ""


def _close(word: str, known: Sequence[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), "")


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``--a.b 3 --c.d=4`` -> ``{"a.b": "3", "c.d": "4"}``; the last of several wins."""
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UsageError(f"unexpected argument {word!r}: settings look like --learner.ratio 0.75")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key} needs a value")
            value = rest.pop(0)
        given[key] = value
    for key in [key for key in given if key.startswith("evaluate.") and key.count(".") == 1]:
        given[f"{key}.every"] = given.pop(key)  # --evaluate.knn "every 5 epochs"
    return given


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{source}{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(written, dict):
        raise UsageError(f"{source} is not a recipe: it needs sections such as data, backbone, learner and train")
    return written


def _sections(written: dict[str, Any], given: Mapping[str, str], source: str) -> dict[str, Any]:
    """The recipe with every section a mapping, and what an override makes meaningless taken out."""
    for key in written:
        if key not in ("name", "seed", *SECTIONS):
            raise UsageError(f"{source}: unknown key {key}{registry.nearest(str(key), ['name', 'seed', *SECTIONS])}")
    written = written | {section: written.get(section) or {} for section in SECTIONS}
    for section in SECTIONS:
        if not isinstance(written[section], dict):
            raise UsageError(f"{source}: {section} must be a mapping of options, not {_short(written[section])}")
    for section in ("backbone", "learner"):
        own, other = written[section].get("name"), given.get(f"{section}.name")
        if own and other and own != other:  # what was written for another class does not carry over
            kept = ("init",) if section == "backbone" else ()  # a head or decoder is of one class of learner
            written[section] = {key: value for key, value in written[section].items() if key in kept}
    evaluate = {}
    for task, when in written["evaluate"].items():
        if given.get(f"evaluate.{task}.every") != "none" and when not in (None, "none"):
            evaluate[task] = dict(when) if isinstance(when, dict) else {"every": when}
    written["evaluate"] = evaluate
    return written


def _tasks(evaluate: Mapping[str, Any], given: dict[str, str]) -> list[str]:
    """The tasks that the recipe and the overrides name; takes out of ``given`` those that are switched off."""
    asked = [key.split(".")[1] for key in given if key.startswith("evaluate.") and given[key] != "none"]
    for key in [
        key for key in given if key.startswith("evaluate.") and key.endswith(".every") and given[key] == "none"
    ]:
        del given[key]
    return list(dict.fromkeys([*evaluate, *asked]))


def _has_parts(learner: str) -> bool:
    return "parts" in registry.schema(*_place("methods", learner)).__annotations__


def _parts(learner: dict[str, Any], given: dict[str, Any], told_as: str) -> dict[str, str]:
    """Label -> name of the learners that the recipe and the overrides name as parts of the learner.

    ``--learner.parts "{...}"`` takes the place of all that the recipe has, and becomes one override a setting;
    ``--learner.parts.LABEL none`` takes one out.
    """
    whole = given.pop(PARTS, None)
    if whole is not None:
        learner["parts"] = {}
        for label, part in _as_parts(_from_text(whole), f"--{PARTS}").items():
            given |= {f"{PARTS}.{label}.name": part.get("name", label)}
            given |= {f"{PARTS}.{label}.{key}": value for key, value in part.items()}
    elif learner.get("parts", MISSING) == MISSING:
        learner.pop("parts", None)
    written = learner["parts"] = _as_parts(learner.get("parts") or {}, f"{told_as}: {PARTS}")
    for key in [key for key, value in given.items() if key.rpartition(".")[0] == PARTS and value == "none"]:
        written.pop(key.rpartition(".")[2], None)
        del given[key]
    names = {label: part.get("name", label) for label, part in written.items()}
    for label in [key.split(".")[2] for key in given if key.startswith(f"{PARTS}.") and key.count(".") > 2]:
        names[label] = given.get(f"{PARTS}.{label}.name", names.get(label, label))
    if not names:
        del learner["parts"]
    for label, name in names.items():
        written.setdefault(label, {}).setdefault("name", name)
        if _has_parts(name):
            raise UsageError(f"{PARTS}.{label} is itself made of parts: write them beside the others")
    return names


def _as_parts(parts: Any, source: str) -> dict[str, dict[str, Any]]:
    """A mapping of mappings; `source` begins the error message."""
    if not isinstance(parts, dict):
        raise UsageError(
            f"{source} cannot be {_short(parts)}: expected learners with their weights, such as {EXAMPLES[PARTS]}"
        )
    for label, part in parts.items():
        if not re.fullmatch(r"\w+", str(label)):
            raise UsageError(f"{source} cannot have the label {label!r}: letters, digits and _ only")
        if not isinstance(part, dict | None):
            raise UsageError(f"{source}.{label} must be a mapping of options, not {_short(part)}")
    return {str(label): dict(part or {}) for label, part in parts.items()}


def _from_text(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _choice(section: str, override: str | None, written: dict[str, Any], of_run: Any) -> str:
    name = override or written[section].get("name") or of_run
    folder = "methods" if section == "learner" else "backbones"
    if name is None and written[section].get("init") == MISSING:
        return registry.names(folder)[-1]  # it will be that of the run which is still to be given
    if not isinstance(name, str):
        raise UsageError(
            f"the recipe names no {section}: give --{section}.name, one of {', '.join(registry.names(folder))}"
        )
    return name


def _of_run(init: Any) -> dict[str, Any]:
    """What a run says about its backbone and clips, as dotted options: defaults for what starts from it."""
    if init in (None, MISSING, "null", "none"):
        return {}
    path = Path(str(init))
    about = (path if path.is_dir() else path.parent) / "backbone.json"
    if not about.is_file():
        if not path.exists():
            raise TubeletError(f"backbone.init: {path} does not exist")
        raise TubeletError(
            f"backbone.init: {path} is not a run; it has no backbone.json; of a checkpoint of another codebase "
            f"`tubelet convert {path} DST --to tubelet` makes one"
        )
    try:
        described = json.loads(about.read_text(encoding="utf-8"))
        sections = {"backbone": dict(described["backbone"]), "data": described.get("clip", {})}
        sections["backbone"].pop("made_for", None)  # the run says it itself when its weights are taken
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise TubeletError(f"{about} is damaged: {error}") from None
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def _has_splits(manifest: str) -> bool:
    """Whether a manifest says which videos are for training; True where it is not there yet."""
    from tubelet.data.listing import read_manifest
    from tubelet.data.storage import place

    found = place(manifest)
    if isinstance(found, Path) and not found.is_file():
        return True
    return bool(read_manifest(manifest).splits)


def _tree(values: dict[str, Any], source: str) -> Recipe:
    tree: dict[str, Any] = {"evaluate": {}}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    for task, asked in tree["evaluate"].items():
        asked["every"] = _when(asked["every"], f"evaluate.{task}")
    return Recipe(**tree, source=source)


def _when(text: str, name: str) -> str:
    """ "every 10 epochs" and "10 epochs" -> "10 epochs"; "end" stays."""
    text = text.removeprefix("every ").strip()
    try:
        if text != "end":
            schedule.steps(text, 1, 100)
    except TubeletError:
        raise UsageError(f"{name} cannot be {text!r}: expected 'every 10 epochs', 'every 5 %' or 'end'") from None
    return text


def flat(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Dotted key and value of every option: sections are one level deep, ``evaluate`` two, a learner's parts three."""
    found = []
    for section, options in tree.items():
        if section not in SECTIONS:
            found.append((section, options))
            continue
        for name, value in options.items():
            key = f"{section}.{name}"
            if section == "evaluate":
                found += [(f"{key}.{option}", inner) for option, inner in value.items()]
            elif key == PARTS and isinstance(value, dict):
                found += [(f"{key}.{label}.{option}", inner) for label, part in value.items()
                          for option, inner in part.items()]  # fmt: skip
            else:
                found.append((key, value))
    return found


def _place(folder: str, name: str) -> registry.Place:
    try:
        return registry.place(folder, name)
    except TubeletError as error:
        raise UsageError(str(error)) from None


def _named(folder: str, name: str) -> Option:
    return Option(typing.Literal[tuple(registry.names(folder))], name, "which one; the options below are its own")


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _in_words(kind: Any) -> str:
    """A type as a user may read it."""
    simple = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind in simple:
        return simple[kind]
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inside))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(part) for part in inside)
    if origin is tuple and inside[-1] is not Ellipsis:
        return f"{len(inside)} values such as [{', '.join('abcdefgh'[: len(inside)])}], each {_in_words(inside[0])}"
    if origin in (list, tuple):
        return f"a list such as [a, b], each {_in_words(inside[0])}"
    return "a mapping" if kind is dict or origin is dict else "any value"


class _Dumper(yaml.SafeDumper):
    """Sections in blocks, lists on one line, nothing aliased."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=not any(isinstance(item, dict) for item in value)
    ),
)
