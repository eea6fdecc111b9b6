'''The max-pyramid: its size, its maps of any length, its receptive field, no frame lost.'''

import pytest
import torch
from torch import nn

from kit.core.errors import KitError
from kit.models.backbones import FastPReLU, PyramidConfig
from kit.models.families import build_network
from kit.models.network import InputShape
from tests.behaviour.receptive import receptive_field

CONFIGS = {
    '2-D': (PyramidConfig(blocks=3, width=6), InputShape(2, 20)),
    '1-D': (PyramidConfig(dims=1, blocks=3, width=6), InputShape(1, 33)),
}


def build(settings, shape, classes=5):
    '''A pyramid with its head.'''
    return build_network({'family': 'max-pyramid', **settings.to_dict()}, shape, classes)


def build_small(name):
    '''A small network of five classes in evaluation mode whose batch norms have run.'''
    settings, shape = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(settings, shape).train()
        with torch.no_grad():
            for _ in range(3):
                network(torch.randn(8, shape.channels, shape.bins, 40))
    return network.eval()


def noise(name, clips=2, frames=41):
    '''Noise in the shape a network reads. Shape: -> (clips, C, M, frames)'''
    _, shape = CONFIGS[name]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(clips, shape.channels, shape.bins, frames, generator=generator)


def slow_count(settings, shape, classes):
    '''Slow definition: the weights of every layer, added up.'''
    kernel = {1: 3, 2: 9}[settings.dims]
    before = shape.channels if settings.dims == 2 else shape.channels * shape.bins
    widths = [round(settings.width * settings.growth**k) for k in range(settings.blocks)]
    total = 0
    for w in widths:
        total += 2 * before + kernel * before * w + 2 * w + 1
        total += (w * w + 2 * w + 1) + (kernel * w * w + 2 * w + 1) + (w * w + 2 * w + 1)
        before = w
    features = sum(widths[1:])
    return total + 2 * features + features * (features + 1) + 2 * features + 1 + (features + 1) * classes


@pytest.mark.parametrize('name', [*CONFIGS, 'published'])
def test_the_size_agrees_with_a_count_by_hand(name):
    settings, shape = CONFIGS.get(name, (PyramidConfig(), InputShape(2, 128)))
    with torch.device('meta'):
        count = sum(p.numel() for p in build(settings, shape, 80).parameters())
    assert count == slow_count(settings, shape, 80)
    assert name != 'published' or round(count / 1e6, 2) == 9.25


@pytest.mark.parametrize('name', CONFIGS)
def test_each_map_has_half_the_rows_and_frames_rounded_up(name):
    settings, shape = CONFIGS[name]
    backbone = build_small(name).backbone
    for frames in (1, 2, 7, 8, 9, 63, 64, 65):
        with torch.inference_mode():
            maps = backbone(noise(name, 1, frames)).main
        assert len(maps) == settings.blocks - 1
        for k, x in enumerate(maps):
            stride = 2 ** (k + 2)
            rows = [-(-shape.bins // stride)] if settings.dims == 2 else []
            assert [*x.shape[2:]] == [*rows, -(-frames // stride)]
            assert backbone.strides[k] == stride and backbone.widths[k] == x.shape[1]
    assert backbone.min_frames == 2**settings.blocks


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('frames', [1, 9, 33, 41])
def test_an_odd_last_frame_changes_every_map_and_the_logits(name, frames):
    network, spec = build_small(name), noise(name, 1, frames)
    louder = spec.clone()
    louder[..., -1] += 30.0
    with torch.inference_mode():
        before = [network(spec), *network.backbone(spec).main]
        after = [network(louder), *network.backbone(louder).main]
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize('name', ['2-D', '1-D'])
def test_the_receptive_field_is_the_sum_of_its_layers_and_measuring_leaves_the_backbone_alone(name):
    settings, shape = CONFIGS[name]
    backbone = build_small(name).train().backbone
    by_hand = 1 + sum(2 * 2**k + 2**k + 2 * 2 ** (k + 1) for k in range(settings.blocks))
    assert receptive_field(backbone, shape) == by_hand == 50
    assert backbone.training and all(bool(p.isfinite().all()) for p in backbone.parameters())


def test_a_plain_prelu_and_the_fast_one_are_the_same_function_in_training_and_evaluation():
    fast, plain = FastPReLU(init=0.3), nn.PReLU(init=0.3)
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        results = []
        for layer in (fast.train(training), plain.train(training)):
            layer.zero_grad()
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y.square().sum().backward()
            results.append((y.detach(), leaf.grad, layer.weight.grad.clone()))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_settings_and_inputs_that_make_no_network_are_refused_with_the_cure():
    with pytest.raises(KitError, match=r'max-pyramid needs at least 32 frequency bins.*got 20: raise n_mels'):
        build(PyramidConfig(blocks=5), InputShape(1, 20))
    with pytest.raises(KitError, match=r'max-pyramid reads 0 extra rows, got 13: set frontend\.extra_rows'):
        build(PyramidConfig(), InputShape(1, 128, n_extra_rows=13))
    with pytest.raises(KitError, match=r'dims is 3.*1, 2'):
        PyramidConfig(dims=3)
