from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy
import pytest

from tubelet.data import audio, read
from tubelet.data.info import UnreadableVideo
from videos import make_video, painted

RATE = 16_000
SECONDS = 4.0
CLOCK = Fraction(1, 90_000)

KINDS = {  # file name: codec and rate of the sound, codec of the pictures
    "aac.mp4": ("aac", 44_100, "libx264"),
    "mp3.mp4": ("libmp3lame", 44_100, "libx264"),
    "flac.mkv": ("flac", 48_000, "libx264"),
    "aac.mkv": ("aac", 44_100, "libx264"),
    "opus.mkv": ("libopus", 48_000, "libx264"),
    "mp3.avi": ("libmp3lame", 32_000, "mpeg4"),
    "mp2.mpg": ("mp2", 44_100, "mpeg2video"),
    "aac.ts": ("aac", 48_000, "libx264"),
    "same.mov": ("pcm_s16le", RATE, "libx264"),
    "up.mov": ("pcm_u8", 8_000, "libx264"),
}
EXACT_MS = {"opus.mkv": 0.51, "mp3.avi": 75.0, "mp2.mpg": 12.0}
"""Where a container or an encoder loses more: half of Matroska's tick; AVI keeps no priming of MP3 (and has sound
start with a packet), MPEG-PS none of MP2."""


def sweep(times_s: numpy.ndarray) -> numpy.ndarray:
    """A rising tone from 0 to `SECONDS`, soft at its ends; silence outside."""
    inside = (times_s >= 0) & (times_s <= SECONDS)
    envelope = numpy.clip(numpy.minimum(times_s, SECONDS - times_s) / 0.05, 0, 1)
    phase = 2 * math.pi * (200 * times_s + 150 * times_s**2)
    return numpy.where(inside, 0.4 * envelope * numpy.sin(phase), 0).astype(numpy.float32)


def make_film(path: Path, kind: str, sound_s: float = 0.0, pictures_s: float = 0.0, channels: int = 1) -> Path:
    """A film whose pictures and sweep start at these seconds of the file's clock."""
    codec, rate, picture_codec = KINDS[kind]
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(picture_codec, rate=25, options={"g": "12"})
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        timed = path.suffix not in (".avi", ".mpg")
        if timed:
            video.codec_context.time_base = CLOCK
        sound: Any = container.add_stream(codec, rate=rate, layout=layout)
        for number in range(100):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.time_base = CLOCK if timed else Fraction(1, 25)
            frame.pts = round((pictures_s + number / 25) / frame.time_base)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = sweep(numpy.arange(round(SECONDS * rate)) / rate)
        waves = numpy.stack([wave, 0.5 * wave])[:channels]
        frame = av.AudioFrame.from_ndarray(waves, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(sound_s * rate)
        convert = av.AudioResampler(format=sound.codec_context.codec.audio_formats[0].name, layout=layout, rate=rate)
        for piece in convert.resample(frame) + convert.resample(None):
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
    return path


def heard(path: Path, start_s: float, seconds: float, rate: int = RATE, **more: Any) -> numpy.ndarray:
    wave = audio.waveform(path, start_s, seconds, rate, **more)
    assert wave is not None
    assert wave.shape == (round(seconds * rate),)
    assert str(wave.dtype) == "torch.float32"
    assert (wave.abs() <= 1).all()
    return wave.numpy()


def lag_ms(wave: numpy.ndarray, truth: numpy.ndarray, rate: int = RATE, finer: int = 8) -> float:
    """By how much `wave` comes later than `truth`: where their correlation is largest, between the samples too."""
    size = 1 << (2 * len(wave)).bit_length()
    product = numpy.fft.rfft(wave, size) * numpy.fft.rfft(truth, size).conj()
    spectrum = numpy.zeros(size * finer // 2 + 1, dtype=complex)
    spectrum[: len(product)] = product
    shift = int(numpy.fft.irfft(spectrum, size * finer).argmax())
    return (shift - size * finer * (shift > size * finer // 2)) / finer / rate * 1000


def whole_by_hand(path: Path, start_s: float, seconds: float) -> numpy.ndarray:
    """The slow twin: decode all, count from the first frame's stamp, interpolate."""
    values, begin_s, rate = [], None, 1
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray().astype(numpy.float64)
            if not frame.format.is_planar:
                samples = samples.reshape(-1, frame.layout.nb_channels).T
            if frame.format.name.startswith("u8"):
                samples = (samples - 128) / 128
            elif frame.format.name.startswith("s16"):
                samples = samples / 32_768
            values.append(samples.mean(0))
            rate = frame.sample_rate
            begin_s = frame.time - read.probe(path).start_s if begin_s is None else begin_s
    whole = numpy.concatenate(values)
    at = start_s + numpy.arange(round(seconds * RATE)) / RATE
    return numpy.interp(at, begin_s + numpy.arange(len(whole)) / rate, whole, left=0, right=0)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_is_where_it_was_put(tmp_path, kind):
    path = make_film(tmp_path / kind, kind)
    wave = heard(path, -0.5, 5.0)
    truth = sweep(-0.5 + numpy.arange(5 * RATE) / RATE)
    assert abs(lag_ms(wave, truth)) <= EXACT_MS.get(kind, 0.03)
    assert lag_ms(wave, whole_by_hand(path, -0.5, 5.0)) == pytest.approx(0, abs=0.51)


@pytest.mark.parametrize("kind", ["flac.mkv", "same.mov", "up.mov"])
def test_what_loses_nothing_is_heard_as_it_was(tmp_path, kind):
    wave = heard(make_film(tmp_path / kind, kind), -0.5, 5.0)
    truth = sweep(-0.5 + numpy.arange(5 * RATE) / RATE)
    assert abs(wave - truth).max() < (0.01 if kind == "up.mov" else 2e-3)  # eight bits; the filter's pass band


@pytest.mark.parametrize("kind", KINDS)
def test_slices_equal_the_same_slice_of_the_whole(tmp_path, kind):
    path = make_film(tmp_path / kind, kind)
    whole = heard(path, -0.5, 5.0)
    for start_s in (-0.2, 0.0, 0.31, 1.2345, 2.7, 3.6):
        at = round((start_s + 0.5) * RATE)
        part = heard(path, start_s, 0.8)
        assert abs(part - whole[at : at + len(part)]).max() < 2e-3  # AAC fills bands with noise of its own
        if kind in ("flac.mkv", "same.mov", "up.mov", "mp3.mp4"):
            assert abs(part - whole[at : at + len(part)]).max() < 1e-6


@pytest.mark.parametrize("kind", ["aac.mp4", "aac.mkv", "flac.mkv", "opus.mkv", "aac.ts", "same.mov"])
@pytest.mark.parametrize(("sound_s", "pictures_s"), [(0.7, 0.0), (0.0, 0.6), (3.2, 3.0)])
def test_sound_keeps_its_distance_from_the_pictures(tmp_path, kind, sound_s, pictures_s):
    path = make_film(tmp_path / kind, kind, sound_s, pictures_s)
    wave = heard(path, -1.0, 6.0)
    truth = sweep(-1.0 + numpy.arange(6 * RATE) / RATE - (sound_s - pictures_s))
    assert abs(lag_ms(wave, truth)) < 1.01  # edit lists of MP4 count in milliseconds, too


def test_a_click_is_at_its_frame(tmp_path):
    """Frame 50 of 25 a second starts at 2 s, and so does the click."""
    path = tmp_path / "click.mov"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sound: Any = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for number in range(75):
            container.mux(video.encode(av.VideoFrame.from_ndarray(painted(number), format="rgb24")))
        container.mux(video.encode(None))
        samples = numpy.zeros((1, 3 * 48_000), dtype=numpy.int16)
        samples[0, 2 * 48_000] = 30_000
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*sound.encode(frame), *sound.encode(None)])
    for start_s in (0.0, 1.0, 1.9):
        assert heard(path, start_s, 1.2 if start_s else 3.0).argmax() == round((2 - start_s) * RATE)


def test_channels_are_mixed_to_their_mean_in_every_sample_format(tmp_path):
    truth = 0.75 * sweep(1.0 + numpy.arange(RATE) / RATE)  # of one channel and half of it
    for kind, rate in (("same.mov", RATE), ("aac.mp4", RATE), ("flac.mkv", RATE)):
        wave = heard(make_film(tmp_path / kind, kind, channels=2), 1.0, 1.0, rate)
        assert numpy.linalg.norm(wave) == pytest.approx(numpy.linalg.norm(truth), rel=0.03)


def test_other_rates(tmp_path):
    path = make_film(tmp_path / "flac.mkv", "flac.mkv")
    for rate in (8_000, 22_050, 44_100, 48_000, 96_000):
        truth = sweep(0.5 + numpy.arange(rate) / rate)
        assert abs(heard(path, 0.5, 1.0, rate) - truth).max() < 2e-3


def test_silence_outside_and_nothing_asked_for(tmp_path):
    path = make_film(tmp_path / "flac.mkv", "flac.mkv", sound_s=0.5)
    assert not heard(path, -3.0, 2.0).any()
    assert not heard(path, 60.0, 1.0).any()
    assert not heard(path, -1.0, 1.45).any()
    assert heard(path, -1.0, 1.7).any()
    assert heard(path, 1.0, 0.0).shape == (0,)


def test_no_sound_is_none(tmp_path):
    path = make_video(tmp_path / "silent.mp4", 10)
    assert audio.waveform(path, 0, 1) is None
    assert audio.sound_of(path) is None


def test_what_the_file_says_of_its_sound(tmp_path):
    path = make_film(tmp_path / "aac.mp4", "aac.mp4", channels=2)
    info = audio.sound_of(path)
    assert info is not None
    assert (info.rate, info.channels, info.codec) == (44_100, 2, "aac")
    assert info.duration_s == pytest.approx(SECONDS, abs=0.05)
    info = audio.sound_of(make_film(tmp_path / "opus.mkv", "opus.mkv"))
    assert info is not None
    assert info.duration_s == pytest.approx(SECONDS, abs=0.05)


def test_a_seek_saves_decoding(tmp_path, monkeypatch):
    path = make_film(tmp_path / "aac.mp4", "aac.mp4")
    decoded = []
    decode = audio._Track.decode

    def counted(self, *seconds):
        for frame in decode(self, *seconds):
            decoded.append(frame.samples)
            yield frame

    monkeypatch.setattr(audio._Track, "decode", counted)
    heard(path, 2.5, 0.1)
    assert sum(decoded) < 1.3 * 44_100


@pytest.mark.parametrize("kind", ["flac.mkv", "aac.mp4", "mp3.avi"])
def test_damaged_packets_are_skipped_and_what_follows_stays_in_its_place(tmp_path, kind, capfd):
    path = make_film(tmp_path / kind, kind)
    before = heard(path, 0, 4)
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(audio=0) if p.pos is not None and p.size > 8]
        hit = [(p.pos, p.size) for p in packets if 1.5 <= p.pts * p.time_base < 1.7]
    data = bytearray(path.read_bytes())
    for position, size in hit:
        data[position + 4 : position + size] = bytes(255 - b for b in data[position + 4 : position + size])
    path.write_bytes(data)
    after = heard(path, 0, 4)
    assert abs(after - before)[RATE : round(1.3 * RATE)].max() < 1e-3
    assert abs(after - before)[round(2.2 * RATE) : 3 * RATE].max() < 1e-3
    assert abs(after - before).max() > 0.1
    assert abs(heard(path, 2.5, 1.0) - before[round(2.5 * RATE) : round(3.5 * RATE)]).max() < 1e-3
    assert capfd.readouterr() == ("", "")


def test_samples_that_are_no_numbers_are_silent_and_loud_ones_are_cut(tmp_path):
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("pcm_f32le", rate=32_000, layout="mono")
        samples = numpy.full((1, 32_000), 0.5, dtype=numpy.float32)
        samples[0, 8_000:8_010], samples[0, 16_000:16_010], samples[0, 24_000:24_100] = numpy.nan, numpy.inf, 7.0
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.sample_rate = 32_000
        container.mux([*sound.encode(frame), *sound.encode(None)])
    wave = heard(path, 0, 1)
    assert abs(wave[5_000:7_000] - 0.5).max() < 0.01
    assert wave[4_002] == pytest.approx(0, abs=0.2)
    assert wave[12_025] == 1


def test_a_hole_in_the_track_is_silent(tmp_path):
    path = tmp_path / "hole.mkv"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("pcm_s16le", rate=44_100, layout="mono")
        wave = (sweep(numpy.arange(4 * 44_100) / 44_100) * 32_767).astype(numpy.int16)
        for begin, end in ((0, 60_000), (100_000, 4 * 44_100)):
            frame = av.AudioFrame.from_ndarray(wave[None, begin:end], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44_100, begin, Fraction(1, 44_100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    wave, truth = heard(path, 0, 4), sweep(numpy.arange(4 * RATE) / RATE)
    assert abs(lag_ms(wave[: round(1.3 * RATE)], truth[: round(1.3 * RATE)])) < 0.1
    assert not wave[round(1.37 * RATE) : round(2.26 * RATE)].any()
    assert abs(lag_ms(wave[round(2.3 * RATE) :], truth[round(2.3 * RATE) :])) < 0.51


def test_sound_through_an_opener_and_without_pictures(tmp_path):
    """As the FLAC member of a sample in a shard is read; its clock is that of the sample's pictures."""
    film = make_film(tmp_path / "film.mov", "same.mov")
    member = io.BytesIO()
    with av.open(member, "w", format="flac") as container:
        sound: Any = container.add_stream("flac", rate=RATE, layout="mono")
        samples = (sweep(numpy.arange(4 * RATE) / RATE)[None] * 32_767).astype(numpy.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux([*sound.encode(frame), *sound.encode(None)])
    name = Path("shard-000000.tar/00000007")
    opened = []

    def file() -> io.BytesIO:
        opened.append(io.BytesIO(member.getvalue()))
        return opened[-1]

    assert abs(heard(name, 2.2, 1.0, file=file) - heard(film, 2.2, 1.0)).max() < 1e-4
    assert audio.sound_of(name, file) == audio.SoundInfo(RATE, 1, "flac", SECONDS)
    assert all(each.closed for each in opened)
    film_bytes = film.read_bytes()
    late = heard(name, 1.9, 1.0, origin_s=0.3, file=lambda: io.BytesIO(film_bytes))
    assert abs(late - heard(film, 2.2, 1.0)).max() < 1e-6


def test_what_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(UnreadableVideo, match=r"gone\.mp4: No such file"):
        audio.waveform(tmp_path / "gone.mp4", 0, 1)
    (tmp_path / "words.mp4").write_bytes(b"\x01\x02 no sound here" * 40)
    with pytest.raises(UnreadableVideo, match="neither pictures nor sound"):
        audio.sound_of(tmp_path / "words.mp4")


def test_real_clips(real_clips):
    """MPEG-1 with MP2: a slice of speech equals the same slice of the whole."""
    for path in sorted((real_clips / "grid_s1").glob("*.mpg"))[:3]:
        whole = heard(path, 0, 3)
        assert 0.01 < numpy.abs(whole).max() <= 1
        assert abs(heard(path, 1.37, 0.64) - whole[round(1.37 * RATE) :][: round(0.64 * RATE)]).max() < 1e-4
