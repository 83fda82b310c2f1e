"""What a command is: its name, its options, its help, and mistakes answered in one line with the nearest right word."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import textwrap
import typing
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn

from tubelet import __version__, registry
from tubelet.types import TubeletError

Arguments = Callable[[argparse.ArgumentParser], None]
Action = Callable[[Namespace, list[str]], None]


class Dotted(NamedTuple):
    """Options such as ``--learner.ratio 0.75``, which depend on the rest of the line: the action reads them itself."""

    usage: str
    help: Callable[[Namespace | None], str]
    """Their help, for the parsed arguments (and, in ``dotted``, these options) as far as they were given."""
    also: tuple[str, ...] = ()
    """Options without a dot that belong to them."""


class Command(NamedTuple):
    """One command. Its action gets the parsed arguments and the words of the dotted options."""

    name: str
    example: str
    arguments: Arguments
    action: Action
    dotted: Dotted | None

    @property
    def summary(self) -> str:
        return (self.action.__doc__ or "").splitlines()[0]


COMMANDS: dict[str, Command] = {}


def command(name: str, example: str, *arguments: Arguments, dotted: Dotted | None = None) -> Callable[[Action], Action]:
    """Makes a function a command; its docstring is the help."""

    def add(action: Action) -> Action:
        def declare(parser: argparse.ArgumentParser) -> None:
            for argument in arguments:
                argument(parser)

        COMMANDS[name] = Command(name, example, declare, action, dotted)
        return action

    return add


def argument(*names: str, **how: Any) -> Arguments:
    return lambda parser: parser.add_argument(*names, **how) and None


ROOT = argument(
    "--root", metavar="DIR",
    help="refuse a manifest of which a video lies outside of this folder (or URL), by .. or a link too",
)  # fmt: skip
"""For commands that take a manifest, which may come from somebody else."""


def flag(name: str, option: str, help: str) -> Arguments:
    """A switch for an option of a `signature` that is false unless it is given."""
    return argument(name, dest=f"{SIGNED}{option}", action="store_true", default=argparse.SUPPRESS, help=help)


def signature(module: str, function: str) -> Arguments:
    """An option for each argument of a function or dataclass in our source: ``mover_size`` is ``--mover-size``."""

    def declare(parser: argparse.ArgumentParser) -> None:
        from tubelet.recipe import MISSING, arguments

        taken = {action.dest for action in parser._actions}
        for name, option in arguments(module, function).items():
            if f"{SIGNED}{name}" in taken:
                continue
            flag = f"--{name.replace('_', '-')}"
            given = f"{option.help or option.expected} (default: {_yaml(option.default)})".replace("%", "%%")
            parser.add_argument(
                flag, dest=f"{SIGNED}{name}", metavar=_metavar(option.type), help=given, default=argparse.SUPPRESS,
                required=option.default == MISSING, type=lambda text, o=option, f=flag: o.read(text, f),
            )  # fmt: skip

    return declare


def choices(folder: str) -> Arguments:
    """The name of one of the things registered in `folder`, and every option that one of them has; see `chosen`."""

    def declare(parser: argparse.ArgumentParser) -> None:
        from tubelet.recipe import Option, arguments

        places = registry.catalogue(folder)
        firsts = {name: (registry.schema(*place).__doc__ or "").partition("\n")[0] for name, place in places.items()}
        about = "; ".join(f"{name} ({first.rstrip('.')})" for name, first in firsts.items())
        parser.add_argument("choice", metavar=folder.rpartition("/")[2].rstrip("s").upper(), help=about)
        taken = {action.dest for action in parser._actions}
        having: dict[str, dict[str, Option]] = {}
        for name, place in places.items():
            for key, option in arguments(*place).items():
                if key not in taken:
                    having.setdefault(key, {})[name] = option
        for key, options in having.items():
            option = next(iter(options.values()))
            given = f"of {', '.join(options)}: {option.help} (default: {_yaml(option.default)})".replace("%", "%%")
            parser.add_argument(
                f"--{key.replace('_', '-')}", dest=f"{SIGNED}{key}", metavar=_metavar(option.type), help=given,
                default=argparse.SUPPRESS,
            )  # fmt: skip

    return declare


def chosen(folder: str, args: Namespace) -> dict[str, Any]:
    """The options of the one that `choices` let choose, each in its type.

    Raises:
        TubeletError: nothing of that name is registered.
        UsageError: it has no such option, or the option no such value.
    """
    from tubelet.recipe import arguments

    known = arguments(*registry.place(folder, args.choice))
    given = {key: (value, f"--{key.replace('_', '-')}") for key, value in signed(args).items()}
    for key, (_, flag) in given.items():
        if key not in known:
            raise usage_error(f"{args.choice} has no option {flag}")
    return {key: known[key].read(value, flag) for key, (value, flag) in given.items()}


SIGNED = "signed:"


def signed(args: Namespace) -> dict[str, Any]:
    """Those options of a `signature` that were given."""
    return {key.removeprefix(SIGNED): value for key, value in vars(args).items() if key.startswith(SIGNED)}


def dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if words[0] in ("--version", "-V"):
        print(f"tubelet {__version__}")
        return
    found, rest = _find(words)
    if found is None:
        return
    parser = _Parser(found)
    dotted, plain = _split(rest, found.dotted.also) if found.dotted else ([], rest)
    if any(word in ("-h", "--help") for word in rest):
        _help(found, parser, [word for word in plain if word not in ("-h", "--help")], dotted)
        return
    args, unknown = parser.parse_known_args(plain)
    if unknown and not (found.dotted and unknown[0].startswith("--")):
        parser.unknown(unknown[0])
    if unknown:
        parser.unknown(unknown[0], unless=0.75)  # a slip of its own option, or one of a recipe without its section
    found.action(args, dotted + unknown)


def _find(words: list[str]) -> tuple[Command | None, list[str]]:
    pair = " ".join(words[:2])
    if pair in COMMANDS:
        return COMMANDS[pair], words[2:]
    if words[0] in COMMANDS:
        return COMMANDS[words[0]], words[1:]
    family = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if family and (len(words) == 1 or words[1] in ("-h", "--help")):
        print("\n".join(["usage: tubelet " + words[0] + " COMMAND", "", *_lines(family)]))
        return None, []
    if family:
        known = [name.split()[1] for name in family]
        raise usage_error(f"unknown command {pair!r}{registry.nearest(words[1], known)}")
    known = sorted({name.split()[0] for name in COMMANDS})
    raise usage_error(f"unknown command {words[0]!r}{registry.nearest(words[0], known)}")


def _split(words: list[str], also: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Takes the dotted options with their values out of a command line: those, and the other words."""
    dotted: list[str] = []
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key = word.partition("=")[0]
        if key.startswith("--") and ("." in key or key in also):
            dotted.append(word)
            if "=" not in word and rest and not rest[0].startswith("--") and rest[0] != "-h":
                dotted.append(rest.pop(0))
        else:
            plain.append(word)
    return dotted, plain


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are one line with the nearest right word."""

    def __init__(self, found: Command) -> None:
        super().__init__(
            prog=f"tubelet {found.name}", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
            description=inspect.cleandoc(found.action.__doc__ or ""), epilog=f"example: {found.example}",
            usage=f"tubelet {found.name} {found.dotted.usage}" if found.dotted else None,
        )  # fmt: skip
        self.name = found.name
        found.arguments(self)

    def error(self, message: str) -> NoReturn:
        raise usage_error(f"{message.replace('argument ', '', 1)} (tubelet {self.name} --help)")

    def unknown(self, word: str, unless: float = 0.5) -> None:
        """Complains of `word`; with a high `unless` only when an option of this command is that similar."""
        key = word.partition("=")[0]
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        close = difflib.get_close_matches(key, known, n=1, cutoff=unless)
        if close or unless == 0.5:
            what = "unknown option" if word.startswith("-") else "unexpected argument"
            meant = f"; did you mean {close[0]}?" if close else f" (tubelet {self.name} --help)"
            raise usage_error(f"{what} {key}{meant}")


def usage_error(message: str) -> TubeletError:
    from tubelet.recipe import UsageError

    return UsageError(message)


def _overview() -> str:
    lines = [
        "usage: tubelet COMMAND ...",
        "",
        "Self-supervised learning from video: from a folder of raw files to an encoder that is judged.",
        "",
        *_lines(COMMANDS),
        "",
        "tubelet COMMAND --help says more. To begin: tubelet demo",
    ]
    return "\n".join(lines)


def _lines(names: Iterable[str]) -> list[str]:
    return [f"  {name:12} {COMMANDS[name].summary}" for name in names]


def _help(found: Command, parser: _Parser, plain: list[str], dotted: list[str]) -> None:
    print(parser.format_help().rstrip())
    if found.dotted:
        args = None
        if plain:
            args, _ = parser.parse_known_args(plain)
            args.dotted = dotted
        print(found.dotted.help(args))


def _yaml(value: Any) -> str:
    """A value as it is written on a command line or in a recipe."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    inside = [part for part in typing.get_args(kind) if part is not type(None)]
    name = {int: "N", float: "X", str: "TEXT", bool: "true|false"}.get(kind)
    if name is None and typing.get_origin(kind) in (list, tuple):
        return "[A,B]"
    return name or (_metavar(inside[0]) if inside else "VALUE")


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"cannot be {text!r}: expected a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"cannot be {text!r}: expected a number") from None


def rate(text: str) -> float:
    if number(text) <= 0:
        raise argparse.ArgumentTypeError(f"cannot be {text!r}: expected a number above 0")
    return number(text)


def option_rows(rows: list[tuple[str, Any, Any]], word: str) -> str:
    """Each option with its type and value (`word` says whose), its help below it; sections apart."""
    lines = []
    section = ""
    for key, option, value in rows:
        if key.partition(".")[0] != section and "." in key:
            section = key.partition(".")[0]
            lines.append(f"\n{section}:")
        lines.append(f"  --{key} {_metavar(option.type)}  ({word}: {_yaml(value)})")
        lines += textwrap.wrap(option.help, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def printed(what: Any) -> None:
    """Results go to standard output, everything else to standard error."""
    from rich.console import Console

    Console(highlight=False).print(what)
