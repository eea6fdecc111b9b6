'''Plots of predictions and labels agree with slow definitions, and unknown labels do not count as false.'''

import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.core.errors import KitError
from kit.labels.metrics import metric_per_class
from kit.labels.oof_predictions import OofPredictions
from kit.models.tagger import wrap_network
from kit.plots.clips import draw_clip, draw_contact_sheet
from kit.plots.runs import (
    calibration_bins,
    draw_calibration,
    draw_classes,
    draw_confusion,
    draw_history,
    draw_labels,
    draw_self_training,
    draw_timeline,
    mean_confusion,
)
from kit.train.oof import SavedRun
from tests.behaviour.trained import LoudBands, noise, plain_frontend, write_wav

matplotlib = pytest.importorskip('matplotlib')
DRAW = (draw_classes, draw_confusion, draw_calibration)


def make_run(truth, scores, names=None):
    '''A run in memory. Shape: truth (n, K) of 1, 0 or NaN, scores (n, K)'''
    n, k = truth.shape
    columns = {'epoch': [1, 2, 3], 'loss': [2.0, 1.0, 0.5], 'score': [np.nan, 0.5, 0.6]}
    return SavedRun(
        folder=Path('some_run'),
        recipe={},
        history=[pd.DataFrame({'fold': [fold] * 3, **columns}) for fold in ('0', '1')],
        oof=OofPredictions(
            names=tuple(str(i) for i in range(n)),
            classes=tuple(names or [f'class_{i}' for i in range(k)]),
            folds=np.arange(n) % 2,
            truth=truth,
            probabilities=scores,
            failures={},
        ),
    )


def make_labels(n=60, k=5, unknown=0.3, seed=0):
    '''Random labels, some unknown, and scores that are better than chance.'''
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, k)) < 0.3).astype(float)
    truth[np.arange(n), np.arange(n) % k] = 1
    scores = np.clip(0.3 * truth + rng.random((n, k)) * 0.7, 0, 0.999)
    truth[(rng.random((n, k)) < unknown) & (truth == 0)] = np.nan
    return truth, scores


def make_table(truth, classes):
    '''The clip table of such labels.'''

    def texts(value):
        return [','.join(c for c, t in zip(classes, row, strict=True) if t == value) for row in truth]

    names = [f'{i}.wav' for i in range(len(truth))]
    return pd.DataFrame({'fname': names, 'labels': texts(1), 'false_labels': texts(0)})


def matrix_of(axes):
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def row_names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_confusion_is_the_mean_over_clips_where_the_class_is_known_to_be_false():
    truth, scores = make_labels()
    slow = np.full((5, 5), np.nan)
    for row in range(5):
        for column in range(5):
            clips = [i for i in range(60) if truth[i, row] == 1 and truth[i, column] == 0]
            if clips:
                slow[row, column] = np.mean([scores[i, column] for i in clips])
    assert np.isnan(np.diag(slow)).all()
    np.testing.assert_allclose(mean_confusion(truth, scores), slow, rtol=1e-12)
    axes = draw_confusion(make_run(truth, scores)).figure.axes[0]
    order = np.argsort(metric_per_class('lwlrap', truth, scores))
    assert row_names(axes) == [f'class_{k}' for k in order]
    np.testing.assert_allclose(matrix_of(axes), slow[np.ix_(order, order)], rtol=1e-12)


def test_calibration_counts_known_labels_alone_with_wilson_intervals():
    truth, scores = make_labels(n=200)
    scores[0, 0] = 1.0
    bins = calibration_bins(truth, scores)
    expected = []
    for number in range(10):
        in_bin = (np.minimum((scores * 10).astype(int), 9) == number) & ~np.isnan(truth)
        if in_bin.any():
            expected.append((scores[in_bin].mean(), truth[in_bin].mean(), in_bin.sum()))
    np.testing.assert_allclose(np.array([bins.predicted, bins.observed, bins.n_labels]).T, expected, rtol=1e-9)
    assert bins.n_labels.sum() == (~np.isnan(truth)).sum()
    assert (bins.low <= bins.observed + 1e-12).all() and (bins.observed <= bins.high + 1e-12).all()
    for ends in (bins.low, bins.high):
        # Wilson: if the end of the interval were the true frequency, the observed one would be 1.96 deviations away.
        deviations = np.sqrt(ends * (1 - ends) / bins.n_labels)
        np.testing.assert_allclose(np.abs(ends - bins.observed), 1.96 * deviations, atol=1e-9)
    line = draw_calibration(make_run(truth, scores)).figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_xydata(), np.array([bins.predicted, bins.observed]).T)


def test_labels_that_become_unknown_change_nothing_but_their_own_part():
    truth, scores = make_labels(unknown=0)
    hidden = truth.copy()
    hidden[:30, 2] = np.nan
    others = [0, 1, 3, 4]
    without = mean_confusion(truth[:, others], scores[:, others])
    np.testing.assert_allclose(mean_confusion(hidden, scores)[np.ix_(others, others)], without, rtol=1e-12)
    is_known = ~np.isnan(hidden)
    alone = calibration_bins(hidden[is_known][None], scores[is_known][None])
    np.testing.assert_allclose(calibration_bins(hidden, scores), alone, rtol=1e-12)


def test_classes_are_drawn_hardest_first_with_intervals_of_resampled_clips_and_their_clips():
    truth, scores = make_labels()
    axes = draw_classes(make_run(truth, scores, list('abcde'))).figure.axes[0]
    precision = metric_per_class('lwlrap', truth, scores)
    order = np.argsort(precision)
    assert row_names(axes) == [f'{"abcde"[k]}  {int((truth[:, k] == 1).sum())}' for k in order]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), precision[order], rtol=1e-12)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    hardest = order[0]
    generator = np.random.default_rng(0)
    resampled = []
    while len(resampled) < 1000:
        rows = np.repeat(np.arange(60), np.bincount(generator.integers(60, size=60), minlength=60))
        if (truth[rows, hardest] == 1).any():
            resampled.append(metric_per_class('lwlrap', truth[rows], scores[rows])[hardest])
    bar = axes.collections[0].get_segments()[0][:, 0]
    np.testing.assert_allclose(bar, np.quantile(resampled, (0.025, 0.975)), rtol=1e-9)


def test_labels_are_counted_in_clips_and_seconds_and_by_pairs():
    truth, _ = make_labels()
    seconds = np.random.default_rng(1).random(60) * 10
    clip_panel, seconds_panel, matrix, *_ = draw_labels(make_table(truth, 'abcde'), seconds).figure.axes
    is_true = truth == 1
    order = np.argsort(-is_true.sum(axis=0), kind='stable')
    assert row_names(clip_panel) == ['abcde'[k] for k in order]
    assert [bar.get_width() for bar in clip_panel.patches] == is_true.sum(axis=0)[order].tolist()
    expected = [seconds[is_true[:, k]].sum() for k in order]
    np.testing.assert_allclose([bar.get_width() for bar in seconds_panel.patches], expected)
    shares = np.full((5, 5), np.nan)
    for i, row in enumerate(order):
        for j, column in enumerate(order):
            clips = is_true[:, row] & ~np.isnan(truth[:, column])
            if row != column and clips.any():
                shares[i, j] = is_true[clips, column].mean()
    np.testing.assert_allclose(matrix_of(matrix), shares)


def test_several_rows_of_a_clip_count_as_one_clip():
    table = pd.DataFrame(
        {
            'fname': ['a', 'a', 'a', 'b'],
            'labels': ['x', 'y', '', 'x'],
            'false_labels': ['', '', '', 'y'],
            'begin_s': [0.0, 0, 1, 0],
            'end_s': [np.inf, 1, 2, np.inf],
        }
    )
    clip_panel, seconds_panel, matrix, *_ = draw_labels(table, [3.0, 3.0, 3.0, 4.0]).figure.axes
    assert [bar.get_width() for bar in clip_panel.patches] == [2, 1]
    assert [bar.get_width() for bar in seconds_panel.patches] == [7, 3]
    assert matrix_of(matrix)[1, 0] == 1 and matrix_of(matrix)[0, 1] == 0.5


def test_labels_that_are_missing_or_do_not_fit_their_seconds_are_refused():
    table = pd.DataFrame({'fname': ['a', 'b'], 'labels': ['', '']})
    with pytest.raises(KitError, match='0 classes in 2 rows'):
        draw_labels(table)
    with pytest.raises(KitError, match='as many seconds as rows'):
        draw_labels(table.assign(labels='x'), [1.0])


def test_of_many_classes_forty_are_shown_and_the_title_says_so():
    truth, scores = make_labels(n=160, k=80)
    run = make_run(truth, scores, [f'Male_speech_and_man_speaking_{i}' for i in range(80)])
    for draw in (draw_classes, draw_confusion):
        figure = draw(run).figure
        axes = figure.axes[0]
        assert len(axes.get_yticklabels()) == 40 and '40 of 80 classes' in axes.get_title()
        assert min(label.get_fontsize() for label in axes.get_yticklabels()) >= 8
        assert figure.get_figwidth() <= 11
    figure = draw_labels(make_table(truth, run.oof.classes)).figure
    assert '40 of 80 classes' in figure.get_suptitle() and figure.get_figwidth() <= 11


def test_a_run_without_predictions_or_true_labels_is_refused_with_a_reason():
    truth, scores = make_labels()
    unfinished = make_run(np.zeros((0, 0)), np.zeros((0, 0)))
    unlabelled = make_run(np.full_like(truth, np.nan), scores)
    for draw in DRAW:
        with pytest.raises(KitError, match=r'no oof\.csv yet'):
            draw(unfinished)
        with pytest.raises(KitError, match='none of the 60 clips of some_run has a true label'):
            draw(unlabelled)


@pytest.mark.parametrize(('n', 'k'), [(1, 3), (30, 1)])
def test_few_clips_and_few_classes_are_drawn_without_a_warning(n, k):
    run = make_run(*make_labels(n, k, unknown=0))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for draw in DRAW:
            if draw is draw_classes and n == 1:
                with pytest.raises(KitError, match='resampling'):
                    draw(run)
            else:
                assert draw(run).to_bytes().startswith(b'\x89PNG')
        assert draw_labels(make_table(run.oof.truth, run.oof.classes)).to_bytes().startswith(b'\x89PNG')
        assert draw_history([run]).to_bytes().startswith(b'\x89PNG')


def test_names_are_no_formulas_and_long_ones_lose_their_middle():
    truth, scores = make_labels(unknown=0)
    names = ['$a', 'b$_$', '<b>&', '\udcff\\frac', 'x' * 90 + '_1']
    run = replace(make_run(truth, scores, names), folder=Path('$a_$b'))
    for draw in DRAW:
        draw(run).to_bytes()
    draw_labels(make_table(truth, names)).to_bytes()
    draw_history([run, replace(run, folder=Path('$c_$d'))]).to_bytes()
    shown = row_names(draw_confusion(run).figure.axes[0])
    assert r'\$a' in shown and '<b>&' in shown and max(map(len, shown)) < 40
    assert any(name.startswith('xxx') and name.endswith('_1') for name in shown)


MARKUP = ('C$_2$', 'a_$x^{', r'$\frac{1}$', '<b>$&', r'\$x_2\$', '$$')


def pictures(folder, names):
    '''Yield every picture of kit/plots that shows names, and the names that it shows.'''
    truth, scores = make_labels(k=len(names), unknown=0)
    run = replace(make_run(truth, scores, names), folder=folder / names[0])
    clip = write_wav(folder / f'{names[0]}.wav', noise(4000))
    tagger = wrap_network(LoudBands(len(names)), plain_frontend(), names)
    model = {'checkpoint': f'{names[0]}.pt', 'spans': [[0.0, 1.0]]}
    report = {'state': names[1], 'spans': {}, 'models': [model], 'seconds_total': 1.0, 'deadline_s': None}
    counts = folder / 'run' / 'rounds' / '1' / 'labels' / 'relabel.json'
    counts.parent.mkdir(parents=True, exist_ok=True)
    counts.write_text(json.dumps({'counts': dict.fromkeys(names, 1)}))
    for path in (folder / 'run' / 'rounds' / 'folds.csv', folder / 'run' / 'folds.csv'):
        path.write_text('fname,labels,fold\na,x,0\nb,y,0\n')
    (folder / 'run' / 'oof.csv').write_text('fname,fold,x,y\na,0,0.9,0.1\nb,0,0.1,0.9\n')
    yield draw_classes(run), [*names, names[0]]
    yield draw_confusion(run), names
    yield draw_labels(make_table(truth, names)), names
    yield draw_history([run, replace(run, folder=Path(names[1]))]), [names[1]]
    yield draw_timeline(report), [names[0], names[1]]
    yield draw_self_training(folder / 'run'), names
    yield draw_clip(tagger, clip, names[:1]), names
    yield draw_contact_sheet(clip, folder / 'sheet.png'), [clip.name]


def test_every_picture_draws_names_with_markup_as_they_are(tmp_path):
    for plot, names in pictures(tmp_path, MARKUP):
        plot.to_bytes()  # draws the tick labels too
        texts = [text.get_text() for text in plot.figure.findobj(matplotlib.text.Text)]
        drawn = [text.replace(r'\$', '$') for text in texts if not matplotlib.cbook.is_math_text(text)]
        for name in names:
            assert any(name in text for text in drawn), (name, texts)


def test_plots_need_no_pyplot_and_change_no_setting(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    before = matplotlib.rcParams.copy()
    run = make_run(*make_labels())
    for draw in DRAW:
        draw(run).to_bytes()
    draw_labels(make_table(run.oof.truth, run.oof.classes)).to_bytes()
    assert draw_history([run])._repr_png_().startswith(b'\x89PNG')
    assert matplotlib.rcParams.copy() == before


def test_learning_curves_show_every_validation_and_tell_folds_or_runs_apart():
    run = make_run(*make_labels())
    nine = [replace(run, folder=Path(f'run_{i}')) for i in range(9)]
    for runs, names in (
        ([run], ['fold 0', 'fold 1']),
        ([run, run], ['some_run']),
        (nine, [f'run_{i}' for i in range(9)]),
    ):
        figure = draw_history(runs).figure
        loss, score = figure.axes
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names
        styles = {(line.get_color(), line.get_linestyle()) for line in score.lines}
        assert len(styles) == len(names)
        assert all(re.fullmatch('#[0-9A-F]{6}', colour) for colour, _ in styles)
        np.testing.assert_array_equal(loss.lines[0].get_xydata(), [(1, 2), (2, 1), (3, 0.5)])
        np.testing.assert_array_equal(score.lines[0].get_xydata(), [(2, 0.5), (3, 0.6)])
