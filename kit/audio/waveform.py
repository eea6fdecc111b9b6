"""Find the silence at a waveform's ends, and compute statistics of its samples."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRIM_HOP = 512
TRIM_FRAME = 4 * TRIM_HOP

STATS_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)

# Samples that wave_stats sorts at once.
STATS_CHUNK_SAMPLES = 524288

# Kinds of extra rows, and how many rows each has. The first row of a kind is its mean or its only row.
EXTRA_ROWS = {"wave_stats": 3 + len(STATS_PERCENTILES), "clip_length": 1}


def nonsilent_span(wave: Tensor, top_db: float, min_samples: int = 1) -> tuple[int, int]:
    """Find the first and end sample of what lies within `top_db` of the loudest frame.

    A span shorter than `min_samples` is widened around its middle, inside the clip. A silent clip is kept whole.
    Source: librosa.effects.trim with frames of 2048 samples every 512, and an RMS of at least 1e-5
    """
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
    """Compute mean, standard deviation, range and nine percentiles of every `samples` samples.

    The last segment is aligned to the clip's end. Shape: wave (T,) -> (12, ceil(T / samples))
    """
    width = min(samples, len(wave))
    starts = torch.arange(0, len(wave), samples, device=wave.device).clamp(max=len(wave) - width)
    # A percentile lies between two sorted samples, as in numpy.percentile's method "linear".
    position = torch.tensor(STATS_PERCENTILES, dtype=torch.float64) / 100 * (width - 1)
    low, high, fraction = position.floor().long(), position.ceil().long(), position.frac().to(wave)
    segments = wave.unfold(0, width, 1)
    parts = []
    for chunk in torch.split(starts, max(1, STATS_CHUNK_SAMPLES // width)):
        rows = segments[chunk].sort(dim=-1).values
        mean = rows.mean(-1, keepdim=True)
        std = torch.linalg.vector_norm(rows - mean, dim=-1, keepdim=True) / math.sqrt(width)
        extent = rows[:, -1:] - rows[:, :1]
        percentiles = rows[:, low].lerp(rows[:, high], fraction)
        parts.append(torch.cat([mean, std, extent, percentiles], dim=1))
    return torch.cat(parts).T


def compute_extra_rows(
    wave: Tensor, kinds: tuple[str, ...], hop: int, stats_frames: int, sample_rate: int
) -> Tensor:
    """Compute a clip's extra rows; every `stats_frames` frames share the statistics of their samples.

    Shape:  wave (T,) -> (sum of EXTRA_ROWS over `kinds`, N), N = T // hop + 1
    Units:  those of the wave; "clip_length" in ln(seconds)
    """
    n_frames = len(wave) // hop + 1
    rows = []
    for kind in kinds:
        if kind == "clip_length":
            rows.append(wave.new_full((1, n_frames), math.log(len(wave) / sample_rate)))
        else:
            stats = wave_stats(wave, stats_frames * hop)
            columns = torch.arange(n_frames, device=wave.device) // stats_frames
            rows.append(stats[:, columns.clamp(max=stats.shape[1] - 1)])
    return torch.cat(rows)


def mix_extra_rows(rows: Tensor, other_rows: Tensor, kinds: tuple[str, ...]) -> Tensor:
    """Estimate the extra rows of the sum of two waveforms. Shape: (..., S, N) each -> the same

    Means add, and a clip keeps its own length. The others add as squares and get the sign of their sum, which is
    exact for independent Gaussian samples.
    """
    sums = rows + other_rows
    mixed = torch.sign(sums) * torch.hypot(rows, other_rows)
    first = 0
    for kind in kinds:
        exact = rows if kind == "clip_length" else sums
        mixed[..., first, :] = exact[..., first, :]
        first += EXTRA_ROWS[kind]
    return mixed
