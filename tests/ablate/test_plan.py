from collections import Counter
from dataclasses import replace
from itertools import pairwise
from shutil import copytree

import pytest
import torch

from tiny_run import make_recipe
from tubelet.ablate import tables
from tubelet.ablate.command import make_plan
from tubelet.ablate.plan import digest, listing, part, split_words
from tubelet.checkpoint import save_backbone
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.train.run import make_backbone
from tubelet.types import TubeletError


@pytest.fixture
def plan(corpus, tmp_path):
    path = make_recipe(tmp_path / "mine.yaml", corpus)

    def make(table, *words, seeds=(0,), manifests=(), init=None, tasks=("knn",)):
        return make_plan(tables.find(table), str(path), words, tmp_path / "out", seeds, tasks, None, manifests, init)

    return make


def runs(plan):
    return {(cell.row.name, cell.seed): cell.run for cell in plan.cells}


def test_equal_recipes_of_two_tables_are_one_run_and_different_ones_are_not(plan):
    """The tiny recipe has one decoder block and no whole-table settings, so these rows are its default."""
    decoder, ratio = runs(plan("decoder")), runs(plan("ratio"))
    assert decoder["1 block", 0].name == ratio["0.5", 0].name
    assert decoder["not pre-trained", 0].name == ratio["not pre-trained", 0].name
    names = [run.name for table in (decoder, ratio) for run in table.values()]
    assert len(set(names)) == len(names) - 2


def test_what_changes_no_result_changes_no_name(plan):
    usual = runs(plan("decoder"))["2 blocks", 0].name
    assert runs(plan("decoder", "--train.workers", "1", "--train.save", "end"))["2 blocks", 0].name == usual
    assert runs(plan("decoder", "--train.batch", "2"))["2 blocks", 0].name != usual
    assert runs(plan("decoder", seeds=[1]))["2 blocks", 1].name != usual


def test_other_videos_to_train_on_are_another_run_under_the_same_path_too(plan, corpus, tmp_path):
    """Fewer videos to test on are no reason to train anew."""
    copy, names = tmp_path / "copy.csv", []
    for rows in (slice(16), slice(14), slice(2, 16)):
        write_manifest(copy, read_manifest(corpus)[rows])
        listing.cache_clear()
        names.append(runs(plan("decoder", "--data.manifest", str(copy)))["1 block", 0].name)
    assert names[0] == names[1] != names[2]


def test_a_row_wins_over_the_command_line_and_the_command_line_over_the_table(plan):
    made = runs(plan("mask", "--learner.ratio", "0.6", "--backbone.background", "remove"))
    assert made["tube .9", 0].recipe.learner["ratio"] == 0.9
    assert made["tube .9", 0].recipe.backbone["background"] == "remove"
    assert runs(plan("mask"))["tube .9", 0].recipe.backbone["background"] == "keep"


def test_curves_count_steps_epochs_and_videos(plan):
    """12 training videos, batches of 4: an epoch is 3 steps."""
    long = ("--train.length", "8 epochs")
    assert [run.steps for run in runs(plan("epochs", *long)).values()] == [0, 3, 6, 12, 24]
    assert [run.epochs for run in runs(plan("epochs", *long)).values()] == [0, 1, 2, 4, 8]
    equal_steps = runs(plan("videos_steps", "--train.length", "24 steps"))
    assert [len(run.videos) for run in equal_steps.values()] == [12, 2, 3, 6, 12]
    assert [run.steps for run in equal_steps.values()] == [0, 24, 24, 24, 24]
    equal_epochs = runs(plan("videos_epochs", "--train.length", "24 steps"))
    assert [len(run.videos) for run in equal_epochs.values()] == [12, 2, 3, 6, 12]
    assert [run.steps for run in equal_epochs.values()] == [0, 3, 6, 12, 24]
    assert equal_epochs["all", 0].name == equal_steps["all", 0].name


def test_a_part_of_the_videos_is_balanced_and_lies_within_a_larger_part():
    manifest = Manifest([Video(f"{n}.mp4", label="ab"[n % 2]) for n in range(40)])
    parts = [{str(video.path) for video in part(manifest, share, seed=3).videos} for share in (0.1, 0.25, 0.5, 1)]
    assert [len(one) for one in parts] == [4, 10, 20, 40]
    assert all(small < large for small, large in pairwise(parts))
    assert Counter(video.label for video in part(manifest, 0.5, seed=3).videos) == {"a": 10, "b": 10}
    assert part(manifest, 0.5, seed=3).videos != part(manifest, 0.5, seed=4).videos


def test_images_come_first_and_their_encoder_is_where_the_row_begins(plan):
    run = runs(plan("strategy"))["images, inflated", 0]
    assert not run.trained and run.steps == 0
    assert run.first.recipe.data["frames"] == 1 and run.first.recipe.backbone["tubelet"] == 1
    assert run.recipe.data["frames"] == 4 and run.recipe.backbone["init"].endswith(run.first.name)


@pytest.fixture
def theirs(plan, tmp_path):
    """The folder of an encoder with the tiny recipe's settings and weights of a seed."""

    def make(seed, **settings):
        torch.manual_seed(seed)
        chosen = plan("decoder").load({}, 0)
        chosen = replace(chosen, backbone={**chosen.backbone, **settings})
        save_backbone(tmp_path / "theirs", make_backbone(chosen), step=1, clip=chosen.clip)
        digest.cache_clear()
        return tmp_path / "theirs"

    return make


def test_a_run_that_begins_with_another_is_named_by_its_weights_not_by_its_path(plan, theirs, tmp_path, monkeypatch):
    def name(folder):
        return runs(plan("decoder", "--backbone.init", str(folder)))["2 blocks", 0].name

    first = name(theirs(1))
    monkeypatch.chdir(tmp_path)
    copytree("theirs", "copy")
    assert name("theirs") == name("copy") == first
    assert name(theirs(2)) != first
    assert name(theirs(1)) == first


@pytest.mark.parametrize(("option", "weights"), [("init", "learner"), ("teacher", "backbone")])
def test_the_weights_that_a_learner_takes_are_part_of_the_name(option, weights, plan, theirs):
    folder = theirs(1)
    names = []
    for content in (b"some", b"other"):
        (folder / f"{weights}.safetensors").write_bytes(content)
        digest.cache_clear()
        names.append(runs(plan("decoder", f"--learner.{option}", str(folder)))["2 blocks", 0].name)
    assert names[0] != names[1]
    (folder / f"{weights}.safetensors").unlink()
    digest.cache_clear()
    with pytest.raises(TubeletError, match=rf"theirs has no {weights}\.safetensors"):
        plan("decoder", f"--learner.{option}", str(folder))


def test_an_encoder_that_does_not_fit_is_refused_before_any_work(plan, theirs, tmp_path):
    with pytest.raises(TubeletError, match="nobody does not exist; give the folder of a run"):
        plan("strategy", init=tmp_path / "nobody")
    with pytest.raises(TubeletError, match=r"theirs does not fit: backbone\.dim is 32 there and 16 here"):
        plan("strategy", init=theirs(1, dim=32))


def test_an_encoder_that_is_given_is_one_more_row(plan, theirs):
    made = plan("strategy", init=theirs(1))
    assert made.rows[-1].name == "theirs, as it is" and runs(made)["theirs, as it is", 0].trained is False


def test_the_rows_of_a_transfer_matrix_are_manifests_and_so_are_its_columns(plan, corpus, tmp_path):
    other = tmp_path / "other.csv"
    write_manifest(other, read_manifest(corpus)[:14])
    made = plan("transfer", manifests=[corpus, other])
    assert [row.name for row in made.rows] == ["not pre-trained", "clips", "other"]
    assert [judgement.column for judgement in made.judgements] == ["knn on clips", "knn on other"]
    assert len(runs(made)["other", 0].videos) == 12 and runs(made)["clips", 0].name != runs(made)["other", 0].name
    with pytest.raises(TubeletError, match="data needs --manifests"):
        plan("data")
    for table in ("data", "transfer"):
        with pytest.raises(TubeletError, match=r"no such manifest: .*nope\.csv"):
            plan(table, manifests=[corpus, tmp_path / "nope.csv"])


def test_options_of_tasks_are_told_from_those_of_the_recipe():
    words = ["--data.size", "16", "--knn.k=3", "--finetune.lrs", "[1e-2]", "--seed", "4"]
    assert split_words(words) == (["--data.size", "16", "--seed", "4"], ["--knn.k=3", "--finetune.lrs", "[1e-2]"])
