"""Which video is at which place of a run: pure functions of the place.

Nothing here has a state, so a run goes on from any step at once, and the videos of a step are the same for any number
of workers and processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy

from tubelet import draws
from tubelet.data.listing import Manifest
from tubelet.registry import nearest
from tubelet.types import TubeletError

SUBSTITUTES = 100
"""So many unreadable videos in a row are taken for a training set of which nothing can be read."""


class Slot(NamedTuple):
    """The place of a video in a run: all that its clips depend on, besides the seed."""

    epoch: int
    """How often the whole of its corpus was seen before."""
    id: int
    repeats: int
    """How many clips are taken, each with a key of its own."""
    substitute: bool
    """Whether another video stands in when this one cannot be read."""


class Order:
    """The order of the videos of a training run: permutation after permutation of the manifest, or a mixture.

    A mixture draws from each corpus (the manifest's column ``corpus``) as large a share of the videos as its weight
    says, evenly spread over the epoch, and goes through each corpus in permutations of its own. An epoch has as many
    videos as the manifest in both cases, less what fills no step.

    Args:
        manifest: which videos.
        seed: of the permutations.
        videos: how many make a step. The rest of an epoch that fills none is left out; a set smaller than a step is
            chained instead.
        shuffle: False takes the rows in their order, in every epoch.
        weights: of each corpus, in any unit; None = one corpus, or several as they are.

    Raises:
        TubeletError: the weights do not fit the manifest.
    """

    def __init__(
        self,
        manifest: Manifest,
        seed: int,
        videos: int,
        shuffle: bool = True,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.seed, self.shuffle = seed, shuffle
        self.used = len(manifest) // videos * videos or len(manifest)
        """Videos of an epoch."""
        rows = {"": numpy.arange(len(manifest))} if weights is None else _corpora(manifest, weights)
        self.rows = list(rows.values())
        shares = numpy.array([1.0] if weights is None else [weights[name] for name in rows])
        self.counts = _apportioned(shares / shares.sum(), self.used)
        """Of each corpus in an epoch."""
        if weights is not None and not self.counts.all():
            name = list(rows)[int(self.counts.argmin())]
            raise TubeletError(f"data.weights: at {weights[name]:g} not one video of {name!r} is seen in an epoch")
        self._schedule = lru_cache(maxsize=2)(self._scheduled)
        self._permutation = lru_cache(maxsize=2 * len(self.rows))(self._permuted)

    def __getitem__(self, place: int) -> tuple[int, int]:
        """Epoch and row of the video at a place, counted over all steps and processes."""
        epoch, position = divmod(place, self.used)
        corpora, ranks = self._schedule(epoch)
        corpus = int(corpora[position])
        turn = epoch * int(self.counts[corpus]) + int(ranks[position])
        length = len(self.rows[corpus]) if len(self.rows) > 1 else self.used
        own_epoch, index = divmod(turn, length)
        return own_epoch, int(self._permutation(corpus, own_epoch)[index])

    def peers(self, row: int) -> numpy.ndarray:
        """The rows that may stand in for one: all, or those of its corpus, so that its weight stays what it is."""
        return next(rows for rows in self.rows if len(self.rows) == 1 or row in rows)

    def _scheduled(self, epoch: int) -> tuple[numpy.ndarray, numpy.ndarray]:
        """For each position of an epoch its corpus, and how many of that came before in this epoch."""
        ranks = numpy.concatenate([numpy.arange(count) for count in self.counts])
        corpora = numpy.repeat(numpy.arange(len(self.counts)), self.counts)
        if len(self.counts) > 1:
            draw = draws.generator(self.seed, epoch, "mixture")
            within = draw.random(len(ranks)) if self.shuffle else 0.5
            order = numpy.argsort((ranks + within) / self.counts[corpora], kind="stable")
            corpora, ranks = corpora[order], ranks[order]
        return corpora, ranks

    def _permuted(self, corpus: int, epoch: int) -> numpy.ndarray:
        rows = self.rows[corpus]
        if not self.shuffle:
            return rows
        stream = ("order",) if len(self.rows) == 1 else ("order", corpus)
        return rows[draws.generator(self.seed, epoch, *stream).permutation(len(rows))]


def candidates(slot: Slot, peers: numpy.ndarray, seed: int) -> Iterator[int]:
    """The slot's own row and, where others may stand in, those of ``peers``, in an order drawn by hash."""
    yield slot.id
    if slot.substitute:
        others = peers[draws.generator(seed, slot.epoch, slot.id, "substitute").permutation(len(peers))]
        yield from [int(row) for row in others if row != slot.id][: SUBSTITUTES - 1]


def _corpora(manifest: Manifest, weights: Mapping[str, float]) -> dict[str, numpy.ndarray]:
    where = manifest.source or "the manifest"
    named: dict[str, list[int]] = {}
    for row, video in enumerate(manifest.videos):
        if video.corpus is None:
            raise TubeletError(
                f"data.weights needs a column `corpus`, and {video.path} has none in {where}: "
                "tubelet data join a.csv b.csv -o mix.csv writes it"
            )
        named.setdefault(video.corpus, []).append(row)
    for name, weight in weights.items():
        if name not in named:
            raise TubeletError(f"data.weights names {name!r}, which is no corpus of {where}{nearest(name, named)}")
        if not 0 < weight < float("inf"):
            raise TubeletError(f"data.weights: {name!r} must weigh more than 0, not {weight:g}")
    missing = [name for name in named if name not in weights]
    if missing:
        raise TubeletError(f"data.weights says nothing of the corpus {missing[0]!r} of {where}")
    return {name: numpy.array(rows) for name, rows in named.items()}


def _apportioned(shares: numpy.ndarray, total: int) -> numpy.ndarray:
    """Whole numbers near ``shares * total`` that sum to ``total``: the largest remainders are rounded up."""
    exact = shares * total
    counts = numpy.floor(exact).astype(int)
    up = numpy.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[up] += 1
    return counts
