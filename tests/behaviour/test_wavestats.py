"""Rows of statistics under a spectrogram: numpy's numbers, every sample heard, a rule for mixed sounds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies
from kit.audio.waveform import STATS_PERCENTILES, compute_extra_rows, mix_extra_rows, wave_stats
from kit.infer.predictor import compute_spectrograms, cut_window

BOTH = ("wave_stats", "clip_length")
SMALL = {"sample_rate": 8000, "n_fft": 256, "hop_length": 100, "n_mels": 20, "extra_rows": BOTH}


def slow_stats(samples: np.ndarray) -> list[float]:
    """Mean, standard deviation, range, percentiles."""
    return [samples.mean(), samples.std(), np.ptp(samples), *np.percentile(samples, STATS_PERCENTILES)]


@pytest.mark.parametrize("samples", [1, 2, 99, 100, 101, 300, 1000, 1050])
def test_statistics_are_numpys_of_every_stretch_the_last_ending_with_the_clip(samples: int) -> None:
    wave = np.random.default_rng(samples).standard_normal(samples)
    ours = wave_stats(torch.from_numpy(wave), 100)
    starts = [max(0, min(start, samples - 100)) for start in range(0, samples, 100)]
    slow = np.array([slow_stats(wave[start : start + 100]) for start in starts]).T
    np.testing.assert_allclose(ours, slow, atol=1e-12)
    np.testing.assert_allclose(wave_stats(torch.from_numpy(wave).float(), 100), slow, atol=2e-6)


@pytest.mark.parametrize("hop", [1, 7, 100])
@pytest.mark.parametrize("samples", [1, 6, 7, 300, 301, 899, 900, 901])
def test_a_frame_shows_the_samples_up_to_the_next_frames(hop: int, samples: int) -> None:
    wave = torch.from_numpy(np.random.default_rng(samples).standard_normal(samples))
    rows = compute_extra_rows(wave, BOTH, hop, 3, 8000)
    stats = wave_stats(wave, 3 * hop)
    assert rows.shape == (13, samples // hop + 1)
    for frame in range(rows.shape[1]):
        assert torch.equal(rows[:12, frame], stats[:, min(frame // 3, stats.shape[1] - 1)])
    torch.testing.assert_close(rows[12], torch.full_like(rows[12], math.log(samples / 8000)))


@pytest.mark.parametrize("samples", [1, 150, 299, 300, 301, 649, 650, 651])
def test_no_sample_is_left_out(samples: int) -> None:
    quiet = compute_extra_rows(torch.zeros(samples), ("wave_stats",), 100, 3, 8000)
    for at in range(0, samples, max(1, samples // 50)):
        for place in (at, samples - 1 - at):
            click = torch.zeros(samples)
            click[place] = 1.0
            assert not torch.equal(compute_extra_rows(click, ("wave_stats",), 100, 3, 8000), quiet)


def test_a_long_clip_agrees_with_its_middle_and_no_clip_hears_its_batchmates() -> None:
    frontend = Frontend(FrontendConfig(**SMALL))
    waves = [torch.randn(n) for n in (1, 30, 2500, 1_200_000, 2500)]
    together = frontend.spectrograms(waves)
    for wave, spec in zip(waves, together, strict=True):
        assert spec.shape == (33, len(wave) // 100 + 1) == (frontend.config.rows, spec.shape[1])
        assert torch.equal(spec, frontend.spectrograms([wave])[0])
    middle = compute_extra_rows(waves[3][600_000:603_000], ("wave_stats",), 100, 3, 8000)
    torch.testing.assert_close(together[3][20:32, 6000:6030], middle[:, :30], rtol=0, atol=1e-6)


def test_side_rows_stand_below_every_channel_as_they_are() -> None:
    levels = {"top_db": 30.0, "normalize": "clip", "channels": ("log", "coordinate", "delta")}
    plain = Frontend(FrontendConfig(**{**SMALL, **levels, "extra_rows": ()}))
    both = Frontend(FrontendConfig(**SMALL, **levels))
    wave = torch.randn(2, 3000)
    spec = both(wave)
    assert spec.shape == (2, 3, 33, 31) and (both.config.n_bins, both.config.n_extra_rows) == (20, 13)
    assert torch.equal(spec[:, :, :20], plain(wave))
    for clip in range(2):
        side = compute_extra_rows(wave[clip], BOTH, 100, 3, 8000)
        assert all(torch.equal(spec[clip, channel, 20:], side) for channel in range(3))


@pytest.mark.parametrize("reference", ["clip", "window"])
def test_windows_carry_their_own_statistics_and_filling_does_not_bend_them(reference: str) -> None:
    frontend = Frontend(FrontendConfig(**SMALL, top_db=30.0, normalize="peak", reference=reference))
    wave = torch.randn(3000)
    kept = compute_spectrograms(frontend, [wave])[0]
    side = compute_extra_rows(wave, BOTH, 100, 3, 8000)
    piece = cut_window(frontend, kept, (7, 20), 13, "wrap")
    assert torch.equal(piece[20:], side[:, 7:20])
    filled = cut_window(frontend, kept, (7, 20), 40, "min")
    assert torch.equal(filled[:, :13], piece)
    assert torch.equal(filled[:20, 13:], piece[:20].amin().expand(20, 27))
    assert torch.equal(filled[20:, 13:], side[:, 19:20].expand(13, 27))


def test_statistics_of_mixed_noises_are_those_of_their_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two = (
        spread * torch.randn(60_000, generator=generator, dtype=torch.float64) for spread in (0.3, 0.4)
    )
    own, other, both = (compute_extra_rows(wave, BOTH, 60_000, 1, 8000) for wave in (one, two, one + two))
    torch.testing.assert_close(mix_extra_rows(own, other, BOTH)[1:], both[1:], rtol=0.03, atol=0.01)
    own, other, both = (wave_stats(wave, 60_000) for wave in (one + 0.2, two - 0.3, one + two - 0.1))
    torch.testing.assert_close(
        mix_extra_rows(own, other, ("wave_stats",))[:2], both[:2], rtol=0.01, atol=1e-9
    )


def test_mixing_is_even_handed_leaves_sounds_in_silence_and_keeps_lengths() -> None:
    config = FrontendConfig(**SMALL)
    one, two, silence = (
        Frontend(config).spectrograms([wave])[0]
        for wave in (torch.randn(2000) * 0.2, torch.randn(2000) * 0.1, torch.zeros(2000))
    )
    specs = torch.stack([one, two, silence])
    draw = draw_mixup(MixupConfig(p=1.0), 3, torch.Generator())
    draw = replace(draw, partner=torch.tensor([1, 0, 0]))
    mixed = mix_energies(specs, draw, MixupConfig(), config)
    torch.testing.assert_close(mixed[0, :32], mixed[1, :32])
    torch.testing.assert_close(mixed[2], one, rtol=1e-5, atol=1e-3)
    assert torch.equal(mixed[:, 32], specs[:, 32]) and torch.isfinite(mixed).all()
    pictures_alone = FrontendConfig(**{**SMALL, "extra_rows": ()})
    assert torch.equal(mixed[:, :20], mix_energies(specs[:, :20], draw, MixupConfig(), pictures_alone))
