'''Out-of-fold predictions: their scores, and by how much other settings, steps, weights or thresholds help.'''

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_rows
from kit.infer.blend import fit_weights
from kit.infer.postprocess import NO_WINDOWS, PostprocessConfig, apply_postprocess, postprocess_config
from kit.infer.template import split_window
from kit.labels.bootstrap import Interval, bootstrap_difference, format_metric
from kit.labels.calibration import fit_thresholds
from kit.labels.metrics import class_metric, compute_metric, metric_per_class


@dataclass(frozen=True)
class OofVariant:
    '''Another way to score the same clips: its score, and the gain over the usual way with its 95 % interval.'''

    name: str
    metric: str
    score: float
    gain: Interval
    advice: str = ''

    def __str__(self) -> str:
        gain = f'{self.gain.value:+.4f} (95 % within {self.gain.low:+.4f} to {self.gain.high:+.4f})'
        line = f'{self.name}: {self.metric} {self.score:.4f}, gain {gain}'
        return f'{line}\n    {self.advice}' if self.advice else line

    __repr__ = __str__


@dataclass(frozen=True)
class OofPredictions:
    '''Predictions of clips by models that never trained on them.

    `failures` holds, by name, why a clip has the prior. `metric` is the recipe's. `variants` are other ways that were
    asked for. Clips of one of `groups` (n, or none) are resampled together; an empty one is a clip's own.
    Shape:  folds (n,), truth and probabilities (n, K)
    '''

    names: tuple[str, ...]
    classes: tuple[str, ...]
    folds: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray
    failures: dict[str, str]
    metric: str = 'lwlrap'
    variants: tuple[OofVariant, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        '''The metric of all clips together.'''
        return compute_metric(self.metric, self.truth, self.probabilities)

    @property
    def fold_of_clip(self) -> dict[str, int]:
        '''The fold of each clip.'''
        return dict(zip(self.names, self.folds.tolist(), strict=True))

    def reordered(self, rows: np.ndarray) -> 'OofPredictions':
        '''Return the clips in another order. Shape: rows (n,)'''
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            folds=self.folds[rows],
            truth=self.truth[rows],
            probabilities=self.probabilities[rows],
            groups=tuple(self.groups[row] for row in rows if self.groups),
        )

    def probabilities_like(self, first: 'OofPredictions', place: Path, first_place: Path) -> np.ndarray:
        '''Return the probabilities in the order of another run's clips and classes.'''
        check_same_folds(first.fold_of_clip, first_place, self.fold_of_clip, place)
        different = sorted(set(first.classes) ^ set(self.classes))
        if different:
            raise KitError(f'{place} has other classes than {first_place}, e.g. {different[0]!r}.')
        row = {name: i for i, name in enumerate(self.names)}
        rows = [row[name] for name in first.names]
        columns = [self.classes.index(name) for name in first.classes]
        return self.probabilities[np.ix_(rows, columns)]

    def __str__(self) -> str:
        lines = summarize_scores(self)
        lines += [f'  {variant}' for variant in self.variants]
        if self.failures:
            lines.append(f'  {len(self.failures)} clips could not be read or predicted and have the prior:')
        lines += [f'  {name}: {reason}' for name, reason in list(self.failures.items())[:5]]
        return '\n'.join(lines)

    __repr__ = __str__


def check_same_folds(folds: Mapping[str, Any], place: Path, other_folds: Mapping[str, Any], other_place: Path) -> None:
    '''Raise KitError that names the first clip whose fold differs between two places.'''
    for name in sorted({*folds, *other_folds}):
        fold = folds.get(name, 'none')
        other = other_folds.get(name, 'none')
        if fold != other:
            where = f'{fold} in {place}, but {other} in {other_place}'
            raise KitError(f'{name!r} has fold {where}: use runs of one split.')


def compare(
    oof: OofPredictions, name: str, probs: np.ndarray, baseline: np.ndarray | None = None, advice: str = ''
) -> OofVariant:
    '''Score a variant of predictions against a baseline, or against these. Shape: probs and baseline (n, K)'''
    baseline = oof.probabilities if baseline is None else baseline
    gain = bootstrap_difference(oof.metric, oof.truth, probs, baseline, oof.groups)
    return OofVariant(name, oof.metric, compute_metric(oof.metric, oof.truth, probs), gain, advice)


def summarize_scores(oof: OofPredictions) -> list[str]:
    '''Describe the score of all clips, of each fold, and of the hardest classes, a line each.'''
    metric = oof.metric
    truth = oof.truth
    probs = oof.probabilities
    is_scored = np.isfinite(truth).any(axis=1)
    lines = [f'out of fold: {metric} {format_metric(compute_metric, metric, truth, probs)} on {is_scored.sum()} clips']
    for fold in np.unique(oof.folds):
        rows = is_scored & (oof.folds == fold)
        score = format_metric(compute_metric, metric, truth[rows], probs[rows])
        lines.append(f'  fold {fold}: {score} on {rows.sum()} clips')
    scores = metric_per_class(metric, truth, probs)
    hardest = [f'{oof.classes[k]} {scores[k]:.3f}' for k in np.argsort(scores)[:5] if np.isfinite(scores[k])]
    lines.append(f'  hardest classes ({class_metric(metric)}): {", ".join(hardest)}')
    return lines


def inference_variants(
    own: InferenceConfig,
    mode: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    pools: Sequence[str] | None = None,
) -> dict[str, InferenceConfig]:
    '''List the requested inference settings by name; none where nothing is requested.'''
    settings = {'mode': mode, 'window_s': window_s, 'hop_s': hop_s}
    changes = {name: value for name, value in settings.items() if value is not None}
    if not changes and not pools:
        return {}
    variants = {}
    for pool in pools or [own.pool]:
        changed = {**changes, 'pool': pool} if pools else changes
        name = ' '.join(f'{setting}={value}' for setting, value in changed.items())
        variants[name] = replace(own, **changed)  # type: ignore[arg-type]
    return variants


def windows_of_names(names: Sequence[str]) -> tuple[list[int], list[str], list[float]]:
    '''Find the rows named <recording>_<end second>[.ogg], their recordings and end seconds.'''
    rows = []
    recordings = []
    times_s = []
    for row, name in enumerate(names):
        recording, end_s = split_window(name)
        if end_s is None:
            recording, end_s = split_window(PurePosixPath(name).with_suffix('').as_posix())
        if end_s is not None:
            rows.append(row)
            recordings.append(recording)
            times_s.append(end_s)
    if not rows:
        raise KitError(f'{NO_WINDOWS} One of them is {names[0]!r}.')
    return rows, recordings, times_s


def fit_on_other_folds(
    fit: Callable[[Any, Any], np.ndarray], scores: np.ndarray, truth: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    '''Fit weights or thresholds for each row on the other folds. Shape: scores (m, n, K) -> (n, ...)'''
    fitted = {}
    for fold in np.unique(folds).tolist():
        held = folds == fold
        if held.all():
            raise KitError('all rows are in one fold: weights need two folds, to be measured on other rows.')
        fitted[fold] = fit(scores[:, ~held], truth[~held])
    return np.stack([fitted[fold] for fold in folds.tolist()])


def window_steps(**options: Any) -> dict[str, PostprocessConfig]:
    '''List the steps over windows that are to be compared: each option alone, and then all together.'''
    chosen = {name: value for name, value in options.items() if value}
    top: dict[str, Any] = {name: chosen.pop(name) for name in ('top_mean', 'top_power') if name in chosen}
    parts: list[dict[str, Any]] = [{name: value} for name, value in chosen.items()] + ([top] if top else [])
    if len(parts) > 1:
        parts.append(chosen | top)
    return {' '.join(f'{name}={value}' for name, value in part.items()): postprocess_config(**part) for part in parts}


def compare_steps(oof: OofPredictions, steps: Mapping[str, PostprocessConfig]) -> list[OofVariant]:
    '''Compare steps over a recording's windows with the plain predictions, on the rows that are windows.'''
    rows, recordings, times_s = windows_of_names(oof.names)
    windows = replace(oof.reordered(np.array(rows)), groups=tuple(recordings))
    unused_prevalences = np.zeros(len(oof.classes))
    compared = []
    for name, step in steps.items():
        changed = apply_postprocess(step, windows.probabilities, recordings, times_s, unused_prevalences)
        label = name if len(rows) == len(oof.names) else f'{name}, on {len(rows)} windows'
        compared.append(compare(windows, label, changed))
    return compared


def compare_fitted_weights(oof: OofPredictions, runs: Mapping[Path, np.ndarray]) -> OofVariant:
    '''Fit weights of several runs' blend, measure their gain over the plain mean, and advise `submit`.

    A fold's gain is measured with weights that the other folds fitted. The advised weights are fitted on all folds.

    Shape:  probabilities (n, K) of each run's folder
    '''
    scores = np.stack(list(runs.values())).astype(np.float64)
    of_rows = fit_on_other_folds(fit_weights, scores, oof.truth, oof.folds)
    blended = np.einsum('nm,mnk->nk', of_rows, scores)
    weights = []
    for folder, weight in zip(runs, fit_weights(scores, oof.truth), strict=True):
        checkpoints = len(list(folder.glob('fold_*.pt')))
        weights += [f'{weight / max(1, checkpoints):.4g}'] * checkpoints
    patterns = ' '.join(f"'{folder}/fold_*.pt'" for folder in runs)
    advice = f'to use them: submit --checkpoints {patterns} --weights {" ".join(weights)}'
    name = 'fitted weights, against the plain mean of the runs'
    return compare(oof, name, blended, scores.mean(axis=0), advice)


def compare_thresholds(run: Path, oof: OofPredictions) -> OofVariant:
    '''Fit thresholds for F1, measure their gain over 0.5 on other folds, and write thresholds.csv for `submit`.'''
    scores = oof.probabilities[None].astype(np.float64)

    def fit(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return fit_thresholds(oof.metric, truth, scores[0])

    of_rows = fit_on_other_folds(fit, scores, oof.truth, oof.folds)
    decided = (scores[0] >= of_rows).astype(float)
    thresholds = fit(scores, oof.truth).tolist()
    path = run / 'thresholds.csv'
    rows = [(name, f'{value:.4g}') for name, value in zip(oof.classes, thresholds, strict=True)]
    write_rows(path, [('class', 'threshold'), *rows])
    advice = f'to use them: submit --thresholds {path}'
    return compare(oof, 'fitted thresholds, against 0.5', decided, advice=advice)


def read_recipe(folder: Path) -> dict[str, Any]:
    '''Read a run's recipe as a dictionary; empty where there is none.'''
    return read_json(folder / 'recipe.json')


def read_metric(folder: Path) -> str:
    '''Return the metric of a run or a stack.'''
    facts = read_recipe(folder) or read_json(folder / 'stack.json')
    return str(facts.get('metric', 'lwlrap'))


def read_json(path: Path) -> dict[str, Any]:
    '''Read a JSON file; empty where there is none.'''
    return dict(json.loads(path.read_text(encoding='utf-8'))) if path.is_file() else {}
