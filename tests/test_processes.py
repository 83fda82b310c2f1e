"""The harness of the fault tests: what it tells of processes that answer, raise, exit, die and hang."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from processes import Processes, run_processes
from tubelet import dist


def add(number):
    dist.start()
    total = dist.mean(torch.tensor(float(number + dist.rank()))) * dist.world_size()
    dist.stop()
    return os.environ["RANK"], os.environ["LOCAL_WORLD_SIZE"], total


def fail_in_many_ways():
    rank = int(os.environ["RANK"])
    print(f"here is {rank}", flush=True)
    if rank == 0:
        raise ValueError("of no use")
    if rank == 1:
        raise SystemExit(75)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 3:
        os._exit(76)
    subprocess.run(["sleep", "1000"])


def one_leaves():
    if os.environ["RANK"] == "1":
        raise SystemExit(3)
    time.sleep(1000)


def alive(group):
    """How many processes of a group run; the dead whom nobody has asked about yet (Z) do not."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
            count += number == str(group) and state != "Z"
    return count


def test_processes_talk_to_each_other_and_answer():
    assert run_processes(add, 2, 5) == [("0", "2", torch.tensor(11.0)), ("1", "2", torch.tensor(11.0))]


def test_every_way_to_fail_is_told_and_nothing_is_left_running():
    started = time.monotonic()
    processes = Processes(fail_in_many_ways, 5)
    ends = processes.wait(3)
    assert time.monotonic() - started < 10
    assert [end.exit_code for end in ends] == [1, 75, -signal.SIGKILL, 76, -signal.SIGKILL]
    assert [end.in_time for end in ends] == [True, True, True, True, False]
    assert "ValueError: of no use" in ends[0].error
    assert [end.output for end in ends[1:]] == [f"here is {rank}\n" for rank in range(1, 5)]
    while alive(processes.pids[4]):  # the process that it had started dies too
        assert time.monotonic() - started < 10


def test_a_failure_ends_the_others_and_says_who():
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)process 0: still running, killed.*process 1: exit code 3"):
        run_processes(one_leaves, 2)
    assert time.monotonic() - started < 20
