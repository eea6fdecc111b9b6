'''The front end: from waveforms to the network's input, normalized and stacked spectrograms.'''

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.audio.spectrogram import SpectrumConfig, log_spectrograms, spectrum_tables
from kit.audio.waveform import EXTRA_ROWS, compute_extra_rows, nonsilent_span
from kit.core.config import setting
from kit.core.errors import KitError

# Savitzky-Golay filters over nine frames: (divisor, weights of frames -4 to 4).
DELTA_KERNELS = {'delta': (60, (-4, -3, -2, -1, 0, 1, 2, 3, 4)), 'delta2': (462, (28, 7, -8, -17, -20, -17, -8, 7, 28))}

# Channels that hold the frequency bin's position, and the value at the lowest bin; the highest has 1.
COORDINATES = {'coordinate': -1.0, 'coordinate01': 0.0}


@dataclass(frozen=True)
class FrontendConfig(SpectrumConfig):
    '''Settings of the whole front end: trim, transform, normalize, stack channels, resize.'''

    resolutions: tuple[tuple[int, ...], ...] = setting(
        (), 'more (n_fft, hop_length) pairs; each adds channels', low=1, high=2**17, longest=16
    )
    top_db: float | None = setting(None, 'raise values to the maximum minus so many dB; None: no', low=1e-3, high=1e4)
    channels: tuple[str, ...] = setting(
        ('log',),
        "channels in order: log spectrogram, its derivatives, the bin's position from -1 or 0 to 1",
        choices=('log', *COORDINATES, *DELTA_KERNELS),
    )
    normalize: str = setting(
        'none',
        'clip: mean 0 and std 1; constants: (x - mean) / std; peak: maximum 0; minmax: 0 to 1',
        choices=('none', 'clip', 'constants', 'peak', 'minmax'),
    )
    mean: float = setting(0.0, "subtracted by normalize='constants'", low=-1e9, high=1e9)
    std: float = setting(1.0, "divides in normalize='constants'", low=1e-6, high=1e9)
    reference: str = setting('clip', 'what top_db and normalize refer to', choices=('clip', 'window'))
    extra_rows: tuple[str, ...] = setting((), "rows below every channel's bins", choices=tuple(EXTRA_ROWS))
    trim_db: float | None = setting(None, 'cut ends so many dB below the loudest frame; None: no', low=1e-3, high=1e4)
    image_size: tuple[int, ...] = setting((), '(bins, frames) to resize channels to; () = as is', low=1, high=2**16)

    def check(self) -> None:
        super().check()
        if self.top_db is not None and self.log != 'db':
            raise KitError(f"top_db needs log='db', got {self.log!r}: use top_db=None.")
        kinds = set(self.channels)
        if len(kinds) != len(self.channels) or kinds <= set(COORDINATES):
            raise KitError(f'channels must differ and hold sound, as log, got {self.channels}.')
        if len(set(self.extra_rows)) != len(self.extra_rows):
            raise KitError(f'extra_rows must differ, got {self.extra_rows}.')
        self.check_pairs('resolutions')
        check_image_size(self.image_size, self.extra_rows)
        self.resolution_configs()  # creating them checks them too

    def resolution_configs(self) -> tuple[Self, ...]:
        '''Return the settings of every resolution, the first being these.'''
        configs = [self]
        for n_fft, hop in self.resolutions:
            configs.append(replace(self, n_fft=n_fft, hop_length=hop, win_length=None, resolutions=()))
        return tuple(configs)

    @property
    def n_bins(self) -> int:
        '''Frequency bins M of the network's input, without extra rows.'''
        return self.image_size[0] if self.image_size else self.n_spec_bins

    @property
    def channel_names(self) -> list[str]:
        '''The kind of each of the C channels: one per resolution, but a coordinate only once.'''
        copies = 1 + len(self.resolutions)
        return [name for name in self.channels for _ in range(1 if name in COORDINATES else copies)]

    @property
    def n_extra_rows(self) -> int:
        '''Extra rows S below the frequency bins.'''
        return sum(EXTRA_ROWS[kind] for kind in self.extra_rows)

    @property
    def n_spec_rows(self) -> int:
        '''Rows of a cached spectrogram that hold frequency bins.'''
        return self.n_spec_bins * (1 + len(self.resolutions))

    @property
    def rows(self) -> int:
        '''Rows R of a cached spectrogram: bins, then extra rows.'''
        return self.n_spec_rows + self.n_extra_rows


def check_image_size(size: Sequence[int], extra_rows: Sequence[str]) -> None:
    '''Raise KitError unless a size is () or (bins, frames) without extra rows.'''
    if size and (len(size) != 2 or min(size) < 1 or extra_rows):
        raise KitError(f'image_size is () or (bins, frames) without extra rows, got {tuple(size)} and {extra_rows}.')


def check_waves(waves: Sequence[Tensor]) -> None:
    '''Raise KitError unless waves are (T,), T >= 1, floats of one type and device.'''
    for wave in waves:
        is_mono = wave.ndim == 1 and len(wave) > 0 and wave.is_floating_point()
        if not is_mono or (wave.dtype, wave.device) != (waves[0].dtype, waves[0].device):
            got = f'{tuple(wave.shape)} of {wave.dtype} on {wave.device}'
            raise KitError(f'waves are (T,) floats, alike in type and device, got {got}: pass scaled mono.')


class Frontend(nn.Module):
    '''Compute the network's input from waveforms, on their device, in float32 (float64 stays float64).

    A cache may lie between its halves: `spectrograms` computes (R, N) per clip, M rows per resolution and S extra rows;
    `network_input` normalizes and stacks it. Windows are cut after `normalize` with reference="clip", else before.

    Shape:  wave (B, T) -> (B, C, M + S, N), N = T // hop_length + 1 after trimming
    Units:  wave in [-1, 1]; log channel in dB (log="db") or nepers (log="ln") before it is normalized
    Source: Hann window, HTK or Slaney mel scale; agrees with librosa at equal pad_mode
    '''

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.resolution_configs = config.resolution_configs()

    def spectrograms(self, waves: Sequence[Tensor]) -> list[Tensor]:
        '''Compute the log spectrograms of clips of any lengths, trimmed if set, not yet normalized.

        On CPU a clip's result is the same bit for bit, whatever the other clips.
        Shape:  [(T_i,)] -> [(R, N_i)], N_i = T_i // hop_length + 1
        Errors: KitError for an empty clip, a wrong shape or integers
        '''
        if not waves:
            return []
        check_waves(waves)
        config = self.config
        device = waves[0].device
        dtype = torch.float64 if waves[0].dtype == torch.float64 else torch.float32
        if config.trim_db is not None:
            min_samples = round(0.5 * config.sample_rate)  # what trimming leaves at least
            waves = [wave[slice(*nonsilent_span(wave, config.trim_db, min_samples))] for wave in waves]
        # A loud clip's mel energies overflow float16. Cached spectrograms may be trained on later.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            all_tables = [spectrum_tables(resolution, device, dtype) for resolution in self.resolution_configs]
            by_resolution = [log_spectrograms(tables, waves) for tables in all_tables]
            pairs = zip(waves, zip(*by_resolution, strict=True), strict=True)
            return [self.combine(wave.to(dtype), specs) for wave, specs in pairs]

    def combine(self, wave: Tensor, specs: Sequence[Tensor]) -> Tensor:
        '''Put a clip's resolutions and extra rows below each other, at the frames of the first resolution.'''
        config = self.config
        n_frames = specs[0].shape[-1]
        rows = []
        for spec, resolution in zip(specs, self.resolution_configs, strict=True):
            hop = resolution.hop_length
            if hop != config.hop_length:
                # The frame nearest in time, in integers: round(n * config.hop_length / hop), halves up.
                nearest = (2 * config.hop_length * torch.arange(n_frames, device=spec.device) + hop) // (2 * hop)
                spec = spec[:, nearest.clamp(max=spec.shape[-1] - 1)]
            rows.append(spec)
        if config.extra_rows:
            rows.append(compute_extra_rows(wave, config.extra_rows, config.hop_length, config.sample_rate))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def split(self, spec: Tensor) -> tuple[Tensor, Tensor]:
        '''Separate resolutions and extra rows. Shape: (..., R, N) -> (..., resolutions, M, N), (..., S, N)'''
        n_spec_rows = self.config.n_spec_rows
        specs = torch.unflatten(spec[..., :n_spec_rows, :], -2, (len(self.resolution_configs), -1))
        return specs, spec[..., n_spec_rows:, :]

    def normalize(self, raw: Tensor) -> Tensor:
        '''Normalize every resolution by itself; extra rows stay. Shape: (..., R, N) -> the same'''
        config = self.config
        specs, extra = self.split(raw if raw.dtype == torch.float64 else raw.float())
        rows = normalize_spec(specs, config).flatten(-3, -2)
        return torch.cat([rows, extra], dim=-2) if config.extra_rows else rows

    def floor(self, spec: Tensor) -> Tensor:
        '''The frame that pad_mode "min" appends: each resolution's minimum, each extra row's last value.'''
        specs, extra = self.split(spec)
        minimum = specs.amin((-2, -1), keepdim=True).expand(*specs.shape[:-1], 1)
        return torch.cat([minimum.flatten(-3, -2), extra[..., -1:]], dim=-2)

    def stack(self, spec: Tensor, image_size: Sequence[int] | None = None) -> Tensor:
        '''Stack a normalized spectrogram's channels, resized to `image_size` or the setting.

        Shape:  (..., R, N) -> (..., C, M + S, N), or (..., C, *image_size)
        '''
        size = self.config.image_size if image_size is None else image_size
        check_image_size(size, self.config.extra_rows)
        specs, extra = self.split(spec)
        stacked = torch.cat([make_channels(specs, name, size) for name in self.config.channels], dim=-3)
        if not self.config.extra_rows:
            return stacked
        extra = extra.unsqueeze(-3).expand(*stacked.shape[:-2], *extra.shape[-2:])
        return torch.cat([stacked, extra], dim=-2)

    def network_input(self, raw: Tensor) -> Tensor:
        '''Normalize and stack a raw spectrogram. Shape: (..., R, N) -> (..., C, M + S, N)'''
        return self.stack(self.normalize(raw))

    def forward(self, wave: Tensor) -> Tensor:
        '''Compute the network's input of clips of one length.'''
        specs = self.spectrograms(list(wave))
        if len({spec.shape[-1] for spec in specs}) > 1:
            raise KitError('trimming left several lengths: call spectrograms(), then network_input() clip by clip.')
        return self.network_input(torch.stack(specs))


def make_channels(specs: Tensor, name: str, size: Sequence[int]) -> Tensor:
    '''Make the channels of one kind, per resolution or one coordinate, resized if asked for.'''
    if name in COORDINATES:
        bins, frames = size or specs.shape[-2:]
        ramp = torch.linspace(COORDINATES[name], 1.0, bins, dtype=specs.dtype, device=specs.device)
        return ramp[:, None].expand(*specs.shape[:-3], 1, bins, frames)
    channels = savgol_delta(specs, name) if name in DELTA_KERNELS else specs
    return resize_spec(channels, size) if size else channels


def normalize_spec(spec: Tensor, config: FrontendConfig) -> Tensor:
    '''Raise values to at least `top_db` below the maximum, then normalize, each spectrogram by itself.

    A constant spectrogram becomes zeros by "clip", "peak" and "minmax". Shape: (..., M, N) -> the same
    '''
    peak = spec.amax((-2, -1), keepdim=True)
    if config.top_db is not None:
        spec = torch.maximum(spec, peak - config.top_db)
    if config.normalize == 'clip':
        # Less its peak, a constant spectrogram is exactly zero, however its mean is rounded.
        spec = spec - peak
        centred = spec - mean_by_rows(spec)
        return centred / mean_by_rows(centred.square()).clamp(min=1e-6).sqrt()
    if config.normalize == 'constants':
        return (spec - config.mean) / config.std
    if config.normalize == 'peak':
        return spec - peak
    if config.normalize == 'minmax':
        minimum = spec.amin((-2, -1), keepdim=True)
        return (spec - minimum) / (peak - minimum).clamp(min=1e-30)
    return spec


def mean_by_rows(spec: Tensor) -> Tensor:
    '''Average each spectrogram. Shape: (..., M, N) -> (..., 1, 1)'''
    # torch splits one large mean over threads by the size of the whole batch: its rounding would depend on other clips;
    # the mean of a row never does.
    return spec.mean(-1, keepdim=True).mean(-2, keepdim=True)


def savgol_delta(spec: Tensor, which: str) -> Tensor:
    '''Compute the first ("delta") or second ("delta2") derivative of a local polynomial over nine frames.

    Shape:  (..., M, N) -> the same
    Source: Savitzky and Golay 1964; as librosa.feature.delta, mode "interp", below nine frames "nearest"
    '''
    is_short = spec.shape[-1] < 9
    padded = extend_edges(spec, 4) if is_short else spec
    n_windows = padded.shape[-1] - 8
    divisor, kernel = DELTA_KERNELS[which]
    slopes = torch.zeros_like(padded[..., :n_windows])
    for offset, weight in enumerate(kernel):
        slopes = slopes.add(padded[..., offset : offset + n_windows], alpha=weight / divisor)
    return slopes if is_short else extend_edges(slopes, 4)


def extend_edges(spec: Tensor, frames: int) -> Tensor:
    '''Repeat the first and the last frame `frames` times.'''
    return torch.unflatten(F.pad(spec.flatten(0, -2), (frames, frames), mode='replicate'), 0, spec.shape[:-1])


def resize_spec(spec: Tensor, size: Sequence[int]) -> Tensor:
    '''Resize spectrograms bilinearly, antialiased where they shrink. Shape: (..., M, N) -> (..., *size)'''
    flat = spec.reshape(-1, 1, *spec.shape[-2:])
    resized = F.interpolate(flat, tuple(size), mode='bilinear', align_corners=False, antialias=True)
    return resized.reshape(*spec.shape[:-2], *size)
