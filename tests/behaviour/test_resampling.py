"""A sound at another rate is the same sound; a rate without a small ratio is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torchaudio.transforms import Resample

from kit.audio.resample import resample, small_ratio

STANDARD_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
PAIRS = [(a, b) for a in STANDARD_RATES for b in STANDARD_RATES]


def slow_ratio(from_hz, to_hz, most=1000):
    """Slow definition: of all pairs of terms up to `most`, the one nearest to the ratio, if within 0.01 %."""
    down = np.arange(1, most + 1)
    up = np.clip(np.round(down * to_hz / from_hz), 1, most).astype(int)
    error = np.abs(up * from_hz / (down * to_hz) - 1)
    best = int(error.argmin())
    return (int(down[best]), int(up[best])) if error[best] <= 1e-4 else None


def sine(hz, rate, samples):
    """A sine of amplitude 0.5. Shape: -> (samples,)"""
    return torch.from_numpy(0.5 * np.sin(2 * np.pi * hz * np.arange(samples) / rate)).float()


def level_at(wave, hz, rate):
    """Amplitude of the sine at `hz` in the middle half of a wave, by projection."""
    n = len(wave)
    t = np.arange(n // 4, 3 * n // 4)
    middle = wave.numpy()[n // 4 : 3 * n // 4] * np.hanning(len(t))
    return 2 * abs(np.sum(middle * np.exp(-2j * np.pi * hz * t / rate))) / np.hanning(len(t)).sum()


def test_standard_rates_have_an_exact_ratio_wherever_its_terms_are_small():
    exact = 0
    for from_hz, to_hz in PAIRS:
        ratio = small_ratio(from_hz, to_hz)
        assert ratio is not None, (from_hz, to_hz)
        down, up = ratio
        true = Fraction(to_hz, from_hz)
        if max(true.numerator, true.denominator) <= 1000:
            assert Fraction(up, down) == true, (from_hz, to_hz)
            exact += 1
        assert abs(up / down * from_hz / to_hz - 1) <= 1e-4
        assert max(down, up) <= 1000
    assert exact == len(PAIRS) - 8  # 11025 to 32000, 96000 and 192000, 22050 to 192000, and back


def test_equal_rates_need_no_filter():
    assert small_ratio(44100, 44100) == (1, 1)
    wave = torch.randn(5)
    assert resample(wave, 1, 1) is wave


def test_any_rate_has_the_nearest_small_ratio_or_none():
    generator = np.random.default_rng(0)
    rates = [
        *generator.integers(1000, 200000, (300, 2)).tolist(),
        (44100, 34567),
        (34567, 44100),
        (44101, 44100),
    ]
    for from_hz, to_hz in rates:
        ratio, slow = small_ratio(from_hz, to_hz), slow_ratio(from_hz, to_hz)
        assert (ratio is None) == (slow is None), (from_hz, to_hz, ratio, slow)
        if ratio and slow:
            wanted = to_hz / from_hz
            error = abs(ratio[1] / ratio[0] / wanted - 1)
            assert error <= 1e-4 and max(ratio) <= 1000
            assert error <= abs(slow[1] / slow[0] / wanted - 1) * 1.01 + 1e-12


def test_a_rate_may_be_any_number():
    assert small_ratio(44100.0, 22050) == small_ratio(np.int64(44100), 22050) == (2, 1)
    assert small_ratio(22050, np.float64(44100.5)) == (1, 2)


def test_a_rate_that_does_not_reduce_costs_a_small_filter_and_absurd_rates_none():
    assert small_ratio(44100, 34567) is not None
    for from_hz, to_hz in [(1, 44100), (44100, 1), (2**31, 44100), (3, 2**31), (44100, 7)]:
        assert small_ratio(from_hz, to_hz) is None
    assert small_ratio(44, 44000) == (1, 1000)
    assert small_ratio(44, 44044) is None


@pytest.mark.parametrize("from_hz, to_hz", [(44100, 22050), (22050, 44100), (48000, 44100), (8000, 32000),
                                            (44100, 34567), (16000, 11025), (44100, 44100), (96000, 8000)])  # fmt: skip
def test_a_sine_keeps_its_frequency_and_its_level(from_hz, to_hz):
    ratio = small_ratio(from_hz, to_hz)
    assert ratio is not None
    hz = 1000.0
    heard = resample(sine(hz, from_hz, from_hz), *ratio)
    reached = from_hz * ratio[1] / ratio[0]
    assert level_at(heard, hz, reached) == pytest.approx(0.5, rel=0.01)
    peak = np.abs(np.fft.rfft(heard.numpy() * np.hanning(len(heard)))).argmax() * reached / len(heard)
    assert peak == pytest.approx(hz, abs=1.5)
    ideal = sine(hz, reached, len(heard))
    middle = slice(len(heard) // 4, 3 * len(heard) // 4)
    assert float((heard[middle] - ideal[middle]).abs().max()) < 0.01


def test_what_the_new_rate_cannot_hold_is_suppressed():
    for from_hz, to_hz, hz in [(44100, 16000, 12000.0), (48000, 8000, 7000.0), (44100, 22050, 15000.0)]:
        ratio = small_ratio(from_hz, to_hz)
        assert ratio is not None
        heard = resample(sine(hz, from_hz, from_hz), *ratio)
        assert float(heard[len(heard) // 4 : 3 * len(heard) // 4].abs().max()) < 0.5 * 10 ** (-40 / 20)


def test_the_length_is_the_ceiling_of_the_ratio():
    for samples in (1, 2, 3, 5, 159, 160, 161, 441, 1000, 7919):
        for down, up in [(2, 1), (1, 2), (441, 320), (320, 441), (3, 7), (569, 446)]:
            heard = resample(torch.randn(samples), down, up)
            assert heard.shape == (-(-samples * up // down),) and heard.dtype == torch.float32
            assert bool(heard.isfinite().all())


def test_silence_stays_silent_and_a_constant_stays_constant():
    assert not resample(torch.zeros(3000), 3, 2).any()
    heard = resample(torch.full((30000,), 0.25), 441, 320)
    assert float((heard[500:-500] - 0.25).abs().max()) < 1e-3


@pytest.mark.parametrize("down, up", [(2, 1), (441, 320), (7, 9)])
def test_a_long_wave_in_pieces_equals_the_one_piece_result(down, up):
    wave = torch.randn(5_000_003, generator=torch.Generator().manual_seed(down))
    whole = Resample(down, up, lowpass_filter_width=6)(wave)
    pieces = resample(wave, down, up)
    # torchaudio counts the samples of its result in float32, which can lose the last one.
    assert len(pieces) == -(-5_000_003 * up // down) and 0 <= len(pieces) - len(whole) <= 1
    assert float((pieces[: len(whole)] - whole).abs().max()) < 2e-6
