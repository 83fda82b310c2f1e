"""Captions tell the motion in several phrasings, and looks tell nothing of it."""

from collections import Counter

import pytest

from tubelet import draws
from tubelet.data.synthetic import MOTIONS, Corpus, draw_scene
from tubelet.data.synthetic_words import MOTION_WORDS, SEPARATOR, caption, narration

CORPUS = Corpus(clips=1100, test=0, seed=3, size=32, frames=16, fps=15)


def told(sentence: str) -> set[str]:
    """The motions of which a phrasing is the end of a sentence, or stands before what is behind the object."""
    return {
        motion for motion, phrasings in MOTION_WORDS.items() for words in phrasings
        if sentence.endswith(words) or f"{words} over " in sentence
    }  # fmt: skip


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_caption_tells_the_motion_in_several_phrasings(motion):
    seen = set()
    for index in range(MOTIONS.index(motion), 40 * len(MOTIONS), len(MOTIONS)):
        said = caption(draw_scene(CORPUS, index), draws.generator(index, "words"))
        assert told(said) == {motion}, said
        seen |= {words for words in MOTION_WORDS[motion] if words in said}
    assert seen == set(MOTION_WORDS[motion])


def test_a_narration_tells_the_motion_in_one_of_three_sentences():
    places = Counter()
    for index in range(300):
        scene = draw_scene(CORPUS, index)
        parts = narration(scene, draws.generator(index, "words")).split(SEPARATOR)
        assert len(parts) == len(set(parts)) == 3
        (place,) = [place for place, part in enumerate(parts) if told(part)]
        assert told(parts[place]) == {scene.label}
        places[place] += 1
    assert min(places.values()) > 60


def test_no_phrasing_is_of_two_motions():
    every = [words for phrasings in MOTION_WORDS.values() for words in phrasings]
    assert len(set(every)) == len(every) and set(MOTION_WORDS) == set(MOTIONS)
