"""What a learner makes of a few fixed clips, measured without labels as it trains; `verdict` says what that means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tubelet import dist, draws
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.loader import Loader
from tubelet.data.workers import LIMIT_S
from tubelet.learner import Learner
from tubelet.metrics.representation import consistency, dead_share, effective_rank, spread
from tubelet.train.parallel import Precision, autocast
from tubelet.types import Batch

VIDEOS, FEWEST = 64, 16
"""How many are looked at; with less than the fewest nothing can be said."""
PIECE = 8
"""Clips of one forward pass, in any number of processes: the loss of some learners depends on what a clip is beside."""
_KEPT_BYTES = 256 << 20
"""Clips that take less than this in one process are decoded once and kept."""


class _Piece(NamedTuple):
    """What one forward pass of each kind gave, for those clips that can be read."""

    first: Tensor
    """B D: the embeddings of one clip of each video."""
    second: Tensor
    """B D: those of another."""
    losses: dict[str, float]
    """Of each phase; without those that had nothing to learn from."""
    apart: Tensor
    """B bool: the two clips are of different times, which those of a video no longer than a clip are not."""


class Health:
    """Looks at a learner through the same two clips of the same few videos, again and again.

    Which videos, at which times, under which masks: all is drawn from the seed, so that numbers of one run can be
    compared with each other, and are the same in any number of processes. Clips are not augmented. Each process takes
    its part of the videos, and all do equally many forward passes, as sharded weights need.

    Args:
        clips: what the learner is trained on.
        seed: another seed chooses other videos and masks.
        videos: how many, at most.
        precision: that of training.
        workers: processes that decode.
        limit_s: seconds that the clips of one video may take.
    """

    precision: Precision

    def __init__(
        self,
        clips: Clips,
        seed: int,
        videos: int = VIDEOS,
        *,
        precision: Precision = "auto",
        workers: int = 1,
        limit_s: float = LIMIT_S,
    ) -> None:
        self.seed, self.precision = seed, precision
        piece = min(PIECE, videos, len(clips))
        count = min(videos, len(clips)) // piece * piece
        chosen = draws.generator(seed, "health").permutation(len(clips))[:count]
        rows = sorted(int(row) for row in chosen)
        self.pieces, world = count // piece, dist.world_size()
        self.rounds = math.ceil(self.pieces / world)
        padded = [rows[place % count] for place in range(self.rounds * world * piece)]  # what is too much is left out
        self.rows = torch.tensor(padded)
        self.loader = Loader(
            plain(clips, padded, max(2, clips.views)), piece * world, workers=workers, shuffle=False, rank=dist.rank(),
            world=world, limit_s=limit_s,
        )  # fmt: skip
        self.kept: list[Batch] = []

    @torch.no_grad()
    def examine(self, learner: Learner) -> dict[str, float]:
        """The numbers of now; the learner, its modes, its buffers and the random states are left as they were.

        Every process must call it, and gets the same numbers.

        Returns:
            ``effective_rank``, ``spread`` and ``dead`` of the embeddings of all clips; ``same``, ``other`` and
            ``nearest`` of the two clips of each video that is longer than one (all as in `metrics.representation`);
            ``loss`` of the first
            clips, under fixed masks (``loss_PHASE`` for each phase where there are several). Where embeddings are not
            finite, only the share that is, ``finite``. What cannot be said, because nothing can be read or learnt
            from, is left out.
        """
        with _as_it_was(learner), dist.apart():  # pieces are not of one size
            mine = [self._piece(learner, number, batch) for number, batch in enumerate(self._batches())]
        every = [piece for part in dist.gather(mine) for piece in part][: self.pieces]
        numbers = {}
        for phase in learner.phases:
            losses = [(len(piece.first), piece.losses[phase]) for piece in every if phase in piece.losses]
            if losses:
                name = "loss" if len(learner.phases) == 1 else f"loss_{phase}"
                numbers[name] = sum(count * loss for count, loss in losses) / sum(count for count, _ in losses)
        first, second = (torch.cat(parts) for parts in zip(*((p.first, p.second) for p in every), strict=True))  # N D
        return numbers | _looks(first, second, torch.cat([piece.apart for piece in every]))

    def _batches(self) -> list[Batch] | Iterator[Batch]:
        """This process's pieces, uint8; read anew each time where they are too large to keep."""
        clips = self.loader.clips
        size = clips.views * (1 + clips.has_beside) * clips.frames * clips.density * clips.size**2 * 3
        if len(self.rows) * size > _KEPT_BYTES:
            return self.loader.once()
        if not self.kept:
            self.kept = list(self.loader.once())
        return self.kept

    def _piece(self, learner: Learner, number: int, batch: Batch) -> _Piece:
        """Two forward passes to embed and one for each loss, whatever can be read: all processes must do as many."""
        assert "readable" in batch and "id" in batch
        nothing = not batch["readable"].any()
        batch = batch if nothing else _rows(batch, batch["readable"])
        data = to_device(Batch(**{**batch, "id": self.rows[batch["id"]]}), dist.device())
        torch.manual_seed(draws.key(self.seed, "health", dist.rank() * self.rounds + number))
        with autocast(self.precision, dist.device()):
            first, second = (learner.embed(_views(data, [view], learner.density)).float().cpu() for view in (0, 1))
            outputs = {phase: learner(_views(data, range(learner.views)), phase) for phase in learner.phases}
        assert "times" in batch
        apart = (batch["times"][0] != batch["times"][1]).any(dim=1).cpu()  # B
        if nothing:
            return _Piece(first[:0], second[:0], {}, apart[:0])
        losses = {name: float(loss) for name, (loss, _) in outputs.items() if loss is not None}
        return _Piece(first, second, losses, apart)


def plain(clips: Clips, rows: list[int], views: int) -> Clips:
    """Clips of the same shape, not augmented, of some videos; views are clips of one video at different times."""
    manifest = clips.manifest.take(rows)
    there = {video.corpus for video in manifest.videos}
    return Clips(
        manifest, frames=clips.frames, stride=clips.stride, reference_fps=clips.reference_fps, size=clips.size,
        sampling="segments" if clips.in_segments else "random", crop="center", flip=False, views=views,
        density=clips.density, strides={name: stride for name, stride in clips.strides.items() if name in there},
        audio_rate=clips.audio_rate, captions=clips.captions, flow=clips.flow, reader=clips.reader, seed=clips.seed,
    )  # fmt: skip


def _looks(first: Tensor, second: Tensor, apart: Tensor) -> dict[str, float]:
    both = torch.cat([first, second])  # 2N D
    finite = torch.isfinite(both).all(dim=1)  # 2N
    if not finite.all():
        return {"finite": float(finite.double().mean())}
    if len(first) < 2:
        return {}
    alone = {"effective_rank": effective_rank(both), "spread": spread(both), "dead": dead_share(both)}
    return alone | (consistency(first[apart], second[apart]) if apart.sum() >= 2 else {})


@contextmanager
def _as_it_was(learner: Learner) -> Iterator[None]:
    """Evaluation mode, and afterwards everything back: modes, buffers, random states."""
    device = dist.device()
    modes = {module: module.training for module in learner.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in learner.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        learner.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for buffer, before in buffers:
                buffer.copy_(before)


def _rows(batch: Batch, kept: Tensor) -> Batch:
    """The samples of a batch that are `kept`."""

    chosen = kept.tolist()

    def some(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[kept]
        return [one for one, keep in zip(value, chosen, strict=True) if keep]

    parts: dict[str, Any] = {
        name: [some(view) for view in value] if isinstance(value, list) else some(value)
        for name, value in batch.items()
    }
    return Batch(**parts)


def _views(batch: Batch, chosen: Sequence[int], every: int = 1) -> Batch:
    """Some views of each modality, and `every` so many frames of its video."""
    parts: dict[str, Any] = {
        name: [value[view] for view in chosen] if isinstance(value, list) else value for name, value in batch.items()
    }
    parts["video"] = [video[:, :, ::every] for video in parts["video"]]
    return Batch(**parts)
