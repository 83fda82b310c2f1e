import json
from pathlib import Path

import pytest

import published
from tiny_run import make_clips
from tubelet import cli
from tubelet.convert.convert import convert
from tubelet.convert.neutral import Options


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


def test_a_converted_classifier_is_judged_whatever_the_order_of_its_classes(clips, tmp_path, capfd):
    state = published.classifier(classes=2)
    turned = {name: tensor.flip(0) if name.startswith("head.") else tensor for name, tensor in state.items()}
    said = []
    for folder, head, names in (("a", state, ["class 0", "class 1"]), ("b", turned, ["class 1", "class 0"])):
        run = converted(tmp_path / folder, head, names)
        assert judge(run, clips) == 0
        assert "judging the weights of a converted checkpoint on 4 videos" in " ".join(capfd.readouterr().err.split())
        results = json.loads((run / "evaluation" / "results.json").read_text())["classifier"]["supervised"]
        said.append((results["top1"], *sorted((run / "evaluation").rglob("predictions.csv"))))
    assert said[0][0] == said[1][0] and said[0][1].read_text() == said[1][1].read_text()


def test_classes_of_another_set_are_counted_and_the_first_is_named_with_a_remedy(clips, tmp_path, capfd):
    run = converted(tmp_path / "a", published.classifier(classes=3), ["class 0", "class 2", "class 1"])
    assert judge(run, clips) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "knows 3 classes, and" in line and "clips.csv has 2" in line and "is 'class 2', known" in line
    assert "--classes FILE" in line
