'''Out-of-fold predictions: read them from a run's folder, align those of two runs, and describe their scores.'''

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.core.files import read_json, read_table
from kit.labels.bootstrap import Interval, format_metric
from kit.labels.folds import group_keys
from kit.labels.metrics import class_metric, compute_metric, metric_per_class
from kit.labels.table import clip_labels, read_clip_table, row_names, scored_truth, stretches_of


@dataclass(frozen=True)
class OofVariant:
    '''Another way to score the same clips: its score, and its gain over the usual way.'''

    name: str
    metric: str
    score: float
    gain: Interval
    advice: str = ''

    def __str__(self) -> str:
        line = f'{self.name}: {self.metric} {self.score:.4f}, gain {self.gain:+.4f}'
        return f'{line}\n    {self.advice}' if self.advice else line

    __repr__ = __str__


@dataclass(frozen=True)
class OofPredictions:
    '''Predictions of clips by models that never trained on them.

    `failures` holds, by name, why a clip has the prior. `variants` are other ways that were asked for. Clips of one
    of `groups` (n, or none) are resampled together; an empty one is a clip's own.
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
        '''The clips in another order. Shape: rows (n,)'''
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            folds=self.folds[rows],
            truth=self.truth[rows],
            probabilities=self.probabilities[rows],
            groups=tuple(self.groups[row] for row in rows if self.groups),
        )

    def probabilities_like(self, first: 'OofPredictions', place: Path, first_place: Path) -> np.ndarray:
        '''The probabilities in the order of another run's clips and classes.'''
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
    '''Raise KitError for the first clip whose fold differs between two places.'''
    for name in sorted({*folds, *other_folds}):
        fold = folds.get(name, 'none')
        other = other_folds.get(name, 'none')
        if fold != other:
            raise KitError(f'{name!r} has fold {fold} in {place}, but {other} in {other_place}: use runs of one split.')


def summarize_scores(oof: OofPredictions) -> list[str]:
    '''Describe the score of all clips, of each fold, and of the hardest classes, a line each.'''
    metric, truth, probs = oof.metric, oof.truth, oof.probabilities
    is_scored = np.isfinite(truth).any(axis=1)
    lines = [f'out of fold: {metric} {format_metric(compute_metric, metric, truth, probs)} on {is_scored.sum()} clips']
    for fold in np.unique(oof.folds):
        rows = is_scored & (oof.folds == fold)
        score = format_metric(compute_metric, metric, truth[rows], probs[rows])
        lines.append(f'  fold {fold}: {score} on {rows.sum()} clips')
        if rows.sum() > 1 and np.ptp(probs[rows], axis=0).max() < 1e-3:
            lines[-1] += ': THE SAME SCORES FOR EVERY CLIP, so nothing was learnt'
    scores = metric_per_class(metric, truth, probs)
    hardest = [f'{oof.classes[k]} {scores[k]:.3f}' for k in np.argsort(scores)[:5] if np.isfinite(scores[k])]
    lines.append(f'  hardest classes ({class_metric(metric)}): {", ".join(hardest)}')
    return lines


def load_oof(folder: str | Path, labels: Path | None = None) -> OofPredictions:
    '''Read the out-of-fold predictions of a run or stack; the truth is from its own table, or from `labels`.'''
    folder = Path(folder)
    if not (folder / 'oof.csv').is_file():
        raise KitError(f'{folder} lacks oof.csv: run `oof` on it.')
    table = read_clip_table(labels or folder / 'folds.csv')
    row = {name: i for i, name in enumerate(row_names(table['fname'], stretches_of(table)))}
    oof = read_table(folder / 'oof.csv', ('fname', 'fold'), exact=True)
    names = oof.columns['fname']
    rows = [choose(f'clip of {folder}/folds.csv', name, row) for name in names]
    classes = [name for name in oof.columns if name not in ('fname', 'fold')]
    truth = scored_truth(clip_labels(table, classes), read_json(folder / 'recipe.json'))
    columns = [oof.numbers(name, 'a probability', lambda p: 0 <= p <= 1) for name in classes]
    return OofPredictions(
        names=tuple(names),
        classes=tuple(classes),
        folds=np.array(oof.numbers('fold', kind=int)),
        truth=truth[rows],
        probabilities=np.array(columns).T,
        failures={},
        metric=read_metric(folder),
        groups=groups_of_rows(table, names),
    )


def groups_of_rows(table: Any, names: Sequence[str]) -> tuple[str, ...]:
    '''The groups by which the rows of these names are resampled: the table's column `group`, and clips.'''
    keys = group_keys(table, 'group' if 'group' in table else None)
    count = Counter(keys)
    group_of = dict(zip(row_names(table['fname'], stretches_of(table)), keys, strict=True))
    return tuple(group_of[name] if count[group_of[name]] > 1 else '' for name in names)


def read_metric(folder: Path) -> str:
    '''The metric of a run or a stack.'''
    facts = read_json(folder / 'recipe.json') or read_json(folder / 'stack.json')
    return str(facts.get('metric', 'lwlrap'))
