'''Steps after the models: `submit` applies them to rows, `oof` measures out of fold by how much they help.'''

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.core.errors import KitError
from kit.infer.blend import fit_weights
from kit.infer.postprocess import (
    PostprocessConfig,
    apply_postprocess,
    estimate_prevalences,
    scale_odds,
    smooth_neighbours,
    weigh_by_recording,
)
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from kit.labels.bootstrap import bootstrap_difference, bootstrap_interval, format_metric
from kit.labels.calibration import fit_thresholds
from kit.labels.metrics import compute_metric, lwlrap
from kit.labels.oof_predictions import load_oof
from kit.models.checkpoint import load_tagger
from kit.report import show
from kit.train.oof import fit_on_other_folds, load_run, predict_oof
from kit.train.recipes import find_recipe
from kit.train.run import train_run
from tests.behaviour.trained import (
    loud_tagger,
    nine_digits,
    noise,
    read_scores,
    write_folder,
    write_template,
    write_wav,
)

QUIET: dict[str, Any] = {'device': 'cpu', 'threads': 1, 'progress': False}
SETTINGS = '''
    epochs=1 n_folds=2 crop_s=0.4 frontend.sample_rate=8000 frontend.n_fft=256 frontend.hop_length=160
    frontend.n_mels=16 network.width=4 network.blocks=3 validate_every=1 no_augment_epochs=0
'''
TINY = find_recipe('max-pyramid-mel', True, SETTINGS.split())


def write_windows(folder: Path) -> tuple[Path, list[str]]:
    '''Write two recordings of three windows of 0.5 s, one of them with a gap, and a template with a row for a third.'''
    for name, level in (('r', 0.3), ('s', 0.05)):
        wave = np.concatenate([noise(4000, seed=k, level=level * (1 + k)) for k in range(3)])
        write_wav(folder / 'in' / f'{name}.wav', wave)
    ids = [f'{name}_{end}' for name in 'rs' for end in (0.5, 1.0, 1.5)] + ['gone_0.5']
    return write_template(folder / 'rows.csv', ids, ['a', 'b', 'c']), ids


def scores_of(folder: Path, template: Path, **options: Any) -> np.ndarray:
    '''Submit, and return the rows of the CSV.'''
    submit(loud_tagger(), folder / 'in', folder / 'out.csv', template, **QUIET, **options)
    return np.stack(list(read_scores(folder / 'out.csv')[1].values()))


def test_a_submission_smooths_and_weighs_the_windows_of_each_recording(tmp_path: Path) -> None:
    template, ids = write_windows(tmp_path)
    plain = scores_of(tmp_path, template)
    recordings = [name.rpartition('_')[0] for name in ids[:6]]
    times = [float(name.rpartition('_')[2]) for name in ids[:6]]
    smooth = smooth_neighbours(plain[:6], recordings, times, (0.5,))
    np.testing.assert_allclose(scores_of(tmp_path, template, smooth=0.5)[:6], smooth, atol=1e-8)
    both = scores_of(tmp_path, template, smooth=0.5, top_mean=2)
    np.testing.assert_allclose(both[:6], weigh_by_recording(smooth, recordings, 2), atol=1e-8)
    prior = np.array([0.1, 0.2, 0.3])
    assert np.allclose(plain[6], prior) and np.allclose(both[6], prior**2)
    powered = scores_of(tmp_path, template, smooth=[0.5, 0.25], top_mean=1, top_power=0.4)
    smooth = smooth_neighbours(plain[:6], recordings, times, (0.5, 0.25))
    np.testing.assert_allclose(powered[:6], weigh_by_recording(smooth, recordings, 1, 0.4), atol=1e-8)
    np.testing.assert_allclose(powered[6], prior**1.4, atol=1e-8)


def test_a_submission_scales_odds_to_the_prevalences_of_its_own_rows(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', [f'{i}.wav' for i in range(6)])
    tagger = loud_tagger()
    probs = predict_clips(tagger, tmp_path / 'in', **QUIET).probabilities
    done = submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', prior_shift=True, **QUIET)
    trained = np.array(tagger.card.prevalences)
    expected = scale_odds(probs, trained, estimate_prevalences(probs, trained))
    found = np.stack(list(read_scores(tmp_path / 'out.csv')[1].values()))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert done.report['postprocess'] == PostprocessConfig(prior_shift=True).to_dict()
    assert any('depend on the other rows' in note for note in done.report['notes'])


def write_values(path: Path, column: str, **values: float) -> Path:
    '''Write a CSV of one value per class.'''
    path.write_text('\n'.join([f'class,{column}', *(f'{name},{value}' for name, value in values.items()), '']))
    return path


def test_a_submission_scales_odds_to_given_prevalences_and_other_classes_keep_their_own(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', [f'{i}.wav' for i in range(3)])
    tagger = loud_tagger()
    probs = predict_clips(tagger, tmp_path / 'in', **QUIET).probabilities
    table = write_values(tmp_path / 'p.csv', 'prevalence', c=0.9, a=0.02)
    submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', prevalences=table, **QUIET)
    found = np.stack(list(read_scores(tmp_path / 'out.csv')[1].values()))
    trained = np.array(tagger.card.prevalences)
    expected = scale_odds(probs, trained, np.array([0.02, trained[1], 0.9]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found[:, 1], probs[:, 1], atol=1e-6)


def test_the_odds_of_a_class_that_was_never_true_in_training_stay() -> None:
    step = PostprocessConfig(prevalences={'a': 0.3, 'b': 0.3})
    probs = np.array([[1e-4, 0.5], [1e-3, 0.2]])
    changed = apply_postprocess(step, probs, None, None, np.array([0.0, 0.5]), ('a', 'b'))
    np.testing.assert_allclose(changed[:, 0], probs[:, 0])
    assert (changed[:, 1] < probs[:, 1]).all()


def test_decisions_are_at_each_classs_own_threshold(tmp_path: Path) -> None:
    _, ids = write_windows(tmp_path)
    scores = scores_of(tmp_path, write_template(tmp_path / 'scores.csv', ids, ['a', 'b', 'c']))[:6]
    thresholds = {name: float(np.median(column)) for name, column in zip('abc', scores.T, strict=True)}
    table = write_values(tmp_path / 't.csv', 'threshold', **thresholds)
    template = tmp_path / 'birds.csv'
    template.write_text('\n'.join(['row_id,birds', *(f'{name},' for name in ids), '']))
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'o.csv', template, thresholds=table, **QUIET)
    answers = (tmp_path / 'o.csv').read_text().splitlines()[1:7]
    for answer, row in zip(answers, scores, strict=True):
        above = {name for name, p in zip('abc', row, strict=True) if p > thresholds[name]}
        assert {*answer.partition(',')[2].split()} - {'nocall'} == above
    assert len({answer.partition(',')[2] for answer in answers}) > 1
    with pytest.raises(KitError, match='this one wants scores'):
        scores_of(tmp_path, tmp_path / 'scores.csv', thresholds=table)


def test_steps_that_do_not_fit_the_rows_or_the_blend_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav'])
    values = write_values(tmp_path / 'p.csv', 'prevalence', x=0.5)
    cases: list[tuple[dict[str, Any], str]] = [
        ({'prevalences': values}, "unknown class 'x'"),
        ({'prevalences': values, 'prior_shift': True}, 'leave one of them out'),
        ({'prevalences': values, 'blend': 'rank'}, 'needs probabilities, which rank does not give'),
        ({'thresholds': values}, "has no column 'threshold'"),
        ({'smooth': 0.5}, 'whole clips, so leave them out'),
        ({'top_mean': 2}, 'whole clips, so leave them out'),
        ({'smooth': 1.5}, 'smooth must be at most 1'),
        ({'top_mean': -1}, 'top_mean must be at least 0'),
        ({'site_prior': 0.3}, 'whole clips, so leave them out'),
        ({'top_power': 0.4}, 'give that too, e.g. top_mean=2'),
        ({'prior_shift': True, 'blend': 'rank'}, 'needs probabilities, which rank does not give'),
    ]
    for options, words in cases:
        with pytest.raises(KitError, match=words):
            submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', **QUIET, **options)
        assert not (tmp_path / 'out.csv').exists()


def test_with_steps_rows_without_any_prediction_keep_their_prior(tmp_path: Path) -> None:
    write_folder(tmp_path / 'in', ['a.wav', 'b.wav'])
    (tmp_path / 'in' / 'bad.wav').write_bytes(b'no audio')
    submit(loud_tagger(), tmp_path / 'in', tmp_path / 'out.csv', prior_shift=True, **QUIET)
    assert read_scores(tmp_path / 'out.csv')[1]['bad.wav'].tolist() == nine_digits([0.1, 0.2, 0.3])


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    '''A table of the windows of six recordings, and their folder.'''
    folder = tmp_path_factory.mktemp('windows')
    rows = ['fname,labels,fold,author']
    for recording in range(6):
        for end in (1, 2, 3):
            name = f'rec{recording}_{end}.wav'
            seed = 10 * recording + end
            wave = noise(5000 + 800 * end, seed=seed, level=0.02 * (1 + seed % 5))
            if recording % 2:
                wave += 0.2 * np.sin(np.arange(len(wave)) * 0.7).astype(np.float32)
            write_wav(folder / 'in' / name, wave)
            rows.append(f'{name},{"tone" if recording % 2 else "hiss"},{recording // 2 % 2},A{recording}')
    (folder / 'table.csv').write_text('\n'.join([*rows, '']))
    return folder / 'table.csv', folder / 'in'


@pytest.fixture(scope='module')
def runs(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    '''Two runs on the same folds.'''
    folder = tmp_path_factory.mktemp('runs')
    for seed in (0, 1):
        train_run(TINY.override([f'seed={seed}']), *data, folder / str(seed), **QUIET)
    return [folder / '0', folder / '1']


@pytest.fixture(scope='module')
def f1_run(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    '''A run of a metric of decisions, with groups.'''
    folder = tmp_path_factory.mktemp('f1') / 'run'
    train_run(TINY.override(['metric=macro_f1']), *data, folder, group_column='author', **QUIET)
    return folder


def test_thresholds_are_measured_on_folds_they_were_not_fitted_on_and_written_for_submit(
    data: tuple[Path, Path], f1_run: Path
) -> None:
    result = predict_oof(f1_run, data[1], **QUIET)
    (variant,) = result.variants
    decided = np.empty(result.truth.shape)
    for fold in (0, 1):
        held = result.folds == fold
        fitted = fit_thresholds('macro_f1', result.truth[~held], result.probabilities[~held])
        decided[held] = result.probabilities[held] >= fitted
    assert variant.metric == 'macro_f1'
    assert variant.score == pytest.approx(compute_metric('macro_f1', result.truth, decided))
    assert f'submit --thresholds {f1_run}/thresholds.csv' in str(variant)
    lines = (f1_run / 'thresholds.csv').read_text().splitlines()
    fitted = fit_thresholds('macro_f1', result.truth, result.probabilities)
    assert lines == ['class,threshold', *(f'{n},{t:.4g}' for n, t in zip(result.classes, fitted, strict=True))]


def test_intervals_are_over_the_groups_that_folds_were_made_of(
    data: tuple[Path, Path], f1_run: Path, runs: list[Path]
) -> None:
    oof = load_oof(f1_run)
    groups = [f'A{name[3]}' for name in oof.names]
    assert len({*oof.groups}) == 6 and len({*zip(oof.groups, groups, strict=True)}) == 6
    assert {*load_oof(runs[0]).groups} == {''}
    by_name = np.argsort(oof.names)
    arguments = ('macro_f1', oof.truth[by_name], oof.probabilities[by_name])
    grouped = format_metric(bootstrap_interval, *arguments, [groups[row] for row in by_name])
    assert grouped in str(show([f1_run]))
    assert format_metric(bootstrap_interval, *arguments) not in str(show([f1_run]))


def test_given_prevalences_are_measured_out_of_fold_with_each_folds_training_prevalences(
    data: tuple[Path, Path], runs: list[Path], tmp_path: Path
) -> None:
    table = write_values(tmp_path / 'p.csv', 'prevalence', tone=0.9)
    result = predict_oof(runs[0], data[1], prevalences=table, **QUIET)
    (variant,) = result.variants
    shifted = np.empty_like(result.probabilities)
    for fold in (0, 1):
        rows = result.folds == fold
        trained = np.array(load_tagger(runs[0] / f'fold_{fold}.pt').card.train_prevalences)
        wanted = np.where([name == 'tone' for name in result.classes], 0.9, trained)
        shifted[rows] = scale_odds(result.probabilities[rows], trained, wanted)
    assert variant.name == 'prevalences' and variant.score == pytest.approx(lwlrap(result.truth, shifted))


@pytest.mark.parametrize('mode', ['windows', 'frames'])
def test_pools_and_windows_are_compared_out_of_fold_with_the_way_of_submission(
    data: tuple[Path, Path], runs: list[Path], mode: str
) -> None:
    before = (runs[0] / 'oof.csv').read_bytes()
    ways: dict[str, Any] = {'mode': mode, 'window_s': 0.3, 'hop_s': 0.15, 'pool': ['mean', 'max']}
    result = predict_oof(runs[0], data[1], **ways, **QUIET)
    assert (runs[0] / 'oof.csv').read_bytes() == before, "oof.csv holds the run's own way"
    variants = result.variants
    assert len(variants) == 2
    scores = [result.probabilities]
    for variant, pool in zip(variants, ('mean', 'max'), strict=True):
        probs = np.empty_like(result.probabilities)
        for fold in (0, 1):
            rows = np.flatnonzero(result.folds == fold)
            tagger = load_tagger(runs[0] / f'fold_{fold}.pt')
            inference = replace(tagger.card.inference, mode=mode, window_s=0.3, hop_s=0.15, pool=pool)
            paths = [data[1] / result.names[row] for row in rows]
            probs[rows] = predict_clips(tagger, paths, inference=inference, device='cpu').probabilities
        scores.append(probs)
        gain = bootstrap_difference('lwlrap', result.truth, probs, result.probabilities)
        assert f'pool={pool}' in variant.name and variant.score == pytest.approx(lwlrap(result.truth, probs))
        assert (variant.gain.low, variant.gain.high) == pytest.approx((gain.low, gain.high))
        assert str(variant) in str(result) and '(95 %: ' in str(variant)


def test_an_adopted_way_to_predict_is_calibrated_scored_and_used_from_then_on(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / 'run'
    train_run(TINY.override(['loss=lsep', 'loss_settings={}']), *data, run, **QUIET)
    before = load_tagger(run / 'fold_0.pt').card
    ways: dict[str, Any] = {'mode': 'windows', 'window_s': 0.3, 'hop_s': 0.15, 'pool': ['mean']}
    (variant,) = predict_oof(run, data[1], adopt=True, **ways, **QUIET).variants
    card = load_tagger(run / 'fold_0.pt').card
    assert card.inference == replace(before.inference, **ways | {'pool': 'mean'})
    assert card.output == 'ranking' and None is not card.calibration != before.calibration
    adopted = load_oof(run)
    assert adopted.score == pytest.approx(variant.score, abs=1e-6)
    again = predict_oof(run, data[1], **QUIET)
    np.testing.assert_allclose(adopted.probabilities, again.probabilities, atol=1e-6)
    assert again.score == pytest.approx(variant.score, abs=1e-6) and not again.variants
    with pytest.raises(KitError, match='adopt takes one way to predict'):
        predict_oof(run, data[1], adopt=True, pool=['mean', 'max'], **QUIET)
    with pytest.raises(KitError, match='adopt takes one way to predict'):
        predict_oof(run, data[1], adopt=True, **QUIET)
    with pytest.raises(KitError, match=r"inference\.mode is 'windows' there and 'full' here"):
        train_run(TINY.override(['loss=lsep', 'loss_settings={}']), *data, run, **QUIET)
    with pytest.raises(KitError, match='no effect on whole clips'):
        predict_oof(run, data[1], mode='full', window_s=0.3, **QUIET)


def test_steps_are_measured_out_of_fold_and_recordings_are_drawn_whole(
    data: tuple[Path, Path], runs: list[Path]
) -> None:
    result = predict_oof(runs[0], data[1], prior_shift=True, smooth=0.5, top_mean=2, **QUIET)
    recordings = [name.rpartition('_')[0] for name in result.names]
    times = [float(name[-5]) for name in result.names]
    expected = {
        'smooth=0.5': smooth_neighbours(result.probabilities, recordings, times, (0.5,)),
        'top_mean=2': weigh_by_recording(result.probabilities, recordings, 2),
    }
    smooth = expected['smooth=0.5']
    expected['smooth=0.5 top_mean=2'] = weigh_by_recording(smooth, recordings, 2)
    found = {variant.name: variant for variant in result.variants}
    assert list(found) == ['prior_shift', *expected]
    for name, probs in expected.items():
        gain = bootstrap_difference('lwlrap', result.truth, probs, result.probabilities, recordings)
        assert found[name].score == lwlrap(result.truth, probs)
        assert (found[name].gain.low, found[name].gain.high) == (gain.low, gain.high)
    shifted = np.empty_like(result.probabilities)
    for fold in (0, 1):
        rows = result.folds == fold
        trained = np.array(load_tagger(runs[0] / f'fold_{fold}.pt').card.train_prevalences)
        probs = result.probabilities[rows]
        shifted[rows] = scale_odds(probs, trained, estimate_prevalences(probs, trained))
    assert found['prior_shift'].score == pytest.approx(lwlrap(result.truth, shifted))


def test_fitted_weights_are_measured_on_folds_they_were_not_fitted_on_and_printed_for_submit(
    data: tuple[Path, Path], runs: list[Path]
) -> None:
    result = predict_oof(runs[0], data[1], blend_with=[runs[1]], **QUIET)
    other = load_oof(runs[1])
    assert other.names == result.names
    scores = np.stack([result.probabilities, other.probabilities]).astype(np.float64)
    blended = np.empty(result.truth.shape)
    for fold in (0, 1):
        held = result.folds == fold
        weights = fit_weights(scores[:, ~held], result.truth[~held])
        blended[held] = np.tensordot(weights, scores[:, held], 1)
    (variant,) = result.variants
    assert variant.score == pytest.approx(lwlrap(result.truth, blended))
    assert variant.gain.value == pytest.approx(variant.score - lwlrap(result.truth, scores.mean(axis=0)))
    words = variant.advice.partition('--weights ')[2].split()
    fitted = fit_weights(scores, result.truth)
    np.testing.assert_allclose([float(w) for w in words], np.repeat(fitted / 2, 2), rtol=1e-3)


def test_no_row_is_changed_by_what_its_own_fold_fitted() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random((60, 4)) < 0.3).astype(float)
    skill = np.array([1.0, 0.6, 0.1])[:, None, None]
    scores = 1 / (1 + np.exp(-(skill * (4 * truth - 2) + rng.normal(size=(3, 60, 4)))))
    folds = np.arange(60) % 3

    def fit_f1(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return fit_thresholds('macro_f1', truth, scores[0])

    for fit in (fit_weights, fit_f1):
        fitted = fit_on_other_folds(fit, scores, truth, folds)
        for fold in range(3):
            held = folds == fold
            flipped = np.where(held[:, None], 1 - truth, truth)
            changed = fit_on_other_folds(fit, scores, flipped, folds)
            np.testing.assert_array_equal(changed[held], fitted[held])
            assert not np.allclose(changed[~held], fitted[~held])
        with pytest.raises(KitError, match='all rows are in one fold'):
            fit_on_other_folds(fit, scores, truth, folds * 0)


def test_what_cannot_be_compared_is_refused_before_anything_is_predicted(
    data: tuple[Path, Path], runs: list[Path], tmp_path: Path
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({'pool': ['maen']}, "did you mean 'mean'"),
        ({'window_s': 0.3, 'mode': 'windows', 'hop_s': 0.4}, 'hop_s must be in'),
        ({'blend_with': [tmp_path]}, 'lacks oof.csv: run `oof` on it'),
    ]
    for options, words in cases:
        with pytest.raises(KitError, match=words):
            predict_oof(runs[0], data[1], **QUIET, **options)


def test_a_run_read_back_holds_its_predictions_sorted_by_name(runs: list[Path]) -> None:
    run = load_run(runs[0])
    oof = load_oof(runs[0])
    assert run.oof.names == tuple(sorted(oof.names)) and run.oof.classes == oof.classes
    order = np.argsort(oof.names)
    for part in ('probabilities', 'truth', 'folds'):
        np.testing.assert_array_equal(getattr(run.oof, part), getattr(oof, part)[order])
