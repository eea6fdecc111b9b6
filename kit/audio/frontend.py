"""The front end: from waveforms to the network's input."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from kit.audio.normalize import (
    DELTA_KERNELS,
    NORMALIZATIONS,
    PcenConfig,
    normalize_spec,
    pcen,
    resize_spec,
    savgol_delta,
)
from kit.audio.spectrogram import SpectrumConfig, at_frames_of, check_waves, log_spectrograms, spectrum_tables
from kit.audio.waveform import EXTRA_ROWS, compute_extra_rows, nonsilent_span
from kit.core.config import setting
from kit.core.errors import KitError

COORDINATES = {"coordinate": -1.0, "coordinate01": 0.0}


@dataclass(frozen=True)
class FrontendConfig(SpectrumConfig):
    """How sound becomes a picture: trimmed, transformed, normalize_spec, stacked, resized."""

    pcen: PcenConfig = setting(PcenConfig(), "settings of log='pcen'")
    resolutions: tuple[tuple[int, ...], ...] = setting((), "further (n_fft, hop_length), each a channel")
    top_db: float | None = setting(None, "floor, dB below the peak", low=1e-3)
    channels: tuple[str, ...] = setting(
        ("log",), "stacked pictures", choices=("log", *COORDINATES, *DELTA_KERNELS)
    )
    normalize: str = setting(
        "none", "clip: mean 0, std 1; constants: mean, std; peak: maximum 0; minmax", choices=NORMALIZATIONS
    )
    mean: float = setting(0.0, "subtracted (constants)")
    std: float = setting(1.0, "divided by (constants)", low=1e-6)
    reference: str = setting("clip", "what top_db and normalize refer to", choices=("clip", "window"))
    extra_rows: tuple[str, ...] = setting((), "rows below every channel", choices=tuple(EXTRA_ROWS))
    stats_frames: int = setting(3, "frames that share their wave_stats", low=1)
    trim_db: float | None = setting(None, "cut ends so far below the loudest frame", low=1e-3)
    trim_least_s: float = setting(0.5, "seconds that trimming leaves", low=0)
    image_size: tuple[int, ...] = setting((), "bins and frames to resize to")

    def check(self) -> None:
        super().check()
        if self.top_db is not None and self.log != "db":
            raise KitError(f"top_db needs log='db', got {self.log!r}: use top_db=None.")
        if len(set(self.channels)) != len(self.channels) or not set(self.channels) & {"log", *DELTA_KERNELS}:
            raise KitError(f"channels must differ and hold sound, as log, got {self.channels}.")
        if len(set(self.extra_rows)) != len(self.extra_rows):
            raise KitError(f"side rows must differ, got {self.extra_rows}.")
        self.check_pairs("resolutions")
        check_image(self.image_size, self.extra_rows)
        self.scales()

    def scales(self) -> tuple[Self, ...]:
        """The settings of every picture. Errors: KitError for one that hears nothing"""
        further = (
            replace(self, n_fft=n_fft, hop_length=hop, win_length=None, resolutions=())
            for n_fft, hop in self.resolutions
        )
        return (self, *further)

    @property
    def n_bins(self) -> int:
        """Frequency bins M of the network, without side rows."""
        return self.image_size[0] if self.image_size else self.n_spec_bins

    @property
    def channel_names(self) -> list[str]:
        """Each channel's kind: one per resolution, a coordinate once."""
        times = {name: 1 if name in COORDINATES else 1 + len(self.resolutions) for name in self.channels}
        return [name for name in self.channels for _ in range(times[name])]

    @property
    def n_channels(self) -> int:
        """Channels C of the network."""
        return len(self.channel_names)

    @property
    def n_extra_rows(self) -> int:
        """Rows below the frequency bins in every channel."""
        return sum(EXTRA_ROWS[kind] for kind in self.extra_rows)

    @property
    def n_spec_rows(self) -> int:
        """Rows of a kept spectrogram's pictures."""
        return self.n_spec_bins * (1 + len(self.resolutions))

    @property
    def rows(self) -> int:
        """Rows R of a kept spectrogram."""
        return self.n_spec_rows + self.n_extra_rows


def check_image(size: Sequence[int], side: Sequence[str]) -> None:
    """Raise KitError unless a size is () or (bins, frames) without side rows."""
    if size and (len(size) != 2 or min(size) < 1 or side):
        raise KitError(f"image_size is () or (bins, frames) without side rows, got {tuple(size)} and {side}.")


class Frontend(nn.Module):
    """Log spectrograms, wherever the waveform lives, in float32 outside autocast (float64 stays).

    A kept spectrogram is (R, N): a picture of M rows per resolution, then S side rows. With `reference="clip"`
    level a whole clip, then cut it; with "window" cut, then level. There is no state.
    Shape:  wave (B, T) -> (B, C, M + S, N), N = T // hop_length + 1, T being what trimming leaves
    Units:  wave in [-1, 1]; log channel in dB or nepers, normalised as set
    Source: Hann window, HTK or Slaney mel scale; the numbers of librosa at equal pad_mode
    """

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = config.scales()

    def spectrograms(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Raw log spectrograms of clips of any lengths, trimmed where set, not yet normalize_spec.

        On CPU bit for bit the same whatever the neighbours. Gradients flow to waves that ask.
        Shape:  [(T_i,)] -> [(R, N_i)], N_i = T_i // hop_length + 1
        Errors: KitError for an empty clip, a wrong shape or integers
        """
        if not waves:
            return []
        check_waves(waves)
        device, config = waves[0].device, self.config
        dtype = torch.float64 if waves[0].dtype == torch.float64 else torch.float32
        if config.trim_db is not None:
            least = round(config.trim_least_s * config.sample_rate)
            waves = [wave[slice(*nonsilent_span(wave, config.trim_db, least))] for wave in waves]
        traced = torch.is_grad_enabled() and any(wave.requires_grad for wave in waves)
        exact = torch.autocast(device.type, enabled=False)
        with torch.inference_mode(False), torch.set_grad_enabled(traced), exact:
            pictures = []
            for scale in self.scales:
                specs = log_spectrograms(spectrum_tables(scale, device, dtype), waves, traced)
                if config.log == "pcen":
                    specs = [pcen(spec, config.pcen, scale.frames_per_s) for spec in specs]
                pictures.append(specs)
            return [
                self.combine(wave.to(dtype), parts) for wave, *parts in zip(waves, *pictures, strict=True)
            ]

    def combine(self, wave: Tensor, pictures: Sequence[Tensor]) -> Tensor:
        """A clip's resolutions at the frames of the first, its side rows below. Shape: [(M, N_r)] -> (R, N)"""
        c, hops = self.config, [scale.hop_length for scale in self.scales]
        frames = pictures[0].shape[-1]
        rows = [at_frames_of(spec, hop, frames, hops[0]) for spec, hop in zip(pictures, hops, strict=True)]
        if c.extra_rows:
            rows.append(compute_extra_rows(wave, c.extra_rows, c.hop_length, c.stats_frames, c.sample_rate))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def split(self, spec: Tensor) -> tuple[Tensor, Tensor]:
        """A kept spectrogram's pictures and side rows. Shape: (..., R, N) -> (..., pictures, M, N), (..., S, N)"""
        rows = self.config.n_spec_rows
        return torch.unflatten(spec[..., :rows, :], -2, (len(self.scales), -1)), spec[..., rows:, :]

    def normalize(self, raw: Tensor) -> Tensor:
        """Floor and normalisation of every picture by itself. Shape: (..., R, N) -> the same"""
        c = self.config
        pictures, side = self.split(raw if raw.dtype == torch.float64 else raw.float())
        normal = normalize_spec(pictures, c.top_db, c.normalize, c.mean, c.std).flatten(-3, -2)
        return torch.cat([normal, side], dim=-2) if c.extra_rows else normal

    def floor(self, spec: Tensor) -> Tensor:
        """What appended silence holds: a picture's least, a side row's last value. Shape: (R, N) -> (R, 1)"""
        pictures, side = self.split(spec)
        least = pictures.amin((-2, -1), keepdim=True).expand(*pictures.shape[:-1], 1)
        return torch.cat([least.flatten(-3, -2), side[..., -1:]], dim=-2)

    def stack(self, spec: Tensor, image_size: Sequence[int] | None = None) -> Tensor:
        """A normalize_spec spectrogram's channels, resized to `image_size` or the setting.

        Shape:  (..., R, N) -> (..., C, M + S, N), or (..., C, *image_size)
        Errors: KitError for what is no size, or with side rows
        """
        size = self.config.image_size if image_size is None else image_size
        check_image(size, self.config.extra_rows)
        pictures, side = self.split(spec)
        stacked = torch.cat([channel_of(pictures, name, size) for name in self.config.channels], dim=-3)
        if not self.config.extra_rows:
            return stacked
        below = side.unsqueeze(-3).expand(*stacked.shape[:-2], *side.shape[-2:])
        return torch.cat([stacked, below], dim=-2)

    def network_input(self, raw: Tensor) -> Tensor:
        """A raw spectrogram as the network hears it. Shape: (..., R, N) -> (..., C, M + S, N)"""
        return self.stack(self.normalize(raw))

    def forward(self, wave: Tensor) -> Tensor:
        """Clips as the network hears them. Errors: KitError where trimming leaves several lengths"""
        specs = self.spectrograms(list(wave))
        if len({spec.shape[-1] for spec in specs}) > 1:
            raise KitError("trimming left several lengths: call spectrograms(), finish() clip by clip.")
        return self.network_input(torch.stack(specs))


def channel_of(pictures: Tensor, name: str, size: Sequence[int]) -> Tensor:
    """The channels of one kind, resized where there is a size.

    Shape:  (..., pictures, M, N) -> (..., pictures or 1, *size)
    """
    if name in COORDINATES:
        bins, frames = size or pictures.shape[-2:]
        ramp = torch.linspace(COORDINATES[name], 1.0, bins, dtype=pictures.dtype, device=pictures.device)
        return ramp[:, None].expand(*pictures.shape[:-3], 1, bins, frames)
    plane = savgol_delta(pictures, name) if name in DELTA_KERNELS else pictures
    return resize_spec(plane, size) if size else plane
