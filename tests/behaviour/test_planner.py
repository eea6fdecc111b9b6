'''Under a deadline, models are measured and ordered, and a metric per class counts whole models.'''

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kit.core.clock import Deadline, TimeBudget
from kit.infer.ensemble import EnsembleMember, describe_plan, measure_cost, measure_costs, order_members, plan_members
from kit.infer.job import SubmitOptions
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.infer.submission import run_submission
from kit.models.tagger import Tagger
from tests.behaviour.trained import HandClock, LoudBands, loud_tagger, noise, read_scores, write_wav


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


def make_member(tagger: Tagger, score: float | None = None, run: int = 0) -> EnsembleMember:
    tagger.card = replace(tagger.card, oof_score=score)
    return EnsembleMember('m', Predictor(tagger, torch.device('cpu')), run=run)


def ordered(costs: Sequence[float], scores: Sequence[float | None], audio_s: float, left_s: float) -> list[int]:
    members = [make_member(loud_tagger(), score) for score in scores]
    for member, cost in zip(members, costs, strict=True):
        member.cost = cost
    return [members.index(member) for member in order_members(members, audio_s, left_s)]


def test_the_cheapest_good_model_is_first_and_models_far_below_the_best_are_last() -> None:
    assert ordered([3.0, 1.0, 2.0, 0.1], [0.90, 0.88, 0.87, 0.6], 10, 1000) == [1, 2, 0, 3]
    assert ordered([1.0, 1.0], [0.85, 0.88], 10, 1000) == [1, 0], 'the better of equally cheap ones'
    assert ordered([2.0, 1.0], [0.9, None], 10, 1000) == [1, 0], 'without a score a model counts as good'
    assert ordered([math.inf, 1.0], [0.9, 0.89], 10, 1000) == [1, 0]


def test_where_no_good_model_has_the_time_for_every_row_the_cheapest_one_is_first() -> None:
    assert ordered([3.0, 2.0, 0.1], [0.9, 0.9, 0.5], 10, 15) == [2, 1, 0]
    assert ordered([3.0, 2.0, 0.1], [0.9, 0.9, 0.5], 10, 25) == [1, 0, 2]


def test_the_first_models_of_all_runs_of_a_stack_come_before_any_second() -> None:
    members = [make_member(loud_tagger(), 0.9, run) for run in (0, 0, 1, 1)]
    for member, cost in zip(members, (1, 2, 3, 4), strict=True):
        member.cost = cost
    assert [m.cost for m in order_members(members, 1.0, 100.0)] == [1, 3, 2, 4]


def test_a_cost_is_the_time_of_the_second_turn_per_second_of_audio() -> None:
    clock = HandClock()
    network = Timed(clock, 0.5)
    assert measure_cost(Predictor(loud_tagger(network), torch.device('cpu')), clock) == pytest.approx(0.1)
    assert network.batches == 2


def test_equal_models_are_measured_once_and_none_after_the_time_for_measuring() -> None:
    clock = HandClock(1000.0)
    networks = [Timed(clock, 1.0), Timed(clock, 1.0), Timed(clock, 30.0, ballast=9), Timed(clock, 1.0, ballast=99)]
    members = [make_member(loud_tagger(network)) for network in networks]
    measure_costs(members, TimeBudget(Deadline(1100.0, clock)))
    assert [network.batches for network in networks] == [2, 0, 2, 0]
    assert members[0].cost == members[1].cost < math.inf and members[3].cost == math.inf


def test_a_model_that_fails_is_last_and_with_little_time_nothing_is_measured() -> None:
    broken = make_member(loud_tagger())
    broken.tagger.network.register_forward_pre_hook(lambda *_: 1 / 0)
    fine = make_member(loud_tagger(Timed(HandClock(), 0.0)))
    clock = HandClock(1000.0)
    measure_costs([broken, fine], TimeBudget(Deadline(1100.0, clock)))
    assert broken.cost == math.inf and fine.cost < math.inf
    late = make_member(loud_tagger(Timed(HandClock(), 0.0)))
    measure_costs([late], TimeBudget(Deadline(1001.0, clock)))
    assert late.cost == 0 and late.tagger.network.batches == 0
    assert plan_members([late, fine], TimeBudget(Deadline(1100.0, clock)), 5.0)[1].startswith('plan: ')
    late.cost = fine.cost = 0.0
    assert plan_members([late, fine], TimeBudget(Deadline(1001.0, clock)), 5.0)[1] == ''


def test_a_plan_says_how_many_models_fit() -> None:
    members = [make_member(loud_tagger()) for _ in range(3)]
    for member, cost in zip(members, (0.1, 0.2, math.inf), strict=True):
        member.cost = cost
    text = describe_plan(members, 100.0, 20.0)
    assert text == 'plan: 1 of 3 models fit: they need more than 30 s for 100 s of audio, 20 s are left'


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
