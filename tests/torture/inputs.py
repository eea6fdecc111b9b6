'''Files, checkpoints, tables and templates that are damaged, hostile or odd.'''

import copy
import csv
import functools
import json
import math
import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from kit.audio.decode import Sound, decode_file, header_duration_s
from kit.core.errors import KitError
from kit.models.checkpoint import FORMAT, content_digest, load_tagger
from tests.torture.room import TINY, Fault, classes_of, make_room, run_forked, run_verb

FORMATS = (
    ('wav', 'PCM_16'),
    ('wav', 'FLOAT'),
    ('flac', 'PCM_16'),
    ('ogg', 'VORBIS'),
    ('mp3', 'MPEG_LAYER_III'),
    ('aiff', 'PCM_24'),
    ('au', 'PCM_16'),
    ('caf', 'PCM_16'),
    ('w64', 'PCM_16'),
)


def sounds(folder: Path, cases: Path) -> list[Path]:
    '''Sound files of every format, and the small inputs that failed once.'''
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    paths = []
    for number, (suffix, subtype) in enumerate(FORMATS):
        path = folder / f'{number}.{suffix}'
        wave = 0.1 * rng.standard_normal((6000, 1 + number % 2))
        soundfile.write(path, wave, 16000, subtype=subtype, format=suffix.upper())
        paths.append(path)
    for path in sorted(cases.glob('*.*')):
        if path.suffix != '.md' and path.stat().st_size < 300_000:
            paths.append(path)
    return paths


def mutate(content: bytes, rng: random.Random) -> bytes:
    '''Damage a file: flip, overwrite, cut, repeat, insert or swap bytes; half of the time in its first 64.'''
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        end = min(64, len(data)) if rng.random() < 0.5 else len(data)
        at = rng.randrange(end)
        length = min(len(data) - at, rng.choice((1, 2, 4, 8, 200, 3000)))
        deed = rng.randrange(6)
        if deed == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif deed == 1:
            data[at : at + length] = rng.randbytes(length)
        elif deed == 2:
            del data[at:]
        elif deed == 3:
            data[at:at] = data[at : at + length]
        elif deed == 4:
            data[at : at + length] = rng.choice((b'\0', b'\xff', b'\x7f')) * length
        else:
            del data[at : at + length]
    return bytes(data)


def mutated_files(folder: Path, cases: Path, tries: int, batch: int = 250) -> Fault:
    '''Decode mutated files: each gives a finite sound or a reason, without a crash or a hang.'''
    fault = Fault('mutated sound files')
    bases = [(path.suffix, path.read_bytes()) for path in sounds(folder / 'sounds', cases)]
    slowest = folder / 'slowest'
    slowest.write_text('0')

    def work(seeds: range) -> None:
        '''Decode some files in a child, which says before each one which it is.'''
        longest = float(slowest.read_text())
        for seed in seeds:
            rng = random.Random(seed)
            suffix, content = rng.choice(bases)
            path = folder / f'mutated{suffix}'
            path.write_bytes(mutate(content, rng))
            print(f'seed {seed}', flush=True)
            began = time.perf_counter()
            header_duration_s(path)
            sound = decode_file(path)
            longest = max(longest, time.perf_counter() - began)
            if isinstance(sound, Sound) and not (np.isfinite(sound.wave).all() and len(sound.wave)):
                raise ValueError('no finite sound')
        slowest.write_text(str(longest))

    seed = 0
    while seed < tries:
        seeds = range(seed, min(tries, seed + batch))
        child = run_forked(functools.partial(work, seeds), kill_after_s=120.0)
        reached = max([int(line[5:]) for line in child.output.splitlines() if line.startswith('seed ')], default=seed)
        done = reached + 1 - seed if child.code else len(seeds)
        fault.tried += done
        if child.code:
            fault.broken.append(f'seed {reached}: code {child.code}: {child.output[-300:]}')
        seed += done
    fault.details = f'the slowest took {float(slowest.read_text()):.2f} s'
    return fault


def hostile_values(rng: random.Random) -> Any:
    '''A value that no setting wants.'''
    return rng.choice(
        (
            2**30,
            2**62,
            -1,
            0,
            1e308,
            -1e308,
            math.inf,
            math.nan,
            10**400,
            True,
            None,
            '',
            'x' * 10**6,
            '../../etc/passwd',
            [],
            [1] * 10**6,
            {},
            {'a': {'b': [None]}},
            [[[]]],
            '\0',
            'nan',
            [2**30],
            {'family': 'timm'},
            1e-320,
        )
    )


def set_at_random(card: Any, rng: random.Random) -> Any:
    '''Replace a value somewhere in nested settings.'''
    names = list(card)
    name = rng.choice(names)
    if isinstance(card[name], dict) and card[name] and rng.random() < 0.8:
        set_at_random(card[name], rng)
    else:
        card[name] = hostile_values(rng)
    return card


def hostile_contents(good: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    '''Contents of hostile checkpoints, without end: first those of a list, then random ones.'''
    card = json.loads(good['card'])

    def with_card(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        text = json.dumps(change(copy.deepcopy(card)))
        return {**good, 'card': text, 'digest': content_digest(text, good['tensors'])}

    first = next(iter(good['tensors']))
    weight = good['tensors'][first]
    listed = {
        'n_fft 2^30': with_card(lambda c: {**c, 'frontend': {**c['frontend'], 'n_fft': 2**30}}),
        'a million classes': with_card(lambda c: {**c, 'classes': [str(i) for i in range(10**6)], 'prevalences': []}),
        'width 2^20': with_card(lambda c: {**c, 'network': {**c['network'], 'width': 2**20}}),
        'blocks 10^6': with_card(lambda c: {**c, 'network': {**c['network'], 'blocks': 10**6}}),
        'min_frames 2^40': with_card(lambda c: {**c, 'min_frames': 2**40}),
        'window of a year': with_card(lambda c: {**c, 'inference': {**c['inference'], 'window_s': 3e7}}),
        'deep JSON': {**good, 'card': '[' * 10**5},
        'a card of 100 MB': {**good, 'card': json.dumps({'classes': ['x' * 10**8]})},
        'a card of numbers': {**good, 'card': 7},
        'tensors of text': {**good, 'tensors': {first: 'text'}},
        'an expanded tensor': {
            **good,
            'tensors': {**good['tensors'], first: weight.flatten()[:1].expand(50_000, 50_000)},
        },
        'a sparse tensor': {**good, 'tensors': {**good['tensors'], first: torch.eye(100).to_sparse()}},
        'a meta tensor': {**good, 'tensors': {**good['tensors'], first: torch.empty(10**6, 10**5, device='meta')}},
        'a list of tensors': {**good, 'tensors': list(good['tensors'].values())},
        'format of text': {**good, 'format': '3'},
        'format as a tensor': {**good, 'format': torch.ones(3)},
        'members that are none': {'format': FORMAT, 'card': good['card'], 'members': 7, 'networks': None},
        'NaN in all weights': {**good, 'digest': ''},
        'another family': with_card(lambda c: {**c, 'network': {'family': 'timm', 'name': 'vit_giant_patch14_224'}}),
        'a file as weights': with_card(lambda c: {**c, 'network': {'family': 'timm', 'weights': '/etc/passwd'}}),
    }
    yield from listed.items()
    while True:
        seed = rng.randrange(10**9)
        yield f'random {seed}', with_card(functools.partial(set_at_random, rng=random.Random(seed)))


def write_bomb(path: Path, checkpoint: Path) -> None:
    '''A checkpoint whose archive holds a gigabyte of zeros in a megabyte.'''
    with zipfile.ZipFile(checkpoint) as source, zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as bomb:
        for item in source.infolist():
            bomb.writestr(item.filename, source.read(item))
        with bomb.open('archive/data/bomb', 'w', force_zip64=True) as entry:
            for _ in range(1000):
                entry.write(bytes(10**6))


def hostile_checkpoints(folder: Path, tries: int, limit_s: float) -> Fault:
    '''Submit with a hostile checkpoint: refused in a line, in time and within 200 MB, or predicted if harmless.'''
    room = make_room(folder / 'room')
    checkpoint = room / 'run' / 'fold_0.pt'
    fault = Fault('hostile checkpoints')
    rng = random.Random(2)
    contents = hostile_contents(torch.load(checkpoint, weights_only=True), rng)
    worst_s = worst_mb = 0.0
    refused = 0
    for number in range(tries):
        path = folder / 'hostile.pt'
        if number == 0:
            name = 'a bomb'
            write_bomb(path, checkpoint)
        else:
            name, content = next(contents)
            torch.save(content, path)
        out = folder / 'hostile.csv'
        shutil.rmtree(folder / 'hostile.csv.state', ignore_errors=True)
        words = [
            'submit',
            '--checkpoints',
            str(path),
            '--audio',
            str(room / 'none'),
            '--out',
            str(out),
            '--no-progress',
        ]
        (room / 'none').mkdir(exist_ok=True)
        words += ['--template', str(room / 'sample_submission.csv')]
        child = run_verb(words, kill_after_s=60.0)
        worst_s, worst_mb = max(worst_s, child.seconds), max(worst_mb, child.grown_mb)
        refused += child.is_refusal
        held = (child.is_refusal or child.code == 0) and child.seconds < limit_s and child.grown_mb < 200
        fault.check(
            held, f'{name}: code {child.code}, {child.seconds:.1f} s, {child.grown_mb:.0f} MB: {child.output[-300:]}'
        )
    fault.details = f'{refused} refused, the others harmless; at most {worst_s:.2f} s and {worst_mb:.0f} MB'
    return fault


def flipped_checkpoints(folder: Path, tries: int) -> Fault:
    '''Load checkpoints with one flipped bit: each is refused.'''
    content = (make_room(folder / 'room') / 'run' / 'fold_0.pt').read_bytes()
    fault = Fault('checkpoints with a flipped bit')
    rng = random.Random(3)
    for _ in range(tries):
        flipped = bytearray(content)
        at = rng.randrange(len(flipped))
        flipped[at] ^= 1 << rng.randrange(8)
        path = folder / 'flipped.pt'
        path.write_bytes(flipped)
        try:
            load_tagger(path)
            fault.check(False, f'the bit at byte {at} was not noticed')
        except KitError:
            fault.check(True, '')
    return fault


def table_texts(names: list[str], label: str) -> dict[str, str | bytes]:
    '''Odd clip tables of some files; `label` is a class that one of them has.'''

    def rows(*cells: str) -> str:
        '''A row per file; the cells take turns, and {n}, {i} in them are the file's name and number.'''
        lines = [f'{name},{cells[i % len(cells)]}' for i, name in enumerate(names)]
        return ''.join(line.replace('{i}', str(i)) + '\n' for i, line in enumerate(lines))

    head = 'fname,labels\n'
    times = 'fname,labels,begin_s,end_s\n'
    good = head + rows('a', 'b')
    return {
        'empty file': '',
        'header only': head,
        'no header': rows('a', 'b'),
        'other columns': 'a,b\n1,2\n',
        'a row too short': good + 'x\n',
        'a row too long': good + 'x,y,z,w\n',
        'UTF-16': good.encode('utf-16'),
        'latin-1': 'fname,labels\nü.wav,ä\n'.encode('latin-1'),
        'NUL bytes': head + 'a\0b.wav,x\n',
        'a quote that never ends': head + '"a.wav,x\n' + rows('a', 'b'),
        'CRLF': good.replace('\n', '\r\n'),
        'CR alone': good.replace('\n', '\r'),
        'BOM': '\ufeff' + good,
        'blank lines': head + '\n\n' + rows('a', 'b') + '\n\n',
        'spaces in the header': ' fname , labels \n' + rows('a', 'b'),
        'a clip twice': good + f'{names[0]},a\n',
        'semicolons': good.replace(',', ';'),
        'tabs': good.replace(',', '\t'),
        'labels joined by ;': head + rows(f'{label};x', label),
        'labels joined by |': head + rows('a', 'a|b'),
        'lists of labels': head + rows("\"['a','b']\"", '"[\'c\']"'),
        'no labels at all': head + rows(''),
        'one class': head + rows('a'),
        'all classes': head + rows('"a,b"'),
        'a class per clip': head + rows('c{i}'),
        'a class named fold': head + rows('fold'),
        'missing files': head + ''.join(f'missing_{i}.wav,{"ab"[i % 2]}\n' for i in range(20)),
        'folders in names': head + ''.join(f'../train/{name},{"ab"[i % 2]}\n' for i, name in enumerate(names)),
        'times that are words': times + rows('a,zero,one'),
        'times reversed': times + rows('a,2,1'),
        'times in milliseconds': times + rows('a,{i}500,{i}900', 'b,{i}500,{i}900'),
        'weights of NaN': 'fname,labels,weight\n' + rows('a,nan'),
        'folds of text': 'fname,labels,fold\n' + rows('a,x'),
        'one fold': 'fname,labels,fold\n' + rows('a,0', 'b,0'),
        'a huge cell': head + f'{names[0]},{"x" * 200_000}\n',
        'a comma in a class': head + rows('"""Speech, male"",b"', 'c'),
        'true and false': 'fname,labels,false_labels\n' + rows('a,a'),
    }


def template_texts(names: list[str], classes: list[str]) -> dict[str, str | bytes]:
    '''Odd templates for some files.'''
    zeros = ','.join(['0'] * len(classes))
    head = ','.join(['fname', *classes]) + '\n'

    def rows(*patterns: str, cells: str = zeros) -> str:
        '''A row per file and pattern, in which {n} is the file's name and {s} the same without its extension.'''
        ids = []
        for name in names:
            stem = name.rpartition('.')[0]
            ids += [pattern.replace('{n}', name).replace('{s}', stem) for pattern in patterns]
        return ''.join(f'{name},{cells}\n' for name in ids)

    return {
        'empty': '',
        'header alone': head,
        'ids alone': 'fname\n' + '\n'.join(names) + '\n',
        'a class too many': head.replace('\n', ',zebra\n') + rows('{n}', cells=zeros + ',0'),
        'a class too few': head.rpartition(',')[0] + '\n' + rows('{n}', cells=zeros[:-2]),
        'a class twice': head.replace('\n', f',{classes[0]}\n') + rows('{n}', cells=zeros + ',0'),
        'ids twice': head + rows('{n}', '{n}'),
        'ids as numbers': head + ''.join(f'{i:06d},{zeros}\n' for i in range(9)),
        'an empty id': f'{head},{zeros}\n',
        'CRLF': (head + rows('{n}')).replace('\n', '\r\n'),
        'windows': head + rows('{s}_1', '{s}_2'),
        'windows and whole files': head + rows('{s}_1', '{s}'),
        'beginnings of windows': head + rows('{s}_0', '{s}_1'),
        'windows after the end': head + rows('{s}_1', '{s}_9000'),
        'windows before the beginning': head + rows('{s}_-5'),
        'other files': head + ''.join(f'other_{i}.wav,{zeros}\n' for i in range(5)),
        'upper case': head + rows('{n}').upper(),
        'CR in an id': f'{head}"a\rb",{zeros}\n',
        'LF in an id': f'{head}"a\nb",{zeros}\n',
        'quotes in an id': f'{head}"a""b",{zeros}\n',
        'UTF-16': (head + rows('{n}')).encode('utf-16'),
        'bytes that are no UTF-8': head.encode() + b'\xff\xfe\xe9.wav,' + zeros.encode() + b'\n',
        'blanks in names': head + rows(' {n} '),
        'backslashes': head + rows('test\\{n}'),
        'a row too short': head + rows('{n}') + 'x\n',
    }


def odd_tables(folder: Path) -> Fault:
    '''Train with odd tables and submit with odd templates: a line of error, or the work is done.'''
    room = make_room(folder / 'room')
    fault = Fault('odd tables and templates')
    with open(room / 'train.csv', encoding='utf-8', newline='') as handle:
        clips = list(csv.DictReader(handle))
    tables = table_texts([clip['fname'] for clip in clips], clips[0]['labels'])
    templates = template_texts(sorted(path.name for path in (room / 'test').iterdir()), classes_of(room))
    path = folder / 'odd.csv'
    common = ['--no-progress', '--device', 'cpu']
    train = ['train', '--recipe', 'max-pyramid-mel', '--small', '--table', str(path), '--audio', str(room / 'train')]
    train += ['--out', str(folder / 'odd_run'), *common, '--set', *TINY, 'epochs=2', 'no_augment_epochs=0']
    for name, text in tables.items():
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        shutil.rmtree(folder / 'odd_run', ignore_errors=True)
        child = run_verb(train, kill_after_s=120.0)
        held = child.is_refusal or child.code == 0
        fault.check(held, f'table: {name}: code {child.code}: {child.output[-400:]}')
    submit = ['submit', '--checkpoints', str(room / 'run' / 'fold_*.pt'), '--audio', str(room / 'test'), *common]
    for name, text in templates.items():
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        place = folder / 'odd_out'
        shutil.rmtree(place, ignore_errors=True)
        out = place / 'out.csv'
        child = run_verb([*submit, '--out', str(out), '--template', str(path)], kill_after_s=120.0)
        held = child.is_refusal or (child.code == 0 and same_ids(path, out))
        fault.check(held, f'template: {name}: code {child.code}: {child.output[-400:]}')
    fault.details = f'{len(tables)} tables, {len(templates)} templates'
    return fault


def same_ids(template: Path, out: Path) -> bool:
    '''Whether a submission has the ids and the header of its template, byte for byte as CSV reads them.'''
    tables = []
    for path in (template, out):
        text = path.read_bytes().decode('utf-8-sig', 'surrogateescape')
        tables.append(list(csv.reader(text.splitlines(keepends=True))))
    ids = [[row[0] for row in table if row] for table in tables]
    return ids[0] == ids[1] and tables[0][0] == tables[1][0] and os.path.getsize(out) > 0
