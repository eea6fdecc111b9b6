"""PCEN agrees with librosa, and its scan equals the recursion."""

from typing import Any

import librosa
import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies
from kit.audio.normalize import PcenConfig, one_pole_mean, pcen
from kit.core.errors import KitError

RATE, HOP = 16000, 160


def random_energies(frames: int) -> np.ndarray:
    """Rows of noise whose loudness spans ten decades, with silent frames among them."""
    rng = np.random.default_rng(0)
    energies = rng.exponential(size=(6, frames)) * 10.0 ** rng.uniform(-8, 2, size=(6, 1))
    energies[:, frames // 3 : frames // 2] = 0.0
    return np.asarray(energies)


def librosa_pcen(energies: np.ndarray, config: PcenConfig) -> np.ndarray:
    """librosa.pcen of scaled rows, started as if the first frame had lasted forever."""
    lookback = config.time_constant_s * RATE / HOP
    b = (np.sqrt(1 + 4 * lookback**2) - 1) / (2 * lookback**2)
    rows = energies * config.scale
    result = librosa.pcen(
        rows,
        sr=RATE,
        hop_length=HOP,
        gain=config.gain,
        bias=config.bias,
        power=config.power,
        time_constant=config.time_constant_s,
        eps=config.eps,
        zi=(1 - b) * rows[:, :1],
    )
    return np.asarray(result)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gain": 0.8, "bias": 10.0, "power": 0.25, "time_constant_s": 0.06, "scale": 1.0}, {"eps": 1e-3}],
)
def test_pcen_agrees_with_librosa(settings: dict[str, Any]) -> None:
    config = PcenConfig(**settings)
    for frames in (1, 2, 3, 64, 500):
        energies = random_energies(frames)
        theirs = librosa_pcen(energies, config)
        ours = pcen(torch.from_numpy(energies), config, RATE / HOP)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
        in_float32 = pcen(torch.from_numpy(energies).float(), config, RATE / HOP)
        np.testing.assert_allclose(in_float32, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97, 0.9999])
def test_the_scan_equals_the_recursion(keep: float) -> None:
    rows = torch.rand(3, 777, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = [rows[:, 0]]
    for n in range(1, rows.shape[1]):
        columns.append(keep * columns[-1] + (1 - keep) * rows[:, n])
    expected = torch.stack(columns, 1)
    torch.testing.assert_close(one_pole_mean(rows, keep), expected, rtol=1e-12, atol=0)
    in_float32 = one_pole_mean(rows.float(), keep).double()
    torch.testing.assert_close(in_float32, expected, rtol=3e-6, atol=0)


def test_the_front_end_applies_pcen_to_the_mel_spectrogram() -> None:
    config = FrontendConfig(
        sample_rate=RATE, n_fft=512, hop_length=HOP, n_mels=40, power=1, log="pcen", pcen=PcenConfig(gain=0.9)
    )
    wave = np.random.default_rng(0).standard_normal(9000) * np.linspace(0, 1, 9000)
    mel = librosa.feature.melspectrogram(
        y=wave, sr=RATE, n_fft=512, hop_length=HOP, n_mels=40, fmin=20.0, power=1.0, pad_mode="constant"
    )
    ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
    np.testing.assert_allclose(ours, librosa_pcen(mel, config.pcen), rtol=1e-4)


def test_pcen_spectrograms_cannot_be_mixed_as_energies() -> None:
    draw = draw_mixup(MixupConfig(p=1.0), 2, torch.Generator())
    with pytest.raises(KitError, match="mix waves"):
        mix_energies(torch.rand(2, 128, 5), draw, MixupConfig(), FrontendConfig(log="pcen"))
