"""`relabel`: predict pseudo-labels with runs and write a new table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_json, write_text
from kit.core.runtime import pick_device, tune_process
from kit.infer.ensemble import clip_probabilities
from kit.infer.postprocess import estimate_prevalences, scale_odds
from kit.infer.predictor import Predictor
from kit.infer.stack import average_windows
from kit.labels.boxes import read_boxes
from kit.labels.soft import SoftLabels, write_soft_labels
from kit.labels.table import read_clip_table
from kit.models.tagger import TaggerCard
from kit.train.oof import held_out_models, predict_held_out
from kit.train.pseudo_labels import (
    PURITY,
    RELABEL_METHODS,
    SelfTrainingConfig,
    correct_by_boxes,
    pick_soft,
    weigh_by_confidence,
)


def window_inference(card: TaggerCard, hop_s: float) -> InferenceConfig:
    """Windows as long as the tagger's own, or as its training's crops."""
    own = card.inference
    length = own.window_s if own.mode == "windows" else card.recipe.get("crop_s", own.window_s)
    return replace(own, mode="windows", window_s=length, hop_s=min(hop_s, length))


def predict_pseudo_labels(
    runs: Sequence[str | Path], audio: str | Path, hop_s: float | None = None, device: str | None = None,
    threads: int | None = None, progress: bool = True, prior_shift: bool = False,
) -> tuple[SoftLabels, dict[str, int]]:  # fmt: skip
    """Soft labels of clips, the mean over all models, folds and seeds, that held them out; how many each one heard.

    With `hop_s` of windows, that far apart, or, where it is 0, as each model listens; the nearest ones are averaged.
    With `prior_shift` each model's are scaled from the prevalences it was trained at to those its clips tell.
    Source: second place, RFCX (a window every 0.5 s, out of fold, ensembled)
    Errors: KitError for runs of different classes, and for rank scores without a calibration
    """
    tune_process()
    chosen, classes, models = pick_device(device)[0], tuple[str, ...](), dict[str, int]()
    said: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path, held in [pair for run in runs for pair in held_out_models(Path(run)).items()]:
        tagger, card = held.tagger, held.tagger.card
        classes = classes or card.classes
        if not card.calibrated or card.classes != classes:
            what = "other classes" if card.calibrated else "ranks, which are no labels before `oof`"
            raise KitError(f"{path} gives {what}: take calibrated runs of one set of classes.")
        predictor = Predictor(tagger, chosen, inference=window_inference(card, hop_s) if hop_s else None)
        (answers,), _ = predict_held_out(held, [predictor], Path(path).name, Path(audio), threads, progress)
        heard = [(held.names[i], a) for i, a in answers.items() if a and np.isfinite(a.logits).all()]
        models[path] = len(heard)
        if hop_s is None:
            beliefs = [
                clip_probabilities(tagger, predictor.inference, answer.logits)[None] for _, answer in heard
            ]
        else:
            beliefs = [tagger.probabilities(torch.from_numpy(answer.logits)).numpy() for _, answer in heard]
        if prior_shift and heard:
            trained = card.drawn if card.output == "probability" else card.prevalences
            wanted = estimate_prevalences(np.concatenate(beliefs), trained)
            beliefs = [scale_odds(of_clip, trained, wanted) for of_clip in beliefs]
        for (name, answer), of_clip in zip(heard, beliefs, strict=True):
            times = np.array(answer.spans[: len(of_clip)]) / card.frontend.frames_per_s
            said.setdefault(name, []).append((times, of_clip))
    if not said:
        raise KitError(f"{[*map(str, runs)]} say no finite number of any clip: train them anew.")
    names, spans, means = [], [], []
    for name, told in sorted(said.items()):
        first = told[0][0]
        spans += [*first]
        names += [name] * len(first)
        means += [*average_windows([(t.mean(1), p) for t, p in told], first.mean(1))]
    both = () if hop_s is None else np.stack(spans, axis=1)
    return SoftLabels(tuple(names), classes, np.clip(means, 0, 1), *both), models


@dataclass(frozen=True)
class RelabelResult:
    """New labels on disk, and the report on them."""

    table: Path
    soft: Path
    report: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {what}" for what, count in self.report["counts"].items())
        return f"{self.table}: {self.report['rows']} rows, {counts}; {self.soft.name}. {self.report['leaks']}"

    __repr__ = __str__


def relabel(
    run: Sequence[str | Path],
    audio: str | Path,
    out: str | Path,
    method: str | None = None,
    top_k: Sequence[float] | None = None,
    number: int = 1,
    table: str | Path | None = None,
    boxes: Sequence[str | Path] | None = None,
    set: Sequence[str] | None = None,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    plan: SelfTrainingConfig | None = None,
) -> RelabelResult:
    """Write table.csv, soft.csv and relabel.json: new labels, by models that never trained on what they label.

    Options:
        run: folders that `train` wrote
        audio: the folder that holds the clips
        out: the folder to write
        method: plain, windows, agreement, snr or curate; plain unless given
        top_k: best clips or windows of each round, shares or counts
        number: the round, from 1
        table: the CSV to relabel; the first run's unless given
        boxes: CSVs of true and of false boxes, which correct windows
        set: further settings, e.g. power=2 hop_s=1 noisy_sources=[]
        device: cpu or cuda; else one that computes
        threads: that decode; else one per core
        progress: show a bar
    """
    plan = (plan or SelfTrainingConfig()).override([*(set or ())])
    best, methods = plan.top_k if top_k is None else tuple(top_k), (method,) if method else plan.methods
    plan = replace(plan, top_k=best, methods=methods)
    name, folder = plan.method(number), Path(out)
    if boxes and name != "windows":
        raise KitError(f"boxes correct windows, which method {name} does not write: use windows.")
    frame = read_clip_table(table or Path(run[0]) / "folds.csv")
    if "end_s" in frame:
        frame = frame[frame["end_s"] == np.inf].drop(columns=["begin_s", "end_s"]).reset_index(drop=True)
    hop_s, clips = None if name in ("plain", "agreement") else plan.hop_s, {*frame["fname"]}
    soft, models = predict_pseudo_labels(run, audio, hop_s, device, threads, progress, plan.prior_shift)
    soft = pick_soft(soft, [clip in clips for clip in soft.names])
    if boxes:
        soft = correct_by_boxes(soft, read_boxes(boxes[0], boxes[1]))
    done = RELABEL_METHODS[name](frame, soft, plan, number)
    labels = replace(done.soft, targets=done.soft.targets**plan.power)
    frame = weigh_by_confidence(done.frame, labels) if plan.weigh else done.frame
    report = {
        "method": name, "round": number, "rows": len(frame), "counts": done.counts, "leaks": PURITY[plan.purity],
        "models": models, "without_prediction": sorted(clips - soft.rows.keys()), "settings": plan.to_dict(),
    }  # fmt: skip
    write_text(folder / "table.csv", frame.to_csv(index=False, lineterminator="\n"))
    write_soft_labels(folder / "soft.csv", labels)
    write_json(folder / "relabel.json", report)
    return RelabelResult(folder / "table.csv", folder / "soft.csv", report)
