from __future__ import annotations

from pathlib import Path

import pytest

from tubelet.data.listing import read_manifest, write_manifest
from tubelet.data.official import NO_SPLIT, Listed, Official, annotation_file, gather, lines, read_json
from tubelet.types import TubeletError


def disk(root: Path, *names: str) -> Path:
    """A folder of files with these names; what is in them does not matter here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def official(*names: str, **counts: int) -> Official:
    """A list in which each video's folder is its label and every second one is for testing."""
    videos = [
        Listed((name,), Path(name).parent.name or "x", "test" if i % 2 else "train") for i, name in enumerate(names)
    ]
    return Official(videos, sorted({v.label or "" for v in videos}), {"published": counts})


def found(official: Official, root: Path) -> list[str]:
    return [video.path.relative_to(root.resolve()).as_posix() for video in gather(official, root).manifest]


def test_equal_names_in_different_folders_stay_two_videos(tmp_path):
    root = disk(tmp_path / "videos", "jump/clip 1.mp4", "run/clip 1.mp4")
    manifest = gather(official("jump/clip 1.avi", "run/clip 1.avi"), root).manifest
    assert [v.path for v in manifest] == [root / "jump/clip 1.mp4", root / "run/clip 1.mp4"]
    assert len(set(manifest.groups)) == 2


def test_a_file_never_stands_in_for_its_namesake_in_another_folder(tmp_path):
    root = disk(tmp_path / "videos", "jump/1.mp4")
    result = gather(official("jump/1.mp4", "run/1.mp4"), root)
    assert [v.label for v in result.manifest] == ["jump"]
    assert result.missing == [(root / "run/1.mp4", "no such file, nor one of that name in another folder")]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (["jump/a.avi"], "jump/a.avi"),
        (["a.mp4"], "a.mp4"),
        (["train/Jumping/a.webm"], "train/Jumping/a.webm"),
        (["backup/a.avi", "jump/a.avi"], "jump/a.avi"),
        (["backup/jump/a.avi", "jump/a.avi"], "jump/a.avi"),
        (["jump/a.avi", "jump/a.mp4"], "jump/a.avi"),
        (["of two/jump/a.avi", "other/run/a.avi"], "of two/jump/a.avi"),
    ],
)
def test_which_file_is_taken(tmp_path, there, wanted):
    assert found(official("jump/a.avi"), disk(tmp_path / "my videos", *there)) == [wanted]


def test_names_with_dots_are_not_cut(tmp_path):
    root = disk(tmp_path, "jump/v1.mp4", "jump/v1.5 x.mp4", "jump/v1.6 x.mp4")
    assert found(official("jump/v1.5 x.avi", "jump/v1.6 x.avi"), root) == ["jump/v1.5 x.mp4", "jump/v1.6 x.mp4"]


def test_two_files_that_fit_equally_are_not_guessed_at(tmp_path):
    root = disk(tmp_path, "jump/b.avi", "old/jump/a.avi", "new/jump/a.avi")
    ((path, reason),) = gather(official("jump/a.avi", "jump/b.avi"), root).missing
    assert path == root / "jump/a.avi"
    assert reason.startswith("two files could be it: ")


def test_a_folder_of_pictures_is_taken_where_there_is_no_file(tmp_path):
    root = disk(tmp_path / "videos", "a/12/00001.jpg", "13.mp4", "13/00001.jpg", "a/99/1.PNG", "cover.jpg")
    listed = official("12.webm", "13.webm", "14.webm")._replace(fps=12)
    result = gather(listed, root)
    assert [(v.path, v.fps) for v in result.manifest] == [(root / "a/12", 12), (root / "13.mp4", None)]
    assert [path.name for path in result.unlisted] == ["99"]
    assert ("folders of pictures", "1, taken to be 12 a second") in result.summary()
    assert gather(listed, root, fps=25).manifest[0].fps == 25
    assert listed.only(["train"]).fps == 12


def test_trap_10_counts_other_than_the_published_are_said_and_never_refused(tmp_path):
    root = disk(tmp_path / "videos", "jump/a.avi", "jump/c.avi", "notes.txt", "jump/extra.avi")
    result = gather(official("jump/a.avi", "run/b.avi", "jump/c.avi", train=9_000, test=1), root)
    assert [v.path.name for v in result.manifest] == ["a.avi", "c.avi"]
    assert result.manifest.classes == ["jump", "run"]
    assert [path.name for path in result.unlisted] == ["extra.avi"]
    columns, rows = result.by_split()
    assert columns == ["split", "listed", "there", "published"]
    assert rows == [["train", "2", "2", "9,000"], ["test", "1", "0", "1"], ["all", "3", "2", "9,001"]]
    assert result.by_class() == (["class", "name", "train"], [["0", "jump", "2"], ["1", "run", "0"]])
    summary = dict(result.summary())
    assert summary["missing on the disk"] == summary["on the disk, not in the list"] == "1"
    kept = gather(result.official, root, keep_missing=True).manifest
    assert [v.path.name for v in kept] == ["a.avi", "b.avi", "c.avi"]


def test_videos_without_split_and_divided_groups_are_told(tmp_path):
    rows = [Listed(("a.avi",), "x", "train", "g"), Listed(("b.avi",), "x", "test", "g"), Listed(("c.avi",), "x")]
    result = gather(Official(rows, ["x"], {}), disk(tmp_path, "a.avi", "b.avi", "c.avi"))
    assert result.by_split()[1][-2] == [NO_SPLIT, "1", "1"]
    assert dict(result.summary())["groups"] == "1, 1 of them in several splits"
    assert "listed more than once" not in dict(result.summary())
    assert dict(gather(Official([*rows, rows[0]], ["x"], {}), tmp_path).summary())["listed more than once"] == "1"


def test_checksums_tell_lists_apart_and_not_disks(tmp_path):
    listed = official("jump/a.avi", "run/b.avi")
    here = gather(listed, disk(tmp_path / "here", "jump/a.avi", "run/b.avi"))
    elsewhere = gather(listed, disk(tmp_path / "elsewhere", "b.mp4", "other/a.mp4"))
    assert here.official.checksum() == here.present.checksum() == elsewhere.present.checksum()
    part = gather(listed, disk(tmp_path / "part", "jump/a.avi"))
    assert part.official.checksum() == listed.checksum() != part.present.checksum()
    relabelled = listed._replace(videos=[*listed.videos[:1], Listed(("run/b.avi",), "jump", "test")])
    assert relabelled.checksum() != listed.checksum()


def test_only_some_splits(tmp_path):
    listed = official("jump/a.avi", "run/b.avi", train=5, test=6)
    only = listed.only(["test"])
    assert ([v.label for v in only.videos], only.classes, only.published) == (
        ["run"], ["jump", "run"], {"published": {"test": 6}},
    )  # fmt: skip
    with pytest.raises(TubeletError, match="no split 'val'; there are: test, train"):
        listed.only(["val"])


def test_classes_keep_their_official_numbers_through_a_manifest(tmp_path):
    root = disk(tmp_path, "zebra/a.avi", "ant/b.avi")
    listed = official("zebra/a.avi", "ant/b.avi")._replace(classes=["zebra", "moth", "ant"])
    manifest = gather(listed, root).manifest
    assert manifest.labels == [0, 2]
    for name in ("clips.csv", "clips.parquet"):
        write_manifest(tmp_path / name, manifest)
        back = read_manifest(tmp_path / name)
        assert back.labels == [0, 2]
        assert back.classes == ["zebra", "(class 1: no video)", "ant"]
        write_manifest(tmp_path / name, back)
        assert read_manifest(tmp_path / name).classes == back.classes


def test_mistakes_get_one_clear_line(tmp_path):
    root = disk(tmp_path / "videos", "other.avi")
    with pytest.raises(TubeletError, match="none of the 2 listed videos is below") as caught:
        gather(official("jump/a.avi", "run/b.avi"), root)
    assert str(root / "jump/a.avi") in str(caught.value)
    assert "--videos is the folder that holds them" in str(caught.value)
    with pytest.raises(TubeletError, match="no such folder of videos"):
        gather(official("jump/a.avi"), tmp_path / "gone")
    with pytest.raises(TubeletError, match="no such folder of annotations"):
        annotation_file(tmp_path / "gone", ["a.txt"], "lists")
    with pytest.raises(TubeletError, match=r"has no a\.txt or b\.txt: --annotations is the folder of lists"):
        annotation_file(tmp_path, ["a.txt", "b.txt"], "lists")
    disk(tmp_path, "one/a.txt", "two/a.txt")
    with pytest.raises(TubeletError, match="which one is meant"):
        annotation_file(tmp_path, ["a.txt"], "lists")
    assert annotation_file(tmp_path / "one", ["a.txt"], "lists") == tmp_path / "one/a.txt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"id": 1},', "line 1: damaged JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{}", "must hold a list that is not empty"),
        (b"[]", "must hold a list that is not empty"),
    ],
)
def test_damaged_json(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(TubeletError, match=message):
        read_json(tmp_path / "a.json", list)


def test_lines_are_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \n")
    assert [line for _, line in lines(tmp_path / "a.txt")] == ["one", "two"]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TubeletError, match="not UTF-8"):
        lines(tmp_path / "a.txt")
