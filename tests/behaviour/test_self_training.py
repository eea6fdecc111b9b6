'''Self-training: the same end wherever it was stopped; labels come from models that held a clip out.'''

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kit.core.clock import Deadline, set_deadline
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.labels.soft import align_soft_labels, read_soft_labels
from kit.labels.table import read_clip_table
from kit.train.pseudo_labels import SelfTrainingConfig
from kit.train.run import train_run
from kit.train.self_training import SelfTraining, predict_pseudo_labels, relabel, self_train
from tests.behaviour.training import CLASSES, QUIET, TINY, Killed, make_set, same_checkpoints, write_clip

pytestmark = pytest.mark.usefixtures('one_core')

TINY = TINY.override(['loss=bce', 'mixup.p=0', 'crop_s=0.2', 'epochs=1', 'no_augment_epochs=0', 'n_folds=3'])
NAMES = [f'{i:02d}.wav' for i in range(12)]


def with_iterations(iterations, methods=('agreement',), **settings):
    '''The tiny recipe with some iterations of self-training.'''
    plan = SelfTrainingConfig(iterations=iterations, methods=methods, **settings)
    return replace(TINY, self_training=plan)


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    '''A table of twelve clips in three folds, of which the last six are noisy, and their folder.'''
    columns = {'fold': [0, 1, 2] * 4, 'source': ['curated'] * 6 + ['noisy'] * 6}
    columns['labels'] = [CLASSES[(i // 3) % 3] for i in range(12)]
    return make_set(tmp_path_factory.mktemp('toy'), 12, **columns)


@pytest.fixture(scope='module')
def planted(toy, tmp_path_factory):
    '''The same set, but with other sounds and other labels in fold 0.'''
    folder = tmp_path_factory.mktemp('planted')
    shutil.copytree(toy[1], folder / 'clips')
    frame = pd.read_csv(toy[0])
    for i in range(0, 12, 3):
        frame.loc[i, 'labels'] = CLASSES[(i // 3 + 1) % 3]
        write_clip(folder / 'clips' / NAMES[i], [frame.loc[i, 'labels']], 0.6, np.random.default_rng(100 + i))
    frame.to_csv(folder / 'table.csv', index=False)
    return folder / 'table.csv', folder / 'clips'


class CountedTraining:
    '''train_run, with the arguments and the result of each call; killed before a call beyond `limit`.'''

    def __init__(self, limit=100):
        self.limit = limit
        self.calls = []

    def __call__(self, *arguments, **options):
        if len(self.calls) == self.limit:
            raise Killed
        self.calls.append(options)
        return train_run(*arguments, **options)


@pytest.fixture(scope='module')
def two(toy, tmp_path_factory):
    '''Two iterations on the set.'''
    recipe = with_iterations(2, top_k=(0.5,))
    return self_train(recipe, *toy, tmp_path_factory.mktemp('two') / 'run', **QUIET)


def test_without_iterations_it_is_a_plain_run(toy, tmp_path):
    run = self_train(TINY, *toy, tmp_path / 'one', only_folds=[1], **QUIET)
    train_run(TINY, *toy, tmp_path / 'two', [1], **QUIET)
    assert same_checkpoints(run.folder / 'fold_1.pt', tmp_path / 'two' / 'fold_1.pt')
    assert not (run.folder / 'rounds').exists()


def test_every_iteration_relabels_the_first_table(two, toy):
    first = read_clip_table(toy[0])
    for number in (1, 2):
        labels = two.folder / 'rounds' / str(number) / 'labels'
        frame = read_clip_table(labels / 'table.csv')
        report = json.loads((labels / 'relabel.json').read_text())
        assert frame['fname'].tolist() == first['fname'].tolist() and report['round'] == number
        is_kept = frame['labels'] != ''
        assert is_kept[:6].all() and is_kept[6:].sum() == 3
        assert frame['labels'][is_kept].tolist() == first['labels'][is_kept].tolist()
        assert {path.split('/')[-2] for path in report['models']} == {str(number - 1)}
        assert report['counts']['predicted'] == (3 if number == 2 else 0)
    assert set(read_soft_labels(labels / 'soft.csv').names) == set(frame['fname'][~is_kept])


def test_the_last_iterations_are_averaged_as_teachers(toy, tmp_path):
    '''Law 4: each clip by the models of these iterations that held it out.'''
    frame = pd.read_csv(toy[0]).assign(false_labels='*')
    frame.loc[6:, ['labels', 'false_labels']] = ''
    frame.to_csv(tmp_path / 'half.csv', index=False)
    recipe = with_iterations(3, methods=('plain',), teachers=2)
    run = self_train(recipe, tmp_path / 'half.csv', toy[1], tmp_path / 'run', **QUIET)
    for number, teachers in ((1, '0'), (2, '01'), (3, '12')):
        labels = run.folder / 'rounds' / str(number) / 'labels'
        report = json.loads((labels / 'relabel.json').read_text())
        assert {path.split('/')[-2] for path in report['models']} == set(teachers)
    teachers = [run.folder / 'rounds' / number for number in '12']
    expected, _ = predict_pseudo_labels(teachers, toy[1], **QUIET)
    soft = read_soft_labels(labels / 'soft.csv')
    targets = align_soft_labels(expected, soft.names, soft.classes)
    np.testing.assert_allclose(soft.targets, targets, atol=1e-6)


@pytest.fixture(scope='module')
def teacher(toy, tmp_path_factory):
    '''A finished run of another seed on the same folds.'''
    return train_run(TINY.override(['seed=7']), *toy, tmp_path_factory.mktemp('teacher') / 'run', **QUIET).folder


@pytest.fixture(scope='module')
def taught(toy, teacher, tmp_path_factory):
    '''Two iterations whose labels are made by this teacher, too.'''
    folder = tmp_path_factory.mktemp('taught') / 'run'
    return self_train(with_iterations(2), *toy, folder, teacher_runs=[teacher], **QUIET)


def test_teacher_runs_label_every_iteration_together_with_its_own_runs(taught, teacher, toy):
    '''Law 4: each clip by the models, of both, that held it out.'''
    for number in (1, 2):
        labels = taught.folder / 'rounds' / str(number) / 'labels'
        both = [taught.folder / 'rounds' / str(number - 1), teacher]
        expected, models = predict_pseudo_labels(both, toy[1], **QUIET)
        assert json.loads((labels / 'relabel.json').read_text())['models'] == models and len(models) == 6
        soft = read_soft_labels(labels / 'soft.csv')
        of_clips = align_soft_labels(expected, soft.names, soft.classes)
        np.testing.assert_allclose(soft.targets, of_clips, atol=1e-6)
        alone = align_soft_labels(predict_pseudo_labels(both[:1], toy[1], **QUIET)[0], soft.names, soft.classes)
        assert np.abs(soft.targets - alone).max() > 1e-4


def test_a_killed_self_training_with_teachers_continues_but_not_with_other_teachers(taught, teacher, toy, tmp_path):
    '''Law 7.'''
    options = {'teacher_runs': [teacher], **QUIET}
    with pytest.raises(Killed):
        self_train(taught.recipe, *toy, tmp_path / 'run', train=CountedTraining(2), **options)
    others = [[taught.folder], [], [teacher, taught.folder]]
    for runs in others:
        with pytest.raises(KitError, match=r'teachers\.json belongs to another self-training'):
            self_train(taught.recipe, *toy, tmp_path / 'run', **options | {'teacher_runs': runs})
    self_train(taught.recipe, *toy, tmp_path / 'run', **options)
    for fold in range(3):
        assert same_checkpoints(tmp_path / 'run' / f'fold_{fold}.pt', taught.folder / f'fold_{fold}.pt')


def test_a_teacher_of_other_folds_or_without_an_iteration_is_refused(teacher, toy, tmp_path):
    '''Law 4: nothing is trained before.'''
    frame = pd.read_csv(toy[0])
    frame.assign(fold=[0, 1, 2, 2, 1, 0] * 2).to_csv(tmp_path / 'table.csv', index=False)
    training = CountedTraining()
    options = {'teacher_runs': [teacher], 'train': training, **QUIET}
    with pytest.raises(KitError, match=r"fold_0\.pt held out other clips than this training's fold 0.*--table .*folds"):
        self_train(with_iterations(1), tmp_path / 'table.csv', toy[1], tmp_path / 'run', **options)
    with pytest.raises(KitError, match=r'use --set self_training\.iterations=1'):
        self_train(TINY, *toy, tmp_path / 'run', **options)
    assert not training.calls


def test_a_teacher_labels_unlabelled_clips_unless_its_own_table_has_them(toy, teacher, tmp_path):
    '''Law 4: not even those of its own table that are in no fold, so that it trained on them.'''
    frame = pd.read_csv(toy[0])
    soundfile = pytest.importorskip('soundfile')
    shutil.copytree(toy[1], tmp_path / 'clips')
    for name in ('new.wav', 'known.wav'):
        soundfile.write(tmp_path / 'clips' / name, 0.1 * np.random.default_rng(3).normal(size=4000), 8000)
    rows = {'fname': ['new.wav', 'known.wav'], 'labels': '', 'false_labels': '', 'source': 'unlabelled', 'fold': -1}
    more = pd.concat([frame.assign(false_labels='*'), pd.DataFrame(rows)])
    more.to_csv(tmp_path / 'table.csv', index=False)
    shutil.copytree(teacher, tmp_path / 'teacher')
    known = pd.DataFrame({'fname': ['known.wav'], 'labels': 'high', 'source': 'curated', 'fold': -1})
    pd.concat([pd.read_csv(teacher / 'folds.csv'), known]).to_csv(tmp_path / 'teacher' / 'folds.csv', index=False)
    made = relabel(
        [tmp_path / 'teacher'], tmp_path / 'clips', tmp_path / 'out', 'plain', table=tmp_path / 'table.csv', **QUIET
    )
    assert made.report['without_prediction'] == ['known.wav']
    soft = read_soft_labels(made.soft)
    paths = [tmp_path / 'clips' / 'new.wav']
    expected = predict_clips(f'{teacher}/fold_*.pt', paths, device='cpu', threads=1).probabilities
    np.testing.assert_allclose(align_soft_labels(soft, ['new.wav'], soft.classes), expected, atol=1e-5)


def test_the_last_student_is_the_run(two, toy, tmp_path):
    labels = two.folder / 'rounds' / '2' / 'labels'
    alone = train_run(two.recipe, labels / 'table.csv', toy[1], tmp_path, [0], soft=labels / 'soft.csv', **QUIET)
    assert same_checkpoints(alone.folder / 'fold_0.pt', two.folder / 'fold_0.pt')
    assert not same_checkpoints(two.folder / 'fold_0.pt', two.folder / 'rounds' / '1' / 'fold_0.pt')


def test_a_killed_self_training_continues_to_the_same_end(two, toy, tmp_path):
    '''Law 7: killed in a training, or after it while its labels are written.'''
    with pytest.raises(Killed):
        self_train(two.recipe, *toy, tmp_path / 'run', train=CountedTraining(2), **QUIET)
    (tmp_path / 'run' / 'rounds' / '2' / 'labels' / 'relabel.json').unlink()
    training = CountedTraining()
    run = self_train(two.recipe, *toy, tmp_path / 'run', train=training, **QUIET)
    assert len(training.calls) == 1
    for fold in range(3):
        assert same_checkpoints(run.folder / f'fold_{fold}.pt', two.folder / f'fold_{fold}.pt')
    assert (run.folder / 'oof.csv').read_bytes() == (two.folder / 'oof.csv').read_bytes()


def test_before_agreement_the_first_teacher_is_not_trained_on_noisy_labels(toy, tmp_path):
    '''The ranking still sees them. Without curated clips there is nothing else to train on.'''
    frame = pd.read_csv(toy[0])
    changed = frame.assign(labels=frame['labels'].where(frame.index != 7, 'high'))
    tables = {'one': frame, 'two': changed, 'all': frame.drop(columns='source')}
    ranked = {}
    for name, table in tables.items():
        path = tmp_path / f'{name}.csv'
        table.to_csv(path, index=False)
        with pytest.raises(Killed):
            recipe = with_iterations(1, top_k=(0.5,))
            self_train(recipe, path, toy[1], tmp_path / name, train=CountedTraining(1), **QUIET)
        rounds = tmp_path / name / 'rounds'
        ranked[name] = read_clip_table(rounds / '1' / 'labels' / 'table.csv')
        assert sorted(pd.read_csv(rounds / '0' / 'oof.csv')['fname']) == NAMES
    for fold in range(3):
        one, two, noisy = (tmp_path / name / 'rounds' / '0' / f'fold_{fold}.pt' for name in tables)
        assert same_checkpoints(one, two) and not same_checkpoints(one, noisy)
    assert len(ranked['one']) == 12 and (ranked['one']['labels'] != '').sum() == 9
    assert all(set(ranked[name]['labels'][6:]) - {''} for name in ('one', 'two'))


def test_a_clip_s_soft_label_does_not_depend_on_its_own_label_but_on_other_soft_labels(toy, planted, tmp_path, capsys):
    '''Law 4: the first order holds, and the report tells of the second order, which exists.'''
    frame = pd.read_csv(toy[0])
    relabelled = frame.assign(labels=pd.read_csv(planted[0])['labels'])
    soft, students = [], []
    for name, table in (('one', frame), ('two', relabelled)):
        path = tmp_path / f'{name}.csv'
        table.to_csv(path, index=False)
        run = self_train(with_iterations(1), path, toy[1], tmp_path / name, only_folds=[0], **QUIET)
        soft.append(read_soft_labels(run.folder / 'rounds' / '1' / 'labels' / 'soft.csv'))
        students.append(run.folder / 'fold_0.pt')
    one, two = soft
    is_changed = np.isin(one.names, frame['fname'][frame['fold'] == 0])
    assert one.names == two.names and is_changed.any() and not is_changed.all()
    np.testing.assert_array_equal(one.targets[is_changed], two.targets[is_changed])
    assert (one.targets[~is_changed] != two.targets[~is_changed]).any(axis=1).all()
    assert not same_checkpoints(*students)
    assert 'Second order:' in capsys.readouterr().out


def test_a_folder_of_another_self_training_or_run_is_refused_before_anything_is_trained(two, toy, tmp_path):
    with pytest.raises(KitError, match=r'belongs to another self-training.*choose another --out'):
        self_train(with_iterations(1, top_k=(0.5,)), *toy, two.folder, **QUIET)
    self_train(TINY, *toy, tmp_path, only_folds=[0], **QUIET)
    with pytest.raises(KitError, match='belongs to another run'):
        self_train(with_iterations(1), *toy, tmp_path, **QUIET)
    assert not list(tmp_path.glob('rounds/*/*.pt'))


@pytest.mark.parametrize('train', [train_run, self_train])
def test_a_recipe_or_a_table_of_the_wrong_type_is_answered_with_the_right_one(toy, tmp_path, train):
    with pytest.raises(KitError, match=r"find_recipe\(.* got 'max-pyramid-mel'"):
        train('max-pyramid-mel', *toy, tmp_path)
    recipe = with_iterations(1) if train is self_train else TINY
    with pytest.raises(KitError, match='path of a CSV, got a DataFrame'):
        train(recipe, pd.read_csv(toy[0]), toy[1], tmp_path)


def test_corrected_clips_are_trained_on_as_corrected(toy, tmp_path):
    (tmp_path / 'list.json').write_text('{"00.wav": "low", "04.wav": null}')
    corrections = tmp_path / 'list.json'
    run = self_train(TINY, *toy, tmp_path / 'run', only_folds=[0], corrections=corrections, **QUIET)
    frame = read_clip_table(run.folder / 'folds.csv')
    assert len(frame) == 11 and frame['labels'][0] == 'low'


def test_trainings_have_equal_shares_of_the_time(toy, tmp_path):
    '''The tolerance is a quarter of an hour: no pause between two looks at the clock comes near it.'''
    deadlines = []
    now = 1e10

    def record(*arguments, deadline, **options):
        deadlines.append(deadline)

    recipe = TINY.override(['self_training.iterations=3'])
    job = SelfTraining(recipe, toy[1], None, Deadline(now + 4e6, lambda: now), record, {})
    for number in (0, 3):  # the first of four trainings, and the last
        job.train_one(number, toy[0], tmp_path, tmp_path)
    assert [set_deadline(seconds).at - now for seconds in deadlines] == pytest.approx([1e6, 4e6], abs=900)
    (tmp_path / 'list.json').write_text('{}')
    options = {'deadline': '1000h', 'corrections': tmp_path / 'list.json', 'train': record}
    self_train(TINY, *toy, tmp_path / 'run', **options, **QUIET)
    assert deadlines[2] == pytest.approx(3.6e6, abs=900)


def test_recordings_with_boxes_get_soft_windows_that_their_boxes_correct(tmp_path):
    soundfile = pytest.importorskip('soundfile')
    rng = np.random.default_rng(0)
    (tmp_path / 'clips').mkdir()
    header = 'recording_id,species_id,songtype_id,t_min,f_min,t_max,f_max'
    lines = {'true': [header], 'false': [header]}
    for i in range(6):
        soundfile.write(tmp_path / 'clips' / f'r{i}.wav', 0.1 * rng.normal(size=8000), 8000)
        lines['true'].append(f'r{i},{i % 2},1,0.1,500,0.4,900')
        lines['false'].append(f'r{i},{1 - i % 2},1,0.6,500,0.9,900')
    boxes = []
    for state, of_state in lines.items():
        boxes.append(tmp_path / f'{state}.csv')
        boxes[-1].write_text('\n'.join([*of_state, '']))
    table = tmp_path / 'folds.csv'
    table.write_text('recording_id,fold\n' + ''.join(f'r{i},{i % 3}\n' for i in range(6)))
    recipe = with_iterations(1, methods=('windows',), hop_s=0.2)
    run = self_train(recipe, table, tmp_path / 'clips', tmp_path / 'run', [0], boxes=boxes, **QUIET)
    assert run.oof.classes == ('s0', 's1') and run.oof.names == ('r0', 'r3')
    soft = read_soft_labels(run.folder / 'rounds/1/labels/soft.csv')
    assert set(soft.names) == {f'r{i}' for i in range(6)}
    rows = soft.rows['r1']
    begin_s, end_s = (times[rows] for times in soft.times)
    overlaps_box = np.minimum(end_s, 0.4) - np.maximum(begin_s, 0.1) >= 0.12
    assert overlaps_box.any() and (soft.targets[rows][overlaps_box, 1] == 1).all()


def test_another_init_belongs_to_another_self_training(toy, tmp_path):
    run = train_run(TINY, *toy, tmp_path / 'pre', **QUIET)
    recipe = TINY.override(['self_training.iterations=1', 'self_training.methods=["agreement"]'])
    recipe = recipe.override(['self_training.noisy_sources=[]', 'self_training.top_k=[0.5]'])
    self_train(recipe, *toy, tmp_path / 'run', init=run.folder / 'fold_0.pt', **QUIET)
    with pytest.raises(KitError, match='belongs to another self-training'):
        self_train(recipe, *toy, tmp_path / 'run', init=run.folder / 'fold_1.pt', **QUIET)
