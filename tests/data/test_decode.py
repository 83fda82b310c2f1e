"""The fast reader against its slow twin: decode the whole file with plain PyAV, then look up what is on display."""

from __future__ import annotations

import gc
import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tubelet.data import decode
from tubelet.data.container import PICTURES, rate
from tubelet.data.info import UnreadableVideo
from tubelet.data.storage import Window
from videos import usual_priority

X264 = {"preset": "veryfast", "crf": "20", "sc_threshold": "0"}
PACKETS = Path("of which only the file of bytes is asked")


@usual_priority()
def film(
    path: Path,
    options: dict[str, str],
    frames: int = 45,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    starts: list[int] | None = None,
) -> Path:
    """A film no two pictures of which are alike: a drifting texture, 25 per second or at `starts` in hundredths."""
    draw = numpy.random.default_rng(0)
    texture = draw.integers(0, 255, (40, 60, 3)).astype(numpy.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        stream.codec_context.thread_count = 1
        if starts is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number in range(frames):
            picture = texture[number % 60 :, (2 * number) % 100 :][:96, :128].copy()
            picture[40:56, number : number + 16] = draw.integers(0, 255, (16, 16, 3))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if starts is None else starts[number]
            frame.time_base = Fraction(1, 25 if starts is None else 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Through:
    """The slow twin: every picture of a file, decoded in order from its first byte, and when each starts."""

    def __init__(self, path: Path) -> None:
        self.starts: list[int] = []
        self.pictures: list[Any] = []
        with av.open(str(path)) as container:
            films: list[Any] = [s for s in container.streams.video if not s.disposition & PICTURES]
            best: Any = container.streams.best("video")
            self.stream = best if best in films else films[0]
            self.stream.codec_context.thread_count = 1
            self.tick_s, self.fps = float(self.stream.time_base or 0), rate(self.stream)
            self.counted = container.format.name == "avi" and bool(self.stream.codec_context.has_b_frames)
            packets = container.demux(self.stream)
            for packet in packets:
                try:
                    self._take(self.stream.codec_context.decode(packet))
                except av.FFmpegError:
                    continue

    def _take(self, pictures: list[Any]) -> None:
        for picture in pictures:
            start = None if self.counted else picture.pts
            if start is None:
                start = round(self.starts[-1] + 1 / self.fps / self.tick_s) if self.starts else 0
            self.starts.append(max([start, *self.starts[-1:]]))
            self.pictures.append(picture)

    def row(self, time_s: float) -> int:
        mercy = min(max(1.0, 1e-4 / self.tick_s), 0.05 / self.fps / self.tick_s)
        moment = self.starts[0] + time_s / self.tick_s + mercy
        return max([k for k, start in enumerate(self.starts) if start <= moment], default=0)


def assert_same(path: Path, seed: int = 0, draws: int = 9) -> decode._Player:
    """Reads at seeded random times, alone, in clips of any stride and at the starts of pictures; all bit-equal."""
    twin = Through(path)
    paint = decode._Painter(twin.pictures[0], None)
    length_s = (twin.starts[-1] - twin.starts[0]) * twin.tick_s + 1 / twin.fps
    draw = numpy.random.default_rng(seed)
    for number in range(draws):
        stride = draw.integers(1, 7) / twin.fps
        starts = (draw.choice(twin.starts, 5) - twin.starts[0]) * twin.tick_s
        clip = draw.uniform(0, length_s / 2) + stride * numpy.arange(8)
        times_s = [draw.uniform(-0.1, length_s * 1.05, 3), clip, starts][number % 3]
        for time_s, picture in zip(times_s, decode.read(path, times_s), strict=True):
            assert (picture == paint(twin.pictures[twin.row(time_s)])).all(), (path.name, number, time_s)
    with decode._Player(path, None) as player:
        list(player.play([length_s / 2]))
    return player


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mov"])
@pytest.mark.parametrize("open_gop", [0, 1])
@pytest.mark.parametrize(
    ("gop", "b_frames", "pyramid"),
    [(1, 0, "none"), (12, 1, "none"), (12, 3, "normal"), (250, 3, "strict"), (250, 2, "none")],
)
def test_h264(tmp_path, suffix, open_gop, gop, b_frames, pyramid):
    more = f"b-adapt=0:bframes={b_frames}:b-pyramid={pyramid}:open-gop={open_gop}"
    player = assert_same(film(tmp_path / f"a{suffix}", {"g": str(gop), "x264-params": more, **X264}))
    assert player.packets.trusted == (suffix != ".avi" or b_frames == 0)  # else the test would say little


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize(("gop", "b_frames", "open_gop"), [(10, 4, 1), (10, 3, 0), (250, 4, 0), (1, 0, 0)])
def test_hevc(tmp_path, suffix, gop, b_frames, open_gop):
    more = f"log-level=none:b-adapt=0:keyint={gop}:bframes={b_frames}:open-gop={open_gop}"
    path = film(tmp_path / f"a{suffix}", {"preset": "ultrafast", "x265-params": more}, codec="libx265")
    assert assert_same(path).packets.trusted


@pytest.mark.parametrize(
    ("codec", "suffix", "pixels", "options"),
    [
        ("mpeg4", ".mp4", "yuv420p", {"g": "12", "bf": "2"}),
        ("mpeg4", ".avi", "yuv420p", {"g": "250", "bf": "2"}),
        ("mpeg2video", ".mpg", "yuv420p", {"g": "12", "bf": "2"}),
        ("mpeg2video", ".ts", "yuv420p", {"g": "250", "bf": "2"}),
        ("mpeg1video", ".mkv", "yuv420p", {"g": "12", "bf": "2"}),
        ("libvpx", ".webm", "yuv420p", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
        ("libvpx-vp9", ".webm", "yuva420p", {"g": "12", "auto-alt-ref": "0", "deadline": "realtime"}),
        ("libvpx-vp9", ".mp4", "yuv420p", {"g": "250", "lag-in-frames": "16", "deadline": "realtime"}),
        ("libsvtav1", ".mp4", "yuv420p", {"g": "12", "preset": "12"}),
        ("libsvtav1", ".mkv", "yuv420p10le", {"g": "250", "preset": "12"}),
        ("libx264", ".mp4", "yuv422p10le", {"g": "12", "bf": "3", **X264}),
        ("libx264", ".mp4", "gray", {"g": "12", "bf": "3", **X264}),
        ("libx264", ".mkv", "yuvj444p", {"g": "12", "bf": "3", **X264}),
        ("libx264", ".mp4", "yuv420p", {"x264-params": "keyint=20:intra-refresh=1", **X264}),
        ("qtrle", ".mov", "argb", {}),
        ("mjpeg", ".avi", "yuvj420p", {}),
        ("ffv1", ".mkv", "yuv420p", {}),
    ],
)
def test_other_kinds(tmp_path, codec, suffix, pixels, options):
    try:
        path = film(tmp_path / f"a{suffix}", options, codec=codec, pixels=pixels)
    except (ValueError, av.FFmpegError) as error:
        pytest.skip(f"this FFmpeg does not encode it: {error}")
    assert_same(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_fields_are_decoded_through(tmp_path, suffix):
    path = film(tmp_path / f"a{suffix}", {"x264-params": "interlaced=1:keyint=12:bframes=3", **X264})
    assert not assert_same(path).packets.trusted


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rate(tmp_path, suffix):
    gaps = numpy.random.default_rng(1).choice([2, 3, 9, 40, 400], 45)
    path = film(tmp_path / f"a{suffix}", {"g": "12", "bf": "3", **X264}, starts=numpy.cumsum(gaps).tolist())
    assert assert_same(path, draws=18).packets.trusted


def copied(source: Path, path: Path, shift_s: float, from_key: int = 0) -> Path:
    """The packets of `source` from its key frame number `from_key` on, `shift_s` later: an edit list where negative."""
    with av.open(str(source)) as container, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as copy:
        stream = container.streams.video[0]
        out = copy.add_stream_from_template(stream)
        ticks = round(shift_s / float(stream.time_base or 1))
        for packet in container.demux(stream):
            from_key -= packet.is_keyframe
            if packet.dts is not None and packet.pts is not None and from_key < 0:
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, out
                copy.mux(packet)
    return path


@pytest.mark.parametrize("open_gop", [0, 1])
@pytest.mark.parametrize(("shift_s", "from_key"), [(-0.3, 0), (-1.0, 2), (3.0, 0), (-0.52, 1)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_cut_and_shifted_without_encoding(tmp_path, suffix, shift_s, from_key, open_gop):
    """Starts that are negative, late or cut off by an edit list, and open GOPs whose first pictures lack a half."""
    more = f"b-adapt=0:bframes=3:keyint=12:open-gop={open_gop}"
    source = film(tmp_path / "source.mp4", {"x264-params": more, **X264})
    path = copied(source, tmp_path / f"a{suffix}", shift_s, from_key)
    if suffix == ".ts" and open_gop and from_key:  # the parameters of the codec are with its first key frame only
        with pytest.raises(UnreadableVideo, match="none of its frames can be decoded"):
            decode.probe(path)
        return
    assert_same(path)
    if suffix == ".mp4" and shift_s == -0.3:
        with av.open(str(path)) as container:
            assert any(packet.is_discard for packet in container.demux(video=0))


@pytest.mark.parametrize(
    "edits", [[(0.4, 0.1), (0.6, 0.8)], [(0.36, 0.48), (0.2, -1), (0.28, 1.2)], [(0.5, 0.9), (0.5, 0.2)]]
)
def test_several_edits(tmp_path, edits):
    """Edits of (seconds shown, from which second; -1 shows nothing), some of which end on a B-frame or go back."""
    source = film(tmp_path / "source.mp4", {"g": "12", "bf": "3", **X264})
    data = source.read_bytes()
    clock, tick = (struct.unpack(">I", data[data.index(kind) + 16 :][:4])[0] for kind in (b"mvhd", b"mdhd"))
    rows = [struct.pack(">IiI", round(s * clock), -1 if t < 0 else round(t * tick), 1 << 16) for s, t in edits]
    at = data.index(b"elst") - 4
    end = at + struct.unpack(">I", data[at:][:4])[0]
    box = struct.pack(">I4sII", 16 + 12 * len(rows), b"elst", 0, len(rows)) + b"".join(rows)
    changed = bytearray(data[:at] + box + data[end:])
    for kind in (b"moov", b"trak", b"edts"):  # moov comes last: nothing that is pointed to has moved
        place = data.index(kind) - 4
        changed[place : place + 4] = struct.pack(">I", struct.unpack(">I", data[place:][:4])[0] + len(box) - end + at)
    path = tmp_path / "a.mp4"
    path.write_bytes(changed)
    assert_same(path, draws=18)


def test_the_size_changes_midway(tmp_path):
    film(tmp_path / "a.ts", {"g": "12", "bf": "3", **X264}, 24)
    small = tmp_path / "b.ts"
    with av.open(str(small), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": "12", "bf": "2", **X264})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(24):
            picture = numpy.full((64, 96, 3), 10 * number, dtype=numpy.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + small.read_bytes())
    assert_same(path)


def test_pictures_that_are_not_needed_are_not_decoded(tmp_path, monkeypatch):
    decoded = []
    decode_packets = decode._Player._decode_packets

    def counted(self):
        for picture in decode_packets(self):
            decoded.append(picture.pts)
            yield picture

    monkeypatch.setattr(decode._Player, "_decode_packets", counted)
    more = "b-adapt=0:bframes=3:b-pyramid=none"
    path = film(tmp_path / "a.mp4", {"g": "250", "x264-params": more, **X264}, 90)
    decode.read(path, numpy.arange(16) * 4 / 25 + 0.01)  # picture 4k is the last of a group P B B B, shown first
    assert len(decoded) < 40  # of 61
    assert len(decoded) == len(set(decoded))


def test_bytes_from_elsewhere(tmp_path):
    path = film(tmp_path / "a.mp4", {"g": "12", "bf": "3", **X264})
    (tmp_path / "big").write_bytes(b"before" + path.read_bytes() + b"after")
    files: list[Window] = []

    def file() -> Any:
        files.append(Window(tmp_path / "big", 6, path.stat().st_size))
        return files[-1]

    times_s = numpy.array([1.3, 0.2])
    info = decode.probe(path)
    assert decode.probe(PACKETS, file=file) == info
    assert (decode.read(PACKETS, times_s, file=file) == decode.read(path, times_s)).all()
    decode.check(PACKETS, info, file=file)
    assert len(files) == 3
    assert all(window.closed for window in files)


def test_what_was_left_out_in_a_file_that_proves_damaged_is_decoded_after_all(tmp_path):
    path = film(tmp_path / "a.mp4", {"g": "250", "bf": "3", **X264})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    path.write_bytes(data)
    files: list[io.BytesIO] = []

    def file() -> Any:
        files.append(io.BytesIO(data))
        return files[-1]

    times_s = numpy.arange(0, 1.8, 0.1)
    clip = decode.read(PACKETS, times_s, file=file)
    twin = Through(path)
    paint = decode._Painter(twin.pictures[0], None)
    assert all((p == paint(twin.pictures[twin.row(t)])).all() for t, p in zip(times_s, clip, strict=True))
    assert len(files) == 2
    assert all(source.closed for source in files)


class Broken(io.BytesIO):
    def read(self, count: int | None = -1) -> bytes:
        if self.tell() > 40_000:
            raise OSError("connection reset by peer")
        return super().read(count)


def test_a_place_that_fails_is_not_taken_for_the_end_of_the_file(tmp_path, capfd):
    path = film(tmp_path / "a.mkv", {}, 30, codec="ffv1")
    data = path.read_bytes()
    assert len(data) > 100_000
    with pytest.raises(UnreadableVideo, match="connection reset by peer") as caught:
        decode.read(PACKETS, numpy.array([1.1]), file=lambda: Broken(data))
    assert isinstance(caught.value.__cause__, OSError)  # by which a pack knows that it may come again
    at_once = Broken(data)
    at_once.seek = lambda *_: io.BytesIO.seek(at_once, 50_000)
    with pytest.raises(UnreadableVideo, match="connection reset by peer") as caught:
        decode.probe(PACKETS, file=lambda: at_once)
    assert isinstance(caught.value.__cause__, OSError)

    def refused() -> Any:
        raise PermissionError

    with pytest.raises(UnreadableVideo, match="no permission"):
        decode.read(PACKETS, numpy.array([1.1]), file=refused)
    for words, reason in ((b"", "empty"), (b"not a video\n" * 9, "text"), (bytes(range(256)) * 9, "header")):
        with pytest.raises(UnreadableVideo, match=reason):
            decode.probe(PACKETS, file=lambda words=words: io.BytesIO(words))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p"])
def test_shrinking_is_as_near_to_the_whole_picture_as_scaling_and_converting_at_once(tmp_path, pixels):
    path = film(tmp_path / "a.mp4", X264, 3, pixels=pixels)
    picture = Through(path).pictures[0]
    whole = decode._Painter(picture, None)(picture).astype(float)
    mean = whole.reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))  # H W C
    at_once = picture.reformat(64, 48, "rgb24", interpolation="AREA").to_ndarray()
    small = decode.read(path, numpy.zeros(1), 48)[0]
    assert abs(small - mean).mean() < 1.1 * abs(at_once - mean).mean()
    assert abs(small.mean(axis=(0, 1)) - mean.mean(axis=(0, 1))).max() < 2


@pytest.mark.slow
def test_real_clips(real_clips):
    found = 0
    for path in sorted((real_clips / "fixtures").rglob("*")):
        if path.suffix in {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg"}:
            try:
                decode.probe(path)
            except UnreadableVideo:
                continue
            assert_same(path, draws=3)
            found += 1
    assert found > 50


def test_a_player_that_is_closed_holds_on_to_nothing(tmp_path):
    """Decoders are megabytes of which Python's collector knows nothing: they must go with the last reference."""
    path = film(tmp_path / "a.mp4", {"g": "12", "bf": "2", **X264})
    gc.collect()
    gc.disable()
    try:
        for times_s in ([0.0], [0.5, 1.5], [1.4]):
            decode.read(path, numpy.array(times_s))
        assert not [one for one in gc.get_objects() if type(one) is decode._Player]
    finally:
        gc.enable()


def test_a_jump_lands_on_the_last_key_frame_before(tmp_path):
    path = film(tmp_path / "a.mp4", {"g": "12", "bf": "3", **X264})
    with decode._Player(path, None) as player:
        starts = [packet.pts for packet in player.container.demux(player.stream) if packet.is_keyframe and packet.size]
        tick_s = player.tick_s
    for key in starts[2:]:
        with decode._Player(path, None) as player:
            list(player.play([(key - player.origin) * tick_s]))
            assert player.packets.starts[0] == key
