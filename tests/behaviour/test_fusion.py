'''Batch norms are fused into convolutions for prediction, only where the logits stay equal.'''

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit.audio.decode import Sound
from kit.infer.backend import fuse_norms
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.models.checkpoint import load_tagger
from kit.models.families import build_network
from kit.models.network import InputShape
from tests.behaviour.trained import Trained, loud_tagger

CPU = torch.device('cpu')
SHAPE = InputShape(2, 32)
NETWORKS = {
    'max-pyramid': ({'family': 'max-pyramid', 'width': 8, 'blocks': 3}, 9),
    'max-pyramid-stft': ({'family': 'max-pyramid', 'dims': 1, 'width': 8, 'blocks': 3}, 9),
    'skip-attention': ({'family': 'skip-attention', 'width': 4}, 12),
    'axis-pool': ({'family': 'axis-pool', 'width': 16}, 9),
    'timm': ({'family': 'timm', 'name': 'test_efficientnet'}, 13),
    'resnet': ({'family': 'timm', 'name': 'resnet10t'}, 14),
}


def with_statistics(network):
    '''Give batch norms the statistics and weights that training might, of both signs.'''
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 1, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            with torch.no_grad():
                module.weight.normal_(0, 1, generator=generator)
                module.bias.normal_(0, 1, generator=generator)
    return network.eval()


def norms_that_run(network, spec):
    '''Count the batch norms that a forward runs.'''
    ran = []
    hooks = [
        module.register_forward_hook(lambda *_: ran.append(1))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    ]
    network(spec)
    for hook in hooks:
        hook.remove()
    return len(ran)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_fused_network_has_equal_logits_and_fewer_norms(name):
    settings, n_fused = NETWORKS[name]
    network = with_statistics(build_network(settings, SHAPE, 5))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    spec = torch.randn(3, 2, 32, 77)
    with torch.inference_mode():
        expected = network(spec)
        fused, message = fuse_norms(network, 2, 32)
        assert message == f'{n_fused} batch norms fused into convolutions'
        output = fused(spec)
        assert norms_that_run(fused, spec) == norms_that_run(network, spec) - n_fused
        assert torch.equal(network(spec), expected), 'the network itself must stay as it is'
    scale = max(1.0, float(expected.abs().max()))
    assert float((output - expected).abs().max()) <= 1e-5 * scale
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    own = {id(tensor) for tensor in network.parameters()}
    shared = [tensor for tensor in fused.parameters() if id(tensor) in own]
    assert len(shared) == len(list(fused.parameters())) - 2 * n_fused, 'other tensors take no memory twice'


class Reader(nn.Module):
    '''A convolution and a batch norm, whose input something else may read as well.'''

    min_frames = 4

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, spec):
        x = self.conv(spec)
        if self.form == 'residual':
            return x + self.norm(x)
        if self.form == 'size':
            return self.norm(x) * x.shape[-1]
        if self.form == 'joined':
            return torch.cat([x, self.norm(x)], dim=1)
        if self.form == 'twice':
            return self.norm(self.norm(x))
        if self.form == 'shared':
            return self.norm(x) + F.conv2d(spec, self.conv.weight, padding=1)
        return self.norm(F.relu(x)) if self.form == 'between' else self.norm(x)


@pytest.mark.parametrize('form', ['plain', 'size', 'residual', 'joined', 'twice', 'shared', 'between'])
def test_only_a_norm_that_alone_reads_its_convolution_is_fused(form):
    network = build_network({'family': 'max-pyramid', 'width': 4, 'blocks': 2}, SHAPE, 5)
    reader = Reader(form)
    network.backbone.blocks = nn.ModuleList([nn.Identity(), nn.Sequential(reader, nn.MaxPool2d(8))])
    width = 8 if form == 'joined' else 4
    network.head = type(network.head)(replace(network.head.config, norm_first=False), [width], 5)
    with_statistics(network)
    with torch.inference_mode():
        fused, message = fuse_norms(network, 2, 32)
        spec = torch.randn(2, 2, 32, 40)
        torch.testing.assert_close(fused(spec), network(spec), rtol=1e-5, atol=1e-5)
    is_fused = form in ('plain', 'size')
    assert isinstance(fused.backbone.blocks[1][0].norm, nn.BatchNorm2d) != is_fused
    assert message.startswith('1 ' if is_fused else '0 ')


class Counting(nn.Identity):
    '''Adds to the logits how often it was called: no two forwards are equal.'''

    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return x + 10.0 * Counting.calls


def test_a_network_whose_fused_logits_differ_predicts_unfused(trained: Trained):
    tagger = load_tagger(trained.mel[0])
    plain = tagger.network.eval()
    plain.head.classifier.append(Counting())
    with torch.inference_mode():
        network, message = fuse_norms(plain, len(tagger.card.frontend.channel_names), tagger.card.frontend.n_bins)
    assert network is plain and message.startswith('not fused: logits of noise differed by')


def test_a_custom_network_and_another_precision_predict_unfused(trained: Trained):
    custom = loud_tagger()
    predictor = Predictor(custom, CPU, fuse=True)
    predictor.predict([torch.zeros(30, 40)])
    assert predictor.network is custom.network and predictor.fusion == 'not fused: a custom network'
    tagger = load_tagger(trained.mel[0])
    assert Predictor(tagger, CPU, precision='bfloat16', fuse=True).fusion == 'off'
    assert Predictor(tagger, CPU).fusion == 'off'


def test_a_fused_prediction_equals_that_of_validation_and_leaves_the_tagger(trained: Trained):
    tagger = load_tagger(trained.mel[0])
    tagger.train()
    specs = [torch.randn(tagger.card.frontend.rows, frames) for frames in (50, 90, 400)]
    plain = Predictor(tagger, CPU).predict(specs)
    predictor = Predictor(tagger, CPU, fuse=True)
    fused = predictor.predict(specs)
    assert 'batch norms fused' in predictor.fusion and not predictor.fusion.startswith('0')
    for a, b in zip(plain, fused, strict=True):
        assert np.abs(a.logits - b.logits).max() <= 1e-5 * max(1.0, np.abs(a.logits).max())
    assert tagger.network.training and all(module.training for module in tagger.network.modules())
    assert predictor.network is not tagger.network
    again = Predictor(tagger, CPU, fuse=True).predict(specs)
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(fused, again, strict=True))


def test_predictions_of_a_tagger_follow_its_weights(trained: Trained, tmp_path):
    '''A caller may train a tagger between two predictions.'''
    tagger = load_tagger(trained.mel[0])
    sounds = [Sound(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), 8000)]
    first = predict_clips(tagger, sounds).probabilities
    with torch.no_grad():
        for parameter in tagger.network.parameters():
            parameter.mul_(0.5)
    assert np.abs(predict_clips(tagger, sounds).probabilities - first).max() > 1e-3
