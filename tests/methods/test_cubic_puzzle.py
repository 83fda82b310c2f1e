import itertools

import pytest
import torch

from puzzles import built, solve, squares
from tubelet import draws
from tubelet.types import TubeletError

SMALL = {
    "cubic_puzzle": {"learner": {"hidden": 16}},
    "cubic_puzzle, in time": {"learner": {"hidden": 16, "puzzle": "time"}},
}


def test_sorts_times_where_squares_move_and_not_where_they_stand():
    learner = built("cubic_puzzle", backbone={"patch": 8}, hidden=128, puzzle="time", gap=0.1)
    moving, standing = solve(learner, 16, 150, 4e-3, (0,), speed=(0.7, 0.9), side=10.0)
    assert moving["accuracy_time"] >= 0.95
    assert abs(standing["accuracy_time"] - 1 / 24) < 0.05
    assert standing["accuracy"] == standing["accuracy_time"]


def test_sorts_places_and_not_where_there_is_nothing_to_see():
    learner = built("cubic_puzzle", backbone={"patch": 8}, hidden=128, puzzle="space", gap=0.1)
    moving, _ = solve(learner, 16, 150, 3e-3, speed=(0.3, 0.5), side=10.0)
    assert moving["accuracy_space"] >= 0.95
    empty = squares(1024, 2, 16, (0, 1, 2, 3))
    empty["video"] = [torch.full_like(empty["video"][0], 0.2)]
    assert abs(learner(empty, "main").metrics["accuracy_space"] - 1 / 24) < 0.03


def test_the_loss_is_that_of_each_cell_cut_and_encoded_by_itself():
    learner = built("cubic_puzzle", backbone={"patch": 8}, hidden=16, gap=0.0, one_channel=False).eval()
    batch = squares(6, 0, 16, (0, 1, 2, 3), side=10.0)
    (video,), keys = batch["video"], batch["key"]
    orders, loss = list(itertools.permutations(range(4))), 0.0
    for i in range(len(video)):
        for along in ("space", "time"):
            label = int(draws.uniform(keys[i : i + 1], 1, along).item() * 24)
            other = int(draws.uniform(keys[i : i + 1], 1, f"{along} of").item() * 4)
            seen = []
            for own in orders[label]:
                time, place = (other, own) if along == "space" else (own, other)
                row, column = place // 2 * 8, place % 2 * 8
                cell = video[i : i + 1, :, 4 * time : 4 * time + 4, row : row + 8, column : column + 8]
                seen.append(learner.backbone(cell).tokens.mean(1))
            logits = learner.heads[along](torch.cat(seen, dim=1)).log_softmax(1)[0]
            loss = loss - logits[label] / len(video) / 2
    torch.testing.assert_close(learner(batch, "main").loss, loss, atol=1e-6, rtol=1e-6)


def test_refuses_to_cut_all_of_a_cell_away():
    with pytest.raises(TubeletError, match=r"learner.gap"):
        built("cubic_puzzle", gap=1.0)
