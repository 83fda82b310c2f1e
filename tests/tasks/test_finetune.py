import csv
from dataclasses import replace

import pytest
import torch

from tasks import colours
from tubelet.checkpoint import load_backbone, load_weights, read_about, weights_hash
from tubelet.methods.supervised import Supervised
from tubelet.tasks import finetune as module
from tubelet.tasks.features import views
from tubelet.tasks.finetune import FineTune, fresh, score
from tubelet.tasks.protocol import Protocol, labels_of
from tubelet.tasks.scratch import Scratch, random_start
from tubelet.train.run import load_learner
from tubelet.types import TubeletError

QUICK = {"length": "40 steps", "batch": 8, "lrs": (0.03,), "drop_path": None, "smoothing": 0.0}


@pytest.fixture
def fits(monkeypatch):
    """The folders that were trained in, with what was trained on."""
    calls = []
    fit = module.fit

    def counted(learner, clips, folder, **options):
        calls.append((folder.name, [str(v.path) for v in clips.manifest], options["length"]))
        return fit(learner, clips, folder, **options)

    monkeypatch.setattr(module, "fit", counted)
    return calls


def test_learns_and_leaves_a_run_to_predict_with(protocol, tmp_path):
    backbone = colours.backbone()
    before = weights_hash(backbone)
    result = FineTune(**QUICK)(backbone, protocol, tmp_path)
    assert result["top1"] > 0.9
    assert weights_hash(backbone) == before
    about = read_about(tmp_path / "run")
    assert about["classes"] == ["blue", "green", "red"]
    assert about["clip"] == colours.CLIP
    options = dict(about["learner"])
    assert options.pop("name") == "supervised"
    again = Supervised(load_backbone(tmp_path / "run"), **options)
    load_weights(again, tmp_path / "run" / "learner.safetensors")
    probabilities, readable = score(again, protocol.test, protocol, 1, 1)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        written = [line["prediction"] for line in csv.DictReader(file)]
    assert [about["classes"][k] for k in probabilities[readable].argmax(1)] == written


def test_views_are_averaged_as_softmax_with_one_entry_a_video(protocol):
    torch.manual_seed(0)
    learner = Supervised(colours.backbone(), 3, head_scale=300.0).eval()
    probabilities, readable = score(learner, protocol.test, protocol, 3, 2)
    assert probabilities.shape == (12, 3)
    assert readable.all()
    expected = torch.zeros(12, 3)
    with torch.no_grad():
        for batch in views(protocol.test, protocol, 3, 2).once():
            for video in batch["video"]:
                expected[batch["id"]] += learner.logits(video.float() / 255).softmax(1) / 6
    torch.testing.assert_close(probabilities, expected, atol=0.05, rtol=0)  # bf16 or float32


def test_the_rate_is_chosen_on_training_videos_then_all_are_used(protocol, tmp_path, fits):
    result = FineTune(**{**QUICK, "lrs": (1e-6, 0.03)})(colours.backbone(), protocol, tmp_path)
    assert result["lr"] == 0.03
    assert set(result["tried"]) == {"1e-06", "0.03"}
    train = {str(video.path) for video in protocol.train}
    assert [name for name, _, _ in fits] == ["lr-1e-06", "lr-0.03", "run"]
    assert all(len(paths) < 24 and set(paths) <= train for _, paths, _ in fits[:2])
    assert set(fits[2][1]) == train
    assert len({length for _, _, length in fits}) == 1  # the same number of steps each time
    assert not (tmp_path / "sweep").exists()


def test_test_labels_have_no_part_in_the_choice(protocol, tmp_path):
    task = FineTune(**{**QUICK, "length": "10 steps", "lrs": (1e-3, 0.03)})
    honest, cheated = (
        task(colours.backbone(), p, tmp_path / name) for name, p in (("a", protocol), ("b", colours.poisoned(protocol)))
    )
    assert (cheated["lr"], cheated["tried"]) == (honest["lr"], honest["tried"])


def test_the_same_call_again_trains_nothing_and_another_starts_afresh(protocol, tmp_path, fits, monkeypatch):
    task = FineTune(**{**QUICK, "length": "10 steps", "lrs": (1e-3, 0.03)})
    first, again = (task(colours.backbone(), protocol, tmp_path) for _ in range(2))
    assert [name for name, _, _ in fits] == ["lr-0.001", "lr-0.03", "run", "run"]  # the last finds itself finished
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    kept = weights_hash(load_backbone(tmp_path / "run"))
    task(colours.backbone(1), protocol, tmp_path)  # another network to start from must not find the old one's run
    assert weights_hash(load_backbone(tmp_path / "run")) != kept
    assert len(fits) == 7


def test_seeds_repeat_and_differ(protocol, tmp_path):
    task = FineTune(**{**QUICK, "length": "4 steps", "drop_path": 0.5})
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(hashes))  # the state of the program has no part in it
        task(colours.backbone(), replace(protocol, seed=seed), tmp_path / name)
        hashes.append(weights_hash(load_backbone(tmp_path / name / "run")))
    assert hashes[0] == hashes[1] != hashes[2]


def test_unreadable_test_videos_are_left_out_and_counted(broken_videos, tmp_path):
    protocol = Protocol.from_manifest(broken_videos, colours.CLIP)
    result = FineTune(**{**QUICK, "length": "2 steps"})(colours.backbone(), protocol, tmp_path)
    assert (result["videos"], result["unreadable"]) == (11, 1)
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 12


def test_scratch_keeps_nothing_of_the_backbone(protocol, tmp_path):
    trained = colours.backbone()
    torch.nn.init.constant_(trained.norm.weight, 5.0)
    a, b, c = random_start(trained, 0), random_start(trained, 0), random_start(trained, 1)
    assert weights_hash(a) == weights_hash(b) != weights_hash(c)
    assert (a.norm.weight == 1).all()
    assert a.config == trained.config
    result = Scratch(**QUICK)(trained, protocol, tmp_path)
    other = Scratch(**QUICK)(colours.backbone(3), protocol, tmp_path / "other")
    assert result["top1"] == other["top1"] > 0.5
    assert weights_hash(load_backbone(tmp_path / "run")) == weights_hash(load_backbone(tmp_path / "other" / "run"))


def test_fresh_copies_weights_and_sets_drop_path():
    backbone = colours.backbone().requires_grad_(False).eval()
    twin = fresh(backbone, 0.3)
    assert weights_hash(twin) == weights_hash(backbone)
    assert twin.config["drop_path"] == 0.3
    assert twin.training
    assert all(p.requires_grad for p in twin.parameters())
    assert fresh(backbone).config == backbone.config


def test_everything_published_can_be_asked_for(protocol, tmp_path):
    options = {"randaugment": "m7-n4-mstd0.5", "repeats": 2, "mixup": 0.8, "cutmix": 1.0, "erasing": 0.25, "ema": 0.5}
    task = FineTune(**{**QUICK, "length": "1 epochs"}, **options, sampling="segments", test_clips=2, test_crops=3)
    result = task(colours.backbone(), protocol, tmp_path)
    assert (result["steps"], result["views"]) == (24 * 2 // 8, 6)
    assert result["weights"] == "last step, moving average"
    about = read_about(tmp_path / "run")
    assert about["clip"] == {**colours.CLIP, "segments": True} and about["weights"] == "moving average"
    again = load_learner(tmp_path / "run")
    expected, _ = score(again, protocol.test, replace(protocol, clip=about["clip"]), 2, 3)
    with (tmp_path / "predictions.csv").open(encoding="utf-8") as file:
        written = [line["prediction"] for line in csv.DictReader(file)]
    assert [protocol.classes[k] for k in expected.argmax(1)] == written


def test_an_encoder_of_segments_is_tuned_in_segments(protocol, tmp_path):
    in_segments = replace(protocol, clip={**colours.CLIP, "segments": True})
    FineTune(**{**QUICK, "length": "2 steps"})(colours.backbone(), in_segments, tmp_path)
    assert read_about(tmp_path / "run")["clip"]["segments"] is True


def test_options_are_checked():
    with pytest.raises(TubeletError, match="at least one learning rate"):
        FineTune(lrs=())


def test_labels_follow_the_protocol(protocol):
    assert labels_of(protocol.test, protocol.classes).tolist() == protocol.test.labels


@pytest.mark.parametrize(("asked", "segments"), [("dense", False), ("segments", True), (None, True)])
def test_how_it_is_trained_in_time_is_how_it_is_tested(protocol, tmp_path, asked, segments):
    """Also where the encoder was trained otherwise."""
    of_segments = replace(protocol, clip={**protocol.clip, "segments": True})
    FineTune(**{**QUICK, "length": "2 steps", "sampling": asked})(colours.backbone(), of_segments, tmp_path)
    assert read_about(tmp_path / "run")["clip"].get("segments", False) == segments
