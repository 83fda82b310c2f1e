"""Several processes for a test, as `torchrun` would start them, from a server that has imported torch already: 0.2 s.

    def train(out):                                 # a function of a module, not one within a function
        dist.start()
        ...
        dist.stop()
        return losses

    first, second = run_processes(train, 2, out)    # what they returned; an AssertionError tells all when one failed
    ends = Processes(train, 2, out).wait(30)        # where some are meant to fail: exit codes, errors, what was printed
"""

from __future__ import annotations

import atexit
import importlib.util
import itertools
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, NamedTuple

SERVER = get_context("forkserver")
# Only what others wrote: of Tubelet some modules look at RANK when they are imported.
SERVER.set_forkserver_preload(
    ["torch", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.nn.parallel", "av", "jsonargparse",
     "rich.console", "rich.progress", "rich.table", "safetensors.torch", "yaml", "pytest"]
)  # fmt: skip
_STARTED = itertools.count()


class Ended(NamedTuple):
    """How one process ended."""

    exit_code: int
    """0, what it asked for, -9 when it was killed, or 1 when it raised."""
    value: Any
    """What the function returned, or None."""
    error: str | None
    """The traceback of what it raised."""
    output: str
    """What it, and the processes that it started, printed on stdout and stderr."""
    in_time: bool
    """False when it still ran at the time limit and was killed for that."""


class Processes:
    """`world` processes that run ``function(*args)``, with the environment that `torchrun` gives; each leads a group.

    Args:
        function: of a module that can be imported alone; what it returns must be picklable.
        world: how many processes.
        environment: more variables for each.
    """

    def __init__(self, function: Callable[..., Any], world: int, *args: Any, environment: dict[str, str] | None = None):
        place = sys.modules[function.__module__].__file__, function.__module__, function.__qualname__
        common = {**os.environ, **_address(), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        self.folder = tempfile.TemporaryDirectory(prefix="processes-")
        self.outputs = [Path(self.folder.name) / f"output-{rank}" for rank in range(world)]
        self.answers, self.processes = [], []
        for rank, output in enumerate(self.outputs):
            theirs = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environment or {})}
            answer, ours = SERVER.Pipe(duplex=False)
            work = pickle.dumps(args)
            process = SERVER.Process(target=_run, args=(place, work, theirs, list(sys.path), str(output), ours))
            process.start()
            ours.close()
            self.answers.append(answer)
            self.processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]

    def wait(self, timeout_s: float = 60.0, patience_s: float | None = None) -> list[Ended]:
        """How all ended, in the order of their ranks. At the time limit those that still run are killed.

        Args:
            patience_s: once a process has failed, the others get only this long; None = all of the time.
        """
        deadline = time.monotonic() + timeout_s
        said: dict[int, tuple[Any, str | None]] = {}
        failed = False
        try:
            while running := {p.sentinel for p in self.processes if p.exitcode is None}:
                listened = [answer for rank, answer in enumerate(self.answers) if rank not in said]
                ready = connection.wait([*running, *listened], max(0.0, deadline - time.monotonic()))
                self._listen(said)
                if not failed and any(p.exitcode not in (None, 0) for p in self.processes):
                    failed = True
                    deadline = min(deadline, time.monotonic() + patience_s) if patience_s is not None else deadline
                if not ready and time.monotonic() >= deadline:
                    break
            self._listen(said)
            in_time = [process.exitcode is not None for process in self.processes]
        finally:
            self.kill()
        ends = [
            Ended(process.exitcode, *said.get(rank, (None, None)), _text(output), timely)
            for rank, (process, output, timely) in enumerate(zip(self.processes, self.outputs, in_time, strict=True))
        ]
        self.folder.cleanup()
        return ends

    def _listen(self, said: dict[int, tuple[Any, str | None]]) -> None:
        for rank, answer in enumerate(self.answers):
            if rank not in said and answer.poll():
                try:
                    said[rank] = pickle.loads(answer.recv_bytes())
                except EOFError:  # it ended without a word
                    said[rank] = None, None

    def kill(self) -> None:
        """Kills what still runs, the processes that it started included."""
        for process in self.processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()


def run_processes(
    function: Callable[..., Any],
    world: int,
    *args: Any,
    timeout_s: float = 60.0,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """What ``function(*args)`` returned in each of `world` processes; an AssertionError tells of all if one fails."""
    ends = Processes(function, world, *args, environment=environment).wait(timeout_s, patience_s=5.0)
    if any(end.exit_code or not end.in_time for end in ends):
        raise AssertionError("\n".join(_report(rank, end) for rank, end in enumerate(ends)))
    return [end.value for end in ends]


def _run(
    place: tuple[str, str, str],
    work: bytes,
    environment: dict[str, str],
    path: list[str],
    output: str,
    answer: connection.Connection,
) -> None:
    """The life of one process."""
    os.setpgid(0, 0)  # what it starts is killed with it
    to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(to, stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    try:
        value = _find(*place)(*pickle.loads(work))
        answer.send_bytes(pickle.dumps((value, None)))
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        told = None if isinstance(error, SystemExit) else traceback.format_exc()
        answer.send_bytes(pickle.dumps((None, told)))
        answer.close()
        # As other processes do when they end; those of multiprocessing wait for theirs first, which would never come.
        atexit._run_exitfuncs()
        raise SystemExit(code) from None


def _find(file: str, module: str, name: str) -> Callable[..., Any]:
    """The function by its file: pytest gives test modules names under which nobody else can import them."""
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _address() -> dict[str, str]:
    """A free port below those that the system hands to outgoing connections: no one takes it before it is used."""
    while True:
        port = 10_000 + (os.getpid() * 997 + next(_STARTED)) % 20_000
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _text(output: Path) -> str:
    return output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""


def _report(rank: int, end: Ended) -> str:
    how = f"exit code {end.exit_code}" if end.in_time else "still running, killed"
    return f"process {rank}: {how}\n{end.error or ''}\n{end.output}".rstrip()
