"""Finds what is registered, by reading the source files of a folder; nothing is imported until it is built.

One file = one method, task, backbone or dataset format. A class or function says ``@register("name")``; its
folder says what kind it is. `names` and `schema` read the files with `ast`, so that the command line knows every
name, option, type, default and help text without importing torch. `build` imports the one module that is needed.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tubelet.types import TubeletError

PACKAGE = Path(__file__).parent
Registered = TypeVar("Registered", bound=Callable[..., Any])


def register(name: str) -> Callable[[Registered], Registered]:
    """Marks a class or function as the one that `name` stands for in its folder."""

    def mark(thing: Registered) -> Registered:
        thing.registered_name = name  # type: ignore[attr-defined]
        return thing

    return mark


class Place(NamedTuple):
    """Where a registered thing is defined."""

    module: str
    attribute: str


@cache
def catalogue(folder: str) -> dict[str, Place]:
    """Every registered name of `folder` ("methods", "backbones", "tasks", "data/formats") and where it lives."""
    found: dict[str, Place] = {}
    for path in sorted((PACKAGE / folder).glob("*.py")):
        for node in _source(path).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", None) == "register":
                    name = ast.literal_eval(mark.args[0])
                    module = ".".join(["tubelet", *Path(folder).parts, path.stem])
                    if name in found:
                        raise TubeletError(f"{name!r} is registered twice: {found[name].module} and {module}")
                    found[name] = Place(module, node.name)
    return found


def names(folder: str) -> list[str]:
    return sorted(catalogue(folder))


def place(folder: str, name: str) -> Place:
    """Where `name` lives.

    Raises:
        TubeletError: nothing of that name is registered; the message has the nearest right one.
    """
    known = catalogue(folder)
    if not isinstance(name, str) or name not in known:  # it may come from a file
        raise TubeletError(f"no {folder.rstrip('s').replace('/', ' ')} is called {name!r}{nearest(str(name), known)}")
    return known[name]


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """An ending for an error message: "; did you mean 'x'?" or "; there are: a, b, c"."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


def find(folder: str, name: str) -> Any:
    """The registered class or function itself (this imports its module)."""
    module, attribute = place(folder, name)
    return getattr(importlib.import_module(module), attribute)


def build(folder: str, name: str, **arguments: Any) -> Any:
    """Constructs what is registered as `name`; nothing else can be named.

    Raises:
        TubeletError: nothing is, or it has no such arguments.
    """
    found = find(folder, name)
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise TubeletError(f"{name} cannot be made of these settings: {error}") from None
    return found(**arguments)


def schema(module: str, attribute: str) -> Callable[..., Any]:
    """A stand-in with the signature and docstring of ``module.attribute``, read from its source without importing it.

    For a class it is the signature of ``__init__`` (for a dataclass, its fields), with the docstring of the class; a
    class without either has those of the class it is made from, and the description of its arguments too.
    Annotations may use int, float, str, bool, None, Any, Literal, list, tuple, dict and ``|``; a parameter with any
    other annotation is one that code passes in (a backbone, a tensor) and is left out, since no recipe can write it.
    """
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    node = next(n for n in _source(path).body if getattr(n, "name", None) == attribute)
    doc = ast.get_docstring(node) or ""  # type: ignore[arg-type]
    base = _base(node, path)
    if base is not None:
        inherited = schema(*base)
        inherited.__doc__ = f"{doc}\n\nArgs:{(inherited.__doc__ or '').partition('Args:')[2]}"
        return inherited
    parameters = []
    for name, written, default in _arguments(node):
        annotation = _annotation(written) if written else None
        if name == "self" or annotation is None:
            continue
        value = inspect.Parameter.empty if default is None else _value(default, path)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation.type)
        )

    def stand_in(**arguments: Any) -> dict[str, Any]:
        return arguments

    stand_in.__name__ = attribute
    stand_in.__doc__ = doc
    stand_in.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stand_in.__annotations__ = {p.name: p.annotation for p in parameters}
    return stand_in


def _base(node: ast.stmt, path: Path) -> Place | None:
    """Where the class is that a class without arguments of its own is made from, if it imports one of ours."""
    if not isinstance(node, ast.ClassDef) or not node.bases or next(_arguments(node), None):
        return None
    name = getattr(node.bases[0], "id", None)
    for line in _source(path).body:
        if isinstance(line, ast.ImportFrom) and any(alias.name == name for alias in line.names):
            return Place(str(line.module), str(name)) if str(line.module).startswith("tubelet.") else None
    return None


def _arguments(node: ast.stmt) -> typing.Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, annotation and default of each argument of a function, of a class's ``__init__``, or of a dataclass."""
    if isinstance(node, ast.ClassDef):
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if made is None:
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id, line.annotation, line.value
            return
        node = made
    assert isinstance(node, ast.FunctionDef)
    positional = node.args.posonlyargs + node.args.args
    missing = [None] * (len(positional) - len(node.args.defaults))
    for argument, default in zip(positional, [*missing, *node.args.defaults], strict=True):
        yield argument.arg, argument.annotation, default
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        yield argument.arg, argument.annotation, default


class _Known(NamedTuple):
    type: Any


_NAMES: dict[str, Any] = {
    "int": int, "float": float, "str": str, "bool": bool, "Any": Any, "list": list, "tuple": tuple, "dict": dict,
}  # fmt: skip


def _annotation(node: ast.expr) -> _Known | None:
    """The type an annotation means, or None when it is not one that a recipe can write."""
    if isinstance(node, ast.Name):
        return _Known(_NAMES[node.id]) if node.id in _NAMES else None
    if isinstance(node, ast.Constant):
        return _Known(node.value) if node.value is None or node.value is Ellipsis else None
    if isinstance(node, ast.BinOp):
        left, right = _annotation(node.left), _annotation(node.right)
        return _Known(typing.Union[left.type, right.type]) if left and right else None  # noqa: UP007
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return _Known(typing.Literal[tuple(ast.literal_eval(p) for p in parts)])
        inner = [_annotation(p) for p in parts]
        if node.value.id in ("list", "tuple", "dict") and all(inner):
            base = {"list": list, "tuple": tuple, "dict": dict}[node.value.id]
            return _Known(types.GenericAlias(base, tuple(i.type for i in inner if i)))
    return None


def _value(node: ast.expr, path: Path) -> Any:
    """A default: a literal, or the name of a constant that its module sets to a literal."""
    if isinstance(node, ast.Name):
        for line in _source(path).body:
            targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
            if any(getattr(target, "id", None) == node.id for target in targets):
                return ast.literal_eval(line.value)  # type: ignore[attr-defined]
    return ast.literal_eval(node)


@cache
def _source(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
