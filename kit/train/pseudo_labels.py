'''Pseudo-labels: methods that relabel a clip table from out-of-fold predictions.'''

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from kit.core.config import Config, setting
from kit.core.errors import KitError, choose
from kit.core.files import join_cells
from kit.labels.boxes import Boxes, window_targets
from kit.labels.metrics import label_likelihoods, label_precisions
from kit.labels.soft import SoftLabels, align_soft_labels, fill_unknown
from kit.labels.table import ALL_OTHERS, clip_labels

# What relabelling guarantees, for its report.
LEAKS = (
    "A clip's labels come only from models that held it out. Second order: the labels of the clips "
    'that these models were trained on may come from models that were trained on this clip. Its labels also '
    'took part in choosing the best weights (keep=best) and in the calibration.'
)


class RelabeledTable(NamedTuple):
    '''A clip table with new labels, soft ones for what is unknown, and counts.'''

    frame: Any
    soft: SoftLabels
    counts: dict[str, int]


def correct_by_boxes(soft: SoftLabels, boxes: Boxes) -> SoftLabels:
    '''Set soft labels of windows to 1 or 0 where boxes prove them. Source: second place, RFCX'''
    if boxes.classes != soft.classes:
        raise KitError(f'boxes of {len(boxes.classes)} classes, runs of {len(soft.classes)}: use boxes of the runs.')
    begin_s, end_s = soft.times
    from_boxes = np.full_like(soft.targets, np.nan)
    for name, rows in soft.rows.items():
        from_boxes[rows] = window_targets(boxes, name, begin_s[rows], end_s[rows])
    return replace(soft, targets=fill_unknown(from_boxes, soft.targets))


def agreement_order(targets: np.ndarray, probs: np.ndarray) -> np.ndarray:
    '''Sort clips from the one whose labels agree best with the predictions to the worst.

    The measure is the mean precision of a clip's true labels, as in lwlrap, or 1 without any. Its many ties are broken
    by the mean log loss of the known labels, which needs calibrated probabilities. Clips without a prediction are last.
    Shape:  targets (n, K), probs (n, K), NaN without a prediction -> rows (n,)
    Source: third place, Freesound 2019, for ranking by agreement; the measure is ours
    '''
    is_known = ~np.isnan(targets)
    is_true = targets == 1
    p = np.nan_to_num(probs.astype(np.float64)).clip(1e-7, 1 - 1e-7)
    loss = -np.log(label_likelihoods(targets, p)).sum(1) / is_known.sum(1).clip(1)
    precision = label_precisions(is_true, is_known, p).sum(1) / is_true.sum(1).clip(1)
    precision = np.where(is_true.any(1), precision, 1)
    # lexsort sorts by its last key first.
    return np.lexsort((loss, -precision, np.isnan(probs).any(axis=1)))


def snr_ratio(probs: np.ndarray, k: int) -> np.ndarray:
    '''The k greatest probabilities of each window as a share of all. Shape: (W, K) -> (W,)'''
    return np.sort(probs)[:, ::-1][:, :k].sum(1) / probs.sum(1).clip(1e-30)


def confident_labels(probs: np.ndarray, classes: Sequence[str], k: int) -> str:
    '''Label a window with those of its k best classes that reach half of the best. Shape: probs (K,)'''
    best = np.argsort(-probs, kind='stable')[:k]
    return join_cells(classes[i] for i in sorted(best) if probs[i] >= probs.max() / 2)


def pick_soft(soft: SoftLabels, rows: Any) -> SoftLabels:
    '''Select some of the soft labels. Shape: rows (m,) int, or a mask (n,) bool'''
    rows = np.arange(len(soft.names))[rows]
    names = tuple(soft.names[row] for row in rows)
    return SoftLabels(names, soft.classes, soft.targets[rows], *(times[rows] for times in soft.times))


def noisy_rows(frame: Any, plan: 'SelfTrainingConfig') -> np.ndarray:
    '''Find the rows whose labels may be replaced. Shape: -> (m,)'''
    is_noisy = np.ones(len(frame), bool)
    if 'source' in frame and plan.noisy_sources:
        is_noisy = np.isin(frame['source'], plan.noisy_sources)
    if not is_noisy.any():
        wanted = f'noisy_sources={[*plan.noisy_sources]}'
        raise KitError(f'no clip is of a source in {wanted}, but of {sorted(set(frame["source"]))}.')
    if (choose('column', 'fold', frame)[is_noisy] < 0).any():
        raise KitError('noisy_sources clips lie in a fold below 0, so no model predicts them out of fold.')
    return np.flatnonzero(is_noisy)


def forget_labels(frame: Any, rows: np.ndarray) -> Any:
    '''Copy a table with all labels of some rows unknown.'''
    # Without the column, all labels of the other rows are known.
    frame = frame.copy() if 'false_labels' in frame else frame.assign(false_labels=ALL_OTHERS)
    frame.loc[rows, ['labels', 'false_labels']] = ''
    return frame


def noisy_windows(frame: Any, soft: SoftLabels, plan: 'SelfTrainingConfig') -> tuple[SoftLabels, np.ndarray]:
    '''Select the soft labels of noisy clips' windows, with the table row of each window's clip.'''
    row_of_clip = {frame['fname'][row]: row for row in noisy_rows(frame, plan)}
    windows = pick_soft(soft, [name in row_of_clip for name in soft.names])
    return windows, np.array([row_of_clip[name] for name in windows.names], np.int64)


def add_windows(frame: Any, clip_rows: np.ndarray, windows: SoftLabels, **columns: Any) -> Any:
    '''Append a row per window to a table: its clip's but for times and `columns`.'''
    import pandas

    begin_s, end_s = (times.round(6) for times in windows.times)
    rows = frame.iloc[clip_rows].assign(begin_s=begin_s, end_s=end_s, **columns)
    return pandas.concat([frame, rows], ignore_index=True)


def fill_plain(frame: Any, soft: SoftLabels, plan: 'SelfTrainingConfig', number: int) -> RelabeledTable:
    '''Fill the table's unknown labels with predictions of clips or windows.'''
    has_unknown = np.isnan(clip_labels(frame, soft.classes).targets).any(axis=1)
    has_unknown |= bool(soft.times)  # a window of any clip may have unknown labels
    filled = pick_soft(soft, np.isin(soft.names, frame['fname'][has_unknown]))
    if not filled.names:
        raise KitError('no predicted clip has an unknown label: give false_labels, or use agreement.')
    return RelabeledTable(frame, filled, {'filled': len(filled.rows)})


def keep_agreeing(frame: Any, soft: SoftLabels, plan: 'SelfTrainingConfig', number: int) -> RelabeledTable:
    '''Keep the labels of the noisy clips that agree best with the predictions.

    The labels of the others are unknown; in iterations after the last of top_k, they get the predictions.
    Source: third place, Freesound 2019 (the best 1k, 2k ... 5k with their labels, then all others with predictions)
    '''
    rows = noisy_rows(frame, plan)
    probs = align_soft_labels(soft, frame['fname'][rows], soft.classes)
    targets = clip_labels(frame, soft.classes).targets[rows]
    n_kept = plan.best_count(number, len(rows))
    others = rows[agreement_order(targets, probs)[n_kept:]]
    predicted = pick_soft(soft, np.isin(soft.names, frame['fname'][others]) & (number > len(plan.top_k)))
    if plan.hard:
        predicted = harden(predicted)
    n = len(predicted.names)
    counts = {'kept': n_kept, 'predicted': n, 'left_out': len(others) - n}
    return RelabeledTable(forget_labels(frame, others), predicted, counts)


def harden(soft: SoftLabels) -> SoftLabels:
    '''Turn soft labels into true and false ones, as many true as expected; leave out clips without a true one.

    Source: third place, Freesound 2019
    '''
    probs = np.nan_to_num(soft.targets)
    expected = np.rint(probs.sum(axis=0)).astype(int)
    labels = ((-probs).argsort(axis=0, kind='stable').argsort(axis=0) < expected).astype(np.float32)
    return pick_soft(replace(soft, targets=labels), labels.any(axis=1))


def make_snr_sets(frame: Any, soft: SoftLabels, plan: 'SelfTrainingConfig', number: int) -> RelabeledTable:
    '''Turn the noisy clips into two sources.

    set1: the windows with the highest ratio, labelled with their most confident classes; all others are false.
    set2: every clip, with the mean prediction of its windows with the highest ratios as soft labels: the same share of
    each clip's windows as of all.
    Source: signal-to-noise pseudo-labels, Freesound 2019
    '''
    windows, clip_rows = noisy_windows(frame, soft, plan)
    ratios = snr_ratio(windows.targets, plan.snr_k)
    by_ratio = np.argsort(-ratios, kind='stable')
    chosen = np.sort(by_ratio[: plan.best_count(number, len(by_ratio))])
    if not len(chosen):
        raise KitError(f'top_k={[*plan.top_k]} picks none of {len(by_ratio)} windows: try top_k=[0.1].')
    best = pick_soft(windows, chosen)
    labels = [confident_labels(probs, soft.classes, plan.snr_k) for probs in best.targets]
    set1_rows = clip_rows[chosen]
    set2_rows = np.unique(clip_rows)
    frame = forget_labels(frame, set2_rows)
    frame = add_windows(frame, set1_rows, best, source='set1', labels=labels, false_labels=ALL_OTHERS)
    frame.loc[set2_rows, 'source'] = 'set2'
    means = []
    for rows in windows.rows.values():
        n_best = max(1, round(len(rows) * len(chosen) / len(by_ratio)))
        means.append(windows.targets[rows[np.argsort(-ratios[rows], kind='stable')[:n_best]]].mean(axis=0))
    counts = {'set1': len(chosen), 'set2': len(set2_rows)}
    return RelabeledTable(frame, SoftLabels(tuple(windows.rows), soft.classes, np.stack(means)), counts)


def curate_windows(frame: Any, soft: SoftLabels, plan: 'SelfTrainingConfig', number: int) -> RelabeledTable:
    '''Add the windows of noisy clips whose most probable known class is a true label of their clip.

    They are rows with their clip's labels. The clips move to the source `whole`: a share of 0 keeps it out of training.
    Source: two-stage systems, Freesound 2019 (out-of-fold models curate windows)
    '''
    windows, clip_rows = noisy_windows(frame, soft, plan)
    targets = clip_labels(frame, soft.classes).targets[clip_rows]
    best_class = np.where(np.isnan(targets), -1, windows.targets).argmax(axis=1)
    is_match = targets[np.arange(len(targets)), best_class] == 1
    frame = add_windows(frame, clip_rows[is_match], pick_soft(windows, is_match))
    frame.loc[np.unique(clip_rows), 'source'] = 'whole'
    counts = {'kept': int(is_match.sum()), 'left_out': int((~is_match).sum())}
    return RelabeledTable(frame, pick_soft(soft, []), counts)


RELABEL_METHODS: dict[str, Callable[[Any, SoftLabels, 'SelfTrainingConfig', int], RelabeledTable]] = {
    'plain': fill_plain,
    'windows': fill_plain,
    'agreement': keep_agreeing,
    'snr': make_snr_sets,
    'curate': curate_windows,
}


def at_iteration(values: Sequence[Any], number: int) -> Any:
    '''Select the value of an iteration, counted from 1; the last serves all later ones.'''
    return values[min(number, len(values)) - 1] if values else None


@dataclass(frozen=True)
class SelfTrainingConfig(Config):
    '''How out-of-fold predictions become the next iteration's labels.'''

    iterations: int = setting(0, 'trainings after the first, on pseudo-labels of the one before', low=0)
    methods: tuple[str, ...] = setting(
        ('plain',), 'relabelling by iteration; the last serves all later ones', choices=tuple(RELABEL_METHODS)
    )
    noisy_sources: tuple[str, ...] = setting(
        ('noisy',), 'sources whose labels may be replaced; []: all, as where none is there'
    )
    top_k: tuple[float, ...] = setting((), 'best clips or windows by iteration: a share (up to 1) or a number', low=0)
    snr_k: int = setting(3, "classes with the highest probability that count as a window's signal", low=1)
    hop_s: float = setting(0.5, 'seconds between the starts of predicted windows', low=0.01)
    powers: tuple[float, ...] = setting((1.0,), 'exponents of soft labels; > 1 lowers unsure ones', low=0.01, high=100)
    teachers: int = setting(1, 'average the predictions of the last so many iterations', low=1)
    prior_shift: bool = setting(False, 'scale predictions from training prevalences to estimated ones')
    hard: bool = setting(False, 'agreement: predicted labels are true or false, as many of a class as expected')
    stages: tuple[str, ...] = setting((), "'key=value ...' of each training after the first; the last serves all later")

    def method(self, number: int) -> str:
        '''The method of an iteration, counted from 1.'''
        return at_iteration(self.methods, number) or 'plain'

    def best_count(self, number: int, n: int) -> int:
        '''How many of n clips or windows count as the best in an iteration.'''
        k = at_iteration(self.top_k, number) or 0
        return min(n, round(k * n) if k <= 1 else int(k))
