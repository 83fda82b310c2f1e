import pytest
import torch

from puzzles import built, solve, squares
from tubelet import draws
from tubelet.methods.odd_one_out import fused
from tubelet.types import TubeletError

SMALL = {"odd_one_out": {"learner": {"clips": 4, "hidden": 16}}}


def test_finds_the_odd_clip_where_squares_move_and_not_where_they_stand():
    learner = built("odd_one_out", backbone={"tubelet": 8}, clips=3, hidden=128)
    moving, standing = solve(learner, 16, 300, 4e-3, batch=64, speed=(1.0, 1.4), side=5.0)
    assert moving["accuracy"] >= 0.95
    assert abs(standing["accuracy"] - 1 / 3) < 0.06  # 4 standard deviations of 1024 guesses


def test_the_mean_of_differences_against_its_definition():
    items = torch.randn(3, 5, 7)
    slow = torch.zeros(3, 7)
    for i in range(5):
        for j in range(i + 1, 5):
            slow += (items[:, j] - items[:, i]) / 10
    torch.testing.assert_close(fused(items), slow, atol=1e-6, rtol=1e-6)


def test_the_loss_is_that_of_each_clip_taken_and_encoded_by_itself():
    learner = built("odd_one_out", clips=4, hidden=16).eval()
    batch = squares(6, 0, 16, (0, 1, 2, 3), side=5.0)
    (video,), keys = batch["video"], batch["key"]
    loss = 0.0
    for i in range(len(video)):
        odd = int(draws.uniform(keys[i : i + 1], 1, "odd").item() * 4)
        order = draws.uniform(keys[i : i + 1], 8, "shuffle")[0].argsort().tolist()
        seen = []
        for j, start in enumerate([0, 3, 5, 8]):
            frames = [start + (order[t] if j == odd else t) for t in range(8)]
            seen.append(learner.enter(learner.backbone(video[i : i + 1, :, frames]).tokens.mean(1)).relu())
        logits = learner.head(fused(torch.stack(seen, dim=1))).log_softmax(1)[0]
        loss = loss - logits[odd] / len(video)
    torch.testing.assert_close(learner(batch, "main").loss, loss, atol=1e-6, rtol=1e-6)


def test_refuses_a_single_clip():
    with pytest.raises(TubeletError, match=r"learner.clips must be 2 or more"):
        built("odd_one_out", clips=1)
