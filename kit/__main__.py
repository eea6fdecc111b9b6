"""The whole kit's door: `python audiotag_kit.py VERB`, `python -m kit VERB`, `%run audiotag_kit.py VERB`."""

from kit.cli import enter
from kit.verbs_infer import INFER_VERBS
from kit.verbs_learn import LEARN_VERBS

VERBS = LEARN_VERBS | INFER_VERBS

if __name__ == "__main__":
    enter(VERBS, globals().get("__file__"))
