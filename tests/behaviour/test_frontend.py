'''The front end agrees with librosa at every setting, in chunks of any size, with and without gradients.'''

import itertools
from typing import Any

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.spectrogram import chunked_spectrograms, cut_samples, spectrum_tables
from kit.core.errors import KitError

RATE = 16000


def chirp(samples: int, seed: int = 0, level: float = 0.3) -> np.ndarray:
    '''A tone that rises and fades over faint noise, from full level to far below it.'''
    time = np.arange(samples) / RATE
    tone = np.sin(2 * np.pi * (200 + 2000 * time) * time) * np.exp(-3 * time)
    noise = np.random.default_rng(seed).standard_normal(samples)
    return np.asarray(level * tone + 1e-3 * level * noise)


def chirp_tensor(seconds: float, seed: int = 0, level: float = 0.3) -> Tensor:
    return torch.from_numpy(chirp(int(seconds * RATE), seed, level)).float()


def small(**settings: Any) -> FrontendConfig:
    return FrontendConfig(**{'sample_rate': RATE, 'n_fft': 512, 'hop_length': 160, 'n_mels': 40, **settings})


def librosa_spectrogram(config: FrontendConfig, wave: np.ndarray) -> np.ndarray:
    '''What the settings mean, computed by librosa in float64.'''
    if config.n_fft % 2 and config.pad_mode == 'constant':
        # librosa pads an odd n_fft by one sample less than the last frame may need.
        wave = np.append(wave, 0.0)
    spectrum = librosa.stft(
        wave.astype(np.float64),
        n_fft=config.n_fft,
        hop_length=config.hop_length,
        win_length=config.window_samples,
        pad_mode=config.pad_mode,
        dtype=np.complex128,
    )
    energies = np.abs(spectrum) ** config.power
    if config.kind == 'mel':
        energies = librosa.feature.melspectrogram(
            S=energies,
            sr=config.sample_rate,
            n_fft=config.n_fft,
            n_mels=config.n_mels,
            fmin=config.f_min_hz,
            fmax=config.f_max_hz,
            htk=config.mel_scale == 'htk',
            norm=config.mel_norm,
            dtype=np.float64,
        )
    else:
        bins_hz = librosa.fft_frequencies(sr=config.sample_rate, n_fft=config.n_fft)
        f_max_hz = config.f_max_hz or config.sample_rate / 2
        energies = energies[(bins_hz >= config.f_min_hz) & (bins_hz <= f_max_hz + 1e-9)]
    if config.log == 'ln':
        return np.asarray(np.log(energies + config.log_offset))
    to_db = librosa.power_to_db if config.power == 2 else librosa.amplitude_to_db
    return np.asarray(to_db(energies, amin=config.amin, top_db=None))


def product_of_settings(kinds: dict[str, tuple[Any, ...]]) -> list[FrontendConfig]:
    '''One config for every combination of values, sizes and bands.'''
    sizes = ((512, 512, 160), (512, 400, 160), (511, 300, 97), (405, 405, 130), (600, 401, 200))
    configs = []
    for (n_fft, win_length, hop_length), band in itertools.product(sizes, ((0.0, None), (50.0, 7000.0))):
        for values in itertools.product(*kinds.values()):
            settings = dict(zip(kinds, values, strict=True))
            settings.update(n_fft=n_fft, win_length=win_length, hop_length=hop_length)
            configs.append(small(**settings, f_min_hz=band[0], f_max_hz=band[1]))
    return configs


COMMON = {'power': (1, 2), 'log': ('ln', 'db'), 'pad_mode': ('constant', 'reflect')}
ALL_SETTINGS = [
    *product_of_settings({**COMMON, 'mel_scale': ('htk', 'slaney'), 'mel_norm': (None, 'slaney')}),
    *product_of_settings({**COMMON, 'kind': ('stft',)}),
    FrontendConfig(),
    FrontendConfig(sample_rate=48000, n_fft=4096, n_mels=256, f_max_hz=20000.0, mel_norm=None),
]


def test_every_setting_agrees_with_librosa() -> None:
    wave = chirp(3111)
    for config in ALL_SETTINGS:
        ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
        theirs = librosa_spectrogram(config, wave)
        common = min(ours.shape[1], theirs.shape[1])
        assert ours.shape == (config.n_bins, 3111 // config.hop_length + 1)
        assert common >= ours.shape[1] - config.n_fft % 2
        atol = 1e-6 if config.kind == 'mel' else 1e-5
        np.testing.assert_allclose(ours[:, :common], theirs[:, :common], atol=atol, err_msg=str(config))


def test_float32_is_within_a_twentieth_of_a_decibel_down_to_80_below_the_peak() -> None:
    wave = chirp(5000).astype(np.float32)
    for config in ALL_SETTINGS:
        if config.log == 'db':
            ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
            theirs = librosa_spectrogram(config, wave)
            common = min(ours.shape[1], theirs.shape[1])
            is_loud = theirs[:, :common] > theirs.max() - 80
            assert ours.dtype == torch.float32
            assert np.abs(ours[:, :common].numpy() - theirs[:, :common])[is_loud].max() < 0.05, config


@pytest.mark.parametrize('pad_mode', ['constant', 'reflect'])
@pytest.mark.parametrize('n_fft', [512, 405])
@pytest.mark.parametrize('samples', [1, 2, 3, 255, 256, 257, 4800])
def test_short_clips_agree_with_padding_by_hand(pad_mode: Any, n_fft: int, samples: int) -> None:
    config = small(n_fft=n_fft, pad_mode=pad_mode, kind='stft', power=1, log='ln')
    wave = chirp(samples, level=1.0) + 0.1
    padded = np.pad(wave, n_fft, mode=pad_mode)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    columns = []
    for n in range(samples // config.hop_length + 1):
        start = n_fft + n * config.hop_length - n_fft // 2
        columns.append(np.abs(np.fft.rfft(padded[start : start + n_fft] * window)))
    expected = np.log(np.stack(columns, axis=1) + config.log_offset)[-config.n_bins :]
    ours = Frontend(config).spectrograms([torch.from_numpy(wave)])[0]
    np.testing.assert_allclose(ours, expected, atol=1e-9)


@pytest.mark.parametrize(
    ('settings', 'cure'),
    [
        ({'n_fft': 256, 'n_mels': 128}, 'lower n_mels or raise n_fft'),
        ({'f_max_hz': 9000.0}, '<= 8000 Hz.*or f_max_hz=None'),
        ({'f_min_hz': 4000.0, 'f_max_hz': 4000.0}, 'f_min_hz < f_max_hz.*got 4000 and 4000'),
        ({'kind': 'stft', 'f_min_hz': 32.0, 'f_max_hz': 60.0}, 'widen the band'),
        ({'win_length': 600}, 'hop_length <= win_length <= n_fft'),
        ({'win_length': 100}, 'hop_length <= win_length <= n_fft'),
        ({'log': 'ln', 'top_db': 80.0}, 'use top_db=None'),
        ({'channels': ('coordinate',)}, 'hold sound'),
        ({'channels': ('log', 'log')}, 'must differ'),
        ({'channels': ('log', 'phase')}, 'coordinate01'),
        ({'mel_scale': 'slany'}, "did you mean 'slaney'"),
        ({'std': 0.0}, 'FrontendConfig.std'),
        ({'kind': 'stft', 'resolutions': ((1024, 160),)}, "kind='mel'"),
        ({'resolutions': ((1024,),)}, 'pairs'),
        ({'resolutions': ((128, 160),)}, 'hop_length <= win_length <= n_fft'),
        ({'resolutions': ((256, 160),), 'n_mels': 128}, 'lower n_mels or raise n_fft'),
        ({'bands_hz': ((100.0, 200.0, 300.0),)}, 'pairs'),
        ({'bands_hz': ((100.0, 9000.0),)}, '<= 8000 Hz'),
        ({'kind': 'stft', 'bands_hz': ((100.0, 200.0),)}, "kind='mel'"),
        ({'bands_hz': ((100.0, 200.0),)}, 'lower n_mels or raise n_fft'),
        ({'image_size': (64,)}, 'bins, frames'),
        ({'image_size': (64, 64), 'extra_rows': ('clip_length',)}, 'without extra rows'),
        ({'extra_rows': ('clip_length', 'clip_length')}, 'must differ'),
        ({'extra_rows': ('length',)}, 'clip_length'),
    ],
)
def test_wrong_settings_are_refused_with_a_cure(settings: dict[str, Any], cure: str) -> None:
    with pytest.raises(KitError, match=cure):
        small(**settings)


def test_wrong_waves_are_refused_and_no_waves_give_no_spectrograms() -> None:
    frontend = Frontend(small())
    for wave in (torch.zeros(0), torch.zeros(1, 100), torch.zeros(100, dtype=torch.int16)):
        with pytest.raises(KitError, match='waves are'):
            frontend.spectrograms([wave])
    with pytest.raises(KitError, match='alike in type'):
        frontend.spectrograms([torch.zeros(100), torch.zeros(100, dtype=torch.float64)])
    assert frontend.spectrograms([]) == []


@pytest.mark.parametrize('kind', ['mel', 'stft'])
def test_chunks_of_any_size_give_one_spectrogram(kind: str) -> None:
    config = small(kind=kind, win_length=400, pad_mode='reflect')
    waves = [chirp_tensor(seconds, seed).double() for seed, seconds in enumerate((0.02, 2.0, 0.3, 1.0))]
    tables = spectrum_tables(config, torch.device('cpu'), torch.float64)
    whole = chunked_spectrograms(tables, waves, 10000, False)
    for limit, pack in itertools.product((1, 2, 7, 64, 150, 1000), (False, True)):
        for spec, expected in zip(chunked_spectrograms(tables, waves, limit, pack), whole, strict=True):
            torch.testing.assert_close(spec, expected, rtol=0, atol=1e-8)


def test_a_long_clip_agrees_with_its_middle_and_its_samples_are_not_copied() -> None:
    frontend = Frontend(small())
    wave = chirp_tensor(150.0).repeat(4)
    middle = len(wave) // 2 // 160
    spec = frontend.spectrograms([wave])[0]
    around = frontend.spectrograms([wave[(middle - 10) * 160 : (middle + 11) * 160]])[0]
    torch.testing.assert_close(spec[:, middle], around[:, 10], rtol=0, atol=1e-3)
    assert cut_samples(wave, 0, len(wave), 'reflect').data_ptr() == wave.data_ptr()


def test_normalizing_by_clip_and_by_constants() -> None:
    wave = chirp_tensor(1.0)[None]
    by_clip = Frontend(small(normalize='clip'))(wave)
    assert abs(float(by_clip.mean())) < 1e-5 and abs(float(by_clip.std(unbiased=False)) - 1) < 1e-5
    by_constants = Frontend(small(normalize='constants', mean=-40.0, std=20.0))(wave)
    torch.testing.assert_close(by_constants, (Frontend(small())(wave) + 40) / 20)


def test_the_front_end_has_no_state() -> None:
    frontend = Frontend(small())
    wave = chirp_tensor(1.0)[None]
    assert torch.equal(Frontend(frontend.config).half()(wave), frontend(wave))
    assert not frontend.state_dict() and not list(frontend.parameters())


def test_spectrograms_computed_in_inference_mode_are_the_same_and_can_be_trained_on() -> None:
    frontend, wave = Frontend(small()), chirp_tensor(0.3)
    with torch.inference_mode():
        raw = frontend.spectrograms([wave])[0]
    assert torch.equal(raw, frontend.spectrograms([wave])[0])
    weight = torch.ones(40, 1, requires_grad=True)
    (raw * weight).sum().backward()
    assert weight.grad is not None and not raw.is_inference()
