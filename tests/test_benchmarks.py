"""What the benchmarks' claims rest on: that a wrong frame is noticed, and that workers are counted."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import footage
import numpy
import pytest
import usage

from tubelet.data import read


def test_the_number_of_a_frame_survives_the_encoder_and_a_smaller_picture(tmp_path: Path):
    kind = footage.Kind("libx264", (96, 128), {"preset": "veryfast", "g": "24"})
    film = footage.make_film(tmp_path / "film.mp4", kind, frames=40)
    wanted = [0, 39, 7, 8, 21]
    times = (numpy.array(wanted) + 0.5) / 25
    for short_side in (None, 48):
        clip = read.read(film, times, short_side).permute(0, 2, 3, 1).numpy()
        assert footage.numbers(clip) == wanted


def test_films_are_the_same_for_the_same_seed():
    first, again, other = (
        numpy.stack(list(footage.pictures((48, 64), 3, numpy.random.default_rng(seed)))) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="not Linux")
def test_memory_and_time_of_workers_are_counted():
    resident, _ = usage.held()
    used = usage.cpu_s()
    ready, end = multiprocessing.Event(), multiprocessing.Event()
    worker = multiprocessing.get_context("fork").Process(target=_busy, args=(ready, end))
    worker.start()
    assert ready.wait(30)
    assert usage.held()[0] - resident > 60 << 20
    assert usage.cpu_s() - used > 0.2
    end.set()
    worker.join()
    assert usage.held()[0] - resident < 60 << 20
    assert usage.cpu_s() - used > 0.2  # of those that ended too


def _busy(ready, end) -> None:
    block = numpy.ones(64 << 20, dtype=numpy.uint8)
    started = time.process_time()
    while time.process_time() - started < 0.3:
        block[:1000].sum()
    ready.set()
    end.wait(30)
