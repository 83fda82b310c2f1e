"""Tiny videos whose class is their colour, and a backbone that sees colour: enough to run every task for real."""

from dataclasses import replace
from pathlib import Path

import numpy
import torch

from moving import write_clip
from tubelet import registry
from tubelet.data.listing import Manifest, Video
from tubelet.tasks.protocol import Protocol

CLIP = {"frames": 4, "stride": 1, "reference_fps": 8.0, "size": 16}


def make(folder: Path, train: int = 8, test: int = 4) -> Manifest:
    """`train` and `test` videos of each of three classes."""
    rng = numpy.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for split, count in (("train", train), ("test", test)):
        for i in range(count):
            for channel, label in ((2, "blue"), (1, "green"), (0, "red")):
                colour = rng.uniform(60, 120, 3)
                colour[channel] = rng.uniform(150, 220)
                frames = numpy.clip(colour + rng.normal(0, 30, (8, 16, 16, 3)), 0, 255).astype(numpy.uint8)
                path = write_clip(folder / f"{split} {label} {i}.mp4", frames)
                videos.append(Video(path, label=label, split=split))
    return Manifest(videos, source=folder / "clips.csv")


def backbone(seed: int = 0):
    torch.manual_seed(seed)
    return registry.build("backbones", "vit", size="tiny", dim=16, depth=1, heads=2, patch=8, tubelet=2)


def poisoned(protocol: Protocol) -> Protocol:
    """The same, with every test label wrong."""
    names = protocol.classes
    wrong = [replace(v, label=names[(names.index(str(v.label)) + 1) % len(names)]) for v in protocol.test]
    return replace(protocol, test=Manifest(wrong, names, protocol.test.source))
