"""Silence is trimmed as librosa does, what is left too short grows around its own middle."""

import librosa
import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.waveform import nonsilent_span

RATE = 16000


def chunk(samples: int, first: int, end: int, faint: float = 0.0) -> np.ndarray:
    """Noise from `first` to `end`, of loudness that rises and falls, in silence or faint noise."""
    rng = np.random.default_rng(samples + first)
    wave = faint * rng.standard_normal(samples)
    wave[first:end] += rng.standard_normal(end - first) * np.hanning(end - first + 2)[1:-1]
    return np.asarray(wave, dtype=np.float32)


WAVES = [
    chunk(samples, int(samples * a), max(int(samples * b), int(samples * a) + 1), faint)
    for samples in (1, 2, 511, 512, 513, 2047, 2048, 5120, 16000, 40001)
    for a, b in ((0.0, 1.0), (0.2, 0.5), (0.0, 0.1), (0.9, 1.0))
    for faint in (0.0, 1e-4, 1e-2)
]


@pytest.mark.parametrize("top_db", [20.0, 40.0, 60.0, 90.0])
def test_the_kept_part_is_librosas(top_db: float) -> None:
    for wave in WAVES:
        _, ends = librosa.effects.trim(wave, top_db=top_db)
        assert nonsilent_span(torch.from_numpy(wave), top_db) == tuple(ends)
        assert nonsilent_span(torch.from_numpy(wave).double(), top_db) == tuple(ends)


@pytest.mark.parametrize("least", [1, 100, 2000, 8000, 100000])
def test_a_short_part_grows_around_the_middle_of_its_ends(least: int) -> None:
    for wave in WAVES:
        first, end = nonsilent_span(torch.from_numpy(wave), 30.0)
        wider_first, wider_end = nonsilent_span(torch.from_numpy(wave), 30.0, least)
        assert wider_end - wider_first == max(end - first, min(least, len(wave)))
        assert 0 <= wider_first <= first and end <= wider_end <= len(wave)
        if wider_first > 0 and wider_end < len(wave):
            assert abs((wider_first + wider_end) - (first + end)) <= 1


@pytest.mark.parametrize("samples", [1, 511, 512, 2048, 30000])
def test_silence_is_kept_whole(samples: int) -> None:
    for level in (0.0, 1e-30, 1e-7):
        assert nonsilent_span(torch.full((samples,), level), 60.0, 8000) == (0, samples)


def test_the_frontend_hears_the_kept_part_alone() -> None:
    settings = {"sample_rate": RATE, "n_fft": 512, "hop_length": 160, "n_mels": 40}
    plain = Frontend(FrontendConfig(**settings, extra_rows=("clip_length",)))
    trimming = Frontend(
        FrontendConfig(**settings, extra_rows=("clip_length",), trim_db=40.0, trim_least_s=0.25)
    )
    waves = [torch.from_numpy(wave) for wave in WAVES]
    for wave, spec in zip(waves, trimming.spectrograms(waves), strict=True):
        first, end = nonsilent_span(wave, 40.0, 4000)
        assert torch.equal(spec, plain.spectrograms([wave[first:end]])[0])
        assert torch.equal(spec, trimming.spectrograms([wave])[0])
    loud = torch.from_numpy(chunk(RATE, 4000, 9000))
    assert len(trimming.spectrograms([loud.half()])[0][0]) == len(trimming.spectrograms([loud])[0][0]) < 101
