"""Law 1: a clip's answer never depends on its batchmates, the batch size, or the order of files."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, compute_spectrograms
from kit.models.checkpoint import load_tagger
from kit.toydata import TOY_CLASSES, toy_clip
from tests.behaviour.trained import LoudBands, Trained, loud_tagger

TOLERANCE = 1e-5
CPU = torch.device("cpu")
LENGTHS = (1, 2, 150, 399, 400, 401, 1999, 4000, 8000, 8190, 8199, 12000, 12100, 12345, 40000)


def toy_sound(samples: int, seed: int) -> Sound:
    """A clip of so many samples at 8 kHz, with one or two events."""
    rng = np.random.default_rng(seed)
    labels = list(rng.choice(TOY_CLASSES, size=2, replace=False))
    wave = toy_clip(samples / 22050 + 0.01, labels, rng)
    return Sound(np.ascontiguousarray(np.resize(wave, samples)), 8000)


@pytest.fixture(scope="module")
def sounds() -> list[Sound]:
    """Clips from one sample to three minutes, two of each length."""
    return [toy_sound(n, seed) for seed, n in enumerate((*LENGTHS, *LENGTHS, 180 * 8000))]


def models(trained: Trained, which: str) -> list[str]:
    """The ensemble of a case."""
    return {
        "full": [trained.mel[0]],
        "windows": [trained.windows],
        "stft": [trained.stft],
        "ensemble": [*trained.all, trained.windows],
    }[which]


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference."""
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("which", ["full", "windows", "stft", "ensemble"])
def test_a_clip_alone_in_company_and_in_any_order_gets_one_answer(
    trained: Trained, sounds: list[Sound], which: str
) -> None:
    ensemble = models(trained, which)
    together = predict_clips(ensemble, sounds).probabilities
    assert np.ptp(together, axis=0).min() > 0.02, "a network that hears nothing would prove nothing"
    alone = np.concatenate([predict_clips(ensemble, [sound]).probabilities for sound in sounds])
    assert furthest(alone, together) <= TOLERANCE
    order = np.random.default_rng(0).permutation(len(sounds))
    shuffled = predict_clips(ensemble, [sounds[i] for i in order]).probabilities
    assert furthest(shuffled, together[order]) <= TOLERANCE


@pytest.mark.parametrize("batch_frames", [1, 500, 100_000])
def test_the_size_of_batches_changes_no_answer(
    trained: Trained, sounds: list[Sound], batch_frames: int
) -> None:
    ensemble = models(trained, "ensemble")
    usual = predict_clips(ensemble, sounds).probabilities
    other = predict_clips(ensemble, sounds, batch_frames=batch_frames).probabilities
    assert furthest(usual, other) <= TOLERANCE


@pytest.mark.parametrize("which", ["full", "windows", "stft"])
@pytest.mark.parametrize("size", [2, 64])
def test_logits_alone_and_in_batches_of_2_and_64_agree(trained: Trained, which: str, size: int) -> None:
    tagger = load_tagger(models(trained, which)[0])
    seen: list[int] = []
    tagger.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    rate = tagger.card.frontend.sample_rate
    waves = [torch.from_numpy(toy_sound(rate - 1, seed).wave) for seed in range(size)]
    specs = compute_spectrograms(tagger.frontend, waves)
    predictor = Predictor(tagger, CPU, batch_frames=1_000_000)
    together = listened(predictor, specs)
    assert max(seen) == size
    seen.clear()
    alone = np.concatenate([listened(predictor, [spec]) for spec in specs])
    assert set(seen) == {1}
    scale = max(1.0, float(np.abs(together).max()))
    assert furthest(together, alone) <= TOLERANCE * scale


def listened(predictor: Predictor, specs: Sequence[torch.Tensor]) -> np.ndarray:
    """The logits of every window of some clips."""
    return np.concatenate([said.logits for said in predictor.predict(specs) if said is not None])


def test_a_batch_never_holds_two_lengths_nor_a_neighbours_padding(sounds: list[Sound]) -> None:
    inputs: list[torch.Tensor] = []
    tagger = loud_tagger(LoudBands(before=lambda spec: inputs.append(spec.clone())))
    own = {s.wave.tobytes(): tagger.frontend.spectrograms([torch.from_numpy(s.wave)])[0] for s in sounds}
    predict_clips(tagger, sounds)
    known = torch.cat([spec.amin()[None] for spec in own.values()])
    heard = torch.cat([spec.amin(dim=(1, 2, 3)) for spec in inputs])
    assert len(heard) == len(sounds)
    assert torch.equal(known.sort().values, heard.sort().values), "an input held what its clip does not"


def test_models_of_many_frontends_in_one_call_say_what_each_says_by_itself(
    trained: Trained, sounds: list[Sound]
) -> None:
    names = models(trained, "ensemble")
    weights = [1.0, 2.0, 3.0, 0.5]
    together = predict_clips(names, sounds, weights=weights).probabilities
    single = [predict_clips(name, sounds).probabilities.astype(np.float64) for name in names]
    mean = sum(w * p for w, p in zip(weights, single, strict=True)) / sum(weights)
    assert furthest(together, mean) <= TOLERANCE
    assert np.abs(single[0] - single[2]).max() > 0.05
