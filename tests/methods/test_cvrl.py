import math

import pytest
import torch

from oracles import learn, still, tiny_backbone
from tubelet.methods.cvrl import CVRL
from tubelet.nn.heads import embedded
from tubelet.nn.losses import nt_xent
from tubelet.nn.views import augmented
from windows import directions_used, recalled, windows

SMALL = {
    "cvrl": {"learner": {"dim": 8, "hidden": 16}},
    "cvrl, reversed": {"learner": {"dim": 8, "hidden": 16, "negatives": "reversed", "times": "independent"}},
    "cvrl, shuffled": {"learner": {"dim": 8, "hidden": 16, "negatives": "shuffled"}},
}


def make(**options) -> CVRL:
    return CVRL(tiny_backbone(dim=48, background="remove"), dim=32, hidden=64, **options)


def test_it_asks_for_clips_that_are_near_unless_told():
    assert make().view_times == "near"
    assert make(times="independent").view_times == "independent"


@pytest.mark.parametrize("negatives", ["videos", "reversed", "shuffled"])
def test_the_loss_is_that_of_its_views_and_of_what_they_are_told_from(negatives):
    learner, batch = make(negatives=negatives).eval(), windows(4, seed=0, moments=3)
    views = [augmented(video, batch["key"], f"view {v}", "slowfast") for v, video in enumerate(batch["video"])]
    with torch.no_grad():
        one, other = (embedded(view, learner) for view in views)
        disturbed = None
        if negatives != "videos":
            clips = [learner.reordered(view, batch["key"], f"order {v}") for v, view in enumerate(views)]
            disturbed = torch.cat([embedded(clip, learner) for clip in clips])
        expected = nt_xent(one, other, batch["id"], 0.1, disturbed).mean()
    torch.testing.assert_close(learner(batch, "main").loss, expected, atol=1e-6, rtol=0)


def test_other_orders_have_the_same_frames():
    video = torch.arange(6.0).view(1, 1, 6, 1, 1).expand(3, 2, 6, 4, 4)
    keys = torch.arange(3)
    assert torch.equal(make(negatives="reversed").reordered(video, keys, "a"), video.flip(2))
    shuffled = make(negatives="shuffled").reordered(video, keys, "a")
    orders = shuffled[:, 0, :, 0, 0]  # 3 6
    assert torch.equal(orders.sort(dim=1).values, video[:, 0, :, 0, 0])
    assert torch.equal(shuffled, orders[:, None, :, None, None].expand_as(video))
    assert len({tuple(order) for order in orders.tolist()}) == 3


def test_it_learns_to_see_which_way_squares_move():
    learner, batches = make(), [windows(32, seed, moments=5) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=60, lr=3e-3)
    assert recalled(learner.backbone) > 0.9 > untrained + 0.15
    assert directions_used(learner, windows(64, seed=7, views=1)) > 4


def test_where_nothing_moves_it_learns_nothing_of_directions():
    """The control, of as many steps as are enough to see them where squares move."""
    learner, batches = make(), [still(windows(32, seed, moments=5)) for seed in range(6)]
    untrained = recalled(learner.backbone)
    told = learn(learner, lambda step: batches[step % 6], steps=30, lr=3e-3)
    assert told[-1]["loss"] == pytest.approx(math.log(63), abs=0.01)  # of 64 views, itself aside
    assert recalled(learner.backbone) < untrained + 0.08
