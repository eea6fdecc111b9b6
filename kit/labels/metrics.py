"""Truth and scores in, label-weighted label-ranking average precision out."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kit.core.errors import KitError

RANKING_CHUNK = 1 << 19


def lwlrap(truth: Any, scores: Any) -> float:
    """Label-weighted label-ranking average precision: every true label of the set counts alike.

    A label's precision is the share of true labels among those scored at least as high in its clip.
    An unknown label (NaN) is neither ranked nor counted; a clip without a true label counts nothing.

    Shape:  truth (n, K) of 1, 0 or NaN, scores (n, K) -> a number in (0, 1]
    Source: Fonseca et al. 2019, arXiv:1906.02975; ties as scikit-learn's
            label_ranking_average_precision_score counts them
    Errors: KitError for shapes that differ, soft truth, NaN scores, or no true label at all.
    """
    hits, positives = precision_sums(truth, scores)
    return float(hits.sum() / positives.sum())


def lwlrap_per_class(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each class's mean precision and its share of the true labels; lwlrap is the sum of their products.

    A class without a true label has precision 0 and weight 0.

    Shape:  truth (n, K), scores (n, K) -> precision (K,), weight (K,)
    Errors: as lwlrap
    """
    hits, positives = precision_sums(truth, scores)
    return hits / np.maximum(positives, 1), positives / positives.sum()


def precision_sums(truth: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    """Per class, the sum of its true labels' precisions and their number.

    Shape:  truth (n, K), scores (n, K) -> (K,), (K,)
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.ndim != 2 or truth.shape != scores.shape:
        raise KitError(
            f"truth {truth.shape} and scores {scores.shape} must both be (clips, classes): "
            "align rows and columns first."
        )
    sums, positives = np.zeros(truth.shape[1]), np.zeros(truth.shape[1])
    for rows in row_chunks(*truth.shape):
        part = truth[rows].astype(np.float64)
        check_ranking_input(part, scores[rows], rows.start)
        true = part == 1
        sums += np.where(true, label_precisions(true, ~np.isnan(part), scores[rows]), 0.0).sum(axis=0)
        positives += true.sum(axis=0)
    if not positives.any():
        raise KitError(f"none of the {len(truth)} clips has a true label: there is no ranking to score.")
    return sums, positives


def row_chunks(n_rows: int, n_columns: int) -> Iterator[slice]:
    """Slices of rows that hold some RANKING_CHUNK values each, so memory is bounded."""
    step = max(1, RANKING_CHUNK // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def check_ranking_input(truth: np.ndarray, scores: np.ndarray, first_row: int) -> None:
    """Raise KitError for soft truth or a NaN score, naming the row and the column."""
    soft = ~((truth == 0) | (truth == 1) | np.isnan(truth))
    if soft.any():
        row, column = np.argwhere(soft)[0]
        raise KitError(
            f"truth is {truth[row, column]:g} at row {first_row + row}, column {column}, wanted 1, 0 or NaN "
            "(unknown): score against the given labels, not against soft ones."
        )
    missing = np.isnan(scores)
    if missing.any():
        row, column = np.argwhere(missing)[0]
        raise KitError(
            f"the score at row {first_row + row}, column {column} is NaN: "
            "leave rows without a prediction out of truth and scores alike."
        )


def label_precisions(true: np.ndarray, known: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For every label, the share of true ones among the known labels scored at least as high.

    Shape:  three of (n, K) -> (n, K); where a label is not known the value means nothing
    """
    descending = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
    ranked = np.take_along_axis(scores, descending, axis=1)
    places = np.broadcast_to(np.arange(ranked.shape[1]), ranked.shape)
    ends = np.ones(ranked.shape, dtype=bool)
    ends[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    tie_end = np.where(ends, places, ranked.shape[1])
    tie_end = np.minimum.accumulate(tie_end[:, ::-1], axis=1)[:, ::-1]
    n_true = np.take_along_axis(true, descending, axis=1).cumsum(axis=1)
    n_known = np.take_along_axis(known, descending, axis=1).cumsum(axis=1)
    share = n_true / np.maximum(n_known, 1)
    precisions = np.empty(ranked.shape)
    np.put_along_axis(precisions, descending, np.take_along_axis(share, tie_end, axis=1), axis=1)
    return precisions
