"""Waveforms in, raw spectrograms out, chunk by chunk: every clip by itself."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.errors import KitError
from kit.sound.fourier import SpectrumConfig
from kit.sound.lengths import reflected
from kit.sound.melbank import band_groups

CPU_CHUNK_SAMPLES = 524288
GPU_CHUNK_SAMPLES = 16777216


def check_waves(waves: Sequence[Tensor]) -> None:
    """Raise KitError unless waves are (T,), T >= 1, floats of one type and device."""
    dtype, device = waves[0].dtype, waves[0].device
    for wave in waves:
        sound = wave.ndim == 1 and len(wave) > 0 and wave.is_floating_point()
        if not sound or wave.dtype != dtype or wave.device != device:
            came = f"{tuple(wave.shape)} of {wave.dtype} on {wave.device}"
            raise KitError(f"waves are (T,) floats, alike in type and device, got {came}: pass scaled mono.")


@dataclass(frozen=True)
class SpectrumTables:
    """Settings, window, bins heard, groups of (filters, their bins, weights (bins, filters))."""

    config: SpectrumConfig
    window: Tensor
    heard: slice
    groups: tuple[tuple[slice, slice, Tensor], ...]


@functools.lru_cache(maxsize=32)
def spectrum_tables(config: SpectrumConfig, device: torch.device, dtype: torch.dtype) -> SpectrumTables:
    """Window and grouped filters, from float64 rounded once."""
    window = torch.hann_window(config.window_samples, dtype=torch.float64).to(device, dtype)
    if config.kind == "stft":
        return SpectrumTables(config, window, slice(*config.stft_band()), ())
    filters = config.filters()
    bins_heard = np.flatnonzero(filters.any(axis=1)).tolist()
    heard = slice(bins_heard[0], bins_heard[-1] + 1)
    weights = torch.tensor(filters[heard]).to(window)
    spans = band_groups(filters[heard])
    groups = tuple((bands, bins, weights[bins, bands].contiguous()) for bands, bins in spans)
    return SpectrumTables(config, window, heard, groups)


def chunk_plan(frames: Sequence[int], limit: int, pack: bool) -> list[list[tuple[int, int, int]]]:
    """Which frames of which clips are transformed together.

    Without `pack` a chunk's size depends on its one clip alone, so that even rounding does; with it, a chunk
    takes several clips, as large devices like it.
    Shape:  frames per clip -> chunks of (clip, first frame, end frame), at most `limit` frames each
    """
    chunks: list[list[tuple[int, int, int]]] = []
    room = 0
    for clip, total in enumerate(frames):
        size = -(-total // -(-total // limit))
        for first in range(0, total, size):
            if not pack or size > room:
                chunks.append([])
                room = limit
            end = min(first + size, total)
            chunks[-1].append((clip, first, end))
            room -= end - first
    return chunks


def cut_samples(wave: Tensor, start: int, stop: int, pad_mode: str) -> Tensor:
    """Samples start..stop of a clip, beyond its ends as `pad_mode` says. Shape: -> (stop - start,)"""
    if start >= 0 and stop <= len(wave):
        return wave[start:stop]
    if pad_mode == "constant":
        return F.pad(wave[max(start, 0) : stop], (max(-start, 0), max(stop - len(wave), 0)))
    return wave[reflected(torch.arange(start, stop, device=wave.device), len(wave))]


def cut_frames(tables: SpectrumTables, wave: Tensor, first: int, end: int) -> Tensor:
    """Frames of a clip, not yet windowed: a view where they lie inside. Shape: -> (end - first, width)"""
    config, width = tables.config, len(tables.window)
    hop, lead = config.hop_length, config.n_fft // 2 - (config.n_fft - width) // 2
    samples = cut_samples(wave, first * hop - lead, (end - 1) * hop - lead + width, config.pad_mode)
    return samples.to(tables.window.dtype).unfold(0, width, hop)


def window_frames(tables: SpectrumTables, wave: Tensor, first: int, out: Tensor) -> None:
    """Write a clip's windowed frames from `first` on, copying only its ends. Shape: out (frames, n_fft)"""
    config, width, end = tables.config, len(tables.window), first + len(out)
    lead = config.n_fft // 2 - (config.n_fft - width) // 2
    inside = (-(-lead // config.hop_length), (len(wave) - width + lead) // config.hop_length + 1)
    cuts = sorted({first, end, *(min(max(edge, first), end) for edge in inside)})
    for start, stop in pairwise(cuts):
        part = out[start - first : stop - first, :width]
        torch.mul(cut_frames(tables, wave, start, stop), tables.window, out=part)


def log_scaled(config: SpectrumConfig, bands: Tensor) -> Tensor:
    """The logarithm of magnitudes or energies, in place without gradients. Shape: any -> the same

    Units:  ln(x + log_offset), dB of max(x, amin), or x itself for PCEN, which comes when the clip is whole
    """
    if config.log == "pcen":
        return bands
    out = None if bands.requires_grad else bands
    if config.log == "ln":
        return torch.log(torch.add(bands, config.log_offset, out=out), out=out)
    decibels = torch.log10(torch.clamp(bands, min=config.amin, out=out), out=out)
    return torch.mul(decibels, 20.0 if config.power == 1 else 10.0, out=out)


def log_energies(tables: SpectrumTables, frames: Tensor) -> Tensor:
    """Windowed frames through FFT, filters and logarithm, in place without gradients.

    Shape:  frames (rows, n_fft) -> (rows, M)
    """
    config = tables.config
    spectrum = torch.view_as_real(torch.fft.rfft(frames, config.n_fft))[:, tables.heard]
    if frames.requires_grad:
        bands = torch.linalg.vector_norm(spectrum, dim=-1) if config.power == 1 else spectrum.square().sum(-1)
        if tables.groups:
            bands = torch.cat([bands[:, bins] @ weights for _, bins, weights in tables.groups], dim=1)
    else:
        spectrum.mul_(spectrum)
        energies = bands = spectrum[..., 0] + spectrum[..., 1]
        if config.power == 1:
            energies.sqrt_()
        if tables.groups:
            bands = energies.new_empty(len(frames), config.picture_bins)
        for some, bins, weights in tables.groups:
            torch.mm(energies[:, bins], weights, out=bands[:, some])
    return log_scaled(config, bands)


def chunked_spectrograms(
    tables: SpectrumTables, waves: Sequence[Tensor], limit: int, pack: bool
) -> list[Tensor]:
    """Log spectrograms, a chunk at a time. Shape: [(T_i,)] -> [(M, N_i)]"""
    config, window = tables.config, tables.window
    lengths = [config.frames_of(len(wave)) for wave in waves]
    results = [window.new_empty(config.picture_bins, frames) for frames in lengths]
    frames = window.new_empty(min(limit, sum(lengths)), config.n_fft)
    frames[:, len(window) :] = 0
    for chunk in chunk_plan(lengths, limit, pack):
        sizes = [end - first for _, first, end in chunk]
        used = frames[: sum(sizes)]
        for (clip, first, _), part in zip(chunk, torch.split(used, sizes), strict=True):
            window_frames(tables, waves[clip], first, part)
        bands = torch.split(log_energies(tables, used), sizes)
        for (clip, first, end), part in zip(chunk, bands, strict=True):
            results[clip][:, first:end] = part.T
    return results


def log_spectrograms(tables: SpectrumTables, waves: Sequence[Tensor], traced: bool) -> list[Tensor]:
    """Log spectrograms, `traced`: gradients come back. Shape: [(T_i,)] -> [(M, N_i)]"""
    config = tables.config
    if not traced:
        on_cpu = waves[0].device.type == "cpu"
        limit = max(1, (CPU_CHUNK_SAMPLES if on_cpu else GPU_CHUNK_SAMPLES) // config.n_fft)
        return chunked_spectrograms(tables, waves, limit, not on_cpu)
    heard = (cut_frames(tables, wave, 0, config.frames_of(len(wave))) for wave in waves)
    return [log_energies(tables, frames * tables.window).T for frames in heard]


def at_frames_of(spec: Tensor, hop_length: int, frames: int, other_hop: int) -> Tensor:
    """The frames nearest to those of another hop. Shape: (M, N) -> (M, frames)"""
    if hop_length == other_hop:
        return spec
    nearest = (2 * other_hop * torch.arange(frames, device=spec.device) + hop_length) // (2 * hop_length)
    return spec[:, nearest.clamp(max=spec.shape[-1] - 1)]
