import math

import pytest
import torch
import torch.nn.functional as F

from directions import Videos, agreement
from oracles import learn, tiny_backbone
from peers import lightly_losses
from tubelet.learner import Now
from tubelet.methods.swav import SwAV
from tubelet.types import TubeletError

SMALLEST = {"prototypes": 6, "dim": 8, "hidden": 16, "frozen_epochs": 0}
SMALL = {
    "swav": {"learner": SMALLEST},
    "swav, with a queue": {"learner": {**SMALLEST, "queue": 6, "queue_epochs": 0}},
}


def learner(**options) -> SwAV:
    return SwAV(tiny_backbone(background="remove"), **{**SMALLEST, "strength": "none", **options})


def now(epoch: int) -> Now:
    return Now(epoch, epoch, True, 0.0, lambda: iter(()))


def slow_codes(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Clips share themselves out among prototypes, of which each takes as much of all."""
    shares = [[math.exp(score / epsilon) for score in row] for row in scores]
    for _ in range(iterations):
        taken = [sum(row[k] for row in shares) for k in range(len(shares[0]))]
        shares = [[share / taken[k] for k, share in enumerate(row)] for row in shares]
        shares = [[share / sum(row) for share in row] for row in shares]
    return shares


def slow_loss(one: torch.Tensor, other: torch.Tensor, model: SwAV) -> float:
    """Equation 2 with the codes of section 3.1, from unit vectors of two views, B D."""
    total = 0.0
    scores = [(view @ model.prototypes.T).tolist() for view in (one, other)]
    for guess, target in ((0, 1), (1, 0)):
        codes = slow_codes(scores[target], model.epsilon, model.iterations)
        for row, code in zip(scores[guess], codes, strict=True):
            whole = sum(math.exp(score / model.temperature) for score in row)
            total -= sum(q * (score / model.temperature - math.log(whole)) for q, score in zip(code, row, strict=True))
    return total / len(one) / 2


def test_the_loss_is_the_papers():
    model, batch = learner(), Videos(8).batch(torch.arange(8), 0, views=2)
    one, other = (model.encode(video, batch["key"], "") for video in batch["video"])
    assert model(batch, "main").loss.item() == pytest.approx(slow_loss(one, other, model), rel=1e-6)


def test_the_loss_is_lightlys():
    loss = lightly_losses().SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    model, batch = learner(), Videos(8).batch(torch.arange(8), 0, views=2)
    scores = [model.encode(video, batch["key"], "") @ model.prototypes.T for video in batch["video"]]
    torch.testing.assert_close(model(batch, "main").loss, loss(scores, [])[0], atol=1e-6, rtol=1e-6)


def test_codes_are_made_together_with_a_full_queue():
    model = learner(queue=8, queue_epochs=1)
    videos = Videos(16)
    first, second = (videos.batch(torch.arange(8) + 8 * half, 0, views=2) for half in (0, 1))
    model.before_step(now(0))
    model(first, "main")
    model.after_step(now(0))
    assert not model.queue.filled.any()  # it has not begun
    model.before_step(now(1))
    alone = model(first, "main").loss
    model.after_step(now(1))
    earlier = [model.encode(video, first["key"], "") for video in first["video"]]
    torch.testing.assert_close(model.queue.first, earlier[0].detach())
    torch.testing.assert_close(model.queue.second, earlier[1].detach())
    model.before_step(now(1))
    views = [model.encode(video, second["key"], "") for video in second["video"]]
    expected = 0.0
    for guess, target in ((0, 1), (1, 0)):
        rows = torch.cat([views[target], earlier[target]]) @ model.prototypes.T
        codes = torch.tensor(slow_codes(rows.tolist(), 0.05, 3))[:8]
        expected -= (codes * F.log_softmax(views[guess] @ model.prototypes.T / 0.1, dim=1)).sum(dim=1).mean() / 2
    torch.testing.assert_close(model(second, "main").loss, expected)
    assert not torch.isclose(alone, learner().forward(second, "main").loss)


def test_prototypes_stay_unit_vectors_and_as_they_are_in_the_first_epoch():
    model, videos = learner(frozen_epochs=1), Videos(32)
    start = model.prototypes.detach().clone()
    learn(model, videos.batches(8, views=2), steps=4, lr=0.1, epoch=4)
    torch.testing.assert_close(model.prototypes.detach(), start)
    learn(model, videos.batches(8, views=2), steps=8, lr=0.1, epoch=4)
    assert not torch.allclose(model.prototypes.detach(), start, atol=1e-2)
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(6))


def clustered(moving: bool) -> float:
    """How well the prototypes divide videos by direction, after training."""
    torch.manual_seed(0)
    videos = Videos(128, moving)
    model = learner(prototypes=4, dim=16, hidden=64)
    learn(model, videos.batches(32, views=2), steps=60)
    with torch.no_grad():
        found = model.encode(videos.all()["video"][0], torch.zeros(128, dtype=torch.int64), "") @ model.prototypes.T
    return agreement(videos.direction, found.argmax(dim=1))


def test_its_clusters_are_the_directions_where_something_moves():
    assert clustered(moving=True) > 0.9
    assert clustered(moving=False) < 0.1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"temperature": 0.0}, r"learner\.temperature must be more than 0"),
        ({"epsilon": -1.0}, r"learner\.epsilon must be more than 0"),
        ({"queue": -1}, r"learner\.queue must be 0 \(none\) or more, not -1"),
        ({"prototypes": 0}, r"learner\.prototypes must be 1 or more"),
        ({"iterations": 0}, r"learner\.iterations must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(option, said):
    with pytest.raises(TubeletError, match=said):
        learner(**option)
