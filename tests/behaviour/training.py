'''What the tests of training share: a tiny recipe, a small set of clips, datasets, trainers and comparisons.'''

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.core.runtime import Runtime
from kit.infer.predictor import Predictor
from kit.labels.table import read_clip_table
from kit.models.checkpoint import load_tagger
from kit.train.dataset import Dataset, load_dataset
from kit.train.fold_training import new_tagger
from kit.train.recipe import Recipe
from kit.train.run import train_run
from kit.train.trainer import Trainer

CPU = torch.device('cpu')
RUNTIME = Runtime(CPU, 1, False)
QUIET = {'device': 'cpu', 'threads': 1, 'progress': False}
CLASSES = ('high', 'low', 'noisy')
TINY = Recipe(
    frontend=FrontendConfig(
        sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, f_min_hz=20.0, channels=('log', 'coordinate')
    ),
    network={'family': 'max-pyramid', 'blocks': 2, 'width': 4},
    crop_s=0.4,
    mixup=MixupConfig(p=0.5),
    epochs=4,
    no_augment_epochs=1,
    batch_size=4,
    validate_every=2,
    n_folds=2,
)


class Killed(Exception):
    '''Stands for a kill of the process.'''


def write_clip(path, labels, seconds, rng):
    '''Write a clip with one event per label, at a random place in faint noise.'''
    soundfile = pytest.importorskip('soundfile')
    n = int(8000 * seconds)
    wave = 0.01 * rng.normal(size=n)
    for label in labels:
        length = min(n, 1600)
        start = int(rng.integers(0, n - length + 1))
        t = np.arange(length) / 8000
        event = {
            'high': np.sin(2 * np.pi * rng.uniform(2000, 3000) * t),
            'low': np.sin(2 * np.pi * rng.uniform(200, 400) * t),
            'noisy': rng.normal(size=length),
        }[label]
        wave[start : start + length] += 0.2 * event
    soundfile.write(path, wave.clip(-1, 1), 8000, subtype='PCM_16')


def make_set(folder, clips=14, seed=0, **columns):
    '''Write clips/ and table.csv, with folds 0 and 1 in turn and further columns. Returns both paths.'''
    rng = np.random.default_rng(seed)
    audio = folder / 'clips'
    audio.mkdir(parents=True)
    rows = []
    for i in range(clips):
        labels = sorted(rng.choice(CLASSES, size=int(rng.integers(1, 3)), replace=False).tolist())
        write_clip(audio / f'{i:02d}.wav', labels, rng.uniform(0.2, 1.2), rng)
        rows.append({'fname': f'{i:02d}.wav', 'labels': ','.join(labels), 'fold': i % 2})
    pd.DataFrame(rows).assign(**columns).to_csv(folder / 'table.csv', index=False)
    return folder / 'table.csv', audio


def train_quietly(recipe, table, audio, out, **options):
    '''Train a run on the CPU without a progress bar.'''
    return train_run(recipe, table, audio, out, **QUIET, **options)


def load_table(recipe, table, audio, **options):
    '''The dataset of a table.'''
    frame = read_clip_table(table)
    return load_dataset(recipe, frame, audio, RUNTIME, **options)


def one_hot(classes):
    '''Targets of clips with one class each. Shape: (n,) -> (n, 3)'''
    return np.eye(3, dtype=np.float32)[np.asarray(classes)]


def whole_clips(n):
    '''Stretches that are whole clips. Shape: -> (n, 2)'''
    return np.tile([0.0, np.inf], (n, 1))


def clips_of(targets, sources=None, seconds=None, **fields):
    '''Clips whose spectrogram is their row number everywhere, 60 frames long unless `seconds` are given.'''
    targets = np.array(targets, np.float32)
    n = len(targets)
    frames = [60] * n if seconds is None else [max(1, round(s * TINY.frontend.frames_per_s)) for s in seconds]
    defaults = {
        'names': tuple(f'{i}.wav' for i in range(n)),
        'classes': CLASSES,
        'targets': targets,
        'weights': np.ones(n, np.float32),
        'sources': np.full(n, '') if sources is None else np.array(sources),
        'truth': targets,
        'folds': np.zeros(n, np.int64),
        'stretches': whole_clips(n),
        'recordings': {},
        'spectrograms': {i: torch.full((16, length), float(i)) for i, length in enumerate(frames)},
        'seconds': dict(enumerate(np.ones(n) if seconds is None else seconds)),
        'failures': {},
    }
    return Dataset(**defaults | fields)


def planted_data(folds, failed=()):
    '''Clips of these folds; clip i is the number i everywhere, so that it can be recognised in a batch.'''
    specs = {i: torch.full((16, 5 + i % 7), float(i)) for i in range(len(folds)) if i not in failed}
    targets = one_hot(np.arange(len(folds)) % 3)
    return clips_of(targets, folds=np.array(folds), spectrograms=specs)


def new_trainer(data, recipe=TINY, fold=0):
    '''The trainer of one fold, as a run makes it.'''
    tagger = new_tagger(recipe, data, fold)
    Predictor(tagger, CPU)
    return Trainer(recipe, tagger, data.train_split(fold), fold, CPU)


def seeded(seed=0):
    '''A generator with a seed.'''
    return torch.Generator().manual_seed(seed)


def no_score():
    '''A validation that scores nothing.'''
    return 0.0


def train_all(trainer, state_path, validate=no_score, deadline=None, killed_after=None):
    '''Train all epochs that are left, or until a kill. Returns their rows of the history.'''
    rows = []
    for row in trainer.train(state_path, validate, deadline):
        rows.append(row)
        if row['epoch'] == killed_after:
            raise Killed
    return rows


def copy_weights(network):
    '''A copy of a network's weights.'''
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def weights_of(path):
    '''The tensors of a checkpoint.'''
    return load_tagger(path).network.state_dict()


def same_bits(one, other):
    '''Whether two state dicts are equal, bit for bit.'''
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def same_checkpoints(one, other):
    '''Whether two checkpoints hold the same weights, bit for bit.'''
    return same_bits(weights_of(one), weights_of(other))
