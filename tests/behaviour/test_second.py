"""Second-level models: what they start from, what they cannot hear, and that they stay finite."""

import io
from dataclasses import asdict

import numpy as np
import pytest
import torch

from kit.core.errors import KitError
from kit.models.stackers import (
    STACKERS,
    ClassMixer,
    ClassMixerConfig,
    GatedMlp,
    GatedMlpConfig,
    ImageStacker,
    ImageStackerConfig,
    LogisticStackerConfig,
    prediction_image,
)

MODELS, CLASSES = 3, 7
SMALL = {
    "gated-mlp": GatedMlpConfig(widths=(10, 6), squeeze=4),
    "class-mixer": ClassMixerConfig(),
    "image-stacker": ImageStackerConfig(widths=(4, 6)),
    "logistic": LogisticStackerConfig(),
}


def predictions_for(name, clips=4, windows=9, seed=0):
    """Random probabilities in the shape that a model reads."""
    shape = (clips, MODELS, CLASSES) + ((windows,) if name == "image-stacker" else ())
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small_model(name, seed=0, models=MODELS, classes=CLASSES):
    """A model that has trained a few steps, so that no weight and no batch norm is as it was born; eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = STACKERS[name][1](SMALL[name], models, classes)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            logits = model(predictions_for(name, seed=step)[:, :models, :classes])
            (logits - torch.randn(4, classes)).square().mean().backward()
            optimizer.step()
    return model.eval()


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", STACKERS)
def test_a_clip_does_not_see_its_batchmates(name):
    model, x = small_model(name), predictions_for(name, clips=9)
    with torch.inference_mode():
        together = model(x)
        assert together.shape == (9, CLASSES)
        alone = torch.cat([model(x[i : i + 1]) for i in range(9)])
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together[order], model(x[order]), rtol=1e-5, atol=1e-6)
        other = x.clone()
        other[1:] = 1 - other[1:]
        torch.testing.assert_close(together[0], model(other)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STACKERS)
def test_every_model_and_class_of_the_input_is_heard(name):
    model, x = small_model(name).double(), predictions_for(name).double().requires_grad_()
    torch.autograd.backward(model(x).square().sum())
    assert bool((x.grad.flatten(3).abs().sum(-1) if name == "image-stacker" else x.grad).abs().min() > 0)


@pytest.mark.parametrize("name", STACKERS)
def test_saved_weights_give_the_same_answer(name):
    model, x = small_model(name), predictions_for(name)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    config_class, module_class = STACKERS[name]
    settings = config_class.from_dict(SMALL[name].to_dict())
    assert asdict(settings) == asdict(SMALL[name])
    again = module_class(settings, MODELS, CLASSES).eval()
    again.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", STACKERS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4, -1e4, 1e-38])
def test_extreme_predictions_give_finite_logits_and_gradients(name, value):
    model, x = small_model(name), torch.full_like(predictions_for(name), value).requires_grad_()
    logits = model(x)
    torch.autograd.backward(logits.sum())
    assert bool(logits.isfinite().all()) and bool(x.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", STACKERS)
def test_bfloat16_autocast_is_near_and_half_inputs_are_finite(name):
    model, x = small_model(name), predictions_for(name)
    with torch.inference_mode():
        wanted = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            near = model(x)
            extremes = model((x > 0.5).to(torch.bfloat16))
    assert bool(extremes.isfinite().all())
    torch.testing.assert_close(near.float(), wanted, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", STACKERS)
def test_gradients_agree_with_differences_in_float64(name):
    model = small_model(name).double()
    x = predictions_for(name, clips=2, windows=3).double().requires_grad_()
    assert torch.autograd.gradcheck(model, (x,), atol=1e-6)
    parameters = tuple(model.parameters())
    names = [key for key, _ in model.named_parameters()]

    def of_parameters(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x.detach(),))

    assert torch.autograd.gradcheck(of_parameters, parameters, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", STACKERS)
def test_predictions_of_other_models_are_refused(name):
    model = small_model(name)
    x = predictions_for(name)
    for wrong in (x[:, 1:], x[:, :, 1:], x[0], x.transpose(1, 2), x[..., None], x.flatten(1)):
        with pytest.raises(KitError, match="wanted"):
            model(wrong)


@pytest.mark.parametrize("name", STACKERS)
def test_one_model_and_one_class_are_enough_and_an_empty_batch_is_empty(name):
    model = small_model(name, models=1, classes=1)
    with torch.inference_mode():
        assert model(predictions_for(name)[:, :1, :1]).shape == (4, 1)
        assert model(predictions_for(name)[:0, :1, :1]).shape == (0, 1)


def test_a_fresh_mixer_is_the_plain_mean_of_the_models():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((50, 4, 6), generator=generator)
    x[0] = 0.0
    x[1] = 1.0
    mixer = ClassMixer(ClassMixerConfig(), 4, 6)
    with torch.inference_mode():
        probabilities = mixer(x).sigmoid()
        double = mixer.double()(x.double()).sigmoid()
    torch.testing.assert_close(probabilities, x.mean(dim=1), rtol=0, atol=3e-7)
    torch.testing.assert_close(double, x.double().mean(dim=1), rtol=0, atol=1.0001e-7)


def test_a_mixers_answer_agrees_with_its_definition():
    mixer, x = small_model("class-mixer"), predictions_for("class-mixer")
    shares = mixer.shares.detach().double().numpy()
    weight, bias = mixer.mix.weight.detach().double().numpy(), mixer.mix.bias.detach().double().numpy()
    assert np.ptp(shares) > 0 and np.abs(weight - np.eye(CLASSES)).max() > 0
    for i, clip in enumerate(x.double().numpy()):
        logit = np.empty(CLASSES)
        for k in range(CLASSES):
            w = np.exp(shares[:, k])
            mean = sum(w[m] * clip[m, k] for m in range(MODELS)) / w.sum()
            logit[k] = np.log(mean / (1 - mean))
        np.testing.assert_allclose(mixer(x)[i].detach().numpy(), weight @ logit + bias, rtol=1e-4, atol=1e-5)


def test_the_gate_scales_what_the_mlp_reads():
    model, x = small_model("gated-mlp"), predictions_for("gated-mlp")
    flat = x.flatten(1)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.body(flat * model.gate(flat)))
        model.gate[2].weight.zero_()
        model.gate[2].bias.fill_(-1e4)
        torch.testing.assert_close(model(x), model.body(torch.zeros_like(flat)))


def test_sizes_agree_with_counts_by_hand():
    models, classes = 7, 80
    with torch.device("meta"):
        mlp = GatedMlp(GatedMlpConfig(), models, classes)
        mixer = ClassMixer(ClassMixerConfig(), models, classes)
        stacker = ImageStacker(ImageStackerConfig(), models, classes)
    wide = 560
    gate = wide * 35 + 35 + 1 + 35 * wide + wide
    assert count(mlp) == gate + wide * 1024 + 1024 + 1 + 1024 * 512 + 512 + 1 + 512 * 80 + 80
    assert count(mixer) == 7 * 80 + 80 * 80 + 80
    convolutions = 9 * 7 * 32 + 2 * 32 + 1 + 9 * 32 * 64 + 2 * 64 + 1
    assert count(stacker) == convolutions + 2 * 64 * 20 * 80 + 80


def test_an_image_is_the_windows_beside_each_other_then_zeros_never_cut():
    scores = torch.rand(3, 6, CLASSES, generator=torch.Generator().manual_seed(0))
    image = prediction_image(scores, 8)
    assert image.shape == (3, CLASSES, 8)
    for m in range(3):
        for k in range(CLASSES):
            assert image[m, k].tolist() == scores[m, :, k].tolist() + [0.0, 0.0]
    torch.testing.assert_close(prediction_image(scores[0], 2), scores[0].T)


def test_an_image_of_any_width_is_read():
    model = small_model("image-stacker")
    with torch.inference_mode():
        for windows in (1, 2, 4, 5, 6, 11, 40, 121):
            x = predictions_for("image-stacker", windows=windows)
            logits = model(x)
            assert logits.shape == (4, CLASSES) and bool(logits.isfinite().all())
        with pytest.raises(KitError, match="windows"):
            model(x[..., :0])


def test_the_image_stacker_knows_classes_apart():
    model, x = small_model("image-stacker"), predictions_for("image-stacker")
    with torch.inference_mode():
        assert not torch.allclose(model(x.flip(2)), model(x).flip(1), atol=1e-3)
        assert not torch.allclose(model(x.flip(2)), model(x), atol=1e-3)
