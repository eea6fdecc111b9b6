"""Fast log-mel and log-STFT spectrograms."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.windows import reflected
from kit.core.config import Config, setting
from kit.core.errors import KitError

SLANEY_HZ_PER_MEL = 66.66666666666667
SLANEY_KNEE_HZ = 1000.0
SLANEY_KNEE_MEL = SLANEY_KNEE_HZ / SLANEY_HZ_PER_MEL
SLANEY_LOG_STEP = 0.06875177742094912
IS_HTK = {"htk": True, "slaney": False}


def hz_to_mel(hz: np.ndarray | float, scale: str) -> np.ndarray:
    """Pitch on the mel scale, "htk" or "slaney" (linear to 1 kHz, logarithmic above). Shape: any -> the same

    Units:  hertz -> mel
    Source: HTK: Young et al., The HTK Book; Slaney: Auditory Toolbox, 1998
    """
    if IS_HTK[scale]:
        return np.asarray(2595.0 * np.log10(1.0 + hz / 700.0))
    above = SLANEY_KNEE_MEL + np.log(np.maximum(hz, SLANEY_KNEE_HZ) / SLANEY_KNEE_HZ) / SLANEY_LOG_STEP
    return np.where(hz < SLANEY_KNEE_HZ, hz / SLANEY_HZ_PER_MEL, above)


def mel_to_hz(mel: np.ndarray | float, scale: str) -> np.ndarray:
    """The inverse of `hz_to_mel`. Shape: any -> the same. Units: mel -> hertz"""
    if IS_HTK[scale]:
        return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))
    above = SLANEY_KNEE_HZ * np.exp(SLANEY_LOG_STEP * (np.maximum(mel, SLANEY_KNEE_MEL) - SLANEY_KNEE_MEL))
    return np.where(mel < SLANEY_KNEE_MEL, mel * SLANEY_HZ_PER_MEL, above)


def fft_bins_hz(sample_rate: int, n_fft: int) -> np.ndarray:
    """Centre frequencies of the bins of a real FFT. Shape: -> (n_fft // 2 + 1,). Units: hertz"""
    return np.arange(n_fft // 2 + 1, dtype=np.float64) * sample_rate / n_fft


def mel_edges_hz(n_mels: int, low_hz: float, high_hz: float, mel_scale: str) -> np.ndarray:
    """Filter m begins, peaks, ends at edges m, m + 1, m + 2. Shape: -> (n_mels + 2,)"""
    low, high = hz_to_mel(np.array([low_hz, high_hz]), mel_scale)
    return mel_to_hz(np.linspace(low, high, n_mels + 2), mel_scale)


def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, low_hz: float, high_hz: float, scale: str, norm: str | None
) -> np.ndarray:
    """Triangles from FFT bins to mel bands, of height 1 or equal area ("slaney").

    Shape:  -> (n_fft // 2 + 1, n_mels), float64
    Units:  weight per bin, at most 1 without norm, 2 / width in hertz with it
    Source: Slaney 1998; the same numbers as librosa.filters.mel
    Errors: KitError for a band outside 0..Nyquist, or filters so narrow that no bin falls into one
    """
    check_band(low_hz, high_hz, sample_rate)
    bins_hz, edges_hz = fft_bins_hz(sample_rate, n_fft), mel_edges_hz(n_mels, low_hz, high_hz, scale)
    below, peak, over = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (bins_hz[:, None] - below) / (peak - below)
    falling = (over - bins_hz[:, None]) / (over - peak)
    filters = np.asarray(np.minimum(rising, falling).clip(0.0))
    deaf = np.flatnonzero(filters.max(axis=0) <= 0.0)
    if len(deaf):
        span = f"{below[deaf[0]]:.1f} to {over[deaf[0]]:.1f} Hz"
        raise KitError(f"{len(deaf)} mel filters are empty, one at {span}: lower n_mels or raise n_fft.")
    if norm:
        filters *= 2.0 / (over - below)
    return filters


def check_band(low_hz: float, high_hz: float, sample_rate: int) -> None:
    """Raise KitError unless 0 <= low < high <= Nyquist. Units: hertz"""
    if not 0 <= low_hz < high_hz <= sample_rate / 2:
        wanted = f"0 <= f_min_hz < f_max_hz <= {sample_rate / 2:g} Hz, half the sample rate"
        raise KitError(f"{wanted}, got {low_hz:g} and {high_hz:g}: lower them, or f_max_hz=None.")


def band_groups(filters: np.ndarray, call_cost: int = 2000, narrowest: int = 16) -> list[tuple[slice, slice]]:
    """Neighbouring filters that are cheapest multiplied together.

    Splits at multiples of 8; a group costs bins x filters (at least `narrowest`) + `call_cost` multiplications.
    Shape:  filters (n_bins, n_mels) -> [(filters of a group, its bins)]
    """
    heard = filters > 0
    first = heard.argmax(axis=0)
    end = len(heard) - heard[::-1].argmax(axis=0)
    n_mels = filters.shape[1]
    cuts = [*range(0, n_mels, 8), n_mels]
    best: dict[int, tuple[int, list[tuple[slice, slice]]]] = {0: (0, [])}
    for stop in cuts[1:]:
        options = []
        for start in (cut for cut in cuts if cut < stop):
            low, high = int(first[start:stop].min()), int(end[start:stop].max())
            price, groups = best[start]
            price += (high - low) * max(stop - start, narrowest) + call_cost
            options.append((price, [*groups, (slice(start, stop), slice(low, high))]))
        best[stop] = min(options, key=lambda option: option[0])
    return best[n_mels][1]


@dataclass(frozen=True)
class SpectrumConfig(Config):
    """One Fourier picture of a sound; frame n is centred on sample n * hop_length.

    Errors: KitError for settings that leave sound unheard or contradict each other
    """

    kind: str = setting("mel", "mel bands or STFT bins", choices=("mel", "stft"))
    sample_rate: int = setting(44100, "samples per second", low=1)
    n_fft: int = setting(2048, "samples per Fourier transform", low=16)
    win_length: int | None = setting(None, "samples of the Hann window; None = n_fft", low=2)
    hop_length: int = setting(512, "samples from frame to frame", low=1)
    n_mels: int = setting(128, "mel bands, in each of bands_hz", low=1)
    f_min_hz: float = setting(20.0, "lowest frequency heard", low=0)
    f_max_hz: float | None = setting(None, "highest; None = half the sample rate")
    bands_hz: tuple[tuple[float, ...], ...] = setting(
        (), "(low, high) of bands of n_mels rows each, not f_min_hz and f_max_hz"
    )
    mel_scale: str = setting("slaney", "mel scale (kind mel)", choices=tuple(IS_HTK))
    mel_norm: str | None = setting("slaney", "None: height 1; slaney: area", choices=(None, "slaney"))
    power: int = setting(2, "1: magnitudes, 2: energies", choices=(1, 2))
    log: str = setting("db", "ln(x + log_offset), decibels, or PCEN", choices=("ln", "db", "pcen"))
    log_offset: float = setting(1e-4, "added before ln", low=1e-30)
    amin: float = setting(1e-10, "smallest x in decibels", low=1e-30)
    pad_mode: str = setting("constant", "beyond the ends", choices=("constant", "reflect"))

    def check(self) -> None:
        sizes = (self.hop_length, self.window_samples, self.n_fft)
        if list(sizes) != sorted(sizes):
            raise KitError(f"hop_length <= win_length <= n_fft, got {sizes}: lower the former.")
        self.check_pairs("bands_hz")
        self.filters() if self.kind == "mel" else self.stft_band()

    def check_pairs(self, name: str) -> None:
        """Raise KitError unless empty, or pairs and kind mel."""
        pairs = getattr(self, name)
        if pairs and (self.kind != "mel" or any(len(pair) != 2 for pair in pairs)):
            raise KitError(f"{name} wants kind='mel' and pairs, got {self.kind!r}, {pairs}.")

    def filters(self) -> np.ndarray:
        """The mel filters. Shape: -> (n_fft // 2 + 1, M). Errors: KitError for deaf ones"""
        sizes = self.sample_rate, self.n_fft, self.n_mels
        how = self.mel_scale, self.mel_norm
        return np.hstack([mel_filters(*sizes, low, high, *how) for low, high in self.mel_bands])

    def stft_band(self) -> tuple[int, int]:
        """First and end FFT bin heard. Errors: KitError where there is none"""
        check_band(self.f_min_hz, self.top_hz, self.sample_rate)
        bins_hz = fft_bins_hz(self.sample_rate, self.n_fft)
        first, end = int((bins_hz < self.f_min_hz).sum()), int((bins_hz <= self.top_hz).sum())
        if first >= end:
            band = f"{self.f_min_hz:g} and {self.top_hz:g} Hz"
            raise KitError(f"no FFT bin lies between {band}: widen the band or raise n_fft.")
        return first, end

    @property
    def mel_bands(self) -> tuple[tuple[float, ...], ...]:
        """Every band of n_mels filters. Units: hertz"""
        return self.bands_hz or ((self.f_min_hz, self.top_hz),)

    @property
    def window_samples(self) -> int:
        """Samples under the window."""
        return self.win_length or self.n_fft

    @property
    def top_hz(self) -> float:
        """Highest frequency heard. Units: hertz"""
        return self.sample_rate / 2 if self.f_max_hz is None else self.f_max_hz

    @property
    def n_spec_bins(self) -> int:
        """Frequency bins of the picture."""
        return self.n_mels * len(self.mel_bands) if self.kind == "mel" else len(range(*self.stft_band()))

    @property
    def bin_hz(self) -> np.ndarray:
        """Centre frequency of each row. Shape: -> (n_spec_bins,). Units: hertz"""
        if self.kind == "stft":
            return fft_bins_hz(self.sample_rate, self.n_fft)[slice(*self.stft_band())]
        edges = [mel_edges_hz(self.n_mels, low, high, self.mel_scale) for low, high in self.mel_bands]
        return np.concatenate([edge[1:-1] for edge in edges])

    @property
    def frames_per_s(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    def frames_of(self, n_samples: int) -> int:
        """Frames N of a clip of so many samples."""
        return n_samples // self.hop_length + 1


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
            bands = energies.new_empty(len(frames), config.n_spec_bins)
        for some, bins, weights in tables.groups:
            torch.mm(energies[:, bins], weights, out=bands[:, some])
    return log_scaled(config, bands)


def chunked_spectrograms(
    tables: SpectrumTables, waves: Sequence[Tensor], limit: int, pack: bool
) -> list[Tensor]:
    """Log spectrograms, a chunk at a time. Shape: [(T_i,)] -> [(M, N_i)]"""
    config, window = tables.config, tables.window
    lengths = [config.frames_of(len(wave)) for wave in waves]
    results = [window.new_empty(config.n_spec_bins, frames) for frames in lengths]
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
