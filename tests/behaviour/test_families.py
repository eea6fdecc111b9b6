'''Every family with every head: batchmates, lengths, checkpoints, autocast, gradients, receptive field.'''

import functools

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import FAMILIES, build_network, complete_network, memory_format_of
from kit.models.network import POOLS, RECURRENCES, Backbone, InputShape, Maps
from kit.models.tagger import Tagger, TaggerCard, build_tagger, input_shape
from tests.behaviour.receptive import receptive_field

CLASSES = ('a', 'b', 'c', 'd')
BANDS_HZ = ((0.0, 1000.0), (500.0, 1500.0), (1000.0, 4000.0), (0.0, 4000.0))
SMALL_PYRAMID = {'family': 'max-pyramid', 'blocks': 2, 'width': 4}
# Each network's settings, and the frontend's settings beside the common ones.
NETWORKS = {
    'max-pyramid 2-D': ({'family': 'max-pyramid', 'blocks': 3, 'width': 6}, {'channels': ('log', 'coordinate')}),
    'max-pyramid 1-D': ({'family': 'max-pyramid', 'blocks': 3, 'width': 6, 'dims': 1}, {}),
    'skip-attention': (
        {'family': 'skip-attention', 'width': 4},
        {'n_mels': 20, 'channels': ('log', 'delta', 'delta2')},
    ),
    'axis-pool': ({'family': 'axis-pool', 'width': 32}, {}),
    'axis-pool with extra rows': (
        {'family': 'axis-pool', 'width': 32, 'stat_width': 3, 'stat_steps': 16},
        {'extra_rows': ('wave_stats', 'clip_length')},
    ),
    'timm': ({'family': 'timm', 'name': 'test_efficientnet.r160_in1k'}, {'n_mels': 32}),
    'freq-crop crops': (
        {'family': 'freq-crop', 'form': 'crops', 'backbone': SMALL_PYRAMID},
        {'n_mels': 8, 'bands_hz': BANDS_HZ},
    ),
    'freq-crop pooled': (
        {'family': 'freq-crop', 'form': 'pooled', 'bands_hz': BANDS_HZ, 'backbone': SMALL_PYRAMID},
        {'n_mels': 32},
    ),
}
POOLING_HEADS = {name: {'pool': name} for name in (*POOLS, 'gem')}
ATTENTION = {'pool': 'attention', 'norm_first': False}
HEADS = {
    **POOLING_HEADS,
    **{name: {'recurrent': name, 'recurrent_width': 4} for name in RECURRENCES},
    'attention': ATTENTION,
    'attention, norm first': {**ATTENTION, 'norm_first': True, 'hidden': 6},
    'embedded lstm, attention': {**ATTENTION, 'recurrent': 'lstm', 'recurrent_width': 4, 'embedding': 6},
    'hidden': {'hidden': 6},
    'hidden, norm first': {'hidden': None, 'norm_first': True},
}
PAIRS = [(name, head) for name in NETWORKS for head in (POOLING_HEADS if name.startswith('freq-crop') else HEADS)]
every_pair = pytest.mark.parametrize(('name', 'head'), PAIRS)
every_network = pytest.mark.parametrize('name', NETWORKS)


@functools.cache
def small_tagger(name, head=None):
    '''A small tagger in evaluation mode whose batch norms have run; with head None it has the family's own.'''
    settings, frontend_changes = NETWORKS[name]
    if head is not None:
        settings = {**settings, 'head': HEADS[head]}
    common = {'sample_rate': 8000, 'n_fft': 256, 'hop_length': 128, 'n_mels': 16}
    frontend = FrontendConfig(**(common | frontend_changes))
    card = TaggerCard(classes=CLASSES, frontend=frontend, network=complete_network(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        tagger = build_tagger(card)
        with torch.no_grad():
            for seed in range(2):
                tagger.network.train().outputs(noise(tagger, 6, 48, seed))
    return tagger.eval()


def noise(tagger, clips, frames, seed=0):
    '''Noise in the input shape of a tagger's network.'''
    shape = input_shape(tagger.card.frontend)
    size = (clips, shape.channels, shape.bins + shape.n_extra_rows, frames)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def tensors_of_output(output):
    '''Every tensor of a network's output, by name.'''
    named = {'clip': output.clip, 'frames': output.frames}
    named |= {f'auxiliary {k}': logits for k, logits in enumerate(output.auxiliary)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def largest_difference(a, b):
    '''The largest difference between two outputs, relative to the first one's size.'''
    assert a.keys() == b.keys()
    scale = max(1.0, *(float(x.abs().max()) for x in a.values()))
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a) / scale


def test_every_family_is_tested_here():
    assert {settings['family'] for settings, _ in NETWORKS.values()} == set(FAMILIES)


@every_pair
def test_a_clips_logits_do_not_depend_on_its_batchmates_or_their_order(name, head):
    tagger = small_tagger(name, head)
    network, specs = tagger.network, noise(tagger, 5, 41)
    specs[1] *= 50.0
    with torch.inference_mode():
        together = tensors_of_output(network.outputs(specs))
        assert float((together['clip'][0] - together['clip'][2]).abs().max()) > 1e-4
        for rows in ([2, 4, 0], [0], [1], [4]):
            part = tensors_of_output(network.outputs(specs[rows]))
            assert largest_difference({k: x[rows] for k, x in together.items()}, part) <= 1e-5


@every_pair
def test_any_length_from_the_shortest_on_gets_finite_logits(name, head):
    tagger = small_tagger(name, head)
    network, shortest = tagger.network, tagger.min_frames
    for frames in (shortest, shortest + 1, 3 * shortest - 1, 10 * shortest):
        spec = noise(tagger, 2, frames)
        with torch.inference_mode():
            output = network.outputs(spec)
            steps = network.backbone(spec).main[-1].shape[-1]
        assert steps == -(-frames // network.strides[-1])
        assert output.clip.shape == (2, 4)
        assert (output.frames is not None) == ('attention' in head)
        assert output.frames is None or output.frames.shape == (2, steps, 4)
        assert all(bool(x.isfinite().all()) for x in tensors_of_output(output).values())


@every_pair
def test_a_loaded_checkpoint_gives_the_same_outputs(name, head, tmp_path):
    tagger = small_tagger(name, head)
    save_tagger(tmp_path / 'a.pt', tagger)
    loaded, spec = load_tagger(tmp_path / 'a.pt'), noise(tagger, 2, 41)
    with torch.inference_mode():
        output = tensors_of_output(tagger.network.outputs(spec))
        again = tensors_of_output(loaded.network.outputs(spec))
        assert all(torch.equal(output[k], again[k]) for k in output)
        assert torch.equal(loaded.network(spec), output['clip'])
    assert loaded.min_frames == tagger.min_frames and loaded.card == tagger.card


@every_pair
def test_outputs_under_autocast_are_near(name, head):
    tagger = small_tagger(name, head)
    spec = noise(tagger, 2, 41)
    with torch.inference_mode():
        exact = {k: x.sigmoid() for k, x in tensors_of_output(tagger.network.outputs(spec)).items()}
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast('cpu', dtype):
                rough = tensors_of_output(tagger.network.outputs(spec))
            assert all(bool(x.isfinite().all()) for x in rough.values())
            assert largest_difference(exact, {k: x.float().sigmoid() for k, x in rough.items()}) < 0.1


@every_pair
def test_silence_and_extreme_inputs_get_finite_logits(name, head):
    tagger = small_tagger(name, head)
    spec = noise(tagger, 6, 33)
    for i, value in enumerate((0.0, -100.0, 1e4, -1e4)):
        spec[i] = value
    spec[4:] *= 1e4
    with torch.inference_mode():
        output = tensors_of_output(tagger.network.outputs(spec))
    assert all(bool(x.isfinite().all()) for x in output.values())


@every_pair
def test_a_batch_trains_every_weight_with_finite_gradients(name, head):
    tagger = build_tagger(small_tagger(name, head).card)
    torch.manual_seed(0)
    network = tagger.network.train()
    output = tensors_of_output(network.outputs(noise(tagger, 6, 48)))
    sum(x.square().sum() for x in output.values()).backward()
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert sum(bool(g.any()) for g in gradients) >= 0.95 * len(gradients)


@every_network
def test_the_clip_output_is_what_the_network_returns_and_skips_are_beside_it(name):
    tagger = small_tagger(name)
    spec = noise(tagger, 2, 41)
    with torch.inference_mode():
        output = tagger.network.outputs(spec)
        assert torch.equal(tagger.network(spec), output.clip)
    assert len(output.auxiliary) == (3 if name == 'skip-attention' else 0)


@every_network
def test_clips_below_the_shortest_length_are_padded_to_it(name):
    tagger = small_tagger(name)
    frames = []
    hook = tagger.network.register_forward_pre_hook(lambda _, inputs: frames.append(inputs[0].shape[-1]))
    waves = [np.random.default_rng(n).normal(0, 0.1, n).astype(np.float32) for n in (1, 300, 9000)]
    probs = predict_clips(tagger, [Sound(wave, 8000) for wave in waves]).probabilities
    hook.remove()
    assert min(frames) == tagger.min_frames
    assert probs.shape == (3, 4) and np.isfinite(probs).all()


def test_images_of_fewer_frames_than_the_network_needs_are_refused():
    network = complete_network({'family': 'timm', 'name': 'inception_v3'})
    config = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, image_size=(128, 64))
    card = TaggerCard(classes=('a',), frontend=config, network=network)
    with torch.device('meta'), pytest.raises(KitError, match=r'image_size .* has 64 frames.* 96 or more'):
        Tagger(card, build_network(network, InputShape(1, 128), 1))


@every_network
def test_the_memory_format_of_a_network_does_not_change_its_outputs(name):
    tagger = small_tagger(name)
    network, spec = tagger.network, noise(tagger, 3, 41)
    with torch.inference_mode():
        plain = tensors_of_output(network.outputs(spec))
        Predictor(tagger, torch.device('cpu'))  # moves the network to its memory format
        spec = spec.contiguous(memory_format=memory_format_of(network))
        fast = tensors_of_output(network.outputs(spec))
    network.to(memory_format=torch.contiguous_format)
    assert largest_difference(plain, fast) <= 1e-5


@every_network
def test_the_receptive_field_is_the_span_of_frames_that_change_a_step(name):
    '''Slow definition: each frame in turn is made loud, and quiet, in several spectrograms.'''
    tagger = small_tagger(name)
    backbone, frames = tagger.network.backbone, 128
    field = receptive_field(backbone, input_shape(tagger.card.frontend))
    specs, changing = 0.1 * noise(tagger, 4, frames), []
    with torch.inference_mode():
        before = backbone(specs).main[-1]
        middle = before.shape[-1] // 2
        for frame in range(frames):
            other = specs.clone()
            other[..., frame] += torch.tensor([50.0, -50.0, 20.0, -20.0])[:, None, None]
            if not torch.equal(backbone(other).main[-1][..., middle], before[..., middle]):
                changing.append(frame)
    assert changing[-1] - changing[0] + 1 == (frames if field is None else field)
    assert (field is None) == (name in ('skip-attention', 'timm'))


class CausalConv(Backbone):
    '''One convolution that reads a frame and some frames before it, none after.'''

    def __init__(self, before):
        super().__init__()
        self.widths, self.strides = (2,), (1,)
        self.conv = torch.nn.Conv1d(3, 2, before + 1, padding=before)

    def forward(self, spec):
        return Maps([self.conv(spec[:, 0])[..., : spec.shape[-1]]])


@pytest.mark.parametrize(('before', 'field'), [(0, 1), (7, 8), (9, 10), (62, 63), (63, 64), (64, None)])
def test_a_receptive_field_on_one_side_only_is_measured_too(before, field):
    assert receptive_field(CausalConv(before), InputShape(1, 3)) == field


def test_settings_are_completed_with_every_default_and_wrong_names_are_refused():
    full = complete_network({'family': 'max-pyramid', 'width': 7})
    assert full == {'family': 'max-pyramid', **FAMILIES['max-pyramid'](width=7).to_dict()}
    assert complete_network(full) == full
    with pytest.raises(KitError, match=r"no setting 'widht': did you mean 'width'"):
        complete_network({'family': 'max-pyramid', 'widht': 3})
    with pytest.raises(KitError, match=r"unknown network family 'max_pyramid': did you mean 'max-pyramid'"):
        build_network({'family': 'max_pyramid'}, InputShape(1, 128), 3)
    with pytest.raises(KitError, match=r"unknown network family 'none given'"):
        complete_network({})
