import shutil
from pathlib import Path

import numpy
import pytest

from tubelet.data import read
from tubelet.data.info import UnreadableVideo
from tubelet.data.listing import Manifest, Video, read_manifest
from tubelet.data.objects import davis, generated, palette, read_mask, write_mask, write_picture
from tubelet.data.synthetic import make_corpus
from tubelet.types import TubeletError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("objects") / "corpus"
    return make_corpus(folder, clips=2, test=2, size=32, frames=4, motions=("left", "up"), workers=0)


def make_davis(folder: Path, resolution: str = "480p") -> Path:
    """Two sequences of three frames: one with two objects, one with grey masks of 0 and 255."""
    for name, numbers in (("b", (1, 2)), ("a10", (255,))):
        for t in range(3):
            picture = numpy.full((10, 14, 3), 40 * t, numpy.uint8)
            write_picture(folder / "JPEGImages" / resolution / name / f"{t:05d}.png", picture)
            mask = numpy.zeros((10, 14), int)
            for row, number in enumerate(numbers):
                mask[4 * row : 4 * row + 3, t : t + 4] = number
            write_mask(folder / "Annotations" / resolution / name / f"{t:05d}.png", mask)
    return folder


def test_a_mask_is_read_as_it_was_written(tmp_path):
    mask = numpy.random.default_rng(0).integers(0, 256, (13, 21))
    write_mask(tmp_path / "mask.png", mask)
    assert numpy.array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_a_mask_is_what_another_reader_sees(tmp_path):
    image = pytest.importorskip("PIL.Image")
    mask = numpy.arange(6 * 7).reshape(6, 7)
    write_mask(tmp_path / "mask.png", mask)
    with image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "P" and numpy.array_equal(numpy.array(picture), mask)
        assert picture.getpalette()[: 4 * 3] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_of_other_writers_are_read(tmp_path, bits, mode):
    """Palettes of few colours are packed; one bit of grey is 0 or 1."""
    image = pytest.importorskip("PIL.Image")
    mask = numpy.random.default_rng(1).integers(0, min(2**bits, 5), (9, 11)).astype(numpy.uint8)
    if mode == "L" and bits in (2, 4):
        pytest.skip("Pillow writes grey in one bit or eight")
    picture = image.fromarray(mask, mode="L") if mode == "L" else image.fromarray(mask, mode="P")
    if mode == "P":
        picture.putpalette(palette()[: 2**bits].flatten().tolist())
    elif bits == 1:
        picture = image.fromarray(mask * 255).convert("1")
    picture.save(tmp_path / "mask.png", **({"bits": bits} if mode == "P" else {}))
    assert numpy.array_equal(read_mask(tmp_path / "mask.png"), mask)


def test_colours_are_no_masks(tmp_path):
    write_picture(tmp_path / "picture.png", numpy.zeros((4, 4, 3), numpy.uint8))
    with pytest.raises(UnreadableVideo, match=r"palette or grey values, and its pixels are rgb24"):
        read_mask(tmp_path / "picture.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UnreadableVideo, match="empty"):
        read_mask(tmp_path / "empty.png")


def test_sequences_of_davis_have_frames_and_masks(tmp_path):
    a, b = davis(make_davis(tmp_path))
    assert (a.name, b.name) == ("a10", "b")
    assert numpy.unique(a.masks()).tolist() == [0, 255] and b.masks().shape == (3, 10, 14)
    assert numpy.unique(b.masks()).tolist() == [0, 1, 2]
    assert len(list(read.frames(b.place))) == 3


def test_the_list_of_davis_says_which(tmp_path):
    folder = make_davis(tmp_path, "Full-Resolution")
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    (folder / "ImageSets" / "2017" / "val.txt").write_text("b\n")
    assert [sequence.name for sequence in davis(folder)] == ["b"]


def test_what_is_missing_of_davis_is_named(tmp_path):
    with pytest.raises(TubeletError, match="JPEGImages is missing or empty"):
        davis(tmp_path)
    folder = make_davis(tmp_path)
    (folder / "Annotations" / "480p" / "b" / "00001.png").unlink()
    with pytest.raises(TubeletError, match=r"no .*b/00001\.png"):
        davis(folder)
    shutil.rmtree(folder / "JPEGImages" / "480p" / "b")
    with pytest.raises(TubeletError, match=r"no frames in .*b"):
        davis(folder)


def test_generated_videos_have_a_mask_for_each_frame(corpus):
    manifest = read_manifest(corpus, "test")
    found = generated(manifest)
    assert [sequence.place for sequence in found] == [video.path for video in manifest.videos]
    for sequence in found:
        masks = sequence.masks()
        assert masks.shape == (4, 32, 32) and set(numpy.unique(masks)) == {0, 1}


def test_other_videos_have_no_masks(corpus, tmp_path):
    shutil.copy(corpus, tmp_path / "clips.csv")
    with pytest.raises(TubeletError, match="no masks are known"):
        generated(read_manifest(tmp_path / "clips.csv"))
    stranger = Manifest([Video(Path("/nowhere/x.mp4"))], source=corpus)
    with pytest.raises(TubeletError, match=r"no masks of /nowhere/x\.mp4"):
        generated(stranger)
