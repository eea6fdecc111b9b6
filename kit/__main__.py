"""The whole kit's door: `python audiotag_kit.py VERB`, `python -m kit VERB`, `%run audiotag_kit.py VERB`."""

from kit.cli import enter
from kit.core.clock import parse_duration
from kit.core.errors import KitError
from kit.core.runtime import pick_device
from kit.core.version import VERSION
from kit.data_at_hand import find_data, fitting_checkpoints
from kit.demo import run_demo, score_csv
from kit.doctor import examine
from kit.infer.blend import blend_scores
from kit.infer.checkpoint import load_tagger, own_tagger, save_tagger
from kit.infer.gate import judge_step
from kit.infer.predict import predict_clips
from kit.infer.submission import submit
from kit.infer.template import locate_clips
from kit.infer.weights import fit_weights
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval
from kit.labels.boxes import class_bands_hz, read_boxes
from kit.labels.class_metrics import auc_per_class, average_precision_per_class
from kit.labels.folds import make_folds
from kit.labels.metrics import lwlrap, lwlrap_per_class
from kit.labels.soft import read_soft_labels, write_soft_labels
from kit.labels.table import classes_of_template, clip_labels, read_clip_table, split_labels
from kit.learn.data import box_table
from kit.learn.journal import open_run
from kit.learn.losses import LOSSES, average_loss, bce_loss, lsep_loss
from kit.learn.oof import predict_oof
from kit.learn.probing import probe
from kit.learn.recipe import Recipe
from kit.learn.rounds import train_rounds
from kit.learn.stacking import stack
from kit.learn.teaching import relabel
from kit.learn.train import train_run, with_bands
from kit.models.families import build_network
from kit.models.heads import HeadConfig
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.parts import list_parts
from kit.pictures.clips import draw_clip, draw_filters, draw_lengths
from kit.pictures.contact import draw_contact_sheet
from kit.pictures.labels import draw_labels
from kit.pictures.runs import draw_history, draw_rounds, draw_timeline
from kit.pictures.scores import draw_calibration, draw_classes, draw_confusion
from kit.presets import SYSTEMS
from kit.recipes import RECIPES, find_recipe
from kit.report import show
from kit.sound.decode import header_duration_s, list_audio
from kit.sound.frontend import FrontendConfig
from kit.sound.levels import PcenConfig
from kit.sound.windows import ListeningConfig
from kit.toydata import spoil_labels
from kit.verbs_infer import INFER_VERBS
from kit.verbs_learn import LEARN_VERBS, add_folds, list_recipes, train_by_name

# What `%run audiotag_kit.py` and `from audiotag_kit import *` bring.
__all__ = [
    "LOSSES",
    "RECIPES",
    "SYSTEMS",
    "VERSION",
    "FrontendConfig",
    "HeadConfig",
    "KitError",
    "ListeningConfig",
    "PcenConfig",
    "Recipe",
    "Tagger",
    "TaggerCard",
    "add_folds",
    "auc_per_class",
    "average_loss",
    "average_precision_per_class",
    "bce_loss",
    "blend_scores",
    "bootstrap_difference",
    "bootstrap_interval",
    "box_table",
    "build_network",
    "build_tagger",
    "class_bands_hz",
    "classes_of_template",
    "clip_labels",
    "draw_calibration",
    "draw_classes",
    "draw_clip",
    "draw_confusion",
    "draw_contact_sheet",
    "draw_filters",
    "draw_history",
    "draw_labels",
    "draw_lengths",
    "draw_rounds",
    "draw_timeline",
    "examine",
    "find_data",
    "find_recipe",
    "fit_weights",
    "fitting_checkpoints",
    "header_duration_s",
    "judge_step",
    "list_audio",
    "list_parts",
    "list_recipes",
    "load_tagger",
    "locate_clips",
    "lsep_loss",
    "lwlrap",
    "lwlrap_per_class",
    "make_folds",
    "open_run",
    "own_tagger",
    "parse_duration",
    "pick_device",
    "predict_clips",
    "predict_oof",
    "probe",
    "read_boxes",
    "read_clip_table",
    "read_soft_labels",
    "relabel",
    "run_demo",
    "save_tagger",
    "score_csv",
    "show",
    "split_labels",
    "spoil_labels",
    "stack",
    "submit",
    "train_by_name",
    "train_rounds",
    "train_run",
    "with_bands",
    "write_soft_labels",
]

VERBS = LEARN_VERBS | INFER_VERBS


def run_command_line(file: str | None) -> None:
    """Run the command line of a script or of `%run file.py WORDS`; without words in a notebook, print one line."""
    enter(VERBS, file)


if __name__ == "__main__":
    run_command_line(globals().get("__file__"))
