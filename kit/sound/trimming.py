"""A waveform in, the span of it between the silences at its ends out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

TRIM_HOP = 512
TRIM_FRAME = 4 * TRIM_HOP


def sounding_span(wave: Tensor, top_db: float, least: int = 1) -> tuple[int, int]:
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
