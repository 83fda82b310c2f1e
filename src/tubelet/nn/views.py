"""Changes of colour and sharpness that make views of clips, in batches on the device.

Each is the same in all frames of a clip (as in CVRL, Qian et al. 2021, section 3.3), unless it says otherwise, and is
drawn from the clip's key and the name of the view, so that it depends on no generator, process or batch. Crops and
mirror images differ between views already: the loader makes them.

Clips are B C T H W in [0, 1] and stay so; ``chance`` is that of a clip to be changed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet import draws

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""


class Strength(NamedTuple):
    """How strongly views are changed; the crop is the loader's."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter: float
    """Chance of the four above."""
    grey: float
    blur: float
    solarise: float = 0.0


STRENGTHS = {
    "moco": Strength(0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.5),
    "slowfast": Strength(0.6, 0.6, 0.6, 0.15, 0.8, 0.2, 0.5),
    "byol, first": Strength(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 1.0),
    "byol, second": Strength(0.4, 0.4, 0.2, 0.1, 0.8, 0.2, 0.1, 0.2),
}
"""Of MoCo v2 (Chen et al. 2020), the video study of Feichtenhofer et al. (2021, as PySlowFast has it), and the two
views of BYOL and MoCo v3 (Grill et al. 2020, table 6)."""


def augmented(video: Tensor, keys: Tensor, stream: str, strength: str = "moco") -> Tensor:
    """A view of each clip: colours, grey, blur and, where `STRENGTHS` has it, solarisation, in this order.

    Args:
        strength: of `STRENGTHS`, or "none", for flow.
    """
    if strength == "none":
        return video
    how = STRENGTHS[strength]
    video = jitter(
        video, keys, f"{stream} jitter", how.brightness, how.contrast, how.saturation, how.hue, chance=how.jitter
    )
    video = grey(video, keys, f"{stream} grey", how.grey)
    video = blur(video, keys, f"{stream} blur", how.blur)
    return solarise(video, keys, f"{stream} solarise", how.solarise) if how.solarise else video


def jitter(
    video: Tensor,
    keys: Tensor,
    stream: str,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    chance: float = 1.0,
    per_frame: bool = False,
) -> Tensor:
    """Other brightness, contrast, saturation and hue, in this order.

    The first three are factors from 1 - x to 1 + x, the last a turn of up to x of the circle of colours, either way.

    Args:
        per_frame: each frame is changed by itself, which hides what tells frames apart for the wrong reasons.
    """
    batch, _, frames = video.shape[:3]
    count = frames if per_frame else 1
    drawn = draws.uniform(keys, 4 * count + 1, stream)  # B 4t+1
    changed = drawn[:, 0] < chance  # B
    signed = (2 * drawn[:, 1:] - 1).view(batch, 4, 1, count, 1, 1)
    by_brightness, by_contrast, by_saturation, turn = signed.unbind(1)  # B 1 t 1 1
    other = (video * (1 + brightness * by_brightness)).clamp(0, 1)
    middle = luminance(other).mean(dim=(3, 4) if per_frame else (2, 3, 4), keepdim=True)  # B 1 t 1 1
    other = ((other - middle) * (1 + contrast * by_contrast) + middle).clamp(0, 1)
    colourless = luminance(other)
    other = ((other - colourless) * (1 + saturation * by_saturation) + colourless).clamp(0, 1)
    if hue:
        other = turned(other, hue * turn)
    return torch.where(changed.view(-1, 1, 1, 1, 1), other, video)


def turned(video: Tensor, turn: Tensor) -> Tensor:
    """Hues turned by a share of the circle, B 1 t 1 1: a rotation of red, green and blue about the axis of greys.

    It keeps what a rotation keeps, the mean of the three; the hue of HSV, which keeps the largest, costs several times
    as much and differs little for small turns.
    """
    angle = (2 * torch.pi * turn).squeeze(1)  # B t 1 1
    cosine, side = angle.cos(), angle.sin() / 3**0.5
    share = (1 - cosine) / 3
    red, green, blue = video.unbind(1)  # B T H W
    own, next_, before = cosine + share, share - side, share + side
    pictures = (
        own * red + next_ * green + before * blue,
        before * red + own * green + next_ * blue,
        next_ * red + before * green + own * blue,
    )
    return torch.stack(pictures, dim=1).clamp(0, 1)  # B C T H W


def grey(video: Tensor, keys: Tensor, stream: str, chance: float) -> Tensor:
    """Without colours."""
    changed = draws.uniform(keys, 1, stream) < chance  # B 1
    return torch.where(changed.view(-1, 1, 1, 1, 1), luminance(video), video)


def blur(
    video: Tensor, keys: Tensor, stream: str, chance: float, sigma: tuple[float, float] = (0.1, 2.0)
) -> Tensor:
    """A Gaussian blur; its deviation is drawn from ``sigma``, pixels of a picture of 224, of which smaller get less."""
    drawn = draws.uniform(keys, 2, stream)  # B 2
    scale = max(video.shape[-2:]) / 224
    deviation = (sigma[0] + (sigma[1] - sigma[0]) * drawn[:, 1]) * scale  # B
    other = blurred(video, deviation, reach=math.ceil(3 * sigma[1] * scale))
    return torch.where((drawn[:, 0] < chance).view(-1, 1, 1, 1, 1), other, video)


def blurred(video: Tensor, deviation: Tensor, reach: int) -> Tensor:
    """Each clip convolved with a Gaussian of its own deviation in pixels, B, up to ``reach``; borders are repeated."""
    batch, channels, frames, height, width = video.shape
    place = torch.arange(-reach, reach + 1, device=video.device)
    kernel = torch.exp(-0.5 * (place / deviation.clamp(min=1e-3)[:, None]).square())  # B R
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(video.dtype)
    pictures = video.transpose(0, 2).reshape(frames * channels, batch, height, width)  # T*C B H W
    pictures = F.pad(pictures, (reach, reach, reach, reach), mode="replicate")
    with torch.autocast(video.device.type, enabled=False):  # in which pixels would be rounded to 7 bits
        pictures = F.conv2d(pictures, kernel[:, None, :, None], groups=batch)
        pictures = F.conv2d(pictures, kernel[:, None, None, :], groups=batch)
    return pictures.view(frames, channels, batch, height, width).transpose(0, 2)  # B C T H W


def solarise(video: Tensor, keys: Tensor, stream: str, chance: float, threshold: float = 0.5) -> Tensor:
    """Values from the threshold on are turned about: 1 - x."""
    changed = (draws.uniform(keys, 1, stream) < chance).view(-1, 1, 1, 1, 1)
    return torch.where(changed & (video >= threshold), 1 - video, video)


def noise(video: Tensor, keys: Tensor, stream: str, deviation: float | Tensor) -> Tensor:
    """Adds normal noise to every value, fresh in each frame.

    Args:
        deviation: of all clips, or of each: B.
    """
    drawn = draws.normal(keys, video[0].numel(), stream).view_as(video)  # B C T H W
    if isinstance(deviation, Tensor):
        deviation = deviation.view(-1, 1, 1, 1, 1)
    return (video + deviation * drawn).clamp(0, 1)


def luminance(video: Tensor) -> Tensor:
    """B C T H W -> B 1 T H W."""
    weights = torch.tensor(GREY, dtype=video.dtype, device=video.device).view(1, 3, 1, 1, 1)
    return (video * weights).sum(dim=1, keepdim=True)  # B 1 T H W
