"""What a frozen backbone says about each video: computed once, kept under a name made from all it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from tubelet import dist
from tubelet.checkpoint import weights_hash, write_atomically, write_json
from tubelet.data import storage
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest
from tubelet.data.loader import Loader
from tubelet.learner import Backbone
from tubelet.log import say, warn
from tubelet.tasks.protocol import Protocol, labels_of
from tubelet.train.parallel import autocast
from tubelet.types import TubeletError


class Frozen(NamedTuple):
    """The features of a manifest's videos, in its order."""

    values: Tensor
    """N D float32, or N n D float16 tokens (on disk, read as they are needed). Zeros where unreadable."""
    labels: Tensor
    """N int64, indices into the protocol's classes."""
    readable: Tensor
    """N bool."""


def features(backbone: Backbone, manifest: Manifest, protocol: Protocol, *, pooled: bool = True) -> Frozen:
    """Encodes every video of `manifest` in the protocol's test views, without gradients.

    Args:
        backbone: left as it was: same device, same mode.
        manifest: the protocol's ``train`` or ``test``.
        protocol: clip, views, and ``cache``, the folder in which they are kept (None: in memory only).
        pooled: True: the mean of the tokens, averaged over the views; False: all tokens of all views, one view
            after the other.

    Raises:
        TubeletError: no video can be read, the features are not finite, or the disk is too small for the tokens.
    """
    file, kept = None, None
    if protocol.cache is not None:
        file = protocol.cache / f"{'pooled' if pooled else 'tokens'}-{_key(backbone, manifest, protocol)}.npy"
        kept = _kept(file, len(manifest))
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp") if file and not pooled else None
    try:
        values, unreadable = kept or _compute(backbone, manifest, protocol, pooled, temporary)
        if file is not None and kept is None:
            _keep(file, values, unreadable, temporary)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    readable = torch.ones(len(manifest), dtype=torch.bool)
    readable[list(unreadable)] = False
    say_unreadable(manifest, unreadable)
    return Frozen(torch.from_numpy(values), labels_of(manifest, protocol.classes), readable)


def views(manifest: Manifest, protocol: Protocol, clips: int, crops: int) -> Loader:
    """Every video once, in order, with ``clips * crops`` fixed views."""
    testing = Clips(manifest, **protocol.clip, seed=protocol.seed).for_testing(clips=clips, crops=crops)
    return Loader(testing, batch=protocol.batch, workers=protocol.workers, shuffle=False)


def say_unreadable(manifest: Manifest, unreadable: dict[int, str]) -> None:
    """Says how many videos are left out and, of the first few, which and why.

    Raises:
        TubeletError: there is no other.
    """
    if not unreadable:
        return
    shown = [f"{manifest.videos[row].path.name}: {reason}" for row, reason in list(unreadable.items())[:3]]
    reasons = "; ".join(shown) + (" ..." if len(unreadable) > 3 else "")
    if len(unreadable) == len(manifest):
        raise TubeletError(f"none of the {len(manifest)} videos can be read ({reasons}); try `tubelet data check`")
    warn(f"{len(unreadable)} of {len(manifest)} videos cannot be read and are left out ({reasons})")


def _compute(
    backbone: Backbone, manifest: Manifest, protocol: Protocol, pooled: bool, temporary: Path | None
) -> tuple[numpy.ndarray, dict[int, str]]:
    """The features (in the file `temporary`, if that is given), and row and reason of each video that is unreadable."""
    values = None
    unreadable: dict[int, str] = {}
    loader = views(manifest, protocol, protocol.test_clips, protocol.test_crops)
    for rows, readable, encoded in _encode(backbone, loader, pooled):
        if not torch.isfinite(encoded[readable]).all():
            raise TubeletError("the backbone's features are not finite: its run diverged; look at its loss")
        if values is None:
            values = _room((len(manifest), *encoded.shape[1:]), pooled, temporary)
        values[rows[readable].numpy()] = encoded[readable].clamp(-65504, 65504).numpy()  # the range of float16
        for row in rows[~readable].tolist():
            unreadable[row] = loader.unreadable.get(str(manifest.videos[row].path), "unreadable")
    assert values is not None, "a protocol has no empty manifest"
    return values, unreadable


@torch.no_grad()
def _encode(backbone: Backbone, loader: Loader, pooled: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the ids, which of them are readable, and the features of one batch after the other."""
    device, mode = dist.device(), backbone.training
    home = next((parameter.device for parameter in backbone.parameters()), device)
    backbone.to(device).eval()
    try:
        for batch in loader.once():
            batch = to_device(batch, device)
            with autocast("auto", device):
                tokens = [backbone(video).tokens.float() for video in batch["video"]]  # V x B n D
            encoded = torch.cat(tokens, dim=1)  # B V*n D: the views one after the other, all of one length
            if pooled:
                encoded = encoded.mean(dim=1)  # B D
            yield batch["id"].cpu(), batch["readable"].cpu(), encoded.cpu()
    finally:
        backbone.to(home).train(mode)


def _room(shape: tuple[int, ...], pooled: bool, temporary: Path | None) -> numpy.ndarray:
    """Zeros to write into: in memory, or (tokens of many videos) on disk."""
    if temporary is None:
        return numpy.zeros(shape, numpy.float32 if pooled else numpy.float16)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    needed, free = 2 * int(numpy.prod(shape)), shutil.disk_usage(temporary.parent).free
    if needed > free:
        raise TubeletError(
            f"the tokens of {shape[0]} videos take {needed / 1e9:.1f} GB and {temporary.parent} has {free / 1e9:.1f}: "
            "use fewer videos, or the task `linear`, which keeps one vector a video"
        )
    return numpy.lib.format.open_memmap(temporary, mode="w+", dtype=numpy.float16, shape=shape)


# What is kept: NAME.npy and, written after it, NAME.json with the checksum that proves that it is whole.


def contents(manifest: Manifest) -> str:
    """A fingerprint of the rows and of the size and date of their files, which changes when a file is made anew."""
    digest = hashlib.blake2b(manifest.fingerprint.encode(), digest_size=10)
    for video in manifest.videos:
        digest.update(repr(storage.stamp(video.path)).encode())
    return digest.hexdigest()


def _key(backbone: Backbone, manifest: Manifest, protocol: Protocol) -> str:
    """A fingerprint of all that features depend on."""
    parts = {
        "weights": weights_hash(backbone),
        "backbone": backbone.config,
        "videos": contents(manifest),
        "clip": protocol.clip,
        "views": [protocol.test_clips, protocol.test_crops],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _keep(file: Path, values: numpy.ndarray, unreadable: dict[int, str], temporary: Path | None) -> None:
    if temporary is None:
        write_atomically(file, lambda path: _save(path, values))
    else:
        values.flush()  # type: ignore[attr-defined]
        temporary.replace(file)
    write_json(file.with_suffix(".json"), {"crc32": _checksum(values), "unreadable": unreadable})


def _save(path: Path, values: numpy.ndarray) -> None:
    with path.open("wb") as opened:
        numpy.save(opened, values)


def _kept(file: Path, count: int) -> tuple[numpy.ndarray, dict[int, str]] | None:
    """What an earlier call kept, or None when there is nothing or it is damaged."""
    about_file = file.with_suffix(".json")
    if not file.exists() or not about_file.exists():
        return None
    try:
        about: dict[str, Any] = json.loads(about_file.read_text(encoding="utf-8"))
        values = numpy.load(file, mmap_mode="c", allow_pickle=False)  # pages are read when needed, never written
        if len(values) != count or _checksum(values) != about["crc32"]:
            raise ValueError("its checksum differs")
        return values, {int(row): reason for row, reason in about["unreadable"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        say(f"the kept features {file.name} are damaged ({error}) and are computed again")
        return None


def _checksum(values: numpy.ndarray) -> int:
    checksum = 0
    for start in range(0, len(values), 256):
        checksum = zlib.crc32(values[start : start + 256].tobytes(), checksum)
    return checksum
