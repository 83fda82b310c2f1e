"""Waveforms to log-mel spectrograms, the picture of sound that networks are given."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from tubelet.types import TubeletError

FLOOR = 1e-6
"""Energy of silence: a sample is in [-1, 1], so that this is far below what is heard."""

_KNEE_HZ, _KNEE_MEL, _STEP_HZ = 1000.0, 15.0, 200 / 3
_STEP_LOG = math.log(6.4) / 27
"""The scale of Slaney's Auditory Toolbox (1998): linear to 1 kHz, then 27 mels for each factor of 6.4."""


def log_mel(waveform: Tensor, rate: int = 16_000, bins: int = 80, window: int = 400, hop: int = 160) -> Tensor:
    """The natural logarithm of the energy in `bins` bands that are evenly spaced on the mel scale.

    Column t is the Hann window around sample ``t * hop``; the ends are mirrored.

    Args:
        waveform: B S float, in [-1, 1].
        rate: samples a second.
        bins: mel bands between 0 and half the rate.
        window: samples of a window (25 ms at the default rate).
        hop: samples from one column to the next (10 ms).

    Returns:
        B F T with ``T = S // hop + 1``.

    Raises:
        TubeletError: the waveform is shorter than half a window, or a band is narrower than the window resolves.
    """
    if waveform.shape[-1] <= window // 2:
        raise TubeletError(f"{waveform.shape[-1]} samples are too few for a mel window of {window}")
    hann = torch.hann_window(window, dtype=waveform.dtype, device=waveform.device)
    spectrum = torch.stft(waveform, window, hop, window=hann, center=True, return_complex=True)  # B K T
    filters = mel_filters(rate, bins, window).to(waveform)
    return (filters @ spectrum.abs().square()).clamp(min=FLOOR).log()  # B F T


@cache
def mel_filters(rate: int, bins: int, window: int) -> Tensor:
    """Triangles of equal area, each from the middle of the band before to the middle of the one after: F K."""
    top = _mel(rate / 2)
    edges = torch.tensor([_hz(top * step / (bins + 1)) for step in range(bins + 2)], dtype=torch.float64)
    lower, middle, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    rising, falling = (frequencies - lower) / (middle - lower), (upper - frequencies) / (upper - middle)
    triangles = torch.minimum(rising, falling).clamp(min=0)  # F K
    if not triangles.any(dim=1).all():
        raise TubeletError(f"{bins} mel bands are too narrow for a window of {window} samples: take fewer bands")
    return triangles * 2 / (upper - lower)


def _mel(hz: float) -> float:
    return hz / _STEP_HZ if hz < _KNEE_HZ else _KNEE_MEL + math.log(hz / _KNEE_HZ) / _STEP_LOG


def _hz(mel: float) -> float:
    return mel * _STEP_HZ if mel < _KNEE_MEL else _KNEE_HZ * math.exp((mel - _KNEE_MEL) * _STEP_LOG)
