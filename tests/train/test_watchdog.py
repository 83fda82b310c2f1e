import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

import tubelet
from tubelet.data import read
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest, Video
from tubelet.data.loader import Loader, Reading
from tubelet.train.watchdog import Watchdog
from videos import make_video

CLIP = {"frames": 4, "stride": 2, "reference_fps": 0.0, "size": 24}


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Clips:
    """Six videos; reading 3.mp4 never ends."""
    for i in range(6):
        make_video(tmp_path / f"{i}.mp4")
    real = read.read

    def hang(path, *rest):
        if path.name == "3.mp4":
            time.sleep(1000)
        return real(path, *rest)

    monkeypatch.setattr(read, "read", hang)
    return Clips(Manifest([Video(tmp_path / f"{i}.mp4") for i in range(6)]), **CLIP)


def until_woken(seconds: float) -> None:
    """Lets the main thread out of whatever it hangs in."""

    def wake(number, frame):
        raise TimeoutError("woken")

    signal.signal(signal.SIGALRM, wake)
    signal.setitimer(signal.ITIMER_REAL, seconds)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_file_that_hangs_is_named_with_the_process_that_reads_it(clips, tmp_path, capfd, workers):
    """A decoder that never ends, and a limit of the loader that is longer than the patience of people."""
    loader = Loader(clips, 2, workers=workers, limit_s=1000)
    pids = {os.getpid()}

    def under_way() -> list[Reading]:
        pids.update(process.pid or 0 for process in multiprocessing.active_children())
        return loader.under_way()

    until_woken(3)
    with pytest.raises(TimeoutError), Watchdog(0.6, tmp_path, under_way):
        for _ in loader.batches():
            pass
    said = capfd.readouterr().err.splitlines()
    assert said and all("process 0 (" in line and f"pid {os.getpid()})" in line for line in said)
    found = re.search(r"waiting for clips, in .+; being read: (\S+) for (\d+) s by pid (\d+)", said[-1])
    assert found, said[-1]
    assert found[1] == str(tmp_path / "3.mp4") and 0 < int(found[2]) < 4
    assert int(found[3]) in pids and (int(found[3]) == os.getpid()) == (workers == 0)


def test_what_is_under_way_is_what_is_being_read_and_not_what_waits(clips):
    loader = Loader(clips, 2, workers=1, limit_s=1000)
    assert loader.under_way() == []
    found: list[Reading] = []
    look = threading.Timer(1.5, lambda: found.extend(loader.under_way()))
    look.start()
    until_woken(2)
    with pytest.raises(TimeoutError):
        for _ in loader.batches():
            pass
    look.join()
    assert [Path(reading.path).name for reading in found] == ["3.mp4"] and 0 < found[0].seconds < 2
    assert loader.under_way() == []


def test_it_speaks_at_doubling_intervals_and_not_in_a_pause_or_while_steps_are_done(tmp_path, capfd):
    """Fails where pauses are not looked at, and where its patience does not double."""
    with Watchdog(0.4, tmp_path, list) as watchdog:
        for _ in range(10):
            time.sleep(0.1)
            watchdog.beat()
        with watchdog.paused():
            time.sleep(1)
        time.sleep(0.2)
        assert capfd.readouterr().err == ""
    spoken = [time.monotonic()]
    with Watchdog(0.4, tmp_path, list):  # no step is done, so that it does not leave
        while len(spoken) < 4 and time.monotonic() < spoken[0] + 15:
            time.sleep(0.02)
            spoken += [time.monotonic()] * capfd.readouterr().err.count("no step is done")
    assert len(spoken) == 4
    first, second, third = (after - before for before, after in pairwise(spoken))  # 0.4, 0.4 and 0.8 seconds
    assert third > 1.4 * second and third > 1.4 * first


def test_time_in_which_everything_stood_still_is_no_stall(tmp_path, capfd):
    """As when a batch system suspends a job. Fails where the clock is simply read."""
    body = "watchdog.beat(); sleep(0.2); print('ready', flush=True); [sleep(0.05) for _ in range(20)]"
    script = alone("Watchdog(0.5, Path(sys.argv[1]), list)", body)
    process = subprocess.Popen([*script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0 and said.count("no step is done") <= 2, said


def alone(made: str, body: str) -> list[str]:
    """The command of a process that enters a watchdog."""
    return [
        sys.executable, "-c",
        f"import sys; sys.path[:0] = [{str(Path(tubelet.__file__).parents[1])!r}]\n"
        "import time\nfrom pathlib import Path\nfrom time import sleep\n"
        "import torch\nfrom tubelet import dist\nfrom tubelet.train.watchdog import Watchdog\n"
        f"dist.start()\nwith {made} as watchdog:\n    {body}\n",
    ]  # fmt: skip


def test_a_stall_for_good_leaves_the_stacks_and_an_exit_code_of_its_own(tmp_path):
    script = alone("Watchdog(0.3, Path(sys.argv[1]), list)", "watchdog.beat(); sleep(60)")
    found = subprocess.run([*script, str(tmp_path)], stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert found.returncode == 76
    assert "leaving" in found.stderr and str(tmp_path / "stalled-rank0.txt") in found.stderr
    written = (tmp_path / "stalled-rank0.txt").read_text()
    assert "no step is done" in written and 'File "<string>"' in written and "_watch" in written


def test_it_leaves_also_where_nothing_can_be_written(tmp_path):
    """Fails where a full disk ends the watchdog's thread before it ends the process."""
    script = alone("Watchdog(0.3, Path(sys.argv[1]) / 'gone', list)", "watchdog.beat(); sleep(60)")
    assert subprocess.run([*script, str(tmp_path)], timeout=30, check=False).returncode == 76


def test_steps_that_are_long_in_this_run_are_waited_for(tmp_path):
    """Fails without the second bound: here 0.9 s is three limits, and no more than a long step takes."""
    body = "sleep(0.28); watchdog.beat(); sleep(2); print('left by itself')"
    script = alone("Watchdog(0.3, Path(sys.argv[1]), list)", body)
    found = subprocess.run([*script, str(tmp_path)], stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    assert (found.returncode, found.stdout) == (0, "left by itself\n")


def test_a_process_that_hangs_is_told_from_those_that_wait_for_it(tmp_path):
    """Of two processes the second hangs: both speak, the first of waiting, and neither stays."""
    body = "watchdog.beat(); dist.rank() and sleep(60); dist.gather(1)"
    script = alone("Watchdog(0.4, Path(sys.argv[1]), list)", body)
    around = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    around |= {"MASTER_PORT": str(29500 + os.getpid() % 2000), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*script, str(tmp_path)], stderr=subprocess.PIPE, text=True, env=around | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert "process 0 (" in said[0] and "waiting for other processes, in gather (dist.py:" in said[0]
    assert "process 1 (" in said[1] and "waiting for other" not in said[1]
    assert 76 in {process.returncode for process in processes}


def test_files_are_named_only_where_they_are_waited_for(tmp_path, capfd):
    with Watchdog(0.2, tmp_path, lambda: [Reading("/a.mp4", 9.0, 1)]):
        time.sleep(0.5)
    said = capfd.readouterr().err
    assert "no step is done" in said and "a.mp4" not in said
