'''Stacks: no row is predicted by a network trained on it, one file submits alone, and equals its slow definition.'''

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.decode import decode_file
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import text_digest
from kit.doctor import run_doctor
from kit.infer.blend import blend_scores
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, compute_spectrograms
from kit.infer.stack import Stack, StackCard, clip_image, open_models
from kit.infer.submit import submit
from kit.labels.metrics import lwlrap
from kit.models.checkpoint import load_tagger, save_archive, save_tagger
from kit.models.tagger import TaggerCard, build_tagger, wrap_network
from kit.train.stacking import save_stack, stack
from tests.behaviour.trained import LoudBands, noise, plain_frontend, read_scores, write_template, write_wav
from tests.behaviour.training import CPU, same_bits

pytestmark = pytest.mark.usefixtures('one_core')

CLASSES = ('a', 'b', 'c', 'd')
NAMES = tuple(f'{i:02d}.wav' for i in range(16))
FOLDS = [i % 2 for i in range(16)]
WINDOWS = InferenceConfig(mode='windows', window_s=0.5, hop_s=0.25, pool='mean')
COARSE = InferenceConfig(mode='windows', window_s=0.9, hop_s=0.6)
FAST = ['epochs=8', 'batch_size=8', 'lr=0.03']
SMALL = {
    'class-mixer': [],
    'gated-mlp': ['network.mlp_widths=[8]'],
    'logistic': [],
    'image-stacker': ['network.widths=[4]', 'columns=4'],
}


def tiny_tagger(seed, fold, inference, classes=CLASSES, folds=FOLDS, **facts):
    '''A small pyramid with random, loud last weights, that was never trained on a fold.'''
    held_out = [name for name, clip_fold in zip(NAMES, folds, strict=True) if clip_fold == fold]
    network = {'family': 'max-pyramid', 'blocks': 2, 'width': 4}
    digest = text_digest(*sorted(held_out))
    card = TaggerCard(classes, (), plain_frontend(), inference, network, fold=fold, held_out=digest, **facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tagger = build_tagger(card).eval()
        with torch.no_grad():
            for weights in list(tagger.network.parameters())[-2:]:
                weights.copy_(2 * torch.randn(weights.shape))
    return tagger


def random_targets(seed=0):
    '''One or two of the classes for every clip, the first clips' known to hold each class.'''
    truth = (np.random.default_rng(seed).random((len(NAMES), len(CLASSES))) < 0.3).astype(float)
    truth[np.arange(len(NAMES)), np.arange(len(NAMES)) // 2 % len(CLASSES)] = 1
    return truth


def write_tables(folder, truth, probabilities, classes=CLASSES, folds=FOLDS, **columns):
    '''Write folds.csv and oof.csv of a run.'''
    labels = [','.join(name for name, true in zip(CLASSES, row, strict=True) if true == 1) for row in truth]
    table = pd.DataFrame({'fname': NAMES, 'labels': labels, 'fold': folds, **columns})
    table.to_csv(folder / 'folds.csv', index=False)
    frame = pd.DataFrame(probabilities, columns=list(classes))
    frame.insert(0, 'fname', NAMES)
    frame.insert(1, 'fold', folds)
    frame.to_csv(folder / 'oof.csv', index=False, float_format='%.9g')


def read_probs(run):
    '''The probabilities in a run's oof.csv. Shape: -> (16, 4)'''
    return pd.read_csv(run / 'oof.csv')[list(CLASSES)].to_numpy()


def make_run(folder, seed, inference=WINDOWS, seeds=1, classes=CLASSES, folds=FOLDS, **facts):
    '''A run by hand: taggers that were never trained, tables, predictions that are the truth in noise.'''
    folder.mkdir()
    for fold in (0, 1):
        for k in range(seeds):
            tagger = tiny_tagger(100 * seed + 10 * fold + k, fold, inference, classes, folds, **facts)
            save_tagger(folder / (f'fold_{fold}_seed_{k}.pt' if k else f'fold_{fold}.pt'), tagger)
    noise_of_run = np.random.default_rng(seed).random((len(NAMES), 4))
    write_tables(folder, random_targets(), (random_targets() + 2 * noise_of_run) / 3, folds=folds)
    return folder


@pytest.fixture(scope='module')
def audio(tmp_path_factory):
    '''A folder of 16 clips of 0.3 to 2.1 s, each louder than the last.'''
    folder = tmp_path_factory.mktemp('audio')
    for i, name in enumerate(NAMES):
        write_wav(folder / name, noise(2400 + 1600 * (i % 10), seed=i, level=0.004 * (1 + i)))
    return folder


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    '''Two runs with different windows; the second has two seeds a fold.'''
    folder = tmp_path_factory.mktemp('runs')
    return [make_run(folder / 'one', 1), make_run(folder / 'two', 2, COARSE, seeds=2)]


@pytest.fixture(scope='module')
def stacks(runs, audio, tmp_path_factory):
    '''A stack of each kind, its file alone in a folder.'''
    folder = tmp_path_factory.mktemp('stacks')
    made = {}
    for kind in SMALL:
        result = make_stack(runs, folder / kind, kind, audio)
        (folder / 'alone' / kind).mkdir(parents=True)
        made[kind] = shutil.copy(folder / kind / 'stack.pt', folder / 'alone' / kind / 'stack.pt'), result
    return made


def make_stack(runs, out, kind='class-mixer', audio=None, more=(), **words):
    '''A stack of a few short epochs.'''
    return stack(runs, out, kind, audio, [*FAST, *SMALL[kind], *more], device='cpu', progress=False, **words)


def networks_of(path):
    '''The state dicts of a stack's networks, by fold.'''
    return [network.state_dict() for network in open_models(path)[1][0].networks]


def windows_of(tagger, path):
    '''Centres of a clip's windows and the probabilities there, by the predictor alone.'''
    spec = compute_spectrograms(tagger.frontend, [torch.from_numpy(decode_file(path).wave)])
    windows = Predictor(tagger, CPU).predict(spec)[0]
    centres = [(a + b) / 2 / tagger.card.frontend.frames_per_s for a, b in windows.spans]
    return centres, torch.from_numpy(windows.logits).sigmoid().numpy()


def slow_prediction(path, clip):
    '''Members' mean in each run, then the mean of the networks' sigmoids, of one clip. Shape: -> (K,)'''
    models, (made,) = open_models(path)
    of_runs = [[model.build() for model in models if model.run == run] for run in (0, 1)]
    if not made.card.columns:
        means = [np.mean([predict_clips(t, [clip]).probabilities[0] for t in of_run], axis=0) for of_run in of_runs]
        x = torch.from_numpy(np.stack(means)).float()
    else:
        windows = [[windows_of(tagger, clip) for tagger in of_run] for of_run in of_runs]
        times = windows[0][0][0]
        x = torch.zeros(2, len(CLASSES), max(len(times), made.card.columns))
        for run, of_run in enumerate(windows):
            centres = of_run[0][0]
            probs = torch.from_numpy(np.mean([p for _, p in of_run], axis=0))
            for column, time in enumerate(times):
                nearest = min(range(len(centres)), key=lambda i: (abs(centres[i] - time), i))
                x[run, :, column] = probs[nearest]
    with torch.inference_mode():
        return np.mean([net(x[None])[0].sigmoid().numpy() for net in made.networks], axis=0)


@pytest.mark.parametrize('kind', SMALL)
def test_the_network_of_a_fold_is_not_trained_on_its_rows(kind, runs, audio, tmp_path):
    first = make_stack(runs, tmp_path / 'first', kind, audio)
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    held = np.array(FOLDS)[:, None] == 0
    truth = np.where(held, 1 - random_targets(), random_targets())
    for copy in copies:
        write_tables(copy, truth, np.where(held, 1 - read_probs(copy), read_probs(copy)))
    make_stack(copies, tmp_path / 'planted', kind, audio)
    one, other = (networks_of(tmp_path / name / 'stack.pt') for name in ('first', 'planted'))
    assert same_bits(one[0], other[0]) and not same_bits(one[1], other[1])
    assert first.clips == 16


def test_each_fold_is_scored_by_its_own_network(runs, stacks):
    for kind in ('class-mixer', 'gated-mlp', 'logistic'):
        path, result = stacks[kind]
        frame = pd.read_csv(result.folder / 'oof.csv')
        assert list(frame) == ['fname', 'fold', *CLASSES] and tuple(frame['fname']) == NAMES
        x = np.stack([read_probs(run) for run in runs], axis=1)
        networks = open_models(path)[1][0].networks
        with torch.inference_mode():
            probs = [network(torch.from_numpy(x).float()).sigmoid().numpy() for network in networks]
        expected = np.where(np.array(FOLDS)[:, None] == 0, *probs)
        np.testing.assert_allclose(frame[list(CLASSES)].to_numpy(), expected, atol=1e-6)
        truth = random_targets()
        assert result.score == pytest.approx(lwlrap(truth, expected), abs=1e-6)
        assert result.mean == pytest.approx(lwlrap(truth, x.mean(axis=1)))
        assert list(result.runs.values()) == pytest.approx([lwlrap(truth, x[:, r]) for r in (0, 1)])
        facts = json.loads((result.folder / 'stack.json').read_text())
        assert facts['score'] == result.score and facts['settings']['epochs'] == 8
        assert (result.folder / 'folds.csv').read_bytes() == (runs[0] / 'folds.csv').read_bytes()


@pytest.mark.parametrize('kind', SMALL)
def test_one_file_submits_by_itself_and_equals_its_slow_definition(kind, stacks, audio, tmp_path):
    path, _ = stacks[kind]
    ids, classes = NAMES[8:11][::-1], ('c', 'a')
    template = write_template(tmp_path / 't.csv', ids, classes)
    report = submit(path, audio, tmp_path / 'out.csv', template, device='cpu', progress=False).report
    header, rows = read_scores(tmp_path / 'out.csv')
    assert header == ['fname', *classes] and report['stacks'] == [kind] and len(report['models']) == 6
    for name in ids:
        np.testing.assert_allclose(rows[name], slow_prediction(path, audio / name)[[2, 0]], atol=2e-6)
    probs = predict_clips(path, [audio / name for name in ids], device='cpu')
    assert probs.classes == CLASSES
    np.testing.assert_allclose(probs.probabilities[:, [2, 0]], list(rows.values()), atol=2e-6)


def own_stack(path):
    '''A stack of two runs of custom networks, with a mixer that is no plain mean. Returns the first runs' taggers.'''
    taggers = []
    inference = replace(WINDOWS, mode='full')
    for name, scale in (('left', 0.2), ('right', 0.5), ('last', 0.4)):
        tagger = wrap_network(LoudBands(3), plain_frontend(), CLASSES[:3], name=name, inference=inference)
        torch.nn.init.constant_(tagger.network.scale, scale)
        taggers.append(tagger)
    card = StackCard('class-mixer', {}, ('l', 'r'), (0, 1, 1), CLASSES[:3])
    network = card.new_network()
    torch.nn.init.constant_(network.mix.bias, -1.0)
    save_stack(path, Stack(card, [network]), taggers)
    return taggers[:2]


BEFORE = {}


def builders(**before):
    '''Builders of the networks by name, of one code, and what happens before a batch.'''
    BEFORE.clear()
    BEFORE.update(before)
    names = ('left', 'right', 'last')
    return {name: lambda name=name: LoudBands(3, lambda spec: BEFORE.get(name, len)(spec)) for name in names}


def fails_from(batch, error):
    '''Raise at so many-th batch and after.'''
    seen = []

    def before(spec):
        seen.append(len(spec))
        if len(seen) >= batch:
            raise error

    return before


@pytest.mark.parametrize('batch', [1, 3])
def test_rows_without_a_run_s_prediction_have_the_plain_mean_of_the_others(batch, audio, tmp_path):
    path = tmp_path / 'stack.pt'
    taggers = own_stack(path)
    many = tmp_path / 'many'
    for i in range(30):  # two chunks
        write_wav(many / f'{i:02d}.wav', noise(4000, seed=i, level=0.01 * (1 + i)))
    networks = builders(right=fails_from(batch, RuntimeError('no')), last=fails_from(1, RuntimeError('no')))
    words = {'device': 'cpu', 'progress': False, 'batch_frames': 400}
    report = submit(path, many, tmp_path / 'out.csv', networks=networks, **words).report
    assert [bool(model['failure']) for model in report['models']] == [False, True, True]
    rows = read_scores(tmp_path / 'out.csv')[1]
    one, other = (predict_clips(tagger, many).probabilities for tagger in taggers)
    mixed = torch.logit(torch.from_numpy((one + other) / 2)).sub(1).sigmoid().numpy()
    predicted = report['models'][1]['clips_predicted']
    assert predicted == 0 if batch == 1 else 0 < predicted < 30
    is_mixed = [np.allclose(row, mixed[i], atol=2e-6) for i, row in enumerate(rows.values())]
    is_plain = [np.allclose(row, one[i], atol=2e-6) for i, row in enumerate(rows.values())]
    assert sum(is_mixed) == predicted and sum(is_plain) == 30 - predicted


def test_a_killed_submission_of_a_stack_goes_on_to_the_same_bytes(audio, tmp_path):
    path = tmp_path / 'stack.pt'
    own_stack(path)
    words = {'device': 'cpu', 'progress': False}
    submit(path, audio, tmp_path / 'whole.csv', networks=builders(), **words)
    with pytest.raises(KeyboardInterrupt):
        submit(path, audio, tmp_path / 'out.csv', networks=builders(right=fails_from(3, KeyboardInterrupt())), **words)
    assert (tmp_path / 'out.csv').read_bytes() != (tmp_path / 'whole.csv').read_bytes()
    assert len(read_scores(tmp_path / 'out.csv')[1]) == 16
    seen = []
    submit(path, audio, tmp_path / 'out.csv', networks=builders(left=seen.append), **words)
    assert (tmp_path / 'out.csv').read_bytes() == (tmp_path / 'whole.csv').read_bytes() and not seen


def test_rows_of_windows_are_predicted_one_by_one(stacks, audio, tmp_path):
    ids = ['09_1', '09_2', '08_1']
    template = write_template(tmp_path / 't.csv', ids, CLASSES)
    path = stacks['class-mixer'][0]
    submit(path, audio, tmp_path / 'out.csv', template, device='cpu', progress=False)
    models, (made,) = open_models(path)
    per_run = [[], []]
    for model in models:
        save_tagger(tmp_path / 'one.pt', model.build(None))
        submit(tmp_path / 'one.pt', audio, tmp_path / 'one.csv', template, device='cpu', progress=False)
        per_run[model.run].append(list(read_scores(tmp_path / 'one.csv')[1].values()))
    x = torch.from_numpy(np.stack([np.mean(probs, axis=0) for probs in per_run], axis=1)).float()
    with torch.inference_mode():
        expected = torch.stack([net(x).sigmoid() for net in made.networks]).mean(dim=0)
    rows = read_scores(tmp_path / 'out.csv')[1]
    np.testing.assert_allclose(list(rows.values()), expected, atol=2e-6)
    assert np.ptp(list(rows.values()), axis=0).max() > 1e-3
    with pytest.raises(KitError, match='reads whole clips, the template asks for windows'):
        submit(stacks['image-stacker'][0], audio, tmp_path / 'o.csv', template, device='cpu', progress=False)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_randomness_alone(runs, stacks, tmp_path):
    state = torch.get_rng_state()
    path, result = stacks['class-mixer']
    again = make_stack(runs, tmp_path / 'again')
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(networks_of(path), networks_of(tmp_path / 'again/stack.pt'), strict=True)
    assert all(same_bits(*pair) for pair in pairs)
    assert (again.folder / 'oof.csv').read_bytes() == (result.folder / 'oof.csv').read_bytes()
    make_stack(runs, tmp_path / 'other', seed=1)
    assert not same_bits(networks_of(path)[0], networks_of(tmp_path / 'other/stack.pt')[0])


def test_predictions_of_a_clip_without_known_labels_change_nothing(runs, tmp_path):
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    false = ['*'] * 15 + ['']
    truth = random_targets()
    truth[15] = 0
    made = []
    for prob in (0.1, 0.9):
        for copy in copies:
            probs = read_probs(copy)
            probs[15] = prob
            write_tables(copy, truth, probs, false_labels=false)
        make_stack(copies, tmp_path / 'out', 'class-mixer')
        made.append(networks_of(tmp_path / 'out/stack.pt'))
    assert same_bits(made[0][0], made[1][0])


def test_classes_in_another_order_are_the_same_classes(runs, tmp_path):
    order = [2, 0, 3, 1]
    classes = [CLASSES[k] for k in order]
    turned = make_run(tmp_path / 'turned', 2, COARSE, classes=classes)
    write_tables(turned, random_targets(), read_probs(runs[1])[:, order], classes)
    make_stack([runs[0], turned], tmp_path / 'one')
    make_stack(runs, tmp_path / 'other')
    pair = (networks_of(tmp_path / name / 'stack.pt')[0] for name in ('one', 'other'))
    assert same_bits(*pair)
    assert open_models(tmp_path / 'one/stack.pt')[1][0].card.classes == CLASSES


def test_a_logistic_stack_is_scikit_learn_s_regression_of_each_class(runs, stacks):
    '''A class without both true and false labels keeps the mean logit.'''
    from sklearn.linear_model import LogisticRegression

    probs = np.stack([read_probs(run) for run in runs], axis=1)
    logits = np.log(probs / (1 - probs))
    truth = random_targets()
    held_out = np.array(FOLDS) == 0
    network = open_models(stacks['logistic'][0])[1][0].networks[0]
    with torch.inference_mode():
        predicted = network(torch.from_numpy(probs[held_out]).float()).sigmoid().numpy()
    for k in range(len(CLASSES)):
        model = LogisticRegression().fit(logits[~held_out, :, k], truth[~held_out, k])
        expected = model.predict_proba(logits[held_out, :, k])[:, 1]
        np.testing.assert_allclose(predicted[:, k], expected, atol=1e-3)
    fresh = StackCard('logistic', {}, ('l', 'r'), (0, 1), CLASSES).new_network()
    unfitted = fresh(torch.from_numpy(probs).float()).detach()
    np.testing.assert_allclose(unfitted, logits.mean(axis=1), atol=1e-4)


def test_the_report_says_whether_a_stack_beats_the_plain_mean(runs, tmp_path):
    assert 'DOES NOT BEAT THE PLAIN MEAN' in str(make_stack(runs, tmp_path / 'a', more=['epochs=1', 'lr=0']))
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for copy in copies:  # each class is called by its neighbour's name, which a stack can learn
        write_tables(copy, random_targets(), np.roll(read_probs(copy), 1, axis=1))
    good = make_stack(copies, tmp_path / 'b', more=['epochs=200', 'lr=0.1'])
    assert good.gain.low > 0 and 'PLAIN MEAN' not in str(good) and 'ALONE' not in str(good)
    assert 'b ALONE IS AS GOOD' in str(replace(good, runs={'a': 0.1, 'b': good.score}))


def test_the_doctor_shows_what_a_stack_holds(stacks):
    path, result = stacks['class-mixer']
    shown = run_doctor([str(path)])
    assert f'a stack, class-mixer, oof lwlrap {result.score:.6g}' in shown
    assert shown.count('max-pyramid') == 6 and '[5 two, fold 1]' in shown


@pytest.mark.parametrize('blend', ['mean', 'geometric'])
def test_a_stack_counts_as_one_model_in_a_blend(stacks, runs, audio, tmp_path, blend):
    '''Two stacks and a model, of weights 1, 2 and 4, against the blend of what each predicts alone.'''
    items = [stacks['class-mixer'][0], stacks['logistic'][0], runs[0] / 'fold_0.pt']
    alone = [predict_clips(item, audio) for item in items]
    both = predict_clips(items, audio, blend=blend, weights=[1, 2, 4])
    columns = [[part.classes.index(name) for name in both.classes] for part in alone]
    scores = [part.probabilities[:, of_part] for part, of_part in zip(alone, columns, strict=True)]
    expected = blend_scores(scores, weights=[1, 2, 4], kind=blend)
    np.testing.assert_allclose(both.probabilities, expected, atol=1e-6)


def test_a_stack_that_was_trained_anew_is_another_job(stacks, audio, tmp_path):
    path = tmp_path / 'stack.pt'
    shutil.copy(stacks['class-mixer'][0], path)
    first = submit(path, audio, tmp_path / 'o.csv', progress=False).report
    content = torch.load(path, weights_only=True)
    for network in content['networks']:
        network['mix.bias'] += 1
    save_archive(path, content)
    second = submit(path, audio, tmp_path / 'o.csv', progress=False).report
    assert first['job'] != second['job'] and first['stacks'] == ['class-mixer']


def test_a_stack_is_no_tagger(stacks):
    with pytest.raises(KitError, match='is a stack of many taggers, not one: give it to submit'):
        load_tagger(stacks['class-mixer'][0])


def test_a_damaged_stack_is_one_error(stacks, audio, tmp_path):
    content = torch.load(stacks['class-mixer'][0], weights_only=True)
    for changes, match in (
        ({'format': 9}, 'has checkpoint format 9'),
        ({'networks': [{}]}, 'is damaged'),
        ({'members': []}, 'is damaged'),
        ({'card': '{'}, 'is damaged'),
    ):
        torch.save(content | changes, tmp_path / 'bad.pt')
        with pytest.raises(KitError, match=match):
            predict_clips(tmp_path / 'bad.pt', audio)


def test_runs_that_do_not_fit_each_other_are_refused_with_the_first_difference(runs, stacks, audio, tmp_path):
    copy = shutil.copytree(runs[1], tmp_path / 'copy')
    probs = read_probs(copy)

    def refused(match, folders, **words):
        with pytest.raises(KitError, match=match):
            make_stack(folders, tmp_path / 'out', **words)

    pair = [runs[0], copy]
    frame = pd.read_csv(copy / 'oof.csv')
    frame[frame['fold'] == 0].to_csv(copy / 'oof.csv', index=False)
    refused(r"'01.wav' has fold 1 in .*copy, but none in .*oof.csv", pair)
    write_tables(copy, random_targets() * [1, 1, 1, 0], probs, ['a', 'b', 'c', 'e'])
    refused("copy has other classes than .*one, e.g. 'd'", pair)
    write_tables(copy, random_targets(), probs + 0.5)
    refused('wanted a probability', pair)
    (copy / 'oof.csv').unlink()
    refused('lacks oof.csv: run `oof` on it', pair)
    ranking = make_run(tmp_path / 'ranking', 2, output='ranking')
    refused('lacks its calibrations: run `oof` on it', [runs[0], ranking])
    moved = make_run(tmp_path / 'moved', 2, folds=[1, 0, *FOLDS[2:]])
    refused(r"'00.wav' has fold 0 in .*one, but 1 in .*moved", [runs[0], moved])
    refused('each once', [runs[0], runs[0]])
    refused('each once', [])
    refused('is a stack itself', [runs[0], stacks['class-mixer'][1].folder])
    refused('give audio', runs, kind='image-stacker')
    whole = make_run(tmp_path / 'whole', 3, InferenceConfig())
    refused('begin with a run of inference.mode=windows', [whole, runs[0]], kind='image-stacker', audio=audio)
    with pytest.raises(KitError, match='choices are'):
        stack(runs, tmp_path / 'out', 'mlp')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'recipe.json').write_text('{}')
    refused('holds a run', runs)


HOSTILE_STACKS = {
    'members that are a number': ({'members': 3}, {}),
    'members without tensors': ({'members': [[1]]}, {}),
    'networks that are text': ({'networks': 'x'}, {}),
    'a network of numbers': ({'networks': [{'a': 1}]}, {}),
    'a card that is a number': ({'card': 3}, {}),
    'a run before the first': ({}, {'run_of': [-1]}),
    'a run after the last': ({}, {'run_of': [7] * 6}),
    'many runs': ({}, {'run_of': [0] * 100_000}),
    'many classes': ({}, {'classes': ['a'] * 200_000}),
    'a wide network': ({}, {'kind': 'image-stacker', 'network': {'widths': [2**30]}}),
    'wide and wide': ({}, {'kind': 'image-stacker', 'network': {'widths': [60_000, 60_000]}}),
    'many columns': ({}, {'columns': 10**12}),
}


@pytest.mark.parametrize('case', HOSTILE_STACKS)
def test_a_stack_of_any_size_or_type_is_refused_in_one_line(stacks, tmp_path, case):
    parts, card = HOSTILE_STACKS[case]
    content = torch.load(stacks['class-mixer'][0], weights_only=True)
    changed = json.dumps({**json.loads(content['card']), **card})
    path = tmp_path / 'stack.pt'
    torch.save({**content, 'card': changed, **parts}, path)
    with pytest.raises(KitError, match='is damaged') as caught:
        open_models(path)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value) and len(str(caught.value)) < 600
    assert (case == 'wide and wide') == ('do not fit its network' in str(caught.value))


def test_an_image_of_predictions_ends_after_20_seconds():
    centres = np.arange(0.5, 61)
    probs = np.random.default_rng(0).random((len(centres), 4))
    image = clip_image([[(centres, probs)]], 8)
    np.testing.assert_allclose(image[0].T, probs[:20], rtol=1e-6)
    assert clip_image([[(centres + 30, probs)]], 1).shape == (1, 4, 1), 'one window is left'
