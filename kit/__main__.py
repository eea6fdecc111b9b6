"""The command line and the public names: a script, `python -m kit`, or `%run audiotag_kit.py`."""

from kit.audio.decode import header_duration_s, list_audio
from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.cli import enter
from kit.commands import COMMANDS, add_folds, list_recipes, train_by_name
from kit.competitions import find_data, fitting_checkpoints
from kit.core.clock import parse_duration
from kit.core.errors import KitError
from kit.core.runtime import VERSION, pick_device
from kit.demo import run_demo, score_csv
from kit.doctor import run_doctor
from kit.infer.blend import blend_scores
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.infer.template import locate_clips
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval
from kit.labels.boxes import class_bands_hz, read_boxes
from kit.labels.folds import make_folds
from kit.labels.layouts import CompetitionData, find_competition, read_competition
from kit.labels.metrics import METRICS, compute_metric, lwlrap
from kit.labels.table import clip_labels, read_clip_table, split_labels
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.own_network import wrap_ensemble, wrap_network
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.plots.clips import draw_clip, draw_contact_sheet, draw_filters, draw_lengths
from kit.plots.runs import (
    draw_calibration,
    draw_classes,
    draw_confusion,
    draw_history,
    draw_labels,
    draw_self_training,
    draw_timeline,
)
from kit.report import show
from kit.toydata import spoil_labels
from kit.train.ablation import probe
from kit.train.dataset import box_table
from kit.train.losses import LOSSES
from kit.train.oof import load_run, predict_oof
from kit.train.recipe import Recipe
from kit.train.recipes import RECIPES, SYSTEMS, find_recipe
from kit.train.relabel import relabel
from kit.train.run import train_run, with_bands
from kit.train.self_training import self_train
from kit.train.stacking import stack

# What `%run audiotag_kit.py` and `from audiotag_kit import *` bring.
__all__ = [
    "LOSSES",
    "METRICS",
    "RECIPES",
    "SYSTEMS",
    "VERSION",
    "CompetitionData",
    "FrontendConfig",
    "InferenceConfig",
    "KitError",
    "Recipe",
    "Tagger",
    "TaggerCard",
    "add_folds",
    "blend_scores",
    "bootstrap_difference",
    "bootstrap_interval",
    "box_table",
    "build_tagger",
    "class_bands_hz",
    "clip_labels",
    "compute_metric",
    "draw_calibration",
    "draw_classes",
    "draw_clip",
    "draw_confusion",
    "draw_contact_sheet",
    "draw_filters",
    "draw_history",
    "draw_labels",
    "draw_lengths",
    "draw_self_training",
    "draw_timeline",
    "find_competition",
    "find_data",
    "find_recipe",
    "fitting_checkpoints",
    "header_duration_s",
    "list_audio",
    "list_recipes",
    "load_run",
    "load_tagger",
    "locate_clips",
    "lwlrap",
    "make_folds",
    "parse_duration",
    "pick_device",
    "predict_clips",
    "predict_oof",
    "probe",
    "read_boxes",
    "read_clip_table",
    "read_competition",
    "relabel",
    "run_demo",
    "run_doctor",
    "save_tagger",
    "score_csv",
    "self_train",
    "show",
    "split_labels",
    "spoil_labels",
    "stack",
    "submit",
    "train_by_name",
    "train_run",
    "with_bands",
    "wrap_ensemble",
    "wrap_network",
]


def run_command_line(file: str | None) -> None:
    """Run the command line of a script or of `%run file.py WORDS`; without words in a notebook, print one line."""
    enter(COMMANDS, file)


if __name__ == "__main__":
    run_command_line(globals().get("__file__"))
