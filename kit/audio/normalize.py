"""Normalize, differentiate and resize spectrograms."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZATIONS = ('none', 'clip', 'constants', 'peak', 'minmax')

# Savitzky-Golay filters over nine frames: (divisor, weights of frames -4 to 4).
DELTA_KERNELS = {'delta': (60, (-4, -3, -2, -1, 0, 1, 2, 3, 4)), 'delta2': (462, (28, 7, -8, -17, -20, -17, -8, 7, 28))}

# A range this small is no range.
NEGLIGIBLE = 1e-30


def normalize_spec(spec: Tensor, top_db: float | None, normalize: str, mean: float, std: float) -> Tensor:
    """Raise values to at least `top_db` below the maximum, then normalize, each spectrogram by itself.

    A constant spectrogram becomes zeros by "clip", "peak" and "minmax". Shape: (..., M, N) -> the same
    """
    peak = spec.amax((-2, -1), keepdim=True)
    if top_db is not None:
        spec = torch.maximum(spec, peak - top_db)
    if normalize == 'clip':
        # Less its peak, a constant spectrogram is exactly zero, however its mean is rounded.
        spec = spec - peak
        centred = spec - mean_by_rows(spec)
        variance = mean_by_rows(centred.square())
        return centred / variance.clamp(min=1e-6).sqrt()
    if normalize == 'constants':
        return (spec - mean) / std
    if normalize == 'peak':
        return spec - peak
    if normalize == 'minmax':
        minimum = spec.amin((-2, -1), keepdim=True)
        return (spec - minimum) / (peak - minimum).clamp(min=NEGLIGIBLE)
    return spec


def mean_by_rows(spec: Tensor) -> Tensor:
    """Average each spectrogram. Shape: (..., M, N) -> (..., 1, 1)"""
    # torch splits one large mean over threads by the size of the whole batch, so its rounding would depend on the
    # other clips; the mean of a row never does.
    return spec.mean(-1, keepdim=True).mean(-2, keepdim=True)


def savgol_delta(spec: Tensor, which: str) -> Tensor:
    """Compute the first ("delta") or second ("delta2") derivative of a local polynomial over nine frames.

    Shape:  (..., M, N) -> the same
    Source: Savitzky and Golay 1964; as librosa.feature.delta, mode "interp", below nine frames "nearest"
    """
    is_short = spec.shape[-1] < 9
    padded = extend_edges(spec, 4) if is_short else spec
    n_windows = padded.shape[-1] - 8
    divisor, kernel = DELTA_KERNELS[which]
    slopes = torch.zeros_like(padded[..., :n_windows])
    for offset, weight in enumerate(kernel):
        slopes = slopes.add(padded[..., offset : offset + n_windows], alpha=weight / divisor)
    return slopes if is_short else extend_edges(slopes, 4)


def extend_edges(spec: Tensor, frames: int) -> Tensor:
    """Repeat the first and the last frame `frames` times."""
    shape = (*spec.shape[:-1], frames)
    return torch.cat([spec[..., :1].expand(shape), spec, spec[..., -1:].expand(shape)], dim=-1)


def resize_spec(spec: Tensor, size: Sequence[int]) -> Tensor:
    """Resize spectrograms bilinearly, antialiased where they shrink. Shape: (..., M, N) -> (..., *size)"""
    flat = spec.reshape(-1, 1, *spec.shape[-2:])
    resized = F.interpolate(flat, tuple(size), mode='bilinear', align_corners=False, antialias=True)
    return resized.reshape(*spec.shape[:-2], *size)


def image_size_at(sizes: Sequence[Sequence[int]], progress: float) -> tuple[int, ...]:
    """Return the image size at `progress` in [0, 1] of a training that gives each size an equal share."""
    return tuple(sizes[min(int(progress * len(sizes)), len(sizes) - 1)])
