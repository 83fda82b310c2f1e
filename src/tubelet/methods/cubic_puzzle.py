"""Space-time cubic puzzles: shuffled cells of a video, neighbours in space or in time; in which order?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import tuples
from tubelet.nn.heads import Projector
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

CELLS = 4


@register("cubic_puzzle")
class CubicPuzzle(Learner):
    """Sorts four cells of a video (Kim, Cho, Kweon: Space-Time Cubic Puzzles, AAAI 2019, section 3).

    The video is cut into 2 x 2 places and four times, each cell as many frames long as the backbone's clips, for which
    data.stride should be 4 or more, or files have no such frames. Four cells make a puzzle: the places of one time, or
    the times of one place; each puzzle has its head for the 24 orders. Cells are cut with a gap of their own and show
    one of their channels, against shortcuts. https://arxiv.org/abs/1811.09795

    Both puzzles are made of each video instead of one by chance. On a still clip the puzzle in time is at chance; that
    in space may be solved by what a single frame shows.

    Args:
        puzzle: cells that lie in "space", in "time", or "both".
        gap: share of a cell's side that is cut away at random (published 0.29).
        one_channel: each cell shows one of its channels, drawn, in the place of all three.
        hidden: width of each head.
    """

    density = CELLS
    orders: Tensor

    def __init__(
        self,
        backbone: Backbone,
        puzzle: Literal["space", "time", "both"] = "both",
        gap: float = 0.29,
        one_channel: bool = True,
        hidden: int = 512,
    ) -> None:
        super().__init__()
        if not 0 <= gap < 1:
            raise TubeletError(f"learner.gap must be in 0..1 (1 excluded), not {gap:g}")
        self.gap, self.one_channel, self.patch = gap, one_channel, backbone.config["patch"]
        self.backbone = backbone
        self.register_buffer("orders", torch.tensor(tuples.permutations(CELLS)), persistent=False)  # 24 4
        self.heads = nn.ModuleDict(
            {
                along: Projector(CELLS * backbone.dim, hidden, len(self.orders), norm=False)
                for along in ("space", "time")
                if puzzle in (along, "both")
            }
        )

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,), keys = batch["video"], batch["key"]  # B C 4T H W
        times = video.unflatten(2, (CELLS, -1)).transpose(1, 2)  # B 4 C T H W
        cells = tuples.squares(times)  # B 16 C T H/2 W/2: four places of each time
        labels = {along: draws.choice(keys, len(self.orders), along) for along in self.heads}  # B each
        chosen = torch.cat([self.chosen(along, keys).gather(1, self.orders[labels[along]]) for along in labels], dim=1)
        rows = torch.arange(len(video), device=video.device)[:, None]
        shown = tuples.cut(cells[rows, chosen], keys, "gap", self.gap, self.patch)  # B 4p C T h w, of p puzzles
        if self.one_channel:
            shown = tuples.one_channel(shown, keys, "channel")
        seen = tuples.encode(self.backbone, shown).split(CELLS, dim=1)  # B 4 D each
        losses, right = [], {}
        for (along, label), items in zip(labels.items(), seen, strict=True):
            logits = self.heads[along](items.flatten(1)).float()  # B 24
            losses.append(F.cross_entropy(logits, label))
            right[f"accuracy_{along}"] = (logits.argmax(dim=1) == label).float().mean()
        return Output(torch.stack(losses).mean(), {"accuracy": torch.stack(list(right.values())).mean(), **right})

    def chosen(self, along: str, keys: Tensor) -> Tensor:
        """The cells of a puzzle among all 16, in their order: B 4 int64."""
        other = draws.choice(keys, CELLS, f"{along} of")[:, None]  # B 1: which time, or which place
        own = torch.arange(CELLS, device=keys.device)
        return other * CELLS + own if along == "space" else own * CELLS + other
