'''The command line: every wrong input is one line with the cure and exit code 2, never a traceback.'''

import functools
import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kit.cli import run_command
from kit.commands import COMMANDS
from kit.core.runtime import WORKER_MARK
from kit.core.worker import ERROR_MARK
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import FAMILIES
from kit.models.tagger import Tagger
from kit.train.recipes import RECIPES
from tests.behaviour.trained import Trained, loud_tagger, read_scores, write_template

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    '''Run a command line in this process and return its exit code, stdout and stderr.'''

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_command(COMMANDS, [str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_lists_are_written_in_one_word_in_many_or_option_by_option(
    command_line: CommandLine, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    common = ['--audio', clips, '--blend=geometric', '--no-progress']
    pattern = Path(trained.mel[0]).parent / 'fold_*.pt'
    short = ['--checkpoints', pattern, trained.stft, '--weights', '1,2,0.5', '--out', tmp_path / 'a.csv']
    code, _, err = command_line('submit', *common, *short)
    assert (code, err) == (0, '')
    long = [f'--checkpoints={trained.mel[0]}', f'--checkpoints={trained.mel[1]}', '--checkpoints', trained.stft]
    long += ['--weights', '1', '--weights=2', '--weights', '0.5', '--out', str(tmp_path / 'b.csv')]
    assert command_line('submit', *common, *long)[0] == 0
    assert (tmp_path / 'a.csv').read_bytes() == (tmp_path / 'b.csv').read_bytes()


def wrong_inputs(trained: Trained, clips: Path, folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    '''What is changed in a valid command line, and words that the error must hold.'''
    twice = write_template(folder / 'twice.csv', ['a', 'a'], trained.classes)
    (folder / 'junk.pt').write_bytes(b'\x80junk')
    (folder / 'file').write_text('x')
    return {
        'no such checkpoint': ({'--checkpoints': folder / 'x*.pt'}, 'no checkpoint'),
        'junk for a checkpoint': ({'--checkpoints': folder / 'junk.pt'}, 'save_tagger'),
        'no such template': ({'--template': folder / 'none.csv'}, 'cannot read'),
        'an id twice': ({'--template': twice}, "'a'"),
        'a folder below a file': ({'--out': folder / 'file' / 'o.csv'}, 'cannot write'),
        'a folder for a file': ({'--out': folder}, "is a CSV's path"),
        'an unknown blend': ({'--blend': 'avg'}, 'geometric, mean, power, rank'),
        'an unknown mode': ({'--mode': 'whole'}, 'full, windows'),
        'an unknown pool': ({'--pool': 'maximum'}, "did you mean 'max'"),
        'an unknown precision': ({'--precision': 'float8'}, 'bfloat16, float16, float32'),
        'a device that is not there': ({'--device': 'cuda:99'}, 'cannot compute'),
        'no duration': ({'--deadline': 'an hour'}, 'like 55m, 1h30m or 90s'),
        'weights that are words': ({'--weights': 'a,b'}, '--weights'),
        'a number that is a word': ({'--threads': 'many'}, '--threads'),
        'a misspelt option': ({'--treads': '2'}, "did you mean '--threads'"),
        'a value for a switch': ({'--no-progress': 'yes'}, 'yes'),
    }


def test_every_wrong_input_is_one_line_and_exit_code_2(
    command_line: CommandLine, trained: Trained, clips: Path, tmp_path: Path
) -> None:
    valid: dict[str, object] = {
        '--checkpoints': Path(trained.mel[0]).parent / 'fold_*.pt',
        '--audio': clips,
        '--out': tmp_path / 'out.csv',
    }
    for case, (changes, message) in wrong_inputs(trained, clips, tmp_path).items():
        words = [word for pair in (valid | changes).items() for word in pair]
        code, _, err = command_line('submit', '--no-progress', *words)
        assert code == 2, case
        assert err.startswith('audiotag-kit: ') and err.count('\n') == 1, (case, err)
        assert message in err and 'Traceback' not in err, (case, err)


@pytest.mark.parametrize(
    'words, message',
    [
        (['sumbit'], "did you mean 'submit'"),
        (['submit', '--audio', 'x'], '--checkpoints'),
        (['recipes', 'max-piramid-mel'], "did you mean 'max-pyramid-mel'"),
        (['train', '--recipe=x', '--table=x', '--audio=x', '--out=x'], 'max-pyramid-mel'),
        (['train', '--recipe=axis-pool', '--audio=x', '--out=x', '--set', 'n_mels=3'], 'did you mean frontend.n_mels'),
    ],
)
def test_wrong_names_and_missing_options_get_the_right_ones(
    command_line: CommandLine, words: list[str], message: str
) -> None:
    code, out, err = command_line(*words)
    assert code == 2 and not out and err.count('\n') == 1 and message in err


def test_the_overview_lists_every_command_once_under_its_heading(command_line: CommandLine) -> None:
    _, out, _ = command_line()
    assert command_line('--help') == command_line('-h') == command_line('help') == (0, out, '')
    headings = re.findall(r'^(\w[\w ]*):$', out, re.MULTILINE)
    assert headings == ['Start here', 'Train', 'Look', 'Submit']
    listed = [(name, summary) for name, summary in re.findall(r'^  (\w+) +(.+)$', out, re.MULTILINE)]
    assert listed == [(name, command.summary) for name, command in COMMANDS.items()]
    assert command_line('--version')[0] == 0


@pytest.mark.parametrize('name', COMMANDS)
def test_the_help_of_a_command_lists_every_documented_option(command_line: CommandLine, name: str) -> None:
    code, out, _ = command_line(name, '--help')
    section = (COMMANDS[name].run.__doc__ or '').partition('Options:\n')[2].partition('\n\n')[0]
    documented = re.findall(r'^ +(\w+): ', section, re.MULTILINE)
    assert code == 0 and 'usage:' in out and documented
    for option in documented:
        if option == 'overrides':
            text = ' '.join(out.split())
            assert '--set KEY=VALUE' in text and '`recipes NAME` prints every setting' in text
        elif option not in ('name', 'runs'):
            assert re.search(rf'--(no-)?{option.replace("_", "-")}\b', out), option


@pytest.mark.parametrize('name', ['train', 'relabel', 'stack'])
def test_set_passes_settings_as_overrides(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[dict[str, object]] = []
    command = COMMANDS[name]

    @functools.wraps(command.run)
    def record(**options: object) -> None:
        calls.append(options)

    monkeypatch.setitem(COMMANDS, name, replace(command, run=record))
    words = {
        'train': ['--recipe=axis-pool', '--audio=clips', '--out=run'],
        'relabel': ['--run=run', '--audio=clips', '--out=labels'],
        'stack': ['one', 'two', '--out=stack'],
    }
    code = run_command(COMMANDS, [name, *words[name], '--set', 'power=2', 'hop_s=1', '--set', 'seed=3'])
    assert code == 0 and calls[0]['overrides'] == ['power=2', 'hop_s=1', 'seed=3']
    assert 'set' not in calls[0]


@pytest.mark.parametrize('name', RECIPES)
def test_recipes_explains_every_setting_of_a_recipe(command_line: CommandLine, name: str) -> None:
    code, out, _ = command_line('recipes', name)
    lines = out.partition('\nstages:')[0].splitlines()[1:]
    assert code == 0 and all(re.fullmatch(r'  [\w.]+ = \S.*?  +\S.*', line) for line in lines)
    meanings = dict(re.findall(r'^  ([\w.]+) = .*?  +(\S.*)$', '\n'.join(lines), re.MULTILINE))
    frontend_help = type(RECIPES[name].frontend).__dataclass_fields__['n_mels'].metadata['help']
    assert meanings['frontend.n_mels'] == frontend_help
    family = FAMILIES[RECIPES[name].network['family']]
    for setting, item in family.__dataclass_fields__.items():
        key = f'network.{setting}'
        assert key not in meanings or meanings[key].startswith(item.metadata['help'])
    assert 'network.head.pool' in meanings and 'windows' in meanings['inference.mode']


def test_doctor_describes_every_checkpoint_and_fails_where_one_cannot_be_used(
    command_line: CommandLine, trained: Trained, tmp_path: Path
) -> None:
    save_tagger(tmp_path / 'own.pt', loud_tagger())
    usable = ['--checkpoints', trained.stft, tmp_path / 'own.pt']
    code, out, err = command_line('doctor', *usable)
    assert (code, err) == (0, '')
    assert f'{trained.stft}: max-pyramid, ' in out and 'own.pt: custom:own, 0.00 M values, 3 classes' in out
    (tmp_path / 'junk.pt').write_bytes(b'\x80junk')
    tagger = load_tagger(trained.stft)
    wider = replace(tagger.card, network=tagger.card.network | {'width': 16})
    save_tagger(tmp_path / 'unfit.pt', Tagger(wider, tagger.network))
    unusable = [tmp_path / 'junk.pt', tmp_path / 'unfit.pt']
    code, out, err = command_line('doctor', *usable, *unusable)
    assert code == 2 and err == 'audiotag-kit: 2 of 4 checkpoints cannot be used; the reasons are above.\n'
    assert 'junk.pt: NOT USABLE: ' in out and 'unfit.pt: NOT USABLE: ' in out
    assert f'{trained.stft}: max-pyramid, ' in out


def test_a_worker_marks_its_error_for_the_supervisor(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKER_MARK, '1')
    code, out, err = command_line('submit', '--checkpoints', 'none.pt', '--audio', '.')
    assert code == 2 and err == '' and out.startswith(ERROR_MARK) and 'no checkpoint' in out


def test_as_a_process_errors_go_to_stderr_with_code_2_and_a_csv_comes_with_code_0(
    kit_command: list[str], trained: Trained, clips: Path, tmp_path: Path
) -> None:
    (tmp_path / 'empty').mkdir()
    template = write_template(tmp_path / 't.csv', ['000316'], trained.classes)
    options = ['--template', str(template), '--checkpoints', trained.mel[0]]

    def submit_folder(audio: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*kit_command, 'submit', *options, '--audio', audio],
            cwd=tmp_path,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    bad = submit_folder('nowhere')
    assert (bad.returncode, bad.stdout) == (2, '') and bad.stderr.count('\n') == 1
    assert not (tmp_path / 'submission.csv').exists()
    good = submit_folder('empty')
    assert good.returncode == 0 and 'NO AUDIO FILES' in good.stdout and 'Traceback' not in good.stderr
    assert list(read_scores(tmp_path / 'submission.csv')[1]) == ['000316']


@pytest.mark.parametrize('deadline', [[], ['--deadline', '100s']])
@pytest.mark.parametrize('shell', ['"$@" | true', '"$@" > /dev/full', '"$@" >&-', '"$@" >&- 2>&- <&-'])
def test_output_that_nobody_can_read_does_not_stop_a_submission(
    kit_command: list[str], trained: Trained, clips: Path, tmp_path: Path, shell: str, deadline: list[str]
) -> None:
    template = write_template(tmp_path / 't.csv', ['clip_00.wav', 'missing'], trained.classes)
    words = ['submit', '--checkpoints', trained.mel[0], '--audio', str(clips), '--template', str(template)]
    command = [*kit_command, *words, '--out', str(tmp_path / 'out.csv'), *deadline]
    subprocess.run(['bash', '-c', f'set -o pipefail; {shell}', 'bash', *command], check=True, cwd=tmp_path)
    report = json.loads((tmp_path / 'out.json').read_bytes())
    assert report['state'] == 'finished' and report['rows_all_models'] == 1
