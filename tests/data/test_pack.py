"""Packing: the same clips come out, whatever the format; the same bytes, whatever happened in between."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tubelet.data import encode, read, shards, storage
from tubelet.data import pack as packing_module
from tubelet.data.clips import Clips
from tubelet.data.division import divide
from tubelet.data.info import UnreadableVideo
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.data.pack import Packing, pack
from tubelet.data.verify import verify
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
    start = command(source, tmp_path / "out", "--format", form, "--workers", "2")
    ends = []
    for _ in range(6):
        process = subprocess.Popen(**start, stderr=subprocess.DEVNULL)
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
    make = packing_module.make
    monkeypatch.setattr(packing_module, "make", lambda unit, *rest: made.append(unit.number) or make(unit, *rest))
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
    make = packing_module.make

    def full(unit, *rest):
        return make(unit, *rest) if unit.number < 4 else packing_module.Made(error=OSError(28, os.strerror(28)))

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


def command(source: Path, out: Path, *more: str) -> dict[str, Any]:
    """How `subprocess` runs `tubelet data pack`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(packing_module.__file__).parents[2])}
    return {
        "args": [sys.executable, "-m", "tubelet", "data", "pack", str(source), str(out), "--per-shard", "3", *more],
        "env": environment, "stdout": subprocess.DEVNULL,
    }  # fmt: skip


def test_one_process_at_a_time(source, tmp_path):
    """The second is refused while the first, which is held up for the time, has begun; the first is not disturbed."""
    out = tmp_path / "out"
    with subprocess.Popen(**command(source, out, "--workers", "0"), stderr=subprocess.DEVNULL) as first:
        try:
            while not list(out.glob(".packing-*/*.frames")) and first.poll() is None:
                time.sleep(0.001)
            first.send_signal(signal.SIGSTOP)
            second = subprocess.run(**command(source, out), stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        finally:
            first.send_signal(signal.SIGCONT)
    assert second.returncode != 0
    assert "another process is packing into" in second.stderr
    assert first.returncode == 0
    assert verify(out, 0) == (7, [])


def test_what_may_pass_is_tried_again_by_the_next_start(source, tmp_path, monkeypatch):
    late = tmp_path / "late.mp4"
    write_manifest(tmp_path / "a.csv", Manifest([Video(source.parent / "plain.mp4"), Video(late)]))
    result = pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(), 0)
    assert result.left_out == [(late, "no such file")]
    shutil.copy(source.parent / "slow.avi", late)

    failing = [True]
    probe = read.probe

    def flaky(place, fps=None):
        if failing[0] and place == late:
            raise UnreadableVideo(place, "Input/output error") from OSError(5, "Input/output error")
        return probe(place, fps)

    monkeypatch.setattr(read, "probe", flaky)
    assert pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(), 0).videos == 1
    failing[0] = False
    make = packing_module.make
    monkeypatch.setattr(packing_module, "make", lambda unit, *rest: time.sleep(unit.number * 60) or make(unit, *rest))
    result = pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(), 1, limit_s=1.5)
    assert [reason for _, reason in result.left_out] == ["it took more than 1.5 s and was stopped"]
    monkeypatch.setattr(packing_module, "make", make)
    result = pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(), 0)
    assert (result.videos, result.left_out) == (2, [])
    monkeypatch.setattr(packing_module, "make", None)
    assert pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(), 0).videos == 2, "now it is finished"


@pytest.mark.parametrize("workers", [0, 1])
def test_only_what_is_wrong_with_a_video_leaves_it_out(source, tmp_path, monkeypatch, workers):
    """A disk that cannot be written to, and faults of our own, stop the pack."""

    def failing(error: Exception):
        def encode_pictures(*_):
            raise error

        return encode_pictures

    for error, expected, words in (
        (OSError(5, "Input/output error"), TubeletError, r"cannot write to .*: Input/output error; 0 of 3 shards"),
        (MemoryError("none left"), (MemoryError, RuntimeError), "none left"),
        (KeyError("a fault"), (KeyError, RuntimeError), "a fault"),
    ):
        monkeypatch.setattr(encode, "pictures", failing(error))
        with pytest.raises(expected, match=words):
            packed(source, tmp_path / "out", workers)
    assert not list((tmp_path / "out").glob("shard-*"))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_that_breaks_off_is_left_out(tmp_path, suffix):
    """What is packed would not show that it does; nor what a long last frame is, which is told."""
    path = make_video(tmp_path / f"cut.{suffix}", 250, gop=10, b_frames=0)
    if suffix == "mp4":
        front = tmp_path / "front.mp4"
        with av.open(str(path)) as old, av.open(str(front), "w", options={"movflags": "+faststart"}) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        front.replace(path)
    os.truncate(path, int(path.stat().st_size * 0.4))
    slides = make_video(tmp_path / "slides.mp4", 3, times_s=[0.0, 1.0, 9.0])
    rows = [Video(path), Video(path, 0.3, 1.0), Video(path, 6.0, 7.0), Video(slides)]
    write_manifest(tmp_path / "a.csv", Manifest(rows))
    result = pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(), 0)
    (whole, span) = [reason for _, reason in result.left_out]
    found = re.match(r"it breaks off after (\d\.\d) of 8\.3 seconds", whole)
    assert found is not None
    assert span == "the file breaks off before the middle of this span"
    thinned = pack(read_manifest(tmp_path / "a.csv"), tmp_path / "thinned", Packing(fps=5.0), 0)
    assert [reason for _, reason in thinned.left_out] == [whole, span]
    good, slow = read_manifest(tmp_path / "out" / "clips.csv")
    assert read.probe(good.path).duration_s == pytest.approx(0.7)
    assert "still_s" not in shards.sample(good.path).about
    assert read.probe(slow.path).duration_s == read.probe(slides).duration_s
    end_s = float(found[1])
    write_manifest(tmp_path / "b.csv", Manifest([Video(path, 0.0, 1.5 * end_s)]))
    (copy,) = packed(tmp_path / "b.csv", tmp_path / "most")
    assert shards.sample(copy.path).about["still_s"] == pytest.approx(end_s, abs=0.1)


def test_sources_that_have_changed_are_packed_again(source, tmp_path):
    for name in "ab":
        shutil.copy(source.parent / "plain.mp4", tmp_path / f"{name}.mp4")
    write_manifest(tmp_path / "a.csv", Manifest([Video(tmp_path / "a.mp4"), Video(tmp_path / "b.mp4")]))
    packed(tmp_path / "a.csv", tmp_path / "out", per_shard=1)
    before = contents(tmp_path / "out")
    make_video(tmp_path / "a.mp4", 9)
    copies = packed(tmp_path / "a.csv", tmp_path / "out", per_shard=1)
    assert [read.probe(copy.path).frames for copy in copies] == [9, 40]
    assert contents(tmp_path / "out")["shard-000001.index"] == before["shard-000001.index"]
    (tmp_path / "b.mp4").unlink()
    assert len(packed(tmp_path / "a.csv", tmp_path / "out", per_shard=1)) == 2, "what is packed outlives its source"


def test_of_a_file_with_several_rows_only_what_all_say_is_told(source, tmp_path):
    path = source.parent / "plain.mp4"
    rows = [
        Video(path, 0.0, 0.5, "x", "g", "train", {"caption": "first half", "note": "n"}),
        Video(path, 0.5, 1.0, "x", "h", "train", {"caption": "second half", "note": "n"}),
        Video(path, 90.0, 91.0, "x", "h", "train"),
    ]
    write_manifest(tmp_path / "a.csv", Manifest(rows))
    copies = packed(tmp_path / "a.csv", tmp_path / "out", format="original")
    found = shards.sample(copies[0].path)
    assert "txt" not in found.members
    assert found.read("cls") == b"0"
    assert "group" not in found.about
    assert (found.about["label"], found.about["split"]) == ("x", "train")
    assert [(v.start_s, v.end_s, v.group, v.extra.get("caption")) for v in copies[:2]] == [
        (0.0, 0.5, "g", "first half"), (0.5, 1.0, "h", "second half")
    ]  # fmt: skip


def test_a_column_called_source_is_kept_and_so_is_ours(source, tmp_path):
    write_manifest(tmp_path / "a.csv", Manifest([Video(source.parent / "plain.mp4", extra={"source": "a camera"})]))
    (copy,) = packed(tmp_path / "a.csv", tmp_path / "out")
    assert copy.extra["source"] == "a camera"
    assert copy.extra["packed_from"] == str(source.parent / "plain.mp4")


def test_the_list_of_what_is_left_out_goes_with_it(source, tmp_path):
    write_manifest(tmp_path / "a.csv", Manifest([Video(tmp_path / "late.mp4"), Video(source.parent / "plain.mp4")]))
    packed(tmp_path / "a.csv", tmp_path / "out")
    assert (tmp_path / "out" / "unreadable.csv").exists()
    shutil.copy(source.parent / "slow.avi", tmp_path / "late.mp4")
    packed(tmp_path / "a.csv", tmp_path / "out")
    assert not (tmp_path / "out" / "unreadable.csv").exists()


def test_files_of_a_worker_that_was_stopped_are_removed(source, tmp_path, monkeypatch):
    raw = encode.raw

    def slow(frames, key, path):
        if key == "00000000":
            path.write_bytes(bytes(100_000))
            time.sleep(60)
        return raw(frames, key, path)

    left = []
    put = storage.put
    monkeypatch.setattr(encode, "raw", slow)
    monkeypatch.setattr(storage, "put", lambda a, b: left.extend(a.parent.glob("00000000.*")) or put(a, b))
    rows = [Video(source.parent / "turned.mp4"), Video(source.parent / "slow.avi")]
    write_manifest(tmp_path / "a.csv", Manifest(rows))
    result = pack(read_manifest(tmp_path / "a.csv"), tmp_path / "out", Packing(format="raw"), 1, limit_s=1.5)
    assert len(result.left_out) == 1
    assert left == []


def test_object_storage_that_holds_other_things_is_left_alone(source, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{tmp_path.name}/mine/clips.csv", b"path\nmine.mp4\n")
    with pytest.raises(TubeletError, match="is not empty, and holds no pack"):
        packed_at = storage.place(f"memory://{tmp_path.name}/mine")
        pack(read_manifest(source), packed_at, Packing(), 0)
    assert memory.cat_file(f"/{tmp_path.name}/mine/clips.csv") == b"path\nmine.mp4\n"


def test_a_shard_on_object_storage_is_made_again(source, tmp_path):
    pytest.importorskip("fsspec")
    out = storage.place(f"memory://{tmp_path.name}/again")
    write_manifest(tmp_path / "a.csv", Manifest([Video(source.parent / "plain.mp4"), Video(tmp_path / "late.mp4")]))
    assert pack(read_manifest(tmp_path / "a.csv"), out, Packing(), 0).videos == 1
    shutil.copy(source.parent / "slow.avi", tmp_path / "late.mp4")
    assert pack(read_manifest(tmp_path / "a.csv"), out, Packing(), 0).videos == 2


def test_what_a_killed_start_left_for_object_storage_is_removed_by_the_next(source, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    out = storage.place(f"memory://{tmp_path.name}/killed")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    left = packing_module._desk(out) / ".packing-old"
    left.mkdir()
    pack(read_manifest(source), out, Packing(), 0)
    assert [path.name for path in (tmp_path / "temporary").rglob("*") if path.is_file()] == [".lock"]
    assert not left.exists()


def test_a_pack_of_another_version_is_not_verified(source, tmp_path):
    packed(source, tmp_path / "out")
    (tmp_path / "out" / "pack.json").write_text('{"tubelet": 99}')
    with pytest.raises(TubeletError, match="another version"):
        verify(tmp_path / "out", 0)


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
    (tmp_path / "out" / "shard-000001.index").unlink()
    assert (tmp_path / "out" / "shard-000001.tar", "its index is gone") in verify(tmp_path / "out", 0)[1]
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
    path = folder / "sound.bin"
    path.write_bytes(content)
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=16_000)
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return numpy.concatenate([frame.to_ndarray()[0] for frame in frames])
