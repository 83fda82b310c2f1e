import json
from pathlib import Path

import pytest

from tiny_run import make_clips, make_recipe, train
from tubelet import cli
from tubelet.apply import predict as predicting
from tubelet.apply.predict import find_classifier, predict, segments
from tubelet.checkpoint import weights_hash
from tubelet.train.run import load_learner
from tubelet.types import TubeletError


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def classifier(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("supervised")
    return train(make_recipe(folder / "r.yaml", clips, "supervised"), folder / "run")


def test_segments_cover_the_video_and_the_last_takes_what_is_left():
    assert segments(10.0, 4.0) == [(0.0, 4.0), (4.0, 10.0)]
    assert segments(11.0, 4.0) == [(0.0, 4.0), (4.0, 8.0), (8.0, 11.0)]
    assert segments(0.3, 4.0) == [(0.0, 0.3)]


def test_probabilities_are_those_of_the_named_classes(classifier, clips):
    found = predict(classifier, clips.with_name("11.mp4"), top=5, segment_s=0.4)
    assert len(found.segments) == 3 and found.whole.end_s == found.segments[-1].end_s
    for segment in (found.whole, *found.segments):
        assert {name for name, _ in segment.classes} == {"class 0", "class 1"}  # there are no more than two
        assert sum(p for _, p in segment.classes) == pytest.approx(1)
        assert segment.classes[0][1] >= segment.classes[1][1]
    mean = sum(dict(segment.classes)["class 0"] for segment in found.segments) / 3
    assert dict(found.whole.classes)["class 0"] == pytest.approx(mean, abs=1e-6)


def test_a_classifier_of_segments_looks_at_the_whole_video(clips, tmp_path, monkeypatch):
    """As it was trained and is tested: one frame from the middle of each of four parts."""
    recipe = make_recipe(tmp_path / "r.yaml", clips, "supervised", data={"sampling": "segments"})
    run, asked, original = train(recipe, tmp_path / "run"), [], predicting.read
    monkeypatch.setattr(predicting, "read", lambda *words: asked.append(words[1]) or original(*words))
    found = predict(run, clips.with_name("8.mp4"))  # 16 frames of 1/15 s
    assert len(found.segments) == 1
    assert [round(float(t) * 15 - 0.5) for t in asked[0]] == [2, 6, 10, 14]


def test_how_many_segments_are_read_together_does_not_matter(classifier, clips, monkeypatch):
    together = predict(classifier, clips.with_name("11.mp4"), segment_s=0.2)
    monkeypatch.setattr(predicting, "TOGETHER", 1)
    one_by_one = predict(classifier, clips.with_name("11.mp4"), segment_s=0.2)
    for a, b in zip(together.segments, one_by_one.segments, strict=True):
        assert a[:2] == b[:2] and dict(a.classes) == pytest.approx(dict(b.classes), abs=1e-6)


def test_a_pretraining_run_uses_the_classifier_within(clips, tmp_path, capfd):
    run = train(make_recipe(tmp_path / "r.yaml", clips), tmp_path / "run")
    with pytest.raises(TubeletError, match=r"knows no classes: make a classifier with `tubelet train finetune"):
        find_classifier(run)
    small = ["--finetune.length", "1 steps", "--finetune.batch", "4", "--finetune.lrs", "[0.001]", "--workers", "0"]
    assert cli.main(["evaluate", str(run), "--tasks", "finetune", "--baseline", *small]) == 0
    assert find_classifier(run) == run / "evaluation" / "finetune-videomae" / "run"
    assert (run / "evaluation" / "finetune-scratch" / "predictions.csv").exists()
    init = [
        "--data.manifest",
        str(clips),
        "--backbone.init",
        str(run),
        "--train.length",
        "1 steps",
        "--train.workers",
        "0",
    ]
    assert cli.main(["train", "finetune", *init, "--train.batch", "4", "--out", str(run / "finetune")]) == 0
    assert find_classifier(run) == run / "finetune"
    capfd.readouterr()
    assert cli.main(["predict", str(run), str(clips.with_name("0.mp4")), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["weights_hash"] == weights_hash(load_learner(run / "finetune")) and said["step"] == 1


def test_requests_that_make_no_sense_are_refused(classifier, clips):
    with pytest.raises(TubeletError, match="top must be 1 or more"):
        predict(classifier, clips.with_name("0.mp4"), top=0)
    with pytest.raises(TubeletError, match="longer than 0 s"):
        predict(classifier, clips.with_name("0.mp4"), segment_s=0.0)
