"""Slow twins of the published networks: checkpoints with random weights under their names, and their forward pass in
float64, one sample at a time, written from the descriptions of their formats and not from the package."""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
State = dict[str, Tensor]
SMALL = Namespace(num_frames=4, input_size=16)
"""Settings of a training script on clips that are quick to run."""


class Draw:
    """Random tensors, all different, none zero."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.05) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale

    def norm(self, state: State, name: str, dim: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + self(dim, scale=0.2), self(dim)

    def linear(self, state: State, name: str, into: int, out: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = self(out, into, scale=into**-0.5), self(out)

    def block(self, state: State, name: str, dim: int, hidden: int, cosine_heads: int = 0) -> None:
        self.norm(state, f"{name}.norm1", dim)
        state[f"{name}.attn.q_bias"], state[f"{name}.attn.v_bias"] = self(dim, scale=0.3), self(dim)
        if cosine_heads:
            state[f"{name}.attn.scale"] = math.log(10) + self(cosine_heads, 1, 1, scale=2.0)
        state[f"{name}.attn.qkv.weight"] = self(3 * dim, dim, scale=dim**-0.5)
        self.linear(state, f"{name}.attn.proj", dim, dim)
        self.norm(state, f"{name}.norm2", dim)
        self.linear(state, f"{name}.mlp.fc1", dim, hidden)
        self.linear(state, f"{name}.mlp.fc2", hidden, dim)

    def embedding(self, state: State, name: str, *shape: int) -> None:
        state[f"{name}.weight"] = self(*shape, scale=math.prod(shape[1:]) ** -0.5)
        state[f"{name}.bias"] = self(shape[0])


def pretraining(
    dim: int = 48, depth: int = 2, decoder_dim: int = 24, decoder_depth: int = 1, patch: int = 8, tubelet: int = 2,
    hidden: int | None = None, decoder_hidden: int | None = None, cosine_heads: tuple[int, int] = (0, 0), seed: int = 0,
) -> State:  # fmt: skip
    """The tensors of a published pre-training file."""
    draw, state = Draw(seed), {}
    state["mask_token"] = draw(1, 1, decoder_dim)
    draw.embedding(state, "encoder.patch_embed.proj", dim, 3, tubelet, patch, patch)
    for number in range(depth):
        draw.block(state, f"encoder.blocks.{number}", dim, hidden or 4 * dim, cosine_heads[0])
    draw.norm(state, "encoder.norm", dim)
    for number in range(decoder_depth):
        draw.block(state, f"decoder.blocks.{number}", decoder_dim, decoder_hidden or 4 * decoder_dim, cosine_heads[1])
    draw.norm(state, "decoder.norm", decoder_dim)
    draw.linear(state, "decoder.head", decoder_dim, 3 * tubelet * patch**2)
    state["encoder_to_decoder.weight"] = draw(decoder_dim, dim, scale=dim**-0.5)
    return state


def classifier(
    dim: int = 48, depth: int = 2, patch: int = 8, tubelet: int = 2, classes: int = 5, hidden: int | None = None,
    pooled: bool = True, seed: int = 0,
) -> State:  # fmt: skip
    """The tensors of a published fine-tuned file."""
    draw, state = Draw(seed), {}
    draw.embedding(state, "patch_embed.proj", dim, 3, tubelet, patch, patch)
    for number in range(depth):
        draw.block(state, f"blocks.{number}", dim, hidden or 4 * dim)
    draw.norm(state, "fc_norm" if pooled else "norm", dim)
    draw.linear(state, "head", dim, classes)
    return state


def space_time(
    dim: int = 48, depth: int = 2, patch: int = 8, tubelet: int = 2, frames: int = 4, side: int = 2,
    class_token: bool = True, classes: int = 0, seed: int = 0,
) -> State:  # fmt: skip
    """The tensors of a file of mae_st: separate queries, keys and values with biases, learnt positions, class token."""
    draw, state = Draw(seed), {}
    draw.embedding(state, "patch_embed.proj", dim, 3, tubelet, patch, patch)
    state["pos_embed_spatial"], state["pos_embed_temporal"] = draw(1, side**2, dim), draw(1, frames, dim)
    if class_token:
        state["cls_token"], state["pos_embed_class"] = draw(1, 1, dim), draw(1, 1, dim)
    for number in range(depth):
        name = f"blocks.{number}"
        draw.norm(state, f"{name}.norm1", dim)
        for which in "qkv":
            draw.linear(state, f"{name}.attn.{which}", dim, dim)
        draw.linear(state, f"{name}.attn.proj", dim, dim)
        draw.norm(state, f"{name}.norm2", dim)
        draw.linear(state, f"{name}.mlp.fc1", dim, 4 * dim)
        draw.linear(state, f"{name}.mlp.fc2", 4 * dim, dim)
    draw.norm(state, "norm", dim)
    if classes:
        draw.linear(state, "head", dim, classes)
    return state


def image(
    dim: int = 48, depth: int = 2, patch: int = 8, side: int = 2, class_token: bool = True, seed: int = 0
) -> State:
    """The tensors of an image ViT as MAE and timm name them."""
    draw, state = Draw(seed), {}
    draw.embedding(state, "patch_embed.proj", dim, 3, patch, patch)
    state["pos_embed"] = draw(1, side**2 + class_token, dim)
    if class_token:
        state["cls_token"] = draw(1, 1, dim)
    for number in range(depth):
        name = f"blocks.{number}"
        draw.norm(state, f"{name}.norm1", dim)
        draw.linear(state, f"{name}.attn.qkv", dim, 3 * dim)
        draw.linear(state, f"{name}.attn.proj", dim, dim)
        draw.norm(state, f"{name}.norm2", dim)
        draw.linear(state, f"{name}.mlp.fc1", dim, 4 * dim)
        draw.linear(state, f"{name}.mlp.fc2", 4 * dim, dim)
    draw.norm(state, "norm", dim)
    return state


def save(state: State, path: Path, wrapper: str | None = "model", **beside: Any) -> Path:
    torch.save({wrapper: state, **beside} if wrapper else state, path)
    return path


# The forward pass, one sample at a time, in float64.


def norm(x: Tensor, state: State, name: str) -> Tensor:
    """LayerNorm of N D with the published epsilon."""
    centred = x - x.mean(dim=-1, keepdim=True)
    deviation = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return centred / deviation * state[f"{name}.weight"].double() + state[f"{name}.bias"].double()


def linear(x: Tensor, state: State, name: str) -> Tensor:
    y = x @ state[f"{name}.weight"].double().T
    return y + state[f"{name}.bias"].double() if f"{name}.bias" in state else y


def attention(x: Tensor, state: State, name: str, heads: int) -> Tensor:
    """One head after the other. Biases: queries and values (VideoMAE), or all three (mae_st, image ViTs)."""
    dim = x.shape[1]
    if f"{name}.q.weight" in state:
        q, k, v = (linear(x, state, f"{name}.{which}") for which in "qkv")
    else:
        q, k, v = linear(x, state, f"{name}.qkv").split(dim, dim=1)
    if f"{name}.q_bias" in state:
        q, v = q + state[f"{name}.q_bias"].double(), v + state[f"{name}.v_bias"].double()
    mixed = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        a, b = q[:, part], k[:, part]
        if f"{name}.scale" in state:  # V2's cosine attention; at most 100
            a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
            scores = a @ b.T * math.exp(min(float(state[f"{name}.scale"][head]), 4.6052))
        else:
            scores = a @ b.T / math.sqrt(dim // heads)
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        mixed[:, part] = weights @ v[:, part]
    return linear(mixed, state, f"{name}.proj")


def block(x: Tensor, state: State, name: str, heads: int) -> Tensor:
    x = x + attention(norm(x, state, f"{name}.norm1"), state, f"{name}.attn", heads)
    inner = linear(norm(x, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
    return x + linear(inner, state, f"{name}.mlp.fc2")


def blocks(x: Tensor, state: State, prefix: str, heads: int) -> Tensor:
    number = 0
    while f"{prefix}{number}.norm1.weight" in state:
        x = block(x, state, f"{prefix}{number}", heads)
        number += 1
    return x


def sine_table(count: int, dim: int) -> Tensor:
    """Entry by entry: N D."""
    rows = []
    for n in range(count):
        angles = [n / 10000 ** (2 * (j // 2) / dim) for j in range(dim)]
        rows.append([math.sin(a) if j % 2 == 0 else math.cos(a) for j, a in enumerate(angles)])
    return torch.tensor(rows, dtype=torch.float64).float().double()


def embed(video: Tensor, state: State, name: str, mean: list[float], deviation: list[float]) -> Tensor:
    """A convolution whose stride is its kernel, over one clip C T H W in [0, 1]: N D, time first."""
    weight = state[f"{name}.weight"].double()
    if weight.ndim == 4:
        weight = weight[:, :, None]
    centre, width = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1, 1) for values in (mean, deviation))
    pixels = (video.double() - centre) / width
    t, p = weight.shape[2], weight.shape[3]
    tokens = []
    for f in range(0, video.shape[1], t):
        for r in range(0, video.shape[2], p):
            for c in range(0, video.shape[3], p):
                cube = pixels[:, f : f + t, r : r + p, c : c + p]
                tokens.append((weight * cube).sum(dim=(1, 2, 3, 4)) + state[f"{name}.bias"].double())
    return torch.stack(tokens)


def encode(video: Tensor, state: State, prefix: str, heads: int, hidden: Tensor | None = None) -> Tensor:
    """VideoMAE's encoder over one clip: tokens of the visible places (N bool: True = hidden), N D."""
    tokens = embed(video, state, f"{prefix}patch_embed.proj", MEAN, DEVIATION)
    tokens = tokens + sine_table(len(tokens), tokens.shape[1])
    if hidden is not None:
        tokens = torch.stack([token for token, out in zip(tokens, hidden, strict=True) if not out])
    tokens = blocks(tokens, state, f"{prefix}blocks.", heads)
    return norm(tokens, state, f"{prefix}norm") if f"{prefix}norm.weight" in state else tokens


def logits(video: Tensor, state: State, heads: int) -> Tensor:
    """A fine-tuned file's answer to one clip: K."""
    tokens = encode(video, state, "", heads)
    pooled = norm(tokens.mean(dim=0)[None], state, "fc_norm") if "fc_norm.weight" in state else tokens[:1]
    return linear(pooled, state, "head")[0]


def decode(video: Tensor, state: State, heads: tuple[int, int], hidden: Tensor, asked: Tensor) -> Tensor:
    """V1's and V2's decoder over one clip: visible tokens first, then a mask token for each place asked for: A P."""
    seen = encode(video, state, "encoder.", heads[0], hidden) @ state["encoder_to_decoder.weight"].double().T
    table = sine_table(len(hidden), seen.shape[1])
    places = [place for place, out in zip(table, hidden, strict=True) if not out]
    wanted = [state["mask_token"][0, 0].double() + place for place, out in zip(table, asked, strict=True) if out]
    tokens = torch.cat([seen + torch.stack(places), torch.stack(wanted)])
    tokens = blocks(tokens, state, "decoder.blocks.", heads[1])
    return linear(norm(tokens[-len(wanted) :], state, "decoder.norm"), state, "decoder.head")


def target(video: Tensor, place: int, tubelet: int, patch: int) -> list[float]:
    """What one place should read: each channel of the cube by its own mean and deviation; channel innermost."""
    rows, columns = video.shape[2] // patch, video.shape[3] // patch
    f, r, c = place // (rows * columns), place // columns % rows, place % columns
    cube = video[:, f * tubelet : (f + 1) * tubelet, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].double()
    count = tubelet * patch**2
    normalised = []
    for channel in cube:
        mean = channel.sum() / count
        variance = (channel - mean).square().sum() / (count - 1)
        normalised.append((channel - mean) / (variance.sqrt() + 1e-6))
    return [float(normalised[ch][k, i, j])
            for k in range(tubelet) for i in range(patch) for j in range(patch) for ch in range(3)]  # fmt: skip


def loss(video: Tensor, state: State, heads: tuple[int, int], hidden: Tensor, asked: Tensor | None = None) -> float:
    """The published loss of one clip. With V2's ``asked`` places, only those count that are hidden from the encoder."""
    asked = hidden if asked is None else asked
    weight = state["encoder.patch_embed.proj.weight"]
    guesses = decode(video, state, heads, hidden, asked)
    errors = []
    for guess, place in zip(guesses, [n for n, out in enumerate(asked) if out], strict=True):
        if hidden[place]:
            wanted = torch.tensor(target(video, place, weight.shape[2], weight.shape[3]), dtype=torch.float64)
            errors.append((guess - wanted).square().mean())
    return float(sum(errors) / len(errors))


def encode_space_time(video: Tensor, state: State, heads: int, mean: float = 0.45, deviation: float = 0.225) -> Tensor:
    """mae_st's encoder before its last norm over one clip, class token first if it has one: N D."""
    tokens = embed(video, state, "patch_embed.proj", [mean] * 3, [deviation] * 3)
    spatial, temporal = state["pos_embed_spatial"][0].double(), state["pos_embed_temporal"][0].double()
    for n in range(len(tokens)):
        tokens[n] += spatial[n % len(spatial)] + temporal[n // len(spatial)]
    if "cls_token" in state:
        tokens = torch.cat([(state["cls_token"] + state["pos_embed_class"])[0].double(), tokens])
    return blocks(tokens, state, "blocks.", heads)


def encode_image(picture: Tensor, state: State, heads: int) -> Tensor:
    """An image ViT over one picture C H W in [0, 1], with its last norm and its class token: N D."""
    tokens = embed(picture[:, None], state, "patch_embed.proj", MEAN, DEVIATION)
    if "cls_token" in state:
        tokens = torch.cat([state["cls_token"][0].double(), tokens])
    tokens = tokens + state["pos_embed"][0].double()
    return norm(blocks(tokens, state, "blocks.", heads), state, "norm")
