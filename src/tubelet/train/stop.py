"""Being asked to stop: Ctrl-C, SIGTERM and SIGUSR1 as a wish that the loop grants when it has saved.

A batch system that wants its machine back (pre-emption) sends SIGTERM or SIGUSR1 and kills a little later. So there is
a deadline: whoever has not saved by then leaves all the same, and with the exit code that says "start me again".
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tubelet.log import shout

PREEMPTING = frozenset({signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)})
"""Sent by `torchrun` and batch systems; Windows has only the first."""
_ONE_KEYSTROKE_S = 1.0
"""`torchrun` sends its processes a Ctrl-C that the terminal has sent them already."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C) and has saved; the message says how to go on."""

    exit_code = 130


class Preempted(Interrupted):
    """Training was asked to make room (SIGTERM or SIGUSR1) and has saved: whoever sent it may start it again."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: a failure that the same command may not meet again."""


class Abandoned(BaseException):
    """What is going on here is not worth its time any more: raised in `Stop.abandoning` by a signal.

    No Exception, since those may be caught by whatever it interrupts.
    """


class Stop:
    """The wish to stop, as the loop sees it."""

    def __init__(self) -> None:
        self.asked_at: float | None = None
        """When, by time.monotonic()."""
        self.preempted = False
        """Whether a batch system asked, and not a person."""
        self._owner = os.getpid()
        self._abandoning = self._saved = False

    @property
    def asked(self) -> bool:
        return self.asked_at is not None

    def saved(self) -> None:
        """Nothing would be lost by a late end now: takes the deadline away. Without effect before a signal."""
        self._saved = self.asked

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """For work that may take hours and is done again at the next start: a signal ends it at once.

        Raises:
            Abandoned: once, wherever the main thread is; also at the beginning, when stopping was asked for before.
        """
        outer = self._abandoning
        try:
            self._abandoning = True
            if self.asked:
                raise Abandoned
            yield
        finally:
            self._abandoning = outer

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a fork that has no handlers of its own yet; its parent was told too
            return
        now = time.monotonic()
        self.preempted = self.preempted or number in PREEMPTING
        if self.asked_at is None:
            self.asked_at = now
            if self._abandoning:
                raise Abandoned
        elif number == signal.SIGINT and now > self.asked_at + _ONE_KEYSTROKE_S:
            raise KeyboardInterrupt


@contextmanager
def nothing_to_save() -> Iterator[None]:
    """Around what comes before training and after it: SIGTERM or SIGUSR1 ends the process, with a pre-emption's code.

    At once, and not by an exception: what is being imported just then may swallow that, and the signal with it.
    """

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are not ours to take
        return

    def leave(number: int, frame: FrameType | None) -> None:
        shout("asked to make room while nothing was being trained: the same command begins, or goes on, from there")
        os._exit(Preempted.exit_code)

    before = {number: signal.signal(number, leave) for number in PREEMPTING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals(grace_s: float = 25.0, unsaved: Callable[[], str] = lambda: "the last steps") -> Iterator[Stop]:
    """Turns signals into a wish that the loop grants after the step; a second Ctrl-C stops at once.

    Within another of these (a judge that trains) it is that one, and outside the main thread nothing is heard.

    Args:
        grace_s: seconds from SIGTERM or SIGUSR1 to the end of the process with exit code 75, unless it has `saved`.
        unsaved: what is lost then, in words, such as "steps 101 to 117".
    """
    outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(outer, Stop):
        yield outer
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # Python runs handlers between two instructions of the main thread, which may hang in a collective. The number of
    # the signal is written into this socket at once, and read by a thread of its own.
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    thread = threading.Thread(target=_enforce, args=(stop, ear, grace_s, unsaved), name="deadline", daemon=True)
    thread.start()
    before = {number: signal.signal(number, stop._hear) for number in (signal.SIGINT, *PREEMPTING)}
    descriptor = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in before.items():
            signal.signal(number, handler)
        mouth.shutdown(socket.SHUT_WR)  # which ends the thread, also where workers have a copy of the socket
        mouth.close()
        thread.join()
        ear.close()


def _enforce(stop: Stop, ear: socket.socket, grace_s: float, unsaved: Callable[[], str]) -> None:
    """The life of the thread that keeps the deadline."""
    while not PREEMPTING.intersection(heard := ear.recv(64)):
        if not heard:
            return
    deadline = time.monotonic() + grace_s
    while (left := deadline - time.monotonic()) > 0:
        ear.settimeout(left)
        try:
            if not ear.recv(64):
                return
        except TimeoutError:
            break
    if not stop._saved:
        shout(
            f"asked to make room {grace_s:g} s ago (train.grace_s) and not saved: leaving without {unsaved()}; the "
            "same command goes on from the checkpoint before"
        )
        os._exit(Preempted.exit_code)
