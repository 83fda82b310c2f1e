import math

import pytest
import torch

from oracles import learn, still, tiny_backbone
from peers import lightly_losses
from tubelet.learner import Now
from tubelet.methods.moco import MoCo
from tubelet.nn.heads import embedded
from tubelet.nn.views import augmented
from tubelet.types import TubeletError
from windows import directions_used, recalled, windows

SMALL = {
    "moco": {"learner": {"dim": 8, "hidden": 16, "queue": 10, "momentum": 0.9}},
    "moco, three clips": {"learner": {"dim": 8, "hidden": 16, "queue": 10, "clips": 3}},
}


def make(**options) -> MoCo:
    return MoCo(tiny_backbone(dim=48, background="remove"), **{"queue": 8, "dim": 32, "hidden": 64, **options})


def now(step: int, done: float = 0.0) -> Now:
    return Now(step, 0, False, done, lambda: iter(()))


def filled(**options) -> MoCo:
    """One whose queue has the keys of other videos, and whose teacher is not its student."""
    learner = make(**options).eval()
    earlier = windows(4, seed=1, views=learner.views)
    earlier["id"] += 100
    assert learner(earlier, "main").loss is None
    learner.after_step(now(1))
    with torch.no_grad():
        for parameter in learner.teacher.parameters():
            parameter.mul_(1.1)
    return learner


@pytest.mark.parametrize("clips", [2, 3])
def test_the_loss_against_its_slow_twin(clips):
    """Equation 1, query by query: the other clips of the video against the queue."""
    learner, batch = filled(clips=clips), windows(4, seed=0, views=clips)
    with torch.no_grad():
        views = [augmented(video, batch["key"], f"view {v}", "slowfast") for v, video in enumerate(batch["video"])]
        queries, keys = ([embedded(v, network) for v in views] for network in (learner, learner.teacher))
    losses = []
    for view, clip in ((v, b) for v in range(clips) for b in range(4)):
        query = queries[view][clip]
        positive = sum(math.exp(float(query @ keys[v][clip]) / 0.1) for v in range(clips) if v != view)
        negative = sum(math.exp(float(query @ key) / 0.1) for key in learner.queue.keys)
        losses.append(-math.log(positive / (positive + negative)))
    assert learner(batch, "main").loss.item() == pytest.approx(sum(losses) / len(losses), abs=1e-6)


def test_the_loss_is_that_of_lightly_with_a_memory_bank():
    learner, ids = filled(), torch.arange(4)
    theirs = lightly_losses().NTXentLoss(temperature=0.1, memory_bank_size=(8, 32))
    queries, keys = (torch.nn.functional.normalize(torch.randn(4, 32), dim=1) for _ in range(2))
    theirs(queries, keys)  # makes the bank
    theirs.memory_bank.bank.copy_(learner.queue.get_buffer("keys"))
    found = learner.compare(queries, 0, torch.stack([queries, keys], dim=1), ids).mean()
    torch.testing.assert_close(found, theirs(queries, keys), atol=1e-6, rtol=0)


def test_older_keys_of_the_same_video_are_no_negatives():
    learner, batch = filled(), windows(4, seed=0)
    learner.queue.video[3] = 2  # the batch has videos 0 to 3
    queries, keys = torch.randn(4, 32), torch.randn(4, 2, 32)
    before = learner.compare(queries, 0, keys, batch["id"])
    learner.queue.keys[3] = torch.randn(32)
    changed = learner.compare(queries, 0, keys, batch["id"]) != before
    assert changed.tolist() == [True, True, False, True]


def test_nothing_is_learnt_until_the_queue_is_full_and_a_skipped_step_enters_nothing():
    learner = make(queue=12)
    for seed, full in ((0, False), (1, True)):
        learner.before_step(now(seed))
        assert learner(windows(4, seed), "main").loss is None
        learner.after_step(now(seed + 1))
        assert learner.queue.full is full
    before = learner.queue.keys.clone()
    assert learner(windows(4, 2), "main").loss is not None
    learner.before_step(now(3))  # the step was skipped: `after_step` was not called
    learner.after_step(now(3))
    assert torch.equal(learner.queue.keys, before)


def test_all_keys_enter_the_queue_clip_by_clip():
    learner = make(queue=8).eval()
    batch = windows(4, seed=0)
    views = [augmented(video, batch["key"], f"view {v}", "slowfast") for v, video in enumerate(batch["video"])]
    with torch.no_grad():
        one, other = (embedded(view, learner.teacher) for view in views)
    learner(batch, "main")
    learner.after_step(now(1))
    torch.testing.assert_close(learner.queue.keys, torch.stack([one, other], dim=1).flatten(0, 1))
    assert learner.queue.video.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_teacher_follows_ever_more_slowly():
    learner = make(momentum=0.8)
    before = learner.teacher.head[0].weight.clone()
    with torch.no_grad():
        learner.head[0].weight.add_(1)
    learner.after_step(now(1, done=0.5))
    torch.testing.assert_close(learner.teacher.head[0].weight, before + 0.1)  # 1 - (1 - 0.8) / 2 is kept


def test_it_learns_to_see_which_way_squares_move():
    learner, batches = make(queue=256, momentum=0.99), [windows(32, seed, moments=5) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=70, lr=1e-3)
    assert recalled(learner.backbone) > 0.82 > untrained + 0.1
    assert directions_used(learner, windows(64, seed=7, views=1)) > 4


def test_where_nothing_moves_it_learns_nothing_of_directions():
    """The control, of as many steps as are enough to see them where squares move."""
    learner, batches = make(queue=256, momentum=0.99), [still(windows(32, seed, moments=5)) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=40, lr=1e-3)
    assert recalled(learner.backbone) < untrained + 0.08


@pytest.mark.parametrize(
    ("options", "said"), [({"clips": 1}, "clips"), ({"queue": 0}, "queue"), ({"momentum": 2.0}, "momentum")]
)
def test_settings_that_make_no_sense_are_refused(options, said):
    with pytest.raises(TubeletError, match=f"learner.{said} must be"):
        make(**options)
