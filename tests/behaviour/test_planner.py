'''Under a deadline, models are measured and ordered, and a metric per class counts whole models.'''

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kit.audio.decode import header_duration_s
from kit.audio.windows import InferenceConfig
from kit.core.clock import Deadline, TimeBudget
from kit.core.errors import KitError
from kit.doctor import bench, forecast
from kit.infer.ensemble import predict_ensemble
from kit.infer.job import SubmitJob, SubmitOptions
from kit.infer.loader import SpectrogramLoader
from kit.infer.planner import EnsembleMember, Plan, measure_cost, read_seconds
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.infer.submission import run_submission
from kit.models.checkpoint import save_tagger
from kit.models.tagger import Tagger
from tests.behaviour.trained import RATE, HandClock, LoudBands, Trained, loud_tagger, noise, read_scores, write_wav


class Timed(LoudBands):
    '''A network whose batches take some seconds of a clock that the test holds; `ballast` makes it larger.'''

    def __init__(self, clock: HandClock, seconds: float, scale: float = 0.2, ballast: int = 1) -> None:
        super().__init__(3)
        self.clock, self.seconds, self.batches = clock, seconds, 0
        self.ballast = torch.nn.Parameter(torch.zeros(ballast))
        torch.nn.init.constant_(self.scale, scale)

    def forward(self, spec: Tensor) -> Tensor:
        self.clock.time += self.seconds
        self.batches += 1
        return super().forward(spec)


def make_member(
    tagger: Tagger,
    score: float | None = None,
    cost: float = 0.0,
    metric: str = 'lwlrap',
    run: int | None = None,
    name: str = 'm',
) -> EnsembleMember:
    tagger.card = replace(tagger.card, oof_score=score, recipe={'metric': metric})
    stack = None if run is None else 0
    return EnsembleMember(name, Predictor(tagger, torch.device('cpu')), stack=stack, run=run or 0, cost=cost)


def make_plan(left_s: float, audio_s: float = 10.0) -> tuple[Plan, HandClock]:
    '''A plan with so many seconds for computing, and its clock.'''
    clock = HandClock(1000.0)
    plan = Plan(TimeBudget(Deadline(1000.2 + left_s, clock)))
    plan.set_clips({0: audio_s})
    return plan, clock


def run_order(members: Sequence[EnsembleMember], left_s: float) -> list[int]:
    '''The numbers of the models in the order in which they run, on a clock that stands.'''
    plan, _ = make_plan(left_s)
    waiting = list(members)
    while waiting:
        waiting.remove(plan.next_member(waiting))
    return [members.index(member) for member in plan.started]


def ordered(costs: Sequence[float], scores: Sequence[float | None], left_s: float) -> list[int]:
    pairs = zip(costs, scores, strict=True)
    return run_order([make_member(loud_tagger(), score, cost) for cost, score in pairs], left_s)


def test_the_cheapest_good_model_is_first_and_models_far_below_the_best_are_last() -> None:
    assert ordered([3.0, 1.0, 2.0, 0.1], [0.90, 0.88, 0.87, 0.6], 1000) == [1, 2, 0, 3]
    assert ordered([1.0, 1.0], [0.85, 0.88], 1000) == [1, 0], 'the better of equally cheap ones'
    assert ordered([2.0, 1.0], [0.9, None], 1000) == [1, 0], 'without a score a model counts as good'
    assert ordered([math.inf, 1.0], [0.9, 0.89], 1000) == [1, 0]


def test_where_no_good_model_has_the_time_for_every_row_the_cheapest_one_is_first() -> None:
    assert ordered([3.0, 2.0, 0.1], [0.9, 0.9, 0.5], 15) == [2, 1, 0]
    assert ordered([3.0, 2.0, 0.1], [0.9, 0.9, 0.5], 25) == [1, 0, 2]
    assert ordered([3.0, 2.0, 4.0], [0.9, 0.9, 0.5], 15) == [1, 0, 2]


def test_without_a_deadline_the_given_order_stays() -> None:
    members = [make_member(loud_tagger(), score, cost) for score, cost in ((0.5, 3.0), (0.9, 1.0))]
    assert Plan().next_member(members) is members[0]


@pytest.mark.parametrize(('metric', 'second'), [('lwlrap', 1), ('macro_auc', 2)])
def test_a_metric_per_class_has_models_next_that_have_the_time_for_every_row(metric: str, second: int) -> None:
    members = [make_member(loud_tagger(), score, cost, metric) for score, cost in ((0.9, 1), (0.9, 3), (0.7, 0.5))]
    plan, clock = make_plan(25.0)
    assert plan.next_member(members) is members[0]
    clock.time += 10.0
    assert plan.next_member(members[1:]) is members[second]


def test_a_cost_is_measured_anew_when_a_model_has_run_and_decides_what_comes_next() -> None:
    clock = HandClock()
    networks = [Timed(clock, 1.0), Timed(clock, 1.0), Timed(clock, 1.0, ballast=9)]
    members = [make_member(loud_tagger(network), 0.9, cost) for network, cost in zip(networks, (1, 1, 2), strict=True)]
    plan, _ = make_plan(1000.0)
    assert plan.next_member(members) is members[0]
    members[0].watch.seconds['network'] = 30.0
    members[0].read_s = 10.0
    plan.update_costs(members[0], members[1:])
    assert [member.cost for member in members] == [3.0, 3.0, 2.0], 'equal networks cost alike'
    assert plan.next_member(members[1:]) is members[2]
    assert [step['needed_s'] for step in plan.steps] == [10.0, 20.0]


def test_the_first_models_of_all_runs_of_a_stack_come_before_any_second() -> None:
    members = [make_member(loud_tagger(), 0.9, cost, run=run) for run, cost in ((0, 1), (0, 2), (1, 3), (1, 4))]
    assert run_order(members, 100.0) == [0, 2, 1, 3]


def write_run(folder: Path, noise_level: float, seed: int, sign: float = 1.0) -> None:
    '''A run's folder with predictions of 200 clips: the truth with some noise, or its opposite.'''
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 200)
    probs = sign * np.eye(3)[truth] + np.random.default_rng(seed).normal(0, noise_level, (200, 3))
    probs = 1 / (1 + np.exp(-probs))
    folder.mkdir()
    names = [f'{k}.wav' for k in range(200)]
    labels = ''.join(f'{name},{"abc"[k]},{i % 2}\n' for i, (name, k) in enumerate(zip(names, truth, strict=True)))
    (folder / 'folds.csv').write_text('fname,labels,fold\n' + labels)
    rows = [
        f'{name},{i % 2},' + ','.join(map(str, row)) for i, (name, row) in enumerate(zip(names, probs, strict=True))
    ]
    (folder / 'oof.csv').write_text('fname,fold,a,b,c\n' + '\n'.join(rows) + '\n')


def test_runs_follow_by_what_they_add_out_of_fold_per_second_and_useless_ones_are_last(tmp_path: Path) -> None:
    write_run(tmp_path / 'first', 1.0, 1)
    write_run(tmp_path / 'copy', 1.0, 1)
    write_run(tmp_path / 'other', 1.0, 2)
    write_run(tmp_path / 'costly', 0.7, 3)  # it adds most, but not per second
    write_run(tmp_path / 'wrong', 1.0, 4, sign=-1.0)
    costs = {'first': 1.0, 'copy': 1.5, 'wrong': 1.6, 'other': 2.0, 'costly': 90.0}
    members = []
    for fold in (0, 1):
        for run, cost in costs.items():
            members.append(make_member(loud_tagger(), 0.9, cost, name=str(tmp_path / run / f'fold_{fold}.pt')))
    plan, _ = make_plan(10_000.0)
    plan.compare_runs(members)
    assert [folder.name for folder in plan.selected] == ['first', 'other', 'costly']
    assert {folder.name for folder in plan.rejected} == {'copy', 'wrong'}
    waiting = list(members)
    while waiting:
        waiting.remove(plan.next_member(waiting))
    names = [Path(member.name).parent.name for member in plan.started]
    assert names == ['first', 'other', 'costly'] * 2 + ['copy', 'copy', 'wrong', 'wrong']
    assert plan.describe(members).endswith('models of copy, wrong come last, as they add nothing out of fold')


def test_a_metric_per_class_has_no_run_first_that_has_no_time_for_all_rows(tmp_path: Path) -> None:
    members = []
    for seed, (run, cost) in enumerate({'first': 1.0, 'other': 2.0, 'costly': 90.0}.items(), start=1):
        write_run(tmp_path / run, 1.0, seed)
        for fold in (0, 1):
            name = str(tmp_path / run / f'fold_{fold}.pt')
            members.append(make_member(loud_tagger(), 0.9, cost, 'macro_auc', name=name))
    plan, _ = make_plan(100.0)
    plan.compare_runs(members)
    assert len(plan.selected) == 3
    plan.started = [members[0]]
    names = [Path(member.name).parent.name for member in plan.order(members[1:])]
    assert names == ['other', 'first', 'other', 'costly', 'costly']


def test_damaged_predictions_beside_checkpoints_stop_nothing(tmp_path: Path) -> None:
    members = []
    for run in ('a', 'b'):
        write_run(tmp_path / run, 1.0, 1)
        members.append(make_member(loud_tagger(Timed(HandClock(), 0.0)), 0.9, name=str(tmp_path / run / 'fold_0.pt')))
    (tmp_path / 'b' / 'oof.csv').write_bytes(b'\xff\xfe\x00damaged')
    (tmp_path / 'a' / 'recipe.json').write_text('{')
    plan, _ = make_plan(1000.0)
    plan.measure(members)
    assert not plan.selected and plan.order(members) == members


def test_runs_of_other_clips_or_without_predictions_are_ordered_by_cost(tmp_path: Path) -> None:
    write_run(tmp_path / 'first', 1.0, 1)
    write_run(tmp_path / 'other', 1.0, 2)
    (tmp_path / 'other' / 'folds.csv').write_text('fname,labels,fold\nx.wav,a,0\ny.wav,b,1\n')
    (tmp_path / 'other' / 'oof.csv').write_text('fname,fold,a,b,c\nx.wav,0,1,0,0\n')
    costs = {'first': 1.0, 'other': 2.0, 'none': 3.0}
    members = [
        make_member(loud_tagger(), 0.9, cost, name=str(tmp_path / run / 'fold_0.pt')) for run, cost in costs.items()
    ]
    plan, _ = make_plan(1000.0)
    plan.compare_runs(members)
    assert not plan.selected and not plan.rejected
    assert plan.order(members) == members


def test_a_cost_is_the_time_of_the_second_turn_per_second_of_audio() -> None:
    network = Timed(HandClock(), 0.5)
    budget = TimeBudget(Deadline(now=network.clock))
    predictor = Predictor(loud_tagger(network), torch.device('cpu'))
    network.register_forward_hook(lambda *_: setattr(network, 'seconds', 0.5))  # the first turn takes longer
    network.seconds = 9.0
    assert measure_cost(predictor, budget) == pytest.approx(0.1)
    assert network.batches == 2
    assert len(budget.paces[predictor.kind]) == 1, 'the first turn is no measure of a batch'


def test_what_a_network_reads_of_clips_is_all_of_their_windows() -> None:
    clips = [0.5, 4.0, 4.6, 30.0]
    overlapping = InferenceConfig(mode='windows', window_s=4.0, hop_s=0.5)
    spans = [overlapping.spans(round(100 * seconds) + 1, 100.0) for seconds in clips]
    assert read_seconds(overlapping, clips) == 4.0 * sum(map(len, spans))
    assert read_seconds(InferenceConfig(), clips) == sum(clips)
    assert read_seconds(replace(overlapping, mode='frames'), clips) == sum(clips), 'the backbone reads a clip once'


def test_equal_models_are_measured_once_and_none_after_the_time_for_measuring() -> None:
    clock = HandClock(1000.0)
    networks = [Timed(clock, 1.0), Timed(clock, 1.0), Timed(clock, 30.0, ballast=9), Timed(clock, 1.0, ballast=99)]
    members = [make_member(loud_tagger(network)) for network in networks]
    Plan(TimeBudget(Deadline(1100.0, clock))).measure(members)
    assert [network.batches for network in networks] == [2, 0, 1, 0], 'a turn of 30 s is enough'
    assert members[2].cost == pytest.approx(6.0)
    assert members[0].cost == members[1].cost < math.inf and members[3].cost == math.inf


def test_a_model_that_fails_is_last_and_with_little_time_nothing_is_measured() -> None:
    broken = make_member(loud_tagger())
    broken.tagger.network.register_forward_pre_hook(lambda *_: 1 / 0)
    fine = make_member(loud_tagger(Timed(HandClock(), 0.0)))
    clock = HandClock(1000.0)
    Plan(TimeBudget(Deadline(1100.0, clock))).measure([broken, fine])
    assert broken.cost == math.inf and fine.cost < math.inf
    late = make_member(loud_tagger(Timed(HandClock(), 0.0)))
    Plan(TimeBudget(Deadline(9000.0, clock))).measure([late])
    assert late.tagger.network.batches == 0, 'of one model there is nothing to choose'
    plan = Plan(TimeBudget(Deadline(1001.0, clock)))
    plan.measure([late, late])
    assert late.cost == 0 and late.tagger.network.batches == 0
    assert plan.describe([late]) == ''


def test_a_plan_says_how_many_models_fit() -> None:
    members = [make_member(loud_tagger(), cost=cost) for cost in (0.1, 0.2, math.inf)]
    text = make_plan(20.0, audio_s=100.0)[0].describe(members)
    assert text == 'plan: 1 of 3 models fit: they need more than 30 s for 100 s of audio, 20 s are left'


def test_a_batch_is_cut_to_what_fits_by_the_slowest_of_the_last_ones_per_frame() -> None:
    clock = HandClock()
    budget = TimeBudget(Deadline(100.2, clock))
    assert budget.count_fitting('net', 8, 50) == 1, 'an unknown network computes one, whose time is measured'
    for seconds in (9.0, *[2.0] * 7, 4.0):
        with budget.measure('net', 100):
            clock.time += seconds
    assert clock.time == 27.0 and budget.count_fitting('net', 1000, 50) == 36, 'of the last eight, 4 s is the slowest'
    assert budget.count_fitting('net', 8, 50) == 8
    clock.time = 97.0
    assert budget.count_fitting('net', 8, 50) == 1 and not budget.stopped
    assert budget.count_fitting('net', 8, 100) == 0 and budget.stopped
    clock.time = 0.0
    assert budget.count_fitting('net', 8, 50) == 0, 'a budget that ran out stays so, even where the clock is set back'


@pytest.mark.parametrize('metric', ['lwlrap', 'macro_auc'])
def test_a_metric_per_class_counts_whole_models_and_others_count_every_row(tmp_path: Path, metric: str) -> None:
    '''Two models predict 12 clips; the clock runs out in the middle of the second.'''
    for i in range(12):
        write_wav(tmp_path / 'in' / f'{i:02d}.wav', noise(2000 + 400 * i, seed=i, level=0.01 * (1 + i)))
    clock = HandClock(1000.0)
    taggers = [loud_tagger(Timed(clock, 1.0, scale)) for scale in (0.2, 0.9)]
    for tagger in taggers:
        tagger.card = replace(tagger.card, recipe={'metric': metric})
    options = SubmitOptions(taggers, tmp_path / 'in', tmp_path / 'out.csv', batch_frames=1, progress=False)
    report = run_submission(options, Deadline(1023.0, clock))
    assert 12 > report['rows_all_models'] > 2 and report['rows_with_prior'] == 0
    _, rows = read_scores(tmp_path / 'out.csv')
    scores = np.array([rows[name] for name in sorted(rows)])
    first = predict_clips(taggers[0], tmp_path / 'in').probabilities
    is_first = np.isclose(scores, first, rtol=0, atol=1e-6).all(axis=1)
    assert is_first.all() if metric == 'macro_auc' else not is_first[: report['rows_all_models']].any()


def overlapping(network: Timed) -> Tagger:
    '''A tagger that reads windows of a second, four of them at each moment.'''
    tagger = loud_tagger(network)
    inference = InferenceConfig(mode='windows', window_s=1.0, hop_s=0.25)
    tagger.card = replace(tagger.card, inference=inference, oof_score=0.9)
    return tagger


def test_where_overlapping_windows_take_too_long_every_row_is_first_predicted_from_windows_side_by_side(
    tmp_path: Path,
) -> None:
    for i in range(12):
        write_wav(tmp_path / 'in' / f'{i:02d}.wav', noise(4 * RATE, seed=i, level=0.01 * (1 + i)))
    clock = HandClock(1000.0)
    taggers = [overlapping(Timed(clock, 1.0, scale)) for scale in (0.2, 0.9)]
    out = tmp_path / 'out.csv'
    options = SubmitOptions(taggers, tmp_path / 'in', out, batch_frames=1, progress=False)
    # 60 windows side by side, 168 that overlap, and 36 to measure: each takes a second.
    report = run_submission(options, Deadline(1120.0, clock))
    assert report['rows_with_prior'] == 0 and report['state'] == 'stopped by the deadline'
    assert [note for note in report['notes'] if 'side by side first' in note]
    assert 0 < sum(model['clips_predicted'] for model in report['models']) < 12
    _, rows = read_scores(out)
    side_by_side = InferenceConfig(mode='windows', window_s=1.0, hop_s=1.0)
    coarse = predict_clips(taggers[0], tmp_path / 'in', inference=side_by_side)
    own = predict_clips(taggers[0], tmp_path / 'in')
    scores = np.array([rows[name] for name in own.names])
    is_own = np.isclose(scores, own.probabilities, rtol=0, atol=1e-6).all(axis=1)
    is_coarse = np.isclose(scores, coarse.probabilities, rtol=0, atol=1e-6).all(axis=1)
    assert (is_own | is_coarse).all() and is_own.sum() == sum(m['clips_predicted'] for m in report['models'])


def test_a_resumed_job_keeps_the_preview_and_predicts_side_by_side_what_has_no_prediction(tmp_path: Path) -> None:
    for i in range(6):
        write_wav(tmp_path / 'in' / f'{i:02d}.wav', noise(4 * RATE, seed=i, level=0.01 * (1 + i)))
    clock = HandClock(1000.0)
    network = Timed(clock, 1.0)
    path = tmp_path / 'fold_0.pt'
    save_tagger(path, overlapping(network))
    out = tmp_path / 'out.csv'
    builders = {'own': lambda: network}
    options = SubmitOptions([path], tmp_path / 'in', out, batch_frames=1, progress=False, networks=builders)
    # 36 windows to measure, 30 side by side, and 84 of its own: the time ends within the last.
    first = run_submission(options, Deadline(1096.0, clock))
    assert first['rows_with_prior'] == 0 and 0 < first['models'][0]['clips_predicted'] < 6
    _, before = read_scores(out)
    network.batches = 0
    second = run_submission(options, Deadline(clock.time + 1.5, clock))
    assert second['rows_with_prior'] == 0 and network.batches < 20
    _, after = read_scores(out)
    assert all(np.array_equal(before[name], after[name]) for name in before), 'nothing is lost'
    done = run_submission(options, Deadline(clock.time + 500.0, clock))
    assert done['state'] == 'finished' and not [note for note in done['notes'] if 'side by side' in note]


def test_a_file_that_cannot_be_read_does_not_hide_what_the_preview_predicted(tmp_path: Path) -> None:
    for i in range(3):
        write_wav(tmp_path / 'in' / f'{i}.wav', noise(4 * RATE, seed=i))
    (tmp_path / 'in' / 'broken.wav').write_bytes(b'no sound')
    clock = HandClock(1000.0)
    options = SubmitOptions(
        [overlapping(Timed(clock, 1.0))], tmp_path / 'in', tmp_path / 'out.csv', batch_frames=1, progress=False
    )
    report = run_submission(options, Deadline(1056.0, clock))
    assert report['rows_with_prior'] == 1 and report['state'] == 'stopped by the deadline'


def test_a_model_that_reads_less_of_the_clips_is_cheaper_whatever_a_second_costs(tmp_path: Path) -> None:
    whole = make_member(loud_tagger(), 0.9, cost=1.0)
    dense = make_member(overlapping(Timed(HandClock(), 0.0)), 0.9, cost=0.5)
    assert run_order([dense, whole], 1000.0) == [1, 0], '10 s read once, or 38 s of windows'
    dense.predicted = {0}
    assert run_order([whole, dense], 1000.0) == [1, 0], 'an earlier call predicted it all'


def test_one_file_that_hangs_does_not_end_the_work(tmp_path: Path) -> None:
    for i in range(30):
        write_wav(tmp_path / f'{i:02d}.wav', noise(4000, seed=i))
    member = make_member(loud_tagger())
    loader = SpectrogramLoader(
        sorted(tmp_path.iterdir()), {member.frontend_key: member.tagger.frontend}, torch.device('cpu')
    )
    loader.read_headers()
    loader.watch.seconds['decode'] = 1e6  # as if the first file had hung
    with contextlib.closing(loader):
        assert len(list(predict_ensemble([member], loader, make_plan(1000.0)[0]))) == 30


def test_with_time_for_every_row_there_is_no_preview(tmp_path: Path) -> None:
    write_wav(tmp_path / 'in' / 'a.wav', noise(4 * RATE))
    clock = HandClock(1000.0)
    options = SubmitOptions([overlapping(Timed(clock, 1.0))], tmp_path / 'in', tmp_path / 'out.csv', progress=False)
    job = SubmitJob(options, Deadline(5000.0, clock))
    member = EnsembleMember('m', Predictor(options.checkpoints[0], torch.device('cpu')), cost=10.0)
    job.plan.set_clips({0: 100.0})  # 398 windows of a second
    assert job.plan.make_preview([member]) is None and job.plan.preview is None
    member.cost = 99.0
    assert job.plan.make_preview([member]) is member and job.plan.preview.predictor.inference.hop_s == 1.0
    assert member.predictor.inference.hop_s == 0.25
    assert Plan().make_preview([member]) is None, 'without a deadline'


def test_bench_reckons_what_all_files_take_and_which_models_fit(trained: Trained, clips: Path, tmp_path: Path) -> None:
    text = bench(trained.mel, str(clips), 600, '9h', sample=5, out=str(tmp_path / 'p.png'))
    lines = text.splitlines()
    assert lines[0] == f'{clips}: 14 audio files, 0 others; 5 files stand for 600'
    names = [f'mel/{Path(name).name}' for name in trained.mel]
    assert sorted(line.split(':')[0].strip() for line in lines[2 : 2 + len(names)]) == names
    assert f'  {len(names)} of {len(names)} models fit; all of them need ' in text
    assert (tmp_path / 'p.png').read_bytes().startswith(b'\x89PNG')
    assert not list(clips.glob('*.csv')), 'nothing is written beside the audio'
    assert f'  0 of {len(names)} models fit' in bench(trained.mel, str(clips), 10**6, '1s', sample=2)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(KitError, match='holds no audio files: give a folder of clips like those of the test'):
        bench(trained.mel, str(tmp_path / 'empty'))


def test_a_forecast_grows_with_the_files_but_for_what_is_done_once(
    trained: Trained, clips: Path, tmp_path: Path
) -> None:
    options = SubmitOptions(trained.mel, clips, tmp_path / 'out.csv', progress=False)
    report = forecast(options, 1e6, 60.0)
    [(_, start)] = report['spans']['models']
    assert start < 1000 < report['seconds_total'], 'models are built once, in less than a thousand seconds'
    ends = [end for [(_, end)] in [model['spans'] for model in report['models']]]
    starts = [begin for [(begin, _)] in [model['spans'] for model in report['models']]]
    assert starts[1:] == ends[:-1] and ends[-1] == report['seconds_total'], 'one model after the other'
    audio_s = sum(header_duration_s(path) or 0.0 for path in clips.iterdir())
    assert report['audio_s'] == pytest.approx(1e6 * audio_s, rel=0.01)
    assert all(end > begin for begin, end in zip(starts, ends, strict=True))
