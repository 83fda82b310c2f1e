"""A run's folder, from the recipe on: who may use it, what a learner of labels is given, what values make sense."""

from pathlib import Path

import pytest

from tubelet import recipe
from tubelet.data.listing import Manifest, read_manifest, train_and_test, write_manifest
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
    assert run.train(load(corpus), tmp_path / "r").steps == 4


def test_the_number_of_workers_may_change_between_starts(corpus, tmp_path):
    run.train(load(corpus), tmp_path / "r")
    assert run.train(load(corpus, "--train.log_steps", "7"), tmp_path / "r").steps == 4


def test_a_learner_of_labels_never_sees_what_a_task_will_judge(corpus, tmp_path):
    """Without splits in the manifest both go by `train_and_test`; unlabelled videos are left out."""
    videos = read_manifest(corpus).videos
    from dataclasses import replace

    rows = [replace(video, split=None, label=None if i == 3 else video.label) for i, video in enumerate(videos)]
    write_manifest(corpus.parent / "whole.csv", Manifest(rows))
    manifest = corpus.parent / "whole.csv"
    made = recipe.load(
        "finetune", ["--data.manifest", str(manifest), "--backbone.init", "none", "--backbone.name", "vit"]
    )
    trained = {video.path for video in run.make_clips(made).manifest.videos}
    judged = {video.path for video in train_and_test(read_manifest(manifest))[1].videos}
    assert judged
    assert not trained & judged
    assert videos[3].path not in trained | judged
    assert len(trained) + len(judged) == 15


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
