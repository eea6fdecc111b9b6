"""Pictures for the network: several resolutions, bands of one's own, scales, sizes; each clip and picture by itself."""

from typing import Any

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies
from kit.audio.normalize import image_size_at, resize_spec
from kit.audio.spectrogram import mel_filters
from kit.core.errors import KitError
from kit.infer.predictor import compute_spectrograms, cut_window

RATE = 16000
THREE = ((1024, 160), (2048, 160))
HOPS = ((1024, 130), (400, 333), (512, 40))


def small(**settings: Any) -> FrontendConfig:
    return FrontendConfig(**{"sample_rate": RATE, "n_fft": 512, "hop_length": 160, "n_mels": 20, **settings})


def noise(samples: int, seed: int = 0, level: float = 0.1) -> Tensor:
    """Noise that fades."""
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return wave * torch.linspace(1.0, 0.01, samples) * level


RICH = [
    {"resolutions": THREE, "channels": ("log", "coordinate", "delta"), "top_db": 50.0, "normalize": "peak"},
    {
        "resolutions": HOPS,
        "extra_rows": ("wave_stats", "clip_length"),
        "normalize": "minmax",
        "trim_db": 40.0,
    },
    {"bands_hz": ((100.0, 4000.0), (50.0, 2000.0), (2000.0, 7000.0)), "normalize": "clip"},
    {
        "image_size": (32, 48),
        "channels": ("log", "delta", "coordinate01"),
        "log": "pcen",
        "normalize": "minmax",
    },
    {
        "resolutions": HOPS,
        "image_size": (8, 9),
        "normalize": "constants",
        "std": 100.0,
        "pad_mode": "reflect",
    },
]


def test_every_resolution_is_the_picture_of_its_own_settings() -> None:
    wave = noise(5000)
    kept = Frontend(small(resolutions=THREE, win_length=400)).spectrograms([wave])[0]
    for block, (n_fft, hop, window) in enumerate([(512, 160, 400), (1024, 160, None), (2048, 160, None)]):
        alone = Frontend(small(n_fft=n_fft, hop_length=hop, win_length=window)).spectrograms([wave])[0]
        assert torch.equal(kept[20 * block : 20 * block + 20], alone)


@pytest.mark.parametrize("samples", [1, 159, 160, 660, 5000, 5119])
def test_frames_of_another_hop_are_those_nearest_in_time(samples: int) -> None:
    wave = noise(samples)
    kept = Frontend(small(resolutions=HOPS)).spectrograms([wave])[0]
    for block, (n_fft, hop) in enumerate(HOPS, start=1):
        alone = Frontend(small(n_fft=n_fft, hop_length=hop)).spectrograms([wave])[0]
        for n in range(kept.shape[1]):
            away = np.abs(np.arange(alone.shape[1]) * hop - n * 160)
            nearest = np.flatnonzero(away == away.min())[-1]
            assert torch.equal(kept[20 * block : 20 * block + 20, n], alone[:, nearest])


def test_every_band_has_filters_of_its_own() -> None:
    bands = ((100.0, 900.0), (1000.0, 7900.0), (500.0, 3000.0))
    config = small(bands_hz=bands, n_mels=12, n_fft=1024)
    wave = noise(5000).double()
    kept = Frontend(config).spectrograms([wave])[0]
    assert config.n_spec_bins == config.rows == config.n_bins == 36
    for block, (low, high) in enumerate(bands):
        alone = small(n_mels=12, n_fft=1024, f_min_hz=low, f_max_hz=high)
        torch.testing.assert_close(
            kept[12 * block : 12 * block + 12], Frontend(alone).spectrograms([wave])[0]
        )
        np.testing.assert_array_equal(config.bin_hz[12 * block : 12 * block + 12], alone.bin_hz)


def test_a_row_says_its_frequency() -> None:
    for scale in ("htk", "slaney"):
        config = small(mel_scale=scale, f_min_hz=50.0, f_max_hz=7000.0)
        hz = librosa.mel_frequencies(22, fmin=50.0, fmax=7000.0, htk=scale == "htk")[1:-1]
        np.testing.assert_allclose(config.bin_hz, hz, rtol=1e-9)
    np.testing.assert_allclose(
        small(kind="stft", f_min_hz=100.0).bin_hz, librosa.fft_frequencies(sr=RATE, n_fft=512)[4:]
    )
    tone = torch.sin(2 * np.pi * float(small().bin_hz[13]) * torch.arange(8000) / RATE)
    assert int(Frontend(small(mel_norm=None)).spectrograms([tone])[0][:, 20].argmax()) == 13


def test_decibels_below_the_peak_are_librosas() -> None:
    wave = noise(6000).double()
    mel = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=RATE, n_fft=512, hop_length=160, n_mels=20, fmin=20.0, pad_mode="constant"
    )
    theirs = librosa.power_to_db(mel, ref=np.max, top_db=40.0)
    ours = Frontend(small(normalize="peak", top_db=40.0))(wave[None])[0, 0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    in_float32 = Frontend(small(normalize="peak", top_db=40.0))(wave[None].float())[0, 0]
    np.testing.assert_allclose(in_float32, theirs, atol=0.01)


def test_scales_are_each_pictures_own() -> None:
    wave = noise(5000)
    for normalize in ("clip", "peak", "minmax"):
        frontend = Frontend(small(resolutions=THREE, normalize=normalize, top_db=60.0))
        levels = frontend(wave[None])[0]
        for channel, (n_fft, hop) in enumerate([(512, 160), *THREE]):
            alone = Frontend(small(n_fft=n_fft, hop_length=hop, normalize=normalize, top_db=60.0))
            assert torch.equal(levels[channel], alone(wave[None])[0, 0])
    assert levels.amin((-2, -1)).tolist() == [0.0] * 3 and levels.amax((-2, -1)).tolist() == [1.0] * 3


def test_every_resolution_has_channels_of_its_own_and_all_share_one_coordinate() -> None:
    config = small(resolutions=THREE, channels=("coordinate01", "log", "delta"))
    spec = Frontend(config)(noise(5000)[None])[0]
    assert spec.shape == (config.n_channels, config.n_bins, 32) == (7, 20, 32)
    torch.testing.assert_close(spec[0, :, 3], torch.linspace(0, 1, 20))
    for block, (n_fft, hop) in enumerate([(512, 160), *THREE]):
        alone = Frontend(small(n_fft=n_fft, hop_length=hop, channels=("log", "delta")))(noise(5000)[None])[0]
        assert torch.equal(spec[1 + block], alone[0]) and torch.equal(spec[4 + block], alone[1])


def triangle_weights(size: int, target: int) -> np.ndarray:
    """Bilinear weights, widened where the picture shrinks, as a matrix. Shape: (target, size)"""
    scale = size / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size)[None] - centres[:, None]) / max(scale, 1.0))
    return np.asarray(weights / weights.sum(1, keepdims=True))


@pytest.mark.parametrize("size", [(20, 31), (64, 64), (7, 11), (40, 5), (1, 1)])
def test_resizing_is_a_triangle_over_either_axis(size: tuple[int, int]) -> None:
    pictures = torch.randn(2, 3, 20, 31, dtype=torch.float64)
    ours = resize_spec(pictures, size)
    slow = torch.from_numpy(triangle_weights(20, size[0])) @ pictures
    slow = slow @ torch.from_numpy(triangle_weights(31, size[1])).T
    torch.testing.assert_close(ours, slow)
    if size[0] >= 20 and size[1] >= 31:
        torch.testing.assert_close(ours, F.interpolate(pictures, size, mode="bilinear"))


def test_pictures_grow_while_training_and_coordinates_span_every_size() -> None:
    frontend = Frontend(small(channels=("log", "delta", "coordinate"), image_size=(16, 24)))
    raw = frontend.spectrograms([noise(5000)])[0]
    whole = Frontend(small(channels=("log", "delta", "coordinate"))).network_input(raw)
    assert (frontend.config.n_bins, frontend.config.rows) == (16, 20)
    for size in ((16, 24), (8, 8), (64, 64)):
        spec = frontend.stack(frontend.normalize(raw), None if size == (16, 24) else size)
        assert spec.shape == (3, *size)
        assert torch.equal(spec[:2], resize_spec(whole[:2], size))
        torch.testing.assert_close(spec[2, :, 0], torch.linspace(-1, 1, size[0]))
    sizes = ((64, 64), (128, 128), (224, 224))
    grown = [image_size_at(sizes, progress) for progress in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)]
    assert grown == [sizes[0]] * 2 + [sizes[1]] * 2 + [sizes[2]] * 2
    with pytest.raises(KitError, match="without side rows"):
        Frontend(small(extra_rows=("clip_length",))).stack(torch.zeros(21, 5), (4, 4))
    with pytest.raises(KitError, match=r"bins, frames.*got \(0, 64\)"):
        frontend.stack(raw, (0, 64))


@pytest.mark.parametrize("settings", RICH, ids=str)
def test_a_clip_does_not_hear_its_batchmates(settings: dict[str, Any]) -> None:
    frontend = Frontend(small(**settings))
    waves = [
        noise(n, n, level) for n, level in ((1, 1.0), (4000, 1e-3), (4100, 1.0), (70000, 0.1), (33, 0.1))
    ]
    for wave, spec in zip(waves, frontend.spectrograms(waves), strict=True):
        assert torch.equal(spec, frontend.spectrograms([wave])[0]) and len(spec) == frontend.config.rows
    kept = torch.stack([spec[:, :20] for spec in frontend.spectrograms(waves[1:4])] * 11)
    together = frontend.network_input(kept)
    size = frontend.config.image_size or (frontend.config.n_bins + frontend.config.n_extra_rows, 20)
    assert together.shape == (33, frontend.config.n_channels, *size)
    for item in range(3):
        assert torch.equal(together[item], frontend.network_input(kept[item]))
        assert torch.equal(together[item], frontend.network_input(kept[item : item + 1])[0])


@pytest.mark.parametrize("settings", RICH, ids=str)
def test_windows_are_windows_of_the_kept_spectrogram(settings: dict[str, Any]) -> None:
    frontend = Frontend(small(**settings))
    kept = compute_spectrograms(frontend, [noise(7000)])[0]
    assert torch.equal(kept, frontend.normalize(frontend.spectrograms([noise(7000)])[0]))
    assert torch.equal(cut_window(frontend, kept, (3, 13), 10, "wrap"), kept[:, 3:13])
    local = Frontend(small(**settings, reference="window"))
    raw = compute_spectrograms(local, [noise(7000)])[0]
    assert torch.equal(raw, frontend.spectrograms([noise(7000)])[0])
    assert torch.equal(cut_window(local, raw, (3, 13), 10, "wrap"), frontend.normalize(raw[:, 3:13]))


def test_a_floor_is_each_pictures_own() -> None:
    frontend = Frontend(small(resolutions=THREE, top_db=30.0))
    kept = compute_spectrograms(frontend, [noise(3000)])[0]
    filled = cut_window(frontend, kept, (0, 19), 30, "min")
    for block in range(3):
        rows = slice(20 * block, 20 * block + 20)
        assert torch.equal(filled[rows, 19:], kept[rows].amin().expand(20, 11))
    assert len({float(filled[20 * block, 25]) for block in range(3)}) == 3


def test_mixed_resolutions_are_each_mixed() -> None:
    config = small(resolutions=THREE)
    specs = torch.stack(Frontend(config).spectrograms([noise(3000), noise(3000, 1)]))
    draw = draw_mixup(MixupConfig(p=1.0), 2, torch.Generator())
    mixed = mix_energies(specs, draw, MixupConfig(), config)
    for block in range(3):
        rows = slice(20 * block, 20 * block + 20)
        assert torch.equal(mixed[:, rows], mix_energies(specs[:, rows], draw, MixupConfig(), small()))


@pytest.mark.parametrize("settings", RICH, ids=str)
@pytest.mark.parametrize("samples", [1, 2, 4800])
def test_silence_clipping_and_half_precision_stay_finite(settings: dict[str, Any], samples: int) -> None:
    frontend = Frontend(small(**settings))
    square = torch.where(torch.arange(samples) // 20 % 2 == 0, 1.0, -1.0)
    for wave in (torch.zeros(samples), torch.ones(samples), square, torch.full((samples,), 1e-30)):
        expected = frontend(wave[None])
        assert torch.isfinite(expected).all()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(frontend(wave[None]), expected)
        for half in (torch.float16, torch.bfloat16):
            assert torch.equal(frontend(wave[None].to(half)), frontend(wave[None].to(half).float()))


def test_a_constant_picture_becomes_zeros() -> None:
    for normalize in ("clip", "peak", "minmax"):
        spec = Frontend(small(normalize=normalize))(torch.zeros(1, 2000))
        assert torch.equal(spec, torch.zeros_like(spec))


def test_settings_of_every_kind_come_back_from_json() -> None:
    for settings in RICH:
        config = small(**settings)
        assert FrontendConfig.from_dict(config.to_dict()) == config
    grown = small().override(["resolutions=[[1024, 160]]", "pcen.gain=0.5", 'extra_rows=["clip_length"]'])
    assert (grown.resolutions, grown.pcen.gain, grown.rows) == (((1024, 160),), 0.5, 41)


def test_clips_that_trimming_leaves_uneven_are_not_stacked() -> None:
    frontend = Frontend(small(trim_db=40.0, trim_least_s=0.0))
    uneven = torch.zeros(2, 8000)
    uneven[0, 2000:4000] = uneven[1, 2000:7000] = 0.5
    with pytest.raises(KitError, match="clip by clip"):
        frontend(uneven)


def test_overlapping_bands_are_multiplied_as_one_matrix_would() -> None:
    bands = tuple((200.0 + 150.0 * ((7 * k) % 24), 1900.0 + 150.0 * ((7 * k) % 24)) for k in range(24))
    config = FrontendConfig(
        sample_rate=RATE, n_fft=2048, hop_length=512, n_mels=16, bands_hz=bands, log="ln", log_offset=1e-6
    )
    wave = noise(9000).double()
    power = np.abs(librosa.stft(wave.numpy(), n_fft=2048, hop_length=512, pad_mode="constant")) ** 2
    slow = [mel_filters(RATE, 2048, 16, low, high, "slaney", "slaney").T @ power for low, high in bands]
    ours = Frontend(config).spectrograms([wave])[0]
    np.testing.assert_allclose(ours, np.log(np.concatenate(slow) + 1e-6), atol=1e-6)
