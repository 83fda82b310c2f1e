import colorsys
import math
from typing import get_args

import pytest
import torch

from tubelet import draws, registry
from tubelet.nn import views

KEYS = torch.tensor([draws.key("view", index) for index in range(64)])


def clips(count: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(count, 3, 4, 12, 10)


@pytest.mark.parametrize("strength", views.STRENGTHS)
def test_a_view_depends_on_its_key_and_name_alone(strength):
    video = clips()
    before = video.clone()
    view = views.augmented(video, KEYS, "first", strength)
    assert torch.equal(video, before)
    assert view.shape == video.shape and view.min() >= 0 and view.max() <= 1
    torch.testing.assert_close(views.augmented(video[5:8], KEYS[5:8], "first", strength), view[5:8])
    assert not torch.equal(views.augmented(video, KEYS, "second", strength), view)


def test_every_learner_with_changed_views_has_the_same_words_and_can_leave_them_as_they_are():
    words = {
        name: get_args(registry.schema(*place).__annotations__["strength"])
        for name, place in registry.catalogue("methods").items()
        if "strength" in registry.schema(*place).__annotations__
    }
    assert words.pop("moco_v3") == ("none", "byol")
    assert len(words) == 9 and set(words.values()) == {("none", "moco", "slowfast")}
    video = clips()
    assert views.augmented(video, KEYS, "first", "none") is video


def test_a_change_is_the_same_in_all_frames_unless_it_is_made_for_each():
    video = clips()[:, :, :1].expand(-1, -1, 4, -1, -1)
    changed = views.augmented(video, KEYS, "a", "byol, second")
    torch.testing.assert_close(changed, changed[:, :, :1].expand_as(changed))
    each = views.jitter(video, KEYS, "a", 0.4, 0.4, 0.4, 0.1, per_frame=True)
    assert (each[:, :, 0] - each[:, :, 1]).abs().mean() > 0.01


def test_chances_are_kept():
    video = clips()
    for change in (
        lambda chance: views.jitter(video, KEYS, "a", 0.4, 0.4, 0.4, 0.1, chance=chance),
        lambda chance: views.grey(video, KEYS, "a", chance),
        lambda chance: views.blur(video, KEYS, "a", chance, (20.0, 20.0)),
        lambda chance: views.solarise(video, KEYS, "a", chance),
    ):
        changed = (change(0.5) != video).flatten(1).any(dim=1)
        assert 16 <= changed.sum() <= 48
        assert torch.equal(change(0.0), video)
        assert (change(1.0) != video).flatten(1).any(dim=1).all()


def test_brightness_contrast_and_saturation_are_what_they_say():
    video = 0.25 + 0.5 * clips()  # nothing is cut off
    factor = 1 + 0.2 * (2 * draws.uniform(KEYS, 5, "a")[:, 1] - 1)
    bright = views.jitter(video, KEYS, "a", 0.2, 0, 0, 0)
    torch.testing.assert_close(bright, video * factor.view(-1, 1, 1, 1, 1))
    flat = views.jitter(video, KEYS, "a", 0, 0.2, 0, 0)
    torch.testing.assert_close(views.luminance(flat).mean(dim=(2, 3, 4)), views.luminance(video).mean(dim=(2, 3, 4)))
    dull = views.jitter(video, KEYS, "a", 0, 0, 0.2, 0)
    torch.testing.assert_close(views.luminance(dull), views.luminance(video))


def test_a_third_of_the_circle_swaps_colours_and_small_turns_are_those_of_hue():
    video = clips(2)
    third = views.turned(video, torch.full((2, 1, 1, 1, 1), 1 / 3))
    torch.testing.assert_close(third, video.roll(1, dims=1), atol=1e-5, rtol=1e-4)
    pixel = torch.tensor([0.6, 0.4, 0.45]).view(1, 3, 1, 1, 1)
    turned = views.turned(pixel, torch.full((1, 1, 1, 1, 1), 0.05)).flatten().tolist()
    hue = colorsys.rgb_to_hsv(*pixel.flatten().tolist())[0]
    assert (colorsys.rgb_to_hsv(*turned)[0] - hue) % 1 == pytest.approx(0.05, abs=0.01)


def test_blur_is_a_convolution_with_a_gaussian():
    picture = torch.zeros(1, 3, 1, 21, 21)
    picture[..., 10, 10] = 1
    out = views.blurred(picture, torch.tensor([1.5]), reach=8)[0, 0, 0]
    terms = [math.exp(-0.5 * (x / 1.5) ** 2) for x in range(-8, 9)]
    assert float(out[10, 10]) == pytest.approx((1 / sum(terms)) ** 2, rel=1e-4)
    assert float(out[10, 12]) == pytest.approx(terms[10] * terms[8] / sum(terms) ** 2, rel=1e-4)
    assert torch.equal(views.blurred(torch.ones(2, 3, 1, 5, 5), torch.tensor([0.0, 2.0]), 6).round(decimals=5),
                       torch.ones(2, 3, 1, 5, 5))  # fmt: skip


@pytest.mark.parametrize("strength", views.STRENGTHS)
def test_a_view_is_not_rounded_under_autocast(strength):
    """A blur's convolutions would be, to 7 bits."""
    plain = views.augmented(clips(), KEYS, "one", strength)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views.augmented(clips(), KEYS, "one", strength), plain)


def test_noise_has_its_deviation():
    video = torch.full((64, 3, 4, 12, 10), 0.5)
    assert (views.noise(video, KEYS, "a", 0.05) - 0.5).std() == pytest.approx(0.05, rel=0.02)
    each = views.noise(video, KEYS, "a", torch.linspace(0, 0.1, 64))
    assert torch.equal(each[0], video[0]) and (each[-1] - 0.5).std() == pytest.approx(0.1, rel=0.1)
