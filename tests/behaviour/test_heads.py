'''Heads: pools and attention agree with slow definitions, stay finite, and read all of every map.'''

import math

import pytest
import torch

from kit.core.errors import KitError
from kit.models.network import (
    POOLS,
    FrameAttention,
    GeneralisedMean,
    Head,
    HeadConfig,
    aligned_sequence,
    classifier_layers,
)

POOL_NAMES = (*POOLS, 'gem', 'attention')


def noise(*shape, seed=0):
    '''Gaussian noise.'''
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_maps():
    '''A fine map of 3 channels and a coarse one of 5.'''
    return [noise(2, 3, 4, 20), noise(2, 5, 2, 10)]


def build_head(widths=(3, 5), classes=4, **settings):
    '''A head in evaluation mode whose batch norms have run.'''
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = Head(HeadConfig(**settings), widths, classes)
        with torch.no_grad():
            for seed in range(3):
                head.train()([noise(8, width, 4, 9, seed=seed) for width in widths])
    return head.eval()


def slow_pool(name, rows):
    '''Slow definition of a pool on one channel of one clip, given as lists [M][N].'''
    cells = [value for row in rows for value in row]
    mean = sum(cells) / len(cells)
    positive = [value for value in cells if value > 0]
    return {
        'mean': [mean],
        'max': [max(cells)],
        'mean-max': [mean, max(cells)],
        'time-max': [sum(map(max, rows)) / len(rows)],
        'positive-mean': [sum(positive) / len(positive) if positive else 0.0],
        'gem': [(sum(max(value, 1e-6) ** 3 for value in cells) / len(cells)) ** (1 / 3)],
    }[name]


@pytest.mark.parametrize('name', [*POOLS, 'gem'])
def test_a_pool_agrees_with_its_definition(name):
    maps = noise(2, 3, 4, 5)
    maps[1, 2] = -maps[1, 2].abs()
    pool = GeneralisedMean() if name == 'gem' else POOLS[name]
    slow = torch.tensor([[slow_pool(name, channel) for channel in clip] for clip in maps.tolist()])
    torch.testing.assert_close(pool(maps), slow.transpose(1, 2).flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', POOL_NAMES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_a_pool_of_a_long_map_of_large_values_is_finite(name, dtype):
    for value in (60.0, 0.0, -60.0):
        head = Head(HeadConfig(pool=name), (2,), 3).to(dtype)
        maps = torch.full((1, 2, 8, 1024), value, dtype=dtype)
        assert bool(torch.as_tensor(head.features([maps])).isfinite().all()), value


@pytest.mark.parametrize('power', [1.0, 3.0, 30.0, 1e4])
@pytest.mark.parametrize('scale', [0.0, -1.0, 1e-30, 1e6])
def test_the_generalised_mean_has_finite_gradients_of_silence_and_noise(power, scale):
    pool = GeneralisedMean()
    pool.power.data.fill_(power)
    maps = (scale * noise(2, 3, 4, 5)).requires_grad_()
    pooled = pool(maps)
    pooled.sum().backward()
    assert all(bool(x.isfinite().all()) for x in (pooled, maps.grad, pool.power.grad))


def test_the_generalised_mean_has_the_gradient_of_its_definition():
    pool = GeneralisedMean()
    maps = noise(1, 1, 3, 4).abs().requires_grad_()
    gradients = torch.autograd.grad(pool(maps).sum(), [maps, pool.power])
    x = maps.detach().double().requires_grad_()
    power = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    slow = torch.autograd.grad(x.pow(power).mean().pow(1 / power), [x, power])
    for gradient, expected in zip(gradients, slow, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def test_attention_over_time_agrees_with_its_definition():
    torch.manual_seed(0)
    head = FrameAttention(6, 4).double()
    x = 2 * noise(3, 6, 9).double()
    with torch.no_grad():
        clip, frames, *_ = head(x)
        scores = head.classifier(x)
        weights = head.attention(x)
        slow = torch.empty(3, 4)
        for b in range(3):
            for k in range(4):
                weight = [math.exp(value) for value in weights[b, k]]
                prob = [1 / (1 + math.exp(-value)) for value in scores[b, k]]
                slow[b, k] = sum(w * p for w, p in zip(weight, prob, strict=True)) / sum(weight)
    torch.testing.assert_close(clip.sigmoid().float(), slow, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(frames, scores.transpose(1, 2).float())


@pytest.mark.parametrize('scale', [0.0, 1.0, 30.0, 1e4])
def test_attention_over_time_gives_a_finite_logit_between_the_lowest_and_the_highest_frame(scale):
    torch.manual_seed(0)
    x = (scale * noise(5, 6, 11)).requires_grad_()
    clip, frames, *_ = FrameAttention(6, 4)(x)
    slack = 1e-4 * max(1.0, float(frames.detach().abs().max()))
    assert bool((clip >= frames.amin(1) - slack).all())
    assert bool((clip <= frames.amax(1) + slack).all())
    clip.sum().backward()
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize('settings', [{}, {'recurrent': 'gru', 'recurrent_width': 3}, {'hidden': 7}])
def test_only_attention_gives_logits_of_frames_at_the_rate_of_the_deepest_map(settings):
    clip, frames, *_ = build_head(pool='attention', **settings)(two_maps())
    assert clip.shape == (2, 4) and frames.shape == (2, 10, 4)
    assert build_head(pool='mean')(two_maps()).frames is None


@pytest.mark.parametrize('hidden', [0, 7])
def test_attention_with_norm_first_normalises_each_feature_over_clips_and_frames(hidden):
    head = build_head(pool='attention', hidden=hidden, norm_first=True, dropout=0.0).train()
    maps = [3 * x + 5 for x in two_maps()]
    normalized = head.projection[0](aligned_sequence(maps))
    torch.testing.assert_close(normalized.mean((0, 2)), torch.zeros(8), rtol=0, atol=1e-4)
    plain = build_head(pool='attention', hidden=hidden, dropout=0.0)
    plain.projection.load_state_dict(
        {f'{int(name[0]) - 1}{name[1:]}': x for name, x in head.projection.state_dict().items() if name[0] > '0'}
    )
    plain.classifier.load_state_dict(head.classifier.state_dict())
    torch.testing.assert_close(head(maps).frames, plain([normalized[..., None, :]]).frames)


@pytest.mark.parametrize('hidden', [0, 7])
def test_attention_over_time_has_dropout_in_training_only(hidden):
    head = build_head(pool='attention', hidden=hidden, dropout=0.9)
    maps = two_maps()
    assert torch.equal(head(maps).clip, head(maps).clip)
    head.train()
    assert not torch.allclose(head(maps).clip, head(maps).clip, atol=1e-3)


def test_maps_are_aligned_at_the_frame_rate_of_the_deepest():
    fine, single, coarse = noise(2, 3, 4, 9), noise(2, 1, 1), noise(2, 5, 2, 4)
    sequence = aligned_sequence([fine, single, coarse])
    assert sequence.shape == (2, 9, 4)
    for n in range(4):
        first, end = n * 9 // 4, -(-(n + 1) * 9 // 4)
        torch.testing.assert_close(sequence[:, :3, n], fine[..., first:end].mean((2, 3)))
        torch.testing.assert_close(sequence[:, 3, n], single[:, 0, 0])
        torch.testing.assert_close(sequence[:, 4:, n], coarse[..., n].mean(2))


@pytest.mark.parametrize('kind', ['gru', 'lstm'])
@pytest.mark.parametrize('embedding', [0, 6])
def test_a_recurrence_runs_in_both_directions_before_the_pool(kind, embedding):
    head = build_head((5,), pool='mean', recurrent=kind, recurrent_width=3, embedding=embedding)
    x = noise(2, 5, 4, 8)
    sequence = head.recurrence(x.mean(2).transpose(1, 2))[0]
    torch.testing.assert_close(head.features([x]), head.embedding(sequence).mean(1))
    assert head.features([x]).shape[1] == (embedding or 6)
    for end in (0, -1):
        other = x.clone()
        other[..., end] += 3.0
        difference = head.recurrence(other.mean(2).transpose(1, 2))[0] - sequence
        assert bool((difference.abs().amax((0, 2)) > 1e-6).all())


@pytest.mark.parametrize('pool', POOL_NAMES)
@pytest.mark.parametrize('settings', [{}, {'recurrent': 'lstm', 'recurrent_width': 3}])
def test_every_map_changes_the_logits(pool, settings):
    head = build_head(pool=pool, **settings)
    logits = head(two_maps()).clip.detach()
    for i in range(2):
        maps = two_maps()
        maps[i] += 2.0
        assert float((head(maps).clip.detach() - logits).abs().amin()) > 1e-6


def test_a_classifier_has_the_layers_of_its_settings():
    def layers(**settings):
        return [type(layer).__name__ for layer in classifier_layers(HeadConfig(**settings), 10, 4)]

    assert layers() == ['Dropout', 'Linear']
    assert layers(hidden=6) == ['Dropout', 'Linear', 'PReLU', 'BatchNorm1d', 'Dropout', 'Linear']
    first_norm = ['BatchNorm1d', 'Linear', 'BatchNorm1d', 'PReLU', 'Dropout', 'Linear']
    assert layers(hidden=6, norm_first=True) == first_norm
    wide = classifier_layers(HeadConfig(hidden=None, dropout=0.4), 10, 4)
    assert wide[1].out_features == 10 and (wide[0].p, wide[4].p) == (0.4, 0.2)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'pool': 'attenton'}, r"HeadConfig\.pool is 'attenton': did you mean 'attention'"),
        ({'recurrent': 'rnn'}, r"HeadConfig\.recurrent is 'rnn'"),
        ({'norm_first': True}, r'norm_first needs a hidden layer.*set norm_first=False'),
        ({'embedding': 4}, 'embedding=4 needs a recurrence: set recurrent'),
    ],
)
def test_settings_that_are_wrong_or_unused_are_refused_with_the_cure(settings, message):
    with pytest.raises(KitError, match=message):
        HeadConfig(**settings)
