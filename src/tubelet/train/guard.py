"""Steps that were skipped since something was not finite: counted, said, and listed with the videos that they saw."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from tubelet import dist
from tubelet.data.listing import Manifest
from tubelet.log import warn
from tubelet.train.step import Stepped
from tubelet.types import Batch


class Guard:
    """Keeps count of skipped steps, and says when there are too many in a row.

    Args:
        out: the folder of the run; ``not_finite.jsonl`` in it has a line for each skipped step.
        manifest: the training set.
        patience: skipped steps in a row from which on skipping does not help, and the run must be rolled back.
    """

    def __init__(self, out: Path, manifest: Manifest, patience: int) -> None:
        self.file, self.manifest, self.patience = out / "not_finite.jsonl", manifest, patience
        self.skipped = 0
        """In the whole run."""
        self.in_a_row = 0

    @property
    def must_roll_back(self) -> bool:
        return self.in_a_row >= self.patience

    def good(self) -> None:
        """A step was taken, or the run was rolled back: counting in a row begins anew."""
        self.in_a_row = 0

    def note(self, step: int, phase: str, stepped: Stepped, batch: Batch) -> None:
        """Counts a skipped step; the first process lists and says it. Every process must call it.

        A folder that cannot be written does not stop the run: the videos are then only said.

        Args:
            step: steps done before this one.
            batch: what this process saw.
        """
        self.skipped += 1
        self.in_a_row += 1
        ids = list(dict.fromkeys(batch["id"].tolist()))  # repeats of a video are told once
        parts = dist.gather((stepped.own_loss, ids))
        if not dist.is_main():
            return
        processes = [
            {"rank": rank, "loss": _number(loss), "ids": rows, "paths": [str(self.manifest[row].path) for row in rows]}
            for rank, (loss, rows) in enumerate(parts)
        ]
        line = {
            "step": step, "time": round(time.time(), 3), "phase": phase, "flaw": stepped.flaw,
            "grad_norm": _number(stepped.grad_norm), "processes": processes,
        }  # fmt: skip
        listed = self._write(line)
        guilty = [part for part, (loss, _) in zip(processes, parts, strict=True) if not math.isfinite(loss)]
        what = f"step {step}" if phase == "main" else f"phase {phase} of step {step}"
        self._say(what, stepped, len(guilty), [path for part in guilty or processes for path in part["paths"]], listed)

    def _write(self, line: dict[str, Any]) -> bool:
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            warn(f"{self.file} cannot be written ({error.strerror}): what was not finite is not listed there")
            return False
        return True

    def _say(self, what: str, stepped: Stepped, guilty: int, paths: list[str], listed: bool) -> None:
        where = f" on {guilty} of {dist.world_size()} processes" if guilty and dist.world_size() > 1 else ""
        rest = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        warn(
            f"{what} is skipped and changes nothing: the {stepped.flaw} is not finite{where}. It saw "
            f"{', '.join(paths[:3])}{rest}{f' (listed in {self.file})' if listed else ''}. If this goes on, try a "
            "lower train.lr, train.clip_norm 1.0 or train.precision float32"
        )


def _number(value: float) -> float | str:
    """As JSON has it, which knows no infinity: those become "nan", "inf" and "-inf"."""
    return value if math.isfinite(value) else str(value)
