"""The loader end to end: clips a second, CPU a clip, how long training waits, and memory over many clips.

Beside it, in the same run, torch's DataLoader with decord and VideoMAE's pipeline of PIL images (`peer.py`), with the
same workers on the same files. Arms take turns, in reversed order every other round; figures are medians. CPU is that
of the process and of all its workers. Clips a second depend on what else the machine does: compare within one run.

    python benchmarks/pipeline.py --out pipeline.json
    python benchmarks/pipeline.py --rounds 0 --memory 10000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import footage
import peer
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from usage import cpu_s, held

from tubelet import recipe
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.data.loader import Loader
from tubelet.data.pack import Packing, pack
from tubelet.data.storage import Place
from tubelet.train.optim import adamw
from tubelet.train.parallel import shared_cores
from tubelet.train.run import make_clips, make_learner
from tubelet.train.step import take_step
from tubelet.types import Batch

Batches = Iterator[Any]
WARM = 4
"""Batches before the clock starts: workers begin, and fill what is prefetched."""
SMALL = footage.Kind("libx264", (96, 128), {"preset": "veryfast", "g": "24"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=16, help="how many films of 10 s to read")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=64, help="clips of a round of an arm")
    parser.add_argument("--steps", type=int, default=10, help="steps of training of a round of an arm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=10_000, help="clips over which memory is watched")
    parser.add_argument("--folder", type=Path, help="keep generated films here for the next run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        films = options.folder or Path(temporary)
        if options.rounds:
            plain = shoot(films / "plain", footage.KINDS["h264 340x256"], options.videos, 250)
            packed = pack(read_manifest(plain), Path(temporary) / "packed", Packing(format="jpeg")).manifest
            results["throughput"] = throughput(plain, packed, options.workers, options.clips, options.rounds)
            results["waiting"] = waiting(plain, packed, options.workers, options.steps, options.rounds)
        if options.memory:
            small = shoot(films / "small", SMALL, 64, 48)
            results["memory"] = memory(small, options.memory, max(options.workers))
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def shoot(folder: Path, kind: footage.Kind, count: int, frames: int) -> Path:
    """A manifest of films."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}{kind.suffix}" for number in range(count)]
    films = [Video(footage.make_film(path, kind, frames, seed=seed).resolve()) for seed, path in enumerate(paths)]
    write_manifest(folder / "clips.csv", Manifest(films))
    return folder / "clips.csv"


def throughput(plain: Path, packed: Place, workers: list[int], clips: int, rounds: int) -> dict[str, dict[str, float]]:
    """16 frames, 4 apart, multi-scale crop to 224, in batches of eight."""

    def ours(manifest: Place, count: int, repeats: int = 1) -> Callable[[], Batches]:
        cut = Clips(
            read_manifest(manifest), frames=16, stride=4, reference_fps=0, size=224, crop="multiscale", flip=False,
            repeats=repeats,
        )  # fmt: skip
        return Loader(cut, 8, workers=count).batches

    arms: dict[str, Callable[[], Batches]] = {}
    for count in workers:
        arms[f"peer, {count} workers"] = peers(plain, 16, 4, 224, 8, count)
        arms[f"ours, {count} workers"] = ours(plain, count)
        arms[f"ours, 4 clips an opening, {count} workers"] = ours(plain, count, 4)
        arms[f"ours, packed, {count} workers"] = ours(packed, count)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            batches = arms[name]()
            for _ in range(WARM):
                next(batches)
            started, used = time.perf_counter(), cpu_s()
            for _ in range(clips // 8):
                next(batches)
            seen[name].append((clips / (time.perf_counter() - started), (cpu_s() - used) / clips))
            del batches
    print(f"{'':42} clips/s   CPU ms a clip")
    results = {}
    for name, figures in seen.items():
        speed, cost = (statistics.median(column) for column in zip(*figures, strict=True))
        results[name] = {"clips_per_s": speed, "cpu_s_per_clip": cost}
        print(f"{name:42} {speed:7.1f} {1000 * cost:15.1f}", flush=True)
    return results


def waiting(plain: Path, packed: Place, workers: list[int], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Which share of its time training by the recipe `tiny` stands still for the next batch."""
    tree = recipe.load("tiny", [f"--data.manifest={plain}"])
    films = read_manifest(plain)
    learner = make_learner(tree, films)
    optimiser = adamw(learner, "main", weight_decay=0.05, betas=(0.9, 0.95), layer_decay=1.0)
    batch, frames, stride, size = tree.train["batch"], *(tree.data[name] for name in ("frames", "stride", "size"))

    def ours(manifest: Place, count: int) -> Callable[[], Batches]:
        clips = make_clips(recipe.load("tiny", [f"--data.manifest={manifest}"]), read_manifest(manifest), learner)
        return Loader(clips, batch, workers=count).batches

    arms: dict[tuple[str, int], Callable[[], Batches]] = {}
    for count in workers:
        arms["peer", count] = peers(plain, frames, stride, size, batch, count)
        arms["ours", count] = ours(plain, count)
        arms["ours, packed", count] = ours(packed, count)
    seen: dict[tuple[str, int], list[tuple[float, float]]] = {name: [] for name in arms}
    for turn in range(rounds):
        for name in list(arms)[:: -1 if turn % 2 else 1]:
            batches = arms[name]()
            with shared_cores(name[1]):
                waited = begun = 0.0
                for number in range(WARM + steps):
                    if number == WARM:
                        waited, begun = 0.0, time.perf_counter()
                    asked = time.perf_counter()
                    data = next(batches)
                    waited += time.perf_counter() - asked
                    data = to_device(_batch(data) if isinstance(data, Tensor) else data, "cpu")
                    take_step(learner, learner, "main", optimiser, data, 1, 1.0, "auto")
                took = time.perf_counter() - begun
            seen[name].append((waited / took, steps * batch / took))
            del batches
    print(f"\n{'training by the recipe tiny':42} waiting   clips/s")
    results = {}
    for (arm, count), figures in seen.items():
        share, speed = (statistics.median(column) for column in zip(*figures, strict=True))
        results[f"{arm}, {count} workers"] = {"waiting": share, "clips_per_s": speed}
        print(f"{f'{arm}, {count} workers':42} {share:7.0%} {speed:9.1f}", flush=True)
    return results


def memory(manifest: Path, clips: int, workers: int) -> list[dict[str, float]]:
    """What the process and its workers hold while clips go by, every five hundred."""
    loader = Loader(Clips(read_manifest(manifest), frames=8, stride=2, size=64), 10, workers=workers)
    rows: list[dict[str, float]] = []
    for number, _ in zip(range(1, clips // 10 + 1), loader.batches(), strict=False):
        if number % 50 == 0:
            resident, proportional = held()
            rows.append({"clips": 10 * number, "rss_mib": resident / 2**20, "pss_mib": proportional / 2**20})
    first, last = rows[0], rows[-1]
    print(f"\nmemory with {workers} workers      RSS MiB   shared pages once (PSS), MiB")
    for row in (first, rows[len(rows) // 2], last):
        print(f"after {row['clips']:6.0f} clips {row['rss_mib']:19.1f} {row['pss_mib']:12.1f}")
    print(f"growth {last['rss_mib'] - first['rss_mib']:26.1f} {last['pss_mib'] - first['pss_mib']:12.1f}")
    return rows


def peers(manifest: Path, frames: int, stride: int, size: int, batch: int, workers: int) -> Callable[[], Batches]:
    """Batches without end from torch's DataLoader: B C T H W float32."""
    films = peer.Films([Path(str(video.path)) for video in read_manifest(manifest)], frames, stride, size)
    order = RandomSampler(films, replacement=True, num_samples=1_000_000)
    return lambda: iter(DataLoader(films, batch, sampler=order, num_workers=workers))


def _batch(video: Tensor) -> Batch:
    return Batch(video=[video], key=torch.arange(len(video)), id=torch.arange(len(video)))


if __name__ == "__main__":
    main()
