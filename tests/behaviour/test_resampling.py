'''Resampling keeps a sound and its length; a rate without a small ratio is refused.'''

from fractions import Fraction

import numpy as np
import pytest
import torch
from torchaudio.transforms import Resample

from kit.audio.waveform import resample, small_ratio

STANDARD_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)


def slow_ratio_error(from_hz, to_hz):
    '''Relative error of the best ratio of terms up to 1000, or None above 0.01 %, by trying them all.'''
    down = np.arange(1, 1001)
    up = np.clip(np.round(down * to_hz / from_hz), 1, 1000).astype(int)
    error = np.abs(up * from_hz / (down * to_hz) - 1).min()
    return float(error) if error <= 1e-4 else None


def sine(hz, rate, samples):
    '''A sine of amplitude 0.5. Shape: -> (samples,)'''
    return torch.from_numpy(0.5 * np.sin(2 * np.pi * hz * np.arange(samples) / rate)).float()


def test_standard_rates_have_a_ratio_that_is_exact_where_its_terms_are_small():
    for from_hz in STANDARD_RATES:
        for to_hz in STANDARD_RATES:
            ratio = small_ratio(from_hz, to_hz)
            assert ratio is not None, (from_hz, to_hz)
            exact = Fraction(to_hz, from_hz)
            if max(exact.numerator, exact.denominator) <= 1000:
                assert Fraction(ratio[1], ratio[0]) == exact, (from_hz, to_hz)


def test_any_rate_has_the_nearest_small_ratio_or_none():
    generator = np.random.default_rng(0)
    pairs = generator.integers(1000, 200000, (300, 2)).tolist()
    absurd = [(1, 44100), (44100, 1), (2**31, 44100), (3, 2**31), (44100, 7), (44, 44000), (44, 44044)]
    for from_hz, to_hz in [*pairs, *absurd, (44100, 34567), (34567, 44100), (44101, 44100)]:
        ratio, slow_error = small_ratio(from_hz, to_hz), slow_ratio_error(from_hz, to_hz)
        assert (ratio is None) == (slow_error is None), (from_hz, to_hz, ratio)
        if ratio is not None:
            error = abs(ratio[1] / ratio[0] * from_hz / to_hz - 1)
            assert max(ratio) <= 1000 and error <= slow_error * 1.01 + 1e-12


def test_a_rate_may_be_any_number():
    assert small_ratio(44100.0, 22050) == small_ratio(np.int64(44100), 22050) == (2, 1)
    assert small_ratio(22050, np.float64(44100.5)) == (1, 2)


RATES = [
    (44100, 22050),
    (22050, 44100),
    (48000, 44100),
    (8000, 32000),
    (44100, 34567),
    (16000, 11025),
    (44100, 44100),
    (96000, 8000),
]


@pytest.mark.parametrize(('from_hz', 'to_hz'), RATES)
def test_a_sine_keeps_its_frequency_and_amplitude(from_hz, to_hz):
    down, up = small_ratio(from_hz, to_hz)
    output = resample(sine(1000.0, from_hz, from_hz), down, up)
    expected = sine(1000.0, from_hz * up / down, len(output))
    middle = slice(len(output) // 4, 3 * len(output) // 4)
    assert float((output[middle] - expected[middle]).abs().max()) < 0.01


@pytest.mark.parametrize(
    ('from_hz', 'to_hz', 'hz'), [(44100, 16000, 12000.0), (48000, 8000, 7000.0), (44100, 22050, 15000.0)]
)
def test_frequencies_above_the_new_nyquist_are_suppressed(from_hz, to_hz, hz):
    output = resample(sine(hz, from_hz, from_hz), *small_ratio(from_hz, to_hz))
    assert float(output[len(output) // 4 : 3 * len(output) // 4].abs().max()) < 0.5 * 10 ** (-40 / 20)


def test_the_length_is_the_ceiling_of_the_ratio():
    for samples in (1, 2, 3, 5, 159, 160, 161, 441, 1000, 7919):
        for down, up in [(1, 1), (2, 1), (1, 2), (441, 320), (320, 441), (3, 7), (569, 446)]:
            output = resample(torch.randn(samples), down, up)
            assert output.shape == (-(-samples * up // down),) and output.dtype == torch.float32
            assert bool(output.isfinite().all())


@pytest.mark.parametrize(('down', 'up'), [(2, 1), (441, 320), (7, 9)])
def test_a_long_wave_in_chunks_equals_torchaudios_single_call(down, up):
    wave = torch.randn(5_000_003, generator=torch.Generator().manual_seed(down))
    expected = Resample(down, up, lowpass_filter_width=6)(wave)
    output = resample(wave, down, up)
    # torchaudio counts the samples of its result in float32, which can lose the last one.
    assert len(output) == -(-5_000_003 * up // down) and 0 <= len(output) - len(expected) <= 1
    assert float((output[: len(expected)] - expected).abs().max()) < 2e-6
