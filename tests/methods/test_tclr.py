import math

import pytest
import torch
import torch.nn.functional as F

from oracles import learn, still, tiny_backbone
from tubelet.methods.tclr import TCLR, Encoded
from tubelet.types import TubeletError
from windows import directions_used, recalled, windows

SMALL = {"tclr": {"learner": {"parts": 2, "dim": 8, "hidden": 16}}}


def make(**options) -> TCLR:
    return TCLR(tiny_backbone(dim=48, background="remove"), dim=32, hidden=64, **options)


def drawn(seed: int, videos: int = 3, parts: int = 4) -> Encoded:
    torch.manual_seed(seed)
    shapes = ((videos, 8), (videos, parts, 8), (videos, parts, 8))
    return Encoded(*(F.normalize(torch.randn(shape), dim=-1) for shape in shapes))


def share(positive, everything) -> float:
    return -math.log(math.exp(float(positive) / 0.1) / sum(math.exp(float(score) / 0.1) for score in everything))


def slow_nt_xent(rows, others) -> float:
    """NT-Xent of two lists of vectors, row by row."""
    both = [*rows, *others]
    total, count = 0.0, len(rows)
    for i, row in enumerate(both):
        total += share(row @ both[(i + count) % (2 * count)], [row @ other for j, other in enumerate(both) if j != i])
    return total / (2 * count)


def test_the_three_losses_against_slow_twins():
    learner, one, other = make(), drawn(0), drawn(1)
    parts = sum(slow_nt_xent(one.parts[:, t], other.parts[:, t]) for t in range(4)) / 4
    instance = learner.instance(one, other, torch.arange(3))
    assert instance.item() == pytest.approx(slow_nt_xent(one.whole, other.whole) + parts, abs=1e-5)
    local = sum(slow_nt_xent(one.parts[video], other.parts[video]) for video in range(3)) / 3
    assert learner.local_local(one, other).item() == pytest.approx(local, abs=1e-5)
    terms = []
    for slices in (one.slices, other.slices):
        for dense in (one.parts, other.parts):
            for video in range(3):
                for t in range(4):
                    terms.append(share(slices[video, t] @ dense[video, t], slices[video, t] @ dense[video].T))
                    terms.append(share(slices[video, t] @ dense[video, t], dense[video, t] @ slices[video].T))
    assert learner.global_local(one, other).item() == pytest.approx(2 * sum(terms) / len(terms), abs=1e-5)


def test_parts_and_slices_are_of_the_same_moments():
    """A clip whose brightness grows: a part is the dense clip of a quarter, a slice the tokens of that quarter."""
    learner = TCLR(tiny_backbone(dim=48), dim=32, hidden=64).eval()
    video = torch.linspace(0, 1, 32)[None, None, :, None, None].expand(2, 3, 32, 24, 24)
    found = learner.encode(video)
    assert learner.density == 4
    clips = [learner.backbone(video[:, :, 8 * t : 8 * t + 8]).tokens.mean(dim=1) for t in range(4)]  # P x B D
    torch.testing.assert_close(found.parts, learner.project(torch.stack(clips, dim=1)))
    tokens = learner.backbone(video[:, :, ::4]).tokens  # 4 times of 3 x 3 tokens
    slices = [tokens[:, 9 * t : 9 * t + 9].mean(dim=1) for t in range(4)]
    torch.testing.assert_close(found.slices, learner.project(torch.stack(slices, dim=1)))
    torch.testing.assert_close(found.whole, learner.project(tokens.mean(dim=1)))


def test_parts_that_do_not_divide_the_tokens_are_refused():
    learner = make(parts=3)
    learner.backbone.register_forward_hook(lambda *_: pytest.fail("it is known before anything is encoded"))
    with pytest.raises(TubeletError, match=r"learner.parts \(3\) must divide the clip's 4 tokens along time"):
        learner(windows(2, seed=0, density=3), "main")
    with pytest.raises(TubeletError, match="parts must be 2 or more"):
        make(parts=1)


def test_it_learns_to_see_which_way_squares_move():
    learner, batches = make(), [windows(16, seed, density=4) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=30, lr=3e-3)
    assert recalled(learner.backbone) > 0.85 > untrained + 0.1
    assert directions_used(learner, windows(64, seed=7, views=1)) > 4


def test_where_nothing_moves_it_learns_nothing_of_directions():
    """The control, of as many steps as are enough to see them where squares move."""
    learner, batches = make(), [still(windows(16, seed, density=4)) for seed in range(6)]
    untrained = recalled(learner.backbone)
    learn(learner, lambda step: batches[step % 6], steps=12, lr=3e-3)
    assert recalled(learner.backbone) < untrained + 0.08
