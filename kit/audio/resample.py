"""Resample waveforms by ratios of small integers."""

import functools
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kit.core.runtime import full_float32

FILTER_WIDTH = 6


def small_ratio(from_hz: float, to_hz: float) -> tuple[int, int] | None:
    """The nearest (down, up) of terms to 1000 within 0.01 % of to_hz / from_hz, or None.

    The filter grows with the product of both terms, so a ratio that does not reduce would cost gigabytes.
    """
    low, high = sorted((Fraction(float(from_hz)), Fraction(float(to_hz))))
    near = (low / high).limit_denominator(1000)
    if abs(near / (low / high) - 1) > 1e-4:
        return None
    terms = near.numerator, near.denominator
    return terms if from_hz < to_hz else terms[::-1]


@functools.lru_cache(maxsize=32)
def resampler(down: int, up: int, device: str) -> Any:
    """torchaudio's resampler for one ratio."""
    from torchaudio.transforms import Resample

    return Resample(down, up, lowpass_filter_width=FILTER_WIDTH).to(device)


def resample(wave: Tensor, down: int, up: int) -> Tensor:
    """The waveform at up / down times its rate, in pieces for little memory.

    Each piece is heard with a margin wider than the filter.
    Shape:  wave (T,) -> (ceil(T * up / down),)
    Source: windowed sinc interpolation, Smith, Digital Audio Resampling; torchaudio's implementation
    """
    if down == up:
        return wave
    convert = resampler(down, up, str(wave.device))
    piece = (1 << 22) // down * down
    margin = -(-4 * FILTER_WIDTH * max(down, up) // (up * down)) * down + down
    pieces = []
    with full_float32():
        for start in range(0, len(wave), piece):
            left = min(start, margin)
            heard = convert(wave[start - left : start + piece + margin])
            pieces.append(heard[left // down * up :][: piece // down * up])
    return torch.cat(pieces)[: -(-len(wave) * up // down)]
