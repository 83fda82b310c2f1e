"""Processes that decode, watched: a file on which a decoder crashes or hangs costs that file and nothing else.

Decoders are C code: they can crash, and they can loop for ever without giving Python a chance to interrupt them. Both
end here with the process that it happened in, which is replaced, and a `Failure` stands in for the answer. A process
that was killed from outside costs nothing: what it was doing is done again.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import math
import multiprocessing.util
import os
import pickle
import signal
import sys
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, NamedTuple, TypeVar

from tubelet.types import TubeletError

Task = TypeVar("Task")
Result = TypeVar("Result")

LIMIT_S = 60.0

_OWN_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)
"""Signals by which a decoder ends its process. Others come from outside: from people, or a system short of memory."""
_CRASHES, _KILLS = 2, 5
"""How often a job may end its process, by one of these signals or by another, before it is given up."""
_LOOK_S = 0.5
"""How often the clock is looked at while nothing comes."""
_ORPHAN_S = 5.0
"""How often a process without work looks whether its parent is still there."""
_PR_SET_PDEATHSIG = 1
_QUEUED_BYTES = 32_000
"""Of tasks in a pipe: half of what a pipe holds, so that handing them out never blocks."""
_PIPE_BYTES = 1 << 20


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Failure(NamedTuple):
    """What stands in for a result: the task ended its process, or took too long."""

    reason: str


class UnderWay(NamedTuple):
    """What a process is doing."""

    task: Any
    seconds: float
    """Since it was handed out, or since the answer before it came."""
    pid: int


class Workers(Generic[Task, Result]):
    """Maps a function over tasks in other processes, in order, each within a time limit.

    The processes are forked, so that the function, and what it refers to, need not be pickled; tasks, which should be
    small, and results are. One pass at a time, and in one thread: the processes end with the thread that began it.
    Where a system cannot fork, or `count` is 0, the function is called in this process, without any protection.

    Args:
        function: what to do with a task. An exception that it raises is raised by `map`.
        count: processes.
        limit_s: seconds that a task may take before its process is killed, or a function from the task to them.
    """

    def __init__(
        self, function: Callable[[Task], Result], count: int, limit_s: float | Callable[[Task], float] = LIMIT_S
    ) -> None:
        self.function = function
        self.count = count if hasattr(os, "fork") else 0
        self.limit_s = limit_s
        self.processes: list[_Process] = []
        self._here: tuple[Task, float] | None = None
        """What this process is doing itself, and since when."""

    def under_way(self) -> list[UnderWay]:
        """What each process is doing, as far as this one knows; to be asked from any thread."""
        now, here = time.monotonic(), self._here
        busy = [UnderWay(here[0], now - here[1], os.getpid())] if here else []
        for process in tuple(self.processes):
            busy += [UnderWay(job.task, now - process.since, process.pid) for job in tuple(process.jobs)[:1]]
        return busy

    def map(
        self,
        tasks: Iterable[Task],
        ahead: int | None = None,
        again: Callable[[Task, Result | Failure], Task | None] | None = None,
    ) -> Generator[tuple[Task, Result | Failure], None, None]:
        """Each task with its result, in the order of `tasks`.

        Args:
            tasks: taken from only as far as there is something to do.
            ahead: how many tasks may be under way, or done, beyond those that were asked for; None = four a process.
            again: looks at each result when it comes; a task that it answers is done in the place of the first.

        Raises:
            TubeletError: as the function raised it.
            RuntimeError: the function raised something else; the message has its traceback.
        """
        if self.count == 0:
            for task in tasks:
                result = self._do(task)
                while again is not None and (other := again(task, result)) is not None:
                    task, result = other, self._do(other)
                yield task, result
            return
        if self.processes:
            raise RuntimeError("these workers are in the middle of another pass")
        try:
            self.processes = [_Process(self.function) for _ in range(self.count)]
            yield from self._in_order(iter(tasks), 4 * self.count if ahead is None else ahead, again)
        finally:
            for process in self.processes:
                process.end()
            self.processes = []

    def _do(self, task: Task) -> Result | Failure:
        """A task in this process."""
        self._here = task, time.monotonic()
        try:
            return self.function(task)
        finally:
            self._here = None

    def _in_order(
        self, tasks: Iterator[Task], ahead: int, again: Callable[[Task, Result | Failure], Task | None] | None
    ) -> Iterator[tuple[Task, Result | Failure]]:
        todo: deque[_Job] = deque()
        done: dict[int, tuple[Task, Result | Failure]] = {}
        most_each = max(1, math.ceil(ahead / self.count))
        taken = wanted = 0
        while True:
            while taken <= wanted + ahead and (task := next(tasks, _END)) is not _END:
                todo.append(_Job(taken, task))
                taken += 1
            if wanted == taken:
                return
            self._hand_out(todo, most_each)
            for job, result in self._collect(todo, patient=wanted not in done):
                other = again(job.task, result) if again is not None else None
                if other is None:
                    done[job.number] = job.task, result
                else:
                    todo.appendleft(_Job(job.number, other))
            if wanted in done:
                self._hand_out(todo, most_each)  # whoever asked may be busy for a while
                yield done.pop(wanted)
                wanted += 1

    def _hand_out(self, todo: deque[_Job], most_each: int) -> None:
        """Gives jobs to those who have least to do, those that are wanted first first."""
        while todo:
            process = min(self.processes, key=lambda p: len(p.jobs))
            if len(process.jobs) >= most_each or process.queued_bytes > _QUEUED_BYTES:
                return
            process.give(todo.popleft())

    def _collect(self, todo: deque[_Job], patient: bool) -> list[tuple[_Job, Any]]:
        """The results that are there; waits for one, or for jobs to hand out again, if `patient`.

        Replaces processes that died or are too slow.
        """
        results: list[tuple[_Job, Any]] = []
        while True:
            started = time.monotonic()
            ready = wait([p.answers for p in self.processes], timeout=_LOOK_S if patient else 0)
            # Only time that was spent here counts, and not much of it at once: where everything stood still, or the
            # consumer was busy, that is no task's fault.
            seconds = min(time.monotonic() - started, 2 * _LOOK_S)
            for index, process in enumerate(self.processes):
                if process.answers in ready:
                    lost = not process.take(results)
                else:
                    process.spent_s += seconds
                    lost = process.overdue = bool(process.jobs) and process.spent_s > self._limit(process.jobs[0].task)
                if lost:
                    self.processes[index] = self._replacement(process, todo, results)
            if results or todo or not patient:
                return results

    def _replacement(self, lost: _Process, todo: deque[_Job], results: list[tuple[_Job, Any]]) -> _Process:
        """A new process for one that died or hangs. What it had not begun is done by others, the rest tried again."""
        code = lost.end()
        if lost.jobs:
            job = lost.jobs[0]
            if lost.overdue:
                reason = f"it took more than {self._limit(job.task):g} s and was stopped"
            else:
                reason = job.blamed_for(code)
            if reason is not None:
                results.append((lost.jobs.popleft(), Failure(reason)))
        todo.extendleft(reversed(lost.jobs))
        return _Process(self.function)

    def _limit(self, task: Task) -> float:
        return self.limit_s(task) if callable(self.limit_s) else self.limit_s


_END: Any = object()


@dataclass
class _Job:
    """A task, its place in the order, and how often its process died over it."""

    number: int
    task: Any
    crashes: int = 0
    kills: int = 0

    def blamed_for(self, code: int) -> str | None:
        """Why the task is given up, or None where it is worth another try. `code` is the exit code of its process."""
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code >= 0 or -code in _OWN_FAULT:
            self.crashes += 1
            return f"the decoder crashed on it ({name})" if self.crashes >= _CRASHES else None
        self.kills += 1
        if self.kills < _KILLS:
            return None
        return f"its process was killed {self.kills} times ({name}): perhaps it needs more memory than there is"


class _Process:
    """A worker process as its parent sees it, and what it has to do."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        fork = multiprocessing.get_context("fork")
        tasks, self.tasks = fork.Pipe(duplex=False)
        self.answers, answers = fork.Pipe(duplex=False)
        _widen(answers)
        self.process = fork.Process(target=_work, args=(function, tasks, answers, os.getpid()), daemon=True)
        self.process.start()
        tasks.close()
        answers.close()  # so that the end of the process is the end of this pipe
        self.parent, self.pid = os.getpid(), self.process.pid or 0
        self.jobs: deque[_Job] = deque()
        self.bytes: deque[int] = deque()
        self.queued_bytes = 0
        self.spent_s = 0.0
        """How long the first of its jobs was waited for."""
        self.since = time.monotonic()
        """When the first of its jobs became the first."""
        self.died = self.overdue = False
        _ALIVE.add(self)

    def give(self, job: _Job) -> None:
        message = pickle.dumps(job.task)
        if not self.jobs:
            self.spent_s, self.since = 0.0, time.monotonic()
        self.jobs.append(job)
        self.bytes.append(len(message))
        self.queued_bytes += len(message)
        with suppress(OSError):  # it has died; `take` will notice
            self.tasks.send_bytes(message)

    def take(self, results: list[tuple[_Job, Any]]) -> bool:
        """Appends what it has answered; False where it has died."""
        try:
            while self.answers.poll():
                result, error = pickle.loads(self.answers.recv_bytes())
                if isinstance(error, TubeletError):
                    raise error
                if error is not None:
                    raise RuntimeError(f"in a worker process:\n{error}")
                results.append((self.jobs.popleft(), result))
                self.queued_bytes -= self.bytes.popleft()
                self.spent_s, self.since = 0.0, time.monotonic()
        except (EOFError, OSError):
            self.died = True
        return not self.died

    def end(self) -> int:
        """Ends it, if it is still there, and answers its exit code."""
        if self.died:
            self.process.join(1)  # its pipe closes a little before it is gone
        self.process.kill()
        self.process.join()
        self.tasks.close()
        self.answers.close()
        return self.process.exitcode or 0


_ALIVE: weakref.WeakSet[_Process] = weakref.WeakSet()


@atexit.register  # after multiprocessing's own, and therefore run before it: that one would wait for them for ever
def _end_all() -> None:
    for process in list(_ALIVE):
        if process.parent == os.getpid():  # and not in a fork of it
            process.process.kill()


def _work(function: Callable[[Any], Any], tasks: Connection, answers: Connection, parent: int) -> None:
    """The life of a worker process: until its parent ends it, or is gone itself."""
    if sys.platform == "linux":  # a decoder that hangs looks for no parent
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Signals often go to the whole process group: the parent decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.disable()  # a crash is told of once, by its `Failure`
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # the cores are shared with the other workers
    while True:
        while not tasks.poll(_ORPHAN_S):
            if os.getppid() != parent:
                return
        try:
            message = tasks.recv_bytes()
        except EOFError:
            return
        try:
            answer = pickle.dumps((function(pickle.loads(message)), None))
        except TubeletError as error:
            answer = pickle.dumps((None, error))
        except Exception:
            answer = pickle.dumps((None, traceback.format_exc()))
        try:
            answers.send_bytes(answer)
        except OSError:  # nobody is there to hear it
            return


def _widen(pipe: Connection) -> None:
    """Lets a pipe hold many answers while the parent is busy, where the system knows how."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
