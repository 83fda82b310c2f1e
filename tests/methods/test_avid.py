"""AVID: sounds are found by pictures, the banks are what was seen and heard, and CMA finds what is alike in both."""

import math

import pytest
import torch
import torch.nn.functional as F

from oracles import learn, tiny_backbone
from pairs import RATE, drawn, found, one_of_each, pairs, part, shuffled
from tubelet import draws
from tubelet.learner import Now
from tubelet.methods.avid import Avid, agreeing
from tubelet.types import TubeletError

SMALL = {
    "avid": {"learner": {"dim": 16, "negatives": 8, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000}},
    "avid, with agreement": {
        "learner": {
            "dim": 16, "negatives": 8, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000, "agreement": 2,
            "agreement_from": 0.0,
        },
    },
}  # fmt: skip


def make(videos: int = 16, **changes) -> Avid:
    made = {"dim": 64, "negatives": 64, "temperature": 0.2, "audio_dim": 64, "audio_depth": 1, "audio_rate": RATE}
    torch.manual_seed(0)
    return Avid(tiny_backbone(patch=4, background="remove"), videos, **made | changes)


@torch.no_grad()
def embedded(learner: Avid, batch) -> tuple[torch.Tensor, torch.Tensor]:
    video = learner.video_head(learner.backbone(batch["video"][0]).tokens.mean(dim=1))
    return F.normalize(video, dim=1), F.normalize(learner.audio_head(learner.audio(batch["audio"][0])), dim=1)


def test_sounds_are_found():
    learner, pool = make(128), pairs(128, seed=1)
    learn(learner, lambda step: drawn(pool, step), 200, lr=1.5e-3)
    assert found(*embedded(learner, one_of_each())) > 0.5  # of sixteen


def test_with_sounds_of_other_clips_it_is_at_chance():
    learner, pool = make(128), shuffled(pairs(128, seed=1))
    learn(learner, lambda step: drawn(pool, step), 60, lr=1.5e-3)
    assert found(*embedded(learner, one_of_each())) < 0.3


def slow_loss(learner: Avid, batch) -> float:
    video, sound = embedded(learner, batch)
    losses = []
    for row, here in enumerate(batch["audio_present"].tolist()):
        if not here:
            continue
        video_id, total = int(batch["id"][row]), 0.0
        chances = draws.uniform(batch["key"][row : row + 1], learner.negatives, "negatives")[0]
        others = [int(chance * learner.videos) for chance in chances]
        others = [j for j in others if not learner.begun or (learner.heard.known[j] and learner.seen.known[j])]
        terms = [(video[row], learner.heard, [video_id]), (sound[row], learner.seen, [video_id])]
        if learner.agreeing is not None:
            alike = [j for j in learner.agreeing[video_id].tolist() if j >= 0]
            terms += [(video[row], learner.seen, alike), (sound[row], learner.heard, alike)]
        for query, bank, positives in terms:
            wrong = [float(query @ bank.values[j]) for j in others if j not in positives]
            for positive in positives:
                right = float(query @ bank.values[positive])
                whole = sum(math.exp(score / learner.temperature) for score in [right, *wrong])
                total -= math.log(math.exp(right / learner.temperature) / whole) / len(positives)
        losses.append(total)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("agreement", [0, 3])
def test_the_loss_is_its_slow_twin(agreement, begun):
    """With CMA, where one video agrees with less than others do; from the second epoch on, where some are known."""
    learner, batch = make(agreement=agreement), one_of_each()
    batch["audio_present"][3:7] = False
    learner.begun = begun
    for bank in (learner.seen, learner.heard):
        bank.known[7:] = True
    if agreement:
        learner.agreeing.copy_((torch.arange(16)[:, None] + torch.tensor([2, 5, 11])) % 16)
        learner.agreeing[8, 1:], learner.agreeing[9] = -1, -1
    assert learner(batch, "main").loss.item() == pytest.approx(slow_loss(learner, batch), rel=1e-5)


def test_silent_and_unreadable_videos_are_left_out_after_the_first_epoch():
    """Of sixteen videos the first four are silent and the last four never come."""
    learner, pool = make(agreement=10, agreement_from=0.5), pairs(16, seed=1)
    pool["audio_present"][:4] = False
    learn(learner, lambda step: part(pool, list(range(12))), steps=4, epoch=2)
    known = torch.arange(16).div(4, rounding_mode="floor") % 3 > 0
    assert torch.equal(learner.seen.known, known) and torch.equal(learner.heard.known, known)
    assert set(learner.agreeing.flatten().tolist()) == {-1, *range(4, 12)}
    batch = part(pool, list(range(4, 12)))
    before = learner(batch, "main").loss
    for bank in (learner.seen, learner.heard):
        bank.values[~known] = bank.values[~known].roll(1, dims=1)
    assert torch.equal(learner(batch, "main").loss, before)
    learner.begun = False  # as in the first epoch, where all are random
    assert not torch.equal(learner(batch, "main").loss, before)


def test_banks_move_towards_what_was_seen_and_heard():
    learner, batch = make(), one_of_each()
    batch["audio_present"][3:7] = False
    seen, heard = learner.seen.values.clone(), learner.heard.values.clone()
    learner(batch, "main")
    learner.after_step(Now(1, 0, False, 0.0, lambda: iter(())))
    video, sound = embedded(learner, batch)
    here = batch["audio_present"]
    for bank, old, new in ((learner.seen, seen, video), (learner.heard, heard, sound)):
        torch.testing.assert_close(bank.values[here], F.normalize(0.5 * old + 0.5 * new, dim=1)[here])
        assert torch.equal(bank.values[~here], old[~here])


def test_a_silent_clip_takes_no_part():
    learner, batch = make(), one_of_each()
    batch["audio_present"][:8] = False
    video, sound = batch["video"][0].requires_grad_(), batch["audio"][0].requires_grad_()
    learner(batch, "main").loss.backward()
    for given in (video, sound):
        assert given.grad.isfinite().all()
        assert (given.grad.abs().flatten(1).sum(dim=1) > 0).tolist() == [False] * 8 + [True] * 8


def test_agreeing_videos_are_alike_in_both():
    seen = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [-1.0, 0.0]]), dim=1)
    heard = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.3], [1.0, 0.0]]), dim=1)
    found = agreeing(seen, heard, torch.ones(4, dtype=torch.bool), 1)[:, 0].tolist()
    assert found[0] == 2 and found[2] == 0  # 1 looks more like 0, and 3 sounds more like it
    for row in range(4):
        by_hand = {j: min(float(seen[row] @ seen[j]), float(heard[row] @ heard[j])) for j in range(4) if j != row}
        assert found[row] == max(by_hand, key=by_hand.__getitem__)
    without = agreeing(seen, heard, torch.arange(4) != 2, 3).tolist()
    assert [sorted(row) for row in without] == [[-1, 1, 3], [-1, 0, 3], [0, 1, 3], [-1, 0, 1]]


def test_agreement_begins_when_it_is_told_to():
    learner, batch = make(agreement=3, agreement_from=0.5), one_of_each()
    alone = learner(batch, "main").loss
    learner.after_step(Now(10, 0, False, 0.4, lambda: iter(())))
    learner.before_step(Now(10, 1, True, 0.4, lambda: iter(())))
    assert (learner.agreeing == -1).all()
    learner.before_step(Now(20, 2, True, 0.6, lambda: iter(())))
    assert (learner.agreeing >= 0).all() and (learner.agreeing != torch.arange(16)[:, None]).all()
    assert learner(batch, "main").loss > alone


def test_senseless_arguments_are_named():
    with pytest.raises(TubeletError, match=r"learner\.agreement must be less than the 16 videos, not 16"):
        make(agreement=16)
    with pytest.raises(TubeletError, match=r"learner\.negatives must be more than 0, not 0"):
        make(negatives=0)
