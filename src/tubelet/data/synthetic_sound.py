"""The sound of a synthetic clip: a tone that does what the object does.

The pairs of motions that are each other backwards have sounds that are each other backwards, so that, as with the
pictures, one instant alone tells nothing:

    up, down                              the pitch rises, or falls
    left, right                           a row of notes that are struck and fade, or that swell and break off
    approach, recede                      pulses that come faster and faster, or slower and slower
    turn_left, turn_right                 a siren that rises again and again, or falls
    appear_then_move, move_then_vanish    nothing, then a tone; or a tone, then nothing
    bounce                                two notes in turn

How far and how fast follows the object's speed. Pitch, timbre, loudness and noise are nuisances, drawn independently
of the class.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tubelet.data.synthetic import Scene, Track

RATE = 16_000
"""Samples a second."""
OVERTONES = 6
FADE_S = 0.005
"""Notes begin and end so softly: a click would be louder than they are."""


def sound(scene: Scene, path: Track, seconds: float, rng: numpy.random.Generator) -> NDArray[numpy.float32]:
    """The sound of a scene, mono at `RATE`: S in [-1, 1]."""
    samples = round(seconds * RATE)
    done = numpy.arange(samples) / samples  # S: share of the clip
    octaves, envelope = _melody(scene, path, done)
    octaves = octaves + rng.uniform(0, 1)
    turns = numpy.cumsum(220 * 2**octaves) / RATE  # S: of the lowest partial
    numbers = numpy.arange(1, 1 + OVERTONES)[:, None]  # K 1
    strengths = numbers ** -rng.uniform(0.5, 2.5)
    partials = numpy.sin(math.tau * (numbers * turns + rng.uniform(0, 1, (OVERTONES, 1))))  # K S
    tone = (strengths * partials).sum(axis=0) / strengths.sum()
    hiss = rng.uniform(0.003, 0.02) * rng.standard_normal(samples)
    wave = rng.uniform(0.15, 0.7) * _softened(envelope) * tone + hiss
    return wave.clip(-1, 1).astype(numpy.float32)


def add_sound(path: Path, wave: NDArray[numpy.float32]) -> None:
    """Adds a track of AAC (S in [-1, 1], mono at `RATE`) to an mp4 file, whose pictures are copied as they are.

    Encoded together with sound, x264's bytes would not always be the same.
    """
    import av

    both = path.with_suffix(".both")
    with av.open(str(path)) as old, av.open(str(both), "w", format="mp4") as new:
        video, track = new.add_stream_from_template(old.streams.video[0]), new.add_stream("aac", RATE, layout="mono")
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = video
                new.mux(packet)
        samples = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts = RATE, 0  # or the encoder's delay would be left in
        new.mux(track.encode(samples))
        new.mux(track.encode())
    both.replace(path)


def _melody(
    scene: Scene, path: Track, done: NDArray[numpy.floating]
) -> tuple[NDArray[numpy.floating], NDArray[numpy.floating]]:
    """Pitch in octaves and loudness in 0..1, S each."""
    beats = 20 * scene.speed * done
    steady, loud = numpy.zeros_like(done), numpy.ones_like(done)
    match scene.label:
        case "up" | "down":
            way = 4 * scene.speed * (done - 0.5)
            return (way if scene.label == "up" else -way), loud
        case "left" | "right":
            since = beats % 1
            return steady, numpy.exp(-4 * (since if scene.label == "left" else 1 - since))
        case "approach" | "recede":
            growth = math.log(4)  # of the rate of the pulses over the clip
            ahead = done if scene.label == "approach" else 1 - done
            pulses = 20 * scene.speed * numpy.expm1(growth * ahead) / math.expm1(growth)
            return steady, 0.5 - 0.5 * numpy.cos(math.tau * pulses)
        case "turn_left" | "turn_right":
            glide = beats % 1 - 0.5
            return (glide if scene.label == "turn_left" else -glide), loud
        case "bounce":
            return numpy.where(beats % 2 < 1, -0.25, 0.25), loud
        case _:
            frame = (done * len(path.seen)).astype(int)
            return steady, path.seen[frame].astype(float)


def _softened(envelope: NDArray[numpy.floating]) -> NDArray[numpy.floating]:
    window = numpy.hanning(round(2 * FADE_S * RATE) + 2)
    return numpy.convolve(envelope, window / window.sum(), mode="same")
