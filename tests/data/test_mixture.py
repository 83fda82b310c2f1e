from __future__ import annotations

from pathlib import Path

import pytest

from tubelet.data.listing import Manifest, read_manifest, write_manifest
from tubelet.data.mixture import join
from tubelet.types import TubeletError


def joined(folder: Path, *texts: str, **options: bool) -> Manifest:
    manifests = []
    for name, text in zip("abc", texts, strict=False):
        (folder / f"{name}.csv").write_text(text)
        manifests.append(read_manifest(folder / f"{name}.csv"))
    return join(manifests, **options)


def test_join(tmp_path):
    mixture = joined(
        tmp_path,
        "path,label,split,mood\na.mp4,run,train,glad\nb.mp4,jump,test,\n",
        "path,label,fps,corpus\nframes/1,jump,12,ssv1\nframes/2,sit,12,\n",
    )
    assert [(v.path.name, v.label, v.split, v.corpus, v.fps) for v in mixture] == [
        ("a.mp4", "run", "train", "a", None), ("b.mp4", "jump", "test", "a", None),
        ("1", "jump", "train", "ssv1", 12.0), ("2", "sit", "train", "b", 12.0),
    ]  # fmt: skip
    assert mixture.classes == ["jump", "run", "sit"]
    write_manifest(tmp_path / "mix.csv", mixture)
    again = read_manifest(tmp_path / "mix.csv")
    assert (again.videos, again.classes) == (mixture.videos, mixture.classes)
    assert again[0].extra["mood"] == "glad"


def test_join_tells_groups_of_one_name_apart(tmp_path):
    mixture = joined(tmp_path, "path,group\na.mp4,1\nb.mp4,x\n", "path,group\nc.mp4,1\nd.mp4,\n")
    assert [video.group for video in mixture] == ["a/1", "x", "b/1", None]
    assert len(set(mixture.groups)) == 4


def test_packs_are_joined_by_their_folders(tmp_path):
    for name in ("ucf", "hmdb"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clips.csv").write_text("path\na.mp4\n")
    mixture = join([read_manifest(tmp_path / name / "clips.csv") for name in ("ucf", "hmdb")])
    assert [video.corpus for video in mixture] == ["ucf", "hmdb"]


def test_join_keeps_an_official_order_of_classes(tmp_path):
    ordered = "path,label,class_number\na.mp4,run,0\nb.mp4,jump,1\n"
    mixture = joined(tmp_path, "path,label\nc.mp4,sit\nd.mp4,jump\n", ordered)
    assert mixture.classes == ["run", "jump", "sit"]
    assert mixture.labels == [2, 1, 0, 1]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("path\na.mp4\n",), "two manifests or more"),
        (("path,corpus\na.mp4,b\n", "path\nb.mp4\n"), r"a\.csv and .*b\.csv both have a corpus 'b': rename"),
        (("a.mp4 0\n", "b.mp4 0\n"), "both have a class '0', and a bare number may not mean the same"),
        (
            ("path,label,class_number\na,run,0\nb,jump,1\n", "path,label,class_number\na,jump,0\nb,fly,1\n"),
            "class 0 is 'jump', and in .* it is 'run'",
        ),
    ],
)
def test_joins_that_cannot_be(tmp_path, texts, message):
    with pytest.raises(TubeletError, match=message) as caught:
        joined(tmp_path, *texts)
    assert "\n" not in str(caught.value)
    if "class" in message:
        assert joined(tmp_path, *texts, labels=False).classes == []
