'''timm backbones: measured strides, local weights or a clear refusal, any number of channels, never the network.'''

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import build_network, complete_network
from kit.models.network import InputShape, meta_device
from kit.models.tagger import TaggerCard, build_tagger
from kit.models.timm_backbone import TimmBackbone, TimmConfig, load_pretrained
from kit.train.fold_training import new_tagger
from kit.train.recipes import find_recipe
from tests.behaviour.training import clips_of

SMALL = 'test_efficientnet.r160_in1k'
FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=32)


def build_small(channels=1, bins=32, **settings):
    '''A small network of five classes, in evaluation mode.'''
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {'family': 'timm', 'name': SMALL, **settings}
        return build_network(settings, InputShape(channels, bins), 5).eval()


def noise(*shape):
    '''Gaussian noise.'''
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def meta_backbone(name, channels=1, bins=128, **settings):
    '''A backbone on the meta device: shapes without memory.'''
    with torch.device('meta'):
        return TimmBackbone(TimmConfig(name=name, **settings), InputShape(channels, bins))


def count(module):
    '''The number of weights.'''
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    '''A file as timm publishes them, a state dict of three channels and 1000 classes, and its tensors.'''
    import timm

    torch.manual_seed(7)
    tensors = timm.create_model(SMALL, pretrained=False).state_dict()
    path = tmp_path_factory.mktemp('pretrained') / 'small.pth'
    torch.save(tensors, path)
    return path, tensors


def test_sizes_are_the_published_ones_without_their_classifiers():
    assert round(count(meta_backbone('tf_efficientnet_b0.ns_jft_in1k', 3)) / 1e6, 2) == 4.01
    assert round(count(meta_backbone('rexnet_150.nav_in1k', 3)) / 1e6, 2) == 7.81
    one, two, three = (count(meta_backbone(SMALL, channels)) for channels in (1, 2, 3))
    assert two - one == three - two == 9 * 24
    assert count(build_small()) == one + 5 * 256 + 5


@pytest.mark.parametrize(
    ('name', 'width', 'stride', 'min_frames'),
    [
        ('tf_efficientnet_b0.ns_jft_in1k', 1280, 32, 32),
        ('test_resnet.r160_in1k', 96, 32, 32),
        ('selecsls42', 1280, 64, 64),
        ('inception_v3', 2048, 32, 96),
    ],
)
def test_width_stride_and_shortest_input_are_measured(name, width, stride, min_frames):
    for _ in range(2):
        backbone = meta_backbone(name)
        assert (*backbone.widths, *backbone.strides, backbone.min_frames) == (width, stride, min_frames)
        assert backbone.training and backbone.model.training


def test_measuring_draws_no_random_numbers_the_first_time_or_later():
    settings, shape = TimmConfig(name='test_resnet'), InputShape(1, 77)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        backbone = TimmBackbone(settings, shape)
        draws.append([*backbone.state_dict().values(), torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize(('bins', 'stem_stride'), [(32, None), (50, None), (32, 1), (50, 1)])
def test_any_length_makes_a_map_at_the_stride_and_stem_stride_1_halves_it(bins, stem_stride):
    stride = 16 if stem_stride == 1 else 32
    network = build_small(2, bins, stem_stride=stem_stride)
    assert network.strides[-1] == network.min_frames == stride
    with torch.inference_mode():
        for frames in (stride, stride + 1, 63, 64, 97, 10 * stride):
            (deepest,) = network.backbone(noise(2, 2, bins, frames)).main
            assert deepest.shape == (2, 256, math.ceil(bins / stride), math.ceil(frames / stride))


def test_a_model_with_another_first_convolution_cannot_have_stem_stride_1():
    with pytest.raises(KitError, match='test_convnext does not have: set stem_stride=None'):
        meta_backbone('test_convnext', stem_stride=1)


def test_drop_path_acts_in_training_only():
    spec = noise(8, 1, 32, 64)
    plain, dropping = (build_small(name='test_resnet', drop_path=p) for p in (0.0, 0.9))
    for name, parameter in plain.named_parameters():
        if 'bn' in name and 'weight' in name:
            torch.nn.init.ones_(parameter)  # the last norm of a branch starts at zero
    dropping.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(dropping(spec), plain(spec))
        plain.train()
        dropping.train()
        first, second, dropped = (x.backbone(spec).main[-1] for x in (plain, plain, dropping))
    assert torch.equal(first, second) and not torch.allclose(first, dropped, atol=1e-3)
    with pytest.raises(KitError, match=r"cannot build 'inception_v3'.*drop_path 0\.5: .*drop_path_rate"):
        meta_backbone('inception_v3', drop_path=0.5)


@pytest.mark.parametrize('channels', [1, 2, 3, 4])
def test_a_file_fills_every_tensor_and_its_first_convolution_adapts_to_the_channels(pretrained, channels):
    path, tensors = pretrained
    backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(channels, 32))
    load_pretrained(backbone, path)
    state = backbone.model.state_dict()
    stem = tensors['conv_stem.weight']
    repeated = stem[:, [c % 3 for c in range(channels)]] * 3 / channels
    adapted = stem.sum(1, keepdim=True) if channels == 1 else repeated
    torch.testing.assert_close(state.pop('conv_stem.weight'), adapted)
    assert all(torch.equal(state[name], tensors[name]) for name in state)
    assert set(tensors) - set(state) == {'conv_stem.weight', 'classifier.weight', 'classifier.bias'}


def test_other_kinds_of_files_fill_the_same(pretrained, tmp_path):
    from safetensors.torch import save_file

    path, tensors = pretrained
    save_file(tensors, tmp_path / 'a.safetensors')
    wrapped = {f'module.{name}': tensor for name, tensor in tensors.items()}
    torch.save({'state_dict': wrapped, 'epoch': 3}, tmp_path / 'b.pth')
    headless = {n: t for n, t in tensors.items() if 'classifier' not in n and 'num_batches' not in n}
    torch.save(headless, tmp_path / 'c.pt')
    states = []
    for file in (path, tmp_path / 'a.safetensors', tmp_path / 'b.pth', tmp_path / 'c.pt'):
        backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(3, 32))
        load_pretrained(backbone, file)
        states.append(list(backbone.parameters()))
    assert all(torch.equal(a, b) for other in states[1:] for a, b in zip(states[0], other, strict=True))


def test_a_file_of_another_model_is_refused_with_both_names_and_the_share(pretrained, tmp_path):
    import timm

    _, tensors = pretrained
    backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(1, 32))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    required = [name for name in backbone.model.state_dict() if 'num_batches' not in name]
    head = tensors['conv_head.weight']
    files = {
        'resnet.pth': (timm.create_model('test_resnet', pretrained=False).state_dict(), r'e\.g\. conv1'),
        'deeper.pth': ({**tensors, 'blocks.9.0.conv_pw.weight': torch.ones(3)}, '1 others, e.g. blocks.9.0'),
        'wide.pth': ({**tensors, 'conv_head.weight': torch.cat([head, head])}, r'0 others, e\.g\. conv_head'),
        'half.pth': ({n: t for n, t in tensors.items() if 'bn' not in n}, '0 others'),
    }
    for name, (content, message) in files.items():
        torch.save(content, tmp_path / name)
        fitting = [n for n in required if n in content and content[n].shape == tensors[n].shape]
        n, total = len(fitting), len(required)
        with pytest.raises(KitError, match=rf'fills {n} of its {total} tensors \({n / total:.0%}\)') as caught:
            load_pretrained(backbone, tmp_path / name)
        assert caught.match(rf'{name} is no file of {SMALL}') and caught.match(message)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


class Executable:
    '''An object whose unpickling would write a file.'''

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_a_file_that_holds_no_tensors_is_refused_and_never_executed(tmp_path):
    backbone = TimmBackbone(TimmConfig(name=SMALL), InputShape(1, 32))
    torch.save({'conv_stem.weight': Executable(tmp_path / 'written')}, tmp_path / 'code.pth')
    (tmp_path / 'text.pth').write_text('no tensors')
    (tmp_path / 'text.safetensors').write_text('no tensors')
    torch.save([1, 2], tmp_path / 'list.pth')
    for name in ('code.pth', 'text.pth', 'text.safetensors', 'list.pth'):
        with pytest.raises(KitError, match=rf'{name} cannot be read as tensors'):
            load_pretrained(backbone, tmp_path / name)
    assert not (tmp_path / 'written').exists()
    with pytest.raises(KitError, match=r'no pretrained file .*none\.pth: attach it'):
        load_pretrained(backbone, tmp_path / 'none.pth')


def test_a_checkpoint_loads_where_its_pretrained_file_is_missing(pretrained, tmp_path):
    path, tensors = pretrained
    copy = tmp_path / 'copy.pth'
    copy.write_bytes(path.read_bytes())
    network = complete_network({'family': 'timm', 'name': SMALL, 'weights': str(copy), 'stem_stride': 1})
    card = TaggerCard(classes=('a', 'b'), frontend=FRONTEND, network=network)
    tagger = build_tagger(card, start=True).eval()
    assert torch.equal(tagger.network.backbone.model.conv_head.weight, tensors['conv_head.weight'])
    save_tagger(tmp_path / 'tagger.pt', tagger)
    copy.unlink()
    loaded = load_tagger(tmp_path / 'tagger.pt')
    wave = 0.1 * noise(2, 16000)
    with torch.inference_mode():
        assert torch.equal(loaded(wave), tagger(wave))
    with pytest.raises(KitError, match=r'copy\.pth: attach it'):
        build_tagger(card, start=True)


def test_every_fold_starts_training_from_the_file_with_a_head_of_its_own(pretrained):
    path, tensors = pretrained
    settings = {'family': 'timm', 'name': SMALL, 'weights': str(path)}
    recipe = replace(find_recipe('max-pyramid-mel'), network=complete_network(settings), frontend=FRONTEND)
    truth = np.float32([[0, 1], [1, 0]])
    data = clips_of(truth, classes=('a', 'b'), folds=np.arange(2))
    first, second = (new_tagger(recipe, data, fold).network for fold in (0, 1))
    for network in (first, second):
        assert torch.equal(network.backbone.model.conv_head.weight, tensors['conv_head.weight'])
    assert not torch.equal(first.head.classifier[1].weight, second.head.classifier[1].weight)


def test_nothing_reaches_for_the_network(pretrained, calls_out):
    settings = {'family': 'timm', 'name': SMALL, 'weights': str(pretrained[0])}
    build_network(settings, InputShape(1, 32), 2, start=True)
    for name in ('hf-hub:timm/test_efficientnet.r160_in1k', 'hf_hub:a/b', 'local-dir:/x', 'timm/resnet18'):
        with pytest.raises(KitError, match='timm has no model'):
            meta_backbone(name)
    assert not calls_out


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('rexnet_15O', r"no model 'rexnet_15O'; near are: .*rexnet_150"),
        ('rexnet_150.nav', r"'rexnet_150\.nav'.*Its pretrained forms: rexnet_150\.nav_in1k"),
        ('vit_tiny_patch16_224', 'refuses an input of 128 x 4096.*choose a convolutional model'),
        ('test_vit', r'returns \(1, 2049, 64\) for .*choose a convolutional model'),
        ('test_mambaout', r'returns \(1, 4, 128, \d+\) for .*choose a convolutional model'),
    ],
)
def test_unknown_names_and_models_without_a_map_are_refused_with_the_cure(name, message):
    with pytest.raises(KitError, match=message):
        meta_backbone(name)


def test_too_few_bins_and_extra_rows_are_refused():
    with pytest.raises(KitError, match=r'inception_v3 refuses an input of 20 x 4096.*or more bins'):
        meta_backbone('inception_v3', bins=20)
    with pytest.raises(KitError, match='timm reads 0 extra rows, got 13'):
        TimmBackbone(TimmConfig(name=SMALL), InputShape(1, 32, n_extra_rows=13))


def test_without_timm_settings_are_completed_and_building_names_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    assert complete_network({'family': 'timm'}) == {'family': 'timm', **TimmConfig().to_dict()}
    with pytest.raises(KitError, match=r'timm cannot be imported.*pip install timm'):
        meta_backbone(SMALL)


def test_a_model_that_an_old_timm_builds_on_the_cpu_only_is_measured_all_the_same(monkeypatch):
    import timm

    create = timm.create_model

    def old_create(name, **options):
        if torch.get_default_device().type == 'meta':
            raise NotImplementedError('Cannot copy out of meta tensor')
        return create(name, **options)

    monkeypatch.setattr(timm, 'create_model', old_create)
    backbone = meta_backbone('test_resnet.r160_in1k', bins=77)
    assert (*backbone.widths, *backbone.strides) == (96, 32)
    assert all(tensor.is_meta for tensor in backbone.state_dict().values())
    assert not next(build_small(bins=77).parameters()).is_meta


def test_building_without_numbers_draws_nothing_and_has_every_name_and_shape_of_the_real_network():
    for settings in ({'family': 'timm', 'name': SMALL}, {'family': 'skip-attention'}, {'family': 'axis-pool'}):
        shape = InputShape(1, 32)
        torch.manual_seed(3)
        with meta_device():
            shapes = {k: v.shape for k, v in build_network(settings, shape, 5).state_dict().items()}
        drawn = torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(3))
        real = build_network(settings, shape, 5).state_dict()
        assert shapes == {name: tensor.shape for name, tensor in real.items()}
