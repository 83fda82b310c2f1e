"""Frame prediction: paint the next frames of a clip, sharply enough for a critic."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.learner import Backbone, Learner
from tubelet.nn import adversarial
from tubelet.nn.patches import join
from tubelet.nn.positions import Positions
from tubelet.nn.transformer import Block, run_blocks, start_weights
from tubelet.registry import register
from tubelet.types import Batch, Output, TubeletError


@register("frame_prediction")
class FramePrediction(Learner):
    """Predicts the next frames against a critic (Mathieu, Couprie, LeCun, ICLR 2016, https://arxiv.org/abs/1511.05440).

    The backbone is the encoder of the predictor: it sees the frames so far, and it alone is exported. A decoder sees
    its tokens and a token in each place of the frames to come, and says how these differ from the last frame that was
    seen. The generator's loss has three parts (equation 7): the distance of the pixels (equation 5), that of their
    absolute gradients (equation 6) and what a critic thinks of it, who sees the same past (equations 2 to 4). Each step
    trains the critic, then the generator.

    What differs: one scale instead of four; a ViT with a decoder that starts from the last frame, in place of
    convolutions that paint all of the next; several frames at once; no bound on the pixels. The sums over pixels, and
    what is added to them, are divided by the number of values. The past is a clip as the backbone is made for, at twice
    its rate.

    Args:
        future: how many frames are predicted, a multiple of the backbone's tubelet.
        loss: distance of the pixels, "l1" or "l2".
        gradient: weight of the distance of their gradients.
        adversarial: weight of what the critic thinks; 0 = the critic changes nothing. The sums over pixels grow with
            the clip and this does not, so that the published 0.05 is hardly felt: of two frames of 16 x 16 pixels (in
            the test) it is a tenth of the gradient, and the critic is right of 85 % of the clips; with 5 it is right of
            58 %, for an error that is an eighth larger.
        decoder_dim: width of the decoder; None = half of the backbone's.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder; None = one for each 64 of its width, at least 1.
        critic_dim: channels of the critic's first layer; each of its four has twice those of the one before.
    """

    density = 2
    phases = ("critic", "generator")

    def __init__(
        self,
        backbone: Backbone,
        future: int = 2,
        loss: Literal["l1", "l2"] = "l1",
        gradient: float = 1.0,
        adversarial: float = 0.05,
        decoder_dim: int | None = None,
        decoder_depth: int = 2,
        decoder_heads: int | None = None,
        critic_dim: int = 32,
    ) -> None:
        super().__init__()
        self.patch, self.tubelet = backbone.config["patch"], backbone.config["tubelet"]
        if future < 1 or future % self.tubelet:
            raise TubeletError(
                f"learner.future must be a multiple of backbone.tubelet ({self.tubelet}), 1 or more, not {future}"
            )
        for name, value in {"gradient": gradient, "adversarial": adversarial}.items():
            if value < 0:
                raise TubeletError(f"learner.{name} must be 0 (off) or more, not {value:g}")
        self.backbone = backbone
        self.future, self.gradient, self.adversarial = future, gradient, adversarial
        self.distance = {"l1": F.l1_loss, "l2": F.mse_loss}[loss]
        dim = decoder_dim or backbone.dim // 2
        heads = decoder_heads or max(1, dim // 64)
        if dim % heads:
            raise TubeletError(f"learner.decoder_heads ({heads}) must divide learner.decoder_dim ({dim})")
        self.enter = nn.Linear(backbone.dim, dim, bias=False)
        self.place = Positions("flat", dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 3 * self.tubelet * self.patch**2)
        self.blocks.apply(start_weights)
        start_weights(self.head)
        with torch.no_grad():
            self.head.weight.mul_(0.01)  # close to the last frame, which is most of the next
        self.critic = Critic(critic_dim)

    def parameters_of(self, phase: str) -> list[tuple[str, nn.Parameter]]:
        """The critic's, or all others."""
        own = super().parameters_of(phase)
        return [(name, p) for name, p in own if name.startswith("critic.") == (phase == "critic")]

    def check_clip(self, frames: int, height: int, width: int) -> None:
        super().check_clip(frames, height, width)
        if self.future > frames:
            raise TubeletError(f"learner.future ({self.future}) must be no more than data.frames ({frames})")

    def forward(self, batch: Batch, phase: str) -> Output:
        (clip,) = batch["video"]  # B C 2T H W in [0, 1]
        frames = clip.shape[2] // self.density
        past, future = clip[:, :, :frames], clip[:, :, frames : frames + self.future]  # B C T H W, B C F H W
        if phase == "critic":
            with torch.no_grad():
                guess = self.predict(past)
            real, made = self.critic(past, future), self.critic(past, guess)  # B
            said_right = torch.cat([real > 0, made < 0]).float().mean()
            return Output(adversarial.of_critic(real, made), {"critic_accuracy": said_right})
        guess, values = self.predict(past), future[0].numel()  # B C F H W
        pixels, edges = self.distance(guess, future), gradient_difference(guess, future)
        fooled = adversarial.of_generator(self.critic(past, guess)) / values
        loss = pixels + self.gradient * edges + self.adversarial * fooled
        return Output(loss, {"pixels": pixels.detach(), "edges": edges.detach()})

    def predict(self, past: Tensor) -> Tensor:
        """The next frames, float32: B C T H W -> B C F H W."""
        tokens, (times, rows, columns) = self.backbone(past)  # B N D
        later = self.future // self.tubelet
        place = self.place((times + later, rows, columns), past.device)  # N+A d
        seen = self.enter(tokens)  # B N d
        asked = seen[:, -rows * columns :].repeat(1, later, 1)  # B A d
        both = torch.cat([seen, asked], dim=1) + place  # B N+A d
        both = run_blocks(self.blocks, both, self.backbone.config["checkpointing"])
        values = self.head(self.norm(both[:, tokens.shape[1] :])).float()  # B A P
        pieces = values.unflatten(2, (3, self.tubelet, self.patch, self.patch))  # B A C tubelet patch patch
        return past[:, :, -1:] + join(pieces, (later, rows, columns))  # B C F H W


def gradient_difference(guess: Tensor, truth: Tensor) -> Tensor:
    """By how much the absolute differences of neighbouring pixels are off (equation 6, alpha 1), for each value.

    Args:
        guess: B C F H W.
        truth: B C F H W.

    Returns:
        The sum over both directions, divided by the number of values: a scalar.
    """
    off = [(guess.diff(dim=axis).abs() - truth.diff(dim=axis).abs()).abs().sum() for axis in (3, 4)]
    return (off[0] + off[1]) / truth.numel()


class Critic(nn.Module):
    """Whether frames follow their past: four convolutions over space and time, and one score for a clip.

    Without batch norms, so that what is said of a clip depends on no other.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = (3, dim, 2 * dim, 4 * dim, 8 * dim)
        self.layers = nn.ModuleList(
            nn.Conv3d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        """B C T H W and B C F H W -> B."""
        maps = 2 * torch.cat([past, future], dim=2) - 1  # B C T+F H W in [-1, 1]
        for layer in self.layers:
            maps = F.leaky_relu(layer(maps), 0.2)  # half of each length
        return self.head(maps.mean(dim=(2, 3, 4)))[:, 0]
