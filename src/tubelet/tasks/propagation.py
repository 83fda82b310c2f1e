"""Mask propagation: the objects of a video's first frame are known, and followed by what frozen features find alike."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tubelet import dist, draws
from tubelet.checkpoint import write_csv
from tubelet.data import objects, read
from tubelet.data.info import UnreadableVideo
from tubelet.data.objects import Masks, Sequence
from tubelet.learner import Backbone
from tubelet.log import say, warn
from tubelet.metrics.objects import judge
from tubelet.nn.affinity import copy, neighbours
from tubelet.registry import register
from tubelet.tasks.protocol import Result, Task, Terms
from tubelet.train.parallel import autocast
from tubelet.types import TubeletError

NUMBERS = ("j_and_f", "j", "f", "j_recall", "f_recall")
SHOWN = 6
"""Frames of a video on the picture strip."""
STRIP = 96
"""Least height of one of them, in pixels."""
LEAST = 3
"""Frames of a video: the first one is given, and the last one is not judged."""
PAUSE_S = 5.0
"""Videos that are done are said, but not one more often than that."""


class Footage(NamedTuple):
    """What the task is done on."""

    sequences: list[Sequence]
    source: str
    """The manifest or folder that they come from."""
    window: int
    """Frames of a window, for frames that are seen among those around them."""
    seed: int


@register("propagation")
class Propagation(Task):
    """Follows the objects of each first frame by the tokens of frozen features, and judges J&F as DAVIS does.

    The label of a token is the mean of those of the tokens most like it in the first frame and in the frames just
    before, weighted by the softmax of cosine / temperature. Nothing is trained, and no mask but the first one is seen.
    A generated corpus has its masks beside the manifest; its split ``test`` is judged.

    Source: Caron et al. 2021, DINO, https://arxiv.org/abs/2104.14294, section 4.2.2, whose settings are the defaults;
    Jabri et al. 2020, https://arxiv.org/abs/2006.14613, section 4.1: top 10, context 20, temperature 0.05 to 0.07. The
    first frame's masks become shares of each token's area, where the published code takes one pixel of it.

    Args:
        masks: a folder in the layout of DAVIS (JPEGImages/480p, Annotations/480p) to judge on; None = the generated
            corpus of the manifest.
        size: short side that frames are resized to; None = as they are. Either side is rounded to whole patches.
        frames: how a network of video sees one frame: "repeated" to the length of a cube, or "sliding", the cube of it
            in a window of as many frames around it as the run's clips have; "auto" is "repeated", but "sliding" for a
            backbone that takes the background away, to which a still picture is nothing.
        temperature: of the softmax over cosines.
        top: how many of the tokens that are most alike are looked at.
        context: how many frames just before, besides the first.
        radius: rows and columns of tokens from which a label may come; 0 = from anywhere.
        normalise: stretch each object's label over a frame to 0..1 before the largest wins, as DINO does; then an
            object that is not to be seen any more is still found somewhere.
        videos: judge the first so many only; None = all.
        save_masks: write the masks that were found, as palette PNGs of the video's size.
        pictures: of how many videos the picture strip shows the true masks above those that were found.
    """

    numbers = NUMBERS
    one_frame = False

    def __init__(
        self,
        masks: str | None = None,
        size: int | None = None,
        frames: Literal["auto", "repeated", "sliding"] = "auto",
        temperature: float = 0.1,
        top: int = 5,
        context: int = 7,
        radius: int = 12,
        normalise: bool = True,
        videos: int | None = None,
        save_masks: bool = False,
        pictures: int = 4,
    ) -> None:
        more = {"size": size, "temperature": temperature, "top": top, "videos": videos}
        for name, value in more.items():
            if value is not None and value <= 0:
                raise TubeletError(f"propagation.{name} must be more than 0, not {value:g}")
        for name, value in {"context": context, "radius": radius, "pictures": pictures}.items():
            if value < 0:
                raise TubeletError(f"propagation.{name} must be 0 or more, not {value}")
        self.frames: Literal["auto", "repeated", "sliding"] = frames
        self.masks, self.size, self.temperature, self.top = masks, size, temperature, top
        self.context, self.radius, self.normalise = context, radius, normalise
        self.videos, self.save_masks, self.pictures = videos, save_masks, pictures

    def data(self, terms: Terms) -> Footage:
        if self.masks is not None:
            folder = Path(self.masks)
            return Footage(objects.davis(folder), str(folder.resolve()), terms.clip["frames"], terms.seed)
        manifest = terms.manifest()
        split = next((name for name in ("test", "val") if name in manifest.splits), None)
        judged = manifest if split is None else manifest.where(split)
        return Footage(objects.generated(judged), str(manifest.source), terms.clip["frames"], terms.seed)

    def __call__(self, backbone: Backbone, footage: Footage, out: Path) -> Result:
        started = time.perf_counter()
        how = self.way_of_seeing(backbone)
        rows: list[dict[str, Any]] = []
        strips: list[NDArray[numpy.uint8]] = []
        left_out: dict[str, str] = {}
        shutil.rmtree(out / "masks", ignore_errors=True)  # those of another call
        sequences = footage.sequences[: self.videos]
        said = started
        for number, sequence in enumerate(sequences, start=1):
            try:
                video, truth = load(sequence)
            except UnreadableVideo as error:
                left_out[sequence.name] = error.reason
                continue
            known = [int(number) for number in numpy.unique(truth[0]) if number]
            if not known:
                left_out[sequence.name] = "no object is in its first frame"
                continue
            found = self.follow(backbone, video, truth[0], known, how, footage.window)  # T H W
            judged = judge(found, truth, known)
            rows += [{"video": sequence.name, "frames": len(truth), **of} for of in judged]
            if time.perf_counter() - said > PAUSE_S:
                said = time.perf_counter()
                mean = numpy.mean([(of["j"] + of["f"]) / 2 for of in judged])
                say(f"{sequence.name}, {number} of {len(sequences)}: J&F {100 * mean:.1f} %")
            if self.save_masks:
                for t, mask in enumerate(found):
                    objects.write_mask(out / "masks" / sequence.name / f"{t:05d}.png", mask)
            if len(strips) < self.pictures:
                strips.append(strip(video, truth, found, known))
        say_left_out(left_out, len(sequences))
        write_rows(out / "predictions.csv", rows)
        shown = {}
        if strips:
            objects.write_picture(out / "strip.png", stacked(strips))
            shown = {"pictures": ["strip.png"]}
        return {
            **summary(rows, footage.seed), **shown, "unreadable": len(left_out), "missing": list(left_out),
            "frames": how, "judged_on": footage.source, "per_object": rows,
            "seconds": round(time.perf_counter() - started, 3),
        }  # fmt: skip

    def way_of_seeing(self, backbone: Backbone) -> Literal["repeated", "sliding"]:
        """Whether frames are repeated or seen in windows.

        Raises:
            TubeletError: frames are to be repeated, and the backbone sees nothing in a still picture.
        """
        blind = backbone.config.get("background") == "remove"
        if self.frames == "repeated" and blind:
            raise TubeletError(
                "a backbone with background remove sees nothing in a frame that is repeated: set propagation.frames to "
                "sliding, or train with backbone.background keep"
            )
        if self.frames != "auto":
            return self.frames
        return "sliding" if blind else "repeated"

    @torch.no_grad()
    def follow(
        self,
        backbone: Backbone,
        video: NDArray[numpy.uint8],
        first: Masks,
        known: list[int],
        how: Literal["repeated", "sliding"] = "repeated",
        window: int = 2,
    ) -> Masks:
        """Follows the objects of the first frame through a video.

        Args:
            video: T H W 3 uint8.
            first: H W, the first frame's mask.
            known: the numbers of its objects.
            how: see the argument `frames`.
            window: frames of a window.

        Returns:
            T H W: the number of the object that each pixel shows, 0 = none.
        """
        device = dist.device()
        home = next((parameter.device for parameter in backbone.parameters()), device)
        mode = backbone.training
        backbone.to(device).eval()
        try:
            grid = token_grid(video.shape[1:3], self.size, backbone.config["patch"])
            numbers = torch.tensor([0, *known])
            shares = (torch.from_numpy(first)[None] == numbers[:, None, None]).float()  # C H W
            labels = F.adaptive_avg_pool2d(shares, grid).flatten(1).T[None].to(device)  # 1 N C
            wide = self.radius == 0 or self.radius >= max(grid)
            near = None if wide else neighbours(grid, self.radius, device).repeat(1, self.context + 1)  # N n*N
            features = encoded(backbone, video, grid, how, window, device)
            start = next(features)  # 1 N D
            before: deque[tuple[Tensor, Tensor]] = deque(maxlen=self.context)
            found = [first]
            for tokens in features:
                keys, values = zip((start, labels), *before, strict=True)
                seen = torch.cat(keys, 1)  # 1 n*N D
                allowed = None if near is None else near[:, : seen.shape[1]]  # N n*N
                guess = copy(torch.cat(values, 1), tokens, seen, self.temperature, allowed, self.top)  # 1 N C
                before.append((tokens, guess))
                found.append(self.masks_of(guess, grid, first.shape, numbers))
        finally:
            backbone.to(home).train(mode)
        return numpy.stack(found)  # T H W

    def masks_of(self, labels: Tensor, grid: tuple[int, int], size: tuple[int, ...], numbers: Tensor) -> Masks:
        """Labels of tokens (1 N C) as a mask of the video's size: H W."""
        shares = F.interpolate(labels.mT.unflatten(2, grid), size, mode="bilinear")[0]  # C H W
        if self.normalise:
            least, most = shares.amin(dim=(1, 2), keepdim=True), shares.amax(dim=(1, 2), keepdim=True)
            shares = (shares - least) / (most - least).clamp(min=1e-8)
        return numbers[shares.argmax(dim=0).cpu()].to(torch.uint8).numpy()


def load(sequence: Sequence) -> tuple[NDArray[numpy.uint8], Masks]:
    """A video's frames, T H W 3, and its masks, T H W.

    Raises:
        UnreadableVideo: either cannot be read, or they do not go together.
    """
    video = numpy.stack([frame for _, frame in read.frames(sequence.place)])  # T H W 3
    masks = sequence.masks()
    if masks.shape != video.shape[:3]:
        what = f"its frames are {' x '.join(map(str, video.shape[:3]))} and its masks "
        raise UnreadableVideo(sequence.place, what + " x ".join(map(str, masks.shape)))
    if len(video) < LEAST:
        raise UnreadableVideo(sequence.place, f"of its {len(video)} frames none is between the first and the last")
    return video, masks


def token_grid(picture: tuple[int, ...], size: int | None, patch: int) -> tuple[int, int]:
    """Rows and columns of the tokens of a picture (H W) that is resized to a short side of ``size``."""
    scale = 1.0 if size is None else size / min(picture)
    rows, columns = (max(1, round(side * scale / patch)) for side in picture)
    return rows, columns


def encoded(
    backbone: Backbone, video: NDArray[numpy.uint8], grid: tuple[int, int], how: Literal["repeated", "sliding"],
    window: int, device: torch.device, pixels: int = 2**22,
) -> Iterator[Tensor]:  # fmt: skip
    """The tokens of one frame after the other: 1 N D, in float32.

    A window holds the frame at the beginning of its middle cube; beyond the ends of the video its last frames repeat.

    Args:
        grid: rows and columns of the tokens.
        window: frames of a window; a whole number of cubes is made of it.
        pixels: how many go through the backbone at a time, at least one frame.
    """
    tubelet, patch = backbone.config["tubelet"], backbone.config["patch"]
    cubes = max(1, window // tubelet) if how == "sliding" else 1
    middle = (cubes - 1) // 2
    offsets = torch.arange(cubes * tubelet) - middle * tubelet if how == "sliding" else torch.zeros(tubelet).long()
    size = (grid[0] * patch, grid[1] * patch)
    count = max(1, pixels // (size[0] * size[1] * len(offsets)))
    for begin in range(0, len(video), count):
        seen = torch.arange(begin, min(begin + count, len(video)))  # b
        moments = (seen[:, None] + offsets).clamp(0, len(video) - 1)  # b t
        shown, places = moments.unique(return_inverse=True)
        pictures = torch.from_numpy(video[shown.numpy()]).to(device).permute(0, 3, 1, 2).float() / 255  # n 3 H W
        if pictures.shape[2:] != size:
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True).clamp(0, 1)  # n 3 h w
        clips = pictures[places.to(device)].transpose(1, 2)  # b 3 t h w
        with autocast("auto", device):
            tokens = backbone(clips).tokens.float()  # b t*N D
        if not torch.isfinite(tokens).all():
            raise TubeletError("the backbone's features are not finite: its run diverged; look at its loss")
        yield from tokens.unflatten(1, (cubes, -1))[:, middle].split(1)  # 1 N D


def summary(rows: list[dict[str, Any]], seed: int) -> Result:
    """Means over all objects, and the 95 % interval of J&F: of means of videos that are drawn again with repeats.

    One video alone tells nothing of others: its interval is everything.
    """
    for row in rows:
        row["j_and_f"] = (row["j"] + row["f"]) / 2
    names = (*NUMBERS, "j_decay", "f_decay")
    means = {name: float(numpy.mean([row[name] for row in rows])) for name in names}
    videos = list(dict.fromkeys(row["video"] for row in rows))
    interval = [0.0, 1.0]
    if len(videos) > 1:
        sums = numpy.zeros((len(videos), 2))
        for row in rows:
            sums[videos.index(row["video"])] += row["j_and_f"], 1
        again = draws.generator(seed, "interval").integers(len(videos), size=(2000, len(videos)))
        totals = sums[again].sum(axis=1)  # 2000 2
        interval = [float(edge) for edge in numpy.quantile(totals[:, 0] / totals[:, 1], [0.025, 0.975])]
    return {"numbers": NUMBERS, **means, "interval": interval, "videos": len(videos), "objects": len(rows)}


def say_left_out(left_out: dict[str, str], count: int) -> None:
    """Says how many videos are left out and, of the first few, which and why.

    Raises:
        TubeletError: there is no other.
    """
    shown = "; ".join(f"{name}: {reason}" for name, reason in islice(left_out.items(), 3))
    if len(left_out) == count:
        raise TubeletError(f"none of the {count} videos can be judged ({shown})")
    absent = [name for name, reason in left_out.items() if reason.startswith("no object")]
    if len(absent) == len(left_out):
        if absent:
            say(f"{len(absent)} of {count} videos have no object in the first frame and take no part")
    else:
        warn(f"{len(left_out)} of {count} videos are left out ({shown})")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line for each object."""
    columns = ["video", "object", "frames", "j", "f", "j_recall", "f_recall", "j_decay", "f_decay"]
    lines = [[f"{row[name]:.6g}" if isinstance(row[name], float) else row[name] for name in columns] for row in rows]
    write_csv(path, [columns, *lines])


def strip(video: NDArray[numpy.uint8], truth: Masks, found: Masks, known: list[int]) -> NDArray[numpy.uint8]:
    """Some frames of a video side by side, the true masks over them above, those that were found below: h w 3."""
    moments = numpy.linspace(0, len(video) - 1, SHOWN).round().astype(int)
    lines = []
    for masks in (truth, found):
        pictures = [tinted(video[t], masks[t], known) for t in moments]
        lines.append(numpy.concatenate(pictures, axis=1))
    sheet = numpy.concatenate(lines)
    height = video.shape[1]
    if height < STRIP:
        times = -(-STRIP // height)
        return sheet.repeat(times, axis=0).repeat(times, axis=1)
    every = height // STRIP
    return sheet[::every, ::every]


def tinted(picture: NDArray[numpy.uint8], mask: Masks, known: list[int]) -> NDArray[numpy.uint8]:
    """A picture (H W 3) with its objects tinted, each in a colour of its own."""
    colours = (objects.palette() / 128 * 255).clip(max=255)
    shown = picture.astype(numpy.float32)
    for place, number in enumerate(known, start=1):
        inside = mask == number
        shown[inside] = 0.45 * shown[inside] + 0.55 * colours[place]
    return shown.astype(numpy.uint8)


def stacked(strips: list[NDArray[numpy.uint8]], gap: int = 6) -> NDArray[numpy.uint8]:
    """Strips one below the other, with white between and beside them."""
    width = max(strip.shape[1] for strip in strips)
    padded = [
        numpy.pad(strip, ((0, gap), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips
    ]
    return numpy.concatenate(padded)[:-gap]
