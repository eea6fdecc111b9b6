"""Resample waveforms by ratios of small integers."""

import functools
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kit.core.runtime import full_float32

# Zero crossings of the sinc on either side: torchaudio's default.
FILTER_WIDTH = 6
RESAMPLE_CHUNK_SAMPLES = 1 << 22


def small_ratio(from_hz: float, to_hz: float) -> tuple[int, int] | None:
    """Return (down, up), at most 1000 each, with up / down nearest to to_hz / from_hz, or None beyond 0.01 %.

    The filter grows with down * up: a ratio that does not reduce would need gigabytes.
    """
    low, high = sorted((Fraction(float(from_hz)), Fraction(float(to_hz))))
    exact = low / high
    near = exact.limit_denominator(1000)
    if abs(near / exact - 1) > 1e-4:
        return None
    if from_hz < to_hz:
        return near.numerator, near.denominator
    return near.denominator, near.numerator


@functools.lru_cache(maxsize=32)
def resampler(down: int, up: int, device: str) -> Any:
    """Return torchaudio's resampler for one ratio."""
    from torchaudio.transforms import Resample

    return Resample(down, up, lowpass_filter_width=FILTER_WIDTH).to(device)


def resample(wave: Tensor, down: int, up: int) -> Tensor:
    """Resample a waveform by up / down, in chunks that bound the memory. Shape: (T,) -> (ceil(T * up / down),)"""
    if down == up:
        return wave
    convert = resampler(down, up, str(wave.device))
    # Chunks and margins are multiples of `down` samples, which become whole output samples. The margin is wider
    # than the filter, so the samples that are kept do not depend on the cut.
    chunk = RESAMPLE_CHUNK_SAMPLES // down * down
    margin = -(-4 * FILTER_WIDTH * max(down, up) // (up * down)) * down + down
    parts = []
    with full_float32():
        for start in range(0, len(wave), chunk):
            left = min(start, margin)
            part = convert(wave[start - left : start + chunk + margin])
            first = left // down * up
            parts.append(part[first : first + chunk // down * up])
    return torch.cat(parts)[: -(-len(wave) * up // down)]
