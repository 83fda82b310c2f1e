from __future__ import annotations

import hashlib
import io
import itertools
import json
import resource
import tarfile
import zipfile
from pathlib import Path

import av
import fsspec
import numpy
import pytest

from films import film, numbered, together
from tubelet.data import appearance, read, storage
from tubelet.data.appearance import SIDE, perceptual_hash
from tubelet.data.cases import CASES, refusal
from tubelet.data.examine import Examination, Finding, examine
from videos import make_sound, make_video, painted


def scene(seed: int, frames: int = 48, size: tuple[int, int] = (120, 160)) -> list[numpy.ndarray]:
    """Spots that wander: H W 3 uint8 each."""
    draw = numpy.random.default_rng(seed)
    y, x = (grid / side for grid, side in zip(numpy.mgrid[: size[0], : size[1]], size, strict=True))
    spots = draw.uniform(0, 1, (12, 2)), draw.uniform(-0.5, 0.5, (12, 2)), draw.uniform(60, 250, (12, 3))
    pictures = []
    for k in range(frames):
        picture = numpy.full((*size, 3), 40.0)
        for place, speed, colour in zip(*spots, strict=True):
            down, right = (place + speed * k / frames) % 1
            near = numpy.exp(-((y - down) ** 2 + (x - right) ** 2) / 0.005)[..., None]
            picture = picture * (1 - near) + colour * near
        pictures.append(picture.astype(numpy.uint8))
    return pictures


def distance(a: Examination, b: Examination) -> float:
    assert len(a.hashes) == len(b.hashes) == appearance.HASHED
    return sum((one ^ other).bit_count() for one, other in zip(a.hashes, b.hashes, strict=True)) / appearance.HASHED


def shrink(pictures: list[numpy.ndarray], height: int, width: int) -> list[numpy.ndarray]:
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    return [frame.reformat(width, height, interpolation="AREA").to_ndarray() for frame in frames]


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory) -> dict[str, Examination]:
    """Three scenes, and changed copies of the first."""
    folder = tmp_path_factory.mktemp("scenes")
    pictures = scene(0)
    paths = {str(seed): film(folder / f"{seed}.mp4", scene(seed), size=(120, 160)) for seed in range(3)}
    worse = {"crf": "36"}
    paths["worse"] = film(folder / "worse.mkv", pictures, size=(120, 160), options=worse, gop=30, b_frames=0)
    paths["small"] = film(folder / "small.mp4", shrink(pictures, 72, 96), size=(72, 96), options=worse)
    square = shrink(pictures, 96, 96)
    paths["squeezed"] = film(folder / "squeezed.avi", square, size=(96, 96), codec="mpeg4", b_frames=0)
    paths["slower"] = film(folder / "slower.mp4", pictures[::2], size=(120, 160), fps=15)
    paths["turned"] = film(
        folder / "turned.mp4", [numpy.rot90(p, -1).copy() for p in pictures], size=(160, 120),
        prepare=lambda stream: stream.set_display_rotation(90),
    )  # fmt: skip
    return {name: examine(path) for name, path in paths.items()}


@pytest.mark.parametrize("copy", ["worse", "small", "squeezed", "slower", "turned"])
def test_hashes_know_a_copy_that_was_encoded_anew(looked_at, copy):
    assert distance(looked_at["0"], looked_at[copy]) <= 4
    assert looked_at["0"].digest != looked_at[copy].digest


def test_hashes_of_other_videos_are_far(looked_at):
    for one, other in itertools.combinations("012", 2):
        assert distance(looked_at[one], looked_at[other]) > 16


def test_brightness_and_contrast_leave_hashes_alone():
    grey = scene(5, frames=1, size=(SIDE, SIDE))[0].mean(axis=2)
    plain = perceptual_hash(grey)
    changed = perceptual_hash(grey * 0.7 + 20)
    assert plain is not None and changed is not None
    assert (plain ^ changed).bit_count() <= 3


def test_hashes_are_signs_about_the_median_of_the_lowest_waves():
    """The slow twin: each wave summed on its own."""
    grey = numpy.random.default_rng(3).uniform(0, 255, (SIDE, SIDE))
    waves = {}
    for i, j in itertools.product(range(12), range(12)):
        down = [numpy.cos(numpy.pi * i * (2 * k + 1) / (2 * SIDE)) for k in range(SIDE)]
        right = [numpy.cos(numpy.pi * j * (2 * k + 1) / (2 * SIDE)) for k in range(SIDE)]
        waves[i, j] = 2 / SIDE * sum(grey[k] @ right * down[k] for k in range(SIDE))
    lowest = [waves[place] for place in sorted(waves, key=lambda p: (p[0] + p[1], p))[1:65]]
    bits = [wave > max(float(numpy.median(lowest)), 0.0) + 16 for wave in lowest]
    assert perceptual_hash(grey) == int("".join("1" if bit else "0" for bit in bits), 2)


@pytest.mark.parametrize("level", [0, 90, 255])
def test_frames_with_nothing_to_see_have_no_hash(tmp_path, level):
    """Or else all black videos would be copies of one another."""
    found = examine(film(tmp_path / "a.mp4", [numpy.full((48, 64, 3), level, numpy.uint8)] * 20))
    assert found.hashes == []
    assert [f.code for f in found.findings if f.code in ("black", "constant")] == ["constant" if level else "black"]


def test_what_is_measured(tmp_path):
    path = make_video(tmp_path / "a.mp4", 90, size=(120, 320), sound=True)
    found = examine(path)
    assert (found.frames, found.bytes, found.reason) == (90, path.stat().st_size, None)
    assert found.seconds == pytest.approx(3.0, abs=1e-3)
    assert found.sound == "aac 16,000 Hz"
    assert 0 < found.decode_s < 5
    assert found.info is not None and found.info.frames == 90
    assert examine(make_video(tmp_path / "b.mp4", 5)).sound is None


def test_the_same_bytes_have_the_same_digest(tmp_path):
    path = make_video(tmp_path / "a.mp4", 20)
    copy = tmp_path / "b.mp4"
    copy.write_bytes(path.read_bytes())
    one, other = examine(path), examine(copy)
    assert one.digest == other.digest and len(one.digest) == 32
    assert one.hashes == other.hashes
    copy.write_bytes(path.read_bytes() + b"\0\0\0\x08free")
    assert examine(copy).digest != one.digest


def test_json_and_back(tmp_path):
    for path in (make_video(tmp_path / "a.mp4", 20), make_sound(tmp_path / "b.mp4"), tmp_path / "none.mp4"):
        found = examine(path)
        assert Examination.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_the_thumbnail_is_a_small_upright_jpeg_of_the_middle(tmp_path):
    def shown(found: Examination) -> numpy.ndarray:
        context = av.CodecContext.create("mjpeg", "r")
        (picture,) = [*context.decode(av.Packet(found.thumbnail)), *context.decode(None)]
        return picture.to_ndarray(format="rgb24")

    wide = shown(examine(film(tmp_path / "a.mp4", numbered(size=(240, 640)), size=(240, 640))))
    assert wide.shape == (60, 160, 3)
    middle = painted(100 + 70 * 9 // 16, (60, 160)).astype(int)
    assert abs(wide.astype(int) - middle)[:, 4::20].mean() < 30
    high = film(tmp_path / "b.mp4", numbered(), prepare=lambda stream: stream.set_display_rotation(90))
    assert shown(examine(high)).shape == (64, 48, 3)


@pytest.mark.parametrize(("frames", "stride", "short"), [(16, 4, True), (16, 3, False), (40, 1, False), (41, 2, True)])
def test_a_clip_is_as_long_as_asked_for(tmp_path, frames, stride, short):
    found = examine(make_video(tmp_path / "a.mp4", 50), frames=frames, stride=stride, reference_fps=0)
    assert ("shorter_than_a_clip" in [f.code for f in found.findings]) == short


@pytest.mark.parametrize(("fps", "frames", "short"), [(15, 32, False), (15, 30, True), (60, 100, True)])
def test_a_clip_lasts_as_long_at_any_rate(tmp_path, fps, frames, short):
    found = examine(make_video(tmp_path / "a.mp4", frames, fps=fps))
    assert ("shorter_than_a_clip" in [f.code for f in found.findings]) == short


def test_storage_that_fails_amid_a_video_is_no_end_of_it(tmp_path, monkeypatch):
    place = storage.place("memory://folder/fails.mkv")
    with fsspec.open(str(place), "wb") as file:
        file.write(make_video(tmp_path / "a.mkv", 200).read_bytes())
    read.probe(place)
    opened = storage.opened

    class Failing(io.BytesIO):
        """Fails once in its second half."""

        def read(self, count=-1):
            if self.tell() > storage.size(place) / 2:
                monkeypatch.setattr(storage, "opened", opened)
                raise OSError(f"{place}: TimeoutError: no answer")
            return super().read(min(count, 1000) if count >= 0 else count)

    monkeypatch.setattr(storage, "opened", lambda source: Failing(opened(source).read()))
    found = examine(place)
    assert storage.opened is opened
    assert (found.findings[0].code, found.info) == ("unreadable", None)


def test_a_url(tmp_path):
    path = make_video(tmp_path / "a.mp4", 40)
    with fsspec.open("memory://examined/a.mp4", "wb") as file:
        file.write(path.read_bytes())
    found, local = examine("memory://examined/a.mp4"), examine(path)
    assert (found.digest, found.hashes, found.frames, found.findings) == (
        local.digest, local.hashes, local.frames, local.findings,
    )  # fmt: skip
    assert examine("memory://examined/gone.mp4").findings[0].code == "missing"


def test_pictures(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for k in range(20):
        save_jpeg(folder / f"{k}.jpg", painted(100 + k))
    found = examine(folder, fps=10, frames=4)
    assert (found.frames, found.seconds, found.reason, found.findings) == (20, 2.0, None, [])
    assert len(found.hashes) == appearance.HASHED
    whole = (folder / "17.jpg").read_bytes()
    (folder / "17.jpg").write_bytes(whole[: len(whole) // 2])
    damaged = examine(folder, fps=10)
    assert damaged.findings[0].code == "bad_picture"
    assert "17.jpg" in (damaged.reason or "")
    save_jpeg(folder / "17.jpg", painted(117, (32, 32)))
    assert examine(folder).findings[0].code == "bad_picture"


def test_the_same_pictures_have_one_digest_wherever_they_lie(tmp_path):
    video = make_video(tmp_path / "a.mp4")
    for folder, numbers in (("one", (0, 1, 2)), ("two", (0, 1, 2)), ("three", (0, 1, 3))):
        (tmp_path / folder).mkdir()
        for k in numbers:
            save_jpeg(tmp_path / folder / f"{k}.jpg", painted(100 + k))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard, zipfile.ZipFile(tmp_path / "frames.zip", "w") as archive:
        for picture in sorted((tmp_path / "one").iterdir()):
            shard.add(picture, f"k1.{picture.name}")
            archive.write(picture, f"one/{picture.name}")
        shard.add(video, "k2.mp4")
        shard.addfile(tarfile.TarInfo("k2.txt"))
    places = ("one", "two", "shard.tar/k1", "frames.zip/one", "three", "shard.tar/k2", "a.mp4")
    one, *same, three, sample, alone = (examine(tmp_path / place).digest for place in places)
    assert same == [one] * 3 and three != one and one
    assert sample == alone == hashlib.blake2b(video.read_bytes(), digest_size=16).hexdigest()


def save_jpeg(path: Path, picture: numpy.ndarray) -> None:
    film(path, [picture], size=picture.shape[:2], codec="mjpeg", pix_fmt="yuvj420p", b_frames=0, kind="image2pipe")


def test_of_several_videos_the_one_that_is_read_is_named(tmp_path):
    paths = [make_video(tmp_path / f"{k}.mp4", 20) for k in range(2)]
    together(tmp_path / "both.mkv", paths)
    (finding,) = [f for f in examine(tmp_path / "both.mkv").findings if f.code == "several_videos"]
    assert finding == Finding("several_videos", "2, of which number 0 of all streams is read")


def test_memory_does_not_grow_with_length(tmp_path):
    """150 frames of 720p are 200 MB when decoded."""
    short, long = (
        film(tmp_path / f"{n}.mp4", (numpy.full((720, 1280, 3), k, numpy.uint8) for k in range(n)),
             size=(720, 1280), codec="mpeg4", b_frames=0)
        for n in (30, 150)
    )  # fmt: skip
    examine(short)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert examine(long).frames == 150
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 40


def test_cases_are_complete_sentences():
    for code, case in CASES.items():
        assert code.replace("_", "").isalpha() and code.islower()
        assert case.meaning.endswith(".") and case.remedy.endswith(".")


def test_a_reason_that_nobody_foresaw_is_unreadable():
    assert refusal("the network is down") == "unreadable"
    assert CASES["unreadable"].severity == "unreadable"
