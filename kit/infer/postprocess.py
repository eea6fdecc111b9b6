'''Improve probabilities of rows: class priors, neighbours in time, recordings.'''

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.infer.blend import TINY
from kit.labels.layouts import hour_of, site_of
from kit.labels.table import read_class_values, rows_by_name, values_of_classes

NO_WINDOWS = (
    'smooth, top_mean and site_prior work on rows that are windows of recordings, named <recording>_<end second>: '
    'these rows are whole clips, so leave them out.'
)


@dataclass(frozen=True)
class PostprocessConfig(Config):
    '''What is done to rows after the models; nothing unless set.

    The order is fixed: shifts of odds first, because they need probabilities, then smoothing, then top mean, and
    decisions last.
    '''

    prior_shift: bool = setting(False, 'scale odds to the class prevalences estimated from these rows')
    prevalences: dict[str, float] = setting({}, 'scale odds to these prevalences of classes')
    site_prior: float = setting(
        0.0, "weight of the classes' log odds at a window's site and hour, by its file's name", low=0, high=10
    )
    smooth: tuple[float, ...] = setting(
        (), "weights of a window's neighbours at distance 1, 2, ... in its mean; its own is 1", low=0, high=1
    )
    top_mean: int = setting(0, "multiply windows by the mean of their recording's best k", low=0)
    top_power: float = setting(1.0, 'exponent of that mean', low=0.01, high=10)
    thresholds: dict[str, float] = setting({}, 'scale odds so that these thresholds of classes become 0.5')

    def check(self) -> None:
        if self.prior_shift and self.prevalences:
            raise KitError('prior_shift estimates what prevalences holds: leave one of them out.')

    @property
    def needs_windows(self) -> bool:
        '''Whether rows must be windows of recordings.'''
        return any(self.smooth) or self.top_mean > 0 or self.site_prior > 0


def postprocess_config(**options: Any) -> PostprocessConfig:
    '''Make the settings of options, None where not given; `smooth` may be one number, values of classes are CSVs.'''
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in {'prevalences', 'thresholds'} & chosen.keys():
        chosen[name] = read_class_values(chosen[name], name[:-1])
    smooth = chosen.get('smooth', ())
    chosen['smooth'] = tuple(smooth) if isinstance(smooth, Sequence) else (float(smooth),)
    if 'top_power' in chosen and not chosen.get('top_mean'):
        raise KitError('top_power is the exponent of top_mean: give that too, e.g. top_mean=2.')
    return PostprocessConfig(**chosen)


def apply_postprocess(
    postprocess: PostprocessConfig,
    scores: Any,
    recordings: Sequence[str] | None,
    times_s: Any,
    trained: np.ndarray,
    classes: Sequence[str] = (),
) -> np.ndarray:
    '''Apply the steps that are set.

    `recordings` are the rows' file names: without, the steps over windows are left out. `trained` are the prevalences
    of the training.
    Shape:  scores (n, K) in [0, 1], recordings and times_s (n,) where rows are windows, trained (K,) -> (n, K)
    '''
    changed = np.asarray(scores, np.float64)
    if postprocess.prior_shift:
        changed = scale_odds(changed, trained, estimate_prevalences(changed, trained))
    if postprocess.prevalences:
        wanted = values_of_classes(postprocess.prevalences, classes, trained)
        # A class that was always false or true in training stays: its odds would change without bound.
        is_trained = (trained > 0) & (trained < 1)
        changed = scale_odds(changed, trained, np.where(is_trained, wanted, trained))
    if recordings is not None:
        if postprocess.site_prior > 0:
            changed = shift_by_site(changed, recordings, postprocess.site_prior)
        if any(postprocess.smooth):
            changed = smooth_neighbours(changed, recordings, times_s, postprocess.smooth)
        if postprocess.top_mean > 0:
            changed = weigh_by_recording(changed, recordings, postprocess.top_mean, postprocess.top_power)
    if postprocess.thresholds:
        half = np.full(len(classes), 0.5)
        changed = scale_odds(changed, values_of_classes(postprocess.thresholds, classes, half), half)
    return changed


def scale_odds(scores: Any, trained: Any, target: Any) -> np.ndarray:
    '''Convert probabilities of a model trained at some class prevalences to those at other prevalences.

    odds' = odds * target / (1 - target) / (trained / (1 - trained)); 0 and 1 stay.

    Shape:  scores (n, K) in [0, 1], trained (K,), target (K,) -> (n, K)
    Source: Saerens, Latinne & Decaestecker 2002, eq. 2.4, per class; RFCX 2021, odds' = f p / (1 - p)
    '''
    probs = np.asarray(scores, np.float64)
    before = np.clip(trained, TINY, 1 - TINY)
    after = np.clip(target, TINY, 1 - TINY)
    when_true = probs * (after / before)
    when_false = (1 - probs) * ((1 - after) / (1 - before))
    return when_true / (when_true + when_false)


def estimate_prevalences(scores: Any, trained: Any, strength: float = 1.0) -> np.ndarray:
    '''Estimate how frequent each class is in these rows, from its calibrated probabilities alone.

    It is the maximum of the likelihood with a prior that counts as `strength` rows at the training prevalences.

    Shape:  scores (n, K) in [0, 1], trained (K,) -> (K,)
    Source: Saerens, Latinne & Decaestecker 2002, Adjusting the Outputs of a Classifier
    '''
    probs = np.asarray(scores, np.float64)
    before = np.clip(trained, TINY, 1 - TINY)
    when_true = probs / before
    when_false = (1 - probs) / (1 - before)
    low = np.zeros(len(before))
    high = np.ones(len(before))
    # The likelihood is concave, so halving finds its maximum; EM is slow where a class is rare.
    for _ in range(60):
        middle = (low + high) / 2
        mixed = middle * when_true + (1 - middle) * when_false
        prior_slope = strength * (before / middle - (1 - before) / (1 - middle))
        rises = ((when_true - when_false) / mixed).sum(axis=0) + prior_slope > 0
        low = np.where(rises, middle, low)
        high = np.where(rises, high, middle)
    return (low + high) / 2


def shift_by_site(scores: np.ndarray, recordings: Sequence[str], weight: float, strength: float = 8.0) -> np.ndarray:
    '''Shift log odds by `weight` times how the mean log odds at a row's site, and at its hour, differ from all rows'.

    The means are those of these scores. That of n recordings is shrunk towards all rows' by n / (n + strength). Rows
    without a site or an hour in their name stay.

    Shape:  scores (n, K) in [0, 1], recordings (n,) -> (n, K)
    Source: third place, BirdCLEF 2026 (priors of site and hour, shrunk with K = 8)
    '''
    probs = scores.clip(TINY, 1 - TINY)
    overall = probs.mean(axis=0)
    logits = log_odds(probs)
    for place_of in (site_of, hour_of):
        for place, rows in rows_by_name([place_of(name) for name in recordings]).items():
            if not place:
                continue
            count = len({recordings[row] for row in rows})
            share = count / (count + strength)
            mean = share * probs[rows].mean(axis=0) + (1 - share) * overall
            logits[rows] += weight * (log_odds(mean) - log_odds(overall))
    return 1 / (1 + np.exp(-logits))


def log_odds(probs: np.ndarray) -> np.ndarray:
    '''Return log(p / (1 - p)).'''
    return np.log(probs) - np.log1p(-probs)


def smooth_neighbours(
    scores: np.ndarray, recordings: Sequence[str], times_s: Any, kernel: Sequence[float] = (0.5,)
) -> np.ndarray:
    '''Average each row with its neighbours in time, which weigh kernel[0], kernel[1], ... on either side, itself 1.

    Neighbour k is k periods away; the period is the most frequent distance of two rows in one recording.
    Shape:  scores (n, K) in [0, 1], recordings (n,), times_s (n,) -> (n, K)
    Source: BirdCLEF 2023-2025, neighbour smoothing
    '''
    times = np.asarray(times_s, np.float64)
    smooth = np.empty_like(scores)
    sorted_rows = [rows[times[rows].argsort(kind='stable')] for rows in rows_by_name(recordings).values()]
    gaps, counts = np.unique(np.concatenate([np.diff(times[rows]) for rows in sorted_rows]), return_counts=True)
    period_s = gaps[counts.argmax()] if len(gaps) else 1.0
    for rows in sorted_rows:
        for row, other in pairwise(rows):
            if times[row] == times[other]:
                raise KitError(f"rows {row} and {other} are one recording's at one time: keep one.")
        total = scores[rows]
        weight = np.ones((len(rows), 1))
        times_of_rows = times[rows]
        for distance, share in enumerate(kernel, start=1):
            wanted_s = times_of_rows + distance * period_s
            later = np.searchsorted(times_of_rows, wanted_s - period_s / 2).clip(max=len(rows) - 1)
            early = np.flatnonzero(np.abs(times_of_rows[later] - wanted_s) < period_s / 2)
            for target, neighbour in ((early, later[early]), (later[early], early)):
                np.add.at(total, target, share * scores[rows[neighbour]])
                np.add.at(weight, target, share)
        smooth[rows] = total / weight
    return smooth


def weigh_by_recording(scores: np.ndarray, recordings: Sequence[str], top_k: int = 2, power: float = 1.0) -> np.ndarray:
    '''Multiply each score by the mean of its class's best `top_k` in the recording, to a power.

    The results are no probabilities.

    Shape:  scores (n, K) in [0, 1], recordings (n,) -> (n, K)
    Source: BirdCLEF 2025, multiplying by the top-2 mean; 2026, by powers of .4 of it and of the maximum
    '''
    weighed = np.empty_like(scores)
    for rows in rows_by_name(recordings).values():
        best = np.sort(scores[rows], axis=0)[-top_k:]
        weighed[rows] = scores[rows] * best.mean(axis=0) ** power
    return weighed
