"""Probabilities of rows in, the same made better by class priors, neighbours in time and recordings out."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kit.core.errors import KitError
from kit.infer.blend import TINY, check_strength
from kit.labels.bootstrap import group_numbers
from kit.labels.table import rows_by_name


def scale_odds(scores: Any, trained: Any, wanted: Any) -> np.ndarray:
    """Probabilities where classes are as frequent as `wanted`, by a model trained where they were as `trained`.

    odds' = odds * wanted / (1 - wanted) / (trained / (1 - trained)); 0 and 1 stay.

    Shape:  scores (n, K) in [0, 1], trained (K,), wanted (K,) -> (n, K)
    Source: Saerens, Latinne & Decaestecker 2002, eq. 2.4, per class; RFCX 2021, odds' = f p / (1 - p)
    """
    p = row_probabilities(scores)
    was, will = (class_prevalences(prior, p.shape[1]) for prior in (trained, wanted))
    raised = p * (will / was)
    return np.asarray(raised / (raised + (1 - p) * ((1 - will) / (1 - was))))


def estimate_prevalences(scores: Any, trained: Any, strength: float = 1.0) -> np.ndarray:
    """How frequent each class is in the set that these rows make up, from its probabilities alone.

    The likeliest estimate, under a prior of `strength` rows as `trained` says. A clip's answer then depends on the
    others.

    Shape:  scores (n, K) calibrated, in [0, 1], trained (K,) -> (K,)
    Source: Saerens, Latinne & Decaestecker 2002, Adjusting the Outputs of a Classifier
    """
    check_strength(strength, "rows")
    p = row_probabilities(scores)
    was = class_prevalences(trained, p.shape[1])
    when_true, when_false = p / was, (1 - p) / (1 - was)
    low, high = np.zeros(len(was)), np.ones(len(was))
    for _ in range(60):  # halving: the likelihood is concave, and EM crawls where a class is rare
        middle = (low + high) / 2
        mixed = middle * when_true + (1 - middle) * when_false
        pull = strength * (was / middle - (1 - was) / (1 - middle))
        rises = ((when_true - when_false) / mixed).sum(axis=0) + pull > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return (low + high) / 2


def smooth_neighbours(
    scores: Any, recordings: Sequence[Any], times_s: Any, kernel: Sequence[float] = (0.5,)
) -> np.ndarray:
    """Each row's mean with its neighbours in time, which weigh kernel[0], kernel[1] ... to either side, itself 1.

    At a recording's edges only the rows that are there count; no row hears another recording's.

    Shape:  scores (n, K) in [0, 1], recordings (n,), times_s (n,) -> (n, K)
    Source: BirdCLEF 2023-2025, neighbour smoothing
    """
    p, times = row_probabilities(scores), np.asarray(times_s, np.float64)
    if times.shape != p.shape[:1] or not np.isfinite(times).all():
        raise KitError(f"times {times.shape} for {len(p)} rows: give each row's own.")
    smooth = np.empty_like(p)
    for rows in rows_by_name(group_numbers(recordings, len(p)).tolist()).values():
        rows = rows[times[rows].argsort(kind="stable")]
        for row, other in pairwise(rows):
            if times[row] == times[other]:
                raise KitError(f"rows {row} and {other} are one recording's at one time: keep one.")
        total, weight = p[rows], np.ones((len(rows), 1))
        for distance, share in enumerate(kernel, start=1):
            late, early = slice(distance, None), slice(-distance)
            for here, there in ((late, early), (early, late)):
                total[here] += share * p[rows[there]]
                weight[here] += share
        smooth[rows] = total / weight
    return smooth


def weigh_by_recording(scores: Any, recordings: Sequence[Any], top_k: int = 2) -> np.ndarray:
    """Each score times the mean of its class's best `top_k` in the row's recording; no probability any more.

    Shape:  scores (n, K) in [0, 1], recordings (n,) -> (n, K)
    Source: BirdCLEF 2025, multiplying by the top-2 mean
    """
    p = row_probabilities(scores)
    weighed = np.empty_like(p)
    for rows in rows_by_name(group_numbers(recordings, len(p)).tolist()).values():
        weighed[rows] = p[rows] * np.sort(p[rows], axis=0)[-top_k:].mean(axis=0)
    return weighed


def row_probabilities(scores: Any) -> np.ndarray:
    """Scores in float64. Raise KitError unless they are (rows, classes) in [0, 1]."""
    wide = np.asarray(scores, np.float64)
    if wide.ndim != 2 or not ((wide >= 0) & (wide <= 1)).all():
        raise KitError(f"scores {wide.shape}, wanted (rows, classes) in [0, 1]: blend and calibrate them.")
    return wide


def class_prevalences(prevalences: Any, classes: int) -> np.ndarray:
    """One prevalence per class, held off 0 and 1, checked. Shape: -> (K,)"""
    given = np.asarray(prevalences, np.float64)
    if given.shape != (classes,) or not ((given >= 0) & (given <= 1)).all():
        raise KitError(f"prevalences {given.shape}, wanted one in [0, 1] per class ({classes},).")
    return given.clip(TINY, 1 - TINY)
