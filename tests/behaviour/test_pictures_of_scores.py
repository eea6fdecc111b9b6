"""Pictures of a run's predictions and a table's labels: they meet slow definitions; unknown is not false."""

import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.core.errors import KitError
from kit.labels.metrics import lwlrap_per_class
from kit.plots.labels import draw_labels
from kit.plots.runs import (
    class_intervals,
    draw_calibration,
    draw_classes,
    draw_confusion,
    draw_history,
    mean_confusion,
    reliability,
)
from kit.train.oof import SavedRun

matplotlib = pytest.importorskip("matplotlib")
DRAWINGS = (draw_classes, draw_confusion, draw_calibration)


def made_run(truth, scores, names=None):
    """A run in memory. Shape: truth (n, K) of 1, 0 or NaN, scores (n, K)"""
    n, k = truth.shape
    classes = names or [f"Male_speech_and_man_speaking_{i}" for i in range(k)]
    history = [
        pd.DataFrame({"fold": [str(f)] * 2, "epoch": [1, 2], "loss": [2.0, 1.0], "lwlrap": [np.nan, 0.5]})
        for f in (0, 1)
    ]
    return SavedRun(
        Path("some_run"),
        {},
        history,
        [str(i) for i in range(n)],
        classes,
        np.arange(n) % 2,
        truth,
        scores,
    )


def drawn_labels(n=60, k=5, unknown=0.3, seed=0):
    """Labels with unknown ones, and scores that half know them."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, k)) < 0.3).astype(float)
    truth[np.arange(n), np.arange(n) % k] = 1
    scores = np.clip(0.3 * truth + rng.random((n, k)) * 0.7, 0, 0.999)
    truth[(rng.random((n, k)) < unknown) & (truth == 0)] = np.nan
    return truth, scores


def table_of(truth, classes):
    """A clip table that says the same."""
    texts = [
        [",".join(c for c, t in zip(classes, row, strict=True) if t == state) for row in truth]
        for state in (1, 0)
    ]
    return pd.DataFrame(
        {"fname": [f"{i}.wav" for i in range(len(truth))], "labels": texts[0], "false_labels": texts[1]}
    )


def image_of(axes):
    """The numbers of a square as they were given."""
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


def row_names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_what_is_believed_wrongly_is_the_mean_over_clips_known_to_be_so():
    truth, scores = drawn_labels()
    slow = np.full((5, 5), np.nan)
    for true in range(5):
        for wrong in range(5):
            clips = [i for i in range(60) if truth[i, true] == 1 and truth[i, wrong] == 0]
            if clips:
                slow[true, wrong] = sum(scores[i, wrong] for i in clips) / len(clips)
    assert np.isnan(np.diag(slow)).all()
    np.testing.assert_allclose(mean_confusion(truth, scores), slow, rtol=1e-12)
    axes = draw_confusion(made_run(truth, scores)).figure.axes[0]
    precision, _ = lwlrap_per_class(truth, scores)
    order = np.argsort(precision)
    assert row_names(axes) == [f"Male_speech_and_man_speaking_{k}" for k in order]
    np.testing.assert_allclose(image_of(axes), slow[np.ix_(order, order)], rtol=1e-12)


def test_reliability_counts_known_labels_alone():
    truth, scores = drawn_labels(n=200)
    scores[0, 0] = 1.0
    told = reliability(truth, scores)
    rows = []
    for low in np.arange(10) / 10:
        inside = [
            (p, t)
            for p, t in zip(scores.ravel(), truth.ravel(), strict=True)
            if not np.isnan(t) and (low <= p < low + 0.1 or (p == 1 and low == 0.9))
        ]
        if inside:
            p, t = np.array(inside).T
            rows.append((p.mean(), t.mean(), len(inside)))
    np.testing.assert_allclose(told[[0, 1, 4]].T, rows, rtol=1e-9)
    mean, share, low, high, count = told
    assert count.sum() == (~np.isnan(truth)).sum()
    assert (low <= share + 1e-12).all() and (share <= high + 1e-12).all()
    for p, edge, n in [*zip(share, low, count, strict=True), *zip(share, high, count, strict=True)]:
        # Wilson: a true share at an end of the interval is just 1.96 deviations from what was seen
        assert abs(edge - p) == pytest.approx(1.96 * np.sqrt(edge * (1 - edge) / n), abs=1e-9)
    line = draw_calibration(made_run(truth, scores)).figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_xydata(), np.array([mean, share]).T)


def test_labels_that_become_unknown_change_nothing_but_their_own_share():
    truth, scores = drawn_labels(unknown=0)
    hidden = truth.copy()
    hidden[:30, 2] = np.nan
    without = np.delete(truth, 2, axis=1), np.delete(scores, 2, axis=1)
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(
        mean_confusion(hidden, scores)[np.ix_(kept, kept)], mean_confusion(*without), rtol=1e-12
    )
    known = ~np.isnan(hidden)
    alone = hidden[known][None], scores[known][None]
    np.testing.assert_allclose(reliability(hidden, scores), reliability(*alone), rtol=1e-12)
    assert known.sum() == truth.size - 30


def test_each_class_has_its_own_lwlrap_and_an_interval_of_resampled_clips():
    truth, scores = drawn_labels()
    precision, _ = lwlrap_per_class(truth, scores)
    found = list(class_intervals(truth, scores, range(5)))
    np.testing.assert_allclose([each.value for each in found], precision, rtol=1e-12)
    generator, slow = np.random.default_rng(0), []
    while len(slow) < 1000:
        rows = np.repeat(np.arange(60), np.bincount(generator.integers(60, size=60), minlength=60))
        if (truth[rows, 3] == 1).any():
            slow.append(lwlrap_per_class(truth[rows], scores[rows])[0][3])
    np.testing.assert_allclose((found[3].low, found[3].high), np.quantile(slow, (0.025, 0.975)), rtol=1e-9)


def test_the_hardest_classes_stand_on_top_with_their_clips():
    truth, scores = drawn_labels(unknown=0)
    run = made_run(truth, scores, list("abcde"))
    axes = draw_classes(run).figure.axes[0]
    precision, _ = lwlrap_per_class(truth, scores)
    order = np.argsort(precision)
    assert row_names(axes) == [f"{'abcde'[k]}  {int(truth[:, k].sum())}" for k in order]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), precision[order])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_labels_are_counted_by_clips_and_their_seconds():
    truth, _ = drawn_labels()
    classes = list("abcde")
    seconds = np.random.default_rng(1).random(60) * 10
    clips, lasting, square, *_ = draw_labels(table_of(truth, classes), seconds).figure.axes
    order = np.argsort(-(truth == 1).sum(axis=0), kind="stable")
    assert row_names(clips) == [classes[k] for k in order]
    assert [bar.get_width() for bar in clips.patches] == [(truth[:, k] == 1).sum() for k in order]
    heard = [sum(s for s, row in zip(seconds, truth, strict=True) if row[k] == 1) for k in order]
    np.testing.assert_allclose([bar.get_width() for bar in lasting.patches], heard)
    slow = np.full((5, 5), np.nan)
    for i, row in enumerate(order):
        for j, column in enumerate(order):
            known = (truth[:, row] == 1) & ~np.isnan(truth[:, column])
            if row != column and known.any():
                slow[i, j] = (truth[known, column] == 1).mean()
    np.testing.assert_allclose(image_of(square), slow)


def test_stretches_of_a_clip_count_as_one():
    table = pd.DataFrame(
        {
            "fname": ["a", "a", "a", "b"], "labels": ["x", "y", "", "x"], "false_labels": ["", "", "", "y"],
            "begin_s": [0.0, 0, 1, 0], "end_s": [np.inf, 1, 2, np.inf],
        }
    )  # fmt: skip
    axes = draw_labels(table, [3.0, 3.0, 3.0, 4.0]).figure.axes
    assert [bar.get_width() for bar in axes[0].patches] == [2, 1]
    assert [bar.get_width() for bar in axes[1].patches] == [7, 3]
    assert image_of(axes[2])[1, 0] == 1 and image_of(axes[2])[0, 1] == 0.5


def test_of_many_classes_forty_are_shown_and_the_title_says_so():
    truth, scores = drawn_labels(n=160, k=80)
    run = made_run(truth, scores)
    for draw in (draw_classes, draw_confusion):
        axes = draw(run).figure.axes[0]
        assert len(axes.get_yticklabels()) == 40 and "40 of 80 classes" in axes.get_title()
        assert min(label.get_fontsize() for label in axes.get_yticklabels()) >= 8
    figure = draw_labels(table_of(truth, run.classes)).figure
    assert "40 of 80 classes" in figure.get_suptitle() and figure.get_figwidth() <= 11
    assert draw_classes(run).figure.get_figwidth() <= 11 >= draw_confusion(run).figure.get_figwidth()


@pytest.mark.parametrize("draw", DRAWINGS)
def test_what_a_picture_cannot_tell_of_is_said_in_a_sentence(draw):
    truth, scores = drawn_labels()
    unfinished = made_run(np.zeros((0, 0)), np.zeros((0, 0)))
    with pytest.raises(KitError, match=r"no oof\.csv yet"):
        draw(unfinished)
    with pytest.raises(KitError, match="none of the 60 clips has a true label"):
        draw(made_run(np.full_like(truth, np.nan), scores))
    assert len(draw_history([unfinished]).figure.axes[0].lines) == 2


@pytest.mark.parametrize(("n", "k"), [(1, 3), (30, 1)])
def test_few_clips_and_few_classes_are_drawn_without_a_warning(n, k):
    run = made_run(*drawn_labels(n, k, unknown=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in DRAWINGS:
            if draw is draw_classes and n == 1:
                with pytest.raises(KitError, match="resampling wants 2"):
                    draw(run)
            else:
                assert draw(run).drawn().startswith(b"\x89PNG")
        assert draw_labels(table_of(run.truth, run.classes)).drawn().startswith(b"\x89PNG")
        assert draw_history([run]).drawn().startswith(b"\x89PNG")


def test_labels_that_are_none_or_do_not_fit_their_seconds_are_refused():
    table = pd.DataFrame({"fname": ["a", "b"], "labels": ["", ""]})
    with pytest.raises(KitError, match="0 classes in 2 rows"):
        draw_labels(table)
    with pytest.raises(KitError, match="as many seconds as rows"):
        draw_labels(table.assign(labels="x"), [1.0])


def test_names_are_no_formulas_and_long_ones_are_cut():
    truth, scores = drawn_labels(unknown=0)
    run = made_run(truth, scores, ["$a", "b$_$", "<b>&", "\udcff\\frac", "x" * 90])
    run = replace(run, folder=Path("$a_$b"))
    for draw in DRAWINGS:
        draw(run).drawn()
    shown = row_names(draw_confusion(run).figure.axes[0])
    assert r"\$a" in shown and "<b>&" in shown and max(map(len, shown)) < 40


def test_pictures_need_no_pyplot_and_leave_no_settings_behind(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = matplotlib.rcParams.copy()
    run = made_run(*drawn_labels())
    for draw in DRAWINGS:
        draw(run).drawn()
    draw_labels(table_of(run.truth, run.classes)).drawn()
    assert draw_history([run])._repr_png_().startswith(b"\x89PNG")
    assert matplotlib.rcParams.copy() == before


def test_folds_of_one_run_and_several_runs_have_colours_of_their_own():
    run = made_run(*drawn_labels())
    for runs, names in (([run], ["fold 0", "fold 1"]), ([run, run], ["some_run"])):
        axes = draw_history(runs).figure.axes[1]
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
        colours = {line.get_color() for line in axes.lines}
        assert len(colours) == len(names)
        assert all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours)
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(2, 0.5)])
