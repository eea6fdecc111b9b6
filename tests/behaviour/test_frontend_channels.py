'''The front end's options: resolutions, bands, channels, sizes; each clip and resolution by itself.'''

from collections.abc import Iterator
from typing import Any

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.frontend import Frontend, FrontendConfig, resize_spec
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies
from kit.core.errors import KitError
from kit.infer.predictor import compute_spectrograms, cut_window

RATE = 16000
SAME_HOP = ((1024, 160), (2048, 160))
OTHER_HOPS = ((1024, 130), (400, 333), (512, 40))

ALL_CHANNELS = ('log', 'coordinate', 'coordinate01', 'delta', 'delta2')

OPTIONS: list[dict[str, Any]] = [
    {'channels': ALL_CHANNELS, 'normalize': 'clip', 'top_db': 60.0},
    {'channels': ('delta', 'log'), 'normalize': 'clip', 'log': 'ln', 'power': 1},
    {'kind': 'stft', 'win_length': 400, 'pad_mode': 'reflect', 'power': 1},
    {'resolutions': SAME_HOP, 'channels': ('log', 'coordinate'), 'top_db': 50.0, 'normalize': 'peak'},
    {'resolutions': OTHER_HOPS, 'extra_rows': ('wave_stats', 'clip_length'), 'trim_db': 40.0},
    {'bands_hz': ((100.0, 4000.0), (50.0, 2000.0), (2000.0, 7000.0)), 'normalize': 'clip'},
    {'image_size': (32, 48), 'channels': ('log', 'delta'), 'log': 'ln', 'normalize': 'minmax'},
    {'resolutions': OTHER_HOPS, 'image_size': (8, 9), 'normalize': 'constants', 'std': 100.0},
]


def small(**settings: Any) -> FrontendConfig:
    return FrontendConfig(**{'sample_rate': RATE, 'n_fft': 512, 'hop_length': 160, 'n_mels': 20, **settings})


def noise(samples: int, seed: int = 0, level: float = 0.1) -> Tensor:
    '''Noise that fades.'''
    wave = torch.randn(samples, generator=torch.Generator().manual_seed(seed))
    return wave * torch.linspace(1.0, 0.01, samples) * level


def spectrogram(config: FrontendConfig, wave: Tensor) -> Tensor:
    return Frontend(config).spectrograms([wave])[0]


@pytest.mark.parametrize('samples', [1, 159, 160, 660, 5000, 5119])
def test_a_resolution_has_its_own_settings_and_the_frames_nearest_in_time(samples: int) -> None:
    wave = noise(samples)
    spec = spectrogram(small(resolutions=OTHER_HOPS, win_length=400), wave)
    assert torch.equal(spec[:20], spectrogram(small(win_length=400), wave))
    for block, (n_fft, hop) in enumerate(OTHER_HOPS, start=1):
        alone = spectrogram(small(n_fft=n_fft, hop_length=hop), wave)
        for n in range(spec.shape[1]):
            distance = np.abs(np.arange(alone.shape[1]) * hop - n * 160)
            nearest = np.flatnonzero(distance == distance.min())[-1]
            assert torch.equal(spec[20 * block : 20 * block + 20, n], alone[:, nearest])


def test_every_band_has_its_own_filters() -> None:
    # Overlapping bands in no order: groups of neighbouring filters must still hold every weight.
    lows = [50.0 + 150.0 * ((7 * k) % 24) for k in range(24)]
    bands = tuple((low, low + 1700.0) for low in lows)
    config = small(n_fft=2048, hop_length=512, n_mels=16, bands_hz=bands)
    wave = noise(9000).double()
    spec = spectrogram(config, wave)
    assert config.n_spec_bins == config.rows == config.n_bins == len(spec) == 384
    for block, (low, high) in enumerate(bands):
        alone = small(n_fft=2048, hop_length=512, n_mels=16, f_min_hz=low, f_max_hz=high)
        rows = slice(16 * block, 16 * block + 16)
        torch.testing.assert_close(spec[rows], spectrogram(alone, wave))
        np.testing.assert_array_equal(config.bin_hz[rows], alone.bin_hz)


def test_bin_hz_is_the_frequency_of_each_row() -> None:
    for scale in ('htk', 'slaney'):
        config = small(mel_scale=scale, f_min_hz=50.0, f_max_hz=7000.0)
        hz = librosa.mel_frequencies(22, fmin=50.0, fmax=7000.0, htk=scale == 'htk')[1:-1]
        np.testing.assert_allclose(config.bin_hz, hz, rtol=1e-9)
    stft = small(kind='stft', f_min_hz=100.0)
    np.testing.assert_allclose(stft.bin_hz, librosa.fft_frequencies(sr=RATE, n_fft=512)[4:])
    tone = torch.sin(2 * np.pi * float(small().bin_hz[13]) * torch.arange(8000) / RATE)
    assert int(spectrogram(small(mel_norm=None), tone)[:, 20].argmax()) == 13


def test_decibels_below_the_peak_are_librosas() -> None:
    wave = noise(6000).double()
    mel = librosa.feature.melspectrogram(
        y=wave.numpy(), sr=RATE, n_fft=512, hop_length=160, n_mels=20, fmin=20.0, pad_mode='constant'
    )
    theirs = librosa.power_to_db(mel, ref=np.max, top_db=40.0)
    frontend = Frontend(small(normalize='peak', top_db=40.0))
    np.testing.assert_allclose(frontend(wave[None])[0, 0], theirs, atol=1e-4)
    np.testing.assert_allclose(frontend(wave[None].float())[0, 0], theirs, atol=0.01)


@pytest.mark.parametrize('normalize', ['clip', 'peak', 'minmax'])
def test_every_resolution_is_normalized_by_itself_and_has_its_own_channels(normalize: str) -> None:
    settings = {'normalize': normalize, 'top_db': 60.0}
    config = small(resolutions=SAME_HOP, channels=('coordinate01', 'log', 'delta'), **settings)
    spec = Frontend(config)(noise(5000)[None])[0]
    assert spec.shape == (len(config.channel_names), config.n_bins, 32) == (7, 20, 32)
    torch.testing.assert_close(spec[0, :, 3], torch.linspace(0, 1, 20))
    for block, (n_fft, hop) in enumerate([(512, 160), *SAME_HOP]):
        alone = small(n_fft=n_fft, hop_length=hop, channels=('log', 'delta'), **settings)
        log, delta = Frontend(alone)(noise(5000)[None])[0]
        assert torch.equal(spec[1 + block], log) and torch.equal(spec[4 + block], delta)
        if normalize == 'minmax':
            assert (float(log.min()), float(log.max())) == (0.0, 1.0)


@pytest.mark.parametrize(('name', 'order'), [('delta', 1), ('delta2', 2)])
def test_deltas_agree_with_librosa(name: str, order: int) -> None:
    frontend = Frontend(small(n_mels=40, channels=('log', name)))
    for frames in (1, 2, 5, 8, 9, 10, 13, 40):
        raw = torch.from_numpy(np.random.default_rng(frames).normal(-50, 20, (3, 40, frames)))
        mode = 'interp' if frames >= 9 else 'nearest'
        expected = librosa.feature.delta(raw.numpy(), order=order, mode=mode)
        np.testing.assert_allclose(frontend.network_input(raw)[:, 1], expected, atol=1e-9)
        np.testing.assert_allclose(frontend.network_input(raw.float())[:, 1], expected, atol=1e-4)


def test_resizing_is_bilinear_and_averages_where_it_shrinks() -> None:
    spec = torch.randn(2, 3, 20, 31, dtype=torch.float64)
    torch.testing.assert_close(resize_spec(spec, (40, 62)), F.interpolate(spec, (40, 62), mode='bilinear'))
    stripes = torch.tensor([0.0, 1.0]).repeat(6, 60)
    averaged = resize_spec(stripes, (3, 12))
    torch.testing.assert_close(averaged[:, 1:-1], torch.full((3, 10), 0.5), atol=0.01, rtol=0)


def test_channels_are_resized_and_a_coordinate_spans_every_size() -> None:
    channels = ('log', 'delta', 'coordinate')
    frontend = Frontend(small(channels=channels, image_size=(16, 24)))
    raw = frontend.spectrograms([noise(5000)])[0]
    original = Frontend(small(channels=channels)).network_input(raw)
    assert (frontend.config.n_bins, frontend.config.rows) == (16, 20)
    for size in ((16, 24), (8, 8), (64, 64)):
        spec = frontend.stack(frontend.normalize(raw), None if size == (16, 24) else size)
        assert spec.shape == (3, *size)
        assert torch.equal(spec[:2], resize_spec(original[:2], size))
        torch.testing.assert_close(spec[2, :, 0], torch.linspace(-1, 1, size[0]))
    with pytest.raises(KitError, match='without extra rows'):
        Frontend(small(extra_rows=('clip_length',))).stack(torch.zeros(21, 5), (4, 4))
    with pytest.raises(KitError, match=r'bins, frames.*got \(0, 64\)'):
        frontend.stack(raw, (0, 64))


@pytest.fixture
def two_threads() -> Iterator[None]:
    '''Rounding can depend on how threads share the work, also where tests run with one thread.'''
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures('two_threads')
@pytest.mark.parametrize('settings', OPTIONS, ids=str)
def test_a_clip_is_the_same_bit_for_bit_whatever_the_other_clips(settings: dict[str, Any]) -> None:
    frontend = Frontend(small(**settings))
    # Clips of 12 s are long enough for torch to split a mean over threads.
    sizes = ((1, 1.0), (190_000, 1e-3), (33, 0.1), (191_000, 1.0), (4000, 0.1))
    waves = [noise(n, n, level) for n, level in sizes]
    specs = frontend.spectrograms(waves)
    for wave, spec in zip(waves, specs, strict=True):
        assert torch.equal(spec, frontend.spectrograms([wave])[0]) and len(spec) == frontend.config.rows
    batch = torch.stack([specs[1][:, :1100], specs[3][:, :1100], specs[3][:, 50:1150]])
    together = frontend.network_input(batch)
    size = frontend.config.image_size or (frontend.config.n_bins + frontend.config.n_extra_rows, 1100)
    assert together.shape == (3, len(frontend.config.channel_names), *size)
    for clip in range(3):
        assert torch.equal(together[clip], frontend.network_input(batch[clip]))


@pytest.mark.parametrize('settings', OPTIONS, ids=str)
def test_windows_are_cut_after_normalizing_the_clip_or_before_normalizing_the_window(settings: dict[str, Any]) -> None:
    by_clip = Frontend(small(**settings))
    cached = compute_spectrograms(by_clip, [noise(7000)])[0]
    assert torch.equal(cached, by_clip.normalize(by_clip.spectrograms([noise(7000)])[0]))
    assert torch.equal(cut_window(by_clip, cached, (3, 13), 10, 'wrap'), cached[:, 3:13])
    by_window = Frontend(small(**settings, reference='window'))
    raw = compute_spectrograms(by_window, [noise(7000)])[0]
    assert torch.equal(raw, by_clip.spectrograms([noise(7000)])[0])
    assert torch.equal(cut_window(by_window, raw, (3, 13), 10, 'wrap'), by_clip.normalize(raw[:, 3:13]))


def test_every_resolution_is_padded_with_its_own_minimum() -> None:
    frontend = Frontend(small(resolutions=SAME_HOP, top_db=30.0))
    spec = compute_spectrograms(frontend, [noise(3000)])[0]
    padded = cut_window(frontend, spec, (0, 19), 30, 'min')
    for block in range(3):
        rows = slice(20 * block, 20 * block + 20)
        assert torch.equal(padded[rows, 19:], spec[rows].amin().expand(20, 11))
    assert len({float(padded[20 * block, 25]) for block in range(3)}) == 3


def test_every_resolution_is_mixed_by_itself() -> None:
    config = small(resolutions=SAME_HOP)
    specs = torch.stack(Frontend(config).spectrograms([noise(3000), noise(3000, 1)]))
    draw = draw_mixup(MixupConfig(p=1.0), torch.zeros(2, 1), torch.Generator())
    mixed = mix_energies(specs, draw, MixupConfig(), config)
    for block in range(3):
        rows = slice(20 * block, 20 * block + 20)
        assert torch.equal(mixed[:, rows], mix_energies(specs[:, rows], draw, MixupConfig(), small()))


@pytest.mark.parametrize('settings', OPTIONS, ids=str)
@pytest.mark.parametrize('samples', [1, 2, 4800])
def test_silence_clipping_and_half_precision_stay_finite(settings: dict[str, Any], samples: int) -> None:
    frontend = Frontend(small(**settings))
    square = torch.where(torch.arange(samples) // 20 % 2 == 0, 1.0, -1.0)
    for wave in (torch.zeros(samples), torch.ones(samples), square, torch.full((samples,), 1e-30)):
        expected = frontend(wave[None])
        assert torch.isfinite(expected).all()
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert torch.equal(frontend(wave[None]), expected)
        for half in (torch.float16, torch.bfloat16):
            assert torch.equal(frontend(wave[None].to(half)), frontend(wave[None].to(half).float()))


@pytest.mark.parametrize('normalize', ['clip', 'peak', 'minmax'])
def test_a_constant_spectrogram_becomes_zeros(normalize: str) -> None:
    spec = Frontend(small(normalize=normalize))(torch.zeros(1, 2000))
    assert torch.equal(spec, torch.zeros_like(spec))


def test_settings_survive_json_and_overrides() -> None:
    for settings in OPTIONS:
        config = small(**settings)
        assert FrontendConfig(**config.to_dict()) == config
    changed = small().override(['resolutions=[[1024, 160]]', 'top_db=70', 'extra_rows=["clip_length"]'])
    assert (changed.resolutions, changed.top_db, changed.rows) == (((1024, 160),), 70, 41)


def test_clips_that_trimming_leaves_uneven_are_not_stacked() -> None:
    frontend = Frontend(small(trim_db=40.0))
    uneven = torch.zeros(2, 16000)
    uneven[0, 2000:8000] = uneven[1, 2000:14000] = 0.5
    with pytest.raises(KitError, match='clip by clip'):
        frontend(uneven)
