'''What a tagger uses: each change against a slow definition, on clips that the tagger never trained on.'''

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.labels.metrics import log_losses, lwlrap
from kit.labels.oof_predictions import load_oof
from kit.train.ablation import probe, probe_alterations
from kit.train.held_out import HeldOut
from tests.behaviour.trained import Trained, loud_tagger, noise, write_folder, write_wav
from tests.behaviour.training import whole_clips


@pytest.fixture(scope='module')
def places(trained: Trained) -> tuple[Path, Path]:
    '''The folder of a trained run with two folds, and its clips.'''
    run = Path(trained.mel[0]).parent
    return run, run.parent / 'data' / 'train'


def test_without_a_change_a_probe_scores_what_the_run_scored_and_a_band_less_costs(places: tuple[Path, Path]) -> None:
    report = probe(*places, bands=1, stretches=3, device='cpu', progress=False)
    names = [row.name for row in report.rows]
    assert names[:3] == ['everything', 'coordinate zeroed', 'coordinate noise']
    assert names[3].endswith('Hz') and names[4:] == [f'without time {part}/3' for part in (1, 2, 3)]
    oof = load_oof(places[0])
    everything, _, _, without_band, *_ = report.rows
    assert report.clips == 64 and everything.score == pytest.approx(oof.score, abs=1e-6)
    losses = (everything.positive_loss, everything.negative_loss)
    assert losses == pytest.approx(log_losses(oof.truth, oof.probabilities), abs=1e-5)
    assert without_band.score < everything.score


def test_the_same_call_gives_the_same_report(places: tuple[Path, Path]) -> None:
    once, again = (probe(*places, bands=1, stretches=0, device='cpu', progress=False) for _ in range(2))
    assert once == again and str(once) == str(again)


PLAIN = {'sample_rate': 8000, 'n_fft': 256, 'hop_length': 80, 'n_mels': 12, 'channels': ('coordinate01', 'log')}
FRONTENDS = {
    'three resolutions with deltas': FrontendConfig(
        **PLAIN | {'resolutions': ((128, 80), (512, 160)), 'channels': ('delta', 'log', 'coordinate')}
    ),
    'both coordinates': FrontendConfig(**PLAIN | {'channels': ('coordinate01', 'log', 'coordinate')}),
    'side rows': FrontendConfig(**PLAIN, extra_rows=('clip_length', 'wave_stats')),
    'an image': FrontendConfig(**PLAIN, image_size=(10, 14)),
    'bands of classes': FrontendConfig(**PLAIN | {'n_mels': 4}, bands_hz=((2000, 4000), (100, 1500), (500, 3000))),
    'bins of the STFT': FrontendConfig(sample_rate=8000, n_fft=32, hop_length=32, kind='stft', log='ln'),
}  # fmt: skip


def slow_silence(config: FrontendConfig, piece: torch.Tensor, cells: list[tuple[int, int]]) -> torch.Tensor:
    '''Cells (row, frame) of each resolution hold its least value. Shape: (R, N) -> (R, N)'''
    altered = piece.clone()
    for r in range(1 + len(config.resolutions)):
        rows = slice(r * config.n_spec_bins, (r + 1) * config.n_spec_bins)
        for row, frame in cells:
            altered[rows.start + row, frame] = piece[rows].min()
    return altered


@pytest.mark.parametrize('what', FRONTENDS)
def test_a_change_removes_what_it_names_and_nothing_else(what: str) -> None:
    config, bands, stretches, frames = FRONTENDS[what], 3, 4, 18
    frontend, bins, hz = Frontend(config), config.n_spec_bins, config.bin_hz
    pieces = torch.randn(5, config.rows, frames, generator=torch.Generator().manual_seed(0))
    found = probe_alterations(config, bands, stretches)
    shown = {name: alter(frontend, pieces.clone()) for name, alter in found}
    plain = frontend.stack(pieces)
    coordinates = [name for name in config.channels if name.startswith('coordinate')]
    assert torch.equal(shown['everything'], plain)
    assert len(found) == len(shown) == 1 + 2 * len(coordinates) + len(config.extra_rows) + bands + stretches
    for name in coordinates:
        before = config.channels[: config.channels.index(name)]
        at = sum(1 if c in coordinates else 1 + len(config.resolutions) for c in before)
        for fill in ('zeroed', 'noise'):
            got, expected = shown[f'{name} {fill}'], plain.clone()
            filled = got[:, at, : config.n_bins]
            assert torch.equal(filled, filled[:1].expand_as(filled)), 'alike for all clips'
            low = float(plain[0, at, 0, 0])
            assert (filled == 0).all() if fill == 'zeroed' else bool(((filled >= low) & (filled <= 1)).all())
            assert fill == 'zeroed' or float(filled.std()) > 0.25 * (1 - low)
            expected[:, at, : config.n_bins] = filled
            assert torch.equal(got, expected)
    order = sorted(range(bins), key=lambda row: (hz[row], row))
    for group in np.array_split(order, bands):
        name = f'without {min(hz[group]):.0f}-{max(hz[group]):.0f} Hz'
        cells = [(int(row), frame) for row in group for frame in range(frames)]
        slow = torch.stack([slow_silence(config, piece, cells) for piece in pieces])
        assert torch.equal(shown[name], frontend.stack(slow)), name
    for part in range(stretches):
        first, end = part * frames // stretches, (part + 1) * frames // stretches
        cells = [(row, frame) for row in range(bins) for frame in range(first, end)]
        slow = torch.stack([slow_silence(config, piece, cells) for piece in pieces])
        if 'wave_stats' in config.extra_rows:
            slow[:, bins + 1 :, first:end] = 0.0
        assert torch.equal(shown[f'without time {part + 1}/{stretches}'], frontend.stack(slow))
    for kind, rows in (('clip_length', slice(bins, bins + 1)), ('wave_stats', slice(bins + 1, bins + 13))):
        if kind in config.extra_rows:
            slow = pieces.clone()
            slow[:, rows] = 0.0
            assert torch.equal(shown[f'{kind} zeroed'], frontend.stack(slow))


def test_any_tagger_is_probed_in_windows_on_clips_with_unknown_labels(tmp_path: Path) -> None:
    names = [f'{i}.wav' for i in range(7)]
    audio = write_folder(tmp_path / 'in', names[:6], samples=12000)
    write_wav(audio / '5.wav', np.full(9000, 0.5, np.float32))
    inference = InferenceConfig(mode='windows', window_s=0.4, hop_s=0.2, pool='mean')
    tagger = loud_tagger(inference=inference)
    truth = np.random.default_rng(0).integers(0, 2, (7, 3)).astype(np.float64)
    truth[:2], truth[3, 0], truth[4] = [[1, 0, np.nan]], np.nan, np.nan
    models = {'mine': HeldOut(tagger, np.arange(7), names, whole_clips(7), truth)}
    report = probe(models, audio, bands=3, stretches=0, device='cpu', progress=False)
    probs = predict_clips(tagger, [audio / name for name in names[:6]], device='cpu').probabilities
    assert (report.clips, report.failed) == (6, 1) and '1 more without predictions' in str(report)
    assert (report.rows[0].positive_loss, report.rows[0].negative_loss) == pytest.approx(log_losses(truth[:6], probs))
    assert report.rows[0].score == pytest.approx(lwlrap(truth[:6], probs))
    # Its classes are the loudness of three groups of bands: without one, its class alone loses.
    for row in report.rows[1:]:
        assert (row.positive_loss, row.negative_loss) != pytest.approx(log_losses(truth[:6], probs), rel=1e-3)


def test_a_probe_without_a_result_is_an_error_with_the_reason(tmp_path: Path) -> None:
    write_wav(tmp_path / 'in' / 'a.wav', noise(4000))
    tagger, truth = loud_tagger(), np.eye(3)[:1]
    good = HeldOut(tagger, np.arange(1), ['a.wav'], whole_clips(1), truth)
    other, ranking = loud_tagger(), loud_tagger()
    other.card = replace(other.card, frontend=replace(other.card.frontend, n_mels=21))
    ranking.card = replace(ranking.card, output='ranking', calibration=None)
    for models, options, words in (
        ({'a': good, 'b': good._replace(tagger=other)}, {}, '2 frontends'),
        ({}, {}, '0 frontends'),
        ({'a': good}, {'bands': -1}, '-1 and 4'),
        ({'a': good._replace(tagger=ranking)}, {}, 'rank scores without a calibration: run `oof`'),
        ({'a': good._replace(clips=['b.wav'])}, {}, 'none of the 1 clips of a could be read'),
        ({'a': good._replace(truth=np.full((1, 3), np.nan))}, {}, 'none of the 1 clips has a true label'),
    ):
        with pytest.raises(KitError, match=words):
            probe(models, tmp_path / 'in', device='cpu', progress=False, **options)
