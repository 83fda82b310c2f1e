"""A run's folder, from the recipe on: who may use it, what a learner of labels is given, what values make sense."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tubelet import recipe
from tubelet.checkpoint import load_backbone
from tubelet.data import torchcodec
from tubelet.data.clips import any_sound
from tubelet.data.division import train_and_test, train_and_validation
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.learner import Learner
from tubelet.methods.avid import Avid
from tubelet.methods.combined import Combined
from tubelet.methods.supervised import Supervised
from tubelet.train import run
from tubelet.types import TubeletError

SMALL = [
    *("--data.frames", "4", "--data.stride", "1", "--data.size", "16", "--backbone.dim", "32", "--backbone.depth", "1"),
    *("--backbone.heads", "2", "--backbone.patch", "4", "--learner.decoder_dim", "16", "--learner.decoder_heads", "1"),
    *("--train.length", "4 steps", "--train.batch", "4", "--train.workers", "0"),
]


def load(corpus: Path, *words: str) -> recipe.Recipe:
    return recipe.load("tiny", ["--data.manifest", str(corpus), *SMALL, *words])


def test_a_start_that_failed_gives_way_to_the_corrected_one(corpus, tmp_path):
    with pytest.raises(TubeletError, match="mask ratio"):
        run.train(load(corpus, "--learner.ratio", "1.5"), tmp_path / "r")
    assert run.train(load(corpus), tmp_path / "r").steps == 4
    with pytest.raises(TubeletError, match=r"learner\.ratio is 0\.75 there and 0\.5 here"):
        run.train(load(corpus, "--learner.ratio", "0.5"), tmp_path / "r")


def test_what_was_left_by_a_kill_while_claiming_does_not_matter(corpus, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".recipe.yaml.1.tmp").write_text("half a rec")
    (tmp_path / "r" / ".learner.safetensors.12.tmp").write_bytes(b"half of the weights")
    (tmp_path / "r" / ".lock").write_text("")
    assert run.train(load(corpus), tmp_path / "r").steps == 4
    assert not list((tmp_path / "r").glob(".*.tmp"))


def test_what_is_not_a_run_is_left_alone(corpus, tmp_path):
    (tmp_path / ".photo.1.tmp").write_text("half")
    (tmp_path / "photo").write_text("mine")
    with pytest.raises(TubeletError, match="holds something that is not a run"):
        run.train(load(corpus), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {".photo.1.tmp", "photo", ".lock"}


@pytest.mark.parametrize("section", ["data", "backbone", "learner", "train"])
def test_a_run_of_before_an_option_came_goes_on(corpus, tmp_path, section):
    """Fails where an option that recipe.yaml lacks counts as none instead of as the default of the code."""
    out, made = tmp_path / "r", load(corpus)
    run.train(made, out)
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    defaults = run._defaults(section, getattr(made, section))
    came_later = [name for name, value in defaults.items() if written[section][name] == value]
    assert len(came_later) > 3 and any(written[section][name] for name in came_later)
    written[section] = {name: value for name, value in written[section].items() if name not in came_later}
    (out / "recipe.yaml").write_text(yaml.safe_dump(written))
    assert run.train(made, out).steps == 4
    assert yaml.safe_load((out / "recipe.yaml").read_text()) == yaml.safe_load(made.to_yaml())


def test_another_value_than_the_default_of_a_later_option_is_another_run(corpus, tmp_path):
    out = tmp_path / "r"
    run.train(load(corpus), out)
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    del written["data"]["flip"]
    (out / "recipe.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(TubeletError, match=r"data\.flip is True there and False here"):
        run.train(load(corpus, "--data.flip", "false"), out)


def test_the_number_of_workers_may_change_between_starts(corpus, tmp_path):
    run.train(load(corpus), tmp_path / "r")
    assert run.train(load(corpus, "--train.log_steps", "7"), tmp_path / "r").steps == 4


def test_a_learner_of_labels_never_sees_what_a_task_will_judge(corpus, tmp_path):
    """Without splits in the manifest both go by `train_and_test`; unlabelled videos are left out."""
    videos = read_manifest(corpus).videos
    rows = [replace(video, split=None, label=None if i == 3 else video.label) for i, video in enumerate(videos)]
    write_manifest(corpus.parent / "whole.csv", Manifest(rows))
    manifest = corpus.parent / "whole.csv"
    made = recipe.load(
        "finetune", ["--data.manifest", str(manifest), "--backbone.init", "none", "--backbone.name", "vit"]
    )
    trained = {video.path for video in run.make_manifest(made).videos}
    judged = {video.path for video in train_and_test(read_manifest(manifest))[1].videos}
    assert judged
    assert not trained & judged
    assert videos[3].path not in trained | judged
    chosen = {video.path for video in train_and_validation(read_manifest(manifest))[1].videos}
    assert chosen and not chosen & (trained | judged)
    assert len(trained) + len(judged) + len(chosen) == 15


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--train.lr", "-1", "train.lr must be more than 0"),
        ("--train.weight_decay", "-1", "train.weight_decay must be 0 or more"),
        ("--train.clip_norm", "-1", "train.clip_norm must be 0 or more"),
        ("--train.micro_batch", "0", "train.micro_batch must be more than 0"),
        ("--train.micro_batch", "-4", "train.micro_batch must be more than 0"),
        ("--train.micro_batch", "3", "train.micro_batch \\(3\\) must divide"),
        ("--train.log_steps", "0", "train.log_steps must be more than 0"),
        ("--train.length", "0 steps", "no step at all"),
        ("--backbone.drop_path", "2", "backbone.drop_path must be in 0..1"),
        ("--backbone.patch", "0", "backbone.patch must be 1 or more"),
        ("--backbone.heads", "0", "backbone.heads must be 1 or more"),
        ("--learner.decoder_heads", "3", "decoder_heads \\(3\\) must divide"),
        ("--learner.mask", "frame", "through the mean over"),
    ],
)
def test_values_that_make_no_sense_are_refused(corpus, tmp_path, option, value, said):
    with pytest.raises(TubeletError, match=said):
        run.train(load(corpus, option, value), tmp_path / "r")
    assert not (tmp_path / "r" / "backbone.safetensors").exists()


def test_a_learner_comes_back_whole(corpus, tmp_path):
    import torch

    run.train(load(corpus), tmp_path / "r")
    learner = run.load_learner(tmp_path / "r")
    assert not learner.training
    assert learner.reconstruct(torch.rand(1, 3, 4, 16, 16)).reconstructed.shape == (1, 3, 4, 16, 16)  # type: ignore[operator]


def test_with_a_train_split_alone_a_part_of_it_is_kept_for_judging(corpus, tmp_path):
    from dataclasses import replace

    videos = [replace(v, path=v.path, split="train") for v in read_manifest(corpus).videos]
    write_manifest(corpus.parent / "alone.csv", Manifest(videos))
    listed = read_manifest(corpus.parent / "alone.csv")
    learnt, judged = train_and_test(listed)
    assert judged and not {v.path for v in learnt.videos} & {v.path for v in judged.videos}
    made = recipe.load(
        "finetune",
        ["--data.manifest", str(corpus.parent / "alone.csv"), "--backbone.init", "none", "--backbone.name", "vit"],
    )
    assert made.data["split"] == "train"
    rest, chosen = train_and_validation(listed)
    assert run.make_manifest(made).fingerprint == rest.fingerprint
    assert {v.path for v in rest.videos} | {v.path for v in chosen.videos} == {v.path for v in learnt.videos}


def test_splits_without_labels_are_not_for_judging():
    rows = [Video(Path(f"{i}.mp4"), label="ab"[i % 2], split="train" if i < 6 else "val") for i in range(10)]
    rows += [Video(Path("t.mp4"), split="test")]
    learnt, judged = train_and_test(Manifest(rows))
    assert (len(learnt), len(judged)) == (6, 4)


SIGTERM = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from tubelet import cli
sys.exit(cli.main({words!r}))
"""


def test_sigterm_to_the_whole_group_saves_and_says_how_to_go_on(corpus, tmp_path):
    """As `torchrun` and batch systems send it: the processes that decode get it too."""
    out = tmp_path / "r"
    words = ["train", "tiny", "--data.manifest", str(corpus), *SMALL, "--out", str(out)]
    words += ["--train.length", "100k steps", "--train.workers", "1", "--train.save", "every 50k steps"]
    script = tmp_path / "go.py"
    script.write_text(SIGTERM.format(path=[str(Path(run.__file__).parents[2])], words=words))
    with subprocess.Popen(
        [sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 90
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "Traceback" not in said
    assert "the same command goes on from there" in said
    assert any((out / "checkpoints").glob("step-*"))


def test_a_run_keeps_the_reader_that_was_measured_at_its_start(corpus, tmp_path, monkeypatch):
    said = []
    chosen = {"auto": "pyav", "pyav": "pyav"}
    monkeypatch.setattr(torchcodec, "chosen", lambda reader, *rest: said.append(reader) or chosen[reader])
    made = load(corpus, "--data.reader", "auto")
    run.train(made, tmp_path / "run")
    assert made.data["reader"] == "pyav" and said == ["auto"]
    assert "reader: pyav" in (tmp_path / "run/recipe.yaml").read_text()
    run.train(load(corpus, "--data.reader", "auto"), tmp_path / "run")
    assert said == ["auto", "pyav"]


def test_a_learner_that_needs_what_the_data_has_not_is_refused(corpus):
    made = load(corpus)
    manifest = run.make_manifest(made)
    learner = run.make_learner(made, manifest)
    clips = run.make_clips(made, manifest, learner)
    learner.views = 2
    with pytest.raises(TubeletError, match=r"data\.views to 2"):
        run.check(learner, clips)
    learner.modalities = ("video", "audio")
    with pytest.raises(TubeletError, match="needs audio"):
        run.check(learner, clips)


@pytest.mark.parametrize(
    ("learner", "frames", "said"),
    [
        ("order_verification", 4, r"raise data\.frames"),
        ("frame_order", 2, r"raise data\.frames"),
        ("jigsaw", 2, r"raise data\.frames"),
        ("frame_prediction", 2, r"learner\.future \(4\) must be no more than data\.frames"),
    ],
)
def test_clips_too_short_for_a_learner_are_refused_before_the_first_decode(corpus, tmp_path, learner, frames, said):
    made = recipe.load(f"tiny/{learner}", ["--data.manifest", str(corpus), "--data.frames", str(frames)])
    with pytest.raises(TubeletError, match=said):
        run.train(made, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_frames_that_files_do_not_have_are_warned_of(corpus, capfd):
    for stride, warned in ((4, False), (2, True)):
        asked = recipe.load("tiny/clip_order", ["--data.manifest", str(corpus), "--data.stride", str(stride)])
        manifest = run.make_manifest(asked)
        learner = run.make_learner(asked, manifest)
        run.check(learner, run.make_clips(asked, manifest, learner))
        said = " ".join(capfd.readouterr().err.split())
        assert ("a file of less than 30 a second shows some frames several times in a row" in said) == warned


def test_positions_stay_those_of_the_clips_that_a_network_was_trained_on(corpus, tmp_path):
    """The recipe's clip is what a position table is made for, and a longer, larger clip later gets it interpolated."""
    run.train(load(corpus), tmp_path / "a")
    first = load_backbone(tmp_path / "a")
    assert first.config["made_for"] == [4, 16, 16]
    words = ("--backbone.init", str(tmp_path / "a"), "--data.frames", "8", "--data.size", "32")
    later = load(corpus, *words)
    assert later.backbone["made_for"] is None
    assert run.make_backbone(later).config["made_for"] == [4, 16, 16]
    anew = load(corpus, *words, "--backbone.made_for", "[8, 32, 32]")
    assert run.make_backbone(anew).config["made_for"] == [8, 32, 32]


def test_a_network_of_pictures_starts_one_of_videos(corpus, tmp_path):
    run.train(load(corpus, "--data.frames", "1", "--backbone.tubelet", "1", "--backbone.background", "keep"), tmp_path)
    words = ("--backbone.init", str(tmp_path), "--backbone.tubelet", "2", "--data.frames", "4")
    video = run.make_backbone(load(corpus, *words, "--backbone.background", "keep"))
    image = load_backbone(tmp_path)
    assert video.config["made_for"] == [4, 16, 16]
    assert torch.allclose(video.embed.weight.sum(dim=2), image.embed.weight[:, :, 0])
    with pytest.raises(TubeletError, match=r"backbone\.init .* does not fit: backbone\.patch is 4 there and 8 here"):
        run.make_backbone(load(corpus, *words, "--backbone.patch", "8", "--backbone.background", "keep"))


def test_frames_between_those_that_are_seen_must_be_loaded(corpus, tmp_path):
    with pytest.raises(TubeletError, match=r"set data\.density to 2"):
        run.train(load(corpus, "--learner.target_frames", "double", "--data.density", "1"), tmp_path / "r")
    out = tmp_path / "s"
    run.train(load(corpus, "--learner.target_frames", "double"), out)
    assert yaml.safe_load((out / "recipe.yaml").read_text())["data"]["density"] == 2
    assert load_backbone(out).config["made_for"] == [4, 16, 16]


def test_a_decoder_goes_on_where_another_run_left_it(corpus, tmp_path):
    run.train(load(corpus), tmp_path / "a")
    words = ("--backbone.init", str(tmp_path / "a"), "--learner.init", str(tmp_path / "a"), "--seed", "9")
    went_on = run.make_learner(load(corpus, *words), read_manifest(corpus))
    first = run.load_learner(tmp_path / "a")
    for name, tensor in first.state_dict().items():
        assert torch.equal(went_on.state_dict()[name], tensor), name
    with pytest.raises(TubeletError, match=r"learner\.init .* does not fit: .*bias is .* there and .* here"):
        run.make_learner(load(corpus, *words, "--learner.decoder_dim", "32"), read_manifest(corpus))
    assert run.train(load(corpus, *words), tmp_path / "b").steps == 4
    assert run.load_learner(tmp_path / "b") is not None  # where it began is no part of what it is


@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_a_head_goes_on_where_another_run_left_it(corpus, tmp_path, ema):
    manifest = read_manifest(corpus)

    def load_classifier(*words: str) -> recipe.Recipe:
        plain = ("--evaluate.classify.every", "none", "--train.best", "none", "--learner.ema", ema)
        return recipe.load("finetune", ["--data.manifest", str(corpus), *SMALL[:6], *SMALL[-6:], *plain, *words])

    start = ("--backbone.init", "none", "--backbone.name", "vit", "--backbone.dim", "32", "--backbone.depth", "1",
             "--backbone.heads", "2", "--backbone.patch", "4")  # fmt: skip
    run.train(load_classifier(*start), tmp_path / "a")
    before = run.load_learner(tmp_path / "a")
    trained = before if before.ema is None else before.ema
    went_on = run.make_learner(load_classifier(*start, "--learner.init", str(tmp_path / "a"), "--seed", "9"), manifest)
    for own in filter(None, (went_on, went_on.ema)):
        assert torch.equal(own.head.weight, trained.head.weight)
        assert torch.equal(own.fc_norm.weight, trained.fc_norm.weight)
    others = Manifest([replace(video, label=f"another {video.label}") for video in manifest.videos])
    with pytest.raises(TubeletError, match="--head-map"):
        run.make_learner(load_classifier(*start, "--learner.init", str(tmp_path / "a")), others)
    with pytest.raises(TubeletError, match="is a Supervised, and the recipe has a VideoMAE"):
        run.make_learner(load(corpus, "--learner.init", str(tmp_path / "a")), manifest)


def test_a_head_of_another_number_of_classes_is_new_and_its_norm_goes_on(corpus):
    torch.manual_seed(0)
    manifest = read_manifest(corpus)
    source = Supervised(run.make_backbone(load(corpus)), 5)
    with torch.no_grad():
        source.fc_norm.weight.normal_()
    ours = Supervised(run.make_backbone(load(corpus)), len(manifest.classes))
    head = ours.head.weight.clone()
    ours.start_from(source)
    assert torch.equal(ours.fc_norm.weight, source.fc_norm.weight) and torch.equal(ours.head.weight, head)


def test_mixing_needs_two_videos_in_a_pass(corpus, tmp_path):
    words = ("--data.manifest", str(corpus), "--backbone.init", "none", "--backbone.name", "vit")
    mixed = ("--learner.mixup", "0.8", "--data.repeats", "2", "--train.batch", "8", "--train.micro_batch")
    with pytest.raises(TubeletError, match="are of one video"):
        run.check_passes(recipe.load("finetune", [*words, *mixed, "2"]), Learner())
    run.check_passes(recipe.load("finetune", [*words, *mixed, "4"]), Learner())
    run.check_passes(load(corpus, "--train.micro_batch", "1"), Learner())  # a learner that mixes nothing


def test_a_learner_that_compares_clips_is_warned_of_smaller_passes(corpus, capfd):
    learner = Learner()
    learner.compares_clips = True
    run.check_passes(load(corpus, "--train.batch", "8"), learner)
    assert "together" not in capfd.readouterr().err
    run.check_passes(load(corpus, "--train.batch", "8", "--train.micro_batch", "2"), learner)
    said = " ".join(capfd.readouterr().err.split())
    assert "takes the clips of a forward pass together, 2 with train.micro_batch" in said
    with pytest.raises(TubeletError, match=r"4 at data\.repeats 4 are of one video"):
        run.check_passes(load(corpus, "--train.batch", "4", "--data.repeats", "4"), learner)


def test_a_corpus_without_sound_is_warned_of(corpus, capfd):
    made = load(corpus, "--data.audio_rate", "4000")
    whole = run.make_manifest(made)
    silent = Manifest([video for video in whole.videos if not any_sound(Manifest([video]))], source=whole.source)
    assert 0 < len(silent) < len(whole)
    learner = Avid(run.make_backbone(made), len(whole), audio_dim=16, audio_rate=4000)
    for manifest, warned in ((whole, False), (silent, True)):
        run.check(learner, run.make_clips(made, manifest, learner))
        told = " ".join(capfd.readouterr().err.split())
        assert ("Avid learns from sound, and none was found in" in told) == warned


@pytest.mark.parametrize(("seen", "strength"), [("instead", "moco"), ("instead", "none"), ("none", "moco")])
def test_changes_of_colour_are_warned_of_where_flow_is_seen(corpus, capfd, seen, strength):
    made = load(corpus, "--data.flow", seen)
    manifest = Manifest([replace(video, flow=video.path) for video in run.make_manifest(made)])
    part = {"prototypes": 4, "dim": 8, "hidden": 16, "strength": strength}
    learner = Combined(run.make_backbone(made), {"swav": part}, len(manifest))
    run.check(learner, run.make_clips(made, manifest, learner))
    warned = "set learner.parts.swav.strength to none" in " ".join(capfd.readouterr().err.split())
    assert warned == (seen == "instead" and strength == "moco")


def test_what_a_recipe_leaves_open_is_as_the_learner_needs_it(corpus, monkeypatch):
    chosen = load(corpus)
    assert chosen.data["views"] is chosen.data["density"] is chosen.data["view_times"] is None
    learner = Learner()
    learner.views, learner.density, learner.view_times = 2, 3, "near"
    clips = run.make_clips(chosen, run.make_manifest(chosen), learner)
    assert (clips.views, clips.density, clips.view_times) == (2, 3, "near")
    assert (chosen.data["views"], chosen.data["density"]) == (2, 3)  # as it is kept by the run
    asked = load(corpus, "--data.views", "1")
    learner.backbone = run.make_backbone(asked)
    with pytest.raises(TubeletError, match=r"set data\.views to 2"):
        run.check(learner, run.make_clips(asked, run.make_manifest(asked), learner))
    asked = load(corpus, "--data.view_times", "same")
    with pytest.raises(TubeletError, match=r"set data\.view_times to near"):
        run.check(learner, run.make_clips(asked, run.make_manifest(asked), learner))
