'''Law 2: every sample counts, in clips of any length, whole, in pieces or in windows.'''

from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.windows import InferenceConfig
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from tests.behaviour.trained import HOP, RATE, LoudBands, Trained, loud_tagger, noise, write_wav

PIECES = InferenceConfig(max_frames=64)
WINDOWS = InferenceConfig(mode='windows', window_s=1.0, hop_s=0.5)
CASES = {
    'full': InferenceConfig(),
    'pieces': PIECES,
    'windows': WINDOWS,
    'sparse windows': InferenceConfig(mode='windows', window_s=1.03, hop_s=1.03),
}
LENGTHS = (1, 2, 3, 199, 200, 201, 399, 400, 7999, 8000, 8001, 8200, 12345, 12799, 12800, 12801, 20000, 40100)


@pytest.mark.parametrize('case', CASES)
def test_a_click_anywhere_in_a_clip_of_any_length_changes_its_prediction(case: str) -> None:
    quiet = [np.zeros(n, np.float32) for n in LENGTHS]
    rng = np.random.default_rng(0)

    def predict(waves: list[np.ndarray]) -> np.ndarray:
        sounds = [Sound(wave, RATE) for wave in waves]
        return np.asarray(predict_clips(loud_tagger(), sounds, inference=CASES[case]).probabilities)

    silence = predict(quiet)
    for place in ('first', 'last', 'anywhere', "at a window's start"):
        clicks = []
        for wave in quiet:
            n = len(wave)
            starts = [start for start in (64 * HOP, 32 * HOP, 8000, 41 * HOP) if start < n] or [0]
            positions = {'first': 0, 'last': n - 1, 'anywhere': int(rng.integers(n))}
            click = wave.copy()
            click[positions.get(place, starts[0])] = 1.0
            clicks.append(click)
        change = np.abs(predict(clicks) - silence).max(axis=1)
        assert (change > 1e-4).all(), (place, [LENGTHS[i] for i in np.flatnonzero(change <= 1e-4)])


@pytest.mark.parametrize('mode', ['full', 'windows'])
def test_a_trained_network_notices_an_event_in_the_last_frames(trained: Trained, mode: str) -> None:
    checkpoint = trained.mel[0] if mode == 'full' else trained.windows
    plain, with_event = [], []
    for n in (1, 200, 3001, 8000, 8100, 9999, 24000, 100_001):
        wave = noise(n, seed=n, level=0.003)
        plain.append(Sound(wave, RATE))
        event_samples = min(n, 600)
        loud = wave.copy()
        loud[n - event_samples :] += noise(event_samples, seed=5, level=0.5)
        with_event.append(Sound(loud, RATE))
    before, after = (predict_clips(checkpoint, sounds).probabilities for sounds in (plain, with_event))
    assert (np.abs(before - after).max(axis=1) > 1e-4).all()


def test_a_clip_of_one_sample_gets_its_own_prediction(trained: Trained) -> None:
    loud, soft = (Sound(np.full(1, level, np.float32), RATE) for level in (0.9, 0.001))
    for checkpoint in (trained.mel[0], trained.windows, trained.stft):
        result = predict_clips(checkpoint, [loud, soft])
        assert not result.failures and np.isfinite(result.probabilities).all()
        assert not np.array_equal(result.probabilities[0], result.probabilities[1])


def test_pieces_are_pooled_to_the_prediction_of_the_whole_clip() -> None:
    lengths: list[int] = []
    tagger = loud_tagger(LoudBands(before=lambda spec: lengths.append(spec.shape[-1])))
    wave = noise(30 * RATE, level=0.001)
    wave[20 * RATE : 21 * RATE] += noise(RATE, seed=1, level=0.5)
    pieces = predict_clips(tagger, [Sound(wave, RATE)], inference=PIECES).probabilities
    assert set(lengths) == {PIECES.max_frames}
    whole = predict_clips(tagger, [Sound(wave, RATE)]).probabilities
    assert np.abs(pieces - whole).max() <= 1e-5


def test_the_report_lists_the_clips_that_were_cut_into_pieces(tmp_path: Path) -> None:
    write_wav(tmp_path / 'in' / 'long.wav', noise(20 * RATE))
    write_wav(tmp_path / 'in' / 'short.wav', noise(RATE))
    tagger = loud_tagger(inference=InferenceConfig(max_frames=256))
    report = submit(tagger, tmp_path / 'in', tmp_path / 'out.csv', progress=False).report
    assert report['files_split'] == ['long.wav']
    assert any('pieces' in note for note in report['notes'])


def test_windows_are_slices_of_one_spectrogram() -> None:
    inputs: list[torch.Tensor] = []
    tagger = loud_tagger(LoudBands(before=lambda spec: inputs.append(spec[:, 0].clone())))
    wave = noise(3 * RATE + 77)
    predict_clips(tagger, [Sound(wave, RATE)], inference=WINDOWS)
    spec = tagger.frontend.spectrograms([torch.from_numpy(wave)])[0]
    spans = WINDOWS.spans(spec.shape[-1], RATE / HOP)
    for window, (first, end) in zip(torch.cat(inputs), spans, strict=True):
        assert torch.equal(window, spec[:, first:end])
