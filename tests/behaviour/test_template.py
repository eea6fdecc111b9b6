'''Law 9: the template is obeyed, byte for byte, whatever its ids look like.'''

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.windows import InferenceConfig, window_spans
from kit.core.errors import KitError
from kit.infer.planner import EnsembleMember
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, WindowLogits
from kit.infer.rows import RowScores, windows_of_row
from kit.infer.submit import submit
from kit.infer.template import (
    Template,
    answer_lines,
    format_score,
    locate_clips,
    plan_notes,
    plan_rows,
    read_template,
    with_classes,
    write_submission,
)
from tests.behaviour.trained import (
    FLOAT,
    HOP,
    RATE,
    loud_tagger,
    nine_digits,
    noise,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)

STEMS = [
    '000316', '1e5', '00e10', '0x1F', '1_000', 'NA', 'nan', 'null', 'None', 'True', 'inf', '-1', '+5', '1.50',
    'a,b', 'say "hi"', "it's", 'día_日本', ' leading', 'trailing ', 'two  spaces', 'semi;colon', 'per%cent',
    'hash#tag', 'tab\there', '=1+1', 'a.b.c', 'a_5', 'x_y_10', 'emoji🔊', 'e\u0301', 'é',
]  # fmt: skip


@pytest.mark.parametrize('form', ['name', 'stem'])
def test_ids_come_back_byte_for_byte_with_their_own_predictions(tmp_path: Path, form: str) -> None:
    names = [stem + '.wav' for stem in STEMS]
    write_folder(tmp_path / 'in', names, samples=800)
    ids = names if form == 'name' else STEMS
    order = np.random.default_rng(0).permutation(len(ids))
    ids = [ids[i] for i in order]
    template = write_template(tmp_path / 'template.csv', ids, ['c', 'a', 'b'])
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['id_form'] == form and report['rows_all_models'] == len(ids)
    header, rows = read_scores(tmp_path / 'out.csv')
    assert header == ['fname', 'c', 'a', 'b'] and list(rows) == ids
    files = [tmp_path / 'in' / names[i] for i in order]
    alone = predict_clips(loud_tagger(), files).probabilities[:, [2, 0, 1]]
    np.testing.assert_allclose(list(rows.values()), alone, rtol=0, atol=1e-6)
    assert len({tuple(row) for row in rows.values()}) == len(ids)
    lines_in, lines_out = (path.read_bytes().splitlines() for path in (template, tmp_path / 'out.csv'))
    assert [line[:-6] for line in lines_in[1:]] == [re.sub(rb'(,[0-9.e+-]+){3}$', b'', line) for line in lines_out[1:]]


@pytest.mark.parametrize('value', ['0', '0.5', '', 'NaN', '1e-3', 'x'])
def test_whatever_the_template_held_every_score_is_a_float(tmp_path: Path, value: str) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    template = write_template(tmp_path / 't.csv', ['a.wav', 'gone.wav'], ['a', 'b', 'c'], value)
    silent = loud_tagger(prevalences=[0.0, 1.0, 0.25])
    submit(silent, tmp_path / 'in', tmp_path / 'out.csv', template, progress=False)
    text = (tmp_path / 'out.csv').read_text()
    assert text.splitlines()[2] == 'gone.wav,0.0,1.0,0.25'
    assert all(FLOAT.fullmatch(cell) for cell in text.splitlines()[1].split(',')[1:])


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.0, '0.0'), (1.0, '1.0'), (0.25, '0.25'), (1 / 3, '0.333333333'), (2 / 3, '0.666666667'), (1e-9, '1e-09'),
        (1.5e-30, '1.5e-30'), (0.1 + 0.2, '0.3'), (float(np.float32(0.1)), '0.100000001'), (123456789.5, '123456790.0'),
        (5e-324, '4.94065646e-324'), (0.99999999999, '1.0'),
    ],
)  # fmt: skip
def test_scores_have_nine_significant_digits_and_look_like_floats(value: float, text: str) -> None:
    assert format_score(value) == text and FLOAT.fullmatch(text)


def test_nine_digits_distinguish_any_two_float32() -> None:
    values = np.random.default_rng(0).random(2000).astype(np.float32)
    assert np.array_equal(np.array([format_score(float(v)) for v in values], dtype=np.float32), values)


VARIANTS = {
    'plain': 'fname,a,b\nx,0,0\ny,0,0\n',
    'a byte order mark': '\ufefffname,a,b\nx,0,0\ny,0,0\n',
    'carriage returns': 'fname,a,b\r\nx,0,0\r\ny,0,0\r\n',
    'old Mac': 'fname,a,b\rx,0,0\ry,0,0\r',
    'no last line end': 'fname,a,b\nx,0,0\ny,0,0',
    'blank lines': '\n\nfname,a,b\n\nx,0,0\n\n\ny,0,0\n\n',
    'all quoted': '"fname","a","b"\n"x","0","0"\n"y","0","0"\n',
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_templates_are_read_whatever_their_dialect_of_csv(tmp_path: Path, variant: str) -> None:
    (tmp_path / 't.csv').write_bytes(VARIANTS[variant].encode('utf-8'))
    assert read_template(tmp_path / 't.csv') == Template('fname', ('x', 'y'), ('a', 'b'))


@pytest.mark.parametrize('end', ['\r\n', '\r', '\n', '\n\r'])
def test_an_id_or_a_class_with_line_ends_in_it_stays_as_it_is(tmp_path: Path, end: str) -> None:
    cells = ([f'"i{end}d"', f'"{end}a"', f'"b{end}"'], [f'"x{end}y"', '0.0', '0.0'], [f'"{end}z"', '0.0', '0.0'])
    content = ''.join(','.join(row) + '\n' for row in cells).encode()
    (tmp_path / 't.csv').write_bytes(content)
    template = read_template(tmp_path / 't.csv')
    assert template == Template(f'i{end}d', (f'x{end}y', f'{end}z'), (f'{end}a', f'b{end}'))
    write_submission(tmp_path / 'out.csv', template, np.zeros((2, 2)))
    assert (tmp_path / 'out.csv').read_bytes() == content
    assert read_template(tmp_path / 'out.csv') == template


REFUSED = {
    'nothing': ('', 'no header'),
    'no class': ('fname\nx\n', "no class columns after 'fname'"),
    'an id twice': ('fname,a\nx,0\n\nx,0\n', "line 4: 'x' stands on line 2 already"),
    'a class twice': ('fname,a,a\nx,0,0\n', "the column 'a' twice"),
    'the id column twice': ('a,a\nx,0\n', "the column 'a' twice"),
    'a short row': ('fname,a,b\nx,0\n', 'line 2: 2 fields under 3 columns'),
    'a long row': ('fname,a,b\nx,0,0,0\n', 'line 2: 4 fields under 3 columns'),
    'a blank id': ('fname,a\n,0\n', 'line 2: fname is empty'),
    'a quote that never ends': ('fname,a\n"x,0\n' + 'y,0\n' * 50_000, 'cannot read'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_template_that_cannot_be_obeyed_is_one_error(tmp_path: Path, case: str) -> None:
    text, words = REFUSED[case]
    (tmp_path / 't.csv').write_text(text, encoding='utf-8')
    with pytest.raises(KitError, match=re.escape(words)):
        read_template(tmp_path / 't.csv')


def test_names_that_differ_in_blanks_alone_are_two(tmp_path: Path) -> None:
    (tmp_path / 't.csv').write_bytes(b'id ,a, a,_\nx,0,0,0\n x,0,0,0\n')
    template = read_template(tmp_path / 't.csv')
    assert template == Template('id ', ('x', ' x'), ('a', ' a', '_'))
    write_submission(tmp_path / 'out.csv', template, np.zeros((2, 3)))
    assert (tmp_path / 'out.csv').read_bytes() == b'id ,a, a,_\nx,0.0,0.0,0.0\n x,0.0,0.0,0.0\n'


def test_ids_in_another_encoding_stay_the_bytes_they_are(tmp_path: Path) -> None:
    (tmp_path / 't.csv').write_bytes('fname,a\nd\xeda,0\n'.encode('latin-1'))
    write_submission(tmp_path / 'out.csv', read_template(tmp_path / 't.csv'), np.zeros((1, 1)))
    assert (tmp_path / 'out.csv').read_bytes() == b'fname,a\nd\xeda,0.0\n'


@pytest.mark.parametrize('content', [b'\xff\xfefname,a\n', 'fname,a\nx,0\n'.encode('utf-16'), None])
def test_a_template_that_is_no_text_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / 't.csv'
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(KitError, match=r'cannot read .*t\.csv'):
        read_template(path)


FORMS = {
    'names': (['a.wav', 'b.flac'], ['b.flac', 'a.wav'], 'name', [1, 0]),
    'names in folders': (['s/a.wav', 's/b.wav'], ['s/b.wav', 's/a.wav'], 'name', [1, 0]),
    'stems': (['a.wav', 'b.c.flac'], ['b.c', 'a', 'd'], 'stem', [1, 0, None]),
    'stems with digits': (['a_5.wav', 'a_10.wav'], ['a_5', 'a_10'], 'stem', [0, 1]),
    'stems, and a stem of a stem': (['a.wav', 'a_5.wav'], ['a', 'a_5'], 'stem', [0, 1]),
    'windows': (['a.wav', 'b_7.wav'], ['a_5', 'a_10', 'b_7_5'], 'window', [0, 0, 1]),
    'windows of long stems': (['x_2020_05.ogg'], ['x_2020_05_5', 'x_2020_05_10'], 'window', [0, 0]),
    'windows by fractions': (['a.wav'], ['a_0.5', 'a_1.0', 'a_1.5'], 'window', [0, 0, 0]),
    'windows, one unknown': (['a.wav'], ['a_5', 'a_10', 'b_5', 'a_x'], 'window', [0, 0, None, None]),
    'windows, and whole files': (['r.wav', 'b.ogg'], ['r', 'r_5', 'r_10', 'R_15', 'b.ogg'], 'window', [0, 0, 0, 0, 1]),
    'whole files, and windows': (['a.wav', 'b.wav', 'c.wav'], ['a', 'B', 'c_5', 'C_10'], 'window', [0, 1, 2, 2]),
    'names, and stems': (['a.wav', 'b.wav'], ['a.wav', 'b', 'x/a.wav'], 'name', [0, 1, None]),
    'a missing file that looks like a window': (['rec.wav', 'a.wav'], ['rec', 'a', 'rec_10'], 'stem', [0, 1, None]),
    'ids of 2021': (['7_SSW_2017.ogg', '8_COR_2018.ogg'], ['8_COR_5', '7_SSW_5', '7_SSW_10'], 'window', [1, 0, 0]),
    'nothing known': (['a.wav'], ['q', 'r'], 'name', [None, None]),
    'no files': ([], ['q', 'r_5'], 'name', [None, None]),
    'no ids': (['a.wav'], [], 'name', []),
}


@pytest.mark.parametrize('case', FORMS)
def test_rows_find_their_files_in_the_form_that_finds_most(case: str) -> None:
    files, ids, form, wanted = FORMS[case]
    plan = plan_rows(ids, files)
    assert (plan.form, list(plan.files)) == (form, wanted)
    assert sorted({*plan.idle_files, *(f for f in wanted if f is not None)}) == list(range(len(files)))


def test_a_row_of_a_whole_file_has_no_end_and_is_noted_among_windows(tmp_path: Path) -> None:
    plan = plan_rows(['r', 'r_5', 'R_10', 'b_5', 'b.wav', 'x', 'x_5'], ['r.wav', 'b.wav'])
    assert plan.ends_s == (None, 5, 10, 5, None, None, 5) and plan.files == (0, 0, 0, 1, 1, None, None)
    assert plan.whole_names == ('r', 'b.wav') and plan.near_names == ('R_10',) and plan.period_s == 5
    assert "2 rows are whole files, e.g. 'r', and the others windows of files" in plan_notes(plan)
    assert plan_rows(['r', 'b'], ['r.wav', 'b.wav']).whole_names == ()
    assert plan_rows(['r_0', 'r_5', 'r'], ['r.wav']).ends_s == (5, 10, None)
    write_folder(tmp_path, ['r.wav', 'b.wav'])
    located = locate_clips(['r', 'r_5', 'R_10', 'b.wav'], tmp_path)
    assert located == [tmp_path / name for name in ('r.wav', 'r_5', 'R_10', 'b.wav')]


@pytest.mark.parametrize('options', [{}, {'smooth': 0.5}, {'top_mean': 1}, {'prior_shift': True}])
def test_whole_files_among_windows_get_the_whole_file_and_no_step_over_windows(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    for k, name in enumerate(('s', 'u')):
        write_wav(tmp_path / 'in' / f'{name}.wav', five_seconds(3)[0] * (k + 1))
    windows, whole = ['s_5', 's_10', 's_15', 'u_5'], ['u', 's']
    ids = ['u', *windows[:2], 'gone', 's', *windows[2:]]
    inference = InferenceConfig(mode='windows', window_s=5.0, hop_s=5.0, pool='mean')

    def scores(rows: list[str], **steps: Any) -> dict[str, np.ndarray]:
        template = write_template(tmp_path / 't.csv', rows, ['a', 'b', 'c'])
        out = tmp_path / 'out.csv'
        submit(loud_tagger(inference=inference), tmp_path / 'in', out, template, progress=False, **steps)
        return read_scores(out)[1]

    mixed = scores(ids, **options)
    for_whole = {'prior_shift': True} if 'prior_shift' in options else {}
    apart = scores(windows, **options) | scores(whole, **for_whole)
    for name, expected in apart.items():
        np.testing.assert_allclose(mixed[name], expected, rtol=0, atol=1e-6, err_msg=name)
    assert mixed['gone'].tolist() == nine_digits([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ('window_s', 'hop_s', 'alike'),
    [
        (5.0, 5.0, []),
        (20.0, 10.0, ['s_5', 's_05', 's_10', 's_15', 's_20']),
        (10.0, 10.0, ['s_5', 's_05', 's_10', 's_15', 's_20']),
    ],
)
def test_rows_that_share_their_windows_with_a_row_of_another_time_are_collected(
    window_s: float, hop_s: float, alike: list[str]
) -> None:
    tagger = loud_tagger(inference=InferenceConfig(mode='windows', window_s=window_s, hop_s=hop_s))
    member = EnsembleMember('m', Predictor(tagger, torch.device('cpu')))
    (output,) = member.predictor.predict(tagger.frontend.spectrograms([torch.from_numpy(five_seconds(4)[0])]))
    ids = ('s', 's_5', 's_05', 's_10', 's_15', 's_20', 's_900')
    rows = RowScores(Template('fname', ids, ('a', 'b', 'c')), plan_rows(ids, ['s.wav']), [member])
    rows.add(member, 0, output)
    assert [ids[row] for row in sorted(rows.rows_alike)] == alike


def test_a_stem_that_two_files_share_is_one_of_them_with_a_note_and_refused_for_training(tmp_path: Path) -> None:
    plan = plan_rows(['a', 'b'], ['a.flac', 'a.wav', 'b.wav'])
    assert plan.files == (1, 2)
    assert 'could mean a.flac or a.wav: a.wav is used' in plan_notes(plan)[0]
    for name in ('a.flac', 'a.wav', 'b.wav'):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(KitError, match=r'a\.flac or a\.wav'):
        locate_clips(['a', 'b'], tmp_path)
    assert plan_rows(['b'], ['a.flac', 'a.wav', 'b.wav']).files == (2,)
    assert plan_rows(['a.wav', 'a.flac'], ['a.flac', 'a.wav']).files == (1, 0)


@pytest.mark.parametrize(
    'cells, counts', [(('Rain', 'Rain'), {1}), (('a b', 'a'), {2}), (('', ''), {3}), (('a b c', 'a b c'), {3})]
)
def test_a_template_of_labels_gets_as_many_as_its_cells_have(
    tmp_path: Path, cells: tuple[str, str], counts: set[int]
) -> None:
    (tmp_path / 't.csv').write_text(f'fname,label\nx,{cells[0]}\ny,{cells[1]}\n', encoding='utf-8')
    template = with_classes(read_template(tmp_path / 't.csv'), list('abcd'))
    scores = np.array([[0.1, 0.4, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1]])
    lines = answer_lines(template, scores)
    assert {len(line.split(',')[1].split()) for line in lines} == counts
    assert lines[0].split(',')[1].startswith('b') and lines[1].split(',')[1].startswith('a')


def test_a_column_target_holds_decisions_only_where_each_id_is_a_file_a_class_and_a_second(tmp_path: Path) -> None:
    for ids, answer in ((('s_1_bird_5', 's_1_bird_10'), 'target'), (('5-194892-A.ogg', 'a_b_c'), '')):
        rows = ''.join(f'{name},0\n' for name in ids)
        (tmp_path / 't.csv').write_text(f'row_id,target\n{rows}', encoding='utf-8')
        template = read_template(tmp_path / 't.csv')
        assert (template.answer, template.classes) == (answer, () if answer else ('target',))


def test_a_template_that_pandas_saved_with_its_index_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / 't.csv').write_text(',fname,a\n0,x,0\n', encoding='utf-8')
    with pytest.raises(KitError, match='index=False'):
        read_template(tmp_path / 't.csv')


def five_seconds(count: int, tail: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    '''A long clip and its pieces of five seconds; silent around the seams, so that cutting changes no frame.'''
    size, wave = 5 * RATE, np.zeros(5 * RATE * count + tail, np.float32)
    for k in range(-(-len(wave) // size)):
        room = len(wave[k * size : (k + 1) * size]) - 4000
        wave[k * size + 2000 : k * size + 2000 + room] = noise(room, seed=k, level=0.02 * (1 + k % 7))
    return wave, [wave[start : start + size] for start in range(0, len(wave), size)]


@pytest.mark.parametrize('mode', ['full', 'windows'])
def test_every_window_row_gets_the_score_of_its_own_window(tmp_path: Path, mode: str) -> None:
    wave, pieces = five_seconds(12)
    write_wav(tmp_path / 'in' / 's_1_7.wav', wave)
    ids = [f's_1_7_{5 * (k + 1)}' for k in range(12)]
    template = write_template(tmp_path / 't.csv', ids, ['a', 'b', 'c'])
    inference = InferenceConfig(mode=mode, window_s=5.0, hop_s=5.0)
    tagger = loud_tagger(inference=inference)
    report = submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['id_form'] == 'window' and report['rows_all_models'] == 12
    _, rows = read_scores(tmp_path / 'out.csv')
    cut = predict_clips(loud_tagger(), [Sound(piece[:-1], RATE) for piece in pieces]).probabilities
    assert np.ptp(cut[:, 0]) > 0.05
    np.testing.assert_allclose([rows[name] for name in ids], cut, rtol=0, atol=1e-5)


def test_the_last_but_one_row_does_not_use_the_tail_of_the_clip(tmp_path: Path) -> None:
    wave, pieces = five_seconds(2, tail=2 * RATE)
    wave[-2 * RATE :] = noise(2 * RATE, level=0.9)
    write_wav(tmp_path / 'in' / 's.wav', wave)
    template = write_template(tmp_path / 't.csv', ['s_5', 's_10', 's_15'], ['a', 'b', 'c'])
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, window_s=5.0, hop_s=5.0, mode='windows',
           progress=False)  # fmt: skip
    _, rows = read_scores(tmp_path / 'out.csv')
    cut = predict_clips(loud_tagger(), [Sound(piece[:-1], RATE) for piece in pieces]).probabilities
    np.testing.assert_allclose(rows['s_10'], cut[1], rtol=0, atol=1e-5)
    assert (rows['s_15'] > rows['s_10'] + 0.05).all()


def test_two_rows_of_one_end_leave_the_other_rows_their_own_windows(tmp_path: Path) -> None:
    wave, pieces = five_seconds(3)
    wave[: 5 * RATE] *= 8
    write_wav(tmp_path / 'in' / 's.wav', wave)
    template = write_template(tmp_path / 't.csv', ['s_5', 's_05', 's_10', 's_15'], ['a', 'b', 'c'])
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False)
    _, rows = read_scores(tmp_path / 'out.csv')
    cut = predict_clips(loud_tagger(), [Sound(piece[:-1], RATE) for piece in pieces[1:]]).probabilities
    np.testing.assert_allclose([rows['s_10'], rows['s_15']], cut, rtol=0, atol=1e-5)


def test_rows_between_the_windows_are_predicted_and_those_far_beyond_the_end_get_the_prior(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['s.wav'], samples=3 * RATE)
    template = write_template(tmp_path / 't.csv', ['s_1.5', 's_5', 's_9999999'], ['a', 'b', 'c'])
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False).report
    assert report['rows_all_models'] == 2 and report['rows_after_end'] == ['s_9999999']
    assert HOP == 200 and len(read_scores(tmp_path / 'out.csv')[1]) == 3


def test_an_end_second_beyond_all_numbers_is_no_window(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['s.wav'])
    ids = ['s_' + '9' * 400, 's_5']
    template = write_template(tmp_path / 't.csv', ids, ['a', 'b', 'c'])
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False)
    assert list(read_scores(tmp_path / 'out.csv')[1]) == ids


def test_scores_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    template = Template('fname', ('x',), ('a', 'b'))
    write_submission(tmp_path / 'out.csv', template, np.array([[0.5, 0.25]]))
    for scores in (np.array([[np.nan, 0.0]]), np.array([[np.inf, 0.0]]), np.zeros((2, 2)), np.zeros((1, 3))):
        with pytest.raises(KitError, match='not all finite'):
            write_submission(tmp_path / 'out.csv', template, scores)
    assert (tmp_path / 'out.csv').read_text() == 'fname,a,b\nx,0.5,0.25\n'
    assert [path.name for path in tmp_path.iterdir()] == ['out.csv']


def test_files_in_folders_are_found_by_their_last_name_where_it_is_clear(tmp_path: Path) -> None:
    files = ['s/a.wav', 's/b.wav', 't/b.wav', 'c.wav', 't/c.wav']
    assert plan_rows(['a.wav', 'b.wav', 'c.wav', 't/c.wav'], files).files == (0, None, 3, 4)
    assert plan_rows(['a', 'c'], files).files == (0, 3)


def test_a_template_of_another_folder_brings_a_loud_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    template = write_template(tmp_path / 't.csv', ['x.wav', 'y.wav'], ['a', 'b', 'c'])
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', template, progress=False)
    assert 'NO ROW of the template has a file' in capsys.readouterr().out


def test_one_row_off_the_grid_does_not_change_the_length_of_all_windows():
    plan = plan_rows(['r_1', 'r_2', 'r_3', 'r_3.2'], ['r.wav'])
    assert plan.period_s == 1.0


@pytest.mark.parametrize(
    'window_s, hop_s', [(2, 2), (2, 1), (3, 3), (4.005, 1.0014), (5, 5), (5, 2.5), (7, 3.5), (20, 10)]
)
def test_the_windows_of_a_row_hear_all_of_it(window_s: float, hop_s: float) -> None:
    frames_per_s = 86.13
    spans = tuple(window_spans(round(60 * frames_per_s), math.ceil(window_s * frames_per_s), hop_s * frames_per_s))
    output = WindowLogits(np.zeros((len(spans), 1)), spans)
    for end_s in range(5, 61, 5):
        chosen = windows_of_row(output, frames_per_s, end_s - 5, end_s)
        heard = {frame for window in chosen for frame in range(*spans[window])}
        missed = set(range(round((end_s - 5) * frames_per_s) + 2, round(end_s * frames_per_s) - 2)) - heard
        assert not missed
        if (window_s, hop_s) in ((5, 5), (5, 2.5), (2, 1)):
            assert all(
                end_s - 5.04 < a / frames_per_s and b / frames_per_s < end_s + 0.04
                for a, b in map(spans.__getitem__, chosen)
            )


def test_rows_of_every_file_have_ids_of_their_own_also_where_two_files_share_a_stem(tmp_path: Path) -> None:
    for name, seconds in (('a.wav', 2), ('a.flac', 1), ('b.wav', 1)):
        write_wav(tmp_path / 'in' / name, noise(8000 * seconds))
    report = submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', rows='1s', progress=False).report
    assert (
        sorted(read_scores(tmp_path / 'out.csv')[1]) == ['a.flac_1', 'a.wav_1', 'a.wav_2', 'b.wav_1']
        and report['rows_with_prior'] == 0
    )
    assert not any('SEVERAL FILES' in note for note in report['notes'])
