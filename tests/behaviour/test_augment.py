"""Waveforms change as drawn: levels in dB, pitches in cents, places in samples, and nothing else with them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from kit.audio.augment import (
    RATE_STEPS,
    WAVE_AUGMENTS,
    WaveAugmentConfig,
    augment_waves,
    draw_wave_augment,
    phase_vocoder,
)  # fmt: skip
from kit.core.errors import KitError

RATE = 8000
NAMES = list(WAVE_AUGMENTS)
BACKGROUNDS = torch.randn(3, 5000, generator=torch.Generator().manual_seed(9))


def generator(seed=0):
    """Randomness of its own."""
    return torch.Generator().manual_seed(seed)


def noise(clips=4, samples=RATE, seed=1):
    """Clips of white noise, each at its own level."""
    return torch.randn(clips, samples, generator=generator(seed)) * torch.linspace(0.05, 0.3, clips)[:, None]


def sines(hz, samples=2 * RATE):
    """A sine for each frequency."""
    return 0.5 * torch.sin(2 * math.pi * torch.tensor(hz)[:, None] * torch.arange(samples) / RATE)


def changed(waves, name, seed=3, **settings):
    """The clips under one change, and the draw."""
    config = WaveAugmentConfig(**{f"{name}_p": 1.0}, **settings)
    draw = draw_wave_augment(config, *waves.shape, generator(seed))
    return augment_waves(waves, draw, config, RATE, BACKGROUNDS), draw


def power_db(waves):
    """Mean square in dB."""
    return 10 * waves.double().square().mean(-1).log10()


def loudest_hz(wave):
    """The frequency of the highest peak, between bins by a parabola through the logarithms."""
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs().log()
    k = int(spectrum.argmax())
    a, b, c = spectrum[k - 1 : k + 2].tolist()
    return (k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE / len(wave)


def test_gain_is_exact():
    waves = noise()
    louder, draw = changed(waves, "gain", gain_db=(-12, 12))
    torch.testing.assert_close(louder, waves * (10 ** (draw.amounts["gain"] / 20)).float()[:, None])
    assert len(set(draw.amounts["gain"].tolist())) == 4 and float(draw.amounts["gain"].abs().max()) <= 12


def test_a_roll_loses_no_sample_and_moves_each_clip_by_its_own_number():
    waves = noise()
    time_shift, draw = changed(waves, "shift")
    for old, new, step in zip(waves, time_shift, draw.amounts["shift"].tolist(), strict=True):
        assert torch.equal(new, old.roll(int(step)))
    assert len(set(draw.amounts["shift"].tolist())) == 4


def test_a_shift_lets_silence_in():
    waves, seen = noise(), set()
    for seed in range(5):
        shifted, draw = changed(waves, "shift", seed, shift_share=0.3, shift_silence=True)
        for old, new, step in zip(waves, shifted, draw.amounts["shift"].int().tolist(), strict=True):
            wanted = torch.zeros(RATE)
            if step >= 0:
                wanted[step:] = old[: RATE - step]
            else:
                wanted[:step] = old[-step:]
            assert torch.equal(new, wanted) and abs(step) <= 0.3 * RATE
            seen.add(step > 0)
    assert seen == {True, False}


@pytest.mark.parametrize("name", ["noise", "background"])
def test_the_ratio_of_signal_to_noise_is_the_drawn_one(name):
    waves = noise(8)
    noisy, draw = changed(waves, name, **{f"{name}_snr_db": (0, 20)})
    ratio = power_db(waves) - power_db(noisy - waves)
    torch.testing.assert_close(ratio, draw.amounts[name], rtol=0, atol=0.05)


@pytest.mark.parametrize("colour", [0.0, -1.0, -2.0])
def test_noise_has_its_colour_and_begins_at_20_hz(colour):
    waves = torch.full((8, 4 * RATE), 0.1)
    noisy, _ = changed(waves, "noise", noise_colours=(colour,))
    spectrum = torch.fft.rfft((noisy - waves).double()).abs().square().mean(0)
    hz = torch.linspace(0, RATE / 2, len(spectrum))
    octaves = [100 * 2**k for k in range(5)]
    per_bin = [spectrum[(hz >= low) & (hz < 2 * low)].mean().log2() for low in octaves]
    slopes = [float(b - a) for a, b in itertools.pairwise(per_bin)]
    assert all(abs(slope - colour) < 0.25 for slope in slopes)
    assert float(spectrum[hz < 18].sum()) < 0.01 * float(spectrum.sum())


def test_all_colours_are_drawn():
    waves = torch.full((40, RATE), 0.1)
    noisy, draw = changed(waves, "noise", noise_snr_db=(10, 10))
    rough = (noisy - waves).diff().square().mean(-1) / (noisy - waves).square().mean(-1)
    kinds = (rough > 1).int() + (rough > 0.1).int()
    assert set(kinds.tolist()) == {0, 1, 2} and set((draw.seeds % 3).tolist()) == {0, 1, 2}


def test_each_clip_has_noise_and_a_room_of_its_own():
    waves = torch.zeros(4, RATE)
    waves[:, 0] = 1.0
    for name in ("noise", "reverb"):
        added = changed(waves, name, noise_colours=(0.0,), reverb_s=(0.5, 0.5))[0] - waves
        added = added / added.norm(dim=1, keepdim=True)
        assert float((added @ added.T - torch.eye(4)).abs().max()) < 0.15


def test_backgrounds_are_heard_from_a_drawn_place_on_and_again():
    waves = noise(6, 12_000)
    heard, draw = changed(waves, "background")
    for row, seed in zip(heard - waves, draw.seeds.tolist(), strict=True):
        wanted = BACKGROUNDS[seed % 3].roll(-(seed // 3 % 5000)).repeat(3)[:12_000]
        torch.testing.assert_close(row / row.norm(), wanted / wanted.norm(), rtol=0, atol=1e-4)


def test_backgrounds_that_are_missing_are_asked_for():
    config = WaveAugmentConfig(background_p=1.0)
    with pytest.raises(KitError, match="backgrounds"):
        augment_waves(noise(), draw_wave_augment(config, 4, RATE, generator()), config, RATE)


def test_speed_moves_pitch_and_time_together():
    clicks = torch.zeros(12, 2 * RATE)
    clicks[:, 6000] = 1.0
    moved, draw = changed(clicks, "speed")
    tones, again = changed(sines([440.0] * 12), "speed")
    assert torch.equal(draw.amounts["speed"], again.amounts["speed"])
    for factor, click, tone in zip(draw.amounts["speed"].tolist(), moved, tones, strict=True):
        assert abs(int(click.abs().argmax()) - 6000 / factor) <= 1
        assert abs(1200 * math.log2(loudest_hz(tone[:12_000]) / (440 * factor))) < 3
        assert 1 / 1.1 <= factor <= 1.1
    assert len(set(draw.amounts["speed"].tolist())) > 3


def test_pitch_moves_a_sine_by_the_drawn_cents_at_equal_length_and_level():
    hz = [300.0, 440.0, 700.0, 1000.0] * 4
    waves = sines(hz)
    moved, draw = changed(waves, "pitch")
    cents = [1200 * math.log2(factor) for factor in draw.amounts["pitch"].tolist()]
    assert moved.shape == waves.shape and min(cents) < -150 and max(cents) > 150
    for start, tone, wanted in zip(hz, moved, cents, strict=True):
        assert abs(1200 * math.log2(loudest_hz(tone) / start) - wanted) < 4
        assert abs(wanted) <= 300
    torch.testing.assert_close(power_db(moved), power_db(waves), rtol=0, atol=0.5)


def test_tempo_moves_events_and_not_the_frequency():
    chunks = sines([440.0] * 12) * ((torch.arange(2 * RATE) > 9000) & (torch.arange(2 * RATE) < 11_000))
    moved, draw = changed(chunks, "tempo")
    tones, _ = changed(sines([440.0] * 12), "tempo")
    time = torch.arange(2 * RATE, dtype=torch.float64)
    for factor, chunk, tone in zip(draw.amounts["tempo"].tolist(), moved, tones, strict=True):
        energy = chunk[: min(2 * RATE, round(2 * RATE / factor))].double().square()
        centre = float((energy * time[: len(energy)]).sum() / energy.sum())
        assert abs(centre - 10_000 / factor) < 100
        assert abs(1200 * math.log2(loudest_hz(tone) / 440)) < 3
    assert len(set(draw.amounts["tempo"].tolist())) > 3


def test_pitch_leaves_events_where_they_are():
    chunks = sines([440.0] * 12) * ((torch.arange(2 * RATE) > 9000) & (torch.arange(2 * RATE) < 11_000))
    moved, draw = changed(chunks, "pitch")
    energy = moved.double().square()
    centres = (energy * torch.arange(2 * RATE)).sum(1) / energy.sum(1)
    torch.testing.assert_close(centres, torch.full_like(centres, 10_000), rtol=0, atol=150)
    assert float(draw.amounts["pitch"].max()) > 1.1


@pytest.mark.parametrize("rate", [0.8, 55 / 60, 1.0, 1.1, 1.5])
def test_the_phase_vocoder_agrees_with_torchaudios(rate):
    from torchaudio.functional import phase_vocoder as torchaudio_vocoder

    wave = (sines([440.0]) + 0.3 * noise(1, 2 * RATE)) * torch.linspace(0, 1, 2 * RATE)
    window = torch.hann_window(512)
    spec = torch.stft(wave, 512, window=window, return_complex=True)
    advance = torch.linspace(0, math.pi * 128, 257)[:, None]
    samples = round(2 * RATE / rate)
    wanted = torch.istft(torchaudio_vocoder(spec, rate, advance), 512, window=window, length=samples)
    mine = phase_vocoder(wave, rate, 512)
    inner = slice(512, samples - 1024)
    a, b = mine[0, inner], wanted[0, inner]
    assert float((a / a.norm() - b / b.norm()).norm()) < 0.01


def test_a_ratio_of_one_changes_nothing():
    config = WaveAugmentConfig(speed_p=1.0, pitch_p=1.0, tempo_p=1.0, speed=1.0, pitch_cents=0.0, tempo=1.0)
    waves = noise()
    assert torch.equal(
        augment_waves(waves, draw_wave_augment(config, 4, RATE, generator()), config, RATE), waves
    )


def test_ratios_are_few_and_within_their_bounds():
    config = WaveAugmentConfig(speed_p=1.0, pitch_p=1.0, tempo_p=1.0, tempo=1.25)
    draw = draw_wave_augment(config, 3000, RATE, generator())
    for name, bound in (("speed", 1.1), ("tempo", 1.25), ("pitch", 2 ** (300 / 1200))):
        factors = draw.amounts[name].unique()
        wanted = [k / RATE_STEPS for k in range(1, 200) if 1 / bound <= k / RATE_STEPS + 1e-9 <= bound + 2e-9]
        assert factors.tolist() == pytest.approx(wanted)


def test_a_room_keeps_the_direct_sound_and_decays_in_the_drawn_time():
    clicks = torch.zeros(6, 2 * RATE)
    clicks[:, 100] = 0.5
    wet, draw = changed(clicks, "reverb", reverb_s=(0.2, 1.2), reverb_db=-3.0)
    tails = wet - clicks
    assert float(tails[:, :100].abs().max()) < 1e-6
    for tail, decay_s in zip(tails[:, 100:].double(), draw.amounts["reverb"].tolist(), strict=True):
        assert 10 * math.log10(float(tail.square().sum()) / 0.25) == pytest.approx(
            -3 + 10 * math.log10(decay_s), abs=0.1
        )
        third = int(decay_s / 3 * RATE)
        early, late = (tail[start : start + third // 4].square().mean().log10() for start in (0, third))
        assert float(10 * (late - early)) == pytest.approx(-20, abs=2.5)


def test_overdrive_bends_loud_samples_and_keeps_power_and_order():
    waves = noise()
    driven, draw = changed(waves, "overdrive", overdrive_db=(10, 20))
    torch.testing.assert_close(power_db(driven), power_db(waves), rtol=0, atol=0.01)
    order = waves.argsort(dim=-1)
    assert bool((driven.gather(1, order).diff() >= -1e-6).all())
    crests = [w.abs().amax(-1) / w.square().mean(-1).sqrt() for w in (waves, driven)]
    assert bool((crests[1] < 0.7 * crests[0]).all()) and float(draw.amounts["overdrive"].min()) >= 10
    louder, _ = changed(4 * waves, "overdrive", overdrive_db=(10, 20))
    torch.testing.assert_close(louder, 4 * driven)


@pytest.mark.parametrize("name", NAMES)
def test_clips_that_are_not_drawn_stay_bit_for_bit(name):
    config = WaveAugmentConfig(**{f"{name}_p": 0.5})
    waves = noise(12)
    kept = waves.clone()
    draw = draw_wave_augment(config, 12, RATE, generator(2))
    new, off = augment_waves(waves, draw, config, RATE, BACKGROUNDS), draw.amounts[name].isnan()
    assert torch.equal(waves, kept) and 0 < int(off.sum()) < 12
    assert torch.equal(new[off], waves[off])
    really = (new != waves).any(1) | (draw.amounts[name] == 1.0)
    assert torch.equal(really, ~off)


@pytest.mark.parametrize("name", NAMES)
def test_batchmates_do_not_matter(name):
    waves = noise(6)
    together, draw = changed(waves, name)
    config = WaveAugmentConfig(**{f"{name}_p": 1.0})
    for i in range(6):
        amounts = {key: value[i : i + 1] for key, value in draw.amounts.items()}
        alone = replace(draw, amounts=amounts, seeds=draw.seeds[i : i + 1])
        again = augment_waves(waves[i : i + 1], alone, config, RATE, BACKGROUNDS)
        torch.testing.assert_close(again, together[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 300, RATE])
def test_silence_stays_silence_and_everything_stays_finite(samples):
    config = WaveAugmentConfig(**{f"{name}_p": 1.0 for name in NAMES})
    waves = torch.zeros(5, samples)
    waves[1], waves[2], waves[3, ::2], waves[4] = 1.0, -1e4, 1e-12, 1e-30
    for seed in range(3):
        new = augment_waves(
            waves, draw_wave_augment(config, 5, samples, generator(seed)), config, RATE, BACKGROUNDS
        )
        assert new.shape == waves.shape and bool(new.isfinite().all())
        assert not bool(new[0].any())


def test_silent_backgrounds_add_nothing():
    config = WaveAugmentConfig(background_p=1.0)
    draw = draw_wave_augment(config, 4, RATE, generator())
    assert torch.equal(augment_waves(noise(), draw, config, RATE, torch.zeros(2, 100)), noise())


def test_the_same_draw_and_the_same_seed_give_the_same_and_leave_other_randomness_alone():
    config = WaveAugmentConfig(**{f"{name}_p": 0.7 for name in NAMES})
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    results = []
    for seed in (7, 7, 8):
        draw = draw_wave_augment(config, 4, RATE, generator(seed))
        results += [augment_waves(noise(), draw, config, RATE, BACKGROUNDS) for _ in range(2)]
    assert all(torch.equal(results[0], other) for other in results[1:4])
    assert not torch.equal(results[0], results[4]) and torch.equal(torch.rand(3), expected)


def test_one_chance_changes_nothing_else_that_is_drawn():
    few, many = WaveAugmentConfig(noise_p=0.5), WaveAugmentConfig(**{f"{name}_p": 0.5 for name in NAMES})
    one, other = (draw_wave_augment(config, 50, RATE, generator()) for config in (few, many))
    assert torch.equal(one.amounts["noise"].isnan(), other.amounts["noise"].isnan())
    assert torch.equal(one.seeds, other.seeds) and bool(one.amounts["gain"].isnan().all())


def test_the_chance_of_a_clip_multiplies_those_of_all_changes():
    config = WaveAugmentConfig(gain_p=0.4, noise_p=0.2)
    chance = torch.tensor([0.0, 1.0, 2.0]).repeat(2000)
    amounts = draw_wave_augment(config, 6000, RATE, generator(), chance).amounts
    for name, p in (("gain", 0.4), ("noise", 0.2), ("shift", 0.0)):
        shares = [float((~amounts[name][i::3].isnan()).float().mean()) for i in range(3)]
        assert shares == pytest.approx([0, p, 2 * p], abs=0.04)


def test_draws_for_other_clips_and_ranges_that_run_backwards_are_refused():
    config = WaveAugmentConfig()
    with pytest.raises(KitError, match="3 clips"):
        augment_waves(noise(), draw_wave_augment(config, 3, RATE, generator()), config, RATE)
    for wrong in ({"gain_db": (3, 1)}, {"reverb_s": (0.5,)}):
        with pytest.raises(KitError, match="from low to high"):
            WaveAugmentConfig(**wrong)
    with pytest.raises(KitError, match="noise_colours"):
        WaveAugmentConfig(noise_colours=())
