"""Normalization, PCEN, deltas and resizing of spectrograms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.config import Config, setting

NORMALIZATIONS = ("none", "clip", "constants", "peak", "minmax")
DELTA_KERNELS = {
    "delta": (60, (-4, -3, -2, -1, 0, 1, 2, 3, 4)),
    "delta2": (462, (28, 7, -8, -17, -20, -17, -8, 7, 28)),
}
NEGLIGIBLE = 1e-30


@dataclass(frozen=True)
class PcenConfig(Config):
    """Per-channel energy normalisation: rows over their recent past, compressed."""

    gain: float = setting(0.98, "power of the past that divides", low=0, high=1)
    bias: float = setting(2.0, "added before the root", low=1e-9)
    power: float = setting(0.5, "the root", low=1e-9)
    time_constant_s: float = setting(0.4, "seconds of recent past", low=1e-6)
    eps: float = setting(1e-6, "least recent past", low=1e-30)
    scale: float = setting(2.0**31, "multiplies first: to integer samples", low=0)


def one_pole_mean(rows: Tensor, keep: float) -> Tensor:
    """y[n] = keep * y[n - 1] + (1 - keep) * x[n], as if frame 0 had always been.

    A doubling scan: after d steps every frame has heard 2**d frames.
    Shape:  (..., N) -> the same, 0 <= keep < 1
    """
    heard = torch.cat([rows[..., :1], rows[..., 1:] * (1 - keep)], dim=-1)
    reach, frames = 1, rows.shape[-1]
    while reach < frames and keep**reach > NEGLIGIBLE:
        further = heard[..., reach:] + keep**reach * heard[..., :-reach]
        heard = torch.cat([heard[..., :reach], further], dim=-1)
        reach *= 2
    return heard


def pcen(energies: Tensor, config: PcenConfig, frames_per_s: float) -> Tensor:
    """Per-channel energy normalisation of a whole clip.

    Shape:  energies or magnitudes (..., M, N) -> the same
    Source: Wang et al. 2017, arXiv:1607.05666; the numbers of librosa.pcen at zi = (1 - b) * first frame
    """
    lasting = config.time_constant_s * frames_per_s
    fresh = (math.sqrt(1 + 4 * lasting**2) - 1) / (2 * lasting**2)
    rows = energies * config.scale
    gained = rows * (one_pole_mean(rows, 1 - fresh) + config.eps).pow(-config.gain) / config.bias
    return (config.power * gained.log1p()).expm1() * float(config.bias**config.power)


def normalize_spec(spec: Tensor, top_db: float | None, normalize: str, mean: float, std: float) -> Tensor:
    """Floored at `top_db` below its peak, then normalised, picture by picture.

    "clip" standardises, "constants" takes mean and std, "peak" subtracts the maximum, "minmax" spans [0, 1].
    A constant picture becomes zeros by all but "constants". Rows are averaged first, so that rounding does not
    depend on the clips beside.
    Shape:  (..., M, N) -> the same
    """
    peak = spec.amax((-2, -1), keepdim=True)
    if top_db is not None:
        spec = torch.maximum(spec, peak - top_db)
    if normalize == "clip":
        centred = spec - peak
        centred = centred - centred.mean(-1, keepdim=True).mean(-2, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True).mean(-2, keepdim=True)
        return centred / variance.clamp(min=1e-6).sqrt()
    if normalize == "constants":
        return (spec - mean) / std
    if normalize == "peak":
        return spec - peak
    if normalize == "minmax":
        least = spec.amin((-2, -1), keepdim=True)
        return (spec - least) / (peak - least).clamp(min=NEGLIGIBLE)
    return spec


def savgol_delta(spec: Tensor, which: str) -> Tensor:
    """First ("delta") or second ("delta2") derivative by a local polynomial over 9 frames.

    4 frames at each end repeat the nearest full window's value; below 9 frames the edges are extended.
    Shape:  (..., M, N) -> the same
    Units:  the input's, per frame or per frame squared
    Source: Savitzky and Golay 1964; as librosa.feature.delta, mode "interp", below 9 frames "nearest"
    """
    short = spec.shape[-1] < 9
    around = extend_edges(spec, 4) if short else spec
    full = around.shape[-1] - 8
    divisor, kernel = DELTA_KERNELS[which]
    slopes = torch.zeros_like(around[..., :full])
    for offset, weight in enumerate(kernel):
        slopes = slopes.add(around[..., offset : offset + full], alpha=weight / divisor)
    return slopes if short else extend_edges(slopes, 4)


def extend_edges(spec: Tensor, frames: int) -> Tensor:
    """Repeat the first and the last frame. Shape: (..., N) -> (..., N + 2 * frames)"""
    shape = (*spec.shape[:-1], frames)
    return torch.cat([spec[..., :1].expand(shape), spec, spec[..., -1:].expand(shape)], dim=-1)


def resize_spec(spec: Tensor, size: Sequence[int]) -> Tensor:
    """A picture in another size: bilinear, averaged where it shrinks. Shape: (..., M, N) -> (..., *size)"""
    flat = spec.reshape(-1, 1, *spec.shape[-2:])
    scaled = F.interpolate(flat, tuple(size), mode="bilinear", align_corners=False, antialias=True)
    return scaled.reshape(*spec.shape[:-2], *size)


def image_size_at(sizes: Sequence[Sequence[int]], progress: float) -> tuple[int, ...]:
    """The picture size at `progress` in [0, 1] of a training, in equal shares."""
    return tuple(sizes[min(int(progress * len(sizes)), len(sizes) - 1)])
