"""Tuples of clips, frames or cells of one video: which are taken, how they are shuffled, and what looks at them.

One encoder sees all items of a tuple, in one pass, and a head compares what it made of them. Draws come from the
video's key and the name of what they are for.
"""

from __future__ import annotations

import itertools
import math

import numpy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone
from tubelet.types import TubeletError

Orders = NDArray[numpy.int64]
"""K n: each row says which item stands in each place."""


# which parts of a video


def taken(video: Tensor, times: Tensor) -> Tensor:
    """The frames ``times`` (B n L) of each video, as n clips of L frames: B C T H W -> B n C L H W."""
    rows = torch.arange(len(video), device=video.device)[:, None, None]
    return video.transpose(1, 2)[rows, times].transpose(2, 3)  # B n C L H W


def spread(frames: int, count: int, length: int, device: torch.device) -> Tensor:
    """The frames of ``count`` clips of ``length``, evenly spread from the first to the last: count length int64."""
    starts = [round(i * (frames - length) / max(1, count - 1)) for i in range(count)]
    return torch.tensor(starts, device=device)[:, None] + torch.arange(length, device=device)


def check_frames(frames: int, count: int) -> None:
    """Raises where a clip has too few frames for ``count`` different ones."""
    if frames < count:
        raise TubeletError(f"{count} different frames cannot be taken from a clip of {frames}: raise data.frames")


def moving_places(video: Tensor, keys: Tensor, count: int, window: float, stream: str) -> Tensor:
    """Different frames of each video from where it moves, in their order: B C T H W -> B count int64.

    They are drawn from a window, and the window with a chance in proportion to how much changes in it (Misra et al.
    2016, section 3.1; the change of pixels stands for optical flow); in it all sets of frames are equally likely.

    Args:
        window: its length, as a share of the clip; it is at least ``count`` frames.

    Raises:
        TubeletError: the clip has fewer than ``count`` frames.
    """
    frames = video.shape[2]
    check_frames(frames, count)
    length = max(count, round(window * frames))
    change = (video[:, :, 1:] - video[:, :, :-1]).float().abs().mean(dim=(1, 3, 4))  # B T-1
    likely = change.unfold(1, length - 1, 1).sum(dim=2) + 1e-6  # B windows; in a still all are alike
    bounds = likely.cumsum(dim=1)
    drawn = draws.uniform(keys, 1 + length, stream)  # B 1+length
    first = (drawn[:, :1] * bounds[:, -1:] >= bounds[:, :-1]).sum(dim=1, keepdim=True)  # B 1
    return first + drawn[:, 1:].argsort(dim=1)[:, :count].sort(dim=1).values  # B count: any set of them, in its order


def squares(clips: Tensor) -> Tensor:
    """The four quarters of each picture, row by row, of each clip in turn: B n C T H W -> B 4n C T H/2 W/2."""
    height, width = clips.shape[4] // 2, clips.shape[5] // 2
    clips = clips[..., : 2 * height, : 2 * width].unflatten(5, (2, width)).unflatten(4, (2, height))
    return clips.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(1, 3)  # B 4n C T H/2 W/2


# what would give their order away


def cut(clips: Tensor, keys: Tensor, stream: str, gap: float, patch: int) -> Tensor:
    """A random part of each picture, the same in all frames of an item: B n C T H W -> B n C T h w.

    So neighbours do not meet at their edges (Noroozi and Favaro 2016, section 4.2), and no item lies exactly where
    another one did. What is left is resized to the nearest multiple of the patch that was there.

    Args:
        gap: share of each side that is cut away.
    """
    height, width = (max(1, round(side * (1 - gap))) for side in clips.shape[4:])
    batch, count = clips.shape[:2]
    spare = torch.tensor([clips.shape[4] - height, clips.shape[5] - width], device=clips.device)
    drawn = draws.uniform(keys, 2 * count, stream).view(batch, count, 2)
    top, left = (drawn * (spare + 1)).long().unbind(2)  # B n each
    rows = (top[..., None] + torch.arange(height, device=clips.device))[..., :, None]  # B n h 1
    columns = (left[..., None] + torch.arange(width, device=clips.device))[..., None, :]  # B n 1 w
    video = torch.arange(batch, device=clips.device).view(-1, 1, 1, 1)
    item = torch.arange(count, device=clips.device).view(1, -1, 1, 1)
    parts = clips[video, item, :, :, rows, columns]  # B n h w C T
    parts = parts.permute(0, 1, 4, 5, 2, 3).flatten(0, 1)  # B*n C T h w
    sides = [max(1, round(side / patch)) * patch for side in clips.shape[4:]]
    parts = F.interpolate(parts, size=(clips.shape[3], *sides), mode="trilinear")
    return parts.unflatten(0, (batch, count))  # B n C T h w


def one_channel(clips: Tensor, keys: Tensor, stream: str) -> Tensor:
    """Each item with one of its three channels in the place of all (Lee et al. 2017, section 3.2): B n C T H W.

    Otherwise a lens whose colours part towards its edges, or a film whose colours fade, tells the order.
    """
    batch, count = clips.shape[:2]
    channel = (draws.uniform(keys, count, stream) * clips.shape[2]).long()  # B n
    video, item = torch.arange(batch, device=clips.device)[:, None], torch.arange(count, device=clips.device)
    return clips[video, item, channel][:, :, None].expand_as(clips)  # B n C T H W


# orders: tables of NumPy, whose rows are the same on every device and where only shapes are asked for


def permutations(items: int) -> Orders:
    """All orders of ``items``, in the order of `itertools.permutations`: items! items."""
    return numpy.array(list(itertools.permutations(range(items))))


def orders_either_way(items: int) -> Orders:
    """The orders of ``items`` of which the first comes before the last: items!/2 items.

    The others are those of the same items played backwards, items - 1 - order.
    """
    orders = permutations(items)
    return orders[orders.argmin(axis=1) < orders.argmax(axis=1)]


def coherent(frames: int, cells: int) -> Orders:
    """All orders of ``frames`` pictures of ``cells`` each in which those of a picture stay together: K frames*cells."""
    within, between = permutations(cells), permutations(frames)
    inner = numpy.array(list(itertools.product(range(len(within)), repeat=frames)))  # cells!^frames frames
    orders = between[:, None, :, None] * cells + within[inner]  # frames! cells!^frames frames cells
    return orders.reshape(-1, frames * cells)  # K frames*cells


def far_apart(candidates: Orders, count: int) -> Orders:
    """``count`` of the orders ``candidates`` (K n), as different from each other as a greedy choice makes them.

    The first is the first; each next one has the largest Hamming distance to the nearest of those before it (Noroozi
    and Favaro 2016, algorithm 1), of equals the one with the largest sum of distances, of these the first.
    """
    places = candidates.T.astype(numpy.uint8)  # n K; of few bytes, since thousands of orders are gone through
    nearest = numpy.full(len(candidates), len(places), numpy.uint8)  # K
    total = numpy.zeros(len(candidates), numpy.int32)  # K
    chosen = [0]
    while len(chosen) < count:
        distance = (places != places[:, chosen[-1], None]).sum(axis=0, dtype=numpy.uint8)  # K
        nearest, total = numpy.minimum(nearest, distance), total + distance
        farthest = (nearest == nearest.max()).nonzero()[0]
        chosen.append(int(farthest[total[farthest].argmax()]))
    return candidates[chosen]  # count n


# encoder and head


def refuse_stills(backbone: Backbone, said: str) -> None:
    """Raises where frames are to be seen one by one and the backbone takes away all that stands still."""
    if backbone.config.get("background") == "remove":
        raise TubeletError(
            f"{said} shows single frames, of which backbone.background remove leaves nothing: set it to keep"
        )


def encode(backbone: Backbone, clips: Tensor) -> Tensor:
    """The mean token of each item, all in one pass: B n C T H W -> B n D."""
    tokens = backbone(clips.flatten(0, 1)).tokens  # B*n N D
    return tokens.mean(dim=1).unflatten(0, clips.shape[:2])  # B n D


class PairwiseHead(nn.Module):
    """Classes of a tuple from every pair of its items (Lee et al. 2017, section 3.3; Xu et al. 2019, section 3.3).

    Args:
        dim: D of an item.
        items: n of a tuple.
        classes: K.
        hidden: width of what is made of a pair, by one linear map for all and a ReLU.
        dropout: before the last map.
    """

    def __init__(self, dim: int, items: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.pairs = list(itertools.combinations(range(items), 2))
        self.pair = nn.Linear(2 * dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.classes = nn.Linear(math.comb(items, 2) * hidden, classes)

    def forward(self, items: Tensor) -> Tensor:
        """B n D -> B K."""
        first, second = zip(*self.pairs, strict=True)
        pairs = torch.cat([items[:, first], items[:, second]], dim=2)  # B pairs 2D
        return self.classes(self.dropout(F.relu(self.pair(pairs)).flatten(1)))  # B K
