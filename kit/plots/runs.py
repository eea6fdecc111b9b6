'''Plots of runs, of submissions, and of a table's labels.'''

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kit.core.errors import KitError
from kit.core.files import read_json
from kit.infer.template import read_report
from kit.labels.bootstrap import Interval, bootstrap_interval, class_intervals
from kit.labels.metrics import class_metric, metric_per_class
from kit.labels.table import clip_labels, rows_by_name
from kit.plots.figure import CURVE_COLOURS, MAX_ROWS, Plot, draw_matrix, new_figure, new_row_figure, shown_name
from kit.train.oof import SavedRun, load_run

# What a submission measures besides its models, and how the timeline calls it.
STAGES = {
    'headers': 'read headers',
    'models': 'build models',
    'decode': 'decode files',
    'frontend': 'compute spectrograms',
}


def require_predictions(run: SavedRun) -> None:
    '''Raise KitError unless a run has out-of-fold predictions and a true label.'''
    if not run.oof.names:
        raise KitError(f'{run.folder} has no oof.csv yet: let `train` finish, or run `oof`.')
    if not (run.oof.truth == 1).any():
        raise KitError(f'none of the {len(run.oof.names)} clips of {run.folder} has a true label: label some of them.')


def hardest_classes(run: SavedRun) -> list[int]:
    '''The classes with the lowest out-of-fold scores, hardest first, 40 at most.'''
    require_predictions(run)
    scores = metric_per_class(run.oof.metric, run.oof.truth, run.oof.probabilities)
    return [int(k) for k in np.argsort(scores, kind='stable') if np.isfinite(scores[k])][:MAX_ROWS]


def classes_title(run: SavedRun, shown: Sequence[int]) -> str:
    '''The title of a plot of some classes.'''
    return f'{shown_name(run.folder.resolve().name)}: {len(shown)} of {len(run.oof.classes)} classes, hardest first'


def error_bars(intervals: Sequence[Interval]) -> tuple[np.ndarray, np.ndarray]:
    '''The values, and how far their intervals extend below and above. Shape: -> (n,), (2, n)'''
    values = np.array([interval.value for interval in intervals])
    below = values - [interval.low for interval in intervals]
    above = [interval.high for interval in intervals] - values
    # A value can lie outside its resamples' percentiles; matplotlib refuses negative lengths.
    return values, np.array([below, above]).clip(0)


def draw_classes(run: SavedRun) -> Plot:
    '''Scores of the classes with 95 % intervals, hardest first.

    The predictions are out of fold. The number beside a class counts the clips that have it.
    '''
    shown = hardest_classes(run)
    oof = run.oof
    values, lengths = error_bars(class_intervals(oof.metric, oof.truth, oof.probabilities, shown, oof.groups))
    clips = (oof.truth == 1).sum(axis=0)
    figure, (axes,) = new_row_figure([f'{shown_name(oof.classes[k])}  {clips[k]}' for k in shown], 8)
    axes.errorbar(values, range(len(shown)), xerr=lengths, fmt='o', capsize=3)
    axes.set(xlim=(0, 1.02), xlabel=f'{class_metric(oof.metric)} and its 95 % interval')
    axes.set(title=classes_title(run, shown), ylabel='class and its number of clips')
    return Plot(figure)


def mean_confusion(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    '''The mean score of the column's class where it is false and the row's class is true, or NaN.

    Shape: truth (n, K) of 1, 0 or NaN, scores (n, K) -> (K, K)
    '''
    is_true = (truth == 1).astype(float)
    is_false = (truth == 0).astype(float)
    with np.errstate(invalid='ignore'):
        return (is_true.T @ (scores * is_false)) / (is_true.T @ is_false)


def draw_confusion(run: SavedRun) -> Plot:
    '''Label confusion: mean probability of the column's class where it is false and the row's class is true.'''
    shown = hardest_classes(run)
    labels = [shown_name(run.oof.classes[k]) for k in shown]
    figure, (axes,) = new_row_figure(labels, 4.5 + 0.15 * len(shown))
    draw_matrix(axes, mean_confusion(run.oof.truth, run.oof.probabilities)[np.ix_(shown, shown)], labels)
    axes.set(title=classes_title(run, shown), ylabel='true class')
    axes.set(xlabel='false class, coloured by its mean probability')
    return Plot(figure)


class CalibrationBins(NamedTuple):
    '''Known labels by predicted probability; low and high bound the observed frequency's 95 % interval.'''

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_labels: np.ndarray

    @property
    def error(self) -> float:
        '''The expected calibration error: the mean distance of predicted and observed.'''
        return float(self.n_labels @ np.abs(self.observed - self.predicted) / self.n_labels.sum())


def calibration_bins(truth: np.ndarray, scores: np.ndarray) -> CalibrationBins:
    '''Compare predicted probabilities with observed frequencies in up to ten bins of equal width.

    Source: intervals by Wilson 1927, as if all labels were independent
    '''
    is_known = ~np.isnan(truth)
    probs = scores[is_known].astype(float)
    labels = truth[is_known].astype(float)
    filled, place, count = np.unique((probs * 10).astype(int).clip(0, 9), return_inverse=True, return_counts=True)
    predicted = np.bincount(place, probs, len(filled)) / count
    observed = np.bincount(place, labels, len(filled)) / count
    z = 1.96
    centre = observed + z * z / (2 * count)
    spread = z * np.sqrt(observed * (1 - observed) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return CalibrationBins(predicted, observed, (centre - spread) / scale, (centre + spread) / scale, count)


def draw_calibration(run: SavedRun) -> Plot:
    '''Calibration: predicted probability against observed frequency.

    Bars are 95 % intervals. On the dashed line both are equal. The title is the mean distance from it.
    '''
    require_predictions(run)
    bins = calibration_bins(run.oof.truth, run.oof.probabilities)
    lengths = np.array([bins.observed - bins.low, bins.high - bins.observed]).clip(0)
    figure, (top, bottom) = new_figure(6.5, 6, 2, 1, sharex=True, height_ratios=(3, 1))
    top.plot((0, 1), (0, 1), '--', color='0.5')
    top.errorbar(bins.predicted, bins.observed, lengths, fmt='o-')
    top.set(ylabel='observed frequency', title=f'expected calibration error {bins.error:.3f}')
    bottom.bar_label(bottom.bar(bins.predicted, bins.n_labels, 0.05), fmt='{:,.0f}', fontsize=8)
    # From 0.5: a bin of one label has a bar on the logarithmic axis.
    bottom.set(yscale='log', ylim=(0.5, 5 * bins.n_labels.max()))
    bottom.tick_params(which='minor', labelleft=False)
    bottom.set(xlabel='predicted probability', ylabel='known labels')
    return Plot(figure)


def draw_history(runs: Sequence[SavedRun]) -> Plot:
    '''Learning curves: training loss and validation score.

    A single run has one colour per fold; several runs have one colour each. Every validation is a point.
    '''
    figure, panels = new_figure(10, 4, 1, 2, sharex=True)
    styles = [{'color': colour, 'linestyle': line} for line in ('-', '--', ':') for colour in CURVE_COLOURS]
    lines: dict[str, Any] = {}
    for run in runs:
        for epochs in run.history:
            name = str(run.folder) if len(runs) > 1 else f'fold {epochs["fold"].iloc[0]}'
            number = list(lines).index(name) if name in lines else len(lines)
            style = styles[number % len(styles)]
            for axes, column in zip(panels, ('loss', 'score'), strict=True):
                measured = epochs.dropna(subset=column)
                (lines[name],) = axes.plot(measured['epoch'], measured[column], marker='.', alpha=0.8, **style)
    metrics = ', '.join(dict.fromkeys(run.oof.metric for run in runs))
    for axes, measure in zip(panels, ('training loss', f'validation {metrics}'), strict=True):
        axes.set(xlabel='epoch', ylabel=measure)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if lines:
        figure.legend(lines.values(), map(shown_name, lines), loc='outside right upper', frameon=False)
    return Plot(figure)


def draw_self_training(run: str | Path) -> Plot:
    '''Self-training: out-of-fold score of each round with 95 % intervals, and what its labels consist of.

    Every round is scored on the labels of the original table, not on its own pseudo-labels.

    Errors: KitError for a run without rounds
    '''
    folder = Path(run)
    rounds = folder / 'rounds'
    counts = {int(path.parts[-3]): read_json(path)['counts'] for path in rounds.glob('*/labels/relabel.json')}
    counts = dict(sorted(counts.items()))
    # The last round is the run itself.
    last = max(counts, default=0)
    folders = {number: rounds / str(number) for number in range(last)}
    folders[last] = folder
    scored = [number for number in folders if (folders[number] / 'oof.csv').is_file()]
    if not counts or not scored:
        raise KitError(f'{folder} holds no rounds (rounds/0/oof.csv): train with self_training.iterations above 0.')

    intervals = []
    for number in scored:
        oof = load_run(folders[number], rounds / 'folds.csv').oof
        intervals.append(bootstrap_interval(oof.metric, oof.truth, oof.probabilities, oof.groups))
    values, lengths = error_bars(intervals)
    figure, (left, right) = new_figure(10, 4, 1, 2, sharex=True)
    left.errorbar(scored, values, lengths, fmt='o-', capsize=3)
    left.set(xlabel='self-training round', title=f'{oof.metric} and its 95 % interval', xticks=list(folders))
    kinds = dict.fromkeys(kind for of_round in counts.values() for kind in of_round)
    for place, kind in enumerate(kinds):
        amounts = [of_round.get(kind, 0) for of_round in counts.values()]
        # Smaller marks on larger ones: equal counts are all visible.
        right.plot(list(counts), amounts, 'o-', markersize=max(3, 10 - 2 * place), label=shown_name(kind))
    right.set(xlabel='self-training round', title='clips or windows by use', ylim=(0, None))
    right.legend(frameon=False)
    return Plot(figure)


def draw_timeline(report: str | Path | Mapping[str, Any]) -> Plot:
    '''Timeline: when files were decoded, models ran and the CSV was written.

    `report` is the submission's CSV, the JSON file beside it, or the report that `submit` returns.
    A dashed line is the deadline, if the submission came near it.

    Errors: KitError for a report without times
    '''
    details = report if isinstance(report, Mapping) else read_report(Path(report))
    if 'spans' not in details:
        raise KitError('no report that tells when each step ran: run `submit` again.')
    spans = details['spans']
    lanes = [(name, spans.get(stage, [])) for stage, name in STAGES.items()]
    models = sorted(details['models'], key=lambda model: model['spans'][:1])
    lanes += [(model['checkpoint'], model['spans']) for model in models]
    lanes.append(('write the CSV', spans.get('write', [])))

    labels = [f'{shown_name(name)}  {sum(end - begin for begin, end in lane):.1f} s' for name, lane in lanes]
    figure, (axes,) = new_row_figure(labels, 10)
    # All models have one colour, and the last lane the next one.
    last = len(STAGES)
    colours = [*CURVE_COLOURS[:last], *[CURVE_COLOURS[last]] * len(models), CURVE_COLOURS[last + 1]]
    for row, (_, lane) in enumerate(lanes):
        axes.broken_barh([(begin, end - begin) for begin, end in lane], (row - 0.4, 0.8), color=colours[row])
    total_s = details['seconds_total']
    title = f'{shown_name(details["state"])}, {total_s:.1f} s'
    if deadline_s := details['deadline_s']:
        title += f' of {deadline_s:.1f} s to the deadline'
        if deadline_s < 2 * total_s:
            axes.axvline(deadline_s, color='k', linestyle='--')
    axes.set(xlabel='seconds', title=title, xlim=(0, None))
    return Plot(figure)


def draw_labels(table: Any, seconds: Sequence[float] | None = None) -> Plot:
    '''Labels: the number of clips and seconds of each class, and how often two classes occur together.

    The 40 most frequent classes are shown. Rows of one clip count as one clip. Unknown labels do not count.

    Shape:  a table as `read_clip_table` reads it, with n rows; seconds (n,), the length of each row's clip
    Errors: KitError for a table without labels, or another number of seconds
    '''
    labels = clip_labels(table)
    if not labels.classes:
        raise KitError(f'0 classes in {len(table)} rows: pass a table with labels.')
    if seconds is not None and len(seconds) != len(table):
        raise KitError(f'wanted as many seconds as rows, got {len(seconds)} for {len(table)} rows.')
    clip_rows = list(rows_by_name(labels.names).values())
    targets = np.array([np.fmax.reduce(labels.targets[rows]) for rows in clip_rows])
    is_true = (targets == 1).astype(float)
    is_known = (~np.isnan(targets)).astype(float)

    measures = {'clips': is_true.sum(axis=0)}
    if seconds is not None:
        measures['seconds'] = np.array([seconds[rows[0]] for rows in clip_rows]) @ is_true
    shown = np.argsort(-measures['clips'], kind='stable')[:MAX_ROWS]
    with np.errstate(invalid='ignore'):  # 0 / 0: no clip of the row's class knows the column's
        shares = (is_true.T @ is_true) / (is_true.T @ is_known)
    np.fill_diagonal(shares, np.nan)

    names = [shown_name(labels.classes[k]) for k in shown]
    widths = [1] * len(measures) + [4]
    figure, (*bar_panels, matrix_panel) = new_row_figure(names, 11, len(widths), width_ratios=widths)
    for axes, (unit, values) in zip(bar_panels, measures.items(), strict=True):
        axes.barh(range(len(names)), values[shown])
        axes.set(xlabel=unit)
    draw_matrix(matrix_panel, shares[np.ix_(shown, shown)], names)
    matrix_panel.set(title="share of the row's clips that also have the column's class")
    figure.suptitle(f'{len(clip_rows):,} clips, {len(shown)} of {len(labels.classes)} classes')
    return Plot(figure)
