"""Raw scores become probabilities by the scale and offset a grid search would find."""

import numpy as np
import pytest
import torch

from kit.core.errors import KitError
from kit.labels.calibration import Calibration, fit_calibration


def top_share(windows):
    """Windows weighted by the share of their top two classes: not a function of one class alone."""
    weights = windows.topk(2, dim=1).values.sum(1) / windows.sum(1)
    return (windows * weights[:, None]).sum(0) / weights.sum()


def one_by_one(windows):
    """The maximum, by a way that torch cannot batch."""
    return torch.stack([windows[:, k].max() if windows.max().item() > 0 else windows[0, k] for k in range(4)])


POOLS = {
    "max": lambda windows: windows.amax(0),
    "max with indices": lambda windows: windows.max(dim=0).values,
    "mean": lambda windows: windows.mean(0),
    "geometric": lambda windows: windows.log().mean(0).exp(),
    "power": lambda windows: windows.pow(3).mean(0).pow(1 / 3),
    "noisy or": lambda windows: 1 - (1 - windows).prod(0),
    "top share": top_share,
    "one by one": one_by_one,
}


def draw(n=150, n_classes=4, n_windows=(1, 2, 3, 6), unknown=0.2, size=1.0, seed=0):
    generator = np.random.default_rng(seed)
    truth = (generator.random((n, n_classes)) < 0.3).astype(np.float32)
    logits = [
        (size * (generator.normal(size=(generator.choice(n_windows), n_classes)) + 1.5 * row + 3)).astype(
            "f4"
        )
        for row in truth
    ]
    truth[generator.random(truth.shape) < unknown] = np.nan
    return logits, truth


def slow_loss(logits, truth, pool, scale, offset):
    """Definition: mean BCE of known labels, drawn in by one label on either side, clip by clip."""
    true, false = np.nansum(truth), np.nansum(1 - truth)
    high, low = (true + 1) / (true + 2), 1 / (false + 2)
    terms = []
    for windows, row in zip(logits, truth, strict=True):
        heard = pool(torch.sigmoid(scale * torch.tensor(windows).double() + offset)).numpy()
        for p, t in zip(heard, row, strict=True):
            if not np.isnan(t):
                wanted = low + t * (high - low)
                p = np.clip(p, 1e-12, 1 - 1e-12)
                terms.append(-wanted * np.log(p) - (1 - wanted) * np.log(1 - p))
    return np.mean(terms)


@pytest.mark.parametrize("name", POOLS)
def test_no_point_of_a_grid_is_better(name):
    logits, truth = draw(n=60)
    fitted = fit_calibration(logits, truth, POOLS[name])
    best = slow_loss(logits, truth, POOLS[name], fitted.scale, fitted.offset)
    for scale in fitted.scale * np.geomspace(0.2, 5, 9):
        for offset in fitted.offset + np.linspace(-4, 4, 9):
            assert slow_loss(logits, truth, POOLS[name], scale, offset) >= best - 1e-9
    for scale, offset in [(0.995, 0), (1.005, 0), (1, -0.01), (1, 0.01)]:
        near = slow_loss(logits, truth, POOLS[name], fitted.scale * scale, fitted.offset + offset)
        assert near >= best - 1e-9


def test_a_grid_over_everything_ends_at_the_same_place():
    logits, truth = draw(n=100, n_windows=(1, 4))
    fitted = fit_calibration(logits, truth, POOLS["max"])
    grid = [(s, o) for s in np.geomspace(0.05, 20, 25) for o in np.linspace(-15, 5, 21)]
    scale, offset = min(grid, key=lambda point: slow_loss(logits, truth, POOLS["max"], *point))
    assert abs(np.log(fitted.scale / scale)) < 0.26
    assert abs(fitted.offset - offset) < 1.01


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.3, 2.0), (8.0, -1.0)])
def test_scores_that_were_bent_are_bent_back(scale, offset):
    generator = np.random.default_rng(4)
    true_logits = generator.normal(-1, 2, (20000, 3))
    truth = (generator.random(true_logits.shape) < 1 / (1 + np.exp(-true_logits))).astype(float)
    bent = (true_logits - offset) / scale
    fitted = fit_calibration(list(bent[:, None]), truth, POOLS["max"])
    assert fitted.scale == pytest.approx(scale, rel=0.05)
    assert fitted.offset == pytest.approx(offset, abs=0.05)


def test_probabilities_have_the_prevalence_of_the_truth():
    logits, truth = draw(n=800, n_windows=(1,), unknown=0.0, size=40)
    fitted = fit_calibration(logits, truth, POOLS["mean"])
    heard = fitted.probabilities(torch.tensor(np.concatenate(logits)))
    assert float(heard.mean()) == pytest.approx(float(truth.mean()), abs=2e-3)


def test_clips_of_many_lengths_in_any_order_give_the_same_answer():
    logits, truth = draw(n=200, n_windows=range(1, 12))
    one = fit_calibration(logits, truth, POOLS["mean"])
    assert one == fit_calibration(logits, truth, POOLS["mean"])
    order = np.random.default_rng(0).permutation(200)
    other = fit_calibration([logits[i] for i in order], truth[order], POOLS["mean"])
    assert other.scale == pytest.approx(one.scale, rel=1e-5)
    assert other.offset == pytest.approx(one.offset, abs=1e-5)


def test_an_unknown_label_is_as_if_it_were_not_there():
    logits, truth = draw(n=100, unknown=0.0)
    wider = [np.concatenate([scores, scores * 0 + scores.mean()], axis=1) for scores in logits]
    unknown = np.concatenate([truth, np.full_like(truth, np.nan)], axis=1)
    one, other = fit_calibration(logits, truth, POOLS["max"]), fit_calibration(wider, unknown, POOLS["max"])
    assert other.scale == pytest.approx(one.scale, rel=1e-4)
    assert other.offset == pytest.approx(one.offset, abs=1e-4)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_scores_that_can_be_told_apart_perfectly_stay_finite(name, size):
    truth = np.eye(4)[np.arange(40) % 4]
    generator = np.random.default_rng(0)
    logits = [size * (4 * row + generator.random((2, 4))) for row in truth]
    fitted = fit_calibration(logits, truth, POOLS[name])
    assert np.isfinite([fitted.scale, fitted.offset]).all() and fitted.scale > 0
    heard = np.array([POOLS[name](fitted.probabilities(torch.tensor(scores))).numpy() for scores in logits])
    assert heard[truth == 1].min() > 0.9 and heard[truth == 0].max() < 0.1
    assert heard.max() < 1


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("wild", [1e4, -1e4, 1e30])
def test_a_few_wild_scores_move_little(name, wild):
    logits, truth = draw(n=300, unknown=0.0, n_windows=(2, 3))
    plain = fit_calibration(logits, truth, POOLS[name])
    logits[0][:, 0] = logits[1][:, 2] = wild
    fitted = fit_calibration(logits, truth, POOLS[name])
    assert fitted.scale == pytest.approx(plain.scale, rel=0.3)
    assert fitted.offset == pytest.approx(plain.offset, rel=0.3)


@pytest.mark.parametrize("kind", ["constant", "backwards"])
def test_useless_scores_still_have_a_finite_answer_above_zero(kind):
    logits, truth = draw(unknown=0.0, n_windows=(1, 2))
    if kind == "constant":
        logits = [np.zeros_like(scores) for scores in logits]
    if kind == "backwards":
        logits = [-scores for scores in logits]
    for pool in POOLS.values():
        fitted = fit_calibration(logits, truth, pool)
        assert np.isfinite([fitted.scale, fitted.offset]).all() and fitted.scale > 0
        best = slow_loss(logits, truth, pool, fitted.scale, fitted.offset)
        prior = float(np.mean(truth))
        assert best < -prior * np.log(prior) - (1 - prior) * np.log(1 - prior) + 0.05


def test_soft_truth_and_inference_mode_are_fine():
    logits, truth = draw()
    soft = 0.8 * truth + 0.1
    with torch.inference_mode():
        inside = fit_calibration(logits, soft, POOLS["max"])
    assert inside == fit_calibration(logits, soft, POOLS["max"])
    assert inside.scale < fit_calibration(logits, truth, POOLS["max"]).scale


def test_a_calibration_survives_json_and_refuses_a_scale_of_zero():
    fitted = fit_calibration(*draw(), POOLS["max"])
    assert Calibration.from_dict(fitted.to_dict()) == fitted
    assert Calibration().probabilities(torch.zeros(2)).tolist() == [0.5, 0.5]
    with pytest.raises(KitError, match="scale"):
        Calibration(scale=0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits, truth: (logits[1:], truth), "149 clips of scores"),
        (lambda logits, truth: (logits, truth[:, :3]), r"clip 0 .*wanted \(windows, 3\)"),
        (lambda logits, truth: ([scores[0] for scores in logits], truth), "clip 0"),
        (lambda logits, truth: ([*logits[:-1], logits[-1][:0]], truth), "clip 149"),
        (lambda logits, truth: ([*logits[:-1], logits[-1] * np.nan], truth), "clip 149 .*not finite"),
        (lambda logits, truth: (logits, truth * 2), "0 to 2"),
        (lambda logits, truth: (logits, truth * 0), "is true.*rank blends"),
        (lambda logits, truth: (logits, truth * 0 + 1), "is false"),
        (lambda logits, truth: (logits, truth * np.nan), "none of the 0 known"),
        (lambda logits, truth: ([], truth[:0]), "none of the 0 known"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, words):
    with pytest.raises(KitError, match=words):
        fit_calibration(*change(*draw()), POOLS["max"])


def test_a_pool_that_makes_no_value_per_class_is_refused():
    with pytest.raises(KitError, match="one value per class"):
        fit_calibration(*draw(), lambda windows: windows.mean(1))
