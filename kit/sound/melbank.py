"""Mel settings in, triangular filters out."""

import numpy as np

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
