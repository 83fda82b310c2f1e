import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from moving import CLIP
from saved import newest, tensors
from tubelet import checkpoint, draws
from tubelet.backbones.vit import VisionTransformer
from tubelet.data import read
from tubelet.data.clips import Clips
from tubelet.data.listing import read_manifest
from tubelet.data.loader import Loader
from tubelet.learner import Learner
from tubelet.log import Metrics, read_metrics
from tubelet.methods.videomae import VideoMAE
from tubelet.train.fit import Interrupted, fit
from tubelet.types import Output, TubeletError

OPTIONS = {
    "length": "12 steps", "batch": 4, "lr": 0.1, "precision": "float32", "workers": 0, "quiet": True, "health": None,
}  # fmt: skip


def make_clips(corpus: Path, seed: int = 0) -> Clips:
    return Clips(read_manifest(corpus, "train"), **CLIP, seed=seed)


def make_learner(kind=VideoMAE) -> Learner:
    torch.manual_seed(0)
    return kind(
        VisionTransformer("tiny", dim=32, depth=1, heads=2, patch=4), ratio=0.5, decoder_dim=16, decoder_depth=1
    )


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(out / "metrics.jsonl")]


def test_hooks_go_through_the_training_set_in_order_and_as_it_is(corpus, tmp_path):
    """Whatever the views and the augmentation of training; the same in each epoch."""
    manifest, seen = read_manifest(corpus, "train"), []
    learner = make_learner()
    forward = learner.forward
    learner.before_step = lambda now: now.new_epoch and seen.append(list(now.ordered()))
    learner.forward = lambda batch, phase: forward({**batch, "video": batch["video"][:1]}, phase)
    clips = Clips(manifest, **CLIP, views=2, scale=(0.1, 0.2))
    fit(learner, clips, tmp_path, **OPTIONS | {"length": "2 epochs"})
    first, second = seen
    assert torch.cat([batch["id"] for batch in first]).tolist() == list(range(len(manifest)))
    plain = Loader(Clips(manifest, **CLIP, crop="center", flip=False), 4)
    for one, other, expected in zip(first, second, plain.once(), strict=True):
        assert len(one["video"]) == 1 and one["video"][0].dtype == torch.uint8
        assert torch.equal(one["video"][0], other["video"][0]) and torch.equal(one["video"][0], expected["video"][0])


def test_it_learns_and_leaves_a_usable_run(corpus, tmp_path):
    fitted = fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS | {"length": "150 steps"}, log_steps=10)
    seen = losses(tmp_path)
    assert fitted.steps == 150
    assert fitted.clips_seen == 600
    assert seen[-1] < 0.8 * seen[0]
    backbone = checkpoint.load_backbone(tmp_path)
    assert backbone(torch.rand(1, 3, 4, 16, 16)).tokens.shape == (1, 32, 32)
    assert not backbone.training
    assert checkpoint.read_about(tmp_path)["clip"] == CLIP


def test_a_run_that_learns_nothing_ends_with_an_error(corpus, tmp_path):
    """Fails where a queue that is never full makes a run of untrained weights that says that it is done."""

    class Waiting(VideoMAE):
        def forward(self, batch, phase):
            return Output(None)

    for _ in range(2):  # the finished run says so again
        with pytest.raises(TubeletError, match=r"Waiting learnt nothing, .* lower learner\.queue"):
            fit(make_learner(Waiting), make_clips(corpus), tmp_path, **OPTIONS)


def test_it_says_what_a_step_is_made_of_and_counts_videos_for_its_rate(corpus, tmp_path, capfd):
    clips = Clips(read_manifest(corpus, "train"), **CLIP, repeats=2)
    options = OPTIONS | {"quiet": False, "batch": 8, "micro_batch": 2, "length": "2 epochs", "warmup": "0 steps"}
    fitted = fit(make_learner(), clips, tmp_path, **options, log_steps=1)
    said = capfd.readouterr().err
    assert "8 clips a step = 4 videos x repeats 2 = processes 1 x micro-batch 2 x accumulation 4" in said
    assert (fitted.steps, fitted.clips_seen) == (6, 48)  # an epoch is each of 12 videos once, in 3 steps
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[0]["lr"] == pytest.approx(0.1 * 4 / 256)
    assert lines[2]["epoch"] == 1


class StopAt(VideoMAE):
    """Asks to be stopped after a step, as a person with Ctrl-C would."""

    at = 5

    def after_step(self, now):
        if now.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(corpus, tmp_path):
    whole, resumed = make_learner(), make_learner()
    options = OPTIONS | {"log_steps": 1}
    fit(whole, make_clips(corpus), tmp_path / "whole", **options)
    with pytest.raises(Interrupted, match="step 5 of 12"):
        fit(make_learner(StopAt), make_clips(corpus), tmp_path / "parts", **options)
    torch.rand(3)  # whatever else draws in between does not matter
    fit(resumed, make_clips(corpus), tmp_path / "parts", **options)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    first, second = (tensors(tmp_path / part) for part in ("whole", "parts"))
    assert first.keys() == second.keys() and any(name.endswith("exp_avg_sq") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_number_of_workers_changes_nothing(corpus, tmp_path):
    for workers in (0, 2):
        fit(
            make_learner(),
            make_clips(corpus),
            tmp_path / str(workers),
            **OPTIONS | {"workers": workers, "log_steps": 1},
        )
    assert losses(tmp_path / "0") == losses(tmp_path / "2")


def test_accumulated_micro_batches_equal_one_batch(corpus, tmp_path):
    for micro in (4, 1):
        fit(
            make_learner(),
            make_clips(corpus),
            tmp_path / str(micro),
            **OPTIONS | {"micro_batch": micro, "log_steps": 1},
        )
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), rel=1e-5)


def test_a_finished_run_is_left_as_it_is(corpus, tmp_path):
    fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*")}
    assert fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS).steps == 12
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*")}


class Poisoned(VideoMAE):
    """Gives a loss that is not a number, or a gradient that is not one, on the data of certain steps."""

    steps: tuple[int, ...] = ()
    where = "loss"

    def poison(self, clips: Clips) -> None:
        order = Loader(clips, OPTIONS["batch"])
        self.places = {draws.key(clips.seed, *order.slots(step)[0][:2], 0): step for step in range(60)}
        self.seen: list[int] = []

    def forward(self, batch, phase):
        loss = super().forward(batch, phase).loss
        assert loss is not None
        self.seen.append(self.places[int(batch["key"][0])])
        if self.seen[-1] in self.steps:
            loss = loss * math.nan if self.where == "loss" else loss + (self.mask_token - self.mask_token).sqrt().sum()
        return Output(loss)


def poisoned(clips: Clips, *steps: int, where: str = "loss") -> Poisoned:
    learner = make_learner(Poisoned)
    assert isinstance(learner, Poisoned)
    learner.steps, learner.where = steps, where
    learner.poison(clips)
    return learner


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_changes_nothing(corpus, tmp_path, where):
    """Fails when the optimiser steps all the same: then no weight is finite after step 7."""
    learner = poisoned(clips := make_clips(corpus), 7, where=where)
    weights = {}

    def remember(judged, step):
        weights[step] = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
        return {}

    judges = {"remember": ("every 1 steps", remember)}
    fitted = fit(learner, clips, tmp_path, **OPTIONS | {"log_steps": 1}, judges=judges)
    assert fitted.steps == 12 and learner.seen == list(range(12))
    assert all(torch.equal(weights[7][name], weights[8][name]) for name in weights[7])
    assert not all(torch.equal(weights[8][name], weights[9][name]) for name in weights[8])
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "lr" in line]
    assert [line["skipped"] for line in lines] == [0] * 7 + [1] * 5
    assert lines[7]["loss"] is None
    (listed,) = map(json.loads, (tmp_path / "not_finite.jsonl").read_text().splitlines())
    assert listed["flaw"] == where and len(listed["processes"][0]["paths"]) == 4


def test_several_in_a_row_go_back_to_a_checkpoint_and_pass_over_the_data(corpus, tmp_path, capsys):
    """Fails without the roll-back (the run just skips), and when the same data comes again (then it gives up)."""
    learner = poisoned(clips := make_clips(corpus), 5, 6, 7)
    fitted = fit(learner, clips, tmp_path, **OPTIONS | {"save": "every 2 steps", "log_steps": 1})
    assert fitted.steps == 12
    # The checkpoint of step 6 has one of the bad steps in it and the weights of step 5: the one before it is taken.
    assert learner.seen == [0, 1, 2, 3, 4, 5, 6, 7, *range(8, 16)]
    assert "went back to the checkpoint of step 4" in capsys.readouterr().err
    facts = newest(tmp_path).facts
    assert (facts["passed_over"], facts["skipped"], facts["in_a_row"]) == (4, 3, 0)
    assert facts["roll_backs"] == 0, "what went well since counts: trouble much later is trouble of its own"
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 13))


def test_going_back_goes_on_after_a_stop_as_if_nothing_had_been(corpus, tmp_path):
    """Fails when steps in a row, or what is passed over, are forgotten by a checkpoint."""
    options = OPTIONS | {"save": "every 2 steps", "log_steps": 1}
    whole = poisoned(clips := make_clips(corpus), 5, 6, 7)
    fit(whole, clips, tmp_path / "whole", **options)
    for stop in (6, 9):
        stopped = poisoned(clips, 5, 6, 7)
        stopped.before_step = lambda now, stop=stop: os.kill(os.getpid(), signal.SIGINT) if now.step == stop else None
        out = tmp_path / str(stop)
        with pytest.raises(Interrupted):
            fit(stopped, clips, out, **options)
        fit(poisoned(clips, 5, 6, 7), clips, out, **options)
        one, two = tensors(tmp_path / "whole"), tensors(out)
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert losses(tmp_path / "whole") == losses(out)


def test_a_kill_right_after_going_back_does_not_bring_the_bad_data_again(corpus, tmp_path):
    """Fails without went-back.json: the checkpoint that was gone back to knows nothing of it."""
    options = OPTIONS | {"save": "every 4 steps", "log_steps": 1}
    killed = poisoned(clips := make_clips(corpus), 5, 6, 7)

    def before_step(now):
        if len(killed.seen) == 8:
            raise RuntimeError("killed")

    killed.before_step = before_step
    with pytest.raises(RuntimeError, match="killed"):
        fit(killed, clips, tmp_path, **options)
    assert newest(tmp_path).facts["passed_over"] == 0
    again = poisoned(clips, 5, 6, 7)
    assert fit(again, clips, tmp_path, **options).steps == 12
    assert again.seen == list(range(8, 16))


@pytest.mark.parametrize("every", [2, 4])
def test_where_going_back_does_not_help_the_run_ends_and_nothing_is_deleted(corpus, tmp_path, every):
    """Fails when a run goes back for ever (saving among bad steps, every 2), or leaves no checkpoint behind."""
    learner = poisoned(clips := make_clips(corpus), *range(5, 90))
    options = OPTIONS | {"save": f"every {every} steps", "keep": 2}
    with pytest.raises(TubeletError, match=r"step after step, and going back 3 times did not help .*not_finite\.jsonl"):
        fit(learner, clips, tmp_path, **options)
    assert all(tensor.isfinite().all() for tensor in learner.state_dict().values())
    assert newest(tmp_path).facts["step"] == 4
    tried = len(learner.seen)
    with pytest.raises(TubeletError, match="going back 3 times"):  # the same command knows what was tried
        fit(learner, clips, tmp_path, **options)
    assert len(learner.seen) <= tried + 3


def test_a_stop_that_leaves_out_the_last_judgement_is_no_end(corpus, tmp_path):
    """Fails when the last step counts as the end of the run: no batch system would start it again."""
    judged = []

    def judge(learner, step):
        judged.append(step)
        return {"top1": 0.5}

    learner = make_learner()
    learner.after_step = lambda now: os.kill(os.getpid(), signal.SIGTERM) if now.step == 12 else None
    judges = {"knn": ("end", judge)}
    with pytest.raises(Interrupted):
        fit(learner, make_clips(corpus), tmp_path, **OPTIONS, judges=judges)
    assert not judged
    assert fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS, judges=judges).steps == 12
    assert judged == [12]


def test_a_full_disk_costs_the_best_weights_and_not_the_run(corpus, tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copy", full)
    judges = {"knn": ("every 6 steps", lambda learner, step: {"top1": 0.5})}
    assert fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS, judges=judges, best="knn/top1").steps == 12
    assert "could not be kept" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "best" in path.name]


def test_lines_of_the_log_that_found_no_room_are_written_later_or_end_the_run(corpus, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    metrics = Metrics(tmp_path / "a", tensorboard=False)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *args, **options: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        metrics.write(1, loss=1.0)
        metrics.write(2, loss=2.0)
        with pytest.raises(TubeletError, match="the last 2 lines are lost"):
            metrics.close()
    metrics.write(3, loss=3.0)
    assert losses(tmp_path / "a") == [1.0, 2.0, 3.0]


def test_what_is_not_finite_before_the_first_checkpoint_ends_the_run(corpus, tmp_path):
    with pytest.raises(TubeletError, match="there is no checkpoint to go back to"):
        fit(poisoned(clips := make_clips(corpus), *range(60)), clips, tmp_path, **OPTIONS)


def test_a_checkpoint_is_due_by_the_clock_too(corpus, tmp_path):
    """Fails where only steps count: all but the last of a run of days would be hours old."""
    learner = make_learner()
    learner.after_step = lambda now: time.sleep(0.1)
    started = time.monotonic()
    fit(learner, make_clips(corpus), tmp_path, **OPTIONS | {"save": "every 0.25 seconds", "keep": 20})
    most = (time.monotonic() - started) / 0.25 + 1  # on a machine that does other work, steps take longer
    saved = [int(place.name.removeprefix("step-")) for place in sorted((tmp_path / "checkpoints").iterdir())]
    assert saved[-1] == 12 and 2 < len(saved) <= most


def test_judging_does_not_change_the_run(corpus, tmp_path):
    def judge(backbone, step):
        torch.rand(100)
        return {"top1": step / 100}

    fit(make_learner(), make_clips(corpus), tmp_path / "a", **OPTIONS | {"log_steps": 1})
    fit(
        make_learner(), make_clips(corpus), tmp_path / "b", **OPTIONS | {"log_steps": 1},
        judges={"knn": ("every 5 steps", judge)},
    )  # fmt: skip
    lines = read_metrics(tmp_path / "b" / "metrics.jsonl")
    assert [line["loss"] for line in lines if "loss" in line] == losses(tmp_path / "a")
    assert [(line["step"], line["knn/top1"]) for line in lines if "knn/top1" in line] == [
        (5, 0.05),
        (10, 0.1),
        (12, 0.12),
    ]


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(corpus, tmp_path, capsys):
    options = OPTIONS | {"save": "every 4 steps"}
    with pytest.raises(Interrupted):
        fit(make_learner(StopAt), make_clips(corpus), tmp_path, **options)
    (file,) = newest(tmp_path).folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    assert fit(make_learner(), make_clips(corpus), tmp_path, **options).steps == 12
    shown = capsys.readouterr().err
    assert "step-000000005 is damaged" in shown
    assert "going on from" in shown
    assert "(step 4)" in shown


def test_other_data_or_settings_are_refused(corpus, tmp_path):
    fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS)
    with pytest.raises(TubeletError, match="batch 4, not 6"):
        fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS | {"batch": 6})
    fewer = Clips(read_manifest(corpus, "train").take(range(8)), **CLIP)
    with pytest.raises(TubeletError, match="data"):
        fit(make_learner(), fewer, tmp_path, **OPTIONS | {"length": "12 steps"})


def test_unreadable_videos_are_listed_and_too_many_end_the_run(corpus, tmp_path):
    videos = read_manifest(corpus, "train")
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a video")
    from dataclasses import replace

    from tubelet.data.listing import Manifest

    one = Manifest([*videos.videos, replace(videos[0], path=broken)], classes=videos.classes)
    fit(make_learner(), Clips(one, **CLIP), tmp_path / "one", **OPTIONS)
    assert "broken.mp4" in (tmp_path / "one" / "unreadable.csv").read_text()
    others = [tmp_path / f"broken{i}.mp4" for i in range(4)]
    for path in others:
        path.write_text("not a video")
    many = Manifest([*videos.videos, *(replace(videos[0], path=p) for p in others)], classes=videos.classes)
    with pytest.raises(TubeletError, match="cannot be read"):
        fit(make_learner(), Clips(many, **CLIP), tmp_path / "many", **OPTIONS | {"log_steps": 1})
    fit(make_learner(), Clips(many, **CLIP), tmp_path / "half", **OPTIONS, max_unreadable=0.5)
    assert read_metrics(tmp_path / "half" / "metrics.jsonl")[-1]["unreadable"] == 4
    with pytest.raises(TubeletError, match=r"1 of .* train\.max_unreadable is 0"):
        fit(make_learner(), Clips(one, **CLIP), tmp_path / "none", **OPTIONS, max_unreadable=0.0)


def test_a_decoder_that_hangs_costs_its_video_and_training_goes_on(corpus, tmp_path, monkeypatch):
    clips = make_clips(corpus)
    victim, real = clips.manifest[3].path, read.read
    monkeypatch.setattr(read, "read", lambda path, *rest: time.sleep(1e4) if path == victim else real(path, *rest))
    fit(make_learner(), clips, tmp_path, **OPTIONS | {"workers": 2}, limit_s=1.0)
    assert f"{victim},it took more than 1 s and was stopped" in (tmp_path / "unreadable.csv").read_text()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_is_the_same_for_any_number_of_workers_even_if_some_are_killed(corpus, tmp_path, workers):
    alone = fit(make_learner(), make_clips(corpus), tmp_path / "alone", **OPTIONS, log_steps=1)
    stop = threading.Event()

    def murder() -> None:
        for _ in range(4):
            stop.wait(0.1)
            for worker in multiprocessing.active_children()[:2]:
                worker.kill()

    killer = threading.Thread(target=murder)
    killer.start()
    try:
        many = fit(make_learner(), make_clips(corpus), tmp_path / "many", **OPTIONS | {"workers": workers}, log_steps=1)
    finally:
        stop.set()
        killer.join()
    assert losses(tmp_path / "alone") == losses(tmp_path / "many") and alone.loss == many.loss


def test_metrics_lines_are_whole(corpus, tmp_path):
    fit(make_learner(), make_clips(corpus), tmp_path, **OPTIONS | {"log_steps": 4})
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all({"epoch", "lr", "loss", "grad_norm", "clips_per_s", "waiting", "time"} <= line.keys() for line in lines)


def test_what_is_unreadable_is_counted_by_videos_not_files(corpus, tmp_path):
    from dataclasses import replace

    from tubelet.data.listing import Manifest

    videos = read_manifest(corpus, "train")
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a video")
    spans = [replace(videos[0], path=broken, start_s=float(i)) for i in range(8)]
    rows = Manifest([*videos.videos, *spans], classes=videos.classes)
    with pytest.raises(TubeletError, match="videos cannot be read"):
        fit(make_learner(), Clips(rows, **CLIP), tmp_path, **OPTIONS)
