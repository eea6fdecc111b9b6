'''Out-of-fold predictions of a run: compute, score and write them; measure what other settings and steps would gain.'''

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kit.audio.windows import InferenceConfig, pool_windows
from kit.core.errors import KitError
from kit.core.files import read_json, write_json, write_rows, write_text
from kit.core.runtime import Runtime, start_runtime
from kit.infer.blend import fit_weights
from kit.infer.ensemble import NOT_FINITE, clip_probabilities
from kit.infer.postprocess import NO_WINDOWS, PostprocessConfig, apply_postprocess, postprocess_config
from kit.infer.predictor import Predictor, WindowLogits
from kit.infer.rows import fitted_prevalences
from kit.infer.template import split_window
from kit.labels.bootstrap import bootstrap_difference
from kit.labels.calibration import fit_calibration, fit_thresholds
from kit.labels.metrics import METRICS, compute_metric
from kit.labels.oof_predictions import OofPredictions, OofVariant, groups_of_rows, load_oof, read_metric
from kit.labels.table import read_clip_table, row_names, stretches_of
from kit.models.checkpoint import save_tagger
from kit.models.tagger import Tagger
from kit.train.held_out import HeldOut, held_out_models, predict_held_out


def compare(
    oof: OofPredictions, name: str, probs: np.ndarray, baseline: np.ndarray | None = None, advice: str = ''
) -> OofVariant:
    '''Score a variant of predictions against a baseline, or against these. Shape: probs and baseline (n, K)'''
    baseline = oof.probabilities if baseline is None else baseline
    gain = bootstrap_difference(oof.metric, oof.truth, probs, baseline, oof.groups)
    return OofVariant(name, oof.metric, compute_metric(oof.metric, oof.truth, probs), gain, advice)


def inference_variants(
    own: InferenceConfig, pools: Sequence[str] | None, **settings: Any
) -> dict[str, InferenceConfig]:
    '''List the requested inference settings by name.'''
    changes = {name: value for name, value in settings.items() if value is not None}
    if not changes and not pools:
        return {}
    if changes.get('mode', own.mode) == 'full' and len(changes) > ('mode' in changes):
        raise KitError('window_s and hop_s have no effect on whole clips: add --mode windows, or leave them out.')
    variants = {}
    for pool in pools or [own.pool]:
        changed = {**changes, 'pool': pool} if pools else changes
        name = ' '.join(f'{setting}={value}' for setting, value in changed.items())
        variants[name] = replace(own, **changed)
    return variants


def windows_of_names(names: Sequence[str]) -> tuple[list[int], list[str], list[float]]:
    '''Find the rows named <recording>_<end second>[.ogg], their recordings and end seconds.'''
    rows = []
    recordings = []
    times_s = []
    for row, name in enumerate(names):
        recording, end_s = split_window(name)
        if end_s is None:
            recording, end_s = split_window(PurePosixPath(name).with_suffix('').as_posix())
        if end_s is not None:
            rows.append(row)
            recordings.append(recording)
            times_s.append(end_s)
    if not rows:
        raise KitError(f'{NO_WINDOWS} One of them is {names[0]!r}.')
    return rows, recordings, times_s


def fit_on_other_folds(
    fit: Callable[[Any, Any], np.ndarray], scores: np.ndarray, truth: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    '''Fit weights or thresholds for each row on the other folds. Shape: scores (m, n, K) -> (n, ...)'''
    fitted = {}
    for fold in np.unique(folds).tolist():
        held = folds == fold
        if held.all():
            raise KitError('all rows are in one fold: weights need two folds, to be measured on other rows.')
        fitted[fold] = fit(scores[:, ~held], truth[~held])
    return np.stack([fitted[fold] for fold in folds.tolist()])


def window_steps(**options: Any) -> dict[str, PostprocessConfig]:
    '''List the steps over windows to compare: each option alone, then all together.'''
    chosen = {name: value for name, value in options.items() if value}
    top: dict[str, Any] = {name: chosen.pop(name) for name in ('top_mean', 'top_power') if name in chosen}
    parts: list[dict[str, Any]] = [{name: value} for name, value in chosen.items()] + ([top] if top else [])
    if len(parts) > 1:
        parts.append(chosen | top)
    return {' '.join(f'{name}={value}' for name, value in part.items()): postprocess_config(**part) for part in parts}


def compare_steps(oof: OofPredictions, steps: Mapping[str, PostprocessConfig]) -> list[OofVariant]:
    '''Compare steps over a recording's windows with the plain predictions of these.'''
    rows, recordings, times_s = windows_of_names(oof.names)
    window = f'the window of {recordings[0]!r} that ends at second {times_s[0]:g}'
    print(f'note: {oof.names[rows[0]]!r} is read as {window}, and the others likewise', flush=True)
    windows = replace(oof.reordered(np.array(rows)), groups=tuple(recordings))
    unused_prevalences = np.zeros(len(oof.classes))
    compared = []
    for name, step in steps.items():
        changed = apply_postprocess(step, windows.probabilities, recordings, times_s, unused_prevalences)
        label = name if len(rows) == len(oof.names) else f'{name}, on {len(rows)} windows'
        compared.append(compare(windows, label, changed))
    return compared


def compare_fitted_weights(oof: OofPredictions, runs: Mapping[Path, np.ndarray]) -> OofVariant:
    '''Fit weights of several runs' blend on all folds, and measure their gain over the plain mean on other folds.

    Shape:  probabilities (n, K) of each run's folder
    '''
    scores = np.stack(list(runs.values())).astype(np.float64)
    of_rows = fit_on_other_folds(fit_weights, scores, oof.truth, oof.folds)
    blended = np.einsum('nm,mnk->nk', of_rows, scores)
    weights = []
    for folder, weight in zip(runs, fit_weights(scores, oof.truth), strict=True):
        checkpoints = len(list(folder.glob('fold_*.pt')))
        weights += [f'{weight / max(1, checkpoints):.4g}'] * checkpoints
    patterns = ' '.join(f"'{folder}/fold_*.pt'" for folder in runs)
    advice = f'to use them: submit --checkpoints {patterns} --weights {" ".join(weights)}'
    return compare(oof, 'fitted weights, against the plain mean of the runs', blended, scores.mean(axis=0), advice)


def compare_thresholds(run: Path, oof: OofPredictions) -> OofVariant:
    '''Fit thresholds for F1, measure their gain over 0.5 on other folds, and write thresholds.csv.'''
    scores = oof.probabilities[None].astype(np.float64)

    def fit(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return fit_thresholds(oof.metric, truth, scores[0])

    of_rows = fit_on_other_folds(fit, scores, oof.truth, oof.folds)
    decided = (scores[0] >= of_rows).astype(float)
    path = run / 'thresholds.csv'
    rows = [(name, f'{value:.4g}') for name, value in zip(oof.classes, fit(scores, oof.truth), strict=True)]
    write_rows(path, [('class', 'threshold'), *rows])
    return compare(oof, 'fitted thresholds, against 0.5', decided, advice=f'to use them: submit --thresholds {path}')


def finite_outputs(outputs: Mapping[int, WindowLogits]) -> dict[int, WindowLogits]:
    '''The clips whose logits are all finite, in their order.'''
    return {clip: output for clip, output in sorted(outputs.items()) if np.isfinite(output.logits).all()}


def fill_with_priors(
    tagger: Tagger, inference: InferenceConfig, outputs: Mapping[int, WindowLogits], clips: int
) -> np.ndarray:
    '''Turn logits into probabilities; clips without any get the prior. Shape: -> (clips, K) float32'''
    probs = np.tile(np.array(tagger.card.prevalences, np.float32), (clips, 1))
    for clip, output in outputs.items():
        probs[clip] = clip_probabilities(tagger, inference, output.logits)
    return probs


def score_held_out(
    held: HeldOut, inference: InferenceConfig, outputs: Mapping[int, WindowLogits], failures: Mapping[int, str]
) -> OofPredictions:
    '''Turn a fold's logits into probabilities; write their calibration and score into the tagger's card.

    Only a ranking tagger is calibrated. Clips without finite logits get the prior.
    '''
    tagger = held.tagger
    finite = finite_outputs(outputs)
    if finite and tagger.card.output == 'ranking':
        logits = [output.logits for output in finite.values()]
        calibration = fit_calibration(logits, held.truth[list(finite)], partial(pool_windows, inference=inference))
        tagger.card = replace(tagger.card, calibration=calibration)
    clips = len(held.names)
    probs = fill_with_priors(tagger, inference, finite, clips)
    metric = tagger.card.metric
    tagger.card = replace(tagger.card, oof_score=round(compute_metric(metric, held.truth, probs), 6))
    reasons = {held.names[clip]: failures.get(clip, NOT_FINITE) for clip in range(clips) if clip not in finite}
    folds = np.full(clips, tagger.card.fold)
    return OofPredictions(tuple(held.names), tagger.card.classes, folds, held.truth, probs, reasons, metric)


def write_oof(run: Path, result: OofPredictions) -> None:
    '''Write oof.csv, in the table's order; rows of other folds stay.'''
    import pandas

    frame = pandas.DataFrame(result.probabilities, columns=list(result.classes))
    frame.insert(0, 'fname', list(result.names))
    frame.insert(1, 'fold', result.folds)
    if (run / 'oof.csv').is_file():
        old = pandas.read_csv(run / 'oof.csv', dtype={'fname': str}, keep_default_na=False)
        old = old[~old['fold'].isin(result.folds)]
        frame = pandas.concat([frame, old]) if len(old) else frame
        table = read_clip_table(run / 'folds.csv')
        place = {name: row for row, name in enumerate(row_names(table['fname'], stretches_of(table)))}
        frame = frame.sort_values('fname', key=lambda names: names.map(place))
    write_text(run / 'oof.csv', frame.to_csv(index=False, lineterminator='\n', float_format='%.9g'))


def predict_ways(
    held: HeldOut,
    variants: Mapping[str, InferenceConfig],
    shift_steps: Mapping[str, PostprocessConfig],
    name: str,
    audio: Path,
    runtime: Runtime,
    adopt: bool,
) -> dict[str, OofPredictions]:
    '''Predict a model's rows in its own way, in other ways, and with shifted odds; the own way's name is empty.

    The own way's calibration and score are written into the tagger's card; with `adopt` those of the one variant.
    '''
    tagger = held.tagger
    own = Predictor(tagger, runtime.device, fuse=True)
    # Pools of the same windows share the network's logits.
    unpooled = {way: replace(other, pool=own.inference.pool) for way, other in variants.items()}
    distinct = list(dict.fromkeys([own.inference, *unpooled.values()]))
    others = [Predictor(tagger, runtime.device, inference=asked, fuse=True) for asked in distinct[1:]]
    outputs, failures = predict_held_out(held, [own, *others], name, audio, runtime)
    logits = dict(zip(distinct, outputs, strict=True))
    part = score_held_out(held, own.inference, outputs[0], failures)
    parts = {'': part}
    own_card = tagger.card
    for way, inference in variants.items():
        # Calibrated anew: scores of whole clips and of windows are not alike.
        tagger.card = replace(own_card, inference=inference)
        parts[way] = score_held_out(held, inference, logits[unpooled[way]], failures)
    if not adopt:
        tagger.card = own_card
    trained = fitted_prevalences(tagger.card)
    for way, step in shift_steps.items():
        probs = apply_postprocess(step, part.probabilities, None, None, trained, part.classes)
        parts[way] = replace(part, probabilities=probs)
    return parts


def predict_oof(
    run: str | Path,
    audio: str | Path,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
    mode: str | None = None,
    window_s: float | None = None,
    hop_s: float | None = None,
    pool: Sequence[str] | None = None,
    prior_shift: bool = False,
    prevalences: str | Path | None = None,
    site_prior: float | None = None,
    smooth: float | Sequence[float] | None = None,
    top_mean: int | None = None,
    top_power: float | None = None,
    adopt: bool = False,
    blend_with: Sequence[str | Path] | None = None,
) -> OofPredictions:
    '''Predict every clip of a run by the fold that never saw it; write oof.csv and fit the calibrations.

    The options of `submit` from mode to top_power are compared with the run's own way: a line for each has its score
    and the gain with its 95 % interval. oof.csv holds the run's own way. The steps over windows need rows that are
    stretches of recordings, or names <recording>_<end second>. For a metric of F1, thresholds are fitted and
    cross-fitted: `submit` takes thresholds.csv.

    Options:
        run: the folder that `train` wrote
        adopt: predict this way from now on: write the inference settings, their calibration and score into the run
        blend_with: folders of other runs on the same clips; fits blend weights for `submit`
    '''
    if adopt and not len(pool or ['']) == 1 <= len([x for x in (mode, window_s, hop_s, pool) if x]):
        raise KitError('adopt takes one way to predict: give mode, window_s, hop_s or one pool.')
    runtime = start_runtime(device, threads, progress)
    models = held_out_models(Path(run))
    others = {Path(folder): load_oof(folder) for folder in blend_with or ()}
    shifts = {'prior_shift': prior_shift, 'prevalences': prevalences}
    shift_steps = {name: postprocess_config(**{name: value}) for name, value in shifts.items() if value}
    steps = window_steps(site_prior=site_prior, smooth=smooth, top_mean=top_mean, top_power=top_power)
    if steps:  # other names are refused before the long work
        windows_of_names([name for held in models.values() for name in held.names])
    # Each way to predict, by its name, has a part for each model; the run's own way has no name.
    parts: dict[str, list[tuple[np.ndarray, OofPredictions]]] = {}
    for path, held in models.items():
        own = held.tagger.card.inference
        variants = inference_variants(own, pool, mode=mode, window_s=window_s, hop_s=hop_s)
        of_model = predict_ways(held, variants, shift_steps, Path(path).name, Path(audio), runtime, adopt)
        for name, part in of_model.items():
            parts.setdefault(name, []).append((held.rows, part))
    joined = {name: join_folds(of_folds) for name, of_folds in parts.items()}
    result = joined.pop('')
    result = replace(result, groups=groups_of_rows(read_clip_table(Path(run) / 'folds.csv'), result.names))
    compared = compare_ways(Path(run), result, joined, shift_steps, steps, others)
    for path, held in models.items():
        save_tagger(path, held.tagger)
    write_oof(Path(run), next(iter(joined.values())) if adopt else result)
    if adopt:  # `train` then refuses to go on in the old way
        recipe = read_json(Path(run) / 'recipe.json')
        inference = next(iter(models.values())).tagger.card.inference.to_dict()
        write_json(Path(run) / 'recipe.json', recipe | {'inference': inference})
    return replace(result, variants=tuple(compared))


def compare_ways(
    run: Path,
    result: OofPredictions,
    ways: Mapping[str, OofPredictions],
    shifts: Mapping[str, PostprocessConfig],
    steps: Mapping[str, PostprocessConfig],
    others: Mapping[Path, OofPredictions],
) -> list[OofVariant]:
    '''Compare a run's predictions with other ways to predict, thresholds, steps over windows, and other runs.'''
    compared = []
    for name, other in ways.items():
        advice = ''
        if name in shifts and METRICS[result.metric].is_per_class:
            advice = f"it keeps the order of each class's rows of a fold, which {result.metric} alone depends on"
        compared.append(compare(result, name, other.probabilities, advice=advice))
    if '_f1' in result.metric and len(np.unique(result.folds)) > 1:
        compared.append(compare_thresholds(run, result))
    if steps:
        compared += compare_steps(result, steps)
    if others:
        scores = {run: result.probabilities}
        for folder, predictions in others.items():
            scores[folder] = predictions.probabilities_like(result, folder, run)
        compared.append(compare_fitted_weights(result, scores))
    return compared


def join_folds(parts: Sequence[tuple[np.ndarray, OofPredictions]]) -> OofPredictions:
    '''Join parts, each with its rows, in the table's order; networks of one fold are averaged.'''
    rows_of = {int(part.folds[0]): rows for rows, part in parts}
    of_folds = []
    for fold in rows_of:
        same = [part for _, part in parts if part.folds[0] == fold]
        of_folds.append(replace(same[0], probabilities=np.mean([part.probabilities for part in same], axis=0)))
    joined = OofPredictions(
        names=tuple(name for part in of_folds for name in part.names),
        classes=of_folds[0].classes,
        folds=np.concatenate([part.folds for part in of_folds]),
        truth=np.concatenate([part.truth for part in of_folds]),
        probabilities=np.concatenate([part.probabilities for part in of_folds]),
        failures={name: reason for _, part in parts for name, reason in part.failures.items()},
        metric=of_folds[0].metric,
    )
    return joined.reordered(np.argsort(np.concatenate(list(rows_of.values())), kind='stable'))


@dataclass(frozen=True)
class SavedRun:
    '''A run or stack as its folder holds it.

    `history` has a table of epochs per training. `oof` is sorted by clip, and empty before there are predictions.
    '''

    folder: Path
    recipe: dict[str, Any]
    history: list[Any]
    oof: OofPredictions


def load_run(folder: str | Path, labels: Path | None = None) -> SavedRun:
    '''Read what the folder of a run or stack holds so far. Errors: KitError for a folder that is neither'''
    import pandas

    folder = Path(folder)
    if not (folder / 'folds.csv').is_file():
        raise KitError(f'{folder} holds no run (no folds.csv): give what `train` or `stack` wrote.')
    history = []
    if (folder / 'history.csv').is_file():
        epochs = pandas.read_csv(folder / 'history.csv', dtype={'fold': str})
        history = [rows for _, rows in epochs.groupby(['fold', 'seed'], sort=False)]
    empty = np.zeros((0, 0))
    oof = OofPredictions((), (), np.zeros(0, int), empty, empty, {}, read_metric(folder))
    if (folder / 'oof.csv').is_file():
        oof = load_oof(folder, labels)
        oof = oof.reordered(np.argsort(oof.names))
    return SavedRun(folder, read_json(folder / 'recipe.json'), history, oof)
