"""Out-of-fold predictions of a run, and runs read back from disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kit.audio.windows import pool_windows
from kit.core.errors import KitError
from kit.core.files import read_table, text_digest, write_text
from kit.core.runtime import pick_device, tune_process
from kit.infer.ensemble import clip_probabilities
from kit.infer.loader import SpectrogramLoader
from kit.infer.predictor import Predictor, WindowLogits
from kit.infer.template import locate_clips
from kit.labels.calibration import fit_calibration
from kit.labels.metrics import lwlrap, lwlrap_per_class
from kit.labels.table import clip_labels, read_clip_table, scored_truth, stretches_of
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger


@dataclass(frozen=True)
class OofPredictions:
    """Predictions by models that never saw the clip. Shape: probabilities and truth (n, K)"""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    folds: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray
    failures: dict[str, str]

    @property
    def lwlrap(self) -> float:
        """The score of all clips together."""
        return lwlrap(self.truth, self.probabilities)

    def __str__(self) -> str:
        precision, weight = lwlrap_per_class(self.truth, self.probabilities)
        known = np.isfinite(self.truth).any(axis=1)
        lines = [f"out of fold: lwlrap {self.lwlrap:.4f} on {known.sum()} clips"]
        for fold in np.unique(self.folds):
            rows = known & (self.folds == fold)
            score = lwlrap(self.truth[rows], self.probabilities[rows])
            lines.append(f"  fold {fold}: {score:.4f} on {rows.sum()} clips")
        worst = [k for k in np.argsort(precision) if weight[k] > 0][:5]
        named = ", ".join(f"{self.classes[k]} {precision[k]:.3f}" for k in worst)
        lines.append(f"  hardest classes: {named}")
        if self.failures:
            lines.append(f"  {len(self.failures)} clips could not be heard and have the prior:")
        lines += [f"  could not hear {name}: {reason}" for name, reason in [*self.failures.items()][:5]]
        return "\n".join(lines)

    __repr__ = __str__


class HeldOut(NamedTuple):
    """A tagger and clips that it never saw. Shape: rows (n,) in the run's table, truth (n, K)"""

    tagger: Tagger
    rows: np.ndarray
    names: Sequence[str]
    truth: np.ndarray


def names_digest(names: Sequence[str]) -> str:
    """One text for a set of clips, whatever their order."""
    return text_digest(*sorted(names))


def predict_held_out(
    held: HeldOut,
    predictors: Sequence[Predictor],
    name: str,
    audio: Path,
    threads: int | None,
    progress: bool,
) -> tuple[list[dict[int, WindowLogits | None]], dict[int, str]]:
    """What each listener says of a fold's clips, decoded once, by their places; why others were not heard.

    Errors: KitError where none can be heard
    """
    frontends, device = {"": held.tagger.frontend}, predictors[0].device
    loader = SpectrogramLoader(locate_clips(held.names, audio), frontends, device, threads=threads)
    said: list[dict[int, WindowLogits | None]] = [{} for _ in predictors]
    for number in loader.walk(name, progress):
        places, specs = loader.specs(number, "")
        for predictor, answers in zip(predictors, said, strict=True):
            answers |= zip(places, predictor.predict(specs), strict=True)
        loader.drop(number, "")
    if not said[0]:
        clips = len(held.names)
        raise KitError(f"none of the {clips} clips of {name} could be heard in {audio}; nothing was changed.")
    return said, loader.failures


def score_held_out(
    held: HeldOut, predictor: Predictor, said: Mapping[int, WindowLogits | None], failures: Mapping[int, str]
) -> OofPredictions:
    """Probabilities of a fold's clips; the card gets their calibration, if it wants one, and lwlrap.

    Clips of which nothing finite was said, by their places in the fold, get the prior.
    """
    tagger, truth = held.tagger, held.truth
    heard = {i: s.logits for i, s in sorted(said.items()) if s is not None and np.isfinite(s.logits).all()}
    probabilities = np.tile(np.array(tagger.card.prevalences, np.float32), (len(truth), 1))
    if heard and tagger.card.output == "ranking":
        pool = partial(pool_windows, inference=predictor.inference)
        fitted = fit_calibration(list(heard.values()), truth[list(heard)], pool)
        tagger.card = replace(tagger.card, calibration=fitted)
    for i, logits in heard.items():
        probabilities[i] = clip_probabilities(tagger, predictor.inference, logits)
    tagger.card = replace(tagger.card, oof_score=round(lwlrap(truth, probabilities), 6))
    unheard = [i for i in range(len(truth)) if i not in heard]
    reasons = {held.names[i]: failures.get(i, "the network's answer is no finite number") for i in unheard}
    folds = np.full(len(truth), tagger.card.fold)
    return OofPredictions(tuple(held.names), tagger.card.classes, folds, truth, probabilities, reasons)


def write_oof(run: Path, result: OofPredictions) -> None:
    """Write oof.csv: fname, fold, then a probability per class, in the order of the run's table.

    Rows of folds that an earlier call predicted stay.
    """
    import pandas

    frame = pandas.DataFrame(result.probabilities, columns=list(result.classes))
    frame.insert(0, "fname", list(result.names))
    frame.insert(1, "fold", result.folds)
    if (run / "oof.csv").is_file():
        kept = pandas.read_csv(run / "oof.csv", dtype={"fname": str}, keep_default_na=False)
        kept = kept[~kept["fold"].isin(result.folds)]
        frame = pandas.concat([frame, kept]) if len(kept) else frame
        place = {name: i for i, name in enumerate(read_clip_table(run / "folds.csv")["fname"])}
        frame = frame.sort_values("fname", key=lambda names: names.map(place))
    write_text(run / "oof.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.9g"))


def held_out_models(run: Path) -> dict[str, HeldOut]:
    """Every checkpoint of a run, by its path, with clips that it never saw.

    Errors: KitError for a folder without a run or a checkpoint, and for a checkpoint of other folds
    """
    if not (run / "folds.csv").is_file():
        raise KitError(f"{run} holds no run (no folds.csv): give the folder that `train` wrote.")
    table, models = read_clip_table(run / "folds.csv"), {}
    for path in sorted(run.glob("fold_*.pt")):
        tagger = load_tagger(path)
        labels, spans = clip_labels(table, tagger.card.classes), stretches_of(table)
        whole = np.ones(len(table), bool) if spans is None else np.isinf(spans[:, 1])
        rows = np.flatnonzero((np.asarray(table["fold"]) == tagger.card.fold) & whole)
        names = [labels.names[i] for i in rows]
        if tagger.card.held_out != names_digest(names):
            raise KitError(f"{path} was trained with other folds than folds.csv: its scores would leak.")
        truth = scored_truth(labels, tagger.card.recipe.get("sources", {}))
        models[str(path)] = HeldOut(tagger, rows, names, truth[rows])
    if not models:
        raise KitError(f"{run} holds no checkpoint fold_*.pt yet: let `train` finish a fold.")
    return models


def predict_oof(
    run: str | Path,
    audio: str | Path,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> OofPredictions:
    """Predict every clip of a run by the fold that never saw it; write oof.csv and fit the calibrations.

    Options:
        run: the folder that `train` wrote
        audio: the folder that holds the clips
        device: cpu or cuda; else one that computes
        threads: that decode; else one per core
        progress: show a bar
    """
    tune_process()
    chosen, models, parts = pick_device(device)[0], held_out_models(Path(run)), []
    for path, held in models.items():
        predictor = Predictor(held.tagger, chosen)
        said, failures = predict_held_out(held, [predictor], Path(path).name, Path(audio), threads, progress)
        parts.append((held.rows, score_held_out(held, predictor, said[0], failures)))
    for path, held in models.items():
        save_tagger(path, held.tagger)
    result = join_folds(parts)
    write_oof(Path(run), result)
    return result


def join_folds(parts: Sequence[tuple[np.ndarray, OofPredictions]]) -> OofPredictions:
    """The folds' predictions in the table's order; networks of one fold are averaged.

    Shape:  rows of each part index that table
    """
    rows_of = {int(part.folds[0]): rows for rows, part in parts}
    whole = []
    for fold in rows_of:
        same = [part for _, part in parts if part.folds[0] == fold]
        whole.append(replace(same[0], probabilities=np.mean([part.probabilities for part in same], axis=0)))
    order = np.argsort(np.concatenate([*rows_of.values()]), kind="stable")
    names = [name for part in whole for name in part.names]
    arrays = zip(*((part.folds, part.truth, part.probabilities) for part in whole), strict=True)
    folds, truth, probabilities = (np.concatenate(column)[order] for column in arrays)
    failures = {name: reason for _, part in parts for name, reason in part.failures.items()}
    return OofPredictions(
        tuple(names[i] for i in order), whole[0].classes, folds, truth, probabilities, failures
    )


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder tells it: a table of epochs per training; clips by name.

    Shape:  folds (n,), truth and scores (n, K)
    """

    folder: Path
    recipe: dict[str, Any]
    history: list[Any]
    names: list[str]
    classes: list[str]
    folds: np.ndarray
    truth: np.ndarray
    scores: np.ndarray


def load_run(folder: str | Path, labels: Path | None = None) -> SavedRun:
    """What a run's or a stack's folder holds so far; its truth is its own table's, or that of `labels`.

    Errors: KitError for a folder that is neither
    """
    import pandas

    folder = Path(folder)
    if not (folder / "folds.csv").is_file():
        raise KitError(f"{folder} holds no run (no folds.csv): give what `train` or `stack` wrote.")
    path, history = folder / "recipe.json", []
    recipe = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if (folder / "history.csv").is_file():
        epochs = pandas.read_csv(folder / "history.csv", dtype={"fold": str})
        by = [name for name in ("fold", "seed") if name in epochs]  # older files lack seed and seconds
        history = [rows for _, rows in epochs.groupby(by, sort=False)]
    if not (folder / "oof.csv").is_file():
        return SavedRun(folder, recipe, history, [], [], *np.zeros((3, 0, 0)))
    table, oof = read_clip_table(labels or folder / "folds.csv"), read_table(folder / "oof.csv", exact=True)
    if "end_s" in table:  # stretches have no predictions of their own
        table = table[np.isinf(table["end_s"])]
    fnames, folds, *classes = oof.columns
    order = np.argsort(oof.columns[fnames])
    names = [oof.columns[fnames][i] for i in order]
    place = {name: i for i, name in enumerate(table["fname"])}
    truth = scored_truth(clip_labels(table, classes), recipe.get("sources", {}))
    truth = truth[[place[name] for name in names]]
    homes, scores = (np.array([oof.numbers(n) for n in some]).T[order] for some in ([folds], classes))
    return SavedRun(folder, recipe, history, names, classes, homes[:, 0].astype(int), truth, scores)
