'''Correction lists: new labels or none, for clips of the table alone.'''

import json

import pandas as pd
import pytest

from kit.core.errors import KitError
from kit.labels.table import apply_corrections, label_targets, read_corrections

TABLE = pd.DataFrame({'fname': ['000316', 'b.wav', 'c.wav'], 'labels': ['Bark', 'Meow,Bark', 'Meow']})


def write(path, text):
    '''A file of this text.'''
    path.write_text(text, encoding='utf-8')
    return path


def test_json_and_csv_are_read_alike(tmp_path):
    expected = {'000316': 'Meow', 'b.wav': None, 'c.wav': ''}
    assert read_corrections(write(tmp_path / 'a.json', json.dumps(expected))) == expected
    text = 'fname,labels,drop\n000316,Meow,\nb.wav,,1\nc.wav,"",0\n'
    assert read_corrections(write(tmp_path / 'a.csv', text)) == expected
    text = 'fname,labels\n000316,Meow\nb.wav,remove\nc.wav,""\n'
    assert read_corrections(write(tmp_path / 'b.csv', text)) == expected


def test_corrected_clips_have_their_new_labels_dropped_ones_are_gone_others_stay(tmp_path):
    before = TABLE.copy()
    changed = apply_corrections(TABLE, {'000316': 'Meow, Bark', 'b.wav': None})
    assert changed['fname'].tolist() == ['000316', 'c.wav'] and changed.index.tolist() == [0, 1]
    assert changed['labels'].tolist() == ['Meow, Bark', 'Meow']
    pd.testing.assert_frame_equal(TABLE, before)
    pd.testing.assert_frame_equal(apply_corrections(TABLE, {}), TABLE, check_dtype=False)


def test_a_corrected_clip_is_known_in_every_class():
    '''Law 5: the corrected labels replace what was unknown or false before.'''
    table = TABLE.assign(labels=['Bark', '', ''], false_labels=['Meow', 'Bark', ''])
    changed = apply_corrections(table, {'b.wav': 'Bark'})
    targets = label_targets(list(changed['labels']), ('Bark', 'Meow'), list(changed['false_labels']))
    assert targets[:2].tolist() == [[1, 0], [1, 0]] and pd.isna(targets[2]).all()


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('a.csv', 'fname,label\na,b\n', "no column 'labels'"),
        ('a.csv', 'fname,labels,drop\na,,yes\n', r"line 2: drop is 'yes', wanted 1 without labels"),
        ('a.csv', 'fname,labels,drop\na,Bark,1\n', r"line 2: drop is '1', wanted 1 without labels"),
        ('a.csv', 'fname,labels\na,Bark\na,Meow\n', "corrects 'a' to 'Meow', wanted .* each clip, once"),
        ('a.csv', 'fname,labels\n,Bark\n', "corrects '' to 'Bark'"),
        ('a.json', '{', 'cannot read the corrections'),
        ('a.json', '["a"]', 'wanted labels or null for each clip, once'),
        ('a.json', '{"a": ["Bark"]}', r"corrects 'a' to \['Bark'\], wanted labels"),
        ('a.json', '{"a": "Bark", "a": null}', "corrects 'a' to None, wanted .* each clip, once"),
    ],
)
def test_a_wrong_correction_is_an_error_that_names_it(tmp_path, name, text, message):
    with pytest.raises(KitError, match=message):
        read_corrections(write(tmp_path / name, text))


def test_unknown_clips_and_labels_are_errors_with_the_cure():
    with pytest.raises(KitError, match=r"clip 'd\.wav' is not in the table of 3 clips"):
        apply_corrections(TABLE, {'d.wav': 'Bark'})
    with pytest.raises(KitError, match=r"'b\.wav' is corrected to a new label 'Brak': did you mean 'Bark'"):
        apply_corrections(TABLE, {'b.wav': 'Brak'})
    with pytest.raises(KitError, match='drop every clip'):
        apply_corrections(TABLE, dict.fromkeys(TABLE['fname']))


def test_a_corrected_clip_has_no_secondary_labels_and_stretches_are_refused():
    table = TABLE.assign(secondary_labels='Bark')
    assert apply_corrections(table, {'c.wav': 'Meow'})['secondary_labels'].tolist() == ['Bark', 'Bark', '']
    twice = pd.concat([TABLE, TABLE])
    with pytest.raises(KitError, match='several stretches'):
        apply_corrections(twice, {'c.wav': 'Meow'})
