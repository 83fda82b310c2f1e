import math

import numpy
import pytest

from tubelet.metrics.objects import boundary, contour_accuracy, decay, dilated, judge, recall, region_similarity
from tubelet.types import TubeletError


def blobs(seed: int, frames: int = 6, height: int = 23, width: int = 31) -> numpy.ndarray:
    """T H W: discs that wander and overlap, sometimes beyond the border, sometimes gone."""
    rng = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[:height, :width]
    found = []
    for _ in range(frames):
        radius = rng.choice([0, 3, 6, 9])
        found.append(numpy.hypot(y - rng.uniform(-2, height + 2), x - rng.uniform(-2, width + 2)) < radius)
    return numpy.array(found)


def slow_boundary(mask: numpy.ndarray) -> numpy.ndarray:
    """Pixel by pixel, from the rules of the reference."""
    height, width = mask.shape
    found = numpy.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            there = [mask[place] for place in neighbours if place[0] < height and place[1] < width]
            found[y, x] = any(other != mask[y, x] for other in there)
    return found


def slow_dilated(mask: numpy.ndarray, radius: int) -> numpy.ndarray:
    ys, xs = numpy.nonzero(mask)
    y, x = numpy.indices(mask.shape)
    return numpy.array((y[..., None] - ys) ** 2 + (x[..., None] - xs) ** 2 <= radius**2).any(axis=-1)


def slow_contour(mine: numpy.ndarray, theirs: numpy.ndarray, radius: int) -> float:
    mine, theirs = slow_boundary(mine), slow_boundary(theirs)
    if mine.sum() == 0 or theirs.sum() == 0:
        return 1.0 if mine.sum() == theirs.sum() else 0.0
    precision = (mine * slow_dilated(theirs, radius)).sum() / mine.sum()
    found = (theirs * slow_dilated(mine, radius)).sum() / theirs.sum()
    return 0.0 if precision + found == 0 else 2 * precision * found / (precision + found)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 40])
def test_a_disk_reaches_as_far_as_its_radius(radius):
    for mask in blobs(radius):
        edge = slow_boundary(mask)
        assert numpy.array_equal(dilated(edge, radius), slow_dilated(edge, radius))


def test_boundaries_are_those_of_the_reference_in_the_corners_too():
    for mask in [*blobs(1, frames=20), *blobs(2, frames=20)]:
        assert numpy.array_equal(boundary(mask), slow_boundary(mask))
        assert numpy.array_equal(boundary(~mask), boundary(mask))


@pytest.mark.parametrize("tolerance", [0.008, 0.05])
def test_both_measures_equal_their_slow_twins(tolerance):
    mine, theirs = blobs(3, frames=30), blobs(4, frames=30)
    radius = math.ceil(tolerance * math.sqrt(23**2 + 31**2))
    f = [slow_contour(a, b, radius) for a, b in zip(mine, theirs, strict=True)]
    assert contour_accuracy(mine, theirs, tolerance) == pytest.approx(f)
    j = [1.0 if not (a | b).any() else (a & b).sum() / (a | b).sum() for a, b in zip(mine, theirs, strict=True)]
    assert region_similarity(mine, theirs) == pytest.approx(j)
    assert 0 < numpy.mean(f) < 1 and 0 < numpy.mean(j) < 1


def test_nothing_found_where_nothing_is_counts_as_right():
    nothing, disc = numpy.zeros((1, 20, 20), bool), numpy.zeros((1, 20, 20), bool)
    disc[:, 5:9, 5:9] = True
    assert region_similarity(nothing, nothing) == contour_accuracy(nothing, nothing) == 1
    assert region_similarity(nothing, disc) == contour_accuracy(nothing, disc) == 0
    assert region_similarity(disc, nothing) == contour_accuracy(disc, nothing) == 0


def test_a_contour_may_be_as_far_off_as_the_tolerance():
    """The diagonal of 480 x 854 pixels makes a radius of 8."""
    true = numpy.zeros((1, 480, 854), bool)
    true[:, 100:200, 100:200] = True
    assert contour_accuracy(numpy.roll(true, 8, axis=2), true) == 1
    assert contour_accuracy(numpy.roll(true, 9, axis=2), true) < 0.6


def test_decay_is_right_in_long_sequences_too():
    """Numbers of frames in 8 bits would wrap round at 256."""
    values = numpy.concatenate([numpy.ones(250), numpy.zeros(250)])
    assert decay(values) == 1
    ramp = numpy.linspace(1, 0, 401)
    assert decay(ramp) == pytest.approx(0.75)
    bins = [numpy.round(edge) - 1 for edge in numpy.linspace(1, 11, 5) + 1e-10]
    assert bins == [0, 3, 5, 8, 10]  # of eleven frames
    eleven = numpy.arange(11.0)
    assert decay(eleven) == eleven[0:4].mean() - eleven[8:11].mean()


def test_recall_is_the_share_of_frames_better_than_half():
    assert recall(numpy.array([0.5, 0.51, 0.2, 1.0])) == 0.5


def test_each_object_is_judged_between_the_first_and_the_last_frame():
    truth = numpy.zeros((5, 16, 16), numpy.uint8)
    truth[:, 2:8, 2:8], truth[:, 10:14, 10:14] = 1, 7
    found = truth.copy()
    found[0], found[-1] = 3, 3  # what does not count may be anything
    found[2][found[2] == 7] = 0
    one, seven = judge(found, truth, [1, 7])
    assert (one["j"], one["f"], one["j_recall"], one["j_decay"]) == (1, 1, 1, 0)
    assert seven["object"] == 7 and seven["j"] == seven["f"] == seven["f_recall"] == pytest.approx(2 / 3)
    with pytest.raises(TubeletError, match="one for each frame"):
        judge(found[:4], truth, [1])
    with pytest.raises(TubeletError, match="2 frames has none between"):
        judge(found[:2], truth[:2], [1])
