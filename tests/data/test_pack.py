"""Packing: the same clips come out, whatever the format; the same bytes, whatever happened in between."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy
import pytest

from tubelet.data import pack as packing_module
from tubelet.data import read, shards, storage
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest, Video, divide, read_manifest, write_manifest
from tubelet.data.pack import Packing, pack, verify
from tubelet.types import TubeletError
from videos import make_video, numbers, painted

UNEVEN = [0.0, 0.03, 0.07, 0.3, 0.31, 0.5, 0.9, 1.0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A manifest of videos of several kinds, one of them unreadable."""
    folder = tmp_path_factory.mktemp("source")
    make_video(folder / "plain.mp4", 40)
    make_video(folder / "sound.mp4", 30, sound=True, start_s=0.5)
    make_video(folder / "turned.mp4", 12, rotation=90)
    make_video(folder / "uneven.mkv", len(UNEVEN), times_s=UNEVEN, b_frames=0)
    make_video(folder / "slow.avi", 20, fps=10, codec="mpeg4", b_frames=0)
    (folder / "broken.mp4").write_bytes(b"\0" * 100)
    words = [{"caption": "a plain one", "note": "x"}, {"caption": "", "note": "y, z"}]
    videos = [
        Video(folder / "plain.mp4", label="b", split="train", group="g1", extra=words[0]),
        Video(folder / "sound.mp4", label="a", split="test", extra=words[1]),
        Video(folder / "broken.mp4", label="a"),
        Video(folder / "turned.mp4", label="b"),
        Video(folder / "uneven.mkv"),
        Video(folder / "slow.avi", label="c"),
        Video(folder / "plain.mp4", start_s=0.51, end_s=1.2, label="c"),
        Video(folder / "plain.mp4", start_s=0.9, label="a"),
    ]
    write_manifest(folder / "clips.csv", Manifest(videos, ["c", "a", "b"]))
    return folder / "clips.csv"


def packed(source: Path, out: Path, workers: int = 0, **options) -> Manifest:
    pack(read_manifest(source), out, Packing(**{"per_shard": 3, **options}), workers)
    return read_manifest(out / "clips.csv")


def readable(source: Path) -> list[Video]:
    return [video for video in read_manifest(source) if video.path.name != "broken.mp4"]


def times_of(video: Video, fps_more: float = 3.7) -> tuple[numpy.ndarray, float]:
    """Times all over the span of a row, on no grid; and where the span starts."""
    info = read.probe(video.path)
    start_s = numpy.floor((video.start_s or 0) * info.fps + 1e-6) / info.fps
    seconds = min(video.end_s or info.duration_s, info.duration_s) - start_s
    return numpy.arange(0, seconds, 1 / (fps_more * info.fps)), start_s


def contents(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


@pytest.mark.parametrize("form", ["raw", "jpeg", "webp", "video"])
def test_every_time_shows_the_frame_that_the_source_shows(source, tmp_path, form):
    """Variable rates, odd starts, rotations and spans included."""
    copies = packed(source, tmp_path / "out", format=form)
    assert len(copies) == len(readable(source))
    for video, copy in zip(readable(source), copies, strict=True):
        times_s, start_s = times_of(video)
        there, here = read.read(video.path, start_s + times_s), read.read(copy.path, times_s)
        assert there.shape == here.shape
        difference = (there.int() - here.int()).abs().float()
        if form == "raw":
            assert difference.max() == 0
        else:
            assert numbers(here.numpy()) == numbers(there.numpy()) or "turned" in video.path.name
            assert difference.mean() < 4
        told, known = read.probe(copy.path), read.probe(video.path)
        assert told.fps == known.fps
        assert told.duration_s == known.duration_s or video.start_s is not None
        assert (told.width, told.height, told.rotation) == (known.width, known.height, 0)


def test_original_keeps_the_bytes_and_the_spans(source, tmp_path):
    copies = packed(source, tmp_path / "out", format="original")
    for video, copy in zip(readable(source), copies, strict=True):
        assert (copy.start_s, copy.end_s) == (video.start_s, video.end_s)
        found = shards.sample(copy.path)
        assert found.read(video.path.suffix[1:]) == Path(video.path).read_bytes()
        times_s, start_s = times_of(video)
        assert (read.read(copy.path, start_s + times_s) == read.read(video.path, start_s + times_s)).all()
    assert copies[0].path == copies[-1].path, "one file is stored once"


@pytest.mark.parametrize("form", ["raw", "jpeg"])
def test_training_draws_the_same_clips(source, tmp_path, form):
    whole = read_manifest(source)
    whole = whole.take([row for row, v in enumerate(whole) if v.path.name not in ("broken.mp4", "turned.mp4")])
    write_manifest(source.with_name(f"{form}.csv"), whole)
    copies = packed(source.with_name(f"{form}.csv"), tmp_path / "out", format=form)
    shape = {"frames": 4, "stride": 2, "size": 48, "scale": (0.9, 1.0), "repeats": 2, "seed": 3}
    theirs, ours = Clips(whole, **shape), Clips(copies, **shape)
    assert (theirs.labels == ours.labels).all()
    for row in range(len(whole)):
        for a, b in zip(theirs[row].clips, ours[row].clips, strict=True):
            difference = (a[0].square(48).int() - b[0].square(48).int()).abs()
            assert difference.max() == 0 if form == "raw" else difference.float().mean() < 6


def test_all_that_was_known_is_kept(source, tmp_path):
    copies = packed(source, tmp_path / "out")
    assert copies.classes == ["c", "a", "b"]
    for video, copy in zip(readable(source), copies, strict=True):
        assert (copy.label, copy.split) == (video.label, video.split)
        assert copy.group == (video.group or video.path.name)
        assert copy.extra["source"] == video.path.name
        assert copy.extra.get("note", "") == video.extra.get("note", "")
    assert copies[-2].extra["source_start_s"] == "0.51"
    about = shards.sample(copies[0].path).about
    assert (about["label"], about["group"], about["split"], about["codec"]) == ("b", "g1", "train", "mjpeg")
    assert shards.sample(copies[0].path).read("cls") == b"2"
    assert shards.sample(copies[0].path).read("txt") == b"a plain one"
    assert "txt" not in shards.sample(copies[1].path).members


def test_spans_of_one_file_stay_together(source, tmp_path):
    whole = read_manifest(source)
    whole = whole.take([row for row, video in enumerate(whole) if video.path.name != "broken.mp4"])
    theirs, ours = divide(whole, 0.4, 0), divide(packed(source, tmp_path / "out"), 0.4, 0)
    for a, b in zip(theirs, ours, strict=True):
        assert [v.path.name for v in a] == [v.extra["source"] for v in b]


def test_what_cannot_be_read_is_left_out_and_listed(source, tmp_path):
    result = pack(read_manifest(source), tmp_path / "out", Packing(), 0)
    assert [(path.name, reason) for path, reason in result.left_out] == [
        ("broken.mp4", "not a video file, or its header is damaged")
    ]
    assert "broken.mp4,\"not a video file" in (tmp_path / "out" / "unreadable.csv").read_text()
    assert dict(result.summary())["left out"] == "1"


def test_the_number_of_workers_changes_no_byte(source, tmp_path):
    for workers in (0, 1, 3):
        packed(source, tmp_path / f"{workers}", workers)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize("form", ["jpeg", "video"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(source, tmp_path, form):
    packed(source, tmp_path / "whole", format=form)
    draw = random.Random(form)
    command = [sys.executable, "-m", "tubelet", "data", "pack", str(source), str(tmp_path / "out"), "--format", form]
    command += ["--per-shard", "3", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(packing_module.__file__).parents[2])}
    ends = []
    for _ in range(6):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.monotonic()
        while not (tmp_path / "out").exists() and process.poll() is None and time.monotonic() - began < 30:
            time.sleep(0.002)  # the start of Python is of no interest
        time.sleep(draw.uniform(0, 0.35))
        process.send_signal(signal.SIGKILL)
        ends.append(process.wait())
    assert -signal.SIGKILL in ends
    packed(source, tmp_path / "out", format=form)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_finished_shards_are_not_made_again(source, tmp_path, monkeypatch):
    packed(source, tmp_path / "out")
    (tmp_path / "out" / "shard-000001.index").unlink()
    made = []
    encode = packing_module.make
    monkeypatch.setattr(packing_module, "make", lambda unit, *rest: made.append(unit.number) or encode(unit, *rest))
    packed(source, tmp_path / "out")
    assert made == [3, 4, 5]


def test_thinned_videos_show_what_is_on_display_at_each_tick(source, tmp_path):
    copies = packed(source, tmp_path / "out", format="raw", fps=12)
    for video, copy in zip(readable(source), copies, strict=True):
        known, told = read.probe(video.path), read.probe(copy.path)
        if known.fps < 12:
            assert told.fps == known.fps
            continue
        _, start_s = times_of(video)
        ticks = numpy.arange(shards.sample(copy.path).about["frames"]) / 12
        assert told.fps == 12
        assert len(ticks) == numpy.ceil(told.duration_s * 12 - 1e-6)
        there, here = read.read(video.path, start_s + ticks), read.read(copy.path, ticks)
        assert (there == here).all()


def test_frames_are_shrunk_and_never_enlarged(source, tmp_path):
    copies = packed(source, tmp_path / "out", short_side=24)
    assert {read.probe(copy.path).height for copy in copies} == {24, 32}
    assert read.probe(packed(source, tmp_path / "large", short_side=100)[0].path).height == 48


def test_sound_is_kept_on_the_clock_of_the_frames(tmp_path):
    make_video(tmp_path / "a.mp4", 30, sound=True)
    write_manifest(tmp_path / "a.csv", Manifest([Video(tmp_path / "a.mp4"), Video(tmp_path / "a.mp4", 0.5, 0.8)]))
    copies = packed(tmp_path / "a.csv", tmp_path / "jpeg")
    whole, span = (_samples(shards.sample(copy.path).read("flac"), tmp_path) for copy in copies)
    there = _samples((tmp_path / "a.mp4").read_bytes(), tmp_path)
    count = min(len(whole), len(there))
    assert count > 15_000
    assert numpy.abs(whole[:count] - there[:count]).max() < 1e-3
    assert len(span) == pytest.approx(0.3 * 16_000, abs=1)
    assert numpy.abs(span - there[8000 : 8000 + len(span)]).max() < 0.02  # the codec starts anew there
    (as_video, _) = packed(tmp_path / "a.csv", tmp_path / "video", format="video")
    again = _samples(shards.sample(as_video.path).read("mp4"), tmp_path)
    assert numpy.corrcoef(again[3000:5000], there[3000:5000])[0, 1] > 0.999


def test_refusals_name_what_is_in_the_way(source, tmp_path):
    manifest = read_manifest(source)
    pack(manifest, tmp_path / "out", Packing(), 0)
    with pytest.raises(TubeletError, match=r"another pack: short_side is 256 there, and 128 here"):
        pack(manifest, tmp_path / "out", Packing(short_side=128), 0)
    with pytest.raises(TubeletError, match="another manifest"):
        pack(manifest.take([0, 1]), tmp_path / "out", Packing(), 0)
    with pytest.raises(TubeletError, match="is not empty, and holds no pack"):
        pack(manifest, source.parent, Packing(), 0)
    with pytest.raises(TubeletError, match=r"none of the 1 videos can be read; broken.mp4: not a video"):
        pack(manifest.take([2]), tmp_path / "none", Packing(), 0)
    for options, words in (
        ({"format": "raw", "quality": 3}, "without loss"), ({"quality": 90}, "between 2 and 31"),
        ({"format": "original", "fps": 5}, "keeps the bytes"), ({"per_shard": 0}, "--per-shard must be at least 1"),
    ):  # fmt: skip
        with pytest.raises(TubeletError, match=words):
            Packing(**options)  # pyright: ignore[reportArgumentType]


def test_a_full_disk_is_said_and_what_is_finished_stays(source, tmp_path, monkeypatch):
    encode = packing_module.make

    def full(unit, *rest):
        return encode(unit, *rest) if unit.number < 4 else packing_module.Made(no_space=28)

    monkeypatch.setattr(packing_module, "make", full)
    with pytest.raises(TubeletError, match=r"No space left on device; 1 of 3 shards are finished"):
        packed(source, tmp_path / "out")
    monkeypatch.undo()
    packed(source, tmp_path / "out")
    packed(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))
    with pytest.raises(TubeletError, match=r"packing takes about .* MB, and 0.00 MB are free"):
        packed(source, tmp_path / "small")


def test_one_process_at_a_time(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    packed(source, out)
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(out / "pack.json")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(TubeletError, match="another process is packing"):
            packed(source, out)
        other.kill()


def test_verify_names_the_damaged_samples(source, tmp_path):
    copies = packed(source, tmp_path / "out")
    assert verify(tmp_path / "out", 0) == (7, [])
    tar = tmp_path / "out" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    stored = shards.sample(copies[1].path).pictures
    assert stored is not None
    content[stored.offsets[3] + 50] ^= 1
    tar.write_bytes(content)
    (tmp_path / "out" / "shard-000002.tar").unlink()
    whole, damaged = verify(tmp_path / "out", 2)
    assert whole == 4
    assert [str(Path(place).relative_to(tmp_path / "out")) for place, _ in damaged] == [
        "shard-000000.tar/00000001", "shard-000002.tar"
    ]  # fmt: skip
    with pytest.raises(TubeletError, match="no pack in"):
        verify(tmp_path, 0)


def test_shards_on_object_storage_read_as_those_on_disk(source, tmp_path):
    pytest.importorskip("fsspec")
    out = storage.place(f"memory://{tmp_path.name}/packed")
    pack(read_manifest(source), out, Packing(per_shard=3), 0)
    remote, local = read_manifest(out / "clips.csv"), packed(source, tmp_path / "out")
    assert len(remote) == 7
    for there, here in zip(remote, local, strict=True):
        times_s = numpy.linspace(0, read.probe(here.path).duration_s, 9)
        assert (read.read(there.path, times_s) == read.read(here.path, times_s)).all()
    with storage.opened(out / "shard-000001.tar") as file:
        assert file.read() == (tmp_path / "out" / "shard-000001.tar").read_bytes()
    pack(read_manifest(source), out, Packing(per_shard=3), 0)  # all is finished
    assert verify(out, 0) == (7, [])


def test_other_tools_find_the_convention(source, tmp_path):
    """WebDataset: consecutive files with one name up to the first dot are a sample."""
    packed(source, tmp_path / "out")
    keys, endings = [], set()
    for number in range(3):
        with tarfile.open(tmp_path / "out" / f"shard-{number:06d}.tar") as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                keys += [] if keys and keys[-1] == key else [key]
                endings.add(ending)
                if ending == "json":
                    told = archive.extractfile(member)
                    assert told is not None
                    assert json.load(told)["tubelet"] == 1
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert keys == [f"{number:08d}" for number in range(8) if number != 2]
    assert {"json", "000000.jpg", "flac", "cls", "txt"} <= endings


def test_pictures_without_a_clock_are_packed_at_the_rate_of_their_row(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "clip").mkdir()
    for number in range(12):
        image.fromarray(painted(number)).save(tmp_path / "clip" / f"{number}.png")
    rows = [Video(tmp_path / "clip", fps=10), Video(tmp_path / "clip", 0.5, fps=10)]
    write_manifest(tmp_path / "a.csv", Manifest(rows))
    for form in ("jpeg", "raw", "original"):
        whole, span = packed(tmp_path / "a.csv", tmp_path / form, format=form)
        info = read.probe(whole.path, whole.fps)
        assert (info.duration_s, info.fps) == (1.2, 10)
        times_s = numpy.arange(12) / 10
        assert numbers(read.read(whole.path, times_s, fps=whole.fps)) == list(range(12))
        assert numbers(read.read(span.path, times_s[:7] + (span.start_s or 0), fps=span.fps)) == list(range(5, 12))
    first = shards.sample(read_manifest(tmp_path / "original" / "clips.csv")[0].path).encoded([0])[0]
    assert first == (tmp_path / "clip" / "0.png").read_bytes()


def test_a_pack_can_be_packed_again(source, tmp_path):
    packed(source, tmp_path / "raw", format="raw")
    copies = packed(tmp_path / "raw" / "clips.csv", tmp_path / "again", format="raw")
    for first, second in zip(read_manifest(tmp_path / "raw" / "clips.csv"), copies, strict=True):
        times_s = numpy.linspace(0, read.probe(first.path).duration_s, 50)
        assert (read.read(first.path, times_s) == read.read(second.path, times_s)).all()
        assert second.extra["source"] == first.extra["source"]


def test_real_clips(real_clips, tmp_path):
    found = sorted((real_clips / "grid_s1").rglob("*.mpg"))[:3]
    if not found:
        pytest.skip("no clips of that corpus")
    write_manifest(tmp_path / "clips.csv", Manifest([Video(path) for path in found]))
    for path, copy in zip(found, packed(tmp_path / "clips.csv", tmp_path / "out"), strict=True):
        times_s = numpy.linspace(0, read.probe(path).duration_s, 7)
        there, here = read.read(path, times_s, 256), read.read(copy.path, times_s)
        assert (there.int() - here.int()).abs().float().mean() < 2.5
        assert "flac" in shards.sample(copy.path).members


def _samples(content: bytes, folder: Path) -> numpy.ndarray:
    """The sound of a file as FFmpeg decodes it: mono, in [-1, 1]."""
    import av

    path = folder / "sound.bin"
    path.write_bytes(content)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=16_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return numpy.concatenate([frame.to_ndarray()[0] for frame in frames])
