"""Plan a submission under a deadline: measure what each model costs on this machine, and order the models."""

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from kit.core.clock import TimeBudget
from kit.core.worker import opened
from kit.infer.backend import CompiledNetwork
from kit.infer.ensemble import EnsembleMember
from kit.infer.predictor import Predictor, compute_spectrograms

SAMPLE_S = 5.0
MEASURING_SHARE = 0.05  # of the time left
LEAST_LEFT_S = 10.0
GOOD_MARGIN = 0.05  # a score this far below the best is still good


def measure_cost(predictor: Predictor, now: Callable[[], float] = time.perf_counter) -> float:
    """Measure the seconds that a model takes for a second of audio, on five seconds of noise or one window."""
    card = predictor.tagger.card
    inference = predictor.inference
    seconds = SAMPLE_S if inference.mode == 'full' else max(SAMPLE_S, inference.window_s)
    noise = torch.randn(round(seconds * card.frontend.sample_rate), generator=torch.Generator().manual_seed(0))
    specs = compute_spectrograms(predictor.tagger.frontend, [(0.1 * noise).to(predictor.device)])
    predictor.predict(specs)  # the first turn also compiles, reserves memory and prepares the convolutions
    if isinstance(predictor.network, CompiledNetwork):
        specs = specs * predictor.network.rows  # so that no padding is measured
    start = now()
    predictor.predict(specs)
    return (now() - start) / (seconds * len(specs))


def measure_costs(members: Sequence[EnsembleMember], budget: TimeBudget) -> None:
    """Measure every model's `cost`, small models first and equal ones once.

    The cost is infinite for a model that fails, and for the largest ones where measuring takes too long. With little
    time left nothing is measured.
    """
    if budget.deadline.left_s() < LEAST_LEFT_S:
        return
    sizes = [sum(x.numel() for x in member.tagger.network.parameters()) for member in members]
    cost_of_kind: dict[str, float] = {}
    stop_at_s = (1 - MEASURING_SHARE) * budget.deadline.left_s()
    for i in np.argsort(sizes, kind='stable'):
        member = members[i]
        member.cost = math.inf
        kind = f'{sizes[i]} {member.card.network} {member.predictor.inference} {member.frontend_key}'
        if kind not in cost_of_kind:
            if budget.deadline.left_s() < stop_at_s:
                continue
            try:
                with opened('model', [member.name]):
                    cost_of_kind[kind] = measure_cost(member.predictor)
            except Exception:  # predicting fails again, and then the reason is kept
                cost_of_kind[kind] = math.inf
        member.cost = cost_of_kind[kind]


def order_members(members: Sequence[EnsembleMember], audio_s: float, left_s: float) -> list[EnsembleMember]:
    """Order models for a deadline: the cheapest good one, then good ones by cost, then the others by cost.

    A model is good whose score is little below the best. Where the cheapest good model alone would need more than
    the time left, the cheapest of all is first. A stack scores a row once all its runs have predicted it, so the
    first models of all runs come before any second.
    """
    scores = [-math.inf if m.card.oof_score is None else m.card.oof_score for m in members]
    is_bad = [-math.inf < score < max(scores) - GOOD_MARGIN for score in scores]
    order = sorted(range(len(members)), key=lambda i: (is_bad[i], members[i].cost, -scores[i]))
    if members[order[0]].cost * audio_s > left_s:
        cheapest = min(order, key=lambda i: members[i].cost)
        order.remove(cheapest)
        order.insert(0, cheapest)
    runs = [(members[i].stack, members[i].run) for i in order]
    turns = [runs[:k].count(run) for k, run in enumerate(runs)]
    return [members[order[k]] for k in np.argsort(turns, kind='stable')]


def describe_plan(members: Sequence[EnsembleMember], audio_s: float, left_s: float) -> str:
    """Say how many models fit in the time left, in their order, by their costs."""
    costs = np.array([member.cost for member in members])
    n_fit = int((np.cumsum(costs) * audio_s <= left_s).sum())
    needed_s = costs[np.isfinite(costs)].sum() * audio_s
    at_least = '' if np.isfinite(costs).all() else 'more than '
    time_left = f'{needed_s:.0f} s for {audio_s:.0f} s of audio, {max(0.0, left_s):.0f} s are left'
    return f'plan: {n_fit} of {len(members)} models fit: they need {at_least}{time_left}'


def plan_members(
    members: Sequence[EnsembleMember], budget: TimeBudget, audio_s: float
) -> tuple[list[EnsembleMember], str]:
    """Measure models and order them for the time left; say how many fit, if any was measured."""
    measure_costs(members, budget)
    left_s = budget.deadline.left_s()
    ordered = order_members(members, audio_s, left_s)
    is_measured = any(member.cost for member in members)
    return ordered, describe_plan(ordered, audio_s, left_s) if is_measured else ''
