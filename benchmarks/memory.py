"""How much each clip of a step keeps for the backward pass: what the memory in the presets' headers is calculated from.

Counted, not timed: the storages that PyTorch saves between forward and backward, in bfloat16 and with the fused
attention that GPUs use, for two clips less those for one. The same tensors are saved on a GPU. What comes and goes
within a layer is not among them, nor are weights, gradients and the optimiser's state (18 bytes a weight).

    python benchmarks/memory.py --sizes small base
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tubelet import registry
from tubelet.backbones.vit import VisionTransformer
from tubelet.learner import Learner

STEPS: dict[str, Callable[[Any], Learner]] = {
    "pre-training": lambda size: registry.build("methods", "videomae", backbone=VisionTransformer(size)),
    "pre-training, half decoded": lambda size: registry.build(
        "methods", "videomae", backbone=VisionTransformer(size), decoder_ratio=0.5
    ),
    "fine-tuning": lambda size: registry.build(
        "methods", "supervised", backbone=VisionTransformer(size, last_norm=False), classes=400
    ),
    "fine-tuning, checkpointing": lambda size: registry.build(
        "methods", "supervised", backbone=VisionTransformer(size, last_norm=False, checkpointing=True), classes=400
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"])
    options = parser.parse_args()
    for size in options.sizes:
        for name, build in STEPS.items():
            learner = build(size).train()
            clip = saved(learner, 2) - saved(learner, 1)
            print(json.dumps({"size": size, "step": name, "MiB a clip": round(clip / 2**20)}), flush=True)


def saved(learner: Learner, clips: int) -> int:
    """Bytes that the forward pass of so many clips keeps, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors themselves, or their addresses would be used again

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch: Any = {
        "video": [torch.rand(clips, 3, 16, 224, 224)],
        "key": torch.arange(clips),
        "label": torch.zeros(clips, dtype=torch.int64),
    }
    with (
        patch("tubelet.nn.transformer.attention", scaled_dot_product_attention),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        learner(batch, learner.phases[0])
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


if __name__ == "__main__":
    main()
