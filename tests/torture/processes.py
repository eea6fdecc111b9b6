'''Kills, deadlines on a loaded machine, files that end the process, two writers, full disks, poor environments.'''

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from build_single_file import build
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import build_tagger
from tests.torture.room import TINY, Fault, classes_of, make_room, run_forked, run_verb, torn_files

ROOT = Path(__file__).resolve().parents[2]
# A module that Python loads by itself when it starts. It breaks what the name of a file or the environment says.
SITE = '''
import os, signal
def poison():
    import soundfile
    read = soundfile.SoundFile
    class Poison(read):
        def __init__(self, file, *args, **options):
            if "poison_" in str(file) and os.environ.get("AUDIOTAG_KIT_WORKER"):
                signal.raise_signal(signal.SIGSEGV)
            super().__init__(file, *args, **options)
    soundfile.SoundFile = Poison
poison()
'''
SCRIPT = '''
from audiotag_kit import submit
print(submit({checkpoints!r}, {audio!r}, {out!r}, template={template!r}, deadline={deadline!r}, progress=False))
'''


def digest_tree(folder: Path) -> dict[str, str]:
    '''The content of every result below a folder, times and measured costs left out.'''
    from kit.core.files import bytes_digest
    from kit.models.checkpoint import content_digest, read_content

    digests = {}
    for path in sorted(folder.rglob('*')):
        relative = str(path.relative_to(folder))
        if not path.is_file() or 'state' in relative or path.suffix == '.part' or path.name == 'submission.json':
            continue
        if path.suffix == '.pt':
            digests[relative] = content_digest('', read_content(path)['tensors'])
        elif path.name == 'history.csv':
            lines = path.read_text('utf-8').splitlines()
            digests[relative] = '\n'.join(line.rpartition(',')[0] for line in lines)
        else:
            digests[relative] = bytes_digest(path.read_bytes())
    return digests


def new_place(folder: Path, run: Path) -> Path:
    '''An empty folder but for a copy of the run.'''
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder / 'run')
    return folder


def kills(folder: Path, tries: int) -> Fault:
    '''Kill verbs at random instants: every file is whole, and the same command comes to the same bytes.'''
    room = make_room(folder / 'room')
    fault = Fault('kills of train, oof, relabel and submit')
    run = room / 'run'
    common = ['--device', 'cpu', '--no-progress']
    train = ['train', '--recipe', 'max-pyramid-mel', '--table', str(room / 'train.csv'), '--audio', str(room / 'train')]
    verbs = {
        'train': [*train, '--out', 'out', *common, '--set', *TINY],
        'submit': [
            'submit',
            '--checkpoints',
            str(run / 'fold_*.pt'),
            '--audio',
            str(room / 'test'),
            '--template',
            str(room / 'sample_submission.csv'),
            '--out',
            'out/submission.csv',
            *common,
        ],
        'oof': ['oof', '--run', 'run', '--audio', str(room / 'train'), *common],
        'relabel': [
            'relabel',
            '--run',
            str(run),
            '--table',
            str(run / 'folds.csv'),
            '--audio',
            str(room / 'train'),
            '--method',
            'agreement',
            '--out',
            'out',
            *common,
        ],
    }
    wanted: dict[str, dict[str, str]] = {}
    seconds: dict[str, float] = {}
    for verb, words in list(verbs.items()):
        place = new_place(folder / f'calm_{verb}', run)
        child = run_verb(words, folder=place)
        if child.code:
            verbs.pop(verb)
            fault.check(False, f'{verb} without a kill: {child.output[-400:]}')
            continue
        wanted[verb], seconds[verb] = digest_tree(place), child.seconds
    rng = random.Random(4)
    chain = 0
    while fault.tried < tries:
        verb = list(verbs)[chain % len(verbs)]
        chain += 1
        place = new_place(folder / 'killed', run)
        for _ in range(4):
            child = run_verb(verbs[verb], kill_after_s=rng.uniform(0, 0.8 * seconds[verb]), folder=place)
            torn = torn_files(place)
            fault.check(
                not torn and child.code in (-9, 0), f'{verb}: code {child.code}, torn: {torn[:3]} {child.output[-300:]}'
            )
        child = run_verb(verbs[verb], folder=place)
        found = digest_tree(place)
        if child.code or found != wanted[verb]:
            names = [name for name in wanted[verb] if found.get(name) != wanted[verb][name]]
            fault.broken.append(
                f'{verb} after kills: code {child.code}, other bytes in {names[:3]}: {child.output[-300:]}'
            )
    fault.details = f'{chain} times the same command came to the same bytes'
    return fault


def make_long_job(folder: Path, clips: int = 400) -> tuple[Path, Path]:
    '''More clips than a deadline has time for, and a folder with only the single file.'''
    import soundfile

    audio = folder / 'many'
    rng = np.random.default_rng(6)
    if not audio.is_dir():
        audio.mkdir(parents=True)
        for i in range(clips):
            soundfile.write(audio / f'{i:04d}.wav', 0.1 * rng.standard_normal(8000 * (4 + i % 9)), 8000)
    alone = folder / 'alone'
    (alone / 'site').mkdir(parents=True, exist_ok=True)
    (alone / 'audiotag_kit.py').write_text(build(ROOT), encoding='utf-8')
    (alone / 'site' / 'sitecustomize.py').write_text(SITE)
    return audio, alone


def write_many_template(path: Path, audio: Path, classes: Sequence[str]) -> None:
    '''A template of all files of a folder.'''
    zeros = ','.join(['0'] * len(classes))
    names = sorted(file.name for file in audio.iterdir())
    path.write_text(''.join([','.join(['fname', *classes]) + '\n', *(f'{name},{zeros}\n' for name in names)]))


@contextmanager
def load(processes: int) -> Iterator[None]:
    '''Keep so many cores busy.'''
    busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def write_heavy_models(folder: Path, checkpoint: Path) -> Path:
    '''Three untrained models that no deadline here has time for.'''
    card = load_tagger(checkpoint).card
    for seed in range(3):
        torch.manual_seed(seed)
        network = {**card.network, 'width': 96, 'blocks': 4}
        save_tagger(folder / f'heavy_{seed}.pt', build_tagger(replace(card, network=network)))
    return folder


def deadlines(folder: Path, tries: int, abreast: int = 2) -> Fault:
    '''Submit as a script on a loaded machine: the process has ended, with code 0 and a whole CSV, by its deadline.'''
    room = make_room(folder / 'room')
    audio, alone = make_long_job(folder)
    template = folder / 'many.csv'
    write_many_template(template, audio, classes_of(room))
    fault = Fault('deadlines of scripts, every core busy twice')
    rng = random.Random(7)
    unused: list[float] = []
    pattern = str(write_heavy_models(folder, room / 'run' / 'fold_0.pt') / 'heavy_*.pt')
    with load(2 * (os.cpu_count() or 2) - abreast):
        started: list[tuple[subprocess.Popen[str], float, float, Path]] = []
        for number in range(tries):
            seconds = float(rng.randrange(25, 45))
            out = folder / f'late_{number}.csv'
            shutil.rmtree(folder / f'late_{number}.csv.state', ignore_errors=True)
            command = [
                sys.executable,
                'audiotag_kit.py',
                'submit',
                '--checkpoints',
                pattern,
                '--audio',
                str(audio),
                '--template',
                str(template),
                '--out',
                str(out),
                '--deadline',
                f'{seconds}s',
                '--no-progress',
            ]
            if number % 2:
                script = alone / f'script_{number}.py'
                script.write_text(
                    SCRIPT.format(
                        checkpoints=pattern,
                        audio=str(audio),
                        out=str(out),
                        template=str(template),
                        deadline=f'{seconds}s',
                    )
                )
                command = [sys.executable, script.name]
            began = time.time()
            process = subprocess.Popen(command, cwd=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            started.append((process, began, seconds, out))
            if len(started) == abreast or number == tries - 1:
                for process, began, seconds, out in started:
                    late = True
                    try:
                        output, _ = process.communicate(timeout=max(0.1, began + seconds - time.time()))
                        late = False
                        unused.append((seconds - (time.time() - began)) / seconds)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        output, _ = process.communicate()
                    rows = out.read_text().count('\n') if out.is_file() else 0
                    held = not late and process.returncode == 0 and rows == len(list(audio.iterdir())) + 1
                    fault.check(
                        held, f'{seconds} s: late {late}, code {process.returncode}, {rows} rows: {output[-300:]}'
                    )
                started = []
    if unused:
        fault.details = f'{100 * float(np.median(unused)):.0f} % of the time unused (median)'
    return fault


def poison_files(folder: Path, tries: int) -> Fault:
    '''Submit with files that end the process: all rows but theirs are predicted, by all models.'''
    room = make_room(folder / 'room')
    audio, alone = make_long_job(folder)
    poisoned = folder / 'poisoned'
    shutil.rmtree(poisoned, ignore_errors=True)
    poisoned.mkdir()
    files = sorted(audio.iterdir())[:161]
    step = len(files) // tries
    for i, path in enumerate(files):
        is_poison = i % step == 0 and i // step < tries
        os.link(path, poisoned / (f'poison_{i}.wav' if is_poison else path.name))
    template, out = folder / 'poisoned.csv', folder / 'poison_out.csv'
    write_many_template(template, poisoned, classes_of(room))
    shutil.rmtree(folder / 'poison_out.csv.state', ignore_errors=True)
    began = time.time()
    done = subprocess.run(
        [
            sys.executable,
            str(alone / 'audiotag_kit.py'),
            'submit',
            '--checkpoints',
            str(room / 'run' / 'fold_*.pt'),
            '--audio',
            str(poisoned),
            '--template',
            str(template),
            '--out',
            str(out),
            '--deadline',
            '200s',
            '--no-progress',
        ],
        env={**os.environ, 'PYTHONPATH': str(alone / 'site')},
        capture_output=True,
        text=True,
        check=False,
    )
    fault = Fault('files that end the process, among 161')
    report = json.loads(out.with_suffix('.json').read_bytes())
    failed = report.get('files_failed', {})
    for path in sorted(poisoned.glob('poison*')):
        fault.check(path.name in failed, f'{path.name} is not named')
    held = done.returncode == 0 and report.get('rows_all_models') == len(files) - tries
    fault.check(held, f'code {done.returncode}, {report.get("rows_all_models")} rows predicted: {done.stdout[-600:]}')
    fault.details = f'{report.get("rows_all_models")} of {len(files)} rows predicted in {time.time() - began:.0f} s'
    return fault


def two_writers(folder: Path) -> Fault:
    '''Start a second process on the same output: it ends with a line that names the first, which is not disturbed.'''
    room = make_room(folder / 'room')
    audio, alone = make_long_job(folder)
    fault = Fault('a second process on the same output')
    verbs = {
        'submit': [
            'submit',
            '--checkpoints',
            str(room / 'run' / 'fold_*.pt'),
            '--audio',
            str(audio),
            '--out',
            'two.csv',
        ],
        'train': [
            'train',
            '--recipe',
            'max-pyramid-mel',
            '--table',
            str(room / 'train.csv'),
            '--audio',
            str(room / 'train'),
            '--out',
            'two_run',
            '--set',
            *TINY,
            'epochs=40',
        ],
    }
    for words in verbs.values():
        command = [sys.executable, 'audiotag_kit.py', *words, '--no-progress', '--device', 'cpu']
        shutil.rmtree(alone / 'two_run', ignore_errors=True)
        first = subprocess.Popen(command, cwd=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        locks = [alone / 'two.csv.state' / 'lock', alone / 'two_run' / 'state' / 'lock']
        while first.poll() is None and not any(lock.is_file() for lock in locks):
            time.sleep(0.05)
        second = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False)
        was_running = first.poll() is None
        output, _ = first.communicate()
        held = not was_running or (second.returncode == 2 and 'writes to' in second.stderr)
        fault.check(
            held and first.returncode == 0, f'{words[0]}: {second.returncode} {second.stderr[-300:]} {output[-300:]}'
        )
        for lock in locks:
            lock.unlink(missing_ok=True)
    return fault


def full_disks(folder: Path) -> Fault:
    '''Submit and train where the disk, or the folder of temporary files, is full.'''
    room = make_room(folder / 'room')
    audio, _ = make_long_job(folder)
    fault = Fault('full disks')
    mount = folder / 'small'
    mount.mkdir(exist_ok=True)
    checkpoints = ['--checkpoints', str(room / 'run' / 'fold_*.pt'), '--no-progress', '--device', 'cpu']
    wanted = folder / 'plenty.csv'
    run_verb(['submit', *checkpoints, '--audio', str(audio), '--out', str(wanted)])
    csv_kb = wanted.stat().st_size // 1024
    for spare_kb in (0, csv_kb + 8, 2 * csv_kb + 24, 2 * csv_kb + 60):
        if subprocess.run(
            ['mount', '-t', 'tmpfs', '-o', f'size={spare_kb + 4}k', 'tmpfs', str(mount)], check=False
        ).returncode:
            fault.details = 'no right to mount a small disk here'
            return fault
        try:
            out = mount / 'out.csv'
            child = run_verb(['submit', *checkpoints, '--audio', str(audio), '--out', str(out)])
            if spare_kb < 2 * csv_kb:
                held = child.is_refusal
            else:
                held = child.code == 0 and out.read_bytes() == wanted.read_bytes()
            fault.check(held, f'{spare_kb} kB: code {child.code}: {child.output[-400:]}')
        finally:
            subprocess.run(['umount', '-l', str(mount)], check=False)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=4k', 'tmpfs', str(mount)], check=False)
    try:

        def with_full_tmp() -> int:
            import tempfile

            from kit.cli import run_command
            from kit.commands import COMMANDS
            from kit.infer import loader

            (mount / 'fill').write_bytes(bytes(4096))
            tempfile.tempdir = str(mount)
            loader.free_memory_bytes = lambda: 0  # every spectrogram goes to the disk
            return run_command(
                COMMANDS, ['submit', *checkpoints, '--audio', str(audio), '--out', str(folder / 'tmp_full.csv')]
            )

        shutil.rmtree(folder / 'tmp_full.csv.state', ignore_errors=True)
        child = run_forked(with_full_tmp)
        report = json.loads((folder / 'tmp_full.json').read_bytes())
        held = child.code == 0 and report['rows_all_models'] == report['rows']
        fault.check(held, f'full folder of temporary files: {child.code}: {child.output[-400:]}')
    finally:
        subprocess.run(['umount', '-l', str(mount)], check=False)
    return fault


def environments(folder: Path) -> Fault:
    '''Submit in poor environments: the work is done, or a line names what is missing and its cure.'''
    room = make_room(folder / 'room')
    _, alone = make_long_job(folder)
    fault = Fault('poor environments')
    broken = folder / 'broken'
    missing = {name: folder / f'no_{name}' for name in ('soundfile', 'torchcodec', 'timm', 'matplotlib', 'pandas')}
    for name, place in missing.items():
        (place / name).mkdir(parents=True, exist_ok=True)
        (place / name / '__init__.py').write_text("raise ImportError('it is broken here')\n")
    broken.mkdir(exist_ok=True)
    read_only = folder / 'read_only'
    read_only.mkdir(exist_ok=True)
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', str(read_only)], check=False).returncode == 0
    base = ['submit', '--checkpoints', str(room / 'run' / 'fold_*.pt'), '--audio', str(room / 'test'), '--no-progress']
    tries: dict[str, tuple[dict[str, str], list[str], list[str], Callable[[int, str], bool]]] = {}

    def fine(code: int, output: str) -> bool:
        return code == 0 and 'Traceback' not in output

    def refused(code: int, output: str) -> bool:
        return code == 2 and 'Traceback' not in output

    for name, place in missing.items():
        wanted = refused if name == 'soundfile' else fine  # nothing else reads WAV
        tries[f'broken {name}'] = ({'PYTHONPATH': str(place)}, [], ['--out', f'{name}.csv'], wanted)
    tries['LANG=C'] = ({'LANG': 'C', 'LC_ALL': 'C', 'PYTHONUTF8': '0'}, [], ['--out', 'ü.csv'], fine)
    tries['one core'] = ({}, ['taskset', '-c', '0'], ['--out', 'core.csv'], fine)
    tries['no home'] = ({'HOME': '/nonexistent'}, [], ['--out', 'home.csv'], fine)
    tries['no stdin'] = ({}, ['sh', '-c', 'exec "$@" <&-', 'sh'], ['--out', 'stdin.csv', '--deadline', '100s'], fine)
    tries['closed output'] = ({}, ['sh', '-c', '"$@" | head -c 1', 'sh'], ['--out', 'pipe.csv'], fine)
    tries['PYTHONOPTIMIZE'] = ({'PYTHONOPTIMIZE': '2'}, [], ['--out', 'opt.csv'], refused)
    if mounted:
        tries['a read-only folder'] = ({}, [], ['--out', str(read_only / 'x.csv')], refused)
        tries['a read-only folder, with a deadline'] = (
            {},
            [],
            ['--out', str(read_only / 'x.csv'), '--deadline', '60s'],
            refused,
        )
    try:
        for name, (environment, before, words, holds) in tries.items():
            done = subprocess.run(
                [*before, sys.executable, 'audiotag_kit.py', *base, *words],
                cwd=alone,
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                check=False,
            )
            fault.check(holds(done.returncode, done.stdout), f'{name}: code {done.returncode}: {done.stdout[-400:]}')
    finally:
        if mounted:
            subprocess.run(['umount', '-l', str(read_only)], check=False)
    return fault


def orphans(folder: Path, tries: int, limit_s: float) -> Fault:
    '''Kill the parent of a submission: its worker ends in time.'''
    room = make_room(folder / 'room')
    audio, alone = make_long_job(folder)
    fault = Fault('workers whose parent was killed')
    rng = random.Random(8)
    for number in range(tries):
        out = folder / f'orphan_{number}.csv'
        parent = subprocess.Popen(
            [
                sys.executable,
                'audiotag_kit.py',
                'submit',
                '--checkpoints',
                str(room / 'run' / 'fold_*.pt'),
                '--audio',
                str(audio),
                '--out',
                str(out),
                '--deadline',
                '300s',
                '--no-progress',
            ],
            cwd=alone,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        children: list[int] = []
        while parent.poll() is None and not children:
            listed = Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
            children = [int(pid) for pid in listed]
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        parent.kill()
        parent.wait()
        limit = time.time() + limit_s
        while time.time() < limit and any(Path(f'/proc/{pid}').is_dir() for pid in children):
            time.sleep(0.02)
        left = [
            pid
            for pid in children
            if Path(f'/proc/{pid}/status').is_file() and 'Z (' not in Path(f'/proc/{pid}/status').read_text()
        ]
        fault.check(bool(children) and not left, f'try {number}: children {children}, left {left}')
    return fault
