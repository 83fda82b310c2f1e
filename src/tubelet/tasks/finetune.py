"""Fine-tuning: all weights go on learning, with labels, and the whole network is judged."""

from __future__ import annotations

import copy
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from tubelet import dist, draws, registry
from tubelet.checkpoint import weights_hash, write_json
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest
from tubelet.learner import Backbone
from tubelet.log import read_metrics, say
from tubelet.methods.supervised import Supervised
from tubelet.registry import register
from tubelet.tasks.classify import score
from tubelet.tasks.features import contents
from tubelet.tasks.protocol import Protocol, Result, Task, conclude, folds, labels_of, quality
from tubelet.train import schedule
from tubelet.train.fit import fit
from tubelet.types import TubeletError


@register("finetune")
class FineTune(Task):
    """Fine-tunes the whole network on the training labels; judges the mean softmax over test clips and crops.

    With several learning rates the best is chosen first: each is tried, at the same number of steps, on four fifths
    of the training videos and judged on the last fifth. The tuned network is left in ``out/run``, a run like any other.

    The published regularisation is there to be asked for: randaugment "m7-n4-mstd0.5", mixup 0.8, cutmix 1, erasing
    0.25, repeats 2. It is for long trainings of large networks.

    Args:
        length: how long, such as "30 epochs" or "500 steps".
        batch: clips a step, over all processes, repeats of a video included.
        micro_batch: clips for each forward pass of one process; None = its share of the batch.
        lrs: peak learning rates for 256 videos a step (scaled by videos / 256) to choose from.
        layer_decay: factor on the learning rate from one layer to the one before it.
        drop_path: as in the backbone, for this training; None leaves the backbone's own.
        pool: what the head sees: the "mean" of the tokens or the "first" one.
        head_norm: a norm between pooling and head.
        dropout: before the head.
        smoothing: label smoothing.
        mixup: clips are added up in shares from Beta(a, a), this is a; 0 = never.
        cutmix: likewise with a box of one clip put into another.
        erasing: chance of a clip to lose a random box to noise.
        ema: share of the moving average of the weights that is kept at a step; what is tested is then the average.
        weight_decay: of matrices.
        warmup: how long the learning rate rises.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        sampling: how training clips are taken in time: "random", "dense" (published for Kinetics) or in "segments" (for
            Something-Something), which are then tested in segments too; None = "segments" where the encoder's run was
            trained so, else "random".
        crop: how they are cropped: "resized", "multiscale" or "center".
        scale: smallest and largest share of the picture that "resized" takes.
        randaugment: random changes of colour and geometry, such as "m7-n4-mstd0.5"; None = none.
        repeats: clips of each video when it is opened.
        test_clips: clips along time for testing; None = the protocol's.
        test_crops: squares along the long side for testing; None = the protocol's.
        seed: of the head, the data order and the augmentation; None = the protocol's.
    """

    one_frame = False

    def __init__(
        self,
        length: str = "30 epochs",
        batch: int = 16,
        micro_batch: int | None = None,
        lrs: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2),
        layer_decay: float = 0.75,
        drop_path: float | None = 0.1,
        pool: Literal["mean", "first"] = "mean",
        head_norm: bool = True,
        dropout: float = 0.0,
        smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        erasing: float = 0.0,
        ema: float = 0.0,
        weight_decay: float = 0.05,
        warmup: str = "10 %",
        clip_norm: float = 0.0,
        sampling: Literal["random", "dense", "segments"] | None = None,
        crop: Literal["resized", "multiscale", "center"] = "resized",
        scale: tuple[float, float] = (0.5, 1.0),
        randaugment: str | None = None,
        repeats: int = 1,
        test_clips: int | None = None,
        test_crops: int | None = None,
        seed: int | None = None,
    ) -> None:
        if not lrs:
            raise TubeletError("finetune.lrs needs at least one learning rate")
        self.length, self.batch, self.lrs, self.drop_path = length, batch, tuple(lrs), drop_path
        self.head: dict[str, Any] = {
            "pool": pool, "head_norm": head_norm, "dropout": dropout, "smoothing": smoothing, "mixup": mixup,
            "cutmix": cutmix, "erasing": erasing, "ema": ema,
        }  # fmt: skip
        self.training = {
            "batch": batch, "micro_batch": micro_batch, "layer_decay": layer_decay, "weight_decay": weight_decay,
            "warmup": warmup, "clip_norm": clip_norm, "min_lr": 1e-6, "betas": (0.9, 0.999),
        }  # fmt: skip
        self.clips: dict[str, Any] = {
            "sampling": sampling, "crop": crop, "scale": tuple(scale), "randaugment": randaugment, "repeats": repeats
        }  # fmt: skip
        self.test_clips, self.test_crops, self.seed = test_clips, test_crops, seed

    def __call__(self, backbone: Backbone, protocol: Protocol, out: Path) -> Result:
        started = time.perf_counter()
        if self.clips["sampling"] is not None:  # then the encoder's own sampling is left, in testing too
            clip = {key: value for key, value in protocol.clip.items() if key != "segments"}
            segments = {"segments": True} if self.clips["sampling"] == "segments" else {}
            protocol = replace(protocol, clip=clip | segments)
        steps = schedule.steps(self.length, max(1, len(protocol.train) * self.clips["repeats"] // self.batch))
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
            weights="last step" + (", moving average" if self.head["ema"] else ""),
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
        in_segments = bool(protocol.clip.get("segments"))
        sampling = self.clips["sampling"] or ("segments" if in_segments else "random")
        clips = Clips(manifest, **protocol.clip, **{**self.clips, "sampling": sampling}, flip=protocol.flip, seed=seed)
        head = {"name": "supervised", "classes": len(protocol.classes), **self.head}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.key(seed, "finetune"))
            learner = Supervised(fresh(backbone, self.drop_path), len(protocol.classes), **self.head)
            fit(
                learner, clips, folder, length=f"{steps} steps", lr=lr, seed=seed, workers=protocol.workers,
                save="end" if quiet else "every 20 %", about={"learner": head, "classes": protocol.classes},
                health=None, quiet=quiet, **self.training,
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
