"""Speed of a pre-training step on this machine, as ratios within one run.

All arms run in one process, interleaved, in reversed order every other round; times are medians of the process's CPU
time, which other work on the machine disturbs least. Where `transformers` is installed, its VideoMAE is an arm too, of
the same shape; its step starts from ready-made masks, as ours does.

    python benchmarks/step.py --size small --rounds 5 --out step.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.backbones.vit import VisionTransformer
from tubelet.methods.videomae import VideoMAE
from tubelet.nn.transformer import attention

Arm = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "base"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    arms = {**attention_arms(), **step_arms(options.size, options.batch), **peer_arms(options.size, options.batch)}
    results = measure(arms, options.rounds)
    for name, row in results.items():
        print(f"{name:44} {1000 * row['median_s']:9.1f} ms  [{1000 * row['min_s']:.1f} .. {1000 * row['max_s']:.1f}]")
    print(f"\nstep, float32 / bfloat16: {ratio(results, 'step float32', 'step bfloat16'):.2f}x")
    if "peer float32" in results:
        print(f"peer at its best / ours at our best: {ratio(results, 'peer bfloat16', 'step bfloat16'):.2f}x")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(arms: dict[str, Arm], rounds: int) -> dict[str, dict[str, float]]:
    """Runs each arm once a round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name in list(arms)[:: 1 if turn % 2 else -1]:
            started = time.process_time()
            arms[name]()
            if turn:
                times[name].append(time.process_time() - started)
    return {
        name: {"median_s": statistics.median(seen), "min_s": min(seen), "max_s": max(seen)}
        for name, seen in times.items()
    }


def ratio(results: dict[str, dict[str, float]], slow: str, fast: str) -> float:
    return results[slow]["median_s"] / results[fast]["median_s"]


def attention_arms() -> dict[str, Arm]:
    """The two kernels that `attention` chooses between, forward and backward, at a decoder's and an encoder's shape."""
    arms: dict[str, Arm] = {}
    for count, heads in ((1568, 3), (512, 3), (160, 6)):
        for dtype in (torch.float32, torch.bfloat16):
            qkv = [torch.randn(2, heads, count, 64, dtype=dtype, requires_grad=True) for _ in range(3)]
            fused = torch.nn.functional.scaled_dot_product_attention
            label = f"2x{heads}x{count}x64 {str(dtype).removeprefix('torch.')}"
            arms[f"attention ours {label}"] = _train(attention, qkv)
            arms[f"attention fused {label}"] = _train(fused, qkv)
    return arms


def _train(kernel: Callable[..., Tensor], qkv: list[Tensor]) -> Arm:
    def run() -> None:
        kernel(*qkv).sum().backward()

    return run


def step_arms(size: Any, batch: int) -> dict[str, Arm]:
    """Forward, backward and AdamW of our VideoMAE, 16 x 224 x 224, ratio .9."""
    arms: dict[str, Arm] = {}
    clip = {"video": [torch.rand(batch, 3, 16, 224, 224)], "key": torch.arange(batch)}
    for name, enabled in (("float32", False), ("bfloat16", True)):
        learner = VideoMAE(VisionTransformer(size))
        optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-5, fused=True)

        def run(learner: VideoMAE = learner, optimiser: torch.optim.AdamW = optimiser, on: bool = enabled) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                loss = learner(clip, "main").loss  # type: ignore[arg-type]
            assert loss is not None
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        arms[f"step {name}"] = run
    return arms


def peer_arms(size: str, batch: int) -> dict[str, Arm]:
    """The same step by Hugging Face's VideoMAE, where it is installed, as the published model (with its last norm)."""
    try:
        from transformers import VideoMAEConfig, VideoMAEForPreTraining  # type: ignore[import-not-found]
    except ImportError:
        print("transformers is not installed: no peer in this run")
        return {}
    dim, heads = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}[size]
    config = VideoMAEConfig(
        hidden_size=dim, num_hidden_layers=12, num_attention_heads=heads, intermediate_size=4 * dim,
        decoder_hidden_size=dim // 2, decoder_num_hidden_layers=4, decoder_num_attention_heads=max(1, dim // 128),
        decoder_intermediate_size=2 * dim, use_mean_pooling=False,
    )  # fmt: skip
    video = torch.rand(batch, 16, 3, 224, 224)
    mask = torch.zeros(196, dtype=torch.bool)
    mask[torch.randperm(196)[:176]] = True
    hidden = mask.repeat(8).expand(batch, -1)
    arms: dict[str, Arm] = {}
    for name, enabled in (("float32", False), ("bfloat16", True)):
        model = VideoMAEForPreTraining(config)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def run(model: Any = model, optimiser: torch.optim.AdamW = optimiser, on: bool = enabled) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                loss = model(pixel_values=video, bool_masked_pos=hidden).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

        arms[f"peer {name}"] = run
    return arms


if __name__ == "__main__":
    main()
