"""How well the masks of tracked objects are found: region similarity J and contour accuracy F, as DAVIS has them.

Source: Perazzi et al. 2016, A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, section 5;
Pont-Tuset et al. 2017, https://arxiv.org/abs/1704.00675; boundaries and bins as in davis2017-evaluation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy
from numpy.typing import NDArray

from tubelet.types import TubeletError

Mask = NDArray[numpy.bool_]
Numbers = NDArray[numpy.float64]
TOLERANCE = 0.008
"""How far a contour may lie from the true one, as a share of the picture's diagonal."""
SUCCESS = 0.5
"""A frame is recalled whose J, or F, is above this."""
BINS = 4
"""Of a sequence, for its decay: the mean of the first less that of the last."""


def judge(predicted: NDArray[numpy.integer], truth: NDArray[numpy.integer], objects: list[int]) -> list[dict[str, Any]]:
    """Judges each object of a sequence whose masks are given in the first frame.

    The first frame, which is given, and the last one do not count.

    Args:
        predicted: T H W, the number of the object that each pixel shows; any other number is background.
        truth: likewise.
        objects: the numbers to judge.

    Returns:
        For each object ``object, j, j_recall, j_decay, f, f_recall, f_decay``: means over the frames, in shares of 1.

    Raises:
        TubeletError: the two differ in shape, or have fewer than three frames.
    """
    if predicted.shape != truth.shape:
        raise TubeletError(f"masks of {predicted.shape} cannot be judged by masks of {truth.shape}: one for each frame")
    if len(truth) < 3:
        raise TubeletError(f"a sequence of {len(truth)} frames has none between the first and the last to judge")
    judged = []
    for number in objects:
        found, true = predicted[1:-1] == number, truth[1:-1] == number  # T-2 H W
        j, f = region_similarity(found, true), contour_accuracy(found, true)  # T-2 each
        judged.append(
            {"object": number, "j": float(j.mean()), "j_recall": recall(j), "j_decay": decay(j),
             "f": float(f.mean()), "f_recall": recall(f), "f_decay": decay(f)}
        )  # fmt: skip
    return judged


def region_similarity(predicted: Mask, truth: Mask) -> Numbers:
    """J: intersection over union of each frame's masks, T; 1 where both are empty.

    Args:
        predicted: T H W, True = object.
        truth: likewise.
    """
    both = (predicted & truth).sum(axis=(1, 2))
    either = (predicted | truth).sum(axis=(1, 2))
    return numpy.where(either > 0, both / numpy.maximum(either, 1), 1.0)


def contour_accuracy(predicted: Mask, truth: Mask, tolerance: float = TOLERANCE) -> Numbers:
    """F: the harmonic mean of how much of each contour lies near the other, T; 1 where both are empty.

    Near is within a disk of radius ``ceil(tolerance x diagonal)`` pixels. Where one of two contours is empty F is 0.

    Args:
        predicted: T H W, True = object.
        truth: likewise.
    """
    radius = math.ceil(tolerance * math.hypot(*truth.shape[1:]))
    scores = numpy.empty(len(truth))
    for t, masks in enumerate(zip(predicted, truth, strict=True)):
        mine, theirs = (boundary(mask) for mask in masks)
        if not mine.any() or not theirs.any():
            scores[t] = float(not mine.any() and not theirs.any())
            continue
        rows, columns = numpy.nonzero(mine | theirs)
        near = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)  # all contours lie there
        mine, theirs = mine[near], theirs[near]
        precision = (mine & dilated(theirs, radius)).sum() / mine.sum()
        found = (theirs & dilated(mine, radius)).sum() / theirs.sum()
        scores[t] = 2 * precision * found / (precision + found) if precision + found else 0.0
    return scores


def boundary(mask: Mask) -> Mask:
    """The pixels of a mask (H W) that differ from their neighbour to the right, below or below to the right.

    In the last row and column only the neighbour that there is counts.
    """
    padded = numpy.pad(mask, (0, 1), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ across)  # an edge repeated beyond the picture differs from nothing


def dilated(mask: Mask, radius: int) -> Mask:
    """A mask (H W) with every pixel that is at most ``radius`` away from it.

    A disk is a pile of lines: each is a sliding sum along the rows, moved up or down.
    """
    height, width = mask.shape
    sums = numpy.pad(mask, ((0, 0), (radius + 1, radius))).cumsum(axis=1)  # H W+2r+1
    grown = numpy.zeros_like(mask)
    for down in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - down**2)
        line = sums[:, radius + half + 1 : radius + half + 1 + width] > sums[:, radius - half : radius - half + width]
        grown[max(0, down) : max(0, height + down)] |= line[max(0, -down) : max(0, height - down)]
    return grown


def recall(values: Numbers) -> float:
    """Share of the frames that are better than `SUCCESS`."""
    return float((values > SUCCESS).mean())


def decay(values: Numbers) -> float:
    """What is lost over a sequence: the mean of its first quarter less that of its last.

    Neighbouring quarters share the frame between them. The reference keeps the frame numbers in 8 bits, which sequences
    of more than 256 frames overflow; here they do not.
    """
    edges = numpy.round(numpy.linspace(1, len(values), BINS + 1) + 1e-10).astype(int) - 1
    first, last = (values[edges[i] : edges[i + 1] + 1] for i in (0, BINS - 1))
    return float(first.mean() - last.mean())
