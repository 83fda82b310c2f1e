"""Checks of settings that many learners have."""

from __future__ import annotations

import math

from tubelet.types import TubeletError


def check_positive(**settings: float) -> None:
    """Makes sure that each is finite and more than 0.

    Raises:
        TubeletError: one is not; the message names it.
    """
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise TubeletError(f"learner.{name} must be more than 0, not {value:g}")


def check_share(**settings: float) -> None:
    """Makes sure that each is in 0..1.

    Raises:
        TubeletError: one is not; the message names it.
    """
    for name, value in settings.items():
        if not 0 <= value <= 1:
            raise TubeletError(f"learner.{name} must be in 0..1, not {value:g}")
