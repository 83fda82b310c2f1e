import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

import tubelet
from tubelet import cli
from tubelet.data.workers import Workers
from tubelet.train.stop import Abandoned, Interrupted, Preempted, stop_signals

ALONE = """
import os, signal, sys, time
sys.path[:0] = [{path!r}]
from tubelet.data.workers import Workers
from tubelet.train.stop import Abandoned, stop_signals
{body}
"""


def alone(body: str) -> subprocess.Popen:
    """Another process that runs `body`, in a group of its own; it says "ready" when signals may come."""
    script = ALONE.format(path=str(Path(tubelet.__file__).parents[1]), body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def send(number: int, seconds: float = 0.1) -> None:
    os.kill(os.getpid(), number)
    time.sleep(seconds)


@pytest.mark.parametrize(
    ("number", "preempted"), [(signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGUSR1, True)]
)
def test_a_signal_is_a_wish_and_says_whose(number, preempted):
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.asked
        send(number)
        assert (stop.asked, stop.preempted) == (True, preempted)
        assert stop.asked_at == pytest.approx(time.monotonic(), abs=5)
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_stops_at_once_but_not_the_echo_that_torchrun_sends():
    """Fails where any second SIGINT counts: under `torchrun` one Ctrl-C would lose what is not saved."""
    with stop_signals() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.asked
        stop.asked_at = time.monotonic() - 2
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_work_that_is_done_again_later_is_abandoned_at_once_and_once():
    """Fails where the handler only notes the wish: a judgement of hours would meet the kill that follows."""
    with stop_signals() as stop:
        with stop.abandoning():
            pass
        with pytest.raises(Abandoned), stop.abandoning():
            try:
                send(signal.SIGUSR1)
                pytest.fail("still here")
            finally:
                send(signal.SIGUSR1)  # must not break what cleans up
        send(signal.SIGTERM)  # nor what comes after
        with pytest.raises(Abandoned), stop.abandoning():
            pytest.fail("begun although stopping was asked for")


def test_training_inside_a_judgement_hears_the_signal_of_the_training_outside():
    """Fails where the inner one takes the signals for itself: the judgement would go on to its end."""
    with stop_signals() as stop:
        with pytest.raises(Abandoned), stop.abandoning(), stop_signals() as inner:
            with inner.abandoning():
                pass
            send(signal.SIGTERM)
            pytest.fail("still here")
        assert stop.preempted
        send(signal.SIGTERM)


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def train() -> None:
        with stop_signals() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_the_deadline_is_kept_while_the_main_thread_hears_nothing():
    """Fails without the wake-up descriptor: here, as in a collective, no handler of Python's is ever called."""
    process = alone("""
import ctypes
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with stop_signals(0.5):
    print("ready", flush=True)
    lock(mutex)
    lock(mutex)  # for ever
""")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75


def test_whoever_has_saved_may_take_its_time():
    """Fails where `saved` does not take the deadline away."""
    process = alone("""
with stop_signals(0.3) as stop:
    stop.saved()  # before anybody asked: no matter
    print("ready", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    stop.saved()
    time.sleep(1)
print("left by itself")
""")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "left by itself\n")


def test_what_was_not_saved_in_time_is_said():
    process = alone("""
with stop_signals(0.5, lambda: "steps 3 to 5") as stop:
    stop.saved()
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
""")
    started = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "leaving without steps 3 to 5" in said and f"pid {process.pid}" in said and len(said.splitlines()) == 1
    assert 0.4 < time.monotonic() - started < 5


def test_ctrl_c_has_no_deadline():
    process = alone("""
with stop_signals(0.2) as stop:
    print("ready", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    time.sleep(1)
""")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_workers_inherit_nothing_of_it():
    """Signals to the whole group: those who decode go on, in the middle of a judgement too, and the end comes."""
    process = alone("""
def slow(task):
    time.sleep(0.5)
    return os.getpid()

with stop_signals(5) as stop:
    answers = Workers(slow, 2).map(range(6))
    first = next(answers)
    print("ready", flush=True)
    while not stop.preempted:
        time.sleep(0.01)
    stop.saved()
    pids = {pid for _, pid in [first, *answers]}
    assert len(pids) == 2 and os.getpid() not in pids, pids
print("left by itself")
""")
    os.killpg(process.pid, signal.SIGUSR1)
    os.killpg(process.pid, signal.SIGTERM)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said, errors) == (0, "left by itself\n", "")


@pytest.mark.parametrize("heard", [False, True])
def test_a_signal_to_a_worker_alone_asks_nobody_to_stop(heard):
    """Fails where workers leave SIGUSR1 to the system, which would end them, in work that takes no signals itself."""
    with stop_signals() if heard else nullcontext() as stop:
        answers = Workers(lambda task: os.getpid(), 1).map(range(50))
        _, pid = next(answers)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGUSR1)
        assert [answer for _, answer in answers] == [pid] * 49
        assert stop is None or not stop.asked


def test_workers_that_live_on_do_not_keep_the_deadline_s_thread():
    """Fails where the socket is closed alone: a copy of it is in every worker, and the end waits for the thread."""
    process = alone("""
with stop_signals():
    answers = Workers(lambda task: task, 1).map(range(50))
    next(answers)
    print("ready", flush=True)
next(answers)
os.write(2, b"left by itself")  # of its output more than "ready" may have been read
""")
    try:
        assert process.communicate(timeout=20)[1] == "left by itself"
    finally:
        process.kill()


@pytest.mark.parametrize(("error", "code"), [(Interrupted, 130), (Preempted, 75), (KeyboardInterrupt, 130)])
def test_the_exit_code_says_who_asked(monkeypatch, capfd, error, code):
    def stop(found, rest=None):
        raise error("saved")

    monkeypatch.setattr(cli, "dispatch", stop)
    assert cli.main(["train", "tiny"]) == code
    assert capfd.readouterr().err == "saved\n"
