'''The trainer's state: kills, kept weights, several seeds, training on all clips, and deadlines.'''

import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.models.checkpoint import load_tagger
from kit.train.fold_training import new_tagger
from kit.train.oof import predict_oof
from kit.train.run import train_run
from tests.behaviour.training import (
    QUIET,
    TINY,
    copy_weights,
    new_trainer,
    no_score,
    same_bits,
    same_checkpoints,
    train_all,
    train_quietly,
)

pytestmark = pytest.mark.usefixtures('one_core')

PLAIN = TINY.override(['mixup.p=0', 'network.head.dropout=0', 'no_augment_epochs=0'])


# Kills and states


def test_a_kill_within_an_epoch_loses_only_that_epoch(data, tmp_path):
    '''Law 7. The tests of the optimiser kill between the epochs, under many settings.'''
    whole, killed, resumed = (new_trainer(data) for _ in range(3))
    train_all(whole, tmp_path / 'whole.pt')
    path = tmp_path / 'killed.pt'
    with pytest.raises(KeyError):
        train_all(killed, path, lambda: {2: 0.0}[killed.epoch])  # dies in epoch 4
    (tmp_path / '.killed.pt.part').write_bytes(b'half a state')
    resumed.restore(path)
    assert [row['epoch'] for row in train_all(resumed, path)] == [4]
    assert same_bits(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.history == whole.history and resumed.prevalences == whole.prevalences


def test_a_state_of_another_recipe_or_a_damaged_one_is_refused(data, tmp_path):
    train_all(new_trainer(data, TINY.override(['epochs=1'])), tmp_path / 'state.pt')
    with pytest.raises(KitError, match=r'state\.pt belongs to another recipe'):
        new_trainer(data).restore(tmp_path / 'state.pt')
    (tmp_path / 'state.pt').write_bytes(b'no state at all')
    with pytest.raises(KitError, match=r'state\.pt cannot be read: remove it'):
        new_trainer(data).restore(tmp_path / 'state.pt')


def test_the_last_epoch_is_always_validated(data, tmp_path):
    rows = train_all(new_trainer(data, TINY.override(['epochs=3'])), tmp_path / 'state.pt')
    assert ['score' in row for row in rows] == [False, True, True]


def test_another_seed_or_fold_starts_from_other_weights(data):
    first, same, other_seed, other_fold = (
        new_tagger(recipe, data, fold).network.state_dict()
        for recipe, fold in ((TINY, 0), (TINY, 0), (TINY.override(['seed=1']), 0), (TINY, 1))
    )
    assert same_bits(first, same)
    assert not same_bits(first, other_seed) and not same_bits(first, other_fold)


@pytest.mark.parametrize('keep, kept', [('last', 4), ('best', 2)])
def test_the_checkpoint_keeps_the_first_best_or_the_last_weights(data, tmp_path, keep, kept):
    trainer = new_trainer(data, TINY.override([f'keep={keep}', 'validate_every=1']))
    weights = {}

    def validate():
        weights[trainer.epoch] = copy_weights(trainer.network)
        return {1: 0.3, 2: 0.8, 3: 0.8, 4: 0.5}[trainer.epoch]

    train_all(trainer, tmp_path / 'state.pt', validate)
    assert sorted(weights) == [1, 2, 3, 4] and not same_bits(weights[2], weights[4])
    assert same_bits(trainer.network.state_dict(), weights[kept])


# Several seeds, and all clips


@pytest.fixture(scope='module')
def two_seeds(toy, tmp_path_factory):
    '''A run with two networks per fold.'''
    return train_quietly(replace(TINY, seeds=2, epochs=2), *toy, tmp_path_factory.mktemp('seeds') / 'run')


def test_several_seeds_per_fold_are_different_networks_and_out_of_fold_is_their_mean(two_seeds, toy, tmp_path):
    folder = two_seeds.folder
    names = ['fold_0.pt', 'fold_0_seed_1.pt', 'fold_1.pt', 'fold_1_seed_1.pt']
    assert sorted(path.name for path in folder.glob('*.pt')) == names
    alone = train_quietly(replace(two_seeds.recipe, seeds=1), *toy, tmp_path / 'alone')
    for fold in (0, 1):
        first, second = folder / f'fold_{fold}.pt', folder / f'fold_{fold}_seed_1.pt'
        assert same_checkpoints(first, alone.folder / f'fold_{fold}.pt')
        assert not same_checkpoints(first, second)
        card = load_tagger(second).card
        assert (card.seed, card.fold, card.held_out) == (1, fold, load_tagger(first).card.held_out)
    history = pd.read_csv(folder / 'history.csv')
    rows = [[fold, seed, epoch] for fold in (0, 1) for seed in (0, 1) for epoch in (1, 2)]
    assert history[['fold', 'seed', 'epoch']].values.tolist() == rows
    paths = [toy[1] / name for name in two_seeds.oof.names[::2]]
    submitted = [predict_clips(folder / name, paths, device='cpu', threads=1) for name in names[:2]]
    mean = np.mean([of_one.probabilities for of_one in submitted], axis=0)
    np.testing.assert_allclose(two_seeds.oof.probabilities[::2], mean, atol=1e-5)
    shutil.copytree(folder, tmp_path / 'run')
    again = predict_oof(tmp_path / 'run', toy[1], **QUIET)
    assert again.names == two_seeds.oof.names and len(again.names) == 14
    np.testing.assert_allclose(again.probabilities, two_seeds.oof.probabilities, atol=1e-5)


def test_a_model_of_all_clips_is_trained_on_every_clip_and_takes_the_folds_calibrations(
    two_seeds, toy, tmp_path, capsys
):
    shutil.copytree(two_seeds.folder, tmp_path / 'run')
    before = (tmp_path / 'run' / 'oof.csv').read_bytes()
    run = train_quietly(two_seeds.recipe, *toy, tmp_path / 'run', all_data=True)
    assert run.oof is None and 'one model of all clips' in str(run)
    assert (tmp_path / 'run' / 'oof.csv').read_bytes() == before
    fold_cards = [load_tagger(path).card for path in sorted((tmp_path / 'run').glob('fold_*.pt'))]
    for name in ('all.pt', 'all_seed_1.pt'):
        card = load_tagger(tmp_path / 'run' / name).card
        assert card.fold is None and card.output == 'ranking' and card.oof_score is None
        scale = np.mean([of_fold.calibration.scale for of_fold in fold_cards])
        offset = np.mean([of_fold.calibration.offset for of_fold in fold_cards])
        assert (card.calibration.scale, card.calibration.offset) == pytest.approx((scale, offset))
    history = pd.read_csv(tmp_path / 'run' / 'history.csv', dtype={'fold': str})
    assert history['fold'].tolist() == ['0'] * 4 + ['1'] * 4 + ['all'] * 4
    assert history[history['fold'] == 'all']['score'].isna().all()
    capsys.readouterr()
    alone = train_quietly(two_seeds.recipe, *toy, tmp_path / 'alone', all_data=True)
    assert 'a rank score without folds in its folder has no calibration' in capsys.readouterr().out
    assert load_tagger(alone.folder / 'all.pt').card.calibration is None
    assert same_checkpoints(alone.folder / 'all.pt', tmp_path / 'run' / 'all.pt')


@pytest.mark.parametrize('way', ['keep=best', 'optim.average=ema', 'deadline'])
def test_a_model_of_all_clips_keeps_its_last_weights_because_it_has_no_best(data, tmp_path, way):
    recipe = replace(PLAIN, validate_every=1)
    recipe = recipe if way == 'deadline' else recipe.override([way])
    deadline = Deadline(1e9, lambda: 0.0) if way == 'deadline' else None
    trainer = new_trainer(data, recipe, fold=None)
    train_all(trainer, tmp_path / 'state.pt', lambda: math.nan, deadline)
    plain = new_trainer(data, PLAIN, fold=None)
    train_all(plain, tmp_path / 'plain.pt', lambda: math.nan)
    assert trainer.kept_epoch == 4
    averaged = trainer.averaged.module.state_dict() if trainer.averaged else {}
    expected = {**plain.network.state_dict(), **averaged}
    for name, parameter in trainer.network.named_parameters():
        assert torch.equal(parameter, expected[name])


# Deadlines


class Clock:
    '''A clock that moves only when something is done.'''

    seconds = 0.0

    def now(self):
        '''The time.'''
        return self.seconds

    def advance(self, seconds):
        '''Move the clock.'''
        self.seconds += seconds


def timed(data, recipe, clock, epoch_s, validation_s, score=lambda epoch: 0.5, weights=None):
    '''A trainer and a validation that take their time, and keep the weights of each validation.'''
    trainer = new_trainer(data, recipe)
    assert trainer.steps == 1
    trainer.optimizer.register_step_pre_hook(lambda *_: clock.advance(epoch_s))

    def validate():
        clock.advance(validation_s)
        if weights is not None:
            weights[trainer.epoch] = copy_weights(trainer.network)
        return score(trainer.epoch)

    return trainer, validate


@pytest.mark.parametrize('epoch_s, validation_s', [(10, 0), (1, 10), (3, 3), (0.1, 20)])
@pytest.mark.parametrize('deadline', [-5, 45, 100])
def test_a_training_stops_before_its_deadline_and_is_validated(data, tmp_path, epoch_s, validation_s, deadline):
    '''Law 8. A first epoch is trained even without time.'''
    clock = Clock()
    recipe = replace(PLAIN, epochs=40, validate_every=2)
    trainer, validate = timed(data, recipe, clock, epoch_s, validation_s)
    train_all(trainer, tmp_path / 'state.pt', validate, Deadline(deadline, clock.now))
    assert 'score' in trainer.history[-1]
    assert trainer.epoch == 1 if deadline < 0 else clock.seconds <= deadline
    if trainer.epoch < 40:
        assert clock.seconds + 3 * (epoch_s + validation_s) > deadline


def test_a_cut_training_keeps_its_best_weights_and_continues_to_where_it_would_have_ended(data, tmp_path):
    clock = Clock()
    recipe = replace(PLAIN, epochs=8, validate_every=2)
    weights = {}
    trainer, validate = timed(data, recipe, clock, 10, 0, lambda e: {2: 0.9, 4: 0.4}.get(e, 0.1), weights)
    train_all(trainer, tmp_path / 'state.pt', validate, Deadline(68, clock.now))
    assert trainer.epoch == 5 and trainer.kept_epoch == 2
    assert same_bits(trainer.network.state_dict(), weights[2]) and not same_bits(weights[2], weights[5])
    no_time = new_trainer(data, recipe)
    no_time.restore(tmp_path / 'state.pt')
    assert train_all(no_time, tmp_path / 'state.pt', None, Deadline(5, clock.now)) == []
    assert same_bits(no_time.network.state_dict(), weights[2])
    resumed, whole = new_trainer(data, recipe), new_trainer(data, recipe)
    resumed.restore(tmp_path / 'state.pt')
    train_all(resumed, tmp_path / 'state.pt', no_score)
    train_all(whole, tmp_path / 'whole.pt', no_score)
    assert resumed.epoch == 8 == resumed.kept_epoch
    assert same_bits(resumed.network.state_dict(), whole.network.state_dict())


def test_a_run_that_was_cut_says_so_and_the_same_call_continues_it(toy, tmp_path, capsys):
    recipe = replace(TINY, epochs=3, no_augment_epochs=0)
    options = {**QUIET, 'only_folds': [0]}
    cut = train_run(recipe, *toy, tmp_path / 'run', deadline=1e-3, **options)
    assert 'the deadline cut fold 0 after epoch 1 of 3' in capsys.readouterr().out
    card = load_tagger(tmp_path / 'run' / 'fold_0.pt').card
    assert card.output == 'ranking' and card.calibration is not None
    assert len(cut.oof.names) == 7 and cut.oof.score == pytest.approx(card.oof_score, abs=1e-6)
    train_run(recipe, *toy, tmp_path / 'run', **options)
    train_run(recipe, *toy, tmp_path / 'whole', **options)
    assert same_checkpoints(tmp_path / 'run' / 'fold_0.pt', tmp_path / 'whole' / 'fold_0.pt')
