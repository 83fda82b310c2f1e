import math

import pytest
import torch

from methods.sliding import recovered, tiles
from oracles import learn, moving_squares, tiny_backbone
from tubelet.methods.colour_copy import MIDDLE, REACH, ColourCopy, binned
from tubelet.nn.colour import to_lab, to_rgb
from tubelet.types import TubeletError

SMALL = {
    "colour_copy": {"learner": {"dim": 16}},
    "colour_copy, quantised": {"learner": {"dim": 16, "hidden": "colour", "target": "quantised", "radius": 1}},
}


def slow_loss(learner: ColourCopy, batch) -> float:
    """Token by token and channel by channel, from the same embeddings."""
    video = batch["video"][0]
    lab = to_lab(video.permute(0, 2, 3, 4, 1))
    hidden = learner.channels(batch["key"])
    tokens = learner.embedded(lab, hidden)
    mean = [[[lab[b, t, 8 * (n // 4) : 8 * (n // 4) + 8, 8 * (n % 4) : 8 * (n % 4) + 8].mean((0, 1)) for n in range(16)]
             for t in range(video.shape[2])] for b in range(len(video))]  # fmt: skip
    losses = []
    for b in range(len(video)):
        found = []
        for t in range(1, video.shape[2]):
            seen = [(s, m) for s in range(max(0, t - learner.references), t) for m in range(16)]
            for n in range(16):
                cosine = [torch.cosine_similarity(tokens[b, t, n], tokens[b, s, m], dim=0).item() for s, m in seen]
                weights = [math.exp(c / learner.temperature) for c in cosine]
                for channel in hidden[b].nonzero().flatten().tolist():
                    def scaled(s, m, channel=channel, b=b):
                        return float((mean[b][s][m][channel]) / REACH[channel])

                    guess = sum(w * scaled(s, m) for w, (s, m) in zip(weights, seen, strict=True)) / sum(weights)
                    off = abs(guess - scaled(t, n))
                    found.append(off**2 / 2 if off < 0.1 else 0.1 * (off - 0.05))
        losses.append(sum(found) / len(found))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("hidden", ["any", "colour"])
def test_the_loss_equals_its_slow_twin(hidden):
    learner = ColourCopy(tiny_backbone(), hidden=hidden)
    batch = moving_squares(3, 0, frames=4).batch
    with torch.no_grad():
        assert learner(batch, "main").loss.item() == pytest.approx(slow_loss(learner, batch), rel=1e-4)


def test_a_hidden_channel_changes_nothing_that_the_network_sees():
    learner = ColourCopy(tiny_backbone(), hidden="colour").eval()
    lab = torch.tensor(MIDDLE) + torch.rand(2, 2, 32, 32, 3) * 20
    other = lab.clone()
    other[..., 1:] += 15
    hidden = learner.channels(torch.tensor([1, 2]))
    assert torch.equal(learner.embedded(lab, hidden), learner.embedded(other, hidden))
    assert not torch.equal(learner.embedded(lab, ~hidden), learner.embedded(other, ~hidden))


def test_every_channel_is_hidden_from_some_clips():
    hidden = ColourCopy(tiny_backbone()).channels(torch.arange(300))
    assert (hidden.sum(dim=1) == 1).all() and (hidden.sum(dim=0) > 60).all()


def test_bins_divide_the_range_of_a_channel_evenly():
    lab = torch.tensor([[0.0, -100, 99], [49, -1, 1], [100, 140, -140]])
    assert binned(lab, 4).unflatten(-1, (3, 4)).argmax(-1).tolist() == [[0, 0, 3], [1, 1, 2], [3, 3, 0]]
    assert torch.equal(binned(lab, 4).sum(-1), torch.full((3,), 3.0))


def test_it_recovers_a_translation_that_an_untrained_network_does_not():
    """Untrained, tokens of the same place are the most alike."""
    backbone = tiny_backbone()
    assert recovered(backbone) < 0.4
    learn(ColourCopy(backbone), lambda step: tiles(8, 1000 + step)[0], steps=60, lr=3e-3)
    assert recovered(backbone) > 0.95


def unguessed(drawn: torch.Tensor) -> torch.Tensor:
    """Colours, RGB, of which no channel of Lab tells another."""
    return to_rgb(torch.tensor([53.0, 0.0, 0.0]) + torch.tensor([10.0, 20.0, 20.0]) * (drawn - 0.5))


@torch.no_grad()
def share_of_even(learner: ColourCopy, batch) -> float:
    """The loss, as a share of what it is where all places are copied from evenly."""
    chosen, own = learner.temperature, learner(batch, "main").loss
    learner.temperature = 1e6
    even = learner(batch, "main").loss
    learner.temperature = chosen
    return (own / even).item()


@pytest.mark.parametrize(("alike", "low", "high"), [(True, 0.0, 0.75), (False, 0.98, 1.05)])
def test_from_frames_that_have_nothing_in_common_nothing_is_copied(alike, low, high):
    """The control: of what the frames before show nothing is better than its mean. Of one that moves on much is."""
    learner = ColourCopy(tiny_backbone())
    learn(learner, lambda step: tiles(8, 1000 + step, alike=alike, paint=unguessed)[0], steps=60, lr=3e-3)
    assert low < share_of_even(learner, tiles(32, 9999, alike=alike, paint=unguessed)[0]) < high


def test_wrong_arguments_are_refused():
    with pytest.raises(TubeletError, match=r"set backbone\.background to keep"):
        ColourCopy(tiny_backbone(background="remove"))
    for name, value in (("bins", 1), ("references", 0), ("radius", -1), ("temperature", 0.0)):
        with pytest.raises(TubeletError, match=f"learner.{name} must be"):
            ColourCopy(tiny_backbone(), **{name: value})
    with pytest.raises(TubeletError, match="two frames or more"):
        ColourCopy(tiny_backbone())(moving_squares(2, 0, frames=1).batch, "main")
