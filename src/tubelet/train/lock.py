"""One training in a folder at a time."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

from tubelet import dist
from tubelet.log import say
from tubelet.types import TubeletError

NAME = ".lock"
WAIT_S = 10.0
"""How long a predecessor may take to die: `torchrun` starts the next attempt while the system still clears up."""


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keeps every other training out of the folder ``out``. The first process does it, and every process must call it.

    It is a record lock of POSIX on ``out/.lock``: the system frees it however its holder ends, and the processes that
    decode, which are forked, do not inherit it. It is lost when the holder closes the file, so nothing else may open
    that. The file stays, since one that is removed could be locked by two. On a system without such locks, or where
    nothing can be written, there is no protection.

    Raises:
        TubeletError: another training is at it; the message says whose.
    """
    with ExitStack() as closing:

        def take() -> None:
            file = _take(out / NAME)
            if file is not None:
                closing.enter_context(file)

        dist.from_first(take)
        yield


def _take(path: Path) -> FileIO | None:
    """The locked file; None where there are no locks.

    Raises:
        TubeletError: another process has it.
    """
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab+", buffering=0)
    except (ImportError, OSError):
        return None
    deadline = time.monotonic() + WAIT_S
    told = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                file.close()
                return None
            holder = _holder(file)
            if time.monotonic() > deadline:
                file.close()
                raise TubeletError(
                    f"{path.parent} is being trained in already, {holder}: wait until it ends, stop it, or choose "
                    "another folder with --out"
                ) from None
            if not told:
                say(f"{path.parent} is being trained in, {holder}; waiting {WAIT_S:g} s for that to end")
                told = True
        time.sleep(0.1)
    about = {"host": platform.node(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with suppress(OSError):  # on a full disk nobody will know whose it is
        file.truncate(0)
        file.write(json.dumps(about).encode())
    return file


def _holder(file: FileIO) -> str:
    """Who holds a lock, as far as its file says; it says nothing for a moment after it was taken."""
    file.seek(0)
    try:
        about = json.loads(file.read())
        return f"by process {about['pid']} on {about['host']} since {about['since']}"
    except (ValueError, KeyError, TypeError):
        return "by another process"
