from __future__ import annotations

import os
import pickle
import shutil
import struct
from pathlib import Path

import av
import numpy
import pytest

from tubelet.data import decode, read
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.data.pack import Packing, pack
from tubelet.data.read import UnreadableVideo
from videos import make_sound, make_video, numbers, painted

FIXTURES = Path(__file__).parents[3] / "shared/data/fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are absent")


def middles(frames: list[int], fps: float = 30.0) -> numpy.ndarray:
    return (numpy.array(frames) + 0.5) / fps


@pytest.mark.parametrize("gop", [1, 12, 250])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mov"])
def test_every_frame_alone_is_exact(tmp_path, gop, b_frames, suffix):
    path = make_video(tmp_path / f"a{suffix}", 100, gop=gop, b_frames=b_frames)
    for wanted in (0, 1, 11, 12, 13, 40, 63, 98, 99):
        for time_s in (wanted / 30, (wanted + 0.5) / 30, (wanted + 0.9) / 30):
            assert numbers(read.read(path, numpy.array([time_s]))) == [wanted]


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", ".avi"), ("mpeg2video", ".mpg"), ("libx265", ".mp4")])
def test_other_codecs_are_exact(tmp_path, codec, suffix):
    path = make_video(tmp_path / f"a{suffix}", 60, codec=codec, size=(48, 128), fps=25)
    for wanted in (0, 5, 13, 31, 47, 56):
        assert numbers(read.read(path, middles([wanted], 25))) == [wanted]


def test_times_in_any_order_with_repeats(tmp_path):
    path = make_video(tmp_path / "a.mp4", 100)
    wanted = [70, 3, 3, 99, 0, 41, 70]
    assert numbers(read.read(path, middles(wanted))) == wanted


def test_times_outside_repeat_the_ends(tmp_path):
    path = make_video(tmp_path / "a.mp4", 20, gop=5)
    assert numbers(read.read(path, numpy.array([-1.0, 0.6, 0.7, 500.0]))) == [0, 18, 19, 19]


def test_a_jump_saves_decoding(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 200, gop=10)
    decoded = []
    decode_packets = decode._Player._decode_packets

    def counted(self):
        for picture in decode_packets(self):
            decoded.append(picture)
            yield picture

    monkeypatch.setattr(decode._Player, "_decode_packets", counted)
    assert numbers(read.read(path, middles([52, 195]))) == [52, 195]
    assert len(decoded) < 24


def test_variable_rate(tmp_path):
    starts = [0.0, 0.1, 0.15, 0.5, 0.52, 1.4, 1.5, 1.55, 2.5, 2.6]
    path = make_video(tmp_path / "a.mp4", 10, times_s=starts)
    times = numpy.array([0.05, 0.1, 0.14, 0.15, 0.49, 0.51, 1.39, 1.4, 1.52, 2.49, 2.51])
    assert numbers(read.read(path, times)) == [0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_times_start_at_the_first_displayed_frame(tmp_path, suffix):
    path = make_video(tmp_path / f"a{suffix}", 60, start_s=7.5)
    info = read.probe(path)
    assert info.start_s >= 7.4
    assert info.duration_s == pytest.approx(2.0, abs=0.1)
    assert numbers(read.read(path, middles([0, 1, 30, 59]))) == [0, 1, 30, 59]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation(tmp_path, rotation):
    path = make_video(tmp_path / "a.mp4", 12, rotation=rotation)
    info = read.probe(path)
    clip = read.read(path, middles([11, 2])).numpy()
    assert info.rotation == rotation
    assert clip.shape == (2, 3, info.height, info.width)
    assert (info.height, info.width) == ((64, 48) if rotation in (90, 270) else (48, 64))
    assert numbers(numpy.rot90(clip, -rotation // 90, axes=(2, 3))) == [11, 2]


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_mirrored(tmp_path, horizontal, vertical, swapped):
    """Each of the eight matrices that only turn and flip: a flip left to right, upside down, then rows for columns."""
    path = make_video(tmp_path / "a.mp4", 12)
    stored = read.read(path, middles([11, 2]))  # T C H W
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    right, down = (-1 if horizontal else 1) << 16, (-1 if vertical else 1) << 16  # where these go to
    a, b, c, d = (0, right, down, 0) if swapped else (right, 0, 0, down)
    struct.pack_into(">9i", data, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    wanted = stored.flip([side for side, flipped in ((3, horizontal), (2, vertical)) if flipped])
    wanted = wanted.transpose(2, 3) if swapped else wanted
    clip = read.read(path, middles([11, 2]))
    info = read.probe(path)
    assert clip.shape == wanted.shape == (2, 3, info.height, info.width)
    assert (clip == wanted).all()
    assert info.mirrored == horizontal ^ vertical ^ swapped


def test_colours_and_layout(tmp_path):
    path = make_video(tmp_path / "a.mp4", 3)
    clip = read.read(path, middles([1]))
    assert (clip.shape, str(clip.dtype)) == ((1, 3, 48, 64), "torch.uint8")
    difference = clip[0].permute(1, 2, 0).numpy().astype(int) - painted(1)
    assert abs(difference).mean() < 3  # full range: white is 255, not 235


def test_short_side_shrinks_and_never_enlarges(tmp_path):
    path = make_video(tmp_path / "a.mp4", 8, size=(120, 160))
    assert read.read(path, middles([3]), short_side=60).shape == (1, 3, 60, 80)
    assert numbers(read.read(path, middles([5]), short_side=60)) == [5]
    assert read.read(path, middles([3]), short_side=500).shape == (1, 3, 120, 160)
    turned = make_video(tmp_path / "b.mp4", 8, size=(120, 160), rotation=90)
    assert read.read(turned, middles([3]), short_side=60).shape == (1, 3, 80, 60)


def test_probe(tmp_path):
    info = read.probe(make_video(tmp_path / "a.mp4", 45, fps=15, sound=True))
    assert (info.width, info.height, info.codec, info.frames, info.fps) == (64, 48, "h264", 45, 15)
    assert info.duration_s == pytest.approx(3.0)


def test_probe_of_a_changed_file_is_new(tmp_path):
    path = make_video(tmp_path / "a.mp4", 10)
    before = read.probe(path)
    make_video(path, 20)
    assert (before.frames, read.probe(path).frames) == (10, 20)


def test_sound_beside_the_picture(tmp_path):
    path = make_video(tmp_path / "a.mp4", 60, sound=True)
    assert numbers(read.read(path, middles([50, 7]))) == [50, 7]


def test_one_frame(tmp_path):
    path = make_video(tmp_path / "a.mp4", 1)
    assert read.probe(path).frames == 1
    assert numbers(read.read(path, numpy.linspace(0, 3, 4))) == [0, 0, 0, 0]


def test_raw_stream_without_times_is_counted(tmp_path):
    path = make_video(tmp_path / "a.h264", 50, fps=25)
    assert numbers(read.read(path, middles([0, 24, 49], 25))) == [0, 24, 49]


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    good = make_video(folder / "good.mp4", 30)
    files = {}

    def add(name: str, data: bytes, reason: str) -> None:
        (folder / name).write_bytes(data)
        files[name] = (folder / name, reason)

    add("zero.mp4", b"", "empty")
    add("text.mp4", b"this is not a video, only words\n" * 50, "text")
    add("page.mp4", b"<!DOCTYPE html><html><body>404 not found</body></html>", "text")
    add("noise.mp4", numpy.random.default_rng(0).bytes(5000), "header is damaged")
    add("no_index.mp4", good.read_bytes()[: good.stat().st_size // 3], "index")
    (folder / "folder.mp4").mkdir()
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    files["missing"] = (folder / "missing.mp4", "no such file")
    files["folder"] = (folder / "folder.mp4", "folder")
    files["link"] = (folder / "link.mp4", "no such file")
    files["sound"] = (make_sound(folder / "sound.mp4"), "no video stream")
    with av.open(str(folder / "still.png"), "w") as image:
        stream = image.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        image.mux(stream.encode(av.VideoFrame.from_ndarray(painted(3), format="rgb24")))
    files["still"] = (shutil.move(folder / "still.png", folder / "still.mp4"), "still image")
    return files


def test_bad_files_give_one_clear_line(tmp_path, capfd):
    for path, reason in bad_files(tmp_path).values():
        for look in (read.probe, read.check, lambda p: read.read(p, numpy.zeros(1))):
            with pytest.raises(UnreadableVideo) as caught:
                look(path)
            assert reason in caught.value.reason
            assert "\n" not in str(caught.value)
            assert path.name in str(caught.value)
            again = pickle.loads(pickle.dumps(caught.value))
            assert (again.path, again.reason) == (caught.value.path, caught.value.reason)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="everything can be read")
def test_no_permission(tmp_path):
    path = make_video(tmp_path / "a.mp4", 5)
    path.chmod(0)
    with pytest.raises(UnreadableVideo, match="permission"):
        read.probe(path)


def test_damage_in_the_middle_is_skipped(tmp_path, capfd):
    path = make_video(tmp_path / "a.mp4", 100, gop=10)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 400] = bytes(400)
    path.write_bytes(data)
    assert numbers(read.read(path, middles([0, 99]))) == [0, 99]
    assert read.read(path, middles(list(range(100)))).shape[0] == 100
    assert capfd.readouterr() == ("", "")


def test_a_file_that_breaks_off_repeats_its_last_frame_and_fails_the_check(tmp_path):
    path = make_video(tmp_path / "a.mkv", 100, gop=10, size=(240, 320))
    read.check(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    found = numbers(read.read(path, middles([0, 5, 95])))
    assert found[:2] == [0, 5]
    assert 5 < found[2] < 50
    with pytest.raises(UnreadableVideo, match=r"breaks off after .* of 3\.3 seconds"):
        read.check(path)


def test_many_reads_leave_no_file_open(tmp_path):
    path = make_video(tmp_path / "a.mp4", 20)
    (tmp_path / "bad.mp4").write_bytes(b"x" * 100)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        read.read(path, middles([7]))
        with pytest.raises(UnreadableVideo):
            read.read(tmp_path / "bad.mp4", numpy.zeros(1))
    assert len(list(descriptors.iterdir())) <= before


@pytest.mark.parametrize("form", ["jpeg", "video", "original"])
def test_samples_of_shards_give_frames_and_sound_of_the_source(tmp_path, form):
    sounding = make_video(tmp_path / "a.mp4", 60, sound=True)
    silent = make_video(tmp_path / "b.mp4", 60)
    source = Manifest([Video(sounding), Video(silent)], source=tmp_path / "clips.csv")
    write_manifest(tmp_path / "clips.csv", source)
    packed = read_manifest(pack(source, tmp_path / form, Packing(format=form, short_side=0), workers=0).manifest)
    with pytest.raises(UnreadableVideo, match=r"as shard(-000000)?\.tar/KEY"):
        read.probe(packed[0].path.parent)
    shape = {"frames": 4, "stride": 4, "reference_fps": 30.0, "size": 48, "audio_rate": 8000}
    for row, (before, after) in enumerate(zip(source, packed, strict=True)):
        assert not read.is_file(after.path)
        wanted = [50, 3, 4]
        assert numbers(read.read(after.path, middles(wanted))) == wanted
        assert numbers(read.read(before.path, middles(wanted))) == wanted
        here, there = Clips(source, **shape)[row], Clips(packed, **shape)[row]
        assert numpy.allclose(here.times, there.times)
        ((ours,),), ((theirs,),) = here.sound, there.sound
        if row == 0:
            assert ours.abs().max() > 0.1
            assert (ours - theirs).abs().max() < 0.05
        else:
            assert ours is None
            assert theirs is None


@needs_fixtures
@pytest.mark.parametrize("folder", ["torchcodec", "ucf101", "decord", "kth"])
def test_reading_alone_equals_decoding_through(folder):
    """On real and odd files, a frame found by jumping is the one that plain decoding from the start shows."""
    for path in sorted((FIXTURES / folder).rglob("*")):
        if path.suffix not in {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg"}:
            continue
        info = read.probe(path)
        times = (numpy.array([0, 0.21, 0.5, 0.77, 0.98]) * info.frames).astype(int) / info.fps + 0.3 / info.fps
        together = read.read(path, numpy.concatenate([numpy.arange(0, times[-1], 1 / info.fps), times]), 64)[-5:]
        for time_s, frame in zip(times, together, strict=True):
            assert (read.read(path, numpy.array([time_s]), 64)[0] == frame).all(), (path.name, time_s)


@needs_fixtures
@pytest.mark.parametrize(("held", "rotation"), [("0", 0), ("90", 270), ("180", 180), ("270", 90)])
def test_real_files_of_a_telephone_held_four_ways(held, rotation):
    path = FIXTURES / f"decord/tests/test_data/video_{held}.mov"
    info = read.probe(path)
    size = (568, 320) if rotation in (90, 270) else (320, 568)
    assert (info.rotation, (info.height, info.width)) == (rotation, size)
    assert read.read(path, numpy.zeros(1)).shape[2:] == size


@needs_fixtures
def test_real_sound_files_are_refused():
    with pytest.raises(UnreadableVideo, match="no video stream"):
        read.probe(FIXTURES / "torchcodec/sine_mono_s16.wav")
