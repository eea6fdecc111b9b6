'''Plots of self-training and submissions: scores on the original labels, and times that add up.'''

import json
import time
from itertools import pairwise

import numpy as np
import pytest

from kit.core.clock import Deadline, Stopwatch
from kit.core.errors import KitError
from kit.infer.job import SubmitJob, SubmitOptions
from kit.infer.submit import submit
from kit.labels.metrics import lwlrap
from kit.plots.runs import draw_self_training, draw_timeline
from kit.train.oof import load_run

pytest.importorskip('matplotlib')

CLASSES = ('bark', 'meow', 'rain')


def write_tables(folder, labels, scores=None):
    '''Write folds.csv and, with scores, oof.csv.'''
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f'{i:02d}.wav,{label},{i % 2}' for i, label in enumerate(labels)]
    (folder / 'folds.csv').write_text('\n'.join(['fname,labels,fold', *rows, '']))
    if scores is not None:
        rows = [f'{i:02d}.wav,{i % 2},{",".join(map(str, row))}' for i, row in enumerate(scores)]
        (folder / 'oof.csv').write_text('\n'.join([f'fname,fold,{",".join(CLASSES)}', *rows, '']))


def write_rounds(folder, rounds=2):
    '''Write a run of several self-training rounds, each with its own labels, and return the original ones.'''
    scores = np.random.default_rng(0).random((rounds + 1, 24, 3)).round(6)
    write_tables(folder / 'rounds', [CLASSES[i % 3] for i in range(24)])
    for r in range(rounds + 1):
        own_labels = [CLASSES[(i + r) % 3] for i in range(24)]
        write_tables(folder if r == rounds else folder / 'rounds' / str(r), own_labels, scores[r])
    for r in range(1, rounds + 1):
        labels = folder / 'rounds' / str(r) / 'labels'
        labels.mkdir(parents=True, exist_ok=True)
        report = {'method': 'agreement', 'counts': {'kept': 10 * r, 'left_out': 24 - 10 * r}}
        (labels / 'relabel.json').write_text(json.dumps(report))
    return np.eye(3)[np.arange(24) % 3], scores


def test_every_round_is_scored_on_the_original_labels(tmp_path):
    truth, scores = write_rounds(tmp_path / 'run')
    left, right = draw_self_training(tmp_path / 'run').figure.axes
    expected = [(r, lwlrap(truth, of_round)) for r, of_round in enumerate(scores)]
    np.testing.assert_allclose(left.lines[0].get_xydata(), expected, rtol=1e-6)
    counts = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert counts == {'kept': [[1, 10], [2, 20]], 'left_out': [[1, 14], [2, 4]]}
    run = load_run(tmp_path / 'run')
    assert run.oof.score != pytest.approx(expected[2][1])


def test_finished_rounds_are_shown_and_a_run_without_rounds_is_refused(tmp_path):
    write_rounds(tmp_path / 'run')
    (tmp_path / 'run' / 'oof.csv').unlink()
    left, _ = draw_self_training(tmp_path / 'run').figure.axes
    assert left.lines[0].get_xdata().tolist() == [0, 1] and left.get_xticks().tolist() == [0, 1, 2]
    write_tables(tmp_path / 'plain', ['bark'] * 4, np.zeros((4, 3)))
    for folder in (tmp_path / 'plain', tmp_path / 'nothing'):
        with pytest.raises(KitError, match='holds no rounds'):
            draw_self_training(folder)


def test_measured_spans_are_few_never_overlap_and_add_up_to_the_seconds(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, 'perf_counter', lambda: now)
    watch = Stopwatch(now)
    for i in range(3000):
        with watch.measure(('decode', 'network')[i % 2]):
            now += 0.004 if i % 500 < 3 else 0.0001
        now += 2.0 if i == 1500 else 0.0001
    assert set(watch.spans) == {'decode', 'network'}
    for name, spans in watch.spans.items():
        assert sum(end - begin for begin, end in spans) == pytest.approx(watch.seconds[name], rel=1e-9)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert 1 < len(spans) < 500
        assert spans[0][0] >= 0 and spans[-1][1] <= now - watch.began


def lanes_of(plot):
    '''The name of each lane and its spans, from the top, and the axes.'''
    axes = plot.figure.axes[0]
    lanes = []
    for label, bars in zip(axes.get_yticklabels(), axes.collections, strict=True):
        ends = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in bars.get_paths()]
        lanes.append((label.get_text().partition('  ')[0], sorted(ends)))
    return lanes, axes


@pytest.mark.usefixtures('one_core')
def test_a_submission_reports_when_it_did_what(trained, clips, tmp_path):
    out = tmp_path / 'submission.csv'
    report = submit(trained.all, clips, out, progress=False).report
    saved = json.loads(out.with_suffix('.json').read_text())
    assert saved['spans'] == report['spans'] and saved['deadline_s'] is None
    assert set(saved['spans']) == {'headers', 'models', 'decode', 'frontend', 'network', 'write'}
    measured = [(saved['spans'][name], saved['seconds'][name]) for name in saved['spans']]
    measured += [(model['spans'], model['network_s']) for model in saved['models']]
    for spans, seconds in measured:
        rounding = 0.001 * (len(spans) + 1)
        assert sum(end - begin for begin, end in spans) == pytest.approx(seconds, abs=rounding)
    models = sorted(saved['models'], key=lambda model: model['spans'])
    assert models[0]['spans'][0][0] == pytest.approx(saved['spans']['network'][0][0], abs=0.002)
    names = ['read headers', 'build models', 'decode files', 'compute spectrograms']
    names += [*(model['checkpoint'] for model in models), 'write the CSV']
    for source in (out, str(out.with_suffix('.json')), report):
        lanes, axes = lanes_of(draw_timeline(source))
        assert [name for name, _ in lanes] == names
        np.testing.assert_allclose(dict(lanes)['decode files'], saved['spans']['decode'])
        np.testing.assert_allclose(dict(lanes)['write the CSV'], saved['spans']['write'])
        assert not axes.lines and f'{saved["seconds_total"]:.1f} s' in axes.get_title()


def make_report(**details):
    '''A small submission's report.'''
    spans = {'headers': [[0.1, 0.2]], 'decode': [[0.3, 1.0], [2.0, 3.0]], 'network': [[1.0, 2.0]]}
    models = [{'checkpoint': 'fold_0.pt', 'spans': []}, {'checkpoint': 'fold_0.pt', 'spans': [[1.0, 2.0]]}]
    report = {'state': 'finished', 'spans': spans, 'models': models, 'seconds_total': 4.0, 'deadline_s': None}
    return report | details


def test_every_lane_is_drawn_and_a_deadline_that_is_near():
    axes = draw_timeline(make_report(deadline_s=5.0)).figure.axes[0]
    assert axes.lines[0].get_xdata() == [5.0, 5.0] and 'of 5.0 s to the deadline' in axes.get_title()
    axes = draw_timeline(make_report(deadline_s=3300.0)).figure.axes[0]
    assert not axes.lines and axes.get_xlim()[1] < 10 and 'of 3300.0 s' in axes.get_title()
    lanes, axes = lanes_of(draw_timeline(make_report()))
    assert lanes[2] == ('decode files', [(0.3, 1.0), (2.0, 3.0)])
    assert lanes[4:] == [('fold_0.pt', []), ('fold_0.pt', [(1.0, 2.0)]), ('write the CSV', [])]


def test_a_report_without_times_is_refused(tmp_path):
    with pytest.raises(KitError, match='no report that tells when'):
        draw_timeline(tmp_path / 'none.csv')
    with pytest.raises(KitError, match='run `submit` again'):
        draw_timeline({'state': 'priors', 'job': '1', 'notes': []})


def test_the_deadline_counts_from_where_the_spans_begin(trained, clips, tmp_path):
    options = SubmitOptions([trained.mel[0]], clips, tmp_path / 'a.csv')
    kill_at, stop_at = (Deadline(at, lambda: 1000.0) for at in (1058.5, 1057.0))
    assert SubmitJob(options, stop_at, kill_at, 1060.0).deadline_s == 60.0
    assert SubmitJob(options, stop_at).deadline_s == 57.0
    assert SubmitJob(options, Deadline()).deadline_s is None
