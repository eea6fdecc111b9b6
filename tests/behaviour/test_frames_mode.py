'''Mode frames: the backbone runs once over a clip, and each window pools its span of the maps.'''

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from kit.audio.decode import Sound
from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig, window_spans
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, normalize_by_windows
from kit.infer.rows import windows_of_row
from kit.infer.submit import submit
from kit.models.checkpoint import save_tagger
from kit.models.families import complete_network
from kit.models.network import spans_in_steps
from kit.models.tagger import TaggerCard, build_tagger
from tests.behaviour.trained import loud_tagger, noise, read_scores, write_template, write_wav

CPU = torch.device('cpu')
RATE = 8000
FRONTEND = FrontendConfig(sample_rate=RATE, n_fft=256, hop_length=80, n_mels=32)  # 100 frames a second
CLASSES = ('a', 'b', 'c')
FRAMES = InferenceConfig(mode='frames', window_s=1.0, hop_s=0.3, pool='mean')
PYRAMID = {'family': 'max-pyramid', 'width': 6, 'blocks': 3}
BANDS = [[100.0, 900.0], [800.0, 2000.0], [1500.0, 3900.0]]
HEADS = {
    'mean': {'pool': 'mean'},
    'max': {'pool': 'max'},
    'mean-max': {'pool': 'mean-max'},
    'gem': {'pool': 'gem'},
    'time-max': {'pool': 'time-max'},
    'positive-mean': {'pool': 'positive-mean'},
    'hidden': {'pool': 'max', 'hidden': 8, 'norm_first': True},
    'attention': {'pool': 'attention', 'hidden': 8, 'norm_first': True},
    'recurrent': {'pool': 'mean', 'recurrent': 'gru', 'recurrent_width': 5, 'embedding': 4},
    'recurrent attention': {'pool': 'attention', 'recurrent': 'lstm', 'recurrent_width': 5},
}
NETWORKS = {name: {**PYRAMID, 'head': head} for name, head in HEADS.items()} | {
    'stft': {**PYRAMID, 'dims': 1},
    'skip-attention': {'family': 'skip-attention', 'width': 4},
    'axis-pool': {'family': 'axis-pool', 'width': 16},
    'timm': {'family': 'timm', 'name': 'test_efficientnet'},
    'freq-crop': {'family': 'freq-crop', 'form': 'pooled', 'bands_hz': BANDS, 'backbone': PYRAMID},
}


def frames_tagger(network, inference=FRAMES, **frontend):
    '''A tagger with random weights, batch norms that do something, and logits that are far apart.'''
    torch.manual_seed(0)
    backbone = dict(network.get('backbone', network))
    backbone.pop('head', None)
    if network['family'] == 'freq-crop':
        network = {**network, 'backbone': backbone}
    card = TaggerCard(
        classes=CLASSES, frontend=replace(FRONTEND, **frontend), network=complete_network(network), inference=inference
    )
    tagger = build_tagger(card).eval()
    for name, parameter in tagger.named_parameters():
        if 'head' in name and parameter.ndim > 1:
            parameter.data.mul_(3.0)
    return tagger


def spectrogram(tagger, frames, seed=0):
    '''Noise with a loud part somewhere.'''
    spec = torch.randn(tagger.card.frontend.rows, frames, generator=torch.Generator().manual_seed(seed))
    spec[:, frames // 3 : frames // 3 + 40] += 3.0
    return spec


def slow_logits(tagger, spec, inference):
    '''Slow definition: for a clip of one piece, cut each window's steps from the maps and run the head on the cut.'''
    network = tagger.network
    frontend = tagger.frontend
    length = max(spec.shape[-1], 100)
    bucket = inference.input_frames((0, length), tagger.min_frames)
    repeats = -(-bucket // spec.shape[-1])
    padded = spec.repeat(1, repeats)[:, :bucket]
    maps = network.backbone(frontend.stack(padded[None])).main
    logits = []
    for start, end in inference.spans(spec.shape[-1], 100.0):
        cuts = []
        for x, stride in zip(maps, network.strides, strict=True):
            count = min(x.shape[-1], int(np.ceil((end - start) / stride + 0.5)))
            first = min(int(np.floor(start / stride + 0.5)), x.shape[-1] - count)
            cuts.append(x[..., first : first + count])
        logits.append(network.head(cuts).clip[0])
    return torch.stack(logits).numpy()


@pytest.mark.parametrize('name', [name for name in NETWORKS if 'recurrent' not in name and name != 'attention'])
@pytest.mark.parametrize('frames', [1, 60, 100, 101, 457])
def test_a_window_has_the_logits_of_the_head_on_its_part_of_the_maps(name, frames):
    tagger = frames_tagger(NETWORKS[name])
    spec = spectrogram(tagger, frames)
    with torch.inference_mode():
        expected = slow_logits(tagger, spec, FRAMES)
        (output,) = Predictor(tagger, CPU).predict([spec])
    assert output.spans == tuple(FRAMES.spans(frames, 100.0))
    np.testing.assert_allclose(output.logits, expected, rtol=1e-5, atol=1e-5)
    if frames == 457:
        assert np.ptp(output.logits, axis=0).max() > 0.01, 'windows that are all alike would prove nothing'


@pytest.mark.parametrize('name', ['attention', 'recurrent', 'recurrent attention'])
def test_attention_and_recurrences_read_the_whole_clip_and_pool_the_steps_of_the_window(name):
    '''Slow definition: from the projected sequence of the whole clip, one window after another.'''
    tagger = frames_tagger(NETWORKS[name])
    head = tagger.network.head
    spec = spectrogram(tagger, 800)
    inference = replace(FRAMES, bucket_ratio=1.0)
    (output,) = Predictor(tagger, CPU, inference=inference).predict([spec])
    with torch.inference_mode():
        maps = tagger.network.backbone(tagger.frontend.stack(spec[None])).main
        if name == 'recurrent':
            pooled = head.pool
            head.pool = lambda x: x  # so that `features` returns the sequence
            sequence = head.features(maps)
            head.pool = pooled
        else:
            sequence = head.features(maps)
        expected = []
        for start, end in inference.spans(800, 100.0):
            first = min(int(np.floor(start / 8 + 0.5)), sequence.shape[-1] - 13)
            assert end - start == 100
            cut = sequence[..., first : first + 13]
            logits = head.classifier(cut if name != 'recurrent' else cut.mean((2, 3)))
            expected.append(torch.as_tensor(logits if name == 'recurrent' else logits.clip)[0])
    np.testing.assert_allclose(output.logits, torch.stack(expected).numpy(), rtol=1e-5, atol=1e-5)
    assert np.ptp(output.logits, axis=0).max() > 1e-3


@pytest.mark.parametrize('name', NETWORKS)
def test_a_window_as_long_as_the_clip_has_the_logits_of_mode_full(name):
    tagger = frames_tagger(NETWORKS[name])
    spec = spectrogram(tagger, 640)
    whole = InferenceConfig(bucket_ratio=1.0)
    window = replace(whole, mode='frames', window_s=6.4, hop_s=6.4)
    (expected,) = Predictor(tagger, CPU, inference=whole).predict([spec])
    (output,) = Predictor(tagger, CPU, inference=window).predict([spec])
    assert output.spans == expected.spans
    np.testing.assert_allclose(output.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('stride', [1, 4, 32, 200])
@pytest.mark.parametrize('hop', [1, 3.3, 50, 100])
@pytest.mark.parametrize('frames', [100, 333, 1000])
def test_windows_cover_every_step_of_a_map_in_order(stride, hop, frames):
    steps = -(-frames // stride)
    spans = spans_in_steps(window_spans(frames, 100, hop), stride, steps)
    assert spans[0][0] == 0 and spans[-1][1] == steps
    assert all(end - start == min(steps, int(np.ceil(100 / stride + 0.5))) for start, end in spans)
    for (start, end), (next_start, _) in pairwise(spans):
        assert start <= next_start <= end


@pytest.mark.parametrize('frames', [64, 65, 300, 1001, 5000])
@pytest.mark.parametrize('window_s', [0.01, 0.3, 0.32, 0.33, 0.63, 0.64])
def test_each_window_is_inside_the_nearest_of_the_pieces_that_cover_a_long_clip(frames, window_s):
    inference = InferenceConfig(mode='frames', window_s=window_s, hop_s=window_s / 2, max_frames=64)
    inputs = inference.inputs(frames, 100.0)
    assert [span for _, spans in inputs for span in spans] == inference.spans(frames, 100.0)
    pieces = [piece for piece, _ in inputs]
    for piece, spans in inputs:
        assert piece[1] - piece[0] == 64 and piece[1] <= frames
        for start, end in spans:
            assert piece[0] <= start < end <= piece[1]
            distance = abs(start + end - sum(piece))
            assert distance == min(abs(start + end - sum(other)) for other in pieces)


def test_a_long_clip_has_the_logits_of_its_pieces():
    inference = replace(FRAMES, max_frames=256)
    tagger = frames_tagger(PYRAMID, inference)
    spec = spectrogram(tagger, 1111)
    (output,) = Predictor(tagger, CPU).predict([spec])
    row = 0
    for (start, end), spans in inference.inputs(1111, 100.0):
        in_piece = [[(first - start, last - start) for first, last in spans]]
        with torch.inference_mode():
            stacked = tagger.frontend.stack(spec[None, :, start:end])
            expected = tagger.network.window_logits(stacked, in_piece).numpy()
        np.testing.assert_allclose(output.logits[row : row + len(spans)], expected, rtol=1e-5, atol=1e-5)
        row += len(spans)
    assert row == len(output.spans) == len(output.logits)


@pytest.mark.parametrize('name', ['max', 'attention', 'recurrent', 'freq-crop'])
def test_in_mode_frames_a_clip_alone_and_in_any_batch_gets_one_prediction(name):
    tagger = frames_tagger(NETWORKS[name], replace(FRAMES, max_frames=300))
    rng = np.random.default_rng(0)
    lengths = [1, 79, 4000, 8000, 8001, 8100, 8100, 8100, 20000, 20000, 60000]
    sounds = [Sound(rng.normal(0, 0.1, n).astype(np.float32), RATE) for n in lengths]
    together = predict_clips(tagger, sounds).probabilities
    alone = np.concatenate([predict_clips(tagger, [sound]).probabilities for sound in sounds])
    halved = predict_clips(tagger, sounds[::-1], batch_frames=1).probabilities[::-1]
    assert np.ptp(together, axis=0).max() > 1e-3
    assert np.abs(together - alone).max() <= 1e-5 and np.abs(together - halved).max() <= 1e-5


def test_every_sample_reaches_a_window_in_mode_frames():
    inference = InferenceConfig(mode='frames', window_s=0.7, hop_s=0.7, max_frames=256)
    tagger = frames_tagger({**PYRAMID, 'head': {'pool': 'mean'}}, inference)
    spec = torch.zeros(tagger.card.frontend.rows, 1003)
    (quiet,) = Predictor(tagger, CPU).predict([spec])
    for frame in range(0, 1003, 17):
        loud = spec.clone()
        loud[:, frame] = 5.0
        (output,) = Predictor(tagger, CPU).predict([loud])
        assert not np.array_equal(output.logits, quiet.logits), frame


@pytest.mark.parametrize(
    ('tagger', 'message'),
    [
        (lambda: loud_tagger(inference=FRAMES), 'a custom network has no feature maps.*mode windows'),
        (lambda: frames_tagger(PYRAMID, image_size=(64, 64)), 'image_size resizes .*mode windows'),
        (
            lambda: frames_tagger({'family': 'axis-pool', 'width': 16}, extra_rows=('wave_stats', 'clip_length')),
            'extra rows describe a whole input.*mode windows',
        ),
    ],
)
def test_what_mode_frames_cannot_pool_is_refused_with_a_cure(tagger, message):
    with pytest.raises(KitError, match=message):
        Predictor(tagger(), CPU)


def test_windows_longer_than_a_piece_are_refused_in_mode_frames():
    inference = InferenceConfig(mode='frames', window_s=2.0, hop_s=1.0, max_frames=100)
    with pytest.raises(KitError, match=r"max_frames of a window's 200 frames or more, got 100: raise max_frames"):
        inference.inputs(500, 100.0)


def test_the_head_of_a_recurrent_network_differs_between_a_window_and_the_same_window_alone():
    '''Mode frames is another model than mode windows: its context is the whole clip.'''
    tagger = frames_tagger(NETWORKS['recurrent'])
    spec = spectrogram(tagger, 457)
    frames = Predictor(tagger, CPU).predict([spec])[0]
    windows = Predictor(tagger, CPU, inference=replace(FRAMES, mode='windows')).predict([spec])[0]
    assert frames.spans == windows.spans and frames.logits.shape == windows.logits.shape
    assert np.abs(frames.logits - windows.logits).max() > 0


def test_a_frame_is_normalized_as_the_mean_of_the_windows_that_hold_it():
    '''A network trained on normalized windows never saw a clip normalized as a whole.'''
    tagger = frames_tagger(PYRAMID, normalize='clip', reference='window', top_db=2.0)
    for frames in (40, 100, 457):
        spec = spectrogram(tagger, frames)
        spans = FRAMES.spans(frames, 100.0)
        expected = torch.zeros(spec.shape)
        for frame in range(frames):
            windows = [span for span in spans if span[0] <= frame < span[1]]
            for start, end in windows:
                normalized = tagger.frontend.normalize(spec[:, start:end])
                expected[:, frame] += normalized[:, frame - start] / len(windows)
        output = normalize_by_windows(tagger.frontend, spec, spans)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        plain = frames_tagger(PYRAMID, normalize='none', reference='clip')
        (by_windows,) = Predictor(tagger, CPU).predict([spec])
        (as_it_is,) = Predictor(plain, CPU).predict([output])
        np.testing.assert_allclose(by_windows.logits, as_it_is.logits, rtol=1e-5, atol=1e-5)


def test_a_clip_of_one_window_has_one_result_in_modes_frames_and_windows():
    tagger = frames_tagger(PYRAMID, replace(FRAMES, bucket_ratio=1.0), normalize='clip', reference='window')
    spec = spectrogram(tagger, 100)
    (frames,) = Predictor(tagger, CPU).predict([spec])
    (windows,) = Predictor(tagger, CPU, inference=replace(FRAMES, mode='windows')).predict([spec])
    np.testing.assert_allclose(frames.logits, windows.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['windows', 'frames'])
def test_every_mode_of_windows_gives_rows_of_a_submission(mode, tmp_path):
    tagger = frames_tagger(PYRAMID)
    checkpoint = tmp_path / 'model.pt'
    save_tagger(checkpoint, tagger)
    write_wav(tmp_path / 'audio' / 'one.wav', noise(4 * RATE, seed=3), RATE)
    template = write_template(tmp_path / 't.csv', ['one_1', 'one_2', 'one_4'], CLASSES)
    out = tmp_path / 'out.csv'
    ways = {'mode': mode, 'window_s': 1.0, 'hop_s': 1.0, 'progress': False}
    submit(str(checkpoint), tmp_path / 'audio', out, template, **ways)
    _, rows = read_scores(out)
    (wave,) = [Sound(noise(4 * RATE, seed=3), RATE).wave]
    spec = tagger.frontend.spectrograms([torch.from_numpy(wave)])[0]
    inference = InferenceConfig(mode=mode, window_s=1.0, hop_s=1.0)
    (output,) = Predictor(tagger, CPU, inference=inference).predict([spec])
    probs = tagger.probabilities(torch.from_numpy(output.logits)).numpy()
    for end_s in (1, 2, 4):
        windows = windows_of_row(output, 100.0, end_s - 1, end_s)
        np.testing.assert_allclose(rows[f'one_{end_s}'], probs[windows].mean(0), atol=1e-4)
