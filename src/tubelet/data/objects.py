"""Videos whose objects have masks: generated corpora, and folders in the layout of DAVIS; masks as palette PNGs."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from tubelet.data.info import UnreadableVideo
from tubelet.data.listing import Manifest, natural_sort
from tubelet.data.pictures import SUFFIXES, Decoder
from tubelet.data.storage import Place
from tubelet.data.synthetic import decode_mask
from tubelet.types import TubeletError

Masks = NDArray[numpy.uint8]
"""T H W: the number of the object that each pixel shows, 0 = background."""
DEPTHS = {"gray": 0, "pal8": 0, "monob": 1}
"""How FFmpeg calls pixels that are numbers; 1 = packed, eight to a byte."""


class Sequence(NamedTuple):
    """A video and the masks of its objects in every frame."""

    name: str
    place: Place
    masks: Callable[[], Masks]


def generated(manifest: Manifest) -> list[Sequence]:
    """The videos of a generated corpus; the masks are in ``factors.json`` beside the manifest.

    Raises:
        TubeletError: there is no such file, or it knows nothing of a video.
    """
    folder = manifest.source.parent if isinstance(manifest.source, Path) else None
    if folder is None or not (folder / "factors.json").is_file():
        raise TubeletError(
            f"no masks are known of {manifest.source}: only generated corpora have them beside it (factors.json); "
            "of other videos name a folder with JPEGImages and Annotations, as DAVIS has them"
        )
    factors = _json(folder / "factors.json")
    side = _json(folder / "synthetic.json")["size"]
    runs = {(folder / name).resolve(): of["masks"] for name, of in factors.items()}
    found = []
    for video in manifest.videos:
        if video.path not in runs:
            raise TubeletError(f"{folder / 'factors.json'} has no masks of {video.path}")
        found.append(Sequence(video.path.stem, video.path, partial(_decoded, runs[video.path], side)))
    return found


def davis(folder: Path) -> list[Sequence]:
    """The sequences of a folder in the layout of DAVIS, those of ``ImageSets/2017/val.txt`` where it is there.

    ``JPEGImages/480p/NAME/00000.jpg`` has its masks in ``Annotations/480p/NAME/00000.png``; 480p may be any one folder.

    Raises:
        TubeletError: it is no such folder, or a frame has no masks.
    """
    pictures, annotations = (_resolution(folder, part) for part in ("JPEGImages", "Annotations"))
    listed = folder / "ImageSets" / "2017" / "val.txt"
    names = listed.read_text(encoding="utf-8").split() if listed.is_file() else None
    if names is None:
        names = natural_sort(path.name for path in annotations.iterdir() if path.is_dir())
    found = []
    for name in names:
        frames = [path.stem for path in (pictures / name).glob("*") if path.suffix.lower() in SUFFIXES]
        missing = natural_sort({*frames} - {path.stem for path in (annotations / name).glob("*.png")})
        if not frames or missing:
            what = f"no {annotations / name / missing[0]}.png" if missing else f"no frames in {pictures / name}"
            raise TubeletError(f"{folder} has not the layout of DAVIS: {what}")
        files = [annotations / name / f"{stem}.png" for stem in natural_sort(frames)]
        found.append(Sequence(name, (pictures / name).resolve(), partial(_read_masks, files)))
    if not found:
        raise TubeletError(f"{annotations} has no sequences")
    return found


def read_mask(path: Path) -> Masks:
    """A PNG of numbers: the index in its palette, or its grey value: H W.

    Raises:
        UnreadableVideo: it is damaged, or has colours.
    """
    try:
        picture, _ = Decoder()(path.read_bytes())
        name = picture.format.name
        if name not in DEPTHS:
            raise ValueError(f"a mask has a palette or grey values, and its pixels are {name}")
        plane = picture.planes[0]
        rows = numpy.frombuffer(bytes(plane), numpy.uint8).reshape(-1, plane.line_size)[: picture.height]
        rows = numpy.unpackbits(rows, axis=1) if DEPTHS[name] else rows
        return rows[:, : picture.width].copy()  # H W
    except (OSError, ValueError) as error:
        raise UnreadableVideo(path, str(error)) from None


def write_mask(path: Path, mask: NDArray[numpy.integer]) -> None:
    """A mask (H W, numbers up to 255) as a PNG with DAVIS's palette, which is that of PASCAL VOC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(mask.astype(numpy.uint8)[..., None], palette()))


def write_picture(path: Path, picture: NDArray[numpy.uint8]) -> None:
    """A picture (H W 3) as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(picture))


def palette() -> NDArray[numpy.uint8]:
    """256 colours, 256 3: the bits of a number are dealt out to red, green and blue, the lowest to their highest."""
    numbers, colours = numpy.arange(256), numpy.zeros((256, 3), dtype=numpy.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((numbers >> bit & 1) << (7 - bit // 3)).astype(numpy.uint8)
    return colours


def _png(pixels: NDArray[numpy.uint8], colours: NDArray[numpy.uint8] | None = None) -> bytes:
    """Pixels (H W 3, or H W 1 with a palette) as PNG, no line filtered."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if colours is None else 3, 0, 0, 0)
    lines = numpy.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # each line begins with its filter: 0
    parts = [chunk(b"IHDR", header)]
    if colours is not None:
        parts.append(chunk(b"PLTE", colours.tobytes()))
    parts += [chunk(b"IDAT", zlib.compress(lines.tobytes())), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _decoded(runs: list[list[int]], side: int) -> Masks:
    return numpy.stack([decode_mask(counts, side, side) for counts in runs]).astype(numpy.uint8)  # T H W


def _read_masks(files: list[Path]) -> Masks:
    masks = [read_mask(path) for path in files]
    for path, mask in zip(files, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise UnreadableVideo(path, f"{path.name} is of another size than the masks before it")
    return numpy.stack(masks)  # T H W


def _resolution(folder: Path, part: str) -> Path:
    """480p where it is there, else the only folder."""
    inside = sorted(path for path in (folder / part).glob("*") if path.is_dir())
    chosen = [path for path in inside if path.name == "480p"] or inside
    if len(chosen) != 1:
        what = f"holds {', '.join(path.name for path in chosen)}" if chosen else "is missing or empty"
        raise TubeletError(f"{folder} has not the layout of DAVIS: {part} {what}, and should hold 480p")
    return chosen[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise TubeletError(f"{path} cannot be read: {error}") from None
