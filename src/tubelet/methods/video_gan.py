"""Video GAN: tell real clips from those that a generator makes of noise; what tells them apart is the backbone."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from tubelet import draws
from tubelet.learner import Backbone, Learner
from tubelet.nn import adversarial
from tubelet.nn.heads import BatchNorm
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError

NEAR = 0.01
"""Deviation of the noise by which the slope of the critic is measured."""


@register("video_gan")
class VideoGAN(Learner):
    """A generator of clips and its critic (Vondrick, Pirsiavash, Torralba, NIPS 2016, https://arxiv.org/abs/1609.02612).

    The generator makes a moving foreground, a mask and a still background of the same noise, and lays one over the
    other: ``mask * foreground + (1 - mask) * background`` (equation 2). The mask is kept small (section 3.2). The
    critic, whose features are the representation (section 4.4), is the backbone with a head that says real or made.
    Each step trains the critic, then the generator.

    What differs: the critic is the backbone, not five convolutions; the generator has as many upsamplings as the clip
    can be halved, four at most (published: always four, from 2 x 4 x 4 to 32 x 64 x 64), and its batch norms keep no
    statistics.

    Args:
        latent: numbers of noise that a clip is made of.
        width: channels before the last layer; each layer towards the noise has twice as many, up to eight times.
        sparsity: weight of the mean of the mask.
        smooth: gamma of the R1 penalty on the critic's squared slope at real clips, without which it is soon sure of
            everything (Mescheder et al. 2018, equation 9, there 10: gamma / 2 of it beside the sum of both
            cross-entropies, of which the loss here is half). It is measured by a little noise, which needs no second
            derivatives (Lin et al. 2025, arXiv:2501.08316, section 3.3); 0 as published.
    """

    compares_clips = True
    """By the generator's batch norms."""
    phases = ("critic", "generator")

    def __init__(
        self,
        backbone: Backbone,
        latent: int = 100,
        width: int = 64,
        sparsity: float = 0.1,
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in {"sparsity": sparsity, "smooth": smooth}.items():
            if value < 0:
                raise TubeletError(f"learner.{name} must be 0 (off) or more, not {value:g}")
        if smooth and backbone.config.get("drop_path"):
            raise TubeletError(
                "learner.smooth measures how the critic's score changes from a clip to one close by, and random paths "
                "change it more: set backbone.drop_path to 0"
            )
        if backbone.config["made_for"] is None:
            raise TubeletError("video_gan makes clips of one size: set backbone.made_for to frames, height and width")
        self.latent, self.sparsity, self.smooth = latent, sparsity, smooth
        self.backbone = backbone
        self.head = nn.Linear(backbone.dim, 1)
        self.generator = Generator(latent, width, tuple(backbone.config["made_for"]))

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """The generator's, or the backbone's with its head."""
        own = super().parameters_of(phase)
        return [(name, p) for name, p in own if name.startswith("generator.") == (phase == "generator")]

    def forward(self, batch: Batch, phase: str) -> Output:
        (video,) = batch["video"]  # B C T H W in [0, 1]
        noise = draws.normal(batch["key"], self.latent, phase)  # B Z
        if phase == "generator":
            made, mask = self.generator(noise)  # B C T H W, B 1 T H W
            loss = adversarial.of_generator(self.score(made)) + self.sparsity * mask.mean()
            return Output(loss, {"mask": mask.detach().mean()})
        with torch.no_grad():
            made, _ = self.generator(noise)
        if self.smooth:
            near = video + NEAR * draws.normal(batch["key"], video[0].numel(), "near").view_as(video)
            with torch.autocast(video.device.type, enabled=False):  # whose rounding is more than so small a change
                real, close = self.score(video), self.score(near)  # B
        else:
            real = close = self.score(video)  # B
        false = self.score(made.to(video.dtype))  # B
        told_apart = adversarial.of_critic(real, false)
        loss = told_apart + self.smooth / 4 * ((close - real) / NEAR).square().mean()
        said_right = torch.cat([real > 0, false < 0]).float().mean()
        return Output(loss, {"critic_accuracy": said_right, "told_apart": told_apart.detach()})

    def score(self, video: Tensor) -> Tensor:
        """How real clips look, float32: B C T H W -> B."""
        return self.head(self.backbone(video).tokens.mean(dim=1))[:, 0].float()


class Generator(nn.Module):
    """Noise to clips: a foreground with its mask, and a background for all frames.

    Args:
        latent: Z.
        width: channels before the last layers.
        clip: frames, height and width of the clips.
    """

    def __init__(self, latent: int, width: int, clip: tuple[int, ...]) -> None:
        super().__init__()
        doublings = next((n for n in (4, 3, 2, 1) if all(length % 2**n == 0 for length in clip)), 0)
        if not doublings:
            raise TubeletError(f"video_gan doubles its way to a clip: frames and size must be even, not {clip}")
        start = tuple(length // 2**doublings for length in clip)  # t h w
        widths = [width * 2**n for n in reversed(range(doublings))]
        self.foreground = doubled(latent, widths, start)
        self.background = doubled(latent, widths, start[1:])
        self.paint = nn.ConvTranspose3d(width, 3, 4, stride=2, padding=1)
        self.cover = nn.ConvTranspose3d(width, 1, 4, stride=2, padding=1)
        self.paint_background = nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1)
        self.apply(start_small)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """B Z -> the clips, B C T H W in [0, 1], and their masks, B 1 T H W: 1 = foreground."""
        maps = self.foreground(noise)  # B width T/2 H/2 W/2
        mask = self.cover(maps).sigmoid()  # B 1 T H W
        moving = self.paint(maps).tanh()  # B C T H W
        still = self.paint_background(self.background(noise)).tanh()[:, :, None]  # B C 1 H W
        return (mask * moving + (1 - mask) * still + 1) / 2, mask


def doubled(latent: int, widths: list[int], start: tuple[int, ...]) -> nn.Sequential:
    """Noise, B Z, to maps of the size ``start``, whose lengths then double from one width to the next."""
    convolution = nn.ConvTranspose3d if len(start) == 3 else nn.ConvTranspose2d
    layers = [nn.Linear(latent, widths[0] * math.prod(start), bias=False), nn.Unflatten(1, (widths[0], *start))]
    layers += [MapNorm(widths[0]), nn.ReLU()]
    for before, after in pairwise(widths):
        layers += [convolution(before, after, 4, stride=2, padding=1, bias=False), MapNorm(after), nn.ReLU()]
    return nn.Sequential(*layers)


class MapNorm(BatchNorm):
    """A batch norm of each channel over all places of all clips."""

    def forward(self, values: Tensor) -> Tensor:
        """B C ... -> B C ..."""
        last = values.movedim(1, -1)  # B ... C
        return super().forward(last.flatten(0, -2)).view(last.shape).movedim(-1, 1)


def start_small(module: nn.Module) -> None:
    """The published start: small normal weights, no biases."""
    if isinstance(module, nn.Linear | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
