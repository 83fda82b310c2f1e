import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moving import CLIP
from processes import run_processes
from tubelet import dist
from tubelet.backbones.vit import VisionTransformer
from tubelet.data.clips import Clips
from tubelet.data.listing import Manifest, read_manifest
from tubelet.learner import Learner
from tubelet.log import read_metrics
from tubelet.methods.supervised import Supervised
from tubelet.methods.videomae import VideoMAE
from tubelet.metrics.representation import consistency, dead_share, effective_rank
from tubelet.train.fit import fit
from tubelet.train.health import Health
from tubelet.train.parallel import distribute
from tubelet.train.verdict import verdict
from tubelet.types import Batch, Output


def make_backbone() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer("tiny", dim=32, depth=1, heads=2, patch=4)


def make_learner() -> VideoMAE:
    return VideoMAE(make_backbone(), ratio=0.5, decoder_dim=16, decoder_depth=1)


def make_health(clips: Clips, **options) -> Health:
    return Health(clips, 0, **{"precision": "float32", "workers": 0} | options)


@pytest.fixture
def clips(corpus: Path) -> Clips:
    return Clips(read_manifest(corpus, "train"), **CLIP)


def test_it_is_what_each_clip_says_by_itself(clips):
    """The slow twin: one clip after the other, without loader, process or piece."""
    learner = make_learner().eval()
    health = make_health(clips)
    chosen = Clips(health.loader.clips.manifest, **CLIP, crop="center", flip=False, views=2)
    first, second, apart = [], [], []
    with torch.no_grad():
        for row in range(8):
            one, other = chosen[row].times[0]
            apart.append(not (one == other).all())
            for view, embedded in enumerate((first, second)):
                pixels = chosen[row].clips[0][view].pixels.transpose(0, 1)[None].float() / 255  # 1 C T H W
                embedded.append(learner.embed({"video": [pixels]})[0])
    first, second = torch.stack(first), torch.stack(second)
    found = health.examine(learner)
    both = torch.cat([first, second])
    assert 2 <= sum(apart) < 8  # two clips at the same time say nothing
    expected = {"effective_rank": effective_rank(both), "dead": dead_share(both)}
    expected |= consistency(first[apart], second[apart])
    assert found.keys() == {"loss", "spread", *expected}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_videos_no_longer_than_a_clip_say_nothing_of_consistency(corpus):
    """Fails when they do: the two clips are one, and every encoder is perfectly consistent."""
    found = make_health(Clips(read_manifest(corpus, "train"), **CLIP | {"frames": 8})).examine(make_learner().eval())
    assert "spread" in found and not {"same", "other", "nearest"} & found.keys()


class Careless(VideoMAE):
    """Draws from torch's generator, counts its batches in a buffer and keeps a part that is never trained."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("batches", torch.zeros(()))
        self.still = nn.Dropout(0.5).eval()

    def forward(self, batch: Batch, phase: str) -> Output:
        self.batches += 1
        loss = super().forward(batch, phase).loss
        assert loss is not None
        return Output(loss * (1 + torch.rand(())))


def test_it_leaves_everything_as_it_was_and_says_the_same_again(clips):
    learner = Careless(make_backbone(), ratio=0.5, decoder_dim=16, decoder_depth=1).train()
    learner.still.eval()
    before, random = copy.deepcopy(learner.state_dict()), torch.get_rng_state()
    health = make_health(clips)
    found = health.examine(learner)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert learner.training and learner.backbone.training and not learner.still.training
    assert all(p.grad is None for p in learner.parameters())
    torch.rand(5)
    assert health.examine(learner) == found == make_health(clips).examine(learner)


def test_clips_too_large_to_keep_are_read_again(clips, monkeypatch):
    learner, kept = make_learner(), make_health(clips).examine(make_learner())
    monkeypatch.setattr("tubelet.train.health._KEPT_BYTES", 0)
    health = make_health(clips)
    assert health.examine(learner) == health.examine(learner) == kept
    assert not health.kept


def test_another_seed_looks_at_other_videos(clips):
    assert make_health(clips).rows.tolist() != Health(clips, 1, workers=0).rows.tolist()
    assert len(make_health(clips, videos=3).rows) == 3
    assert len(make_health(clips).rows) == 8  # of 12: whole pieces


class Asks(Learner):
    """Notes what it is given."""

    def __init__(self, views: int, density: int) -> None:
        super().__init__()
        self.views, self.density, self.seen = views, density, []
        self.backbone = make_backbone()

    def embed(self, batch: Batch) -> Tensor:
        self.seen.append(("embed", [tuple(video.shape) for video in batch["video"]], batch["id"].tolist()))
        return batch["video"][0].flatten(1)[:, :6]

    def forward(self, batch: Batch, phase: str) -> Output:
        self.seen.append((phase, [tuple(video.shape) for video in batch["video"]], batch["id"].tolist()))
        return Output(None if phase == "generator" else batch["video"][0].mean(), {})


@pytest.mark.parametrize(("views", "density"), [(1, 1), (3, 1), (1, 2)])
def test_learners_get_the_views_and_frames_that_they_need_and_the_numbers_of_training(corpus, views, density):
    clips = Clips(read_manifest(corpus, "train"), **CLIP, views=views, density=density, repeats=2, randaugment="m7-n4")
    learner, health = Asks(views, density), make_health(clips)
    learner.phases = ("critic", "generator")
    found = health.examine(learner)
    rows, shape, dense = health.rows.tolist(), (8, 3, 4, 16, 16), (8, 3, 4 * density, 16, 16)
    assert learner.seen == [
        ("embed", [shape], rows), ("embed", [shape], rows), ("critic", [dense] * views, rows),
        ("generator", [dense] * views, rows),
    ]  # fmt: skip
    assert "loss_critic" in found and not {"loss_generator", "loss"} & found.keys()


def test_a_learner_of_labels_is_looked_at_too(clips):
    learner = Supervised(make_backbone(), classes=2, ema=0.9, mixup=0.8)
    assert {"effective_rank", "loss"} <= make_health(clips).examine(learner).keys()


@pytest.fixture
def broken(clips, tmp_path) -> Manifest:
    """The videos, every other of which is none."""
    (tmp_path / "broken.mp4").write_text("not a video")
    rows = [replace(v, path=tmp_path / "broken.mp4") if i % 2 else v for i, v in enumerate(clips.manifest.videos)]
    return Manifest(rows, classes=clips.manifest.classes)


def test_what_cannot_be_read_is_left_out(clips, broken):
    half = make_health(Clips(broken, **CLIP)).examine(make_learner())
    assert half.keys() == make_health(clips).examine(make_learner()).keys()
    one = make_health(Clips(broken.take([0, 1]), **CLIP)).examine(make_learner())
    assert one.keys() == {"loss"}  # one video cannot be compared with any other
    assert make_health(Clips(broken.take([1, 3]), **CLIP)).examine(make_learner()) == {}


def test_embeddings_that_are_not_finite_are_said(clips):
    learner = make_learner()
    nn.init.constant_(learner.backbone.norm.bias, float("inf"))
    found = make_health(clips).examine(learner)
    assert found["finite"] == 0 and "effective_rank" not in found


def examine_twice(corpus: Path, rows: int, parallel: Literal["replicated", "sharded"]) -> list[dict[str, float]]:
    """In each process; then a step as in training, to see that the learner still can."""
    dist.start()
    torch.set_num_threads(1)
    learner = Careless(make_backbone(), ratio=0.5, decoder_dim=16, decoder_depth=1).train()
    model = distribute(learner, dist.device(), parallel)
    clips = Clips(read_manifest(corpus, "train").take([row % 12 for row in range(rows)]), **CLIP)
    health = make_health(clips, videos=rows)
    found = [health.examine(learner), health.examine(learner)]
    output = model({"video": [torch.rand(2, 3, 4, 16, 16)], "key": torch.arange(2)}, "main")
    output.loss.backward()
    assert all(p.grad is not None for p in learner.parameters())
    dist.stop()
    return found


@pytest.mark.parametrize(("rows", "world", "parallel"), [(24, 2, "sharded"), (7, 3, "replicated")])
def test_several_processes_say_what_one_says(corpus, rows, world, parallel):
    """24 videos are three pieces for two processes; 7 are one, and two of three processes only go along."""
    alone = examine_twice(corpus, rows, "replicated")[0]
    for first, second in run_processes(examine_twice, world, corpus, rows, parallel):
        assert first == second == pytest.approx(alone, rel=1e-5)


class Pulled(Learner):
    """Pulls two views of a video together and nothing apart: it must collapse."""

    views = 2

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.backbone, self.apart = make_backbone(), apart

    def forward(self, batch: Batch, phase: str) -> Output:
        first, second = (self.backbone(video).tokens.mean(dim=1) for video in batch["video"])  # B D
        if not self.apart:
            return Output((first - second).square().mean())
        alike = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T  # B B
        return Output(F.cross_entropy(alike / 0.1, torch.arange(len(alike))))


@pytest.mark.parametrize("apart", [False, True])
def test_a_collapse_in_training_is_caught_and_a_healthy_run_is_silent(corpus, tmp_path, capfd, apart):
    """Without `verdict` being asked in `fit`, or with its limits at 0, the first one fails."""
    clips = Clips(read_manifest(corpus, "train"), **CLIP, views=2)
    fit(
        Pulled(apart), clips, tmp_path, length="120 steps", batch=6, lr=0.2, precision="float32", workers=0, quiet=True,
        health="every 10 %",
    )  # fmt: skip
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "health/spread" in line] == list(range(0, 121, 12))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "collapse" in line or "diverge" in line]
    if apart:
        assert warnings == [] and not verdict(lines).keys() & {"collapse", "divergence"}
    else:
        assert len(warnings) == 1 and "all videos look alike to it" in warnings[0] and "train.lr" in warnings[0]
