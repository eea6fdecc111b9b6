"""Summarize out-of-fold scores; measure by how much other settings, postprocessing or fitted weights help."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.infer.blend import blend_scores, fit_weights
from kit.infer.ensemble import clip_probabilities
from kit.infer.postprocess import NO_WINDOWS, PostprocessConfig, apply_postprocess, postprocess_config
from kit.infer.predictor import WindowLogits
from kit.infer.template import split_window
from kit.labels.bootstrap import Interval, bootstrap_difference, format_metric
from kit.labels.metrics import class_metric, compute_metric, metric_per_class
from kit.models.tagger import Tagger


@dataclass(frozen=True)
class OofVariant:
    """Another way to score the same clips: its score, and the gain over the usual way with its 95 % interval."""

    name: str
    metric: str
    score: float
    gain: Interval
    advice: str = ""

    def __str__(self) -> str:
        gain = f"{self.gain.value:+.4f} (95 % within {self.gain.low:+.4f} to {self.gain.high:+.4f})"
        line = f"{self.name}: {self.metric} {self.score:.4f}, gain {gain}"
        return f"{line}\n    {self.advice}" if self.advice else line

    __repr__ = __str__


def compare(
    name: str,
    metric: str,
    truth: np.ndarray,
    probs: np.ndarray,
    baseline: np.ndarray,
    recordings: Sequence[str] | None = None,
) -> OofVariant:
    """Score a variant against a baseline on the same rows; rows of one recording are resampled together.

    Shape:  truth, probs and baseline (n, K), recordings (n,)
    """
    gain = bootstrap_difference(metric, truth, probs, baseline, recordings)
    return OofVariant(name, metric, compute_metric(metric, truth, probs), gain)


def pooled_probabilities(
    tagger: Tagger, inference: InferenceConfig, outputs: Mapping[int, WindowLogits], clips: int
) -> np.ndarray:
    """Calibrate and pool the logits of clips; clips without logits get the prior. Shape: -> (clips, K) float32"""
    probs = np.tile(np.array(tagger.card.prevalences, np.float32), (clips, 1))
    for clip, output in outputs.items():
        probs[clip] = clip_probabilities(tagger, inference, output.logits)
    return probs


def summarize_scores(
    metric: str, truth: np.ndarray, probs: np.ndarray, folds: np.ndarray, classes: Sequence[str]
) -> list[str]:
    """Describe the score of all clips, of each fold, and of the hardest classes, a line each."""
    is_scored = np.isfinite(truth).any(axis=1)
    lines = [
        f"out of fold: {metric} {format_metric(compute_metric, metric, truth, probs)} on {is_scored.sum()} clips"
    ]
    for fold in np.unique(folds):
        rows = is_scored & (folds == fold)
        score = format_metric(compute_metric, metric, truth[rows], probs[rows])
        lines.append(f"  fold {fold}: {score} on {rows.sum()} clips")
    scores = metric_per_class(metric, truth, probs)
    hardest = [f"{classes[k]} {scores[k]:.3f}" for k in np.argsort(scores)[:5] if np.isfinite(scores[k])]
    lines.append(f"  hardest classes ({class_metric(metric)}): {', '.join(hardest)}")
    return lines


def inference_variants(
    own: InferenceConfig,
    mode: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    pools: Sequence[str] | None = None,
) -> dict[str, InferenceConfig]:
    """List the requested inference settings by name; none where nothing is requested."""
    settings = {"mode": mode, "window_s": window_s, "hop_s": hop_s}
    changes = {name: value for name, value in settings.items() if value is not None}
    if not changes and not pools:
        return {}
    variants = {}
    for pool in pools or [own.pool]:
        changed = {**changes, "pool": pool} if pools else changes
        name = " ".join(f"{setting}={value}" for setting, value in changed.items())
        variants[name] = replace(own, **changed)  # type: ignore[arg-type]
    return variants


def windows_of_names(names: Sequence[str]) -> tuple[list[int], list[str], list[float]]:
    """Find the rows named <recording>_<end second>[.ogg], their recordings and end seconds.

    Errors: KitError where there is none
    """
    rows = []
    recordings = []
    times_s = []
    for row, name in enumerate(names):
        recording, end_s = split_window(PurePosixPath(name).with_suffix("").as_posix())
        if end_s is None:
            recording, end_s = split_window(name)
        if end_s is not None:
            rows.append(row)
            recordings.append(recording)
            times_s.append(end_s)
    if not rows:
        raise KitError(f"{NO_WINDOWS} One of them is {names[0]!r}.")
    return rows, recordings, times_s


def cross_fit_weights(scores: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Blend runs by weights that were fitted on the other folds. Shape: scores (m, n, K) -> (n, K)

    Errors: KitError where all rows are in one fold
    """
    blended = np.empty(truth.shape)
    for fold in np.unique(folds):
        held = folds == fold
        if held.all():
            raise KitError("all rows are in one fold: weights need two folds, to be measured on other rows.")
        weights = fit_weights(scores[:, ~held], truth[~held])
        blended[held] = blend_scores(list(scores[:, held]), weights=weights)
    return blended


def window_steps(**options: Any) -> dict[str, PostprocessConfig]:
    """List the steps over windows that are to be compared: each option alone, and then all together."""
    chosen = {name: value for name, value in options.items() if value}
    top: dict[str, Any] = {name: chosen.pop(name) for name in ("top_mean", "top_power") if name in chosen}
    parts: list[dict[str, Any]] = [{name: value} for name, value in chosen.items()] + ([top] if top else [])
    if len(parts) > 1:
        parts.append(chosen | top)
    return {
        " ".join(f"{name}={value}" for name, value in part.items()): postprocess_config(**part)
        for part in parts
    }


def compare_steps(
    metric: str,
    names: Sequence[str],
    truth: np.ndarray,
    probs: np.ndarray,
    steps: Mapping[str, PostprocessConfig],
) -> list[OofVariant]:
    """Compare steps over a recording's windows with the plain predictions, on the rows that are windows.

    Shape:  names (n,), truth and probs (n, K)
    Errors: KitError where no name makes a row a window of a recording
    """
    rows, recordings, times_s = windows_of_names(names)
    unused_prevalences = np.zeros(truth.shape[1])
    compared = []
    for name, step in steps.items():
        changed = apply_postprocess(step, probs[rows], recordings, times_s, unused_prevalences)
        label = name if len(rows) == len(names) else f"{name}, on {len(rows)} windows"
        compared.append(compare(label, metric, truth[rows], changed, probs[rows], recordings))
    return compared


def compare_fitted_weights(
    metric: str, runs: Mapping[Path, np.ndarray], truth: np.ndarray, folds: np.ndarray
) -> OofVariant:
    """Fit weights of several runs' blend, measure their gain over the plain mean, and advise `submit`.

    A fold's gain is measured with weights that the other folds fitted. The advised weights are fitted on all folds.

    Shape:  probabilities (n, K) of each run's folder, truth (n, K), folds (n,)
    """
    scores = np.stack(list(runs.values())).astype(np.float64)
    blended = cross_fit_weights(scores, truth, folds)
    name = "fitted weights, against the plain mean of the runs"
    variant = compare(name, metric, truth, blended, scores.mean(axis=0))
    weights = []
    for folder, weight in zip(runs, fit_weights(scores, truth), strict=True):
        checkpoints = len(list(folder.glob("fold_*.pt")))
        weights += [f"{weight / max(1, checkpoints):.4g}"] * checkpoints
    patterns = " ".join(f"'{folder}/fold_*.pt'" for folder in runs)
    options = f"--checkpoints {patterns} --weights {' '.join(weights)}"
    return replace(variant, advice=f"to use them: submit {options}")


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read a run's recipe as a dictionary; empty where there is none."""
    return read_json(folder / "recipe.json")


def read_metric(folder: Path) -> str:
    """Return the metric of a run or a stack."""
    facts = read_recipe(folder) or read_json(folder / "stack.json")
    return str(facts.get("metric", "lwlrap"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file; empty where there is none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
