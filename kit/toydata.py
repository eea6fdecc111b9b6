'''Make small sets of synthetic clips or soundscapes, with their tables, from a seed.'''

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.files import write_rows
from kit.labels.table import class_names, read_clip_table, split_labels

TOY_RATE = 22050
TOY_CLASSES = ('chirp_down', 'chirp_up', 'clicks', 'hiss', 'pulses', 'rumble', 'tone', 'warble')
# The toy species of soundscapes: a sound and the lowest frequency of its band. Two species share each sound, and the
# false boxes put a sound into another species' band. So a model needs both.
TOY_SONGS = ('pulses', 'warble', 'tone', 'pulses', 'warble', 'tone')
TOY_LOW_HZ = (500.0, 800.0, 1280.0, 2048.0, 3277.0, 5243.0)
BOX_HEADER: tuple[Any, ...] = ('recording_id', 'species_id', 'songtype_id', 't_min', 'f_min', 't_max', 'f_max')


def toy_event(
    kind: str, n: int, rng: np.random.Generator, low_hz: float = 400.0, high_hz: float = 3000.0
) -> np.ndarray:
    '''Return a sound of n samples, at most 1 in magnitude, with a pitch between two frequencies.'''
    t = np.arange(n) / TOY_RATE
    hz = float(np.exp(rng.uniform(math.log(low_hz), math.log(high_hz))))
    sweep = hz * (t + t * t / max(t[-1], 1e-3))
    carrier = np.sin(2 * np.pi * hz * t)
    gates = (t * rng.uniform(6, 10)) % 1.0
    # All kinds are made, whichever is asked for, so that the random draws after this do not depend on the kind.
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
    return np.asarray(wave / max(1.0, float(np.abs(wave).max())))


def toy_clip(seconds: float, labels: list[str], rng: np.random.Generator) -> np.ndarray:
    '''Return a clip with one sound for each label at a random time, over faint noise.'''
    n = max(16, int(seconds * TOY_RATE))
    wave = rng.normal(0, 10 ** rng.uniform(-3.0, -2.0), n)
    for label in labels:
        length = min(n, int(TOY_RATE * rng.uniform(0.25, 2.0)))
        start = int(rng.integers(0, n - length + 1))
        wave[start : start + length] += toy_event(label, length, rng) * 10 ** rng.uniform(-1.0, -0.3)
    return np.asarray(wave / max(1.0, float(np.abs(wave).max())), np.float32)


def make_toy_set(folder: Path, clips: int = 160, test: int = 60, seed: int = 0, noisy: int = 0) -> None:
    '''Write train/ and test/ with clips of 0.3 to 30 s, and their tables; also noisy/, where labels are wrong.'''
    rng = np.random.default_rng(seed)
    write_rows(folder / 'train.csv', write_toy_clips(folder, 'train', clips, rng))
    test_rows = write_toy_clips(folder, 'test', test, rng)
    write_rows(folder / 'test_truth.csv', test_rows)
    write_zeros(folder, 'fname', [name for name, _ in test_rows[1:]], TOY_CLASSES)
    if noisy:
        write_rows(folder / 'noisy.csv', write_toy_clips(folder, 'noisy', noisy, rng))
        spoiled = spoil_labels(read_clip_table(folder / 'noisy.csv'), seed=seed)
        write_rows(folder / 'noisy.csv', [[*spoiled], *spoiled.itertuples(index=False)])


def write_toy_clips(folder: Path, part: str, count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    '''Write clips to a subfolder, and return the rows of their table, the header first.'''
    import soundfile

    (folder / part).mkdir(parents=True, exist_ok=True)
    rows = [('fname', 'labels')]
    for i in range(count):
        seconds = float(np.clip(np.exp(rng.normal(math.log(3.0), 0.9)), 0.3, 30.0))
        n_labels = int(rng.integers(1, 4))
        labels = sorted(rng.choice(TOY_CLASSES, size=n_labels, replace=False).tolist())
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
            others = [name for name in classes if name not in names]
            names = rng.permutation(others)[: len(names)].tolist()
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

    A false box holds another species' sound in the band of a species that is not in the recording.
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
    '''Return a box around a song in its species' band, as a row under BOX_HEADER.'''
    low_hz = TOY_LOW_HZ[species]
    return (name, species, 1, span[0], 0.9 * low_hz, span[1], 1.3 * low_hz)
