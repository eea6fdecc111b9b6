'''Waveforms change as drawn: levels in dB, pitches in cents, times in samples, and nothing else.'''

import itertools
import math
from dataclasses import replace

import pytest
import torch

from kit.audio.augment import RATE_STEPS, WAVE_AUGMENTS, WaveAugmentConfig, augment_waves, draw_wave_augment
from kit.core.errors import KitError

RATE = 8000
NAMES = list(WAVE_AUGMENTS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(clips=4, samples=RATE, seed=1):
    '''Clips of white noise, each at its own level.'''
    return torch.randn(clips, samples, generator=generator(seed)) * torch.linspace(0.05, 0.3, clips)[:, None]


BACKGROUNDS = noise(3, 5000, seed=9)


def sines(hz, samples=2 * RATE):
    '''A sine for each frequency.'''
    return 0.5 * torch.sin(2 * math.pi * torch.tensor(hz)[:, None] * torch.arange(samples) / RATE)


def augmented(waves, name, seed=3, **settings):
    '''The clips under one effect, and its drawn amounts and seeds.'''
    config = WaveAugmentConfig(**{f'{name}_p': 1.0}, **settings)
    draw = draw_wave_augment(config, *waves.shape, generator(seed))
    return augment_waves(waves, draw, config, RATE, BACKGROUNDS), draw.amounts[name], draw.seeds


def power_db(waves):
    '''Mean square in dB.'''
    return 10 * waves.double().square().mean(-1).log10()


def peak_hz(wave):
    '''The frequency of the highest peak, between bins by a parabola through the logarithms.'''
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs().log()
    k = int(spectrum.argmax())
    a, b, c = spectrum[k - 1 : k + 2].tolist()
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / len(wave)


def test_gain_is_exact():
    waves = noise()
    louder, gain_db, _ = augmented(waves, 'gain', gain_db=(-12, 12))
    torch.testing.assert_close(louder, waves * (10 ** (gain_db / 20)).float()[:, None])
    assert len(set(gain_db.tolist())) == 4 and float(gain_db.abs().max()) <= 12


def test_a_shift_moves_each_clip_by_its_own_number_of_samples():
    waves = noise(12)
    shifted, steps, _ = augmented(waves, 'shift', shift_share=0.3)
    for old, new, step in zip(waves, shifted, steps.int().tolist(), strict=True):
        assert torch.equal(new, old.roll(step)) and abs(step) <= 0.3 * RATE
    assert len(steps.unique()) > 8 and steps.min() < 0 < steps.max()


@pytest.mark.parametrize('name', ['noise', 'background'])
def test_the_ratio_of_signal_to_noise_is_the_drawn_one(name):
    waves = noise(8)
    noisy, snr_db, _ = augmented(waves, name, **{f'{name}_snr_db': (0, 20)})
    torch.testing.assert_close(power_db(waves) - power_db(noisy - waves), snr_db, rtol=0, atol=0.05)


@pytest.mark.parametrize('colour', [0.0, -1.0, -2.0])
def test_noise_has_its_colour_and_begins_at_20_hz(colour):
    waves = torch.full((8, 4 * RATE), 0.1)
    noisy, _, _ = augmented(waves, 'noise', noise_colours=(colour,))
    spectrum = torch.fft.rfft((noisy - waves).double()).abs().square().mean(0)
    hz = torch.linspace(0, RATE / 2, len(spectrum))
    octaves = [100 * 2**k for k in range(5)]
    levels = [spectrum[(hz >= low) & (hz < 2 * low)].mean().log2() for low in octaves]
    slopes = [float(b - a) for a, b in itertools.pairwise(levels)]
    assert all(abs(slope - colour) < 0.25 for slope in slopes)
    assert float(spectrum[hz < 18].sum()) < 0.01 * float(spectrum.sum())


def test_all_colours_are_drawn():
    waves = torch.full((40, RATE), 0.1)
    added = augmented(waves, 'noise', noise_snr_db=(10, 10))[0] - waves
    roughness = added.diff().square().mean(-1) / added.square().mean(-1)
    colours = (roughness > 1).int() + (roughness > 0.1).int()
    assert set(colours.tolist()) == {0, 1, 2}


def test_each_clip_has_its_own_noise_and_its_own_reverb():
    waves = torch.zeros(4, RATE)
    waves[:, 0] = 1.0
    for name in ('noise', 'reverb'):
        added = augmented(waves, name, noise_colours=(0.0,), reverb_s=(0.5, 0.5))[0] - waves
        added = added / added.norm(dim=1, keepdim=True)
        assert float((added @ added.T - torch.eye(4)).abs().max()) < 0.15


def test_a_background_starts_at_a_drawn_place_and_repeats():
    waves = noise(6, 12_000)
    mixed, _, seeds = augmented(waves, 'background')
    for row, seed in zip(mixed - waves, seeds.tolist(), strict=True):
        expected = BACKGROUNDS[seed % 3].roll(-(seed // 3 % 5000)).repeat(3)[:12_000]
        torch.testing.assert_close(row / row.norm(), expected / expected.norm(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    'name, moves_time, moves_pitch, time_error, cents_error',
    [('speed', True, True, 2, 3), ('tempo', True, False, 100, 3), ('pitch', False, True, 150, 4)],
)
def test_speed_tempo_and_pitch_move_what_they_should(name, moves_time, moves_pitch, time_error, cents_error):
    samples = 2 * RATE
    time = torch.arange(samples)
    hz = [300.0, 440.0, 700.0, 1000.0] * 3
    tones = sines(hz)
    bursts = tones * ((time > 9000) & (time < 11_000))
    moved_bursts, factors, _ = augmented(bursts, name)
    moved_tones, again, _ = augmented(tones, name)
    assert torch.equal(factors, again) and len(factors.unique()) > 3
    torch.testing.assert_close(power_db(moved_tones), power_db(tones), rtol=0, atol=0.5)
    for factor, start, burst, tone in zip(factors.tolist(), hz, moved_bursts, moved_tones, strict=True):
        rate = factor if moves_time else 1.0
        end = min(samples, round(samples / rate))
        energy = burst[:end].double().square()
        centre = float((energy * time[:end]).sum() / energy.sum())
        assert abs(centre - 10_000 / rate) < time_error
        expected_hz = start * factor if moves_pitch else start
        assert abs(1200 * math.log2(peak_hz(tone[:12_000]) / expected_hz)) < cents_error


def test_factors_are_few_within_their_bounds_and_1_changes_nothing():
    config = WaveAugmentConfig(tempo=1.25)
    draw = draw_wave_augment(replace(config, speed_p=1.0, pitch_p=1.0, tempo_p=1.0), 3000, RATE, generator())
    for name, bound in (('speed', 1.1), ('tempo', 1.25), ('pitch', 2 ** (300 / 1200))):
        factors = [k / RATE_STEPS for k in range(1, 200)]
        expected = [factor for factor in factors if 1 / bound - 1e-9 <= factor <= bound + 1e-9]
        assert draw.amounts[name].unique().tolist() == pytest.approx(expected)
        none = {'speed': 1.0, 'tempo': 1.0, 'pitch_cents': 0.0}
        assert torch.equal(augmented(noise(), name, **none)[0], noise())


def test_reverb_keeps_the_direct_sound_and_decays_in_the_drawn_time():
    clicks = torch.zeros(6, 2 * RATE)
    clicks[:, 100] = 0.5
    wet, decays_s, _ = augmented(clicks, 'reverb', reverb_s=(0.2, 1.2))
    tails = wet - clicks
    assert float(tails[:, :100].abs().max()) < 1e-6
    for tail, decay_s in zip(tails[:, 100:].double(), decays_s.tolist(), strict=True):
        energy_db = 10 * math.log10(float(tail.square().sum()) / 0.25)
        assert energy_db == pytest.approx(10 * math.log10(decay_s), abs=0.1)
        third = int(decay_s / 3 * RATE)
        early, late = (power_db(tail[start : start + third // 4]) for start in (0, third))
        assert float(late - early) == pytest.approx(-20, abs=2.5)


def test_overdrive_bends_loud_samples_and_keeps_power_and_order():
    waves = noise()
    driven, drive_db, _ = augmented(waves, 'overdrive', overdrive_db=(10, 20))
    torch.testing.assert_close(power_db(driven), power_db(waves), rtol=0, atol=0.01)
    order = waves.argsort(dim=-1)
    assert bool((driven.gather(1, order).diff() >= -1e-6).all())
    crests = [w.abs().amax(-1) / w.square().mean(-1).sqrt() for w in (waves, driven)]
    assert bool((crests[1] < 0.7 * crests[0]).all()) and float(drive_db.min()) >= 10
    louder, _, _ = augmented(4 * waves, 'overdrive', overdrive_db=(10, 20))
    torch.testing.assert_close(louder, 4 * driven)


@pytest.mark.parametrize('name', NAMES)
def test_a_clip_changes_only_if_drawn_and_whatever_its_batchmates_are(name):
    config = WaveAugmentConfig(**{f'{name}_p': 0.5})
    waves = noise(12)
    draw = draw_wave_augment(config, 12, RATE, generator(2))
    new = augment_waves(waves, draw, config, RATE, BACKGROUNDS)
    amount = draw.amounts[name]
    assert torch.equal(waves, noise(12)), 'the input was written to'
    assert torch.equal((new != waves).any(1), ~amount.isnan() & (amount != 1.0))
    for i in range(12):
        row = slice(i, i + 1)
        amounts = {key: value[row] for key, value in draw.amounts.items()}
        alone = replace(draw, amounts=amounts, seeds=draw.seeds[row])
        again = augment_waves(waves[row], alone, config, RATE, BACKGROUNDS)
        torch.testing.assert_close(again, new[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('samples', [1, 2, 300, RATE])
def test_silence_stays_silence_and_everything_stays_finite(samples):
    config = WaveAugmentConfig(**{f'{name}_p': 1.0 for name in NAMES})
    waves = torch.zeros(5, samples)
    waves[1], waves[2], waves[3, ::2], waves[4] = 1.0, -1e4, 1e-12, 1e-30
    for seed in range(3):
        draw = draw_wave_augment(config, 5, samples, generator(seed))
        new = augment_waves(waves, draw, config, RATE, BACKGROUNDS)
        assert new.shape == waves.shape and bool(new.isfinite().all())
        assert not bool(new[0].any())
    config = WaveAugmentConfig(background_p=1.0)
    draw = draw_wave_augment(config, 5, samples, generator())
    assert torch.equal(augment_waves(waves, draw, config, RATE, torch.zeros(2, 100)), waves)


def test_the_same_draw_and_the_same_seed_repeat_and_leave_other_randomness_alone():
    config = WaveAugmentConfig(**{f'{name}_p': 0.7 for name in NAMES})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    results = []
    for seed in (7, 7, 8):
        draw = draw_wave_augment(config, 4, RATE, generator(seed))
        results += [augment_waves(noise(), draw, config, RATE, BACKGROUNDS) for _ in range(2)]
    assert all(torch.equal(results[0], other) for other in results[1:4])
    assert not torch.equal(results[0], results[4]) and torch.equal(torch.rand(3), expected)


def test_one_probability_changes_nothing_else_that_is_drawn():
    few, many = WaveAugmentConfig(noise_p=0.5), WaveAugmentConfig(**{f'{name}_p': 0.5 for name in NAMES})
    one, other = (draw_wave_augment(config, 50, RATE, generator()) for config in (few, many))
    assert torch.equal(one.amounts['noise'].isnan(), other.amounts['noise'].isnan())
    assert torch.equal(one.seeds, other.seeds) and bool(one.amounts['gain'].isnan().all())


def test_the_chance_of_a_clip_multiplies_the_probabilities_of_all_effects():
    config = WaveAugmentConfig(gain_p=0.4, noise_p=0.2)
    chance = torch.tensor([0.0, 1.0, 2.0]).repeat(2000)
    amounts = draw_wave_augment(config, 6000, RATE, generator(), chance).amounts
    for name, p in (('gain', 0.4), ('noise', 0.2), ('shift', 0.0)):
        shares = [float((~amounts[name][i::3].isnan()).float().mean()) for i in range(3)]
        assert shares == pytest.approx([0, p, 2 * p], abs=0.04)


def test_all_effects_of_a_chain_come_together():
    names = ('gain', 'noise', 'reverb')
    config = WaveAugmentConfig(chance=0.75, **{f'{name}_p': 1.0 for name in names})
    amounts = draw_wave_augment(config, 4000, RATE, generator()).amounts
    is_on = torch.stack([~amounts[name].isnan() for name in names])
    assert bool((is_on == is_on[0]).all()) and float(is_on.float().mean()) == pytest.approx(0.75, abs=0.03)


def test_wrong_settings_are_refused():
    for wrong in ({'gain_db': (3, 1)}, {'reverb_s': (0.5,)}):
        with pytest.raises(KitError, match='from low to high'):
            WaveAugmentConfig(**wrong)
    with pytest.raises(KitError, match='noise_colours'):
        WaveAugmentConfig(noise_colours=())
