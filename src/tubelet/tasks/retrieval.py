"""Video retrieval: are the training videos that lie nearest to a video of its class? Nothing is trained."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tubelet.checkpoint import write_csv
from tubelet.learner import Backbone
from tubelet.metrics.classification import wilson
from tubelet.metrics.ranking import mean_average_precision, recall_at
from tubelet.registry import register
from tubelet.tasks.features import features
from tubelet.tasks.protocol import Protocol, Result, Task
from tubelet.types import TubeletError


@register("retrieval")
class Retrieval(Task):
    """Ranks the training videos by the cosine of mean-pooled frozen features, for each test video.

    ``recall@k`` is the share of test videos with one of their class among the first k (the measure of Xu et al. 2019
    and the tables after it, "nearest neighbour retrieval"); ``map`` is the mean average precision over all ranks.
    ``positive`` and ``negative`` are the mean cosines of pairs of one class and of two, ``auc`` the chance that one of
    the first is larger than one of the second.

    Args:
        ks: the numbers of videos that are looked at.
        centre: takes the mean of the training features away first. Published code often centres each split by its own
            mean, which needs all test videos at once; this does not.
    """

    def __init__(self, ks: tuple[int, ...] = (1, 5, 10, 20, 50), centre: bool = True) -> None:
        if not ks or min(ks) < 1:
            raise TubeletError(f"retrieval.ks must be numbers of at least 1, not {list(ks)}")
        self.ks, self.centre = sorted(set(ks)), centre
        self.numbers = [*(f"recall@{k}" for k in self.ks), "map"]

    def __call__(self, backbone: Backbone, data: Protocol, out: Path) -> Result:
        started = time.perf_counter()
        train, test = (features(backbone, part, data) for part in (data.train, data.test))
        gallery, queries = train.values[train.readable], test.values[test.readable]
        if self.centre:
            mean = gallery.float().mean(dim=0)
            gallery, queries = gallery - mean, queries - mean
        gallery, queries = (functional.normalize(part.float(), dim=1) for part in (gallery, queries))
        cosines = queries @ gallery.T  # Q G
        relevant = test.labels[test.readable][:, None] == train.labels[train.readable]  # Q G
        recalls = recall_at(cosines, relevant, self.ks)
        shares = [*(recalls[k] for k in self.ks), mean_average_precision(cosines, relevant)]
        self._write(out, data, train.readable, test.readable, cosines)
        count = len(queries)
        missing = [str(data.test.videos[row].path) for row in (~test.readable).nonzero().flatten().tolist()]
        return {
            "numbers": self.numbers, **dict(zip(self.numbers, shares, strict=True)),
            "interval": list(wilson(round(shares[0] * count), count)),
            "positive": float(cosines[relevant].mean()), "negative": float(cosines[~relevant].mean()),
            "auc": auc(cosines[relevant], cosines[~relevant]),
            "videos": count, "unreadable": len(missing), "missing": missing,
            "train_videos": len(gallery), "unreadable_train": int((~train.readable).sum()),
            "seconds": round(time.perf_counter() - started, 3),
        }  # fmt: skip

    def _write(self, out: Path, data: Protocol, known: Tensor, asked: Tensor, cosines: Tensor) -> None:
        """``predictions.csv``: for each test video the training video that lies nearest."""
        lines: list[list[object]] = [["path", "label", "nearest", "nearest_label", "cosine", "id"]]
        gallery = known.nonzero().flatten().tolist()
        value, place = cosines.max(dim=1)
        rows = asked.nonzero().flatten().tolist()
        for row, nearest, cosine in zip(rows, place.tolist(), value.tolist(), strict=True):
            video, found = data.test.videos[row], data.train.videos[gallery[nearest]]
            lines.append([video.path, video.label, found.path, found.label, f"{cosine:.6g}", row])
        write_csv(out / "predictions.csv", lines)


def auc(positive: Tensor, negative: Tensor) -> float:
    """The chance that one of the first is larger than one of the second, equals half (Mann and Whitney 1947)."""
    values = torch.cat([positive, negative]).double()
    kinds, counts = values.unique(return_inverse=True, return_counts=True)[1:]
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0)[kinds]  # of equals the mean
    above = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))
