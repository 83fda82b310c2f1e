"""Fine-tuning: all weights go on learning, with labels, and the whole network is judged."""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tubelet import dist, draws, registry
from tubelet.checkpoint import weights_hash, write_json
from tubelet.data.listing import Manifest
from tubelet.data.loader import Clips, to_device
from tubelet.learner import Backbone
from tubelet.log import read_metrics, say
from tubelet.methods.supervised import Supervised
from tubelet.registry import register
from tubelet.tasks.features import contents, say_unreadable, views
from tubelet.tasks.protocol import Protocol, Result, conclude, folds, labels_of, quality
from tubelet.train import schedule
from tubelet.train.fit import fit
from tubelet.train.parallel import autocast
from tubelet.types import TubeletError


@register("finetune")
class FineTune:
    """Fine-tunes the whole network on the training labels; judges the mean softmax over test clips and crops.

    With several learning rates the best is chosen first: each is tried, at the same number of steps, on four fifths
    of the training videos and judged on the last fifth. The tuned network is left in ``out/run``, a run like any other.

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
        seed: of the head, the data order and the augmentation; None = the protocol's.
    """

    def __init__(
        self,
        length: str = "30 epochs",
        batch: int = 16,
        micro_batch: int | None = None,
        lrs: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2),
        layer_decay: float = 0.75,
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
        if not lrs:
            raise TubeletError("finetune.lrs needs at least one learning rate")
        self.length, self.batch, self.lrs, self.drop_path = length, batch, tuple(lrs), drop_path
        self.head = {"dropout": dropout, "smoothing": smoothing}
        self.training = {
            "batch": batch, "micro_batch": micro_batch, "layer_decay": layer_decay, "weight_decay": weight_decay,
            "warmup": warmup, "clip_norm": clip_norm, "min_lr": 1e-6, "betas": (0.9, 0.999),
        }  # fmt: skip
        self.clips = {"sampling": sampling, "crop": crop, "scale": tuple(scale)}
        self.test_clips, self.test_crops, self.seed = test_clips, test_crops, seed

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        started = time.perf_counter()
        steps = schedule.steps(self.length, max(1, len(protocol.train) // self.batch))
        known = self.begin(backbone, protocol, out, steps)
        if "lr" not in known:
            known["lr"], known["tried"] = self.choose(backbone, protocol, steps, out / "sweep")
            if dist.is_main():
                write_json(out / "task.json", known)
        learner = self.train(backbone, protocol.train, protocol, known["lr"], steps, out / "run")
        clips, crops = self.test_clips or protocol.test_clips, self.test_crops or protocol.test_crops
        probabilities, readable = score(learner, protocol.test, protocol, clips, crops)
        curve = [line["accuracy"] for line in read_metrics(out / "run" / "metrics.jsonl") if "accuracy" in line]
        return conclude(
            probabilities[readable], readable, protocol, out, started=started, lr=known["lr"], tried=known["tried"],
            steps=steps, views=clips * crops, train_top1=curve[-1] if curve else None, run="run",
        )  # fmt: skip

    def begin(self, backbone: Backbone, protocol: Protocol, out: Path, steps: int) -> dict[str, Any]:
        """What an interrupted call with the same settings knows already; what another call left here is removed."""
        settings = {
            "start": [backbone.config, weights_hash(backbone)], "train": contents(protocol.train),
            "clip": protocol.clip, "flip": protocol.flip, "seed": self._seed(protocol), "steps": steps, "lrs": self.lrs,
            "drop_path": self.drop_path, **self.head, **self.training, **self.clips,
        }  # fmt: skip
        settings = json.loads(json.dumps(settings))  # as it will be read back: tuples become lists
        try:
            known = json.loads((out / "task.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            known = {}
        dist.barrier()  # all have read before one removes
        if known.get("settings") == settings:
            return known
        if dist.is_main():
            for folder in (out / "run", out / "sweep"):
                shutil.rmtree(folder, ignore_errors=True)
            write_json(out / "task.json", {"settings": settings})
        dist.barrier()
        return {"settings": settings}

    def choose(
        self, backbone: Backbone, protocol: Protocol, steps: int, folder: Path
    ) -> tuple[float, dict[str, float]]:
        """The learning rate with the best accuracy on a fifth of the training videos, between equals the lower loss."""
        parts = folds(protocol.train, 5, self._seed(protocol))
        kept = protocol.train.take((parts == 0).nonzero().flatten().tolist())
        rest = protocol.train.take((parts != 0).nonzero().flatten().tolist())
        if len(self.lrs) == 1 or not len(kept) or not len(rest):
            return self.lrs[len(self.lrs) // 2], {}
        tried: dict[float, tuple[float, float]] = {}
        for lr in self.lrs:
            learner = self.train(backbone, rest, protocol, lr, steps, folder / f"lr-{lr:g}", quiet=True)
            probabilities, readable = score(learner, kept, protocol, 1, 1)
            tried[lr] = quality(probabilities[readable], labels_of(kept, protocol.classes)[readable])
            say(f"learning rate {lr:g}: {tried[lr][0]:.3f} on {int(readable.sum())} training videos kept apart")
        dist.barrier()
        if dist.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        return max(tried, key=tried.__getitem__), {f"{lr:g}": accuracy for lr, (accuracy, _) in tried.items()}

    def train(
        self,
        backbone: Backbone,
        manifest: Manifest,
        protocol: Protocol,
        lr: float,
        steps: int,
        folder: Path,
        quiet: bool = False,
    ) -> Supervised:
        """A fine-tuned copy of the backbone, with its head."""
        seed = self._seed(protocol)
        clips = Clips(manifest, **protocol.clip, **self.clips, flip=protocol.flip, seed=seed)
        head = {"name": "supervised", "classes": len(protocol.classes), **self.head}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.key(seed, "finetune"))
            learner = Supervised(fresh(backbone, self.drop_path), len(protocol.classes), **self.head)
            fit(
                learner, clips, folder, length=f"{steps} steps", lr=lr, seed=seed, workers=protocol.workers,
                save="end" if quiet else "every 20 %", about={"learner": head, "classes": protocol.classes},
                quiet=quiet, **self.training,
            )  # fmt: skip
        return learner

    def _seed(self, protocol: Protocol) -> int:
        return protocol.seed if self.seed is None else self.seed


def fresh(backbone: Backbone, drop_path: float | None = None) -> Backbone:
    """A copy in training mode, all of it trainable, with another drop path where the backbone has one."""
    if drop_path is None or "drop_path" not in backbone.config:
        twin = copy.deepcopy(backbone)
    else:
        config = {**backbone.config, "drop_path": drop_path}
        twin = registry.build("backbones", config.pop("name"), **config)
        twin.load_state_dict(backbone.state_dict())
    return twin.requires_grad_().train()


@torch.no_grad()
def score(learner: Supervised, manifest: Manifest, protocol: Protocol, clips: int, crops: int) -> tuple[Tensor, Tensor]:
    """The softmax of each video, averaged over its ``clips * crops`` views, by id.

    Returns:
        N K probabilities (zeros where unreadable) and N bool, which could be read.
    """
    device = dist.device()
    learner.to(device).eval()
    probabilities = torch.zeros(len(manifest), len(protocol.classes))
    readable = torch.zeros(len(manifest), dtype=torch.bool)
    loader = views(manifest, protocol, clips, crops)
    for batch in loader.once():
        batch = to_device(batch, device)
        with autocast("auto", device):
            logits = torch.stack([learner.logits(video).float() for video in batch["video"]])  # V B K
        rows = batch["id"].cpu()
        probabilities[rows] = logits.softmax(dim=2).mean(dim=0).cpu()  # B K
        readable[rows] = batch["readable"].cpu()
    missing = (~readable).nonzero().flatten().tolist()
    say_unreadable(manifest, {row: loader.unreadable.get(str(manifest[row].path), "unreadable") for row in missing})
    return probabilities * readable[:, None], readable
