'''`relabel`: predict pseudo-labels with runs and write a new table.'''

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_json, write_text
from kit.core.runtime import start_runtime
from kit.infer.ensemble import clip_probabilities
from kit.infer.postprocess import estimate_prevalences, scale_odds
from kit.infer.predictor import Predictor
from kit.infer.rows import fitted_prevalences
from kit.infer.stack import average_windows
from kit.labels.boxes import read_boxes
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import UNLABELLED, read_clip_table
from kit.models.tagger import TaggerCard
from kit.train.held_out import held_out_models, predict_recordings
from kit.train.pseudo_labels import (
    LEAKS,
    RELABEL_METHODS,
    SelfTrainingConfig,
    at_iteration,
    correct_by_boxes,
    pick_soft,
)


def window_inference(card: TaggerCard, hop_s: float) -> InferenceConfig:
    '''Choose windows as long as the tagger's own, or as the crops of its training.'''
    length_s = card.inference.window_s
    mode = card.inference.mode
    if mode == 'full':
        mode = 'windows'
        length_s = card.recipe.get('crop_s', length_s)
    return replace(card.inference, mode=mode, window_s=length_s, hop_s=min(hop_s, length_s))


def predict_pseudo_labels(
    runs: Sequence[str | Path],
    audio: str | Path,
    hop_s: float | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    prior_shift: bool = False,
    unlabelled: Sequence[str] = (),
) -> tuple[SoftLabels, dict[str, int]]:
    '''Predict soft labels of clips: the mean over all models, folds and seeds, that never trained on the clip.

    Returns the labels, and how many clips each model predicted. Without `hop_s` labels are of whole clips, with it of
    windows that far apart, with 0 of the windows that each model uses; windows nearest in time are averaged. With
    `prior_shift`, probabilities are scaled from the prevalences of the training to those estimated from the clips.
    Clips that are `unlabelled` are also predicted by runs whose tables lack them.

    Source: second place, RFCX (a window every 0.5 s, out of fold, ensembled)
    '''
    runtime = start_runtime(device, threads, progress)
    classes: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    # For each clip, each model's spans in seconds (W, 2) and probabilities (W, K).
    predictions: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    models = [pair for run in runs for pair in held_out_models(Path(run), unlabelled).items()]
    for path, held in models:
        tagger = held.tagger
        card = tagger.card
        classes = classes or card.classes
        if not card.is_calibrated or card.classes != classes:
            reason = 'other classes' if card.is_calibrated else 'ranks, which are no labels before `oof`'
            raise KitError(f'{path} gives {reason}: use calibrated runs of one set of classes.')
        if hop_s and card.frontend.trim_db is not None:
            raise KitError(f"{path} trims a clip's ends, so its windows are not at their times: leave it out.")
        inference = window_inference(card, hop_s) if hop_s else card.inference
        predictor = Predictor(tagger, runtime.device, inference=inference, fuse=True)
        clips = list(dict.fromkeys([*held.clips, *held.unlabelled]))
        (outputs,), _ = predict_recordings(clips, [predictor], Path(path).name, Path(audio), runtime)
        counts[path] = len(outputs)
        probs = {}
        for clip, output in outputs.items():
            probs[clip] = tagger.probabilities(torch.from_numpy(output.logits)).numpy()
            if hop_s is None:
                probs[clip] = clip_probabilities(tagger, inference, output.logits)[None]
        if prior_shift and probs:
            trained = fitted_prevalences(card)
            estimated = estimate_prevalences(np.concatenate(list(probs.values())), trained)
            probs = {clip: scale_odds(of_clip, trained, estimated) for clip, of_clip in probs.items()}
        for clip, of_clip in probs.items():
            # A whole clip has one row of probabilities; its span is not used.
            spans_s = np.array(outputs[clip].spans[: len(of_clip)]) / card.frontend.frames_per_s
            predictions.setdefault(clips[clip], []).append((spans_s, of_clip))
    if not predictions:
        folders = ', '.join(map(str, runs))
        raise KitError(f'{folders} predict no finite number for any clip: train them anew.')
    names: list[str] = []
    spans: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for name, of_models in sorted(predictions.items()):
        first_spans, _ = of_models[0]
        centred = [(spans_s.mean(axis=1), of_clip) for spans_s, of_clip in of_models]
        names += [name] * len(first_spans)
        spans.append(first_spans)
        means.append(average_windows(centred, first_spans.mean(axis=1)))
    targets = np.concatenate(means).clip(0, 1)
    times = () if hop_s is None else np.concatenate(spans).T
    return SoftLabels(tuple(names), classes, targets, *times), counts


@dataclass(frozen=True)
class RelabelResult:
    '''The paths of new labels, and the report on them.'''

    table: Path
    soft: Path
    report: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        counts = ', '.join(f'{count} {what}' for what, count in self.report['counts'].items())
        return f'{self.table}: {self.report["rows"]} rows, {counts}; {self.soft.name}. {self.report["leaks"]}'

    __repr__ = __str__


def relabel(
    run: Sequence[str | Path],
    audio: str | Path,
    out: str | Path,
    method: str | None = None,
    top_k: Sequence[float] | None = None,
    number: int = 1,
    table: str | Path | None = None,
    boxes: Sequence[str | Path] | None = None,
    overrides: Sequence[str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    plan: SelfTrainingConfig | None = None,
) -> RelabelResult:
    '''Write table.csv, soft.csv and relabel.json: new labels, by models that never trained on the clips they label.

    Options:
        run: folders that `train` wrote
        out: the folder to write
        method: plain, windows, agreement, snr or curate; plain unless given
        top_k: best clips or windows of each iteration, shares or counts
        number: the iteration, from 1
        table: the CSV to relabel; the first run's unless given
        boxes: CSVs of true and of false boxes, which correct windows
        overrides: further settings, e.g. powers=[2] hop_s=1 noisy_sources=[]
    '''
    plan = (plan or SelfTrainingConfig()).override(list(overrides or ()))
    if top_k is not None:
        plan = replace(plan, top_k=tuple(top_k))
    if method:
        plan = replace(plan, methods=(method,))
    name = plan.method(number)
    if boxes and name != 'windows':
        raise KitError(f'boxes correct windows, which method {name} does not write: use windows.')
    frame = read_clip_table(table or Path(run[0]) / 'folds.csv')
    if 'end_s' in frame and name not in ('plain', 'windows'):
        is_whole = frame['end_s'] == np.inf
        frame = frame[is_whole].drop(columns=['begin_s', 'end_s']).reset_index(drop=True)
    clips = set(frame['fname'])
    hop_s = None if name in ('plain', 'agreement') else plan.hop_s
    unlabelled = [*frame['fname'][frame['source'] == UNLABELLED]] if 'source' in frame else []
    runtime_options = device, threads, progress
    soft, models = predict_pseudo_labels(run, audio, hop_s, *runtime_options, plan.prior_shift, unlabelled)
    soft = pick_soft(soft, [clip in clips for clip in soft.names])
    if boxes:
        soft = correct_by_boxes(soft, read_boxes(boxes[0], boxes[1]))
    relabeled = RELABEL_METHODS[name](frame, soft, plan, number)
    power = at_iteration(plan.powers, number) or 1.0
    labels = replace(relabeled.soft, targets=relabeled.soft.targets**power)
    frame = relabeled.frame
    report = {
        'method': name,
        'round': number,
        'rows': len(frame),
        'counts': relabeled.counts,
        'leaks': LEAKS,
        'models': models,
        'without_prediction': sorted(clips - soft.rows.keys()),
        'settings': plan.to_dict(),
    }
    folder = Path(out)
    write_text(folder / 'table.csv', frame.to_csv(index=False, lineterminator='\n'))
    write_soft_labels(folder / 'soft.csv', labels)
    write_json(folder / 'relabel.json', report)
    return RelabelResult(folder / 'table.csv', folder / 'soft.csv', report)
