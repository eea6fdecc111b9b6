"""Out-of-fold scores of several models and truth in, a blend's weights or each class's window length out."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kit.core.errors import KitError, choose
from kit.infer.postprocess import check_strength
from kit.labels.class_metrics import LOG_LOSS_FLOOR, average_precision_per_class, check_unit_range
from kit.labels.metrics import ranking_masks

NEWTON_TOLERANCE = 1e-8


def fit_weights(scores: Any, truth: Any, strength: float = 1.0) -> np.ndarray:
    """One weight per model, summing to 1, whose mean blend has the least log loss on known labels.

    They are drawn towards equal ones as `strength` labels of the rarer kind would.

    Shape:  scores (m, n, K) in [0, 1], truth (n, K) of 1, 0 or NaN -> (m,)
    """
    likely, true, known = label_likelihoods(scores, truth)
    share = prior_share(min(true.sum(), (known & ~true).sum()), strength)
    return mixture_weights(likely[:, known], np.ones(len(likely)) / len(likely), float(share))


def fit_class_weights(scores: Any, truth: Any, strength: float = 20.0) -> np.ndarray:
    """For each class its own weights, drawn towards the common ones as `strength` labels of the rarer kind would.

    Shape:  scores (m, n, K) in [0, 1], truth (n, K) of 1, 0 or NaN -> (m, K)
    """
    likely, true, known = label_likelihoods(scores, truth)
    common = fit_weights(scores, truth)
    shares = prior_share(np.minimum(true.sum(axis=0), (known & ~true).sum(axis=0)), strength)
    columns = [mixture_weights(likely[:, seen, k], common, shares[k]) for k, seen in enumerate(known.T)]
    return np.stack(columns, axis=1)


def prior_share(labels: Any, strength: float) -> Any:
    """How much a prior of `strength` labels counts beside so many real ones."""
    check_strength(strength)
    return np.maximum(strength / (strength + labels), 1e-6)


def choose_windows(scores: Any, truth: Any, measure: str = "log_loss") -> np.ndarray:
    """For each class, which window length suits it best, out of fold; a tie goes to the best common one.

    A class whose labels tell nothing gets the common best.

    Shape:  scores (L, n, K), truth (n, K) of 1, 0 or NaN -> (K,) int64 below L
    Source: RFCX 2021, per-class choice of window length
    """
    measures: dict[str, Callable[[], np.ndarray]] = {
        "log_loss": lambda: np.log(label_likelihoods(scores, truth)[0]).sum(axis=1),
        "average_precision": lambda: np.stack([average_precision_per_class(truth, one) for one in scores]),
    }
    merits = np.nan_to_num(choose("measure", measure, measures)())
    common = merits.sum(axis=1).argmax()
    return np.asarray(np.where(merits[common] >= merits.max(axis=0), common, merits.argmax(axis=0)))


def label_likelihoods(scores: Any, truth: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How likely each model held each label, 1 where it is unknown; which are true, which known.

    Shape:  scores (m, n, K), truth (n, K) -> (m, n, K) in (0, 1], (n, K), (n, K)
    """
    if np.ndim(scores) != 3 or not len(scores):
        raise KitError(f"scores {np.shape(scores)}, wanted (models, clips, classes): stack them.")
    likely = np.ones(np.shape(scores))
    for one, of_model in zip(scores, likely, strict=True):
        true, known, one = ranking_masks(truth, one)
        check_unit_range("the probability", one)
        held = np.clip(one.astype(np.float64), LOG_LOSS_FLOOR, 1 - LOG_LOSS_FLOOR)
        of_model[known] = np.where(true, held, 1 - held)[known]
    return likely, true, known


def mixture_weights(likely: np.ndarray, towards: np.ndarray, share: float, most: int = 200) -> np.ndarray:
    """The weights w, summing to 1, where (1 - share) mean log(w likely) + share towards log(w) is greatest.

    Concave, so at `most` so many damped Newton steps reach it; EM crawls where models are alike. Less the sum of w,
    the same maximum needs no constraint. What is left to gain, in nats, is at most the steepest slope minus 1.

    Shape:  likely (m, n) above 0, towards (m,) above 0, share in [1e-6, 1] -> (m,)
    Source: Kim, Carbonetto, Stephens & Anitescu 2020, arXiv:1806.01412
    """
    weights: np.ndarray = towards / towards.sum()

    def height(w: np.ndarray) -> float:
        return float((1 - share) * np.log(w @ likely).mean() + share * (towards @ np.log(w)) - w.sum())

    for _ in range(most if likely.shape[1] else 0):
        ratios = likely / (weights @ likely)
        slope = (1 - share) * ratios.mean(axis=1) + share * towards / weights
        if slope.max() < 1 + NEWTON_TOLERANCE:
            break
        # In units of each weight, so that one near 0 is well conditioned.
        bend = (1 - share) * np.outer(weights, weights) * (ratios @ ratios.T) / likely.shape[1]
        step = np.linalg.solve(bend + np.diag(share * towards), weights * (slope - 1))
        size = min(1.0, 0.95 / max(-float(step.min()), 1e-9))
        while size > 1e-9 and height(weights * (1 + size * step)) < height(weights):
            size /= 2
        weights = weights * (1 + size * step)
        weights /= weights.sum()
    return weights
