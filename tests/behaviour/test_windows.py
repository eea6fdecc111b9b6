'''Windows cover every frame of a clip, and pooling makes one score per class from theirs.'''

from itertools import pairwise

import numpy as np
import pytest
import torch

from kit.audio.windows import WINDOW_POOLS, InferenceConfig, pool_windows, window_spans
from kit.core.errors import KitError


def random_scores(windows, classes, seed=0):
    '''Probabilities between 0 and 1. Shape: -> (windows, classes)'''
    return torch.rand(windows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled(pool, scores, k=3, power=2.0):
    '''One score per class. Shape: (W, K) -> (K,)'''
    return pool_windows(scores, InferenceConfig(pool=pool, pool_k=k, pool_power=power))


def covered_frames(spans, frames):
    '''How many spans hold each frame. Shape: -> (frames,)'''
    counts = np.zeros(frames, int)
    for first, end in spans:
        assert 0 <= first < end <= frames
        counts[first:end] += 1
    return counts


def test_windows_cover_every_frame_start_each_hop_and_end_with_the_clip():
    generator = np.random.default_rng(0)
    for _ in range(800):
        frames, length = int(generator.integers(1, 300)), int(generator.integers(1, 60))
        hop = int(generator.integers(1, length + 1))
        spans = window_spans(frames, length, hop)
        assert (covered_frames(spans, max(frames, length)) > 0).all(), (frames, length, hop)
        assert all(end - first == length for first, end in spans)
        starts = [first for first, _ in spans]
        assert starts == sorted(set(starts))
        assert starts[:-1] == [hop * i for i in range(len(spans) - 1)]
        assert spans[-1][1] == max(frames, length)
        fewest = 1 if frames <= length else 1 + -(-(frames - length) // hop)
        assert len(spans) == fewest


def test_a_hop_below_one_frame_gives_no_window_twice():
    for frames, length, hop in ((20, 5, 0.3), (7, 7, 0.01), (300, 4, 0.999)):
        spans = window_spans(frames, length, hop)
        assert spans == [(start, start + length) for start in range(frames - length + 1)]


def test_windows_in_seconds_do_not_drift():
    spans = InferenceConfig(mode='windows', window_s=1.0, hop_s=1.0).spans(100_000, 86.1328125)
    assert [first for first, _ in spans[:-1]] == [round(k * 86.1328125) for k in range(len(spans) - 1)]


@pytest.mark.parametrize('windows', [1, 2, 3, 9])
def test_pools_agree_with_their_slow_definitions(windows):
    k, power, classes = 3, 2.5, 5
    scores = random_scores(windows, classes, windows)
    rows = scores.tolist()
    columns = [[row[c] for row in rows] for c in range(classes)]
    weights = [sum(sorted(row)[-k:]) / sum(row) for row in rows]
    best = sorted(range(windows), key=lambda i: -weights[i])[: -(-windows // 4)]
    expected = {
        'max': [max(column) for column in columns],
        'mean': [sum(column) / windows for column in columns],
        'top_k': [sum(sorted(column)[-k:]) / min(k, windows) for column in columns],
        'power': [(sum(s**power for s in column) / windows) ** (1 / power) for column in columns],
        'geometric': [float(np.prod(column)) ** (1 / windows) for column in columns],
        'snr': [np.average(column, weights=weights) for column in columns],
        'snr_top': [sum(column[i] for i in best) / len(best) for column in columns],
    }
    assert sorted(expected) == sorted(WINDOW_POOLS)
    for pool, values in expected.items():
        torch.testing.assert_close(pooled(pool, scores, k, power), torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize('pool', WINDOW_POOLS)
def test_every_pool_keeps_one_window_ignores_order_and_stays_in_range_and_finite(pool):
    one = random_scores(1, 7).float()
    torch.testing.assert_close(pooled(pool, one), one[0])
    many = random_scores(12, 7).float()
    result = pooled(pool, many)
    assert bool((result <= many.amax(dim=0) + 1e-6).all()) and bool((result >= many.amin(dim=0) - 1e-6).all())
    torch.testing.assert_close(pooled(pool, many.flip(0)), result)
    for value in (0.0, 1.0, 1e-38):
        for power in (1e-3, 2.0, 1e3):
            result = pooled(pool, torch.full((4, 3), value), power=power)
            torch.testing.assert_close(result, torch.full((3,), value), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'hop_s': 6.0}, r'hop_s must be in \(0, 5\], got 6: a longer hop skips audio'),
        ({'mode': 'window'}, r"InferenceConfig\.mode is 'window': did you mean 'windows'\?.*full, windows"),
        ({'pool': 'median'}, r"InferenceConfig\.pool is 'median'.*geometric, max, mean, power, snr, snr_top, top_k"),
        ({'pad_mode': 'zeros'}, r"InferenceConfig\.pad_mode is 'zeros'.*min, reflect, wrap"),
        ({'pool_k': 0}, 'pool_k'),
        ({'hop_s': 0.0}, 'hop_s'),
        ({'window_s': 0.0}, 'window_s'),
        ({'window_s': float('nan')}, 'window_s'),
        ({'max_frames': 10}, 'max_frames'),
        ({'bucket_ratio': 0.9}, 'bucket_ratio'),
        ({'bucket_ratio': 3.0}, 'bucket_ratio'),
        ({'pool_power': 0.0}, 'pool_power'),
    ],
)
def test_wrong_settings_are_refused_with_a_cure(settings, message):
    with pytest.raises(KitError, match=message):
        InferenceConfig(**settings)


def test_a_clip_is_one_piece_and_a_very_long_one_is_cut_into_pieces_that_overlap_by_half():
    inference = InferenceConfig(mode='full', max_frames=100)
    for frames in (1, 50, 100):
        assert inference.spans(frames, 86.0) == [(0, frames)]
    for frames in (101, 150, 151, 1234):
        spans = inference.spans(frames, 86.0)
        assert (covered_frames(spans, frames) > 0).all() and spans[-1][1] == frames
        assert all(end - first == 100 for first, end in spans)
        assert all(later[0] <= earlier[1] - 50 for earlier, later in pairwise(spans))


def test_seconds_become_frames():
    inference = InferenceConfig(mode='windows', window_s=5.0, hop_s=2.5)
    assert inference.spans(1000, 40.0) == window_spans(1000, 200, 100)
    assert inference.spans(30, 40.0) == [(0, 200)]
    tiny = InferenceConfig(mode='windows', window_s=0.01, hop_s=0.001)
    assert tiny.spans(5, 10.0) == window_spans(5, 1, 1)


def test_clips_are_padded_to_buckets_and_windows_to_the_shortest_input():
    full, windows = InferenceConfig(max_frames=1000), InferenceConfig(mode='windows')
    for frames in (1, 31, 32, 33, 500, 999):
        length = full.input_frames((0, frames), 32)
        assert max(32, frames) <= length <= max(32, 1.05 * frames)
        assert length == full.input_frames((7, frames + 7), 32)
        assert windows.input_frames((0, frames), 32) == max(32, frames)
    assert full.input_frames((500, 1500), 32) == 1000
