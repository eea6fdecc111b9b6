'''The command line: read the arguments of a command, call its function, and return an exit code.'''

import argparse
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

from kit.core.config import SETTINGS_HINT
from kit.core.errors import KitError, choose, one_line, suggest
from kit.core.ranks import start_workers
from kit.core.runtime import VERSION, get_rank, in_notebook, in_worker
from kit.core.worker import ERROR_MARK

TITLE = f'audiotag-kit {VERSION}: train audio taggers, ensemble them and submit before the deadline'
HINT = (
    f"{TITLE}. Next: submit('folds/*.pt', 'test/', template='sample_submission.csv', deadline='55m'); "
    'help(submit) explains it.'
)


@dataclass(frozen=True)
class Command:
    '''A command: the function that it calls, one line about it, its group, and related functions for Python.

    The function's parameters become options. Their help texts are the `Options:` of its docstring.
    '''

    run: Callable[..., object]
    summary: str
    group: str
    also: tuple[Callable[..., object], ...] = ()
    takes_workers: bool = False


class OneLineParser(argparse.ArgumentParser):
    '''An argument parser that raises KitError with one line, where argparse prints its usage and exits.'''

    def error(self, message: str) -> NoReturn:
        raise KitError(f'{self.prog}: {message}. `{self.prog} --help` lists the options.')


def list_parser(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    '''A parser of an argument that is a list: "0,1" as two numbers, but a text as one item, commas included.'''
    return lambda text: [text] if kind is str else [kind(item) for item in text.split(',') if item]


def add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter, help_text: str) -> None:
    '''Add a parameter as an option whose type is the parameter's annotation.

    `name` and `runs` become positional arguments, and `overrides` becomes --set.
    '''
    name = parameter.name
    default = parameter.default
    help_text = help_text.replace('%', '%%')
    if name == 'name':
        parser.add_argument(name, nargs='?', default=default, help=help_text)
        return
    if name == 'runs':
        parser.add_argument(name, nargs='+', metavar='RUN', type=list_parser(str), help=help_text)
        return

    flag, metavar = '--' + name.replace('_', '-'), name.upper()
    if name == 'overrides':
        flag, metavar = '--set', 'KEY=VALUE'
        help_text += f'; {SETTINGS_HINT}'
    if parameter.annotation is bool:
        if default:
            parser.add_argument(f'--no{flag[1:]}', dest=name, action='store_false', help=f'do not {help_text}')
        else:
            parser.add_argument(flag, dest=name, action='store_true', help=help_text)
        return

    annotation = str(parameter.annotation)
    kind: Callable[[str], Any] = int
    if 'str' in annotation or 'Path' in annotation:
        kind = str
    elif 'float' in annotation:
        kind = float
    details: dict[str, Any] = {'dest': name, 'metavar': metavar, 'type': kind}
    if default is inspect.Parameter.empty:
        details['required'] = True
    elif default is not None:
        details['default'] = default
        help_text += f' (default: {default})'
    if 'Sequence' in annotation or 'list' in annotation:
        details |= {'type': list_parser(kind), 'nargs': '+', 'action': 'extend'}
    parser.add_argument(flag, help=help_text, **details)


# Options that many commands have, with one meaning.
COMMON_OPTIONS = {
    'audio': 'the folder that holds the clips',
    'device': 'cpu or cuda:0; by default the first GPU that computes, else the CPU',
    'threads': 'threads that decode; by default one per core',
    'progress': 'show a progress bar',
}


def build_parser(name: str, command: Command) -> OneLineParser:
    '''A command's parser, made from its function's parameters and the `Options:` of its docstring.'''
    functions = ', '.join(function.__name__ for function in (command.run, *command.also))
    parser = OneLineParser(
        f'audiotag_kit {name}',
        description=command.summary,
        epilog=f'In Python: {functions}; help(NAME) explains each.',
        allow_abbrev=False,
    )
    help_texts = COMMON_OPTIONS.copy()
    for function in (*command.also, command.run):  # oof has options of submit
        if section := re.search(r'Options:\n(.*?)(\n\n|\Z)', inspect.getdoc(function) or '', re.DOTALL):
            help_texts |= re.findall(r'^\s*(\w+): (.*)$', section[1], re.MULTILINE)
    for parameter in inspect.signature(command.run).parameters.values():
        if parameter.name in help_texts:
            add_option(parser, parameter, help_texts[parameter.name])
    if command.takes_workers:
        help_text = 'processes that share the work; auto: one per GPU, or per core on a busy machine (default: 1)'
        parser.add_argument('--workers', metavar='N', default='1', help=help_text)
    return parser


def overview(commands: Mapping[str, Command]) -> str:
    '''The commands with their summaries, under the headings of their groups.'''
    lines = [TITLE, '', 'python audiotag_kit.py COMMAND [options]']
    lines.append('python audiotag_kit.py COMMAND --help     lists the options of a command')
    for group in dict.fromkeys(command.group for command in commands.values()):
        lines += ['', f'{group}:']
        for name, command in commands.items():
            if command.group == group:
                lines.append(f'  {name:9} {command.summary}')
    return '\n'.join(lines)


def dispatch(commands: Mapping[str, Command], words: Sequence[str]) -> None:
    '''Run a command line's command, and print its result.'''
    if not words or words[0] in ('-h', '--help', 'help'):
        print(overview(commands))
        return
    if words[0] == '--version':
        print(VERSION)
        return
    command = choose('command', words[0], commands)
    if command.run.__doc__ is None:
        raise KitError('python -OO removes the texts that the options are made of: run Python without it.')
    parser = build_parser(words[0], command)
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith('--')]
    # argparse names no alternative to a misspelt option, so options are checked first.
    for word in words[1:]:
        flag = word.partition('=')[0]
        if flag.startswith('--') and flag not in flags:
            raise KitError(f'{words[0]} has no option {flag!r}: {suggest(flag, flags)}.')
    options = vars(parser.parse_args(words[1:]))
    for name, value in options.items():
        if isinstance(value, list):  # each argument was parsed as a list of its own
            options[name] = list(chain.from_iterable(value))
    workers = options.pop('workers', '1')
    if get_rank() and not in_worker():  # of several processes of torchrun, one prints
        sys.stdout = open(os.devnull, 'w', encoding='utf-8')
    with start_workers(workers, [*words, '--workers=1']):
        result = command.run(**options)
    if result is not None and not in_worker():
        print(result)


def run_command(commands: Mapping[str, Command], words: Sequence[str]) -> int:
    '''Run a command line's command, and return its exit code: 2 for an error, which is one line on stderr.'''
    try:
        dispatch(commands, words)
        return 0
    except KitError as error:
        mark, stream = (ERROR_MARK, sys.stdout) if in_worker() else ('audiotag-kit: ', sys.stderr)
        print(f'{mark}{one_line(error)}', file=stream, flush=True)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print('audiotag-kit: interrupted; the same command continues the work.', file=sys.stderr)
        return 130


class PatientStream:
    '''A stream whose printing never fails: what a closed pipe or a full disk does not take is lost.'''

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        '''Write text; where that fails, write all that follows to nowhere.'''
        try:
            self.stream.write(text)
        except OSError:
            self.give_up()
        return len(text)

    def flush(self) -> None:
        '''Flush, or give up.'''
        try:
            self.stream.flush()
        except OSError:
            self.give_up()

    def give_up(self) -> None:
        '''Connect the file to nowhere.'''
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_streams() -> None:
    '''Make printing safe in a script: streams escape what a terminal cannot show, and never fail.'''
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:  # closed before this process began
            stream = open(os.devnull, 'w', encoding='utf-8')
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
        setattr(sys, name, PatientStream(stream))


def enter(commands: Mapping[str, Command], file: str | None) -> None:
    '''The kit as the main program: the command line, of a script or of `%run file.py ARGS`.

    Pasted, or run in a notebook without arguments, it prints one line. Under IPython a good end raises nothing.
    '''
    notebook = in_notebook()
    if not notebook:
        open_streams()
    if file is None or (notebook and len(sys.argv) < 2):
        print(HINT)
        return
    code = run_command(commands, sys.argv[1:])
    if not notebook and any(word.startswith('--deadline') for word in sys.argv):
        # With torch, the interpreter takes seconds to end on a busy machine. All files are written.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code or not notebook:
        sys.exit(code)
