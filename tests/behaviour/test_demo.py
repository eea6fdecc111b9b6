'''The demo does the whole job: two trainings, a submission, two pages. The scores it prints are those on disk.'''

import sys

import pytest

from kit.demo import run_demo, score_csv
from kit.report import show
from kit.train.oof import load_run
from tests.behaviour.trained import read_scores

pytestmark = pytest.mark.usefixtures('one_core')


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    '''The folder of the smallest demo, and the text that it returned.'''
    folder = tmp_path_factory.mktemp('demo') / 'demo'
    return folder, run_demo(str(folder), clips=8, epochs=1)


def test_the_demo_prints_the_scores_that_are_on_disk(demo):
    folder, text = demo
    runs = [load_run(path) for path in (folder / 'run' / 'rounds' / '0', folder / 'run')]
    before, after = (run.oof.score for run in runs)
    assert f'{before:.4f} with 8 clean clips, {after:.4f} with the noisy clips' in text
    score, prior = score_csv(folder / 'submission.csv', next(folder.glob('data/*/test_truth.csv')))
    assert f'{score:.4f} (class frequencies alone: {prior:.4f})' in text


def test_the_demo_submits_a_row_for_each_row_of_the_template(demo):
    folder, _ = demo
    header, rows = read_scores(folder / 'submission.csv')
    template = next(folder.glob('data/*/sample_submission.csv')).read_text(encoding='utf-8').splitlines()
    assert [','.join(header), *rows] == [template[0], *(line.partition(',')[0] for line in template[1:])]


def test_the_demo_ends_with_pages_that_show_it(demo):
    folder, text = demo
    pytest.importorskip('matplotlib')
    for name in ('report.html', 'submission.html'):
        assert str(folder / name) in text and 'data:image/png;base64,' in (folder / name).read_text()
    assert 'matplotlib' not in text


def test_without_matplotlib_the_pages_hold_no_plots_and_a_sentence_says_why(demo, monkeypatch):
    folder, _ = demo
    for name in [name for name in sys.modules if name.partition('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    show(folder / 'run', folder / 'report.html')
    page = (folder / 'report.html').read_text()
    assert 'pip install matplotlib' in page and 'data:image' not in page
