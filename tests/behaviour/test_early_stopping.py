'''A training stops by patience and resumes to the same bits; a logger and `show` follow it epoch by epoch.'''

import math

import pandas as pd
import pytest
import torch

from kit.models.checkpoint import load_tagger
from kit.report import show
from kit.train.run import train_run
from tests.behaviour.training import QUIET, TINY, Killed, load_table, new_trainer, train_all, train_quietly

pytestmark = pytest.mark.usefixtures('one_core')

PATIENT = TINY.override(['epochs=8', 'validate_every=1', 'patience=2'])
SCORES = [0.3, 0.6, 0.5, 0.6, 0.9, 0.9, 0.9, 0.9]


def scored(trainer, scores=SCORES):
    '''A validation with a score for each epoch.'''
    return lambda: scores[trainer.epoch - 1]


def state_of(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def test_a_network_stops_after_patience_validations_without_a_better_score_and_keeps_the_best(toy, tmp_path):
    data = load_table(PATIENT, *toy)
    trainer = new_trainer(data, PATIENT)
    rows = train_all(trainer, tmp_path / 'state', scored(trainer))
    assert [row['score'] for row in rows] == SCORES[:4]  # an equal score is no better one
    assert trainer.is_stalled and trainer.kept_epoch == 2
    two = new_trainer(data, PATIENT)
    expected = []
    for row in two.train(tmp_path / 'two', scored(two)):
        expected += [state_of(two)] if row['epoch'] == 2 else []
    for name, value in state_of(trainer).items():
        assert torch.equal(value, expected[0][name])


def test_validations_are_counted_and_not_epochs(toy, tmp_path):
    recipe = PATIENT.override(['validate_every=2'])
    trainer = new_trainer(load_table(recipe, *toy), recipe)
    rows = train_all(trainer, tmp_path / 'state', lambda: 0.5)
    assert len(rows) == 6 and trainer.kept_epoch == 2


def test_a_network_that_gets_better_is_trained_to_the_end_and_still_keeps_its_best(toy, tmp_path):
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.65]
    data = load_table(PATIENT, *toy)
    trainer = new_trainer(data, PATIENT)
    assert len(train_all(trainer, tmp_path / 'state', scored(trainer, scores))) == 8
    assert trainer.kept_epoch == 7
    recipe = PATIENT.override(['patience=0'])
    trainer = new_trainer(data, recipe)
    assert len(train_all(trainer, tmp_path / 'other', scored(trainer))) == 8
    assert trainer.kept_epoch == 8


@pytest.mark.parametrize('killed_after', [1, 3, 4])
def test_a_killed_training_stops_at_the_same_epoch_with_the_same_bits(toy, tmp_path, killed_after):
    data = load_table(PATIENT, *toy)
    whole = new_trainer(data, PATIENT)
    train_all(whole, tmp_path / 'whole', scored(whole))
    first = new_trainer(data, PATIENT)
    with pytest.raises(Killed):
        train_all(first, tmp_path / 'state', scored(first), killed_after=killed_after)
    second = new_trainer(data, PATIENT)
    second.restore(tmp_path / 'state')
    train_all(second, tmp_path / 'state', scored(second))
    assert (second.epoch, second.history) == (whole.epoch, whole.history)
    for name, value in state_of(whole).items():
        assert torch.equal(value, state_of(second)[name])


def test_a_run_says_that_it_stopped_and_the_same_command_changes_nothing(toy, tmp_path, capsys):
    rates = ['optim.lr_peak=1e-9', 'optim.lr_start=1e-9', 'optim.lr_end=1e-12']  # nothing is learnt
    recipe = PATIENT.override(['patience=1', 'epochs=30', *rates])
    train_run(recipe, *toy, tmp_path / 'run', **QUIET | {'progress': True})
    printed = capsys.readouterr()
    for fold in (0, 1):
        words = f'note: 1 validations without a better lwlrap cut fold {fold} after epoch'
        assert words in printed.out
        assert f'fold {fold}: lwlrap 0.' in printed.out and f'fold {fold}, epoch 1, lwlrap 0.' in printed.err
    epochs = pd.read_csv(tmp_path / 'run' / 'history.csv').groupby('fold')['epoch'].max()
    assert (epochs < 30).all()
    assert f'{epochs.sum()}/{epochs.sum()}' in printed.err, 'the bar ends full'
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').glob('*.csv')}
    (tmp_path / 'run' / 'history.csv').unlink()  # as a kill between the state and the history would leave it
    train_quietly(recipe, *toy, tmp_path / 'run')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run').glob('*.csv')} == before
    card = load_tagger(tmp_path / 'run' / 'fold_0.pt').card
    best = pd.read_csv(tmp_path / 'run' / 'history.csv').query('fold == 0')['score'].max()
    assert card.oof_score == pytest.approx(best, abs=1e-6)


def test_patience_has_no_effect_without_held_out_clips(toy, tmp_path, capsys):
    recipe = PATIENT.override(['patience=1', 'epochs=4'])
    train_quietly(recipe, *toy, tmp_path / 'run', all_data=True)
    assert 'note: training on all data validates nothing: patience has no effect' in capsys.readouterr().out
    assert pd.read_csv(tmp_path / 'run' / 'history.csv')['epoch'].tolist() == [1, 2, 3, 4]


def test_a_logger_gets_each_new_epoch_s_row_of_the_history(toy, tmp_path):
    rows = []
    with pytest.raises(Killed):
        train_quietly(TINY, *toy, tmp_path / 'run', logger=killing(rows, 3))
    train_quietly(TINY, *toy, tmp_path / 'run', logger=rows.append)
    assert [(row['fold'], row['epoch']) for row in rows] == [(f, e) for f in (0, 1) for e in (1, 2, 3, 4)]
    assert list(rows[0]) == ['fold', 'seed', 'epoch', 'loss', 'lr', 'score', 'seconds']
    history = pd.read_csv(tmp_path / 'run' / 'history.csv')
    for row, (_, saved) in zip(rows, history.iterrows(), strict=True):
        assert row['loss'] == pytest.approx(saved['loss'], rel=1e-5)
        assert row['score'] == pytest.approx(saved['score'], nan_ok=True)
    assert math.isnan(rows[0]['score']) and 0 < rows[1]['score'] <= 1


def killing(rows, calls):
    '''A logger that keeps the rows, and kills the training at one of its calls.'''

    def logger(row):
        rows.append(row)
        if len(rows) == calls:
            raise Killed

    return logger


def test_show_works_on_a_run_that_goes_on(toy, tmp_path):
    shown = []
    finished = []

    def look(row):
        shown.append({name: cells[0] for name, *cells in show(tmp_path / 'run').rows})
        finished.append(row)

    recipe = TINY.override(['metric=padded_cmap'])
    train_quietly(recipe, *toy, tmp_path / 'run', logger=look)
    assert [rows['epochs'] for rows in shown[:4]] == [f'{k} of 4' for k in (1, 2, 3, 4)]
    assert shown[5]['epochs'] == '4 2 of 4'
    assert all(rows['padded_cmap'] == 'no oof.csv yet' for rows in shown)
    assert shown[0]['last padded_cmap'] == '-'
    scores = [f'{finished[k]["score"]:.4f}' for k in (3, 5)]
    assert scores[0] != f'{finished[1]["score"]:.4f}'
    assert shown[6]['last padded_cmap'] == ' '.join(scores) and shown[6]['padded_cmap, fold 0'] == scores[0]
