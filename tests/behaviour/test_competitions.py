'''Competitions as they come: from a folder as published to a run, and from there to the CSV.'''

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kit.commands import train_by_name
from kit.core.errors import KitError
from kit.demo import find_data
from kit.infer.submit import submit
from kit.labels.folds import make_folds
from kit.labels.layouts import clock_seconds, find_layout, read_competition, site_of
from kit.labels.oof_predictions import load_oof
from kit.labels.table import clip_labels, is_secondary, rating_weights, read_clip_table
from kit.train.dataset import load_dataset
from kit.train.held_out import held_out_models
from kit.train.oof import predict_oof
from kit.train.recipes import find_recipe
from tests.behaviour import layouts
from tests.behaviour.layouts import CODES
from tests.behaviour.trained import loud_tagger, read_scores, write_template
from tests.behaviour.training import RUNTIME

pytestmark = pytest.mark.usefixtures('one_core')

QUIET: dict[str, Any] = {'device': 'cpu', 'threads': 1, 'progress': False}
TINY_TEXT = '''
    frontend.sample_rate=8000 frontend.n_fft=512 frontend.hop_length=256 frontend.n_mels=16 network.width=4
    network.blocks=2 epochs=3 no_augment_epochs=1 batch_size=4 validate_every=3 n_folds=2 crop_s=2
'''
TINY = TINY_TEXT.split()
ROUND_TEXT = '''
    self_training.iterations=1 self_training.methods=["windows"] self_training.hop_s=5
    sampling.sample_by_probs=windows
'''
ROUND = ROUND_TEXT.split()


COMPETITIONS = {
    'freesound-2019': (layouts.write_freesound_2019, 'fname', 3, 2),
    'rfcx': (layouts.write_rfcx, 'recording_id', 2, 3),
    'birdclef-2024': (lambda root: layouts.write_birdclef(root, 2024), 'row_id', 6, 4),
    'birdclef-2025': (lambda root: layouts.write_birdclef(root, 2025), 'row_id', 6, 4),
    'birdclef-2026': (lambda root: layouts.write_birdclef(root, 2026), 'row_id', 6, 4),
}


@pytest.mark.parametrize('name', COMPETITIONS)
def test_two_commands_lead_from_a_competitions_folder_to_its_csv(name: str, tmp_path: Path) -> None:
    write, id_column, rows, classes = COMPETITIONS[name]
    root = tmp_path / name
    write(root)
    train_by_name('max-pyramid-mel', str(tmp_path / 'run'), competition=str(root), small=True, overrides=TINY, **QUIET)
    out = tmp_path / 'submission.csv'
    submission = submit(str(tmp_path / 'run/fold_*.pt'), out=out, competition=root, **QUIET)
    header, scores = read_scores(out)
    template = pd.read_csv(root / 'sample_submission.csv', dtype=str)
    assert header == list(template.columns) and header[0] == id_column
    assert len(scores) == rows and len(header) == 1 + classes
    assert submission.report['rows_all_models'] == rows
    predicted = np.array(list(scores.values()))
    assert np.ptp(predicted, axis=0).max() > 1e-4


@pytest.fixture(scope='module')
def birdclef(tmp_path_factory: pytest.TempPathFactory) -> Path:
    '''A folder of BirdCLEF 2026.'''
    root = tmp_path_factory.mktemp('input') / 'birdclef-2026'
    layouts.write_birdclef(root, 2026)
    return root


def test_codes_are_text_and_copied_rows_of_soundscapes_count_once(birdclef: Path, tmp_path: Path) -> None:
    data = read_competition(birdclef, tmp_path)
    assert data.table and data.group_column == 'author' and data.classes == CODES
    frame = read_clip_table(data.table)
    assert set(frame['labels'][frame['source'] == 'clips']) == set(CODES[:3])
    windows = frame[frame['source'] == 'soundscapes']
    assert len(windows) == 9 and not windows.duplicated(['fname', 'begin_s']).any()
    assert windows[['begin_s', 'end_s']].iloc[1].tolist() == [5.0, 10.0] and windows['site'].iloc[0] == 'S00'
    # A class without a clip is known from soundscapes.
    assert clip_labels(frame).classes == tuple(sorted(CODES))
    assert all((birdclef / name).is_file() for name in frame['fname'])


def test_soundscape_labels_that_contradict_each_other_are_refused_with_the_line(birdclef: Path, tmp_path: Path) -> None:
    root = tmp_path / 'copy'
    shutil.copytree(birdclef, root)
    path = root / 'train_soundscapes_labels.csv'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([lines[0], lines[1], lines[2].replace('asbfly', '22930'), '']))
    with pytest.raises(KitError, match=r'labels\.csv, line 3: .* from 0 s has other labels above'):
        read_competition(root, tmp_path / 'out')


def test_secondary_labels_are_unknown_and_codes_that_are_no_class_are_passed_over(
    birdclef: Path, tmp_path: Path
) -> None:
    data = read_competition(birdclef, tmp_path)
    assert data.table
    frame = read_clip_table(data.table)
    labels = clip_labels(frame)
    first = list(frame['fname']).index('train_audio/asbfly/XC100.ogg')
    column = labels.classes.index('22930')
    assert 'elsewhere' not in labels.classes
    assert np.isnan(labels.targets[first, column]) and is_secondary(frame, labels.classes)[first].sum() == 1
    assert np.isnan(labels.targets).sum() == 1
    assert labels.targets[first, labels.classes.index('asbfly')] == 1


def test_birdclefs_own_table_is_read_as_a_clip_table(birdclef: Path) -> None:
    frame = read_clip_table(birdclef / 'train.csv')
    assert {'fname', 'labels', 'secondary_labels', 'rating'} <= set(frame) and '1e5' in set(frame['labels'])
    weights = rating_weights(frame)
    assert set(weights.tolist()) == {np.float32(1), np.float32(0.7)}
    assert (weights[np.asarray(frame['rating']) == 0] == 1).all()


def test_secondary_labels_and_ratings_count_in_training_as_the_recipe_says(birdclef: Path) -> None:
    frame = read_clip_table(birdclef / 'train.csv')
    frame['fold'] = np.arange(len(frame)) % 2
    recipe = find_recipe('max-pyramid-mel', True, TINY)
    first = list(frame['fname']).index('asbfly/XC100.ogg')
    for settings, target, weight in (([], np.nan, 1), (['secondary_target=0.5', 'weigh_by_rating=true'], 0.5, 0.7)):
        changed = recipe.override(settings)
        data = load_dataset(changed, frame, birdclef / 'train_audio', RUNTIME)
        column = data.classes.index('22930')
        np.testing.assert_equal(float(data.targets[first, column]), target)
        assert np.isnan(data.truth[first, column])
        assert data.weights.min() == np.float32(weight) and data.weights.max() == 1


def test_a_class_with_one_clip_is_in_every_training_and_unknown_authors_are_no_group(
    birdclef: Path, tmp_path: Path
) -> None:
    data = read_competition(birdclef, tmp_path, unlabelled=True)
    assert data.table
    frame = read_clip_table(data.table)
    # The authors of the only clip of 1e5 and of unlabelled soundscapes.
    frame.loc[frame['labels'] == '1e5', 'author'] = 'alone'
    folds = make_folds(frame, 2, group_column='author')
    only = np.asarray(frame['labels'] == '1e5')
    unlabelled = np.asarray(frame['source'] == 'unlabelled')
    assert (folds[unlabelled] == -1).all() and unlabelled.sum() == 1
    assert set(folds[only & np.asarray(frame['source'] == 'clips')]) <= {-1, 0, 1}
    lonely = pd.DataFrame({'fname': list('abcde'), 'labels': ['x', 'x', 'y', 'y', 'z']})
    assert make_folds(lonely, 2)[4] == -1 and set(make_folds(lonely, 2)[:4]) == {0, 1}
    authors = frame[frame['source'] == 'clips'].groupby('author')['fname'].count()
    for author in authors.index[authors.index != '']:
        assert len(set(folds[np.asarray(frame['author'] == author)])) == 1


def test_labelled_windows_of_soundscapes_are_scored_out_of_fold_as_rows_of_a_submission(
    birdclef: Path, tmp_path: Path
) -> None:
    '''Laws 3 and 4.'''
    run = train_by_name(
        'max-pyramid-mel', str(tmp_path / 'run'), competition=str(birdclef), small=True, overrides=TINY, **QUIET
    )
    assert run.oof is not None
    windows = [name for name in run.oof.names if name.startswith('train_soundscapes')]
    assert windows and all(name.rpartition('_')[2] in ('5', '10', '15') for name in windows)
    assert load_oof(run.folder).names == run.oof.names
    again = predict_oof(run.folder, birdclef, **QUIET)
    np.testing.assert_allclose(again.probabilities, run.oof.probabilities, atol=1e-5)
    # The same window of a submission of that fold's model alone.
    for path, held in held_out_models(run.folder).items():
        names = [name.rpartition('/')[2] for name in held.names if name in windows]
        if not names:
            continue
        template = write_template(tmp_path / 'rows.csv', names, run.oof.classes)
        submit(path, birdclef / 'train_soundscapes', tmp_path / 'out.csv', template, **QUIET)
        _, scores = read_scores(tmp_path / 'out.csv')
        for name, row in scores.items():
            place = run.oof.names.index(f'train_soundscapes/{name}')
            np.testing.assert_allclose(row, run.oof.probabilities[place], atol=1e-5)


def test_unlabelled_soundscapes_are_learnt_from_by_rounds_alone(birdclef: Path, tmp_path: Path) -> None:
    overrides = [*TINY, *ROUND]
    run = train_by_name(
        'max-pyramid-mel', str(tmp_path / 'run'), competition=str(birdclef), small=True, overrides=overrides, **QUIET
    )
    name = next(path.name for path in (birdclef / 'train_soundscapes').iterdir() if '_0003_' in path.name)
    soft = pd.read_csv(run.folder / 'rounds/1/labels/soft.csv')
    rows = soft[soft['fname'] == f'train_soundscapes/{name}']
    assert np.allclose(rows['begin_s'], [0, 5, 10], atol=0.02) and rows[list(CODES)].notna().all(axis=None)
    assert run.oof is not None and not any('_0003_' in name for name in run.oof.names)
    for held in held_out_models(run.folder).values():
        assert list(held.unlabelled) == [f'train_soundscapes/{name}']
    plain = read_competition(birdclef, tmp_path / 'plain')
    assert plain.table and 'unlabelled' not in set(read_clip_table(plain.table)['source'])


TAGGER_CLASSES = ['asbfly', '22930', '1e5']


def test_a_stub_template_gives_rows_for_every_file_and_a_class_without_a_model_gets_a_prior(
    birdclef: Path, tmp_path: Path
) -> None:
    tagger = loud_tagger(classes=TAGGER_CLASSES)
    out = tmp_path / 'out.csv'
    report = submit(tagger, out=out, competition=birdclef, **QUIET).report
    header, scores = read_scores(out)
    assert header == ['row_id', *CODES]
    stems = sorted(path.stem for path in (birdclef / 'test_soundscapes').glob('*.ogg'))
    assert list(scores) == [f'{stem}_{end}' for stem in stems for end in (5, 10, 15)]
    assert any('THE TEMPLATE IS A STUB' in note for note in report['notes'])
    assert any('1 CLASSES of the template are unknown' in note and '47158son03' in note for note in report['notes'])
    values = np.array(list(scores.values()))
    assert np.allclose(values[:, 3], np.mean([0.1, 0.2, 0.3])) and np.ptp(values[:, :3], axis=0).min() > 0
    report = submit(tagger, out=tmp_path / 'kept.csv', competition=birdclef, rows='template', **QUIET).report
    assert report['rows'] == report['rows_with_prior'] == 3
    submit(tagger, birdclef / 'test_soundscapes', tmp_path / 'half.csv', rows='2.5s', **QUIET)
    header, scores = read_scores(tmp_path / 'half.csv')
    assert header == ['row_id', *TAGGER_CLASSES] and list(scores)[:2] == [f'{stems[0]}_2.5', f'{stems[0]}_5']


def test_a_template_that_names_the_files_is_kept(birdclef: Path, tmp_path: Path) -> None:
    stem = sorted(path.stem for path in (birdclef / 'test_soundscapes').glob('*.ogg'))[0]
    template = write_template(tmp_path / 't.csv', [f'{stem}_10', 'gone_5'], CODES)
    folder = birdclef / 'test_soundscapes'
    report = submit(loud_tagger(classes=TAGGER_CLASSES), folder, tmp_path / 'o.csv', template, **QUIET).report
    assert report['rows'] == 2 and report['rows_with_prior'] == 1


def test_a_long_template_without_any_file_is_obeyed_all_the_same(birdclef: Path, tmp_path: Path) -> None:
    '''Law 9: it is the right template, for another folder.'''
    ids = [f'other_{end}' for end in range(5, 65, 5)]
    template = write_template(tmp_path / 't.csv', ids, CODES)
    folder = birdclef / 'test_soundscapes'
    report = submit(loud_tagger(classes=TAGGER_CLASSES), folder, tmp_path / 'o.csv', template, **QUIET).report
    assert list(read_scores(tmp_path / 'o.csv')[1]) == ids and report['rows_with_prior'] == 12
    assert any('NO ROW of the template has a file' in note for note in report['notes'])


def test_models_with_some_of_the_classes_predict_these_alone(birdclef: Path, tmp_path: Path) -> None:
    models = {
        name: loud_tagger(classes=classes) for name, classes in {'all': CODES, 'two': ['22930', 'asbfly']}.items()
    }
    scores = {}
    for name, chosen in {'all': [models['all']], 'two': [models['two']], 'both': [*models.values()]}.items():
        submit(chosen, out=tmp_path / f'{name}.csv', competition=birdclef, **QUIET)
        scores[name] = np.array(list(read_scores(tmp_path / f'{name}.csv')[1].values()))
    both = scores['both']
    np.testing.assert_allclose(both[:, :2], (scores['all'] + scores['two'])[:, :2] / 2, atol=1e-6)
    np.testing.assert_allclose(both[:, 2:], scores['all'][:, 2:], atol=1e-6)
    with pytest.raises(KitError, match="--blend rank compares the classes of a row, but some models lack '1e5'"):
        submit([*models.values()], out=tmp_path / 'r.csv', competition=birdclef, blend='rank', **QUIET)


def test_without_test_audio_the_csv_is_valid_and_training_soundscapes_are_rehearsed(tmp_path: Path) -> None:
    root = tmp_path / 'birdclef-2025'
    layouts.write_birdclef(root, 2025, test=0)
    tagger = loud_tagger(classes=CODES)
    report = submit(tagger, out=tmp_path / 'out.csv', competition=root, rehearse=2, **QUIET).report
    assert report['rows'] == report['rows_with_prior'] == 3 and len(read_scores(tmp_path / 'out.csv')[1]) == 3
    assert report['rehearsal'].startswith('rehearsal: 2 soundscapes, 30 s of audio, took ')
    assert '600 such files would take' in report['rehearsal']
    assert len(read_scores(tmp_path / 'out_rehearsal.csv')[1]) == 6
    with pytest.raises(KitError, match="rehearse predicts a competition's training soundscapes"):
        submit(tagger, root / 'train_soundscapes', tmp_path / 'o.csv', rehearse=2, **QUIET)


def test_an_unknown_layout_names_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / 'input/other').mkdir(parents=True)
    (tmp_path / 'input/other/sample_submission.csv').write_text('id,a\n')
    with pytest.raises(
        KitError, match=r'it holds: sample_submission\.csv\. Looked for: train_curated\.csv .*--table CSV'
    ):
        find_layout(tmp_path / 'input/other')
    # No toy data where a competition is attached.
    for kind in ('clips', 'boxes'):
        with pytest.raises(KitError, match="has no known competition's layout"):
            find_data(kind, tmp_path / 'out', inputs=tmp_path / 'input')
    assert not (tmp_path / 'out').exists()


def test_a_competition_of_another_kind_or_two_at_once_are_refused(birdclef: Path, tmp_path: Path) -> None:
    data = find_data('clips', tmp_path / 'clips', inputs=birdclef.parent)
    assert data.name == 'birdclef-2026' and data.table
    with pytest.raises(KitError, match='birdclef-2026 is of BirdCLEF, whose data are not boxes'):
        find_data('boxes', tmp_path / 'out', inputs=birdclef.parent)
    assert find_layout(birdclef.parent)[1] == birdclef
    layouts.write_freesound_2019(tmp_path / 'two/freesound')
    layouts.write_rfcx(tmp_path / 'two/rfcx')
    with pytest.raises(KitError, match='holds 2 competitions: name one of'):
        find_layout(tmp_path / 'two')


def test_each_layout_gives_table_classes_groups_and_metric(tmp_path: Path) -> None:
    layouts.write_freesound_2018(tmp_path / 'fat2018')
    data = read_competition(tmp_path / 'fat2018', tmp_path / 'out2018')
    assert data.table and data.curated and data.metric == 'map3' and data.test.name == 'audio_test'
    assert list(read_clip_table(data.table)['source']) == ['curated'] * 9 + ['noisy'] * 3
    assert len(read_clip_table(data.curated)) == 9
    layouts.write_esc50(tmp_path / 'esc50')
    data = read_competition(tmp_path / 'esc50', tmp_path / 'out50')
    assert data.table and data.truth and data.group_column == 'source_id' and data.classes == ('dog', 'rain')
    assert len(read_clip_table(data.table)) == 16 and len(read_clip_table(data.truth)) == 4
    layouts.write_freesound_2019(tmp_path / 'fat2019')
    data = read_competition(tmp_path / 'fat2019', tmp_path / 'out2019')
    assert data.classes == ('Bark', 'Chink,_clink_(metal)')
    assert data.table and clip_labels(read_clip_table(data.table)).classes == data.classes
    for year, metric in ((2024, 'macro_auc'), (2025, 'macro_auc'), (2026, 'macro_auc')):
        layouts.write_birdclef(tmp_path / str(year), year, test=0)
        assert read_competition(tmp_path / str(year), tmp_path / f'out{year}').metric == metric


def test_windows_of_2021_and_clocks_and_sites_are_read(tmp_path: Path) -> None:
    root = tmp_path / 'birdclef-2021'
    layouts.write_tone(root / 'train_short_audio/asbfly/XC1.ogg', ['asbfly'], 6, 0)
    row = {'primary_label': 'asbfly', 'secondary_labels': "['22930']", 'filename': 'XC1.ogg', 'rating': 4.0}
    layouts.write_csv(root / 'train_metadata.csv', [row])
    layouts.write_tone(root / 'train_soundscapes/7019_COR_20190904.ogg', ['22930'], 10, 1)
    windows = [{'row_id': f'7019_COR_{end}', 'site': 'COR', 'audio_id': 7019, 'seconds': end} for end in (5, 10)]
    windows = [row | {'birds': birds} for row, birds in zip(windows, ('nocall', '22930 asbfly'), strict=True)]
    layouts.write_csv(root / 'train_soundscape_labels.csv', windows)
    data = read_competition(root, tmp_path / 'out')
    assert data.table and data.metric == 'micro_f1'
    frame = read_clip_table(data.table)
    assert list(frame['labels']) == ['asbfly', '', '22930,asbfly'] and list(frame['end_s'][1:]) == [5, 10]
    assert all((root / name).is_file() for name in frame['fname'])
    assert clock_seconds('00:01:05') == 65 and clock_seconds('01:05') == 65 and clock_seconds('2.5') == 2.5
    assert site_of('BC2026_Train_0001_S22_20250101_050000.ogg') == 'S22'
    assert site_of('7019_COR_20190904.ogg') == 'COR' and site_of('soundscape_12.ogg') == ''


def test_only_the_scored_birds_of_2022_count_in_scores(tmp_path: Path) -> None:
    root = tmp_path / 'birdclef-2022'
    layouts.write_birdclef(root, 2024)
    shutil.rmtree(root / 'unlabeled_soundscapes')
    (root / 'eBird_Taxonomy_v2021.csv').write_text('SPECIES_CODE\n')
    (root / 'scored_birds.json').write_text('["22930", "asbfly"]')
    cells = [f'soundscape_0_{bird}_{end}' for end in (5, 10) for bird in ('22930', 'asbfly')]
    (root / 'sample_submission.csv').write_text('row_id,target\n' + ''.join(f'{c},False\n' for c in cells))
    data = read_competition(root, tmp_path / 'tables')
    assert data.metric == 'macro_f1' and data.classes == ('22930', 'asbfly')
    run = train_by_name(
        'max-pyramid-mel',
        str(tmp_path / 'run'),
        competition=str(root),
        small=True,
        overrides=[*TINY, 'epochs=1', 'no_augment_epochs=0', 'validate_every=1'],
        **QUIET,
    )
    assert run.recipe.scored_classes == ('22930', 'asbfly') and run.oof is not None
    for oof in (run.oof, load_oof(run.folder), predict_oof(run.folder, root, **QUIET)):
        unscored = [k for k, name in enumerate(oof.classes) if name not in data.classes]
        assert unscored and np.isnan(oof.truth[:, unscored]).all()
        assert np.isfinite(np.delete(oof.truth, unscored, axis=1)).any(axis=0).all()
    thresholds = run.folder / 'thresholds.csv'
    submit(f'{run.folder}/fold_*.pt', out=tmp_path / 'o.csv', competition=root, thresholds=thresholds, **QUIET)
    lines = (tmp_path / 'o.csv').read_text().splitlines()
    assert [line.partition(',')[0] for line in lines] == ['row_id', *cells]
    assert {line.partition(',')[2] for line in lines[1:]} <= {'True', 'False'}


ANSWERS = {
    'label': (['soundscape_0.ogg', 'soundscape_1.ogg'], 'fname'),
    'birds': (['soundscape_0_5', 'soundscape_0_10'], 'row_id'),
    'target': (['soundscape_0_22930_5', 'soundscape_0_asbfly_5', 'soundscape_1_none_10'], 'row_id'),
}


@pytest.mark.parametrize('answer', ANSWERS)
def test_templates_of_earlier_years_are_answered_in_their_own_words(answer: str, tmp_path: Path) -> None:
    '''Law 9: the three best labels in 2018, the birds of a window in 2021, true or false for each in 2022.'''
    layouts.write_birdclef(tmp_path / 'data', 2025)
    ids, id_column = ANSWERS[answer]
    template = tmp_path / 'template.csv'
    template.write_text('\n'.join([f'{id_column},{answer}', *(f'{name},' for name in ids), '']))
    folder = tmp_path / 'data/test_soundscapes'
    classes = ('asbfly', '22930', '1e5', 'x')
    # Log odds far from 0 on either side, so that some classes are above one half and others are not.
    tagger = loud_tagger(classes=classes)
    submit(tagger, folder, tmp_path / 'plain.csv', rows='5s' if answer != 'label' else 'auto', **QUIET)
    _, scores = read_scores(tmp_path / 'plain.csv')
    submit(tagger, folder, tmp_path / 'out.csv', template, **QUIET)
    lines = (tmp_path / 'out.csv').read_text().splitlines()
    assert lines[0] == f'{id_column},{answer}' and [line.partition(',')[0] for line in lines[1:]] == ids
    for line in lines[1:]:
        name, _, text = line.partition(',')
        if answer == 'label':
            order = np.argsort(-scores[name], kind='stable')[:3]
            assert text == ' '.join(classes[k] for k in order)
        elif answer == 'birds':
            row = scores[name]
            chosen = [classes[k] for k in np.argsort(-row, kind='stable') if row[k] > 0.5]
            assert text == (' '.join(chosen) or 'nocall')
        else:
            stem, bird, end = name.rsplit('_', 2)
            is_known = bird in classes
            assert text == str(is_known and bool(scores[f'{stem}_{end}'][classes.index(bird)] > 0.5))


def test_the_codes_of_birdclef_2020_are_its_classes_also_among_secondary_labels(tmp_path: Path) -> None:
    rows = [
        ('aldfly', 'Empidonax alnorum_Alder Flycatcher', "['Corvus corax_Raven']"),
        ('comrav', 'Corvus corax_Raven', '[]'),
    ]
    columns = ('ebird_code', 'primary_label', 'secondary_labels')
    frame = pd.DataFrame([dict(zip(columns, row, strict=True)) | {'filename': f'{row[0]}.mp3'} for row in rows])
    (tmp_path / 'train_audio').mkdir()
    frame.to_csv(tmp_path / 'train.csv', index=False)
    write_template(tmp_path / 'sample_submission.csv', ['a_5'], ['birds'])
    table = read_clip_table(read_competition(tmp_path, tmp_path / 'out').table or '')
    assert table['labels'].tolist() == ['aldfly', 'comrav'] and table['secondary_labels'].tolist() == ['comrav', '']
    assert table['fname'][0] == 'train_audio/aldfly/aldfly.mp3'
