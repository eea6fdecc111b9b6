"""PCEN: librosa's numbers, a scan that is its recursion, nothing heard from the neighbours."""

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


def energies(frames: int, seed: int = 0) -> np.ndarray:
    """Rows of noise whose loudness spans ten decades, with silent frames among them."""
    rng = np.random.default_rng(seed)
    spec = rng.exponential(size=(6, frames)) * 10.0 ** rng.uniform(-8, 2, size=(6, 1))
    spec[:, frames // 3 : frames // 2] = 0.0
    return np.asarray(spec)


def by_librosa(spec: np.ndarray, config: PcenConfig, steady: bool) -> np.ndarray:
    """librosa.pcen of scaled rows, begun as if the first frame had lasted, or as librosa begins."""
    lasting = config.time_constant_s * RATE / HOP
    b = (np.sqrt(1 + 4 * lasting**2) - 1) / (2 * lasting**2)
    rows = spec * config.scale
    return np.asarray(
        librosa.pcen(
            rows,
            sr=RATE,
            hop_length=HOP,
            gain=config.gain,
            bias=config.bias,
            power=config.power,
            time_constant=config.time_constant_s,
            eps=config.eps,
            zi=(1 - b) * rows[:, :1] if steady else None,
        )
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"gain": 0.8, "bias": 10.0, "power": 0.25, "time_constant_s": 0.06, "scale": 1.0}, {"eps": 1e-3}],
)
def test_pcen_agrees_with_librosa(settings: dict[str, Any]) -> None:
    config = PcenConfig(**settings)
    for frames in (1, 2, 3, 64, 500):
        spec = energies(frames)
        theirs = by_librosa(spec, config, steady=True)
        np.testing.assert_allclose(pcen(torch.from_numpy(spec), config, RATE / HOP), theirs, rtol=1e-9)
        ours = pcen(torch.from_numpy(spec).float(), config, RATE / HOP)
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_pcen_agrees_with_librosas_own_start_once_it_is_forgotten() -> None:
    spec, config = energies(900) + 1e-8, PcenConfig(time_constant_s=0.1)
    ours = pcen(torch.from_numpy(spec), config, RATE / HOP)
    np.testing.assert_allclose(ours[:, 300:], by_librosa(spec, config, steady=False)[:, 300:], rtol=1e-6)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97, 0.9999])
def test_the_scan_is_the_recursion(keep: float) -> None:
    rows = torch.rand(3, 777, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slow = [rows[:, 0]]
    for n in range(1, rows.shape[1]):
        slow.append(keep * slow[-1] + (1 - keep) * rows[:, n])
    torch.testing.assert_close(one_pole_mean(rows, keep), torch.stack(slow, 1), rtol=1e-12, atol=0)
    near = one_pole_mean(rows.float(), keep)
    torch.testing.assert_close(near.double(), torch.stack(slow, 1), rtol=3e-6, atol=0)


def test_gradients_agree_with_differences() -> None:
    spec = torch.rand(2, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: pcen(s, PcenConfig(scale=10.0), 20.0), spec)


def test_the_frontends_pcen_is_librosas_of_its_mel_spectrogram() -> None:
    config = FrontendConfig(
        sample_rate=RATE, n_fft=512, hop_length=HOP, n_mels=40, power=1, log="pcen", pcen=PcenConfig(gain=0.9)
    )
    wave = np.random.default_rng(0).standard_normal(9000) * np.linspace(0, 1, 9000)
    mel = librosa.feature.melspectrogram(
        y=wave, sr=RATE, n_fft=512, hop_length=HOP, n_mels=40, fmin=20.0, power=1.0, pad_mode="constant"
    )
    ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
    np.testing.assert_allclose(ours, by_librosa(mel, config.pcen, steady=True), rtol=1e-4)
    assert FrontendConfig.from_dict(config.to_dict()) == config


def test_a_clip_does_not_hear_its_batchmates_and_extremes_stay_finite() -> None:
    frontend = Frontend(FrontendConfig(sample_rate=RATE, n_fft=512, hop_length=HOP, n_mels=40, log="pcen"))
    waves = [torch.randn(n) * level for n, level in ((1, 1.0), (7000, 1e-4), (48000, 1.0), (7000, 0.0))]
    waves += [torch.ones(7000), torch.full((7000,), 1e-30), torch.tensor([1.0, -1.0]).repeat(3500)]
    together = frontend.spectrograms(waves)
    for wave, spec in zip(waves, together, strict=True):
        assert torch.equal(spec, frontend.spectrograms([wave])[0])
        assert torch.isfinite(spec).all() and (spec >= 0).all()
    half = frontend.spectrograms([wave.half() for wave in waves])
    assert all(torch.isfinite(spec).all() for spec in half)


def test_energies_that_pcen_has_forgotten_are_not_mixed() -> None:
    config = FrontendConfig(log="pcen")
    with pytest.raises(KitError, match="mix waves"):
        mix_energies(
            torch.rand(2, 128, 5), draw_mixup(MixupConfig(p=1.0), 2, torch.Generator()), MixupConfig(), config
        )
