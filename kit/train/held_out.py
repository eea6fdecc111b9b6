'''The clips that each model of a run never trained on, and their predictions.'''

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kit.core.errors import KitError
from kit.core.files import text_digest
from kit.core.ranks import gather, take_share
from kit.core.runtime import Runtime
from kit.infer.ensemble import collect_frontends, predict_under_bar
from kit.infer.loader import SpectrogramLoader
from kit.infer.planner import EnsembleMember
from kit.infer.predictor import Predictor, WindowLogits
from kit.infer.rows import logits_of_stretch
from kit.infer.template import locate_clips
from kit.labels.table import (
    UNLABELLED,
    clip_labels,
    is_validated,
    read_clip_table,
    row_names,
    scored_truth,
    stretches_of,
)
from kit.models.checkpoint import load_tagger
from kit.models.tagger import Tagger


class HeldOut(NamedTuple):
    '''A tagger, and the rows that it never trained on: whole clips, or stretches of recordings.

    `clips` are the rows' files, `names` are unique (see row_names). `unlabelled` are soundscapes without labels, and
    clips asked for that are not in the run's table: every model predicts pseudo-labels for them.
    Shape:  rows (n,) in the run's table, truth (n, K), stretches (n, 2) in seconds
    '''

    tagger: Tagger
    rows: np.ndarray
    clips: Sequence[str]
    stretches: np.ndarray
    truth: np.ndarray
    unlabelled: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        '''The name of each row.'''
        return row_names(self.clips, self.stretches)


def predict_held_out(
    held: HeldOut, predictors: Sequence[Predictor], name: str, audio: Path, runtime: Runtime
) -> tuple[list[dict[int, WindowLogits]], dict[int, str]]:
    '''Predict a fold's rows with predictors of one tagger: the logits of each, and why rows have none, by position.'''
    clips = list(dict.fromkeys(held.clips))
    outputs, failures = predict_recordings(clips, predictors, name, audio, runtime)
    position = {name: clip for clip, name in enumerate(clips)}
    clip_of = [position[name] for name in held.clips]
    frames_per_s = held.tagger.card.frontend.frames_per_s
    of_rows = [split_rows(of_clips, clip_of, held.stretches, frames_per_s) for of_clips in outputs]
    return of_rows, {row: failures[clip] for row, clip in enumerate(clip_of) if clip in failures}


def split_rows(
    of_clips: Mapping[Any, WindowLogits], clip_of: Sequence[Any], stretches: np.ndarray, frames_per_s: float
) -> dict[int, WindowLogits]:
    '''Split the logits of recordings to rows, their stretches; `clip_of` is each row's key.'''
    of_rows = {}
    for row, clip in enumerate(clip_of):
        output = logits_of_stretch(of_clips.get(clip), stretches[row], frames_per_s)
        if output is not None:
            of_rows[row] = output
    return of_rows


def predict_recordings(
    names: Sequence[str], predictors: Sequence[Predictor], name: str, audio: Path, runtime: Runtime
) -> tuple[list[dict[int, WindowLogits]], dict[int, str]]:
    '''Predict files with predictors of one tagger: the logits of each, and why files have none, by position.'''
    members = [EnsembleMember(name, predictor) for predictor in predictors]
    frontends = collect_frontends(members, runtime.device)
    loader = SpectrogramLoader(locate_clips(names, audio), frontends, runtime.device, threads=runtime.threads)
    outputs: list[dict[int, Any]] = [{} for _ in members]
    loader.read_headers()
    loader.chunks = take_share(loader.chunks)
    for member, clip, logits in predict_under_bar(members, loader, name, runtime.progress):
        outputs[members.index(member)][clip] = logits.logits, logits.spans
    failed_models = [member.failure for member in members if member.failure]
    failed_clips = {clip: why for member in members for clip, why in member.failed_clips.items()}
    failures: dict[int, str] = {}
    merged: list[dict[int, WindowLogits]] = [{} for _ in members]
    shares = gather((outputs, failed_models, loader.failures, loader.notes, failed_clips))
    for of_share, failed, unreadable, notes, not_finite in shares:
        if failed:
            raise KitError(f'{name} failed: {failed[0]}')
        loader.failures |= unreadable
        loader.notes |= notes
        failures |= not_finite
        for all_clips, of_clips in zip(merged, of_share, strict=True):
            all_clips |= {clip: WindowLogits(*output) for clip, output in of_clips.items()}
    loader.print_failures(names)
    failures |= loader.failures
    clips = len(names)
    if len(loader.failures) == clips:
        raise KitError(f'none of the {clips} clips of {name} could be read in {audio}; nothing was changed.')
    # In one order, whoever predicted what: sums depend on it.
    return [dict(sorted(all_clips.items())) for all_clips in merged], failures


def held_out_models(run: Path, more: Sequence[str] = ()) -> dict[str, HeldOut]:
    '''Load every checkpoint of a run, by its path, with the clips that it never trained on, also of `more`.'''
    if not (run / 'folds.csv').is_file():
        raise KitError(f'{run} holds no run (no folds.csv): give the folder that `train` wrote.')
    table = read_clip_table(run / 'folds.csv')
    folds = np.asarray(table['fold'])
    stretches = stretches_of(table)
    is_scored = is_validated(table['fname'], stretches)
    unlabelled = list(table['fname'][table['source'] == UNLABELLED]) if 'source' in table else []
    in_table = {*table['fname']}
    unlabelled += [name for name in more if name not in in_table]
    models = {}
    for path in sorted(run.glob('fold_*.pt')):
        tagger = load_tagger(path)
        card = tagger.card
        labels = clip_labels(table, card.classes)
        rows = np.flatnonzero((folds == card.fold) & is_scored)
        clips = [labels.names[row] for row in rows]
        if card.held_out != text_digest(*sorted(row_names(clips, stretches[rows]))):
            raise KitError(f'{path} was trained with other folds than folds.csv: its scores would leak.')
        truth = scored_truth(labels, card.recipe)[rows]
        models[str(path)] = HeldOut(tagger, rows, clips, stretches[rows], truth, unlabelled)
    if not models:
        raise KitError(f'{run} holds no checkpoint fold_*.pt yet: let `train` finish a fold.')
    return models
