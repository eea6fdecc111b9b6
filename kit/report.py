'''Compare runs, or describe a submission, as a table and as an HTML page with plots.'''

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.infer.template import read_report
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval, format_metric
from kit.labels.metrics import class_metric, compute_metric, label_likelihoods, metric_per_class
from kit.labels.table import read_clip_table
from kit.models.checkpoint import open_checkpoint
from kit.plots.figure import IMAGE_FORMATS, Plot, page_plot, page_table, write_page
from kit.plots.runs import (
    calibration_bins,
    draw_calibration,
    draw_classes,
    draw_confusion,
    draw_history,
    draw_labels,
    draw_self_training,
    draw_timeline,
)
from kit.train.oof import SavedRun, load_run
from kit.train.run import flat_settings

# Lists of a submission's report: a table counts their items, a page shows them.
SUBMISSION_LISTS = ('files_failed', 'audio_notes', 'notes', 'files_without_row', 'rows_without_file', 'files_split')


@dataclass(frozen=True)
class ReportTable:
    '''A table with a column per run or submission. Each row is its name, then one text per column.'''

    runs: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        table = [('', *self.runs), *self.rows]
        widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
        return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in table)

    __repr__ = __str__


def run_details(run: SavedRun, first: SavedRun) -> dict[str, str]:
    '''A run's scores, alone and compared with the first run's, and its costs, by name.'''
    oof = run.oof
    truth = oof.truth
    scores = oof.probabilities
    metric = oof.metric
    details = {metric: 'no oof.csv yet'}
    if oof.names:
        details[metric] = format_metric(bootstrap_interval, metric, truth, scores, oof.groups)
        # Accuracy is defined for one label per clip. A row with unknown labels sums to NaN and fails this.
        if (truth.sum(axis=1) == 1).all():
            details['top1'] = format_metric(compute_metric, 'top1', truth, scores)
        details['log loss'] = f'{-np.log(label_likelihoods(truth, scores)[~np.isnan(truth)]).mean():.4f}'
        details['expected calibration error'] = f'{calibration_bins(truth, scores).error:.4f}'
    if run is not first and oof.names:
        # The first run's metric compares all runs.
        metric = first.oof.metric
        gain = 'not comparable: other clips or labels'
        same_columns = oof.names == first.oof.names and oof.classes == first.oof.classes
        if same_columns and np.array_equal(truth, first.oof.truth, equal_nan=True):
            gain = format_metric(bootstrap_difference, metric, truth, scores, first.oof.probabilities, oof.groups)
        details[f'gain in {metric} over the first run'] = gain
    details['clips'] = str(len(oof.names))
    if run.history:
        last_epochs = ' '.join(str(epochs['epoch'].iloc[-1]) for epochs in run.history)
        seconds = sum(epochs['seconds'].sum() for epochs in run.history)
        details['epochs'] = f'{last_epochs} of {run.recipe.get("epochs", "?")}'
        if not oof.names:
            last = [epochs['score'].dropna().tail(1).map('{:.4f}'.format) for epochs in run.history]
            details[f'last {metric}'] = ' '.join(''.join(score) or '-' for score in last)
        details['minutes'] = f'{seconds / 60:.1f}'
    for path in sorted(run.folder.glob('fold_*.pt')):
        checkpoint = open_checkpoint(path)
        card = checkpoint.card
        # Batch norm's running statistics, saved too, are no parameters.
        parameters = [x for name, x in checkpoint.tensors.items() if x.is_floating_point() and 'running_' not in name]
        details['parameters'] = f'{sum(x.numel() for x in parameters):,}'
        details['output'] = card.output
        if card.oof_score is not None:
            details[f'{card.metric}, fold {card.fold}'] = f'{card.oof_score:.4f}'
    for fold in np.unique(oof.folds):
        rows = oof.folds == fold
        details[f'{oof.metric}, fold {fold}'] = format_metric(compute_metric, oof.metric, truth[rows], scores[rows])
    if (truth == 1).any():
        of_classes = metric_per_class(oof.metric, truth, scores)
        for k in np.flatnonzero(np.isfinite(of_classes)):
            details[f'class {oof.classes[k]}, {class_metric(oof.metric)}'] = f'{of_classes[k]:.4f}'
    return details


def table_rows(columns: Sequence[dict[str, str]], names: Iterable[str]) -> list[tuple[str, ...]]:
    '''A row for each name, with "-" for a column that lacks it.'''
    return [(name, *(column.get(name, '-') for column in columns)) for name in names]


def compare_runs(runs: Sequence[SavedRun], hardest: int) -> ReportTable:
    '''Compare runs: their details, the settings that differ, and the classes with the lowest mean scores.'''
    details = [run_details(run, runs[0]) for run in runs]
    # First the run with most details: it has them all in order.
    names = dict.fromkeys(name for column in sorted(details, key=len, reverse=True) for name in column)
    class_means = {}
    for name in names:
        if name.startswith('class '):
            class_means[name] = np.mean([float(column[name]) for column in details if name in column])
    hardest_names = sorted(class_means, key=lambda name: (class_means[name], name))[:hardest]

    settings = [{name: json.dumps(value) for name, value in flat_settings(run.recipe).items()} for run in runs]
    with_recipe = [column for column in settings if column]  # a stack has none
    all_settings = dict.fromkeys(name for column in with_recipe for name in column)
    differing = [name for name in all_settings if len({column.get(name) for column in with_recipe}) > 1]

    rows = table_rows(details, [name for name in names if name not in class_means])
    rows += table_rows(settings, differing) + table_rows(details, hardest_names)
    return ReportTable(tuple(str(run.folder) for run in runs), tuple(rows))


def submission_table(path: Path, report: Mapping[str, Any]) -> ReportTable:
    '''Describe a submission's report: its single values, the lengths of its lists, and its models.'''
    if 'job' not in report:
        raise KitError(f'no report beside {path}: pass the CSV that `submit` wrote, or its .json.')
    rows = [(name, str(value)) for name, value in report.items() if isinstance(value, str | int | float)]
    rows += [(name, str(len(report.get(name, ())))) for name in SUBMISSION_LISTS]
    for model in report.get('models', ()):
        cost = f'{model["network_s"]:.1f} s for {model["clips_predicted"]} clips'
        rows.append((model['checkpoint'], f'weight {model["weight"]:g}, {cost}; failure: {model["failure"]}'))
    return ReportTable((str(path),), tuple(rows))


def submission_sections(report: Mapping[str, Any]) -> Iterator[str]:
    '''Yield the lists of a submission's report as HTML.'''
    for name in SUBMISSION_LISTS:
        items = report.get(name, {})
        rows: list[tuple[Any, ...]] = [(item,) for item in items]
        if isinstance(items, dict):
            rows = [(key, '; '.join(text) if isinstance(text, list) else text) for key, text in items.items()]
        yield page_table(rows, name)


def run_sections(run: SavedRun) -> Iterator[str]:
    '''Yield one run's part of a page as HTML: its plots and its settings.'''
    yield f'<h2>{escape(run.folder.resolve().name)}</h2>'
    yield page_plot(draw_labels, read_clip_table(run.folder / 'folds.csv'))
    for draw in (draw_classes, draw_confusion, draw_calibration):
        yield page_plot(draw, run)
    if (run.folder / 'rounds').is_dir():
        yield page_plot(draw_self_training, run.folder)
    yield page_table(flat_settings(run.recipe).items(), 'settings')


def show(runs: str | Path | Sequence[str | Path], out: str | Path | None = None, hardest: int = 5) -> ReportTable:
    '''Compare runs: scores with 95 % intervals, costs, the settings that differ, the hardest classes.

    Of a submission it shows which files failed, and the weight and the time of each model.

    Options:
        runs: folders that `train` or `stack` wrote, finished or not; or one submission's .csv or .json
        out: report.html, a page with all plots; or an image like curves.png: learning curves, or the timeline
        hardest: how many classes to list, those with the lowest scores
    '''
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    target = None if out is None else Path(out)
    choose('ending of out', target.suffix if target else '.html', {**IMAGE_FORMATS, '.html': ''})

    draw: Callable[..., Plot]
    source: Any
    sections: Iterator[str]
    if len(paths) == 1 and paths[0].suffix in ('.csv', '.json'):
        source = read_report(paths[0])
        draw = draw_timeline
        table = submission_table(paths[0], source)
        sections = submission_sections(source)
    else:
        source = [load_run(path) for path in paths]
        draw = draw_history
        table = compare_runs(source, hardest)
        sections = (section for run in source for section in run_sections(run))

    if target:
        print(f'note: writing {target}', flush=True)
    if target and target.suffix == '.html':
        title = ', '.join(path.resolve().name for path in paths)
        write_page(target, title, [page_table([('', *table.runs), *table.rows]), page_plot(draw, source), *sections])
    elif target:
        draw(source).save(target)
    return table
