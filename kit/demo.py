'''`demo`: find a competition's data or make toy data, and do the whole job on it.'''

import csv
import fnmatch
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kit.audio.decode import header_duration_s, list_audio
from kit.core.errors import KitError, choose
from kit.core.files import write_rows
from kit.core.worker import self_command
from kit.labels.layouts import (
    BOX_LAYOUT,
    LAYOUTS,
    CompetitionData,
    data_folders,
    find_layout,
    read_competition,
    write_frame,
)
from kit.labels.metrics import lwlrap
from kit.labels.table import class_names, label_targets, read_clip_table, split_labels
from kit.models.checkpoint import open_checkpoint
from kit.report import show
from kit.train.oof import load_run
from kit.train.recipes import find_recipe
from kit.train.self_training import self_train

TOY_RATE = 22050
TOY_CLASSES = ('chirp_down', 'chirp_up', 'clicks', 'hiss', 'pulses', 'rumble', 'tone', 'warble')
# The toy species of soundscapes: a sound and its band's lowest frequency. Two species share each sound, and false boxes
# put a sound into another species' band. So a model needs both.
TOY_SONGS = ('pulses', 'warble', 'tone', 'pulses', 'warble', 'tone')
TOY_LOW_HZ = (500.0, 800.0, 1280.0, 2048.0, 3277.0, 5243.0)
BOX_HEADER: tuple[Any, ...] = ('recording_id', 'species_id', 'songtype_id', 't_min', 'f_min', 't_max', 'f_max')


def toy_event(
    kind: str, n: int, rng: np.random.Generator, low_hz: float = 400.0, high_hz: float = 3000.0
) -> np.ndarray:
    '''A sound of n samples, at most 1 in magnitude, with a pitch between two frequencies.'''
    t = np.arange(n) / TOY_RATE
    hz = float(np.exp(rng.uniform(math.log(low_hz), math.log(high_hz))))
    sweep = hz * (t + t * t / max(t[-1], 1e-3))
    carrier = np.sin(2 * np.pi * hz * t)
    gates = (t * rng.uniform(6, 10)) % 1.0
    # All kinds are made, whichever is asked for: later random draws do not depend on the kind.
    sounds = {
        'tone': carrier,
        'chirp_up': np.sin(2 * np.pi * sweep),
        'chirp_down': np.sin(2 * np.pi * sweep[::-1]),
        'warble': np.sin(2 * np.pi * hz * t + 8 * np.sin(2 * np.pi * 7 * t)),
        'hiss': np.diff(rng.normal(0, 0.3, n + 1)),
        'clicks': rng.normal(0, 1.0, n) * (gates < 0.03),
        'pulses': carrier * (gates < 0.4),
        'rumble': np.convolve(rng.normal(0, 1.0, n), np.ones(64) / 16, mode='same'),
    }
    wave = sounds[kind] * np.minimum(1.0, np.minimum(t, t[::-1]) * 50 + 0.02)
    return wave / max(1.0, float(np.abs(wave).max()))


def toy_clip(seconds: float, labels: list[str], rng: np.random.Generator) -> np.ndarray:
    '''A clip with one sound for each label at a random time, over faint noise.'''
    n = max(16, int(seconds * TOY_RATE))
    wave = rng.normal(0, 10 ** rng.uniform(-3.0, -2.0), n)
    for label in labels:
        length = min(n, int(TOY_RATE * rng.uniform(0.25, 2.0)))
        start = int(rng.integers(0, n - length + 1))
        wave[start : start + length] += toy_event(label, length, rng) * 10 ** rng.uniform(-1.0, -0.3)
    return np.asarray(wave / max(1.0, float(np.abs(wave).max())), np.float32)


def make_toy_set(folder: Path, clips: int = 160, test: int = 60, seed: int = 0, noisy: int = 0) -> None:
    '''Write train/ and test/, clips of 0.3 to 30 s with tables; also noisy/, where labels are wrong.'''
    import pandas

    rng = np.random.default_rng(seed)
    write_rows(folder / 'train.csv', write_toy_clips(folder, 'train', clips, rng))
    test_rows = write_toy_clips(folder, 'test', test, rng)
    write_rows(folder / 'test_truth.csv', test_rows)
    write_zeros(folder, 'fname', [name for name, _ in test_rows[1:]], TOY_CLASSES)
    if noisy:
        header, *rows = write_toy_clips(folder, 'noisy', noisy, rng)
        write_frame(folder / 'noisy.csv', spoil_labels(pandas.DataFrame(rows, columns=header), seed=seed))


def write_toy_clips(folder: Path, part: str, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    '''Write clips to a subfolder, and return the rows of their table, the header first.'''
    import soundfile

    (folder / part).mkdir(parents=True, exist_ok=True)
    rows = [('fname', 'labels')]
    for i in range(count):
        seconds = float(np.clip(np.exp(rng.normal(math.log(3.0), 0.9)), 0.3, 30.0))
        labels = sorted(rng.choice(TOY_CLASSES, size=int(rng.integers(1, 4)), replace=False).tolist())
        name = f'{part}_{i:04d}.wav'
        soundfile.write(folder / part / name, toy_clip(seconds, labels, rng), TOY_RATE, subtype='PCM_16')
        rows.append((name, ','.join(labels)))
    return rows


def write_zeros(folder: Path, id_column: str, ids: Iterable[str], classes: Sequence[str]) -> None:
    '''Write sample_submission.csv with a zero for each id and class.'''
    rows = [(name, *['0'] * len(classes)) for name in ids]
    write_rows(folder / 'sample_submission.csv', [(id_column, *classes), *rows])


def spoil_labels(table: Any, share: float = 0.4, seed: int = 0) -> Any:
    '''Return a clip table where some rows have as many labels, all wrong; `true_labels` keeps the true ones.'''
    rng = np.random.default_rng(seed)
    classes = class_names(table['labels'])
    labels = []
    for text in table['labels']:
        names = list(split_labels(text))
        if rng.random() < share:
            names = rng.permutation([name for name in classes if name not in names])[: len(names)].tolist()
        labels.append(','.join(sorted(names)))
    return table.assign(labels=labels, true_labels=table['labels'])


def toy_recording(
    singers: Sequence[tuple[str, float]], rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    '''Return 8 s with one song per singer (sound, its band's lowest hertz), and each song's start and end.'''
    wave = rng.normal(0, 0.01, 8 * TOY_RATE)
    spans = []
    for song, low_hz in singers:
        length = int(TOY_RATE * rng.uniform(0.5, 1.5))
        start = int(rng.integers(0, len(wave) - length))
        event = toy_event(song, length, rng, low_hz, 1.2 * low_hz)
        wave[start : start + length] += event * 10 ** rng.uniform(-1.6, -0.8)
        spans.append((start / TOY_RATE, (start + length) / TOY_RATE))
    return wave, spans


def make_toy_soundscapes(folder: Path, recordings: int = 80, test: int = 40, seed: int = 0) -> None:
    '''Write recordings and tables as RFCX has them: 1 to 3 species each, with one true box and two false ones.

    A false box holds another species' sound in the band of an absent species.
    '''
    import soundfile

    rng = np.random.default_rng(seed)
    true_boxes = [BOX_HEADER]
    false_boxes = [BOX_HEADER]
    truth = [('fname', 'labels')]
    for part, count in (('train', recordings), ('test', test)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            name = f'{part}_{i:04d}'
            order = rng.permutation(len(TOY_SONGS)).tolist()
            present = order[: rng.integers(1, 4)]
            absent = order[-2:]
            singers = [(TOY_SONGS[species], TOY_LOW_HZ[species]) for species in present]
            singers += [(TOY_SONGS[species - 1], TOY_LOW_HZ[species]) for species in absent]
            wave, spans = toy_recording(singers, rng)
            soundfile.write(folder / part / f'{name}.flac', wave.clip(-1, 1), TOY_RATE, subtype='PCM_16')
            if part == 'test':
                truth.append((name, ','.join(f's{species}' for species in sorted(present))))
                continue
            true_boxes.append(box_row(name, present[0], spans[0]))
            for species, span in zip(absent, spans[-2:], strict=True):
                false_boxes.append(box_row(name, species, span))
    write_rows(folder / 'train_tp.csv', true_boxes)
    write_rows(folder / 'train_fp.csv', false_boxes)
    write_rows(folder / 'test_truth.csv', truth)
    classes = [f's{species}' for species in range(len(TOY_SONGS))]
    write_zeros(folder, 'recording_id', [name for name, _ in truth[1:]], classes)


def box_row(name: str, species: int, span: tuple[float, float]) -> tuple[Any, ...]:
    '''A box around a song in its species' band, as a row under BOX_HEADER.'''
    low_hz = TOY_LOW_HZ[species]
    return (name, species, 1, span[0], 0.9 * low_hz, span[1], 1.3 * low_hz)


KAGGLE_INPUT = Path('/kaggle/input')
TEACHER_FOLDERS = {'rounds', 'state'}
AUDIO_FOLDERS = {'train', 'test', 'audio', 'train_audio', 'train_curated', 'train_noisy', 'train_soundscapes'}


def find_data(
    kind: str, out: str | Path, toy: int = 0, inputs: str | Path | Iterable[str | Path] = KAGGLE_INPUT
) -> CompetitionData:
    '''Find a competition's data, or for clips else ESC-10; where nothing is attached, make toy data in `out`.

    Tables for training are written to `out`.

    Options:
        kind: clips, as in Freesound and BirdCLEF, or boxes, as in RFCX Species Audio Detection
        out: the folder to write to
        toy: make this many toy clips or recordings for training, whatever data there are
        inputs: folders where data are searched, down to two levels below; by default Kaggle's input

    Errors: KitError where a competition is attached whose layout is unknown or has the other kind of data
    '''
    choose('kind of data', kind, {'clips': '', 'boxes': ''})
    out = Path(out)
    if not toy:
        folders = data_folders([Path(place) for place in ([inputs] if isinstance(inputs, str | Path) else inputs)])
        for layout in LAYOUTS:
            for folder in folders:
                if layout.fits(folder) and (layout.name == BOX_LAYOUT) == (kind == 'boxes'):
                    return read_competition(folder, out)
        for folder in folders:
            if (folder / 'sample_submission.csv').is_file():
                layout, root = find_layout(folder)
                raise KitError(f'{root} is of {layout.name}, whose data are not {kind}: use its own notebook.')

    clips = toy or 120
    folder = out / f'toy_{kind}_{clips}'
    if kind == 'boxes':
        make_toy_soundscapes(folder, clips, clips // 2)
    else:
        make_toy_set(folder, clips, clips // 2, noisy=clips)
    return read_competition(folder, out)


def fitting_checkpoints(classes: Iterable[str], places: Iterable[str | Path]) -> list[Path]:
    '''Return the folds' checkpoints below some folders that have no other classes than these.

    A model may lack classes that it had no data of. Earlier iterations' teachers and unfinished training are left out.

    Options:
        classes: names of classes, in any order
        places: folders
    '''
    wanted = set(classes)
    found = set()
    for place in places:
        for folder, subfolders, names in os.walk(place):
            # os.walk skips what leaves this list. Folders of audio may hold 100,000 files.
            subfolders[:] = [name for name in subfolders if name not in TEACHER_FOLDERS | AUDIO_FOLDERS]
            found |= {Path(folder, name) for name in fnmatch.filter(names, 'fold_*.pt')}
    return [path for path in sorted(found) if set(open_checkpoint(path).card.classes) <= wanted]


# Small enough for a minute on two cores.
DEMO_SETTINGS = '''
    frontend.sample_rate=22050 frontend.hop_length=512 frontend.n_fft=1024 frontend.n_mels=64 network.width=12
    crop_s=2.5 epochs=12 no_augment_epochs=3 n_folds=2 validate_every=12
    self_training.iterations=1 self_training.top_k=[0.5]
'''


def run_demo(out: str = 'demo', clips: int = 120, epochs: int | None = None) -> str:
    '''Do everything on toy data: train two small folds, relabel, train again, submit, and report.

    Options:
        out: the folder to work in
        clips: number of training clips; as many more have labels that are partly wrong
        epochs: epochs of each training
    '''
    start = time.perf_counter()
    folder = Path(out)
    data = find_data('clips', folder / 'data', clips)
    more = [] if epochs is None else [f'epochs={epochs}']
    recipe = find_recipe('max-pyramid-mel', small=True, overrides=DEMO_SETTINGS.split() + more)
    print(self_train(recipe, data.table, data.audio, folder / 'run'), flush=True)
    teacher = load_run(folder / 'run' / 'rounds' / '0').oof
    student = load_run(folder / 'run').oof

    submit_s = submit_in_new_process(folder, data)
    audio_s = sum(header_duration_s(path) or 0.0 for path in list_audio(data.test))
    score, prior_score = score_csv(folder / 'submission.csv', data.test.parent / 'test_truth.csv')
    pages = [folder / 'report.html', folder / 'submission.html']
    show(folder / 'run', pages[0])
    show(folder / 'submission.csv', pages[1])
    return (
        f'{teacher.metric} out of fold: {teacher.score:.4f} with {clips} clean clips, '
        f'{student.score:.4f} with the noisy clips that agree\n'
        f'lwlrap on the test clips: {score:.4f} (class frequencies alone: {prior_score:.4f})\n'
        f'submitted {audio_s:.0f} s of audio in {submit_s:.1f} s, start-up included: '
        f'{audio_s / submit_s:.0f} times as fast as real time\n'
        f'see {pages[0]}, {pages[1]}; the demo took {time.perf_counter() - start:.0f} s'
    )


def submit_in_new_process(folder: Path, data: CompetitionData) -> float:
    '''Submit with this kit's command line in a new process, as on Kaggle; return the seconds that this took.'''
    command, environment = self_command()
    words = [
        *(sys.executable, *command, 'submit', '--deadline=5m', '--no-progress'),
        f'--checkpoints={folder.resolve() / "run"}/fold_*.pt',
        f'--audio={data.test.resolve()}',
        f'--template={data.template.resolve()}',
        f'--out={(folder / "submission.csv").resolve()}',
    ]
    start = time.perf_counter()
    # In an empty folder: nothing is imported from the working folder.
    with tempfile.TemporaryDirectory(prefix='audiotag_kit_') as work_folder:
        code = subprocess.run(words, cwd=work_folder, env=os.environ | environment, check=False).returncode
    if code:
        raise KitError(f'the submission ended with exit code {code}; its error is above.')
    return time.perf_counter() - start


def score_csv(path: Path, truth_path: Path) -> tuple[float, float]:
    '''Return the lwlrap of a submission, and that of predicting the class frequencies for every clip.'''
    table = read_clip_table(truth_path)
    header, *rows = csv.reader(path.read_text(encoding='utf-8').splitlines())
    scores = {name: [float(cell) for cell in cells] for name, *cells in rows}
    truth = label_targets(list(table.get('true_labels', table['labels'])), header[1:])
    frequencies = np.tile(truth.mean(axis=0), (len(truth), 1))
    return lwlrap(truth, [scores[name] for name in table['fname']]), lwlrap(truth, frequencies)
