'''Boxes label the windows and recordings that they cover, and leave the rest unknown.'''

from pathlib import Path

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.labels.boxes import box_table, class_bands_hz, read_boxes, window_targets
from kit.labels.table import clip_labels

HEADER = 'recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max\n'
RFCX = Path(__file__).resolve().parents[2].parent / 'shared' / 'data' / 'rfcx'
NAN = np.nan


def boxes_of(folder, true, false='', classes=None):
    '''Boxes from rows of text: recording,species,songtype,t_min,f_min,t_max,f_max.'''
    for name, rows in (('tp.csv', true), ('fp.csv', false)):
        (folder / name).write_text(HEADER + ''.join(row + '\n' for row in rows.split()))
    return read_boxes(folder / 'tp.csv', folder / 'fp.csv', classes)


def random_boxes(folder, n=60, species=5, seed=0):
    '''Many overlapping boxes in three recordings, on a coarse grid so that some edges are equal.'''
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(2 * n):
        begin, length = generator.integers(0, 40) / 2, generator.integers(1, 13) / 2
        low = generator.integers(0, 4000)
        key = f'{generator.integers(3):03d},{generator.integers(species)},1'
        rows.append(f'{key},{begin},{low},{begin + length},{low + 500}')
    return boxes_of(folder, ' '.join(rows[: n // 3]), ' '.join(rows[n:]))


def slow_targets(boxes, recording, begin, end, min_share):
    '''The definition, class by class and box by box.'''
    targets = []
    for k in range(len(boxes.classes)):
        covers = {True: False, False: False}
        overlaps_true = False
        for i in np.flatnonzero((boxes.recordings == recording) & (boxes.species == k)):
            overlap = min(end, boxes.end_s[i]) - max(begin, boxes.begin_s[i])
            shorter = min(end - begin, boxes.end_s[i] - boxes.begin_s[i])
            covers[bool(boxes.is_true[i])] |= overlap / shorter >= min_share
            overlaps_true |= bool(boxes.is_true[i]) and overlap > 0
        targets.append(1.0 if covers[True] else 0.0 if covers[False] and not overlaps_true else NAN)
    return targets


def test_recordings_stay_text_and_species_become_classes(tmp_path):
    boxes = boxes_of(tmp_path, '007,2,1,1.5,100,2.5,900.5 1e5,0,4,0,0,1,50', 'NA,3,1,3,10,4,200')
    assert boxes.classes == ('s0', 's1', 's2', 's3')
    assert boxes.recordings.tolist() == ['007', '1e5', 'NA']
    assert boxes.species.tolist() == [2, 0, 3] and boxes.is_true.tolist() == [True, True, False]
    assert boxes.begin_s.tolist() == [1.5, 0, 3] and boxes.end_s.tolist() == [2.5, 1, 4]
    assert boxes.low_hz.tolist() == [100, 0, 10] and boxes.high_hz.tolist() == [900.5, 50, 200]
    assert boxes_of(tmp_path, 'a,1,1,0,0,1,100', '', ('frog', 'bird', 'owl')).classes == ('frog', 'bird', 'owl')


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ('a,0,1,2,0,2,5', ['t_max 2 must be above t_min 2']),
        ('a,0,1,0,9,1,5', ['f_max 5 must be above f_min 9']),
        ('a,0,1,-1,0,1,5', ["t_min is '-1'"]),
        ('a,0,1,0,0,nan,5', ["t_max is 'nan'"]),
        ('a,0,1,0,0,inf,5', ["t_max is 'inf'"]),
        ('a,0,1,0,x,1,5', ["f_min is 'x'", 'a number from 0']),
        ('a,1.5,1,0,0,1,5', ["species_id is '1.5'"]),
        ('a,3,1,0,0,1,5', ["species_id is '3'", 'from 0 to 2']),
        (',0,1,0,0,1,5', ['recording_id is empty']),
        ('a,0,1,0,0,1', ['6 fields under 7 columns']),
    ],
)
def test_a_wrong_box_is_refused_with_its_file_and_line(tmp_path, row, words):
    good = 'a,0,1,0,0,1,5'
    for true, false, name in ((f'{good} {row}', '', 'tp.csv'), ('', f'{good} {row}', 'fp.csv')):
        with pytest.raises(KitError) as caught:
            boxes_of(tmp_path, true, false, ('x', 'y', 'z'))
        for word in [name, 'line 3', *words]:
            assert word in str(caught.value)


def test_a_file_in_kilohertz_is_refused_with_the_cure_and_a_box_below_100_hz_among_others_is_not(tmp_path):
    good, in_khz = 'a,0,1,0,4000,1,8000', 'a,0,1,0,4.0,1,8.0 b,0,1,0,0.1,1,99.9'
    for true, false, name in ((in_khz, good, 'tp'), (good, in_khz, 'fp')):
        with pytest.raises(KitError, match=rf'{name}\.csv: no f_max is above 99\.9 Hz: are f_min and f_max in kHz'):
            boxes_of(tmp_path, true, false)
    assert boxes_of(tmp_path, f'{good} {in_khz}').high_hz.tolist() == [8000, 8.0, 99.9]


def test_a_class_of_boxes_is_not_named_as_a_column_and_a_recording_has_no_lone_carriage_return(tmp_path):
    with pytest.raises(KitError, match="a class cannot be named 'fold'"):
        boxes_of(tmp_path, 'a,0,1,0,0,1,500', '', ('fold', 'x'))
    (tmp_path / 'tp.csv').write_bytes((HEADER + '"a\rb",0,1,0,0,1,500\n').encode())
    with pytest.raises(KitError, match=r"line 3: recording_id is 'a\\rb': remove the carriage return"):
        read_boxes(tmp_path / 'tp.csv', tmp_path / 'fp.csv')


def test_missing_columns_missing_files_and_no_boxes_are_errors(tmp_path):
    with pytest.raises(KitError, match='no boxes'):
        boxes_of(tmp_path, '', '')
    with pytest.raises(KitError, match='repeated'):
        boxes_of(tmp_path, 'a,0,1,0,0,1,500', '', ('x', 'x'))
    (tmp_path / 'fp.csv').write_text('recording_id,species_id,t_min,t_max,f_min\n')
    with pytest.raises(KitError, match=r"fp\.csv has no column 'f_max'"):
        read_boxes(tmp_path / 'tp.csv', tmp_path / 'fp.csv')
    with pytest.raises(KitError, match=r'none\.csv'):
        read_boxes(tmp_path / 'tp.csv', tmp_path / 'none.csv')


@pytest.mark.parametrize('min_share', [0.01, 0.5, 1.0])
def test_window_targets_equal_their_definition(tmp_path, min_share):
    boxes = random_boxes(tmp_path)
    begin = np.arange(0, 26, 0.25)
    states = set()
    for recording in ('000', '001', '002'):
        for length in (0.25, 2.0, 5.0):
            targets = window_targets(boxes, recording, begin, begin + length, min_share)
            expected = [slow_targets(boxes, recording, b, b + length, min_share) for b in begin]
            assert targets.dtype == np.float32
            np.testing.assert_array_equal(targets, expected)
            alone = window_targets(boxes, recording, begin[9], begin[9] + length, min_share)
            np.testing.assert_array_equal(alone, expected[9])
            states |= set(np.nan_to_num(targets, nan=-1).ravel().tolist())
    assert states == {-1.0, 0.0, 1.0}


def test_a_recording_or_class_without_boxes_is_unknown(tmp_path):
    boxes = boxes_of(tmp_path, 'a,0,1,0,0,9,500', '', ('x', 'y'))
    assert np.isnan(window_targets(boxes, 'b', [0, 1], [5, 6])).all()
    assert np.isnan(window_targets(boxes, 'a', 0, 5)[1])
    assert window_targets(boxes, 'a', [], []).shape == (0, 2)


def test_a_recording_is_true_with_any_true_box_and_false_with_false_boxes_only(tmp_path):
    boxes = random_boxes(tmp_path, n=9, seed=3)
    labels = clip_labels(box_table(boxes, None), boxes.classes)
    assert list(labels.names) == sorted(set(boxes.recordings.tolist()))
    assert labels.classes == boxes.classes
    for name, row in zip(labels.names, labels.targets, strict=True):
        for k in range(len(boxes.classes)):
            is_true = boxes.is_true[(boxes.recordings == name) & (boxes.species == k)]
            np.testing.assert_equal(float(row[k]), float(is_true.any()) if len(is_true) else NAN)
    assert {-1.0, 0.0, 1.0} == set(np.nan_to_num(labels.targets, nan=-1).ravel().tolist())
    assert labels.weights.tolist() == [1.0] * len(labels.names)


def test_a_band_holds_the_true_boxes_of_a_class_or_without_any_its_false_ones(tmp_path):
    boxes = boxes_of(tmp_path, 'a,0,1,0,50,9,500 b,0,1,0,200,9,700', 'a,0,1,0,10,9,9000 a,1,1,0,150,9,700')
    assert class_bands_hz(boxes).tolist() == [[0, 800], [50, 800]]
    assert class_bands_hz(boxes, margin_hz=0).tolist() == [[50, 700], [150, 700]]
    boxes = boxes_of(tmp_path, 'a,0,1,0,50,9,500', 'a,1,1,0,50,9,500', ('frog', 'bird', 'bat'))
    with pytest.raises(KitError, match='1 of 3 classes have no box: bat'):
        class_bands_hz(boxes)


@pytest.mark.skipif(not RFCX.is_dir(), reason='the RFCX boxes are not beside the project')
def test_the_boxes_of_the_rfcx_competition_are_read_whole():
    boxes = read_boxes(RFCX / 'train_tp.csv', RFCX / 'train_fp.csv')
    assert len(boxes.species) == 1216 + 7781 and int(boxes.is_true.sum()) == 1216
    assert boxes.classes == tuple(f's{i}' for i in range(24))
    bands = class_bands_hz(boxes)
    assert (bands[:, 0] < bands[:, 1]).all() and bands.min() == 0
    for i in range(0, 1216, 50):
        centre = (boxes.begin_s[i] + boxes.end_s[i]) / 2
        targets = window_targets(boxes, boxes.recordings[i], centre - 2, centre + 2)
        assert targets[boxes.species[i]] == 1
