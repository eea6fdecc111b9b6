'''Law 1: a clip's prediction never depends on its batchmates, the batch size, or the order of files.'''

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.demo import TOY_CLASSES, toy_clip
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, compute_spectrograms
from kit.models.checkpoint import load_tagger
from tests.behaviour.trained import LoudBands, Trained, loud_tagger

TOLERANCE = 1e-5
LENGTHS = (1, 2, 150, 399, 400, 401, 1999, 4000, 8000, 8190, 8199, 12000, 12100, 12345, 40000)


def toy_sound(samples: int, seed: int) -> Sound:
    '''A clip of `samples` samples at 8 kHz, with one or two events.'''
    rng = np.random.default_rng(seed)
    labels = list(rng.choice(TOY_CLASSES, size=2, replace=False))
    wave = toy_clip(samples / 22050 + 0.01, labels, rng)
    return Sound(np.ascontiguousarray(np.resize(wave, samples)), 8000)


@pytest.fixture(scope='module')
def sounds() -> list[Sound]:
    '''Clips from one sample to three minutes, two of each length.'''
    return [toy_sound(n, seed) for seed, n in enumerate((*LENGTHS, *LENGTHS, 180 * 8000))]


def checkpoints_of(trained: Trained, case: str) -> list[str]:
    '''The checkpoints of a case.'''
    return {
        'full': [trained.mel[0]],
        'windows': [trained.windows],
        'stft': [trained.stft],
        'ensemble': [*trained.all, trained.windows],
    }[case]


def max_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize('case', ['full', 'windows', 'stft', 'ensemble'])
def test_a_clip_alone_in_company_and_in_any_order_gets_one_prediction(
    trained: Trained, sounds: list[Sound], case: str
) -> None:
    checkpoints = checkpoints_of(trained, case)
    together = predict_clips(checkpoints, sounds).probabilities
    assert np.ptp(together, axis=0).min() > 0.02, 'a network with a constant output would prove nothing'
    alone = np.concatenate([predict_clips(checkpoints, [sound]).probabilities for sound in sounds])
    assert max_difference(alone, together) <= TOLERANCE
    order = np.random.default_rng(0).permutation(len(sounds))
    shuffled = predict_clips(checkpoints, [sounds[i] for i in order]).probabilities
    assert max_difference(shuffled, together[order]) <= TOLERANCE


@pytest.mark.parametrize('batch_frames', [1, 500, 100_000])
def test_the_batch_size_changes_no_prediction(trained: Trained, sounds: list[Sound], batch_frames: int) -> None:
    checkpoints = checkpoints_of(trained, 'ensemble')
    expected = predict_clips(checkpoints, sounds).probabilities
    output = predict_clips(checkpoints, sounds, batch_frames=batch_frames).probabilities
    assert max_difference(expected, output) <= TOLERANCE


@pytest.mark.parametrize('case', ['full', 'windows', 'stft'])
@pytest.mark.parametrize('batch_size', [2, 64])
def test_logits_alone_and_in_batches_of_2_and_64_agree(trained: Trained, case: str, batch_size: int) -> None:
    tagger = load_tagger(checkpoints_of(trained, case)[0])
    batch_sizes: list[int] = []
    tagger.network.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0])))
    rate = tagger.card.frontend.sample_rate
    waves = [torch.from_numpy(toy_sound(rate - 1, seed).wave) for seed in range(batch_size)]
    specs = compute_spectrograms(tagger.frontend, waves)
    predictor = Predictor(tagger, torch.device('cpu'), batch_frames=1_000_000)
    together = np.concatenate([clip.logits for clip in predictor.predict(specs) if clip])
    assert max(batch_sizes) == batch_size
    batch_sizes.clear()
    alone = np.concatenate([clip.logits for spec in specs for clip in predictor.predict([spec]) if clip])
    assert set(batch_sizes) == {1}
    assert max_difference(together, alone) <= TOLERANCE * max(1.0, float(np.abs(together).max()))


def test_no_input_holds_padding_from_another_clip(sounds: list[Sound]) -> None:
    inputs: list[torch.Tensor] = []
    tagger = loud_tagger(LoudBands(before=lambda spec: inputs.append(spec.clone())))
    specs = tagger.frontend.spectrograms([torch.from_numpy(sound.wave) for sound in sounds])
    predict_clips(tagger, sounds)
    expected = torch.stack([spec.amin() for spec in specs])
    minima = torch.cat([spec.amin(dim=(1, 2, 3)) for spec in inputs])
    assert torch.equal(expected.sort().values, minima.sort().values), 'an input held what its clip does not'


def test_models_of_several_front_ends_predict_together_as_each_alone(trained: Trained, sounds: list[Sound]) -> None:
    checkpoints = checkpoints_of(trained, 'ensemble')
    weights = [1.0, 2.0, 3.0, 0.5]
    together = predict_clips(checkpoints, sounds, weights=weights).probabilities
    single = [predict_clips(path, sounds).probabilities.astype(np.float64) for path in checkpoints]
    assert max_difference(together, np.average(single, axis=0, weights=weights)) <= TOLERANCE
    assert max_difference(single[0], single[2]) > 0.05
