'''freq-crop: each class reads its own band and nothing else, in both forms, as a slow loop over classes shows.'''

import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.models.backbones import FreqCropConfig
from kit.models.families import build_backbone, build_network, complete_network, read_network
from kit.models.network import POOLS, InputShape
from kit.models.tagger import TaggerCard, build_tagger, input_shape

PYRAMID = {'family': 'max-pyramid', 'blocks': 3, 'width': 6, 'growth': 1.5}
BANDS = ((0.0, 350.0), (400.0, 850.0), (400.0, 850.0), (1210.0, 1245.0), (880.0, 4000.0))
CLASSES, BINS = len(BANDS), 40
HZ = tuple(50.0 * (i + 1) for i in range(BINS))
both_forms = pytest.mark.parametrize('form', ['crops', 'pooled'])


def build_small(form, pool='positive-mean', bins=BINS, train_norms=True, backbone=PYRAMID, **settings):
    '''A small network of five classes in evaluation mode; its batch norms have run if `train_norms`.'''
    settings = {'family': 'freq-crop', 'form': form, 'backbone': backbone, 'head': {'pool': pool}, **settings}
    if form == 'pooled':
        settings['bands_hz'] = BANDS
    shape = InputShape(2, bins, bin_hz=HZ[:bins], bands=CLASSES if form == 'crops' else 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(settings, shape, CLASSES)
        if train_norms:
            with torch.no_grad():
                for _ in range(3):
                    network(torch.randn(6, 2, bins, 40))
    return network.eval()


def noise(*shape, seed=0):
    '''Gaussian noise.'''
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_pool(name, rows):
    '''Slow definition of a pool on the rows (D, M', N') of one clip and class.'''
    flat = rows.flatten(1)
    if name == 'mean-max':
        return torch.cat([flat.mean(1), flat.amax(1)])
    if name == 'positive-mean':
        return torch.stack([d[d > 0].mean() if bool((d > 0).any()) else torch.tensor(0.0) for d in flat])
    if name == 'gem':
        return flat.double().clamp(min=1e-6).pow(3).mean(1).pow(1 / 3).float()
    return {'mean': flat.mean(1), 'max': flat.amax(1), 'time-max': rows.amax(2).mean(1)}[name]


def class_logit(head, k, pooled):
    '''Class k's own output layer, applied to its pooled features.'''
    weight, bias = head.classifier.parameters()
    return float((weight[k] * pooled).sum() + bias[k])


def slow_rows(band, bins, rows):
    '''Slow definition: the map's rows that overlap an input row inside the band.'''
    inside = [i for i in range(bins) if band[0] <= HZ[i] <= band[1]]
    if not inside:
        inside = [min(range(bins), key=lambda i: abs(HZ[i] - sum(band) / 2))]
    # Input row i covers [i, i + 1) / bins of the height, map row j covers [j, j + 1) / rows.
    return [j for j in range(rows) if any((i + 1) * rows > j * bins and i * rows < (j + 1) * bins for i in inside)]


@pytest.mark.parametrize('bins', [40, 37])
@pytest.mark.parametrize('pool', [*POOLS, 'gem'])
def test_the_pooled_form_agrees_with_a_slow_loop_over_classes(pool, bins):
    network, spec = build_small('pooled', pool, bins), noise(3, 2, bins, 50)
    with torch.inference_mode():
        deepest = network.backbone(spec).main[-1]
        logits = network(spec)
        for b in range(3):
            for k, band in enumerate(BANDS):
                rows = slow_rows(band, bins, deepest.shape[2])
                pooled = slow_pool(pool, deepest[b][:, rows])
                assert float(logits[b, k]) == pytest.approx(class_logit(network.head, k, pooled), abs=2e-5)


@pytest.mark.parametrize('backbone', [PYRAMID, {**PYRAMID, 'dims': 1}], ids=['2-D', '1-D'])
@pytest.mark.parametrize('pool', ['positive-mean', 'max', 'time-max'])
def test_the_crops_form_agrees_with_one_pass_per_class(pool, backbone):
    network, spec = build_small('crops', pool, backbone=backbone), noise(3, 2, BINS, 50)
    with torch.inference_mode():
        logits = network(spec)
        for k in range(CLASSES):
            deepest = network.backbone.inner(spec[:, :, k * 8 : (k + 1) * 8]).main[-1]
            deepest = deepest if deepest.ndim == 4 else deepest.unsqueeze(2)
            slow = torch.tensor([class_logit(network.head, k, slow_pool(pool, clip)) for clip in deepest])
            torch.testing.assert_close(logits[:, k], slow, rtol=1e-4, atol=2e-5)


def test_in_the_crops_form_only_a_classs_own_band_changes_its_logit():
    network, spec = build_small('crops'), noise(2, 2, BINS, 50)
    with torch.inference_mode():
        before = network(spec)
        for k in range(CLASSES):
            other = noise(2, 2, BINS, 50, seed=5) * 9
            other[:, :, k * 8 : (k + 1) * 8] = spec[:, :, k * 8 : (k + 1) * 8]
            same = (network(other) == before).all(dim=0)
            assert same.tolist() == [c == k for c in range(CLASSES)]


def test_in_the_pooled_form_a_class_trains_its_own_rows_and_layer_only():
    network = build_small('pooled', 'mean')
    maps = network.backbone(noise(1, 2, BINS, 50))
    maps.main[-1].retain_grad()
    network.head(maps.main).clip[0, 1].backward()
    row_gradient = maps.main[-1].grad.abs().sum((0, 1, 3))
    assert row_gradient.nonzero().flatten().tolist() == slow_rows(BANDS[1], BINS, 5) == [0, 1, 2]
    weight, bias = network.head.classifier.parameters()
    assert weight.grad.abs().sum(1).nonzero().flatten().tolist() == [1]
    assert bias.grad.nonzero().flatten().tolist() == [1]


def test_dropout_acts_in_training_only():
    spec = noise(4, 2, BINS, 40)
    network = build_small('pooled', head={'pool': 'mean', 'dropout': 0.9})
    with torch.no_grad():
        assert torch.equal(network(spec), network(spec))
        network.head.train()
        assert not torch.allclose(network(spec), network(spec))


@both_forms
def test_building_draws_the_inner_backbone_then_a_layer_per_class_and_nothing_else(form):
    torch.manual_seed(0)
    inner_shape = InputShape(2, 8 if form == 'crops' else BINS)
    inner = build_backbone(*read_network(PYRAMID), inner_shape, False)
    layer = torch.nn.Linear(inner.widths[-1], CLASSES)
    network = build_small(form, train_norms=False)
    assert torch.equal(layer.weight, network.head.classifier[1].weight)
    count = sum(p.numel() for module in (inner, layer) for p in module.parameters())
    assert sum(p.numel() for p in network.parameters()) == count


def test_settings_are_completed_and_checked_with_those_of_the_backbone():
    full = complete_network({'family': 'freq-crop', 'backbone': {'family': 'max-pyramid', 'width': 7}})
    assert complete_network(full) == full
    inner = complete_network({'family': 'max-pyramid', 'width': 7})
    assert full['backbone'] == {name: inner[name] for name in inner if name != 'head'}
    pooled = complete_network({'family': 'freq-crop', 'form': 'pooled', 'bands_hz': [[1, 2], [3.5, 9]]})
    assert pooled['bands_hz'] == [[1.0, 2.0], [3.5, 9.0]] and complete_network(pooled) == pooled
    with pytest.raises(KitError, match=r"no setting 'widht': did you mean 'width'"):
        complete_network({'family': 'freq-crop', 'backbone': {'family': 'max-pyramid', 'widht': 7}})
    with pytest.raises(KitError, match="unknown network family 'max_pyramid'"):
        complete_network({'family': 'freq-crop', 'backbone': {'family': 'max_pyramid'}})


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'bands_hz': ((1.0, 2.0),)}, 'bands_hz belongs to form=pooled'),
        ({'form': 'pooled', 'bands_hz': ((2.0, 2.0),)}, r'pairs of low < high in hertz, got \(2\.0, 2\.0\)'),
        ({'form': 'pooled', 'bands_hz': ((2.0,),)}, r'pairs of low < high in hertz, got \(2\.0,\)'),
        ({'head': {'pool': 'attention'}}, 'no attention'),
        ({'head': {'hidden': None}}, r'head\.hidden=0'),
        ({'head': {'recurrent': 'gru'}}, r'head\.recurrent=None'),
        ({'backbone': {'family': 'freq-crop'}}, 'another family without head'),
        ({'backbone': {'family': 'timm', 'head': {'pool': 'max'}}}, 'another family without head'),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_cure(settings, message):
    with pytest.raises(KitError, match=message):
        FreqCropConfig(**settings)


@pytest.mark.parametrize(
    ('form', 'shape', 'message'),
    [
        ('crops', InputShape(1, 40), r'frontend\.bands_hz with a band for each of 5 classes, got 1'),
        ('crops', InputShape(1, 20, bands=5), 'max-pyramid needs at least 8 frequency bins, got 4'),
        ('crops', InputShape(1, 40, n_extra_rows=13), 'freq-crop reads 0 extra rows, got 13'),
        ('pooled', InputShape(1, 40), r'rising frequency for every row: use no frontend\.bands_hz'),
        ('pooled', InputShape(1, 40, bin_hz=HZ[:39]), 'rising frequency for every row'),
        ('pooled', InputShape(1, 40, bin_hz=HZ[:20] * 2), 'rising frequency for every row'),
    ],
)
def test_inputs_without_the_bands_are_refused(form, shape, message):
    settings = {'family': 'freq-crop', 'form': form, 'backbone': PYRAMID}
    if form == 'pooled':
        settings['bands_hz'] = BANDS
    with pytest.raises(KitError, match=message):
        build_network(settings, shape, 5)


def test_the_pooled_form_needs_a_band_per_class_and_a_map_with_rows():
    settings = {'family': 'freq-crop', 'form': 'pooled', 'bands_hz': BANDS, 'backbone': PYRAMID}
    with pytest.raises(KitError, match='a band for each of 4 classes, got 5'):
        build_network(settings, InputShape(1, BINS, bin_hz=HZ), 4)
    flat = {**settings, 'backbone': {**PYRAMID, 'dims': 1}}
    with pytest.raises(KitError, match='a backbone whose map has rows of frequency'):
        build_network(flat, InputShape(1, BINS, bin_hz=HZ), 5)


@both_forms
def test_a_tone_lies_in_the_rows_of_the_class_whose_band_holds_it(form):
    bands = ((200.0, 700.0), (1500.0, 3000.0), (0.0, 4000.0))
    crops = form == 'crops'
    frontend = FrontendConfig(
        sample_rate=8000, n_fft=512, hop_length=128, n_mels=8 if crops else 32, bands_hz=bands if crops else ()
    )
    network = {'family': 'freq-crop', 'form': form, 'backbone': PYRAMID, 'bands_hz': () if crops else bands}
    tagger = build_tagger(TaggerCard(classes=('low', 'high', 'both'), frontend=frontend, network=network))
    seconds = torch.arange(8000) / 8000
    for k, hz in enumerate((400.0, 2500.0)):
        spec = tagger.frontend(torch.sin(2 * torch.pi * hz * seconds)[None])[0, 0].mean(1)
        peaks = [float(spec[first:end].amax()) for first, end in tagger.network.head.bands]
        assert min(peaks[k], peaks[2]) > peaks[1 - k] + 20


def test_the_input_shape_has_the_frequencies_of_bins_unless_they_are_resized():
    assert input_shape(FrontendConfig(image_size=(64, 64))).bin_hz == ()
    shape = input_shape(FrontendConfig(extra_rows=('wave_stats', 'clip_length')))
    assert shape == InputShape(1, 128, 13, tuple(FrontendConfig().bin_hz))


def test_training_starts_from_the_pretrained_file_of_the_inner_backbone(tmp_path):
    import timm

    name = 'test_efficientnet.r160_in1k'
    tensors = timm.create_model(name, pretrained=False).state_dict()
    torch.save(tensors, tmp_path / 'small.pth')
    backbone = {'family': 'timm', 'name': name, 'weights': str(tmp_path / 'small.pth')}
    settings = {'family': 'freq-crop', 'backbone': backbone}
    for start in (True, False):
        network = build_network(settings, InputShape(1, 64, bands=2), 2, start)
        weight = network.backbone.inner.model.conv_head.weight
        assert torch.equal(weight, tensors['conv_head.weight']) == start
