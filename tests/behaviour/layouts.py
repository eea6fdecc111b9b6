'''Small folders laid out as competitions': their real file names and columns, and a few seconds of synthetic audio.'''

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

RATE = 8000
# As BirdCLEF mixes them: eBird's letters, iNaturalist's numbers, a number that looks like a float, a sonotype.
CODES = ('asbfly', '22930', '1e5', '47158son03')
# Each code's tone.
TONES_HZ = dict(zip(CODES, (500, 900, 1600, 2800), strict=True))


def write_tone(path: Path, codes: Sequence[str], seconds: float, seed: int) -> None:
    '''Write noise with the tones of some codes, as FLAC or, by the name's end, OGG or WAV.'''
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    wave = 0.01 * rng.standard_normal(len(t))
    for code in codes:
        wave += 0.2 * np.sin(2 * np.pi * TONES_HZ.get(code, 1200) * t)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    '''Write rows as a CSV.'''
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_csv(path, index=False)


def soundscape_name(part: str, number: int, year: int) -> str:
    '''Return the stem of a soundscape's name in the form of a year.'''
    if year == 2026:
        return f'BC2026_{part}_{number:04d}_S{number % 3:02d}_20250101_{number:02d}0000'
    return f'H{number % 3:02d}_20230420_{number:02d}0000' if part == 'Train' else f'soundscape_{number}'


def write_birdclef(root: Path, year: int, test: int = 2, clips: int = 6, minutes: float = 0.25) -> None:
    '''Write BirdCLEF 2024, 2025 or 2026: clips of three codes, the fourth only in soundscapes; a stub template.

    Soundscapes last a quarter of a minute. In 2026 some are labelled, each row twice.
    '''
    rows = []
    counts = dict(zip(CODES[:3], (clips, clips, 1), strict=True))
    for code, count in counts.items():
        for i in range(count):
            name = f'{code}/XC{100 + i}.ogg'
            write_tone(root / 'train_audio' / name, [code], 6.0, i)
            other = "['22930', 'elsewhere']" if code == 'asbfly' and i == 0 else "['']"
            rating = 0.0 if i % 2 else 3.5
            row = {'primary_label': code, 'secondary_labels': other, 'type': "['song']", 'filename': name}
            place = {'latitude': -16.5 if i else None, 'longitude': -56.7, 'author': f'A{i // 2}' if i else ''}
            rows.append(row | place | {'rating': rating, 'collection': 'XC', 'license': 'cc'})
    write_csv(root / ('train_metadata.csv' if year == 2024 else 'train.csv'), rows)
    if year > 2024:
        write_csv(root / 'taxonomy.csv', [{'primary_label': code, 'class_name': 'Aves'} for code in CODES])
    folder = 'unlabeled_soundscapes' if year == 2024 else 'train_soundscapes'
    labels = []
    for i in range(4):
        stem = soundscape_name('Train', i, year)
        sounding = [CODES[i % 4], CODES[3]]
        write_tone(root / folder / f'{stem}.ogg', sounding, 60 * minutes, 50 + i)
        for begin in (0, 5, 10):
            times = {'start': f'00:00:{begin:02d}', 'end': f'00:00:{begin + 5:02d}'}
            row = {'filename': f'{stem}.ogg', **times, 'primary_label': ';'.join(sorted({*sounding}))}
            labels += [row, row] if i < 3 else []
    if year == 2026:
        write_csv(root / 'train_soundscapes_labels.csv', labels)
    (root / 'test_soundscapes').mkdir(parents=True)
    (root / 'test_soundscapes' / 'readme.txt').write_text('Test soundscapes are added in the hidden run.')
    for i in range(test):
        stem = soundscape_name('Test', i, year)
        write_tone(root / 'test_soundscapes' / f'{stem}.ogg', [CODES[i % 3]], 60 * minutes, 90 + i)
    stub = [
        {'row_id': f'{soundscape_name("Test", 9999, year)}_{end}'} | dict.fromkeys(CODES, 0.25) for end in (5, 10, 15)
    ]
    write_csv(root / 'sample_submission.csv', stub)


def write_freesound_2019(root: Path) -> None:
    '''Write curated and noisy clips of two classes, one with a comma and parentheses in its name.'''
    classes = ('Bark', 'Chink,_clink_(metal)')
    for part, count in (('train_curated', 8), ('train_noisy', 4), ('test', 3)):
        rows = []
        for i in range(count):
            name = f'{part[-3:]}{i}.wav'
            write_tone(root / part / name, [CODES[i % 2]], 1.0 + 0.2 * i, i)
            label = classes[i % 2]
            rows.append({'fname': name, 'labels': f'"{label}"' if ',' in label else label})
        if part != 'test':
            write_csv(root / f'{part}.csv', rows)
        else:
            zeros = dict.fromkeys(classes, 0)
            write_csv(root / 'sample_submission.csv', [{'fname': row['fname']} | zeros for row in rows])


def write_freesound_2018(root: Path) -> None:
    '''Write clips with one label each, some verified, and a template of three labels.'''
    rows = []
    for i in range(12):
        write_tone(root / 'audio_train' / f'{i:08x}.wav', [CODES[i % 3]], 1.0, i)
        label = ('Bark', 'Meow', 'Chink')[i % 3]
        rows.append({'fname': f'{i:08x}.wav', 'label': label, 'manually_verified': int(i < 9)})
    write_csv(root / 'train.csv', rows)
    for i in range(3):
        write_tone(root / 'audio_test' / f't{i}.wav', [CODES[i % 3]], 1.0, 40 + i)
    write_csv(root / 'sample_submission.csv', [{'fname': f't{i}.wav', 'label': 'Bark Meow Chink'} for i in range(3)])


def write_rfcx(root: Path) -> None:
    '''Write recordings with a true and a false box each, of three species.'''
    true_rows = []
    false_rows = []
    for i in range(8):
        name = f'{i:09x}'
        write_tone(root / 'train' / f'{name}.flac', [CODES[i % 3]], 3.0, i)
        box = {'recording_id': name, 'songtype_id': 1, 't_min': 0.5, 'f_min': 300.0, 't_max': 1.5, 'f_max': 3000.0}
        true_rows.append(box | {'species_id': i % 3})
        false_rows.append(box | {'species_id': (i + 1) % 3})
    write_csv(root / 'train_tp.csv', true_rows)
    write_csv(root / 'train_fp.csv', false_rows)
    for i in range(2):
        write_tone(root / 'test' / f'test{i}.flac', [CODES[i]], 3.0, 70 + i)
    zeros = dict.fromkeys([f's{k}' for k in range(3)], 0)
    write_csv(root / 'sample_submission.csv', [{'recording_id': f'test{i}'} | zeros for i in range(2)])


def write_esc50(root: Path) -> None:
    '''Write two categories in five folds, two clips of one source in each.'''
    rows = []
    for fold in range(1, 6):
        for target, category in enumerate(('dog', 'rain')):
            for take in 'AB':
                name = f'{fold}-{fold}0{target}-{take}-{target}.wav'
                write_tone(root / 'audio' / name, [CODES[target]], 1.0, fold)
                row = {'filename': name, 'fold': fold, 'target': target, 'category': category, 'esc10': True}
                rows.append(row | {'src_file': f'{fold}0{target}', 'take': take})
    write_csv(root / 'meta' / 'esc50.csv', rows)
