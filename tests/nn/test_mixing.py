import math

import numpy
import pytest
import torch

from tubelet import draws
from tubelet.nn import mixing
from tubelet.nn.mixing import erase, mix

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)


def keys(*parts: int) -> torch.Tensor:
    return torch.tensor([draws.key("sample", part) for part in parts])


def video(count=4, frames=4, height=20, width=30):
    return torch.rand(count, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


def test_mixup_against_its_definition():
    clips = video()
    mixed, share = mix(clips, keys(3, 4, 5, 6), mixup=0.8, cutmix=0)
    assert 0 < share < 1
    for i in range(4):
        torch.testing.assert_close(mixed[i], share * clips[i] + (1 - share) * clips[3 - i])


@pytest.mark.parametrize("seed", range(30))
def test_cutmix_cuts_height_by_width_the_same_box_in_all_frames(seed):
    """The published `pair` mode slices frames and height of a clip instead (videomae.md 1b)."""
    clips = video(2, frames=5)
    mixed, share = mix(clips, keys(seed, 0), mixup=0, cutmix=1.0)
    of_partner = (mixed[0] != clips[0]).all(0)  # T H W
    assert torch.equal(of_partner, (mixed[0] == clips[1]).all(0))
    assert all(torch.equal(frame, of_partner[0]) for frame in of_partner)
    rows, columns = of_partner[0].any(1).nonzero().flatten(), of_partner[0].any(0).nonzero().flatten()
    assert of_partner[0].sum() == len(rows) * len(columns)  # one box
    assert share == pytest.approx(1 - of_partner[0].float().mean().item())  # of the area that is really there
    assert torch.equal((mixed[1] == clips[0]).all(0), of_partner)  # all clips have it at the same place


def test_the_share_is_beta_and_both_kinds_come_half_and_half():
    clips = video(2, 1, 10, 10)
    shares, cuts = [], 0
    for seed in range(600):
        mixed, share = mix(clips, keys(seed, 0), mixup=0.8, cutmix=1.0)
        is_cut = bool(((mixed == clips) | (mixed == clips.flip(0))).all())
        cuts += is_cut
        if not is_cut:
            shares.append(share)
    assert 250 < cuts < 350
    slow = numpy.random.default_rng(0).beta(0.8, 0.8, 20_000)
    assert numpy.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert numpy.std(shares) == pytest.approx(slow.std(), abs=0.03)


def test_mixing_depends_on_the_keys_alone():
    first = mix(video(), keys(7, 8, 9, 10), 0.8, 1.0)
    torch.manual_seed(5)
    again = mix(video(), keys(7, 8, 9, 10), 0.8, 1.0)
    assert torch.equal(first.video, again.video) and first.share == again.share
    assert mix(video(), keys(8, 8, 9, 10), 0.8, 1.0).share != first.share


def test_a_clip_alone_is_its_own_partner():
    clips = video(1)
    torch.testing.assert_close(mix(clips, keys(1), 0.8, 0).video, clips)


def boxes(before: torch.Tensor, after: torch.Tensor) -> list[tuple[int, int, int, int] | None]:
    """Top, left, height and width of what changed in each clip, in all frames and channels alike."""
    found = []
    for one, other in zip(before, after, strict=True):
        changed = (one != other).flatten(0, 1)  # C*T H W
        assert all(torch.equal(plane, changed[0]) for plane in changed)
        rows, columns = changed[0].any(1).nonzero().flatten(), changed[0].any(0).nonzero().flatten()
        if not len(rows):
            found.append(None)
            continue
        assert changed[0].sum() == len(rows) * len(columns)
        found.append((int(rows[0]), int(columns[0]), len(rows), len(columns)))
    return found


def test_erasing_is_a_box_in_all_frames_of_some_clips():
    clips = video(400, 2, 24, 24)
    found = boxes(clips, erase(clips, keys(*range(400)), 0.25, MEAN, DEVIATION))
    erased = [box for box in found if box is not None]
    assert 75 < len(erased) < 125
    shares = [h * w / 24**2 for _, _, h, w in erased]
    shapes = [h / w for _, _, h, w in erased]
    assert min(shares) > 0.01 and max(shares) < 0.37
    assert min(shapes) > 0.2 and max(shapes) < 5
    assert len({box[:2] for box in erased}) > 40
    assert all(top + h <= 24 and left + w <= 24 for top, left, h, w in erased)


def test_erased_pixels_are_standard_normal_once_normalised():
    clips = torch.rand(40, 3, 4, 48, 48)
    erased = erase(clips, keys(*range(40)), 1.0, MEAN, DEVIATION)
    noise = ((erased - MEAN) / DEVIATION)[erased != clips]
    assert len(noise) > 100_000
    assert noise.mean().abs() < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
    within = (noise.abs() < 1).float().mean().item()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)
    one = (erased != clips)[0, 0, 0]
    assert not torch.equal(erased[0, 0, 0][one], erased[0, 0, 1][one])  # the noise is new in each frame


def test_erasing_a_clip_does_not_depend_on_its_batch():
    """So that micro-batches, and one process or two, see the same."""
    clips, of = video(8), keys(*range(8))
    whole = erase(clips, of, 0.5, MEAN, DEVIATION)
    assert torch.equal(whole[3:5], erase(clips[3:5], of[3:5], 0.5, MEAN, DEVIATION))
    assert not torch.equal(whole, clips)


def test_a_box_that_never_fits_is_left_out(monkeypatch):
    monkeypatch.setattr(mixing, "ERASED", (0.99, 1.0))
    clips = video(3)
    assert torch.equal(erase(clips, keys(1, 2, 3), 1.0, MEAN, DEVIATION), clips)
