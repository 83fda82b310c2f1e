import pytest
import torch

from puzzles import built, solve, squares
from tubelet import draws
from tubelet.nn import tuples
from tubelet.types import TubeletError

SMALL = {"jigsaw": {"learner": {"orders": 6, "hidden": 16}}}
WORLD = {"speed": (0.8, 1.4), "side": 10.0}


def test_solves_the_puzzle_and_is_at_chance_where_there_is_nothing_to_see():
    learner = built("jigsaw", backbone={"patch": 8}, hidden=128, orders=12)
    moving, _ = solve(learner, 6, 150, 3e-3, (0,), **WORLD)
    assert moving["accuracy"] >= 0.95
    empty = squares(1024, 2, 6, (0, 1, 2, 3), **WORLD)
    empty["video"] = [torch.full_like(empty["video"][0], 0.2)]
    assert abs(learner(empty, "main").metrics["accuracy"] - 1 / 12) < 0.04


def test_the_order_of_frames_is_found_where_squares_move_and_not_where_they_stand():
    """Where the cells of a frame belong can be seen in a still; where the frames belong cannot."""
    learner = built("jigsaw", backbone={"patch": 8}, hidden=128, orders=6)
    frames = torch.tensor(tuples.permutations(3))
    learner.orders = (frames[..., None] * 4 + torch.arange(4)).flatten(1)  # no cell leaves its place in a frame
    moving, standing = solve(learner, 6, 150, 3e-3, (0,), **WORLD)
    assert moving["accuracy"] >= 0.95
    assert abs(standing["accuracy"] - 1 / 6) < 0.1  # of some 256 videos


def test_the_loss_is_that_of_each_cell_cut_and_encoded_by_itself():
    learner = built("jigsaw", backbone={"patch": 8}, orders=6, hidden=16, gap=0.0).eval()
    batch = squares(6, 0, 6, (0, 1, 2, 3), **WORLD)
    (video,), keys = batch["video"], batch["key"]
    loss = 0.0
    for i in range(len(video)):
        label = int(draws.uniform(keys[i : i + 1], 1, "order").item() * 6)
        seen = []
        for cell in learner.orders[label].tolist():
            frame, row, column = (0, 2, 5)[cell // 4], cell % 4 // 2 * 8, cell % 2 * 8
            clip = video[i : i + 1, :, [frame] * 2, row : row + 8, column : column + 8]
            seen.append(learner.backbone(clip).tokens.mean(1))
        loss = loss - learner.head(torch.cat(seen, dim=1)).log_softmax(1)[0, label] / len(video)
    torch.testing.assert_close(learner(batch, "main").loss, loss, atol=1e-6, rtol=1e-6)


def test_refuses_what_it_cannot_do():
    for arguments, words in [
        ({"orders": 1}, "learner.orders must be 2 to 82944"),
        ({"orders": 82945}, "learner.orders must be 2 to 82944"),
        ({"orders": 6, "gap": 1.0}, "learner.gap"),
        ({"orders": 6, "backbone": {"background": "remove"}}, "backbone.background remove leaves nothing"),
    ]:
        with pytest.raises(TubeletError, match=words):
            built("jigsaw", **arguments)
