"""Attentive probe: a learnt query looks at all the frozen tokens, so that where and when things are can be read."""

from __future__ import annotations

import copy
import time
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tubelet import dist, draws
from tubelet.learner import Backbone
from tubelet.registry import register
from tubelet.tasks.features import features
from tubelet.tasks.protocol import Protocol, Result, Task, conclude, folds, quality
from tubelet.train.schedule import warmup_cosine
from tubelet.types import TubeletError

Setting = tuple[float, float]
"""Learning rate and weight decay."""


class AttentiveHead(nn.Module):
    """One cross-attention block with a single learnt query, an MLP and a linear classifier.

    A learnt query's score of token x in a head is ``(query . W x)``, a linear function of x: one vector a head holds
    query and key projection together. Values are projected after pooling, since attention weights sum to 1. Both
    save the two largest products of ordinary cross-attention and change nothing.

    Source: the attentive probe of V-JEPA's evaluation, Bardes et al. 2024, https://arxiv.org/abs/2404.08471

    Args:
        tokens: n, how many a video has; the head learns a position for each.
        dim: D, their width.
        classes: how many there are.
        heads: they divide D.
    """

    def __init__(self, tokens: int, dim: int, classes: int, heads: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(tokens, dim))
        self.query = nn.Parameter(torch.empty(dim, heads))
        self.value = nn.Parameter(torch.empty(heads, dim, dim // heads))
        self.bias = nn.Parameter(torch.zeros(dim))
        enter, leave = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), enter, nn.GELU(), leave)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classify = nn.Linear(dim, classes)
        for weight in (self.query, self.value, enter.weight, leave.weight, self.classify.weight):
            nn.init.trunc_normal_(weight, std=0.02)

    def pool(self, tokens: Tensor) -> Tensor:
        """B n D -> B D."""
        scores = tokens @ self.query + self.place @ self.query  # B n heads
        attention = scores.softmax(dim=1).transpose(1, 2)  # B heads n
        seen = attention @ tokens + attention @ self.place  # B heads D
        return torch.einsum("bhd,hde->bhe", seen, self.value).flatten(1) + self.bias  # B D

    def forward(self, tokens: Tensor) -> Tensor:
        """B n D, normalised tokens -> B K."""
        pooled = self.pool(tokens)
        return self.classify(self.norm(pooled + self.mlp(pooled)))  # B K


@register("attentive")
class AttentiveProbe(Task):
    """Attentive probe on frozen tokens. Reads position and motion, which mean pooling hides.

    Learning rate and weight decay are chosen on a fifth of the training videos kept apart, then all of them are used,
    for the same number of steps.

    Args:
        heads: attention heads of the probe; they divide the backbone's width.
        epochs: how often it sees each training video.
        least_steps: but it takes at least so many steps.
        batch: videos a step.
        lrs: learning rates to choose from.
        weight_decays: weight decays to choose from.
    """

    def __init__(
        self,
        heads: int = 8,
        epochs: int = 20,
        least_steps: int = 300,
        batch: int = 64,
        lrs: list[float] | None = None,
        weight_decays: list[float] | None = None,
    ) -> None:
        self.heads, self.epochs, self.least_steps, self.batch = heads, epochs, least_steps, batch
        self.settings: list[Setting] = list(product(lrs or [1e-3, 3e-3, 1e-2], weight_decays or [0.1, 1.0]))

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        started = time.perf_counter()
        if backbone.dim % self.heads:
            raise TubeletError(f"attentive.heads ({self.heads}) must divide the backbone's width ({backbone.dim})")
        train, test = (features(backbone, part, protocol, pooled=False) for part in (protocol.train, protocol.test))
        rows = train.readable.nonzero().flatten()
        parts = folds(protocol.train.take(rows.tolist()), 5, protocol.seed)
        steps = max(self.least_steps, self.epochs * len(rows) // self.batch)
        fit, kept = rows[parts != 0], rows[parts == 0]
        setting, tried = self.settings[len(self.settings) // 2], {}
        if len(self.settings) > 1 and len(fit) and len(kept):  # with one group only nothing can be kept apart
            heads = self.train(train.values, train.labels, fit, protocol, self.settings, steps)
            found = [quality(predict(head, train.values, kept), train.labels[kept]) for head in heads]
            setting = self.settings[max(range(len(found)), key=found.__getitem__)]
            tried = {f"{lr:g}, {decay:g}": q[0] for (lr, decay), q in zip(self.settings, found, strict=True)}
        (head,) = self.train(train.values, train.labels, rows, protocol, [setting], steps)
        return conclude(
            predict(head, test.values, test.readable.nonzero().flatten()), test.readable, protocol, out,
            started=started, train_readable=train.readable, lr=setting[0], weight_decay=setting[1], tried=tried,
            steps=steps, train_top1=quality(predict(head, train.values, rows), train.labels[rows])[0],
        )  # fmt: skip

    def train(
        self,
        tokens: Tensor,
        labels: Tensor,
        rows: Tensor,
        protocol: Protocol,
        settings: list[Setting],
        steps: int,
    ) -> list[AttentiveHead]:
        """One head a setting, from one start and on the same batches: the tokens are read once for all of them."""
        device = dist.device()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.key(protocol.seed, "attentive"))
            start = AttentiveHead(tokens.shape[1], tokens.shape[2], len(protocol.classes), self.heads)
        heads = [copy.deepcopy(start).to(device) for _ in settings]
        optimisers = [
            torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay, fused=True)
            for head, (lr, decay) in zip(heads, settings, strict=True)
        ]
        order = rows[:0]
        for step in range(steps):
            if len(order) < min(self.batch, len(rows)):  # the next permutation; what is left over goes first
                shuffled = draws.generator(protocol.seed, step, "attentive").permutation(len(rows))
                order = torch.cat([order, rows[torch.from_numpy(shuffled)]])
            now, order = order[: self.batch], order[self.batch :]
            seen, target = normalised(tokens, now, device), labels[now].to(device)
            for head, optimiser, (lr, _) in zip(heads, optimisers, settings, strict=True):
                optimiser.param_groups[0]["lr"] = warmup_cosine(step + 1, steps, steps // 10, lr, 0.0)
                functional.cross_entropy(head(seen), target).backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        return [head.eval() for head in heads]


def normalised(tokens: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Some videos' tokens, each with mean 0 and variance 1: B n D float32."""
    chosen = tokens[rows].to(device).float()
    return functional.layer_norm(chosen, chosen.shape[-1:], eps=1e-6)


@torch.no_grad()
def predict(head: AttentiveHead, tokens: Tensor, rows: Tensor) -> Tensor:
    """Probabilities of some videos, B K, on the CPU."""
    device = head.query.device
    return torch.cat([head(normalised(tokens, part, device)).softmax(dim=1).cpu() for part in rows.split(256)])
