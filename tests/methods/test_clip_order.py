import itertools

import pytest
import torch

from puzzles import built, solve, squares
from tubelet import draws
from tubelet.types import TubeletError

SMALL = {"clip_order": {"learner": {"hidden": 16, "dropout": 0.0}}}


def test_names_the_order_where_squares_move_and_not_where_they_stand():
    learner = built("clip_order", hidden=128, dropout=0.0)
    moving, standing = solve(learner, 16, 200, 3e-3, speed=(0.5, 0.8), side=5.0)
    assert moving["accuracy"] >= 0.95
    assert abs(standing["accuracy"] - 1 / 6) < 0.05


def test_the_loss_is_that_of_each_clip_taken_and_encoded_by_itself():
    learner = built("clip_order", hidden=16, dropout=0.0).eval()
    batch = squares(6, 0, 16, (0, 1, 2, 3), side=5.0)
    (video,), keys = batch["video"], batch["key"]
    head, loss = learner.head, 0.0
    for i in range(len(video)):
        label = int(draws.uniform(keys[i : i + 1], 1, "order").item() * 6)
        order = list(itertools.permutations(range(3)))[label]
        starts = [(0, 6, 12)[place] for place in order]  # gaps of half a clip, as published
        seen = [learner.backbone(video[i : i + 1, :, start : start + 4]).tokens.mean(1) for start in starts]
        pairs = [
            torch.relu(torch.cat([seen[j], seen[k]], dim=1) @ head.pair.weight.T + head.pair.bias)
            for j in range(3) for k in range(j + 1, 3)
        ]  # fmt: skip
        logits = torch.cat(pairs, dim=1) @ head.classes.weight.T + head.classes.bias
        loss = loss - logits.log_softmax(1)[0, label] / len(video)
    torch.testing.assert_close(learner(batch, "main").loss, loss, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("clips", [1, 6])
def test_refuses_too_few_and_too_many_clips(clips):
    with pytest.raises(TubeletError, match=r"learner.clips must be 2 to 5"):
        built("clip_order", clips=clips)
