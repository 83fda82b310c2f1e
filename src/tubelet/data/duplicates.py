"""Which videos are the same one: byte for byte, or to the eye.

To the eye: a few frames of each, taken at the same shares of its length, have 64-bit perceptual hashes, and two
videos are near when their frames differ in few bits. Every pair that near is found, without looking at all pairs: bits
that differ in D places at most, cut into D + 1 bands, agree wholly in one of them (multi-index hashing; Norouzi,
Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012, section 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy

NEAR_BITS = 4.0
"""Of 64: so many differ in a frame, on average, in what is still taken for the same."""
LEAST_CHANGE = 3.0
"""Bits in which two frames of a video differ on average, if there is to be any telling it from others by hashes."""


def same(keys: Sequence[Hashable]) -> list[list[int]]:
    """Groups of two or more places at which equal keys stand, such as digests of files; None is equal to nothing."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            places[key].append(place)
    return [group for group in places.values() if len(group) > 1]


def near(
    hashes: Sequence[Sequence[int]], durations_s: Sequence[float], bits: float = NEAR_BITS
) -> list[list[int]]:
    """Groups of videos that look the same, each linked to another one of its group.

    Two are linked when their lengths agree and their frames differ in `bits` bits at most, and in less than half of
    what their own frames differ from one another: before a camera that stands still all videos are alike, and that
    makes none a copy. For that reason videos in which hardly anything changes are linked to none.

    Args:
        hashes: of the frames of each video, 64 bits each; videos with different numbers of them are never linked.
        durations_s: of each video.
        bits: how many may differ in a frame, on average.
    """
    numbers: dict[int, list[int]] = defaultdict(list)
    for row, frames in enumerate(hashes):
        numbers[len(frames)].append(row)
    groups = []
    for count, rows in numbers.items():
        if count == 0 or len(rows) < 2:
            continue
        videos = _Videos(
            numpy.array([hashes[row] for row in rows], dtype=numpy.uint64),
            numpy.array([durations_s[row] for row in rows], dtype=numpy.float64),
            bits,
        )
        groups += [[rows[i] for i in members] for members in videos.groups()]
    return sorted(groups)


class _Videos:
    """Videos with the same number of frames' hashes, and the groups found among them so far."""

    def __init__(self, hashes: numpy.ndarray, durations_s: numpy.ndarray, bits: float) -> None:
        self.hashes, self.durations_s = hashes, durations_s  # N K, N
        self.most = int(bits * hashes.shape[1])  # of all bits of a video
        self.change = _spread(hashes)  # N
        self.group = numpy.arange(len(hashes))  # N: the number of its group, at first one of its own
        self.members = {row: [row] for row in range(len(hashes))}

    def groups(self) -> list[list[int]]:
        moving = numpy.flatnonzero(self.change >= LEAST_CHANGE * self.hashes.shape[1])
        for band in _bands(self.hashes, self.most + 1):
            order = moving[numpy.argsort(band[moving], kind="stable")]
            self._link_equal(order, band[order])
        return [sorted(members) for members in self.members.values() if len(members) > 1]

    def _link_equal(self, order: numpy.ndarray, band: numpy.ndarray) -> None:
        """Compares all videos with equal values of a band; `order` has them side by side.

        Every video is compared with the next but 1, 2, 3... as long as that has the same value. Buckets that have
        become one group need no more of it.
        """
        bucket = numpy.cumsum(numpy.concatenate([[0], band[1:] != band[:-1]]))  # N
        first = numpy.arange(len(order))
        step, linked = 0, True
        while len(first):
            step += 1
            first = first[first + step < len(order)]
            first = first[bucket[first] == bucket[first + step]]
            if linked:
                whole = self._one_group(order, bucket)
                first = first[~whole[bucket[first]]]
            a, b = order[first], order[first + step]
            apart = self.group[a] != self.group[b]
            a, b = a[apart], b[apart]
            close = self._are_close(a, b)
            for one, other in zip(a[close].tolist(), b[close].tolist(), strict=True):
                self._join(one, other)
            linked = bool(close.any())

    def _one_group(self, order: numpy.ndarray, bucket: numpy.ndarray) -> numpy.ndarray:
        """For each bucket, whether all its videos are of one group."""
        groups, starts = self.group[order], numpy.flatnonzero(numpy.diff(bucket, prepend=-1))
        return numpy.minimum.reduceat(groups, starts) == numpy.maximum.reduceat(groups, starts)

    def _are_close(self, a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
        longer = numpy.maximum(self.durations_s[a], self.durations_s[b])
        close = numpy.abs(self.durations_s[a] - self.durations_s[b]) <= numpy.maximum(0.2, 0.03 * longer)
        limit = numpy.minimum(self.most, 0.5 * numpy.minimum(self.change[a], self.change[b]))
        close[close] = distances(self.hashes[a[close]], self.hashes[b[close]]) <= limit[close]
        return close

    def _join(self, a: int, b: int) -> None:
        small, large = sorted((self.group[a], self.group[b]), key=lambda number: len(self.members[number]))
        if small != large:
            moved = self.members.pop(small)
            self.members[large] += moved
            self.group[moved] = large


def distances(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    """Bits in which rows of hashes differ: two of N K uint64 -> N."""
    return numpy.bitwise_count(a ^ b).sum(axis=1, dtype=numpy.int64)


def _spread(hashes: numpy.ndarray) -> numpy.ndarray:
    """How much the frames of a video differ from one another: mean over pairs, in bits of all K frames. N K -> N."""
    frames = hashes.shape[1]
    pairs = sum(distances(hashes[:, gap:], hashes[:, :-gap]) for gap in range(1, frames))
    return pairs / max(1, frames * (frames - 1) / 2) * frames


def _bands(hashes: numpy.ndarray, count: int) -> list[numpy.ndarray]:
    """The bits of each row dealt out to `count` bands, each packed into one number: N.

    Bits that tell much (set in half of the videos) and bits that tell little are dealt evenly, or one band that tells
    nothing would have all pairs compared. `count` is at least K, so that a band has 64 bits at most.
    """
    bits = numpy.unpackbits(hashes.view(numpy.uint8), axis=1)  # N 64 K
    count = min(max(count, hashes.shape[1]), bits.shape[1])
    order = numpy.argsort(numpy.abs(bits.mean(axis=0) - 0.5), kind="stable")
    bands = []
    for first in range(count):
        band = numpy.zeros((len(bits), 8), dtype=numpy.uint8)
        packed = numpy.packbits(bits[:, order[first::count]], axis=1)
        band[:, : packed.shape[1]] = packed
        bands.append(band.view(numpy.uint64)[:, 0])
    return bands
