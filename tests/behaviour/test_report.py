'''`show` reports what run folders and submissions hold: scores, costs, the settings that differ, plots.'''

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from kit.audio.frontend import FrontendConfig
from kit.core.errors import KitError
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval
from kit.labels.metrics import lwlrap
from kit.models.checkpoint import save_tagger
from kit.models.tagger import wrap_network
from kit.report import show

CLASSES = ('bark', 'meow', 'rain')
RECIPE = {'name': 'small', 'epochs': 4, 'lr_peak': 0.005, 'network': {'family': 'pyramid', 'width': 8}}
HISTORY = 'fold,seed,epoch,loss,lr,score,seconds\n0,0,1,.7,.1,,60\n0,0,2,.6,.1,.8,60\n'
GAIN = 'gain in lwlrap over the first run'


def make_scores(seed, n=30, skill=1.0):
    '''Clips of one label each, and random scores, better the more skill. Shape: (n, K), (n, K)'''
    truth = np.eye(3)[np.arange(n) % 3]
    noise = 0.15 * np.random.default_rng(seed).standard_normal((n, 3))
    return truth, np.clip(0.5 + 0.2 * skill * (truth - 0.5) + noise, 0, 1)


def write_run(folder, scores=None, recipe=RECIPE, history=HISTORY, order=range(30)):
    '''Write a run's folder; the rows of its CSV files are in `order`.'''
    folder.mkdir()
    rows = [f'{i:03d}.wav,{CLASSES[i % 3]},{i % 2}' for i in order]
    (folder / 'folds.csv').write_text('\n'.join(['fname,labels,fold', *rows, '']))
    if recipe:
        (folder / 'recipe.json').write_text(json.dumps(recipe))
    if scores is not None:
        rows = [f'{i:03d}.wav,{i % 2},' + ','.join(f'{p:.9g}' for p in scores[i]) for i in order]
        (folder / 'oof.csv').write_text('\n'.join([f'fname,fold,{",".join(CLASSES)}', *rows, '']))
    if history:
        (folder / 'history.csv').write_text(history)
    return str(folder)


def rows_of(report):
    '''The rows of a report's table by their names.'''
    return {row[0]: row[1:] for row in report.rows}


def test_scores_and_gains_are_those_of_the_predictions_on_disk(tmp_path):
    truth, weak = make_scores(0)
    _, strong = make_scores(1, skill=3.0)
    other_order = list(range(29, -1, -1))
    runs = [write_run(tmp_path / 'a', weak), write_run(tmp_path / 'b', strong, order=other_order)]
    rows = rows_of(show(runs))
    alone = bootstrap_interval('lwlrap', truth, weak)
    gain = bootstrap_difference('lwlrap', truth, strong, weak)
    assert rows['lwlrap'][0] == f'{alone.value:.4f} (95 %: {alone.low:.4f} to {alone.high:.4f})'
    assert rows[GAIN] == ('-', f'{gain.value:.4f} (95 %: {gain.low:.4f} to {gain.high:.4f})')
    assert gain.low > 0
    for fold in (0, 1):
        assert rows[f'lwlrap, fold {fold}'][1] == f'{lwlrap(truth[fold::2], strong[fold::2]):.4f}'
    assert rows['top1'][0] == f'{(weak.argmax(1) == truth.argmax(1)).mean():.4f}'
    assert rows['log loss'][0] == f'{log_loss(truth.ravel(), weak.astype(float).ravel()):.4f}'
    bin_of = np.minimum((weak * 10).astype(int), 9)
    gaps = [abs(truth[bin_of == k].mean() - weak[bin_of == k].mean()) for k in np.unique(bin_of)]
    shares = [(bin_of == k).mean() for k in np.unique(bin_of)]
    assert float(rows['expected calibration error'][0]) == pytest.approx(np.dot(gaps, shares), abs=1e-4)
    assert rows['clips'] == ('30', '30')


def test_only_settings_that_differ_are_listed_and_a_stack_has_none(tmp_path):
    _, scores = make_scores(0)
    other = RECIPE | {'lr_peak': 0.01, 'network': {'family': 'pyramid', 'width': 16}, 'extra': 'new'}
    runs = [write_run(tmp_path / 'a', scores), write_run(tmp_path / 'b', scores, other)]
    rows = rows_of(show(runs))
    assert rows['lr_peak'] == ('0.005', '0.01')
    assert rows['network.width'] == ('8', '16')
    assert rows['extra'] == ('-', '"new"')
    assert not {'name', 'network.family'} & rows.keys()
    stack = write_run(tmp_path / 'stack', scores, recipe=None, history=None)
    rows = rows_of(show([runs[0], stack]))
    assert rows[GAIN][1] == '0.0000 (95 %: 0.0000 to 0.0000)' and 'lr_peak' not in rows


def test_runs_on_other_clips_are_not_compared_clip_by_clip(tmp_path):
    _, scores = make_scores(0)
    runs = [write_run(tmp_path / 'a', scores), write_run(tmp_path / 'b', scores, order=range(28))]
    assert rows_of(show(runs))[GAIN][1] == 'not comparable: other clips or labels'


def test_clips_with_several_or_unknown_labels_have_no_top_1(tmp_path):
    _, scores = make_scores(0)
    run = write_run(tmp_path / 'a', scores)
    path = tmp_path / 'a' / 'folds.csv'
    original = path.read_text()
    path.write_text(original.replace('000.wav,bark', '000.wav,"bark,meow"'))
    assert 'top1' not in rows_of(show([run]))
    header, *lines = original.splitlines()
    lines = [f'{line},{"bark" if "rain" in line else "rain"}' for line in lines]
    path.write_text('\n'.join([f'{header},false_labels', *lines, '']))
    rows = rows_of(show([run]))
    assert 'top1' not in rows and 'lwlrap' in rows


def test_costs_are_read_from_histories(tmp_path):
    _, scores = make_scores(0)
    epochs = ['0,0,1,.7,.1,,30', '0,0,2,.6,.1,.8,30', '1,0,1,.7,.1,.9,30', 'all,0,1,.5,.1,,30']
    new = '\n'.join(['fold,seed,epoch,loss,lr,score,seconds', *epochs, ''])
    runs = [write_run(tmp_path / 'a', scores, history=new), write_run(tmp_path / 'b', scores)]
    rows = rows_of(show(runs))
    assert rows['minutes'] == ('2.0', '2.0')
    assert rows['epochs'] == ('2 1 1 of 4', '2 of 4')


def test_an_unfinished_run_is_shown_as_far_as_it_goes(tmp_path):
    run = write_run(tmp_path / 'a', None, history=None)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    tagger = wrap_network(network, FrontendConfig(), CLASSES, output='ranking')
    object.__setattr__(tagger.card, 'fold', 1)
    object.__setattr__(tagger.card, 'oof_score', 0.75)
    save_tagger(tmp_path / 'a' / 'fold_1.pt', tagger)
    rows = rows_of(show([run]))
    assert rows['lwlrap'] == ('no oof.csv yet',)
    assert rows['lwlrap, fold 1'] == ('0.7500',)
    assert rows['output'] == ('ranking',)
    assert rows['parameters'] == ('21',)  # without the running statistics


def test_the_hardest_classes_are_listed(tmp_path):
    truth, scores = make_scores(0, skill=5.0)
    scores[2::3] = 1 - truth[2::3]  # rain always ranks last
    run = write_run(tmp_path / 'a', scores)
    report = show([run], hardest=2)
    assert [row[0] for row in report.rows][-2] == 'class rain, lwlrap'
    assert rows_of(report)['class rain, lwlrap'] == ('0.3333',)
    assert 'class rain, lwlrap' not in rows_of(show([run], hardest=0))


def test_rows_for_parts_of_a_clip_do_not_replace_the_row_of_the_clip(tmp_path):
    truth, scores = make_scores(0)
    run = write_run(tmp_path / 'a', scores)
    path = tmp_path / 'a' / 'folds.csv'
    header, *lines = path.read_text().splitlines()
    parts = [f'{i:03d}.wav,{CLASSES[(i + 1) % 3]},{i % 2},1.0,2.0' for i in range(5)]
    path.write_text('\n'.join([f'{header},begin_s,end_s', *(f'{line},,' for line in lines), *parts, '']))
    assert rows_of(show([run]))['lwlrap'][0].startswith(f'{lwlrap(truth, scores):.4f}')


def test_learning_curves_are_saved_and_a_wrong_ending_is_refused(tmp_path):
    pytest.importorskip('matplotlib')
    runs = [write_run(tmp_path / name) for name in 'ab']
    empty = write_run(tmp_path / 'c', None, history=None)
    show([*runs, empty], out=tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
    for name in ('curves.txt', 'page.htm'):
        with pytest.raises(KitError, match=r'\.html.*\.png'):
            show(runs, out=tmp_path / name)
        assert not (tmp_path / name).exists()


class PageReader(HTMLParser):
    '''The links, image texts, tags and text of a page.'''

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.alts, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ('src', 'href', 'srcset', 'data', 'action')]
        self.alts += [value for name, value in attrs if name == 'alt']
        assert not any(name.startswith('on') for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


def check_page(path):
    '''Check that a page holds its images and refers to nothing else; return what it holds.'''
    text = path.read_text(encoding='utf-8')
    page = PageReader(text)
    assert page.links
    for link in page.links:
        kind, _, data = link.partition(',')
        assert kind == 'data:image/png;base64'
        assert base64.b64decode(data, validate=True).startswith(b'\x89PNG')
    outside = re.sub(r'src="[^"]*"', '', text)
    assert '//' not in outside and 'url(' not in outside and '@import' not in outside
    assert len(page.alts) == page.tags.count('img') and all(page.alts)
    assert not {'script', 'link', 'iframe', 'b', 'object'} & {*page.tags}
    return page


def test_a_page_holds_captioned_plots_runs_no_script_and_escapes_every_name(tmp_path):
    pytest.importorskip('matplotlib')
    name = '<b>&"amp;\'$x$'
    _, scores = make_scores(0)
    run = write_run(tmp_path / '<b>&', scores, RECIPE | {'source': name})
    for path in (tmp_path / '<b>&' / 'folds.csv', tmp_path / '<b>&' / 'oof.csv'):
        path.write_text(path.read_text().replace('bark', '"' + name.replace('"', '""') + '"'))
    report = show([run], tmp_path / 'report.html')
    page = check_page(tmp_path / 'report.html')
    starts = ['Learning curves', 'Labels', 'Scores of the classes', 'Label confusion', 'Calibration']
    assert len(page.alts) == 5
    assert all(alt.startswith(start) for alt, start in zip(page.alts, starts, strict=True))
    text = ''.join(page.texts)
    for row in report.rows:
        assert all(cell in text for cell in row)
    assert f'class {name}' in text and f'source{name}' in text.replace('\n', '')
    assert page.tags.count('details') == 1


def test_a_page_of_an_unfinished_run_says_what_is_missing(tmp_path):
    pytest.importorskip('matplotlib')
    empty = write_run(tmp_path / 'a', None, history=None)
    finished = write_run(tmp_path / 'b', make_scores(0)[1])
    show([empty, finished], tmp_path / 'deep' / 'page.html')
    page = check_page(tmp_path / 'deep' / 'page.html')
    assert ' '.join(page.texts).count('has no oof.csv yet') == 3
    assert page.tags.count('h2') == 2 and len(page.links) == 1 + 1 + 4


def write_report(folder):
    '''Write a submission's report as `submit` does; return the path of its CSV.'''
    model = {'checkpoint': '<b>.pt', 'weight': 0.5, 'network_s': 1.25, 'clips_predicted': 7, 'failure': None}
    report = {
        'kit': '1',
        'job': 'x',
        'state': 'finished',
        'rows': 8,
        'files_failed': {'<b>&.wav': 'the file is <empty>'},
        'notes': ['1 of 8 rows has no file'],
        'models': [model | {'spans': [[1.0, 2.0]]}],
        'seconds_total': 3.0,
        'audio_s': 40.5,
        'spans': {'decode': [[0.0, 1.0]]},
        'deadline_s': 4.0,
    }
    (folder / 'sub.json').write_text(json.dumps(report))
    return folder / 'sub.csv'


def test_a_submission_has_a_table_a_timeline_and_a_page(tmp_path):
    pytest.importorskip('matplotlib')
    csv = write_report(tmp_path)
    for source in (str(csv), [csv], [str(csv.with_suffix('.json'))]):
        rows = rows_of(show(source))
        assert rows['rows'] == ('8',) and rows['audio_s'] == ('40.5',)
        assert rows['files_failed'] == ('1',) and rows['rows_without_file'] == ('0',)
        assert rows['<b>.pt'][0].startswith('weight 0.5, 1.2 s for 7 clips')
    show([csv], tmp_path / 'page.html')
    text = ''.join(check_page(tmp_path / 'page.html').texts)
    for part in ('Timeline', '<b>&.wav', 'the file is <empty>', '1 of 8 rows has no file', '<b>.pt'):
        assert part in text
    show([csv], tmp_path / 'timeline.svg')
    assert b'<svg' in (tmp_path / 'timeline.svg').read_bytes()


def test_a_submission_that_only_wrote_priors_has_a_page_without_a_timeline(tmp_path):
    pytest.importorskip('matplotlib')
    (tmp_path / 'sub.json').write_text('{"job": "x", "state": "priors", "notes": []}')
    show(tmp_path / 'sub.csv', tmp_path / 'page.html')
    text = (tmp_path / 'page.html').read_text()
    assert 'no report that tells when' in text and '<img' not in text


def test_what_is_neither_a_run_nor_a_submission_is_refused(tmp_path):
    (tmp_path / 'recipe.json').write_text('{"epochs": 3}')
    for source in ([tmp_path / 'none.csv'], tmp_path / 'recipe.json'):
        with pytest.raises(KitError, match='no report beside'):
            show(source)
    csv = write_report(tmp_path)
    for sources in ([csv, csv], [tmp_path]):
        with pytest.raises(KitError, match='holds no run'):
            show(sources)
