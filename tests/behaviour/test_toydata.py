'''Toy data, and the data that notebooks find or make.'''

from pathlib import Path

import numpy as np
import pytest

from kit.audio.decode import Sound, decode_file
from kit.core.errors import KitError
from kit.demo import TOY_RATE, find_data, fitting_checkpoints, make_toy_set, make_toy_soundscapes, spoil_labels
from kit.labels.boxes import box_table, read_boxes
from kit.labels.table import clip_labels, read_clip_table, split_labels
from kit.models.checkpoint import save_tagger
from kit.models.tagger import TaggerCard, build_tagger


def contents(folder: Path) -> dict[str, bytes]:
    '''Every file below a folder, by its relative path.'''
    paths = sorted(path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_noisy_part_leaves_the_toy_set_as_it_was(tmp_path: Path) -> None:
    make_toy_set(tmp_path / 'plain', 3, 2, seed=4)
    make_toy_set(tmp_path / 'more', 3, 2, seed=4, noisy=3)
    plain = contents(tmp_path / 'plain')
    more = contents(tmp_path / 'more')
    assert plain == {name: more[name] for name in plain}
    assert more.keys() - plain.keys() == {'noisy.csv', *(f'noisy/noisy_{i:04d}.wav' for i in range(3))}


def test_spoiled_labels_are_as_many_and_all_wrong() -> None:
    import pandas

    labels = ['a', 'b,c', 'd', 'b'] * 100
    table = pandas.DataFrame({'fname': [f'{i}.wav' for i in range(400)], 'labels': labels})
    spoiled = spoil_labels(table, 0.3, seed=1)
    assert list(spoiled['true_labels']) == labels
    assert list(spoil_labels(table, 0.3, seed=1)['labels']) == list(spoiled['labels'])
    pairs = [(split_labels(new), split_labels(old)) for new, old in zip(spoiled['labels'], labels, strict=True)]
    wrong = [(new, old) for new, old in pairs if new != old]
    assert 0.2 < len(wrong) / len(pairs) < 0.4
    assert all(len(new) == len(old) and not set(new) & set(old) for new, old in wrong)


def strongest_hz(path: Path, begin_s: float, end_s: float) -> np.ndarray:
    '''The 200 strongest frequencies of a stretch of a file.'''
    sound = decode_file(path)
    assert isinstance(sound, Sound) and sound.sample_rate == TOY_RATE
    stretch = sound.wave[round(begin_s * TOY_RATE) : round(end_s * TOY_RATE)]
    order = np.argsort(-np.abs(np.fft.rfft(stretch)))
    return np.asarray(np.fft.rfftfreq(len(stretch), 1 / TOY_RATE)[order[:200]])


def test_every_box_holds_a_sound_in_its_band_and_a_recording_has_one_true_box_and_two_false_ones(
    tmp_path: Path,
) -> None:
    make_toy_soundscapes(tmp_path / 'one', 12, 2, seed=2)
    boxes = read_boxes(tmp_path / 'one' / 'train_tp.csv', tmp_path / 'one' / 'train_fp.csv')
    assert boxes.is_true.sum() == 12 and (~boxes.is_true).sum() == 24
    edges = zip(boxes.begin_s, boxes.end_s, boxes.low_hz, boxes.high_hz, strict=True)
    for name, (begin, end, low, high) in zip(boxes.recordings, edges, strict=True):
        strongest = strongest_hz(tmp_path / 'one' / 'train' / f'{name}.flac', begin, end)
        assert ((low < strongest) & (strongest < high)).any(), name
    targets = clip_labels(box_table(boxes, None), boxes.classes).targets
    assert (np.nansum(targets, axis=1) == 1).all() and ((targets == 0).sum(axis=1) == 2).all()
    make_toy_soundscapes(tmp_path / 'again', 12, 2, seed=2)
    assert contents(tmp_path / 'again') == contents(tmp_path / 'one')


def write_freesound(root: Path) -> None:
    '''Freesound's layout, with one clip in each part.'''
    for part in ('train_curated', 'train_noisy'):
        (root / part).mkdir(parents=True)
        (root / f'{part}.csv').write_text(f'fname,labels\n{part[6]}.wav,"Bark,Meow"\n')
    (root / 'sample_submission.csv').write_text('fname,Bark,Meow\nt.wav,0,0\n')


def write_esc10(root: Path) -> None:
    '''ESC-10's layout, with two clips in each of five folds.'''
    (root / 'audio').mkdir(parents=True)
    lines = ['fname,labels,fold,source_id']
    for fold in range(1, 6):
        lines += [f'{fold}-0.ogg,Rain,{fold},{fold}0', f'{fold}-1.ogg,Sea,{fold},{fold}1']
    (root / 'labels.csv').write_text('\n'.join([*lines, '']))


@pytest.mark.parametrize('place', ['freesound', 'competitions/freesound', '.'])
def test_an_attached_competition_is_found_before_esc10_and_its_tables_are_joined(tmp_path: Path, place: str) -> None:
    write_esc10(tmp_path / 'esc10')
    write_freesound(tmp_path / 'input' / place)
    inputs = [tmp_path / 'esc10', tmp_path / 'input']
    data = find_data('clips', tmp_path / 'out', inputs=inputs)
    assert data.name == (tmp_path / 'input' / place).name and data.audio == tmp_path / 'input' / place
    assert data.truth is None and data.boxes is None and data.classes == ('Bark', 'Meow')
    assert data.table and data.curated
    table = read_clip_table(data.table)
    assert list(table['fname']) == ['train_curated/c.wav', 'train_noisy/n.wav']
    assert list(table['source']) == ['curated', 'noisy']
    assert list(read_clip_table(data.curated)['fname']) == ['train_curated/c.wav']
    assert find_data('clips', tmp_path / 'out', toy=2, inputs=inputs).name == 'toy_clips_2'


def test_esc10_in_a_given_folder_is_split_by_its_fifth_fold(tmp_path: Path) -> None:
    write_esc10(tmp_path / 'esc10')
    data = find_data('clips', tmp_path / 'out', inputs=tmp_path / 'esc10')
    assert data.table and data.table == data.curated and data.truth and data.group_column == 'source_id'
    assert data.audio == data.test == tmp_path / 'esc10' / 'audio'
    table = read_clip_table(data.table)
    truth = read_clip_table(data.truth)
    assert len(table) == 8 and 'fold' not in table and set(table['source']) == {'curated'}
    assert not set(table['fname']) & set(truth['fname'])
    assert list(truth['fname']) == ['5-0.ogg', '5-1.ogg'] and data.classes == ('Rain', 'Sea')


def test_where_no_data_are_found_toy_data_are_made(tmp_path: Path) -> None:
    data = find_data('boxes', tmp_path, toy=4, inputs=tmp_path / 'nothing')
    assert data.boxes and data.table is None and all(path.is_file() for path in (*data.boxes, data.template))
    assert len([*data.audio.iterdir()]) == 4 and len([*data.test.iterdir()]) == 2
    assert str(data).startswith('toy_boxes_4: 4 rows in train_tp.csv, 8 rows in train_fp.csv, 6 classes;')
    with pytest.raises(KitError, match="'clips'"):
        find_data('clip', tmp_path)


def test_checkpoints_fit_if_they_have_no_other_classes_and_teachers_are_left_out(tmp_path: Path) -> None:
    tagger = build_tagger(TaggerCard(classes=('bark', 'meow'), network={'family': 'max-pyramid', 'width': 4}))
    for place in ('run/fold_0.pt', 'run/rounds/0/fold_0.pt'):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        save_tagger(tmp_path / place, tagger)
    (tmp_path / 'run/state').mkdir()
    (tmp_path / 'run/state/fold_0.resume.pt').write_bytes(b'no checkpoint')
    found = fitting_checkpoints(('meow', 'bark'), [tmp_path, tmp_path / 'run', tmp_path / 'nothing'])
    assert found == [tmp_path / 'run' / 'fold_0.pt']
    # A class without data is in the template, but in no model.
    assert fitting_checkpoints(('meow', 'bark', 'chink'), [tmp_path]) == found
    assert fitting_checkpoints(('bark',), [tmp_path]) == []
    assert fitting_checkpoints(('bark', 'chink'), [tmp_path]) == []
