"""A table of ablations: what its rows change in a recipe, and what was published of them. One YAML file each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from tubelet.recipe import UsageError
from tubelet.registry import nearest

FOLDER = Path(__file__).parents[1] / "ablations"


class Row(NamedTuple):
    """One row: what it changes, and where it stands on the axis of a curve."""

    name: str
    set: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple default is never written to
    """Dotted options of the recipe."""
    published: float | None = None
    """In the measure of the table."""
    x: float | None = None
    """Place on the axis; None = what was counted (epochs or videos)."""
    length: float = 1.0
    """Share of the recipe's steps."""
    videos: float = 1.0
    """Share of the training videos that is pre-trained on."""
    trained: bool = True
    """False: nothing is pre-trained; the encoder is judged as it begins."""
    first: dict[str, Any] | None = None
    """Options of a run before this one, whose encoder this row begins with (and is judged with, untrained)."""
    manifest: str | None = None
    """What to pre-train on, when it is not the recipe's own."""
    init: str | None = None
    """An encoder to begin with."""
    recipe: str | None = None
    """What is changed, when it is not what the other rows change."""
    untrained: str | None = None
    """The row of the same network untrained, when it is not that of the other rows."""


class Published(NamedTuple):
    """The paper's side of a table."""

    measure: str
    source: str
    also: tuple[dict[str, Any], ...] = ()
    """``name`` and ``value`` of published rows that no row here stands for."""


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    rows: tuple[Row, ...]
    paper: str | None = None
    """Number of the table in the paper."""
    note: str = ""
    axis: str | None = None
    """Of a curve: what its rows are numbered by."""
    published: Published | None = None
    common: dict[str, Any] = field(default_factory=dict)
    """Options that every row needs; a command line may change them."""
    recipe: str | None = None
    """How the recipes of the rows are called, when each has its own."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Task -> how many of its numbers are shown; its main one alone, unless told."""
    manifests: Literal["pre-train", "all"] | None = None
    """The rows are manifests to pre-train on, judged on the recipe's own or on all of them."""


def names() -> list[str]:
    """The tables that come with Tubelet: those of the paper in its order, then our own."""
    tables = [read(path) for path in sorted(FOLDER.glob("*.yaml"))]
    return [table.name for table in sorted(tables, key=lambda table: (table.paper or "2", table.name))]


def find(name: str) -> Table:
    """The table of a name (``mask``) or of its number in the paper (``1b``, ``b``).

    Raises:
        UsageError: there is none; the message has the nearest name.
    """
    known = names()
    for table in map(named, known):
        if name in (table.name, table.paper, (table.paper or "")[1:]):
            return table
    raise UsageError(f"no table is called {name!r}{nearest(name, known)}")


def named(name: str) -> Table:
    return read(FOLDER / f"{name}.yaml")


def read(path: Path) -> Table:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = tuple(Row(**row) for row in written.pop("rows"))
    published = written.pop("published", None)
    if published is not None:
        published = Published(published["measure"], published["source"], tuple(published.get("also", ())))
    return Table(name=path.stem, rows=rows, published=published, **written)
