import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy
import pytest
import torch

from tubelet import draws
from tubelet.data import audio, augment, read, torchcodec, transform
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest, Video
from tubelet.data.loader import Loader
from tubelet.types import TubeletError
from videos import make_video

VIDEOS = 7
CLIP = {"frames": 4, "stride": 2, "reference_fps": 0.0, "size": 24}


def encode(path, frames, height=24, width=32, fps=10):
    """An mp4 whose frame i is of grey 10 + 12 i, brighter by 5 in the right half."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            picture = numpy.full((height, width, 3), 10 + 12 * i, dtype=numpy.uint8)
            picture[:, width // 2 :] += 5
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(VIDEOS):
        encode(folder / f"{i}.mp4", frames=12 + i)
    encode(folder / "short.mp4", frames=3)
    (folder / "text.mp4").write_text("these are words, not pictures\n")
    (folder / "empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return Manifest([Video(folder / f"{i}.mp4", label=str(i % 3)) for i in range(VIDEOS)])


def take(loader, steps, start=0):
    batches = loader.batches(start)
    taken = list(islice(batches, steps))
    batches.close()
    return taken


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        mine, others = ([b[name]] if torch.is_tensor(b[name]) else b[name] for b in (one, other))
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True)), name


def frame_numbers(clip):
    """Which frames a clip C T H W shows, read off its greys."""
    return ((clip[0].float().amin(dim=(1, 2)) - 10) / 12).round().int().tolist()


# What a batch is


def test_shapes_and_types(manifest):
    (batch,) = take(Loader(Clips(manifest, **CLIP, views=2), 4), 1)
    assert [tuple(v.shape) for v in batch["video"]] == [(4, 3, 4, 24, 24)] * 2  # B C T H W
    assert [tuple(t.shape) for t in batch["times"]] == [(4, 4)] * 2
    assert all(v.dtype == torch.uint8 and v.is_contiguous() for v in batch["video"])
    for name in ("id", "label", "key"):
        assert batch[name].dtype == torch.int64 and batch[name].shape == (4,)
    assert batch["readable"].all()
    assert batch["label"].tolist() == [row % 3 for row in batch["id"].tolist()]


def test_keys_are_the_documented_hash(manifest):
    clips = Clips(manifest, **CLIP, repeats=2, seed=5)
    (batch,) = take(Loader(clips, 4, shuffle=False), 1)
    assert batch["key"].tolist() == [draws.key(5, 0, row, repeat) for row in (0, 1) for repeat in (0, 1)]
    assert batch["id"].tolist() == [0, 0, 1, 1]


def test_pixels_are_those_of_the_times(manifest):
    (batch,) = take(Loader(Clips(manifest, **CLIP, views=2, repeats=2), 6), 1)
    for view in range(2):
        for clip, times in zip(batch["video"][view], batch["times"][view], strict=True):
            expected = (times * 10).floor().int().tolist()
            assert frame_numbers(clip) == expected
            assert expected == [expected[0] + 2 * i for i in range(4)]


def test_views_and_repeats_differ_and_are_opened_once(manifest, monkeypatch):
    opened, real = [], read.read
    monkeypatch.setattr(read, "read", lambda *arguments: opened.append(arguments) or real(*arguments))
    batches = take(Loader(Clips(manifest, **CLIP, views=2, repeats=3), 6), 10)
    assert len(opened) == 20
    views = [batch["video"][0] for batch in batches], [batch["video"][1] for batch in batches]
    assert not torch.equal(torch.cat(views[0]), torch.cat(views[1]))
    first, second = torch.cat([v[0::3] for v in views[0]]), torch.cat([v[1::3] for v in views[0]])
    assert not torch.equal(first, second)


def test_to_device_gives_floats(manifest):
    (batch,) = take(Loader(Clips(manifest, **CLIP), 4), 1)
    moved = to_device(batch, "cpu")
    assert torch.equal(moved["video"][0], batch["video"][0].float() / 255)
    assert moved["video"][0].is_contiguous() and batch["video"][0].dtype == torch.uint8
    assert torch.equal(moved["key"], batch["key"]) and torch.equal(moved["times"][0], batch["times"][0])
    assert_same(to_device(moved, "cpu"), moved)


def test_a_short_video_repeats_its_last_frame(folder):
    for sampling in ("random", "grid"):
        clips = Clips(Manifest([Video(folder / "short.mp4")]), **CLIP, sampling=sampling)
        batch = next(Loader(clips, 1).once())
        assert frame_numbers(batch["video"][0][0]) == [0, 2, 2, 2]


def test_spans_are_kept(folder):
    video = Video(folder / "6.mp4", start_s=0.55, end_s=1.35)
    clips = Clips(Manifest([video]), frames=4, stride=1, reference_fps=0, size=24, sampling="random")
    starts = set()
    for batch in take(Loader(clips, 8), 8):
        for clip in batch["video"][0]:
            numbers = frame_numbers(clip)
            starts.add(numbers[0])
            assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert starts == {5, 6, 7, 8, 9} or starts == {5, 6, 7, 8}


# The order


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_an_epoch_is_a_permutation(manifest, batch):
    loader = Loader(Clips(manifest, **CLIP), batch)
    epochs = []
    for epoch in range(3):
        steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
        slots = [slot for step in steps for slot in loader.slots(step)]
        rows = [slot.id for slot in slots]
        assert {slot.epoch for slot in slots} == {epoch}
        assert len(set(rows)) == len(rows) == VIDEOS // batch * batch
        epochs.append(rows)
    assert epochs[0] != epochs[1] != epochs[2]


def test_another_seed_is_another_order(manifest):
    one, other = (Loader(Clips(manifest, **CLIP, seed=seed), 7).slots(0) for seed in (0, 1))
    assert [s.id for s in one] != [s.id for s in other]


def test_without_shuffling_rows_come_in_order(manifest):
    loader = Loader(Clips(manifest, **CLIP), 2, shuffle=False)
    assert [slot.id for step in range(4) for slot in loader.slots(step)] == [0, 1, 2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_set_smaller_than_a_batch_is_chained(manifest, repeats):
    loader = Loader(Clips(manifest, **CLIP, repeats=repeats), 16 * repeats)
    assert loader.steps_per_epoch == 1
    slots = [slot for step in range(7) for slot in loader.slots(step)]
    assert len(slots) == 7 * 16
    for epoch in range(len(slots) // VIDEOS):
        part = slots[epoch * VIDEOS : (epoch + 1) * VIDEOS]
        assert {slot.epoch for slot in part} == {epoch} and {slot.id for slot in part} == set(range(VIDEOS))
    (batch,) = take(loader, 1)
    assert len(batch["key"]) == 16 * repeats == len(set(batch["key"].tolist()))


def test_batches_do_not_depend_on_workers_or_start(manifest):
    clips = Clips(manifest, **CLIP, views=2, repeats=2)
    alone = take(Loader(clips, 6), 6)
    with_workers = take(Loader(clips, 6, workers=2), 6)
    for one, other in zip(alone, with_workers, strict=True):
        assert_same(one, other)
    for start in (1, 4):
        for one, other in zip(alone[start:], take(Loader(clips, 6), 6 - start, start), strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(manifest, world):
    clips = Clips(manifest, **CLIP, repeats=2)
    alone = take(Loader(clips, 12), 3)
    shares = [take(Loader(clips, 12, rank=rank, world=world), 3) for rank in range(world)]
    for step, whole in enumerate(alone):
        for name in ("id", "key", "label"):
            assert torch.equal(whole[name], torch.cat([share[step][name] for share in shares]))
        assert torch.equal(whole["video"][0], torch.cat([share[step]["video"][0] for share in shares]))


@pytest.mark.parametrize(("batch", "world"), [(3, 1), (4, 1), (100, 1), (4, 2)])
def test_once_gives_each_row_in_order(manifest, batch, world):
    clips = Clips(manifest, **CLIP, repeats=2).for_testing()
    loaders = [Loader(clips, batch, rank=rank, world=world) for rank in range(world)]
    found = [batch["id"] for loader in loaders for batch in loader.once()]
    assert torch.cat(found).tolist() == list(range(VIDEOS))
    assert max(len(ids) for ids in found) <= batch // world


# Testing


def test_for_testing_is_fixed_and_without_augmentation(manifest):
    training = Clips(manifest, **CLIP, sampling="random", crop="multiscale", repeats=2, seed=3)
    testing = training.for_testing(clips=2, crops=3)
    assert testing.clip == training.clip == CLIP and testing.views == 6
    batch = next(Loader(testing, 7).once())
    for row, video in enumerate(manifest):
        frames = 12 + row
        for clip, start in enumerate((0, frames - 8)):
            times = (torch.arange(4) * 2 + start + 0.5) / 10
            pixels = read.read(video.path, times.numpy())
            for crop, left in enumerate((0, 4, 8)):
                view = clip * 3 + crop
                assert torch.allclose(batch["times"][view][row], times.double())
                slow = pixels[..., left : left + 24].permute(1, 0, 2, 3)  # C T H W
                assert torch.equal(batch["video"][view][row], slow)
    other = next(Loader(Clips(manifest, **CLIP, seed=9).for_testing(clips=2, crops=3), 7).once())
    assert_same(batch, other | {"key": batch["key"]})


def test_one_test_clip_is_the_centre(manifest):
    batch = next(Loader(Clips(manifest, **CLIP).for_testing(), 7).once())
    assert [frame_numbers(clip)[0] for clip in batch["video"][0]] == [(12 + row - 8) // 2 for row in range(7)]


def test_what_is_trained_in_segments_is_tested_in_segments(manifest):
    clips = Clips(manifest.take([0]), **CLIP, sampling="segments")
    (batch,) = take(Loader(clips, 4), 1)
    for clip in batch["video"][0]:
        assert [number // 3 for number in frame_numbers(clip)] == [0, 1, 2, 3]
    tested = next(Loader(clips.for_testing(clips=3), 1).once())
    views = [frame_numbers(view[0]) for view in tested["video"]]
    assert views == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_the_shape_of_a_clip_remembers_segments(manifest):
    trained = Clips(manifest, **CLIP, sampling="segments")
    assert trained.clip == {**CLIP, "segments": True} and Clips(manifest, **CLIP).clip == CLIP
    again = next(Loader(Clips(manifest, **trained.clip).for_testing(clips=2, crops=3), 7).once())
    assert_same(again, next(Loader(trained.for_testing(clips=2, crops=3), 7).once()))
    dense = next(Loader(Clips(manifest, **CLIP).for_testing(clips=2, crops=3), 7).once())
    assert not torch.equal(again["times"][0], dense["times"][0])


# RandAugment and repeated augmentation


AUGMENTED = {**CLIP, "randaugment": "m9-n4", "crop": "center", "flip": False}


def test_randaugment_comes_before_the_crop_with_the_clips_own_draws(manifest, monkeypatch):
    order = []
    cropped, augmented = transform.center_crop, augment.RandAugment.__call__
    monkeypatch.setattr(transform, "center_crop", lambda clip, size: order.append("crop") or cropped(clip, size))
    monkeypatch.setattr(
        augment.RandAugment, "__call__",
        lambda self, clip, draw: order.append(tuple(clip.shape)) or augmented(self, clip, draw),
    )  # fmt: skip
    (batch,) = take(Loader(Clips(manifest, **AUGMENTED), 2), 1)
    assert order == [(4, 3, 24, 32), "crop"] * 2  # the whole decoded picture
    assert batch["video"][0].shape == (2, 3, 4, 24, 24)


def test_repeats_are_augmented_differently_and_opened_once(manifest, monkeypatch):
    opened = []
    original = read.read
    monkeypatch.setattr(read, "read", lambda path, *rest: opened.append(path) or original(path, *rest))
    one_place = {**AUGMENTED, "frames": 12, "stride": 1}  # of twelve frames there is one clip only
    (batch,) = take(Loader(Clips(manifest.take([0]), **one_place, repeats=6), 6), 1)
    assert len(opened) == 1 and len(set(batch["key"].tolist())) == 6
    assert torch.equal(batch["times"][0], batch["times"][0][:1].expand(6, -1))
    assert len({clip.numpy().tobytes() for clip in batch["video"][0]}) >= 4  # a few draw no operation at all


def test_randaugment_depends_on_nothing_but_the_place_in_the_run(manifest):
    clips = Clips(manifest, **AUGMENTED, repeats=2)
    whole = take(Loader(clips, 4), 3)
    numpy.random.seed(1)  # noqa: NPY002
    for other in (take(Loader(clips, 4, workers=2), 3), take(Loader(clips, 4), 1) + take(Loader(clips, 4), 2, start=1)):
        for one, two in zip(whole, other, strict=True):
            assert_same(one, two)
    plain = take(Loader(Clips(manifest, **{**AUGMENTED, "randaugment": None}, repeats=2), 4), 3)
    assert not all(torch.equal(a["video"][0], b["video"][0]) for a, b in zip(whole, plain, strict=True))


def test_tests_are_never_augmented(manifest):
    clips = Clips(manifest, **AUGMENTED)
    assert clips.for_testing().randaugment is None
    plain = next(Loader(Clips(manifest, **CLIP).for_testing(), 7).once())
    assert_same(next(Loader(clips.for_testing(), 7).once()), plain)


# Files that cannot be read


@pytest.fixture
def broken(folder, manifest):
    bad = [Video(folder / name, label="0") for name in ("text.mp4", "empty.mp4", "gone.mp4")]
    return Manifest([*manifest, *bad], manifest.classes)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_substitutes_and_reports(broken, workers):
    loader = Loader(Clips(broken, **CLIP), 5, workers=workers)
    plain = [slot.id for step in range(2) for slot in loader.slots(step)]
    batches = take(loader, 2)
    found = torch.cat([batch["id"] for batch in batches]).tolist()
    assert sorted(plain) == list(range(10))
    for row, shown in zip(plain, found, strict=True):
        assert shown == row if row < VIDEOS else shown < VIDEOS
    assert all(batch["readable"].all() for batch in batches)
    assert {Path(path).name for path in loader.unreadable} == {"text.mp4", "empty.mp4", "gone.mp4"}
    assert all(loader.unreadable.values())
    keys = torch.cat([batch["key"] for batch in batches])  # they belong to the place, not to the file
    assert keys.tolist() == [draws.key(0, 0, row, 0) for row in plain]


def test_a_substitute_s_label_is_its_own(broken):
    for batch in take(Loader(Clips(broken, **CLIP), 5), 4):
        assert batch["label"].tolist() == [row % 3 for row in batch["id"].tolist()]


def test_testing_never_substitutes(broken):
    loader = Loader(Clips(broken, **CLIP).for_testing(crops=2), 4)
    batches = list(loader.once())
    readable = torch.cat([batch["readable"] for batch in batches])
    assert torch.cat([batch["id"] for batch in batches]).tolist() == list(range(10))
    assert readable.tolist() == [True] * VIDEOS + [False] * 3
    for view in range(2):
        video = torch.cat([batch["video"][view] for batch in batches])
        assert not video[~readable].any() and video[readable].flatten(1).any(dim=1).all()
    assert len(loader.unreadable) == 3


def test_once_never_substitutes_in_training_either(broken):
    batches = list(Loader(Clips(broken, **CLIP), 4).once())
    assert torch.cat([batch["id"] for batch in batches]).tolist() == list(range(10))
    assert torch.cat([batch["readable"] for batch in batches]).sum() == VIDEOS


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_clear_line(folder, workers):
    rows = Manifest([Video(folder / "text.mp4"), Video(folder / "empty.mp4")])
    with pytest.raises(TubeletError, match=r"none of 2 videos could be read") as error:
        take(Loader(Clips(rows, **CLIP), 2, workers=workers), 1)
    assert "\n" not in str(error.value)


def test_a_span_outside_the_video_is_unreadable(folder):
    rows = Manifest([Video(folder / "0.mp4", start_s=50.0)])
    loader = Loader(Clips(rows, **CLIP).for_testing(), 1)
    assert not next(loader.once())["readable"].any()
    assert "span" in next(iter(loader.unreadable.values()))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"size": -1}, "size must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"randaugment": "rand"}, "data.randaugment 'rand' is not understood"),
        ({"crops": 0, "sampling": "grid"}, "crops must be at least 1"),
        ({"sampling": "randon"}, "did you mean 'random'"),
        ({"crop": "centre"}, "did you mean 'center'"),
        ({"crop": "grid"}, "needs sampling 'grid'"),
        ({"reference_fps": -1.0}, "reference_fps must be 0"),
        ({"scale": (0.0, 1.0)}, "scale must be"),
        ({"scale": (0.5, 1.5)}, "scale must be"),
        ({"ratio": (2.0, 1.0)}, "ratio must be"),
    ],
)
def test_options_that_make_no_sense(manifest, options, message):
    with pytest.raises(TubeletError, match=message):
        Clips(manifest, **options)


def test_an_empty_manifest_is_refused():
    with pytest.raises(TubeletError, match="lists no videos"):
        Clips(Manifest([]))


@pytest.mark.parametrize(
    ("batch", "repeats", "world", "message"),
    [(6, 1, 4, "6 clips.*4 processes"), (3, 2, 1, "batch 3 .* repeats 2"), (0, 1, 1, "at least 1")],
)
def test_batches_that_cannot_be_divided(manifest, batch, repeats, world, message):
    with pytest.raises(TubeletError, match=message):
        Loader(Clips(manifest, **CLIP, repeats=repeats), batch, world=world)


# Decoding size and processes


def test_large_pictures_are_decoded_small(tmp_path, monkeypatch):
    encode(tmp_path / "large.mp4", frames=8, height=96, width=128)
    rows = Manifest([Video(tmp_path / "large.mp4")])
    sides = []

    def cut(clip, box):
        sides.append(clip.shape[-2])
        return clip[..., :24, :24]

    monkeypatch.setattr(transform, "cut", cut)
    for crop in ("resized", "multiscale"):
        next(Loader(Clips(rows, **CLIP, crop=crop, flip=False), 1).once())
    assert sides == [34, 37]  # 24 / sqrt(.5), 24 / .66
    batch = next(Loader(Clips(rows, **CLIP).for_testing(), 1).once())
    assert batch["video"][0].shape[-2:] == (24, 24)


def test_workers_leave_ctrl_c_to_the_main_process(manifest):
    before = set(multiprocessing.active_children())
    batches = Loader(Clips(manifest, **CLIP), 2, workers=1).batches()
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGINT)
    time.sleep(0.3)
    assert worker.is_alive()
    for expected, batch in zip(take(Loader(Clips(manifest, **CLIP), 2), 6)[1:], batches, strict=False):
        assert_same(expected, batch)
    batches.close()
    worker.join(10)
    assert not worker.is_alive()


def test_loading_takes_nothing_from_the_global_generator(manifest):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(Loader(Clips(manifest, **CLIP), 2), 2)
    list(Loader(Clips(manifest, **CLIP), 2, workers=1).once())
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_are_drawn_evenly(manifest):
    loader = Loader(Clips(manifest, **CLIP), 2)
    counts = Counter(slot.id for step in range(3 * 100) for slot in loader.slots(step))
    assert min(counts.values()) > 60  # of 100 epochs, each leaves one of seven out


def test_dense_clips_hold_the_clip_and_the_frames_between(manifest):
    sparse = Clips(manifest, **CLIP, seed=3)
    dense = Clips(manifest, **CLIP, seed=3, density=2)
    assert dense.clip == sparse.clip
    for row in range(VIDEOS):
        (one,), (two,) = sparse[row].clips[0], dense[row].clips[0]
        assert two.pixels.shape == (8, 3, 24, 24)
        assert torch.equal(two.pixels[::2], one.pixels)
        assert numpy.diff(dense[row].times[0][0]) == pytest.approx([0.1] * 7)
    assert dense.for_testing()[0].clips[0][0].pixels.shape == (4, 3, 24, 24)


def test_only_random_sampling_can_be_dense(manifest):
    with pytest.raises(TubeletError, match="needs sampling 'random'"):
        Clips(manifest, **CLIP, sampling="segments", density=2)


# Decoders that crash or hang


def misbehave(monkeypatch, behave):
    """Does `behave(name)` before a video is read."""
    real = read.read
    monkeypatch.setattr(read, "read", lambda path, *rest: behave(path.name) or real(path, *rest))


def test_a_decoder_that_hangs_is_stopped_and_another_video_stands_in(manifest, monkeypatch):
    plain = take(Loader(Clips(manifest, **CLIP), 7), 2)
    misbehave(monkeypatch, lambda name: time.sleep(1000) if name == "3.mp4" else None)
    loader = Loader(Clips(manifest, **CLIP), 7, workers=2, limit_s=1.0)
    batches = take(loader, 2)
    assert 3 not in torch.cat([batch["id"] for batch in batches]).tolist()
    assert {Path(path).name: reason for path, reason in loader.unreadable.items()} == {
        "3.mp4": "it took more than 1 s and was stopped"
    }
    for one, other in zip(batches, plain, strict=True):
        for place, row in enumerate(other["id"].tolist()):
            same = torch.equal(one["video"][0][place], other["video"][0][place])
            assert same if row != 3 else not same


def test_a_decoder_that_crashes_costs_its_file_alone_and_nothing_stands_in_for_it_in_a_test(manifest, monkeypatch):
    misbehave(monkeypatch, lambda name: os.kill(os.getpid(), signal.SIGSEGV) if name == "2.mp4" else None)
    loader = Loader(Clips(manifest, **CLIP).for_testing(), 3, workers=2)
    batches = list(loader.once())
    assert torch.cat([batch["id"] for batch in batches]).tolist() == list(range(VIDEOS))
    assert torch.cat([batch["readable"] for batch in batches]).tolist() == [row != 2 for row in range(VIDEOS)]
    assert list(loader.unreadable.values()) == ["the decoder crashed on it (SIGSEGV)"]


def test_workers_that_are_killed_change_nothing(manifest):
    clips = Clips(manifest, **CLIP, views=2, repeats=2)
    plain, found = take(Loader(clips, 6), 20), []
    before = set(multiprocessing.active_children())
    batches = Loader(clips, 6, workers=2).batches()
    for step in range(20):
        found.append(next(batches))
        if step % 3 == 0:
            for worker in list(set(multiprocessing.active_children()) - before)[: 1 + step % 2]:
                os.kill(worker.pid, signal.SIGKILL)
    batches.close()
    for one, other in zip(found, plain, strict=True):
        assert_same(one, other)


def test_batches_on_a_device_are_those_of_to_device(manifest):
    clips = Clips(manifest, **CLIP, views=2)
    for workers in (0, 2):
        on_device = list(islice(Loader(clips, 6, workers=workers).batches(0, "cpu"), 5))
        for one, other in zip(on_device, take(Loader(clips, 6), 5), strict=True):
            assert_same(one, to_device(other, "cpu"))
            assert all(video.is_contiguous() for video in one["video"])


def test_batches_that_were_handed_out_are_not_written_over(manifest):
    batches = Loader(Clips(manifest, **CLIP), 2, workers=2).batches()
    kept = [next(batches) for _ in range(12)]
    copies = [batch["video"][0].clone() for batch in kept]
    for _ in range(12):
        next(batches)
    assert all(torch.equal(batch["video"][0], copy) for batch, copy in zip(kept, copies, strict=True))


def test_waiting_is_measured(manifest, monkeypatch):
    misbehave(monkeypatch, lambda name: time.sleep(0.05))
    loader = Loader(Clips(manifest, **CLIP), 2, workers=1)
    take(loader, 3)
    assert 0.2 < loader.waited_s < 20


def test_a_mixture_is_read_by_its_weights(manifest):
    rows = [replace(video, corpus="a" if row < 2 else "b") for row, video in enumerate(manifest)]
    loader = Loader(Clips(Manifest(rows), **CLIP, weights={"a": 0.5, "b": 0.5}), 6)
    for batch in take(loader, 4):
        assert sum(row < 2 for row in batch["id"].tolist()) == 3
        assert len(set(batch["key"].tolist())) == 6


# Several corpora, sound and words


def test_a_corpus_may_have_a_stride_of_its_own(manifest):
    rows = Manifest([replace(video, corpus="a" if row < 2 else "b") for row, video in enumerate(manifest)])
    batch = next(Loader(Clips(rows, **CLIP, strides={"b": 3}), 7, shuffle=False).once())
    gaps = [set(numpy.diff(frame_numbers(clip)).tolist()) for clip in batch["video"][0]]
    assert gaps == [{2}, {2}] + [{3}] * 5
    with pytest.raises(TubeletError, match="names 'c', which is no corpus"):
        Clips(rows, **CLIP, strides={"c": 3})
    with pytest.raises(TubeletError, match="stride of 'b' must be at least 1"):
        Clips(rows, **CLIP, strides={"b": 0})


SOUND = {**CLIP, "reference_fps": 30.0, "audio_rate": 8000}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    loud, silent = make_video(folder / "loud.mp4", 60, sound=True), make_video(folder / "silent.mp4", 60)
    return Manifest([Video(loud, extra={"caption": "a tone, rising"}), Video(silent)])


@pytest.mark.parametrize("workers", [0, 1])
def test_sound_is_that_of_the_seconds_of_the_clip(films, workers):
    clips = Clips(films, **SOUND, views=2)
    for batch in take(Loader(clips, 4, workers=workers), 2):
        for view in range(2):
            assert batch["audio"][view].shape == (4, round(8000 * 4 * 2 / 30))
            for row, times, wave in zip(batch["id"], batch["times"][view], batch["audio"][view], strict=True):
                if row == 1:
                    assert not wave.any()
                    continue
                heard = audio.waveform(films[0].path, float(times[0]) - 0.5 / 30, 4 * 2 / 30, 8000)
                assert heard.any() and torch.equal(wave, heard)
        assert batch["audio_present"].tolist() == [row == 0 for row in batch["id"].tolist()]


def test_words_come_along(films):
    (batch,) = take(Loader(Clips(films, **CLIP, captions="caption", repeats=2), 4, shuffle=False), 1)
    assert batch["text"] == [["a tone, rising"] * 2 + [""] * 2]
    assert to_device(batch, "cpu")["text"] == batch["text"]
    with pytest.raises(TubeletError, match=r"no column 'captoin'.*did you mean 'caption'"):
        Clips(films, **CLIP, captions="captoin")


@pytest.mark.parametrize("options", [{"reference_fps": 0.0}, {"sampling": "segments"}])
def test_sound_needs_clips_that_last_equally_long(films, options):
    with pytest.raises(TubeletError, match="audio_rate needs clips that all last equally long"):
        Clips(films, **{**SOUND, **options})


def test_torchcodec_reads_where_it_is_chosen(films, monkeypatch):
    monkeypatch.setattr(torchcodec, "chosen", lambda reader, places, side: {"auto": "torchcodec"}.get(reader, reader))
    monkeypatch.setattr(torchcodec, "read", lambda *arguments: read.read(*arguments).fill_(7))
    clips = Clips(films, **CLIP, reader="auto")
    assert clips.choose_reader(before="pyav") == clips.reader == "pyav"
    clips = Clips(films, **CLIP, reader="auto")
    assert clips.choose_reader() == clips.reader == clips.for_testing().reader == "torchcodec"
    (batch,) = take(Loader(clips, 2), 1)
    assert (batch["video"][0] == 7).all()


@pytest.mark.parametrize("crop", ["resized", "multiscale", "center"])
@pytest.mark.parametrize("workers", [0, 1])
def test_crops_that_are_resized_on_the_device_are_the_same(manifest, crop, workers, broken):
    options = {**CLIP, "size": 16, "crop": crop, "views": 2, "repeats": 2}
    for rows in (manifest, broken):
        plain = take(Loader(Clips(rows, **options), 10), 3)
        found = take(Loader(Clips(rows, **options, resize_on="device"), 10, workers=workers), 3)
        for one, other in zip(plain, found, strict=True):
            assert_same(one, other)
    long = {**options, "size": 8, "scale": (0.9, 1.0), "ratio": (2.5, 3.0)}  # too large to be sent as it is
    plain = take(Loader(Clips(manifest, **long), 4), 2)
    for one, other in zip(plain, take(Loader(Clips(manifest, **long, resize_on="device"), 4), 2), strict=True):
        assert_same(one, other)


def test_what_is_known_to_be_unreadable_is_not_tried_again(manifest, monkeypatch, tmp_path):
    def hang(name):
        if name == "2.mp4":
            with (tmp_path / "tries").open("a") as tries:
                tries.write("x")
            time.sleep(1000)

    misbehave(monkeypatch, hang)
    loader = Loader(Clips(manifest, **CLIP).for_testing(), 3, workers=1, limit_s=0.5)
    for _ in range(3):
        readable = torch.cat([batch["readable"] for batch in loader.once()])
        assert readable.tolist() == [row != 2 for row in range(VIDEOS)]
    assert (tmp_path / "tries").read_text() == "x"


def test_one_bad_span_does_not_make_the_file_s_other_spans_unreadable(folder):
    rows = Manifest([Video(folder / "0.mp4", start_s=50.0), Video(folder / "0.mp4"), Video(folder / "1.mp4")])
    loader = Loader(Clips(rows, **CLIP), 3)
    take(loader, 4)
    assert set(loader.unreadable_rows) == {0} and len(loader.unreadable) == 1


def test_views_lie_in_time_as_is_asked(manifest):
    apart = {}
    for choice in ("independent", "same", "near"):
        clips = Clips(manifest, **CLIP, views=2, view_times=choice)
        first, second = next(Loader(clips, 4).batches())["times"]
        apart[choice] = (first[:, 0] - second[:, 0]).abs()
    assert not apart["same"].any() and apart["near"].any() and apart["independent"].any()
    batch = next(Loader(Clips(manifest, **CLIP, views=2, view_times="same", scale=(0.3, 0.6)), 4).batches())
    assert not torch.equal(*batch["video"])  # each is cropped by itself
    with pytest.raises(TubeletError, match="view_times 'near' needs sampling 'random'"):
        Clips(manifest, **CLIP, views=2, view_times="near", sampling="segments")
    with pytest.raises(TubeletError, match="view_times 'nearby' is not known; did you mean 'near'"):
        Clips(manifest, **CLIP, view_times="nearby")
