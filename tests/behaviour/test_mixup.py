"""Mixed clips carry the sum of their energies and the union of their labels, unknown ones included."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import (
    MixupConfig,
    draw_mixup,
    log_to_energy,
    mix_energies,
    mix_labels,
    mix_specs,
    mix_waves,
)
from kit.audio.spectrogram import log_scaled
from kit.core.errors import KitError

NAN = float("nan")
SMALL = {"sample_rate": 8000, "n_fft": 256, "hop_length": 128, "n_mels": 20}
LOGS = [(1, "ln"), (2, "ln"), (1, "db"), (2, "db")]


def generator(seed=0):
    """Randomness of its own."""
    return torch.Generator().manual_seed(seed)


def everyone_with_the_next(clips, **settings):
    """A draw in which every clip is mixed with its right neighbour."""
    draw = draw_mixup(MixupConfig(p=1.0, **settings), clips, generator())
    return replace(draw, mixed=torch.ones(clips, dtype=torch.bool), partner=torch.arange(clips).roll(-1))


def slow_union(a, b):
    """Slow definition of law 5 for one label: true beats all, unknown beats false."""
    if 1.0 in (a, b):
        return 1.0
    return NAN if math.isnan(a) or math.isnan(b) else max(a, b)


def test_labels_unite_as_three_states():
    states = [0.0, 1.0, NAN, 0.3, 0.8]
    pairs = [(a, b) for a in states for b in states]
    targets = torch.tensor([[a for a, _ in pairs], [b for _, b in pairs]])
    united = mix_labels(targets, everyone_with_the_next(2), MixupConfig())
    slow = torch.tensor([slow_union(a, b) for a, b in pairs])
    for row in united:
        torch.testing.assert_close(row, slow, rtol=0, atol=0, equal_nan=True)


def test_unknown_never_turns_into_false():
    targets = torch.tensor([[NAN, 0.0, 1.0, NAN]] * 64)[torch.arange(64)]
    targets[::2] = torch.tensor([0.0, NAN, NAN, NAN])
    for seed in range(20):
        draw = draw_mixup(MixupConfig(p=0.7), 64, generator(seed))
        united = mix_labels(targets, draw, MixupConfig())
        heard = torch.where(draw.mixed[:, None], targets[draw.partner], targets)
        unknown = targets.isnan() | heard.isnan()
        assert not bool((united[unknown] == 0).any())
        assert bool((united[~unknown] == torch.maximum(targets, heard)[~unknown]).all())


def test_clips_that_are_not_mixed_keep_sound_and_labels():
    config = FrontendConfig(**SMALL)
    specs, targets = torch.randn(6, 20, 9), torch.tensor([[0.0, 1.0, NAN]] * 6)
    draw = replace(everyone_with_the_next(6), mixed=torch.tensor([True, False] * 3))
    assert torch.equal(mix_energies(specs, draw, MixupConfig(), config)[1::2], specs[1::2])
    assert not torch.equal(mix_energies(specs, draw, MixupConfig(), config)[::2], specs[::2])
    torch.testing.assert_close(mix_labels(targets, draw, MixupConfig())[1::2], targets[1::2], equal_nan=True)


@pytest.mark.parametrize("power, log", LOGS)
def test_the_energies_of_mixed_clips_add_up(power, log):
    config = FrontendConfig(**SMALL, power=power, log=log, log_offset=1e-6)
    energies = 10 ** (8 * torch.rand(3, 20, 7, generator=generator(), dtype=torch.float64) - 5)
    magnitudes = energies.sqrt()
    if log == "ln":
        raw = ((magnitudes if power == 1 else energies) + 1e-6).log()
    else:
        raw = 20 * magnitudes.log10() if power == 1 else 10 * energies.log10()
    total = energies + energies.roll(-1, 0)
    in_ln = ((total.sqrt() if power == 1 else total) + 1e-6).log()
    wanted = in_ln if log == "ln" else 10 * total.log10()
    mixed = mix_energies(raw, everyone_with_the_next(3), MixupConfig(), config)
    torch.testing.assert_close(mixed, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("power, log", LOGS)
@pytest.mark.parametrize("kind", ["mel", "stft"])
def test_mixing_spectrograms_is_mixing_sounds_that_do_not_overlap(power, log, kind):
    config = FrontendConfig(**SMALL, kind=kind, power=power, log=log)
    frontend = Frontend(config)
    t = torch.arange(4000) / 8000
    low, high = 0.3 * torch.sin(2 * math.pi * 400 * t), 0.2 * torch.sin(2 * math.pi * 2600 * t)
    one, other, both = (frontend.spectrograms([wave])[0] for wave in (low, high, low + high))
    mixed = mix_energies(torch.stack([one, other]), everyone_with_the_next(2), MixupConfig(), config)
    inner = slice(3, -3)
    loud = both[:, inner] > both[:, inner].amax() - (40 if log == "db" else 4.6 * power)
    in_db = 1.0 if log == "db" else (20 if power == 1 else 10) / math.log(10)
    assert float(((mixed[0, :, inner] - both[:, inner])[loud] * in_db).abs().max()) < 1.0
    torch.testing.assert_close(mixed[0], mixed[1])


@pytest.mark.parametrize("power, log", LOGS)
def test_logarithm_and_energy_are_inverse(power, log):
    config = FrontendConfig(**SMALL, power=power, log=log)
    raw = Frontend(config).spectrograms([torch.randn(4000, generator=generator())])[0]
    energy = log_to_energy(raw, config)
    assert bool((energy >= 0).all())
    again = log_scaled(config, energy if power == 2 else energy.sqrt())
    torch.testing.assert_close(again, raw, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("power, log", LOGS)
def test_silence_and_full_scale_mix_to_finite_numbers(power, log):
    config = FrontendConfig(**SMALL, power=power, log=log)
    waves = [torch.zeros(2000), torch.ones(2000), torch.zeros(2000)]
    specs = torch.stack(Frontend(config).spectrograms(waves))
    mixed = mix_energies(specs, everyone_with_the_next(3), MixupConfig(), config)
    assert bool(mixed.isfinite().all())
    loud = specs[1] > (-60 if log == "db" else -5)
    torch.testing.assert_close(mixed[0][loud], specs[1][loud], rtol=0, atol=1e-2)


def test_no_clip_is_mixed_with_itself_and_every_clip_is_a_partner_once():
    for clips in (2, 3, 8, 33):
        for seed in range(20):
            draw = draw_mixup(MixupConfig(p=1.0), clips, generator(seed))
            assert bool(draw.mixed.all())
            assert sorted(draw.partner.tolist()) == list(range(clips))
            assert all(partner != clip for clip, partner in enumerate(draw.partner.tolist()))


def test_a_clip_without_company_is_not_mixed():
    for seed in range(5):
        assert not bool(draw_mixup(MixupConfig(p=1.0), 1, generator(seed)).mixed.any())


def test_as_many_clips_are_mixed_as_the_chance_says():
    draws = [draw_mixup(MixupConfig(p=chance), 1000, generator(1)) for chance in (0.0, 0.25, 1.0)]
    shares = [float(draw.mixed.float().mean()) for draw in draws]
    assert shares[0] == 0.0 and abs(shares[1] - 0.25) < 0.05 and shares[2] == 1.0


def test_the_same_seed_draws_the_same_and_leaves_other_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (draw_mixup(MixupConfig(p=0.5), 50, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(one.mixed, again.mixed) and torch.equal(one.partner, again.partner)
    assert not torch.equal(one.partner, other.partner)
    assert torch.equal(torch.rand(3), expected)


def test_applying_a_draw_changes_no_input_and_repeats_itself():
    config = FrontendConfig(**SMALL)
    specs, targets = torch.randn(4, 20, 5), torch.tensor([[0.0, NAN], [1.0, 0.0]] * 2)
    kept = specs.clone(), targets.clone()
    draw = everyone_with_the_next(4)
    assert torch.equal(
        mix_energies(specs, draw, MixupConfig(), config), mix_energies(specs, draw, MixupConfig(), config)
    )
    mix_labels(targets, draw, MixupConfig())
    torch.testing.assert_close((specs, targets), kept, equal_nan=True)


def shares(config, draw, i, places):
    """Slow definition of what is heard of clip i and of its partner, place by place."""
    for n in range(places):
        if draw.fade[i]:
            x = 2 * float(draw.steepness[i]) * ((n + 0.5) / places - float(draw.centre[i]))
            later = 1 / (1 + math.exp(-x))
            yield 1 - later, later
        else:
            w = float(draw.share[i])
            yield (1 - w if config.convex else 1.0), w


MANNERS = [
    {}, {"low": 0.1, "high": 0.5}, {"low": 0.1, "high": 0.5, "convex": True}, {"beta": 0.4, "convex": True},
    {"fade_p": 1.0}, {"fade_p": 0.5, "high": 0.9, "low": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("settings", MANNERS, ids=str)
def test_waves_and_pictures_overlap_as_the_weighted_sum(settings):
    config = MixupConfig(p=0.7, **settings)
    draw = draw_mixup(config, 9, generator(4))
    assert bool(draw.mixed.any()) and not bool(draw.mixed.all())
    waves = torch.randn(9, 31, generator=generator(), dtype=torch.float64)
    wanted = waves.clone()
    for i in draw.mixed.nonzero().flatten().tolist():
        for n, (own, other) in enumerate(shares(config, draw, i, 31)):
            wanted[i, n] = own * waves[i, n] + other * waves[draw.partner[i], n]
    torch.testing.assert_close(mix_waves(waves, draw, config), wanted)
    pictures = torch.stack([waves, 2 * waves], dim=1)
    torch.testing.assert_close(mix_specs(pictures, draw, config), torch.stack([wanted, 2 * wanted], dim=1))
    assert torch.equal(mix_waves(waves, draw, config)[~draw.mixed], waves[~draw.mixed])


@pytest.mark.parametrize("settings", MANNERS, ids=str)
@pytest.mark.parametrize("power, log", LOGS)
def test_energies_overlap_as_the_weighted_sum(power, log, settings):
    frontend, config = (
        FrontendConfig(**SMALL, power=power, log=log, log_offset=1e-6),
        MixupConfig(p=0.7, **settings),
    )
    draw = draw_mixup(config, 9, generator(4))
    energies = 10 ** (4 * torch.rand(9, 20, 7, generator=generator(), dtype=torch.float64) - 3)

    def in_log(energy):
        return log_scaled(frontend, (energy.sqrt() if power == 1 else energy).clone())

    wanted = energies.clone()
    for i in draw.mixed.nonzero().flatten().tolist():
        for n, (own, other) in enumerate(shares(config, draw, i, 7)):
            wanted[i, :, n] = own * energies[i, :, n] + other * energies[draw.partner[i], :, n]
    mixed = mix_energies(in_log(energies), draw, config, frontend)
    torch.testing.assert_close(mixed, in_log(wanted), rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed[~draw.mixed], in_log(energies)[~draw.mixed])


def test_side_rows_follow_the_shares_and_keep_the_clips_length():
    frontend = FrontendConfig(**SMALL, extra_rows=("wave_stats", "clip_length"))
    specs = torch.rand(4, frontend.rows, 6, generator=generator()) - 0.5
    for settings in ({"low": 0.25, "high": 0.25, "convex": True}, {"fade_p": 1.0}):
        config = MixupConfig(p=1.0, **settings)
        draw = draw_mixup(config, 4, generator())
        mixed = mix_energies(specs, draw, config, frontend)
        assert torch.equal(mixed[:, -1], specs[:, -1])
        for i in range(4):
            for n, (own, other) in enumerate(shares(config, draw, i, 6)):
                a, b = math.sqrt(own) * specs[i, 21, n], math.sqrt(other) * specs[draw.partner[i], 21, n]
                wanted = torch.sign(a + b) * torch.hypot(a, b)
                torch.testing.assert_close(mixed[i, 21, n], wanted, rtol=1e-4, atol=1e-5)


def slow_label(a, b, share, how, masks):
    """Slow definition of a mixed label, by cases."""
    if masks == "either" and math.isnan(a) != math.isnan(b):
        a, b = (0.0 if math.isnan(x) else x for x in (a, b))
    if how == "weighted":
        return (1 - share) * a + share * b
    if 1.0 in (a, b):
        return 1.0
    if math.isnan(a) or math.isnan(b):
        return NAN
    return min(1.0, a + b) if how == "sum" else max(a, b)


@pytest.mark.parametrize("how", ["union", "weighted", "sum"])
@pytest.mark.parametrize("masks", ["known", "either"])
def test_labels_mix_by_their_definition(how, masks):
    config = MixupConfig(p=1.0, low=0.3, high=0.3, labels=how, masks=masks)
    pairs = list(itertools.product([0.0, 1.0, NAN, 0.3, 0.8], repeat=2))
    targets = torch.tensor([[a for a, _ in pairs], [b for _, b in pairs]], dtype=torch.float64)
    draw = replace(
        everyone_with_the_next(2, low=0.3, high=0.3), share=torch.tensor([0.3] * 2, dtype=torch.float64)
    )
    mixed = mix_labels(targets, draw, config)
    wanted = torch.tensor([slow_label(a, b, 0.3, how, masks) for a, b in pairs], dtype=torch.float64)
    torch.testing.assert_close(mixed[0], wanted, equal_nan=True)
    if masks == "known":
        assert not bool((mixed[0][targets.isnan().any(0)] == 0).any())


@pytest.mark.parametrize("how", ["union", "weighted", "sum"])
def test_labels_of_clips_that_fade_unite(how):
    config = MixupConfig(p=1.0, low=0.3, high=0.3, labels=how, fade_p=1.0)
    targets = torch.tensor([[0.0, 1.0, NAN, 0.3], [0.0, 0.0, 0.0, 0.8]])
    united = torch.tensor([0.0, 1.0, NAN, 0.8]).expand(2, 4)
    mixed = mix_labels(targets, draw_mixup(config, targets, generator()), config)
    torch.testing.assert_close(mixed, united, equal_nan=True)


def test_labels_stay_probabilities_whatever_the_shares():
    config = MixupConfig(p=1.0, low=0.0, labels="weighted")
    mixed = mix_labels(torch.ones(500, 3), draw_mixup(config, 500, generator()), config)
    torch.testing.assert_close(mixed, torch.ones(500, 3))
    assert float(mixed.max()) <= 1.0


def test_known_false_labels_survive_among_sure_negatives():
    rows = torch.randint(3, (40, 12), generator=generator(1))
    targets = torch.tensor([0.0, 1.0, NAN])[rows]
    kept = {}
    for partners in ("any", "sure-negatives"):
        config = MixupConfig(p=1.0, partners=partners)
        draw = draw_mixup(config, targets, generator(2))
        kept[partners] = int((mix_labels(targets, draw, config) == 0).sum())
        assert not bool((draw.partner == torch.arange(40)).any())
    false = (targets == 0).float()
    most = (false @ false.T).fill_diagonal_(-1).amax(1)
    assert kept["sure-negatives"] == int(most.sum()) > kept["any"]


def test_a_clip_is_not_mixed_where_all_its_known_negatives_would_be_lost():
    targets = torch.tensor([[0.0, NAN, 1.0], [NAN, 0.0, NAN], [NAN, 0.0, 1.0], [1.0, NAN, NAN]])
    draw = draw_mixup(MixupConfig(p=1.0, partners="sure-negatives"), targets, generator())
    assert draw.mixed.tolist() == [False, True, True, True]
    assert draw.partner[1:3].tolist() == [2, 1] and int(draw.partner[3]) != 3


def test_sure_negatives_want_labels():
    with pytest.raises(KitError, match="pass targets"):
        draw_mixup(MixupConfig(p=1.0, partners="sure-negatives"), 4, generator())


def test_the_chance_of_a_clip_multiplies_that_of_all():
    chance = torch.tensor([0.0, 1.0, 2.0]).repeat(2000)
    mixed = draw_mixup(MixupConfig(p=0.4), 6000, generator(), chance).mixed.float()
    shares = [float(mixed[i::3].mean()) for i in range(3)]
    assert shares[0] == 0 and abs(shares[1] - 0.4) < 0.05 and abs(shares[2] - 0.8) < 0.05


def test_shares_fades_and_centres_are_drawn_as_set():
    config = MixupConfig(p=1.0, low=0.1, high=0.4, fade_p=0.6, fade_centre=(0.4, 0.6), fade_steepness=(3, 5))
    draw = draw_mixup(config, 4000, generator())
    for values, low, high in ((draw.share, 0.1, 0.4), (draw.centre, 0.4, 0.6), (draw.steepness, 3, 5)):
        assert low <= float(values.min()) < low + 0.01 * high and 0.99 * high < float(values.max()) <= high
    assert abs(float(draw.fade.float().mean()) - 0.6) < 0.05
    beta = draw_mixup(MixupConfig(p=1.0, beta=0.4), 4000, generator()).share
    assert abs(float(beta.mean()) - 0.5) < 0.02 and abs(float(beta.var()) - 0.25 / 1.8) < 0.01
    assert torch.equal(beta, draw_mixup(MixupConfig(p=1.0, beta=0.4), 4000, generator()).share)


def test_a_fade_begins_with_the_clip_and_ends_with_its_partner():
    config = MixupConfig(p=1.0, fade_p=1.0, fade_steepness=(12, 12), fade_centre=(0.5, 0.5))
    waves = torch.stack([torch.ones(1000), -torch.ones(1000)])
    mixed = mix_waves(waves, draw_mixup(config, 2, generator()), config)
    assert float(mixed[0, 0]) > 0.999 and float(mixed[0, -1]) < -0.999 and abs(float(mixed[0].mean())) < 1e-3


def test_ranges_that_run_backwards_are_refused():
    for wrong in ({"low": 0.5, "high": 0.2}, {"fade_centre": (0.5,)}, {"fade_steepness": (5, 3)}):
        with pytest.raises(KitError, match="from low to high"):
            MixupConfig(**wrong)
