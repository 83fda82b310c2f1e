import json
from pathlib import Path

import pytest

import published
from tiny_run import make_clips, make_recipe, train
from tubelet import cli
from tubelet.checkpoint import load_backbone, weights_hash
from tubelet.convert.convert import convert
from tubelet.convert.neutral import Options
from tubelet.train.run import load_learner


def converted(folder: Path, state: published.State, names: list[str]) -> Path:
    folder.mkdir()
    (folder / "names.txt").write_text("\n".join(names))
    path = published.save(state, folder / "x.pth", args=published.SMALL)
    convert(path, folder / "ours", "tubelet", Options(heads=4, classes=str(folder / "names.txt")))
    return folder / "ours"


def judge(run: Path, manifest: Path) -> int:
    return cli.main(["evaluate", str(run), "--manifest", str(manifest), "--workers", "0"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips"))


def results_of(run: Path) -> dict:
    return json.loads((run / "evaluation" / "results.json").read_text())


def test_each_result_names_the_weights_it_judged(clips, tmp_path):
    """During training and afterwards alike; a baseline has other weights, and scratch makes its own."""
    recipe = make_recipe(tmp_path / "r.yaml", clips, evaluate={"knn": "end"})
    run = train(recipe, tmp_path / "run")
    own = weights_hash(load_backbone(run))
    assert results_of(run)["knn"]["videomae"]["weights_hash"] == own
    words = ["--tasks", "knn", "scratch", "--baseline", "--one-frame", "--seeds", "0", "1", "--workers", "0"]
    quick = ["--scratch.length", "1 steps", "--scratch.lrs", "[0.001]"]
    assert cli.main(["evaluate", str(run), *words, *quick]) == 0
    found = results_of(run)
    hashes = {variant: result["weights_hash"] for variant, result in found["knn"].items()}
    assert hashes.keys() == {"videomae", "untrained", "one-frame"} and len(set(hashes.values())) == 3
    assert hashes["videomae"] == own and found["knn"]["videomae"]["step"] == 2
    assert [seed["weights_hash"] for seed in found["knn"]["videomae"]["seeds"]] == [own, own]
    assert len({seed["weights_hash"] for seed in found["knn"]["untrained"]["seeds"]}) == 2
    assert "weights_hash" not in found["scratch"]["scratch"]


def test_a_converted_classifier_is_judged_whatever_the_order_of_its_classes(clips, tmp_path, capfd):
    state = published.classifier(classes=2)
    turned = {name: tensor.flip(0) if name.startswith("head.") else tensor for name, tensor in state.items()}
    said = []
    for folder, head, names in (("a", state, ["class 0", "class 1"]), ("b", turned, ["class 1", "class 0"])):
        run = converted(tmp_path / folder, head, names)
        assert judge(run, clips) == 0
        assert "judging the weights of a converted checkpoint on 4 videos" in " ".join(capfd.readouterr().err.split())
        results = results_of(run)["classifier"]["supervised"]
        assert results["weights_hash"] == weights_hash(load_learner(run))
        said.append((results["top1"], *sorted((run / "evaluation").rglob("predictions.csv"))))
    assert said[0][0] == said[1][0] and said[0][1].read_text() == said[1][1].read_text()


def test_classes_of_another_set_are_counted_and_the_first_is_named_with_a_remedy(clips, tmp_path, capfd):
    run = converted(tmp_path / "a", published.classifier(classes=3), ["class 0", "class 2", "class 1"])
    assert judge(run, clips) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "knows 3 classes, and" in line and "clips.csv has 2" in line and "is 'class 2', known" in line
    assert "--classes FILE" in line
