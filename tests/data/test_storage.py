from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy
import pytest

fsspec = pytest.importorskip("fsspec")

from tubelet.data import pictures, read, storage  # noqa: E402 - after the check that fsspec is there
from tubelet.data.read import UnreadableVideo  # noqa: E402
from tubelet.data.storage import Url, Window, place  # noqa: E402
from tubelet.types import TubeletError  # noqa: E402
from videos import make_video, numbers  # noqa: E402


class Counted(fsspec.AbstractFileSystem):
    """Files in memory whose requests are counted; it can fail, or answer too little."""

    protocol = "counted"
    cachable = False
    files: dict[str, bytes] = {}  # noqa: RUF012 - shared on purpose
    asked: list[int] = []  # noqa: RUF012
    fails: Exception | None = None
    drops = 0

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path in self.files:
            return {"name": path, "size": len(self.files[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        self.info(path)
        return [name for name in self.files if name.startswith(f"{path}/")]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if self.fails is not None:
            raise self.fails
        self.info(path)
        found = self.files[path][start:end]
        self.asked.append(len(found))
        return found[: len(found) - self.drops]


fsspec.register_implementation("counted", Counted)


@pytest.fixture
def store():
    Counted.files, Counted.asked, Counted.fails, Counted.drops = {}, [], None, 0
    storage._remote_size.cache_clear()
    return Counted


def middles(frames: list[int]) -> numpy.ndarray:
    return (numpy.array(frames) + 0.5) / 30


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("s3://bucket/a b.mp4", Url), ("memory://a.mp4", Url), ("/v/a.mp4", Path), ("a.mp4", Path),
        ("C:\\v\\a.mp4", Path), ("file:///v/a.mp4", Path), (Path("a.mp4"), Path), (Url("gs://b/c"), Url),
    ],
)  # fmt: skip
def test_place(text, kind):
    assert isinstance(place(text), kind)
    assert str(place("file:///v/a.mp4")) == "/v/a.mp4"


def test_a_url_has_what_callers_use_of_a_path():
    url = Url("s3://bucket/in/a b.MP4")
    assert (url.name, url.stem, url.suffix, url.parent) == ("a b.MP4", "a b", ".MP4", "s3://bucket/in")
    assert url.parent / "../c.mp4" == "s3://bucket/c.mp4"
    assert isinstance(url.parent / "c", Url)
    assert pickle.loads(pickle.dumps(url)) == url


def test_every_way_of_reading_gives_the_same_bytes(tmp_path, store):
    data = numpy.random.default_rng(0).bytes(100_000)
    (tmp_path / "f").write_bytes(data)
    store.files["dir/f"] = data
    for where in (tmp_path / "f", Url("counted://dir/f")):
        assert storage.size(where) == len(data)
        assert storage.content(where) == data
        assert storage.part(where, 777, 5000) == data[777:5777]
        with storage.opened(where) as file:
            file.seek(-100, io.SEEK_END)
            assert (file.read(), file.tell()) == (data[-100:], len(data))
            file.seek(500)
            assert file.read(9) == data[500:509]
        assert storage.names(where.parent) == ["f"]
    window = io.BufferedReader(Window(tmp_path / "f", 1000, 300), 64)
    assert (window.read(10), window.seek(-10, io.SEEK_END), window.read()) == (data[1000:1010], 290, data[1290:1300])


def test_what_cannot_be_read_is_said_in_the_words_of_one_line(tmp_path, store):
    store.files |= {"dir/f": b"0123456789"}
    (tmp_path / "f").write_bytes(b"0123456789")
    for where in (tmp_path / "f", Url("counted://dir/f")):
        with pytest.raises(OSError, match="gives 3 bytes from byte 7, where 5 were expected"):
            storage.part(where, 7, 5)
    for where in (tmp_path / "gone", Url("counted://gone"), Url("memory://gone")):
        for look in (storage.opened, storage.size, storage.content, storage.names):
            with pytest.raises(FileNotFoundError):
                look(where)
    with pytest.raises(OSError, match="is a folder"):
        storage.opened(Url("counted://dir"))
    store.fails = RuntimeError("no\ncredentials")
    with pytest.raises(OSError, match="counted://dir/f: RuntimeError: no credentials"):
        storage.content(Url("counted://dir/f"))
    with pytest.raises(TubeletError, match="needs a package for its scheme"):
        storage.opened(Url("s3://bucket/f"))
    with pytest.raises(TubeletError, match="Protocol not known: quux"):
        storage.opened(Url("quux://f"))


def test_stamps_change_when_files_do(tmp_path):
    file = tmp_path / "a.zip"
    assert storage.stamp(file) is None
    file.write_bytes(b"1")
    before = storage.stamp(file)
    assert before == storage.stamp(file / "clip/1")
    file.write_bytes(b"12")
    assert storage.stamp(file) != before
    assert storage.stamp(tmp_path / "gone/1") is None
    assert storage.stamp(Url("memory://a.zip")) is None
    assert storage.stamp(tmp_path) is not None


def test_a_file_that_is_made_anew_is_read_anew(tmp_path):
    (tmp_path / "f").write_bytes(b"before")
    assert storage.part(tmp_path / "f", 0, 6) == b"before"
    (tmp_path / "g").write_bytes(b"after, and longer")
    (tmp_path / "g").replace(tmp_path / "f")
    assert storage.part(tmp_path / "f", 0, 5) == b"after"


def test_videos_at_urls(tmp_path, store):
    """A film of some MiB: a clip of it asks for a part of it, a few times."""
    path = make_video(tmp_path / "a.mp4", 200, size=(480, 640), gop=10)
    with path.open("ab") as file:
        file.write(b"\0\0\0\0skip" + bytes(12 << 20))
    store.files["v/a b.mp4"] = path.read_bytes()
    url = Url("counted://v/a b.mp4")
    assert read.probe(url) == read.probe(path)
    store.asked.clear()
    assert numbers(read.read(url, middles([150, 3, 154]))) == [150, 3, 154]
    assert len(store.asked) < 12
    assert sum(store.asked) < 8 << 20
    assert numbers(read.read(str(url), middles([7]))) == [7]
    read.check(url)


def test_pictures_at_urls(tmp_path, store):
    PIL = pytest.importorskip("PIL.Image")
    from videos import painted

    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for number in range(12):
            picture = io.BytesIO()
            PIL.fromarray(painted(number)).save(picture, "JPEG", quality=95)
            store.files[f"v/clip/{number}.jpg"] = picture.getvalue()
            archive.writestr(f"clip_1/{number}.jpg", picture.getvalue())
    store.files["v/all.zip"] = made.getvalue()
    for url in (Url("counted://v/clip"), Url("counted://v/all.zip"), Url("counted://v/all.zip/clip_1")):
        assert read.probe(url, 10).duration_s == pytest.approx(1.2)
        store.asked.clear()
        assert numbers(read.read(url, middles([11, 2]))) == [11, 2]
        assert len(store.asked) == 2
        assert pictures.is_sequence(url)


def test_what_is_wrong_with_a_url_is_said_of_the_video(tmp_path, store):
    path = make_video(tmp_path / "a.mp4", 60, size=(480, 640))
    store.files |= {"v/a.mp4": path.read_bytes(), "v/b.mp4": path.read_bytes(), "v/zero.mp4": b""}

    def reason(where: str, look: Any = read.probe) -> str:
        with pytest.raises(UnreadableVideo) as caught:
            look(where)
        assert "\n" not in str(caught.value)
        assert caught.value.path == Url(where)
        return caught.value.reason

    assert reason("counted://v/gone.mp4") == "no such file"
    assert reason("counted://v/none") == "no such file"
    assert "empty" in reason("counted://v/zero.mp4")
    read.probe("counted://v/a.mp4")
    store.drops = 9
    assert "were expected" in reason("counted://v/b.mp4")
    assert "were expected" in reason("counted://v/a.mp4", lambda url: read.read(url, middles([1, 50])))
    store.drops, store.fails = 0, RuntimeError("the line went dead")
    assert "the line went dead" in reason("counted://v/b.mp4")
    with pytest.raises(TubeletError, match="needs a package for its scheme"):
        read.probe("s3://b/a.mp4")
    with pytest.raises(TubeletError, match="quux"):
        read.read("quux://b/a.mp4", middles([1]))


def _first_bytes(path: Path, count: int) -> tuple[bytes, int]:
    return storage.part(path, 0, count), os.getpid()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_an_open_file_is_not_shared_over_a_fork(tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(256)) * 100)
    storage.part(tmp_path / "f", 0, 10)
    here = storage._descriptor(tmp_path / "f", storage.stamp(tmp_path / "f"), os.getpid())
    with get_context("fork").Pool(1) as pool:
        found, there = pool.apply(_first_bytes, (tmp_path / "f", 300))
    assert (found, there != os.getpid()) == (bytes(range(256)) + bytes(range(44)), True)
    assert here is storage._descriptor(tmp_path / "f", storage.stamp(tmp_path / "f"), os.getpid())
    assert here is not storage._descriptor(tmp_path / "f", storage.stamp(tmp_path / "f"), there)


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="everything can be read")
def test_no_permission(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(b"x")
    folder.chmod(0)
    with pytest.raises(UnreadableVideo, match="no permission"):
        read.probe(folder)
    folder.chmod(0o700)


def test_the_loader_reads_urls_in_its_workers(tmp_path):
    from tubelet.data.clips import Clips
    from tubelet.data.listing import read_manifest
    from tubelet.data.loader import Loader

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/in/a.mp4", make_video(tmp_path / "a.mp4", 30).read_bytes())
    memory.pipe("/corpus/clips.csv", f"path\nin/a.mp4\n{tmp_path / 'a.mp4'}\ngone.mp4\n".encode())
    manifest = read_manifest("memory://corpus/clips.csv")
    loader = Loader(Clips(manifest, frames=4, stride=2, size=32).for_testing(), 3, workers=1, shuffle=False)
    (batch,) = loader.once()
    assert batch["readable"].tolist() == [True, True, False]
    there, here, _ = batch["video"][0]
    assert (there == here).all()
    assert loader.unreadable == {"memory://corpus/gone.mp4": "no such file"}
