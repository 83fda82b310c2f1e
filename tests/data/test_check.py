from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from scenes import make_scene
from tiny_run import make_recipe
from tubelet import cli
from tubelet.data import container, duplicates, examine, inspect, read, storage
from tubelet.data.cases import Finding
from tubelet.data.check import CASES, Checked, check, thumbnails, write_json
from tubelet.data.corpus import Corpus
from tubelet.data.examine import Examination
from tubelet.data.info import VideoInfo
from tubelet.data.journal import Journal
from tubelet.data.listing import Manifest, Video, read_manifest
from tubelet.types import TubeletError

YOGA = Path(__file__).parents[3] / "shared/data/yoga_poses/bhujangasan"


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """Two classes in two splits; a copy across splits, one in another size and codec, and files that are bad."""
    root = tmp_path_factory.mktemp("tree") / "videos"
    for seed in range(4):
        make_scene(root / "train" / ("jump", "run")[seed % 2] / f"{seed}.mp4", seed)
    make_scene(root / "test/jump/4.mp4", 4)
    make_scene(root / "test/run/5.mp4", 5)
    shutil.copy(root / "train/run/1.mp4", root / "test/run/copy.mp4")
    make_scene(root / "train/jump/small.mkv", 0, size=(96, 144), quality=28)
    (root / "train/run/empty.mp4").write_bytes(b"")
    (root / "train/run/words.mp4").write_text("not a video at all")
    (root / "train/run/._0.mp4").write_bytes(b"\x00\x05\x16\x07")
    (root / "train/run/Thumbs.db").write_bytes(b"x")
    return root


@pytest.fixture(scope="session")
def checked(tree, tmp_path_factory) -> Checked:
    return check(tree, tmp_path_factory.mktemp("checked") / "clips.csv", workers=2)


def names(found: Checked, rows) -> list[str]:
    return [found.manifest[row].path.name for row in rows]


def test_the_clean_manifest_is_the_tree_without_bad_files(checked, tree):
    clean = read_manifest(checked.out.manifest)
    bad = ("empty.mp4", "words.mp4")
    assert [v.path for v in clean] == [v.path for v in checked.manifest if v.path.name not in bad]
    assert {v.split for v in clean} == {"train", "test"} and clean.classes == ["jump", "run"]
    rows = list(csv.DictReader(checked.out.quarantine.open()))
    assert [(Path(row["path"]).name, row["code"]) for row in rows] == [("empty.mp4", "empty"), ("words.mp4", "text")]
    assert all(row["reason"] for row in rows)
    assert checked.others == {"hidden": 1, ".db": 1}


def test_copies_are_found_and_kept(checked):
    kinds = {copies.kind: copies for copies in checked.copies}
    assert sorted(names(checked, kinds["exact"].rows)) == ["1.mp4", "copy.mp4"]
    assert kinds["exact"].splits == ["test", "train"] and kinds["exact"].labels == ["run"]
    assert sorted(names(checked, kinds["near"].rows)) == ["0.mp4", "small.mkv"]
    assert len(checked.copies) == 2 and len(checked.clean) == 8
    assert "duplicate_across_splits" in {remark.code for remark in checked.remarks}


def test_json_has_everything_but_pictures(checked):
    write_json(checked, cost=None)
    told = json.loads(checked.out.json.read_text())
    assert (told["rows"], told["kept"], len(told["files"])) == (10, 8, 10)
    assert {f["left_out"]["code"] for f in told["files"] if f["left_out"]} == {"empty", "text"}
    assert told["speed"]["frames_per_s"] > 0
    assert "thumbnail" not in told["files"][0] and "cases" in told and "cost" in told


def test_every_usable_row_has_a_thumbnail(checked):
    pictures = thumbnails(checked, list(range(len(checked.manifest))))
    usable = [row for row, file in enumerate(checked.files) if file.reason is None]
    assert sorted(pictures) == usable
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures.values())


@pytest.mark.parametrize(
    ("how", "gone"),
    [
        ({"drop_duplicates": "exact"}, {"1.mp4": "duplicate"}),
        ({"drop_duplicates": "near"}, {"1.mp4": "duplicate", "small.mkv": "near_duplicate"}),
    ],
)
def test_copies_are_dropped_when_asked_and_never_from_what_is_judged_on(checked, tree, tmp_path, how, gone):
    shutil.copy(checked.out.journal, tmp_path / "clips-check.jsonl")
    found = check(tree, tmp_path / "clips.csv", workers=0, **how)
    dropped = {left.path.name: left.code for left in found.left_out if left.code not in ("empty", "text")}
    assert dropped == gone
    assert "split test" in next(left.reason for left in found.left_out if left.code == "duplicate")


def test_a_second_look_decodes_nothing_but_what_has_changed(tree, tmp_path, monkeypatch):
    shutil.copytree(tree, tmp_path / "videos")
    first = check(tmp_path / "videos", tmp_path / "clips.csv", workers=0)
    looked: list[str] = []
    whole = examine.examine
    monkeypatch.setattr(examine, "examine", lambda place, fps: looked.append(place.name) or whole(place, fps))
    again = check(tmp_path / "videos", tmp_path / "clips.csv", workers=0)
    assert looked == [] and again.files == first.files
    make_scene(tmp_path / "videos/test/run/5.mp4", 50)
    check(tmp_path / "videos", tmp_path / "clips.csv", workers=0)
    assert looked == ["5.mp4"]


def test_a_torn_or_damaged_line_is_found_out_again(checked, tree, tmp_path):
    lines = checked.out.journal.read_bytes().splitlines(keepends=True)
    journal = tmp_path / "clips-check.jsonl"
    journal.write_bytes(lines[0] + b'{"version": 2, "look"\n' + b"".join(lines[2:-1]) + lines[-1][:100])
    found = check(tree, tmp_path / "clips.csv", workers=0)
    assert [file.digest for file in found.files] == [file.digest for file in checked.files]
    assert journal.read_bytes().count(b"\n") == len(lines) + 1
    with Journal(journal) as read_back:
        assert all(look in read_back for look in found.looks)


SLOWLY = """
import sys, time
from tubelet.data import check, examine
whole = examine.examine
examine.examine = lambda *of: (time.sleep(0.1), whole(*of))[1]
check.check(sys.argv[1], sys.argv[2], workers=2)
"""


def test_kills_at_any_moment_change_nothing(tree, checked, tmp_path):
    out, journal = tmp_path / "clips.csv", tmp_path / "clips-check.jsonl"
    words = [sys.executable, "-c", SLOWLY, str(tree), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(inspect.__file__).parents[2])}
    draw = numpy.random.default_rng()
    for target in (0, 1, 4, 7):  # lines of the journal
        process = subprocess.Popen(words, env=environment)
        while (known := journal.read_bytes().count(b"\n") if journal.exists() else -1) < target:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.wait()
        assert target <= known < len(checked.manifest)
    subprocess.run(words, check=True, env=environment)
    assert [(v.path, v.label, v.split) for v in read_manifest(out)] == [
        (v.path, v.label, v.split) for v in read_manifest(checked.out.manifest)
    ]
    assert out.with_name("clips-quarantine.csv").read_bytes() == checked.out.quarantine.read_bytes()


def test_a_crash_and_a_hang_are_quarantined_and_tried_again_next_time(tree, tmp_path, monkeypatch):
    whole = examine.examine

    def fragile(place, fps):
        if place.name == "0.mp4":
            os.kill(os.getpid(), signal.SIGSEGV)
        if place.name == "1.mp4":
            time.sleep(100)
        return whole(place, fps)

    monkeypatch.setattr(examine, "examine", fragile)
    found = check(tree, tmp_path / "clips.csv", workers=2, limit_s=2)
    stopped = {left.path.name: left.reason for left in found.left_out if left.code == "stopped"}
    assert "SIGSEGV" in stopped["0.mp4"] and "more than" in stopped["1.mp4"] and len(stopped) == 2
    monkeypatch.setattr(examine, "examine", whole)
    assert len(check(tree, tmp_path / "clips.csv", workers=2).clean) == 8


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, "no_permission"), (errno.EIO, "unreadable")])
def test_a_place_that_fails_for_a_while_is_looked_at_again(tree, tmp_path, monkeypatch, number, code):
    opened = storage.opened

    def failing(place):
        if place.name == "3.mp4":
            raise OSError(number, os.strerror(number))
        return opened(place)

    monkeypatch.setattr(container, "opened", failing)
    monkeypatch.setattr(storage, "opened", failing)
    read._probe.cache_clear()
    found = check(tree, tmp_path / "clips.csv", workers=0)
    assert {left.path.name: left.code for left in found.left_out}["3.mp4"] == code
    monkeypatch.undo()
    assert len(check(tree, tmp_path / "clips.csv", workers=0).clean) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_surprise_costs_one_file_and_is_tried_again(tree, tmp_path, monkeypatch, workers):
    whole = examine.examine

    def surprising(place, fps):
        return {}[place] if place.name == "3.mp4" else whole(place, fps)

    monkeypatch.setattr(examine, "examine", surprising)
    found = check(tree, tmp_path / "clips.csv", workers=workers)
    (left,) = (left for left in found.left_out if left.code == "internal_error")
    assert left.path.name == "3.mp4" and left.reason.startswith("internal error: KeyError: ")
    monkeypatch.undo()
    assert len(check(tree, tmp_path / "clips.csv", workers=0).clean) == 8


def test_nothing_usable_writes_the_quarantine_and_no_manifest(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "clips.csv").write_text("path\nof_a_run_before.mp4\n")
    for name in "ab":
        (tmp_path / f"videos/{name}.mp4").write_bytes(b"")
    found = check(tmp_path / "videos", tmp_path / "clips.csv", workers=0)
    assert len(found.clean) == 0 and not found.out.manifest.exists()
    assert found.remarks[0].code == "many_unreadable"
    assert len(found.out.quarantine.read_text().splitlines()) == 3


def test_a_manifest_keeps_its_order_columns_and_class_numbers(tree, tmp_path):
    rows = ["path,label,group,split,class_number,camera"]
    rows += [f"{tree}/train/run/3.mp4,run,g1,train,7,north", f"{tree}/train/run/empty.mp4,run,g1,train,7,north"]
    rows += [f"{tree}/train/jump/0.mp4,jump,g1,val,2,south", f"{tree}/gone.mp4,jump,g2,train,2,south"]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    found = check(tmp_path / "mine.csv", workers=0)
    assert found.out.manifest == tmp_path / "mine-clean.csv"
    clean = read_manifest(found.out.manifest)
    assert [(v.path.name, v.extra["camera"]) for v in clean] == [("3.mp4", "north"), ("0.mp4", "south")]
    assert clean.classes.index("run") == 7
    assert [(leak.group, list(leak.rows)) for leak in found.leaks] == [("g1", ["val", "train"])]
    assert {left.code for left in found.left_out} == {"empty", "missing"}
    dropped = check(tmp_path / "mine.csv", workers=0, drop_leaks=True)
    assert [v.split for v in dropped.clean] == ["val"]


@pytest.mark.parametrize("source", ["clips.csv", "clips-quarantine.csv", "clips-check.json", "link.csv"])
def test_no_output_takes_the_place_of_the_source(tmp_path, source):
    (tmp_path / "link.csv").symlink_to("clips-quarantine.csv")
    (tmp_path / source).write_text("path\ngone.mp4\n")
    with pytest.raises(TubeletError, match="would be written over"):
        check(tmp_path / source, tmp_path / "clips.csv")
    assert (tmp_path / source).read_text() == "path\ngone.mp4\n"


# What shows in all files together, on examinations that were made up


def seen(*videos: Video, fps=30.0, size=(320, 240), findings=()) -> Corpus:
    info = VideoInfo(4.0, fps, 120, *size, "h264", 0.0, 0)
    files = [Examination(v.path, info, digest=str(v.path), findings=list(findings)) for v in videos]
    return Corpus(Manifest(videos), list(range(len(videos))), files)


def no_squares(row: int) -> numpy.ndarray:
    raise AssertionError("no hashes are near")


def codes(corpus: Corpus) -> dict[str, str]:
    copies, leaks = corpus.copies(no_squares), corpus.leaks()
    return {remark.code: remark.detail for remark in corpus.remarks(copies, leaks)}


def many(label: str | None, split: str | None, number: int = 6, **more) -> list[Video]:
    return [Video(Path(f"/v/{label}-{split}-{n}.mp4"), label=label, split=split, **more) for n in range(number)]


def test_a_sound_corpus_has_no_remarks():
    assert codes(seen(*many("a", "train"), *many("a", "test"), *many("b", "train"), *many("b", "test"))) == {}


@pytest.mark.parametrize(
    ("videos", "code", "detail"),
    [
        (many("a", None) + many("b", None), "no_splits", "12 rows"),
        (many("a", "train") + many("a", "evaluation"), "split_names", "evaluation"),
        (many("a", "train") + many("a", "test") + many("b", "test"), "only_judged", "1 class: b"),
        (many("a", "train") + many("a", "test") + many("b", "train"), "never_judged", "1 class: b"),
        (many("a", "train") + many("b", "train", 2), "few_videos", "1 class: b"),
        (many("Long jump", "train") + many("long_jump", "train"), "labels_alike", "'Long jump' and 'long_jump'"),
        (many("a", "train") + many(None, "train"), "some_unlabelled", "6 of 12 rows"),
        (many("a", "train", 5, group="g") + many("a", "test", 5, group="g"), "leak", "1 group in test and train"),
    ],
)
def test_remarks(videos, code, detail):
    assert codes(seen(*videos))[code].startswith(detail)


def test_parts_of_one_file_in_two_splits_leak():
    splits = ("train", "train", "val")
    parts = [Video(Path("/v/film.mp4"), 2.0 * n, 2.0 * n + 2, split=split) for n, split in enumerate(splits)]
    (leak,) = seen(*parts).leaks()
    assert (leak.group, leak.rows) == ("film.mp4", {"val": [2], "train": [0, 1]})
    assert seen(*parts).copies(no_squares) == []
    bare = seen(Video(Path("/v/1"), split="train"), Video(Path("/v/2"), 1.0, split="test"))
    assert replace(bare, files=[replace(file, digest="") for file in bare.files]).leaks() == []
    twice = seen(parts[0], parts[0])
    assert [(c.kind, c.rows) for c in twice.copies(no_squares)] == [("exact", [0, 1])]


def test_parts_of_one_file_leak_whatever_their_groups():
    spans = ((0, 2, "train", "a"), (1, 3, "val", "b"), (5, 6, "train", "c"))
    parts = [Video(Path("/v/film.mp4"), start, end, split=split, group=group) for start, end, split, group in spans]
    assert [(leak.group, leak.rows) for leak in seen(*parts).leaks()] == [("film.mp4", {"val": [1], "train": [0, 2]})]
    same_rows = [replace(part, group="g") for part in parts]
    assert [leak.group for leak in seen(*same_rows).leaks()] == ["g"]
    mixed = [*parts, Video(Path("/v/other.mp4"), split="test", group="a")]
    assert [leak.group for leak in seen(*mixed).leaks()] == ["a", "film.mp4"]
    whole = [Video(Path("/v/a.mp4"), split=split, group=split) for split in ("train", "test")]
    assert seen(*whole).leaks() == [] and len(seen(*whole).copies(no_squares)[0].rows) == 2


@pytest.mark.skipif(not YOGA.is_dir(), reason="the shared videos are absent")
def test_two_takes_before_one_camera_are_no_copies_and_another_encoding_is(tmp_path):
    takes = [YOGA / f"VID202501271425{seconds}.mp4" for seconds in ("00", "31")]
    (tmp_path / "mine.csv").write_text("\n".join(["path", *map(str, takes), "small.mkv"]))
    make_smaller(takes[0], tmp_path / "small.mkv")
    found = check(tmp_path / "mine.csv", workers=2)
    assert duplicates.near([file.hashes for file in found.files], [1.0] * 3) == [[0, 1, 2]]
    assert [copies.rows for copies in found.copies] == [[0, 2]]


def make_smaller(path: Path, target: Path) -> None:
    """The video in half its size and bad quality."""
    with av.open(str(path)) as source, av.open(str(target), "w") as made:
        video = source.streams.video[0]
        stream: Any = made.add_stream("libx264", rate=video.average_rate, options={"crf": "32", "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = video.height // 4 * 2, video.width // 4 * 2, "yuv420p"
        for frame in source.decode(video):
            small = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="AREA")
            made.mux(stream.encode(small))
        made.mux(stream.encode(None))


def test_copies_with_two_labels_are_told_of():
    videos = [Video(Path("/v/a.mp4"), label="x"), Video(Path("/v/a.mp4"), label="y")]
    assert "duplicate_with_two_labels" in codes(seen(*videos))


def test_mixed_rates_sizes_and_what_nearly_all_have():
    a, b = seen(*many("a", "train", 5), findings=[Finding("letterbox", "")]), seen(*many("b", "train", 5), fps=15.0)
    slow = Corpus(Manifest([*a.manifest, *b.manifest]), list(range(10)), a.files + b.files)
    assert codes(slow)["mixed_rates"].startswith("from 15 to 30 frames a second")
    assert "0.133 to 0.267 s" in codes(slow)["mixed_rates"]
    assert "in_common" not in codes(slow)
    assert codes(a)["in_common"] == "letterbox in 5 of 5 rows"
    large = seen(*many("b", "train", 5), size=(1920, 1080))
    mixed = Corpus(Manifest([*a.manifest, *large.manifest]), list(range(10)), a.files + large.files)
    assert codes(mixed)["mixed_sizes"] == "short sides from 240 to 1080 pixels"


def test_no_row_is_dropped_for_the_sake_of_a_copy_that_has_gone(tree, tmp_path):
    rows = ["path,group,split", f"{tree}/train/run/1.mp4,,test", f"{tree}/test/run/copy.mp4,g,test"]
    rows += [f"{tree}/train/jump/0.mp4,g,train", f"{tree}/train/run/3.mp4,,train"]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    found = check(tmp_path / "mine.csv", workers=0, drop_duplicates="exact", drop_leaks=True)
    assert [(left.path.name, left.code) for left in found.left_out] == [("copy.mp4", "duplicate")]
    found = check(tmp_path / "mine.csv", workers=0, drop_leaks=True)
    assert [(left.path.name, left.code) for left in found.left_out] == [("0.mp4", "leak")]


def test_every_code_has_a_meaning_and_a_remedy():
    assert all(case.meaning.endswith((".", "?")) and case.remedy.endswith(".") for case in CASES.values())


# The command


def test_the_command_answers_0_where_a_manifest_was_written_and_1_where_nothing_is_usable(tree, tmp_path, capfd):
    out = tmp_path / "clips.csv"
    assert cli.main(["data", "check", str(tree), "-o", str(out), "--drop-duplicates", "near"]) == 0
    said = capfd.readouterr()
    assert "near_duplicate (1)" in said.out and str(out) in said.err
    assert len(read_manifest(out)) == 6 and (tmp_path / "clips-check.html").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_bytes(b"")
    assert cli.main(["data", "check", str(tmp_path / "bad"), "-o", str(tmp_path / "bad.csv")]) == 1
    assert "none of the 1 rows" in capfd.readouterr().err
    assert (tmp_path / "bad-check.html").exists() and not (tmp_path / "bad.csv").exists()


def test_the_command_says_what_a_recipe_will_cost(tree, tmp_path, capfd):
    mine = make_recipe(tmp_path / "mine.yaml", Path("???"))
    words = ["data", "check", str(tree), "-o", str(tmp_path / "clips.csv")]
    assert cli.main([*words, "--recipe", str(mine), "--train.length", "10 steps"]) == 0
    assert "what binds" in capfd.readouterr().out
    told = json.loads((tmp_path / "clips-check.json").read_text())
    assert told["cost"]["steps"] == 10 and told["cost"]["hours"] > 0
    assert cli.main([*words, "--train.length", "10 steps"]) == 2
    assert "name it with --recipe" in capfd.readouterr().err
