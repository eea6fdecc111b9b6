'''Soft labels are read back from their file exactly, and fill only unknown labels.'''

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.labels.soft import (
    SoftLabels,
    align_soft_labels,
    fill_unknown,
    nearest_window,
    read_soft_labels,
    write_soft_labels,
)

NAN = np.nan
NAMES = ('000316', '1e5', 'NA', ' a.wav', 'a,b.wav', 'say "hi"', 'Ünï.wav', '\udcff.wav', 'nan', 'None')
CLASSES = ('b', 'a c', 'x,y', 'NA', '0')


def random_soft(windows=0, seed=0):
    '''Any float32 from 0 to 1, some unknown: for whole clips, or for `windows` windows of each clip.'''
    generator = np.random.default_rng(seed)
    n = len(NAMES) * max(1, windows)
    bits = generator.integers(0, np.float32(1).view(np.int32), (n, len(CLASSES)), dtype=np.int32)
    targets = bits.view(np.float32)
    targets[generator.random(targets.shape) < 0.3] = NAN
    targets[0, :2] = 0.0, 1.0
    if not windows:
        return SoftLabels(NAMES, CLASSES, targets)
    names = tuple(np.repeat(NAMES, windows).tolist())
    begin = np.tile(np.arange(windows) / 3, len(NAMES))
    order = generator.permutation(n)
    shuffled_names = tuple(names[i] for i in order)
    return SoftLabels(shuffled_names, CLASSES, targets, begin[order], begin[order] + 0.7)


@pytest.mark.parametrize('windows', [0, 1, 200])
def test_soft_labels_are_read_back_from_their_file_exactly(tmp_path, windows):
    soft = random_soft(windows)
    write_soft_labels(tmp_path / 'soft.csv', soft)
    read = read_soft_labels(tmp_path / 'soft.csv')
    assert (read.names, read.classes) == (soft.names, soft.classes)
    assert read.targets.dtype == np.float32
    assert read.targets.tobytes() == soft.targets.tobytes()
    np.testing.assert_array_equal(read.times, soft.times)


def test_the_file_is_a_csv_with_empty_cells_for_unknown_labels(tmp_path):
    targets = np.array([[0.1, NAN], [1, 0]])
    soft = SoftLabels(('a', 'a'), ('x', 'y'), targets, np.array([0, 0.5]), np.array([2, 2.5]))
    write_soft_labels(tmp_path / 'soft.csv', soft)
    expected = 'fname,begin_s,end_s,x,y\na,0.0,2.0,0.100000001,\na,0.5,2.5,1,0\n'
    assert (tmp_path / 'soft.csv').read_text() == expected


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('id,x\na,0\n', ["'id'", 'wanted fname']),
        ('fname,x\na,0\nb,1.5\n', ['line 3', "x is '1.5'", '0 to 1']),
        ('fname,x\na,-0.1\n', ['line 2']),
        ('fname,x\na,nan\n', ['line 2', "'nan'", 'empty cell']),
        ('fname,x\na,much\n', ["'much'"]),
        ('fname,begin_s,end_s,x\na,,1,0\n', ['line 2', "begin_s is ''"]),
        ('fname,begin_s,end_s,x\na,1,1,0\n', ['end after']),
        ('fname,begin_s,x\na,0,0\n', ["'begin_s' is no class"]),
        ('fname,x\na,0\na,1\n', ['once']),
        ('fname,begin_s,end_s,x\na,0,1,0\na,0,1,1\n', ['once']),
        ('fname,x\n,0\n', ['name each']),
        ('fname,x, x\na,0,1\n', ['repeated']),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(tmp_path, text, words):
    (tmp_path / 'soft.csv').write_text(text)
    with pytest.raises(KitError) as caught:
        read_soft_labels(tmp_path / 'soft.csv')
    for word in words:
        assert word in str(caught.value)


def test_known_labels_stay_and_unknown_ones_are_filled_where_a_soft_label_exists():
    targets = np.array([[1, 0, NAN, NAN]], np.float32)
    soft = np.array([[0.2, 0.9, 0.3, NAN]], np.float32)
    filled = fill_unknown(targets, soft)
    np.testing.assert_array_equal(filled, np.array([[1, 0, 0.3, NAN]], np.float32))
    assert filled.dtype == np.float32 and np.isnan(targets[0, 2])


def test_alignment_follows_names_and_classes_and_leaves_the_others_unknown():
    soft = SoftLabels(('b', 'a'), ('y', 'x'), np.array([[0.1, 0.2], [0.3, NAN]]))
    aligned = align_soft_labels(soft, ('a', 'gone', 'b'), ('x', 'new', 'y'))
    expected = np.array([[NAN, NAN, 0.3], [NAN, NAN, NAN], [0.2, NAN, 0.1]], np.float32)
    np.testing.assert_array_equal(aligned, expected)
    assert aligned.dtype == np.float32


def test_nearest_window_finds_the_nearest_centre():
    soft = random_soft(windows=4, seed=2)
    asked_s = np.random.default_rng(1).uniform(-1, 4, 25)
    centres = (soft.begin_s + soft.end_s) / 2
    for name in NAMES[:4]:
        rows = [i for i in range(len(soft.names)) if soft.names[i] == name]
        expected = [soft.targets[min(rows, key=lambda i, t=t: abs(centres[i] - t))] for t in asked_s]
        np.testing.assert_array_equal(nearest_window(soft, name, asked_s), expected)
        np.testing.assert_array_equal(nearest_window(soft, name, asked_s[3]), expected[3])
    from_lists = SoftLabels(('a', 'a'), ('x',), [[0.5], [1]], [0, 1], [1, 2])
    assert nearest_window(from_lists, 'a', 1.6).tolist() == [1]
