from __future__ import annotations

import csv
import io
import os
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

from tubelet import cli
from tubelet.data import inspect, read
from tubelet.data.inspect import scan, write_unreadable
from tubelet.data.listing import Video
from tubelet.report.pictures import jpeg
from tubelet.types import TubeletError
from videos import make_video, painted

FIXTURES = Path(__file__).parents[3] / "shared/data/fixtures"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    return make_video(tmp_path_factory.mktemp("clip") / "a.mp4", 15, fps=15).read_bytes()


def grow(folder: Path, data: bytes, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_from_folders(tmp_path, clip, workers):
    grow(tmp_path, clip, "jump/a.mp4", "jump/b.MP4", "run/c.mp4", "top.mp4")
    grow(tmp_path, b"", "run/zero.mp4")
    grow(tmp_path, b"x", "run/._c.mp4", ".hidden/d.mp4", "run/notes.txt", "run/Thumbs.db")
    found = scan(tmp_path, workers)
    assert [(v.path.name, v.label, v.split) for v in found.manifest] == [
        ("a.mp4", "jump", None), ("b.MP4", "jump", None), ("c.mp4", "run", None), ("top.mp4", None, None),
    ]  # fmt: skip
    assert [(path.name, reason) for path, reason in found.unreadable] == [
        ("zero.mp4", "the file is empty (zero bytes)")
    ]
    assert len(found.infos) == len(found.manifest)
    summary = dict(found.summary())
    assert (summary["videos"], summary["unreadable"], summary["sizes"]) == ("4", "1", "64x48")
    assert summary["classes"] == "2, 1 to 2 videos each"


def test_one_folder_has_no_labels(tmp_path, clip):
    grow(tmp_path, clip, "all/10.mp4", "all/9.mp4")
    found = scan(tmp_path, 0)
    assert [(v.path.name, v.label) for v in found.manifest] == [("9.mp4", None), ("10.mp4", None)]
    assert dict(found.summary())["classes"] == "none: no labels"


def test_labels_that_would_all_be_equal_are_none(tmp_path, clip):
    grow(tmp_path, clip, "frames/480p/a.mp4", "masks/480p/a.mp4", "b.mp4")
    assert [video.label for video in inspect.videos_of(tmp_path)[0]] == [None, None, None]


def test_first_level_as_split(tmp_path, clip):
    grow(tmp_path, clip, "train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4")
    found = scan(tmp_path, 0)
    assert [(v.split, v.label) for v in found.manifest] == [("train", "a"), ("train", "b"), ("val", "a")]
    assert dict(found.summary())["splits"] == "train (2), val (1)"


def test_links_that_go_round_end(tmp_path, clip):
    grow(tmp_path, clip, "a/1.mp4")
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert len(scan(tmp_path, 0).manifest) == 1


def test_a_list(tmp_path, clip):
    grow(tmp_path, clip, "my clip.mp4", "b.mp4")
    (tmp_path / "list.txt").write_text("my clip.mp4 1\nb.mp4 0\ngone.mp4 2\n")
    found = scan(tmp_path / "list.txt", 0)
    assert [(v.path.name, v.label) for v in found.manifest] == [("my clip.mp4", "1"), ("b.mp4", "0")]
    assert found.unreadable == [(tmp_path / "gone.mp4", "no such file")]
    assert found.manifest.classes == ["0", "1", "2"]


def test_spans_of_a_manifest(tmp_path, clip):
    grow(tmp_path, clip, "a.mp4", "b.mp4")
    (tmp_path / "m.csv").write_text("path,start_s,end_s\na.mp4,0,0.5\na.mp4,0.5,1\nb.mp4,7,8\nb.mp4,8,9\n")
    found = scan(tmp_path / "m.csv", 0)
    assert len(found.manifest) == 2
    assert dict(found.summary())["seconds each"] == "0.50 to 0.50, median 0.50"
    assert [reason.split(",")[0] for _, reason in found.unreadable] == [
        "its span starts at 7 s", "its span starts at 8 s"
    ]  # fmt: skip


def test_mistakes_get_one_clear_line(tmp_path):
    with pytest.raises(TubeletError, match="no such folder"):
        scan(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TubeletError, match="no videos in"):
        scan(tmp_path / "empty")
    grow(tmp_path, b"words and words", "bad/a.mp4")
    with pytest.raises(TubeletError, match=r"none of the 1 videos .* a\.mp4: a text file"):
        scan(tmp_path / "bad", 0)


def test_a_crash_or_a_hang_of_the_decoder_costs_one_file(tmp_path, clip, monkeypatch):
    grow(tmp_path, clip, *[f"{n}.mp4" for n in range(8)], "kills.mp4", "hangs.mp4")
    check = read.check

    def fragile(place: Path, fps: float | None) -> read.VideoInfo:
        if place.name == "kills.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        if place.name == "hangs.mp4":
            time.sleep(100)
        return check(place, fps)

    monkeypatch.setattr(inspect.read, "check", fragile)
    found = scan(tmp_path, 2, limit_s=1)
    assert len(found.manifest) == 8
    reasons = {place.name: reason for place, reason in found.unreadable}
    assert set(reasons) == {"kills.mp4", "hangs.mp4"}
    assert "the decoder crashed on it (SIGSEGV)" in reasons["kills.mp4"]
    assert "it took more than 1" in reasons["hangs.mp4"]


def test_a_surprise_costs_one_file(tmp_path, clip, monkeypatch):
    grow(tmp_path, clip, "a.mp4", "b.mp4")
    check = read.check

    def surprising(place: Path, fps: float | None) -> read.VideoInfo:
        if place.name == "a.mp4":
            raise MemoryError("too large\nby far")
        return check(place, fps)

    monkeypatch.setattr(inspect.read, "check", surprising)
    found = scan(tmp_path, 0)
    assert [reason for _, reason in found.unreadable] == ["MemoryError: too large"]


def test_write_unreadable(tmp_path):
    write_unreadable(tmp_path / "deep/u.csv", [(Path("/a, b.mp4"), "it is, well, empty")])
    rows = list(csv.reader((tmp_path / "deep/u.csv").open()))
    assert rows == [["path", "reason"], ["/a, b.mp4", "it is, well, empty"]]


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are absent")
def test_real_files():
    found = scan(FIXTURES / "ucf101", 2)
    assert (len(found.manifest), found.unreadable) == (17, [])
    assert found.manifest.classes == ["ApplyEyeMakeup", "BenchPress", "Biking", "Diving", "Punch"]


def test_files_that_are_passed_over_are_counted(tmp_path):
    make_video(tmp_path / "a.mp4")
    for name in ("notes.txt", "more.txt", "picture.gif", "bare", ".hidden.txt"):
        (tmp_path / name).write_text("x")
    found = scan(tmp_path, workers=0)
    assert found.others == {".txt": 2, "hidden": 1, ".gif": 1, "without suffix": 1}
    assert dict(found.summary())["other files"].startswith("2 .txt, ")


def picture(number: int) -> bytes:
    return jpeg(torch.from_numpy(painted(number)).permute(2, 0, 1))


def test_pictures_and_archives_in_a_tree_are_videos(tmp_path, clip):
    frames = {f"{n:04}.jpg": picture(n) for n in range(4)}
    for name, content in frames.items():
        grow(tmp_path, content, f"run/frames 1/{name}", f"run/frames 10/{name}", f"run/frames 2/{name}")
    grow(tmp_path, clip, "jump/a.mp4")
    grow(tmp_path, frames["0000.jpg"], "jump/a.jpg", "lonely/one.jpg", "run/frames 1/.hidden.jpg")
    with zipfile.ZipFile(tmp_path / "jump/clips.zip", "w") as archive:
        for folder in ("b", "c"):
            for name, content in frames.items():
                archive.writestr(f"{folder}/{name}", content)
    grow(tmp_path, b"not a zip", "jump/damaged.zip")
    with tarfile.open(tmp_path / "jump/shard-000.tar", "w") as archive:
        for key in ("k1", "k2"):
            for ending, content in (("mp4", clip), ("txt", b"words")):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    manifest, others = inspect.videos_of(tmp_path)
    assert [(Path(v.path).relative_to(tmp_path).as_posix(), v.label) for v in manifest] == [
        ("jump/a.mp4", "jump"), ("jump/clips.zip/b", "jump"), ("jump/clips.zip/c", "jump"),
        ("jump/damaged.zip", "jump"), ("jump/shard-000.tar/k1", "jump"), ("jump/shard-000.tar/k2", "jump"),
        ("run/frames 1", "run"), ("run/frames 2", "run"), ("run/frames 10", "run"),
    ]  # fmt: skip
    assert others == {".jpg": 2, "hidden": 1}


def test_a_file_that_changes_is_another_one(tmp_path, clip):
    grow(tmp_path, clip, "a.mp4", "b/1.jpg")
    video, folder = Video(tmp_path / "a.mp4"), Video(tmp_path / "b", fps=10.0)
    before = [inspect.look_at(v) for v in (video, folder)]
    assert [inspect.look_at(v) for v in (video, folder)] == before
    assert inspect.look_at(Video(tmp_path / "b", fps=12.0)) != before[1]
    grow(tmp_path, clip + b"x", "a.mp4", "b/2.jpg")
    after = [inspect.look_at(v) for v in (video, folder)]
    assert after[0].bytes == before[0].bytes + 1
    assert after[1].bytes == 2 * before[1].bytes + 1
    assert inspect.look_at(Video(tmp_path / "gone.mp4")).bytes == -1
    named = (tmp_path / "b/1.jpg").rename(tmp_path / "b/3.jpg")
    os.utime(tmp_path / "b", ns=(0, 0))
    renamed = inspect.look_at(folder)
    assert renamed != after[1]
    named.write_bytes(b"")
    empty = inspect.look_at(folder)
    named.unlink()
    assert len({after[1], renamed, empty, inspect.look_at(folder)}) == 4


def test_the_command_takes_a_limit_and_spares_its_source(tmp_path, clip, monkeypatch, capfd):
    grow(tmp_path, clip, "a.mp4", "hangs.mp4")
    check = read.check
    monkeypatch.setattr(
        inspect.read, "check", lambda place, fps: time.sleep(30) if place.name == "hangs.mp4" else check(place, fps)
    )
    out = tmp_path / "clips.csv"
    assert cli.main(["data", "scan", str(tmp_path), "-o", str(out), "--workers", "2", "--limit-s", "1"]) == 0
    quarantine = tmp_path / "clips-unreadable.csv"
    text = quarantine.read_text()
    assert "hangs.mp4" in text
    assert cli.main(["data", "scan", str(quarantine), "-o", str(out)]) == 1
    assert "would be written over" in capfd.readouterr().err and quarantine.read_text() == text
