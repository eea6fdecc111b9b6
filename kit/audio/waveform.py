'''Waveforms: resampling, silence at the ends, and statistics of the samples.'''

import functools
import math
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.runtime import full_float32

TRIM_HOP = 512
TRIM_FRAME = 4 * TRIM_HOP

STATS_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
STATS_FRAMES = 3

# Kinds of extra rows, and how many each has. A kind's first row is its mean or its only row.
EXTRA_ROWS = {'wave_stats': 3 + len(STATS_PERCENTILES), 'clip_length': 1}


def nonsilent_span(wave: Tensor, top_db: float, min_samples: int = 1) -> tuple[int, int]:
    '''Find the first and end sample of what lies within `top_db` of the loudest frame.

    A span shorter than `min_samples` is widened around its middle, inside the clip. A silent clip is kept whole.
    Source: librosa.effects.trim with frames of 2048 samples every 512, and an RMS of at least 1e-5
    '''
    n_samples = len(wave)
    padded = F.pad(wave.detach().float(), (TRIM_FRAME // 2, TRIM_FRAME // 2))
    frames = padded.unfold(0, TRIM_FRAME, TRIM_HOP)
    rms = (torch.linalg.vector_norm(frames, dim=-1) / math.sqrt(TRIM_FRAME)).clamp(min=1e-5)
    loud = torch.nonzero(rms > rms.amax() * 10 ** (-top_db / 20))[:, 0]
    first = int(loud[0]) * TRIM_HOP
    end = min((int(loud[-1]) + 1) * TRIM_HOP, n_samples)
    if end - first >= min_samples:
        return first, end
    first = max(0, min((first + end - min_samples) // 2, n_samples - min_samples))
    return first, min(first + min_samples, n_samples)


def wave_stats(wave: Tensor, samples: int) -> Tensor:
    '''Compute mean, standard deviation, range and nine percentiles of every `samples` samples.

    The last segment is aligned to the clip's end. Shape: wave (T,) -> (12, ceil(T / samples))
    '''
    width = min(samples, len(wave))
    starts = torch.arange(0, len(wave), samples, device=wave.device).clamp(max=len(wave) - width)
    # A percentile lies between two sorted samples, as in numpy.percentile's method "linear".
    position = torch.tensor(STATS_PERCENTILES, dtype=torch.float64) / 100 * (width - 1)
    low, high, fraction = position.floor().long(), position.ceil().long(), position.frac().to(wave)
    segments = wave.unfold(0, width, 1)
    parts = []
    for chunk in torch.split(starts, max(1, 2**19 // width)):  # 2^19 samples are sorted at once
        rows = segments[chunk].sort(dim=-1).values
        mean = rows.mean(-1, keepdim=True)
        std = torch.linalg.vector_norm(rows - mean, dim=-1, keepdim=True) / math.sqrt(width)
        extent = rows[:, -1:] - rows[:, :1]
        percentiles = rows[:, low].lerp(rows[:, high], fraction)
        parts.append(torch.cat([mean, std, extent, percentiles], dim=1))
    return torch.cat(parts).T


def compute_extra_rows(wave: Tensor, kinds: tuple[str, ...], hop: int, sample_rate: int) -> Tensor:
    '''Compute a clip's extra rows; every three frames share the statistics of their samples.

    Shape:  wave (T,) -> (sum of EXTRA_ROWS over `kinds`, N), N = T // hop + 1
    Units:  those of the wave; "clip_length" in ln(seconds)
    '''
    n_frames = len(wave) // hop + 1
    rows = []
    for kind in kinds:
        if kind == 'clip_length':
            rows.append(wave.new_full((1, n_frames), math.log(len(wave) / sample_rate)))
        else:
            stats = wave_stats(wave, STATS_FRAMES * hop)
            columns = torch.arange(n_frames, device=wave.device) // STATS_FRAMES
            rows.append(stats[:, columns.clamp(max=stats.shape[1] - 1)])
    return torch.cat(rows)


# Zero crossings of the sinc on either side: torchaudio's default.
FILTER_WIDTH = 6


def small_ratio(from_hz: float, to_hz: float) -> tuple[int, int] | None:
    '''Return (down, up), at most 1000 each, with up / down nearest to to_hz / from_hz, or None beyond 0.01 %.

    The filter grows with down * up: a ratio that does not reduce would need gigabytes.
    '''
    low, high = sorted((Fraction(float(from_hz)), Fraction(float(to_hz))))
    exact = low / high
    near = exact.limit_denominator(1000)
    if abs(near / exact - 1) > 1e-4:
        return None
    return (near.numerator, near.denominator) if from_hz < to_hz else (near.denominator, near.numerator)


@functools.lru_cache(maxsize=32)
def resampler(down: int, up: int, device: str) -> Any:
    '''Torchaudio's resampler for one ratio.'''
    from torchaudio.transforms import Resample

    return Resample(down, up, lowpass_filter_width=FILTER_WIDTH).to(device)


def resample(wave: Tensor, down: int, up: int) -> Tensor:
    '''Resample a waveform by up / down, in chunks that bound the memory. Shape: (T,) -> (ceil(T * up / down),)'''
    if down == up:
        return wave
    convert = resampler(down, up, str(wave.device))
    # Chunks and margins are multiples of `down` samples, which become whole output samples. The margin is wider than
    # the filter, so what is kept does not depend on the cut.
    chunk = 2**22 // down * down
    margin = -(-4 * FILTER_WIDTH * max(down, up) // (up * down)) * down + down
    parts = []
    with full_float32():
        for start in range(0, len(wave), chunk):
            left = min(start, margin)
            part = convert(wave[start - left : start + chunk + margin])
            first = left // down * up
            parts.append(part[first : first + chunk // down * up])
    return torch.cat(parts)[: -(-len(wave) * up // down)]
