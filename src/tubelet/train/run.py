"""A run: from a resolved recipe to a folder with a trained encoder, and back from the folder to the learner."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from tubelet import dist, registry
from tubelet.checkpoint import load_backbone, load_learner, read_about, write_atomically
from tubelet.data.clips import Clips, any_sound
from tubelet.data.division import train_and_test, train_and_validation
from tubelet.data.listing import Manifest, read_manifest
from tubelet.learner import Backbone, Learner
from tubelet.log import say, warn
from tubelet.train import lock
from tubelet.train.fit import Fitted, Judge, fit
from tubelet.train.provenance import Provenance, describe_machine
from tubelet.types import TubeletError

FREE = {("data", "root")} | {
    ("train", name)
    for name in (
        "workers", "quiet", "log_steps", "limit_s", "max_unreadable", "parallel", "save", "keep", "grace_s", "stall_s",
        "health",
    )
}  # fmt: skip
"""Settings that may change between two starts of one run: they do not change its result."""
SCHEMAS = {
    "data": registry.Place("tubelet.data.clips", "Clips"),
    "train": registry.Place("tubelet.train.fit", "fit"),
}
FOLDERS = {"backbone": "backbones", "learner": "methods"}
"""Whose arguments the options of a section are: always the same one's, or those of a registered class."""
LEFT = re.compile(r"\..+\.\d+\.tmp")
"""What a kill leaves of a file that was being written."""


class Recipe(Protocol):
    """What a run needs to know of a recipe (`tubelet.recipe.Recipe` is one)."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> MutableMapping[str, Any]: ...
    @property
    def backbone(self) -> Mapping[str, Any]: ...
    @property
    def learner(self) -> Mapping[str, Any]: ...
    @property
    def train(self) -> Mapping[str, Any]: ...
    @property
    def evaluate(self) -> Mapping[str, Any]: ...
    def to_yaml(self) -> str: ...


def train(recipe: Recipe, out: Path, judges: dict[str, tuple[str, Judge]] | None = None) -> Fitted:
    """Does what a recipe says, in the folder ``out``; when ``out`` holds a part of it, goes on from there.

    Raises:
        TubeletError: ``out`` holds another recipe's run, or is being trained in, or the parts of the recipe do not
            fit together.
    """
    dist.start()
    manifest = make_manifest(recipe)
    torch.manual_seed(recipe.seed)
    learner = make_learner(recipe, manifest)
    clips = make_clips(recipe, manifest, learner)
    check(learner, clips)
    check_passes(recipe, learner)
    about: dict[str, Any] = {"learner": {key: value for key, value in recipe.learner.items() if key != "init"}}
    if learner.needs_labels:
        about["classes"] = manifest.classes
    if "videos" in filled_in(type(learner)):
        about["videos"] = len(manifest)
    parameters = {
        "backbone": sum(p.numel() for p in learner.backbone.parameters()),
        "learner": sum(p.numel() for p in learner.parameters() if p.requires_grad),
    }
    with lock.held(out):
        settle_reader(recipe, clips, out)
        claim(recipe, out)
        say(
            f"{recipe.learner['name']} on {len(clips.manifest)} videos: {parameters['backbone'] / 1e6:.2f} M weights "
            f"in the backbone, {parameters['learner'] / 1e6:.2f} M in all, on {describe_machine()} -> {out}"
        )
        facts = {
            "seed": recipe.seed,
            "manifest": str(recipe.data["manifest"]),
            "fingerprint": clips.manifest.fingerprint,
            "parameters": parameters,
        }
        with Provenance(out, recipe.to_yaml(), recipe.train["batch"], **facts) as told:
            return fit(
                learner, clips, out, **recipe.train, seed=recipe.seed, about=about, judges=judges, reached=told.reached
            )


def settle_reader(recipe: Recipe, clips: Clips, out: Path) -> None:
    """Writes into the recipe which reader it means by "auto": measured once, by the first process, and kept by the run.

    Another reader would shrink pictures a little differently, and a resumed run would not be the same.
    """
    before = None
    if (out / "recipe.yaml").exists():
        written = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
        before = (written.get("data") or {}).get("reader")
    reader: Any = dist.from_first(lambda: clips.choose_reader(before))
    clips.reader = recipe.data["reader"] = reader


def claim(recipe: Recipe, out: Path) -> None:
    """Writes the recipe into ``out``, or makes sure that it is the one that is there. The first process decides.

    What killed starts left half written, which may be as large as the weights, is removed.
    """

    def write() -> None:
        complaint = _refusal(recipe, out)
        if complaint is not None:
            raise TubeletError(f"{complaint}. Choose another folder with --out")
        text = recipe.to_yaml()
        write_atomically(out / "recipe.yaml", lambda temporary: temporary.write_text(text, encoding="utf-8"))
        for file in out.iterdir():
            if LEFT.fullmatch(file.name):
                file.unlink(missing_ok=True)

    dist.from_first(write)


def _refusal(recipe: Recipe, out: Path) -> str | None:
    """Why ``out`` cannot hold this run. A recipe of which nothing was trained yet gives way to another."""
    path = out / "recipe.yaml"
    if path.exists() and (any(out.glob("*checkpoint.pt")) or any(out.glob("checkpoints/step-*"))):
        before, now = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(recipe.to_yaml())
        if changed := difference(before, now):
            return f"{out} holds a run of another recipe: {changed}"
    elif path.exists() and (out / "backbone.json").exists():
        return f"{out} holds weights alone, without a checkpoint to go on from"
    elif not path.exists() and out.exists() and not all(_is_nothing(file) for file in out.iterdir()):
        return f"{out} holds something that is not a run"
    return None


def _is_nothing(file: Path) -> bool:
    """Whether a file says nothing of what its folder holds: it is there before a run is, or after half of one."""
    return file.name == lock.NAME or file.name.endswith(".tmp")


def _filled_in(section: str, earlier: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an earlier recipe, and of the parts of its learner, with those that it left out."""
    filled = _defaults(section, now) | earlier
    ours, theirs = now.get("parts"), earlier.get("parts")
    if section == "learner" and isinstance(ours, dict) and isinstance(theirs, dict):
        filled["parts"] = theirs | {
            label: _filled_in(section, theirs[label], ours[label]) for label in ours.keys() & theirs.keys()
        }
    return filled


def _defaults(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe that was written before an option came means by leaving it out: the value that the code has for it.

    A new option's default is therefore what was done before there was one.
    """
    place = SCHEMAS.get(section) or registry.place(FOLDERS[section], options["name"])
    written = {}
    for name, found in inspect.signature(registry.schema(*place)).parameters.items():
        if name in options and found.default is not found.empty:
            written[name] = list(found.default) if isinstance(found.default, tuple) else found.default
    return written


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference between two resolved recipes that makes their results differ; None where there is none."""
    for section in ("seed", "data", "backbone", "learner", "train"):
        earlier = before.get(section)
        if section in now and isinstance(earlier, dict):
            earlier = _filled_in(section, earlier, now[section])
        if found := _difference(earlier, now.get(section), section):
            return found
    return None


def _difference(before: Any, now: Any, name: str) -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if (*name.split("."), key) not in FREE:
                found = _difference(before.get(key), now.get(key), f"{name}.{key}")
                if found:
                    return found
        return None
    return None if before == now else f"{name} is {before!r} there and {now!r} here"


def make_manifest(recipe: Recipe) -> Manifest:
    """The videos to train on. A learner of labels gets labelled ones only, and none that a task will judge.

    Raises:
        TubeletError: the manifest has nothing to train on, or a split is asked for that `classify` may judge.
    """
    whole = read_manifest(recipe.data["manifest"], root=recipe.data.get("root"))
    split = recipe.data.get("split")
    manifest = whole if split is None else whole.where(split)
    if registry.find("methods", recipe.learner["name"]).needs_labels:
        if split in (None, "train"):
            manifest, _ = train_and_validation(whole) if "classify" in recipe.evaluate else train_and_test(whole)
            say(f"{len(manifest)} of {len(whole)} videos are labelled and trained on; the others are kept for judging")
        elif "classify" in recipe.evaluate:
            raise TubeletError(
                f"evaluate.classify keeps videos of its own apart, which data.split {split} may hold: "
                "set data.split to train, or evaluate.classify to none"
            )
        manifest = manifest.take([row for row, label in enumerate(manifest.labels) if label >= 0])
    return manifest


def make_clips(recipe: Recipe, manifest: Manifest, learner: Learner) -> Clips:
    """The clips to train on. What the recipe leaves open is written into it, as the learner needs it."""
    for name in ("views", "view_times", "density"):
        if recipe.data.get(name) is None:
            recipe.data[name] = getattr(learner, name)
    return open_clips(recipe, manifest)


def open_clips(recipe: Recipe, manifest: Manifest) -> Clips:
    """The clips as the recipe has them.

    Raises:
        TubeletError: its options do not fit together, or the videos have not what it reads of them, such as flow.
    """
    options = {name: value for name, value in recipe.data.items() if name not in ("manifest", "root", "split")}
    return Clips(manifest, seed=recipe.seed, **options)


def make_backbone(recipe: Recipe) -> Backbone:
    """The backbone of a recipe, with random weights or those of the run that ``backbone.init`` names."""
    config = dict(recipe.backbone)
    init, name = config.pop("init", None), config.pop("name")
    if "made_for" in config and config["made_for"] is None:
        config["made_for"] = _made_for(recipe, init)
    backbone: Backbone = registry.build("backbones", name, **config)
    if init is not None:
        source = load_backbone(init)
        if type(source) is not type(backbone):
            raise TubeletError(f"backbone.init {init} is a {source.config['name']}, and the recipe has a {name}")
        try:
            backbone.start_from(source)
        except TubeletError as error:
            raise TubeletError(f"backbone.init {init} does not fit: {error}") from None
    return backbone


def _made_for(recipe: Recipe, init: str | None) -> list[int]:
    """The clip whose positions a network has: that of the run it starts from, for whatever clips it sees now."""
    clip = recipe.data
    if init is not None:
        about = read_about(init)
        if about["backbone"].get("tubelet") == recipe.backbone["tubelet"]:  # a network of pictures has no time yet
            if about["backbone"].get("made_for") is not None:
                return about["backbone"]["made_for"]
            clip = about["clip"]
    return [clip["frames"], clip["size"], clip["size"]]


def make_learner(recipe: Recipe, manifest: Manifest) -> Learner:
    """The learner of a recipe; it is told how many classes or videos the manifest has, where it asks for that.

    Its decoder or head are new, or those of the run that ``learner.init`` names.
    """
    options = dict(recipe.learner)
    name, init = options.pop("name"), options.pop("init", None)
    found = registry.find("methods", name)
    if found.needs_labels and (len(manifest.classes) < 2 or all(label < 0 for label in manifest.labels)):
        raise TubeletError(
            f"{manifest.source} has {len(manifest.classes)} classes in its `label` column, {name} needs two or more"
        )
    counts = {"classes": len(manifest.classes), "videos": len(manifest)}
    options |= {name: counts[name] for name in filled_in(found)}
    learner: Learner = found(make_backbone(recipe), **options)
    if init is not None:
        source, classes = load_learner(Path(init)), read_about(init).get("classes")
        if classes is not None and len(classes) != len(manifest.classes):
            warn(
                f"learner.init {init} has a head of {len(classes)} classes, not {len(manifest.classes)}: a new one is "
                "trained; `tubelet convert` with --head-map and --classes would choose rows of it"
            )
        elif classes is not None and classes != manifest.classes:
            raise TubeletError(
                f"learner.init {init} has a head of other classes than {manifest.source}: `tubelet convert {init} DST "
                "--to tubelet --head-map ROWS.json --classes NAMES.txt` chooses rows of it and names them"
            )
        try:
            learner.start_from(source)
        except TubeletError as error:
            raise TubeletError(f"learner.init {init} does not fit: {error}") from None
    return learner


def filled_in(learner: type[Learner]) -> list[str]:
    """The arguments of a learner that are counted in the manifest."""
    return [name for name in inspect.signature(learner).parameters if name in ("classes", "videos")]


def check(learner: Learner, clips: Clips) -> None:
    """Finds out before the first decode whether learner, backbone and clips fit together."""
    delivered = {"video": True, "audio": clips.audio_rate > 0, "text": clips.captions is not None}
    delivered["flow"] = clips.has_beside
    remedies = {"audio": "data.audio_rate, such as 16000", "text": "data.captions to the column with the words"}
    remedies["flow"] = "data.flow to beside"
    for modality in learner.modalities:
        if not delivered.get(modality):
            remedy = f": set {remedies[modality]}" if modality in remedies else ", which no loader delivers"
            raise TubeletError(f"{type(learner).__name__} needs {modality}{remedy}")
    if "audio" in learner.modalities and not any_sound(clips.manifest):
        warn(f"{type(learner).__name__} learns from sound, and none was found in {clips.manifest.source}")
    if learner.audio_rate not in (0, clips.audio_rate):
        raise TubeletError(
            f"{type(learner).__name__} is made for {learner.audio_rate} samples of sound a second, and gets "
            f"{clips.audio_rate}: set learner.audio_rate to data.audio_rate"
        )
    if clips.views != learner.views:
        raise TubeletError(
            f"{type(learner).__name__} needs {learner.views} views of each video: set data.views to {learner.views}"
        )
    if learner.view_times not in (None, clips.view_times):
        raise TubeletError(
            f"{type(learner).__name__} needs views of a video whose times are {learner.view_times}: set "
            f"data.view_times to {learner.view_times}"
        )
    if clips.density != learner.density:
        raise TubeletError(
            f"{type(learner).__name__} with these settings needs frames {learner.density} times as dense as "
            f"data.stride: set data.density to {learner.density}"
        )
    learner.check_clip(clips.frames, clips.size, clips.size)
    stride = min([clips.stride, *clips.strides.values()])
    if stride < clips.density:
        rate = clips.reference_fps * clips.density / stride
        slow = f"a file of less than {rate:g} a second" if rate else "every file"
        warn(
            f"{type(learner).__name__} takes {clips.density} frames in each data.stride of {stride}: {slow} shows some "
            f"frames several times in a row. Set data.stride to {clips.density} or more"
        )
    if "flow" in clips.clip:  # it is what the backbone sees
        for name, part in learner.named_modules(prefix="learner"):  # those of `combined` too
            if getattr(part, "strength", "none") != "none":
                warn(
                    f"{name}.strength changes colours, which with data.flow {clips.flow} are directions and lengths of "
                    f"motion: set {name}.strength to none"
                )


def check_passes(recipe: Recipe, learner: Learner) -> None:
    """Makes sure that what mixes or compares the clips of one forward pass finds enough of them there.

    Raises:
        TubeletError: they would be clips of one video alone.
    """
    repeats, share = recipe.data["repeats"], recipe.train["batch"] // dist.world_size()
    in_a_pass = recipe.train["micro_batch"] or share
    if (recipe.learner.get("mixup") or recipe.learner.get("cutmix")) and in_a_pass <= repeats:
        raise TubeletError(
            f"learner.mixup and learner.cutmix mix the clips of a forward pass, and {in_a_pass} clips at data.repeats "
            f"{repeats} are of one video: raise train.micro_batch or train.batch, or set both to 0"
        )
    together = in_a_pass * dist.world_size()
    if learner.compares_clips and together <= repeats:
        raise TubeletError(
            f"{recipe.learner['name']} takes the clips of a forward pass together, and {together} at data.repeats "
            f"{repeats} are of one video: raise train.batch or train.micro_batch"
        )
    if learner.compares_clips and in_a_pass < share:
        warn(
            f"{recipe.learner['name']} takes the clips of a forward pass together, {together} with "
            f"train.micro_batch instead of train.batch {recipe.train['batch']}: the loss is another one"
        )
