"""What was found out about files, kept on disk as it is found, so that a killed run goes on where it was.

One JSON object a line, flushed when it is written. The key of a line is all that its answer depends on; a line torn by
a kill is passed over, and what it would have said is found out again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from tubelet.data import storage
from tubelet.data.examine import Examination
from tubelet.data.inspect import Look

VERSION = 2
"""Another one where the same file would be answered otherwise; what older ones say is found out again."""


class Journal:
    """Examinations by the file that was looked at; their pictures stay on the disk until they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[Look, Examination] = {}
        self._lines: dict[Look, int] = {}
        """Where in the file each one's line starts."""
        self._file = path.open("a+b")
        end = 0
        for start, line in self._whole_lines():
            end = start + len(line)
            try:
                written = json.loads(line)
                if written["version"] == VERSION:
                    place, *state = written["look"]
                    look, examination = Look(storage.place(place), *state), Examination.from_json(written["found"])
                    self._keep(look, examination, start)
            except (ValueError, KeyError, TypeError):
                continue  # damaged, or of another kind: found out again
        self._file.truncate(end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, look: Look) -> bool:
        return look in self._known

    def __getitem__(self, look: Look) -> Examination:
        """What was found, without pictures."""
        return self._known[look]

    def add(self, look: Look, examination: Examination) -> None:
        line = {"version": VERSION, "look": [str(look.place), *look[1:]], "found": examination.as_json()}
        start = self._file.seek(0, 2)
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self._keep(look, examination, start)

    def pass_over(self, look: Look, examination: Examination) -> None:
        """Takes an answer for this run alone: the next one tries again what ended its process or took too long."""
        self._known[look] = examination

    def whole(self, look: Look) -> Examination:
        """What was found, with its pictures where any could be decoded."""
        if look not in self._lines:
            return self._known[look]
        self._file.seek(self._lines[look])
        return Examination.from_json(json.loads(self._file.readline())["found"])

    def _keep(self, look: Look, examination: Examination, start: int) -> None:
        self._known[look] = replace(examination, thumbnail=b"", squares=b"")
        self._lines[look] = start

    def _whole_lines(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        start = 0
        for line in self._file:
            if line.endswith(b"\n"):
                yield start, line
            start += len(line)
