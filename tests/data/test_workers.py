from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tubelet.data.info import UnreadableVideo
from tubelet.data.workers import Failure, Workers


def doubled(task: int) -> int:
    return 2 * task


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("ahead", [None, 0, 1, 50])
def test_results_come_in_the_order_of_the_tasks(count, ahead):
    def slow_at_first(task: int) -> int:
        time.sleep(0.02 if task % 5 == 0 else 0)
        return 2 * task

    found = list(Workers(slow_at_first, count).map(range(23), ahead))
    assert found == [(task, 2 * task) for task in range(23)]


def test_tasks_are_taken_only_as_far_as_ahead():
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = Workers(doubled, 2).map(endless(), ahead=6)
    for asked in range(1, 20):
        assert next(results) == (asked - 1, 2 * (asked - 1))
        assert len(taken) <= asked + 6
    results.close()


def test_a_crash_costs_its_task_alone(tmp_path):
    def fragile(task: int) -> int:
        if task == 7:
            with (tmp_path / "tries").open("a") as tries:
                tries.write("x")
            ctypes.string_at(0)
        return task

    found = dict(Workers(fragile, 2).map(range(30)))
    assert found.pop(7) == Failure("the decoder crashed on it (SIGSEGV)")
    assert found == {task: task for task in range(30) if task != 7}
    assert (tmp_path / "tries").read_text() == "xx"


def test_an_exit_is_a_crash():
    found = dict(Workers(lambda task: os._exit(3) if task == 1 else task, 1).map(range(3)))
    assert found == {0: 0, 1: Failure("the decoder crashed on it (exit code 3)"), 2: 2}


def test_a_hang_is_stopped():
    def hangs(task: int) -> int:
        while task in (2, 9):
            pass
        return task

    started = time.monotonic()
    found = dict(Workers(hangs, 2, limit_s=0.5).map(range(12)))
    assert {task for task, result in found.items() if isinstance(result, Failure)} == {2, 9}
    assert found[2].reason == "it took more than 0.5 s and was stopped"
    assert time.monotonic() - started < 30


def test_a_limit_of_its_own_for_each_task():
    def sleepy(task: float) -> float:
        time.sleep(task)
        return task

    found = dict(Workers(sleepy, 2, limit_s=lambda task: 0.2 if task == 0.9 else 30.0).map([0.9, 1.2, 0.0]))
    assert isinstance(found.pop(0.9), Failure)
    assert found == {1.2: 1.2, 0.0: 0.0}


def test_killed_processes_cost_nothing():
    def with_process(task: int) -> tuple[int, int]:
        time.sleep(0.01)
        return task, os.getpid()

    workers = Workers(with_process, 3)
    found, killed = [], set()
    for task, result in workers.map(range(60)):
        assert not isinstance(result, Failure)
        found.append((task, result[0]))
        if task % 10 == 0:
            victim = workers.processes[task // 10 % 3].process.pid
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)
    assert found == [(task, task) for task in range(60)]
    assert len(killed) > 3


def test_what_is_killed_again_and_again_is_given_up():
    found = dict(Workers(lambda task: os.kill(os.getpid(), signal.SIGKILL) or task, 1).map([5]))
    assert found[5].reason.startswith("its process was killed 5 times (SIGKILL)")


@pytest.mark.parametrize("count", [0, 2])
def test_again_takes_the_place(count):
    def refuse_odd(task: int) -> int | None:
        return None if task % 2 else task

    again = Workers(refuse_odd, count).map(range(8), again=lambda task, result: task + 1 if result is None else None)
    found = list(again)
    assert found == [(t, t) for t in (0, 2, 2, 4, 4, 6, 6, 8)]


@pytest.mark.parametrize("count", [0, 1])
def test_errors_of_the_user_are_raised_as_they_are(count):
    def refuse(task: int) -> int:
        raise UnreadableVideo(Path("a.mp4"), "bad")

    with pytest.raises(UnreadableVideo, match=r"cannot read a\.mp4: bad") as caught:
        list(Workers(refuse, count).map([1]))
    assert caught.value.reason == "bad"


def test_other_errors_have_their_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(Workers(lambda task: 1 / task, 1).map([1, 0]))
    with pytest.raises(RuntimeError, match="pickle"):
        list(Workers(lambda task: (lambda: task), 1).map([1]))


def test_large_tasks_and_results_do_not_block():
    found = list(Workers(lambda task: task * 2, 2).map([b"x" * 300_000] * 20, ahead=20))
    assert all(len(result) == 600_000 for _, result in found)


def run_alone(body: str) -> subprocess.CompletedProcess[str]:
    head = "import os, signal, time\nfrom tubelet.data.workers import Workers\n"
    return subprocess.run([sys.executable, "-c", head + body], capture_output=True, text=True, timeout=60)


def gone(pids: str, within_s: float) -> bool:
    workers = [Path("/proc", pid) for pid in pids.split()]
    deadline = time.monotonic() + within_s
    while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(workers) and not any(worker.exists() for worker in workers)


@pytest.mark.parametrize("last", ["os.kill(os.getpid(), signal.SIGKILL)", "", "raise SystemExit(3)"])
def test_processes_end_with_their_parent_however_it_ends(last):
    found = run_alone(
        "results = Workers(lambda task: os.getpid(), 2).map(range(99))\n"
        f"print(*{{next(results)[1] for _ in range(20)}}, flush=True)\n{last}\n"
    )
    assert found.returncode == {"": 0, "raise SystemExit(3)": 3}.get(last, -signal.SIGKILL)
    assert gone(found.stdout, 12)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's end")
def test_a_process_that_hangs_ends_with_its_parent():
    found = run_alone(
        "def hang(task):\n    print(os.getpid(), flush=True)\n    while True: pass\n"
        "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL)); signal.alarm(1)\n"
        "next(Workers(hang, 1).map(range(9)))\n"
    )
    assert found.returncode == -signal.SIGKILL and gone(found.stdout, 5)


def test_time_in_which_the_consumer_was_busy_is_no_task_s_fault():
    workers = Workers(lambda task: task if time.sleep(0.02) is None else None, 2, limit_s=1.0)
    results = workers.map(range(40), ahead=30)
    found = [next(results)[1]]
    for process in workers.processes:
        os.kill(process.process.pid, signal.SIGSTOP)  # as a scheduler that suspends a job
    time.sleep(2)
    for process in workers.processes:
        os.kill(process.process.pid, signal.SIGCONT)
    assert found + [result for _, result in results] == list(range(40))


def test_one_pass_at_a_time():
    workers = Workers(doubled, 1)
    results = workers.map(range(9))
    next(results)
    with pytest.raises(RuntimeError, match="in the middle of another pass"):
        next(workers.map(range(9)))
    assert len(list(results)) == 8


def test_processes_end_with_the_pass():
    workers = Workers(doubled, 2)
    results = workers.map(range(100))
    next(results)
    alive = [p.process for p in workers.processes]
    results.close()
    assert not any(process.is_alive() for process in alive)
