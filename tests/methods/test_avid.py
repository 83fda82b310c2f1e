"""AVID: sounds are found by pictures, the banks are what was seen and heard, and CMA finds what is alike in both."""

import math

import pytest
import torch
import torch.nn.functional as F

from oracles import learn, tiny_backbone
from pairs import RATE, drawn, found, one_of_each, pairs, shuffled
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
        for query, bank in ((video[row], learner.heard.values), (sound[row], learner.seen.values)):
            right = math.exp(float(query @ bank[video_id]) / learner.temperature)
            wrong = sum(math.exp(float(query @ bank[j]) / learner.temperature) for j in others if j != video_id)
            total -= math.log(right / (right + wrong))
        losses.append(total)
    return sum(losses) / len(losses)


def test_the_loss_is_its_slow_twin():
    learner, batch = make(), one_of_each()
    batch["audio_present"][3:7] = False
    assert learner(batch, "main").loss.item() == pytest.approx(slow_loss(learner, batch), rel=1e-5)


def test_banks_move_towards_what_was_seen_and_heard():
    learner, batch = make(), one_of_each()
    batch["audio_present"][3:7] = False
    seen, heard = learner.seen.values.clone(), learner.heard.values.clone()
    learner(batch, "main")
    learner.after_step(Now(1, 0, False, 0.0, lambda: iter(())))
    video, sound = embedded(learner, batch)
    torch.testing.assert_close(learner.seen.values, F.normalize(0.5 * seen + 0.5 * video, dim=1))
    here = batch["audio_present"]
    torch.testing.assert_close(learner.heard.values[here], F.normalize(0.5 * heard + 0.5 * sound, dim=1)[here])
    torch.testing.assert_close(learner.heard.values[~here], heard[~here])


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
    found = agreeing(seen, heard, 1)[:, 0].tolist()
    assert found[0] == 2 and found[2] == 0  # 1 looks more like 0, and 3 sounds more like it
    for row in range(4):
        by_hand = {j: min(float(seen[row] @ seen[j]), float(heard[row] @ heard[j])) for j in range(4) if j != row}
        assert found[row] == max(by_hand, key=by_hand.__getitem__)


def test_agreement_begins_when_it_is_told_to():
    learner, batch = make(agreement=3, agreement_from=0.5), one_of_each()
    alone = learner(batch, "main").loss
    learner.before_step(Now(10, 1, True, 0.4, lambda: iter(())))
    assert (learner.agreeing == -1).all()
    learner.before_step(Now(20, 2, True, 0.6, lambda: iter(())))
    assert (learner.agreeing >= 0).all() and (learner.agreeing != torch.arange(16)[:, None]).all()
    assert learner(batch, "main").loss > alone


def test_senseless_arguments_are_named():
    with pytest.raises(TubeletError, match=r"learner\.agreement must be less than the 16 videos, not 16"):
        make(agreement=16)
    with pytest.raises(TubeletError, match="negatives = 0"):
        make(negatives=0)
