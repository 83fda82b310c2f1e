"""The synthetic corpus: the same bytes from the same arguments, true boxes and masks, motion alone as the class."""

import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet import draws
from tubelet.data import synthetic
from tubelet.data.audio import waveform
from tubelet.data.listing import read_manifest
from tubelet.data.synthetic import MOTIONS, Corpus, decode_mask, draw_scene, encode_mask, make_corpus, render, track
from tubelet.types import TubeletError

SMALL = {"clips": 22, "test": 11, "size": 32, "frames": 8, "workers": 0}
CORPUS = Corpus(clips=1100, test=0, seed=3, size=32, frames=16, fps=15)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", **SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def frames_of(path: Path) -> list[numpy.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def scenes(label: str, count: int = 20):
    first = MOTIONS.index(label)
    return [draw_scene(CORPUS, first + len(MOTIONS) * i) for i in range(count)]


def middles(boxes: list) -> numpy.ndarray:
    return numpy.array([[(b[0] + b[2]) / 2, (b[1] + b[3]) / 2] for b in boxes if b])


def test_clips_are_mp4_of_the_size_and_length_asked(corpus):
    for video in read_manifest(corpus):
        frames = frames_of(video.path)
        assert len(frames) == 8
        assert {frame.shape for frame in frames} == {(32, 32, 3)}
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 15


def test_what_is_encoded_is_what_was_rendered(corpus):
    record = json.loads((corpus.parent / "synthetic.json").read_text())
    record.pop("version")
    again = Corpus(**record)
    video, _ = render(draw_scene(again, 4), again, draws.generator(again.seed, 4, "pixels"))
    decoded = numpy.stack(frames_of(corpus.parent / "clips/00004.mp4"))
    assert abs(decoded.astype(float) - video).mean() < 12  # of 255: the coding and the halved colour planes


def test_manifest_has_labels_splits_and_factors(corpus):
    manifest = read_manifest(corpus)
    assert sorted(manifest.classes) == sorted(MOTIONS)
    for split, count in {"train": 2, "test": 1}.items():
        assert Counter(v.label for v in manifest.where(split)) == dict.fromkeys(MOTIONS, count)
    factors = json.loads((corpus.parent / "factors.json").read_text())
    assert list(factors) == [v.path.relative_to(corpus.parent.resolve()).as_posix() for v in manifest]
    for video, record in zip(manifest, factors.values(), strict=True):
        assert (video.label, video.split) == (record["label"], record["split"])
        assert video.extra["shape"] == record["shape"]
        assert float(video.extra["speed"]) == record["speed"]
    train, test = ({v.extra["texture"] for v in manifest.where(split)} for split in ("train", "test"))
    assert not train & test


def test_manifest_has_words(corpus):
    manifest = read_manifest(corpus)
    assert len({v.extra["caption"] for v in manifest}) > 25
    assert all(v.extra["narration"].count("|") == 2 for v in manifest)


def test_sound_is_what_was_made_and_leaves_the_pictures_as_they_are(corpus, tmp_path):
    loud = make_corpus(tmp_path / "sound", **SMALL, sound=True, silent=0.3)
    record = json.loads((loud.parent / "synthetic.json").read_text())
    record.pop("version")
    again, heard = Corpus(**record), 0
    for index, video in enumerate(read_manifest(loud)):
        assert numpy.array_equal(frames_of(video.path), frames_of(corpus.parent / "clips" / video.path.name))
        made, decoded = synthetic._sound(draw_scene(again, index), index, again), waveform(video.path, 0, 8 / 15)
        assert (made is None) == (decoded is None)
        if made is not None:
            wave = decoded.numpy()[: len(made)]
            assert numpy.corrcoef(wave, made[: len(wave)])[0, 1] > 0.98
            heard += 1
    assert 15 < heard < 30  # of 33
    for name in ("clips.csv", "factors.json"):
        assert (loud.parent / name).read_bytes() == (corpus.parent / name).read_bytes()


def test_sound_is_the_same_whatever_the_number_of_workers(tmp_path):
    asked = {**SMALL, "clips": 20, "test": 0, "sound": True}
    for workers in (0, 2):
        make_corpus(tmp_path / str(workers), **{**asked, "workers": workers})
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_a_corpus_from_before_there_was_sound_is_taken_for_what_it_is(corpus, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(corpus.parent, older)
    record = json.loads((older / "synthetic.json").read_text())
    (older / "synthetic.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("sound", "silent")}))
    assert make_corpus(older, **SMALL) == older / "clips.csv"
    with pytest.raises(TubeletError, match="a corpus with sound = False, not True"):
        make_corpus(older, **SMALL, sound=True)


def test_boxes_fit_masks(corpus):
    for record in json.loads((corpus.parent / "factors.json").read_text()).values():
        assert len(record["boxes"]) == len(record["masks"]) == 8
        for box, counts in zip(record["boxes"], record["masks"], strict=True):
            mask = decode_mask(counts, 32, 32)
            assert mask.any() == (box is not None)
            if box is not None:
                x0, y0, x1, y1 = (round(32 * edge) for edge in box)
                assert mask[y0:y1, x0:x1].sum() == mask.sum()
                assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_masks_survive_encoding(height, width, data):
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = numpy.array(bits).reshape(height, width)
    counts = encode_mask(mask)
    assert sum(counts) == mask.size
    assert (decode_mask(counts, height, width) == mask).all()


def test_mask_of_another_size_is_refused():
    assert encode_mask(numpy.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    with pytest.raises(TubeletError, match="cover 4 pixels, not 3 x 2"):
        decode_mask([0, 2, 1, 1], 3, 2)


@pytest.mark.parametrize(("label", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)])
def test_objects_move_where_the_class_says(label, axis, sign):
    for scene in scenes(label):
        _, masks = render(scene, CORPUS, draws.generator(0))
        path = middles([synthetic._box(mask) for mask in masks])
        # Where an edge of the frame hides a part, the box's middle moves half as far.
        assert sign * (path[-1] - path[0])[axis] > 0.08
        assert (sign * numpy.diff(track(scene, 16).centre[:, axis]) > 0).all()


def test_objects_grow_and_shrink():
    for label, sign in {"approach": 1, "recede": -1}.items():
        for scene in scenes(label):
            path = track(scene, 16)
            assert (sign * numpy.diff(path.size) > 0).all()
            assert 1.3 < (path.size[-1] / path.size[0]) ** sign < 2.3
            areas = [mask.sum() for mask in render(scene, CORPUS, draws.generator(0))[1]]
            assert sign * (areas[-1] - areas[0]) > 0


@pytest.mark.parametrize(("label", "sign"), [("turn_left", 1), ("turn_right", -1)])
def test_objects_turn_as_seen_on_the_screen(label, sign):
    for scene in scenes(label, 5):
        cross = synthetic.Scene(**{**vars(scene), "shape": "triangle", "centre": (0.5, 0.5), "drift": (0.0,) * 4})
        _, masks = render(cross, CORPUS, draws.generator(0))
        tips = numpy.array([farthest(mask) for mask in masks])
        # A triangle has three tips: the turn from frame to frame is the one below 60 degrees.
        turns = (numpy.diff(tips) + 60) % 120 - 60
        assert 0.25 * 360 * 0.9 < sign * turns.sum() < 0.4 * 360 * 1.1


def farthest(mask: numpy.ndarray) -> float:
    """The angle, anticlockwise from the right, of the mask's pixels farthest from the middle of the frame."""
    y, x = numpy.nonzero(mask)
    x, y = x - (mask.shape[1] - 1) / 2, (mask.shape[0] - 1) / 2 - y
    tip = numpy.argmax(numpy.hypot(x, y))
    return float(numpy.degrees(numpy.arctan2(y[tip], x[tip])))


def test_appearing_and_vanishing_are_told_apart_by_order():
    for scene in scenes("appear_then_move"):
        seen = track(scene, 16).seen
        assert not seen[:4].any() and seen[7:].all()
    for scene in scenes("move_then_vanish"):
        seen = track(scene, 16).seen
        assert seen[:9].all() and not seen[12:].any()
    _, masks = render(scene, CORPUS, draws.generator(0))
    assert (masks.any(axis=(1, 2)) == seen).all()


def test_bouncing_goes_there_and_comes_straight_back():
    for scene in scenes("bounce"):
        path = track(synthetic.Scene(**{**vars(scene), "drift": (0.0,) * 4}), 16).centre
        away = numpy.linalg.norm(path - path[0], axis=1)
        turn = int(away.argmax())
        assert 5 <= turn <= 10
        assert (numpy.diff(away[: turn + 1]) > 0).all()
        assert numpy.linalg.norm(path[-1] - path[0]) < 0.2 * scene.speed


@pytest.mark.parametrize("frames", [2, 3, 4, 8, 16, 33])
def test_middle_frame_is_alike_in_every_class(frames):
    for label in MOTIONS:
        for scene in scenes(label, 3):
            path, middle = track(scene, frames), frames // 2
            assert path.seen[middle]
            assert path.centre[middle] == pytest.approx(scene.centre)
            assert path.size[middle] == pytest.approx(scene.size)
            assert path.angle[middle] == pytest.approx(scene.orientation)


def test_nuisances_do_not_depend_on_the_class():
    drawn = [draw_scene(CORPUS, index) for index in range(CORPUS.clips)]
    for name in ("size", "speed", "orientation", "brightness", "background_brightness"):
        values = numpy.array([getattr(scene, name) for scene in drawn])
        labels = numpy.array([scene.label for scene in drawn])
        means = [values[labels == label].mean() for label in MOTIONS]
        assert numpy.std(means) < 2.2 * values.std() / numpy.sqrt(100)  # 100 a class


def test_same_bytes_from_any_number_of_workers(tmp_path):
    small = {**SMALL, "clips": 17, "test": 0, "frames": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    make_corpus(one, **small)
    make_corpus(two, **{**small, "workers": 2})
    assert contents(one) == contents(two)
    assert len(contents(one)) == 17 + 3


def test_seed_and_settings_change_the_clips(corpus, tmp_path):
    other = make_corpus(tmp_path / "other", **{**SMALL, "clips": 2, "test": 0, "seed": 1, "noise": 0.0})
    first = "clips/00000.mp4"
    assert contents(other.parent)[first] != contents(corpus.parent)[first]


def test_finished_corpus_is_left_alone(corpus, monkeypatch):
    monkeypatch.setattr(synthetic, "_render_all", None)
    began, before = time.perf_counter(), contents(corpus.parent)
    assert make_corpus(corpus.parent, **SMALL) == corpus
    assert time.perf_counter() - began < 0.5
    assert contents(corpus.parent) == before


def test_half_made_corpus_is_completed(tmp_path, monkeypatch):
    whole, half = {**SMALL, "clips": 4, "test": 2}, tmp_path / "half"
    make_corpus(tmp_path / "whole", **whole)
    real, made = synthetic._encode, []

    def failing(path, *rest):
        if len(made) == 3:
            path.with_suffix(".part").write_bytes(b"half a file")
            raise KeyboardInterrupt
        made.append(path)
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "_encode", failing)
        with pytest.raises(KeyboardInterrupt):
            make_corpus(half, **whole)
    assert not (half / "clips.csv").exists()
    make_corpus(half, **whole)
    assert contents(half) == contents(tmp_path / "whole")


def test_folder_with_something_else_is_refused(corpus, tmp_path):
    with pytest.raises(TubeletError, match=r"holds a corpus with size = 32, not 48: choose another folder"):
        make_corpus(corpus.parent, **{**SMALL, "size": 48})
    with pytest.raises(TubeletError, match=r"noise = 0.02, not 0.1"):
        make_corpus(corpus.parent, **SMALL, noise=0.1)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TubeletError, match="holds no synthetic corpus"):
        make_corpus(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"motions": ("left", "sideways")},
        {"motions": ()},
        {"motions": ("left", "left")},
        {"clips": 0},
        {"size": 33},
        {"frames": 1},
        {"fps": 0.0},
        {"speed": (0.4, 0.2)},
        {"mover_size": (0.3,)},
        {"noise": -0.1},
    ],
)
def test_senseless_arguments_are_named(wrong, tmp_path):
    with pytest.raises(TubeletError, match=next(iter(wrong))):
        make_corpus(tmp_path / "never", **{**SMALL, **wrong})
    assert not (tmp_path / "never").exists()


def test_missing_photographs_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[synth\]'"):
        synthetic.load_textures.__wrapped__()


def test_some_motions_only(tmp_path):
    manifest = read_manifest(make_corpus(tmp_path, **{**SMALL, "clips": 4, "test": 2}, motions=["left", "right"]))
    assert Counter(v.label for v in manifest) == {"left": 3, "right": 3}
