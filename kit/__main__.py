"""The whole kit's door: `python audiotag_kit.py VERB`, `python -m kit VERB`, `%run audiotag_kit.py VERB`."""

from kit.cli import enter
from kit.commands import COMMANDS

if __name__ == "__main__":
    enter(COMMANDS, globals().get("__file__"))
