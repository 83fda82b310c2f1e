"""Video jigsaw: three frames cut into quarters and shuffled; in which order?"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import tuples
from tubelet.nn.heads import Projector
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

FRAMES, CELLS = 3, 4
MOST = math.factorial(FRAMES) * math.factorial(CELLS) ** FRAMES  # 82944


@register("jigsaw")
class Jigsaw(Learner):
    """Names the order of the twelve cells of three frames (Ahsan, Madhok, Essa: Video Jigsaw, WACV 2019, section 3).

    Cells are shuffled within their frame, and frames among each other, so that those of a frame stay together. Of the
    82,944 such orders the classes are some that are far apart from each other. https://arxiv.org/abs/1808.07507

    Each cell is cut with a gap before it becomes patches, and encoded as a still clip of its own, so that neither its
    edges nor its position tell where it was. What a single frame shows tells how its cells belong: on a still clip only
    the order of frames is a matter of chance.

    Args:
        orders: how many there are to tell apart; chance is one of them.
        gap: share of a cell's side that is cut away at random.
        hidden: width of the head.
    """

    orders: Tensor

    def __init__(self, backbone: Backbone, orders: int = 1000, gap: float = 0.15, hidden: int = 512) -> None:
        super().__init__()
        tuples.refuse_stills(backbone, "learner jigsaw")
        if not 2 <= orders <= MOST:
            raise TubeletError(f"learner.orders must be 2 to {MOST}, not {orders}")
        if not 0 <= gap < 1:
            raise TubeletError(f"learner.gap must be in 0..1 (1 excluded), not {gap:g}")
        self.gap = gap
        self.tubelet, self.patch = backbone.config["tubelet"], backbone.config["patch"]
        self.backbone = backbone
        self.register_buffer("orders", torch.tensor(chosen_orders(orders)), persistent=False)  # K 12
        self.head = Projector(FRAMES * CELLS * backbone.dim, hidden, orders, norm=False)

    def check_clip(self, frames: int, height: int, width: int) -> None:
        super().check_clip(frames, height, width)
        tuples.check_frames(frames, FRAMES)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,), keys = batch["video"], batch["key"]  # B C T H W
        label = draws.choice(keys, len(self.orders), "order")  # B
        times = tuples.spread(video.shape[2], FRAMES, 1, video.device).expand(len(video), -1, -1)  # B 3 1
        cells = tuples.squares(tuples.taken(video, times))  # B 12 C 1 H/2 W/2
        cells = tuples.cut(cells, keys, "gap", self.gap, self.patch)  # B 12 C 1 h w
        rows = torch.arange(len(video), device=video.device)[:, None]
        cells = cells[rows, self.orders[label]].repeat(1, 1, 1, self.tubelet, 1, 1)  # B 12 C tubelet h w
        logits = self.head(tuples.encode(self.backbone, cells).flatten(1)).float()  # B K
        return Output(F.cross_entropy(logits, label), {"accuracy": (logits.argmax(dim=1) == label).float().mean()})


@functools.cache
def chosen_orders(count: int) -> tuples.Orders:
    """The classes, count 12; of the default number they take seconds to find, once."""
    return tuples.far_apart(tuples.coherent(FRAMES, CELLS), count)
