'''Silence is trimmed as librosa does it; extra rows agree with numpy, use every sample, and can be mixed.'''

import math
from dataclasses import replace

import librosa
import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies
from kit.audio.waveform import STATS_PERCENTILES, compute_extra_rows, nonsilent_span, wave_stats
from kit.core.errors import KitError
from kit.infer.predictor import compute_spectrograms, cut_window

BOTH = ('wave_stats', 'clip_length')
SMALL = {'sample_rate': 8000, 'n_fft': 256, 'hop_length': 100, 'n_mels': 20, 'extra_rows': BOTH}


def swell(samples: int, first: int, end: int, background: float) -> np.ndarray:
    '''Noise that rises and falls from `first` to `end`, in silence or background noise.'''
    rng = np.random.default_rng(samples + first)
    wave = background * rng.standard_normal(samples)
    wave[first:end] += rng.standard_normal(end - first) * np.hanning(end - first + 2)[1:-1]
    return np.asarray(wave, dtype=np.float32)


SWELLS = [
    swell(samples, int(samples * a), max(int(samples * b), int(samples * a) + 1), background)
    for samples in (1, 2, 511, 512, 513, 2047, 2048, 5120, 16000, 40001)
    for a, b in ((0.0, 1.0), (0.2, 0.5), (0.0, 0.1), (0.9, 1.0))
    for background in (0.0, 1e-4, 1e-2)
]


@pytest.mark.parametrize('top_db', [20.0, 40.0, 60.0, 90.0])
def test_trimming_keeps_what_librosa_keeps(top_db: float) -> None:
    for wave in SWELLS:
        _, span = librosa.effects.trim(wave, top_db=top_db)
        assert nonsilent_span(torch.from_numpy(wave), top_db) == tuple(span)
        assert nonsilent_span(torch.from_numpy(wave).double(), top_db) == tuple(span)


@pytest.mark.parametrize('min_samples', [1, 100, 2000, 8000, 100000])
def test_a_span_that_is_too_short_is_widened_around_its_middle(min_samples: int) -> None:
    for wave in SWELLS:
        first, end = nonsilent_span(torch.from_numpy(wave), 30.0)
        wide_first, wide_end = nonsilent_span(torch.from_numpy(wave), 30.0, min_samples)
        assert wide_end - wide_first == max(end - first, min(min_samples, len(wave)))
        assert 0 <= wide_first <= first and end <= wide_end <= len(wave)
        if wide_first > 0 and wide_end < len(wave):
            assert abs((wide_first + wide_end) - (first + end)) <= 1


@pytest.mark.parametrize('samples', [1, 511, 512, 2048, 30000])
def test_silence_is_not_trimmed(samples: int) -> None:
    for level in (0.0, 1e-30, 1e-7):
        assert nonsilent_span(torch.full((samples,), level), 60.0, 8000) == (0, samples)


def test_the_front_end_reads_the_trimmed_clip_only() -> None:
    settings = {'sample_rate': 16000, 'n_fft': 512, 'n_mels': 40, 'extra_rows': ('clip_length',)}
    plain = Frontend(FrontendConfig(**settings))
    trimming = Frontend(FrontendConfig(**settings, trim_db=40.0))
    waves = [torch.from_numpy(wave) for wave in SWELLS]
    for wave, spec in zip(waves, trimming.spectrograms(waves), strict=True):
        first, end = nonsilent_span(wave, 40.0, 8000)
        assert torch.equal(spec, plain.spectrograms([wave[first:end]])[0])


def slow_stats(samples: np.ndarray) -> list[float]:
    '''Mean, standard deviation, range, percentiles.'''
    return [samples.mean(), samples.std(), np.ptp(samples), *np.percentile(samples, STATS_PERCENTILES)]


@pytest.mark.parametrize('samples', [1, 2, 99, 100, 101, 300, 1000, 1050])
def test_statistics_are_numpys_and_the_last_segment_ends_with_the_clip(samples: int) -> None:
    wave = np.random.default_rng(samples).standard_normal(samples)
    starts = [max(0, min(start, samples - 100)) for start in range(0, samples, 100)]
    expected = np.array([slow_stats(wave[start : start + 100]) for start in starts]).T
    np.testing.assert_allclose(wave_stats(torch.from_numpy(wave), 100), expected, atol=1e-12)
    np.testing.assert_allclose(wave_stats(torch.from_numpy(wave).float(), 100), expected, atol=2e-6)


@pytest.mark.parametrize('hop', [1, 7, 100])
@pytest.mark.parametrize('samples', [1, 6, 7, 300, 301, 899, 900, 901])
def test_a_frame_has_the_statistics_of_the_samples_from_it_on(hop: int, samples: int) -> None:
    wave = torch.from_numpy(np.random.default_rng(samples).standard_normal(samples))
    rows = compute_extra_rows(wave, BOTH, hop, 8000)
    stats = wave_stats(wave, 3 * hop)
    assert rows.shape == (13, samples // hop + 1)
    for frame in range(rows.shape[1]):
        assert torch.equal(rows[:12, frame], stats[:, min(frame // 3, stats.shape[1] - 1)])
    torch.testing.assert_close(rows[12], torch.full_like(rows[12], math.log(samples / 8000)))


@pytest.mark.parametrize('samples', [1, 299, 300, 301, 649, 651])
def test_every_sample_changes_the_statistics(samples: int) -> None:
    silent = compute_extra_rows(torch.zeros(samples), ('wave_stats',), 100, 8000)
    positions = range(0, samples, max(1, samples // 50))
    for position in (*positions, samples - 1):
        click = torch.zeros(samples)
        click[position] = 1.0
        assert not torch.equal(compute_extra_rows(click, ('wave_stats',), 100, 8000), silent)


def test_a_long_clip_agrees_with_its_middle() -> None:
    wave = torch.randn(1_200_000)
    middle = wave_stats(wave[600_000:603_000], 300)
    torch.testing.assert_close(wave_stats(wave, 300)[:, 2000:2010], middle, rtol=0, atol=1e-6)


def test_extra_rows_are_unchanged_below_every_channel() -> None:
    settings = {'top_db': 30.0, 'normalize': 'clip', 'channels': ('log', 'coordinate', 'delta')}
    plain = Frontend(FrontendConfig(**{**SMALL, **settings, 'extra_rows': ()}))
    both = Frontend(FrontendConfig(**SMALL, **settings))
    wave = torch.randn(2, 3000)
    spec = both(wave)
    assert spec.shape == (2, 3, 33, 31) and (both.config.n_bins, both.config.n_extra_rows) == (20, 13)
    assert torch.equal(spec[:, :, :20], plain(wave))
    for clip in range(2):
        extra = compute_extra_rows(wave[clip], BOTH, 100, 8000)
        assert all(torch.equal(spec[clip, channel, 20:], extra) for channel in range(3))


@pytest.mark.parametrize('reference', ['clip', 'window'])
def test_a_window_has_its_own_statistics_and_padding_repeats_the_last(reference: str) -> None:
    frontend = Frontend(FrontendConfig(**SMALL, top_db=30.0, normalize='peak', reference=reference))
    wave = torch.randn(3000)
    spec = compute_spectrograms(frontend, [wave])[0]
    extra = compute_extra_rows(wave, BOTH, 100, 8000)
    window = cut_window(frontend, spec, (7, 20), 13, 'wrap')
    assert torch.equal(window[20:], extra[:, 7:20])
    padded = cut_window(frontend, spec, (7, 20), 40, 'min')
    assert torch.equal(padded[:, :13], window)
    assert torch.equal(padded[:20, 13:], window[:20].amin().expand(20, 27))
    assert torch.equal(padded[20:, 13:], extra[:, 19:20].expand(13, 27))


def test_mixing_energies_is_symmetric_silence_changes_nothing_and_extra_rows_are_refused() -> None:
    config = FrontendConfig(**SMALL | {'extra_rows': ()})
    waves = [torch.randn(2000) * 0.2, torch.randn(2000) * 0.1, torch.zeros(2000)]
    specs = torch.stack(Frontend(config).spectrograms(waves))
    draw = draw_mixup(MixupConfig(p=1.0), torch.zeros(3, 1), torch.Generator())
    draw = replace(draw, partner=torch.tensor([1, 0, 0]))
    mixed = mix_energies(specs, draw, MixupConfig(), config)
    torch.testing.assert_close(mixed[0], mixed[1])
    torch.testing.assert_close(mixed[2], specs[0], rtol=1e-5, atol=1e-3)
    with pytest.raises(KitError, match='extra_rows have no energy'):
        mix_energies(specs, draw, MixupConfig(), FrontendConfig(**SMALL))
