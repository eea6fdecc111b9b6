'''What a run is trained on: sources, soft labels, stretches, boxes and backgrounds; and what of it is scored.'''

import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.labels.boxes import box_table, read_boxes
from kit.labels.folds import make_folds
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels, fill_unknown
from kit.labels.table import clip_labels, label_targets, read_clip_table, stretches_of
from kit.models.checkpoint import load_tagger
from kit.train.dataset import cut_stretch, load_dataset, source_numbers
from kit.train.oof import predict_oof
from kit.train.recipe import SamplingConfig
from kit.train.run import choose_folds, run_files, with_windows
from kit.train.sampler import draw_begin
from kit.train.self_training import predict_pseudo_labels
from tests.behaviour.training import (
    CLASSES,
    QUIET,
    RUNTIME,
    TINY,
    clips_of,
    load_table,
    same_checkpoints,
    train_quietly,
    write_clip,
)

pytestmark = pytest.mark.usefixtures('one_core')

BCE = replace(TINY, loss='bce', epochs=1, no_augment_epochs=0, validate_every=1)
SOURCED = replace(BCE, sources={'noisy': {'scored': False}, 'clean': {}, 'also': {}})


def toy_table(path, toy, **columns):
    '''Write the toy table with further columns. Returns its path.'''
    pd.read_csv(toy[0]).assign(**columns).to_csv(path, index=False)
    return path


def write_lines(path, *lines):
    '''Write a CSV of these lines. Returns its path.'''
    path.write_text('\n'.join(lines) + '\n')
    return path


# Sources


def test_a_row_without_a_source_is_of_the_first_scored_one_and_an_unknown_source_is_refused(toy, tmp_path):
    assert source_numbers(np.array(['also', '', 'noisy']), SOURCED).tolist() == [2, 1, 0]
    assert source_numbers(np.array(['also', '', 'noisy']), BCE).tolist() == [0, 0, 0]
    table = toy_table(tmp_path / 'table.csv', toy, source='claen')
    with pytest.raises(KitError, match=r"the table has a source 'claen': did you mean 'clean'"):
        train_quietly(SOURCED, table, toy[1], tmp_path / 'run')


def test_unscored_sources_are_trained_on_and_predicted_and_do_not_change_the_score(toy, tmp_path):
    '''Law 5: only validation masks their labels.'''
    is_noisy = np.arange(14) >= 8
    table = toy_table(tmp_path / 'table.csv', toy, source=np.where(is_noisy, 'noisy', 'clean'))
    run = train_quietly(SOURCED, table, toy[1], tmp_path / 'run')
    truth = label_targets(read_clip_table(table)['labels'], CLASSES)
    assert len(run.oof.names) == 14
    assert np.isnan(run.oof.truth[is_noisy]).all() and np.isfinite(run.oof.probabilities).all()
    assert run.oof.score == pytest.approx(lwlrap(truth[~is_noisy], run.oof.probabilities[~is_noisy]))
    again = predict_oof(run.folder, toy[1], **QUIET)
    assert again.score == pytest.approx(run.oof.score, abs=1e-6)
    np.testing.assert_array_equal(again.truth, run.oof.truth)
    for fold in (0, 1):
        card = load_tagger(run.folder / f'fold_{fold}.pt').card
        trained_on = ~is_noisy & (run.oof.folds != fold)
        np.testing.assert_allclose(card.prevalences, truth[trained_on].mean(axis=0), rtol=1e-6)
        scored = ~is_noisy & (run.oof.folds == fold)
        assert card.oof_score == pytest.approx(lwlrap(truth[scored], run.oof.probabilities[scored]), abs=1e-6)
    clips = load_table(SOURCED, table, toy[1]).train_split(0)
    assert len(clips) == 7 and sorted(clips.sources) == ['clean'] * 4 + ['noisy'] * 3
    np.testing.assert_array_equal(clips.targets, truth[1::2])


def test_fold_minus_one_is_trained_on_by_all_folds_and_held_out_by_none(toy, tmp_path):
    table = toy_table(tmp_path / 'table.csv', toy, fold=[-1, -1, -1, -1, *([0, 1] * 5)])
    data = load_table(BCE, table, toy[1])
    for fold in (0, 1):
        assert len(data.train_split(fold)) == 9
        assert data.held_out(fold).tolist() == [*range(4 + fold, 14, 2)]
    assert len(data.train_split(None)) == 14 and data.held_out(None).tolist() == []


def test_a_class_that_other_separators_may_have_joined_is_noted(toy, tmp_path, capsys):
    labels = ['high', 'low', 'high low', 'buzz;noise', 'low wind'] * 2 + ['high'] * 4
    train_quietly(BCE, toy_table(tmp_path / 'table.csv', toy, labels=labels), toy[1], tmp_path / 'run')
    assert re.findall(r"note: '(.*)' is one class", capsys.readouterr().out) == ['buzz;noise', 'high low']


# Soft labels


def test_soft_labels_of_clips_fill_what_is_unknown_and_nothing_else(toy, tmp_path):
    '''Law 5: known labels stay, validation ignores soft labels, and a clip without known labels is trained on.'''
    labels = ['high', 'low', ''] + ['high'] * 11
    false = ['low', '', ''] + ['low,noisy'] * 11
    table = toy_table(tmp_path / 'table.csv', toy, labels=labels, false_labels=false)
    nan = np.nan
    soft = SoftLabels(('00.wav', '02.wav'), CLASSES, np.array([[0.2, 0.3, 0.4], [0.5, nan, 0.7]]))
    data = load_table(BCE, table, toy[1], soft=soft)
    expected = np.float32([[1, 0, 0.4], [nan, 1, nan], [0.5, nan, 0.7]])
    np.testing.assert_array_equal(data.targets[:3], expected)
    np.testing.assert_array_equal(data.truth[:3], [[1, 0, nan], [nan, 1, nan], [nan] * 3])
    assert '02.wav' in data.train_split(1).names
    assert '02.wav' not in load_table(BCE, table, toy[1]).train_split(1).names
    windows = SoftLabels(('02.wav',), CLASSES, np.full((1, 3), 0.5), np.zeros(1), np.ones(1))
    assert '02.wav' in load_table(BCE, table, toy[1], soft=windows).train_split(1).names


# Stretches


@pytest.fixture
def stretched(toy, tmp_path):
    '''The toy table and, below it, two stretches of clip 0 and one of clip 1.'''
    frame = pd.read_csv(toy[0]).assign(begin_s='', end_s='')
    times = {'begin_s': ['0', '0.1', '0.05'], 'end_s': ['0.1', '0.2', '9']}
    stretches = frame.iloc[[0, 0, 1]].assign(labels='noisy', **times)
    pd.concat([frame, stretches]).to_csv(tmp_path / 'table.csv', index=False)
    return tmp_path / 'table.csv'


def test_stretches_are_cut_from_spectrograms_and_waveforms_where_they_lie(toy, stretched):
    recipe = replace(BCE, wave_augment=replace(BCE.wave_augment, gain_p=0.5))
    data = load_table(recipe, stretched, toy[1])
    frames_per_s = BCE.frontend.frames_per_s
    spans = stretches_of(read_clip_table(stretched))
    assert spans[:3].tolist() == [[0.0, math.inf]] * 3
    assert spans[14:].tolist() == [[0.0, 0.1], [0.1, 0.2], [0.05, 9.0]]
    for row, clip in ((14, 0), (15, 0), (16, 1)):
        begin, end = spans[row]
        frames = slice(round(begin * frames_per_s), round(end * frames_per_s))
        samples = slice(round(begin * 8000), round(end * 8000))
        assert torch.equal(data.spectrograms[row], data.spectrograms[clip][:, frames])
        assert torch.equal(data.waveforms[row], data.waveforms[clip][:, samples])
        assert torch.equal(data.recordings[data.names[row]], data.spectrograms[clip])
        assert data.seconds[row] == pytest.approx(min(end, data.seconds[clip]) - begin)
    assert np.array_equal(data.stretches, spans)


def test_a_stretch_has_at_least_one_step():
    for span in ((5.0, 6.0), (50.0, 60.0), (3.1, 3.2)):
        assert cut_stretch(torch.zeros(2, 10), *span, 1.0).shape == (2, 1)


def test_stretches_of_clips_are_for_training_only_and_never_in_the_fold_of_their_clip(toy, stretched, tmp_path):
    '''Law 4.'''
    data = load_table(BCE, stretched, toy[1])
    for fold in (0, 1):
        names = data.train_split(fold).names
        assert sorted(names) == sorted(data.names[row] for row in range(17) if data.folds[row] != fold)
        assert set(names).isdisjoint(data.names[row] for row in data.held_out(fold))
        assert data.held_out(fold).tolist() == [*range(fold, 14, 2)]
    run = train_quietly(BCE, stretched, toy[1], tmp_path / 'run')
    assert run.oof.names == tuple(f'{i:02d}.wav' for i in range(14))
    again = predict_oof(run.folder, toy[1], **QUIET)
    np.testing.assert_allclose(again.probabilities, run.oof.probabilities, atol=1e-5)
    resumed = train_quietly(BCE, run.folder / 'folds.csv', toy[1], tmp_path / 'run')
    assert resumed.oof.score == pytest.approx(run.oof.score)
    frame = read_clip_table(stretched)
    folds = np.asarray(frame['fold']).copy()
    folds[14] = 1
    with pytest.raises(KitError, match=r"group '00.wav' lies in fold 0 and in fold 1"):
        choose_folds(frame.assign(fold=folds), BCE, None)
    made = choose_folds(frame.drop(columns='fold'), BCE, None)
    assert made[14] == made[15] == made[0] and made[16] == made[1]


def add_stretches(table, path, *rows):
    '''Write a table with further rows of fname, begin_s and end_s, labelled noisy.'''
    lines = [f'{name},noisy,0,{begin},{end}' for name, begin, end in rows]
    path.write_text(table.read_text() + '\n'.join([*lines, '']))
    return path


def test_a_stretch_after_the_end_of_its_sound_is_left_out_and_the_first_is_named(toy, stretched, tmp_path, capsys):
    seconds = load_table(BCE, stretched, toy[1]).seconds
    assert 'left out' not in capsys.readouterr().out
    at_end = seconds[2]
    rows = ('02.wav', at_end, at_end + 1), ('02.wav', at_end - 0.01, at_end + 1), ('04.wav', '7', '7.5')
    table = add_stretches(stretched, tmp_path / 'more.csv', *rows)
    recipe = replace(BCE, wave_augment=replace(BCE.wave_augment, gain_p=0.5))
    data = load_table(recipe, table, toy[1])
    note = f"2 stretches begin after the end of their sound and are left out, e.g. '02.wav', {at_end:g} to"
    assert note in capsys.readouterr().out
    assert set(range(20)) - {*data.spectrograms} == set(range(20)) - {*data.waveforms} == {17, 19}
    assert data.failures == {
        17: f'begins at {at_end:g} s, after the end of its sound',
        19: 'begins at 7 s, after the end of its sound',
    }
    assert data.spectrograms[18].shape[1] <= 2 and data.seconds[18] == pytest.approx(0.01)
    assert '04.wav' in data.train_split(1).names and len(data.train_split(1)) == 7 + 2 + 1
    assert train_quietly(BCE, table, toy[1], tmp_path / 'run').oof.names == data.names[:14]


def test_stretches_mostly_outside_their_sounds_are_refused_and_the_unit_is_asked_for(toy, tmp_path):
    frame = pd.read_csv(toy[0]).assign(begin_s='', end_s='')
    frame.to_csv(tmp_path / 'whole.csv', index=False)
    for begin, end in ((50, 150), (0, 150)):
        rows = [(f'{i:02d}.wav', begin, end) for i in range(0, 8, 2)]
        table = add_stretches(tmp_path / 'whole.csv', tmp_path / 'table.csv', ('00.wav', 0, 0.1), *rows)
        message = rf"4 of 5 stretches lie outside their sound, e\.g\. '00\.wav', {begin} to 150 s of .*milliseconds"
        with pytest.raises(KitError, match=message):
            train_quietly(BCE, table, toy[1], tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_times_are_refused_with_a_frontend_that_trims_clips(toy, stretched, field, tmp_path):
    trimming = replace(BCE, frontend=replace(BCE.frontend, trim_db=40.0))
    with pytest.raises(KitError, match=r'trim_db cuts the ends of clips.* use frontend\.trim_db=null'):
        load_table(trimming, stretched, toy[1])
    with pytest.raises(KitError, match='trim_db cuts the ends'):
        train_quietly(trimming, field[2], field[0], tmp_path / 'boxes', boxes=field[1])
    windows = SoftLabels(('02.wav',), CLASSES, np.full((1, 3), 0.5), np.zeros(1), np.full(1, 0.1))
    with pytest.raises(KitError, match='trim_db cuts the ends'):
        load_table(trimming, toy[0], toy[1], soft=windows)
    assert BCE.override(['frontend.trim_db=40', 'frontend.trim_db=null']) == BCE
    run = train_quietly(trimming, *toy, tmp_path / 'run')
    with pytest.raises(KitError, match='windows are not at their times: leave it out'):
        predict_pseudo_labels([run.folder], toy[1], hop_s=0.1, **QUIET)
    assert len(predict_pseudo_labels([run.folder], toy[1], **QUIET)[0].names) == 14


def test_a_table_with_stretches_is_written_as_it_was_read(stretched, tmp_path):
    frame = read_clip_table(stretched)
    text = run_files(BCE, frame)['folds.csv']
    (tmp_path / 'again.csv').write_text(text)
    pd.testing.assert_frame_equal(read_clip_table(tmp_path / 'again.csv'), frame)
    assert 'inf' not in text


# Boxes


@pytest.fixture(scope='module')
def field(tmp_path_factory):
    '''Eight recordings of 1.5 s: their folder, the two box files, and the file of folds. The last has no box.'''
    folder = tmp_path_factory.mktemp('field')
    rng = np.random.default_rng(3)
    (folder / 'clips').mkdir()
    header = 'recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max'
    true, false = [header], [header]
    for i in range(8):
        write_clip(folder / 'clips' / f'r{i}.wav', [CLASSES[i % 3]], 1.5, rng)
        if i < 7:
            true.append(f'r{i},{i % 3},1,0.2,100,0.6,3500')
            false.append(f'r{i},{(i + 1) % 3},1,0.7,100,1.1,3500')
    boxes = write_lines(folder / 'true.csv', *true), write_lines(folder / 'false.csv', *false)
    folds = [f'r{i},{i % 2}' for i in range(8)]
    return folder / 'clips', boxes, write_lines(folder / 'folds.csv', 'recording_id,fold', *folds)


def test_a_table_of_boxes_has_the_labels_of_its_recordings(field):
    boxes = read_boxes(*field[1])
    expected = clip_labels(box_table(boxes, None), boxes.classes).targets
    without_folds, frame = box_table(boxes, None), box_table(boxes, field[2])
    assert without_folds['fname'].tolist() == [f'r{i}' for i in range(7)] and 'fold' not in without_folds
    assert frame['fname'].tolist() == [f'r{i}' for i in range(8)]
    assert frame['fold'].tolist() == [i % 2 for i in range(8)]
    targets = clip_labels(frame, boxes.classes).targets
    np.testing.assert_array_equal(targets[:7], expected)
    assert np.isnan(targets[7]).all()
    np.testing.assert_array_equal(clip_labels(without_folds, boxes.classes).targets, expected)


def test_clips_beside_boxes_are_learnt_with_their_own_labels_and_held_out_in_folds(field, tmp_path):
    audio, box_files, _ = field
    boxes = read_boxes(*box_files)
    clips = tmp_path / 'clips'
    shutil.copytree(audio, clips)
    rng = np.random.default_rng(5)
    for i in range(4):
        write_clip(clips / f'n{i}.wav', [], 1.0, rng)
    table = write_lines(tmp_path / 'none.csv', 'fname,labels', 'n0.wav,', 'n1.wav,s1', 'n2.wav,', 'n3.wav,')
    frame = box_table(boxes, table)
    frame['fold'] = make_folds(frame, 2)
    data = load_dataset(BCE, frame, clips, RUNTIME, boxes)
    row = data.names.index('n1.wav')
    for begin_s in (0.0, 0.6):
        assert data.crop_targets(row, begin_s, begin_s + 0.4, 0.5)[0].tolist() == [0, 1, 0]
    assert data.crop_targets(data.names.index('n0.wav'), 0.0, 0.4, 0.5)[0].tolist() == [0, 0, 0]
    assert np.isnan(data.crop_targets(data.names.index('r0'), 0.0, 0.5, 0.5)[0]).any()
    assert {*frame['fold']} == {0, 1}
    run = train_quietly(BCE, table, clips, tmp_path / 'run', boxes=box_files)
    assert {'n0.wav', 'r0'} <= set(run.oof.names)
    again = box_table(boxes, run.folder / 'folds.csv')
    assert again.set_index('fname')['fold'].to_dict() == frame.set_index('fname')['fold'].to_dict()
    columns = ['fname', 'labels', 'false_labels']
    assert again[columns].to_numpy().tolist() == frame[columns].to_numpy().tolist()
    for lines, words in (
        (['fname,labels,fold', 'n0.wav,,0'], 'has no fold for 7 recordings with boxes'),
        (['fname,labels', 'r0,'], "'r0' has boxes, too"),
    ):
        with pytest.raises(KitError, match=words):
            box_table(boxes, write_lines(tmp_path / 'wrong.csv', *lines))


@pytest.mark.parametrize(
    'lines, message',
    [
        (['recording_id,fold', 'r0,0'], r"has no fold for 6 recordings with boxes, e\.g\. 'r1'"),
        (['recording_id,fold', 'r0,0', 'r3,0', 'r3,1'], "line 4: 'r3' stands on line 3 already"),
        (['name,fold', 'r0,0'], "unknown column 'recording_id'"),
        (['recording_id,fold', 'r0,first'], "fold is 'first', wanted a whole number"),
    ],
)
def test_folds_of_recordings_that_cannot_be_used_are_an_error(field, tmp_path, lines, message):
    with pytest.raises(KitError, match=message):
        box_table(read_boxes(*field[1]), write_lines(tmp_path / 'folds.csv', *lines))


def test_recordings_with_boxes_are_scored_on_their_known_labels_alone(field, tmp_path):
    audio, boxes, folds = field
    recipe = replace(BCE, average_over='labels', inference=InferenceConfig('windows', 0.4, 0.2, pool='max'))
    run = train_quietly(recipe, folds, audio, tmp_path / 'run', boxes=boxes)
    truth = clip_labels(box_table(read_boxes(*boxes), None)).targets
    np.testing.assert_array_equal(run.oof.truth[:7], truth)
    assert np.isnan(run.oof.truth[7]).all() and run.oof.names[7] == 'r7'
    assert run.oof.score == pytest.approx(lwlrap(truth, run.oof.probabilities[:7]))
    again = predict_oof(run.folder, audio, **QUIET)
    np.testing.assert_allclose(again.probabilities, run.oof.probabilities, atol=1e-5)
    without_table = train_quietly(recipe, None, audio, tmp_path / 'bare', boxes=boxes)
    assert len(without_table.oof.names) == 7 and set(without_table.oof.folds.tolist()) == {0, 1}
    moved = tmp_path / 'false.csv'
    moved.write_text(boxes[1].read_text().replace('0.7,100,1.1', '0.7,100,1.2'))
    with pytest.raises(KitError, match=r'labels\.json belongs to another run'):
        train_quietly(recipe, folds, audio, tmp_path / 'run', boxes=(boxes[0], moved))


def test_boxes_of_a_held_out_recording_leave_no_trace_in_the_weights(field, tmp_path):
    '''Law 4.'''
    audio, (true, false), folds = field
    checkpoints = []
    for moved in ('', 'r0,0,1,', 'r1,1,1,'):
        path = tmp_path / f'true_{len(checkpoints)}.csv'
        text = true.read_text()
        path.write_text(text.replace(f'{moved}0.2,100,0.6', f'{moved}0.9,100,1.4') if moved else text)
        run = train_quietly(BCE, folds, audio, path.with_suffix(''), only_folds=[0], boxes=(path, false))
        checkpoints.append(run.folder / 'fold_0.pt')
    plain, held_out, trained_on = checkpoints
    assert same_checkpoints(plain, held_out) and not same_checkpoints(plain, trained_on)


def test_soft_labels_of_windows_may_have_other_classes_than_the_boxes_in_any_order(field):
    boxes = read_boxes(*field[1])
    begin_s = np.arange(3) * 0.5
    targets = np.array([[0.1, 0.2, 0.3]] * 3)
    soft = SoftLabels(('r0',) * 3, boxes.classes, targets, begin_s, begin_s + 0.5)
    two_classes = replace(soft, classes=('s2', 's0'), targets=targets[:, [2, 0]])
    frame = box_table(boxes, field[2])
    for labels, expected in ((soft, [0.1, 0.2, 0.3]), (two_classes, [0.1, np.nan, 0.3])):
        data = load_dataset(BCE, frame, field[0], RUNTIME, boxes, labels)
        clips = data.train_split(1)
        row = clips.names.index('r0')
        np.testing.assert_array_equal(fill_unknown(*clips.crop_targets(row, 1.15, 1.45, 0.5)), np.float32(expected))


def with_boxes(boxes, folder, *rows):
    '''Copy the file of true boxes with further rows. Returns both files.'''
    true = write_lines(folder / 'true.csv', boxes[0].read_text().strip(), *rows)
    return true, boxes[1]


def load_boxes(field, files, soft=None):
    '''The dataset of recordings with boxes.'''
    boxes = read_boxes(*files)
    frame = box_table(boxes, field[2])
    return load_dataset(BCE, frame, field[0], RUNTIME, boxes, soft)


def test_a_box_after_the_end_of_its_recording_is_left_out_and_its_recording_too_if_no_box_is_left(
    field, tmp_path, capsys
):
    files = with_boxes(field[1], tmp_path, 'r7,0,1,1.5,100,2,3500', 'r0,1,1,40,100,41,3500', 'r1,2,1,1.4,100,9,3500')
    data = load_boxes(field, files)
    note = "2 boxes begin after the end of their sound and are left out, e.g. 'r7', 1.5 to 2 s of 1.5 s"
    assert note in capsys.readouterr().out
    assert len(data.boxes.recordings) == 15 and data.boxes.end_s.max() == 9
    assert 'r7' in data.names and 'r7' not in data.train_split(0).names
    np.testing.assert_array_equal(data.truth[7], [1, np.nan, np.nan])  # validation scores the table's labels
    assert len(data.targets) == 8 and np.isnan(data.targets[7]).all()
    run = train_quietly(BCE, field[2], field[0], tmp_path / 'run', boxes=files)
    np.testing.assert_array_equal(predict_oof(run.folder, field[0], **QUIET).truth, run.oof.truth)


def test_boxes_in_milliseconds_are_refused_and_those_above_the_nyquist_frequency_are_noted(field, tmp_path, capsys):
    def in_ms(path, name):
        frame = pd.read_csv(path)
        frame[['t_min', 't_max']] *= 1000
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    files = [in_ms(path, f'{i}.csv') for i, path in enumerate(field[1])]
    with pytest.raises(KitError, match=r"14 of 14 boxes lie outside .* 'r0', 200 to 600 s of 1\.5 s: .*milliseconds"):
        load_boxes(field, files)
    load_boxes(field, with_boxes(field[1], tmp_path, 'r3,0,1,0.2,4000,0.4,5000', 'r4,0,1,0.2,3990,0.4,5000'))
    text = capsys.readouterr().out
    assert '1 boxes lie above 4000 Hz, half of frontend.sample_rate' in text and "'r3' from 4000 Hz" in text


def test_windows_with_soft_labels_after_the_end_are_left_out_and_milliseconds_refused(toy, capsys):
    begin_s = np.array([0.0, 5.0, 0.1])
    soft = SoftLabels(('00.wav', '00.wav', 'elsewhere.wav'), CLASSES, np.full((3, 3), 0.5), begin_s, begin_s + 1)
    data = load_table(BCE, toy[0], toy[1], soft=soft)
    assert data.soft_labels.begin_s.tolist() == [0.0, 0.1]
    assert '1 windows with soft labels begin after the end' in capsys.readouterr().out
    late = replace(soft, begin_s=begin_s + 200, end_s=begin_s + 700)
    with pytest.raises(KitError, match=r'2 of 2 windows with soft labels lie outside.*milliseconds'):
        load_table(BCE, toy[0], toy[1], soft=late)


def test_a_table_or_two_files_of_boxes_are_needed(field, tmp_path):
    with pytest.raises(KitError, match='boxes wants two CSVs, of true and of false ones, got 1'):
        train_quietly(BCE, field[2], field[0], tmp_path / 'run', boxes=field[1][:1])
    with pytest.raises(KitError, match='train wants a table of clips, or boxes'):
        train_quietly(BCE, None, field[0], tmp_path / 'run')


# Audio


def test_backgrounds_are_needed_where_the_recipe_mixes_them_under_crops(toy, tmp_path):
    recipe = BCE.override(['wave_augment.background_p=1.0'])
    with pytest.raises(KitError, match=r'--backgrounds DIR, or wave_augment\.background_p=0'):
        train_quietly(recipe, *toy, tmp_path / 'run')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(KitError, match='holds no audio to mix under crops'):
        train_quietly(recipe, *toy, tmp_path / 'run', backgrounds=tmp_path / 'empty')
    sounds = tmp_path / 'sounds'
    (sounds / 'deep').mkdir(parents=True)
    shutil.copy(toy[1] / '03.wav', sounds / 'deep' / 'a.wav')
    mixed = train_quietly(recipe, *toy, tmp_path / 'mixed', only_folds=[0], backgrounds=sounds)
    almost_plain = BCE.override(['wave_augment.gain_p=1e-9'])
    plain = train_quietly(almost_plain, *toy, tmp_path / 'plain', only_folds=[0])
    assert not same_checkpoints(mixed.folder / 'fold_0.pt', plain.folder / 'fold_0.pt')


def test_files_of_one_content_in_two_folds_are_warned_of(toy, tmp_path, capsys):
    shutil.copytree(toy[1], tmp_path / 'clips')
    load_table(BCE, toy[0], tmp_path / 'clips')
    assert 'WARNING' not in capsys.readouterr().out
    shutil.copy(tmp_path / 'clips' / '00.wav', tmp_path / 'clips' / '01.wav')
    load_table(BCE, toy[0], tmp_path / 'clips')
    assert '1 recordings are in several folds under several names' in capsys.readouterr().out


def test_a_recipe_of_whole_clips_is_scored_on_stretches_in_windows_as_long_as_a_submission_has(toy, tmp_path, capsys):
    frame = pd.read_csv(toy[0]).assign(begin_s=0.0, end_s=math.inf)
    assert with_windows(BCE, frame) == BCE
    rows = pd.concat([frame, frame.assign(end_s=0.1)])
    assert with_windows(BCE, rows) == BCE, 'the whole clips are scored'
    stretches = frame.assign(end_s=[0.1] * (len(frame) - 1) + [0.2])
    inference = with_windows(BCE, stretches).inference
    assert (inference.mode, inference.window_s, inference.hop_s) == ('windows', 0.1, 0.1)
    own = replace(BCE, inference=InferenceConfig(mode='windows', window_s=0.3, hop_s=0.3))
    assert with_windows(own, stretches) == own
    stretches.to_csv(tmp_path / 'table.csv', index=False)
    run = train_quietly(BCE, tmp_path / 'table.csv', toy[1], tmp_path / 'run')
    assert load_tagger(run.folder / 'fold_0.pt').card.inference == inference
    assert 'inference.mode=windows, window_s=0.1' in capsys.readouterr().out


def test_times_of_soft_labels_and_boxes_are_those_of_the_recording_also_in_a_stretch():
    soft = SoftLabels(
        ('0.wav',) * 2, CLASSES, np.array([[1, 0, 0], [0, 1, 0.0]]), np.array([0.0, 5]), np.array([5.0, 10])
    )
    data = clips_of([[np.nan] * 3], seconds=[5.0], stretches=np.array([[5.0, 10.0]]), soft_labels=soft)
    assert data.crop_targets(0, 1.0, 2.0, 0.5)[1].tolist() == [0, 1, 0]
    recipe = replace(BCE, sampling=SamplingConfig(sample_by_probs='windows'), crop_s=1.0)
    middle = round(2.0 * BCE.frontend.frames_per_s)
    for seed in range(5):
        begin = draw_begin(data, 0, None, recipe, torch.Generator().manual_seed(seed))
        assert abs(begin - middle) <= 1


def test_labels_that_would_be_lost_or_contradict_are_noted(toy, tmp_path, capsys):
    table = toy_table(tmp_path / 'a.csv', toy, secondary_labels='low,owl')
    load_table(BCE, table, toy[1])
    assert "1 secondary labels are no class and are ignored, e.g. 'owl'" in capsys.readouterr().out
    name = pd.read_csv(toy[0])['fname'][0]
    lines = [f'{name},high,0,0,0.1', f'{name},low,0,{{}},0.15', '01.wav,noisy,1,,']
    for begin, word in (('0.1', ''), ('0.05', 'overlap')):
        table = write_lines(
            tmp_path / 'b.csv', 'fname,labels,fold,begin_s,end_s', *(line.format(begin) for line in lines)
        )
        load_table(BCE, table, toy[1])
        assert word in (out := capsys.readouterr().out) and ('overlap' in out) == bool(word)
    soft = SoftLabels(('x',), CLASSES, np.ones((1, 3)))
    with pytest.raises(KitError, match='no clip of the table'):
        load_table(BCE, toy[0], toy[1], soft=soft)
    load_table(BCE, toy[0], toy[1], soft=replace(soft, names=(name,)))
    assert 'none is unknown in their clips' in capsys.readouterr().out


def test_a_clip_beside_boxes_is_known_by_its_stem_and_keeps_its_secondary_labels(tmp_path):
    rows = 'recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max'
    boxes = read_boxes(
        write_lines(tmp_path / 't.csv', rows, 'r1,0,1,0,100,1,200'), write_lines(tmp_path / 'f.csv', rows)
    )
    table = write_lines(tmp_path / 'c.csv', 'fname,labels,secondary_labels', 'r1.wav,s0,', 'r2.wav,,s0')
    with pytest.raises(KitError, match='has boxes, too'):
        box_table(boxes, table)
    table = write_lines(tmp_path / 'c.csv', 'fname,labels,secondary_labels,fold', 'r1.wav,s0,,0', 'r2.wav,,s0,1')
    frame = box_table(boxes, table)
    assert list(zip(frame['fname'], frame['secondary_labels'], frame['fold'], strict=True)) == [
        ('r1', '', 0),
        ('r2.wav', 's0', 1),
    ]
    table = write_lines(tmp_path / 'c.csv', 'fname,labels,begin_s,end_s', 'r2.wav,s0,0,1')
    with pytest.raises(KitError, match='stretches of clips cannot stand beside boxes'):
        box_table(boxes, table)
