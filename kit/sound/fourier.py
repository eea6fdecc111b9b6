"""Settings of a Fourier picture in, its frames, rows and filters out."""

from dataclasses import dataclass

import numpy as np

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.sound.melbank import IS_HTK, check_band, fft_bins_hz, mel_edges_hz, mel_filters


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
    def picture_bins(self) -> int:
        """Frequency bins of the picture."""
        return self.n_mels * len(self.mel_bands) if self.kind == "mel" else len(range(*self.stft_band()))

    @property
    def bin_hz(self) -> np.ndarray:
        """Centre frequency of each row. Shape: -> (picture_bins,). Units: hertz"""
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
