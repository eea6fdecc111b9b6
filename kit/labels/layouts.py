'''Recognise a competition's folder, and turn its tables into the kit's own.'''

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.core.errors import KitError
from kit.core.files import TextTable, join_cells, read_table, write_text
from kit.labels.table import ALL_OTHERS, UNLABELLED, class_names, classes_of_template, read_clip_table, split_labels

BOX_LAYOUT = 'RFCX 2021'
ROW_S = 5.0  # seconds of a row of every BirdCLEF
SOUNDSCAPE_FOLDERS = ('train_soundscapes', 'unlabeled_soundscapes')
# What stands in a cell for "not known".
NO_VALUES = ('', 'none', 'nan', 'null', 'unknown', 'anonymous')


@dataclass(frozen=True)
class CompetitionData:
    '''The paths and settings that training and submission need.

    `table` is a clip table, `curated` the part of it without noisy clips; boxes are two files, true and false ones.
    `soundscapes` is the folder of training soundscapes, `truth` the labels of the test where they are available.
    `scored_classes` are those that count, if not all.
    '''

    name: str
    audio: Path
    test: Path
    template: Path
    table: Path | None = None
    curated: Path | None = None
    boxes: tuple[Path, Path] | None = None
    group_column: str | None = None
    metric: str = 'lwlrap'
    soundscapes: Path | None = None
    truth: Path | None = None
    scored_classes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        '''The classes of the template.'''
        return self.scored_classes or classes_of_template(self.template)

    def __str__(self) -> str:
        tables = filter(None, (self.table, *(self.boxes or ())))
        details = [f'{len(read_table(path).lines):,} rows in {path.name}' for path in tables]
        details.append(f'{len(self.classes)} classes')
        return f'{self.name}: {", ".join(details)}; audio in {self.audio}, test in {self.test}'

    __repr__ = __str__


@dataclass(frozen=True)
class Layout:
    '''How a competition's folder looks. Each of `marks` must exist; one with bars is any of several names.

    `metric` is empty where it depends on the year. `write_tables(root, out, unlabelled)` writes the kit's tables, and
    returns the fields of CompetitionData that these change.
    '''

    name: str
    marks: tuple[str, ...]
    test: str
    write_tables: Callable[[Path, Path, bool], Mapping[str, Any]]
    audio: str = '.'
    metric: str = 'lwlrap'

    def fits(self, root: Path) -> bool:
        '''Whether a folder looks so.'''
        return all(first_existing(root, mark.split('|')) for mark in self.marks)


def first_existing(root: Path, names: Iterable[str]) -> Path | None:
    '''The first of some files or folders that exists in a folder.'''
    return next((root / name for name in names if (root / name).exists()), None)


def find_layout(folder: str | Path) -> tuple[Layout, Path]:
    '''Find the competition in a folder, or down to two levels in it.'''
    place = Path(folder)
    found = layouts_of([place]) or layouts_of(data_folders([place]))  # a competition's own folders are not listed
    if len(found) == 1:
        return found[0]
    if found:
        raise KitError(f'{place} holds {len(found)} competitions: name one of {", ".join(str(at) for _, at in found)}.')
    looked_for = '; '.join(f'{" and ".join(layout.marks)} ({layout.name})' for layout in LAYOUTS)
    there = sorted(path.name for path in place.iterdir())[:12] if place.is_dir() else ['no such folder']
    raise KitError(
        f"{place} has no known competition's layout; it holds: {', '.join(there) or 'nothing'}. Looked for: "
        f'{looked_for}. For other data use --table CSV --audio FOLDER.'
    )


def layouts_of(folders: Iterable[Path]) -> list[tuple[Layout, Path]]:
    '''The folders that are a competition's, each with the first layout that fits.'''
    found = []
    for folder in folders:
        found += [(layout, folder) for layout in LAYOUTS if layout.fits(folder)][:1]
    return found


def data_folders(places: Iterable[Path]) -> list[Path]:
    '''Some folders and those down to two levels in them: Kaggle mounts input/NAME or input/competitions/NAME.

    A deeper search would list every audio file, over a minute in a large competition.
    '''
    return [found for place in places for found in (place, *sorted(place.glob('*/')), *sorted(place.glob('*/*/')))]


def find_competition(folder: str | Path) -> CompetitionData:
    '''Return what a submission needs of a competition's folder: the test files, the template, the soundscapes.'''
    return data_of(*find_layout(folder))


def data_of(layout: Layout, root: Path) -> CompetitionData:
    '''What is known of a competition before its tables are written.'''
    truth = root / 'test_truth.csv'
    scored = root / 'scored_birds.json'  # BirdCLEF 2022
    return CompetitionData(
        name=root.name,
        audio=root / layout.audio,
        test=root / layout.test,
        template=root / 'sample_submission.csv',
        metric=layout.metric or birdclef_metric(root),
        soundscapes=first_existing(root, SOUNDSCAPE_FOLDERS),
        truth=truth if truth.is_file() else None,
        scored_classes=tuple(json.loads(scored.read_text('utf-8'))) if scored.is_file() else (),
    )


def read_competition(folder: str | Path, out: str | Path, unlabelled: bool = False) -> CompetitionData:
    '''Recognise a competition's folder, write the tables that training needs to `out`, and return all paths.

    With `unlabelled`, soundscapes without labels are rows of the table too, of the source "unlabelled".

    Errors: KitError for a folder that is no known competition's, and for tables that cannot be read
    '''
    layout, root = find_layout(folder)
    return replace(data_of(layout, root), **layout.write_tables(root, Path(out), unlabelled))


def write_frame(path: Path, columns: Any) -> Path:
    '''Write a table, a pandas DataFrame or columns by name, as a whole CSV file.'''
    import pandas

    write_text(path, pandas.DataFrame(columns).to_csv(index=False, lineterminator='\n'))
    return path


def write_curated_and_noisy(root: Path, out: Path, folders: Sequence[str]) -> Mapping[str, Any]:
    '''Join the tables of curated and of noisy clips, each beside its folder.'''
    import pandas

    tables = []
    for folder, source in zip(folders, ('curated', 'noisy'), strict=True):
        if (root / f'{folder}.csv').is_file():
            table = read_clip_table(root / f'{folder}.csv')
            tables.append(table.assign(fname=f'{folder}/' + table['fname'], source=source))
    table = write_frame(out / 'train.csv', pandas.concat(tables))
    return {'table': table, 'curated': write_frame(out / 'curated.csv', tables[0])}


def write_freesound_2018(root: Path, out: Path) -> Mapping[str, Any]:
    '''Write the table of Freesound 2018: clips not verified count as noisy.'''
    frame = read_clip_table(root / 'train.csv')
    is_verified = frame['manually_verified'] == '1'
    source = is_verified.map({True: 'curated', False: 'noisy'})
    frame = frame.assign(fname='audio_train/' + frame['fname'], source=source)
    curated = write_frame(out / 'curated.csv', frame[is_verified])
    return {'table': write_frame(out / 'train.csv', frame), 'curated': curated}


def split_esc(root: Path, out: Path, table_name: str, label: str, source: str) -> Mapping[str, Any]:
    '''Make folds 1 to 4 of ESC the training data, and fold 5 the test.'''
    import pandas

    columns = read_table(root / table_name, ('fold', label, source)).columns
    names = columns.get('fname') or columns['filename']
    labels = [join_cells([name]) for name in columns[label]]
    frame = pandas.DataFrame({'fname': names, 'labels': labels, 'source_id': columns[source]})
    is_test = pandas.Series(columns['fold']) == '5'
    test = frame[is_test]
    template = {'fname': test['fname']} | dict.fromkeys(class_names(test['labels']), '0')
    table = write_frame(out / 'train.csv', frame[~is_test].assign(source='curated'))
    return {
        'template': write_frame(out / 'sample_submission.csv', template),
        'table': table,
        'curated': table,
        'group_column': 'source_id',
        'truth': write_frame(out / 'test_truth.csv', test),
    }


def write_birdclef(root: Path, out: Path, unlabelled: bool) -> Mapping[str, Any]:
    '''Write the table of BirdCLEF, 2020 to 2026: clips, labelled soundscapes, and unlabelled ones if asked for.'''
    path = first_existing(root, ('train.csv', 'train_metadata.csv')) or root / 'train.csv'
    columns = read_table(path, ('filename',)).columns
    codes = columns.get('ebird_code') or columns.get('primary_label')  # those of 2020 have other names beside codes
    if codes is None:
        raise KitError(f"{path} has no column primary_label: give BirdCLEF's own table of clips.")
    code_of = dict(zip(columns.get('primary_label', codes), codes, strict=True))
    folder = 'train_short_audio' if (root / 'train_short_audio').is_dir() else 'train_audio'
    empty = [''] * len(codes)
    rows = []
    cells = [columns.get(name, empty) for name in ('secondary_labels', 'author', 'latitude', 'longitude')]
    for name, code, others, author, *place in zip(columns['filename'], codes, *cells, strict=True):
        rows.append(
            {
                'fname': f'{folder}/{name}' if '/' in name else f'{folder}/{code}/{name}',
                'labels': join_cells([code]),
                'secondary_labels': join_cells(code_of.get(other, other) for other in split_labels(others)),
                'author': '' if author.strip().lower() in NO_VALUES else author,
                'place': '' if {text.lower() for text in place} & {*NO_VALUES} else ' '.join(place),
                'source': 'clips',
                'false_labels': ALL_OTHERS,
            }
        )
    if 'rating' in columns:
        for row, rating in zip(rows, columns['rating'], strict=True):
            row['rating'] = rating
    soundscapes = first_existing(root, SOUNDSCAPE_FOLDERS)
    files = sorted(path.name for path in soundscapes.iterdir()) if soundscapes else []
    labelled = read_soundscape_labels(root, files)
    rows += labelled
    if unlabelled and soundscapes:
        used = {row['fname'] for row in labelled}
        for name in (f'{soundscapes.name}/{file}' for file in files):
            if name not in used:
                rows.append({'fname': name, 'labels': '', 'site': site_of(name), 'source': UNLABELLED})
    return {'table': write_frame(out / 'train.csv', rows), 'group_column': 'author'}


def birdclef_metric(root: Path) -> str:
    '''The metric of a BirdCLEF by its folder: F1 until 2022, padded cmAP in 2023, then AUC.'''
    if (root / 'taxonomy.csv').is_file() or (root / 'unlabeled_soundscapes').is_dir():
        return 'macro_auc'
    if (root / 'scored_birds.json').is_file():
        return 'macro_f1'
    return 'padded_cmap' if (root / 'eBird_Taxonomy_v2021.csv').is_file() else 'micro_f1'


def read_soundscape_labels(root: Path, files: Sequence[str]) -> list[dict[str, Any]]:
    '''Read the labelled windows of training soundscapes, each once, as rows of a clip table.'''
    path = first_existing(root, ('train_soundscapes_labels.csv', 'train_soundscape_labels.csv'))
    if path is None:
        return []
    table = read_table(path)
    windows = windows_of_2021(table, files) if 'row_id' in table.columns else windows_of_labels(table)
    rows: dict[tuple[str, float, float], dict[str, Any]] = {}
    for place, (name, begin_s, end_s, codes) in enumerate(windows):
        row = {
            'fname': f'train_soundscapes/{name}',
            'labels': join_cells([code for code in codes if code != 'nocall']),
            'begin_s': begin_s,
            'end_s': end_s,
            'site': site_of(name),
            'source': 'soundscapes',
            'false_labels': ALL_OTHERS,
        }
        first = rows.setdefault((name, begin_s, end_s), row)
        if first != row:
            raise KitError(f'{table.at(place)}: {name} from {begin_s:g} s has other labels above: keep one row.')
    return list(rows.values())


def windows_of_labels(table: TextTable) -> list[tuple[str, float, float, list[str]]]:
    '''Read name, begin, end and codes of each row of `filename,start,end,primary_label`, codes joined by ;.'''
    columns = read_table(table.path, ('filename', 'start', 'end', 'primary_label')).columns
    begins, ends = (table.numbers(name, 'HH:MM:SS or seconds', kind=clock_seconds) for name in ('start', 'end'))
    codes = [[code.strip() for code in text.split(';')] for text in columns['primary_label']]
    return list(zip(columns['filename'], begins, ends, codes, strict=True))


def windows_of_2021(table: TextTable, files: Sequence[str]) -> list[tuple[str, float, float, list[str]]]:
    '''Read the same of each row of `row_id,site,audio_id,seconds,birds`, codes joined by blanks.'''
    columns = table.columns
    ends = table.numbers('seconds')
    file_of = {'_'.join(name.split('_')[:2]): name for name in files}
    windows = []
    for row, (name, end_s, codes) in enumerate(zip(columns['row_id'], ends, columns['birds'], strict=True)):
        recording = name.rpartition('_')[0]
        if recording not in file_of:
            raise KitError(f'{table.at(row)}: train_soundscapes has no file {recording}_*: add it.')
        windows.append((file_of[recording], end_s - ROW_S, end_s, codes.split()))
    return windows


def clock_seconds(text: str) -> float:
    '''Convert HH:MM:SS, MM:SS or seconds to seconds. Errors: ValueError for other texts'''
    seconds = 0.0
    for part in text.split(':'):
        seconds = 60 * seconds + float(part)
    return seconds


def site_of(name: str) -> str:
    '''The site in a soundscape's name, e.g. S22 of BC2026_Train_0001_S22_20250101_050000.ogg; empty if none.'''
    match = re.search(r'(?:^|[/_])([A-Z]{1,4}\d*)_\d{8}', name)
    return match[1] if match else ''


def hour_of(name: str) -> str:
    '''The hour in a soundscape's name: there it is 05; empty if none.'''
    match = re.search(r'_\d{8}_(\d{2})\d{4}', name)
    return match[1] if match else ''


LAYOUTS = (
    Layout(
        'Freesound 2019',
        ('train_curated.csv',),
        'test',
        lambda root, out, _: write_curated_and_noisy(root, out, ('train_curated', 'train_noisy')),
    ),
    Layout(
        BOX_LAYOUT,
        ('train_tp.csv', 'train_fp.csv'),
        'test',
        lambda root, out, _: {'boxes': (root / 'train_tp.csv', root / 'train_fp.csv')},
        audio='train',
    ),
    Layout(
        'BirdCLEF',
        ('train.csv|train_metadata.csv', 'train_audio|train_short_audio'),
        'test_soundscapes',
        write_birdclef,
        metric='',
    ),
    Layout(
        'Freesound 2018',
        ('train.csv', 'audio_train'),
        'audio_test',
        lambda root, out, _: write_freesound_2018(root, out),
        metric='map3',
    ),
    Layout(
        'ESC-50',
        ('meta/esc50.csv', 'audio'),
        'audio',
        lambda root, out, _: split_esc(root, out, 'meta/esc50.csv', 'category', 'src_file'),
        audio='audio',
    ),
    Layout(
        'ESC-10',
        ('labels.csv', 'audio'),
        'audio',
        lambda root, out, _: split_esc(root, out, 'labels.csv', 'labels', 'source_id'),
        audio='audio',
    ),
    Layout(
        'toy data',
        ('train.csv', 'noisy.csv'),
        'test',
        lambda root, out, _: write_curated_and_noisy(root, out, ('train', 'noisy')),
    ),
)
