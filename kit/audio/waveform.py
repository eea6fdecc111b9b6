"""Silence at a waveform's ends, and statistics of its samples."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRIM_HOP = 512
TRIM_FRAME = 4 * TRIM_HOP


def nonsilent_span(wave: Tensor, top_db: float, least: int = 1) -> tuple[int, int]:
    """First and end sample between frames within `top_db` of the loudest.

    What is shorter than `least` is widened around its middle, inside the clip; silence is kept whole.
    Shape:  wave (T,) -> first < end <= T
    Units:  samples; RMS below 1e-5 counts as 1e-5
    Source: librosa.effects.trim, frames of 2048 every 512
    """
    samples = len(wave)
    around = (TRIM_FRAME // 2, TRIM_FRAME // 2)
    frames = F.pad(wave.detach().float(), around).unfold(0, TRIM_FRAME, TRIM_HOP)
    rms = (torch.linalg.vector_norm(frames, dim=-1) / math.sqrt(TRIM_FRAME)).clamp(min=1e-5)
    loud = torch.nonzero(rms > rms.amax() * 10 ** (-top_db / 20))[:, 0]
    first, end = int(loud[0]) * TRIM_HOP, min((int(loud[-1]) + 1) * TRIM_HOP, samples)
    if end - first >= least:
        return first, end
    first = max(0, min((first + end - least) // 2, samples - least))
    return first, min(first + least, samples)


STATS_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
EXTRA_ROWS = {"wave_stats": 3 + len(STATS_PERCENTILES), "clip_length": 1}


def wave_stats(wave: Tensor, samples: int) -> Tensor:
    """Mean, deviation, range and nine percentiles of every `samples` samples.

    Shape:  wave (T,) -> (12, ceil(T / samples))
    Units:  those of the wave
    """
    width = min(samples, len(wave))
    starts = torch.arange(0, len(wave), samples, device=wave.device).clamp(max=len(wave) - width)
    place = torch.tensor(STATS_PERCENTILES, dtype=torch.float64) / 100 * (width - 1)
    low, high, between = place.floor().long(), place.ceil().long(), place.frac().to(wave)
    windows = wave.unfold(0, width, 1)
    pieces = []
    for some in torch.split(starts, max(1, 524288 // width)):
        rows = windows[some].sort(dim=-1).values
        mean = rows.mean(-1, keepdim=True)
        spread = torch.linalg.vector_norm(rows - mean, dim=-1, keepdim=True) / math.sqrt(width)
        percentiles = rows[:, low].lerp(rows[:, high], between)
        pieces.append(torch.cat([mean, spread, rows[:, -1:] - rows[:, :1], percentiles], dim=1))
    return torch.cat(pieces).T


def compute_extra_rows(
    wave: Tensor, kinds: tuple[str, ...], hop: int, stats_frames: int, sample_rate: int
) -> Tensor:
    """A clip's side rows: `stats_frames` frames share the statistics of their samples.

    Shape:  wave (T,) -> (sum of EXTRA_ROWS, N), N = T // hop + 1
    Units:  those of the wave; "clip_length" in ln(seconds)
    """
    frames = len(wave) // hop + 1
    rows = []
    for kind in kinds:
        if kind == "clip_length":
            rows.append(wave.new_full((1, frames), math.log(len(wave) / sample_rate)))
        else:
            stats = wave_stats(wave, stats_frames * hop)
            columns = torch.arange(frames, device=wave.device) // stats_frames
            rows.append(stats[:, columns.clamp(max=stats.shape[1] - 1)])
    return torch.cat(rows)


def mix_extra_rows(own: Tensor, other: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """Side rows of two sounds laid over each other, as far as they tell.

    Means add; spreads and percentiles add in square, with the sign of their sum (exact for independent Gaussian
    samples); a clip keeps its own length.
    Shape:  (..., rows, N) each -> the same
    """
    sums = own + other
    mixed, first = torch.sign(sums) * torch.hypot(own, other), 0
    for kind in kinds:
        kept = own if kind == "clip_length" else sums
        mixed[..., first, :] = kept[..., first, :]
        first += EXTRA_ROWS[kind]
    return mixed
