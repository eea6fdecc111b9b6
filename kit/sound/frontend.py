"""Waveforms in, spectrograms out: exact lengths, every clip by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.sound.melbank import band_groups, bins_inside, mel_filters

CHANNEL_KINDS = ("log", "coordinate", "coordinate01", "delta", "delta2")
DELTA_KERNELS = {
    "delta": (60, (-4, -3, -2, -1, 0, 1, 2, 3, 4)),
    "delta2": (462, (28, 7, -8, -17, -20, -17, -8, 7, 28)),
}
LEAST_SPREAD = 1e-3
CPU_CHUNK_SAMPLES = 524288
GPU_CHUNK_SAMPLES = 16777216


@dataclass(frozen=True)
class FrontendConfig(Config):
    """How sound becomes a picture. Frames are centred: frame n looks at sample n * hop_length.

    Errors: KitError for settings that leave sound unheard or contradict each other
    """

    kind: str = setting("mel", "mel bands, or the bins of the STFT as they are", choices=("mel", "stft"))
    sample_rate: int = setting(44100, "samples per second", low=1)
    n_fft: int = setting(2048, "samples per Fourier transform", low=16)
    win_length: int | None = setting(None, "samples under the Hann window; None = n_fft", low=2)
    hop_length: int = setting(512, "samples from frame to frame", low=1)
    n_mels: int = setting(128, "mel bands (kind mel)", low=1)
    f_min_hz: float = setting(20.0, "lowest frequency heard", low=0)
    f_max_hz: float | None = setting(None, "highest frequency heard; None = half the sample rate")
    mel_scale: str = setting("slaney", "mel scale (kind mel)", choices=("htk", "slaney"))
    mel_norm: str | None = setting("slaney", "None: height 1; slaney: equal area", choices=(None, "slaney"))
    power: int = setting(2, "1: magnitudes, 2: energies", choices=(1, 2))
    log: str = setting("db", "ln(x + log_offset), or decibels", choices=("ln", "db"))
    log_offset: float = setting(1e-4, "added before ln", low=1e-30)
    amin: float = setting(1e-10, "smallest x in decibels", low=1e-30)
    top_db: float | None = setting(None, "floor, dB below the loudest point of the same clip", low=1e-3)
    pad_mode: str = setting("constant", "what lies beyond the ends", choices=("constant", "reflect"))
    channels: tuple[str, ...] = setting(("log",), "pictures stacked for the network", choices=CHANNEL_KINDS)
    normalise: str = setting("none", "log channel's mean and std", choices=("none", "clip", "constants"))
    mean: float = setting(0.0, "subtracted (normalise constants), in units of the log")
    std: float = setting(1.0, "divided by (normalise constants), in units of the log", low=1e-6)
    reference: str = setting("clip", "what floor and normalise refer to", choices=("clip", "window"))

    def check(self) -> None:
        """Every sample is under a window, every filter hears a bin, no setting is idle. Raises KitError."""
        sizes = (self.hop_length, self.window_samples, self.n_fft)
        if list(sizes) != sorted(sizes):
            raise KitError(f"hop_length <= win_length <= n_fft is wanted, got {sizes}: lower the former.")
        if self.top_db is not None and self.log != "db":
            raise KitError(f"top_db = {self.top_db:g} needs log='db', got log={self.log!r}: use top_db=None.")
        if len(set(self.channels)) != len(self.channels) or not set(self.channels) & {"log", *DELTA_KERNELS}:
            raise KitError(f"channels must differ and hold sound, got {self.channels}: use log and more.")
        self.filters() if self.kind == "mel" else self.stft_band()

    def filters(self) -> np.ndarray:
        """The mel filters, height or area as set. Shape: -> (n_fft // 2 + 1, M). Errors: KitError"""
        c = self
        return mel_filters(c.sample_rate, c.n_fft, c.n_mels, c.f_min_hz, c.f_max_hz, c.mel_scale, c.mel_norm)

    def stft_band(self) -> tuple[int, int]:
        """First and end FFT bin inside [f_min_hz, f_max_hz]. Errors: KitError"""
        return bins_inside(self.sample_rate, self.n_fft, self.f_min_hz, self.top_hz)

    @property
    def window_samples(self) -> int:
        """Samples under the window."""
        return self.n_fft if self.win_length is None else self.win_length

    @property
    def top_hz(self) -> float:
        """Highest frequency heard, in hertz."""
        return self.sample_rate / 2 if self.f_max_hz is None else self.f_max_hz

    @property
    def n_bins(self) -> int:
        """Frequency bins M of the spectrogram."""
        return self.n_mels if self.kind == "mel" else len(range(*self.stft_band()))

    @property
    def n_channels(self) -> int:
        """Channels C of the spectrogram."""
        return len(self.channels)

    @property
    def frames_per_s(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    def frames_of(self, n_samples: int) -> int:
        """Frames N that a clip of `n_samples` makes: n_samples // hop_length + 1."""
        return n_samples // self.hop_length + 1


@dataclass(frozen=True)
class SpectrumTables:
    """Window and groups of (filters, bins after first_bin, weights (bins, filters)) for a device and precision."""

    window: Tensor
    first_bin: int
    end_bin: int
    groups: tuple[tuple[slice, slice, Tensor], ...]


def spectrum_tables(config: FrontendConfig, device: torch.device, dtype: torch.dtype) -> SpectrumTables:
    """Window and grouped filters, computed in float64 and then rounded once."""
    window = torch.hann_window(config.window_samples, dtype=torch.float64).to(device, dtype)
    if config.kind == "stft":
        return SpectrumTables(window, *config.stft_band(), ())
    filters = config.filters()
    heard = np.flatnonzero(filters.any(axis=1))
    first_bin, end_bin = int(heard[0]), int(heard[-1]) + 1
    weights = torch.tensor(filters[first_bin:end_bin]).to(window)
    spans = band_groups(filters[first_bin:end_bin])
    groups = tuple((bands, bins, weights[bins, bands].contiguous()) for bands, bins in spans)
    return SpectrumTables(window, first_bin, end_bin, groups)


def chunk_plan(frames: Sequence[int], limit: int, pack: bool) -> list[list[tuple[int, int, int]]]:
    """Which frames of which clips are transformed together.

    Without `pack` a chunk holds frames of one clip and its size depends on that clip alone, so that even
    rounding does; with it, a chunk takes several clips, as large devices like it.
    Shape:  frames per clip -> chunks of (clip, first frame, end frame), at most `limit` frames each
    """
    chunks: list[list[tuple[int, int, int]]] = []
    for clip, total in enumerate(frames):
        size = -(-total // -(-total // limit))
        for first in range(0, total, size):
            if not pack or not chunks or sum(end - begin for _, begin, end in chunks[-1]) + size > limit:
                chunks.append([])
            chunks[-1].append((clip, first, min(first + size, total)))
    return chunks


def cut_samples(wave: Tensor, start: int, stop: int, pad_mode: str) -> Tensor:
    """Samples start..stop of a clip that goes on beyond its ends as `pad_mode` says.

    Shape:  wave (T,) -> (stop - start,); reflection goes to and fro as often as it must
    """
    samples = len(wave)
    if start >= 0 and stop <= samples:
        return wave[start:stop]
    if pad_mode == "constant":
        inside = wave[max(start, 0) : min(stop, samples)]
        return F.pad(inside, (max(-start, 0), max(stop - samples, 0)))
    period = max(2 * (samples - 1), 1)
    places = torch.arange(start, stop, device=wave.device) % period
    return wave[torch.minimum(places, period - places)]


def write_frames(config: FrontendConfig, window: Tensor, wave: Tensor, first: int, out: Tensor) -> None:
    """Write the windowed frames `first`... of one clip into the rows of `out`.

    Shape:  wave (T,), out (frames, n_fft), of which the first window_samples columns are written
    """
    hop, width, end = config.hop_length, len(window), first + len(out)
    lead = config.n_fft // 2 - (config.n_fft - width) // 2
    edges = (-(-lead // hop), (len(wave) - width + lead) // hop + 1)
    cuts = sorted({first, end, *(min(max(edge, first), end) for edge in edges)})
    for start, stop in pairwise(cuts):
        samples = cut_samples(wave, start * hop - lead, (stop - 1) * hop - lead + width, config.pad_mode)
        frames = samples.to(out.dtype).unfold(0, width, hop)
        torch.mul(frames, window, out=out[start - first : stop - first, :width])


def log_energies(config: FrontendConfig, tables: SpectrumTables, frames: Tensor) -> Tensor:
    """Windowed frames through FFT, filters and logarithm.

    Shape:  frames (rows, n_fft) -> (rows, M)
    Units:  ln(x + log_offset), or dB of max(x, amin)
    """
    spectrum = torch.view_as_real(torch.fft.rfft(frames))[:, tables.first_bin : tables.end_bin]
    spectrum.mul_(spectrum)
    energies = bands = spectrum[..., 0] + spectrum[..., 1]
    if config.power == 1:
        energies.sqrt_()
    if tables.groups:
        bands = energies.new_empty(len(frames), config.n_bins)
    for some, bins, weights in tables.groups:
        torch.mm(energies[:, bins], weights, out=bands[:, some])
    if config.log == "ln":
        return bands.add_(config.log_offset).log_()
    return bands.clamp_(min=config.amin).log10_().mul_(20.0 if config.power == 1 else 10.0)


def chunked_spectrograms(
    config: FrontendConfig, tables: SpectrumTables, waves: Sequence[Tensor], limit: int, pack: bool
) -> list[Tensor]:
    """Log spectrograms computed chunk by chunk, in memory of one chunk beside the results.

    Shape:  [(T_i,)] -> [(M, N_i)]
    """
    results = [tables.window.new_empty(config.n_bins, config.frames_of(len(wave))) for wave in waves]
    chunks = chunk_plan([result.shape[-1] for result in results], limit, pack)
    rows = max(sum(end - first for _, first, end in chunk) for chunk in chunks)
    frames = tables.window.new_empty(rows, config.n_fft)
    frames[:, config.window_samples :] = 0
    for chunk in chunks:
        ends = list(accumulate(end - first for _, first, end in chunk))
        for row, (clip, first, end) in zip(ends, chunk, strict=True):
            write_frames(config, tables.window, waves[clip], first, frames[row - (end - first) : row])
        bands = log_energies(config, tables, frames[: ends[-1]])
        for row, (clip, first, end) in zip(ends, chunk, strict=True):
            results[clip][:, first:end] = bands[row - (end - first) : row].T
    return results


def clip_normalised(spec: Tensor) -> Tensor:
    """Zero mean and unit variance over the last two axes; a clip without variance becomes zeros.

    Rows are averaged first, so that rounding does not depend on how many clips stand beside.
    Shape:  (..., M, N) -> (..., M, N)
    """
    centred = spec - spec.amax((-2, -1), keepdim=True)
    centred = centred - centred.mean(-1, keepdim=True).mean(-2, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).mean(-2, keepdim=True).sqrt()
    return centred / spread.clamp(min=LEAST_SPREAD)


def savgol_delta(spec: Tensor, which: str) -> Tensor:
    """First ("delta") or second ("delta2") derivative over time by a local polynomial over 9 frames.

    The 4 frames at each end repeat the nearest full window's value; below 9 frames the edges are extended.
    Shape:  (..., M, N) -> (..., M, N)
    Units:  the input's, per frame or per frame squared
    Source: Savitzky and Golay 1964; as librosa.feature.delta, mode "interp", below 9 frames "nearest"
    """
    short = spec.shape[-1] < 9
    around = edge_extended(spec, 4) if short else spec
    full = around.shape[-1] - 8
    divisor, kernel = DELTA_KERNELS[which]
    slopes = torch.zeros_like(around[..., :full])
    for offset, weight in enumerate(kernel):
        slopes = slopes.add(around[..., offset : offset + full], alpha=weight / divisor)
    return slopes if short else edge_extended(slopes, 4)


def edge_extended(spec: Tensor, frames: int) -> Tensor:
    """Repeat the first and the last frame. Shape: (..., N) -> (..., N + 2 * frames)"""
    shape = (*spec.shape[:-1], frames)
    return torch.cat([spec[..., :1].expand(shape), spec, spec[..., -1:].expand(shape)], dim=-1)


class Frontend(nn.Module):
    """Log spectrograms, computed wherever the waveform lives, in float32 outside autocast (float64 stays so).

    Window and filters follow settings, device and precision: they are no state, and `half()` spares them.
    With `reference="clip"` level a whole clip, then cut it; with "window" cut, then level.
    Shape:  wave (B, T) -> (B, C, M, N), N = T // hop_length + 1
    Units:  wave in [-1, 1]; log channel in dB or nepers, normalised as set
    Source: Hann window, HTK or Slaney mel scale; the numbers of librosa at equal pad_mode
    """

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.tables: dict[tuple[torch.device, torch.dtype], SpectrumTables] = {}

    def spectrograms(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Raw log spectrograms of clips of any lengths: no floor, no normalisation, no channels, no gradient.

        On CPU a clip's answer is bit for bit the same whatever its neighbours.
        Shape:  [(T_i,)] -> [(M, N_i)], N_i = T_i // hop_length + 1
        Errors: KitError for an empty clip, a wrong shape or integers
        """
        if not waves:
            return []
        check_waves(waves)
        device = waves[0].device
        dtype = torch.float64 if waves[0].dtype == torch.float64 else torch.float32
        on_cpu = device.type == "cpu"
        limit = max(1, (CPU_CHUNK_SAMPLES if on_cpu else GPU_CHUNK_SAMPLES) // self.config.n_fft)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            if (device, dtype) not in self.tables:
                self.tables[device, dtype] = spectrum_tables(self.config, device, dtype)
            return chunked_spectrograms(self.config, self.tables[device, dtype], waves, limit, not on_cpu)

    def level(self, raw: Tensor) -> Tensor:
        """Floor and normalisation; every leading index by itself. Shape: (..., M, N) -> (..., M, N)"""
        config = self.config
        spec = raw if raw.dtype == torch.float64 else raw.float()
        if config.top_db is not None:
            spec = torch.maximum(spec, spec.amax((-2, -1), keepdim=True) - config.top_db)
        if config.normalise == "clip":
            spec = clip_normalised(spec)
        return (spec - config.mean) / config.std if config.normalise == "constants" else spec

    def stack(self, spec: Tensor) -> Tensor:
        """The channels made from a levelled spectrogram. Shape: (..., M, N) -> (..., C, M, N)"""
        return torch.stack([channel_of(spec, name) for name in self.config.channels], dim=-3)

    def finish(self, raw: Tensor) -> Tensor:
        """A raw spectrogram as the network hears it. Shape: (..., M, N) -> (..., C, M, N)"""
        return self.stack(self.level(raw))

    def forward(self, wave: Tensor) -> Tensor:
        """Clips of one length, as the network hears them. Shape: (B, T) -> (B, C, M, N)"""
        return self.finish(torch.stack(self.spectrograms(list(wave))))


def channel_of(spec: Tensor, name: str) -> Tensor:
    """One channel made from the finished log channel. Shape: (..., M, N) -> (..., M, N)"""
    if name == "log":
        return spec
    if name in DELTA_KERNELS:
        return savgol_delta(spec, name)
    low = {"coordinate": -1.0, "coordinate01": 0.0}[name]
    ramp = torch.linspace(low, 1.0, spec.shape[-2], dtype=spec.dtype, device=spec.device)
    return ramp[:, None].expand_as(spec)


def check_waves(waves: Sequence[Tensor]) -> None:
    """Raise KitError unless every wave is (T,), T >= 1, of one floating type on one device."""
    kind = (waves[0].dtype, waves[0].device)
    for wave in waves:
        sound = wave.ndim == 1 and len(wave) > 0 and wave.is_floating_point()
        if not sound or (wave.dtype, wave.device) != kind:
            came = f"{tuple(wave.shape)} of {wave.dtype} on {wave.device}"
            raise KitError(f"waves are (T,) floats, alike in type and device, got {came}: pass scaled mono.")
