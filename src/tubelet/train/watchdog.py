"""A watchdog for training: says loudly when no step is done for long, who waits for what, and ends what hangs for good.

A process that waits in a collective for one that hangs would wait for ever, and so would the people who look at it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

from tubelet import dist
from tubelet.data.loader import Reading
from tubelet.log import shout

STALLED = 76
"""The exit code of a process that its watchdog ended; next to 75, that of one which made room."""
_LOOKS = 10
"""How often the clock is looked at within the limit."""
_LIMITS, _STEPS = 3, 20
"""A stall is for good when it is longer than so many limits, and than so many times the longest step."""
_FILES, _FRAMES = 3, 3
"""How many are named, of the files that are being read and of the functions that wait."""
_COLLECTIVE = ("tubelet.dist", "torch.distributed.distributed_c10d")
_SAVING = ("tubelet.checkpoint", "tubelet.train.checkpoints", "tubelet.train.saving", "tubelet.train.state")


class Watchdog:
    """Watches, while it is entered, the thread that made it.

    When no step is done for `limit_s`, every process says so for itself, and again at twice, four times ... that long.
    A stall for good ends the process with exit code 76, so that `torchrun` starts all of them again, provided that a
    step was done since the start: what hangs at once would hang again.

    Args:
        limit_s: seconds without a step that are worth a word.
        out: where ``stalled-rank0.txt`` (of process 0) tells where each thread was at the end.
        under_way: the files that are being read.
    """

    def __init__(self, limit_s: float, out: Path, under_way: Callable[[], list[Reading]]) -> None:
        self.limit_s, self.out, self.under_way = limit_s, out, under_way
        self._watched = threading.get_ident()
        self._steps = self._pauses = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """A step is done."""
        self._steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take hours, such as a judgement."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def _watch(self) -> None:
        """The life of its thread."""
        look_s = self.limit_s / _LOOKS
        steps, still_s, longest_s, patience_s = 0, 0.0, 0.0, self.limit_s
        looked = time.monotonic()
        while not self._over.wait(look_s):
            # Little of the time counts at once: where everything stood still, as in a suspended job, nothing hangs.
            still_s += min(time.monotonic() - looked, 2 * look_s)
            looked = time.monotonic()
            if self._pauses or self._steps != steps:
                if self._steps != steps and not self._pauses:
                    longest_s = max(longest_s, still_s)
                steps, still_s, patience_s = self._steps, 0.0, self.limit_s
            elif steps and still_s > max(_LIMITS * self.limit_s, _STEPS * longest_s):
                self._leave(still_s)
            elif still_s >= patience_s:
                shout(self._complaint(still_s))
                patience_s *= 2

    def _complaint(self, still_s: float) -> str:
        frame = sys._current_frames().get(self._watched)
        waits = doing(frame, dist.world_size()) if frame else "its thread is gone"
        files = [f"{path} for {seconds:.0f} s by pid {pid}" for path, seconds, pid in self.under_way()[:_FILES]]
        reading = f"; being read: {', '.join(files)}" if files and waits.startswith("waiting for clips") else ""
        return f"no step is done for {still_s:.0f} s (train.stall_s {self.limit_s:g}): {waits}{reading}"

    def _leave(self, still_s: float) -> None:
        complaint, path = self._complaint(still_s), self.out / f"stalled-rank{dist.rank()}.txt"
        shout(f"{complaint}; leaving, so that it can be started again. Where each thread was: {path}")
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # a full disk keeps nobody here
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} pid {os.getpid()}: {complaint}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        os._exit(STALLED)


def doing(frame: FrameType, processes: int) -> str:
    """What a thread is doing, in words, by its innermost frame: what for, and in which functions of this package.

    Args:
        frame: the innermost.
        processes: of the run; of several, one that computes may wait for the others in the middle of it.
    """
    what, places, inner = "", [], frame
    while inner is not None:
        module = inner.f_globals.get("__name__", "")
        what = what or _purpose(module, processes)
        if module.split(".")[0] == "tubelet" and len(places) < _FRAMES:
            places.append(f"{inner.f_code.co_name} ({Path(inner.f_code.co_filename).name}:{inner.f_lineno})")
        inner = inner.f_back
    return f"{what or 'computing'}, in {' < '.join(places)}" if places else what or "computing"


def _purpose(module: str, processes: int) -> str:
    """What a function of a module is there for; nothing where that does not tell."""
    if module in _COLLECTIVE:
        return "waiting for other processes"
    if module.startswith("tubelet.data."):
        return "waiting for clips"
    if module in _SAVING:
        return "saving"
    if module.startswith("tubelet."):
        return "computing" if processes == 1 else "computing, or waiting for other processes meanwhile"
    return ""
