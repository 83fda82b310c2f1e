"""Which videos are the same one: byte for byte, or to the eye.

To the eye: a few frames of each, taken at the same shares of its length, have 64-bit perceptual hashes, and two
videos are near when their frames differ in few bits. Every pair that near is found, without looking at all pairs: bits
that differ in D places at most, cut into D / 2 + 1 bands, differ in one place at most in one of them (multi-index
hashing; Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012, section 3). Small
pictures of the same frames then confirm what hashes take for near.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy

NEAR_BITS = 6.0
"""Of 64: so many differ in a frame, on average, in what is still taken for the same."""
SHARE_OF_CHANGE = 0.45
"""And this share of the bits in which the frames of one video differ from one another. Measured on clips of UCF101,
Weizmann and yoga poses: copies of half the size at crf 32 have 0.02 to 0.4, others of the same scene 0.6 and more."""
LEAST_CORRELATION = 0.9
"""Between the changes of two videos, see `correlation`."""
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
    hashes: Sequence[Sequence[int]],
    durations_s: Sequence[float],
    bits: float = NEAR_BITS,
    confirm: Callable[[int, int], bool] | None = None,
) -> list[list[int]]:
    """Groups of videos that look the same, each linked to another one of its group.

    Two are linked when their lengths agree and their frames differ in `bits` bits at most, and in less than
    `SHARE_OF_CHANGE` of what their own frames differ from one another: before a camera that stands still all videos are
    alike, and that makes none a copy. For that reason videos in which hardly anything changes are linked to none.

    Args:
        hashes: of the frames of each video, 64 bits each; videos with different numbers of them are never linked.
        durations_s: of each video.
        bits: how many may differ in a frame, on average.
        confirm: whether two videos that are near by their hashes are so by their pictures too.
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
            confirm and (lambda a, b, rows=rows: confirm(rows[a], rows[b])),
        )
        groups += [[rows[i] for i in members] for members in videos.groups()]
    return sorted(groups)


class _Videos:
    """Videos with the same number of frames' hashes, and the groups found among them so far."""

    def __init__(
        self,
        hashes: numpy.ndarray,
        durations_s: numpy.ndarray,
        bits: float,
        confirm: Callable[[int, int], bool] | None,
    ) -> None:
        self.hashes, self.durations_s, self.confirm = hashes, durations_s, confirm  # N K, N
        self.most = int(bits * hashes.shape[1])  # of all bits of a video
        self.change = _spread(hashes)  # N
        self.group = numpy.arange(len(hashes))  # N: the number of its group, at first one of its own
        self.members = {row: [row] for row in range(len(hashes))}

    def groups(self) -> list[list[int]]:
        moving = numpy.flatnonzero(self.change >= LEAST_CHANGE * self.hashes.shape[1])
        for band, bits in _bands(self.hashes, self.most // 2 + 1):
            self._link(moving, band)
            for bit in range(bits):
                self._link(moving, band & ~numpy.uint64(1 << bit), band)
        return [sorted(members) for members in self.members.values() if len(members) > 1]

    def _link(self, rows: numpy.ndarray, keys: numpy.ndarray, unlike: numpy.ndarray | None = None) -> None:
        """Compares all videos with equal keys, and with different values of `unlike` where it is given.

        In the order of the keys every video is compared with the next, the next but one, and so on, as long as that has
        the same key. Buckets of one key that have become one group need no more of it.
        """
        order = rows[numpy.argsort(keys[rows], kind="stable")]
        bucket = numpy.cumsum(numpy.diff(keys[order], prepend=keys[order[:1]]) != 0)  # N
        first = numpy.arange(len(order))
        step, linked = 0, True
        while len(first):
            step += 1
            first = first[first + step < len(order)]
            first = first[bucket[first] == bucket[first + step]]
            if linked and len(first):
                first = first[~self._one_group(order, bucket)[bucket[first]]]
            a, b = order[first], order[first + step]
            compared = self.group[a] != self.group[b]
            if unlike is not None:
                compared &= unlike[a] != unlike[b]
            a, b = a[compared], b[compared]
            close = self._are_close(a, b)
            linked = False
            for one, other in zip(a[close].tolist(), b[close].tolist(), strict=True):
                if self.group[one] != self.group[other] and (self.confirm is None or self.confirm(one, other)):
                    self._join(one, other)
                    linked = True

    def _one_group(self, order: numpy.ndarray, bucket: numpy.ndarray) -> numpy.ndarray:
        """For each bucket, whether all its videos are of one group."""
        groups, starts = self.group[order], numpy.flatnonzero(numpy.diff(bucket, prepend=-1))
        return numpy.minimum.reduceat(groups, starts) == numpy.maximum.reduceat(groups, starts)

    def _are_close(self, a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
        longer = numpy.maximum(self.durations_s[a], self.durations_s[b])
        close = numpy.abs(self.durations_s[a] - self.durations_s[b]) <= numpy.maximum(0.2, 0.03 * longer)
        limit = numpy.minimum(self.most, SHARE_OF_CHANGE * numpy.minimum(self.change[a], self.change[b]))
        close[close] = distances(self.hashes[a[close]], self.hashes[b[close]]) <= limit[close]
        return close

    def _join(self, a: int, b: int) -> None:
        small, large = sorted((self.group[a], self.group[b]), key=lambda number: len(self.members[number]))
        moved = self.members.pop(small)
        self.members[large] += moved
        self.group[moved] = large


def correlation(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """How alike the changes of two videos are: 1 where all is the same but for brightness and contrast.

    From each frame the mean of its video is taken, so that neither the background nor a camera that stands still
    counts. Measured on what has near hashes: copies of half the size at crf 32 have 0.97 and more, where that leaves
    72 lines 0.83 to 0.97, and two takes of one yoga pose half a minute apart 0.77.

    Args:
        a: K squares, K H W.
        b: likewise.
    """
    one, other = a - a.mean(axis=0, dtype=numpy.float64), b - b.mean(axis=0, dtype=numpy.float64)
    return float((one * other).sum() / max(1e-9, numpy.linalg.norm(one) * numpy.linalg.norm(other)))


def distances(a: numpy.ndarray, b: numpy.ndarray) -> numpy.ndarray:
    """Bits in which rows of hashes differ: two of N K uint64 -> N."""
    return numpy.bitwise_count(a ^ b).sum(axis=1, dtype=numpy.int64)


def _spread(hashes: numpy.ndarray) -> numpy.ndarray:
    """How much the frames of a video differ from one another: mean over pairs, in bits of all K frames. N K -> N."""
    frames = hashes.shape[1]
    pairs = sum(distances(hashes[:, gap:], hashes[:, :-gap]) for gap in range(1, frames))
    return pairs / max(1, frames * (frames - 1) / 2) * frames


def _bands(hashes: numpy.ndarray, count: int) -> Iterator[tuple[numpy.ndarray, int]]:
    """The bits of each row dealt out to `count` bands, each as one number, N, with how many bits it has.

    Bits that tell much (set in half of the videos) and bits that tell little are dealt evenly, or one band that tells
    nothing would have all pairs compared. `count` is at least K, so that a band has 64 bits at most.
    """
    bits = numpy.unpackbits(hashes.view(numpy.uint8), axis=1)  # N 64 K
    count = min(max(count, hashes.shape[1]), bits.shape[1])
    order = numpy.argsort(numpy.abs(bits.mean(axis=0) - 0.5), kind="stable")
    for first in range(count):
        dealt = bits[:, order[first::count]].astype(numpy.uint64)
        places = numpy.arange(dealt.shape[1], dtype=numpy.uint64)
        yield (dealt << places).sum(axis=1, dtype=numpy.uint64), len(places)
