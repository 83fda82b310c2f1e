"""From scratch: what fine-tuning is measured against. The same network, the same steps, a random start."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from tubelet import draws, registry
from tubelet.learner import Backbone
from tubelet.registry import register
from tubelet.tasks.finetune import FineTune
from tubelet.tasks.protocol import Protocol, Result


@register("scratch")
class Scratch:
    """Trains a network of the backbone's shape with labels alone, from weights drawn by the seed.

    All else is `finetune`, the choice among learning rates included; there is no layer decay, since no layer has
    anything to keep.

    Args:
        length: how long, such as "30 epochs" or "500 steps".
        batch: clips a step, over all processes.
        micro_batch: clips for each forward pass of one process; None = its share of the batch.
        lrs: peak learning rates for a batch of 256 (scaled by batch / 256) to choose from.
        layer_decay: factor on the learning rate from one layer to the one before it.
        drop_path: as in the backbone, for this training; None leaves the backbone's own.
        dropout: before the head.
        smoothing: label smoothing.
        weight_decay: of matrices.
        warmup: how long the learning rate rises.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        sampling: how training clips are taken in time: "random" or "dense".
        crop: how they are cropped: "resized", "multiscale" or "center".
        scale: smallest and largest share of the picture that "resized" takes.
        test_clips: clips along time for testing; None = the protocol's.
        test_crops: squares along the long side for testing; None = the protocol's.
        seed: of the weights, the data order and the augmentation; None = the protocol's.
    """

    def __init__(
        self,
        length: str = "30 epochs",
        batch: int = 16,
        micro_batch: int | None = None,
        lrs: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2),
        layer_decay: float = 1.0,
        drop_path: float | None = 0.1,
        dropout: float = 0.0,
        smoothing: float = 0.1,
        weight_decay: float = 0.05,
        warmup: str = "10 %",
        clip_norm: float = 0.0,
        sampling: Literal["random", "dense"] = "random",
        crop: Literal["resized", "multiscale", "center"] = "resized",
        scale: tuple[float, float] = (0.5, 1.0),
        test_clips: int | None = None,
        test_crops: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.seed = seed
        self.tune = FineTune(
            length, batch, micro_batch, lrs, layer_decay, drop_path, dropout, smoothing, weight_decay, warmup,
            clip_norm, sampling, crop, scale, test_clips, test_crops, seed,
        )  # fmt: skip

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        return self.tune(random_start(backbone, protocol.seed if self.seed is None else self.seed), protocol, out)


def random_start(backbone: Backbone, seed: int) -> Backbone:
    """A network of the same shape with weights of its own, drawn by `seed`."""
    config = dict(backbone.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key(seed, "random start"))
        return registry.build("backbones", config.pop("name"), **config)
