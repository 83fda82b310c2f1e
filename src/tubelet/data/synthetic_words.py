"""What is said of a synthetic clip: a caption, and a looser narration, as spoken over instructional videos."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from tubelet.data.synthetic import Scene

MOTION_WORDS = {
    "left": ("moves left", "drifts to the left", "heads left"),
    "right": ("moves right", "drifts to the right", "heads right"),
    "up": ("moves up", "rises", "climbs upwards"),
    "down": ("moves down", "sinks", "falls downwards"),
    "approach": ("approaches", "comes closer", "grows larger"),
    "recede": ("recedes", "goes away", "becomes smaller"),
    "turn_left": ("turns left", "spins anticlockwise", "rotates to the left"),
    "turn_right": ("turns right", "spins clockwise", "rotates to the right"),
    "appear_then_move": ("appears and moves", "shows up, then travels", "comes out of nowhere and goes on"),
    "move_then_vanish": ("moves and vanishes", "travels, then disappears", "goes on until it is gone"),
    "bounce": ("bounces", "goes there and back", "is thrown back"),
}
"""Phrasings of each motion. No phrasing is of two."""
SENTENCES = (
    "a {shape} of {texture} {does} over {background}",
    "over {background} a {texture} {shape} {does}",
    "the {shape} {does}",
    "it {does}",
)
ASIDES = (
    "this is a {shape}",
    "it looks like {texture}",
    "behind it there is {background}",
    "look at that {texture} {shape}",
)
SEPARATOR = "|"
"""Between the sentences of a narration."""


def caption(scene: Scene, rng: numpy.random.Generator) -> str:
    """One sentence that tells the motion, in a phrasing drawn for it, and, mostly, how things look."""
    return _said(str(rng.choice(SENTENCES)), scene, rng)


def narration(scene: Scene, rng: numpy.random.Generator) -> str:
    """Three sentences in a random order, of which one tells the motion and two only how things look."""
    said = [f"it {_said('{does}', scene, rng)}", *(_said(aside, scene, rng) for aside in rng.choice(ASIDES, 2, False))]
    return SEPARATOR.join(said[place] for place in rng.permutation(len(said)))


def _said(sentence: str, scene: Scene, rng: numpy.random.Generator) -> str:
    things = {"shape": scene.shape, "texture": _name(scene.texture), "background": _name(scene.background)}
    return sentence.format(**things, does=str(rng.choice(MOTION_WORDS[scene.label])))


def _name(photograph: str) -> str:
    return photograph.removesuffix(".jpg")
