from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tiny_run import make_recipe
from tubelet import recipe
from tubelet.recipe import Recipe, UsageError
from tubelet.types import TubeletError

VIT = "\nbackbone: {name: vit}"


@pytest.fixture
def written(tmp_path) -> Path:
    return make_recipe(tmp_path / "mine.yaml", tmp_path / "clips.csv", evaluate={"knn": "every 10 epochs"})


@pytest.mark.parametrize("name", ["tiny", "finetune", "v1/pretrain_k400_base_1600e", "mae_st/finetune_k400_large_50e"])
def test_a_resolved_recipe_reads_back_exactly(name, tmp_path):
    resolved = recipe.load(
        name, ["--train.lr", "1e-5", "--name", "größer: 1", "--data.scale", "[0.1, 0.30000000000000004]"]
    )
    assert resolved.data["scale"] == [0.1, 0.30000000000000004]
    assert Recipe.from_yaml(resolved.to_yaml()) == resolved
    (tmp_path / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    again = recipe.load(tmp_path / "recipe.yaml")
    assert again == resolved and again.to_yaml() == resolved.to_yaml()
    assert recipe.load(tmp_path) == resolved  # the folder of a run stands for its recipe


def test_later_words_win_and_the_rest_are_the_defaults_of_the_code(written):
    resolved = recipe.load(written, ["--learner.ratio", "0.75", "--learner.ratio=0.25", "--seed", "3"])
    assert resolved.learner == {
        "name": "videomae", "init": None, "ratio": 0.25, "mask": "tube", "decoder_dim": None, "decoder_depth": 1,
        "decoder_heads": None, "decoder_mlp": 4.0, "decoder_ratio": 0.0, "target": "pixels", "normalise": "channel",
        "target_frames": "seen", "loss": "mse", "teacher": None,
    }  # fmt: skip
    assert resolved.seed == 3 and resolved.name == "mine" and resolved.backbone["tubelet"] == 2
    assert resolved.evaluate["knn"]["every"] == "10 epochs" and resolved.evaluate["knn"]["k"] == 20


def test_values_take_the_types_of_the_code(written):
    resolved = recipe.load(
        written, ["--train.clip_norm", "1", "--backbone.dim", "null", "--learner.normalise", "none"]
    )
    assert isinstance(resolved.train["clip_norm"], float)
    assert resolved.backbone["dim"] is None and resolved.learner["normalise"] == "none"


def test_another_learner_starts_from_its_own_defaults(written):
    resolved = recipe.load(written, ["--learner.name", "supervised"])
    assert resolved.learner["name"] == "supervised" and "ratio" not in resolved.learner
    assert "classes" not in resolved.learner  # the manifest says how many


def test_tasks_can_be_added_configured_and_left_out(written):
    resolved = recipe.load(written, ["--evaluate.knn", "none", "--evaluate.linear", "end"])
    assert list(resolved.evaluate) == ["linear"] and resolved.evaluate["linear"]["every"] == "end"
    configured = recipe.load(written, ["--evaluate.knn.k", "3"]).evaluate["knn"]
    assert configured["every"] == "10 epochs" and configured["k"] == 3 and configured["temperature"] > 0
    assert recipe.load(written, ["--evaluate.knn", "every 5 %"]).evaluate["knn"]["every"] == "5 %"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learner.ratoi", "1"], "unknown option --learner.ratoi; did you mean --learner.ratio?"),
        (["--lerner.ratio", "1"], "unknown option --lerner.ratio; did you mean --learner.ratio?"),
        (["--ratio", "1"], "unknown option --ratio; did you mean --data.ratio or --learner.ratio?"),
        (["--mask", "tube"], "unknown option --mask; did you mean --learner.mask?"),
        (["--learner.zzz", "1"], "learner takes name, init, ratio, mask"),
        (["--train.micro-batch", "4"], "did you mean --train.micro_batch?"),
        (["--learner.ratio", "abc"], "--learner.ratio cannot be 'abc': expected a number"),
        (["--learner.mask", "tub"], "--learner.mask cannot be 'tub': expected one of tube, random, frame"),
        (["--train.batch", "1.5"], "--train.batch cannot be '1.5': expected a whole number"),
        (["--train.batch", "none"], "--train.batch cannot be 'none': expected a whole number"),
        (["--data.flip", "maybe"], "--data.flip cannot be 'maybe': expected true or false"),
        (["--data.scale", "[1]"], "--data.scale cannot be '[1]': expected 2 values such as"),
        (["--learner.name", "videoame"], "did you mean 'videomae'?"),
        (["--evaluate.kn", "end"], "did you mean 'knn'?"),
        (["--evaluate.knn", "sometimes"], "evaluate.knn cannot be 'sometimes': expected 'every 10 epochs'"),
        (["--learner.ratio"], "--learner.ratio needs a value"),
        (["0.5"], "unexpected argument '0.5'"),
    ],
)
def test_wrong_options_are_named_with_what_is_expected(written, words, message):
    with pytest.raises(UsageError) as caught:
        recipe.load(written, words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner: {name: videomae, ratoi: 1}" + VIT, "yaml: unknown key learner.ratoi; did you mean learner.ratio?"),
        ("leaner: {name: videomae}", "bad.yaml: unknown key leaner; did you mean 'learner'?"),
        ("learner: {name: videomae, ratio: much}" + VIT, "bad.yaml: learner.ratio cannot be 'much': expected a number"),
        ("learner: {name: videomae, mask: null}" + VIT, "learner.mask cannot be 'null': expected one of"),
        ("learner: videomae", "bad.yaml: learner must be a mapping of options, not 'videomae'"),
        ("learner: {name: videomae}", "the recipe names no backbone: give --backbone.name"),
        ("- 1", "bad.yaml is not a recipe"),
        ("a: [1", "bad.yaml, line 1: not YAML"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_named_with_file_and_key(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        recipe.load(tmp_path / "bad.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    for word, meant in (
        ("tiney", "tiny"),
        ("v1/pretrain_k400_base_1600", "v1/pretrain_k400_base_1600e"),
        ("finetune_k400_huge_50e", "v1/finetune_k400_huge_50e"),
    ):
        with pytest.raises(UsageError, match=f"no recipe is called '{word}'; did you mean '{meant}'"):
            recipe.load(word)
    with pytest.raises(UsageError, match="no recipe is called 'zzz'; `tubelet list` has those that come with Tubelet"):
        recipe.load("zzz")
    with pytest.raises(UsageError, match=r"no such recipe: some/where.yaml"):
        recipe.load("some/where.yaml")


def test_what_its_user_must_give_is_said(written):
    with pytest.raises(UsageError, match=r"tiny needs --data.manifest clips.csv"):
        recipe.load("tiny").needs()
    with pytest.raises(UsageError, match=r"--data.manifest clips.csv --backbone.init runs/NAME"):
        recipe.load("finetune").needs()
    recipe.load(written).needs()


def test_a_recipe_that_starts_from_a_run_takes_over_its_network_and_clip(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "backbone.json").write_text(
        '{"backbone": {"name": "vit", "size": "tiny", "patch": 8, "depth": 3}, "clip": {"frames": 6, "size": 48}}'
    )
    resolved = recipe.load("finetune", ["--backbone.init", str(run), "--data.frames", "8"])
    assert resolved.backbone | {"size": "tiny", "patch": 8, "depth": 3, "drop_path": 0.1} == resolved.backbone
    assert resolved.data["size"] == 48 and resolved.data["frames"] == 8
    with pytest.raises(TubeletError, match=r"backbone.init: .*nowhere does not exist"):
        recipe.load("finetune", ["--backbone.init", str(tmp_path / "nowhere")])


def test_the_split_is_left_open_where_the_manifest_has_none(tmp_path, written):
    manifest = tmp_path / "clips.csv"
    assert recipe.load(written).data["split"] == "train"  # nobody knows yet
    manifest.write_text("path\na.mp4\n")
    assert recipe.load(written).data["split"] is None
    manifest.write_text("path,split\na.mp4,train\nb.mp4,test\n")
    assert recipe.load(written).data["split"] == "train"
    assert recipe.load(written, ["--data.split", "null"]).data["split"] is None


def test_yaml_is_readable_and_only_whole_recipes_are_taken_for_resolved(written):
    resolved = recipe.load(written)
    assert "betas: [0.9, 0.95]" in resolved.to_yaml()
    assert list(yaml.safe_load(resolved.to_yaml())) == [
        "name",
        "seed",
        "data",
        "backbone",
        "learner",
        "train",
        "evaluate",
    ]
    with pytest.raises(TubeletError, match="it has no backbone, data"):
        Recipe.from_yaml("name: x\nseed: 0\n")
    assert replace(resolved, source="elsewhere") == resolved


def test_a_file_that_is_not_text_is_no_recipe(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"\x80\x02PK")
    with pytest.raises(UsageError, match=r"x\.pth is no recipe: it is not text"):
        recipe.load(tmp_path / "x.pth")


def test_without_the_task_there_is_no_best():
    words = ["--data.manifest", "clips.csv", "--backbone.init", "none", "--backbone.name", "vit"]
    assert recipe.load("finetune", words).train["best"] == "classify/top1"
    assert recipe.load("finetune", [*words, "--evaluate.classify", "none"]).train["best"] is None


@pytest.fixture
def combined(tmp_path) -> Path:
    path = make_recipe(tmp_path / "mine.yaml", tmp_path / "clips.csv", "combined")
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    written["learner"]["parts"] = {"videomae": {"ratio": 0.5}, "second": {"name": "videomae", "weight": 0.25}}
    path.write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    return path


def test_the_learners_that_a_learner_is_made_of_have_options_of_their_own(combined, tmp_path):
    resolved = recipe.load(combined, ["--learner.parts.second.ratio", "0.75", "--learner.parts.videomae.weight=2"])
    assert resolved.parts == {"videomae": "videomae", "second": "videomae"}
    first, second = resolved.learner["parts"].values()
    assert (first["name"], first["weight"], first["ratio"], first["mask"]) == ("videomae", 2.0, 0.5, "tube")
    assert (second["name"], second["weight"], second["ratio"]) == ("videomae", 0.25, 0.75)
    assert Recipe.from_yaml(resolved.to_yaml()) == resolved
    (tmp_path / "recipe.yaml").write_text(resolved.to_yaml(), encoding="utf-8")
    assert recipe.load(tmp_path) == resolved


def test_parts_are_added_left_out_and_replaced(combined):
    def parts(*words: str) -> dict:
        return recipe.load(combined, words).learner["parts"]

    assert list(parts("--learner.parts.second", "none")) == ["videomae"]
    assert list(parts("--learner.parts.swav.weight", "0.5")) == ["videomae", "second", "swav"]
    assert parts("--learner.parts.third.name", "swav")["third"]["prototypes"] == 1000
    replaced = parts("--learner.parts", "{swav: {weight: 0.5}, videomae: }", "--learner.parts.swav.dim", "64")
    assert (replaced["swav"]["weight"], replaced["swav"]["dim"]) == (0.5, 64) and replaced["videomae"]["ratio"] == 0.9
    with pytest.raises(UsageError, match=r'needs --learner.parts "\{videomae: '):
        recipe.load(combined, ["--learner.parts.second", "none", "--learner.parts.videomae", "none"]).needs()
    assert recipe.load(combined, ["--learner.name", "videomae"]).parts == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learner.parts.videomae.ratoi", "1"], "did you mean --learner.parts.videomae.ratio?"),
        (["--learner.parts.vidomae.ratio", "1"], "no method is called 'vidomae'; did you mean 'videomae'?"),
        (["--learner.parts.videomae.mask", "tub"], "--learner.parts.videomae.mask cannot be 'tub': expected one of"),
        (["--learner.parts.second.weight", "x"], "--learner.parts.second.weight cannot be 'x': expected a number"),
        (["--learner.parts", "{videomae: {ratoi: 1}}"], "did you mean --learner.parts.videomae.ratio?"),
        (["--learner.parts", "{videomae: 1}"], "--learner.parts.videomae must be a mapping of options, not 1"),
        (["--learner.parts", "videomae"], "--learner.parts cannot be 'videomae': expected learners with their weights"),
        (["--learner.parts", "{a"], "--learner.parts cannot be '{a': expected learners with their weights"),
        (["--learner.parts", "{a b: {name: swav}}"], "--learner.parts cannot have the label 'a b'"),
        (["--learner.parts.combined.weight", "1"], "learner.parts.combined is itself made of parts"),
        (["--learner.parts.swav.videos", "9"], "unknown option --learner.parts.swav.videos"),
        (["--learner.name", "videomae", "--learner.parts.swav.dim", "9"], "unknown option --learner.parts.swav.dim"),
    ],
)
def test_mistakes_in_parts_are_named_like_any_other(combined, words, message):
    with pytest.raises(UsageError) as caught:
        recipe.load(combined, words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("{videomae: {ratoi: 1}}", "bad.yaml: unknown key learner.parts.videomae.ratoi; did you mean"),
        ("{videomea: {}}", "no method is called 'videomea'; did you mean 'videomae'?"),
        ("[videomae]", "bad.yaml: learner.parts cannot be ['videomae']: expected learners with their weights"),
        ("{videomae: 2}", "bad.yaml: learner.parts.videomae must be a mapping of options, not 2"),
    ],
)
def test_mistakes_in_written_parts_too(tmp_path, parts, message):
    (tmp_path / "bad.yaml").write_text(f"learner: {{name: combined, parts: {parts}}}{VIT}", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        recipe.load(tmp_path / "bad.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)
