"""Is the run healthy? Sentences from the lines of its metrics.jsonl: what is wrong, what it means, what to try.

The limits are from runs of small networks on generated and real clips: healthy ones stay clear of them from the first
step to the last; those with a hundred times the learning rate do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

POINT_RANK, POINT_SPREAD = 1.2, 0.01
"""Embeddings below both are one point with a little noise. Healthy runs pass through 1.34 and 0.009 as they warm up."""
DEAD_DIMENSIONS = 0.5
RANK_KEPT = 1 / 3
"""Of the highest rank after the start: what is left of it when directions are being lost (healthy runs kept 0.7)."""
LOSS_KEPT = 0.2
"""Of what the loss fell by: what must be left of it. Against a teacher that moves it may rise a good deal."""
LOSS_RISE = 0.1
"""Where it never fell: more than this, and than half of what it was, is not noise."""
GRADIENT = 50.0
"""Times the usual norm of the gradient (a healthy run went up to 24 times its lowest)."""
UPDATE = 0.05
"""Of the weights' norm in one step: 0.003 at a learning rate that is right, 0.1 at a hundred times that."""
WAITING = 0.5
"""Of the time, from which on a run is starved, when it is STARTING no more."""
STARTING = 100
"""Steps in which workers may yet be filling their queues."""


def verdict(lines: Sequence[Mapping[str, Any]], labelled: bool = False) -> dict[str, str]:
    """What is wrong with a run, from the lines of its metrics.jsonl so far: nothing where it is healthy.

    What embeddings and losses say must hold in the last two examinations, since one may be a passing thing.

    Args:
        labelled: it learns from labels, for which few directions are enough: only what has become one point is said.

    Returns:
        "collapse", "divergence" or "starvation" -> a sentence on what it means and one on what to try.
    """
    looks = [
        {key.removeprefix("health/"): value for key, value in line.items() if key.startswith("health/")}
        for line in lines
    ]
    looks = [look for look in looks if look]
    found = {
        "collapse": _collapse(looks, labelled),
        "divergence": _not_finite(looks) or _loss_rises(looks) or _explodes(lines),
        "starvation": _starves(lines),
    }
    return {name: text for name, text in found.items() if text is not None}


def _collapse(looks: list[dict[str, float]], labelled: bool) -> str | None:
    looks = [look for look in looks if "effective_rank" in look]
    if len(looks) < 3:  # the start, and two that agree
        return None
    start, *later = looks
    now, lately = later[-1], later[-2:]
    remedy = (
        "Try a third of train.lr or a longer train.warmup; a method that only pulls clips together also needs what "
        "keeps them apart (negatives, a slower teacher, a predictor)."
    )
    limit = min(POINT_SPREAD, start["spread"] / 2)
    if all(look["effective_rank"] < POINT_RANK and look["spread"] < limit for look in lately):
        return (
            f"the encoder has collapsed: all videos look alike to it (effective rank {now['effective_rank']:.2f}, "
            f"spread {now['spread']:.4f}; at the start {start['effective_rank']:.2f} and {start['spread']:.4f}). "
            f"{remedy}"
        )
    if labelled:
        return None
    if all(look["dead"] > max(DEAD_DIMENSIONS, start["dead"]) for look in lately):
        return (
            f"dimensions have collapsed: {now['dead']:.0%} of the embedding's are the same for all videos (at the "
            f"start {start['dead']:.0%}). {remedy}"
        )
    best = max(look["effective_rank"] for look in later)
    if all(look["effective_rank"] < RANK_KEPT * best for look in lately):
        return (
            f"dimensions are collapsing: the embeddings use {now['effective_rank']:.1f} directions where they used "
            f"{best:.1f}. {remedy}"
        )
    return None


def _not_finite(looks: list[dict[str, float]]) -> str | None:
    if looks and "finite" in looks[-1]:
        return (
            f"the run has diverged: only {looks[-1]['finite']:.0%} of the embeddings are finite numbers. Go back to an "
            "earlier checkpoint with a lower train.lr or train.precision float32."
        )
    return None


def _loss_rises(looks: list[dict[str, float]]) -> str | None:
    """Of each phase by itself, where there are several: one may rise as another gets better, as adversaries' do."""
    names = sorted({name for look in looks for name in look if name.startswith("loss")})
    found = (_rises([look[name] for look in looks if name in look], alone=name == "loss") for name in names)
    return next(filter(None, found), None)


def _rises(losses: list[float], alone: bool) -> str | None:
    if len(losses) < 3:
        return None
    if not all(math.isfinite(loss) for loss in losses[-2:]):
        return (
            "the run has diverged: the loss on the same clips under the same masks is not finite. Go back to an "
            "earlier checkpoint with a lower train.lr or train.precision float32."
        )
    if not alone:
        return None
    finite = [loss for loss in losses if math.isfinite(loss)]
    start, best = finite[0], min(finite)
    gained = start - best
    fell = gained > 0.05 * abs(start)
    limit = best + (1 - LOSS_KEPT) * gained if fell else start + max(LOSS_RISE, 0.5 * abs(start))
    if all(loss > limit for loss in losses[-2:]):
        return (
            f"the run diverges: the loss on the same clips under the same masks is {losses[-1]:.4g}, after {best:.4g} "
            f"at its best and {start:.4g} at the start. Go back to an earlier checkpoint with a third of train.lr, or "
            "set train.clip_norm to 1.0."
        )
    return None


def _explodes(lines: Sequence[Mapping[str, Any]]) -> str | None:
    norms, updates = _numbers(lines, "grad_norm"), _numbers(lines, "update_ratio")
    if len(norms) > 13 and median(norms[-3:]) > GRADIENT * median(norms[:-3]):
        return (
            f"the run is about to diverge: the norm of the gradient is {median(norms[-3:]):.3g}, usually "
            f"{median(norms[:-3]):.3g}. Set train.clip_norm to 1.0 or lower train.lr."
        )
    if len(updates) > 1 and min(updates[-2:]) > UPDATE:
        return (
            f"the run is about to diverge: one step changes the weights by {updates[-1]:.1%} of their size, where 0.1 "
            "to 1 % is usual. Lower train.lr to a tenth, or make train.warmup longer."
        )
    return None


def _starves(lines: Sequence[Mapping[str, Any]]) -> str | None:
    lines = [line for line in lines if "waiting" in line]
    waiting = _numbers(lines[-5:], "waiting")
    if len(waiting) < 5 or lines[-1]["step"] - lines[0]["step"] < STARTING or median(waiting) <= WAITING:
        return None
    return (
        f"the run is starved: {median(waiting):.0%} of the time is spent waiting for clips. Raise train.workers where "
        "there are cores, raise data.repeats, or decode once: tubelet data pack."
    )


def _numbers(lines: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if isinstance(line.get(name), int | float) and math.isfinite(line[name])]
