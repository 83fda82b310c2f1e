"""What a run says: lines and tables for people on the first process, `metrics.jsonl` and TensorBoard for machines."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")
"""For people: everything but results goes to standard error, and only the first process speaks."""


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Characters that tell a terminal what to do, and how they are shown: a file's name may hold them."""


def say(text: str, style: str | None = None) -> None:
    console.print(text.translate(CONTROLS), style=style, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    say(f"warning: {text}", style="yellow")


def shout(text: str) -> None:
    """One line that every process may say, with its name: for when the first may be the one that hangs.

    From any thread: it takes no lock, such as the console's, that a thread which hangs could hold.
    """
    rank, told = os.environ.get("RANK", "0"), " ".join(text.split()).translate(CONTROLS)
    line = f"warning: process {rank} ({platform.node()}, pid {os.getpid()}): {told}\n"
    os.write(2, line.encode(errors="backslashreplace"))


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table for the terminal: the first column is left-aligned, the others are numbers."""
    grid = Table(title=Text(str(title).translate(CONTROLS)), title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        grid.add_row(*(Text(cell.translate(CONTROLS)) for cell in row))  # names of files may look like markup
    return grid


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
    """A bar on a terminal; the answer is called after each step."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda: bar.advance(task)


class Metrics:
    """Appends one JSON object a line to ``metrics.jsonl`` and, where TensorBoard is installed, writes its event files.

    The file survives kills: a line is written whole and flushed; a torn last line is dropped on reading. Lines of
    steps past `after` are dropped, since a resumed run writes them again. On a full disk lines wait for room.
    """

    def __init__(self, folder: Path, after: int = 0, tensorboard: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        self.waiting: list[str] = []
        self.keep_until(after)
        self.board = _summary_writer(folder / "tensorboard", after) if tensorboard else None

    def write(self, step: int, **values: Any) -> None:
        self.waiting.append(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._flush()
        if self.board is None:
            return
        try:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self.board.add_scalar(name, value, step)
        except OSError as error:
            warn(f"TensorBoard's files cannot be written ({error.strerror}): they end at step {step}")
            self.board = None

    def keep_until(self, step: int) -> None:
        """Drops the lines of later steps."""
        self.waiting = [line for line in self.waiting if json.loads(line)["step"] <= step]
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            warn(f"{self.path} cannot be written ({error.strerror}): it keeps lines of steps after {step}")

    def _flush(self) -> None:
        """Writes the lines that wait, all or none."""
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self.waiting))
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, before)
            if len(self.waiting) == 1:
                warn(f"{self.path} cannot be written ({error.strerror}); its lines are kept until it can")
            return
        self.waiting = []

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a line torn by a kill is left out."""
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def _summary_writer(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=after + 1)
