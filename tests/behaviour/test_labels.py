'''Clip tables are read as text, and labels become targets without a guess.'''

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.core.files import join_cells
from kit.infer.template import read_template
from kit.labels.folds import note_similar_classes
from kit.labels.soft import SoftLabels
from kit.labels.table import (
    OWN_COLUMNS,
    class_names,
    classes_of_template,
    clip_labels,
    known_prevalences,
    label_targets,
    read_clip_table,
    row_names,
    rows_by_name,
    split_labels,
)


def write(folder, text, encoding='utf-8'):
    path = folder / 'clips.csv'
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('Rain, Dog bark', ('Rain', 'Dog bark')),
        ('"Speech, male",Rain', ('Speech, male', 'Rain')),
        ("['Rain', 'Speech, male']", ('Rain', 'Speech, male')),
        ('["Rain"]', ('Rain',)),
        ('[]', ()),
        ("Fire (crackling),O'Hara", ('Fire (crackling)', "O'Hara")),
    ],
)
def test_labels_are_names_between_commas_quoted_names_or_lists(text, names):
    assert split_labels(text) == names
    assert split_labels(join_cells(names)) == names


@pytest.mark.parametrize(
    ('cell', 'words'),
    [
        ("['Rain", r"gives the class \"\['Rain\": separate names by commas"),
        ("'Rain'", 'gives the class'),
        ('Rain,fold', "cannot be named 'fold'"),
        *[(name, f"cannot be named '{name}'") for name in OWN_COLUMNS],
        ('Bark;Rain', "labels is 'Bark;Rain', which gives the class 'Bark;Rain': separate names by commas"),
        ('Bark | Rain', "gives the class 'Bark | Rain': separate"),
        ('Bark\tRain', 'gives the class'),
        ('Rain;', "gives the class 'Rain;'"),
        ('Bark,Meow;Purr,Purr', "gives the class 'Meow;Purr'"),
    ],
)
def test_labels_that_look_wrongly_separated_or_named_as_a_column_are_refused_with_their_line(tmp_path, cell, words):
    path = tmp_path / 'table.csv'
    path.write_text(f'fname,labels\na.wav,Rain\nb.wav,"{cell}"\n')
    with pytest.raises(KitError, match=f'line 3: .*{words}'):
        read_clip_table(path)


def test_joined_labels_are_refused_in_either_column_and_where_only_their_parts_repeat(tmp_path):
    for header, rows, line in (
        ('fname,labels', 'a,x;y\nb,y;z\n', 2),
        ('fname,labels,false_labels', 'a,x,\nb,y,\nc,z,x|y\n', 4),
    ):
        with pytest.raises(KitError, match=rf'line {line}: .*separate names by commas'):
            read_clip_table(write(tmp_path, f'{header}\n{rows}'))
    alone = read_clip_table(write(tmp_path, 'fname,labels\na,Fire;crackling\nb,Fire;crackling\nc,Rain\n'))
    assert class_names(alone['labels']) == ('Fire;crackling', 'Rain')


def test_a_class_named_as_a_column_of_ours_is_refused_wherever_classes_come_from():
    nothing = np.zeros((0, 2), np.float32)
    for name in OWN_COLUMNS:
        for read in (
            lambda name=name: label_targets([''], (name, 'x')),
            lambda name=name: SoftLabels((), (name, 'x'), nothing),
        ):
            with pytest.raises(KitError, match=rf"'{name}'.*(is no class|as a column)"):
                read()


@pytest.mark.parametrize('column', ['fname', 'labels', 'extra'])
def test_a_lone_carriage_return_is_refused_with_its_line_and_other_line_ends_stay(tmp_path, column):
    row = {'fname': 'b', 'labels': 'x', 'extra': ''} | {column: '"x\ry"'}
    text = 'fname,labels,extra\r\na,x,\r\n' + ','.join(row.values()) + '\r\n'
    with pytest.raises(KitError, match=rf"line 4: {column} is 'x\\ry': remove the carriage return"):
        read_clip_table(write(tmp_path, text))
    table = read_clip_table(write(tmp_path, 'fname,labels,extra\r\n"a\r\nb",x,"c\nd"\r\n'))
    again = read_clip_table(write(tmp_path, table.to_csv(index=False, lineterminator='\n')))
    assert again.values.tolist() == table.values.tolist() == [['a\r\nb', 'x', 'c\nd']]


def test_names_and_labels_stay_the_text_they_are(tmp_path):
    names = ['000316', '1e5', 'NA', 'nan', '00e10', ' a.wav', 'None', '1.0', 'Ünï.wav']
    labels = ['1', 'NA', 'null', '', '007,1e3', 'True', 'A, B', '-0', 'Ö']
    rows = ''.join(f'{name},"{label}"\n' for name, label in zip(names, labels, strict=True))
    table = read_clip_table(write(tmp_path, 'fname,labels\n' + rows))
    assert list(table['fname']) == names
    assert list(table['labels']) == labels
    assert all(isinstance(value, str) for column in table.columns for value in table[column])


def test_a_byte_order_mark_and_blank_lines_are_ignored(tmp_path):
    table = read_clip_table(write(tmp_path, 'fname,labels\r\n\r\na.wav,Bark\r\n\r\n', 'utf-8-sig'))
    assert list(table.columns) == ['fname', 'labels']
    assert list(table['fname']) == ['a.wav']


def test_folds_are_integers_and_weights_floats_and_the_rest_stays_text(tmp_path):
    text = 'fname,labels,fold,weight,source,extra\na,"x,y",3,0.5,curated,01\nb,x,0,2,noisy,\n'
    table = read_clip_table(write(tmp_path, text))
    assert table['fold'].dtype.kind == 'i' and list(table['fold']) == [3, 0]
    assert table['weight'].dtype.kind == 'f' and list(table['weight']) == [0.5, 2.0]
    assert list(table['source']) == ['curated', 'noisy']
    assert list(table['extra']) == ['01', '']


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('', ['no header']),
        ('fname,labels\n', ['no clips']),
        ('fname,lables\na,x\n', ["'labels'", "did you mean 'lables'"]),
        ('id,labels\na,x\n', ["'fname'"]),
        ('fname,labels,labels\na,x,y\n', ["'labels' twice"]),
        ('fname,labels\na,x\n\nb,y\na,y\n', ['line 5', "'a'", 'line 2']),
        ('fname,labels\na,x\n,y\n', ['line 3', 'empty']),
        ('fname,labels\na,x,y\nb,x,y\n', ['line 2', '3 fields', 'quoted']),
        ('fname,labels\na\n', ['line 2', '1 fields']),
        ('fname,labels,fold\na,x,1\nb,x,1.5\n', ['line 3', 'fold', "'1.5'"]),
        ('fname,labels,fold\na,x,\n', ['line 2', 'fold', "''"]),
        ('fname,labels,weight\na,x,0\n', ['line 2', 'weight', "'0'"]),
        ('fname,labels,weight\na,x,nan\n', ['weight']),
        ('fname,labels,weight\na,x,inf\n', ['weight']),
        ('fname,labels,weight\na,x,much\n', ['weight', "'much'"]),
        ('fname,labels,weight\na,x,1_0\n', ['weight', "'1_0'"]),
        ('fname,labels,fold\na,x,1_0\n', ['fold', "'1_0'"]),
        ('fname, labels,labels\na,x,y\n', ["'labels' twice"]),
        ('fname,labels,false_labels\na,x,y\nb,"x,y","z, y"\n', ['line 3', "'y'", 'false_labels']),
        ('fname,labels,begin_s,end_s\na,x,1,1\n', ['line 2', 'no stretch']),
        ('fname,labels,begin_s,end_s\na,x,2,\n', ['no stretch']),
        ('fname,labels,begin_s,end_s\na,x,-1,1\n', ["begin_s is '-1', wanted seconds"]),
        ('fname,labels,begin_s,end_s\na,x,nan,1\n', ["begin_s is 'nan', wanted seconds"]),
        ('fname,labels,begin_s,end_s\na,x,0,1\na,x,0,1\n', ['line 3', 'stands above already']),
        ('fname,labels,begin_s,end_s\na,x,,\na,x,,\n', ['line 3', 'stands above already']),
        ('fname,labels,begin_s\na,x,0\n', ['begin_s or end_s, not both']),
        ('fname,labels,end_s\na,x,1\n', ['begin_s or end_s, not both']),
    ],
)
def test_a_bad_table_is_refused_with_its_line_and_the_cure(tmp_path, text, parts):
    with pytest.raises(KitError) as caught:
        read_clip_table(write(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_is_absent_or_no_utf_8_is_a_kit_error(tmp_path):
    with pytest.raises(KitError, match=r'absent\.csv'):
        read_clip_table(tmp_path / 'absent.csv')
    with pytest.raises(KitError, match='UTF-8'):
        read_clip_table(write(tmp_path, 'fname,labels\na,Ö\n', 'latin-1'))


def test_classes_are_sorted_once_each_and_free_of_blanks():
    assert class_names(['b,a', '', 'c , a,', ' b']) == ('a', 'b', 'c')


def test_labels_that_are_no_class_are_listed():
    with pytest.raises(KitError, match=r"2 labels .* 'Brak', 'Mew'.*'Bark'"):
        label_targets(['Brak,Bark', 'Mew'], ('Bark', 'Meow'))
    with pytest.raises(KitError, match='repeated'):
        label_targets(['a'], ('a', 'a'))
    with pytest.raises(KitError, match='must be text'):
        label_targets([float('nan')], ('a',))


def test_without_false_labels_all_labels_are_known_and_with_them_only_the_listed_ones():
    '''Law 5.'''
    nan = np.nan
    labels = ['b,b', '', 'a, c', 'a']
    targets = label_targets(labels, ('a', 'b', 'c'))
    assert targets.dtype == np.float32
    assert targets.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 0, 0]]
    partial = label_targets(labels, ('a', 'b', 'c'), ['a', ' c,b', '', ' * '])
    np.testing.assert_array_equal(partial, [[0, 1, nan], [nan, 0, 0], [1, nan, 1], [1, 0, 0]])


def test_a_false_label_that_is_no_class_is_named():
    with pytest.raises(KitError, match=r"1 labels .* 'Brak'.*'Bark'"):
        label_targets(['Bark'], ('Bark',), ['Brak'])
    with pytest.raises(KitError, match="'\\*'"):
        label_targets(['*'], ('a',), [''])


def test_a_read_table_becomes_arrays_in_one_call(tmp_path):
    text = 'fname,labels,false_labels,weight,source\n007,"b,a",d,0.5,curated\n1e5,c,*,2,noisy\nNA,,,1,\n'
    encoded = clip_labels(read_clip_table(write(tmp_path, text)))
    assert encoded.names == ('007', '1e5', 'NA') and encoded.classes == ('a', 'b', 'c', 'd')
    nan = np.nan
    np.testing.assert_array_equal(encoded.targets, [[1, 1, nan, 0], [0, 0, 1, 0], [nan] * 4])
    assert encoded.weights.dtype == np.float32 and encoded.weights.tolist() == [0.5, 2.0, 1.0]
    assert (encoded.sources == 'noisy').tolist() == [False, True, False] and encoded.sources[2] == ''


def test_plain_tables_have_known_labels_equal_weights_and_the_classes_asked_for(tmp_path):
    table = read_clip_table(write(tmp_path, 'fname,labels\na,y\nb,\n'))
    encoded = clip_labels(table, ('z', 'y'))
    assert encoded.classes == ('z', 'y') and encoded.targets.tolist() == [[0, 1], [0, 0]]
    assert encoded.weights.tolist() == [1, 1] and encoded.sources.tolist() == ['', '']
    with pytest.raises(KitError, match="none of the 1 classes: 'y'"):
        clip_labels(table, ('z',))


@pytest.mark.parametrize('header', ['fname,Bark,Meow', 'id," a b ","x,y"', '0,0.0,1e5,NA', 'id,\udcff'])
def test_a_templates_classes_are_its_columns_after_the_first(tmp_path, header):
    path = tmp_path / 'sample_submission.csv'
    width = header.count(',') + 1 - (',"x,y"' in header)
    path.write_bytes((header + '\n' + ','.join('0' * width) + '\n').encode('utf-8', 'surrogateescape'))
    assert classes_of_template(path) == read_template(path).classes


def test_a_template_without_classes_is_refused(tmp_path):
    with pytest.raises(KitError, match="names no classes, only 'fname'"):
        classes_of_template(write(tmp_path, 'fname\na\n'))


def test_known_prevalences_count_known_labels_alone():
    nan = np.nan
    targets = np.array([[1, nan, nan], [1, 0, nan], [0, nan, nan], [nan, 0.5, nan]], np.float32)
    assert known_prevalences(targets) == pytest.approx([2 / 3, 0.25, 0.5])


def test_every_row_of_a_name_is_found_in_order():
    rows = rows_by_name(['b', 'a', 'b', 'b'])
    assert {name: places.tolist() for name, places in rows.items()} == {'b': [0, 2, 3], 'a': [1]}


@pytest.mark.parametrize('name', ['false_label', 'Fold', 'weights', 'Weight', 'SOURCE', 'Begin_s'])
def test_a_misspelt_column_is_refused(tmp_path, name):
    path = tmp_path / 't.csv'
    path.write_text(f'fname,labels,{name}\na.wav,x,1\nb.wav,y,1\n')
    with pytest.raises(KitError, match=f"has a column '{name}': rename it to"):
        read_clip_table(path)


def test_a_list_of_numpy_is_no_single_class(tmp_path):
    assert split_labels("['Rain', 'Wind']") == ('Rain', 'Wind')
    path = tmp_path / 't.csv'
    path.write_text("fname,labels\na.wav,['Rain' 'Wind']\n")
    with pytest.raises(KitError, match='line 2: labels'):
        read_clip_table(path)


def test_an_exported_missing_value_is_no_class(tmp_path):
    path = tmp_path / 't.csv'
    path.write_text('fname,labels\na.wav,x\nb.wav,nan\n')
    with pytest.raises(KitError, match="line 3: 'nan' is an exported missing value"):
        read_clip_table(path)


# Near misses of names


def test_a_misspelt_optional_column_is_refused_with_the_right_name_and_another_word_is_not(tmp_path):
    for name, meant in (('wieght', 'weight'), ('weigth', 'weight'), ('surce', 'source'), ('Weight', 'weight')):
        (tmp_path / 't.csv').write_text(f'fname,labels,{name}\na.wav,x,1\n', encoding='utf-8')
        with pytest.raises(KitError, match=f"rename it to '{meant}'"):
            read_clip_table(tmp_path / 't.csv')
    for name in ('height', 'length', 'folder', 'resource', 'author', 'rate'):
        (tmp_path / 't.csv').write_text(f'fname,labels,{name}\na.wav,x,1\n', encoding='utf-8')
        assert name in read_clip_table(tmp_path / 't.csv')


def test_two_classes_that_differ_in_case_or_marks_are_noted(capsys):
    note_similar_classes(['Dog_bark', 'Rain', 'dog bark', 'rain2'])
    assert capsys.readouterr().out.splitlines() == [
        "note: 'Dog_bark' and 'dog bark' are two classes: correct the table if one is misspelt."
    ]


def test_folds_that_pandas_wrote_as_floats_are_read_and_the_empty_one_is_named(tmp_path):
    (tmp_path / 't.csv').write_text('fname,labels,fold\na.wav,x,2.0\nb.wav,x,0.0\n', encoding='utf-8')
    assert list(read_clip_table(tmp_path / 't.csv')['fold']) == [2, 0]
    (tmp_path / 't.csv').write_text('fname,labels,fold\na.wav,x,2.0\nb.wav,x,\n', encoding='utf-8')
    with pytest.raises(KitError, match='line 3: fold is'):
        read_clip_table(tmp_path / 't.csv')


@pytest.mark.parametrize('mark', ['\t', ';', '|'])
def test_a_table_with_other_separators_is_refused_with_the_cure(tmp_path, mark):
    (tmp_path / 't.csv').write_text(f'fname{mark}labels\na.wav{mark}x\n', encoding='utf-8')
    with pytest.raises(KitError, match='separate columns by commas'):
        read_clip_table(tmp_path / 't.csv')


def test_a_number_without_digits_before_its_point_is_read_as_ever(tmp_path):
    (tmp_path / 't.csv').write_text('fname,labels,begin_s,end_s\na.wav,x,.0,5.0\n', encoding='utf-8')
    assert read_clip_table(tmp_path / 't.csv')['begin_s'].tolist() == [0.0]


def test_rows_of_stretches_are_named_by_recording_and_second_without_a_clash():
    names = ['a.wav', 'a.wav', 'site.0', 'site.1', 'b.OGG', 'c.wav']
    stretches = np.array([[0, 2], [1, 2], [0, 2], [0, 2], [123456.25, 123457.25], [0, np.inf]])
    assert row_names(names, stretches) == ['a_2', 'a_1_2', 'site.0_2', 'site.1_2', 'b_123457.25', 'c.wav']


@pytest.mark.parametrize('lines', ['fname,labels,fold\na,x,-3', 'fname,labels,secondary_labels\na,b,\nb,c,\nc,d,b;c'])
def test_folds_below_the_test_s_and_secondary_labels_with_other_separators_are_refused(tmp_path, lines):
    with pytest.raises(KitError, match=r'whole number from -2|separate names by commas'):
        read_clip_table(write(tmp_path, lines + '\n'))
