'''The named recipes: what was published, printed and read back; each trains small and submits on its task.'''

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.mixup import draw_mixup, mix_labels
from kit.commands import list_recipes
from kit.core.errors import KitError
from kit.infer.submit import submit
from kit.labels.boxes import box_table, read_boxes
from kit.labels.metrics import lwlrap
from kit.labels.table import clip_labels, label_targets
from kit.models.checkpoint import load_tagger
from kit.train.recipe import Recipe
from kit.train.recipes import RECIPES, SMALL, VARIANTS, find_recipe
from kit.train.self_training import self_train
from tests.behaviour.trained import read_scores, write_template, write_wav

pytestmark = pytest.mark.usefixtures('one_core')

QUIET = {'device': 'cpu', 'threads': 1, 'progress': False}
RATE = 8000
CLASSES = ('high', 'low', 'noisy')
FREESOUND = ('skip-attention', 'axis-pool', 'max-pyramid-mel', 'max-pyramid-stft', 'window-snr', 'two-stage')
RFCX = ('freq-coord', 'freq-crop')
BIRDCLEF = ('sed',)
# What makes an epoch of a small form take a moment.
COMMON = '''
    frontend.sample_rate=8000 epochs=2 no_augment_epochs=0 batch_size=4 validate_every=2 n_folds=2 crop_s=0.5
'''
MEL = 'frontend.n_fft=512 frontend.hop_length=128 frontend.n_mels=32'
WINDOWS = 'inference.window_s=0.5 inference.hop_s=0.25'
PYRAMID = 'network.blocks=3 network.width=4'
ONCE = 'self_training.iterations=1'
TINY_TEXTS = {
    'skip-attention': f'''
        {MEL} {WINDOWS} frontend.f_max_hz=4000 network.width=4 network.ratio=2 network.head.hidden=8
    ''',
    'axis-pool': f'{MEL} {WINDOWS} network.width=32 network.stat_width=3 network.stat_steps=8',
    'max-pyramid-mel': f'{MEL} {PYRAMID} wave_augment.tempo_p=0.5 {ONCE}',
    'max-pyramid-stft': PYRAMID,
    'window-snr': f'{MEL} {WINDOWS} {PYRAMID} {ONCE} self_training.top_k=[0.5]',
    'two-stage': f'''
        {MEL} {WINDOWS} frontend.resolutions=[[256,128],[512,128]] frontend.image_size=[32,32]
        image_sizes=[[16,16],[32,32]] network.blocks=3 network.width=4 {ONCE}
    ''',
    'freq-coord': f'{MEL} {WINDOWS} sampling.steps=2 {ONCE}',
    'freq-crop': f'''
        {MEL} {WINDOWS} sampling.steps=2 network.backbone.blocks=2 network.backbone.width=4 {ONCE}
        self_training.stages=["loss=lsep\\u0020loss_settings={{}}"]
    ''',
    'sed': f'{MEL} {PYRAMID} inference.window_s=0.5 inference.hop_s=0.5',
}
TINY = {name: f'{COMMON} {text}'.split() for name, text in TINY_TEXTS.items()}


def sound(labels, seconds, rng, at_s=None):
    '''Faint noise with an event of half a second per label, `at_s` or anywhere.'''
    n, length = int(RATE * seconds), RATE // 2
    wave, t = 0.005 * rng.normal(size=n), np.arange(length) / RATE
    for label in labels:
        start = int(rng.integers(0, n - length + 1)) if at_s is None else round(at_s * RATE)
        hz = {'high': rng.uniform(2000, 3000), 'low': rng.uniform(200, 400)}.get(label)
        wave[start : start + length] += 0.2 * (rng.normal(size=length) if hz is None else np.sin(2 * np.pi * hz * t))
    return wave.astype(np.float32)


@pytest.fixture(scope='module')
def tagging(tmp_path_factory):
    '''A Freesound-like task: curated and noisy clips of 1 to 2 s in two folds, a test set of four, its template.'''
    folder, rng, rows = tmp_path_factory.mktemp('tagging'), np.random.default_rng(1), []
    for i in range(18):
        labels = sorted({CLASSES[i % 3], CLASSES[(i // 3) % 3]})
        name = f'{i:02d}.wav'
        write_wav(folder / ('test' if i >= 14 else 'train') / name, sound(labels, rng.uniform(1, 2), rng), RATE)
        if i < 14:
            source = 'curated' if i < 8 else 'noisy'
            rows.append({'fname': name, 'labels': ','.join(labels), 'fold': i // 3 % 2, 'source': source})
    pd.DataFrame(rows).to_csv(folder / 'table.csv', index=False)
    write_template(folder / 'template.csv', [f'{i}.wav' for i in range(14, 18)], CLASSES)
    return folder


@pytest.fixture(scope='module')
def soundscapes(tmp_path_factory):
    '''An RFCX-like task: six recordings of 3 s with a true and a false box each, folds, a test set of three.'''
    folder, rng = tmp_path_factory.mktemp('soundscapes'), np.random.default_rng(2)
    bands, files = {'high': (1800, 3200), 'low': (100, 500), 'noisy': (100, 3900)}, {'true': [], 'false': []}
    for i in range(9):
        label, name = CLASSES[i % 3], f'r{i}'
        write_wav(folder / ('test' if i >= 6 else 'train') / f'{name}.wav', sound([label], 3.0, rng, 1.0), RATE)
        for kind, shift, begin, end in (('true', 0, 1.0, 1.5), ('false', 1, 2.0, 2.6)):
            low, high = bands[CLASSES[(i + shift) % 3]]
            if i < 6:
                files[kind].append((name, (i + shift) % 3, 1, begin, low, end, high))
    columns = ['recording_id', 'species_id', 'songtype_id', 't_min', 'f_min', 't_max', 'f_max']
    for kind, rows in files.items():
        pd.DataFrame(rows, columns=columns).to_csv(folder / f'{kind}.csv', index=False)
    folds = pd.DataFrame({'recording_id': [f'r{i}' for i in range(6)], 'fold': [0, 0, 0, 1, 1, 1]})
    folds.to_csv(folder / 'folds.csv', index=False)
    write_template(folder / 'template.csv', [f'r{i}' for i in (6, 7, 8)], ('s0', 's1', 's2'))
    return folder


def trained_and_submitted(name, task, out, **options):
    '''Train a recipe's small form with its self-training, and submit. Returns run, header and rows.'''
    recipe = find_recipe(name, True, TINY[name])
    run = self_train(recipe, audio=task / 'train', out=out / 'run', **options, **QUIET)
    checkpoints = str(run.folder / 'fold_*.pt')
    submit(checkpoints, task / 'test', out / 'submission.csv', task / 'template.csv', **QUIET)
    return run, *read_scores(out / 'submission.csv')


def check_run_and_submission(run, header, rows, name):
    '''Check finite out-of-fold predictions, the checkpoints' cards, and a submission of probabilities.'''
    assert np.isfinite(run.oof.probabilities).all() and 0 < run.oof.score <= 1
    assert (run.oof.probabilities >= 0).all() and (run.oof.probabilities <= 1).all()
    assert np.ptp(run.oof.probabilities, axis=0).min() > 0 and not run.oof.failures
    for path in sorted(run.folder.glob('fold_*.pt')):
        card = load_tagger(path).card
        assert card.is_calibrated and card.output == run.recipe.output and card.recipe['name'] == name
        assert tuple(header[1:]) == card.classes
    scores = np.stack(list(rows.values()))
    assert np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1


def test_there_are_nine_recipes_with_a_small_form_each():
    assert set(RECIPES) == set(SMALL) == set(TINY) == {*FREESOUND, *RFCX, *BIRDCLEF}


@pytest.mark.parametrize('name', FREESOUND)
def test_a_recipe_for_clips_trains_small_makes_oof_and_submits(tagging, tmp_path, name):
    run, header, rows = trained_and_submitted(name, tagging, tmp_path, table=tagging / 'table.csv')
    check_run_and_submission(run, header, rows, name)
    assert header == ['fname', *CLASSES] and list(rows) == [f'{i}.wav' for i in range(14, 18)]
    frame = pd.read_csv(tagging / 'table.csv')
    assert run.oof.names == tuple(frame['fname'])
    truth = label_targets(frame['labels'], CLASSES)
    curated = (frame['source'] == 'curated').to_numpy()
    np.testing.assert_array_equal(run.oof.truth[curated], truth[curated])
    assert np.isnan(run.oof.truth[~curated]).all()
    assert run.oof.score == pytest.approx(lwlrap(truth[curated], run.oof.probabilities[curated]))


@pytest.mark.parametrize('name', RFCX)
def test_a_recipe_for_recordings_trains_small_relabels_once_makes_oof_and_submits(soundscapes, tmp_path, name):
    boxes = [soundscapes / 'true.csv', soundscapes / 'false.csv']
    options = {'table': soundscapes / 'folds.csv', 'boxes': boxes}
    run, header, rows = trained_and_submitted(name, soundscapes, tmp_path, **options)
    check_run_and_submission(run, header, rows, name)
    assert header == ['fname', 's0', 's1', 's2'] and list(rows) == ['r6', 'r7', 'r8']
    np.testing.assert_array_equal(run.oof.truth, clip_labels(box_table(read_boxes(*boxes), None)).targets)
    assert (tmp_path / 'run' / 'rounds' / '1' / 'labels' / 'soft.csv').is_file()
    if name == 'freq-crop':
        assert run.recipe.output == 'ranking', 'the last stage changed the loss'
        first = Recipe(**json.loads((tmp_path / 'run' / 'rounds' / '0' / 'recipe.json').read_text()))
        assert first.output == 'probability' and len(run.recipe.network['bands_hz']) == 3
        assert run.recipe.network['bands_hz'][1] == [0.0, 600.0]


@pytest.mark.parametrize('name', BIRDCLEF)
def test_a_recipe_for_windows_of_soundscapes_trains_small_on_clips_and_submits_a_row_per_window(
    tagging, tmp_path, name
):
    frame = pd.read_csv(tagging / 'table.csv').drop(columns='source')
    frame.to_csv(tmp_path / 'table.csv', index=False)
    for i in range(2):
        rng = np.random.default_rng(i)
        write_wav(tmp_path / 'test' / f's{i}.wav', sound(['low'], 2.0, rng, at_s=1.25), RATE)
    ids = [f's{i}_{end_s}' for i in (1, 0) for end_s in (1, 2)]
    write_template(tmp_path / 'template.csv', ids, CLASSES)
    (tmp_path / 'train').symlink_to(tagging / 'train')  # beside the other test set
    run, header, rows = trained_and_submitted(name, tmp_path, tmp_path, table=tmp_path / 'table.csv')
    check_run_and_submission(run, header, rows, name)
    assert header[1:] == list(CLASSES) and list(rows) == ids
    assert not np.array_equal(rows['s0_1'], rows['s0_2']), 'each window has its own prediction'


# What makes freq-coord of freq-coord-b1.
VARIANTS_BACK = ['network.name=tf_efficientnet_b3.ns_jft_in1k', 'crop_s=4', 'inference.window_s=4']
# What was published, as overrides.
PUBLISHED = {
    'skip-attention': '''
        frontend.n_fft=2560 frontend.hop_length=690 frontend.n_mels=128 frontend.top_db=80 frontend.trim_db=60
        frontend.std=100 auxiliary=[0.4,0.2,0.1] mixup.p=0.8 mixup.fade_p=0.6 mixup.high=0.5
        spec_augment.crop_p=0.33 spec_augment.crop_scale=[0.8,1] spec_augment.mask_p=0.5
        spec_augment.freq_share=0.15 spec_augment.time_share=0.2 optim.lr_peak=9e-4
        optim.schedule=plateau optim.patience=6 optim.factor=0.6 sources.noisy.share=0.01 sources.noisy.loss=bootstrap
        sources.noisy.loss_settings={"trust":0.7} sources.corrected.share=0.42 sources.curated.share=0.57
        sources.corrected.loss=null sources.corrected.weight=0.5 crop_pad_modes=["wrap","min"]
        sources.curated.weight=0.5 weight_by_share=true network.head.hidden=256 inference.pool=mean
    ''',
    'axis-pool': '''
        frontend.n_fft=1024 frontend.hop_length=512 frontend.n_mels=64 frontend.normalize=peak loss=bce
        loss_settings={"smoothing":0.01} mixup.p=0.6 mixup.low=0.3 mixup.high=0.3 crop_s=5 epochs=40 optim.kind=nadam
        mixup.domain=wave mixup_until=0.35 keep=best network.head.pool=time-max network.width=512
        optim.lr_peak=5e-4 optim.factor=0.5 optim.milestones=[0.35,0.525,0.7]
    ''',
    'max-pyramid-mel': '''
        loss=lsep mixup.p=0.5 mixup.labels=union wave_augment.pitch_cents=300 wave_augment.tempo=1.1
        wave_augment.chance=0.75 wave_augment.overdrive_p=1 wave_augment.reverb_p=1 wave_augment.pitch_p=1
        wave_augment.speed_p=1 wave_augment.speed=1.1
        keep=best validate_every=1 self_training.hard=true no_augment_epochs=10 optim.lr_start=1e-4 optim.lr_peak=5e-3
        optim.schedule=linear-cycle n_folds=5 frontend.n_fft=2048 frontend.hop_length=1024 frontend.n_mels=128
        frontend.f_min_hz=5 frontend.log_offset=1e-4 inference.mode=full network.growth=1.5 crop_s=10
        self_training.methods=["agreement"]
    ''',
    'max-pyramid-stft': 'loss=lsep frontend.n_fft=256 frontend.kind=stft network.dims=1 crop_s=10',
    'window-snr': 'inference.pool=snr weight_by_share=false self_training.methods=["snr"]',
    'two-stage': '''
        image_sizes=[[64,64],[128,128],[224,224]] sampling.balance=seconds optim.layer_decay=10
        network.name=resnet18.a1_in1k self_training.methods=["curate"]
    ''',
    'freq-coord': '''
        frontend.sample_rate=48000 frontend.n_fft=4096 frontend.hop_length=512 frontend.n_mels=256
        frontend.channels=["log","coordinate01"] crop_s=4 inference.hop_s=0.5 inference.pool=max inference.window_s=4
        epochs=60 sampling.steps=200 n_folds=4 optim.kind=adamw optim.schedule=cosine keep=last sampling.box_p=0.5
        mixup.labels=sum mixup.low=0.5 mixup.high=0.5 self_training.iterations=4
        self_training.hop_s=0.5 average_over=labels sampling.true_p=null
        self_training.stages=["mixup.domain=wave\\u0020spec_augment.outside_p=0\\u0020spec_augment.mask_p=0.5"]
    ''',
    'freq-crop': '''
        frontend.n_mels=32 loss=bootstrap loss_settings={"on":"unknown","trust":0.1,"detach":false}
        inference.mode=full mixup.labels=union mixup.domain=wave self_training.iterations=5
    ''',
    'sed': '''
        frontend.sample_rate=32000 frontend.n_fft=2048 frontend.hop_length=512 frontend.n_mels=128 frontend.f_min_hz=20
        frontend.f_max_hz=null frontend.log=db frontend.normalize=clip frontend.reference=window loss=bce crop_s=5
        network.head.pool=attention network.head.norm_first=true network.head.dropout=0.3 inference.window_s=5
        inference.hop_s=5 inference.pool=max mixup.domain=wave mixup.p=0.5 mixup.low=0.5 mixup.high=0.5
        mixup.convex=true mixup.labels=union spec_augment.mask_p=0.3 spec_augment.time_masks=3
        spec_augment.freq_masks=3 optim.kind=adamw optim.lr_peak=5e-4 optim.weight_decay=1e-4
        optim.schedule=one-cycle optim.warmup=0.06 optim.clip_norm=1 optim.average=swa epochs=35 batch_size=64 n_folds=5
    ''',
}


@pytest.mark.parametrize('name', RECIPES)
def test_the_settings_are_the_published_ones(name):
    recipe = RECIPES[name]
    for assignment in PUBLISHED[name].split():
        assert recipe.override([assignment]) == recipe, assignment
    if name == 'skip-attention':
        assert recipe.crop_frames == 256 == round(recipe.inference.window_s * recipe.frontend.frames_per_s)


@pytest.mark.parametrize('small', [False, True])
@pytest.mark.parametrize('name', RECIPES)
def test_no_recipe_mixes_an_unknown_label_to_a_false_one(name, small):
    '''Law 5: the published masks of freq-coord do so, as a setting.'''
    generator = torch.Generator().manual_seed(0)
    targets = torch.tensor([0.0, 1.0, math.nan])[torch.randint(3, (64, 24), generator=generator)]
    recipe = find_recipe(name, small)
    draw = draw_mixup(replace(recipe.mixup, p=1.0, partners='any'), targets, generator)
    was_unknown = targets.isnan() | targets[draw.partner].isnan()
    was_true = (targets == 1) | (targets[draw.partner] == 1)

    def learnt_as_false(mixup):
        mixed = mix_labels(targets, draw, mixup)
        return int((was_unknown & ~was_true & ~mixed.isnan()).sum())

    assert learnt_as_false(recipe.mixup) == 0
    if name == 'freq-coord':
        assert learnt_as_false(recipe.override(['mixup.masks=either']).mixup) > 100


def test_the_stages_of_a_recipe_change_what_they_name():
    freq_crop = RECIPES['freq-crop']
    losses = [freq_crop.at_stage(number).loss for number in range(6)]
    assert losses == ['bootstrap', 'bce', 'bce', 'bce', 'lsep', 'lsep']
    first, later = RECIPES['freq-coord'], RECIPES['freq-coord'].at_stage(3)
    assert first.spec_augment.outside_p > 0 == later.spec_augment.outside_p
    assert later.mixup.domain == 'wave' and first.mixup.domain == 'spec'
    with pytest.raises(KitError, match="no setting 'lost'"):
        freq_crop.override(['self_training.stages=["lost=1"]'])


def test_a_recipe_of_several_trainings_is_printed_stage_by_stage():
    *_, first, second = list_recipes('axis-pool').splitlines()
    assert 'pretraining' in first and '"curated":{"share":0}' in first and 'from the pretrained networks' in second
    *_, one, two, three, four, five = list_recipes('freq-crop').splitlines()
    assert all(line.endswith('with loss=bce loss_settings={}') for line in (one, two, three))
    assert 'pseudo-labels 4 (method windows), with loss=lsep' in four and 'loss=lsep' in five
    assert 'stages:' not in list_recipes('sed')


def test_a_variant_is_its_base_with_a_few_changes():
    b1 = find_recipe('freq-coord-b1')
    assert b1.name == 'freq-coord-b1' and b1.crop_s == b1.inference.window_s == 8
    assert b1.override(['name=freq-coord', *VARIANTS_BACK]) == RECIPES['freq-coord']
    assert find_recipe('freq-coord-rexnet-150', small=True).network['family'] == 'max-pyramid'
    sed = find_recipe('sed-20s')
    assert sed.crop_s == sed.inference.window_s == 20 and sed.inference.hop_s == 5
    assert sed.network == RECIPES['sed'].network and sed.frontend != RECIPES['sed'].frontend


def test_small_forms_cut_crops_from_spectrograms():
    assert not [name for name in RECIPES if find_recipe(name, small=True).needs_waveforms]
    assert find_recipe('max-pyramid-mel').needs_waveforms


@pytest.mark.parametrize('small', [False, True])
@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_reads_back_from_its_printed_settings_and_from_json(name, small):
    recipe = find_recipe(name, small)
    assert Recipe(**json.loads(json.dumps(recipe.to_dict()))) == recipe
    first, *lines = list_recipes(name, small).partition('\nstages:')[0].splitlines()
    assert first == f'{name}: {recipe.source}'
    assignments = [line.strip().partition('  ')[0] for line in lines]  # then comes the help text
    assert find_recipe(name, small, assignments) == recipe
    keys = {assignment.partition(' = ')[0] for assignment in assignments}
    assert len(keys) == len(lines) and {'loss', 'optim.lr_peak', 'frontend.n_fft'} <= keys


def test_the_list_of_recipes_names_each_with_its_source():
    lines = [f'{name:22} {recipe.source}' for name, recipe in RECIPES.items()]
    listed = list_recipes().splitlines()
    assert listed[:9] == lines and [line.split()[0] for line in listed[9:]] == list(VARIANTS)


@pytest.mark.parametrize('kind, name', [('tagging', 'max-pyramid-mel'), ('soundscapes', 'freq-coord')])
def test_a_recipe_runs_on_real_clips_in_the_competition_s_own_files(esc10, tmp_path, kind, name):
    tool = esc10.parent.parent / 'tools' / 'real_tasks.py'
    words = ['--size', '0.03', '--seed', '1']
    subprocess.run([sys.executable, str(tool), kind, str(tmp_path / 'task'), *words], check=True)
    task = tmp_path / 'task'
    overrides = [*TINY[name], 'epochs=1', 'validate_every=1', 'self_training.iterations=0']
    options = {'table': None, 'boxes': [task / 'train_tp.csv', task / 'train_fp.csv'], 'audio': task / 'train'}
    if kind == 'tagging':
        parts = [pd.read_csv(task / f'train_{part}.csv').assign(source=part) for part in ('curated', 'noisy')]
        frame = pd.concat(parts).drop(columns='fold')
        frame['fname'] = 'train_' + frame['source'] + '/' + frame['fname']
        frame.to_csv(tmp_path / 'table.csv', index=False)
        options = {'table': tmp_path / 'table.csv', 'audio': task}
    run = self_train(find_recipe(name, True, overrides), out=tmp_path / 'run', **options, **QUIET)
    template = task / 'sample_submission.csv'
    out = tmp_path / 'submission.csv'
    submit(str(run.folder / 'fold_*.pt'), task / 'test', out, template, **QUIET)
    header, rows = read_scores(out)
    expected = pd.read_csv(template, dtype=str)
    assert header == list(expected.columns) and list(rows) == expected.iloc[:, 0].tolist()
    check_run_and_submission(run, header, rows, name)
