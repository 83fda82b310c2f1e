from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from tubelet import log
from tubelet.data import read, torchcodec
from tubelet.data.info import UnreadableVideo
from tubelet.types import TubeletError
from videos import make_sound, make_video, numbers

WRONG = torchcodec.problem()
needs_torchcodec = pytest.mark.skipif(WRONG is not None, reason=str(WRONG))

FILES = {  # name: how to make it
    "b.mp4": {},
    "b.mkv": {},
    "b.mov": {"gop": 250},
    "b.avi": {},
    "b.ts": {},
    "late.mp4": {"start_s": 7.5},
    "late.ts": {"start_s": 7.5},
    "one.mp4": {"frames": 1},
    "vfr.mp4": {"frames": 10, "times_s": [0.0, 0.1, 0.15, 0.5, 0.52, 1.4, 1.5, 1.55, 2.5, 2.6]},
    "raw.h264": {},
    "turned.mp4": {"rotation": 90},
    "upside.mp4": {"rotation": 180},
    "sound.mp4": {"sound": True},
    "hevc.mp4": {"codec": "libx265", "size": (48, 128)},
    "mpeg4.avi": {"codec": "mpeg4"},
}


@pytest.fixture(autouse=True)
def forget():
    torchcodec.problem.cache_clear()
    yield
    torchcodec.problem.cache_clear()


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(log, "say", lines.append)
    return lines


def counted(monkeypatch) -> list[Path]:
    """The files that PyAV reads while torchcodec is asked."""
    by_pyav = []
    read_with_pyav = read.read

    def spy(place, *rest):
        by_pyav.append(place)
        return read_with_pyav(place, *rest)

    monkeypatch.setattr(torchcodec.reading, "read", spy)
    return by_pyav


@needs_torchcodec
@pytest.mark.parametrize("name", FILES)
def test_the_same_frames_as_pyav(tmp_path, name):
    path = make_video(tmp_path / name, **{"frames": 60, **FILES[name]})
    duration_s = read.probe(path).duration_s
    for times_s in (numpy.linspace(-0.3, duration_s + 0.3, 40), numpy.array([0.9, 0.0, 0.9, 1e-4, 0.3])):
        clip, truth = torchcodec.read(path, times_s), read.read(path, times_s)
        assert clip.shape == truth.shape
        assert clip.stride() == truth.stride()
        assert numbers(clip) == numbers(truth)
        assert (clip.float() - truth.float()).abs().max() <= 2


@needs_torchcodec
@pytest.mark.parametrize("name", ["b.mp4", "late.mp4", "vfr.mp4", "turned.mp4", "hevc.mp4"])
def test_these_are_read_with_torchcodec(tmp_path, monkeypatch, name):
    path = make_video(tmp_path / name, **{"frames": 60, **FILES[name]})
    by_pyav = counted(monkeypatch)
    torchcodec.read(path, numpy.linspace(-0.3, 3, 40))
    assert by_pyav == []


@needs_torchcodec
def test_frames_of_other_times_are_noticed(tmp_path, monkeypatch):
    """torchcodec takes the stamps of AVI for times of display, which with B-frames they are not."""
    path = make_video(tmp_path / "b.avi", 60)
    by_pyav = counted(monkeypatch)
    times_s = (numpy.array([3, 17, 44]) + 0.5) / 30
    assert numbers(torchcodec.read(path, times_s)) == [3, 17, 44]
    assert by_pyav == [path]
    from torchcodec.decoders import VideoDecoder

    assert numbers(VideoDecoder(str(path)).get_frames_at([3, 17, 44]).data) != [3, 17, 44]


@needs_torchcodec
@pytest.mark.parametrize("rotation", [0, 90])
def test_short_side(tmp_path, rotation):
    path = make_video(tmp_path / "a.mp4", 20, size=(120, 170), rotation=rotation)
    times_s = numpy.array([0.1, 0.4])
    for short_side in (60, 77, 500):
        clip, truth = torchcodec.read(path, times_s, short_side), read.read(path, times_s, short_side)
        assert clip.shape == truth.shape
        assert (clip.float() - truth.float()).abs().mean() < 4


@needs_torchcodec
def test_a_file_that_cannot_be_read_says_what_pyav_says(tmp_path):
    (tmp_path / "zero.mp4").write_bytes(b"")
    for path in (tmp_path / "zero.mp4", tmp_path / "gone.mp4", make_sound(tmp_path / "sound.mp4")):
        with pytest.raises(UnreadableVideo) as caught:
            torchcodec.read(path, numpy.zeros(1))
        with pytest.raises(UnreadableVideo) as truth:
            read.read(path, numpy.zeros(1))
        assert str(caught.value) == str(truth.value)


@needs_torchcodec
def test_damage_is_read_as_pyav_reads_it(tmp_path):
    path = make_video(tmp_path / "a.mp4", 100, gop=10)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 400] = bytes(400)
    path.write_bytes(data)
    times_s = (numpy.array([0, 90, 99]) + 0.5) / 30
    assert numbers(torchcodec.read(path, times_s)) == numbers(read.read(path, times_s))


@needs_torchcodec
def test_through_an_opener(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 40)
    by_pyav, data, opened = counted(monkeypatch), path.read_bytes(), []

    def file() -> io.BytesIO:
        opened.append(io.BytesIO(data))
        return opened[-1]

    assert numbers(torchcodec.read(path, numpy.array([0.51, 0.02]), file=file)) == [15, 0]
    assert by_pyav == []
    assert opened
    assert all(each.closed for each in opened)


@needs_torchcodec
def test_the_cheaper_reader_is_chosen(tmp_path, monkeypatch, said):
    paths = [make_video(tmp_path / f"{n}.mp4", 30) for n in range(7)] + [tmp_path / "gone.mp4"]
    for cheap, winner in (("pyav", "pyav"), ("torchcodec", "torchcodec"), ("neither", "pyav")):
        costs = {"pyav": [1.0, 0.2], "torchcodec": [0.2, 1.0], "neither": [0.95, 1.0]}[cheap]
        spent = {"n": 0}

        def cost(work, costs=costs, spent=spent):
            work()
            spent["n"] += 1
            return costs[spent["n"] % 2]  # PyAV is measured first

        monkeypatch.setattr(torchcodec, "_cpu_s", cost)
        assert torchcodec.chosen("auto", paths) == winner
    assert len(said) == 3
    assert "0.20 of PyAV's time (the median of 5 files)" in said[1]


@needs_torchcodec
def test_measuring_for_real_answers_one_of_them(tmp_path, said):
    paths = [make_video(tmp_path / f"{n}.mp4", 60, size=(120, 160)) for n in range(3)]
    assert torchcodec.fastest(paths, short_side=64) in ("pyav", "torchcodec")
    assert len(said) == 1


@needs_torchcodec
def test_other_frames_or_a_crash_decide_for_pyav(tmp_path, monkeypatch, said):
    path = make_video(tmp_path / "a.mp4", 30)
    with monkeypatch.context() as patch:
        patch.setattr(torchcodec, "read", lambda *what: 255 - read.read(*what))
        assert torchcodec.fastest([path]) == "pyav"
    with monkeypatch.context() as patch:
        patch.setattr(torchcodec, "read", lambda *_: __import__("os").abort())
        assert torchcodec.fastest([path]) == "pyav"
    assert "other frames" in said[0]
    assert "fails on" in said[1]
    assert torchcodec.fastest([tmp_path / "gone.mp4"]) == "pyav"


BROKEN = {  # what a broken install says when it is imported: what is made of it
    "OSError: libnvrtc.so.13: cannot open shared object file: No such file or directory": "CUDA build",
    "OSError: libtorch_cuda.so: cannot open shared object file": "CUDA build",
    "OSError: /x/libtorchcodec_core5.so: undefined symbol: _ZN3c1013MessageLogger\n"
    "OSError: libavutil.so.56: cannot open shared object file": "another torch",
    "OSError: libavutil.so.60: cannot open shared object file": "apt-get install ffmpeg",
    "something else": "something else",
}


@pytest.mark.parametrize("error", BROKEN)
def test_a_broken_install_gives_one_line_and_auto_reads_with_pyav(tmp_path, monkeypatch, said, error):
    package = tmp_path / "torchcodec"
    package.mkdir()
    text = f"Could not load libtorchcodec. Likely causes:\n{error}"
    (package / "__init__.py").write_text(f"raise RuntimeError({text!r})\n", encoding="utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    wrong = torchcodec.problem()
    assert wrong is not None
    assert BROKEN[error] in wrong
    assert "\n" not in wrong
    with pytest.raises(TubeletError, match="take the reader 'pyav'"):
        torchcodec.chosen("torchcodec", [])
    assert torchcodec.chosen("auto", []) == "pyav"
    assert said == [f"Reading with PyAV: {wrong}"]


def test_a_missing_install_gives_one_line_and_auto_reads_with_pyav(tmp_path, monkeypatch, said):
    monkeypatch.setattr(torchcodec.importlib.util, "find_spec", lambda name: None)
    path = make_video(tmp_path / "a.mp4", 5)
    with pytest.raises(TubeletError, match="pip install 'tubelet\\[torchcodec\\]'"):
        torchcodec.read(path, numpy.zeros(1))
    assert torchcodec.chosen("auto", [path]) == "pyav"
    assert said == ["Reading with PyAV: torchcodec is not installed: pip install 'tubelet[torchcodec]'"]
    assert torchcodec.chosen("pyav", [path]) == "pyav"


@needs_torchcodec
def test_no_card_is_said(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(TubeletError, match="no CUDA device"):
        torchcodec.read("a.mp4", numpy.zeros(1), device="cuda")


def test_never_imported_unless_asked_for(tmp_path):
    path = make_video(tmp_path / "a.mp4", 5)
    script = (
        "import sys, numpy; import tubelet.data.loader; from tubelet.data import read, torchcodec;"
        f"read.read({str(path)!r}, numpy.zeros(1)); torchcodec.chosen('pyav', [{str(path)!r}]);"
        "assert 'torchcodec' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@needs_torchcodec
def test_real_clips(real_clips):
    fixtures = real_clips / "fixtures"
    for path in [*sorted(fixtures.rglob("*.mp4")), *sorted((fixtures / "ucf101").rglob("*.avi"))[:4]]:
        try:
            info = read.probe(path)
        except UnreadableVideo:
            continue
        if max(info.width, info.height) > 700:
            continue
        times_s = numpy.linspace(0, info.duration_s, 4)
        clip, truth = torchcodec.read(path, times_s), read.read(path, times_s)
        assert clip.shape == truth.shape, path
        assert (clip.float() - truth.float()).abs().mean() < torchcodec.SAME_LEVELS, path
