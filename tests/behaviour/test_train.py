'''Runs: the same seed gives the same bits, held-out clips leave no trace, folds are scored as they are submitted.'''

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_text
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.labels.metrics import lwlrap
from kit.labels.table import label_targets, read_clip_table
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import complete_network
from kit.train.oof import predict_oof
from kit.train.recipe import Recipe
from kit.train.run import run_files, train_run
from tests.behaviour.training import (
    CLASSES,
    CPU,
    QUIET,
    TINY,
    Killed,
    make_set,
    new_trainer,
    same_bits,
    same_checkpoints,
    train_all,
    train_quietly,
    weights_of,
    write_clip,
)

pytestmark = pytest.mark.usefixtures('one_core')

WINDOWS = InferenceConfig(mode='windows', window_s=0.25, hop_s=0.125, pool='mean')
NAMES = [f'{i:02d}.wav' for i in range(14)]


@pytest.fixture(scope='module')
def run(toy, tmp_path_factory):
    '''A run of two folds on them. Tests that write into its folder take a copy.'''
    return train_quietly(TINY, *toy, tmp_path_factory.mktemp('run') / 'run')


@pytest.fixture
def run_copy(run, tmp_path):
    '''A copy of the run's folder.'''
    return shutil.copytree(run.folder, tmp_path / 'run')


def folder_bytes(folder):
    '''The content of every file in a folder.'''
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# What a run writes


def test_a_run_is_a_folder_of_its_parts(run):
    names = sorted(path.name for path in run.folder.iterdir())
    assert names == ['fold_0.pt', 'fold_1.pt', 'folds.csv', 'history.csv', 'oof.csv', 'recipe.json', 'state']
    assert Recipe(**json.loads((run.folder / 'recipe.json').read_text())) == TINY
    history = pd.read_csv(run.folder / 'history.csv')
    assert history['fold'].tolist() == [0] * 4 + [1] * 4 and history['epoch'].tolist() == [1, 2, 3, 4] * 2
    assert history['score'].notna().tolist() == [False, True] * 4
    assert np.isfinite(history['loss']).all()
    assert 'lwlrap' in str(run) and 'fold 1' in str(run)


def test_a_checkpoint_states_its_recipe_fold_prevalences_and_score(run, toy):
    frame = pd.read_csv(run.folder / 'oof.csv')
    assert frame['fname'].tolist() == NAMES
    probs = frame[list(CLASSES)].to_numpy()
    truth = label_targets(read_clip_table(toy[0])['labels'], CLASSES)
    np.testing.assert_array_equal(run.oof.truth, truth)
    assert run.oof.score == pytest.approx(lwlrap(truth, probs), abs=1e-6)
    for fold in (0, 1):
        card = load_tagger(run.folder / f'fold_{fold}.pt').card
        assert (card.classes, card.fold, card.seed, card.output) == (CLASSES, fold, 0, 'ranking')
        assert card.frontend == TINY.frontend and card.inference == TINY.inference
        assert Recipe(**card.recipe) == TINY
        np.testing.assert_allclose(card.prevalences, truth[1 - fold :: 2].mean(axis=0), rtol=1e-6)
        assert card.oof_score == pytest.approx(lwlrap(truth[fold::2], probs[fold::2]), abs=2e-6)


def test_unknown_labels_stay_unknown_from_the_table_to_the_score(toy, tmp_path):
    '''Law 5.'''
    frame = read_clip_table(toy[0])
    truth = label_targets(frame['labels'], CLASSES)
    is_hidden = (np.arange(truth.size).reshape(truth.shape) % 4 == 0) & (truth == 0)
    is_false = (truth == 0) & ~is_hidden
    false = [','.join(np.array(CLASSES)[row]) for row in is_false]
    frame.assign(false_labels=false).to_csv(tmp_path / 'partial.csv', index=False)
    partial = train_quietly(TINY, tmp_path / 'partial.csv', toy[1], tmp_path / 'run')
    expected = np.where(is_hidden, np.nan, truth)
    np.testing.assert_array_equal(partial.oof.truth, expected)
    assert partial.oof.score == pytest.approx(lwlrap(expected, partial.oof.probabilities))
    np.testing.assert_array_equal(predict_oof(partial.folder, toy[1], 'cpu', 1, False).truth, expected)
    for fold in (0, 1):
        card = load_tagger(partial.folder / f'fold_{fold}.pt').card
        prevalences = np.nanmean(expected[1 - fold :: 2], axis=0)
        np.testing.assert_allclose(card.prevalences, prevalences, rtol=1e-6)


def test_the_progress_bar_and_a_line_per_fold_show_the_score(toy, tmp_path, capsys):
    options = QUIET | {'progress': True}
    run = train_run(replace(TINY, epochs=2, loss='bce'), *toy, tmp_path / 'run', only_folds=[1], **options)
    assert f'fold 1: lwlrap {run.oof.score:.4f}, 0.0 min' in capsys.readouterr().out


# Seeds and folds


def test_the_same_seed_gives_the_same_bits_also_fold_by_fold(run, toy, tmp_path):
    '''Law 14.'''
    again = tmp_path / 'run'
    for fold in (1, 0):
        train_quietly(TINY, *toy, again, only_folds=[fold])
        assert same_checkpoints(again / f'fold_{fold}.pt', run.folder / f'fold_{fold}.pt')
        assert (again / 'fold_0.pt').exists() == (fold == 0)
    for name in ('oof.csv', 'folds.csv', 'recipe.json'):
        assert (again / name).read_bytes() == (run.folder / name).read_bytes()
    one, other = (pd.read_csv(folder / 'history.csv').drop(columns='seconds') for folder in (again, run.folder))
    pd.testing.assert_frame_equal(one, other)


def test_a_held_out_clip_leaves_no_trace_in_the_weights(toy, tmp_path):
    '''Law 4. Fold 0 keeps its weights whatever its held-out clips hold, but not if a training clip changes.'''
    trained = []
    for changed in (None, 4, 5):
        folder = tmp_path / f'changed_{changed}'
        shutil.copytree(toy[1], folder / 'clips')
        frame = pd.read_csv(toy[0])
        if changed is not None:
            write_clip(folder / 'clips' / NAMES[changed], CLASSES, 3.0, np.random.default_rng(9))
            frame.loc[changed, 'labels'] = 'high,low,noisy'
        frame.to_csv(folder / 'table.csv', index=False)
        recipe = TINY.override(['epochs=2'])
        train_quietly(recipe, folder / 'table.csv', folder / 'clips', folder / 'run', only_folds=[0])
        tagger = load_tagger(folder / 'run' / 'fold_0.pt')
        trained.append((tagger.network.state_dict(), tagger.card.prevalences))
    (plain, prevalences), (held_out, same_prevalences), (trained_on, _) = trained
    assert same_bits(plain, held_out) and prevalences == same_prevalences
    assert not same_bits(plain, trained_on)


def test_groups_stay_in_one_fold_and_a_group_in_two_is_refused_before_anything_is_written(tmp_path):
    recordings = [f'r{i // 2}' for i in range(12)]
    table, audio = make_set(tmp_path, 12, recording=recordings)
    with pytest.raises(KitError, match=r"group 'r0' lies in fold 0 and in fold 1"):
        train_quietly(TINY, table, audio, tmp_path / 'run', group_column='recording')
    assert not (tmp_path / 'run').exists()
    pd.read_csv(table).drop(columns='fold').to_csv(table, index=False)
    run = train_quietly(TINY.override(['epochs=1']), table, audio, tmp_path / 'run', group_column='recording')
    folds = pd.read_csv(run.folder / 'folds.csv')
    assert folds.groupby('recording')['fold'].nunique().max() == 1 and folds['fold'].nunique() == 2
    assert sorted(run.oof.names) == NAMES[:12]


# Continuing a run


def test_a_killed_run_ends_as_if_it_had_not_been_killed(run, toy, data, tmp_path):
    '''Law 7.'''
    frame = read_clip_table(toy[0])
    for name, text in run_files(TINY, frame).items():
        write_text(tmp_path / 'run' / name, text)
    with pytest.raises(Killed):
        train_all(new_trainer(data), tmp_path / 'run' / 'state' / 'fold_0.resume.pt', killed_after=3)
    again = train_quietly(TINY, *toy, tmp_path / 'run')
    for fold in (0, 1):
        assert same_checkpoints(again.folder / f'fold_{fold}.pt', run.folder / f'fold_{fold}.pt')
    assert (again.folder / 'oof.csv').read_bytes() == (run.folder / 'oof.csv').read_bytes()


def test_a_finished_run_is_not_trained_again(run, run_copy, toy, capsys):
    (run_copy / 'fold_0.pt').unlink()
    times = {path: path.stat().st_mtime_ns for path in (run_copy / 'state').glob('*.pt')}
    again = train_quietly(TINY, *toy, run_copy)
    assert {path: path.stat().st_mtime_ns for path in times} == times and len(times) == 2
    assert same_checkpoints(run_copy / 'fold_0.pt', run.folder / 'fold_0.pt')
    np.testing.assert_array_equal(again.oof.probabilities, run.oof.probabilities)
    assert (run_copy / 'history.csv').read_bytes() == (run.folder / 'history.csv').read_bytes()
    assert 'fold 1 was trained already up to epoch 4 of 4' in capsys.readouterr().out


@pytest.mark.parametrize('keep', ['last', 'best'])
def test_the_last_validation_is_not_repeated_unless_other_weights_are_kept(toy, tmp_path, keep, monkeypatch):
    predicted = []
    predict = Predictor.predict

    def counted(self, specs, *more):
        predicted.append(len(specs))
        return predict(self, specs, *more)

    monkeypatch.setattr(Predictor, 'predict', counted)
    recipe = TINY.override([f'keep={keep}', 'loss=bce'])
    run = train_quietly(recipe, *toy, tmp_path / 'run', only_folds=[0])
    scores = pd.read_csv(run.folder / 'history.csv')['score'].dropna().tolist()
    last_is_kept = keep == 'last' or scores[1] > scores[0]
    assert predicted == [7] * (2 if last_is_kept else 3)
    card = load_tagger(run.folder / 'fold_0.pt').card
    assert card.oof_score == pytest.approx(scores[1] if keep == 'last' else max(scores), abs=1e-6)
    again = train_quietly(recipe, *toy, tmp_path / 'run', only_folds=[0])
    assert predicted[-1:] == [7] and len(predicted) == (3 if last_is_kept else 4)
    np.testing.assert_array_equal(again.oof.probabilities, run.oof.probabilities)


def test_a_fold_continues_without_the_pretrained_file_that_it_started_from(toy, tmp_path):
    timm = pytest.importorskip('timm')
    name = 'test_efficientnet.r160_in1k'
    file = tmp_path / 'pretrained.pt'
    torch.save(timm.create_model(name, in_chans=2).state_dict(), file)
    recipe = replace(
        TINY,
        network=complete_network({'family': 'timm', 'name': name, 'weights': str(file)}),
        frontend=replace(TINY.frontend, n_mels=32),
        epochs=2,
        no_augment_epochs=0,
    )
    train_quietly(recipe, *toy, tmp_path / 'whole', only_folds=[0])
    shutil.copytree(tmp_path / 'whole', tmp_path / 'run')
    (tmp_path / 'run' / 'fold_0.pt').unlink()
    file.unlink()
    train_quietly(recipe, *toy, tmp_path / 'run', only_folds=[0])
    assert same_checkpoints(tmp_path / 'run' / 'fold_0.pt', tmp_path / 'whole' / 'fold_0.pt')
    with pytest.raises(KitError, match='no pretrained file'):
        train_quietly(recipe, *toy, tmp_path / 'run', only_folds=[1])


def test_a_folder_of_another_run_is_refused_and_not_changed(run, toy, tmp_path):
    before = folder_bytes(run.folder)
    with pytest.raises(KitError, match=r'recipe\.json belongs to another run \(epochs is 4 there and 5 here\)'):
        train_quietly(TINY.override(['epochs=5']), *toy, run.folder)
    frame = pd.read_csv(toy[0])
    frame.assign(fold=1 - frame['fold']).to_csv(tmp_path / 'table.csv', index=False)
    with pytest.raises(KitError, match=r'folds\.csv belongs to another run.*choose another --out'):
        train_quietly(TINY, tmp_path / 'table.csv', toy[1], run.folder)
    assert folder_bytes(run.folder) == before


def test_a_call_that_failed_does_not_stand_in_the_way_of_its_correction(toy, tmp_path, capsys):
    with pytest.raises(KitError, match='does not exist'):
        train_quietly(TINY, toy[0], tmp_path / 'nowhere', tmp_path / 'run')
    assert 'note' not in capsys.readouterr().out
    recipe = replace(TINY, epochs=1, no_augment_epochs=0, n_folds=3)
    assert train_quietly(recipe, *toy, tmp_path / 'run').oof.score > 0
    assert 'the table has 2 folds; n_folds=3 is not used' in capsys.readouterr().out


# Out-of-fold predictions


def test_out_of_fold_predictions_are_what_the_checkpoints_submit(run, toy):
    '''Law 3.'''
    for fold in (0, 1):
        paths = [toy[1] / name for name in NAMES[fold::2]]
        own, other = (
            predict_clips(run.folder / f'fold_{k}.pt', paths, device='cpu', threads=1).probabilities
            for k in (fold, 1 - fold)
        )
        np.testing.assert_allclose(run.oof.probabilities[fold::2], own, atol=1e-5, rtol=0)
        assert np.abs(other - own).max() > 1e-3


def test_windows_are_validated_and_scored_as_they_are_submitted(toy, tmp_path):
    '''Law 3. The last score in the history is the one on the card, and probabilities need no calibration.'''
    recipe = replace(TINY, loss='bce', epochs=2, seed=1, inference=WINDOWS)
    run = train_quietly(recipe, *toy, tmp_path / 'run', only_folds=[0])
    paths = [toy[1] / name for name in NAMES[::2]]
    submitted = predict_clips(run.folder / 'fold_0.pt', paths, device='cpu', threads=1)
    np.testing.assert_allclose(run.oof.probabilities, submitted.probabilities, atol=1e-5, rtol=0)
    card = load_tagger(run.folder / 'fold_0.pt').card
    last = pd.read_csv(run.folder / 'history.csv')['score'].iloc[-1]
    assert last == pytest.approx(card.oof_score, abs=1e-6)
    assert card.output == 'probability' and card.calibration is None and card.is_calibrated


def test_ranking_scores_become_probabilities_by_the_card_s_scale_and_offset(run, data):
    '''Law 12.'''
    for fold in (0, 1):
        tagger = load_tagger(run.folder / f'fold_{fold}.pt')
        calibration = tagger.card.calibration
        assert tagger.card.output == 'ranking' and calibration.scale > 0
        rows = data.held_out(fold)
        windows = Predictor(tagger, CPU).predict([data.spectrograms[row] for row in rows])
        logits = np.concatenate([of_clip.logits for of_clip in windows]).astype(np.float64)
        by_hand = 1 / (1 + np.exp(-(calibration.scale * logits + calibration.offset)))
        np.testing.assert_allclose(run.oof.probabilities[rows], by_hand, atol=1e-5)


def test_oof_repeats_the_predictions_of_the_training(run, run_copy, toy):
    (run_copy / 'oof.csv').unlink()
    before = weights_of(run_copy / 'fold_1.pt')
    result = predict_oof(run_copy, toy[1], **QUIET)
    assert result.names == run.oof.names and result.failures == {}
    np.testing.assert_allclose(result.probabilities, run.oof.probabilities, atol=1e-5)
    assert (run_copy / 'oof.csv').is_file()
    assert same_bits(weights_of(run_copy / 'fold_1.pt'), before)


def test_oof_refuses_folds_that_were_changed_after_training(run_copy, toy):
    '''Law 4.'''
    frame = pd.read_csv(run_copy / 'folds.csv', dtype={'fname': str})
    swapped = frame.assign(fold=[1, 0, *frame['fold'][2:]])
    added = pd.concat([frame, frame.iloc[[3]].assign(fname='new.wav', fold=0)])
    for changed in (swapped, added, frame.drop(index=2)):
        changed.to_csv(run_copy / 'folds.csv', index=False)
        before = folder_bytes(run_copy)
        with pytest.raises(KitError, match=r'fold_0\.pt was trained with other folds.*would leak'):
            predict_oof(run_copy, toy[1], **QUIET)
        assert folder_bytes(run_copy) == before


def test_oof_of_a_wrong_folder_changes_nothing_and_says_the_cure(run_copy, toy, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(KitError, match=r'holds no run \(no folds\.csv\): give the folder that `train` wrote'):
        predict_oof(tmp_path / 'empty', toy[1], progress=False)
    before = folder_bytes(run_copy)
    with pytest.raises(KitError, match='nothing was changed'):
        predict_oof(run_copy, tmp_path / 'empty', **QUIET)
    assert folder_bytes(run_copy) == before
    for path in run_copy.glob('fold_*.pt'):
        path.unlink()
    with pytest.raises(KitError, match=r'no checkpoint fold_\*\.pt yet: let `train` finish a fold'):
        predict_oof(run_copy, toy[1], progress=False)


def test_a_clip_without_finite_logits_is_named_and_gets_the_prior(run_copy, toy):
    tagger = load_tagger(run_copy / 'fold_1.pt')
    with torch.no_grad():
        tagger.network.head.classifier[-1].bias[0] = torch.nan
    save_tagger(run_copy / 'fold_1.pt', tagger)
    result = predict_oof(run_copy, toy[1], **QUIET)
    assert list(result.failures) == NAMES[1::2]
    np.testing.assert_allclose(result.probabilities[1], tagger.card.prevalences, rtol=1e-6)


def test_the_hardest_classes_are_among_those_that_have_a_true_label(run):
    truth = np.zeros((4, 8))
    truth[:2, 6] = truth[2:, 7] = 1
    scores = np.tile(np.linspace(0, 1, 8), (4, 1))
    oof = replace(run.oof, classes=tuple('abcdefgh'), folds=np.zeros(4), truth=truth, probabilities=scores)
    assert 'hardest classes (lwlrap): g 0.500, h 1.000' in str(oof)
    assert 'THE SAME SCORES FOR EVERY CLIP' in str(oof) and 'THE SAME' not in str(run.oof)


# Inputs that cannot be used


def test_columns_folds_and_clips_that_are_not_there_are_errors_with_the_right_names(toy, tmp_path):
    with pytest.raises(KitError, match=r"unknown column 'recording'"):
        train_quietly(TINY, *toy, tmp_path / 'run', group_column='recording')
    with pytest.raises(KitError, match=r'folds \[5\] were asked for, the table has \[0, 1\]'):
        train_quietly(TINY, *toy, tmp_path / 'run', only_folds=[5])
    with pytest.raises(KitError, match=r'none of the 14 clips of the table can be decoded'):
        train_quietly(TINY, toy[0], tmp_path, tmp_path / 'run')
    pd.read_csv(toy[0]).assign(fold=[0] * 13 + [1]).to_csv(tmp_path / 'table.csv', index=False)
    with pytest.raises(KitError, match=r'fold 0 has 1 training clips, and needs 2'):
        train_quietly(TINY, tmp_path / 'table.csv', toy[1], tmp_path / 'run')


@pytest.mark.parametrize('labelled', [None, 'gone.wav'])
def test_a_fold_that_cannot_be_scored_is_refused_before_anything_is_trained(tmp_path, labelled):
    table, audio = make_set(tmp_path, 7)
    frame = pd.read_csv(table).assign(fold=[0, 0, 0, 0, 1, 1, 1])
    frame.loc[4, 'fname'] = labelled or '04.wav'
    frame.loc[5 if labelled else 4 :, 'labels'] = ''
    frame.to_csv(table, index=False)
    with pytest.raises(KitError, match=r'fold 1 cannot be scored .*: none of the \d clips has a true label'):
        train_quietly(TINY, table, audio, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_clips_that_cannot_be_decoded_are_named_and_get_the_prior(tmp_path, capsys):
    '''Law 6.'''
    table, audio = make_set(tmp_path, 10)
    (audio / '04.wav').write_text('no sound at all')
    (audio / '07.wav').unlink()
    run = train_quietly(TINY.override(['epochs=1']), table, audio, tmp_path / 'run')
    assert sorted(run.oof.failures) == ['04.wav', '07.wav']
    assert '04.wav' in capsys.readouterr().out and '07.wav' in str(run)
    for row, fold in ((4, 0), (7, 1)):
        prior = load_tagger(run.folder / f'fold_{fold}.pt').card.prevalences
        np.testing.assert_allclose(run.oof.probabilities[row], prior, rtol=1e-6)
    assert np.isfinite(run.oof.probabilities).all()


def test_a_table_may_leave_the_extensions_out(run, toy, tmp_path):
    text = toy[0].read_text().replace('.wav', '')
    (tmp_path / 'bare.csv').write_text(text)
    again = train_quietly(TINY, tmp_path / 'bare.csv', toy[1], tmp_path / 'run')
    np.testing.assert_array_equal(again.oof.probabilities, run.oof.probabilities)


def test_no_network_learns_from_the_test_fold_and_its_score_is_that_of_their_mean(toy, tmp_path):
    table = pd.read_csv(toy[0])
    table.loc[table.index[:4], 'fold'] = -2
    table.to_csv(tmp_path / 'table.csv', index=False)
    run = train_quietly(TINY, tmp_path / 'table.csv', toy[1], tmp_path / 'run')
    # Without these rows the run is the same, bit for bit.
    table.iloc[4:].to_csv(tmp_path / 'fewer.csv', index=False)
    fewer = train_quietly(TINY, tmp_path / 'fewer.csv', toy[1], tmp_path / 'fewer')
    paths = [tmp_path / 'run' / f'fold_{fold}.pt' for fold in (0, 1)]
    for path in paths:
        assert same_checkpoints(path, tmp_path / 'fewer' / path.name)
    assert run.oof.names == fewer.oof.names and not fewer.test
    predicted = predict_clips([*map(str, paths)], [toy[1] / name for name in table['fname'][:4]], threads=1)
    truth = label_targets(list(table['labels'][:4]), predicted.classes)
    score = lwlrap(truth, predicted.probabilities)
    assert f'test: lwlrap {score:.4f}' in str(run) and '4 clips' in run.test and 'mean of 2 networks' in run.test
    of_all = train_quietly(TINY, tmp_path / 'table.csv', toy[1], tmp_path / 'run', all_data=True)
    alone = train_quietly(TINY, tmp_path / 'fewer.csv', toy[1], tmp_path / 'fewer', all_data=True)
    assert same_checkpoints(alone.folder / 'all.pt', of_all.folder / 'all.pt') and 'mean of 1' in of_all.test
