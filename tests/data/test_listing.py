from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data.division import few_labels
from tubelet.data.listing import Manifest, Video, natural_sort, read_manifest, write_manifest
from tubelet.data.storage import Url
from tubelet.types import TubeletError


def written(folder: Path, text: str | bytes, name: str = "clips.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_csv_with_every_column(tmp_path):
    text = "path,start_s,end_s,label,group,split,mood\na.mp4,1.5,3,jump,g1,train,glad\nsub/b c.mp4,,,,,val,\n"
    manifest = read_manifest(written(tmp_path, text))
    assert manifest[0] == Video(tmp_path / "a.mp4", 1.5, 3.0, "jump", "g1", "train")
    assert manifest[0].extra == {"mood": "glad"}
    assert manifest[1] == Video(tmp_path / "sub/b c.mp4", split="val")
    assert (manifest.classes, manifest.labels) == (["jump"], [0, -1])
    assert manifest.groups == ["g1", str(tmp_path / "sub/b c.mp4")]
    assert manifest.splits == ["train", "val"]


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.mp4,3\n",
        "\ufeffpath,label\r\na.mp4,3\r\n",
        "\n\npath , label\n a.mp4 ,3\n\n",
        "path;label\na.mp4;3\n",
        "path\tlabel\na.mp4\t3\n",
        '"path","label"\n"a.mp4","3"\n',
        "label,path\n3,a.mp4",
        "a.mp4 3\n",
        "\ufeffa.mp4 3\r\n\r\n",
        "a.mp4\t3",
    ],
)
def test_many_ways_to_say_the_same(tmp_path, text):
    (video,) = read_manifest(written(tmp_path, text)).videos
    assert (video.path, video.label) == (tmp_path / "a.mp4", "3")


def test_trap_9_list_with_spaces_unicode_and_absolute_paths(tmp_path):
    text = "my holiday/día 1.mp4 12\n/data/b.MP4 0\nv1.5 x.mp4 -1\nno_ending 4\nonly a path.mkv\nC:\\v\\a.mp4 7\n"
    manifest = read_manifest(written(tmp_path, text, "train.txt"))
    assert [str(v.path.relative_to(tmp_path)) for v in manifest if v.path.is_relative_to(tmp_path)] == [
        "my holiday/día 1.mp4", "v1.5 x.mp4", "no_ending", "only a path.mkv", "C:\\v\\a.mp4",
    ]  # fmt: skip
    assert manifest[1].path == Path("/data/b.MP4")
    assert [v.label for v in manifest] == ["12", "0", "-1", "4", None, "7"]


def test_quoted_comma_and_path_above_the_manifest(tmp_path):
    manifest = read_manifest(written(tmp_path, 'path,label\n"a, b.mp4","x, y"\n../c.mp4,z\n'))
    assert manifest[0].path.name == "a, b.mp4"
    assert manifest[0].label == "x, y"
    assert manifest[1].path == tmp_path.parent / "c.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("path,label\n", "lists no videos"),
        ("paths,label\na.mp4,1\n", "no column `path`; did you mean 'paths'?"),
        ("video,label\na.mp4,1\n", "no column `path`; there are: label, video"),
        ("path,start_s\na.mp4,soon\n", "line 2, column start_s: 'soon' is not a number of seconds"),
        ("path,end_s\na.mp4,nan\n", "line 2, column end_s"),
        ("path,start_s\na.mp4,1\nb.mp4,-2\n", "line 3, column start_s"),
        ("path,start_s,end_s\na.mp4,4,4\n", "line 2: end_s (4) is not after start_s (4)"),
        ("path,label\na, b.mp4,1\n", "line 2: 3 cells under 2 columns"),
        ("path,label\n,1\n", "line 2: the path is empty"),
        ("path,label,label\na.mp4,1,2\n", "'label' twice"),
        ("a.mp4 1\nwhat is this line\n", "line 2: expected `path label`"),
        (b"\xff\xfe\x00\x81binary", "not UTF-8"),
    ],
)
def test_mistakes_get_one_clear_line(tmp_path, text, message):
    with pytest.raises(TubeletError) as caught:
        read_manifest(written(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(TubeletError, match="no such manifest"):
        read_manifest(tmp_path / "gone.csv")
    with pytest.raises(TubeletError, match="tubelet data scan"):
        read_manifest(tmp_path)


def test_split(tmp_path):
    path = written(tmp_path, "path,label,split\na.mp4,x,train\nb.mp4,y,test\nc.mp4,x,train\n")
    train, test = read_manifest(path, "train"), read_manifest(path, "test")
    assert (len(train), len(test)) == (2, 1)
    assert train.classes == test.classes == ["x", "y"]
    assert test.labels == [1]
    with pytest.raises(TubeletError, match="no split 'trian'; did you mean 'train'"):
        read_manifest(path, "trian")
    with pytest.raises(TubeletError, match="absent or empty"):
        read_manifest(written(tmp_path, "path\na.mp4\n", "b.csv"), "train")


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_written_is_read_back(tmp_path, name):
    videos = [
        Video(tmp_path / "in/a, 1.mp4", 0.1, 2.75, "10", "g", "train", {"note": "é"}),
        Video(tmp_path / "b.mp4", label="9", split="val"),
        Video(Path("/elsewhere/c.mp4"), extra={"other": "1"}),
    ]
    path = tmp_path / name
    write_manifest(path, Manifest(videos))
    back = read_manifest(path)
    assert back.videos == videos
    assert back.classes == ["9", "10"]
    assert back[0].extra["note"] == "é"
    assert back.fingerprint == Manifest(videos, source=path).fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    if name.endswith("csv"):
        assert '"in/a, 1.mp4",0.1' in path.read_text()


def test_folder_and_manifest_move_together(tmp_path):
    (tmp_path / "one").mkdir()
    write_manifest(tmp_path / "one/m.csv", Manifest([Video(tmp_path / "one/a.mp4", label="x")]))
    before = read_manifest(tmp_path / "one/m.csv")
    (tmp_path / "one").rename(tmp_path / "two")
    after = read_manifest(tmp_path / "two/m.csv")
    assert after[0].path == tmp_path / "two/a.mp4"
    assert after.fingerprint == before.fingerprint
    assert after.fingerprint != Manifest([Video(tmp_path / "two/b.mp4", label="x")], source=after.source).fingerprint


def test_empty_columns_are_left_out(tmp_path):
    write_manifest(tmp_path / "m.csv", Manifest([Video(tmp_path / "a.mp4")]))
    assert (tmp_path / "m.csv").read_text() == "path\na.mp4\n"


def test_parquet_mistakes(tmp_path, monkeypatch):
    with pytest.raises(TubeletError, match="not a Parquet file"):
        read_manifest(written(tmp_path, "path\n", "a.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TubeletError, match=r"tubelet\[table\]"):
        read_manifest(tmp_path / "a.parquet")


def test_parquet_numbers_as_labels(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"path": ["a.mp4", "b.mp4"], "label": [3.0, None], "start_s": [None, 1.5]})
    parquet.write_table(table, tmp_path / "m.parquet")
    manifest = read_manifest(tmp_path / "m.parquet")
    assert [v.label for v in manifest] == ["3", None]
    assert [v.start_s for v in manifest] == [None, 1.5]


def test_natural_sort():
    assert natural_sort(["10", "2", "b10", "B9", "a"]) == ["2", "10", "a", "B9", "b10"]


@given(st.lists(st.text(), unique=True))
def test_natural_sort_takes_any_words(words):
    assert sorted(natural_sort(words)) == sorted(words)
    assert natural_sort(words) == natural_sort(reversed(words))


def test_no_torch_at_import():
    code = "import sys, tubelet.data.listing; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_videomae_v2_lists(tmp_path):
    text = "k400/---QUuC4vJs.mp4 0 -1\nmy clips/a b.3gp 0 -1\n"
    assert read_manifest(written(tmp_path, text, "train.csv")).videos == [
        Video(tmp_path / "k400/---QUuC4vJs.mp4"),
        Video(tmp_path / "my clips/a b.3gp"),
    ]


def test_v2_lists_of_folders_of_pictures_for_fine_tuning(tmp_path):
    text = "x/74225 62 140\nmy frames/1 2 40 3\nx/74226 1 140\nx/a.mp4 3\n"
    assert read_manifest(written(tmp_path, text, "train.csv")).videos == [
        Video(tmp_path / "x/74225", label="140"),
        Video(tmp_path / "my frames/1 2", label="3"),
        Video(tmp_path / "x/74226", label="140"),
        Video(tmp_path / "x/a.mp4", label="3"),
    ]


@pytest.mark.parametrize("sign", ["a.mp4 0 -1\n", "", "AVA/clip 1 300\n"])
def test_v2_lists_of_folders_of_pictures_for_pre_training(tmp_path, sign):
    text = f"{sign}frames/182040 1 58\n" + ("AVA/clip 9601 300\n" if sign else "")
    manifest = read_manifest(written(tmp_path, text, "train.csv"))
    videos = {video.path.name: video for video in manifest}
    assert videos["182040"] == Video(tmp_path / "frames/182040")
    assert not manifest.classes
    if sign:
        assert videos["clip"] == Video(tmp_path / "AVA/clip", 320.0, 330.0, fps=30.0)


def test_columns_fps_and_corpus(tmp_path):
    manifest = read_manifest(written(tmp_path, "path,fps,corpus,mood\nframes/1,12.5,ssv1,glad\nb.mp4,,,\n"))
    assert [(v.fps, v.corpus) for v in manifest] == [(12.5, "ssv1"), (None, None)]
    assert manifest[0].extra == {"mood": "glad"}
    write_manifest(tmp_path / "again.csv", manifest)
    again = read_manifest(tmp_path / "again.csv")
    assert (again.videos, again.fingerprint) == (manifest.videos, manifest.fingerprint)
    plain = [replace(video, fps=None, corpus=None) for video in manifest]
    assert Manifest(plain, source=manifest.source).fingerprint != manifest.fingerprint


def test_a_fingerprint_is_what_it_was_before_there_were_fps_and_corpus(tmp_path):
    manifest = Manifest([Video(Path("/v/a.mp4"), 0.5, 2.0, "x", "g", "train"), Video(Path("/v/b.mp4"))])
    digest = hashlib.blake2b(b"['x']", digest_size=8)
    digest.update(repr(("/v/a.mp4", 0.5, 2.0, "x", "g", "train")).encode())
    digest.update(repr(("/v/b.mp4", None, None, None, None, None)).encode())
    assert manifest.fingerprint == digest.hexdigest()


@pytest.mark.parametrize("fps", ["0", "-1", "fast", "nan", "inf"])
def test_fps_must_be_a_number_above_0(tmp_path, fps):
    with pytest.raises(TubeletError, match=f"line 2, column fps: '{fps}' is not a number of pictures a second above 0"):
        read_manifest(written(tmp_path, f"path,fps\na,{fps}\n"))


@pytest.mark.parametrize("name", ["clips.csv", "clips.parquet"])
def test_a_manifest_at_a_url(tmp_path, name):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    videos = [Video(Url("s3://other/b c.mp4"), label="x"), Video(Url("memory://lists/a.mp4")), Video(Path("/v/c.mp4"))]
    write_manifest(tmp_path / name, Manifest(videos))
    text = (tmp_path / name).read_bytes()
    store.pipe(f"/lists/one/{name}", text.replace(b"memory://lists/a.mp4", b"../a.mp4") if name[-1] == "v" else text)
    manifest = read_manifest(f"memory://lists/one/{name}")
    assert manifest.videos == videos
    assert manifest.source == f"memory://lists/one/{name}"
    store.pipe("/lists/two.csv", b"path\nin/d.mp4\n")
    before = read_manifest("memory://lists/two.csv")
    assert before[0].path == Url("memory://lists/in/d.mp4")
    store.pipe("/moved/two.csv", b"path\nin/d.mp4\n")
    assert read_manifest("memory://moved/two.csv").fingerprint == before.fingerprint
    for wrong, message in [
        ("memory://lists/gone.csv", "no such manifest"),
        ("s3://bucket/a.csv", "needs a package for its scheme: Install s3fs"),
        ("quux://a.csv", "Protocol not known: quux; a URL starts with"),
    ]:
        with pytest.raises(TubeletError, match=message) as caught:
            read_manifest(wrong)
        assert "\n" not in str(caught.value)


def test_paths_of_windows(tmp_path):
    """They are found where they lie here, and otherwise kept as they are, for the error to show."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.MP4").write_bytes(b"")
    (tmp_path / "odd\\name.mp4").write_bytes(b"")
    manifest = read_manifest(written(tmp_path, "path,label\r\nvideos\\a.MP4,x\r\nodd\\name.mp4,x\r\nno\\b.mp4,x\r\n"))
    assert [video.path for video in manifest] == [
        tmp_path / "videos/a.MP4", tmp_path / "odd\\name.mp4", tmp_path / "no\\b.mp4",
    ]  # fmt: skip
    (video,) = read_manifest(written(tmp_path, "videos\\a.MP4 3\r\n", "list.txt"))
    assert video == Video(tmp_path / "videos/a.MP4", label="3")


def test_class_numbers_are_kept_where_they_are_not_how_labels_sort(tmp_path):
    text = "path,label,class_number\na.mp4,zebra,0\nb.mp4,ant,3\nc.mp4,,\n"
    manifest = read_manifest(written(tmp_path, text))
    assert manifest.classes == ["zebra", "(class 1: no video)", "(class 2: no video)", "ant"]
    assert manifest.labels == [0, 3, -1]
    write_manifest(tmp_path / "again.csv", manifest)
    again = read_manifest(tmp_path / "again.csv")
    assert (again.classes, again.fingerprint) == (manifest.classes, manifest.fingerprint)
    assert few_labels(manifest, 1, seed=0).labels == [0, 3]


def test_sorted_classes_need_no_numbers(tmp_path):
    videos = [Video(tmp_path / "a.mp4", label="b"), Video(tmp_path / "b.mp4", label="a")]
    write_manifest(tmp_path / "m.csv", Manifest(videos))
    assert (tmp_path / "m.csv").read_text() == "path,label\na.mp4,b\nb.mp4,a\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.mp4,x,0\nb.mp4,y,\n", "'' of b.mp4 is not the number of a class"),
        ("a.mp4,x,1.5\n", "'1.5' of a.mp4 is not the number of a class"),
        ("a.mp4,x,1000000000\n", "'1000000000' of a.mp4 is not the number of a class"),
        ("a.mp4,x,0\nb.mp4,x,1\n", "'x' is both 0 and 1"),
        ("a.mp4,x,0\nb.mp4,y,0\n", "0 is both 'x' and 'y'"),
    ],
)
def test_class_numbers_that_contradict(tmp_path, rows, message):
    with pytest.raises(TubeletError, match=f"column class_number: {message}"):
        read_manifest(written(tmp_path, f"path,label,class_number\n{rows}"))
