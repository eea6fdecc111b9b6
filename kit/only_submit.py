"""The door of inference alone: what `build_single_file.py --only submit` starts from."""

from kit.cli import enter
from kit.verbs_infer import INFER_VERBS

if __name__ == "__main__":
    enter(INFER_VERBS, globals().get("__file__"))
