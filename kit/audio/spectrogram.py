'''Compute log-mel and log-STFT spectrograms fast, each clip independently of the others.

Measured for a clip of 5 s at 44.1 kHz (128 mel bands, two cores): librosa 4.7 ms, torchaudio 2.0 ms or more, this file
0.9 ms or less. Chunks stay in the processor's cache, each frame is copied once, and zeros of mel filters are skipped.
'''

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.windows import reflect_index
from kit.core.config import Config, setting
from kit.core.errors import KitError

# The Slaney scale is linear below 1 kHz and logarithmic above.
SLANEY_HZ_PER_MEL = 200 / 3
SLANEY_KNEE_HZ = 1000.0
SLANEY_KNEE_MEL = SLANEY_KNEE_HZ / SLANEY_HZ_PER_MEL
SLANEY_LOG_STEP = 0.06875177742094912

# Samples (frames times n_fft) that are transformed at once. On CPU: 256 frames of 2048, 2 MB in float32, which stay in
# the cache. 32 frames took twice as long, 14,000 frames of many clips 4 times. A GPU is busy with large chunks only;
# there the limit (64 MB in float32) bounds the memory.
CPU_CHUNK_SAMPLES = 524288
GPU_CHUNK_SAMPLES = 16777216

# Half a gigabyte in float64: 1024 mel bands of n_fft 2^17.
MAX_FILTER_WEIGHTS = 1 << 26

# A part of a clip: its index, its first frame, and the frame after its last.
FrameRange = tuple[int, int, int]


def hz_to_mel(hz: np.ndarray, scale: str) -> np.ndarray:
    '''Convert hertz to mel. Source: HTK: Young et al., The HTK Book; Slaney: Auditory Toolbox, 1998'''
    if scale == 'htk':
        return 2595.0 * np.log10(1.0 + hz / 700.0)
    above = SLANEY_KNEE_MEL + np.log(np.maximum(hz, SLANEY_KNEE_HZ) / SLANEY_KNEE_HZ) / SLANEY_LOG_STEP
    return np.where(hz < SLANEY_KNEE_HZ, hz / SLANEY_HZ_PER_MEL, above)


def mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    '''Convert mel to hertz, the inverse of `hz_to_mel`.'''
    if scale == 'htk':
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    above = SLANEY_KNEE_HZ * np.exp(SLANEY_LOG_STEP * (np.maximum(mel, SLANEY_KNEE_MEL) - SLANEY_KNEE_MEL))
    return np.where(mel < SLANEY_KNEE_MEL, mel * SLANEY_HZ_PER_MEL, above)


def check_mel_filters(bins_hz: np.ndarray, edges_hz: np.ndarray) -> None:
    '''Raise KitError where no bin lies within a filter.'''
    low, high = edges_hz[:-2], edges_hz[2:]
    empty = np.flatnonzero(np.searchsorted(bins_hz, low, 'right') >= np.searchsorted(bins_hz, high, 'left'))
    if len(empty):
        span = f'{low[empty[0]]:.1f} to {high[empty[0]]:.1f} Hz'
        raise KitError(f'{len(empty)} mel filters are empty, one at {span}: lower n_mels or raise n_fft.')


def mel_filters(bins_hz: np.ndarray, edges_hz: np.ndarray, norm: str | None) -> np.ndarray:
    '''Return triangular filters of height 1, or of area 1 with norm "slaney".

    Shape:  bins_hz (bins,), edges_hz (M + 2,) -> (bins, M)
    Source: Slaney 1998; equals librosa.filters.mel
    '''
    # torchaudio's melscale_fbanks computes in float32 (weights differ by up to 2e-5) and puts an odd n_fft's last
    # bin at half the sample rate (by up to 0.014).
    low, peak, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising = (bins_hz[:, None] - low) / (peak - low)
    falling = (high - bins_hz[:, None]) / (high - peak)
    filters = np.minimum(rising, falling).clip(0.0)
    if norm:
        filters *= 2.0 / (high - low)
    return filters


@dataclass(frozen=True)
class SpectrumConfig(Config):
    '''Settings of a log spectrogram. Frame n is centred on sample n * hop_length.'''

    kind: str = setting('mel', 'mel: mel bands; stft: bins of the Fourier transform', choices=('mel', 'stft'))
    sample_rate: int = setting(44100, 'samples per second; other clips are resampled', low=1, high=4_000_000)
    n_fft: int = setting(2048, 'samples per Fourier transform', low=16, high=2**17)
    win_length: int | None = setting(None, 'samples of the Hann window; None = n_fft', low=2, high=2**17)
    hop_length: int = setting(512, 'samples between frames', low=1, high=2**17)
    n_mels: int = setting(128, 'number of mel bands; with bands_hz, in each of its bands', low=1, high=8192)
    f_min_hz: float = setting(20.0, 'lowest frequency in hertz', low=0, high=2e6)
    f_max_hz: float | None = setting(None, 'highest frequency in hertz; None = half the sample rate', low=0, high=2e6)
    bands_hz: tuple[tuple[float, ...], ...] = setting(
        (),
        '(low, high) pairs in hertz, each of n_mels bands; they replace f_min_hz and f_max_hz',
        low=0,
        high=2e6,
        longest=4096,
    )
    mel_scale: str = setting('slaney', "mel scale of kind='mel'", choices=('htk', 'slaney'))
    mel_norm: str | None = setting('slaney', 'mel filters have height 1 or area 1', choices=(None, 'slaney'))
    power: int = setting(2, '1: magnitudes; 2: energies', choices=(1, 2))
    log: str = setting('db', 'natural log, or decibels', choices=('ln', 'db'))
    log_offset: float = setting(1e-4, "log='ln' takes ln(x + log_offset)", low=1e-30, high=1e9)
    amin: float = setting(1e-10, "log='db' takes the decibels of max(x, amin)", low=1e-30, high=1e9)
    pad_mode: str = setting('constant', "beyond a clip's ends: zeros, or mirrored", choices=('constant', 'reflect'))

    def check(self) -> None:
        sizes = (self.hop_length, self.window_samples, self.n_fft)
        if list(sizes) != sorted(sizes):
            raise KitError(f'hop_length <= win_length <= n_fft, got {sizes}: lower the former.')
        self.check_pairs('bands_hz')
        for low_hz, high_hz in self.mel_bands:
            if not 0 <= low_hz < high_hz <= self.sample_rate / 2:
                rule = f'0 <= f_min_hz < f_max_hz <= {self.sample_rate / 2:g} Hz, half the sample rate'
                raise KitError(f'{rule}, got {low_hz:g} and {high_hz:g}: lower them, or f_max_hz=None.')
        if self.kind == 'mel':
            weights = (self.n_fft // 2 + 1) * self.n_spec_bins
            if weights > MAX_FILTER_WEIGHTS:
                limit = f'at most {MAX_FILTER_WEIGHTS} weights'
                raise KitError(f'mel filters may have {limit}, got {weights}: lower n_fft or n_mels.')
            bins_hz = self.fft_bins_hz
            for edges_hz in self.mel_edges_hz:
                check_mel_filters(bins_hz, edges_hz)
        else:
            self.stft_band()

    def check_pairs(self, name: str) -> None:
        '''Raise KitError unless the setting is empty, or holds pairs and kind is mel.'''
        pairs = getattr(self, name)
        if pairs and (self.kind != 'mel' or any(len(pair) != 2 for pair in pairs)):
            raise KitError(f"{name} needs kind='mel' and pairs, got {self.kind!r}, {pairs}.")

    def filters(self) -> np.ndarray:
        '''The mel filters of all bands. Shape: -> (n_fft // 2 + 1, M)'''
        bins_hz = self.fft_bins_hz
        return np.hstack([mel_filters(bins_hz, edges_hz, self.mel_norm) for edges_hz in self.mel_edges_hz])

    def stft_band(self) -> tuple[int, int]:
        '''The first and end FFT bin of kind stft.'''
        low, high = self.f_min_hz, self.high_hz
        first = int((self.fft_bins_hz < low).sum())
        end = int((self.fft_bins_hz <= high).sum())
        if first >= end:
            raise KitError(f'no FFT bin lies between {low:g} and {high:g} Hz: widen the band or raise n_fft.')
        return first, end

    @property
    def mel_bands(self) -> tuple[tuple[float, ...], ...]:
        '''The (low, high) bands that are split into n_mels filters each.'''
        return self.bands_hz or ((self.f_min_hz, self.high_hz),)

    @property
    def mel_edges_hz(self) -> list[np.ndarray]:
        '''Filters' edges by band: m rises from edge m to m + 1 and falls to m + 2. Shape: [(n_mels + 2,)]'''
        ends = [hz_to_mel(np.array(band), self.mel_scale) for band in self.mel_bands]
        return [mel_to_hz(np.linspace(low, high, self.n_mels + 2), self.mel_scale) for low, high in ends]

    @property
    def window_samples(self) -> int:
        '''Samples of the Hann window.'''
        return self.win_length or self.n_fft

    @property
    def samples_before(self) -> int:
        '''Samples of the window before the frame's centre.'''
        return self.n_fft // 2 - (self.n_fft - self.window_samples) // 2

    @property
    def high_hz(self) -> float:
        '''Highest frequency.'''
        return self.sample_rate / 2 if self.f_max_hz is None else self.f_max_hz

    @property
    def fft_bins_hz(self) -> np.ndarray:
        '''Centre frequencies of the FFT's bins. Shape: -> (n_fft // 2 + 1,)'''
        return np.arange(self.n_fft // 2 + 1, dtype=np.float64) * self.sample_rate / self.n_fft

    @property
    def n_spec_bins(self) -> int:
        '''Frequency bins of the spectrogram.'''
        if self.kind == 'mel':
            return self.n_mels * len(self.mel_bands)
        first, end = self.stft_band()
        return end - first

    @property
    def bin_hz(self) -> np.ndarray:
        '''Centre frequency of each bin. Shape: -> (n_spec_bins,)'''
        if self.kind == 'stft':
            return self.fft_bins_hz[slice(*self.stft_band())]
        return np.concatenate([edges_hz[1:-1] for edges_hz in self.mel_edges_hz])

    @property
    def frames_per_s(self) -> float:
        '''Frames per second.'''
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class SpectrumTables:
    '''Settings, window, FFT bins in use, and groups of (filters, their bins, weights).

    A group is 16 neighbouring filters, nonzero at few bins: one product with all would mostly multiply zeros, one per
    filter would mostly call.
    '''

    config: SpectrumConfig
    window: Tensor
    bins: slice
    groups: tuple[tuple[slice, slice, Tensor], ...]


@functools.lru_cache(maxsize=32)
def spectrum_tables(config: SpectrumConfig, device: torch.device, dtype: torch.dtype) -> SpectrumTables:
    '''Return window and grouped filters, computed in float64 and rounded once.'''
    window = torch.hann_window(config.window_samples, dtype=torch.float64).to(device, dtype)
    if config.kind == 'stft':
        return SpectrumTables(config, window, slice(*config.stft_band()), ())
    filters = config.filters()
    used = np.flatnonzero(filters.any(axis=1)).tolist()
    bins = slice(used[0], used[-1] + 1)
    weights = torch.tensor(filters[bins]).to(window)
    groups = []
    for start in range(0, filters.shape[1], 16):
        group = slice(start, start + 16)
        used = np.flatnonzero(filters[bins, group].any(axis=1)).tolist()
        of_group = slice(used[0], used[-1] + 1)
        groups.append((group, of_group, weights[of_group, group].contiguous()))
    return SpectrumTables(config, window, bins, tuple(groups))


def plan_frame_chunks(n_frames: Sequence[int], limit: int, pack: bool) -> list[list[FrameRange]]:
    '''Plan which frames of which clips are transformed together, at most `limit` frames a chunk.

    With `pack` a chunk may hold several clips. Without it a chunk's size depends on its one clip alone: a matrix
    product rounds by its size, so even a spectrogram's last bit is then independent of the other clips.
    '''
    chunks: list[list[FrameRange]] = []
    free = 0
    for clip, total in enumerate(n_frames):
        # Equal parts: a full chunk and a tiny rest would be slower.
        size = math.ceil(total / math.ceil(total / limit))
        for first in range(0, total, size):
            if not pack or size > free:
                chunks.append([])
                free = limit
            end = min(first + size, total)
            chunks[-1].append((clip, first, end))
            free -= end - first
    return chunks


def cut_samples(wave: Tensor, start: int, stop: int, pad_mode: str) -> Tensor:
    '''Return samples start..stop of a clip, padded beyond its ends.'''
    if start >= 0 and stop <= len(wave):
        return wave[start:stop]
    if pad_mode == 'constant':
        return F.pad(wave[max(start, 0) : stop], (max(-start, 0), max(stop - len(wave), 0)))
    return wave[reflect_index(torch.arange(start, stop, device=wave.device), len(wave))]


def window_frames(tables: SpectrumTables, wave: Tensor, first: int, out: Tensor) -> None:
    '''Write a clip's windowed frames from `first` on into a buffer. Shape: out (frames, n_fft)'''
    # Frames that reach beyond the clip's ends need padding and are cut separately. The others are read from the wave
    # itself; the one copy into the buffer also multiplies by the window.
    config = tables.config
    width, hop = len(tables.window), config.hop_length
    end = first + len(out)
    first_inside = -(-config.samples_before // hop)
    end_inside = (len(wave) - width + config.samples_before) // hop + 1
    edges = [min(max(edge, first), end) for edge in (first_inside, end_inside)]
    for start, stop in pairwise(sorted({first, *edges, end})):
        first_sample = start * hop - config.samples_before
        end_sample = first_sample + (stop - 1 - start) * hop + width
        samples = cut_samples(wave, first_sample, end_sample, config.pad_mode).to(tables.window.dtype)
        torch.mul(samples.unfold(0, width, hop), tables.window, out=out[start - first : stop - first, :width])


def log_scaled(config: SpectrumConfig, bands: Tensor) -> Tensor:
    '''Take the logarithm of magnitudes or energies, in place.'''
    if config.log == 'ln':
        return bands.add_(config.log_offset).log_()
    return bands.clamp_(min=config.amin).log10_().mul_(20.0 if config.power == 1 else 10.0)


def log_bands(tables: SpectrumTables, frames: Tensor) -> Tensor:
    '''Transform windowed frames by FFT, filters and logarithm. Shape: (rows, n_fft) -> (rows, M)'''
    config = tables.config
    spectrum = torch.view_as_real(torch.fft.rfft(frames, config.n_fft))[:, tables.bins]
    # Squaring in place needs no second buffer; complex abs would also take a root per bin.
    spectrum.mul_(spectrum)
    energies = spectrum[..., 0] + spectrum[..., 1]
    if config.power == 1:
        energies.sqrt_()
    if not tables.groups:
        return log_scaled(config, energies)
    bands = energies.new_empty(len(frames), config.n_spec_bins)
    for group, bins, weights in tables.groups:
        torch.mm(energies[:, bins], weights, out=bands[:, group])
    return log_scaled(config, bands)


def chunked_spectrograms(tables: SpectrumTables, waves: Sequence[Tensor], limit: int, pack: bool) -> list[Tensor]:
    '''Compute log spectrograms in chunks of at most `limit` frames. Shape: [(T_i,)] -> [(M, N_i)]'''
    config, window = tables.config, tables.window
    n_frames = [len(wave) // config.hop_length + 1 for wave in waves]
    specs = [window.new_empty(config.n_spec_bins, n) for n in n_frames]
    # All chunks use one buffer. A window shorter than n_fft stands at its start: that shifts the phase only.
    buffer = window.new_empty(min(limit, sum(n_frames)), config.n_fft)
    buffer[:, len(window) :] = 0
    for chunk in plan_frame_chunks(n_frames, limit, pack):
        sizes = [end - first for _, first, end in chunk]
        frames = buffer[: sum(sizes)]
        for (clip, first, _), part in zip(chunk, torch.split(frames, sizes), strict=True):
            window_frames(tables, waves[clip], first, part)
        bands = torch.split(log_bands(tables, frames), sizes)
        for (clip, first, end), part in zip(chunk, bands, strict=True):
            specs[clip][:, first:end] = part.T
    return specs


def log_spectrograms(tables: SpectrumTables, waves: Sequence[Tensor]) -> list[Tensor]:
    '''Compute log spectrograms, on a CPU each clip by itself. Shape: [(T_i,)] -> [(M, N_i)]'''
    on_cpu = waves[0].device.type == 'cpu'
    samples = CPU_CHUNK_SAMPLES if on_cpu else GPU_CHUNK_SAMPLES
    return chunked_spectrograms(tables, waves, max(1, samples // tables.config.n_fft), pack=not on_cpu)
