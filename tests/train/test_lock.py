"""Two trainings in one folder: the second is refused and told whose it is, unless the first dies in time."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tubelet.train import lock
from tubelet.train.lock import held
from tubelet.types import TubeletError

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])}
HOLDER = """
import os, sys, time
from pathlib import Path
from tubelet.train.lock import held
with held(Path(sys.argv[1])):
    if os.fork() == 0:  # such as a process that decodes: it outlives its parent for a while
        time.sleep(2)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of ``tmp_path``, killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_is_refused_and_told_who_holds_it(tmp_path, holder, monkeypatch, capsys):
    """Fails without `lockf`: then both would train."""
    monkeypatch.setattr(lock, "WAIT_S", 0.3)
    with pytest.raises(TubeletError, match=rf"by process {holder.pid} on .* since 20.*--out"), held(tmp_path):
        pass
    assert f"process {holder.pid}" in capsys.readouterr().err


def test_a_killed_holder_gives_way_at_once_though_its_children_live(tmp_path, holder):
    """Fails with `flock`, which forked children go on holding."""
    holder.send_signal(signal.SIGKILL)
    begun = time.monotonic()
    with held(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - begun < 1.5


def test_a_dying_predecessor_is_waited_for(tmp_path, holder):
    """As with `torchrun`, which starts again while the processes of before are still ending."""
    killing = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -9 {holder.pid}"])
    with held(tmp_path):
        assert killing.wait() == 0


TAKER = "import sys, pathlib; from tubelet.train import lock\nwith lock.held(pathlib.Path(sys.argv[1])): print('held')"


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ValueError), held(tmp_path):
        raise ValueError
    done = subprocess.run([sys.executable, "-c", TAKER, str(tmp_path)], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "held\n" and "waiting" not in done.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_training_goes_on(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    entered = False
    with held(tmp_path):
        entered = True
    assert entered


def test_where_nothing_can_be_written_it_is_not_the_lock_that_fails(tmp_path):
    (tmp_path / "file").write_text("")
    entered = False
    with held(tmp_path / "file" / "run"):
        entered = True
    assert entered
