'''Stackers: what they compute before training, that clips stay independent, and that numbers stay finite.'''

import numpy as np
import pytest
import torch

from kit.infer.stack import STACKERS, ClassMixer, StackerConfig

MODELS, CLASSES = 3, 7
SMALL = StackerConfig(widths=(4, 6), mlp_widths=(10, 6))
each_stacker = pytest.mark.parametrize('name', STACKERS)


def predictions_for(name, clips=4, windows=9, seed=0):
    '''Random probabilities in the shape that a stacker reads.'''
    shape = [clips, MODELS, CLASSES]
    if name == 'image-stacker':
        shape.append(windows)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def build_small(name, models=MODELS, classes=CLASSES):
    '''A stacker in evaluation mode after a few training steps, so that nothing is at its initial value.'''
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stacker = STACKERS[name](SMALL, models, classes)
        optimizer = torch.optim.SGD(stacker.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            logits = stacker(predictions_for(name, seed=step)[:, :models, :classes])
            (logits - torch.randn(4, classes)).square().mean().backward()
            optimizer.step()
    return stacker.eval()


@each_stacker
def test_a_clips_logits_do_not_depend_on_its_batchmates_or_their_order(name):
    stacker, x = build_small(name), predictions_for(name, clips=9)
    with torch.inference_mode():
        together = stacker(x)
        alone = torch.cat([stacker(clip[None]) for clip in x])
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        shuffled = stacker(x[order])
    assert together.shape == (9, CLASSES)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together[order], shuffled, rtol=1e-5, atol=1e-6)


@each_stacker
def test_every_model_and_class_of_the_input_changes_the_logits(name):
    stacker = build_small(name).double()
    x = predictions_for(name).double().requires_grad_()
    torch.autograd.backward(stacker(x).square().sum())
    gradient = x.grad.abs()
    if name == 'image-stacker':
        gradient = gradient.sum(-1)
    assert float(gradient.min()) > 0


@each_stacker
@pytest.mark.parametrize('value', [0.0, 1.0, 1e4, -1e4, 1e-38])
def test_extreme_predictions_give_finite_logits_and_gradients(name, value):
    stacker, x = build_small(name), torch.full_like(predictions_for(name), value).requires_grad_()
    logits = stacker(x)
    torch.autograd.backward(logits.sum())
    assert all(bool(t.isfinite().all()) for t in (logits, x.grad, *(p.grad for p in stacker.parameters())))


@each_stacker
def test_bfloat16_autocast_is_near_and_half_precision_inputs_are_finite(name):
    stacker, x = build_small(name), predictions_for(name)
    with torch.inference_mode():
        exact = stacker(x)
        with torch.autocast('cpu', torch.bfloat16):
            near = stacker(x)
            extremes = stacker((x > 0.5).to(torch.bfloat16))
    assert bool(extremes.isfinite().all())
    torch.testing.assert_close(near.float(), exact, rtol=0.05, atol=0.1)


@each_stacker
def test_one_model_and_one_class_are_enough_and_an_empty_batch_stays_empty(name):
    stacker, x = build_small(name, models=1, classes=1), predictions_for(name)[:, :1, :1]
    with torch.inference_mode():
        assert stacker(x).shape == (4, 1)
        assert stacker(x[:0]).shape == (0, 1)


def test_an_untrained_mixer_is_the_plain_mean_of_the_models():
    x = torch.rand((50, 4, 6), generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 0.0, 1.0
    mixer = ClassMixer(StackerConfig(), 4, 6)
    with torch.inference_mode():
        torch.testing.assert_close(mixer(x).sigmoid(), x.mean(dim=1), rtol=0, atol=3e-7)
        x = x.double()
        torch.testing.assert_close(mixer.double()(x).sigmoid(), x.mean(dim=1), rtol=0, atol=1.0001e-7)


def test_a_mixer_agrees_with_its_definition():
    mixer, x = build_small('class-mixer'), predictions_for('class-mixer')
    raw_weights = mixer.model_weights.detach().double().numpy()
    weight = mixer.mix.weight.detach().double().numpy()
    bias = mixer.mix.bias.detach().double().numpy()
    assert np.ptp(raw_weights) > 0 and np.abs(weight - np.eye(CLASSES)).max() > 0
    for i, clip in enumerate(x.double().numpy()):
        logit = np.empty(CLASSES)
        for k in range(CLASSES):
            w = np.exp(raw_weights[:, k])
            mean = sum(w[m] * clip[m, k] for m in range(MODELS)) / w.sum()
            logit[k] = np.log(mean / (1 - mean))
        np.testing.assert_allclose(mixer(x)[i].detach().numpy(), weight @ logit + bias, rtol=1e-4, atol=1e-5)


def test_the_gate_scales_the_input_of_the_mlp():
    stacker, x = build_small('gated-mlp'), predictions_for('gated-mlp')
    flat = x.flatten(1)
    with torch.inference_mode():
        torch.testing.assert_close(stacker(x), stacker.mlp(flat * stacker.gate(flat)))
        stacker.gate[2].weight.zero_()
        stacker.gate[2].bias.fill_(-1e4)
        torch.testing.assert_close(stacker(x), stacker.mlp(torch.zeros_like(flat)))


def test_sizes_agree_with_counts_by_hand():
    gate = 560 * 35 + 35 + 1 + 35 * 560 + 560
    by_hand = {
        'gated-mlp': gate + 560 * 1024 + 1024 + 1 + 1024 * 512 + 512 + 1 + 512 * 80 + 80,
        'class-mixer': 7 * 80 + 80 * 80 + 80,
        'image-stacker': 9 * 7 * 32 + 2 * 32 + 1 + 9 * 32 * 64 + 2 * 64 + 1 + 2 * 64 * 20 * 80 + 80,
    }
    by_hand['logistic'] = 7 * 80 + 80
    for name, stacker_class in STACKERS.items():
        with torch.device('meta'):
            stacker = stacker_class(StackerConfig(), 7, 80)
        assert sum(p.numel() for p in stacker.parameters()) == by_hand[name]


def test_an_image_of_any_width_is_read():
    stacker = build_small('image-stacker')
    with torch.inference_mode():
        for windows in (1, 2, 4, 5, 11, 121):
            logits = stacker(predictions_for('image-stacker', windows=windows))
            assert logits.shape == (4, CLASSES) and bool(logits.isfinite().all())


def test_the_image_stacker_keeps_classes_apart():
    stacker, x = build_small('image-stacker'), predictions_for('image-stacker')
    with torch.inference_mode():
        assert not torch.allclose(stacker(x.flip(2)), stacker(x).flip(1), atol=1e-3)
        assert not torch.allclose(stacker(x.flip(2)), stacker(x), atol=1e-3)
