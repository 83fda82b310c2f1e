"""Dense predictive coding: say what the next blocks of a video will look like to the encoder, place by place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet import dist
from tubelet.learner import Backbone, Learner
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("dense_prediction")
class DensePrediction(Learner):
    """Dense predictive coding (Han, Xie, Zisserman: DPC, ICCV workshops 2019, https://arxiv.org/abs/1909.04656).

    The video is cut into blocks that the backbone encodes one by one, so that none knows of the next. A recurrent
    network aggregates the maps of the first ones; from its state a small network predicts the map after, which goes
    into the recurrent network in place of the true one, and so on (section 3.1). Each predicted place must find its own
    true feature by its dot product, without a temperature, among those of all places, times and videos of the batch
    (equation 5): easy negatives are of other videos, spatial ones of other places, temporal ones of the same place at
    another time (section 3.2). As in the authors' code, features are compared as they are and aggregated after a ReLU,
    and a block's map is the mean over its time.

    What differs: the backbone is ours. A block has as many frames as the clip that it is made for and is judged with,
    taken so many times as densely as there are blocks; together they span that clip. So data.stride should be no less
    than the number of blocks, or files have no such frames, and the cubes show one of theirs twice.

    Args:
        blocks: how many a video is cut into.
        predicted: how many of them, the last ones, are predicted.
        dropout: share of the recurrent network's state that is dropped at each block.
    """

    compares_clips = True

    def __init__(self, backbone: Backbone, blocks: int = 8, predicted: int = 3, dropout: float = 0.1) -> None:
        super().__init__()
        if not 0 < predicted < blocks:
            raise TubeletError(
                f"learner.predicted must be 1 or more and leave some of learner.blocks ({blocks}) to be seen, not "
                f"{predicted}"
            )
        if not 0 <= dropout < 1:
            raise TubeletError(f"learner.dropout must be in 0..1 (1 excluded), not {dropout:g}")
        self.backbone = backbone
        self.blocks = self.density = blocks
        self.predicted = predicted
        self.aggregate = ConvGRU(backbone.dim)
        self.dropout = nn.Dropout(dropout)
        self.foresee = nn.Sequential(
            nn.Conv2d(backbone.dim, backbone.dim, 1), nn.ReLU(), nn.Conv2d(backbone.dim, backbone.dim, 1)
        )
        self.foresee.apply(start_orthogonal)

    def forward(self, batch: Batch, phase: str) -> Output:
        (clip,) = batch["video"]  # B C T*blocks H W in [0, 1]
        guess, truth = self.predict(clip)  # B P h w D
        scores, right = compare(guess.flatten(0, 3), truth.flatten(0, 3))  # Q K, Q
        return Output(F.cross_entropy(scores, right), {"accuracy": (scores.argmax(dim=1) == right).float().mean()})

    def predict(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """What the last blocks look like from the first ones, and what they do look like.

        Args:
            clip: B C T*blocks H W.

        Returns:
            Twice B P h w D.
        """
        blocks = clip.unflatten(2, (self.blocks, -1)).transpose(1, 2)  # B S C T H W
        tokens, grid = self.backbone(blocks.flatten(0, 1))  # B*S N D
        maps = tokens.unflatten(1, grid).mean(dim=1).permute(0, 3, 1, 2)  # B*S D h w
        maps = maps.unflatten(0, (-1, self.blocks))  # B S D h w
        seen = self.blocks - self.predicted
        state = torch.zeros_like(maps[:, 0])  # B D h w
        for block in range(seen):
            state = self.dropout(self.aggregate(maps[:, block].relu(), state))
        guesses = [self.foresee(state)]
        while len(guesses) < self.predicted:
            state = self.dropout(self.aggregate(guesses[-1].relu(), state))
            guesses.append(self.foresee(state))
        guess, truth = torch.stack(guesses, dim=1), maps[:, seen:]  # B P D h w
        return guess.permute(0, 1, 3, 4, 2), truth.permute(0, 1, 3, 4, 2)  # B P h w D


def compare(guess: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The products of every guess with the truths of all processes, and which of them is its own; float32.

    Args:
        guess: Q D.
        truth: Q D, in the same order.

    Returns:
        Q K and Q int64.
    """
    keys = dist.gather_rows(truth.float())  # K D
    right = dist.own_part(torch.arange(len(keys), device=keys.device))  # Q
    with torch.autocast(guess.device.type, enabled=False):
        return guess.float() @ keys.T, right


class ConvGRU(nn.Module):
    """One step of a gated recurrent unit over maps, with kernels of 1 x 1 (Ballas et al. 2016, section 3.1).

    The reset gate acts on the old state before its map, and the update gate lets the new one in.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reset = nn.Conv2d(2 * dim, dim, 1)
        self.update = nn.Conv2d(2 * dim, dim, 1)
        self.new = nn.Conv2d(2 * dim, dim, 1)
        self.apply(start_orthogonal)

    def forward(self, maps: Tensor, state: Tensor) -> Tensor:
        """Twice B D h w -> B D h w."""
        both = torch.cat([maps, state], dim=1)  # B 2D h w
        reset, update = self.reset(both).sigmoid(), self.update(both).sigmoid()  # B D h w
        new = self.new(torch.cat([maps, reset * state], dim=1)).tanh()  # B D h w
        return (1 - update) * state + update * new


def start_orthogonal(module: nn.Module) -> None:
    """The published start: orthogonal maps, no biases."""
    if isinstance(module, nn.Conv2d):
        nn.init.orthogonal_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
