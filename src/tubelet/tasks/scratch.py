"""From scratch: what fine-tuning is measured against. The same network, the same steps, a random start."""

from __future__ import annotations

from pathlib import Path

import torch

from tubelet import draws, registry
from tubelet.learner import Backbone
from tubelet.registry import register
from tubelet.tasks.finetune import FineTune
from tubelet.tasks.protocol import Protocol, Result


@register("scratch")
class Scratch(FineTune):
    """Trains a network of the backbone's shape with labels alone, from weights drawn by the seed.

    All else is `finetune`, the choice among learning rates included. ``layer_decay`` is 1 whatever is asked for, since
    no layer has anything to keep.
    """

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        self.training["layer_decay"] = 1.0
        return super().__call__(random_start(backbone, self._seed(protocol)), protocol, out)


def random_start(backbone: Backbone, seed: int) -> Backbone:
    """A network of the same shape with weights of its own, drawn by `seed`."""
    config = dict(backbone.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draws.key(seed, "random start"))
        return registry.build("backbones", config.pop("name"), **config)
