"""Tubelet's own folders: of a run, or of an exported encoder."""

from __future__ import annotations

from pathlib import Path

from tubelet import registry
from tubelet.checkpoint import read_about, save_backbone, save_weights
from tubelet.convert.load import load, refuse_empty
from tubelet.convert.neutral import Neutral, Options, fill
from tubelet.learner import Learner


def recognises(path: Path) -> bool:
    return path.is_dir() and (path / "backbone.json").is_file()


def read(path: Path, options: Options) -> Neutral:
    """The learner of a run where it is VideoMAE or a classifier, else its encoder.

    Raises:
        TubeletError: files are missing or damaged, or do not fit their description.
    """
    about = read_about(path)
    config, learner = dict(about["backbone"]), dict(about.get("learner", {}))
    module: Learner | None = None
    backbone = registry.build("backbones", config.pop("name"), **config)
    classes, notes = list(about.get("classes", [])), []
    known = learner.get("name") in ("videomae", "supervised") and (path / "learner.safetensors").is_file()
    whole = known and not options.encoder
    found = load(path / ("learner.safetensors" if whole else "backbone.safetensors"))
    averaged = {name.removeprefix("ema."): t for name, t in found.tensors.items() if name.startswith("ema.")}
    if averaged:
        found.tensors, learner["ema"] = averaged, 0.0
        notes.append("the moving average of the weights is taken, by which the run is judged")
    if whole:
        arguments = {key: value for key, value in learner.items() if key != "name"}
        count = {"classes": len(classes)} if classes else {}
        module = registry.build("methods", learner["name"], backbone=backbone, **arguments, **count)
    elif learner and not options.encoder:
        notes.append(f"the encoder alone is taken: {learner['name']} has no other form, or its weights are not there")
    refuse_empty(found.tensors, str(path), options.allow_zero)
    prefix = 0 if whole else len("backbone.")
    fill(module or backbone, found, lambda name: [name[prefix:]])
    taken_for = f"a Tubelet folder of {learner['name'] if whole else 'an encoder'}"
    return Neutral(module or backbone, learner if whole else {}, about["clip"], classes, taken_for, notes)


def write(neutral: Neutral, out: Path) -> None:
    """A folder that is used as a run: `load_backbone`, embed, evaluate, ``backbone.init``; predict or reconstruct."""
    about: dict[str, object] = {"clip": neutral.clip}
    if neutral.options:
        about["learner"] = neutral.options
    if neutral.classes:
        about["classes"] = neutral.classes
    save_backbone(out, neutral.backbone, **about)
    if isinstance(neutral.module, Learner):
        save_weights(out / "learner.safetensors", neutral.module.state_dict())
