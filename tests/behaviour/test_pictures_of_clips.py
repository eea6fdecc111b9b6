"""Pictures of clips: what is drawn is what the kit hears, and padding is counted clip by clip."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from kit.audio.decode import decode_file
from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig, LengthBuckets
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.models.checkpoint import load_tagger, wrap_network
from kit.plots.clips import draw_clip, draw_filters, draw_lengths, padding_shares
from tests.behaviour.trained import LoudBands, plain_frontend, write_wav

matplotlib = pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("one_core")


def parts_of(drawing):
    """The axes of a clip's picture: spectrogram, map, bars."""
    top, _, below, bars, *_ = drawing.figure.axes
    return top, below, bars


def row_names(axes):
    return [label.get_text().removeprefix("✓ ") for label in axes.get_yticklabels()]


@pytest.mark.parametrize("kind", ["full", "windows"])
def test_a_clip_is_shown_with_the_probabilities_that_a_submission_gives_it(trained, clips, kind):
    checkpoint = trained.mel[0] if kind == "full" else trained.windows
    clip = sorted(clips.iterdir())[8]
    expected = predict_clips(checkpoint, [clip], progress=False)
    top, below, bars = parts_of(draw_clip(checkpoint, clip))
    by_name = dict(zip(expected.classes, expected.probabilities[0], strict=True))
    widths = dict(zip(row_names(below), (bar.get_width() for bar in bars.patches), strict=True))
    assert widths == pytest.approx({name: by_name[name] for name in widths}, abs=1e-6)
    assert list(widths.values()) == sorted(widths.values(), reverse=True)
    assert min(widths.values()) >= sorted(by_name.values())[-len(widths)] - 1e-6
    seconds = decode_file(clip).seconds
    assert abs(top.images[0].get_extent()[1] - seconds) < 0.1
    assert top.images[0].get_array().shape[0] == 32


def test_the_map_holds_what_each_window_says_and_covers_the_clip(trained, clips):
    clip = sorted(clips.iterdir())[-1]
    tagger, sound = load_tagger(trained.windows), decode_file(clip)
    top, below, _ = parts_of(draw_clip(trained.windows, clip))
    mesh = below.collections[0]
    edges = mesh.get_coordinates()[0, :, 0]
    card = tagger.card
    frames, per_s = card.frontend.frames_of(round(sound.seconds * 8000)), card.frontend.frames_per_s
    spans = card.inference.spans(frames, per_s)
    centres = np.mean(spans, axis=1) / per_s
    assert edges[0] == 0 and edges[-1] == top.images[0].get_extent()[1] == frames / per_s
    np.testing.assert_allclose(edges[1:-1], (centres[1:] + centres[:-1]) / 2)
    beliefs = np.asarray(mesh.get_array())
    assert beliefs.shape[1] == len(spans) == len(edges) - 1
    # the clip's probability is the greatest of its windows'
    whole = predict_clips(trained.windows, [clip], progress=False)
    peak = dict(zip(whole.classes, whole.probabilities[0], strict=True))
    assert beliefs.max(axis=1) == pytest.approx([peak[name] for name in row_names(below)], abs=1e-6)


def test_true_classes_are_always_shown_and_marked(trained, clips):
    clip = sorted(clips.iterdir())[5]
    least = row_names(parts_of(draw_clip(trained.mel[0], clip))[1])[-1]
    below = parts_of(draw_clip(trained.mel[0], clip, [least]))[1]
    marked = [label.get_text() for label in below.get_yticklabels() if label.get_text().startswith("✓")]
    assert marked == [f"✓ {least}"]
    many = wrap_network(LoudBands(20), plain_frontend(n_mels=40), [f"c{i}" for i in range(20)])
    for truth in ([], ["c3"], [f"c{i}" for i in range(12)]):
        names = row_names(parts_of(draw_clip(many, clip, truth))[1])
        assert len(names) == max(8, len(truth)) and {*truth} <= {*names}


def test_clips_of_any_length_and_frontends_of_any_kind_are_drawn(trained, tmp_path):
    write_wav(tmp_path / "one.wav", np.array([0.1], np.float32), 8000)
    write_wav(tmp_path / "long.wav", np.sin(np.arange(8000 * 9)).astype(np.float32) * 0.1, 8000)
    rich = plain_frontend(
        bands_hz=((100.0, 2000.0), (500.0, 3900.0)), trim_db=60.0, resolutions=((800, 200),)
    )
    for name in ("one", "long"):
        for checkpoint in (trained.mel[0], trained.stft, trained.windows):
            assert parts_of(draw_clip(checkpoint, tmp_path / f"{name}.wav"))[1].collections
        own = wrap_network(LoudBands(1), rich, ["only"])
        top, below, _ = parts_of(draw_clip(own, tmp_path / f"{name}.wav"))
        assert row_names(below) == ["only"] and len(top.get_yticks()) > 8
        assert top.images[0].get_array().shape[0] == rich.n_spec_bins


def test_what_cannot_be_shown_of_a_clip_is_refused_in_a_sentence(trained, clips, tmp_path, monkeypatch):
    clip = sorted(clips.iterdir())[0]
    with pytest.raises(KitError, match=r"none\.wav cannot be opened"):
        draw_clip(trained.mel[0], tmp_path / "none.wav")
    with pytest.raises(KitError, match="ranks are no probabilities: run `oof`"):
        draw_clip(trained.uncalibrated, clip)
    with pytest.raises(KitError, match="unknown class 'siren'"):
        draw_clip(trained.mel[0], clip, ["siren"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(KitError, match="pip install matplotlib"):
        draw_clip(trained.mel[0], clip)


@pytest.mark.parametrize("bands", [(), ((100.0, 2000.0), (1000.0, 7000.0))])
def test_the_filters_drawn_are_those_of_the_frontend(bands):
    config = FrontendConfig(sample_rate=16000, n_fft=1024, n_mels=20, bands_hz=bands)
    lines = draw_filters(config).figure.axes[0].lines
    assert len(lines) == config.n_spec_bins
    np.testing.assert_array_equal(np.array([line.get_ydata() for line in lines]).T, config.filters())
    np.testing.assert_allclose(lines[0].get_xdata(), np.fft.rfftfreq(1024, 1 / 16000) / 1000)
    with pytest.raises(KitError, match="FFT bins"):
        draw_filters(replace(config, kind="stft", bands_hz=()))


def test_padding_is_what_batches_and_the_grid_add():
    config = FrontendConfig(sample_rate=16000, hop_length=160)
    seconds = np.exp(np.random.default_rng(0).normal(1, 0.8, 75)).tolist()
    heard = [int(round(s * 16000) // 160 + 1) for s in seconds]
    total = {}
    for name, frames in (("file order", heard), ("sorted", sorted(heard))):
        total[name] = 0
        for i in range(75):
            batch = frames[i // 32 * 32 : i // 32 * 32 + 32]
            total[name] += max(batch)
    total["the kit's grid"] = sum(LengthBuckets().round_up(n) for n in heard)
    shares = padding_shares(seconds, config)
    assert shares == pytest.approx({name: (t - sum(heard)) / t for name, t in total.items()})
    assert shares["the kit's grid"] < 0.05
    left, right = draw_lengths(seconds, config).figure.axes
    assert [bar.get_height() / 100 for bar in right.patches] == pytest.approx([*shares.values()])
    assert sum(bar.get_height() for bar in left.patches) == 75
    assert left.get_xscale() == "log"


def test_lengths_are_drawn_of_one_clip_and_refused_of_none():
    assert draw_lengths([2.0]).drawn().startswith(b"\x89PNG")
    for seconds in ([], [1.0, 0.0], [np.nan], [np.inf]):
        with pytest.raises(KitError, match="seconds above 0"):
            draw_lengths(seconds)


def test_pictures_of_clips_need_no_pyplot_and_leave_no_settings_behind(trained, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = matplotlib.rcParams.copy()
    tagger = load_tagger(trained.mel[0])
    inference = InferenceConfig(mode="windows", window_s=0.5, hop_s=0.25)
    tagger.card = replace(tagger.card, inference=inference)
    draw_clip(tagger, sorted(clips.iterdir())[3]).drawn()
    draw_filters(FrontendConfig()).drawn()
    draw_lengths([1.0, 20.0]).drawn()
    assert matplotlib.rcParams.copy() == before
    assert tagger.card.inference == inference
