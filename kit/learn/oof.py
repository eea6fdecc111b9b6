"""A run's folds in, predictions of every clip by the model that never saw it, and their score, out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kit.core.errors import KitError
from kit.core.files import text_digest, write_text
from kit.core.runtime import pick_device, tune_process
from kit.infer.checkpoint import load_tagger, save_tagger
from kit.infer.engine import Listener, WindowLogits
from kit.infer.hearing import Hearing
from kit.infer.session import clip_scores
from kit.infer.template import locate_clips
from kit.labels.calibration import fit_calibration
from kit.labels.metrics import lwlrap, lwlrap_per_class
from kit.labels.table import clip_labels, read_clip_table, scored_truth, stretches_of
from kit.models.tagger import Tagger
from kit.sound.windows import pool_windows


@dataclass(frozen=True)
class OutOfFold:
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


def listen_held_out(
    held: HeldOut, listeners: Sequence[Listener], name: str, audio: Path, threads: int | None, progress: bool
) -> tuple[list[dict[int, WindowLogits | None]], dict[int, str]]:
    """What each listener says of a fold's clips, decoded once, by their places; why others were not heard.

    Errors: KitError where none can be heard
    """
    frontends, device = {"": held.tagger.frontend}, listeners[0].device
    hearing = Hearing(locate_clips(held.names, audio), frontends, device, threads=threads)
    said: list[dict[int, WindowLogits | None]] = [{} for _ in listeners]
    for number in hearing.walk(name, progress):
        places, specs = hearing.specs(number, "")
        for listener, answers in zip(listeners, said, strict=True):
            answers |= zip(places, listener.listen(specs), strict=True)
        hearing.drop(number, "")
    if not said[0]:
        clips = len(held.names)
        raise KitError(f"none of the {clips} clips of {name} could be heard in {audio}; nothing was changed.")
    return said, hearing.failures


def score_held_out(
    held: HeldOut, listener: Listener, said: Mapping[int, WindowLogits | None], failures: Mapping[int, str]
) -> OutOfFold:
    """Probabilities of a fold's clips; the card gets their calibration, if it wants one, and lwlrap.

    Clips of which nothing finite was said, by their places in the fold, get the prior.
    """
    tagger, truth = held.tagger, held.truth
    heard = {i: s.logits for i, s in sorted(said.items()) if s is not None and np.isfinite(s.logits).all()}
    probabilities = np.tile(np.array(tagger.card.prevalences, np.float32), (len(truth), 1))
    if heard and tagger.card.score == "rank":
        pool = partial(pool_windows, listening=listener.listening)
        fitted = fit_calibration(list(heard.values()), truth[list(heard)], pool)
        tagger.card = replace(tagger.card, calibration=fitted)
    for i, logits in heard.items():
        probabilities[i] = clip_scores(tagger, listener.listening, logits)
    tagger.card = replace(tagger.card, oof_score=round(lwlrap(truth, probabilities), 6))
    unheard = [i for i in range(len(truth)) if i not in heard]
    reasons = {held.names[i]: failures.get(i, "the network's answer is no finite number") for i in unheard}
    folds = np.full(len(truth), tagger.card.fold)
    return OutOfFold(tuple(held.names), tagger.card.classes, folds, truth, probabilities, reasons)


def write_oof(run: Path, result: OutOfFold) -> None:
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
) -> OutOfFold:
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
        listener = Listener(held.tagger, chosen)
        said, failures = listen_held_out(held, [listener], Path(path).name, Path(audio), threads, progress)
        parts.append((held.rows, score_held_out(held, listener, said[0], failures)))
    for path, held in models.items():
        save_tagger(path, held.tagger)
    result = join_folds(parts)
    write_oof(Path(run), result)
    return result


def join_folds(parts: Sequence[tuple[np.ndarray, OutOfFold]]) -> OutOfFold:
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
    return OutOfFold(tuple(names[i] for i in order), whole[0].classes, folds, truth, probabilities, failures)
