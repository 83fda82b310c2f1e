"""Files that were made to do harm: archives, playlists and pictures that claim or name what they should not."""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy
import pytest

from tubelet.data import audio, pictures, read, shards, storage
from tubelet.data.container import open_container
from tubelet.data.info import UnreadableVideo
from tubelet.data.inspect import videos_of
from tubelet.data.listing import Manifest, Video
from tubelet.data.pack import Packing, pack
from videos import make_video, painted


def picture(number: int = 5) -> bytes:
    """A JPEG that shows a number."""
    import av

    codec = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt = 64, 48, "yuvj420p"
    codec.time_base = 1  # type: ignore[assignment]
    frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def make_zip(path: Path, files: list[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(place: Path, words: str) -> None:
    for look in (read.probe, read.check, lambda where: read.read(where, numpy.array([0.0]))):
        with pytest.raises(UnreadableVideo, match=words):
            look(place)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_names_that_lead_out_of_an_archive_are_names_and_nothing_is_unpacked(tmp_path, make):
    """Nothing is ever written. Fails without `leads_out`: a scan would list the folder that lies at such a name."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "in").mkdir()
    folders = ("../../secret", "a/../../../secret", tmp_path / "secret", "ok")
    hostile = [f"{folder}/{number}.jpg" for folder in folders for number in "01"]
    for number in "01":
        (tmp_path / "secret" / f"{number}.jpg").write_bytes(picture())
    archive = make(tmp_path / "in" / f"a.{make.__name__[5:]}", [(name, picture()) for name in hostile])
    before = everything(tmp_path)
    assert pictures.folders(archive) == ["ok"]
    assert [video.path for video in videos_of(tmp_path / "in")[0]] == [archive / "ok"]
    assert read.probe(archive / "ok").frames == 2
    assert everything(tmp_path) == before
    packed = pack(Manifest([Video(archive / "ok")]), tmp_path / "packed", Packing("original"), 0)
    assert packed.videos == 1
    assert everything(tmp_path / "packed") == {
        "clips.csv", "pack.json", ".lock", "shard-000000.tar", "shard-000000.index",
    }  # fmt: skip


def test_keys_of_a_shard_that_lead_out_of_it_are_none(tmp_path):
    """Fails without `leads_out`: ``tar / key`` would be any file of this machine."""
    video = make_video(tmp_path / "secret.mp4", 12)
    tar = make_tar(tmp_path / "a.tar", [(str(video), b"x"), ("../secret.mp4", b"x"), ("k.mp4", video.read_bytes())])
    assert shards.keys(tar) == ["k"]
    about = json.dumps({"tubelet": 1, "samples": 1, "bytes": tar.stat().st_size})
    (tmp_path / "a.index").write_text(f"{about}\n{tmp_path}/secret 0 1024 10 0 0\n")
    tar.touch()
    shards._index.cache_clear()
    with pytest.raises(UnreadableVideo, match=r"a\.index is damaged"):
        shards.keys(tar)
    assert [video.path for video in videos_of(tar.parent)[0]] == [tar, video]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_passed_over(tmp_path, kind):
    """Fails where `files_of_tar` yields what is no file: a link would be followed by whoever unpacks it."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in (0, 1):
            link = tarfile.TarInfo(f"film/{number}.jpg")
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
        archive.addfile(real := tarfile.TarInfo("film/2.jpg"))
        assert real.size == 0
    assert pictures.series(tmp_path / "a.tar" / "film").names == ["2.jpg"]
    assert shards.keys(tmp_path / "a.tar") == ["film/2"]


def test_a_link_in_a_zip_is_the_text_that_it_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in (0, 1):
            link = zipfile.ZipInfo(f"{number}.jpg")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, "/etc/hostname")
    refused(tmp_path / "a.zip", r"0\.jpg: not a JPEG, PNG or WebP picture")


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_twice_the_last_counts_as_when_unpacked(tmp_path, make):
    files = [("0.jpg", picture(3)), ("1.jpg", picture(4)), ("0.jpg", picture(9))]
    archive = make(tmp_path / f"a.{make.__name__[5:]}", files)
    shown = read.read(archive, numpy.array([0.01, 0.05]))
    assert read.probe(archive).frames == 2
    other = make(tmp_path / f"b.{make.__name__[5:]}", [("0.jpg", picture(9)), ("1.jpg", picture(4))])
    assert (shown == read.read(other, numpy.array([0.01, 0.05]))).all()


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """Fails where `Zip.encoded` unpacks without a limit: all 64 MB are made of 64 kB (and of a bomb, terabytes)."""
    monkeypatch.setattr(pictures, "MOST_BYTES", 1 << 20)
    archive = make_zip(tmp_path / "a.zip", [(f"{n}.jpg", b"\xff\xd8\xff" + bytes(64 << 20)) for n in (0, 1)])
    assert archive.stat().st_size < 1 << 18
    tracemalloc.start()
    refused(archive, r"0\.jpg: it unpacks to more than 1 MiB, which no picture has: a zip bomb")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


def test_a_member_that_claims_terabytes_costs_nothing(tmp_path):
    """Fails without the limit in `storage.part`: room is made for what is claimed before it is read."""
    huge = 1 << 42
    for number, name in enumerate(("0.jpg", "k.mp4")):
        member = tarfile.TarInfo(name)
        member.size = huge
        tar = tmp_path / f"{number}.tar"
        tar.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        place = tar if number == 0 else tar / "k"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(place, "damaged|bytes")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    with pytest.raises(OSError, match="where 4,398,046,511,104 were expected"):
        storage.part(tar, 0, huge)
    for offset, count in ((-1, 4), (4, -1)):
        with pytest.raises(OSError, match="is damaged"):
            storage.part(tar, offset, count)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [1 << 50, -512, -(1 << 40)])
def test_a_header_of_a_tar_that_claims_too_much_or_less_than_nothing(tmp_path, kind, size):
    """Fails without `Headers` and the look at negative sizes: no memory is left, or the tar is read for ever."""
    member = tarfile.TarInfo("0.jpg")
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(2048))
    for place in (tmp_path / "a.tar", tmp_path / "a.tar" / "0"):
        refused(place, "not a tar|damaged|claims|bytes|no pictures|no sample")


def test_a_zip_whose_names_are_no_text_or_whose_list_is_vast(tmp_path):
    """Fails without ValueError in `DAMAGED`: such a file would end a scan of its folder."""
    whole = make_zip(tmp_path / "a.zip", [(f"film/{n}\u00e9.jpg", picture()) for n in (0, 1)]).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace("\u00e9".encode(), b"\xff\xff"))
    refused(tmp_path / "a.zip", "not a zip that can be read, or it is damaged")
    pytest.importorskip("fsspec")
    for number, size in enumerate((0xFFFF_FF00, 1 << 62, (1 << 64) - 1)):
        vast = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, size, 0)
        vast += struct.pack("<4sLQL", b"PK\6\7", 0, len(whole), 1)
        vast += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF, 0)
        (tmp_path / f"{number}.zip").write_bytes(whole + vast)
        refused(tmp_path / f"{number}.zip", "not a zip|Invalid|no pictures")
        remote = storage.place(f"memory://{tmp_path.name}/{number}.zip")
        storage.put(tmp_path / f"{number}.zip", remote)
        refused(remote, "not a zip|Invalid|no pictures")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_archives_with_bytes_changed_at_random_are_read_or_refused_and_nothing_else(tmp_path, make):
    """Fails where what damaged headers raise passes: it would end the scan of a folder, not only cost the file."""
    draw = random.Random(0)
    suffix = make.__name__[5:]
    whole = make(tmp_path / f"whole.{suffix}", [(f"film/{n}.jpg", picture(n)) for n in range(3)]).read_bytes()
    outcomes = set()
    for number in range(300):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            content[draw.randrange(len(content))] = draw.choice((0, 0xFF, 0x80, draw.randrange(256)))
        if draw.random() < 0.2:
            content = content[: draw.randrange(1, len(content))]
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(content)
        for place in (path, path / "film", path / "film/0"):
            try:
                outcomes.add(type(read.check(place)).__name__)
            except UnreadableVideo:
                outcomes.add("refused")
        path.unlink()
    assert outcomes == {"VideoInfo", "refused"}


def test_a_picture_of_too_many_pixels_is_not_decoded(monkeypatch):
    """Fails without ``max_pixels``: FFmpeg itself stops only where a picture takes two thousand million bytes."""
    monkeypatch.setattr(pictures, "MOST_PIXELS", 48 * 64)
    assert pictures.Decoder()(picture())[0].width == 64
    monkeypatch.setattr(pictures, "MOST_PIXELS", 48 * 64 - 1)
    with pytest.raises(ValueError, match="damaged or cut short"):
        pictures.Decoder()(picture())


def test_a_frozen_array_with_pickled_objects_is_never_unpickled(tmp_path):
    """An array of a shard is read as bytes; what a pickle in it says is not asked."""
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return Path.touch, (canary,)

    array = io.BytesIO()
    numpy.save(array, numpy.array([Evil()], dtype=object), allow_pickle=True)
    about = {"tubelet": 1, "format": "raw", "video": "npy", "frames": 1, "width": 4, "height": 4, "fps": 30,
             "duration_s": 0.03, "codec": "rawvideo", "crc32": [0], "files": {}}  # fmt: skip
    tar = make_tar(tmp_path / "a.tar", [("k.json", json.dumps(about).encode()), ("k.npy", array.getvalue())])
    with pytest.raises(UnreadableVideo):
        read.read(tar / "k", numpy.array([0.0]))
    assert not canary.exists()


def test_a_sample_that_claims_a_million_million_frames(tmp_path):
    """Fails without `MOST_FRAMES`: a time is written down for each."""
    make_video(tmp_path / "v.mp4", 12)
    about = {"tubelet": 1, "format": "video", "video": "mp4", "frames": 10**12, "width": 64, "height": 48, "fps": 30.0,
             "duration_s": 1e9, "codec": "h264", "files": {}}  # fmt: skip
    tar = make_tar(tmp_path / "a.tar", [("k.json", json.dumps(about).encode()),
                                        ("k.mp4", (tmp_path / "v.mp4").read_bytes())])  # fmt: skip
    with pytest.raises(UnreadableVideo, match="claims 1,000,000,000,000 frames"):
        read.read(tar / "k", numpy.array([0.0]))


@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4"])
@pytest.mark.parametrize("place", ["secret.mp4", "{folder}/secret.mp4", "file://{folder}/secret.mp4"])
def test_a_playlist_is_no_video(tmp_path, name, place):
    """Fails without ``format_whitelist``: FFmpeg opens what a playlist names, anywhere, and shows that."""
    make_video(tmp_path / "secret.mp4", 12, sound=True)
    place = place.format(folder=tmp_path)
    for text in (f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{place}\n#EXT-X-ENDLIST\n",
                 f"ffconcat version 1.0\nfile {place}\n"):  # fmt: skip
        path = tmp_path / name
        path.write_text(text)
        refused(path, "not a video: a playlist, name the files that it names")
        with pytest.raises(UnreadableVideo):
            audio.waveform(path, 0.0, 0.1, 16_000)
        tar = make_tar(tmp_path / "t.tar", [(f"k.{name[2:]}", text.encode()), ("k.mp4", text.encode())])
        with pytest.raises(UnreadableVideo):
            read.read(tar / "k", numpy.array([0.0]))
        with pytest.raises(UnreadableVideo):
            open_container(path, lambda path=path: path.open("rb"))


def test_what_ffmpeg_may_open_is_all_but_what_leads_elsewhere(tmp_path):
    for suffix, codec in (("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("mpg", "mpeg2video"),
                          ("ts", "libx264"), ("webm", "libvpx")):  # fmt: skip
        assert read.probe(make_video(tmp_path / f"a.{suffix}", 12, codec=codec)).width == 64
    (tmp_path / "a%d.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert read.probe(tmp_path / "a%d.mp4").width == 64, "a pattern of FFmpeg's is a name"
    start = time.perf_counter()
    read.probe(make_video(tmp_path / "b.mp4", 12))
    assert time.perf_counter() - start < 5
