"""Laws of the frontend: librosa's numbers, exact lengths, and nothing heard from the neighbours."""

import itertools
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.normalize import normalize_spec
from kit.audio.spectrogram import (
    CPU_CHUNK_SAMPLES,
    band_groups,
    chunk_plan,
    chunked_spectrograms,
    cut_samples,
    hz_to_mel,
    mel_filters,
    mel_to_hz,
    spectrum_tables,
)
from kit.core.errors import KitError

RATE = 16000
SIZES = ((512, 512, 160), (512, 400, 160), (400, 400, 100), (511, 300, 97), (405, 405, 130), (600, 401, 200))
BANDS = ((0.0, None), (50.0, 7000.0))


def noisy_chirp(samples: int, seed: int = 0, level: float = 0.3) -> np.ndarray:
    """A tone that rises and fades, over faint noise: from full level to far below it."""
    time = np.arange(samples) / RATE
    tone = np.sin(2 * np.pi * (200 + 2000 * time) * time) * np.exp(-3 * time)
    noise = np.random.default_rng(seed).standard_normal(samples)
    return np.asarray(level * tone + 1e-3 * level * noise)


def audible(seconds: float, seed: int = 0, level: float = 0.3) -> Tensor:
    return torch.from_numpy(noisy_chirp(int(seconds * RATE), seed, level)).float()


def small(**settings: Any) -> FrontendConfig:
    return FrontendConfig(**{"sample_rate": RATE, "n_fft": 512, "hop_length": 160, "n_mels": 40, **settings})


def by_librosa(config: FrontendConfig, wave: np.ndarray) -> np.ndarray:
    """What the settings mean, in librosa's words and in float64, before floor, normalisation and channels."""
    if config.n_fft % 2 and config.pad_mode == "constant":
        wave = np.append(
            wave, 0.0
        )  # librosa pads an odd length by one sample less than the last frame may need
    spectrum = librosa.stft(
        wave.astype(np.float64),
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        win_length=config.window_samples,
        pad_mode=config.pad_mode,
        dtype=np.complex128,
    )
    energies = np.abs(spectrum) ** config.power
    if config.kind == "mel":
        energies = librosa.feature.melspectrogram(
            S=energies,
            sr=config.sample_rate,
            n_fft=config.n_fft,
            n_mels=config.n_mels,
            fmin=config.f_min_hz,
            fmax=config.f_max_hz,
            htk=config.mel_scale == "htk",
            norm=config.mel_norm,
            dtype=np.float64,
        )
    else:
        bins_hz = librosa.fft_frequencies(sr=config.sample_rate, n_fft=config.n_fft)
        energies = energies[(bins_hz >= config.f_min_hz) & (bins_hz <= config.top_hz + 1e-9)]
    if config.log == "ln":
        return np.asarray(np.log(energies + config.log_offset))
    if config.power == 2:
        return np.asarray(librosa.power_to_db(energies, amin=config.amin, top_db=None))
    return np.asarray(librosa.amplitude_to_db(energies, amin=config.amin, top_db=None))


def every_mel_setting() -> list[FrontendConfig]:
    """All sizes, bands, scales, norms, powers, logarithms and ends."""
    return [
        small(
            n_fft=n_fft,
            win_length=window,
            hop_length=hop,
            f_min_hz=low,
            f_max_hz=high,
            mel_scale=scale,
            mel_norm=norm,
            power=power,
            log=log,
            pad_mode=pad_mode,
        )
        for (n_fft, window, hop), (low, high), scale, norm, power, log, pad_mode in itertools.product(
            SIZES, BANDS, ("htk", "slaney"), (None, "slaney"), (1, 2), ("ln", "db"), ("constant", "reflect")
        )
    ]


def every_stft_setting() -> list[FrontendConfig]:
    """All sizes, bands, powers, logarithms and ends, without mel."""
    return [
        small(
            kind="stft",
            n_fft=n_fft,
            win_length=window,
            hop_length=hop,
            f_min_hz=low,
            f_max_hz=high,
            power=power,
            log=log,
            pad_mode=pad_mode,
        )
        for (n_fft, window, hop), (low, high), power, log, pad_mode in itertools.product(
            SIZES, BANDS, (1, 2), ("ln", "db"), ("constant", "reflect")
        )
    ]


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_pitch_agrees_with_librosa_and_comes_back(scale: str) -> None:
    hz = np.concatenate([[0.0, 1.0, 999.999, 1000.0, 1000.001], np.linspace(0, 24000, 101)])
    mel = hz_to_mel(hz, scale)
    np.testing.assert_allclose(mel, librosa.hz_to_mel(hz, htk=scale == "htk"), rtol=1e-12)
    np.testing.assert_allclose(mel_to_hz(mel, scale), hz, atol=1e-8)
    np.testing.assert_allclose(mel_to_hz(mel, scale), librosa.mel_to_hz(mel, htk=scale == "htk"), atol=1e-8)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("norm", [None, "slaney"])
@pytest.mark.parametrize(
    ("rate", "n_fft", "n_mels", "low", "high"),
    [(44100, 2048, 128, 0.0, None), (48000, 4096, 256, 50.0, 20000.0), (22050, 1001, 40, 5.0, 11025.0)],
)
def test_filters_agree_with_librosa(
    scale: str, norm: Any, rate: int, n_fft: int, n_mels: int, low: float, high: float | None
) -> None:
    ours = mel_filters(rate, n_fft, n_mels, low, high or rate / 2, scale, norm)
    theirs = librosa.filters.mel(
        sr=rate,
        n_fft=n_fft,
        n_mels=n_mels,
        fmin=low,
        fmax=high,
        htk=scale == "htk",
        norm=norm,
        dtype=np.float64,
    )
    assert ours.dtype == np.float64 and ours.shape == (n_fft // 2 + 1, n_mels)
    np.testing.assert_allclose(ours, theirs.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"n_fft": 256, "n_mels": 128}, "lower n_mels or raise n_fft"),
        ({"f_max_hz": 9000.0}, "<= 8000 Hz.*or f_max_hz=None"),
        ({"f_min_hz": 4000.0, "f_max_hz": 4000.0}, "f_min_hz < f_max_hz.*got 4000 and 4000"),
        ({"kind": "stft", "f_min_hz": 32.0, "f_max_hz": 60.0}, "widen the band"),
        ({"win_length": 600}, "hop_length <= win_length <= n_fft"),
        ({"win_length": 100}, "hop_length <= win_length <= n_fft"),
        ({"log": "ln", "top_db": 80.0}, "use top_db=None"),
        ({"channels": ("coordinate",)}, "hold sound"),
        ({"channels": ("log", "log")}, "must differ"),
        ({"channels": ("log", "phase")}, "coordinate01"),
        ({"mel_scale": "slany"}, "did you mean 'slaney'"),
        ({"std": 0.0}, "FrontendConfig.std"),
        ({"log": "pcen", "top_db": 80.0}, "use top_db=None"),
        ({"kind": "stft", "resolutions": ((1024, 160),)}, "kind='mel'"),
        ({"resolutions": ((1024,),)}, "pairs"),
        ({"resolutions": ((128, 160),)}, "hop_length <= win_length <= n_fft"),
        ({"resolutions": ((256, 160),), "n_mels": 128}, "lower n_mels or raise n_fft"),
        ({"bands_hz": ((100.0, 200.0, 300.0),)}, "pairs"),
        ({"bands_hz": ((100.0, 9000.0),)}, "<= 8000 Hz"),
        ({"kind": "stft", "bands_hz": ((100.0, 200.0),)}, "kind='mel'"),
        ({"bands_hz": ((100.0, 200.0),)}, "lower n_mels or raise n_fft"),
        ({"image_size": (64,)}, "bins, frames"),
        ({"image_size": (64, 64), "extra_rows": ("clip_length",)}, "without side rows"),
        ({"extra_rows": ("clip_length", "clip_length")}, "must differ"),
        ({"extra_rows": ("length",)}, "clip_length"),
    ],
)
def test_wrong_settings_are_refused_with_a_cure(settings: dict[str, Any], cure: str) -> None:
    with pytest.raises(KitError, match=cure):
        small(**settings)


def test_settings_come_back_from_json_and_tell_shapes() -> None:
    config = small(channels=("log", "delta"), f_max_hz=None, win_length=None)
    assert FrontendConfig.from_dict(config.to_dict()) == config
    assert (config.n_bins, config.n_channels, config.frames_per_s) == (40, 2, 100.0)
    stft = small(kind="stft", f_min_hz=31.25, f_max_hz=8000.0)
    assert stft.n_bins == 256
    assert [config.frames_of(samples) for samples in (1, 159, 160, 319, 320)] == [1, 1, 2, 2, 3]


def test_every_mel_setting_agrees_with_librosa() -> None:
    wave = noisy_chirp(3111)
    for config in every_mel_setting():
        ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
        theirs = by_librosa(config, wave)
        common = min(ours.shape[1], theirs.shape[1])
        assert (
            ours.shape == (40, 3111 // config.hop_length + 1) and common >= ours.shape[1] - config.n_fft % 2
        )
        np.testing.assert_allclose(ours[:, :common], theirs[:, :common], atol=1e-6, err_msg=str(config))


def test_every_stft_setting_agrees_with_librosa() -> None:
    wave = noisy_chirp(3111)
    for config in every_stft_setting():
        ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
        theirs = by_librosa(config, wave)
        common = min(ours.shape[1], theirs.shape[1])
        assert ours.shape == (config.n_bins, 3111 // config.hop_length + 1)
        np.testing.assert_allclose(ours[:, :common], theirs[:, :common], atol=1e-5, err_msg=str(config))


def assert_close_in_float32(config: FrontendConfig, wave: np.ndarray) -> None:
    """Within 0.05 dB of librosa wherever it is less than 80 dB below the clip's peak."""
    ours = Frontend(config).spectrograms([torch.from_numpy(wave).float()])[0]
    theirs = by_librosa(config, wave.astype(np.float32).astype(np.float64))
    common = min(ours.shape[1], theirs.shape[1])
    heard = theirs[:, :common] > theirs.max() - 80
    assert ours.dtype == torch.float32
    assert np.abs(ours[:, :common].numpy() - theirs[:, :common])[heard].max() < 0.05, config


def test_float32_is_within_a_twentieth_of_a_decibel_down_to_80_below_the_peak() -> None:
    wave = noisy_chirp(5000)
    for config in [*every_mel_setting(), *every_stft_setting()]:
        if config.log == "db":
            assert_close_in_float32(config, wave)


def test_real_clips_agree_with_librosa(esc10: Path) -> None:
    config = FrontendConfig(f_min_hz=0.0)
    for path in sorted((esc10 / "audio").iterdir())[::40]:
        wave, rate = librosa.load(path, sr=None)
        assert rate == config.sample_rate
        assert_close_in_float32(config, wave)


@pytest.mark.parametrize("kind", ["mel", "stft"])
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_a_clip_does_not_hear_its_batchmates(kind: str, pad_mode: str) -> None:
    frontend = Frontend(small(kind=kind, pad_mode=pad_mode, win_length=400))
    waves = [audible(seconds, seed) for seed, seconds in enumerate((0.01, 3.0, 0.3, 12.0, 1.0))]
    together = frontend.spectrograms(waves)
    backwards = frontend.spectrograms(waves[::-1])[::-1]
    for wave, spec, other in zip(waves, together, backwards, strict=True):
        assert spec.shape == (frontend.config.n_bins, len(wave) // 160 + 1)
        assert torch.equal(spec, frontend.spectrograms([wave])[0])
        assert torch.equal(spec, other)


def test_finishing_a_clip_does_not_hear_its_batchmates() -> None:
    frontend = Frontend(
        small(top_db=60.0, normalize="clip", channels=("log", "coordinate", "delta", "delta2"))
    )
    loud, quiet = (
        audible(12.0, 1, level=1.0),
        audible(12.0, 2, level=1e-4),
    )  # long enough to be shared by threads
    raw = torch.stack(frontend.spectrograms([loud, quiet, loud * 0.5, quiet]))
    together = frontend.network_input(raw.reshape(2, 2, *raw.shape[1:])).flatten(0, 1)
    assert together.shape == (4, 4, *raw.shape[1:])
    for item, alone in enumerate(raw):
        assert torch.equal(together[item], frontend.network_input(alone))
        assert torch.equal(together[item], frontend.network_input(alone[None])[0])


def test_the_floor_is_each_clips_own() -> None:
    frontend = Frontend(small(top_db=30.0))
    waves = torch.stack([audible(1.0, 1, level=1.0), audible(1.0, 2, level=1e-3)])
    raw, finished = torch.stack(frontend.spectrograms(list(waves))), frontend(waves)[:, 0]
    for before, after in zip(raw, finished, strict=True):
        assert torch.equal(after, before.clamp(min=float(before.max() - 30.0)))
    assert finished[1].max() < finished[0].min()


def test_normalisation_by_clip_and_by_constants() -> None:
    wave = audible(1.0)[None]
    own = Frontend(small(normalize="clip"))(wave)
    assert abs(float(own.mean())) < 1e-5 and abs(float(own.std(unbiased=False)) - 1) < 1e-5
    fixed = Frontend(small(normalize="constants", mean=-40.0, std=20.0))(wave)
    torch.testing.assert_close(fixed, (Frontend(small())(wave) + 40) / 20)


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@pytest.mark.parametrize("n_fft", [512, 405])
@pytest.mark.parametrize("samples", [1, 2, 3, 100, 255, 256, 257, 4800])
def test_clips_shorter_than_the_window_agree_with_padding_by_hand(
    pad_mode: str, n_fft: int, samples: int
) -> None:
    config = small(n_fft=n_fft, pad_mode=pad_mode, kind="stft", power=1, log="ln")
    wave = noisy_chirp(samples, level=1.0) + 0.1
    places = np.abs(
        (np.arange(-n_fft, samples + n_fft) + samples - 1) % max(2 * samples - 2, 1) - (samples - 1)
    )
    padded = np.pad(wave, n_fft) if pad_mode == "constant" else wave[places]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    starts = [n_fft + n * config.hop_length - n_fft // 2 for n in range(samples // config.hop_length + 1)]
    spectrum = np.stack([np.fft.rfft(padded[start : start + n_fft] * window) for start in starts], axis=1)
    expected = np.log(np.abs(spectrum) + config.log_offset)[-config.n_bins :]
    ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 3, 10])
def test_reflection_goes_to_and_fro_as_numpy_does(samples: int) -> None:
    wave = torch.arange(samples, dtype=torch.float64)
    ours = cut_samples(wave, -25, samples + 31, "reflect")
    np.testing.assert_array_equal(ours, np.pad(wave.numpy(), (25, 31), mode="reflect"))


@pytest.mark.parametrize("kind", ["mel", "stft"])
def test_chunk_edges_do_not_change_the_spectrogram(kind: str) -> None:
    config = small(kind=kind, win_length=400, pad_mode="reflect")
    waves = [audible(seconds, seed).double() for seed, seconds in enumerate((0.02, 2.0, 0.3, 1.0))]
    tables = spectrum_tables(config, torch.device("cpu"), torch.float64)
    whole = chunked_spectrograms(tables, waves, 10000, False)
    for limit, pack in itertools.product((1, 2, 7, 64, 150, 1000), (False, True)):
        for spec, expected in zip(chunked_spectrograms(tables, waves, limit, pack), whole, strict=True):
            torch.testing.assert_close(spec, expected, rtol=0, atol=1e-8)


def test_chunks_hold_every_frame_once_and_without_packing_one_clip_each() -> None:
    frames = [1, 431, 5, 1000, 216, 3]
    for pack in (False, True):
        chunks = chunk_plan(frames, 216, pack)
        assert all(sum(end - first for _, first, end in chunk) <= 216 for chunk in chunks)
        pieces = [piece for chunk in chunks for piece in chunk]
        heard = [(clip, frame) for clip, first, end in pieces for frame in range(first, end)]
        assert heard == [(clip, frame) for clip, total in enumerate(frames) for frame in range(total)]
        assert pack or all(len(chunk) == 1 for chunk in chunks)


def test_a_long_clip_is_heard_in_chunks_without_a_copy_of_its_samples() -> None:
    frontend = Frontend(small())
    wave = audible(150.0).repeat(4)
    middle = len(wave) // 2 // 160
    spec = frontend.spectrograms([wave])[0]
    around = frontend.spectrograms([wave[(middle - 10) * 160 : (middle + 11) * 160]])[0]
    torch.testing.assert_close(spec[:, middle], around[:, 10], rtol=0, atol=1e-3)
    inner = cut_samples(wave, 0, len(wave), "reflect")
    assert inner.data_ptr() == wave.data_ptr()
    assert len(chunk_plan([spec.shape[1]], CPU_CHUNK_SAMPLES // 512, False)) > 50


@pytest.mark.parametrize("log", ["db", "ln"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("samples", [1, 4800, 40000])
def test_silence_clipping_and_single_samples_stay_finite(log: str, power: int, samples: int) -> None:
    channels = ("log", "coordinate", "coordinate01", "delta", "delta2")
    frontend = Frontend(small(log=log, power=power, normalize="clip", channels=channels))
    time = torch.arange(samples)
    square = torch.where(time // 20 % 2 == 0, 1.0, -1.0)
    for wave in (torch.zeros(samples), torch.ones(samples), square, torch.full((samples,), 1e-30)):
        spec = frontend(wave[None])
        assert spec.shape == (1, 5, 40, samples // 160 + 1)
        assert torch.isfinite(spec).all() and spec.abs().max() < 100
    assert torch.equal(frontend(torch.zeros(1, samples))[:, 0], torch.zeros(1, 40, samples // 160 + 1))


def test_autocast_half_waves_and_half_modules_change_nothing() -> None:
    frontend = Frontend(small(top_db=80.0, normalize="clip", channels=("log", "delta")))
    wave = audible(1.0)[None]
    expected = frontend(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(frontend(wave), expected)
    with torch.inference_mode():
        assert torch.equal(frontend(wave.clone()), expected)
    assert torch.equal(Frontend(frontend.config).half()(wave), expected)
    assert torch.equal(frontend(wave.half()), frontend(wave.half().float()))
    assert not frontend.state_dict() and not list(frontend.parameters())


def test_what_was_heard_in_inference_mode_can_be_trained_on() -> None:
    frontend = Frontend(small())
    with torch.inference_mode():
        raw = frontend.spectrograms([audible(0.3)])[0]
    weight = torch.ones(40, 1, requires_grad=True)
    (raw * weight).sum().backward()
    assert weight.grad is not None and not raw.is_inference()


@pytest.mark.parametrize("kind", ["mel", "stft"])
@pytest.mark.parametrize("log", ["db", "ln", "pcen"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_a_wave_that_wants_gradients_hears_the_same_and_gets_them(
    kind: str, log: str, power: int, pad_mode: str
) -> None:
    frontend = Frontend(small(kind=kind, log=log, power=power, pad_mode=pad_mode, win_length=400))
    for wave in (audible(0.3).double(), audible(0.3)[:1].double() + 0.1):
        traced = frontend.spectrograms([wave.clone().requires_grad_()])[0]
        assert traced.requires_grad
        torch.testing.assert_close(traced.detach(), frontend.spectrograms([wave])[0], rtol=1e-9, atol=1e-6)
    with torch.no_grad():
        assert not frontend.spectrograms([wave.requires_grad_()])[0].requires_grad


@pytest.mark.parametrize(
    "settings",
    [
        {"top_db": 40.0, "normalize": "clip", "channels": ("log", "delta", "delta2")},
        {"normalize": "minmax", "power": 1, "log": "ln", "image_size": (6, 7)},
        {"normalize": "peak", "resolutions": ((64, 20),), "extra_rows": ("wave_stats", "clip_length")},
        {"log": "pcen", "pad_mode": "reflect", "image_size": (20, 3), "trim_db": 60.0},
    ],
    ids=str,
)
def test_gradients_of_the_whole_way_agree_with_differences(settings: dict[str, Any]) -> None:
    frontend = Frontend(small(**{"n_fft": 64, "hop_length": 16, "n_mels": 8, "f_min_hz": 200.0, **settings}))
    wave = torch.from_numpy(noisy_chirp(130, level=1.0)) + 0.1 * torch.randn(130, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: frontend(w[None]), wave.requires_grad_(), atol=1e-4)


def test_gradients_of_silence_are_finite() -> None:
    for settings in (
        {"power": 1, "log": "ln", "extra_rows": ("wave_stats",)},
        {"normalize": "clip"},
        {"normalize": "minmax"},
        {"log": "pcen", "power": 1},
    ):
        wave = torch.zeros(1, 800, requires_grad=True)
        Frontend(small(**settings))(wave).sum().backward()
        assert wave.grad is not None and torch.isfinite(wave.grad).all(), settings
    spec = torch.zeros(1, 4, 5, requires_grad=True)
    normalize_spec(spec, None, "clip", 0.0, 1.0).sum().backward()
    assert spec.grad is not None and torch.isfinite(spec.grad).all()


@pytest.mark.parametrize(("name", "order"), [("delta", 1), ("delta2", 2)])
def test_deltas_agree_with_librosa(name: str, order: int) -> None:
    frontend = Frontend(small(channels=("log", name)))
    for frames in (1, 2, 5, 8, 9, 10, 13, 40):
        raw = torch.from_numpy(np.random.default_rng(frames).normal(-50, 20, (3, 40, frames)))
        mode = "interp" if frames >= 9 else "nearest"
        expected = librosa.feature.delta(raw.numpy(), order=order, mode=mode)
        np.testing.assert_allclose(frontend.network_input(raw)[:, 1], expected, atol=1e-9)
        np.testing.assert_allclose(frontend.network_input(raw.float())[:, 1], expected, atol=1e-4)


def test_channels_stand_in_the_order_of_the_settings() -> None:
    frontend = Frontend(small(channels=("coordinate01", "log", "coordinate")))
    spec = frontend(audible(0.3)[None])[0]
    torch.testing.assert_close(spec[0, :, 5], torch.linspace(0, 1, 40))
    torch.testing.assert_close(spec[2, :, 0], torch.linspace(-1, 1, 40))
    assert torch.equal(spec[1], frontend.spectrograms([audible(0.3)])[0])
    assert torch.equal(frontend.network_input(spec[1]), frontend.stack(frontend.normalize(spec[1])))


@pytest.mark.parametrize(
    "wave", [torch.zeros(0), torch.zeros(1, 100), torch.zeros(100, dtype=torch.int16)], ids=str
)
def test_a_wave_that_is_none_is_refused(wave: Tensor) -> None:
    with pytest.raises(KitError, match="waves are"):
        Frontend(small()).spectrograms([wave])


def test_waves_of_two_precisions_are_refused_and_no_waves_make_no_spectrograms() -> None:
    with pytest.raises(KitError, match="alike in type"):
        Frontend(small()).spectrograms([torch.zeros(100), torch.zeros(100, dtype=torch.float64)])
    assert Frontend(small()).spectrograms([]) == []


@pytest.mark.parametrize(("n_mels", "n_fft"), [(1, 512), (7, 512), (40, 512), (128, 2048), (250, 4096)])
def test_grouped_filters_are_all_the_filters(n_mels: int, n_fft: int) -> None:
    filters = mel_filters(44100, n_fft, n_mels, 20.0, 22050.0, "htk", None)
    rebuilt = np.zeros_like(filters)
    for some, bins in band_groups(filters):
        rebuilt[bins, some] += filters[bins, some]
    np.testing.assert_array_equal(rebuilt, filters)
