"""The pre-norm Transformer block of ViT, with one attention function that chooses its kernel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention, by the kernel that is fastest where it runs.

    On a CPU in bfloat16 with gradients, plain matrix products beat PyTorch's fused kernel up to about 512 tokens (3
    times at 160); everywhere else the fused one wins, and it does not keep N x N weights (`benchmarks/step.py`).

    Args:
        query, key, value: B heads N D.
        scale: factor on the scores; None = one over the root of D.

    Returns:
        B heads N D.
    """
    short = query.shape[-2] <= 512
    if short and query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
        weights = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)  # B heads N N
        return weights.softmax(dim=-1) @ value  # B heads N D
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


class Attention(nn.Module):
    """Multi-head self-attention with biases on queries and values only (VideoMAE, after BEiT: a key bias cancels).

    With ``cosine`` the scores are cosines of queries and keys times a learnt factor a head, at most 100, as in the
    option of VideoMAE V2's code (after Swin V2, Liu 2022, equation 2): large networks train more calmly with it.
    """

    def __init__(self, dim: int, heads: int, cosine: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.out = nn.Linear(dim, dim)
        # the logarithm of the factor; one axis, so that it is not decayed
        self.scale = nn.Parameter(torch.full((heads,), math.log(10.0))) if cosine else None

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, dim = tokens.shape
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = F.linear(tokens, self.qkv.weight, bias)  # B N 3D
        qkv = qkv.reshape(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)  # 3 B heads N D
        query, key, value = qkv.unbind(0)
        if self.scale is None:
            mixed = attention(query, key, value)  # B heads N D
        else:
            factor = self.scale.clamp(max=math.log(100.0)).exp()[:, None, None].to(query.dtype)  # heads 1 1
            mixed = attention(F.normalize(query, dim=-1) * factor, F.normalize(key, dim=-1), value, scale=1.0)
        return self.out(mixed.transpose(1, 2).reshape(batch, count, dim))  # B N D


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(F.gelu(self.into(tokens)))


class DropPath(nn.Module):
    """Leaves out a residual branch for some samples while training, and scales it up for the others (Huang 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        kept = torch.empty(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate)).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Block(nn.Module):
    """Attention, then an MLP, each after a LayerNorm and added to its input."""

    def __init__(
        self, dim: int, heads: int, mlp: float = 4.0, drop_path: float = 0.0, cosine: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, cosine)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attention(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, checkpointing: bool) -> Tensor:
    """Sends tokens (B N D) through all blocks.

    With ``checkpointing`` only what enters a block is kept for the backward pass and the rest is computed again there
    (Chen et al. 2016): memory for a third more arithmetic. The result is the same, dropped paths included.
    """
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, use_reentrant=False)  # B N D
        else:
            tokens = block(tokens)  # B N D
    return tokens


def start_weights(module: nn.Module) -> None:
    """The published start of pre-training: Xavier for linear maps, zero biases, LayerNorm at one and zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
