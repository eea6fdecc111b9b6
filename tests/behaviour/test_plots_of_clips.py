'''Plots of clips show the kit's own predictions, filters and padding.'''

import sys
from dataclasses import replace

import numpy as np
import pytest

from kit.audio.decode import decode_file
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.models.checkpoint import load_tagger
from kit.models.tagger import wrap_network
from kit.plots.clips import draw_clip, draw_lengths
from tests.behaviour.trained import LoudBands, plain_frontend, write_wav

matplotlib = pytest.importorskip('matplotlib')
pytestmark = pytest.mark.usefixtures('one_core')


def panels_of(plot):
    '''The axes of a clip's plot: its spectrogram, the windows' probabilities, and the clip's.'''
    top, _, bottom, right, *_ = plot.figure.axes
    return top, bottom, right


def row_names(axes):
    return [label.get_text().removeprefix('✓ ') for label in axes.get_yticklabels()]


@pytest.mark.parametrize('mode', ['full', 'windows'])
def test_the_probabilities_of_a_clip_are_those_of_a_submission(trained, clips, mode):
    checkpoint = trained.mel[0] if mode == 'full' else trained.windows
    clip = sorted(clips.iterdir())[8]
    expected = predict_clips(checkpoint, [clip], progress=False)
    probs = dict(zip(expected.classes, expected.probabilities[0], strict=True))
    top, bottom, right = panels_of(draw_clip(checkpoint, clip))
    shown = [bar.get_width() for bar in right.patches]
    assert shown == pytest.approx([probs[name] for name in row_names(bottom)], abs=1e-6)
    assert shown == sorted(shown, reverse=True)
    assert min(shown) >= sorted(probs.values())[-len(shown)] - 1e-6
    assert abs(top.images[0].get_extent()[1] - decode_file(clip).seconds) < 0.1
    assert top.images[0].get_array().shape[0] == 32


def test_the_map_shows_each_windows_probabilities_and_covers_the_clip(trained, clips):
    clip = sorted(clips.iterdir())[-1]
    card = load_tagger(trained.windows).card
    top, bottom, _ = panels_of(draw_clip(trained.windows, clip))
    mesh = bottom.collections[0]
    edges = mesh.get_coordinates()[0, :, 0]
    frames = round(decode_file(clip).seconds * 8000) // card.frontend.hop_length + 1
    frames_per_s = card.frontend.frames_per_s
    spans = card.inference.spans(frames, frames_per_s)
    centres = np.mean(spans, axis=1) / frames_per_s
    assert edges[0] == 0 and edges[-1] == top.images[0].get_extent()[1] == frames / frames_per_s
    np.testing.assert_allclose(edges[1:-1], (centres[1:] + centres[:-1]) / 2)
    window_probs = np.asarray(mesh.get_array())
    assert window_probs.shape[1] == len(spans)
    # This tagger pools windows by their maximum.
    expected = predict_clips(trained.windows, [clip], progress=False)
    probs = dict(zip(expected.classes, expected.probabilities[0], strict=True))
    assert window_probs.max(axis=1) == pytest.approx([probs[name] for name in row_names(bottom)], abs=1e-6)


def test_true_classes_are_always_shown_and_marked(trained, clips):
    clip = sorted(clips.iterdir())[5]
    least = row_names(panels_of(draw_clip(trained.mel[0], clip))[1])[-1]
    bottom = panels_of(draw_clip(trained.mel[0], clip, [least]))[1]
    labels = [label.get_text() for label in bottom.get_yticklabels()]
    assert [label for label in labels if label.startswith('✓')] == [f'✓ {least}']
    many = wrap_network(LoudBands(20), plain_frontend(n_mels=40), [f'c{i}' for i in range(20)])
    for truth in ([], ['c3'], [f'c{i}' for i in range(12)]):
        names = row_names(panels_of(draw_clip(many, clip, truth))[1])
        assert len(names) == max(8, len(truth)) and {*truth} <= {*names}


def test_clips_of_any_length_and_front_ends_of_any_kind_are_drawn(trained, tmp_path):
    write_wav(tmp_path / 'one.wav', np.array([0.1], np.float32), 8000)
    write_wav(tmp_path / 'long.wav', np.sin(np.arange(8000 * 9)).astype(np.float32) * 0.1, 8000)
    bands_hz = ((100.0, 2000.0), (500.0, 3900.0))
    rich = plain_frontend(bands_hz=bands_hz, trim_db=60.0, resolutions=((800, 200),))
    one_class = wrap_network(LoudBands(1), rich, ['only'])
    for name in ('one', 'long'):
        for checkpoint in (trained.mel[0], trained.stft, trained.windows):
            assert panels_of(draw_clip(checkpoint, tmp_path / f'{name}.wav'))[1].collections
        top, bottom, _ = panels_of(draw_clip(one_class, tmp_path / f'{name}.wav'))
        assert row_names(bottom) == ['only'] and len(top.get_yticks()) > 8
        assert top.images[0].get_array().shape[0] == rich.n_spec_bins


def test_what_cannot_be_drawn_of_a_clip_is_refused_with_a_reason(trained, clips, tmp_path, monkeypatch):
    clip = sorted(clips.iterdir())[0]
    with pytest.raises(KitError, match=r'none\.wav cannot be opened'):
        draw_clip(trained.mel[0], tmp_path / 'none.wav')
    with pytest.raises(KitError, match='a ranking, not probabilities: run `oof`'):
        draw_clip(trained.uncalibrated, clip)
    with pytest.raises(KitError, match="unknown class 'siren'"):
        draw_clip(trained.mel[0], clip, ['siren'])
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(KitError, match='pip install matplotlib'):
        draw_clip(trained.mel[0], clip)


def test_every_length_is_in_the_histogram():
    seconds = np.exp(np.random.default_rng(0).normal(1, 0.8, 75)).tolist()
    (axes,) = draw_lengths(seconds).figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 75


def test_lengths_of_one_clip_are_drawn_and_impossible_ones_refused():
    assert draw_lengths([2.0]).to_bytes().startswith(b'\x89PNG')
    for seconds in ([], [1.0, 0.0], [np.nan], [np.inf]):
        with pytest.raises(KitError, match='seconds above 0'):
            draw_lengths(seconds)


def test_plots_of_clips_need_no_pyplot_and_change_no_setting(trained, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    before = matplotlib.rcParams.copy()
    tagger = load_tagger(trained.mel[0])
    inference = InferenceConfig(mode='windows', window_s=0.5, hop_s=0.25)
    tagger.card = replace(tagger.card, inference=inference)
    draw_clip(tagger, sorted(clips.iterdir())[3]).to_bytes()
    draw_lengths([1.0, 20.0]).to_bytes()
    assert matplotlib.rcParams.copy() == before
    assert tagger.card.inference == inference
