"""MMV: sounds and captions are found, each in its space, and either may be missing."""

import pytest
import torch
import torch.nn.functional as F

from oracles import learn, tiny_backbone
from pairs import RATE, drawn, found, one_of_each, pairs, shuffled
from tubelet.methods.video_text_audio import VideoTextAudio, unit
from tubelet.types import TubeletError

SMALL = {
    "video_text_audio": {
        "learner": {
            "fine": 16, "coarse": 8, "text_dim": 32, "words": 64, "audio_dim": 32, "audio_depth": 1, "audio_rate": 4000,
        }
    }
}  # fmt: skip


def make(**changes) -> VideoTextAudio:
    torch.manual_seed(0)
    return VideoTextAudio(
        tiny_backbone(patch=4, background="remove"), fine=64, coarse=32, text_dim=64, words=256, audio_dim=64,
        audio_depth=1, audio_rate=RATE, **changes,
    )  # fmt: skip


@torch.no_grad()
def retrieved(learner: VideoTextAudio) -> tuple[float, float]:
    test = one_of_each()
    video = learner.video_head(learner.backbone(test["video"][0]).tokens.mean(dim=1))
    sound = unit(learner.audio_head(learner.audio(test["audio"][0])))
    words = unit(learner.text_head(learner.text(test["text"][0])))
    return found(unit(video), sound), found(unit(learner.coarse_head(video)), words)


def test_sounds_and_captions_are_found_where_some_are_missing():
    learner, pool = make(), pairs(512, seed=1)
    pool["audio_present"] = pool["id"] % 4 != 0
    pool["audio"][0][~pool["audio_present"]] = 0
    pool["text"] = [["" if row % 4 == 1 else text for row, text in enumerate(pool["text"][0])]]
    learn(learner, lambda step: drawn(pool, step), 150, lr=2e-3)
    heard, read = retrieved(learner)
    assert heard > 0.7 and read > 0.9


def test_with_those_of_other_clips_it_is_at_chance():
    learner, pool = make(), shuffled(pairs(256, seed=1))
    learn(learner, lambda step: drawn(pool, step), 60, lr=2e-3)
    assert max(retrieved(learner)) < 0.3


@pytest.mark.parametrize("sounds", [0, 8])
@pytest.mark.parametrize("captions", [0, 8])
def test_what_is_missing_gets_no_gradient_and_gives_no_nan(sounds, captions):
    learner, batch = make(), one_of_each()
    batch["audio_present"] = torch.arange(16) < sounds
    batch["text"] = [[text if row < captions else "" for row, text in enumerate(batch["text"][0])]]
    video, sound = batch["video"][0].requires_grad_(), batch["audio"][0].requires_grad_()
    loss = learner(batch, "main").loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for _, parameter in learner.parameters_of("main"))
    assert (sound.grad.abs().flatten(1).sum(dim=1) > 0).tolist() == [row < sounds for row in range(16)]
    reached = [row < max(sounds, captions) for row in range(16)]
    assert (video.grad.abs().flatten(1).sum(dim=1) > 0).tolist() == reached
    assert (learner.text_head.weight.grad.abs().sum() > 0) == (captions > 0)


def test_the_loss_is_the_weighted_sum_of_both():
    learner, batch = make(text_weight=0.25), one_of_each()
    loss, told = learner(batch, "main")
    with torch.no_grad():
        video = learner.video_head(learner.backbone(batch["video"][0]).tokens.mean(dim=1))
        sound = unit(learner.audio_head(learner.audio(batch["audio"][0])))
        words = unit(learner.text_head(learner.text(batch["text"][0])))
    rows, temperature = torch.arange(16), learner.temperature
    scores = unit(video) @ sound.T / temperature
    heard = (F.cross_entropy(scores, rows) + F.cross_entropy(scores.T, rows)) / 2
    scores = unit(learner.coarse_head(video)) @ words.T / temperature
    others = scores.T.masked_fill(torch.eye(16, dtype=torch.bool), -torch.inf)  # captions for the other clips
    read = (torch.cat([scores, others], dim=1).logsumexp(dim=1) - scores.diagonal()).mean()
    torch.testing.assert_close(torch.stack([told["audio_loss"], told["text_loss"]]), torch.stack([heard, read]))
    torch.testing.assert_close(loss, heard + 0.25 * read)


def test_senseless_arguments_are_named():
    with pytest.raises(TubeletError, match=r"learner\.temperature must be more than 0, not 0"):
        VideoTextAudio(tiny_backbone(), temperature=0.0)
