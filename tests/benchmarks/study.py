'''Measure what the write-ups claim: `python -m tests.benchmarks.study [MINUTES [ARM ...]]`.

Each cell trains one arm with one seed on one split and scores the test set; claims compare two arms seed by seed.
Finished cells are kept in runs/study/cells.csv, so that the same command continues. The table says which claims the
minutes did not reach.
'''

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.runtime import Runtime
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.labels.metrics import lwlrap
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import classes_of_template, label_targets, read_clip_table
from kit.models.checkpoint import load_tagger
from kit.models.tagger import Tagger
from kit.train.clip_store import load_clips
from kit.train.pseudo_labels import RELABEL_METHODS, SelfTrainingConfig
from kit.train.recipe import Recipe
from kit.train.recipes import find_recipe
from kit.train.run import train_run
from kit.train.self_training import self_train
from kit.train.stacking import stack
from tests.benchmarks.cells import RUNS_FOLDER, make_task, print_figures, run_cells

SEEDS = range(8)
STUDY_FOLDER = RUNS_FOLDER / 'study'
FOLD = 1
QUIET: dict[str, Any] = {'threads': 1, 'progress': False}
SHORT = ('epochs=20', 'validate_every=20', 'sampling.steps=20')
PYRAMID = (*SHORT, 'frontend.n_mels=64', 'network.width=12', 'crop_s=3.0', 'no_augment_epochs=3')
STFT = (*SHORT, 'crop_s=3.0', 'no_augment_epochs=3')
WINDOWS = (*SHORT, 'frontend.n_mels=32')

# An arm trains in a folder with a seed, and returns its figures.
Arm = Callable[[Path, int], dict[str, float]]


def small_recipe(name: str, settings: Sequence[str], seed: int) -> Recipe:
    '''The small form of a recipe, with changed settings.'''
    return find_recipe(name, small=True, overrides=[*settings, f'seed={seed}'])


def read_truth(task: Path) -> tuple[list[str], np.ndarray]:
    '''Read the names and the labels of a task's test clips. Shape: -> n names, (n, K)'''
    if task.name == 'tagging':
        table = read_clip_table(task / 'test_truth.csv')
        classes = classes_of_template(task / 'sample_submission.csv')
        return list(table['fname']), label_targets(list(table['true_labels']), classes)
    import pandas

    truth = pandas.read_csv(task / 'truth.csv').query("part == 'test'")
    labels = list(pandas.read_csv(task / 'species.csv')['label'])
    return [f'{name}.flac' for name in truth['recording_id']], label_targets(list(truth['labels']), labels)


def score_on_test(checkpoints: Sequence[Path], task: Path, inference: InferenceConfig | None = None) -> float:
    '''Return the test lwlrap of the mean of some checkpoints.'''
    names, truth = read_truth(task)
    clips = [task / 'test' / name for name in names]
    predictions = predict_clips(list(checkpoints), clips, inference=inference, threads=1)
    return lwlrap(truth, predictions.probabilities)


def write_table(path: Path, noisy: bool) -> Path:
    '''Write the table of the curated clips, with the noisy ones too if asked, and a column `source`.'''
    import pandas

    task = make_task('tagging')
    parts = []
    for kind in ('curated', 'noisy') if noisy else ('curated',):
        table = read_clip_table(task / f'train_{kind}.csv')
        parts.append(table.assign(fname=f'train_{kind}/' + table['fname'], source=kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.concat(parts).to_csv(path, index=False)
    return path


def tagging(
    *settings: str, name: str = 'max-pyramid-mel', noisy: bool = False, method: str | None = None, **options: Any
) -> Arm:
    '''Make an arm of the tagging task: the small form of a recipe with changed settings, trained for one fold.

    `noisy` adds the noisy clips with their own labels, `method` adds them with pseudo-labels; `options` go to
    `train_run`.
    '''

    def run(folder: Path, seed: int) -> dict[str, float]:
        task = make_task('tagging')
        recipe = small_recipe(name, settings, seed)
        train_options: dict[str, Any] = {'only_folds': [FOLD]} | options
        table = write_table(folder / 'table.csv', noisy=noisy or method is not None)
        if method is not None:
            curated = write_table(folder / 'curated.csv', noisy=False)
            home = STUDY_FOLDER / 'teachers' / str(seed)
            teacher = train_run(recipe, curated, task, home, **QUIET)
            table, train_options['soft'] = write_pseudo_labels(teacher.folder, table, folder, task, method)
        trained = train_run(recipe, table, task, folder / 'run', **train_options, **QUIET)
        figures = {'test': score_on_test(sorted(trained.folder.glob('*.pt')), task)}
        if trained.oof is not None:
            figures['oof'] = trained.oof.score
        return figures

    return run


def write_pseudo_labels(teacher: Path, table: Path, folder: Path, task: Path, method: str) -> tuple[Path, Path]:
    '''Label the noisy clips by a teacher that was trained on curated clips alone.

    Returns the paths of the new table and of the soft labels.
    '''
    frame = read_clip_table(table)
    names = list(frame['fname'][frame['source'] == 'noisy'])
    checkpoints = sorted(teacher.glob('fold_*.pt'))
    predictions = predict_clips(checkpoints, [task / name for name in names], threads=1)
    soft = SoftLabels(tuple(names), predictions.classes, predictions.probabilities)
    frame['false_labels'] = '*'
    iteration = {'agreement': 1, 'predict': 2}[method]  # from the second on, the others are predicted too
    relabelled = RELABEL_METHODS['agreement'](frame, soft, SelfTrainingConfig(top_k=(0.4,)), iteration)
    new_table = folder / 'relabelled.csv'
    soft_table = folder / 'soft.csv'
    relabelled.frame.to_csv(new_table, index=False)
    write_soft_labels(soft_table, relabelled.soft)
    return new_table, soft_table


def window_pools(set1: bool = False) -> Arm:
    '''Make an arm that trains `window-snr`, pools its windows in four ways, and averages random crops.

    `set1` trains on the noisy clips' most confident windows too.
    '''

    def run(folder: Path, seed: int) -> dict[str, float]:
        task = make_task('tagging')
        recipe = small_recipe('window-snr', WINDOWS, seed)
        curated = write_table(folder / 'curated.csv', noisy=False)
        home = STUDY_FOLDER / 'window_models' / str(seed)
        model = train_run(recipe, curated, task, home, only_folds=[FOLD], **QUIET).folder
        if set1:
            teacher = load_tagger(model / f'fold_{FOLD}.pt')
            table = write_set1(teacher, write_table(folder / 'table.csv', noisy=True), folder, task)
            model = train_run(recipe, table, task, folder / 'run', only_folds=[FOLD], **QUIET).folder
        figures = {}
        for pool in ('mean', 'snr', 'snr_top', 'max'):
            inference = replace(recipe.inference, pool=pool)
            figures[pool] = score_on_test([model / f'fold_{FOLD}.pt'], task, inference)
        return figures | {'crops': score_random_crops(load_tagger(model / f'fold_{FOLD}.pt'), task, seed)}

    return run


def predict_windows(tagger: Tagger, names: Sequence[str], folder: Path, hop_s: float) -> dict[str, tuple[Any, Any]]:
    '''Predict each clip's windows: their spans in frames, and their probabilities (W, K).'''
    device = torch.device('cpu')
    _, loaded = load_clips(names, folder, {'': tagger.frontend}, Runtime(device, 1, False))
    specs = loaded['']
    predictor = Predictor(tagger, device, inference=replace(tagger.card.inference, hop_s=hop_s))
    outputs = {}
    for place, windows in zip(specs, predictor.predict(list(specs.values())), strict=True):
        assert windows is not None
        outputs[names[place]] = windows.spans, tagger.probabilities(torch.from_numpy(windows.logits)).numpy()
    return outputs


def score_random_crops(tagger: Tagger, task: Path, seed: int) -> float:
    '''Return the test lwlrap of the mean over as many random crops of a clip as it has windows, at most 0.1 s apart.'''
    names, truth = read_truth(task)
    n_windows = {name: len(spans) for name, (spans, _) in predict_windows(tagger, names, task / 'test', 1.0).items()}
    rng = np.random.default_rng(seed)
    outputs = predict_windows(tagger, names, task / 'test', 0.1)
    means = []
    for name in names:
        probs = outputs[name][1]
        means.append(probs[rng.integers(len(probs), size=n_windows[name])].mean(axis=0))
    return lwlrap(truth, np.stack(means))


def write_set1(teacher: Tagger, table: Path, folder: Path, task: Path) -> Path:
    '''Write the table with the noisy clips' windows of the highest signal-to-noise ratio, labelled by the teacher.'''
    frame = read_clip_table(table)
    noisy = list(frame['fname'][frame['source'] == 'noisy'])
    names = []
    spans = []
    probs = []
    for name, (of_clip, of_windows) in predict_windows(teacher, noisy, task, teacher.card.inference.hop_s).items():
        names += [name] * len(of_clip)
        spans += list(of_clip)
        probs.append(of_windows)
    begin_s, end_s = np.array(spans).T / teacher.card.frontend.frames_per_s
    soft = SoftLabels(tuple(names), teacher.card.classes, np.concatenate(probs), begin_s, end_s)
    frame['false_labels'] = '*'
    relabelled = RELABEL_METHODS['snr'](frame, soft, SelfTrainingConfig(top_k=(0.15,)), 1).frame
    path = folder / 'set1.csv'
    relabelled[relabelled['source'].isin(['curated', 'set1'])].to_csv(path, index=False)
    return path


def soundscapes(*settings: str, rounds: int = 0) -> Arm:
    '''Make an arm of the soundscapes task: two folds on boxes, then rounds of self-training; it scores each round.'''

    def run(folder: Path, seed: int) -> dict[str, float]:
        task = make_task('soundscapes')
        changes = ['n_folds=2', f'self_training.iterations={rounds}', *settings]
        recipe = small_recipe('freq-coord', changes, seed)
        boxes = [task / 'train_tp.csv', task / 'train_fp.csv']
        trained = self_train(recipe, None, task / 'train', folder / 'run', boxes=boxes, **QUIET)
        inference = replace(recipe.inference, hop_s=1.0)
        figures = {}
        for number in range(rounds + 1):
            home = trained.folder
            if number < rounds:
                home = home / 'rounds' / str(number)
            figures[f'round_{number}'] = score_on_test(sorted(home.glob('fold_*.pt')), task, inference)
        return figures

    return run


def stacks(folder: Path, seed: int) -> dict[str, float]:
    '''Train two pyramids on all folds, and compare their mean with a class mixer.'''
    task = make_task('tagging')
    table = write_table(folder / 'table.csv', noisy=False)
    runs = []
    for name, settings in (('max-pyramid-mel', PYRAMID), ('max-pyramid-stft', STFT)):
        recipe = small_recipe(name, settings, seed)
        runs.append(train_run(recipe, table, task, folder / name, **QUIET).folder)
    checkpoints = [path for run in runs for path in sorted(run.glob('fold_*.pt'))]
    figures = {'mean': score_on_test(checkpoints, task)}
    stack(runs, folder / 'stacked', seed=seed, progress=False)
    figures['class-mixer'] = score_on_test([folder / 'stacked' / 'stack.pt'], task)
    return figures


def images(folder: Path, seed: int) -> dict[str, float]:
    '''Train `two-stage` on all folds, and compare the mean of its windows with a network over their images.'''
    task = make_task('tagging')
    table = write_table(folder / 'table.csv', noisy=False)
    run = train_run(small_recipe('two-stage', (), seed), table, task, folder / 'run', **QUIET).folder
    figures = {'mean': score_on_test(sorted(run.glob('fold_*.pt')), task)}
    stack(run, folder / 'stacked', kind='image-stacker', audio=task, seed=seed, threads=1, progress=False)
    return figures | {'images': score_on_test([folder / 'stacked' / 'stack.pt'], task)}


EFFECTS = [f'wave_augment.{effect}_p=1' for effect in ('reverb', 'pitch', 'overdrive', 'speed')]
BOOTSTRAP = ('loss=bce', 'sources.noisy.loss=bootstrap', 'sources.noisy.weight=0.5')
# In the order in which they run, each with all its seeds.
ARMS: dict[str, Arm] = {
    'pyramid': tagging(*PYRAMID),
    'bce': tagging(*PYRAMID, 'loss=bce'),
    'no coordinate': tagging(*PYRAMID, 'frontend.channels=["log"]'),
    'no mixup': tagging(*PYRAMID, 'mixup.p=0'),
    'rounds': soundscapes(rounds=3),
    'window-snr': window_pools(),
    'noisy labels': tagging(*PYRAMID, noisy=True),
    'noisy bootstrapped': tagging(*PYRAMID, *BOOTSTRAP, noisy=True),
    'boxes': soundscapes(),
    'boxes, published masks': soundscapes('mixup.masks=either'),
    'noisy that agree': tagging(*PYRAMID, method='agreement'),
    'noisy predicted': tagging(*PYRAMID, method='predict'),
    'window-snr, set 1': window_pools(set1=True),
    'full data': tagging(*PYRAMID, 'loss=bce', only_folds=None, all_data=True),
    'all folds': tagging(*PYRAMID, 'loss=bce', only_folds=None),
    'rounds without boxes': soundscapes('sampling.box_p=0', rounds=3),
    'effects': tagging(*PYRAMID, 'wave_augment.chance=0.75', *EFFECTS),
    'two-stage': tagging(name='two-stage'),
    'two-stage, first layers fastest': tagging('optim.layer_decay=10', name='two-stage'),
    'images': images,
    'stack': stacks,
}
# What each claim compares: (arm, figure) with it, and (arm, figure) without it.
CLAIMS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    'LSEP instead of BCE': (('pyramid', 'test'), ('bce', 'test')),
    'frequency coordinate': (('pyramid', 'test'), ('no coordinate', 'test')),
    'mixup with united labels': (('pyramid', 'test'), ('no mixup', 'test')),
    'noisy clips with their own labels': (('noisy labels', 'test'), ('pyramid', 'test')),
    'noisy clips bootstrapped, BCE': (('noisy bootstrapped', 'test'), ('bce', 'test')),
    'the 40 % of the noisy clips that agree': (('noisy that agree', 'test'), ('pyramid', 'test')),
    'and predicted labels for the others': (('noisy predicted', 'test'), ('pyramid', 'test')),
    'three-state masks instead of the published': (('boxes', 'round_0'), ('boxes, published masks', 'round_0')),
    'waveform effects': (('effects', 'test'), ('pyramid', 'test')),
    'first layers ten times as fast': (('two-stage, first layers fastest', 'test'), ('two-stage', 'test')),
    'images of predictions instead of the mean of windows': (('images', 'images'), ('images', 'mean')),
    'one round of self-training': (('rounds', 'round_1'), ('rounds', 'round_0')),
    'two rounds': (('rounds', 'round_2'), ('rounds', 'round_0')),
    'three rounds': (('rounds', 'round_3'), ('rounds', 'round_0')),
    'one round without crops at boxes': (('rounds without boxes', 'round_1'), ('rounds', 'round_0')),
    'three rounds without crops at boxes': (('rounds without boxes', 'round_3'), ('rounds', 'round_0')),
    'crops at boxes, in round three': (('rounds', 'round_3'), ('rounds without boxes', 'round_3')),
    'windows pooled by SNR instead of their mean': (('window-snr', 'snr'), ('window-snr', 'mean')),
    'the same instead of random crops': (('window-snr', 'snr'), ('window-snr', 'crops')),
    'the mean of those with the highest SNR, instead': (('window-snr', 'snr_top'), ('window-snr', 'mean')),
    'by SNR instead of the mean, with set 1': (('window-snr, set 1', 'snr'), ('window-snr, set 1', 'mean')),
    'set 1, pooled by the mean': (('window-snr, set 1', 'mean'), ('window-snr', 'mean')),
    'class mixer instead of the mean': (('stack', 'class-mixer'), ('stack', 'mean')),
    'one full-data model instead of the mean of all folds': (('full data', 'test'), ('all folds', 'test')),
}


def paired_interval(differences: np.ndarray) -> str:
    '''Return the mean and the 95 % interval of paired differences, by Student's t.'''
    n = len(differences)
    if n < 2:
        return 'one seed only'
    mean = differences.mean()
    t_quantile = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)[n - 2]
    half = t_quantile * differences.std(ddof=1) / n**0.5
    return f'{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})'


def print_claims(cells: dict[str, dict[str, float]]) -> None:
    '''Print a row per claim: the means of both arms, and their paired difference.'''
    print('| claim | with | without | difference, 95 % | seeds |\n|---|---|---|---|---|')
    for claim, ((arm, figure), (other_arm, other_figure)) in CLAIMS.items():
        pairs = []
        for seed in SEEDS:
            if f'{arm}/{seed}' in cells and f'{other_arm}/{seed}' in cells:
                pairs.append((cells[f'{arm}/{seed}'][figure], cells[f'{other_arm}/{seed}'][other_figure]))
        if not pairs:
            print(f'| {claim} | not reached | | | 0 |')
            continue
        ours, theirs = np.array(pairs).T
        difference = paired_interval(ours - theirs)
        print(f'| {claim} | {ours.mean():.3f} | {theirs.mean():.3f} | {difference} | {len(pairs)} |')


def main(arguments: list[str]) -> None:
    '''Run the cells that are not finished, within the minutes, and print the table.'''
    if arguments[:1] == ['--cell']:
        torch.set_num_threads(1)
        start = time.process_time()
        arm, _, seed = arguments[1].rpartition('/')
        folder = STUDY_FOLDER / arm.replace(' ', '_').replace(',', '') / seed
        print_figures(start, **ARMS[arm](folder, int(seed)))
        return
    for kind in ('tagging', 'soundscapes'):
        make_task(kind)
    minutes = float(arguments[0]) if arguments else 45.0
    cells = [f'{arm}/{seed}' for arm in arguments[1:] or ARMS for seed in SEEDS]
    print_claims(run_cells('tests.benchmarks.study', cells, STUDY_FOLDER / 'cells.csv', minutes))


if __name__ == '__main__':
    main(sys.argv[1:])
