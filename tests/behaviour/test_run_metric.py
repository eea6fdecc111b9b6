'''A run's metric decides its best epoch and its learning rate, and is what every score of it says.'''

import json

import numpy as np
import pandas as pd
import pytest

from kit.commands import list_recipes
from kit.core.errors import KitError
from kit.doctor import run_doctor
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval
from kit.labels.metrics import compute_metric, metric_per_class
from kit.labels.oof_predictions import load_oof
from kit.models.checkpoint import load_tagger
from kit.report import show
from kit.train.ablation import probe
from kit.train.oof import load_run, predict_oof
from kit.train.run import train_run
from kit.train.stacking import stack
from tests.behaviour.slow_metrics import SLOW_METRICS
from tests.behaviour.training import QUIET, TINY, load_table, make_set, new_trainer, train_quietly

pytestmark = pytest.mark.usefixtures('one_core')

AUC = TINY.override(['metric=macro_auc', 'loss=bce', 'epochs=6', 'validate_every=1', 'keep=best'])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp('data'), 20, seed=3)


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    '''Two runs on the same folds: one of macro_auc, one of map3.'''
    folder = tmp_path_factory.mktemp('runs')
    train_quietly(AUC, *data, folder / 'one')
    train_quietly(AUC.override(['metric=map3', 'seed=1']), *data, folder / 'two')
    return folder / 'one', folder / 'two'


def rows_of(report):
    return {row[0]: row[1:] for row in report.rows}


def test_the_metric_scores_validations_chooses_the_best_epoch_and_is_in_the_checkpoint(runs):
    run = load_run(runs[0])
    assert (runs[0] / 'history.csv').read_text().splitlines()[0] == 'fold,seed,epoch,loss,lr,score,seconds'
    for fold, epochs in enumerate(run.history):
        card = load_tagger(runs[0] / f'fold_{fold}.pt').card
        rows = run.oof.folds == fold
        truth, probs = run.oof.truth[rows], run.oof.probabilities[rows]
        assert card.metric == 'macro_auc'
        assert card.oof_score == pytest.approx(SLOW_METRICS['macro_auc'](truth, probs), abs=2e-6)
        assert card.oof_score == pytest.approx(epochs['score'].max(), abs=2e-6)
        assert card.oof_score != pytest.approx(compute_metric('lwlrap', truth, probs), abs=1e-3)
    assert len({epochs['score'].idxmax() for epochs in run.history} | {5}) > 1, 'a best epoch before the last'


@pytest.mark.parametrize('step', [0.1, -0.1])
def test_a_plateau_of_the_metric_lowers_the_learning_rate(data, tmp_path, step):
    recipe = AUC.override(['optim.schedule=plateau', 'optim.patience=0', 'optim.factor=0.5', 'epochs=4'])
    trainer = new_trainer(load_table(recipe, *data), recipe)
    scores = [0.5 + step * k for k in range(4)]
    left = iter(scores)
    rates = [row['lr'] for row in trainer.train(tmp_path / 'state', lambda: next(left))]
    assert [rates[0] / rate for rate in rates] == ([1, 1, 1, 1] if step > 0 else [1, 1, 2, 4])
    assert [row['score'] for row in trainer.history] == scores


def test_all_that_is_printed_names_the_metric(runs, data, tmp_path, capsys):
    ways = {'mode': 'windows', 'window_s': 0.3, 'hop_s': 0.15, 'blend_with': [runs[1]]}
    result = predict_oof(runs[0], data[1], **ways, **QUIET)
    assert result.variants[0].gain.value == pytest.approx(result.variants[0].score - result.score)
    text = str(result)
    assert text.startswith('out of fold: macro_auc 0.') and 'hardest classes (macro_auc): ' in text
    assert text.count(': macro_auc 0.') == 3 and 'lwlrap' not in text and 'map3' not in text
    text = str(load_run(runs[1]).oof)
    assert text.startswith('out of fold: map3 0.') and 'hardest classes (lwlrap): ' in text
    assert 'oof map3 0.' in run_doctor([str(runs[1] / 'fold_0.pt')])
    report = probe(runs[0], data[1], bands=2, stretches=0, device='cpu', progress=False)
    oof = load_oof(runs[0])
    assert report.metric == 'macro_auc' and '  macro_auc  change' in str(report)
    assert report.rows[0].score == pytest.approx(compute_metric('macro_auc', oof.truth, oof.probabilities))
    train_run(AUC, *data, tmp_path / 'run', only_folds=[0], **QUIET | {'progress': True})
    printed = capsys.readouterr()
    assert 'fold 0: macro_auc 0.' in printed.out and ', macro_auc 0.' in printed.err


def test_show_names_each_run_s_own_metric_and_compares_by_the_first_run_s(runs):
    first, second = (load_run(folder).oof for folder in runs)
    rows = rows_of(show(list(runs)))
    for place, (name, oof) in enumerate((('macro_auc', first), ('map3', second))):
        interval = bootstrap_interval(name, oof.truth, oof.probabilities)
        text = f'{interval.value:.4f} (95 %: {interval.low:.4f} to {interval.high:.4f})'
        assert rows[name][place] == text and rows[name][1 - place] == '-'
        fold = oof.folds == 0
        score = compute_metric(name, oof.truth[fold], oof.probabilities[fold])
        assert rows[f'{name}, fold 0'][place] == f'{score:.4f}'
    gain = bootstrap_difference('macro_auc', first.truth, second.probabilities, first.probabilities)
    assert rows['gain in macro_auc over the first run'][1].startswith(f'{gain.value:.4f} (95 %: {gain.low:.4f}')
    of_classes = metric_per_class('macro_auc', first.truth, first.probabilities)
    assert rows['class high, macro_auc'] == (f'{of_classes[0]:.4f}', '-')
    assert 'class high, lwlrap' in rows and rows['metric'] == ('"macro_auc"', '"map3"')


def test_curves_and_plots_of_classes_are_those_of_the_metric(runs):
    pytest.importorskip('matplotlib')
    from kit.plots.runs import draw_classes, draw_history

    run = load_run(runs[0])
    axes = draw_classes(run).figure.axes[0]
    values = np.sort(metric_per_class('macro_auc', run.oof.truth, run.oof.probabilities))
    np.testing.assert_allclose(axes.lines[0].get_xdata(), values)
    assert axes.get_xlabel() == 'macro_auc and its 95 % interval'
    panels = draw_history([run, load_run(runs[1])]).figure.axes
    assert panels[1].get_ylabel() == 'validation macro_auc, map3'


def test_a_stack_and_a_blend_use_the_metric_of_the_first_run(runs, data, tmp_path):
    result = stack(runs, tmp_path / 'stack', 'logistic', device='cpu', progress=False)
    first, second = (load_oof(folder) for folder in runs)
    mean = (first.probabilities + second.probabilities_like(first, *runs[::-1])) / 2
    assert result.mean == pytest.approx(compute_metric('macro_auc', first.truth, mean))
    assert result.score == pytest.approx(load_oof(tmp_path / 'stack').score, abs=1e-6)
    assert result.gain.value == pytest.approx(result.score - result.mean)
    assert 'macro_auc out of fold' in str(result)
    assert json.loads((tmp_path / 'stack' / 'stack.json').read_text())['metric'] == 'macro_auc'
    assert f'oof macro_auc {result.score:.6g}' in run_doctor([str(tmp_path / 'stack' / 'stack.pt')])
    assert next(iter(rows_of(show(tmp_path / 'stack')))) == 'macro_auc'
    swapped = predict_oof(runs[1], data[1], blend_with=[runs[0]], **QUIET)
    assert swapped.variants[0].metric == 'map3'


def test_another_metric_in_the_same_folder_and_a_fold_without_its_labels_are_refused(runs, data, tmp_path):
    with pytest.raises(KitError, match="metric is 'macro_auc' there and 'macro_ap' here"):
        train_quietly(AUC.override(['metric=macro_ap']), *data, runs[0])
    frame = pd.read_csv(data[0])
    frame.loc[frame['fold'] == 1, 'labels'] = 'high,low,noisy'
    frame.to_csv(tmp_path / 'table.csv', index=False)
    words = 'fold 1 cannot be scored .*: macro_auc has no value on 10 clips'
    with pytest.raises(KitError, match=words):
        train_quietly(AUC, tmp_path / 'table.csv', data[1], tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    with pytest.raises(KitError, match="did you mean 'macro_auc'"):
        TINY.override(['metric=macro_roc'])


def test_recipes_explains_the_metric():
    line = next(line for line in list_recipes('max-pyramid-mel').splitlines() if line.startswith('  metric ='))
    assert 'lwlrap' in line and 'padded_cmap' in line and 'micro_f1' in line
