'''The command line and the public names: a script, `python -m kit`, or `%run audiotag_kit.py`.'''

from kit.cli import enter
from kit.commands import COMMANDS

# What `%run audiotag_kit.py` and `from audiotag_kit import *` bring: names of all files of the bundle.
__all__ = [
    'LOSSES', 'METRICS', 'RECIPES', 'VERSION', 'CompetitionData', 'FrontendConfig', 'InferenceConfig',
    'KitError', 'Recipe', 'Tagger', 'TaggerCard', 'add_folds', 'bench', 'blend_scores', 'bootstrap_difference',
    'bootstrap_interval', 'box_table', 'build_tagger', 'class_bands_hz', 'clip_labels', 'compute_metric',
    'draw_calibration', 'draw_classes', 'draw_clip', 'draw_confusion', 'draw_contact_sheet', 'draw_history',
    'draw_labels', 'draw_lengths', 'draw_self_training', 'draw_timeline', 'find_competition', 'find_data',
    'find_recipe', 'fitting_checkpoints', 'header_duration_s', 'list_audio', 'list_recipes', 'load_run',
    'load_tagger', 'locate_clips', 'lwlrap', 'make_folds', 'parse_duration', 'pick_device', 'predict_clips',
    'predict_oof', 'probe', 'read_boxes', 'read_clip_table', 'read_competition', 'relabel', 'run_demo',
    'run_doctor', 'save_tagger', 'score_csv', 'self_train', 'show', 'split_labels', 'spoil_labels', 'stack',
    'submit', 'train_by_name', 'train_run', 'with_bands', 'wrap_ensemble', 'wrap_network',
]  # fmt: skip


def run_command_line(file: str | None) -> None:
    '''Run the command line of a script or of `%run file.py WORDS`; without words in a notebook, print one line.'''
    enter(COMMANDS, file)


if __name__ == '__main__':
    run_command_line(globals().get('__file__'))
