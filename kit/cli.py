"""A command line in, a verb's function called, an exit code out."""

import argparse
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

from kit.audio.decode import one_line
from kit.core.errors import KitError, choose, closest
from kit.core.runtime import VERSION, in_notebook, in_worker
from kit.core.worker import ERROR_MARK

HINT = (
    f"audiotag-kit {VERSION}: train audio taggers, ensemble them and submit inside the clock. "
    "Next: submit('folds/*.pt', 'test/', template='sample_submission.csv', deadline='55m'); "
    "help(submit) tells more."
)


@dataclass(frozen=True)
class Command:
    """A word of the command line: its function, whose parameters are options, and more for Python."""

    run: Callable[..., object]
    summary: str
    also: tuple[Callable[..., object], ...] = ()


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise KitError(f"{self.prog}: {message}. `{self.prog} --help` lists the options.")


def items_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads a word as a list: 0,1 as numbers, a text as itself."""

    return lambda text: [text] if kind is str else [kind(item) for item in text.split(",") if item]


def add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter, words: str) -> None:
    """A parameter's option, by its annotation; `name` and `runs` need no dashes."""
    kind, name, default = str(parameter.annotation), parameter.name, parameter.default
    flag, words = "--" + name.replace("_", "-"), words.replace("%", "%%")
    facts: dict[str, Any] = {"dest": name}
    if name == "name":
        flag, facts = name, {"nargs": "?", "default": default}
    elif name == "runs":
        flag, facts = name, {"nargs": "+", "metavar": "RUN", "type": items_of(str)}
    elif parameter.annotation is bool:
        facts["action"] = "store_false" if default else "store_true"
        if default:
            flag, words = "--no" + flag[1:], "do not " + words
    else:
        facts |= {"metavar": name.upper(), "required": default is inspect.Parameter.empty}
        if not facts["required"]:
            facts["default"] = default
            words += "" if default is None else f" (default: {default})"
        facts["type"] = str if "str" in kind or "Path" in kind else float if "float" in kind else int
        if "Sequence" in kind or "list" in kind:
            facts |= {"type": items_of(facts["type"]), "nargs": "+", "action": "extend"}
    parser.add_argument(flag, help=words, **facts)


def build_parser(name: str, command: Command) -> OneLineParser:
    """A verb's parser, from its function's parameters and the `Options:` of its docstring."""
    functions = ", ".join(function.__name__ for function in (command.run, *command.also))
    more = f"In Python: {functions}; help(NAME) tells more."
    parser = OneLineParser(
        f"audiotag_kit {name}", description=command.summary, epilog=more, allow_abbrev=False
    )
    part = re.search(r"Options:\n(.*?)(\n\n|\Z)", inspect.getdoc(command.run) or "", re.DOTALL)
    words = dict(re.findall(r"^\s*(\w+): (.*)$", part[1], re.MULTILINE)) if part else {}
    for parameter in inspect.signature(command.run).parameters.values():
        if parameter.name in words:
            add_option(parser, parameter, words[parameter.name])
    return parser


def overview(commands: Mapping[str, Command]) -> str:
    """What the command line can do."""
    head = f"audiotag-kit {VERSION}\n\npython audiotag_kit.py VERB [options]   (VERB --help lists them)\n"
    return "\n".join([head, *(f"  {name:9} {command.summary}" for name, command in commands.items())])


def dispatch(commands: Mapping[str, Command], words: Sequence[str]) -> None:
    """Do what a command line asks. Errors: KitError, and SystemExit from --help"""
    if not words or words[0] in ("-h", "--help", "help", "--version"):
        print(VERSION if words[:1] == ["--version"] else overview(commands))
        return
    command = choose("verb", words[0], commands)
    parser = build_parser(words[0], command)
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    for word in words[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise KitError(f"{words[0]} has no option {flag!r}: {closest(flag, known)}.")
    given = vars(parser.parse_args(words[1:]))
    lists = {name: [*chain(*value)] for name, value in given.items() if isinstance(value, list)}
    result = command.run(**given | lists)
    if result is not None and not in_worker():
        print(result)


def run_command(commands: Mapping[str, Command], words: Sequence[str]) -> int:
    """Do what a command line asks; an error is one line on stderr and exit code 2."""
    try:
        dispatch(commands, words)
        return 0
    except KitError as error:
        message = one_line(error)
        if in_worker():
            print(f"{ERROR_MARK}{message}", flush=True)
        else:
            print(f"audiotag-kit: {message}", file=sys.stderr, flush=True)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("audiotag-kit: interrupted; the same command goes on.", file=sys.stderr)
        return 130


def enter(commands: Mapping[str, Command], file: str | None) -> None:
    """The kit as the main program: the command line, of a script or of `%run file.py ARGS`.

    Pasted, or run in a notebook without arguments, it prints one line. Under IPython a good end raises nothing.
    A file's name may hold what a terminal cannot show: streams escape it.
    """
    notebook = in_notebook()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if file is None or (notebook and len(sys.argv) < 2):
        print(HINT)
        return
    code = run_command(commands, sys.argv[1:])
    if code or not notebook:
        sys.exit(code)
