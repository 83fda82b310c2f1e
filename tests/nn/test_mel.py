import math

import pytest
import torch

from tubelet.nn import mel
from tubelet.types import TubeletError


def noise(samples: int = 8_000) -> torch.Tensor:
    return torch.rand(2, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_as_transformers_computes_it():
    audio_utils = pytest.importorskip("transformers.audio_utils")
    for rate, bins, window, hop in ((16_000, 80, 400, 160), (16_000, 64, 512, 128), (22_050, 40, 1024, 256)):
        filters = audio_utils.mel_filter_bank(
            window // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
        )
        for row, wave in zip(mel.log_mel(noise(), rate, bins, window, hop), noise(), strict=True):
            theirs = audio_utils.spectrogram(
                wave.numpy(),
                audio_utils.window_function(window, "hann"),
                window,
                hop,
                power=2.0,
                mel_filters=filters,
                mel_floor=mel.FLOOR,
                log_mel="log",
            )
            assert row.shape == theirs.shape
            assert abs(row - torch.from_numpy(theirs)).max() < 1e-3


def test_slow_twin():
    """One column by hand: windowed cosines and sines, then one triangle at a time."""
    rate, bins, window, hop = 8_000, 10, 64, 16
    wave = noise(400)[0].double()
    column = 9
    piece = wave[column * hop - window // 2 :][:window]
    piece = piece * torch.tensor([0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)])
    energy = []
    for k in range(window // 2 + 1):
        angles = 2 * math.pi * k * torch.arange(window, dtype=torch.float64) / window
        energy.append(float((piece * angles.cos()).sum() ** 2 + (piece * angles.sin()).sum() ** 2))
    edges = [mel._hz(mel._mel(rate / 2) * step / (bins + 1)) for step in range(bins + 2)]
    answer = mel.log_mel(wave[None], rate, bins, window, hop)[0, :, column]
    for band in range(bins):
        low, middle, high = edges[band : band + 3]
        total = 0.0
        for k, value in enumerate(energy):
            hz = k * rate / window
            height = (hz - low) / (middle - low) if hz <= middle else (high - hz) / (high - middle)
            total += max(0.0, height) * 2 / (high - low) * value
        assert float(answer[band]) == pytest.approx(math.log(total), abs=1e-6)


def test_a_tone_is_bright_in_its_band_and_at_its_time():
    rate = 16_000
    time = torch.arange(rate) / rate
    wave = torch.where((time > 0.4) & (time < 0.6), 0.5 * torch.sin(2 * math.pi * 1_000 * time), 0.0)
    picture = mel.log_mel(wave[None])  # 1 F T
    assert picture.shape == (1, 80, 101)
    band = int(picture[0, :, 50].argmax())
    assert mel._hz(mel._mel(8_000) * (band + 1) / 81) == pytest.approx(1_000, rel=0.04)
    assert (picture[0, :, :38] == math.log(mel.FLOOR)).all()
    assert (picture[0, :, 63:] == math.log(mel.FLOOR)).all()


def test_the_scale_goes_both_ways():
    for hz in (0.0, 440.0, 1_000.0, 1_001.0, 7_999.0):
        assert mel._hz(mel._mel(hz)) == pytest.approx(hz)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(TubeletError, match="too few"):
        mel.log_mel(noise(200))
    with pytest.raises(TubeletError, match="too narrow"):
        mel.log_mel(noise(), bins=300)
