"""The best weights beside the last: chosen by a number, whole on disk, and not forgotten by a restart."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moving import CLIP
from tubelet import checkpoint
from tubelet.backbones.vit import VisionTransformer
from tubelet.checkpoint import read_about, replace_folder, settle_folder, weights_hash
from tubelet.data.clips import Clips
from tubelet.data.listing import read_manifest
from tubelet.methods.supervised import Supervised
from tubelet.train.fit import Interrupted, fit
from tubelet.train.state import RunState
from tubelet.types import TubeletError

OPTIONS = {"batch": 4, "lr": 0.1, "precision": "float32", "workers": 0, "quiet": True, "length": "8 steps"}
NUMBERS = {2: 0.3, 4: 0.9, 6: 0.9, 8: 0.5}


def make_learner(**options) -> Supervised:
    torch.manual_seed(0)
    return Supervised(VisionTransformer("tiny", dim=16, depth=1, heads=2, patch=8), 2, **options)


def train(corpus: Path, out: Path, learner: Supervised, seen: dict[int, str], stop: int | None = None) -> None:
    def judge(judged, step):
        assert judged is learner and not judged.training
        seen[step] = weights_hash(judged.exported)
        return {"top1": NUMBERS[step]}

    if stop:
        before = learner.after_step

        def after_step(now):
            before(now)
            if now.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        learner.after_step = after_step
    fit(
        learner, Clips(read_manifest(corpus, "train"), **CLIP), out, **OPTIONS,
        judges={"classify": ("every 2 steps", judge)}, best="classify/top1", about={"classes": ["left", "right"]},
    )  # fmt: skip


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_best_and_last_are_kept_and_named(corpus, tmp_path, ema):
    seen: dict[int, str] = {}
    train(corpus, tmp_path, make_learner(ema=ema), seen)
    last, best = read_about(tmp_path), read_about(tmp_path / "best")
    assert last["step"] == 8 and "value" not in last
    assert (best["step"], best["chosen_by"], best["value"]) == (4, "classify/top1", 0.9)  # of two equal ones the first
    assert best["classes"] == ["left", "right"] and best["clip"] == CLIP
    assert best["weights"] == ("moving average" if ema else "as trained")
    assert weights_hash(checkpoint.load_backbone(tmp_path)) == seen[8]
    assert weights_hash(checkpoint.load_backbone(tmp_path / "best")) == seen[4] != seen[8]
    assert sorted(path.name for path in tmp_path.glob("*best*")) == ["best"]
    whole = make_learner(ema=ema)
    checkpoint.load_weights(whole, tmp_path / "best" / "learner.safetensors")
    assert weights_hash(whole.exported) == seen[4]


def test_weights_are_for_whoever_may_read_the_folder(corpus, tmp_path):
    before = os.umask(0o022)
    try:
        train(corpus, tmp_path, make_learner(), {})
    finally:
        os.umask(before)
    for name in ("backbone.safetensors", "learner.safetensors", "best/backbone.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644, name


def test_a_restart_does_not_forget_the_best(corpus, tmp_path):
    """Published training sets it back to 0, and then overwrites the best with what comes next."""
    seen: dict[int, str] = {}
    with pytest.raises(Interrupted):
        train(corpus, tmp_path, make_learner(), seen, stop=5)
    train(corpus, tmp_path, make_learner(), seen)
    assert sorted(seen) == [2, 4, 6, 8]
    assert read_about(tmp_path / "best")["step"] == 4
    assert weights_hash(checkpoint.load_backbone(tmp_path / "best")) == seen[4]


def test_a_judgement_that_a_kill_came_before_is_made_up_for(corpus, tmp_path):
    """The checkpoint is written first; stopped after that, the run goes on behind the step that was to be judged."""
    uninterrupted: dict[int, str] = {}
    train(corpus, tmp_path / "whole", make_learner(), uninterrupted)
    seen: dict[int, str] = {}
    with pytest.raises(Interrupted):
        train(corpus, tmp_path / "run", make_learner(), seen, stop=4)
    assert sorted(seen) == [2]  # a wish to stop comes before judging, which can take long
    again: dict[int, str] = {}
    train(corpus, tmp_path / "run", make_learner(), again)
    assert sorted(again) == [4, 6, 8] and again[4] == uninterrupted[4]
    assert read_about(tmp_path / "run" / "best")["step"] == 4
    nothing: dict[int, str] = {}
    train(corpus, tmp_path / "run", make_learner(), nothing)
    assert not nothing  # a finished run has nothing left to judge


def test_a_kill_while_the_best_is_kept_loses_nothing(corpus, tmp_path, monkeypatch):
    """What is in the log is not judged again: so the weights are kept first."""
    def killed(run, name, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunState, "keep_best", killed)
        train(corpus, tmp_path, make_learner(), {})
    seen: dict[int, str] = {}
    train(corpus, tmp_path, make_learner(), seen)
    assert sorted(seen) == [2, 4, 6, 8] and read_about(tmp_path / "best")["step"] == 4


def test_the_best_of_an_earlier_run_is_not_that_of_a_new_one(corpus, tmp_path):
    (tmp_path / "best").mkdir()
    checkpoint.save_backbone(tmp_path / "best", make_learner().backbone, value=1.0)
    train(corpus, tmp_path, make_learner(), {})
    assert read_about(tmp_path / "best")["value"] == 0.9


def test_a_number_that_nobody_gives_is_named(corpus, tmp_path):
    clips = Clips(read_manifest(corpus, "train"), **CLIP)
    with pytest.raises(TubeletError, match=r"train\.best classify/top1 is a number of no task .* evaluate\.classify"):
        fit(make_learner(), clips, tmp_path / "a", **OPTIONS, best="classify/top1")
    judges = {"classify": ("end", lambda learner, step: {"top1": 0.5, "class_mean": 0.4})}
    with pytest.raises(TubeletError, match=r"train\.best classify/top3 is not known: classify gives classify/top1"):
        fit(make_learner(), clips, tmp_path / "b", **OPTIONS, best="classify/top3", judges=judges)


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from tubelet import checkpoint
place, real = Path({place!r}), Path.replace
moves = []
def replace(self, target):
    moves.append(target)
    if len(moves) > {after}:
        os._exit(9)
    return real(self, target)
Path.replace = replace
with checkpoint.replace_folder(place) as fresh:
    (fresh / "file").write_text("new")
"""


@pytest.mark.parametrize(("after", "expected"), [(0, "old"), (1, "new"), (2, "new")])
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new_one(tmp_path, after, expected):
    place = tmp_path / "best"
    place.mkdir()
    (place / "file").write_text("old")
    path = [str(Path(checkpoint.__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", KILLED.format(path=path, place=str(place), after=after)])
    assert done.returncode == (0 if after == 2 else 9)
    settle_folder(place)
    assert (place / "file").read_text() == expected
    assert [file.name for file in tmp_path.iterdir()] == ["best"]


def test_what_fails_while_it_is_written_changes_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"), replace_folder(tmp_path / "best") as fresh:
        (fresh / "file").write_text(json.dumps({}))
        raise OSError("disk full")
    settle_folder(tmp_path / "best")
    assert not list(tmp_path.iterdir())
