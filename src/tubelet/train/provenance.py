"""Where a run came from and what it cost: ``provenance.json``, true at every moment from the first start on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import torch

from tubelet import dist
from tubelet.checkpoint import write_json
from tubelet.data.workers import cores
from tubelet.log import warn
from tubelet.train.stop import Preempted

PACKAGES = (
    "torch", "numpy", "av", "jsonargparse", "safetensors", "rich", "pyarrow", "scikit-image", "scikit-learn",
    "matplotlib", "tensorboard", "transformers", "torchcodec",
)  # fmt: skip
"""What Tubelet uses, extras included, where it is installed."""
TOTALS = {"seconds": "wall_seconds", "gpu_hours": "gpu_hours", "core_hours": "core_hours"}
"""What starts add up to: its name in a start -> its name in the run."""


class Provenance:
    """Keeps ``out/provenance.json``: what the run is of, an entry in ``starts`` for each start, and their totals.

    As a context manager it is around the training. A start is written down when it begins, whenever `reached` is
    called and when it ends, as finished, pre-empted, interrupted or by an error. One that a kill ended stays open,
    with what it had saved, and the next one closes it as killed. A total is there when every start knows its part.
    Where the file cannot be written, that is said and training goes on. Every process must make it and call `reached`.

    Args:
        recipe: the text of the resolved recipe, which the file has the hash of: that of ``recipe.yaml``.
        batch: clips of a step.
        facts: what else the run is of, such as its seed.
    """

    def __init__(self, out: Path, recipe: str, batch: int, **facts: Any) -> None:
        self.path, self.batch = out / "provenance.json", batch
        self.began = time.monotonic()
        hosts = describe_hosts()
        self.gpus, self.cores = sum(len(host["gpus"]) for host in hosts), sum(host["cores"] for host in hosts)
        self.start: dict[str, Any] = {
            "started": _now(),
            "command": _command(),
            "machine": describe_machine(),
            "processes": dist.world_size(),
            "hosts": hosts,
            "code": code(),
            "versions": versions(),
            "from_step": None,
            "to_step": None,
            "ended": None,
        }
        before = read_provenance(self.path) if dist.is_main() else {}
        self.starts: list[dict[str, Any]] = [*before.pop("starts", ()), self.start]
        for start in self.starts[:-1]:
            start["ended"] = start["ended"] or "killed"
        first = {key: before.get(key, self.start[key]) for key in ("started", "command")}
        recipe_hash = f"sha256:{hashlib.sha256(recipe.encode()).hexdigest()}"
        self.told: dict[str, Any] = {**before, **first, "recipe": recipe_hash, **facts}

    def reached(self, step: int, seconds: float, loss: float) -> None:
        """Takes down how far the run is: first where this start begins, then at each checkpoint.

        Args:
            seconds: time spent training, over all starts.
            loss: as it was logged last; not a number before that.
        """
        if self.start["from_step"] is None:
            self.start["from_step"] = step
        self.start["to_step"] = step
        self.told |= {"seconds": round(seconds, 1), "steps": step, "clips_seen": step * self.batch}
        if math.isfinite(loss):  # JSON has no word for what is not
            self.told["loss"] = loss
        self._write()

    def __enter__(self) -> Provenance:
        self._write()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.start["ended"] = "finished"
            self.told.setdefault("finished", _now())  # the same command once more changes nothing
        elif isinstance(error, KeyboardInterrupt):
            self.start["ended"] = "pre-empted" if isinstance(error, Preempted) else "interrupted"
        else:
            self.start |= {"ended": "error", "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        self._write()

    def _write(self) -> None:
        hours = (time.monotonic() - self.began) / 3600
        used = {"gpu_hours": self.gpus * hours} if self.gpus else {"core_hours": self.cores * hours}
        self.start |= {"seconds": round(3600 * hours, 1), **{name: round(value, 4) for name, value in used.items()}}
        for name, total in TOTALS.items():
            parts = [start[name] for start in self.starts if name in start]
            self.told.pop(total, None)
            if len(parts) == len(self.starts):
                self.told[total] = round(sum(parts), 4)
        if dist.is_main():
            try:
                write_json(self.path, {**self.told, "starts": self.starts})
            except OSError as error:  # no reason to stop training
                warn(f"{self.path} cannot be written: {error}")


def read_provenance(path: Path) -> dict[str, Any]:
    """What a ``provenance.json`` says, with ``starts`` also where it was written before there were any; {} without one.

    A damaged one is said and counts as none.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if "starts" not in told:
            kept = {key: told.pop(key) for key in ("machine", "processes", "versions") if key in told}
            reached = {"from_step": 0, "to_step": told["steps"]} if "steps" in told else {}
            ended = "finished" if "finished" in told else "killed"
            begun = {"started": told["started"], "command": told["command"]}
            told["starts"] = [{**begun, **kept, **reached, "ended": ended}]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        warn(f"{path} cannot be read and is begun afresh: {error}")
        return {}
    return told


def describe_machine() -> str:
    """The hardware in a few words."""
    if torch.cuda.is_available():
        return f"{dist.world_size()} x {torch.cuda.get_device_name()}"
    return f"{cores()} CPU cores ({platform.machine()})"


def describe_hosts() -> list[dict[str, Any]]:
    """Each machine of this run: its name, processor, cores, memory, how many processes and which GPUs it has in it.

    Every process must call it.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = {"host": platform.node(), "cpu": _processor(), "cores": cores(), "memory_gib": round(memory / 2**30, 1)}
    card = None
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(dist.device())
        card = {"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1)}
    hosts: dict[str, dict[str, Any]] = {}
    for facts, gpu in dist.gather((here, card)):
        host = hosts.setdefault(facts["host"], {**facts, "processes": 0, "gpus": []})
        host["processes"] += 1
        host["gpus"] += [gpu] if gpu else []
    return list(hosts.values())


def versions() -> dict[str, str]:
    """The versions of all that a result may hang on: Python, the packages that are installed, FFmpeg, CUDA."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["ffmpeg"] = av.ffmpeg_version_info
    if torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    driver = Path("/proc/driver/nvidia/version")  # of Linux
    if driver.exists() and (number := re.search(r"\b\d+\.\d+(\.\d+)?\b", driver.read_text(encoding="utf-8"))):
        found["driver"] = number[0]
    return found


def code() -> dict[str, Any]:
    """The version of Tubelet; from a checkout also its commit, and whether files of the package differ from it."""
    try:
        found: dict[str, Any] = {"version": version("tubelet")}
    except PackageNotFoundError:
        found = {"version": "not installed"}
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)  # or it lies in a checkout of something else
    if tracked is not None and (commit := _git("rev-parse", "HEAD")):
        found |= {"commit": commit, "changed": bool(_git("status", "--porcelain", "--", ".."))}
    return found


def _command() -> str:
    """The words that started this process, without the folders of the program."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name  # python -m tubelet
    return shlex.join([name, *sys.argv[1:]])


def _git(*words: str) -> str | None:
    """What git answers in the folder of this file; None where it does not, or is not there."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    """The model of the processor: "Intel(R) Xeon(R) Platinum 8481C", or its architecture where nothing says more."""
    told = Path("/proc/cpuinfo")  # of Linux
    names = re.findall(r"^model name\s*:\s*(.+)$", told.read_text(encoding="utf-8"), re.M) if told.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
