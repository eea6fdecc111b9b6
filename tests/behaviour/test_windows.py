"""Windows cover every frame of a clip, and pools make one score of theirs."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from kit.audio.windows import InferenceConfig, pool_windows, window_spans
from kit.core.errors import KitError

POOLS = ("max", "mean", "top_k", "power", "geometric", "snr")


def scores_of(windows, classes, seed=0):
    """Probabilities between 0 and 1. Shape: -> (windows, classes)"""
    return torch.rand(windows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pooled_by(pool, scores, k=3, power=2.0):
    """One score per class. Shape: (W, K) -> (K,)"""
    return pool_windows(scores, InferenceConfig(pool=pool, pool_k=k, pool_power=power))


def random_cuts(count=400, seed=0):
    """Clips, windows and hops of all proportions. Shape: -> count of (frames, length, hop)"""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        length = int(generator.integers(1, 60))
        yield int(generator.integers(1, 300)), length, int(generator.integers(1, length + 1))


def test_every_frame_is_heard_by_some_window():
    for frames, length, hop in random_cuts():
        heard = np.zeros(max(frames, length), int)
        for first, last in window_spans(frames, length, hop):
            assert first >= 0 and last <= len(heard) and last - first == length
            heard[first:last] += 1
        assert (heard > 0).all(), (frames, length, hop)


def test_windows_start_each_hop_and_the_last_ends_with_the_clip():
    for frames, length, hop in random_cuts(seed=1):
        spans = window_spans(frames, length, hop)
        starts = [first for first, _ in spans]
        assert starts == sorted(set(starts))
        assert spans[-1][1] == max(frames, length)
        assert starts[:-1] == [hop * i for i in range(len(spans) - 1)]
        assert all(b - a <= hop for a, b in pairwise(starts))
        fewest = 1 if frames <= length else 1 + -(-(frames - length) // hop)
        assert len(spans) == fewest


def test_a_clip_no_longer_than_a_window_is_one_window():
    for frames in range(1, 11):
        assert window_spans(frames, 10, 3) == [(0, 10)]
    assert window_spans(11, 10, 3) == [(0, 10), (1, 11)]


def test_a_hop_below_one_frame_makes_no_window_twice():
    for frames, length, hop in ((20, 5, 0.3), (7, 7, 0.01), (300, 4, 0.999)):
        spans = window_spans(frames, length, hop)
        assert spans == [(start, start + length) for start in range(frames - length + 1)]


@pytest.mark.parametrize("hop", [0, -1, 11])
def test_a_hop_that_leaves_audio_unheard_is_refused(hop):
    with pytest.raises(KitError, match=r"hop must be in \(0, 10\] frames"):
        window_spans(100, 10, hop)


@pytest.mark.parametrize("windows", [1, 2, 3, 9])
def test_pools_agree_with_their_slow_definitions(windows):
    k, power, classes = 3, 2.5, 5
    scores = scores_of(windows, classes, windows)
    rows = scores.tolist()
    columns = [[row[c] for row in rows] for c in range(classes)]
    share = [sum(sorted(row)[-k:]) / sum(row) for row in rows]
    slow = {
        "max": [max(column) for column in columns],
        "mean": [sum(column) / windows for column in columns],
        "top_k": [sum(sorted(column)[-k:]) / min(k, windows) for column in columns],
        "power": [(sum(s**power for s in column) / windows) ** (1 / power) for column in columns],
        "geometric": [float(np.prod(column)) ** (1 / windows) for column in columns],
        "snr": [sum(s * w for s, w in zip(column, share, strict=True)) / sum(share) for column in columns],
    }
    assert sorted(slow) == sorted(POOLS)
    for pool, wanted in slow.items():
        ours = pooled_by(pool, scores, k, power)
        torch.testing.assert_close(ours, torch.tensor(wanted, dtype=torch.float64))


def test_the_power_mean_goes_from_the_mean_to_the_maximum():
    scores = scores_of(6, 4)
    torch.testing.assert_close(pooled_by("power", scores, power=1.0), scores.mean(dim=0))
    torch.testing.assert_close(
        pooled_by("power", scores, power=1000.0), scores.amax(dim=0), rtol=3e-3, atol=0
    )
    torch.testing.assert_close(
        pooled_by("power", scores, power=1e-3), pooled_by("geometric", scores), rtol=3e-3, atol=0
    )
    raised = [pooled_by("power", scores, power=power) for power in (0.5, 1.0, 2.0, 8.0, 100.0)]
    assert all(bool((b >= a - 1e-12).all()) for a, b in pairwise(raised))


def test_top_k_of_one_is_the_maximum_and_of_many_is_the_mean():
    scores = scores_of(6, 4)
    torch.testing.assert_close(pooled_by("top_k", scores, 1), scores.amax(dim=0))
    torch.testing.assert_close(pooled_by("top_k", scores, 99), scores.mean(dim=0))


def test_a_window_that_stands_out_counts_more_by_its_signal_to_noise():
    flat, sharp = torch.full((10,), 0.3), torch.full((10,), 0.05)
    sharp[2] = 0.9
    pooled = pooled_by("snr", torch.stack([flat, flat, sharp]), 1)
    plain = torch.stack([flat, flat, sharp]).mean(dim=0)
    assert pooled[2] > plain[2] and pooled[5] < plain[5]
    torch.testing.assert_close(pooled_by("snr", torch.stack([flat, flat, sharp]), 99), plain)


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_keeps_one_window_and_stays_between_the_least_and_the_greatest(pool):
    inference = InferenceConfig(pool=pool)
    one = scores_of(1, 7).float()
    torch.testing.assert_close(pool_windows(one, inference), one[0])
    many = scores_of(12, 7).float()
    pooled = pool_windows(many, inference)
    assert pooled.shape == (7,)
    assert bool((pooled <= many.amax(dim=0) + 1e-6).all()) and bool((pooled >= many.amin(dim=0) - 1e-6).all())
    torch.testing.assert_close(pool_windows(many.flip(0), inference), pooled)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-38])
def test_every_pool_stays_finite_at_the_ends(pool, value):
    for power in (1e-3, 2.0, 1e3):
        inference = InferenceConfig(pool=pool, pool_power=power)
        pooled = pool_windows(torch.full((4, 3), value), inference)
        assert bool(pooled.isfinite().all())
        torch.testing.assert_close(pooled, torch.full((3,), value), rtol=1e-3, atol=1e-6)


def test_wrong_listening_settings_say_the_cure():
    with pytest.raises(
        KitError, match=r"hop_s must be in \(0, 5\], got 6: a longer hop leaves audio unheard"
    ):
        InferenceConfig(mode="windows", hop_s=6.0)
    with pytest.raises(
        KitError, match=r"InferenceConfig\.mode is 'window': did you mean 'windows'\?.*full, windows"
    ):
        InferenceConfig(mode="window")
    with pytest.raises(
        KitError, match=r"InferenceConfig\.pool is 'median'.*geometric, max, mean, power, snr, top_k"
    ):
        InferenceConfig(pool="median")
    with pytest.raises(KitError, match=r"InferenceConfig\.pad_mode is 'zeros'.*min, reflect, wrap"):
        InferenceConfig(pad_mode="zeros")
    for wrong in ({"pool_k": 0}, {"hop_s": 0.0}, {"window_s": 0.0}, {"max_frames": 10}, {"bucket_ratio": 0.9},
                  {"bucket_ratio": 3.0}, {"pool_power": 0.0}, {"window_s": float("nan")}):  # fmt: skip
        with pytest.raises(KitError, match=next(iter(wrong))):
            InferenceConfig(**wrong)


def test_a_whole_clip_is_one_piece_and_a_very_long_one_is_heard_in_pieces_that_overlap():
    inference = InferenceConfig(mode="full", max_frames=100)
    for frames in (1, 50, 100):
        assert inference.spans(frames, 86.0) == [(0, frames)]
    for frames in (101, 150, 151, 1234):
        spans = inference.spans(frames, 86.0)
        heard = np.zeros(frames, int)
        for first, last in spans:
            assert last - first == 100
            heard[first:last] += 1
        assert (heard > 0).all() and spans[-1][1] == frames
        assert all(later[0] <= earlier[1] - 50 for earlier, later in pairwise(spans))


def test_windows_in_seconds_become_frames():
    inference = InferenceConfig(mode="windows", window_s=5.0, hop_s=2.5)
    assert inference.spans(1000, 40.0) == window_spans(1000, 200, 100)
    assert inference.spans(30, 40.0) == [(0, 200)]
    tiny = InferenceConfig(mode="windows", window_s=0.01, hop_s=0.001)
    assert tiny.spans(5, 10.0) == window_spans(5, 1, 1)


def test_the_network_is_given_grid_lengths_for_clips_and_exact_lengths_for_windows():
    full, windows = InferenceConfig(max_frames=1000), InferenceConfig(mode="windows")
    for frames in (1, 31, 32, 33, 500, 999):
        length = full.input_frames((0, frames), 32)
        assert max(32, frames) <= length <= max(32, 1.05 * frames)
        assert length == full.input_frames((7, frames + 7), 32)
        assert windows.input_frames((0, frames), 32) == max(32, frames)
    assert full.input_frames((500, 1500), 32) == 1000
