"""The verbs of inference: names in, functions out."""

from kit.cli import Verb
from kit.doctor import examine
from kit.infer.submission import submit

INFER_VERBS = {
    "submit": Verb(submit, "checkpoints and a folder of audio to a valid CSV, before the deadline"),
    "doctor": Verb(
        examine, "what is here: versions, devices that compute, memory, and what checkpoints hold"
    ),
}
