'''Learning rates over time and layers, several batches in one step, averages of weights, and resuming them.'''

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.core.errors import KitError
from kit.infer.predictor import Predictor
from kit.train.dataset import Dataset
from kit.train.fold_training import new_tagger
from kit.train.optim import OptimConfig, build_optimizer, build_schedule, layer_groups
from kit.train.recipe import Recipe
from kit.train.trainer import Trainer
from tests.behaviour.training import whole_clips

pytestmark = pytest.mark.usefixtures('one_core')

CPU = torch.device('cpu')
CLASSES = ('high', 'low', 'noisy')
TINY = Recipe(
    frontend=FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, f_min_hz=20.0),
    network={'family': 'max-pyramid', 'blocks': 2, 'width': 4},
    crop_s=0.2,
    mixup=MixupConfig(p=0.5),
    epochs=4,
    no_augment_epochs=1,
    batch_size=4,
    validate_every=1,
    n_folds=2,
)


def noise_data(n=12):
    '''Spectrograms of noise with one class each, in two folds.'''
    generator = torch.Generator().manual_seed(0)
    specs = {i: torch.randn(16, 20 + i, generator=generator) * 10 for i in range(n)}
    truth = np.eye(3, dtype=np.float32)[np.arange(n) % 3]
    names = tuple(f'{i}.wav' for i in range(n))
    seconds = dict.fromkeys(range(n), 0.5)
    folds = np.arange(n) % 2
    sources = np.full(n, '')
    weights = np.ones(n, np.float32)
    recordings = dict(zip(names, specs.values(), strict=True))
    stretches = whole_clips(n)
    return Dataset(names, CLASSES, truth, weights, sources, truth, folds, stretches, recordings, specs, seconds=seconds)


DATA = noise_data()


def new_trainer(recipe, data=DATA, fold=0):
    '''A trainer as a run creates it.'''
    tagger = new_tagger(recipe, data, fold)
    Predictor(tagger, CPU)
    return Trainer(recipe, tagger, data.train_split(fold), fold, CPU)


def copy_weights(network):
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def equal_weights(one, other):
    '''Whether two state dicts are equal, bit for bit.'''
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def train_to_end(trainer, folder, score=lambda epoch: 0.5, after_epoch=lambda row: None):
    '''Train all epochs with made-up scores; return the weights at each validation.'''
    validated = {}

    def validate():
        validated[trainer.epoch] = copy_weights(trainer.network)
        return score(trainer.epoch)

    for row in trainer.train(folder / 'state.pt', validate):
        after_epoch(row)
    return validated


def learning_rates(config, steps, score=lambda step: 0.0):
    '''The learning rates of eight layers at every step. Shape: -> (steps, groups)'''
    network = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(8)])
    optimizer = build_optimizer(config, network)
    schedule = build_schedule(config, optimizer, steps)
    rates = []
    for step in range(steps):
        rates.append([group['lr'] for group in optimizer.param_groups])
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step(*([score(step)] if config.schedule == 'plateau' else []))
    return np.array(rates)


def half_cosine(start, end, done):
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def slow_one_cycle(config, step, steps):
    '''Half a cosine up to the peak in the first `warmup` of the steps, half a cosine down in the rest.'''
    peak = config.warmup * steps - 1
    if step <= peak:
        return half_cosine(config.lr_start, config.lr_peak, step / peak)
    return half_cosine(config.lr_peak, config.lr_end, (step - peak) / (steps - 1 - peak))


def slow_linear_cycle(config, step, steps):
    '''A straight line up to the peak in the first `warmup` of the steps, another one down in the rest.'''
    peak = config.warmup * steps - 1
    if step <= peak:
        return config.lr_start + (config.lr_peak - config.lr_start) * step / peak
    return config.lr_peak + (config.lr_end - config.lr_peak) * (step - peak) / (steps - 1 - peak)


def slow_rate(config, step, steps):
    '''Definition of the schedules that do not depend on scores.'''
    if config.schedule == 'linear-cycle':
        return slow_linear_cycle(config, step, steps)
    if config.schedule == 'one-cycle':
        return slow_one_cycle(config, step, steps)
    if config.schedule == 'cosine':
        return half_cosine(config.lr_peak, config.lr_end, step / steps)
    if config.schedule == 'steps':
        return config.lr_peak * config.factor ** sum(step >= steps * m for m in config.milestones)
    return config.lr_peak


@pytest.mark.parametrize('schedule', ['one-cycle', 'linear-cycle', 'cosine', 'steps', 'constant'])
def test_a_schedule_equals_its_definition_and_layer_decay_is_geometric(schedule):
    config = OptimConfig(
        lr_start=1e-3, lr_peak=1e-2, lr_end=1e-5, schedule=schedule, milestones=(0.25, 0.5, 0.9), factor=0.1
    )
    expected = [slow_rate(config, step, 20) for step in range(20)]
    np.testing.assert_allclose(learning_rates(config, 20)[:, 0], expected, rtol=1e-9)
    rates = learning_rates(replace(config, lr_end=1e-9, layer_decay=0.01), 20)[:15]
    np.testing.assert_allclose(rates[:, 1:] / rates[:, :-1], 0.01 ** (-1 / 7), rtol=1e-3)
    np.testing.assert_allclose(rates[:, -1], learning_rates(replace(config, lr_end=1e-9), 20)[:15, 0])


def test_a_plateau_lowers_the_rate_after_validations_without_improvement():
    config = OptimConfig(lr_start=1e-3, lr_peak=1e-2, schedule='plateau', patience=2, factor=0.5)
    scores = [0.5, 0.6, 0.6, 0.55, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8]
    rates = learning_rates(config, 10, scores.__getitem__)[:, 0]
    np.testing.assert_allclose(rates, [1e-2] * 5 + [5e-3] * 4 + [2.5e-3])


@pytest.mark.parametrize('layers', [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize('first_is_frozen', [False, True])
def test_layer_groups_hold_every_trainable_parameter_once(layers, first_is_frozen):
    network = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(layers)])
    network[0].requires_grad_(not first_is_frozen)
    expected = [id(p) for p in network.parameters() if p.requires_grad]
    for layer_decay in (1.0, 0.1):
        groups = layer_groups(network, layer_decay, 1e-2)
        assert [id(p) for group in groups for p in group['params']] == expected
    rates = [group['lr'] for group in groups]
    assert rates == sorted(rates) and len(rates) <= 8
    if expected:
        assert rates[-1] == 1e-2
    if len(expected) >= 8:
        assert rates[0] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ('kind', 'optimizer_class', 'decay_factor'),
    [('adamw', torch.optim.AdamW, 1), ('nadam', torch.optim.NAdam, 1), ('sgd', torch.optim.SGD, 1.9)],
)
def test_weight_decay_does_not_depend_on_the_gradient(kind, optimizer_class, decay_factor):
    '''Without a gradient a weight shrinks by rate * decay; in SGD Nesterov's momentum makes it 1.9 times that.'''
    network = nn.Linear(2, 2, bias=False)
    before = network.weight.detach().clone()
    optimizer = build_optimizer(OptimConfig(kind=kind, weight_decay=0.1, lr_peak=5e-3), network)
    assert isinstance(optimizer, optimizer_class) and optimizer.param_groups[0]['lr'] == 5e-3
    network.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    expected = before * (1 - 5e-3 * 0.1 * decay_factor)
    torch.testing.assert_close(network.weight.detach(), expected, rtol=1e-5, atol=1e-7)


def test_learning_rates_that_do_not_rise_and_fall_are_refused():
    with pytest.raises(KitError, match='must rise from lr_start to lr_peak'):
        OptimConfig(lr_start=1.0)


def test_the_schedule_begins_with_the_first_step_and_ends_with_the_last_one(tmp_path):
    trainer = new_trainer(TINY.override(['batch_size=2', 'epochs=3', 'no_augment_epochs=0']), noise_data(12))
    rates = []
    trainer.optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]['lr']))
    train_to_end(trainer, tmp_path)
    assert len(rates) == 3 * trainer.steps
    assert rates[0] == pytest.approx(trainer.recipe.optim.lr_start)
    assert rates[-1] == pytest.approx(trainer.recipe.optim.lr_end)


def test_ema_equals_its_definition(tmp_path):
    trainer = new_trainer(TINY.override(['optim.average=ema', 'optim.ema_decay=0.7']))
    average = {}

    def update(*_):
        for name, p in trainer.network.named_parameters():
            weights = p.detach().double()
            average[name] = 0.7 * average.get(name, weights) + 0.3 * weights

    trainer.optimizer.register_step_post_hook(update)
    train_to_end(trainer, tmp_path)
    for name, p in trainer.network.named_parameters():
        torch.testing.assert_close(p.double(), average[name], rtol=1e-4, atol=1e-6)


def test_swa_is_the_mean_of_the_last_epochs(tmp_path):
    trainer = new_trainer(TINY.override(['optim.average=swa', 'optim.swa_share=0.5', 'epochs=6']))
    after_epoch = []
    train_to_end(trainer, tmp_path, after_epoch=lambda row: after_epoch.append(copy_weights(trainer.network)))
    for name, p in trainer.network.named_parameters():
        mean = torch.stack([weights[name].double() for weights in after_epoch[3:]]).mean(0)
        torch.testing.assert_close(p.double(), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('average', ['ema', 'swa'])
def test_averaged_weights_are_validated_and_kept_and_do_not_change_the_training(tmp_path, average):
    '''Law 3.'''
    averaged = new_trainer(TINY.override([f'optim.average={average}', 'optim.ema_decay=0.5']))
    plain = new_trainer(TINY)
    validated = train_to_end(averaged, tmp_path)
    plain_validated = train_to_end(plain, tmp_path / 'plain')
    trained = torch.load(tmp_path / 'state.pt', weights_only=True)['network']
    assert equal_weights(trained, plain.network.state_dict())
    assert equal_weights(averaged.network.state_dict(), validated[4])
    # The first epochs are before SWA's share, so there is no average to validate yet.
    assert equal_weights(validated[1], plain_validated[1]) == (average == 'swa')
    best = new_trainer(averaged.recipe.override(['keep=best']))
    best_validated = train_to_end(best, tmp_path, lambda epoch: {1: 0.1, 2: 0.9}.get(epoch, 0.5))
    assert equal_weights(best.network.state_dict(), best_validated[2])
    assert equal_weights(best_validated[4], validated[4])


def test_batch_norms_are_estimated_with_the_averaged_weights(tmp_path):
    settings = ['optim.average=ema', 'optim.ema_decay=0.9', 'network.head.dropout=0']
    trainer = new_trainer(TINY.override(settings))
    inputs = []
    trainer.network.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    train_to_end(trainer, tmp_path)
    twin = copy.deepcopy(trainer.network)
    # The forward passes that came last are those of the final estimate.
    update_bn(inputs[-trainer.steps :], twin)
    expected = twin.state_dict()
    for name, value in trainer.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_a_training_with_averages_neither_uses_nor_changes_the_caller_s_randomness(tmp_path):
    recipe = TINY.override(['optim.average=ema', 'network.head.dropout=0.5', 'epochs=2'])
    results = []
    for seed in (1, 2):
        trainer = new_trainer(recipe)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        train_to_end(trainer, tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(trainer.network.state_dict())
    assert equal_weights(*results)


class Killed(Exception):
    '''Stands for a kill.'''


SETTINGS = {
    'ema': ['optim.average=ema', 'optim.ema_decay=0.9'],
    'swa': ['optim.average=swa', 'optim.swa_share=0.6'],
    'plateau': ['optim.schedule=plateau', 'optim.patience=0'],
    'steps': ['optim.schedule=steps'],
    'cosine': ['optim.schedule=cosine', 'optim.kind=nadam'],
    'sgd': ['optim.kind=sgd', 'optim.schedule=constant', 'optim.layer_decay=0.1'],
    'freeze': ['optim.freeze_epochs=2', 'optim.average=ema', 'keep=best'],
    'balanced': ['sampling.balance=clips', 'sampling.steps=2'],
    'sources': ['sources={"x":{},"y":{"weight":0.5,"share":0.5}}'],
}


@pytest.mark.parametrize(
    ('name', 'killed_after'), [*((name, 2) for name in SETTINGS), ('freeze', 3), ('swa', 3), ('plateau', 1)]
)
def test_a_killed_training_resumes_to_the_same_bits_with_any_settings(tmp_path, name, killed_after):
    recipe = TINY.override(SETTINGS[name])
    data = replace(DATA, sources=np.repeat(['x', 'y'], 6)) if name == 'sources' else DATA
    state = tmp_path / 'killed' / 'state.pt'

    def score(epoch):
        return {1: 0.4, 2: 0.6, 3: 0.5, 4: 0.3}[epoch]

    def kill(row):
        if row['epoch'] == killed_after:
            raise Killed

    whole = new_trainer(recipe, data)
    validated = train_to_end(whole, tmp_path, score)
    with pytest.raises(Killed):
        train_to_end(new_trainer(recipe, data), state.parent, score, kill)
    resumed = new_trainer(recipe, data)
    resumed.restore(state)
    validated_again = train_to_end(resumed, state.parent, score)
    assert equal_weights(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.history == whole.history
    assert sorted(validated_again) == list(range(killed_after + 1, 5))
    assert all(equal_weights(validated_again[epoch], validated[epoch]) for epoch in validated_again)
    finished = new_trainer(recipe, data)
    finished.restore(state)
    assert train_to_end(finished, state.parent) == {}
    assert equal_weights(finished.network.state_dict(), whole.network.state_dict())


def test_a_plateau_follows_the_scores_or_without_a_validation_fold_the_loss(tmp_path):
    settings = ['optim.schedule=plateau', 'optim.patience=1', 'optim.factor=0.5', 'epochs=8']
    recipe = TINY.override([*settings, 'no_augment_epochs=8'])
    of_fold = new_trainer(recipe)
    train_to_end(of_fold, tmp_path, lambda epoch: 0.1)
    rates = [row['lr'] / recipe.optim.lr_peak for row in of_fold.history]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]
    of_all_clips = new_trainer(recipe, fold=None)
    train_to_end(of_all_clips, tmp_path / 'all', lambda epoch: math.nan)
    best, bad_epochs, rate = math.inf, 0, 1.0
    for row in of_all_clips.history:
        assert row['lr'] / recipe.optim.lr_peak == rate
        bad_epochs = 0 if row['loss'] < best else bad_epochs + 1
        best = min(best, row['loss'])
        if bad_epochs > 1:
            rate, bad_epochs = rate / 2, 0
