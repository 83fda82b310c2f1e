"""VideoMAE: hide most of a video in tubes, and predict the hidden pixels from the few that are left."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.checkpoint import load_backbone
from tubelet.learner import Backbone, Learner
from tubelet.nn import masks, targets
from tubelet.nn.memory import Frozen
from tubelet.nn.patches import cubes, join
from tubelet.nn.positions import Positions
from tubelet.nn.transformer import Block, run_blocks, start_weights
from tubelet.registry import register
from tubelet.types import Batch, Grid, Output, TubeletError


class Reconstruction(NamedTuple):
    """What the learner sees and imagines; videos are B C T H W in [0, 1]."""

    original: Tensor
    masked: Tensor
    """The original with the hidden cubes grey."""
    reconstructed: Tensor
    """The visible cubes as they are, the hidden ones as predicted."""
    hidden: Tensor
    """B N, True = hidden."""
    told: str
    """What the hidden cubes were given besides the prediction, for whoever looks at the picture."""


@register("videomae")
class VideoMAE(Learner):
    """Masked autoencoding of video (Tong, Song, Wang, Wang: VideoMAE, NeurIPS 2022; V2: Wang et al., CVPR 2023).

    The encoder sees only the visible cubes; a small decoder sees them and a mask token in each place that it is asked
    for, and predicts what is there. The loss is taken over hidden cubes only (equation 2). With ``decoder_ratio`` the
    decoder is asked for a part of the places (V2 section 3.2, dual masking).

    Args:
        ratio: share of the cubes that is hidden.
        mask: "tube" hides the same places in every frame, "random" any cubes, "frame" whole frames, "block" large boxes
            of space and time, "running" a cell that moves on from frame to frame, "motion" tubes where much moves.
        decoder_dim: width of the decoder; None = half of the backbone's.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder; None = one for each 64 of its width, at least 1.
        decoder_mlp: width of the inner layer of the decoder's MLPs, in token widths; 48/11 beside V2's giant encoder.
        decoder_ratio: share of the places that the decoder leaves out by a running cell; V2 has 0.5, V1 none.
        target: what is predicted: "pixels", their "difference" from the frame before, "hog" (gradient histograms of a
            cube's middle frame, as MaskFeat) or the tokens of a "teacher".
        normalise: pixels and differences relative to the mean and deviation of their own cube and "channel" (as
            published), of their whole "cube" (mae_st), or "none".
        target_frames: of which frames: those "seen" by the encoder, the clip's "centre" one, "one" of each cube
            (mae_st), or, with data.density 2, as many at half the stride ("denser") or twice as many ("double").
        loss: "mse" (as published), "l1" or "smooth_l1".
        teacher: folder of a run or a converted checkpoint whose encoder is the teacher.
    """

    def __init__(
        self,
        backbone: Backbone,
        ratio: float = 0.9,
        mask: Literal["tube", "random", "frame", "block", "running", "motion"] = "tube",
        decoder_dim: int | None = None,
        decoder_depth: int = 4,
        decoder_heads: int | None = None,
        decoder_mlp: float = 4.0,
        decoder_ratio: float = 0.0,
        target: Literal["pixels", "difference", "hog", "teacher"] = "pixels",
        normalise: Literal["channel", "cube", "none"] = "channel",
        target_frames: Literal["seen", "centre", "one", "denser", "double"] = "seen",
        loss: Literal["mse", "l1", "smooth_l1"] = "mse",
        teacher: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.ratio, self.decoder_ratio = ratio, decoder_ratio
        self.mask: masks.Kind = mask
        self.kind, self.target_frames, self.error = target, target_frames, loss
        self.normalise: targets.Normalise = normalise
        self.patch, self.tubelet = backbone.config["patch"], backbone.config["tubelet"]
        self.density = 2 if target_frames in ("denser", "double") else 1
        known = None if teacher is None else load_backbone(teacher)
        self.teacher = None if known is None else Frozen(known)
        self._refuse_contradictions()
        dim = decoder_dim or backbone.dim // 2
        heads = decoder_heads or max(1, dim // 64)
        if dim % heads:
            raise TubeletError(f"learner.decoder_heads ({heads}) must divide learner.decoder_dim ({dim})")
        self.enter = nn.Linear(backbone.dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        made_for = backbone.config["made_for"]
        self.place = Positions(
            backbone.config["positions"], dim, None if made_for is None else backbone.grid(*made_for)
        )
        cosine = backbone.config["attention"] == "cosine"
        self.blocks = nn.ModuleList(Block(dim, heads, decoder_mlp, cosine=cosine) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, self._values() if known is None else known.dim)
        self.blocks.apply(start_weights)
        start_weights(self.head)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def _refuse_contradictions(self) -> None:
        if self.mask not in ("tube", "motion") and self.backbone.config.get("background") == "remove":
            raise TubeletError(
                f"learner.mask {self.mask} with backbone.background remove would show what is hidden, through the mean "
                "over time: use learner.mask tube or backbone.background keep"
            )
        if self.mask == "frame" and self.target_frames == "centre":
            raise TubeletError(
                "learner.mask frame leaves the centre frame of many clips to be seen, with nothing to predict: use "
                "another mask, or learner.target_frames seen"
            )
        if not 0 <= self.decoder_ratio < 1:
            raise TubeletError(f"learner.decoder_ratio must be in 0..1 (1 excluded), not {self.decoder_ratio:g}")
        if self.kind in ("hog", "teacher") and self.target_frames != "seen":
            raise TubeletError(f"learner.target {self.kind} is of the frames seen: set learner.target_frames to seen")
        if (self.kind == "teacher") != (self.teacher is not None):
            raise TubeletError("learner.target teacher needs learner.teacher, a folder with weights; others do not")
        if self.kind == "hog" and self.patch % 2:
            raise TubeletError(f"learner.target hog has 2 x 2 cells a cube: backbone.patch {self.patch} is odd")

    def _values(self) -> int:
        """How many values of the video the target of one cube has."""
        if self.kind == "hog":
            return 3 * 2 * 2 * 9
        frames = {"centre": 1, "one": 1, "double": 2 * self.tubelet}.get(self.target_frames, self.tubelet)
        return 3 * frames * self.patch**2

    def forward(self, batch: Batch, phase: str) -> Output:
        (clip,) = batch["video"]  # B C T*density H W in [0, 1]
        video = clip[:, :, :: self.density]  # B C T H W
        grid = self.backbone.grid(*video.shape[2:])
        hidden = masks.draw(self.mask, batch["key"], video, grid, self.ratio)  # B N
        asked = self.asked(hidden, batch["key"], grid)  # B N
        seen = self.enter(self.backbone(video, hidden).tokens)  # B N-M d
        guess = self.decode(seen, hidden, grid, asked)  # B A P
        error = self.distance(guess.float(), self.target(clip, asked))  # B A
        # a place that is asked for and visible says nothing; every clip counts alike
        counted = masks.masked(hidden, asked).float()  # B A
        return Output(((error * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean())

    def asked(self, hidden: Tensor, keys: Tensor, grid: Grid) -> Tensor:
        """The places that the decoder predicts, equally many of every clip: B N bool.

        The hidden ones; with dual masking, whatever the running cell leaves, visible places too (as published: they are
        predicted and not counted); for the centre frame, all places of its time.
        """
        if self.decoder_ratio == 0 and self.target_frames != "centre":
            return hidden
        asked = torch.ones_like(hidden)
        if self.decoder_ratio:
            asked &= ~masks.running(keys, grid, self.decoder_ratio, "decoder")
        if self.target_frames == "centre":
            time = torch.arange(grid[0], device=hidden.device).repeat_interleave(grid[1] * grid[2])  # N
            asked &= time == grid[0] // 2
        return asked

    def decode(self, seen: Tensor, hidden: Tensor, grid: Grid, asked: Tensor | None = None) -> Tensor:
        """Predicts the places asked for (the hidden ones, unless told): B N-M d -> B A P.

        Visible tokens come first and are never put back in order.
        """
        asked = hidden if asked is None else asked
        place = self.place(grid, seen.device)[None]  # 1 N d
        seen = seen + masks.visible(place, hidden)  # B N-M d
        queries = self.mask_token + masks.masked(place, asked)  # B A d
        tokens = torch.cat([seen, queries.to(seen.dtype)], dim=1)  # B N-M+A d
        tokens = run_blocks(self.blocks, tokens, self.backbone.config["checkpointing"])
        return self.head(self.norm(tokens[:, -queries.shape[1] :]))  # B A P

    def distance(self, guess: Tensor, target: Tensor) -> Tensor:
        """The loss of each cube, the mean over its values: B A P -> B A."""
        by_value = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[self.error]
        return by_value(guess, target, reduction="none").mean(dim=2)  # B A

    @torch.no_grad()
    def target(self, clip: Tensor, asked: Tensor) -> Tensor:
        """What the places asked for should read, ordered frame, row, column, channel (innermost): B A P.

        Args:
            clip: B C T*density H W.
        """
        if self.teacher is not None:
            tokens, grid = self.teacher.network(clip)
            if tokens.shape[1] != asked.shape[1]:
                cells = " x ".join(map(str, grid))
                raise TubeletError(f"learner.teacher has {cells} tokens: its cubes must be of the learner's size")
            return F.layer_norm(masks.masked(tokens.float(), asked), tokens.shape[-1:])  # B A P
        if self.kind == "hog":
            return self._histograms(clip, asked)
        pieces = masks.masked(self.pieces(clip), asked).float()  # B A C t patch patch
        mean, deviation = targets.statistics(pieces, self.normalise)
        return targets.values((pieces - mean) / deviation)  # B A P

    def pieces(self, clip: Tensor) -> Tensor:
        """The pixels (or their change) that each place should read: B C T*density H W -> B N C t patch patch."""
        clip = self.backbone.prepare(clip)
        if self.kind == "difference":
            clip = targets.difference(clip)
        frames = clip.shape[2] // self.density
        if self.target_frames == "double":
            return cubes(clip, 2 * self.tubelet, self.patch)
        if self.target_frames == "denser":
            return cubes(clip[:, :, frames // 2 : frames // 2 + frames], self.tubelet, self.patch)
        if self.target_frames == "one":
            chosen = torch.linspace(0, frames - 1, frames // self.tubelet, device=clip.device).long()  # t
            return cubes(clip[:, :, chosen], 1, self.patch)
        if self.target_frames == "centre":
            centre = cubes(clip[:, :, frames // 2][:, :, None], 1, self.patch)  # B h*w C 1 patch patch
            return centre.repeat(1, frames // self.tubelet, 1, 1, 1, 1)  # B N C 1 patch patch
        return cubes(clip, self.tubelet, self.patch)

    def _histograms(self, clip: Tensor, asked: Tensor) -> Tensor:
        """Gradient histograms of each cube's middle frame, 2 x 2 cells of 9 orientations a channel: B A P."""
        middle = self.backbone.prepare(clip)[:, :, self.tubelet // 2 :: self.tubelet]  # B C t H W
        pictures = middle.transpose(1, 2).flatten(0, 1)  # B*t C H W
        cells = targets.hog(pictures, self.patch // 2).permute(0, 1, 4, 2, 3)  # B*t C 9 2h 2w
        cells = cells.flatten(1, 2).unflatten(0, (len(clip), -1)).transpose(1, 2)  # B C*9 t 2h 2w
        return targets.values(masks.masked(cubes(cells, 1, 2), asked))  # B A P

    @torch.no_grad()
    def reconstruct(
        self, video: Tensor, hidden: Tensor | None = None, keys: Tensor | None = None, true_statistics: bool = True
    ) -> Reconstruction:
        """Hides cubes of ``video`` (B C T H W) and fills them in again.

        A learner trained on normalised pixels predicts each cube up to its mean and deviation. With
        ``true_statistics`` these are taken from the original, which flatters the picture; without, from the nearest
        visible place of the same frame.

        Args:
            hidden: B N; drawn from ``keys`` (B int64; zeros when not given) otherwise.

        Raises:
            TubeletError: the learner predicts no pixels, or not those of the frames that it sees.
        """
        if (self.kind, self.target_frames) != ("pixels", "seen"):
            raise TubeletError(
                f"learner.target {self.kind} of target_frames {self.target_frames} gives no picture of the clip: "
                "only pixels of the frames seen do"
            )
        grid = self.backbone.grid(*video.shape[2:])
        if hidden is None:
            keys = torch.zeros(len(video), dtype=torch.int64, device=video.device) if keys is None else keys
            hidden = masks.draw(self.mask, keys, video, grid, self.ratio)  # B N
        prepared = self.backbone.prepare(video)
        pieces = cubes(prepared, self.tubelet, self.patch)  # B N C tubelet patch patch
        guess = self.decode(self.enter(self.backbone(video, hidden).tokens), hidden, grid).float()  # B M P
        guess = guess.unflatten(2, (-1, 3)).transpose(2, 3)  # B M C p
        guess = guess.unflatten(3, pieces.shape[3:])  # B M C tubelet patch patch
        statistics = targets.statistics(pieces.float(), self.normalise)
        mean, deviation = (part.expand(*pieces.shape[:2], -1, -1, -1, -1) for part in statistics)
        if not true_statistics:
            nearest = nearest_visible(hidden, grid)  # B N
            rows = torch.arange(len(nearest), device=nearest.device)[:, None]
            mean, deviation = mean[rows, nearest], deviation[rows, nearest]
        guess = guess * masks.masked(deviation, hidden) + masks.masked(mean, hidden)
        filled, grey = pieces.clone(), cubes(video, self.tubelet, self.patch).clone()
        filled[hidden] = guess.flatten(0, 1)
        grey[hidden] = 0.5
        # a background that the encoder never sees is put back as it is
        shown = join(hidden[..., None, None, None, None].expand_as(filled), grid)  # B C T H W
        whole = torch.where(shown, join(filled, grid) + (video - prepared), video)
        return Reconstruction(video, join(grey, grid), whole.clamp(0, 1), hidden, self.told(true_statistics))

    def told(self, true_statistics: bool) -> str:
        """What a reconstruction takes from elsewhere than the prediction."""
        if self.normalise == "none":
            text = "brightness and contrast are predicted"
        elif true_statistics:
            text = "the true brightness and contrast of each hidden cube, which flatters the picture"
        else:
            text = "brightness and contrast of the nearest visible cube"
        removed = self.backbone.config.get("background") == "remove"
        return f"{text}; the still background is that of the original" if removed else text


def nearest_visible(hidden: Tensor, grid: Grid) -> Tensor:
    """For each cube the index of the nearest visible one, in its own frame before any other: B N -> B N int64."""
    axes = torch.meshgrid(*(torch.arange(n, device=hidden.device) for n in grid), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], dim=1).float()  # N 3
    place[:, 0] *= grid[1] + grid[2]  # another frame is farther than any place of this one
    distance = torch.cdist(place, place)[None].expand(len(hidden), -1, -1)  # B N N
    return distance.masked_fill(hidden[:, None, :], torch.inf).argmin(dim=2)  # B N
