"""A waveform at one rate in, the same sound at another rate out, by a ratio of small integers."""

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kit.core.runtime import full_float32

MAX_RATIO_TERM = 1000
RATIO_TOLERANCE = 1e-4
PIECE_SAMPLES = 1 << 22
FILTER_WIDTH = 6


def small_ratio(from_hz: int, to_hz: int) -> tuple[int, int] | None:
    """The nearest (down, up) with both terms at most 1000 and within 0.01 % of to_hz / from_hz, or None.

    The filter grows with the product of both terms, so a ratio that does not reduce would cost gigabytes.
    """
    exact = Fraction(to_hz, from_hz)
    near = exact.limit_denominator(MAX_RATIO_TERM)
    if exact > 1:
        inverse = (1 / exact).limit_denominator(MAX_RATIO_TERM)
        near = 1 / inverse if inverse else Fraction(0)
    if (
        not 0 < max(near.numerator, near.denominator) <= MAX_RATIO_TERM
        or abs(near / exact - 1) > RATIO_TOLERANCE
    ):
        return None
    return near.denominator, near.numerator


@functools.lru_cache(maxsize=32)
def resampler(down: int, up: int, device: str) -> Any:
    """torchaudio's windowed-sinc resampler for one ratio, its filter computed once."""
    from torchaudio.transforms import Resample

    return Resample(down, up, lowpass_filter_width=FILTER_WIDTH).to(device)


def resample(wave: Tensor, down: int, up: int) -> Tensor:
    """The waveform at up / down times its rate, long ones in pieces so that memory stays small.

    Shape:  wave (T,) -> (ceil(T * up / down),)
    Source: windowed sinc interpolation, Smith, Digital Audio Resampling; torchaudio's implementation
    """
    if down == up:
        return wave
    convert = resampler(down, up, str(wave.device))
    with full_float32():
        return resample_in_pieces(wave, down, up, convert)


def resample_in_pieces(wave: Tensor, down: int, up: int, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """`convert` piece by piece, each heard with a margin wider than the filter. Shape: as resample"""
    piece = PIECE_SAMPLES // down * down
    if len(wave) <= piece:
        return convert(wave)
    margin = -(-4 * FILTER_WIDTH * max(down, up) // (up * down)) * down + down
    pieces = []
    for start in range(0, len(wave), piece):
        left = min(start, margin)
        heard = convert(wave[start - left : start + piece + margin])
        first = left // down * up
        pieces.append(heard[first : first + piece // down * up])
    return torch.cat(pieces)[: -(-len(wave) * up // down)]
