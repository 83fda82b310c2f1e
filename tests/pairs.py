"""Squares that move, with what is said and heard of them: sixteen kinds, a direction and a colour each."""

import math

import torch
from torch import Tensor

from oracles import moving_squares
from tubelet import draws
from tubelet.types import Batch

COLOURS = {"red": (1.0, 0.3, 0.3), "green": (0.3, 1.0, 0.3), "blue": (0.3, 0.3, 1.0), "white": (1.0, 1.0, 1.0)}
WAYS = ("down", "right", "up", "left")
KINDS = 16
RATE, SECONDS = 4000, 0.75


def pairs(count: int, seed: int, kinds: Tensor | None = None) -> Batch:
    """A batch with text and audio; the kind of a clip is its colour's number + 4 x its direction's."""
    keys = torch.tensor([draws.key("pairs", seed, index) for index in range(count)])
    if kinds is None:
        kinds = (draws.uniform(keys, 1, "kind")[:, 0] * KINDS).long()  # B
    colour = torch.tensor(list(COLOURS.values()))[kinds % 4]  # B 3
    batch = moving_squares(count, seed, frames=4, size=16, side=5.0, colour=colour, direction=kinds // 4).batch
    names = list(COLOURS)
    batch["text"] = [[f"a {names[kind % 4]} square goes {WAYS[kind // 4]}" for kind in kinds.tolist()]]
    batch["audio"] = [torch.stack([tone(*draw) for draw in zip(kinds.tolist(), keys, strict=True)])]
    batch["audio_present"] = torch.ones(count, dtype=torch.bool)
    batch["label"] = kinds
    return batch


def one_of_each(seed: int = 2) -> Batch:
    return pairs(KINDS, seed, torch.arange(KINDS))


def tone(kind: int, key: Tensor) -> Tensor:
    """The colour is the pitch, the direction what the tone does: rises, falls, or pulses slowly or fast; S."""
    done = torch.arange(round(RATE * SECONDS)) / round(RATE * SECONDS)
    phase, loud = draws.uniform(key[None], 2, "tone")[0]
    way = (0.6 * done, -0.6 * done, 0 * done, 0 * done)[kind // 4]
    pitch = 250 * 2 ** (kind % 4 * 0.6 + way)
    pulse = (1.0, 1.0, *(0.5 + 0.5 * torch.cos(math.tau * (beats * done + phase)) for beats in (4, 16)))[kind // 4]
    return (0.2 + 0.4 * loud) * pulse * torch.sin(math.tau * (torch.cumsum(pitch, 0) / RATE + phase))


def drawn(pool: Batch, step: int, size: int = 32) -> Batch:
    """Some of the pairs, others for each step."""
    return part(pool, draws.generator("drawn", step).permutation(len(pool["id"]))[:size].tolist())


def part(pool: Batch, rows: list[int]) -> Batch:
    return Batch(
        **{
            name: [[view[row] for row in rows] if name == "text" else view[rows] for view in value]
            if isinstance(value, list)
            else value[rows]
            for name, value in pool.items()
        }
    )


def found(video: Tensor, other: Tensor) -> float:
    """R@1 of a gallery with one of each kind, in the order of the queries."""
    return ((video @ other.T).argmax(dim=1) == torch.arange(len(video))).float().mean().item()


def shuffled(batch: Batch) -> Batch:
    """Clips with the words and sounds of others: there is nothing to learn, and what is learnt must be at chance."""
    order = draws.uniform(batch["key"], 1, "shuffled")[:, 0].argsort()
    text = [[batch["text"][0][place] for place in order]]
    return Batch(**{**batch, "text": text, "audio": [batch["audio"][0][order]]})
