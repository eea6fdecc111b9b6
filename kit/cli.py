"""A command line in, a verb's function called with the same words, an exit code out."""

import argparse
import inspect
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kit.core.errors import KitError, choose, closest
from kit.core.runtime import in_notebook
from kit.core.supervise import ERROR_MARK, am_worker
from kit.core.version import VERSION

HINT = (
    f"audiotag-kit {VERSION}: train audio taggers, ensemble them and submit inside the clock. "
    "Next: submit(checkpoints='folds/*.pt', audio='test/', template='sample_submission.csv', deadline='55m'); "
    "help(submit) tells more."
)


@dataclass(frozen=True)
class Verb:
    """A word of the command line: the function it calls, whose parameters are its options.

    `also` names the functions that do more of the same in Python.
    """

    run: Callable[..., object]
    summary: str
    also: tuple[Callable[..., object], ...] = ()


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line with the cure."""

    def error(self, message: str) -> NoReturn:
        raise KitError(f"{self.prog}: {message}. `{self.prog} --help` lists the options.")


def option_help(function: Callable[..., object]) -> dict[str, str]:
    """The words on each option from the `Options:` part of a docstring."""
    part = re.search(r"Options:\n(.*?)(\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    lines = part.group(1).splitlines() if part else []
    return dict(re.match(r"\s*(\w+): (.*)", line).groups() for line in lines)  # type: ignore[union-attr, misc]


def numbers_of(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads 0,1,2 as numbers."""

    def read(text: str) -> list[Any]:
        return [kind(item) for item in text.split(",") if item]

    read.__name__ = f"list of {getattr(kind, '__name__', 'value')}s"
    return read


class Extend(argparse.Action):
    """Collects lists of numbers and repeated words into one list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        so_far = getattr(namespace, self.dest) or []
        flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
        setattr(namespace, self.dest, [*so_far, *flat])


def add_option(parser: argparse.ArgumentParser, parameter: inspect.Parameter, words: str) -> None:
    """One option for one parameter of a verb's function, by its annotation."""
    kind, flag = str(parameter.annotation), "--" + parameter.name.replace("_", "-")
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    words = words.replace("%", "%%")
    if parameter.annotation is bool:
        off = "--no-" + flag[2:]
        action = "store_false" if default else "store_true"
        words = f"do not {words}" if default else words
        parser.add_argument(off if default else flag, dest=parameter.name, action=action, help=words)
    elif "Sequence" in kind or "list" in kind:
        item: Callable[[str], Any] = (
            numbers_of(int) if "[int]" in kind else numbers_of(float) if "[float]" in kind else str
        )
        parser.add_argument(
            flag,
            dest=parameter.name,
            type=item,
            nargs="+",
            action=Extend,
            required=required,
            default=default,
            help=words,
        )
    else:
        of_text = "str" in kind or "Path" in kind
        one: Callable[[str], Any] = str if of_text else int if "int" in kind else float
        shown = f" (default: {default})" if default is not None else ""
        parser.add_argument(
            flag, dest=parameter.name, type=one, required=required, default=default, help=words + shown,
            metavar=parameter.name.upper(),
        )  # fmt: skip


def build_parser(name: str, verb: Verb) -> OneLineParser:
    """The parser of one verb, made from its function's parameters and docstring."""
    functions = ", ".join(function.__name__ for function in (verb.run, *verb.also))
    more = f"In Python: {functions}; help(NAME) tells what each takes."
    parser = OneLineParser(
        prog=f"audiotag_kit {name}", description=verb.summary, epilog=more, allow_abbrev=False
    )
    words = option_help(verb.run)
    for parameter in inspect.signature(verb.run).parameters.values():
        if parameter.name in words:
            positional = parameter.name == "name"
            if positional:
                parser.add_argument("name", nargs="?", default=parameter.default, help=words["name"])
            else:
                add_option(parser, parameter, words[parameter.name])
    return parser


def overview(verbs: Mapping[str, Verb]) -> str:
    """What the command line can do."""
    lines = [
        f"audiotag-kit {VERSION}",
        "",
        "python audiotag_kit.py VERB [options]   (VERB --help lists them)",
        "",
    ]
    return "\n".join([*lines, *(f"  {name:9} {verb.summary}" for name, verb in verbs.items())])


def obey(verbs: Mapping[str, Verb], words: Sequence[str]) -> int:
    """Do what a command line asks. Errors: KitError, and SystemExit from --help"""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(verbs))
        return 0
    if words[0] == "--version":
        print(VERSION)
        return 0
    verb = choose("verb", words[0], verbs)
    parser = build_parser(words[0], verb)
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    for word in words[1:]:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise KitError(f"{words[0]} has no option {flag!r}: {closest(flag, known)}.")
    result = verb.run(**vars(parser.parse_args(words[1:])))
    if result is not None and not am_worker():
        print(result)
    return 0


def run_command(verbs: Mapping[str, Verb], words: Sequence[str]) -> int:
    """Do what a command line asks; errors become one line on stderr and the exit code 2."""
    try:
        return obey(verbs, words)
    except KitError as error:
        message = " ".join(str(error).split())
        if am_worker():
            print(f"{ERROR_MARK}{message}", flush=True)
        else:
            print(f"audiotag-kit: {message}", file=sys.stderr, flush=True)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("audiotag-kit: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130


def enter(verbs: Mapping[str, Verb], file: str | None) -> None:
    """What happens when the kit is the main program.

    The command line runs in a script, and in a notebook after `%run file.py ARGS`; pasted, or run in a notebook
    without arguments, the kit prints one line. Under IPython a good end raises nothing.
    """
    notebook = in_notebook()
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what a terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if file is None or (notebook and len(sys.argv) < 2):
        print(HINT)
        return
    code = run_command(verbs, sys.argv[1:])
    if code or not notebook:
        sys.exit(code)
