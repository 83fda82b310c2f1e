"""Proof of a conversion: the same clip through Tubelet and through transformers, and the largest difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tubelet.convert.neutral import Neutral
from tubelet.nn import masks
from tubelet.types import TubeletError

ENOUGH = 1e-3
"""A difference, relative to the largest value, that no rounding explains."""


def compare(neutral: Neutral, folder: Path) -> list[str]:
    """Runs a fixed clip through a conversion and through the folder that transformers reads.

    Returns:
        Lines to print: how far tokens, logits and loss are apart, with the folder's own epsilons and with equal ones.

    Raises:
        TubeletError: they are apart with equal epsilons too.
    """
    try:
        import transformers
    except ImportError:
        return ["compared with nothing: transformers is not installed (pip install 'tubelet[hub]')"]
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        theirs, report = _architecture(neutral).from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # its own checks of config.json raise classes of several packages
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return [f"compared with nothing: transformers {transformers.__version__} does not read {folder}: {why}"]
    lost = [*report["missing_keys"], *report["unexpected_keys"]]
    if lost:
        return [
            f"compared with nothing: transformers {transformers.__version__} drops {len(lost)} tensors of the folder, "
            f"such as {sorted(lost)[0]}; 4.x, and 5.18 and later, do not"
        ]
    video = fixed_clip(neutral)
    ours = answers(neutral, video)
    as_it_is = difference(ours, _their_answers(theirs.eval(), neutral, video))
    set_epsilon(theirs, 1e-6)
    equal = difference(ours, _their_answers(theirs, neutral, video))
    lines = [f"largest difference from transformers {transformers.__version__} on a fixed clip: {_said(equal)}"]
    if any(as_it_is[name] > 2 * equal[name] for name in equal):
        lines.append(f"with the epsilons that transformers uses for this folder: {_said(as_it_is)}")
    worst = max(equal, key=lambda name: equal[name])
    if not equal[worst] < ENOUGH:
        raise TubeletError(
            f"transformers answers otherwise: {worst} differ by {equal[worst]:.2g} of their largest value; nothing is "
            "written"
        )
    return lines


def fixed_clip(neutral: Neutral) -> Tensor:
    """The same random clip of the checkpoint's size each time: 1 C T H W in [0, 1]."""
    size = neutral.clip["size"]
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, neutral.clip["frames"], size, size, generator=generator)


@torch.no_grad()
def answers(neutral: Neutral, video: Tensor) -> dict[str, Tensor]:
    """What our network says of a clip: tokens, or logits, or the visible tokens, predictions and loss."""
    learner: Any = neutral.module.eval()
    if neutral.kind == "encoder":
        return {"tokens": learner(video).tokens}
    if neutral.kind == "classifier":
        return {"logits": learner.logits(video)}
    hidden, grid = hidden_of(neutral, video), neutral.backbone.grid(*video.shape[2:])
    tokens = learner.backbone(video, hidden).tokens
    predictions = learner.decode(learner.enter(tokens), hidden, grid)
    loss = (predictions - learner.target(video, hidden)).square().mean()
    return {"tokens": tokens, "predictions": predictions, "loss": loss}


def hidden_of(neutral: Neutral, video: Tensor) -> Tensor:
    """The tubes that are hidden in the comparison, nine tenths where the clip is large enough: 1 N."""
    grid = neutral.backbone.grid(*video.shape[2:])
    ratio = 0.9 if grid[1] * grid[2] >= 20 else 0.5
    return masks.draw("tube", torch.zeros(1, dtype=torch.int64), video, grid, ratio)


@torch.no_grad()
def _their_answers(model: Any, neutral: Neutral, video: Tensor) -> dict[str, Tensor]:
    pixels = ((video - neutral.backbone.mean) / neutral.backbone.deviation).transpose(1, 2)  # 1 T C H W
    if neutral.kind == "encoder":
        return {"tokens": model(pixels).last_hidden_state}
    if neutral.kind == "classifier":
        return {"logits": model(pixels).logits}
    hidden = hidden_of(neutral, video)
    said, tokens = model(pixels, hidden), model.videomae(pixels, hidden).last_hidden_state
    return {"tokens": tokens, "predictions": said.logits, "loss": said.loss}


def _architecture(neutral: Neutral) -> Any:
    import transformers

    from tubelet.convert.huggingface import ARCHITECTURES

    return getattr(transformers, ARCHITECTURES[neutral.kind])


def set_epsilon(model: nn.Module, epsilon: float) -> None:
    """Gives every LayerNorm the same epsilon: transformers has 1e-12 in blocks and 1e-5 in the decoder and the head."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = epsilon


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each answer, relative to its largest value."""
    return {
        name: float((value - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-12))
        for name, value in ours.items()
    }


def _said(differences: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
