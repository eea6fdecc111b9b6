'''Mixed clips carry the weighted sum of their energies, and labels that keep true, false and unknown apart.'''

import itertools
import math
from dataclasses import replace

import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies, mix_into, mix_labels, mix_specs, mix_waves
from kit.core.errors import KitError

NAN = float('nan')
SMALL = {'sample_rate': 8000, 'n_fft': 256, 'hop_length': 128, 'n_mels': 20}
LOGS = [(1, 'ln'), (2, 'ln'), (1, 'db'), (2, 'db')]
LABEL_PAIRS = list(itertools.product([0.0, 1.0, NAN, 0.3, 0.8], repeat=2))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def next_as_partner(clips, config=None):
    '''A draw in which every clip is mixed with the next one.'''
    draw = draw_mixup(config or MixupConfig(p=1.0), torch.zeros(clips, 1), generator())
    return replace(draw, mixed=torch.ones(clips, dtype=torch.bool), partner=torch.arange(clips).roll(-1))


def slow_shares(config, draw, i, places):
    '''Slow definition of the weights of clip i and of its partner, place by place.'''
    for n in range(places):
        if draw.fade[i]:
            x = 2 * float(draw.steepness[i]) * ((n + 0.5) / places - float(draw.centre[i]))
            later = 1 / (1 + math.exp(-x))
            yield 1 - later, later
        else:
            share = float(draw.share[i])
            yield (1 - share if config.convex else 1.0), share


def slow_mix(values, config, draw):
    '''Slow definition of the weighted sum over the last axis. Shape: (B, ..., N) -> the same'''
    mixed = values.clone()
    for i in draw.mixed.nonzero().flatten().tolist():
        for n, (own, other) in enumerate(slow_shares(config, draw, i, values.shape[-1])):
            mixed[i, ..., n] = own * values[i, ..., n] + other * values[draw.partner[i], ..., n]
    return mixed


WAYS = [
    {},
    {'low': 0.1, 'high': 0.5},
    {'low': 0.1, 'high': 0.5, 'convex': True},
    {'beta': 0.4, 'convex': True},
    {'fade_p': 1.0},
    {'fade_p': 0.5, 'high': 0.9, 'low': 0.2},
]


@pytest.mark.parametrize('settings', WAYS, ids=str)
def test_waves_and_spectrograms_mix_by_the_weighted_sum(settings):
    config = MixupConfig(p=0.7, **settings)
    draw = draw_mixup(config, torch.zeros(9, 1), generator(4))
    assert 0 < int(draw.mixed.sum()) < 9
    waves = torch.randn(9, 31, generator=generator(), dtype=torch.float64)
    expected = slow_mix(waves, config, draw)
    torch.testing.assert_close(mix_waves(waves, draw, config), expected)
    mixed = mix_specs(torch.stack([waves, 2 * waves], dim=1), draw, config)
    torch.testing.assert_close(mixed, torch.stack([expected, 2 * expected], dim=1))
    assert torch.equal(mix_waves(waves, draw, config)[~draw.mixed], waves[~draw.mixed])


@pytest.mark.parametrize('settings', WAYS, ids=str)
@pytest.mark.parametrize('power, log', LOGS)
def test_energies_mix_by_the_weighted_sum(power, log, settings):
    frontend = FrontendConfig(**SMALL, power=power, log=log, log_offset=1e-6)
    config = MixupConfig(p=0.7, **settings)
    draw = draw_mixup(config, torch.zeros(9, 1), generator(4))
    energies = 10 ** (4 * torch.rand(9, 20, 7, generator=generator(), dtype=torch.float64) - 3)

    def in_log(energy):
        return (energy ** (power / 2) + 1e-6).log() if log == 'ln' else 10 * energy.log10()

    specs = in_log(energies)
    kept = specs.clone()
    mixed = mix_energies(specs, draw, config, frontend)
    torch.testing.assert_close(mixed, in_log(slow_mix(energies, config, draw)), rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed[~draw.mixed], specs[~draw.mixed])
    assert torch.equal(specs, kept), 'the input was written to'


@pytest.mark.parametrize('power, log', LOGS)
@pytest.mark.parametrize('kind', ['mel', 'stft'])
def test_mixing_spectrograms_is_mixing_sounds_that_do_not_overlap(power, log, kind):
    config = FrontendConfig(**SMALL, kind=kind, power=power, log=log)
    frontend = Frontend(config)
    t = torch.arange(4000) / 8000
    low, high = 0.3 * torch.sin(2 * math.pi * 400 * t), 0.2 * torch.sin(2 * math.pi * 2600 * t)
    one, other, both = (frontend.spectrograms([wave])[0] for wave in (low, high, low + high))
    mixed = mix_energies(torch.stack([one, other]), next_as_partner(2), MixupConfig(), config)
    inner = slice(3, -3)
    loud = both[:, inner] > both[:, inner].amax() - (40 if log == 'db' else 4.6 * power)
    in_db = 1.0 if log == 'db' else (20 if power == 1 else 10) / math.log(10)
    assert float(((mixed[0, :, inner] - both[:, inner])[loud] * in_db).abs().max()) < 1.0
    torch.testing.assert_close(mixed[0], mixed[1])


@pytest.mark.parametrize('power, log', LOGS)
def test_silence_and_full_scale_mix_to_finite_numbers(power, log):
    config = FrontendConfig(**SMALL, power=power, log=log)
    waves = [torch.zeros(2000), torch.ones(2000), torch.zeros(2000)]
    specs = torch.stack(Frontend(config).spectrograms(waves))
    mixed = mix_energies(specs, next_as_partner(3), MixupConfig(), config)
    assert bool(mixed.isfinite().all())
    loud = specs[1] > (-60 if log == 'db' else -5)
    torch.testing.assert_close(mixed[0][loud], specs[1][loud], rtol=0, atol=1e-2)


def slow_label(a, b, share, how, masks):
    '''Slow definition of a mixed label, by cases.'''
    if masks == 'either' and math.isnan(a) != math.isnan(b):
        a, b = (0.0 if math.isnan(x) else x for x in (a, b))
    if how == 'weighted':
        return (1 - share) * a + share * b
    if 1.0 in (a, b):
        return 1.0
    if math.isnan(a) or math.isnan(b):
        return NAN
    return min(1.0, a + b) if how == 'sum' else max(a, b)


@pytest.mark.parametrize('fade', [False, True])
@pytest.mark.parametrize('masks', ['known', 'either'])
@pytest.mark.parametrize('how', ['union', 'weighted', 'sum'])
def test_labels_mix_by_their_definition_and_unknown_never_turns_into_false(how, masks, fade):
    config = MixupConfig(p=1.0, low=0.3, high=0.3, labels=how, masks=masks, fade_p=float(fade))
    targets = torch.tensor(LABEL_PAIRS, dtype=torch.float64).T
    mixed = mix_labels(targets, next_as_partner(2, config), config)
    how = 'union' if fade else how
    expected = torch.tensor([slow_label(a, b, 0.3, how, masks) for a, b in LABEL_PAIRS], dtype=torch.float64)
    torch.testing.assert_close(mixed[0], expected, equal_nan=True)
    if masks == 'known':
        assert not bool((mixed[0][targets.isnan().any(0)] == 0).any())
    one_mixed = replace(next_as_partner(2, config), mixed=torch.tensor([True, False]))
    kept = mix_labels(targets, one_mixed, config)[1]
    torch.testing.assert_close(kept, targets[1], rtol=0, atol=0, equal_nan=True)


def test_labels_stay_probabilities_whatever_the_shares():
    config = MixupConfig(p=1.0, low=0.0, labels='weighted')
    mixed = mix_labels(torch.ones(500, 3), draw_mixup(config, torch.zeros(500, 1), generator()), config)
    torch.testing.assert_close(mixed, torch.ones(500, 3))
    assert float(mixed.max()) <= 1.0


def test_no_clip_is_mixed_with_itself_and_every_clip_is_a_partner_once():
    for clips, seed in itertools.product((2, 3, 8, 33), range(20)):
        draw = draw_mixup(MixupConfig(p=1.0), torch.zeros(clips, 1), generator(seed))
        assert bool(draw.mixed.all())
        assert sorted(draw.partner.tolist()) == list(range(clips))
        assert not bool((draw.partner == torch.arange(clips)).any())
    assert not bool(draw_mixup(MixupConfig(p=1.0), torch.zeros(1, 1), generator()).mixed.any())


def test_crops_to_be_mixed_in_are_the_partners_of_theirs_and_stay_as_they_are():
    drawn = draw_mixup(MixupConfig(p=0.5), torch.zeros(5, 1), generator(1))
    draw = mix_into(drawn, torch.tensor([3, 0]))
    assert draw.mixed.tolist() == [True, *drawn.mixed[1:3].tolist(), True, bool(drawn.mixed[4]), False, False]
    assert draw.partner[[3, 0]].tolist() == [5, 6] and torch.equal(draw.partner[1:3], drawn.partner[1:3])
    assert torch.equal(draw.share[:5], drawn.share), 'the shares are those that were drawn'


@pytest.mark.parametrize('p', [0.0, 0.4, 0.5])
def test_the_chance_of_a_clip_multiplies_the_probability(p):
    chance = torch.tensor([0.0, 1.0, 2.0]).repeat(2000)
    mixed = draw_mixup(MixupConfig(p=p), torch.zeros(6000, 1), generator(), chance).mixed.float()
    shares = [float(mixed[i::3].mean()) for i in range(3)]
    assert shares == pytest.approx([0, p, 2 * p], abs=0.05)
    assert shares[0] == 0 and (p < 0.5 or shares[2] == 1)


def test_the_same_seed_draws_the_same_and_leaves_other_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    config = MixupConfig(p=0.5, beta=0.4)
    one, again, other = (vars(draw_mixup(config, torch.zeros(50, 1), generator(seed))) for seed in (7, 7, 8))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one['partner'], other['partner'])
    assert torch.equal(torch.rand(3), expected)


def test_shares_fades_and_centres_are_drawn_as_set():
    config = MixupConfig(p=1.0, low=0.1, high=0.4, fade_p=0.6)
    draw = draw_mixup(config, torch.zeros(4000, 1), generator())
    for values, low, high in ((draw.share, 0.1, 0.4), (draw.centre, 0.25, 0.75), (draw.steepness, 3, 12)):
        assert low <= float(values.min()) < low + 0.01 * high and 0.99 * high < float(values.max()) <= high
    assert abs(float(draw.fade.float().mean()) - 0.6) < 0.05
    beta = draw_mixup(MixupConfig(p=1.0, beta=0.4), torch.zeros(4000, 1), generator()).share
    assert abs(float(beta.mean()) - 0.5) < 0.02 and abs(float(beta.var()) - 0.25 / 1.8) < 0.01


def test_most_known_false_labels_survive_with_sure_negatives():
    labels = torch.randint(3, (40, 12), generator=generator(1))
    targets = torch.tensor([0.0, 1.0, NAN])[labels]
    kept = {}
    for partners in ('any', 'sure-negatives'):
        config = MixupConfig(p=1.0, partners=partners)
        draw = draw_mixup(config, targets, generator(2))
        kept[partners] = int((mix_labels(targets, draw, config) == 0).sum())
        assert not bool((draw.partner == torch.arange(40)).any())
    false = (targets == 0).float()
    most = (false @ false.T).fill_diagonal_(-1).amax(1)
    assert kept['sure-negatives'] == int(most.sum()) > kept['any']


def test_a_clip_is_not_mixed_where_all_its_known_negatives_would_be_lost():
    targets = torch.tensor([[0.0, NAN, 1.0], [NAN, 0.0, NAN], [NAN, 0.0, 1.0], [1.0, NAN, NAN]])
    config = MixupConfig(p=1.0, partners='sure-negatives')
    draw = draw_mixup(config, targets, generator())
    assert draw.mixed.tolist() == [False, True, True, True]
    assert draw.partner[1:3].tolist() == [2, 1] and int(draw.partner[3]) != 3


def test_ranges_that_run_backwards_are_refused():
    with pytest.raises(KitError, match='from low to high'):
        MixupConfig(low=0.5, high=0.2)
