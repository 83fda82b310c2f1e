import csv
import json
import math
import re
import shutil

import numpy
import pytest
import torch

from data.test_objects import make_davis
from oracles import Squares, learn, moving_squares, tiny_backbone
from tiny_run import make_recipe, train
from tubelet import cli, draws
from tubelet.data.objects import palette, read_mask, write_mask
from tubelet.data.synthetic import make_corpus
from tubelet.learner import Backbone
from tubelet.methods.colour_copy import ColourCopy
from tubelet.methods.random_walk import RandomWalk
from tubelet.metrics.objects import judge
from tubelet.nn.affinity import neighbours
from tubelet.tasks import propagation
from tubelet.tasks.propagation import Footage, Propagation, encoded, summary, tinted, token_grid
from tubelet.tasks.protocol import Terms
from tubelet.types import Features, TubeletError


class Colours(Backbone):
    """Tokens are the pixels of their cubes: what is alike is what looks alike."""

    def __init__(self, patch: int = 4, tubelet: int = 2) -> None:
        super().__init__()
        self.config, self.dim = {"name": "colours", "patch": patch, "tubelet": tubelet}, 3 * patch**2 * tubelet
        self.seen = []

    def forward(self, video, hidden=None):
        self.seen.append(video)
        tubelet, patch = self.config["tubelet"], self.config["patch"]
        grid = (video.shape[2] // tubelet, video.shape[3] // patch, video.shape[4] // patch)
        pieces = video.unfold(2, tubelet, tubelet).unfold(3, patch, patch).unfold(4, patch, patch)
        return Features(pieces.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3) - 0.5, grid)


def dim(count: int, seed: int, contrast: float, frames: int = 8) -> Squares:
    """Squares that are hardly brighter than the ground."""
    keys = torch.tensor([draws.key(seed, index, "dim") for index in range(count)])
    colour = 0.2 + contrast * (0.5 + 0.5 * draws.uniform(keys, 3, "colour"))
    return moving_squares(count, seed, frames=frames, noise=0.005, colour=colour)


def squares(count: int, contrast: float | None = None) -> list[tuple[numpy.ndarray, numpy.ndarray]]:
    """Frames (T H W 3) and masks (T H W) of squares that are whole in the first frame."""
    found = moving_squares(count, 777) if contrast is None else dim(count, 777, contrast)
    axis = torch.arange(32) + 0.5
    x, y = ((5.5 - (axis - found.place[..., i, None]).abs()).clamp(0, 1) for i in (0, 1))
    masks = (y[..., :, None] * x[..., None, :] > 0.5).numpy().astype(numpy.uint8)
    videos = (found.batch["video"][0].permute(0, 2, 3, 4, 1) * 255).round().to(torch.uint8).numpy()
    return [(video, mask) for video, mask in zip(videos, masks, strict=True) if mask[0].sum() > 50]


def slow_labels(task: Propagation, tokens: list[torch.Tensor], first: torch.Tensor, grid) -> list[torch.Tensor]:
    """The labels of each frame's tokens (N C), one token after the other."""
    labels = [first]
    near = neighbours(grid, task.radius)
    for t in range(1, len(tokens)):
        frames = dict.fromkeys([0, *range(max(1, t - task.context), t)])
        found = torch.zeros_like(first)
        for n, query in enumerate(tokens[t]):
            places = [(s, m) for s in frames for m in range(len(first)) if task.radius == 0 or near[n, m]]
            cosine = {(s, m): torch.cosine_similarity(query, tokens[s][m], dim=0).item() for s, m in places}
            kept = sorted(places, key=lambda place: -cosine[place])[: task.top]
            weights = [math.exp(cosine[place] / task.temperature) for place in kept]
            for weight, (s, m) in zip(weights, kept, strict=True):
                found[n] += weight / sum(weights) * labels[s][m]
        labels.append(found)
    return labels


@pytest.mark.parametrize(("context", "radius"), [(0, 2), (2, 1), (7, 0)])
def test_labels_equal_their_slow_twin(context, radius, monkeypatch):
    task, backbone = Propagation(context=context, radius=radius), tiny_backbone(patch=8)
    video, masks = squares(1)[0]
    found = []
    monkeypatch.setattr(task, "masks_of", lambda labels, *_: found.append(labels[0]) or masks[0])
    task.follow(backbone, video, masks[0], [1])
    with torch.no_grad():
        features = list(encoded(backbone, video, (4, 4), "repeated", 2, torch.device("cpu")))
    inside = torch.from_numpy(masks[0].reshape(4, 8, 4, 8).mean((1, 3))).flatten().float()
    slow = slow_labels(task, [tokens[0] for tokens in features], torch.stack([1 - inside, inside], 1), (4, 4))
    for fast, twin in zip(found, slow[1:], strict=True):
        torch.testing.assert_close(fast, twin, atol=1e-4, rtol=1e-4)


def j_and_f(backbone: Backbone, clips: list[tuple[numpy.ndarray, numpy.ndarray]]) -> float:
    task = Propagation(size=64, radius=4)
    scores = [judge(task.follow(backbone, video, masks[0], [1]), masks, [1])[0] for video, masks in clips]
    return float(numpy.mean([(score["j"] + score["f"]) / 2 for score in scores]))


def test_squares_are_followed_by_their_colours():
    assert j_and_f(Colours(), squares(8)) > 0.9


@pytest.mark.parametrize(("learner", "contrast", "steps"), [(RandomWalk, 0.2, 120), (ColourCopy, 0.15, 80)])
def test_dim_squares_are_followed_after_learning_and_less_before(learner, contrast, steps):
    """Untrained, tokens of the same place are more alike than those of the same colour."""
    clips = squares(8, contrast=contrast)
    backbone = tiny_backbone(patch=4)
    assert j_and_f(backbone, clips) < 0.85
    learn(learner(backbone), lambda step: dim(8, 1000 + step, contrast, frames=4).batch, steps, lr=3e-3)
    assert j_and_f(backbone, clips) > 0.9


class Places(Colours):
    """The control: tokens that say where they are and nothing of what is there."""

    def forward(self, video, hidden=None):
        tokens, grid = super().forward(video)
        return Features(torch.eye(tokens.shape[1]).expand(len(tokens), -1, -1), grid)


def test_tokens_that_know_only_their_place_follow_nothing():
    stays = numpy.mean([judge(numpy.repeat(masks[:1], len(masks), 0), masks, [1])[0]["j"] for _, masks in squares(8)])
    assert j_and_f(Places(), squares(8)) < 0.6 and stays < 0.5


def test_two_objects_keep_their_numbers():
    video = numpy.full((6, 32, 32, 3), 20, numpy.uint8)
    masks = numpy.zeros((6, 32, 32), numpy.uint8)
    for t in range(6):
        for number, (row, colour) in {3: (4, (250, 0, 0)), 255: (20, (0, 0, 250))}.items():
            video[t, row : row + 8, 4 * t : 4 * t + 8], masks[t, row : row + 8, 4 * t : 4 * t + 8] = colour, number
    found = Propagation().follow(Colours(), video, masks[0], [3, 255])
    assert all(score["j"] > 0.8 for score in judge(found, masks, [3, 255]))


def test_a_frame_is_repeated_or_stands_in_the_middle_of_a_window():
    video = numpy.zeros((5, 8, 8, 3), numpy.uint8)
    video += numpy.arange(5, dtype=numpy.uint8)[:, None, None, None] * 50
    for how, window, moments in (
        ("repeated", 8, [[t, t] for t in range(5)]),
        ("sliding", 2, [[t, min(t + 1, 4)] for t in range(5)]),
        ("sliding", 6, [[max(0, min(4, t + d)) for d in range(-2, 4)] for t in range(5)]),
    ):
        backbone = Colours()
        tokens = list(encoded(backbone, video, (2, 2), how, window, torch.device("cpu")))
        seen = (torch.cat(backbone.seen)[:, 0, :, 0, 0] * 255 / 50).round().long()
        assert seen.tolist() == moments
        for t, token in enumerate(tokens):  # the first frame of the cube that is kept
            assert token.shape == (1, 4, 96) and round((float(token[0, 0, 0]) + 0.5) * 255 / 50) == t


def test_pictures_of_any_size_become_whole_patches():
    assert token_grid((480, 854), None, 16) == (30, 53)
    assert token_grid((480, 854), 240, 8) == (30, 53)
    assert token_grid((5, 90), None, 16) == (1, 6)


def test_a_backbone_without_background_sees_windows_or_is_refused():
    blind = tiny_backbone(background="remove")
    assert Propagation().way_of_seeing(blind) == "sliding"
    assert Propagation().way_of_seeing(tiny_backbone()) == "repeated"
    with pytest.raises(TubeletError, match=r"propagation\.frames to sliding"):
        Propagation(frames="repeated").way_of_seeing(blind)
    video, masks = squares(1)[0]
    assert len(numpy.unique(Propagation().follow(blind, video, masks[0], [1], "sliding", 4))) == 2


def test_without_stretching_an_object_may_be_gone():
    video, masks = squares(1)[0]
    video = video.copy()
    video[4:] = numpy.random.default_rng(0).integers(40, 60, video[4:].shape)  # the square vanishes
    for normalise, gone in ((True, False), (False, True)):
        task = Propagation(normalise=normalise, context=0, top=64, temperature=1.0, radius=0)
        found = task.follow(Colours(), video, masks[0], [1])
        assert (not found[-1].any()) == gone


def test_the_interval_is_of_videos_drawn_again():
    others = dict.fromkeys(("j_recall", "f_recall", "j_decay", "f_decay"), 0)
    rows = [{"video": f"{i}", "j": i / 10, "f": i / 10, **others} for i in range(11)]
    found = summary(rows, 0)
    assert found["j_and_f"] == pytest.approx(0.5) and found["objects"] == found["videos"] == 11
    low, high = found["interval"]
    half = 1.96 * numpy.std(numpy.arange(11) / 10) / math.sqrt(11)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.03)
    assert summary(rows[:1], 0)["interval"] == [0.0, 1.0]


def test_wrong_settings_are_refused():
    for name, value in (("size", 0), ("temperature", 0.0), ("top", 0), ("videos", 0), ("context", -1), ("radius", -1)):
        with pytest.raises(TubeletError, match=f"propagation.{name} must be"):
            Propagation(**{name: value})


def test_what_cannot_be_judged_is_left_out_or_an_error(tmp_path):
    folder = make_davis(tmp_path)
    (folder / "JPEGImages" / "480p" / "b" / "00001.png").write_bytes(b"")
    task = Propagation(masks=str(folder))
    footage = task.data(Terms(lambda: pytest.fail("it has videos of its own"), {"frames": 4}))
    result = task(Colours(), footage, tmp_path / "out")
    assert (result["videos"], result["unreadable"], result["missing"]) == (1, 1, ["b"])
    with pytest.raises(TubeletError, match=r"none of the 1 videos can be judged \(b:"):
        task(Colours(), Footage(footage.sequences[1:], "", 2, 0), tmp_path / "out")


def test_an_odd_sequence_is_left_out_by_its_name_and_others_are_told_of(tmp_path, monkeypatch, capfd):
    """Fails where two frames, or a mask of another size, end it all."""
    folder = make_davis(tmp_path)
    shutil.copytree(folder, tmp_path / "c", ignore=lambda at, names: [name for name in names if name == "b"])
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "480p" / "a10").rename(folder / kind / "480p" / "whole")
        (tmp_path / "c" / kind / "480p" / "a10").rename(folder / kind / "480p" / "short")
        (folder / kind / "480p" / "short" / "00002.png").unlink()
    write_mask(folder / "Annotations" / "480p" / "b" / "00001.png", numpy.zeros((4, 4), int))
    monkeypatch.setattr(propagation, "PAUSE_S", 0.0)
    task = Propagation(masks=str(folder))
    footage = task.data(Terms(lambda: pytest.fail("it has videos of its own"), {"frames": 4}))
    result = task(Colours(), footage, tmp_path / "out")
    assert (result["videos"], result["missing"]) == (1, ["b", "short"])
    told = capfd.readouterr().err
    assert "b: 00001.png is of another size" in told and "short: of its 2 frames none is between" in told
    assert re.search(r"^whole, 3 of 3: J&F \d+\.\d %$", told, re.MULTILINE)


def test_no_colour_overflows():
    """The palette is brighter from its ninth colour on, and 255 is the brightest there is."""
    known = list(range(1, 65))
    mask = numpy.array([known], numpy.uint8)
    shown = tinted(numpy.full((1, 64, 3), 255, numpy.uint8), mask, known)
    assert numpy.array_equal(shown[0] == 255, palette()[1:65] >= 128)


def test_a_run_is_judged_beside_its_untrained_twin(tmp_path, capsys):
    corpus = make_corpus(tmp_path / "corpus", clips=4, test=3, size=32, frames=5, motions=("left", "right"), workers=0)
    recipe = make_recipe(tmp_path / "r.yaml", corpus, evaluate={"propagation": {"every": "end", "pictures": 0}})
    run = train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any({"propagation/j_and_f", "propagation/j", "propagation/f"} <= line.keys() for line in lines)
    words = ["--tasks", "propagation", "knn", "--baseline", "--one-frame", "--seeds", "0", "1", "--workers", "0"]
    options = ["--propagation.save_masks", "true"]
    assert cli.main(["evaluate", str(run), *words, *options]) == 0
    shown = capsys.readouterr().out
    assert "J&F" in shown and "top-1" in shown
    results = json.loads((run / "evaluation" / "results.json").read_text())
    found = results["propagation"]
    assert found.keys() == {"videomae", "untrained"} and "one-frame" in results["knn"]
    own = found["videomae"]
    assert own["numbers"][0] == "j_and_f" and own["frames"] == "repeated" and own["videos"] == 3
    assert own["j_and_f"] == pytest.approx((own["j"] + own["f"]) / 2) and own["spread"]["std"] == 0
    assert len({seed["j_and_f"] for seed in found["untrained"]["seeds"]}) == 2
    out = run / "evaluation" / "propagation-videomae-seed0"
    with (out / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["00004", "00005", "00006"]
    assert float(rows[0]["j"]) == pytest.approx(own["per_object"][0]["j"], rel=1e-4)
    assert len(list((out / "masks" / "00005").iterdir())) == 5 and (out / "strip.png").stat().st_size > 1000
    assert set(numpy.unique(read_mask(out / "masks" / "00005" / "00004.png"))) <= {0, 1}


def test_a_folder_of_davis_is_judged_without_a_manifest(tmp_path, real_clips):
    """A real sequence, small: colours lose parts of the swan, and not all of it."""
    task = Propagation(masks=str(real_clips / "davis"), size=96, videos=1)
    footage = task.data(Terms(lambda: pytest.fail("it has videos of its own"), {"frames": 8}))
    assert len(footage.sequences) == 7
    result = task(Colours(patch=8), footage, tmp_path)
    assert result["videos"] == result["objects"] == 1 and result["j"] > 0.3
