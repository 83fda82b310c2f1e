import json
import os
import re
import signal

import pytest
import yaml

from moving import write_corpus
from tubelet import chain, cli, recipe
from tubelet.checkpoint import load_backbone, read_about, weights_hash
from tubelet.recipe import UsageError
from tubelet.train import run
from tubelet.types import TubeletError

CHAIN = """
# Two runs, and a third that begins with the second and looks at the first.
data: {manifest: "???", frames: 4, stride: 1, reference_fps: 8, size: 16}
backbone: {name: vit, dim: 32, depth: 2, heads: 2, patch: 4}
learner: {name: videomae, decoder_dim: 16, decoder_depth: 1, ratio: 0.5}
train: {length: 4 steps, batch: 4, workers: 0, log_steps: 1, quiet: true}
chain:
  - name: first
  - name: second
    seed: 1
    learner: {ratio: 0.25}
  - name: third
    backbone: {init: $second}
    learner: {target: teacher, teacher: $second}
    train: {length: 6 steps}
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str = CHAIN):
        path = tmp_path / "three.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> str:
    return str(write_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    """The chain, done: its file and its folder."""
    folder = tmp_path_factory.mktemp("chain")
    (folder / "three.yaml").write_text(CHAIN)
    words = ["train", str(folder / "three.yaml"), "--data.manifest", manifest, "--out", str(folder / "out")]
    assert cli.main([*words, "--second.train.length", "5 steps"]) == 0
    return folder / "three.yaml", folder / "out"


def steps(out) -> list[int]:
    return [read_about(out / name)["step"] for name in ("1-first", "2-second", "3-third")]


def test_each_link_is_a_run_and_later_ones_start_from_earlier_ones(trained):
    _, out = trained
    assert sorted(path.name for path in out.iterdir()) == ["1-first", "2-second", "3-third", "chain.yaml"]
    assert steps(out) == [4, 5, 6]
    first, second, third = (recipe.of_run(out / name) for name in ("1-first", "2-second", "3-third"))
    assert (first.learner["ratio"], second.learner["ratio"], third.learner["ratio"]) == (0.5, 0.25, 0.5)
    assert (first.seed, second.seed, third.seed) == (0, 1, 0)
    assert third.backbone["init"] == third.learner["teacher"] == str((out / "2-second").resolve())


def test_finished_links_are_passed_over(trained, manifest, capsys):
    path, out = trained
    before = {name: (out / name / "provenance.json").read_text() for name in ("1-first", "2-second", "3-third")}
    again = ["train", str(path), "--data.manifest", manifest, "--out", str(out), "--second.train.length", "5 steps"]
    assert cli.main(again) == 0
    assert capsys.readouterr().err.count("is finished") == 3
    assert {name: (out / name / "provenance.json").read_text() for name in before} == before
    assert cli.main(["train", str(out)]) == 0  # its folder says all that there is to say
    assert {name: (out / name / "provenance.json").read_text() for name in before} == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--second.train.length", "7 steps"], "2-second was begun as .* another chain: train.length is '5 steps'"),
        (["--second.train.length", "5 steps", "--seed", "3"], "1-first was begun .* seed is 0 there and 3 here"),
    ],
)
def test_a_changed_link_is_refused(trained, manifest, capsys, change, told):
    path, out = trained
    assert cli.main(["train", str(path), "--data.manifest", manifest, "--out", str(out), *change]) == 1
    assert re.search(told, capsys.readouterr().err)


def test_what_does_not_change_a_result_may_change(trained, manifest):
    path, out = trained
    words = ["--second.train.length", "5 steps", "--train.workers", "1", "--third.train.log_steps", "2"]
    assert cli.main(["train", str(path), "--data.manifest", manifest, "--out", str(out), *words]) == 0


def test_another_chain_in_the_folder_is_refused(trained, manifest, written, tmp_path):
    _, out = trained
    fewer = yaml.safe_load(CHAIN)
    fewer["chain"] = fewer["chain"][1:]
    fewer["chain"][1]["backbone"] = {}
    path = written(yaml.safe_dump(fewer))
    with pytest.raises(TubeletError, match="1-first was begun as a link of another chain: this chain has no such link"):
        chain.load(path, ["--data.manifest", manifest]).train(out)
    with pytest.raises(TubeletError, match="holds something that is not this chain"):
        chain.load(written(), ["--data.manifest", manifest]).train(out / "1-first")


def test_an_interrupted_link_goes_on_and_ends_like_one_that_was_not(trained, manifest, monkeypatch):
    path, whole = trained
    out = whole.with_name("parts")
    words = ["train", str(path), "--data.manifest", manifest, "--out", str(out), "--second.train.length", "5 steps"]
    learn = run.make_learner

    def stopping(chosen, videos):
        learner = learn(chosen, videos)
        if chosen.name.endswith("2-second"):
            after = learner.after_step
            learner.after_step = lambda now: (after(now), now.step == 3 and os.kill(os.getpid(), signal.SIGTERM))
        return learner

    monkeypatch.setattr(run, "make_learner", stopping)
    assert cli.main(words) == 75
    assert (out / "1-first" / "backbone.json").exists() and not (out / "3-third").exists()
    monkeypatch.undo()
    assert cli.main(words) == 0
    assert steps(out) == [4, 5, 6]
    provenance = json.loads((out / "2-second" / "provenance.json").read_text())
    assert [start["ended"] for start in provenance["starts"]] == ["pre-empted", "finished"]
    for name in ("1-first", "2-second", "3-third"):
        assert weights_hash(load_backbone(out / name)) == weights_hash(load_backbone(whole / name))


def test_a_preview_has_what_a_link_takes_over_and_which_link_is_meant(written):
    previews = chain.load(written()).preview()
    assert [found.name for found in previews] == ["three-1-first", "three-2-second", "three-3-third"]
    third = previews[2]
    assert third.backbone["init"] == third.learner["teacher"] == "$second"
    assert third.missing() == ["data.manifest"]
    alone = yaml.safe_load(CHAIN)
    alone["chain"][1]["backbone"] = {**alone["backbone"], "patch": 8}
    alone["chain"][0]["backbone"] = alone.pop("backbone")
    assert chain.load(written(yaml.safe_dump(alone))).preview()[2].backbone["patch"] == 8  # nobody else says it


def test_show_prints_each_run_and_a_chain_is_listed(written, capsys):
    assert cli.main(["show", str(written())]) == 0
    printed = capsys.readouterr().out
    runs = list(yaml.safe_load_all(printed))
    assert [found["name"] for found in runs] == ["three-1-first", "three-2-second", "three-3-third"]
    assert "# weights: " in printed and "# its size is known when $second is there" in printed
    assert recipe.Recipe.from_yaml(yaml.safe_dump(runs[1])).learner["ratio"] == 0.25
    assert cli.main(["train", str(written()), "--help"]) == 0
    assert "is a chain of runs: first, second, third" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chain": []}, "chain must be a list of runs"),
        ({"chain": [{"learner": {}}]}, "link 1 needs a name of letters and digits, not None"),
        ({"chain": [{"name": "data"}]}, "link 1 needs a name .* not 'data'"),
        ({"chain": [{"name": "a"}, {"name": "a"}]}, "two links are called 'a'"),
        ({"chain": [{"name": "a", "backbone": {"init": "$b"}}, {"name": "b"}]}, r"link a: \$b is no earlier link"),
        ({"chain": [{"name": "a"}, {"name": "b", "backbone": {"init": "$c"}}]}, r"\$c is no earlier link; .* are \$a"),
        ({"chain": [{"name": "a", "train": {"lenght": 3}}]}, "link a: unknown key train.lenght; did you mean"),
        ({"chain": [{"name": "a", "data": 3}]}, "link a: data must be a mapping"),
        ({"chain": [{"name": "a", "tarin": {}}]}, "link a: unknown key tarin; did you mean 'train'"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(written, change, told):
    with pytest.raises(UsageError, match=told):
        chain.load(written(yaml.safe_dump(yaml.safe_load(CHAIN) | change)))


def test_what_a_later_link_lacks_is_told_before_anything_is_trained(written, manifest, tmp_path, capsys):
    """Fails where the links before it are trained for nothing."""
    out = tmp_path / "out"
    words = ["train", str(written()), "--data.manifest", manifest, "--out", str(out), "--third.data.flow", "beside"]
    assert cli.main(words) == 1
    assert "have no flow: `tubelet data flow" in " ".join(capsys.readouterr().err.split()) and not out.exists()


def test_options_are_of_all_links_or_of_one(written):
    words = ["--train.lr", "0.5", "--second.train.lr=0.25", "--third.evaluate.knn", "50 %"]
    found = chain.load(written(), words).preview()
    assert [one.train["lr"] for one in found] == [0.5, 0.25, 0.5]
    assert [list(one.evaluate) for one in found] == [[], [], ["knn"]]
    with pytest.raises(UsageError, match=r"unknown option --learner.ratoi; did you mean --learner.ratio"):
        chain.load(written(), ["--second.learner.ratoi", "0.5"])


def test_what_is_missing_is_told_and_a_chain_is_no_recipe(written, tmp_path):
    with pytest.raises(UsageError, match="link first needs --data"):
        chain.load(written()).train(tmp_path / "out")
    with pytest.raises(UsageError, match="is a chain of runs, not one"):
        recipe.load(written())
    assert chain.find("tiny") is None
