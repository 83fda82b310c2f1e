from __future__ import annotations

import io
import math
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tubelet.data import pictures, read, storage
from tubelet.data.read import UnreadableVideo
from videos import numbers, painted

PIL = pytest.importorskip("PIL.Image")


def file_of(number: int, suffix: str = ".jpg", size: tuple[int, int] = (48, 64), **options: Any) -> bytes:
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix.lower()]
    made = io.BytesIO()
    PIL.fromarray(painted(number, size)).save(made, kind, **{"quality": 95, **options})
    return made.getvalue()


def make_folder(folder: Path, count: int = 30, suffix: str = ".jpg", name: str = "{}", **options: Any) -> Path:
    """A folder of pictures, whose numbers are not padded: only sorted naturally are they in order."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{name.format(number)}{suffix}").write_bytes(file_of(number, suffix, **options))
    return folder


def make_zip(path: Path, folder: Path, inner: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "a", method) as archive:
        for file in folder.iterdir():
            archive.write(file, f"{inner}{file.name}")
    return path


def make_tar(path: Path, folder: Path, inner: str = "", mode: Any = "a") -> Path:
    with tarfile.open(path, mode) as archive:
        for file in folder.iterdir():
            archive.add(file, f"{inner}{file.name}")
    return path


def middles(frames: list[int], fps: float = 30.0) -> numpy.ndarray:
    return (numpy.array(frames) + 0.5) / fps


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".jpeg", ".png", ".webp"])
def test_a_folder_is_a_video(tmp_path, suffix):
    folder = make_folder(tmp_path / "clip 1", suffix=suffix)
    info = read.probe(folder)
    assert (info.frames, info.fps, info.width, info.height, info.rotation) == (30, 30.0, 64, 48, 0)
    assert info.codec == {".png": "png", ".webp": "webp"}.get(suffix, "mjpeg")
    assert info.duration_s == pytest.approx(1.0)
    wanted = [11, 2, 2, 29, 10, 0]
    clip = read.read(folder, middles(wanted))
    assert numbers(clip) == wanted
    assert (clip.shape, str(clip.dtype)) == ((6, 3, 48, 64), "torch.uint8")
    assert clip.permute(0, 2, 3, 1).is_contiguous()
    read.check(folder)


@pytest.mark.parametrize("fps", [12, 30, 29.97, 240.0, 0.5])
def test_the_picture_on_display_is_the_last_that_has_started(tmp_path, fps):
    folder = make_folder(tmp_path / "clip", 40)
    assert read.probe(folder, fps).duration_s == pytest.approx(40 / fps)
    times = numpy.concatenate([numpy.random.default_rng(0).uniform(-1, 50 / fps, 60), numpy.arange(40) / fps])
    starts = [number / fps for number in range(40)]
    mercy_s = min(1e-4, 0.05 / fps)
    expected = [max([0] + [n for n, start in enumerate(starts) if start <= time + mercy_s]) for time in times]
    assert numbers(read.read(folder, times, fps=fps)) == expected


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_archives_of_one_and_of_many_folders(tmp_path, make):
    first, second = make_folder(tmp_path / "one", 12), make_folder(tmp_path / "two", 20, ".png", "img_{}")
    flat = make(tmp_path / f"flat.{make.__name__[5:]}", first)
    single = make(tmp_path / f"single.{make.__name__[5:]}", first, "single/frames/")
    many = make(make(tmp_path / f"many.{make.__name__[5:]}", first, "./a/clip_2/"), second, "a/clip_10/")
    for place, count in [(flat, 12), (single, 12), (single / "single", 12), (many / "a/clip_10", 20)]:
        assert read.probe(place).frames == count
        assert numbers(read.read(place, middles([9, 10, 3]))) == [9, 10, 3]
        assert pictures.is_sequence(place)
        read.check(place)
    assert pictures.folders(many) == ["a/clip_2", "a/clip_10"]
    assert pictures.folders(flat) == [""]
    assert not pictures.is_sequence(many)
    for place in (many, many / "a"):
        with pytest.raises(UnreadableVideo, match=r"2 folders of pictures: name one, as many\.\w+/a/clip_2"):
            read.probe(place)
    with pytest.raises(UnreadableVideo, match="no pictures there; did you mean 'a/clip_10'"):
        read.probe(many / "a/clip_11")


def test_frames_one_by_one_are_those_that_are_read(tmp_path):
    folder = make_folder(tmp_path / "clip", 20)
    shown = list(pictures.frames(folder, 0.5, 1.25, short_side=24, fps=8))
    assert numbers(numpy.stack([picture for _, picture in shown]).transpose(0, 3, 1, 2)) == list(range(4, 11))
    assert (read.read(folder, numpy.array([at for at, _ in shown]), 24, fps=8).permute(0, 2, 3, 1).numpy()
            == numpy.stack([picture for _, picture in shown])).all()  # fmt: skip
    assert len(list(pictures.frames(folder))) == 20


def test_only_the_pictures_of_the_clip_are_touched(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "clip", 100)
    archive = make_zip(tmp_path / "clip.zip", folder, method=zipfile.ZIP_STORED)
    touched: list[str] = []
    content, part = storage.content, storage.part
    monkeypatch.setattr(storage, "content", lambda place: touched.append(place.stem) or content(place))
    times = numpy.repeat(middles(list(range(20, 84, 4))), 2)
    assert numbers(read.read(folder, times)) == [n for n in range(20, 84, 4) for _ in range(2)]
    assert touched == [str(n) for n in range(20, 84, 4)]
    ranges: list[int] = []
    monkeypatch.setattr(storage, "part", lambda *which: ranges.append(which[2]) or part(*which))
    read.read(archive, times)
    assert len(ranges) == 16
    assert sum(ranges) < archive.stat().st_size / 5


def test_what_is_no_picture_is_passed_over(tmp_path):
    folder = make_folder(tmp_path / "clip", 5)
    for name in (".hidden.jpg", "._1.jpg", "Thumbs.db", "notes.txt"):
        (folder / name).write_bytes(b"nothing")
    assert read.probe(folder).frames == 5
    archive = make_zip(tmp_path / "clip.zip", folder, "clip/")
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("__MACOSX/clip/._1.jpg", b"nothing")
        more.writestr("clip/sub/.hidden/1.jpg", b"nothing")
    assert read.probe(archive).frames == 5


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
def test_colours_are_those_of_pillow(tmp_path, suffix):
    ramp = numpy.stack(numpy.meshgrid(numpy.arange(0, 256, 2), numpy.arange(0, 256, 2)), axis=-1)
    picture = numpy.concatenate([ramp, 255 - ramp[..., :1]], axis=-1).astype(numpy.uint8)
    (tmp_path / "clip").mkdir()
    for number in range(3):
        PIL.fromarray(numpy.roll(picture, 9 * number, 1)).save(tmp_path / f"clip/{number}{suffix}", quality=95)
        ours = read.read(tmp_path / "clip", middles([number]))[0].permute(1, 2, 0).numpy().astype(int)
        theirs = numpy.asarray(PIL.open(tmp_path / f"clip/{number}{suffix}").convert("RGB")).astype(int)
        assert abs(ours - theirs).mean() < (0.01 if suffix == ".png" else 2.5)
        assert abs(ours.mean((0, 1)) - theirs.mean((0, 1))).max() < 2  # a wrong range is off by 7


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_kinds_of_picture_become_rgb(tmp_path, mode):
    (tmp_path / "clip").mkdir()
    suffix = "jpg" if mode == "CMYK" else "png"
    for number in (3, 200):
        PIL.fromarray(painted(number)).convert(mode).save(tmp_path / f"clip/{number}.{suffix}")
    assert numbers(read.read(tmp_path / "clip", middles([1, 0]))) == [200, 3]


def test_a_wrong_suffix_and_exif_turns(tmp_path):
    turned = PIL.Exif()
    turned[0x112] = 6
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/0.jpg").write_bytes(file_of(7, ".png"))
    (tmp_path / "clip/1.jpg").write_bytes(file_of(8, exif=turned))
    assert numbers(read.read(tmp_path / "clip", middles([0, 1]))) == [7, 8]


def test_short_side(tmp_path):
    folder = make_folder(tmp_path / "clip", 4, size=(120, 160))
    assert read.read(folder, middles([3]), short_side=60).shape == (1, 3, 60, 80)
    assert numbers(read.read(folder, middles([2, 3]), short_side=60)) == [2, 3]
    assert read.read(folder, middles([3]), short_side=500).shape == (1, 3, 120, 160)


def test_a_changed_folder_is_listed_anew(tmp_path):
    folder = make_folder(tmp_path / "clip", 4)
    assert read.probe(folder).frames == 4
    (folder / "4.jpg").write_bytes(file_of(4))
    assert read.probe(folder).frames == 5
    archive = make_zip(tmp_path / "a.zip", folder)
    assert numbers(read.read(archive, middles([1]))) == [1]
    archive.unlink()
    make_zip(archive, make_folder(tmp_path / "other", 9, name="{:03}"))
    assert numbers(read.read(archive, middles([8]))) == [8]


def bad(folder: Path) -> dict[str, tuple[Path, str]]:
    good = make_folder(folder / "good", 6)
    one = (good / "2.jpg").read_bytes()
    made: dict[str, tuple[Path, str]] = {}

    def copy(name: str, reason: str, **files: bytes) -> None:
        (folder / name).mkdir()
        for file in good.iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        for file, content in files.items():
            (folder / name / file.replace("_", ".")).write_bytes(content)
        made[name] = folder / name, reason

    (folder / "empty").mkdir()
    made["empty"] = folder / "empty", "no pictures in the folder: looked for .jpeg, .jpg, .png, .webp"
    (folder / "texts").mkdir()
    (folder / "texts/1.txt").write_text("x")
    made["texts"] = folder / "texts", "no pictures in the folder"
    copy("cut", "2.jpg: it is damaged or cut short", **{"2_jpg": one[: len(one) // 2]})
    copy("zero", "2.jpg: the file is empty", **{"2_jpg": b""})
    copy("words", "2.jpg: not a JPEG, PNG or WebP picture", **{"2_jpg": b"<html>" * 20})
    copy("odd", "2.jpg: it has 64 x 56 pixels and others 64 x 48", **{"2_jpg": file_of(2, size=(56, 64))})
    several = "several series, *.jpg and flow_*.jpg: give each a folder of its own"
    copy("flow", several, **{"flow_1_jpg": one, "flow_2_jpg": one})
    for name in ("flow.1.jpg", "flow.2.jpg"):
        (folder / "flow" / name).rename(folder / "flow" / name.replace("flow.", "flow_"))

    archive = make_zip(folder / "cut.zip", good)
    archive.write_bytes(archive.read_bytes()[:-400])
    made["cut.zip"] = archive, "not a zip that can be read, or it is damaged"
    (folder / "text.zip").write_text("this is no zip" * 100)
    made["text.zip"] = folder / "text.zip", "not a zip that can be read"
    stored = make_zip(folder / "stored.zip", good, method=zipfile.ZIP_STORED)
    content = bytearray(stored.read_bytes())
    at = content.index(one) + len(one) // 2
    content[at : at + 4] = b"\0\0\0\0"
    (folder / "damaged.zip").write_bytes(content)
    made["damaged.zip"] = folder / "damaged.zip", "2.jpg: the zip is damaged there"
    locked = bytearray(stored.read_bytes())
    for sign, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = locked.find(sign)
        while at >= 0:
            locked[at + offset] |= 1
            at = locked.find(sign, at + 4)
    (folder / "locked.zip").write_bytes(locked)
    made["locked.zip"] = folder / "locked.zip", "protected with a password: unpack it"
    made["unusual.zip"] = make_zip(folder / "unusual.zip", good, method=zipfile.ZIP_BZIP2), "pack it again"
    make_tar(folder / "a.tar.gz", good, mode="w:gz")
    made["a.tar.gz"] = folder / "a.tar.gz", "a compressed tar"
    (folder / "renamed.tar").write_bytes((folder / "a.tar.gz").read_bytes())
    made["renamed.tar"] = folder / "renamed.tar", "not a tar that can be read"
    tar = make_tar(folder / "cut.tar", good)
    tar.write_bytes(tar.read_bytes()[: len(one) + 800])
    made["cut.tar"] = tar, "not a tar that can be read, or it is damaged: truncated"
    (folder / "text.tar").write_text("this is no tar" * 100)
    made["text.tar"] = folder / "text.tar", "not a tar that can be read"
    made["member"] = make_zip(folder / "member.zip", good, "clip/") / "clap", "no pictures there; did you mean 'clip'"
    made["missing"] = folder / "missing.zip/clip", "no such file"
    with zipfile.ZipFile(folder / "nothing.zip", "w"):
        made["nothing.zip"] = folder / "nothing.zip", "no pictures in it"
    return made


def test_bad_ones_give_one_clear_line(tmp_path, capfd):
    for name, (place, reason) in bad(tmp_path).items():
        for look in (read.probe, read.check, lambda p: read.read(p, middles(list(range(6))))):
            if look is read.probe and "2.jpg" in reason:
                continue  # a probe decodes the first
            with pytest.raises(UnreadableVideo) as caught:
                look(place)
            assert reason in caught.value.reason, name
            assert caught.value.path == place
            assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_one_decoder_gives_what_a_new_one_for_each_gives(tmp_path):
    rng = numpy.random.default_rng(0)
    for suffix in (".jpg", ".png", ".webp"):
        files = []
        for _ in range(4):
            made = io.BytesIO()
            noise = PIL.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=numpy.uint8))
            noise.save(made, {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix])
            files.append(made.getvalue())
        decode = pictures.Decoder()
        together = pictures.paint([decode(file)[0] for file in files], 4)
        alone = [pictures.paint([pictures.Decoder()(file)[0]], 1)[0] for file in files]
        assert (together == numpy.stack(alone)).all()


def test_a_damaged_picture_does_not_spoil_the_next(tmp_path):
    decode = pictures.Decoder()
    good = [file_of(n) for n in (1, 2)]
    decode(good[0])
    with pytest.raises(ValueError, match="cut short"):
        decode(good[1][:-200])
    assert (pictures.paint([decode(good[1])[0]], 1) == pictures.paint([pictures.Decoder()(good[1])[0]], 1)).all()


def test_a_film_of_mjpeg_and_its_pictures_are_the_same(tmp_path):
    """The colours of a JPEG are those of the same JPEG in a video."""
    (tmp_path / "clip").mkdir()
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=30, options={"qmin": "2", "qmax": "2"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for number in range(9):
            frame = av.VideoFrame.from_ndarray(painted(number * 20), format="rgb24")
            for packet in stream.encode(frame):
                (tmp_path / f"clip/{number}.jpg").write_bytes(bytes(packet))
                container.mux(packet)
    times = middles([0, 3, 8])
    assert (read.read(tmp_path / "a.avi", times) == read.read(tmp_path / "clip", times)).all()


def test_not_every_folder_or_file_is_a_sequence(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not pictures.is_sequence(tmp_path / "empty")
    assert not pictures.is_sequence(make_folder(tmp_path / "cover", 1))
    assert not pictures.is_sequence(tmp_path / "missing")
    assert pictures.is_sequence(make_folder(tmp_path / "clip", 2))
    assert math.isclose(read.probe(tmp_path / "clip", 8).duration_s, 0.25)
