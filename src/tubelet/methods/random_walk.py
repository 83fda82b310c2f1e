"""Contrastive random walk: a walker goes along what is alike from frame to frame and back, and must end where it began.

Jabri, Owens, Efros: Space-Time Correspondence as a Contrastive Random Walk, NeurIPS 2020,
https://arxiv.org/abs/2006.14613
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn.affinity import needs_background, still, transition
from tubelet.nn.settings import check_positive
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


class Nodes(NamedTuple):
    """The nodes of every frame on the way there and back."""

    there: Tensor
    """B T N D."""
    back: Tensor
    """B T N D."""
    target: Tensor
    """B N int64: which node of the first frame, as it is seen on the way back, shows what node n shows on the way
    there; -1 where none does."""


@register("random_walk")
class RandomWalk(Learner):
    """Walks from each node of the first frame through k frames and back, for every k; the start is the label.

    A step goes to each node of the next frame with the softmax of cosine / temperature (equation 1); the walk there
    and back is the product of the steps (equation 3), and the loss the cross-entropy of where it ends (equation 4).

    The published network embeds crops without a place; the tokens of a ViT know theirs, and a walker that keeps to its
    place always comes home. With nodes "tokens" frames are therefore seen through windows whose place is drawn, in
    whole tokens, for each frame and way, and home is where the content is. "patches" is as published.

    Args:
        backbone: sees each frame alone, repeated to the length of a cube; it must keep the background.
        nodes: "tokens" of whole frames, or "patches": crops of the frame, each encoded alone and averaged.
        shift: rows and columns of tokens by which windows may lie apart (nodes "tokens").
        side: side of a patch in pixels, a multiple of the backbone's (nodes "patches"); they overlap by half.
        dim: width in which nodes are compared.
        temperature: of the softmax over cosines.
        edge_dropout: share of the steps that are closed to the walker.
    """

    def __init__(
        self,
        backbone: Backbone,
        nodes: Literal["tokens", "patches"] = "tokens",
        shift: int = 1,
        side: int = 16,
        dim: int = 128,
        temperature: float = 0.05,
        edge_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        needs_background(backbone, "random_walk")
        if not 0 <= edge_dropout < 1:
            raise TubeletError(f"learner.edge_dropout must be in 0..1 (1 excluded), not {edge_dropout:g}")
        check_positive(temperature=temperature)
        if shift < 0:
            raise TubeletError(f"learner.shift must be 0 or more, not {shift}")
        patch = backbone.config["patch"]
        if nodes == "patches" and (side < patch or side % patch):
            raise TubeletError(f"learner.side must be a multiple of backbone.patch ({patch}), not {side}")
        self.backbone = backbone
        self.nodes: Literal["tokens", "patches"] = nodes
        self.shift, self.side, self.temperature, self.edge_dropout = shift, side, temperature, edge_dropout
        self.head = nn.Linear(backbone.dim, dim)

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T H W
        keys, frames = batch["key"], video.shape[2]
        if frames < 2:
            raise TubeletError("random_walk needs clips of two frames or more: raise data.frames")
        there, back, target = self.tokens(video, keys) if self.nodes == "tokens" else self.patches(video)
        forth = self.step(there[:, :-1], there[:, 1:], keys, "forth")  # B T-1 N N
        home = self.step(back[:, 1:], back[:, :-1], keys, "home")  # B T-1 N N
        # Where the two ways see a frame through different windows, turning round is a step too.
        turn = self.step(there[:, 1:], back[:, 1:], keys, "turn") if self.nodes == "tokens" else None
        ends = there_and_back(forth, home, turn)  # B T-1 N N
        counts = target >= 0  # B N
        place = target.clamp(min=0)[:, None, :, None].expand(-1, frames - 1, -1, -1)  # B T-1 N 1
        loss = -(ends.gather(3, place)[..., 0] + 1e-20).log().mean(dim=1)  # B N
        right = (ends[:, -1].argmax(dim=-1) == target).float()  # B N
        of_clip = counts.float() / counts.sum(dim=1, keepdim=True)  # B N: every clip weighs the same
        came_home = (right * of_clip).sum(dim=1).mean()
        return Output((loss * of_clip).sum(dim=1).mean(), {"came_home": came_home.detach()})

    def step(self, of: Tensor, to: Tensor, keys: Tensor, stream: str) -> Tensor:
        """The chances of all steps from nodes to nodes, both B T N D, some of them closed: B T N N."""
        batch, frames, count, _ = of.shape
        dropped = None
        if self.training and self.edge_dropout:
            drawn = draws.uniform(keys, frames * count * count, f"edges {stream}")
            dropped = (drawn < self.edge_dropout).view(batch * frames, count, count)
        chances = transition(of.flatten(0, 1), to.flatten(0, 1), self.temperature, dropped=dropped)
        return chances.unflatten(0, (batch, frames))  # B T N N

    def tokens(self, video: Tensor, keys: Tensor) -> Nodes:
        """The tokens of each frame, twice: through windows of both ways."""
        batch, _, frames, height, width = video.shape
        patch = self.backbone.config["patch"]
        rows, columns = height // patch - self.shift, width // patch - self.shift
        if min(rows, columns) <= self.shift:  # two windows would have nothing in common
            raise TubeletError(
                f"windows that lie {self.shift} tokens apart do not fit a picture of {height}x{width}: lower "
                "learner.shift, or raise data.size"
            )
        drawn = draws.uniform(keys, 4 * frames, "windows").view(batch, 2, frames, 2)
        offset = (drawn * (self.shift + 1)).long()  # B 2 T 2: rows and columns
        y = offset[..., :1] * patch + torch.arange(rows * patch, device=video.device)  # B 2 T h
        x = offset[..., 1:] * patch + torch.arange(columns * patch, device=video.device)  # B 2 T w
        clip = torch.arange(batch, device=video.device)[:, None, None, None, None]
        time = torch.arange(frames, device=video.device)[:, None, None]
        seen = video.permute(0, 2, 3, 4, 1)[clip, time, y[..., :, None], x[..., None, :]]  # B 2 T h w C
        nodes = self.embedded(seen.flatten(0, 2).permute(0, 3, 1, 2)).unflatten(0, (batch, 2, frames))  # B 2 T N D
        moved = offset[:, 0, 0] - offset[:, 1, 0]  # B 2: from the first frame's window of the way back to the other
        row = torch.arange(rows, device=video.device) + moved[:, :1]  # B rows
        column = torch.arange(columns, device=video.device) + moved[:, 1:]  # B columns
        inside = ((row >= 0) & (row < rows))[:, :, None] & ((column >= 0) & (column < columns))[:, None]
        target = torch.where(inside, row[:, :, None] * columns + column[:, None], -1).flatten(1)  # B N
        return Nodes(nodes[:, 0], nodes[:, 1], target)

    def patches(self, video: Tensor) -> Nodes:
        """Crops of each frame that overlap by half, each encoded alone; the ways there and back see the same."""
        batch, frames = video.shape[0], video.shape[2]
        if min(video.shape[3:]) < self.side:
            raise TubeletError(f"patches of {self.side} pixels do not fit the clips: lower learner.side")
        stride = max(1, self.side // 2)
        crops = video.unfold(3, self.side, stride).unfold(4, self.side, stride)  # B C T y x side side
        crops = crops.permute(0, 2, 3, 4, 1, 5, 6)  # B T y x C side side
        count = crops.shape[2] * crops.shape[3]
        nodes = self.embedded(crops.flatten(0, 3)).mean(dim=1)  # B*T*N D
        nodes = nodes.unflatten(0, (batch, frames, count))  # B T N D
        target = torch.arange(count, device=video.device).expand(batch, -1)  # B N
        return Nodes(nodes, nodes, target)

    def embedded(self, pictures: Tensor) -> Tensor:
        """The tokens of pictures, n C h w, in the width of the comparison: n N D."""
        return self.head(still(self.backbone, pictures))  # n N D


def there_and_back(forth: Tensor, home: Tensor, turn: Tensor | None = None) -> Tensor:
    """Where the walks end that turn round in each frame but the first.

    Args:
        forth: B T-1 N N, the chances of a step from frame t to frame t + 1.
        home: B T-1 N N, from frame t + 1 to frame t.
        turn: B T-1 N N, within frame t + 1; None = the walker stays where it is.

    Returns:
        B T-1 N N: from a node of the first frame to one of it again, for turning in frame 2, 3, ... T.
    """
    ends = []
    with torch.autocast(forth.device.type, enabled=False):
        there, back = forth[:, 0], home[:, 0]  # B N N each
        for k in range(forth.shape[1]):
            if k > 0:
                there, back = there @ forth[:, k], home[:, k] @ back
            ends.append(there @ back if turn is None else there @ turn[:, k] @ back)
    return torch.stack(ends, dim=1)  # B T-1 N N
