import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from films import film
from tubelet import cli
from tubelet.data import flow as flowing
from tubelet.data import read, transform
from tubelet.data.clips import Clips
from tubelet.data.device import squares, to_device
from tubelet.data.flow import Flow, make_films
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.data.loader import Loader
from tubelet.data.pack import Packing, pack
from tubelet.data.workers import Workers
from tubelet.types import TubeletError

CLIP = {"frames": 4, "stride": 1, "reference_fps": 10.0, "size": 32}
FRAMES, FPS = 12, 10.0


def texture(height: int, width: int, seed: int = 0) -> numpy.ndarray:
    """Blots of a few pixels, H W in 0..1, that repeat themselves at the edges."""
    noise = torch.from_numpy(numpy.random.default_rng(seed).random((1, 1, height, width))).float()
    for _ in range(3):
        noise = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(noise, (2, 2, 2, 2), mode="circular"), 5, 1)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return noise[0, 0].numpy()


def moved(picture: numpy.ndarray, right: float, down: float) -> numpy.ndarray:
    """The picture shifted by any number of pixels, exactly, since it repeats itself: a phase for each frequency."""
    y, x = numpy.fft.fftfreq(picture.shape[0])[:, None], numpy.fft.fftfreq(picture.shape[1])[None]
    return numpy.fft.ifft2(numpy.fft.fft2(picture) * numpy.exp(-2j * numpy.pi * (x * right + y * down))).real


def write(path: Path, right: float, down: float, frames: int = FRAMES, size: tuple[int, int] = (48, 64)) -> Path:
    still = texture(*size)
    pictures = [(moved(still, right * i, down * i).clip(0, 1) * 255).astype(numpy.uint8) for i in range(frames)]
    return film(path, [numpy.repeat(p[..., None], 3, axis=2) for p in pictures], fps=FPS, size=size)


def recoloured(path: Path, levels: tuple[int, int, int], like: Path) -> Path:
    """A film of one colour, with as many frames as another: flow that needs no OpenCV."""
    count = read.probe(like).frames
    picture = numpy.broadcast_to(numpy.array(levels, dtype=numpy.uint8), (48, 64, 3))
    return film(path, [picture] * count, codec="libx264rgb", pix_fmt="rgb24", fps=FPS, size=(48, 64), b_frames=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three videos that move, and a manifest of them."""
    folder = tmp_path_factory.mktemp("videos")
    steps = [(3.0, -1.5), (-2.25, 0.0), (0.0, 0.0)]
    rows = [Video(write(folder / f"{i}.mp4", *step), group=str(i // 2)) for i, step in enumerate(steps)]
    write_manifest(folder / "clips.csv", Manifest(rows))
    return folder / "clips.csv"


@pytest.fixture(scope="module")
def painted(videos) -> Manifest:
    """The same videos with films whose every pixel moves 2, 4 and 6 pixels to the right, written without OpenCV."""
    folder, rows = videos.parent / "painted", []
    folder.mkdir()
    for i, video in enumerate(read_manifest(videos)):
        level = int(Flow().picture(numpy.array([[[2.0 + 2 * i, 0.0]]]))[0, 0, 0])
        rows.append(replace(video, flow=recoloured(folder / f"{i}.mp4", (level, 128, 10), video.path)))
    return Manifest(rows)


# The films


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_a_known_translation_is_recovered_within_a_fraction_of_a_pixel(videos, tmp_path, method):
    pytest.importorskip("cv2")
    flow = Flow(method)
    for row, (right, down) in enumerate([(3.0, -1.5), (-2.25, 0.0), (0.0, 0.0)]):
        video = read_manifest(videos)[row].path
        flowing.film(video, tmp_path / "flow.mp4", flow)
        found = numpy.stack([flow.displacement(picture) for _, picture in read.frames(tmp_path / "flow.mp4")])
        assert found.shape == (FRAMES, 48, 64, 2)
        inner = found[:, 12:-12, 12:-12]  # what comes in at an edge was not to be seen before
        assert numpy.abs(numpy.median(inner, axis=(1, 2)) - [right, down]).max() < 0.2  # a level is 0.16 pixels
        assert numpy.abs(found[-1] - found[-2]).max() < 0.5


def test_a_displacement_comes_back_from_its_picture():
    flow = Flow(limit_px=10)
    there = numpy.random.default_rng(0).uniform(-9.9, 9.9, (5, 7, 2))
    picture = flow.picture(there)
    assert picture.dtype == numpy.uint8
    assert numpy.abs(flow.displacement(picture) - there).max() <= 0.5 * 10 / 127 + 1e-5
    assert numpy.abs(picture[..., 2] / 25.5 - numpy.hypot(there[..., 0], there[..., 1]).clip(max=10)).max() < 0.03
    ends = flow.picture(numpy.array([[[-99.0, 99.0], [0.0, 0.0]]]))
    assert ends.tolist() == [[[1, 255, 255], [128, 128, 0]]]


def test_a_film_has_the_times_of_its_video(tmp_path):
    pytest.importorskip("cv2")
    starts = [0.0, 0.1, 0.15, 0.4, 0.8, 0.85]
    pictures = [numpy.repeat((moved(texture(48, 64), 2 * i, 0).clip(0, 1) * 255).astype(numpy.uint8)[..., None], 3, 2)
                for i in range(len(starts))]  # fmt: skip
    video = film(tmp_path / "uneven.mp4", pictures, starts_s=starts, size=(48, 64))
    flowing.film(video, tmp_path / "flow.mp4", Flow())
    mine, its = ([time_s for time_s, _ in read.frames(path)] for path in (tmp_path / "flow.mp4", video))
    assert mine == pytest.approx(its, abs=0.002)


def test_pictures_are_shrunk_and_their_pixels_counted(tmp_path):
    pytest.importorskip("cv2")
    video, flow = write(tmp_path / "large.mp4", 4.0, 0.0, frames=4, size=(128, 192)), Flow(short_side=64)
    flowing.film(video, tmp_path / "flow.mp4", flow)
    _, picture = next(read.frames(tmp_path / "flow.mp4"))
    assert picture.shape == (64, 96, 3)
    assert numpy.median(flow.displacement(picture)[16:-16, 16:-16, 0]) == pytest.approx(2.0, abs=0.2)


def test_one_picture_does_not_move(tmp_path):
    pytest.importorskip("cv2")
    flowing.film(write(tmp_path / "one.mp4", 0, 0, frames=1), tmp_path / "flow.mp4", Flow())
    ((_, picture),) = read.frames(tmp_path / "flow.mp4")
    assert numpy.abs(picture.astype(int) - [128, 128, 0]).max() <= 1


# All films of a manifest


@pytest.mark.parametrize("workers", [0, 2])
def test_the_command_writes_films_and_a_manifest(videos, tmp_path, workers):
    pytest.importorskip("cv2")
    manifest = read_manifest(videos)
    (tmp_path / "text.mp4").write_text("no video")
    listed = [*manifest, Video(tmp_path / "text.mp4"), replace(manifest[0], start_s=0.2, end_s=0.9)]
    write_manifest(tmp_path / "clips.csv", Manifest(listed))
    words = ["data", "flow", str(tmp_path / "clips.csv"), "--out", str(tmp_path / "flow"), "--workers", str(workers)]
    assert cli.main(words) == 0
    found = read_manifest(tmp_path / "flow" / "clips.csv")
    assert [row.path for row in found] == [*(row.path for row in manifest), manifest[0].path]
    assert found[3].flow == found[0].flow and found[3].start_s == 0.2  # spans of one file share its film
    assert len({row.flow for row in found}) == 3 == len(list((tmp_path / "flow").glob("*.mp4")))
    assert "text.mp4" in (tmp_path / "flow" / "unreadable.csv").read_text()
    text = (tmp_path / "flow" / "clips.csv").read_text()
    assert f"\n{manifest[0].path}" in text and str(tmp_path / "flow") not in text  # films move with their manifest


def test_what_is_there_is_not_made_again_and_what_has_changed_is(videos, tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    source = Manifest([Video(write(tmp_path / f"{i}.mp4", 1.0, i, frames=3)) for i in range(2)])
    first = make_films(source, tmp_path / "flow", Flow(), workers=0)
    assert (first.films, first.made) == (2, 2)
    monkeypatch.setattr(flowing, "film", lambda *_: pytest.fail("it is there"))
    assert make_films(source, tmp_path / "flow", Flow(), workers=0).made == 0
    monkeypatch.undo()
    write(tmp_path / "1.mp4", -2.0, 0.0, frames=4)
    again = make_films(source, tmp_path / "flow", Flow(), workers=0)
    assert (again.films, again.made) == (2, 1)
    before, now = read_manifest(first.manifest), read_manifest(again.manifest)
    assert before[0].flow == now[0].flow
    other = make_films(source, tmp_path / "flow", Flow(limit_px=10), workers=0)
    assert other.made == 2  # of other options


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from tubelet.data import flow as flowing
from tubelet.data.listing import read_manifest
import time
film = flowing.film
def slow(*words):
    film(*words)
    time.sleep(0.4)
flowing.film = slow
flowing.make_films(read_manifest({manifest!r}), Path({out!r}), flowing.Flow(), workers=1)
"""


def test_a_killed_command_goes_on_where_it_was(videos, tmp_path):
    """Without the move of whole films into their place, half of one would be taken for a film."""
    pytest.importorskip("cv2")
    out = tmp_path / "flow"
    script = KILLED.format(path=sys.path, manifest=str(videos), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not list(out.glob("*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path.name for path in out.glob("*.mp4")}
    assert 1 <= len(there) < 3 and not (out / "clips.csv").exists()
    filmed = make_films(read_manifest(videos), out, Flow(), workers=1)
    assert (filmed.films, filmed.made) == (3, 3 - len(there))
    assert {read.probe(path).frames for path in out.glob("*.mp4")} == {FRAMES}
    assert not list(out.glob(".making-*"))


def test_a_crash_costs_its_video_alone(videos, tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    crashing, original = read_manifest(videos)[1].path, flowing.film

    def film(video, *words):
        if video == crashing:
            os.kill(os.getpid(), signal.SIGSEGV)
        original(video, *words)

    monkeypatch.setattr(flowing, "film", film)
    filmed = make_films(read_manifest(videos), tmp_path / "flow", Flow(), workers=1)
    assert filmed.films == 2
    assert [(place, "crashed" in reason) for place, reason in filmed.left_out] == [(crashing, True)]


def test_without_opencv_the_error_names_the_extra(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(TubeletError, match=r"pip install 'tubelet\[flow\]'"):
        make_films(read_manifest(videos), tmp_path / "flow", Flow())


def test_mistakes_are_told(videos, tmp_path):
    pytest.importorskip("cv2")
    tiny = Manifest([Video(write(tmp_path / "tiny.mp4", 0, 0, frames=2, size=(8, 8)))])
    with pytest.raises(TubeletError, match="8 x 8 are too small for flow"):
        make_films(tiny, tmp_path / "flow", Flow(), workers=0)
    with pytest.raises(TubeletError, match="would be written over"):
        make_films(read_manifest(videos), videos.parent, Flow())
    with pytest.raises(TubeletError, match="--limit-px"):
        Flow(limit_px=0)
    with pytest.raises(TubeletError, match="--short-side"):
        Flow(short_side=-1)


def test_a_disk_that_cannot_be_written_to_stops_everything(videos, tmp_path, monkeypatch):
    pytest.importorskip("cv2")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flowing.encode, "video", full)
    with pytest.raises(TubeletError, match="No space left"):
        make_films(read_manifest(videos), tmp_path / "flow", Flow(), workers=0)


def test_a_second_command_in_the_same_folder_is_refused(videos, tmp_path):
    pytest.importorskip("cv2")
    out = tmp_path / "flow"
    held = Workers(lambda _: _held(out), 1)  # a lock of this very process would not be in its own way
    results = held.map([0])
    assert next(results)[1] is True
    results.close()


def _held(out: Path) -> bool:
    from tubelet.data.pack import alone

    out.mkdir()
    with alone(out, "doing it"):
        told = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\nfrom pathlib import Path\n"
             f"from tubelet.data.pack import alone\nwith alone(Path({str(out)!r}), 'doing it'): pass"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "another process is doing it" in told.stderr


# Read beside videos, or instead of them


def batch_of(clips: Clips, batch: int = 3, **options):
    batches = Loader(clips, batch, shuffle=False, **options).batches()
    found = next(batches)
    batches.close()
    return found


def test_flow_comes_beside_the_video_one_a_view(painted):
    found = batch_of(Clips(painted, **CLIP, views=2, flow="beside", flip=False))
    assert [v.shape for v in found["flow"]] == [v.shape for v in found["video"]] == [(3, 3, 4, 32, 32)] * 2
    for view in found["flow"]:
        for i, clip in enumerate(view):  # each its own film's level
            assert (clip[0].float() - Flow().picture(numpy.array([[[2.0 + 2 * i, 0]]]))[0, 0, 0]).abs().max() <= 1
    floats = to_device(found, "cpu")
    assert floats["flow"][0].dtype == torch.float32
    assert torch.equal(floats["flow"][1], found["flow"][1].float() / 255)
    alone = batch_of(Clips(painted, **CLIP, views=2, flip=False))
    assert "flow" not in alone
    assert all(torch.equal(a, b) for a, b in zip(alone["video"], found["video"], strict=True))


def test_instead_and_exchanged_are_the_same_two_films(painted):
    both = batch_of(Clips(painted, **CLIP, flow="beside"))
    turned = batch_of(Clips(painted, **CLIP, flow="exchanged"))
    alone = batch_of(Clips(painted, **CLIP, flow="instead"))
    assert torch.equal(turned["video"][0], both["flow"][0]) and torch.equal(turned["flow"][0], both["video"][0])
    assert torch.equal(alone["video"][0], both["flow"][0]) and "flow" not in alone


@pytest.mark.parametrize("crop", ["resized", "multiscale", "center"])
def test_flow_has_the_crop_and_the_moments_of_its_video(videos, crop):
    """Its film is the video itself here: whatever is not treated alike would differ."""
    rows = [replace(video, flow=video.path) for video in read_manifest(videos)]
    found = batch_of(Clips(Manifest(rows), **CLIP, views=2, flow="beside", crop=crop, flip=False))
    for video, flow in zip(found["video"], found["flow"], strict=True):
        assert torch.equal(video, flow)


@pytest.mark.parametrize("resize_on", ["worker", "device"])
def test_a_mirror_turns_the_first_channel_round(painted, resize_on):
    rows = [replace(video, flow=video.path) for video in painted]
    found = batch_of(Clips(Manifest(rows * 8), **CLIP, flow="beside", resize_on=resize_on), 24)
    plain = [torch.equal(v, f) for v, f in zip(found["video"][0], found["flow"][0], strict=True)]
    assert 4 <= sum(plain) <= 20
    for video, flow, same in zip(found["video"][0], found["flow"][0], plain, strict=True):
        if not same:
            assert torch.equal(video[1:], flow[1:])
            assert torch.equal(256 - video[0].int().clamp(min=1), flow[0].int())


def test_what_is_still_stays_so_in_a_mirror():
    clip = torch.full((2, 3, 4, 5), 128, dtype=torch.uint8)
    assert torch.equal(transform.flip_flow(clip), clip)
    clip[:, 0, :, 1] = 138
    turned = transform.flip_flow(clip)
    assert turned[0, 0, 0].tolist() == [128, 128, 128, 118, 128]
    assert torch.equal(transform.flip_flow(turned), clip)
    torch.testing.assert_close(transform.flip_flow(clip.float() / 255), turned.float() / 255)
    assert transform.flip_flow(torch.zeros(1, 3, 1, 1, dtype=torch.uint8))[0, 0, 0, 0] == 255


def test_squares_of_a_gpu_and_of_a_worker_turn_alike(painted):
    clips = Clips(painted, **CLIP, flow="instead", resize_on="device")
    pieces = [piece for row in range(3) for piece in clips[row].clips[0]]
    one = squares([p._replace(mirrored=True) for p in pieces], 32, torch.device("cpu"))
    assert torch.equal(one[0].transpose(0, 1), transform.flip_flow(pieces[0]._replace(mirrored=False).square(32)))


def test_films_of_another_size_fit_the_picture(painted, tmp_path):
    small = film(tmp_path / "small.mp4", [numpy.full((24, 32, 3), 140, numpy.uint8)] * FRAMES, codec="libx264rgb",
                 pix_fmt="rgb24", fps=FPS, size=(24, 32), b_frames=0)  # fmt: skip
    found = batch_of(Clips(Manifest([replace(painted[0], flow=small)]), **CLIP, flow="beside", flip=False), 1)
    assert found["flow"][0].shape == (1, 3, 4, 32, 32)
    assert (found["flow"][0].float() - 140).abs().max() <= 1


def test_flow_of_a_span_is_that_of_its_moments(videos, tmp_path):
    """The film counts up, so that each of its pictures is known by its level."""
    video = read_manifest(videos)[0]
    levels = [numpy.full((48, 64, 3), 20 * i, numpy.uint8) for i in range(FRAMES)]
    counting = film(tmp_path / "count.mp4", levels, codec="libx264rgb", pix_fmt="rgb24", fps=FPS, size=(48, 64),
                    b_frames=0)  # fmt: skip
    row = replace(video, start_s=0.5, end_s=0.9, flow=counting)
    found = batch_of(Clips(Manifest([row]), **CLIP, flow="instead", flip=False), 1)
    assert (found["video"][0][0, 0, :, 16, 16].float() / 20).round().tolist() == [5, 6, 7, 8]


def test_workers_repeats_and_tests_have_flow_too(painted):
    options = {"views": 2, "repeats": 2, "flow": "beside"}
    one = batch_of(Clips(painted, **CLIP, **options), 6)
    other = batch_of(Clips(painted, **CLIP, **options), 6, workers=2)
    assert all(torch.equal(a, b) for a, b in zip(one["flow"], other["flow"], strict=True))
    tested = Clips(painted, **CLIP, flow="instead").for_testing(clips=2)
    assert tested.flow == "instead" and tested.clip["flow"] == "instead"
    batch = next(iter(Loader(tested, 3).once()))
    assert len(batch["video"]) == 2 and (batch["video"][0][2, 0] - batch["video"][0][0, 0]).float().mean() > 20
    assert Clips(painted, **CLIP, flow="exchanged").clip["flow"] == "instead"
    assert "flow" not in Clips(painted, **CLIP, flow="beside").clip


def test_siblings_have_one_group(painted):
    found = batch_of(Clips(painted, **CLIP))
    assert found["group"].tolist() == [0, 0, 1]
    assert found["group"].dtype == torch.int64


def test_manifests_without_flow_and_what_flow_does_not_go_with_are_refused(videos, painted):
    with pytest.raises(TubeletError, match=r"3 of 3 videos .* no flow: `tubelet data flow"):
        Clips(read_manifest(videos), **CLIP, flow="beside")
    with pytest.raises(TubeletError, match="randaugment"):
        Clips(painted, **CLIP, flow="beside", randaugment="m7-n4")
    with pytest.raises(TubeletError, match="flow 'besides' is not known; did you mean 'beside'"):
        Clips(painted, **CLIP, flow="besides")


def test_a_film_that_cannot_be_read_costs_its_video(painted, tmp_path):
    rows = [replace(painted[0], flow=tmp_path / "missing.mp4"), *painted.videos[1:]]
    loader = Loader(Clips(Manifest(rows), **CLIP, flow="beside"), 3)
    batches = loader.batches()
    next(batches)
    batches.close()
    assert list(loader.unreadable) == [str(painted[0].path)]


def test_the_manifest_keeps_flow_and_the_root_holds_for_it(painted, tmp_path):
    write_manifest(tmp_path / "clips.csv", painted)
    assert [video.flow for video in read_manifest(tmp_path / "clips.csv")] == [video.flow for video in painted]
    assert painted.fingerprint != Manifest([replace(video, flow=None) for video in painted]).fingerprint
    (tmp_path / "in").mkdir()
    inside = write(tmp_path / "in" / "0.mp4", 0, 0, frames=2)
    write_manifest(tmp_path / "one.csv", Manifest([Video(inside, flow=tmp_path / "out.mp4")]))
    with pytest.raises(TubeletError, match="outside of the root"):
        read_manifest(tmp_path / "one.csv", root=tmp_path / "in")


def test_a_pack_leaves_flow_out_and_gets_its_own(painted, tmp_path):
    """Shards have other times than their sources where spans are packed: films are made of the samples."""
    pytest.importorskip("cv2")
    packed = pack(painted, tmp_path / "packed", Packing("raw"), workers=0)
    rows = read_manifest(packed.manifest)
    assert all(row.flow is None for row in rows)
    filmed = make_films(rows, tmp_path / "flow", Flow(), workers=0)
    found = batch_of(Clips(read_manifest(filmed.manifest), **CLIP, flow="beside", flip=False))
    assert found["flow"][0].shape == (3, 3, 4, 32, 32)
    level = float(found["flow"][0][0, 0].float().median())
    assert (level - 128) * 20 / 127 == pytest.approx(3.0, abs=0.4)
