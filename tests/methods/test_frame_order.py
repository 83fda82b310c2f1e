import itertools

import pytest
import torch

from puzzles import built, solve, squares
from tubelet import draws
from tubelet.nn import tuples
from tubelet.types import TubeletError

SMALL = {"frame_order": {"learner": {"hidden": 16, "dropout": 0.0}}}


def test_sorts_frames_where_squares_move_and_not_where_they_stand():
    learner = built("frame_order", hidden=128, dropout=0.0)
    moving, standing = solve(learner, 4, 300, 4e-3, speed=(2.4, 3.2), side=5.0)
    assert moving["accuracy"] >= 0.95
    assert abs(standing["accuracy"] - 1 / 12) < 0.05


def test_a_video_and_the_same_played_backwards_have_one_class():
    """Every order belongs to one class: as it is, or as what it shows of a video that is played backwards."""
    orders = tuples.orders_either_way(4).tolist()
    assert len(orders) == 12
    backwards = [[3 - place for place in order] for order in orders]
    assert sorted(orders + backwards) == sorted(map(list, itertools.permutations(range(4))))


def test_the_loss_is_that_of_each_frame_shown_by_itself():
    learner = built("frame_order", hidden=16, dropout=0.0, jitter=0.0, one_channel=False).eval()
    batch = squares(6, 0, 8, (0, 1, 2, 3), side=5.0)
    (video,), keys = batch["video"], batch["key"]
    places = tuples.moving_places(video, keys, 4, 0.75, "places").tolist()
    loss = 0.0
    for i in range(len(video)):
        label = int(draws.uniform(keys[i : i + 1], 1, "order").item() * 12)
        order = [order for order in itertools.permutations(range(4)) if order.index(0) < order.index(3)][label]
        if draws.uniform(keys[i : i + 1], 1, "backwards").item() < 0.5:
            order = [3 - place for place in order]
        shown = [video[i : i + 1, :, [places[i][place]] * 2] for place in order]
        items = torch.stack([learner.backbone(clip).tokens.mean(1) for clip in shown], dim=1)
        loss = loss - learner.head(items).log_softmax(1)[0, label] / len(video)
    torch.testing.assert_close(learner(batch, "main").loss, loss, atol=1e-6, rtol=1e-6)


def test_refuses_what_it_cannot_do():
    for arguments, words in [
        ({"frames": 2}, "learner.frames must be 3 to 6"),
        ({"window": 1.5}, "learner.window"),
        ({"jitter": 1.0}, "learner.jitter"),
        ({"backbone": {"background": "remove"}}, "backbone.background remove leaves nothing"),
    ]:
        with pytest.raises(TubeletError, match=words):
            built("frame_order", **arguments)
