"""A corpus of moving, textured shapes in real mp4 files, whose class is the motion and nothing else.

Ten of the eleven motions are five pairs of which one is the other played backwards: left and right, up and down,
approach and recede, turn_left and turn_right, appear_then_move and move_then_vanish. The last, bounce, is its own
reverse. Shape, texture, colour, speed, size, position, orientation, background and camera are nuisances, drawn
independently of the class. Words (`synthetic_words`) and, where it is asked for, sound (`synthetic_sound`) tell the
motion too.

At frame ``frames // 2`` position, size and orientation have the same distribution in every class, so this frame
alone tells nothing. Towards the ends position and size lean to where the motion comes from and leads, as they must
in a bounded frame (`spread` against `speed` decides how much), and the first frames of appear_then_move, like the
last of move_then_vanish, show no object.

Textures come from the photographs inside the wheels of scikit-image and scikit-learn; training and test clips take
theirs from different photographs.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray
from rich import progress

from tubelet import draws, log
from tubelet.data.listing import Manifest, Video, write_manifest
from tubelet.data.synthetic_sound import add_sound, sound
from tubelet.data.synthetic_words import caption, narration
from tubelet.types import TubeletError

MOTIONS = (
    "left", "right", "up", "down", "approach", "recede", "turn_left", "turn_right",
    "appear_then_move", "move_then_vanish", "bounce",
)  # fmt: skip
SHAPES = ("disc", "ring", "square", "triangle", "star", "cross")
TEXTURES = {
    "train": ("astronaut", "camera", "coffee", "china.jpg", "brick", "grass", "immunohistochemistry"),
    "test": ("chelsea", "flower.jpg", "gravel", "rocket", "coins"),
}
GROWTH = 1.8
"""Approach and recede change the size by exp(GROWTH x speed) over a clip: at .4 to twice or half."""
REACH = 1.15
"""A sprite's canvas goes from -REACH to REACH, where the shape's radius is 1."""
COLUMNS = ("shape", "texture", "background", "size", "speed")
"""Factors that are columns of the manifest too."""
CHUNK = 16
"""Clips that a worker renders at a time."""
VERSION = 1
"""Part of a corpus's description: raised whenever the same arguments would render other pixels."""

Floats = NDArray[numpy.floating]
Record = tuple[str, dict[str, Any]]
Pyramid = list[Floats]
"""A photograph, and what is left of it each time its sides are halved: H W 3 in 0..1."""


@dataclass(frozen=True)
class Corpus:
    """What decides every byte of a corpus. Lengths are shares of the frame, brightness and contrast are in 0..1.

    Args:
        motions: the classes.
        mover_size: least and greatest diameter of an object at the middle frame.
        speed: least and greatest distance covered in a clip; for turning and growing see `Scene`.
        spread: how far from the middle, in each axis, an object may be at the middle frame.
        drift: motion that is not the class's, as a share of the least speed.
        camera: how far the background may slide in a clip, in any direction.
        mover_brightness: least and greatest mean of an object's texture.
        mover_contrast: its standard deviation.
        background_brightness: least and greatest mean of the background.
        background_contrast: its standard deviation.
        noise: standard deviation of every pixel's noise, fresh in each frame.
        sound: the files have a track of sound that tells the motion.
        silent: share of the clips whose files have none all the same.
    """

    clips: int
    test: int
    seed: int
    size: int
    frames: int
    fps: float
    motions: tuple[str, ...] = MOTIONS
    mover_size: tuple[float, float] = (0.33, 0.5)
    speed: tuple[float, float] = (0.25, 0.4)
    spread: float = 0.28
    drift: float = 0.15
    camera: float = 0.1
    mover_brightness: tuple[float, float] = (0.45, 0.75)
    mover_contrast: float = 0.22
    background_brightness: tuple[float, float] = (0.15, 0.45)
    background_contrast: float = 0.1
    noise: float = 0.02
    sound: bool = False
    silent: float = 0.0

    def __post_init__(self) -> None:
        for name in ("motions", "mover_size", "speed", "mover_brightness", "background_brightness"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # recipes and JSON have lists
        if set(self.motions) - set(MOTIONS) or len(set(self.motions)) != max(len(self.motions), 1):
            raise TubeletError(f"motions = {', '.join(self.motions)}: name each once, from {', '.join(MOTIONS)}")
        if self.clips < 1 or self.test < 0:
            raise TubeletError(f"clips = {self.clips}, test = {self.test}: at least one clip is needed")
        if self.size < 16 or self.size % 2:
            raise TubeletError(f"size = {self.size}: the side must be an even number of at least 16 pixels")
        if self.frames < 2 or self.fps <= 0:
            raise TubeletError(f"frames = {self.frames}, fps = {self.fps}: motion needs 2 frames, a rate above 0")
        for name in ("mover_size", "speed", "mover_brightness", "background_brightness"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1] <= 1:
                raise TubeletError(f"{name} = {value}: give two numbers above 0 and up to 1, the lesser first")
        for name in ("spread", "drift", "camera", "mover_contrast", "background_contrast", "noise", "silent"):
            if not 0 <= getattr(self, name) <= 1:
                raise TubeletError(f"{name} = {getattr(self, name)}: it must be between 0 and 1")


@dataclass(frozen=True)
class Scene:
    """The factors of one clip. Lengths are shares of the frame, x to the right, y down; angles are degrees.

    The middle is frame ``frames // 2``. `speed` is what a whole clip covers: frame widths (there and back for
    bounce), turns of 360 degrees, or sizes (see `GROWTH`). `direction` is where the object goes, anticlockwise from
    the right; it means nothing where the class is turning or growing. `drift` is small motion that tells nothing:
    to the right, down, turns, log growth, each over a whole clip.
    """

    label: str
    split: str
    shape: str
    texture: str
    background: str
    size: float  # diameter at the middle
    speed: float
    direction: float
    centre: tuple[float, float]  # position at the middle
    orientation: float  # anticlockwise, at the middle
    drift: tuple[float, float, float, float]
    switch: float  # when the object appears, vanishes or bounces, as a share of the clip
    camera: tuple[float, float]  # how far the background moves over the clip
    brightness: float
    tint: tuple[float, float, float]
    background_brightness: float
    background_tint: tuple[float, float, float]
    zoom: tuple[float, float]  # pixels of the photograph for one of the clip: object, background


def make_corpus(
    out: Path,
    clips: int = 2000,
    test: int = 500,
    seed: int = 0,
    size: int = 64,
    frames: int = 16,
    fps: float = 15.0,
    workers: int | None = None,
    **difficulty: Any,
) -> Path:
    """Renders and encodes `clips` training and `test` test clips: ``out/clips/00000.mp4`` and so on.

    Beside them: ``clips.csv``, the manifest, with a `caption` and a `narration` of each (`synthetic_words`);
    ``factors.json``, ``{path: factors}`` with every factor of a clip, its boxes (one a frame, xyxy in 0..1, or null)
    and its masks (one a frame, for `decode_mask`); ``synthetic.json``, the arguments. The same arguments give the same
    bytes whatever the number of workers. A finished folder is left as it is, a half-made one is completed.

    Args:
        size: height and width in pixels, even.
        workers: processes; None = one per core, 0 = render in this one.
        difficulty: what else a `Corpus` has: `mover_size`, `speed`, `camera`, `noise` ...

    Returns:
        The path of ``clips.csv``.

    Raises:
        TubeletError: an argument makes no sense; the folder holds something else; scikit-image or scikit-learn is
            missing.
    """
    corpus = Corpus(clips=clips, test=test, seed=seed, size=size, frames=frames, fps=fps, **difficulty)
    out, manifest = Path(out), Path(out) / "clips.csv"
    _claim(out, corpus)
    if not manifest.exists():
        rendered = _render_all(out, corpus, workers)
        shown = progress.track(rendered, "Rendering clips", clips + test, console=log.console, transient=True)
        factors = dict(shown)
        _write(out / "factors.json", json.dumps(factors, separators=(",", ":")))
        videos = []
        for index, (name, of) in enumerate(factors.items()):
            extra = {column: str(of[column]) for column in COLUMNS} | _words(index, corpus)
            videos.append(Video((out / name).resolve(), label=of["label"], split=of["split"], extra=extra))
        write_manifest(manifest, Manifest(videos))  # last: it says that the corpus is whole
    return manifest


def encode_mask(mask: NDArray[numpy.bool_]) -> list[int]:
    """Run lengths of a mask (H W, True = object) down its columns, background first, as in COCO."""
    flat = mask.ravel(order="F")
    changes = numpy.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = numpy.concatenate([[0], changes, [flat.size]])
    counts = numpy.diff(edges).tolist()
    return [0, *counts] if flat[0] else counts


def decode_mask(counts: list[int], height: int, width: int) -> NDArray[numpy.bool_]:
    """The mask (H W, True = object) that `encode_mask` wrote as `counts`."""
    flat = numpy.repeat(numpy.arange(len(counts)) % 2 == 1, counts)
    if flat.size != height * width:
        raise TubeletError(f"these run lengths cover {flat.size} pixels, not {height} x {width}")
    return flat.reshape(width, height).T  # H W


def draw_scene(corpus: Corpus, index: int) -> Scene:
    """Draws the factors of clip `index`; only the texture's split and the motion's way depend on what it is for."""
    rng = draws.generator(corpus.seed, index, "scene")
    split, row = ("train", index) if index < corpus.clips else ("test", index - corpus.clips)
    label = corpus.motions[row % len(corpus.motions)]
    speed, angle, early = rng.uniform(*corpus.speed), rng.uniform(0, 360), rng.uniform(0.25, 0.42)
    drift = corpus.drift * corpus.speed[0] * rng.uniform(-1, 1, 4)
    slide, heading = corpus.camera * rng.uniform(), rng.uniform(0, 2 * math.pi)
    compass = {"right": 0.0, "up": 90.0, "left": 180.0, "down": 270.0}
    return Scene(
        label=label,
        split=split,
        shape=str(rng.choice(SHAPES)),
        texture=str(rng.choice(TEXTURES[split])),
        background=str(rng.choice(TEXTURES[split])),
        size=rng.uniform(*corpus.mover_size),
        speed=speed,
        direction=compass.get(label, angle),
        centre=tuple(0.5 + corpus.spread * rng.uniform(-1, 1, 2)),
        orientation=rng.uniform(0, 360),
        drift=tuple(drift * [1, 1, 1, GROWTH]),
        switch={"move_then_vanish": 1 - early, "bounce": early + 0.165}.get(label, early),
        camera=tuple(slide * numpy.array([math.cos(heading), math.sin(heading)])),
        brightness=rng.uniform(*corpus.mover_brightness),
        tint=tuple(rng.uniform(0.75, 1.25, 3)),
        background_brightness=rng.uniform(*corpus.background_brightness),
        background_tint=tuple(rng.uniform(0.75, 1.25, 3)),
        zoom=tuple(rng.uniform(1, 3, 2)),
    )


class Track(NamedTuple):
    """Where an object is in each frame, in shares of the frame and degrees: T each, `centre` T 2 (x, y)."""

    centre: Floats
    size: Floats
    angle: Floats
    seen: NDArray[numpy.bool_]


def track(scene: Scene, frames: int) -> Track:
    """The object's motion, counted from the middle frame, where no class differs from another."""
    time = numpy.arange(frames) / (frames - 1)
    middle = time[frames // 2]
    since = time - middle
    drift = numpy.array(scene.drift)
    growth, turns = drift[3] * since, drift[2] * since
    centre = numpy.array(scene.centre) + drift[:2] * since[:, None]  # T 2
    seen = numpy.ones(frames, dtype=bool)
    sign = -1 if scene.label in ("recede", "turn_right") else 1
    if scene.label in ("approach", "recede"):
        growth = growth + sign * GROWTH * scene.speed * since
    elif scene.label in ("turn_left", "turn_right"):
        turns = turns + sign * scene.speed * since
    else:
        back = abs(middle - scene.switch) - abs(time - scene.switch)
        way = scene.speed * (back if scene.label == "bounce" else since)
        angle = math.radians(scene.direction)
        centre = centre + way[:, None] * [math.cos(angle), -math.sin(angle)]  # T 2
    if scene.label == "appear_then_move":
        seen = time >= min(scene.switch, middle)
    if scene.label == "move_then_vanish":
        seen = time <= max(scene.switch, middle)
    return Track(centre, scene.size * numpy.exp(growth), scene.orientation + 360 * turns, seen)


def render(
    scene: Scene, corpus: Corpus, rng: numpy.random.Generator
) -> tuple[NDArray[numpy.uint8], NDArray[numpy.bool_]]:
    """Draws a scene: the frames (T H W 3) and the object's visible part in each (T H W)."""
    side, path = corpus.size, track(scene, corpus.frames)
    video = _backgrounds(scene, corpus, rng)  # T H W 3
    masks = numpy.zeros((corpus.frames, side, side), dtype=bool)
    sprite = _sprite(scene, corpus, rng)  # S S 4
    for t in numpy.flatnonzero(path.seen):
        _paste(sprite, video[t], masks[t], path.centre[t] * side, path.size[t] * side / 2, path.angle[t])
    video += corpus.noise * rng.standard_normal(video.shape, dtype=numpy.float32)
    return (video.clip(0, 1) * 255 + 0.5).astype(numpy.uint8), masks


def _paste(
    sprite: Floats, frame: Floats, mask: NDArray[numpy.bool_], centre: Floats, radius: float, angle: float
) -> None:
    """Blends a sprite into `frame` (H W 3) at sub-pixel precision and marks where it covers most of a pixel."""
    side, reach = frame.shape[0], radius * REACH * math.sqrt(2)
    left, top = (max(0, math.floor(c - reach)) for c in centre)
    right, bottom = (min(side, math.ceil(c + reach)) for c in centre)
    if left >= right or top >= bottom:
        return
    dx = ((numpy.arange(left, right) + 0.5 - centre[0]) / radius).astype(numpy.float32)[None, :]
    dy = ((numpy.arange(top, bottom) + 0.5 - centre[1]) / radius).astype(numpy.float32)[:, None]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    scale = (sprite.shape[0] - 1) / (2 * REACH)  # canvas pixels for one radius
    right_of, below = cos * dx - sin * dy, sin * dx + cos * dy  # h w: turned back into the sprite's own axes
    texel = _bilinear(sprite, (below + REACH) * scale, (right_of + REACH) * scale)  # h w 4
    cover = (0.5 - texel[..., 3:] * radius).clip(0, 1)  # h w 1: the edge is one pixel wide whatever the size
    region = frame[top:bottom, left:right]
    region += cover * (texel[..., :3] - region)
    mask[top:bottom, left:right] = cover[..., 0] > 0.5


def _sprite(scene: Scene, corpus: Corpus, rng: numpy.random.Generator) -> Floats:
    """An object's canvas: its texture and, as a fourth channel, the distance to its outline (S S 4)."""
    pixels = math.ceil(scene.size * corpus.size * REACH * 1.25) + 1
    texture = _texture(scene.texture, pixels, scene.zoom[0] / 1.25, rng)
    texture = _adjusted(texture, scene.brightness, corpus.mover_contrast, scene.tint)
    axis = numpy.linspace(-REACH, REACH, pixels, dtype=numpy.float32)
    distance = _outline(scene.shape, axis[None, :], axis[:, None])
    return numpy.concatenate([texture, distance[..., None]], axis=2, dtype=numpy.float32)  # S S 4


def _backgrounds(scene: Scene, corpus: Corpus, rng: numpy.random.Generator) -> Floats:
    """What is behind the object in each frame: one crop of a photograph that slides past (T H W 3)."""
    side, count = corpus.size, corpus.frames
    margin = math.ceil(corpus.camera * side / 2) + 1
    crop = _texture(scene.background, side + 2 * margin, scene.zoom[1], rng)
    crop = _adjusted(crop, scene.background_brightness, corpus.background_contrast, scene.background_tint)
    since = numpy.arange(count) / (count - 1) - 0.5
    video = numpy.empty((count, side, side, 3), dtype=numpy.float32)
    for t in range(count):
        x, y = (margin - slide * side * since[t] for slide in scene.camera)
        rows, columns = math.floor(y), math.floor(x)
        part = crop[rows : rows + side + 1, columns : columns + side + 1]
        down, right = numpy.float32(y - rows), numpy.float32(x - columns)
        part = part[:-1] + down * (part[1:] - part[:-1])
        video[t] = part[:, :-1] + right * (part[:, 1:] - part[:, :-1])
    return video


def _texture(name: str, pixels: int, zoom: float, rng: numpy.random.Generator) -> Floats:
    """The most varied of four random squares of a photograph, `zoom` of its pixels for one (S S 3)."""
    pyramid = load_textures()[name]
    zoom = min(zoom, (min(pyramid[0].shape[:2]) - 2) / pixels)
    level = min(max(0, math.floor(math.log2(zoom))), len(pyramid) - 1)
    image, step = pyramid[level], zoom / 2**level
    axis = (step * numpy.arange(pixels)).astype(numpy.float32)
    room = numpy.array(image.shape[:2]) - 1 - axis[-1]
    corners = rng.uniform(0, 1, (4, 2)) * room.clip(0)
    crops = [_bilinear(image, (top + axis)[:, None], (left + axis)[None, :]) for top, left in corners]
    return max(crops, key=numpy.std)


def _adjusted(texture: Floats, mean: float, deviation: float, tint: tuple[float, float, float]) -> Floats:
    """The texture with this mean, standard deviation and tint: photographs differ too much in all of them."""
    level = (texture - texture.mean()) * (deviation / max(float(texture.std()), 1e-3)) + mean
    return (level * numpy.array(tint, dtype=numpy.float32)).clip(0, 1).astype(numpy.float32)


def _bilinear(image: Floats, y: Floats, x: Floats) -> Floats:
    """Samples `image` (H W C) at `y` and `x` (broadcast to h w); outside, its edge is repeated (h w C)."""
    height, width, channels = image.shape
    y, x = numpy.broadcast_arrays(y, x)
    top = numpy.floor(y).astype(numpy.int64).clip(0, height - 2)
    left = numpy.floor(x).astype(numpy.int64).clip(0, width - 2)
    down = (y - top).clip(0, 1).astype(numpy.float32)[..., None]  # h w 1
    right = (x - left).clip(0, 1).astype(numpy.float32)[..., None]
    flat, corner = image.reshape(-1, channels), top * width + left
    above = flat[corner] * (1 - right) + flat[corner + 1] * right  # h w C
    below = flat[corner + width] * (1 - right) + flat[corner + width + 1] * right
    return above * (1 - down) + below * down


def _outline(shape: str, x: Floats, y: Floats) -> Floats:
    """Distance to the outline of a shape within the unit circle, negative inside (x, y broadcast to S S)."""
    radius = numpy.hypot(x, y)
    match shape:
        case "disc":
            return radius - 0.92
        case "ring":
            return abs(radius - 0.66) - 0.32
        case "square":
            return numpy.maximum(abs(x), abs(y)) - 0.8
        case "triangle":
            return numpy.maximum(y, (math.sqrt(3) * abs(x) - y) / 2) - 0.5
        case "cross":
            long, short = numpy.maximum(abs(x), abs(y)), numpy.minimum(abs(x), abs(y))
            return numpy.maximum(long - 0.95, short - 0.4)
        case _:  # a star, folded onto a tenth, from a notch (radius .5, angle 0) to a tip (radius 1, 36 degrees)
            wedge = abs(numpy.mod(numpy.arctan2(y, x), math.tau / 5) - math.pi / 5)
            along, across = math.cos(math.pi / 5) - 0.5, math.sin(math.pi / 5)
            u, v = radius * numpy.cos(wedge) - 0.5, radius * numpy.sin(wedge)
            return (u * across - v * along) / math.hypot(along, across)


@cache
def load_textures() -> dict[str, Pyramid]:
    """The photographs named in `TEXTURES`, once a process; none of them needs a download.

    Raises:
        TubeletError: scikit-image or scikit-learn is missing.
    """
    try:
        import skimage.data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise TubeletError("the synthetic corpus needs photographs: pip install 'tubelet[synth]'") from error
    textures = {}
    for name in (*TEXTURES["train"], *TEXTURES["test"]):
        image = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
        image = image if image.ndim == 3 else image[..., None].repeat(3, axis=2)  # H W 3
        pyramid = [image.astype(numpy.float32) / 255]
        while min(image.shape[:2]) >= 128:
            height, width = (side // 2 for side in image.shape[:2])
            image = pyramid[-1][: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
            pyramid.append(image)
        textures[name] = pyramid
    return textures


def _encode(path: Path, video: NDArray[numpy.uint8], fps: float, wave: NDArray[numpy.float32] | None = None) -> None:
    """Writes frames (T H W 3) as H.264, and sound (S) as AAC; never half a file. One thread: the bytes repeat."""
    import av

    temporary = path.with_suffix(".part")
    with av.open(str(temporary), "w", format="mp4") as container:
        options = {"crf": "19", "preset": "veryfast", "g": "8", "bf": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    if wave is not None:
        add_sound(temporary, wave)
    temporary.replace(path)


def _render_one(index: int, out: Path, corpus: Corpus) -> Record:
    """Makes a clip's file, unless it is there, and answers its name and what ``factors.json`` says of it."""
    scene = draw_scene(corpus, index)
    video, masks = render(scene, corpus, draws.generator(corpus.seed, index, "pixels"))
    name = f"clips/{index:05d}.mp4"
    if not (out / name).exists():
        _encode(out / name, video, corpus.fps, _sound(scene, index, corpus))
    factors = {key: _rounded(value) for key, value in asdict(scene).items()}
    start = _rounded(tuple(track(scene, corpus.frames).centre[0]))
    boxes, runs = [_box(mask) for mask in masks], [encode_mask(mask) for mask in masks]
    return name, factors | {"noise": corpus.noise, "start": start, "boxes": boxes, "masks": runs}


def _sound(scene: Scene, index: int, corpus: Corpus) -> NDArray[numpy.float32] | None:
    rng = draws.generator(corpus.seed, index, "sound")
    if not corpus.sound or rng.random() < corpus.silent:
        return None
    return sound(scene, track(scene, corpus.frames), corpus.frames / corpus.fps, rng)


def _words(index: int, corpus: Corpus) -> dict[str, str]:
    """The columns of the manifest that are words."""
    scene, rng = draw_scene(corpus, index), draws.generator(corpus.seed, index, "words")
    return {"caption": caption(scene, rng), "narration": narration(scene, rng)}


def _box(mask: NDArray[numpy.bool_]) -> list[float] | None:
    """The tight box around a mask, xyxy in 0..1; None where it is empty."""
    y, x = numpy.nonzero(mask)
    if not y.size:
        return None
    height, width = mask.shape
    edges = (x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height)
    return [round(float(edge), 5) for edge in edges]


def _render_all(out: Path, corpus: Corpus, workers: int | None) -> Iterator[Record]:
    """Every clip's name and factors, in order, from this process or from several."""
    indices, render_one = range(corpus.clips + corpus.test), partial(_render_one, out=out, corpus=corpus)
    workers = min((os.cpu_count() or 1) if workers is None else workers, math.ceil(len(indices) / CHUNK))
    if workers < 2:
        yield from map(render_one, indices)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads (torch's) may hang
    with ProcessPoolExecutor(workers, spawn) as pool:
        yield from pool.map(render_one, indices, chunksize=CHUNK)


def _claim(out: Path, corpus: Corpus) -> None:
    """Makes the folder this corpus's, or complains that it is another's."""
    record = out / "synthetic.json"
    arguments = json.loads(json.dumps({**asdict(corpus), "version": VERSION}))
    later = {"sound": False, "silent": 0.0}  # arguments that a corpus made before there were any does not name
    if record.exists():
        there = later | json.loads(record.read_text(encoding="utf-8"))
        for name, value in arguments.items():
            if there.get(name) != value:
                what = f"a corpus with {name} = {there.get(name)}, not {value}"
                raise TubeletError(f"{out} holds {what}: choose another folder, or delete this one")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TubeletError(f"{out} exists and holds no synthetic corpus: choose another folder")
    (out / "clips").mkdir(parents=True, exist_ok=True)
    _write(record, json.dumps(arguments, indent=1))


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(part) for part in value]
    return round(value, 5) if isinstance(value, float) else value
