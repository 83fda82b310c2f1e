"""Ctrl-C and SIGTERM as a wish that the loop grants when it has saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    asked = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turns Ctrl-C and SIGTERM into a wish that the loop grants after the step; a second Ctrl-C stops at once."""
    stop = Stop()

    def ask(number: int, frame: Any) -> None:
        if stop.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours to take
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
