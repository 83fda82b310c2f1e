import json
from dataclasses import replace

import numpy
import pytest
import torch
import yaml

from moving import write_clip
from tasks import colours
from tiny_run import make_recipe
from tubelet import cli, recipe
from tubelet.apply.evaluate import judges
from tubelet.checkpoint import read_about
from tubelet.data.division import train_and_test, train_and_validation
from tubelet.data.listing import Manifest, Video, read_manifest, write_manifest
from tubelet.methods.supervised import Supervised
from tubelet.tasks.classify import Classify, score
from tubelet.tasks.features import views
from tubelet.tasks.protocol import Protocol
from tubelet.train import run as runs
from tubelet.types import TubeletError


def learner(**options) -> Supervised:
    torch.manual_seed(0)
    return Supervised(colours.backbone(), 3, head_scale=300.0, **options).eval()


@pytest.mark.parametrize(("clips", "crops"), [(5, 3), (2, 3), (7, 3), (10, 3)])
def test_trap_7_official_views_are_averaged_as_softmax(clips, crops, protocol):
    """K400 5 x 3, SSv2 2 x 3, mae_st 7 x 3, HMDB51 10 x 3. The mean of logits is another number."""
    model = learner()
    few = replace(protocol, test=protocol.test.take(range(3)))
    probabilities, readable = score(model, few.test, few, clips, crops)
    softmax, logits = torch.zeros(3, 3), torch.zeros(3, 3)
    with torch.no_grad():
        for batch in views(few.test, few, clips, crops).once():
            assert len(batch["video"]) == clips * crops
            for video in batch["video"]:
                answer = model.logits(video.float() / 255)
                softmax[batch["id"]] += answer.softmax(1) / (clips * crops)
                logits[batch["id"]] += answer / (clips * crops)
    assert readable.all()
    torch.testing.assert_close(probabilities, softmax, atol=0.05, rtol=0)  # bfloat16 or float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))


def test_trap_7_videos_of_one_name_in_different_folders_stay_two(tmp_path):
    """Published fusion goes by the file's name without folder and ending, and cuts it at dots."""
    frames = numpy.zeros((8, 16, 16, 3), numpy.uint8)
    videos = []
    for folder, channel, label in (("a", 0, "red"), ("b", 2, "blue")):
        for name in ("clip.one.mp4", "clip.two.mp4"):
            (tmp_path / folder).mkdir(exist_ok=True)
            coloured = frames.copy()
            coloured[..., channel] = 250
            path = write_clip(tmp_path / folder / name, coloured)
            videos += [Video(path, label=label, split=split, group=f"{split} {path}") for split in ("train", "test")]
    protocol = Protocol.from_manifest(Manifest(videos), colours.CLIP)
    torch.manual_seed(0)
    model = Supervised(colours.backbone(), 2, head_scale=300.0).eval()
    probabilities, _ = score(model, protocol.test, protocol, 2, 3)
    assert len(probabilities) == 4
    assert not torch.allclose(probabilities[0], probabilities[2], atol=0.02)  # same name, other folder
    torch.testing.assert_close(probabilities[0], probabilities[1], atol=0.02, rtol=0)


def test_what_it_judges_is_the_average_of_the_weights(protocol, tmp_path):
    model = learner(ema=0.5)
    before, _ = score(model, protocol.test, protocol, 1, 1)
    with torch.no_grad():
        model.head.weight.mul_(-1)  # a moving average of the last steps only sees this by and by
    same, _ = score(model, protocol.test, protocol, 1, 1)
    assert torch.equal(before, same)
    model.ema.move(model.parts)
    model.ema.move(model.parts)
    moved, _ = score(model, protocol.test, protocol, 1, 1)
    assert not torch.allclose(before, moved, atol=0.05)
    result = Classify()(model, protocol, tmp_path)
    assert result["videos"] == len(protocol.test) and result["views"] == 1


def test_it_needs_classes(protocol, tmp_path):
    with pytest.raises(TubeletError, match="VisionTransformer has none"):
        Classify()(colours.backbone(), protocol, tmp_path)
    with pytest.raises(TubeletError, match=r"evaluate\.classify judges the classes"):
        judges({"classify": {"every": "end"}}, protocol.train.source, colours.CLIP, tmp_path, variant="videomae")


def listed(tmp_path, *rows: tuple[str | None, str, int]) -> Manifest:
    """`count` videos of each of two classes for each (split, group prefix, count); no files."""
    videos = [
        Video(tmp_path / f"{split}-{group}-{label}-{i}.mp4", label=label, group=f"{group}{i}", split=split)
        for split, group, count in rows
        for label in ("a", "b")
        for i in range(count)
    ]
    return Manifest(videos)


def splits(manifest: Manifest) -> set:
    return {video.split for video in manifest.videos}


def test_weights_are_chosen_on_val_where_there_is_a_test_too(tmp_path):
    manifest = listed(tmp_path, ("train", "t", 10), ("val", "v", 3), ("test", "e", 4))
    learnt, chosen = train_and_validation(manifest)
    assert (splits(learnt), splits(chosen)) == ({"train"}, {"val"})
    assert (len(learnt), len(chosen)) == (20, 6)


@pytest.mark.parametrize("rows", [(("train", "t", 10), ("test", "e", 4)), (("train", "t", 10), ("val", "v", 4)),
                                  ((None, "t", 20),)])  # fmt: skip
def test_otherwise_on_a_tenth_of_train_by_group_and_never_on_the_test_videos(tmp_path, rows):
    manifest = listed(tmp_path, *rows)
    learnt, judged = train_and_test(manifest)
    rest, chosen = train_and_validation(manifest)
    assert chosen.fingerprint == train_and_validation(manifest)[1].fingerprint
    groups = [set(part.groups) for part in (rest, chosen, judged)]
    assert not groups[0] & groups[1] and not groups[1] & groups[2]
    assert len(rest) + len(chosen) == len(learnt) and 0 < len(chosen) <= 0.2 * len(learnt)
    assert set(chosen.labels) == set(rest.labels) == {0, 1}


def test_only_where_nothing_can_be_spared_on_the_test_videos_and_that_is_said(tmp_path, capfd, colour_videos):
    whole = Manifest([replace(v, group=str(v.label)) for v in colour_videos.videos])  # a class is one group
    learnt, judged = train_and_test(whole)
    rest, chosen = train_and_validation(whole)
    assert (rest.fingerprint, chosen.fingerprint) == (learnt.fingerprint, judged.fingerprint)
    write_manifest(tmp_path / "clips.csv", whole)
    judges({"classify": {"every": "end"}}, tmp_path / "clips.csv", colours.CLIP, tmp_path, variant="supervised")
    assert "too good" in " ".join(capfd.readouterr().err.split())


@pytest.fixture
def tuned(colour_videos, tmp_path):
    """A run with everything on, by way of the command line."""
    manifest = tmp_path / "clips.csv"
    write_manifest(manifest, colour_videos)
    made = make_recipe(
        tmp_path / "r.yaml", manifest, "supervised",
        data={"sampling": "segments", "randaugment": "m7-n4-mstd0.5", "repeats": 2, "flip": False},
        train={"length": "6 steps", "batch": 8, "lr": 1.0, "best": "classify/top1"},
        evaluate={"classify": "every 2 steps"},
    )  # fmt: skip
    written = yaml.safe_load(made.read_text())
    written["learner"] |= {"mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "ema": 0.5}
    made.write_text(yaml.safe_dump(written))
    assert cli.main(["train", str(made), "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_a_run_judges_itself_and_its_best_is_used_like_any_run(tuned, tmp_path, capfd):
    logged = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["classify/top1"] for line in logged if "classify/top1" in line}
    assert sorted(values) == [2, 4, 6]
    best = read_about(tuned / "best")
    assert best["value"] == max(values.values()) == values[best["step"]]
    assert best["clip"]["segments"] is True and best["weights"] == "moving average"
    trained = runs.make_manifest(recipe.of_run(tuned))
    kept = train_and_validation(read_manifest(tmp_path / "clips.csv"))[1]
    assert not {v.path for v in trained.videos} & {v.path for v in kept.videos}

    for folder, word in ((tuned, "the last step (6)"), (tuned / "best", f"step {best['step']}, the best by classify")):
        assert cli.main(["evaluate", str(folder), "--test-clips", "2", "--test-crops", "3", "--workers", "0"]) == 0
        assert f"judging the weights of {word}" in " ".join(capfd.readouterr().err.split())
        result = json.loads((folder / "evaluation" / "results.json").read_text())["classifier"]["supervised"]
        assert result["weights"].startswith(word) and result["videos"] == 12 and result["views"] == 6
    video = str(kept.videos[0].path)
    assert cli.main(["predict", str(tuned / "best"), video]) == 0
    assert cli.main(["embed", str(tuned / "best"), str(tmp_path / "clips.csv"), "-o", str(tmp_path / "e.npz")]) == 0
    assert cli.main(["train", str(tuned / "best")]) == 1
    assert "holds weights alone" in capfd.readouterr().err
    assert cli.main(["evaluate", str(tuned), "--tasks", "classify"]) == 1
    assert "without --tasks" in capfd.readouterr().err


def test_another_split_to_train_on_is_refused(tuned, tmp_path, capfd):
    assert cli.main(["train", str(tmp_path / "r.yaml"), "--data.split", "test", "--out", str(tmp_path / "x")]) == 1
    assert "keeps videos of its own apart" in capfd.readouterr().err
