"""The sound of a synthetic clip does what its object does, and an instant of it tells nothing."""

import av
import numpy
import pytest

from tubelet import draws
from tubelet.data.synthetic import MOTIONS, Corpus, Scene, draw_scene, track
from tubelet.data.synthetic_sound import RATE, _melody, add_sound, sound

CORPUS = Corpus(clips=1100, test=0, seed=3, size=32, frames=16, fps=15)
DONE = numpy.linspace(0, 1, 2000, endpoint=False)


def scenes(motion: str, count: int = 5) -> list[Scene]:
    return [draw_scene(CORPUS, MOTIONS.index(motion) + len(MOTIONS) * index) for index in range(count)]


def melody(motion: str, scene: Scene | None = None) -> tuple[numpy.ndarray, numpy.ndarray]:
    scene = scene or scenes(motion)[0]
    scene = Scene(**{**vars(scene), "label": motion})
    return _melody(scene, track(scene, 16), DONE)


def peak_hz(wave: numpy.ndarray) -> float:
    spectrum = numpy.abs(numpy.fft.rfft(wave * numpy.hanning(len(wave))))
    return spectrum.argmax() * RATE / len(wave)


@pytest.mark.parametrize(("motion", "sign"), [("up", 1), ("down", -1)])
def test_the_pitch_goes_with_the_height(motion, sign):
    for index, scene in enumerate(scenes(motion)):
        wave = sound(scene, track(scene, 16), 16 / 15, draws.generator(index))
        first, last = (peak_hz(part) for part in (wave[: RATE // 8], wave[-RATE // 8 :]))
        assert sign * numpy.log2(last / first) > 0.5


@pytest.mark.parametrize(
    ("motion", "other"), [("up", "down"), ("left", "right"), ("approach", "recede"), ("turn_left", "turn_right")]
)
def test_a_motion_backwards_sounds_backwards(motion, other):
    scene = Scene(**{**vars(scenes(motion)[0]), "speed": 0.3})  # six whole beats
    forth, back = numpy.stack(melody(motion, scene)), numpy.stack(melody(other, scene))  # 2 S
    assert not numpy.allclose(forth, back)
    assert forth[:, 1:] == pytest.approx(back[:, :0:-1], abs=0.02)


def test_what_is_not_seen_is_not_heard():
    for motion in ("appear_then_move", "move_then_vanish"):
        scene = scenes(motion)[0]
        seen = track(scene, 16).seen
        _, loud = melody(motion, scene)
        assert (loud.reshape(16, -1).mean(axis=1) > 0).tolist() == seen.tolist()


def test_pulses_come_faster_as_the_object_comes_closer():
    for motion, sign in {"approach": 1, "recede": -1}.items():
        _, loud = melody(motion)
        peaks = numpy.flatnonzero((loud[1:-1] > loud[:-2]) & (loud[1:-1] >= loud[2:]))
        assert (sign * numpy.diff(numpy.diff(peaks)) <= 0).all() and len(peaks) > 3


def test_pitch_and_loudness_are_nuisances():
    scene = scenes("bounce")[0]
    waves = [sound(scene, track(scene, 16), 1.0, draws.generator(index)) for index in range(30)]
    assert all(wave.dtype == numpy.float32 and abs(wave).max() <= 1 for wave in waves)
    pitches, loud = [peak_hz(wave) for wave in waves], [abs(wave).max() for wave in waves]
    assert max(pitches) > 1.5 * min(pitches) and max(loud) > 2 * min(loud)


def test_sound_is_added_beside_the_same_pictures(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15)
        stream.height = stream.width = 32
        for level in range(8):
            picture = numpy.full((32, 32, 3), 20 * level, dtype=numpy.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())

    def pictures() -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]

    before = pictures()
    add_sound(path, numpy.zeros(RATE // 2, dtype=numpy.float32))
    assert pictures() == before and [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == RATE
