"""Writes one vector for each video of a manifest: for search, clustering, or a classifier of one's own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch

from tubelet import dist
from tubelet.checkpoint import load_backbone, read_about, weights_hash, write_atomically
from tubelet.data.clips import Clips
from tubelet.data.device import to_device
from tubelet.data.listing import Manifest, read_manifest
from tubelet.data.loader import Loader
from tubelet.data.storage import Place
from tubelet.log import warn
from tubelet.train.parallel import autocast
from tubelet.types import TubeletError


class Embedded(NamedTuple):
    """What `embed` found, in the order of the manifest."""

    values: numpy.ndarray
    """N D float32: the mean of the tokens; not a number where a video cannot be read."""
    readable: numpy.ndarray
    """N bool."""
    unreadable: dict[str, str]
    """Path -> reason."""
    weights_hash: str
    """Of the encoder."""


def embed(
    run: Path, manifest: Place, out: Path, *, clips: int = 1, workers: int = 0, batch: int = 32,
    root: str | Place | None = None,
) -> Embedded:  # fmt: skip
    """Encodes every video and writes a table of path, label, group, split, readable, hash of the weights and vector.

    Args:
        run: the folder of a run.
        out: ``.parquet`` (a list column ``embedding``), ``.csv`` (columns ``f0`` ...) or ``.npz`` (arrays).
        clips: clips taken along time, whose vectors are averaged.
        root: what no video may lie outside of; see `tubelet.data.root`.

    Raises:
        TubeletError: the ending of ``out`` is unknown, a video lies outside of the root, or none can be read.
    """
    write = writer(out)
    about, listing = read_about(run), read_manifest(manifest, root=root)
    found = _encode(run, listing, about["clip"], clips, workers, batch)
    columns: dict[str, list[Any]] = {
        "path": [str(video.path) for video in listing.videos],
        "label": [video.label for video in listing.videos],
        "group": [video.group for video in listing.videos],
        "split": [video.split for video in listing.videos],
        "readable": found.readable.tolist(),
        "weights_hash": [found.weights_hash] * len(listing),
    }
    write_atomically(out, lambda temporary: write(temporary, columns, found))
    for path, reason in found.unreadable.items():
        warn(f"{path} cannot be read ({reason}): it has a row without a vector")
    return found


@torch.no_grad()
def _encode(run: Path, listing: Manifest, clip: dict[str, Any], clips: int, workers: int, batch: int) -> Embedded:
    device = dist.device()
    backbone = load_backbone(run).to(device)
    loader = Loader(Clips(listing, **clip).for_testing(clips=clips), batch, workers=workers, shuffle=False)
    values = numpy.full((len(listing), backbone.dim), numpy.nan, numpy.float32)
    readable = numpy.zeros(len(listing), bool)
    for some in loader.once():
        data: Any = to_device(some, device)
        kept = data["readable"]
        rows = data["id"][kept].cpu().numpy()
        readable[rows] = True
        with autocast("auto", device):
            views = [backbone(video).tokens.float().mean(dim=1) for video in data["video"]]  # B D
        values[rows] = torch.stack(views).mean(dim=0)[kept].cpu().numpy()  # B D
    if not readable.any():
        path, reason = next(iter(loader.unreadable.items()))
        raise TubeletError(f"none of the {len(listing)} videos can be read, such as {path}: {reason}")
    return Embedded(values, readable, dict(loader.unreadable), weights_hash(backbone))


Columns = dict[str, list[Any]]


def writer(out: Path) -> Callable[[Path, Columns, Embedded], None]:
    """The function that writes the kind of file that the ending of ``out`` names."""
    known = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}
    if out.suffix not in known:
        raise TubeletError(f"{out} must end in one of {', '.join(known)}")
    if out.suffix == ".parquet":
        _pyarrow()
    return known[out.suffix]


def _write_csv(path: Path, columns: Columns, found: Embedded) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([*columns, *(f"f{i}" for i in range(found.values.shape[1]))])
        rows = zip(*columns.values(), strict=True)
        for row, readable, vector in zip(rows, found.readable, found.values, strict=True):
            cells = [f"{value:.8g}" for value in vector] if readable else [""] * len(vector)
            lines.writerow([*("" if cell is None else cell for cell in row), *cells])


def _write_npz(path: Path, columns: Columns, found: Embedded) -> None:
    arrays: dict[str, Any] = {
        name: numpy.array(["" if cell is None else cell for cell in cells]) for name, cells in columns.items()
    }
    arrays |= {"readable": found.readable, "embedding": found.values}
    with path.open("wb") as file:  # a file, not a name: numpy would add an ending to that
        numpy.savez(file, **arrays)


def _write_parquet(path: Path, columns: Columns, found: Embedded) -> None:
    pyarrow, parquet = _pyarrow()
    vectors = [vector if readable else None for vector, readable in zip(found.values, found.readable, strict=True)]
    table = {name: pyarrow.array(cells) for name, cells in columns.items()}
    table["embedding"] = pyarrow.array(vectors, type=pyarrow.list_(pyarrow.float32()))
    parquet.write_table(pyarrow.table(table), path)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TubeletError("parquet needs pyarrow: pip install 'tubelet[table]', or write .csv or .npz") from error
    return pyarrow, pyarrow.parquet
