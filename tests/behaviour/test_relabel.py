'''Relabelling: labels come only from models that never trained on the clip; unknown stays unknown.'''

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.infer.postprocess import estimate_prevalences, scale_odds
from kit.infer.predict import predict_clips
from kit.labels.boxes import Boxes
from kit.labels.soft import SoftLabels, align_soft_labels, read_soft_labels
from kit.labels.table import apply_corrections, clip_labels, label_targets, read_clip_table
from kit.models.checkpoint import load_tagger, save_tagger
from kit.train.pseudo_labels import (
    SelfTrainingConfig,
    agreement_order,
    confident_labels,
    correct_by_boxes,
    curate_windows,
    fill_plain,
    keep_agreeing,
    make_snr_sets,
    snr_ratio,
)
from kit.train.run import train_run
from kit.train.self_training import predict_pseudo_labels, relabel, window_inference
from tests.behaviour.training import CLASSES, QUIET, TINY, make_set

pytestmark = pytest.mark.usefixtures('one_core')

DEVICE = {'device': 'cpu', 'threads': 1}
TINY = TINY.override(['loss=bce', 'mixup.p=0', 'epochs=1', 'no_augment_epochs=0'])


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    '''Eight clips, of which the last four are noisy; the table's path and the folder's.'''
    return make_set(tmp_path_factory.mktemp('toy'), clips=8, source=['curated'] * 4 + ['noisy'] * 4)


@pytest.fixture(scope='module')
def run(toy, tmp_path_factory):
    '''A run of two folds on them.'''
    return train_run(TINY, *toy, tmp_path_factory.mktemp('run') / 'run', **QUIET).folder


def table_of(labels, **columns):
    '''A table of clips a, b, ... with these labels, all in fold 0 unless given.'''
    frame = pd.DataFrame({'fname': list('abcdefgh'[: len(labels)]), 'labels': labels, 'fold': 0})
    return frame.assign(**columns)


def soft_of(targets, classes=('A', 'B'), names=None, times=None):
    '''Soft labels of clips a, b, ..., or of windows.'''
    names = names or 'abcdefgh'[: len(targets)]
    return SoftLabels(tuple(names), classes, np.array(targets, np.float32), *(times or ()))


WINDOWS = soft_of(
    [[0.9, 0.1, 0.0], [0.3, 0.3, 0.3], [0.2, 0.6, 0.4], [0.0, 0.8, 0.1]],
    ('A', 'B', 'C'), 'aabb', (np.array([0, 1.0, 0, 1]), np.array([2, 3.0, 2, 3])),
)  # fmt: skip


def test_clips_rank_by_the_precision_of_their_labels_then_by_the_loss():
    targets = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, np.nan]], float)
    probs = np.array([[0.6, 0.5, 0.1], [0.4, 0.5, 0.1], [0.9, 0.8, 0.7], [0.1, 0.1, 0.1], [0.9, 0.1, 1]])
    precision = [1, 1 / 2, (1 / 2 + 2 / 3) / 2, 1, 1]
    loss = []
    for truth, row in zip(targets, probs.clip(0, 1 - 1e-7), strict=True):
        loss.append(-np.mean([np.log(p if t else 1 - p) for t, p in zip(truth, row, strict=True) if t == t]))
    by_hand = sorted(range(5), key=lambda i: (-precision[i], loss[i]))
    assert agreement_order(targets, probs).tolist() == by_hand
    # Law 5: the prediction of a class whose label is unknown changes nothing.
    for p in (0, 0.3):
        assert agreement_order(targets, np.where(np.isnan(targets), p, probs)).tolist() == by_hand
    probs[by_hand[0]] = np.nan
    assert agreement_order(targets, probs).tolist() == [*by_hand[1:], by_hand[0]]


def test_the_best_clips_keep_their_labels_and_more_each_round():
    plan = SelfTrainingConfig(top_k=(0.25, 2), noisy_sources=('noisy',))
    frame = table_of(['A'] * 5, source=['curated'] + ['noisy'] * 4, false_labels='*')
    soft = soft_of([[0, 1], [0.9, 0], [0.8, 0], [0.7, 0], [0.6, 0]])
    before = frame.copy()
    for number, kept in ((1, 'ab'), (2, 'abc'), (3, 'abc')):
        done = keep_agreeing(frame, soft, plan, number)
        assert ''.join(done.frame['fname'][done.frame['labels'] == 'A']) == kept
        targets = clip_labels(done.frame, ('A', 'B')).targets
        assert np.isnan(targets[len(kept) :]).all() and not np.isnan(targets[: len(kept)]).any()
        assert done.soft.names == (('d', 'e') if number == 3 else ())
        assert done.counts['kept'] + done.counts['predicted'] + done.counts['left_out'] == 4
    pd.testing.assert_frame_equal(frame, before)


def test_without_top_k_all_noisy_clips_are_predicted():
    frame = table_of(['A', 'B'], false_labels='*')
    done = keep_agreeing(frame, soft_of([[0.2, 0.4], [0, 1]]), SelfTrainingConfig(), 1)
    assert done.frame['labels'].tolist() == ['', ''] and done.soft.names == ('a', 'b')


def test_hard_labels_are_as_many_of_a_class_as_expected_and_clips_without_any_are_dropped():
    probs = [[0.9, 0.4], [0.6, 0.3], [0.5, 0.1], [0.1, 0.2]]  # expected: 2 of the first class, 1 of the second
    frame = table_of(['A'] * 4, false_labels='*')
    plan = SelfTrainingConfig(hard=True)
    done = keep_agreeing(frame, soft_of(probs), plan, 1)
    assert done.soft.names == ('a', 'b') and done.soft.targets.tolist() == [[1, 1], [1, 0]]
    assert done.counts['predicted'] == 2 and done.counts['left_out'] == 2


def test_every_noisy_clip_is_in_the_second_set():
    frame = table_of(['C', 'C', 'C'], source=['n', 'n', 'curated'], false_labels='*', fold=[0, 1, 1])
    done = make_snr_sets(frame, WINDOWS, SelfTrainingConfig(noisy_sources=('n',), top_k=(0.25,), snr_k=1), 1)
    assert done.counts == {'set1': 1, 'set2': 2} and len(done.soft.names) == 2


def test_predictions_fill_unknown_labels_only():
    frame = table_of(['A', 'A', ''], false_labels=['', 'B', ''])
    done = fill_plain(frame, soft_of([[0.2, 0.4], [0.3, 0.5], [0.6, 0.7]]), SelfTrainingConfig(), 1)
    assert done.soft.names == ('a', 'c') and done.frame is frame
    with pytest.raises(KitError, match='no predicted clip has an unknown label: give false_labels'):
        fill_plain(frame.drop(columns='false_labels'), soft_of([[0, 0]] * 3), SelfTrainingConfig(), 1)


def test_the_ratio_is_the_top_share_of_all_and_confident_classes_reach_half_of_the_greatest():
    rows = np.random.default_rng(0).random((5, 7))
    for k in (1, 3, 9):
        by_hand = [sum(sorted(row, reverse=True)[:k]) / sum(row) for row in rows.tolist()]
        np.testing.assert_allclose(snr_ratio(rows, k), by_hand)
    assert snr_ratio(np.zeros((1, 3)), 1).tolist() == [0]
    probs = np.array([0.5, 0.9, 0.44, 0.46])
    assert [confident_labels(probs, 'ABCD', k) for k in (3, 2)] == ['A,B,D', 'A,B']


def test_the_two_sets_are_the_best_windows_and_their_clips():
    frame = table_of(['C', 'C', 'C'], source=['n', 'n', 'curated'], false_labels='*', fold=[0, 1, 1])
    plan = SelfTrainingConfig(noisy_sources=('n',), top_k=(0.5,), snr_k=1)
    done = make_snr_sets(frame, WINDOWS, plan, 1)
    rows = done.frame
    assert rows['source'].tolist() == ['set2', 'set2', 'curated', 'set1', 'set1']
    assert rows['labels'].tolist() == ['', '', 'C', 'A', 'B'] and rows['fold'].tolist() == [0, 1, 1, 0, 1]
    assert rows['false_labels'].tolist() == ['', '', '*', '*', '*']
    assert rows[['begin_s', 'end_s']].iloc[3:].to_numpy().tolist() == [[0, 2], [1, 3]]
    assert rows[['begin_s', 'end_s']].iloc[:3].isna().all(axis=None)
    np.testing.assert_array_equal(done.soft.targets, WINDOWS.targets[[0, 3]])
    three = make_snr_sets(frame, WINDOWS, replace(plan, top_k=(3,)), 1)
    np.testing.assert_allclose(three.soft.targets[1], WINDOWS.targets[2:].mean(axis=0))
    with pytest.raises(KitError, match=r'top_k=\[\] picks none of 4 windows'):
        make_snr_sets(frame, WINDOWS, SelfTrainingConfig(noisy_sources=('n',)), 1)


def test_a_window_is_kept_where_its_best_known_class_is_true_of_its_clip():
    frame = table_of(['A', 'C'], false_labels=['C', 'A'])
    done = curate_windows(frame, WINDOWS, SelfTrainingConfig(), 1)
    rows = done.frame
    assert rows['source'].fillna('').tolist() == ['whole', 'whole', '', '', '', '']
    assert rows['fname'].tolist() == ['a', 'b', 'a', 'a', 'b', 'b']
    assert rows['labels'].tolist() == ['A', 'C', 'A', 'A', 'C', 'C']
    wrong = curate_windows(frame.assign(false_labels='*'), WINDOWS, SelfTrainingConfig(), 1)
    assert wrong.frame['fname'].tolist() == ['a', 'b', 'a', 'a']
    assert wrong.counts == {'kept': 2, 'left_out': 2}


def test_only_noisy_sources_change_and_only_if_a_fold_holds_them_out():
    frame = table_of(['A', 'B'], source=['noisy', 'curated'], false_labels='*')
    soft = soft_of([[0.1, 0.1], [0.1, 0.1]])
    assert keep_agreeing(frame, soft, SelfTrainingConfig(), 1).frame['labels'].tolist() == ['', 'B']
    with pytest.raises(KitError, match=r"source in noisy_sources=\['nosy'\], but of \['curated', 'noisy'\]"):
        keep_agreeing(frame, soft, SelfTrainingConfig(noisy_sources=('nosy',)), 1)
    with pytest.raises(KitError, match='a fold below 0, so no model predicts them'):
        keep_agreeing(frame.assign(fold=-1), soft, SelfTrainingConfig(), 1)


def test_boxes_override_the_predictions_of_windows():
    one = np.array([1.0])
    boxes = Boxes(('A', 'B', 'C'), np.array(['a']), np.array([2]), np.array([True]), 0 * one, one, one, 2 * one)
    corrected = correct_by_boxes(WINDOWS, boxes)
    assert corrected.targets[0].tolist() == [np.float32(0.9), np.float32(0.1), 1]
    np.testing.assert_array_equal(corrected.targets[1:], WINDOWS.targets[1:])
    with pytest.raises(KitError, match='boxes of 3 classes, runs of 2'):
        correct_by_boxes(soft_of([[0, 0]], times=(0 * one, one)), boxes)


def test_soft_labels_are_the_predictions_of_the_fold_that_never_trained_on_the_clip(run, toy):
    '''Law 4 and law 3: of whole clips, as they are submitted.'''
    soft, models = predict_pseudo_labels([run], toy[1], **QUIET)
    assert {path.rpartition('/')[2]: n for path, n in models.items()} == {'fold_0.pt': 4, 'fold_1.pt': 4}
    for fold in (0, 1):
        names = [f'{i:02d}.wav' for i in range(fold, 8, 2)]
        paths = [toy[1] / name for name in names]
        own, other = (predict_clips(run / f'fold_{k}.pt', paths, **DEVICE) for k in (fold, 1 - fold))
        np.testing.assert_allclose(align_soft_labels(soft, names, CLASSES), own.probabilities, atol=1e-5)
        assert np.abs(other.probabilities - own.probabilities).max() > 1e-3


def test_windows_stand_every_hop_and_cover_the_clip(run, toy):
    soft, _ = predict_pseudo_labels([run], toy[1], hop_s=0.2, **QUIET)
    card = load_tagger(run / 'fold_0.pt').card
    inference = window_inference(card, 0.2)
    assert (inference.window_s, inference.hop_s) == (TINY.crop_s, 0.2)
    own = InferenceConfig(mode='windows', window_s=0.7, hop_s=0.7)
    assert window_inference(replace(card, inference=own), 0.5) == replace(own, hop_s=0.5)
    for rows in soft.rows.values():
        begin, end = (times[rows] for times in soft.times)
        np.testing.assert_allclose(end - begin, 0.4, atol=0.02)
        assert begin[0] == 0 and (np.diff(begin) <= 0.2 + 0.02).all()
    name = max(soft.rows, key=lambda name: len(soft.rows[name]))
    tagger = load_tagger(run / f'fold_{int(name[:2]) % 2}.pt')
    tagger.card = replace(tagger.card, inference=replace(inference, pool='max'))
    (probs,) = predict_clips(tagger, [toy[1] / name], **DEVICE).probabilities
    np.testing.assert_allclose(soft.targets[soft.rows[name]].max(axis=0), probs, atol=1e-5)


def test_soft_labels_are_scaled_from_the_prevalences_of_the_crops_that_were_drawn(run, toy, tmp_path):
    table = pd.read_csv(toy[0])
    plain, _ = predict_pseudo_labels([run], toy[1], hop_s=0.2, **QUIET)
    overrides = ['hop_s=0.2', 'prior_shift=true']
    made = relabel([run], toy[1], tmp_path, 'windows', overrides=overrides, **QUIET)
    shifted = read_soft_labels(made.soft)
    for fold in (0, 1):
        learnt = table[table['fold'] != fold]
        drawn = np.array(load_tagger(run / f'fold_{fold}.pt').card.train_prevalences)
        true = np.array([learnt['labels'].str.contains(name).sum() for name in CLASSES])
        np.testing.assert_allclose(drawn, (true + 0.5) / (len(learnt) + 1))
        rows = [i for i, name in enumerate(plain.names) if int(name[:2]) % 2 == fold]
        estimated = estimate_prevalences(plain.targets[rows], drawn)
        assert np.abs(estimated - drawn).max() > 0.02
        expected = scale_odds(plain.targets[rows], drawn, estimated)
        np.testing.assert_allclose(shifted.targets[rows], expected, atol=1e-4)


def test_several_runs_are_averaged(run, toy, tmp_path):
    other = train_run(TINY.override(['seed=1']), *toy, tmp_path / 'other', **QUIET).folder
    both, models = predict_pseudo_labels([run, other], toy[1], hop_s=0.2, **QUIET)
    one, two = (predict_pseudo_labels([folder], toy[1], hop_s=0.2, **QUIET)[0] for folder in (run, other))
    assert len(models) == 4 and both.names == one.names
    np.testing.assert_allclose(both.targets, (one.targets + two.targets) / 2, atol=1e-6)


def test_ranks_are_refused_as_labels(run, toy, tmp_path):
    recipe = TINY.override(['loss=lsep'])
    ranks = train_run(recipe, *toy, tmp_path / 'ranks', **QUIET).folder
    assert predict_pseudo_labels([ranks], toy[1], **QUIET)[0].targets.shape == (8, 3)
    tagger = load_tagger(ranks / 'fold_0.pt')
    tagger.card = replace(tagger.card, calibration=None)
    save_tagger(ranks / 'fold_0.pt', tagger)
    with pytest.raises(KitError, match=r'fold_0\.pt gives ranks, which are no labels before `oof`'):
        predict_pseudo_labels([ranks], toy[1], **QUIET)


def test_clips_without_finite_predictions_get_no_labels(run, toy, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    for fold in (0, 1):
        tagger = load_tagger(tmp_path / 'run' / f'fold_{fold}.pt')
        with torch.no_grad():
            tagger.network.head.classifier[-1].bias[0] = torch.nan
        save_tagger(tmp_path / 'run' / f'fold_{fold}.pt', tagger)
        if fold == 0:
            soft, models = predict_pseudo_labels([tmp_path / 'run'], toy[1], **QUIET)
            assert soft.names == ('01.wav', '03.wav', '05.wav', '07.wav') and sorted(models.values()) == [0, 4]
    with pytest.raises(KitError, match='predict no finite number for any clip'):
        predict_pseudo_labels([tmp_path / 'run'], toy[1], **QUIET)


@pytest.mark.parametrize('method', ['plain', 'windows', 'agreement', 'snr', 'curate'])
def test_a_relabelled_table_can_be_trained_on(run, toy, tmp_path, method):
    table = pd.read_csv(toy[0])
    if method in ('plain', 'windows'):
        table['false_labels'] = ['*'] * 6 + [''] * 2
    table.to_csv(tmp_path / 'table.csv', index=False)
    made = relabel([run], toy[1], tmp_path / 'out', method, [1], table=tmp_path / 'table.csv', **QUIET)
    report = json.loads((tmp_path / 'out' / 'relabel.json').read_text())
    assert report['method'] == method and 'Second order' in report['leaks'] and report['leaks'] in str(made)
    assert sum(report['models'].values()) == 8 and report['without_prediction'] == []
    assert read_soft_labels(made.soft).classes == CLASSES
    student = train_run(TINY, made.table, toy[1], tmp_path / 'student', soft=made.soft, **QUIET)
    assert sorted(student.oof.names) == [f'{i:02d}.wav' for i in range(8)] and student.oof.classes == CLASSES
    again = relabel([run], toy[1], tmp_path / 'again', method, [1], table=tmp_path / 'table.csv', **QUIET)
    for one, other in ((made.table, again.table), (made.soft, again.soft)):
        assert one.read_bytes() == other.read_bytes()


def test_each_iteration_has_its_power_and_a_corrected_table_may_be_relabelled(run, toy, tmp_path):
    corrected = apply_corrections(read_clip_table(toy[0]), {'00.wav': None, '01.wav': 'high'})
    corrected.to_csv(tmp_path / 'table.csv', index=False)
    words = {'method': 'agreement', 'table': tmp_path / 'table.csv', **QUIET}
    plain = relabel([run], toy[1], tmp_path / 'one', **words)
    strong = relabel([run], toy[1], tmp_path / 'two', number=2, overrides=['powers=[1,3]'], **words)
    frame = read_clip_table(strong.table)
    assert len(frame) == 7 and frame['labels'][0] == 'high'
    one, two = (read_soft_labels(made.soft).targets for made in (plain, strong))
    np.testing.assert_allclose(two, one**3, rtol=1e-5)
    assert label_targets(list(frame['labels']), CLASSES, list(frame['false_labels'])).shape == (7, 3)


def test_boxes_are_for_windows(run, toy, tmp_path):
    with pytest.raises(KitError, match='which method plain does not write: use windows'):
        relabel([run], toy[1], tmp_path, boxes=['tp.csv', 'fp.csv'], **QUIET)
