"""Shards: samples found by their keys, those of other tools too; what is missing or damaged is said."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy
import pytest

from tubelet.data import read, shards, storage
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.data.pack import Packing, pack
from tubelet.data.read import UnreadableVideo
from tubelet.data.storage import Url
from videos import make_sound, make_video, numbers


@pytest.fixture
def packed(tmp_path) -> Path:
    """Three samples of twelve JPEGs, in one shard."""
    for name in "abc":
        make_video(tmp_path / f"{name}.mp4", 12)
    write_manifest(tmp_path / "clips.csv", Manifest([Video(tmp_path / f"{name}.mp4") for name in "abc"]))
    pack(read_manifest(tmp_path / "clips.csv"), tmp_path / "out", Packing(), 0)
    return tmp_path / "out" / "shard-000000.tar"


def make_tar(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def middles(count: int, fps: float = 30.0) -> numpy.ndarray:
    return (numpy.arange(count) + 0.5) / fps


def test_a_place_goes_on_inside_a_tar():
    assert shards.inside(Path("a/b.tar/00000412")) == (Path("a/b.tar"), "00000412")
    assert shards.inside(Path("a/b.tar/c/d")) == (Path("a/b.tar"), "c/d")
    assert shards.inside(Url("s3://bucket/b.tar/7")) == (Url("s3://bucket/b.tar"), "7")
    assert shards.inside(Path("a/b.tar")) is None
    assert shards.inside(Path("a/b.mp4")) is None


def test_a_folder_that_is_called_as_a_tar_is_a_folder(tmp_path):
    video = make_video(tmp_path / "part.tar" / "a.mp4", 12)
    assert shards.inside(video) is None
    assert numbers(read.read(video, middles(12))) == list(range(12))


def test_thumbnails_beside_a_video_are_not_the_video(packed, tmp_path):
    thumbnails = shards.sample(packed / "00000001").encoded([3, 4])
    files = {"k.mp4": make_video(tmp_path / "v.mp4", 20).read_bytes()}
    tar = make_tar(tmp_path / "t.tar", files | {f"k.thumb{n}.jpg": content for n, content in enumerate(thumbnails)})
    assert numbers(read.read(tar / "k", middles(20))) == list(range(20))


def test_samples_of_other_tools_are_read(tmp_path):
    """video2dataset's tars: a video with its caption and metadata; a class; names in folders, long and with dots."""
    video = make_video(tmp_path / "a.mp4", 20).read_bytes()
    long = "folder/" + "x" * 120
    tar = make_tar(
        tmp_path / "theirs.tar",
        {
            "00002.mp4": video, "00002.txt": b"a caption", "00002.json": b'{"duration": 3}',
            "00001.cls": b"4", "00001.webm": video, f"{long}.clip.mp4": video, f"{long}.json": b"[1]",
        },
    )  # fmt: skip
    assert shards.keys(tar) == ["00001", "00002", long]
    for key in shards.keys(tar):
        assert numbers(read.read(tar / key, middles(20))) == list(range(20))
        assert read.probe(tar / key).codec == "h264"
        assert read.check(tar / key).frames == 20
    assert shards.sample(tar / "00002").read("txt") == b"a caption"
    assert shards.sample(tar / "00002").about == {"duration": 3}
    assert shards.sample(tar / long).about == {}
    assert shards.sample(tar / long).opened("clip.mp4").read() == video


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_pictures_of_other_tools_are_in_natural_order_at_a_rate_that_is_told(packed, tmp_path, form):
    found = shards.sample(packed / "00000001")
    pictures = found.encoded(range(12))
    files = {f"k.{number}.jpg": pictures[number] for number in (0, 10, 11, *range(1, 10))}
    tar = make_tar(tmp_path / "theirs.tar", files, form)
    assert read.probe(tar / "k", 10).duration_s == pytest.approx(1.2)
    assert numbers(read.read(tar / "k", middles(12, 10), fps=10)) == list(range(12))
    some = [frame.transpose(2, 0, 1) for _, frame in read.frames(tar / "k", 0.35, 0.62, fps=10)]
    assert numbers(some) == [3, 4, 5, 6]


def test_a_lost_index_is_made_up_for(packed):
    before = read.read(packed / "00000002", middles(12))
    Path(shards.index_place(packed)).unlink()
    shards._index.cache_clear()
    shards._sample.cache_clear()
    assert shards.keys(packed) == ["00000000", "00000001", "00000002"]
    assert (read.read(packed / "00000002", middles(12)) == before).all()


def test_the_same_frame_many_times_and_in_any_order(packed):
    times_s = middles(12)[[5, 5, 0, 11, 3, 5]]
    assert numbers(read.read(packed / "00000000", times_s)) == [5, 5, 0, 11, 3, 5]
    assert numbers(read.read(packed / "00000000", numpy.array([-1.0, 99.0]))) == [0, 11]
    assert read.read(packed / "00000000", times_s, 24).shape == (6, 3, 24, 32)


def test_a_clip_costs_two_requests_of_object_storage(packed, tmp_path, monkeypatch):
    pytest.importorskip("fsspec")
    folder = storage.place(f"memory://{tmp_path.name}")
    for file in packed.parent.iterdir():
        copy = tmp_path / "copy"
        copy.write_bytes(file.read_bytes())
        storage.put(copy, folder / file.name)
    read.probe(folder / packed.name / "00000000")
    asked = []
    part = storage.part
    monkeypatch.setattr(storage, "part", lambda *where: asked.append(where) or part(*where))
    clip = read.read(folder / packed.name / "00000001", middles(12)[::3])
    assert numbers(clip) == [0, 3, 6, 9]
    assert len(asked) == 2, "its JSON, and the pictures together"


def test_what_is_not_there_is_said(packed, tmp_path):
    for place, words in (
        (packed / "00000007", "shard-000000.tar has no sample '00000007'"),
        (tmp_path / "none.tar" / "1", r"its shard none.tar cannot be used: (no such file|No such file)"),
        (make_tar(tmp_path / "t.tar", {"k.txt": b"words"}) / "k", "no video in the sample, only txt"),
        (make_tar(tmp_path / "u.tar", {"k.mp4": make_sound(tmp_path / "s.mp4").read_bytes()}) / "k", "no video stream"),
    ):
        for look in (read.probe, read.check, lambda where: read.read(where, middles(2))):
            with pytest.raises(UnreadableVideo, match=words) as caught:
                look(place)
            assert caught.value.path == place
    (tmp_path / "no.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(UnreadableVideo, match="not a tar, or damaged"):
        read.probe(tmp_path / "no.tar" / "1")
    with pytest.raises(UnreadableVideo, match=r"the sample has no \.npy, only json"):
        shards.sample(packed / "00000000").read("npy")


def test_a_damaged_picture_is_not_shown(packed):
    found = shards.sample(packed / "00000001")
    assert found.pictures is not None
    content = bytearray(packed.read_bytes())
    content[int(found.pictures.offsets[4] + found.pictures.sizes[4] // 2)] ^= 4
    packed.write_bytes(content)
    assert numbers(read.read(packed / "00000001", middles(12)[:4])) == [0, 1, 2, 3]
    with pytest.raises(UnreadableVideo, match="picture 4 is damaged: its checksum"):
        read.read(packed / "00000001", middles(12))
    assert numbers(read.read(packed / "00000002", middles(12))) == list(range(12))


def test_a_damaged_frame_of_an_array_is_not_shown(packed, tmp_path):
    pack(read_manifest(tmp_path / "clips.csv"), tmp_path / "raw", Packing(format="raw"), 0)
    tar = tmp_path / "raw" / packed.name
    offset, count = shards.sample(tar / "00000001").members["npy"]
    content = bytearray(tar.read_bytes())
    content[offset + count - 48 * 64 * 3 * 2] ^= 4  # the first value of the last frame but one
    tar.write_bytes(content)
    assert numbers(read.read(tar / "00000001", middles(12)[[11, 9, 11]])) == [11, 9, 11]
    with pytest.raises(UnreadableVideo, match="frame 10 is damaged: its checksum"):
        read.read(tar / "00000001", middles(12))


def test_arrays_on_object_storage_are_read_in_any_order(packed, tmp_path):
    pytest.importorskip("fsspec")
    out = storage.place(f"memory://{tmp_path.name}/raw")
    pack(read_manifest(tmp_path / "clips.csv"), out, Packing(format="raw"), 0)
    assert numbers(read.read(out / packed.name / "00000001", middles(12)[[5, 0, 5, 11, 3]])) == [5, 0, 5, 11, 3]


def test_a_shard_cut_short_and_a_torn_index_are_said(packed):
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableVideo, match=r"it is not whole: .* bytes, and .* by its index"):
        read.probe(packed / "00000000")
    packed.write_bytes(whole)
    index = Path(shards.index_place(packed))
    lines = index.read_text().splitlines()
    short = [lines[0], *(line[:-9] for line in lines[1:])]
    for text in ("\n".join(lines[:-1]), "\n".join(short), json.dumps({"tubelet": 99, "samples": 0})):
        index.write_text(text)
        shards._index.cache_clear()
        shards._sample.cache_clear()
        with pytest.raises(UnreadableVideo, match=r"shard-000000.index is damaged or of another version"):
            read.probe(packed / "00000000")


@pytest.mark.parametrize("text", [b"", b"{}\n", b"k.mp4 0 1000\n", b"\xff\xfe"])
def test_an_index_of_another_tool_is_none(packed, text):
    Path(shards.index_place(packed)).write_bytes(text)
    shards._index.cache_clear()
    shards._sample.cache_clear()
    assert numbers(read.read(packed / "00000002", middles(12))) == list(range(12))


def test_json_that_is_not_what_was_packed_is_refused(packed):
    """Also where it could be: another rate shows other frames."""
    content = packed.read_bytes()
    for before, after in ((b'"files":{', b'"filez":{'), (b'"fps":30.0', b'"fps":10.0')):
        assert before in content
        packed.write_bytes(content.replace(before, after, 1))
        with pytest.raises(UnreadableVideo, match="its JSON is not what was packed"):
            read.probe(packed / "00000000")


def test_an_index_of_many_samples_is_small_and_finds_each():
    count = 20_000
    lines = [f"{k:08d} {k * 1000} 900 100 {k:08x} {k:08x}" for k in range(count)]
    index = shards.parse_index("\n".join([json.dumps({"tubelet": 1, "samples": count}), *lines]))
    assert [index.row(f"{k:08d}") for k in (0, 777, count - 1)] == [0, 777, count - 1]
    assert index.row(f"{count:08d}") is None
    assert index.row("0") is None
    arrays = (index.keys, index.offsets, index.sizes, index.json_sizes, index.json_checksums, index.checksums)
    assert sum(array.nbytes for array in arrays if array is not None) <= 40 * count
