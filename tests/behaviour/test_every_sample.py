"""Law 2: every sample is heard, in clips of any length, whole or in windows."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.windows import InferenceConfig
from kit.infer.predict import predict_clips
from kit.infer.submit import submit
from tests.behaviour.trained import HOP, RATE, LoudBands, Trained, loud_tagger, noise, write_wav

FULL = InferenceConfig()
PIECES = InferenceConfig(max_frames=64)
WINDOWS = InferenceConfig(mode="windows", window_s=1.0, hop_s=0.5)
SPARSE = InferenceConfig(mode="windows", window_s=1.03, hop_s=1.03)
WAYS = {"full": FULL, "pieces": PIECES, "windows": WINDOWS, "sparse windows": SPARSE}
LENGTHS = (1, 2, 3, 199, 200, 201, 399, 400, 7999, 8000, 8001, 8200, 12345, 12799, 12800, 12801, 20000, 40100)


@pytest.mark.parametrize("way", WAYS)
def test_a_click_at_any_place_of_a_clip_of_any_length_is_heard(way: str) -> None:
    quiet = [Sound(np.zeros(n, np.float32), RATE) for n in LENGTHS]
    silence = predict_clips(loud_tagger(), quiet, inference=WAYS[way]).probabilities
    rng = np.random.default_rng(0)
    for place in ("first", "last", "anywhere", "at a window's seam"):
        clicked = []
        for sound in quiet:
            n = len(sound.wave)
            seams = [s for s in (64 * HOP, 32 * HOP, 8000, 41 * HOP) if s < n] or [0]
            at = {"first": 0, "last": n - 1, "anywhere": int(rng.integers(n)), "at a window's seam": seams[0]}
            wave = sound.wave.copy()
            wave[at[place]] = 1.0
            clicked.append(Sound(wave, RATE))
        heard = predict_clips(loud_tagger(), clicked, inference=WAYS[way]).probabilities
        moved = np.abs(heard - silence).max(axis=1)
        assert (moved > 1e-4).all(), (place, [LENGTHS[i] for i in np.flatnonzero(moved <= 1e-4)])


@pytest.mark.parametrize("which", ["full", "windows"])
def test_a_trained_network_hears_an_event_in_the_last_frames(trained: Trained, which: str) -> None:
    checkpoint = trained.mel[0] if which == "full" else trained.windows
    plain, ended = [], []
    for n in (1, 200, 3001, 8000, 8100, 9999, 24000, 100_001):
        wave = noise(n, seed=n, level=0.003)
        tail = min(n, 600)
        loud = wave.copy()
        loud[n - tail :] += noise(tail, seed=5, level=0.5)
        plain.append(Sound(wave, RATE))
        ended.append(Sound(loud, RATE))
    before, after = (predict_clips(checkpoint, sounds).probabilities for sounds in (plain, ended))
    assert (np.abs(before - after).max(axis=1) > 1e-4).all()


def test_a_clip_of_one_sample_gets_an_answer_of_its_own(trained: Trained) -> None:
    loud, soft = (Sound(np.full(1, level, np.float32), RATE) for level in (0.9, 0.001))
    for checkpoint in (trained.mel[0], trained.windows, trained.stft):
        said = predict_clips(checkpoint, [loud, soft])
        assert not said.failures and np.isfinite(said.probabilities).all()
        assert not np.array_equal(said.probabilities[0], said.probabilities[1])


def test_no_input_of_the_network_is_longer_than_max_frames_and_pieces_overlap() -> None:
    shapes: list[int] = []
    tagger = loud_tagger(LoudBands(before=lambda spec: shapes.extend([spec.shape[-1]] * len(spec))))
    n = 100 * RATE
    predict_clips(tagger, [Sound(noise(n), RATE)], inference=InferenceConfig(max_frames=512))
    frames = n // HOP + 1
    assert set(shapes) == {512}
    assert sum(shapes) > 1.8 * frames - 512
    spans = InferenceConfig(max_frames=512).spans(frames, RATE / HOP)
    assert spans[0][0] == 0 and spans[-1][1] == frames
    assert all(after[0] < before[1] for before, after in pairwise(spans))


def test_a_long_clip_in_pieces_takes_the_greatest_of_what_the_pieces_say() -> None:
    tagger, n = loud_tagger(), 30 * RATE
    wave = noise(n, level=0.001)
    wave[20 * RATE : 21 * RATE] += noise(RATE, seed=1, level=0.5)
    pieces = predict_clips(tagger, [Sound(wave, RATE)], inference=PIECES).probabilities
    whole = predict_clips(tagger, [Sound(wave, RATE)]).probabilities
    assert np.abs(pieces - whole).max() <= 1e-5


def test_the_report_says_which_clips_were_heard_in_pieces(tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "long.wav", noise(20 * RATE))
    write_wav(tmp_path / "in" / "short.wav", noise(RATE))
    tagger = loud_tagger(inference=InferenceConfig(max_frames=256))
    report = submit(tagger, tmp_path / "in", tmp_path / "out.csv", progress=False).report
    assert report["files_split"] == ["long.wav"]
    assert any("pieces" in note for note in report["notes"])


def test_windows_are_slices_of_one_spectrogram_with_one_answer_whatever_their_number() -> None:
    inputs: list[torch.Tensor] = []
    tagger = loud_tagger(LoudBands(before=lambda spec: inputs.append(spec[:, 0].clone())))
    wave = noise(3 * RATE + 77)
    predict_clips(tagger, [Sound(wave, RATE)], inference=WINDOWS)
    spec = tagger.frontend.spectrograms([torch.from_numpy(wave)])[0]
    heard = torch.cat(inputs)
    for window, (first, end) in zip(heard, WINDOWS.spans(spec.shape[-1], RATE / HOP), strict=True):
        assert torch.equal(window, spec[:, first:end])
