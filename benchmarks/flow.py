"""What flow costs and how exact it is: both methods on one film of texture that moves by a known number of pixels.

Methods take turns in one process, in reversed order every other round; times are medians. Beside them: the size of a
flow film, how far its values are from those that were computed, and the time to read a clip of it over that of a clip
of its video.

    python benchmarks/flow.py --rounds 3 --out flow.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import footage
import numpy
import torch

from tubelet.data import flow as flowing
from tubelet.data import read
from tubelet.data.flow import Flow

SIZE = (256, 340)
STEP = (3.0, -2.0)
"""Pixels to the right and downwards from one picture to the next."""
FRAMES = 32
EDGE = 32
"""Pixels at the border, where what comes in was not to be seen before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = panned()
    methods = {"dis": flowing.measure(Flow("dis")), "farneback": flowing.measure(Flow("farneback"))}
    took: dict[str, list[float]] = {name: [] for name in methods}
    errors: dict[str, float] = {}
    for turn in range(options.rounds):
        for name in list(methods)[:: 1 if turn % 2 else -1]:
            started = time.perf_counter()
            found = [methods[name](*pair) for pair in pairwise(pictures)]
            took[name].append((time.perf_counter() - started) / len(found))
            errors[name] = error_px(found)
    told: dict[str, Any] = {
        name: {"ms a picture": round(1000 * statistics.median(took[name]), 2), "error in pixels": errors[name]}
        for name in methods
    }
    told["film"] = film(options.rounds)
    print(json.dumps(told, indent=2))
    if options.out:
        options.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def panned() -> list[numpy.ndarray]:
    """A window that moves over texture: what it shows moves the other way."""
    ground = footage.texture(2 * SIZE[0], 2 * SIZE[1], numpy.random.default_rng(0))
    top, left = SIZE[0] // 2, SIZE[1] // 2
    found = []
    for number in range(FRAMES):
        row, column = (round(at - step * number) for at, step in ((top, STEP[1]), (left, STEP[0])))
        found.append(ground[row : row + SIZE[0], column : column + SIZE[1]])
    return found


def error_px(found: list[numpy.ndarray]) -> float:
    """The mean distance of the displacements from the true one."""
    inner = numpy.stack(found)[:, EDGE:-EDGE, EDGE:-EDGE]  # T H W 2
    return round(float(numpy.linalg.norm(inner - STEP, axis=-1).mean()), 4)


def film(rounds: int) -> dict[str, float]:
    """What a flow film of filmed-like pictures takes, loses and costs to read."""
    with tempfile.TemporaryDirectory() as folder:
        video = footage.make_film(Path(folder, "video.mp4"), footage.KINDS["h264 340x256"], frames=100)
        place, flow = Path(folder, "flow.mp4"), Flow()
        started = time.perf_counter()
        flowing.film(video, place, flow)
        made_s = time.perf_counter() - started
        compare, before = flowing.measure(flow), [picture for _, picture in read.frames(video)]
        exact = numpy.stack([flow.picture(compare(*pair)) for pair in pairwise(before)]).astype(int)
        kept = numpy.stack([picture for _, picture in read.frames(place)][:-1])
        times = (numpy.arange(16) * 4 + 20.5) / 25
        reading: dict[Path, list[float]] = {video: [], place: []}
        for turn in range(rounds):
            for path in list(reading)[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                read.read(path, times, 128)
                reading[path].append(time.perf_counter() - started)
        of_flow, of_video = (statistics.median(reading[path]) for path in (place, video))
        return {
            "pictures a second": round(len(before) / made_s, 1),
            "bytes of a picture": round(place.stat().st_size / len(before)),
            "of its video": round(video.stat().st_size / len(before)),
            "share of values off by more than one level": round(float((abs(kept - exact) > 1).mean()), 4),
            "clip, time of its video's": round(of_flow / of_video, 2),
        }


if __name__ == "__main__":
    main()
