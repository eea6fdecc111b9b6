'''Axis-pool: its size, the axis of each pooling, wave statistics and clip length in extra rows.'''

import pytest
import torch

from kit.core.errors import KitError
from kit.models.families import build_network
from kit.models.network import InputShape
from tests.behaviour.receptive import receptive_field

BINS = 17
PLAIN = InputShape(2, BINS)
WITH_EXTRA_ROWS = InputShape(2, BINS, n_extra_rows=13)


def build_small(shape=WITH_EXTRA_ROWS):
    '''A small network of five classes in evaluation mode whose batch norms have run.'''
    settings = {'family': 'axis-pool', 'width': 32, 'stat_steps': 6, 'stat_width': 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(settings, shape, 5)
        with torch.no_grad():
            for seed in range(2):
                network.train()(noise(shape, 8, 40, seed))
    return network.eval()


def noise(shape=WITH_EXTRA_ROWS, clips=2, frames=41, seed=0):
    '''Noise in an input's shape; extra rows are the same in every channel, the length in every frame.'''
    generator = torch.Generator().manual_seed(seed)
    extra = torch.randn(clips, 1, shape.n_extra_rows, frames, generator=generator)
    extra[:, :, 12:] = extra[:, :, 12:, :1]
    bins = torch.randn(clips, shape.channels, shape.bins, frames, generator=generator)
    return torch.cat([bins, extra.expand(-1, shape.channels, -1, -1)], dim=2)


def slow_count(extra_rows, channels=1, stat_width=64, classes=80):
    '''Slow definition: the weights of every layer, added up: a stem, then four blocks of two.'''
    total, before = 9 * channels * 64 + 2 * 64, 64
    for w in (96, 128, 256, 512):
        total += 9 * before * w + 2 * w + 9 * w * w + 2 * w
        before = w
    if extra_rows:
        total += 2 * 12 + 2 * 3 * stat_width * (12 + stat_width + 2)
        before += 2 * stat_width + 1
    return total + (before + 1) * classes


@pytest.mark.parametrize('extra_rows', [0, 13])
def test_the_size_agrees_with_a_count_by_hand(extra_rows):
    with torch.device('meta'):
        network = build_network({'family': 'axis-pool'}, InputShape(1, 64, n_extra_rows=extra_rows), 80)
    assert sum(p.numel() for p in network.parameters()) == slow_count(extra_rows)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 10


@pytest.mark.parametrize('frames', [1, 7, 8, 9, 63, 431])
def test_maps_of_any_length_have_the_deepest_last(frames):
    network = build_small()
    maps = network.backbone(noise(frames=frames)).main
    assert [x.shape for x in maps] == [(2, 6, 1, 6), (2, 1, 1, 1), (2, 32, 3, -(-frames // 8))]
    assert [x.shape[1] for x in maps] == network.backbone.widths
    assert network.backbone.strides == [0, 0, 8] and network.min_frames == 8


def test_pooling_takes_the_mean_over_time_and_the_maximum_over_frequency():
    blocks = build_small(PLAIN).backbone.blocks
    kinds = [type(layer).__name__ for layer in blocks]
    assert kinds.count('AvgPool2d') == kinds.count('MaxPool2d') == 3
    i = kinds.index('AvgPool2d')
    x = torch.randn(1, 2, 5, 7)
    pooled = blocks[i + 1](blocks[i](x))
    for m in range(3):
        for n in range(4):
            cell = x[0, :, 2 * m : 2 * m + 2, 2 * n : 2 * n + 2]
            torch.testing.assert_close(pooled[0, :, m, n], cell.mean(2).amax(1))


def test_the_head_takes_the_mean_over_frequency_of_maxima_over_time():
    network = build_small()
    stats, length, deepest = network.backbone(noise()).main
    features = torch.cat([stats[:, :, 0].amax(2), length[:, :, 0, 0], deepest.amax(3).mean(2)], dim=1)
    torch.testing.assert_close(network.head.classifier(features), network(noise()))


def test_statistics_are_averaged_to_steps_normalised_and_read_in_both_directions():
    backbone, spec = build_small().backbone, noise(frames=20)
    steps = []
    for n in range(6):
        first, end = n * 20 // 6, -(-(n + 1) * 20 // 6)
        steps.append(spec[:, 0, BINS : BINS + 12, first:end].mean(2))
    norm = backbone.stat_norm
    normalised = (torch.stack(steps, 1) - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    slow = backbone.stat_gru(normalised * norm.weight + norm.bias)[0]
    torch.testing.assert_close(backbone(spec).main[0][:, :, 0], slow.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('rows', 'changed'),
    [
        (slice(0, BINS), 2),
        (slice(BINS - 1, BINS), 2),
        (slice(BINS, BINS + 12), 0),
        (slice(BINS + 11, BINS + 12), 0),
        (slice(BINS + 12, None), 1),
    ],
)
def test_bins_statistics_and_length_each_change_their_own_map(rows, changed):
    backbone, spec = build_small().backbone, noise()
    other = spec.clone()
    other[:, :, rows] += 2.0
    pairs = zip(backbone(other).main, backbone(spec).main, strict=True)
    assert [not torch.equal(a, b) for a, b in pairs] == [k == changed for k in range(3)]


def test_the_length_survives_padding_with_the_floor():
    backbone, spec = build_small().backbone, noise()
    spec[..., 30:] = -80.0
    assert torch.equal(backbone(spec).main[1][:, 0, 0, 0], spec[:, 0, -1, 0])


@pytest.mark.parametrize('shape', [PLAIN, WITH_EXTRA_ROWS])
def test_the_receptive_field_is_the_sum_of_its_layers(shape):
    by_hand = 1 + 2 + sum(4 * 2**k for k in range(4)) + sum(2**k for k in range(3))
    assert receptive_field(build_small(shape).backbone, shape) == by_hand == 70


def test_other_extra_rows_and_too_few_bins_are_refused():
    with pytest.raises(KitError, match=r'axis-pool reads 0 or 13 extra rows, got 12: set frontend\.extra_rows'):
        build_small(InputShape(1, 64, n_extra_rows=12))
    with pytest.raises(KitError, match='axis-pool needs at least 8 frequency bins'):
        build_small(InputShape(1, 7, n_extra_rows=13))
