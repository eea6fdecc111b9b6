"""Lengths round up to a grid that depends on the clip alone; batches hold one length each."""

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch

from kit.audio.windows import PAD_MODES, LengthBuckets, batches_by_length, pad_frames
from kit.core.errors import KitError


def freesound_like_frames(clips=1120, seed=0):
    """Frames of clips whose seconds are log-normal between 0.3 and 30, at 44100 / 512 frames a second."""
    seconds = np.exp(np.random.default_rng(seed).normal(np.log(5.0), 1.0, clips)).clip(0.3, 30.0)
    return [int(s * 44100) // 512 + 1 for s in seconds]


def grid_lengths(grid, most):
    """Every length of a grid up to the first that is at least `most`."""
    lengths = []
    while not lengths or lengths[-1] < most:
        lengths.append(grid.round_up(lengths[-1] + 1 if lengths else 1))
    return lengths


@pytest.mark.parametrize("shortest", [1, 7, 32, 128])
@pytest.mark.parametrize("ratio", [1.0, 1.02, 1.05, 1.25])
def test_the_grid_adds_less_than_its_ratio(shortest, ratio):
    grid = LengthBuckets(shortest, ratio)
    for frames in [*range(1, 2000), 4097, 8191, 20000]:
        length = grid.round_up(frames)
        assert length >= frames and length >= shortest
        if frames > shortest:
            assert length - frames <= (ratio - 1) * frames
        else:
            assert length == shortest


def test_the_default_grid_adds_at_most_five_percent():
    grid = LengthBuckets()
    assert all(frames <= grid.round_up(frames) <= 1.05 * frames for frames in range(1, 9000))


def test_the_grid_is_geometric_and_not_rounded_to_strides():
    for shortest in (1, 32):
        lengths = grid_lengths(LengthBuckets(shortest), 100_000)
        slow = [shortest]
        while slow[-1] < 100_000:
            slow.append(max(slow[-1] + 1, int(slow[-1] * 1.05)))
        assert lengths == slow
        steps = [b / a for a, b in pairwise(lengths) if a > 500]
        assert all(1.045 < step <= 1.05 for step in steps)
        assert len({length % 32 for length in lengths}) > 10


def test_a_grid_length_stays_where_it_is_and_longer_clips_get_no_shorter_one():
    grid = LengthBuckets(32)
    rounded = [grid.round_up(frames) for frames in range(1, 5000)]
    assert rounded == sorted(rounded)
    assert all(grid.round_up(length) == length for length in rounded)


def test_a_grid_length_depends_on_the_clip_alone():
    frames = freesound_like_frames(200)
    alone = {f: LengthBuckets(32).round_up(f) for f in frames}
    shared = LengthBuckets(32)
    assert all(shared.round_up(f) == alone[f] for f in np.random.default_rng(1).permutation(frames).tolist())
    assert list(inspect.signature(LengthBuckets.round_up).parameters) == ["self", "frames"]


def test_freesound_like_clips_make_about_ninety_lengths():
    counts, added = [], []
    for seed in range(3):
        frames = freesound_like_frames(seed=seed)
        rounded = [LengthBuckets(32).round_up(f) for f in frames]
        counts.append(len(set(rounded)))
        added.append(sum(rounded) / sum(frames) - 1)
    assert all(70 <= count <= 105 for count in counts), counts
    assert all(0.01 < share < 0.035 for share in added), added


@pytest.mark.parametrize("shortest, ratio", [(0, 1.05), (-3, 1.05), (1, 0.99), (1, 2.5), (1, float("nan"))])
def test_a_grid_that_cannot_be_is_refused(shortest, ratio):
    with pytest.raises(KitError, match=r"shortest >= 1 and ratio in \[1, 2\]"):
        LengthBuckets(shortest, ratio)


def slow_fill(spec, frames, mode):
    """Slow definition: frame by frame, walking over the clip. Shape: (M, n) -> (M, frames)"""
    n = spec.shape[-1]
    columns, place, step = [], 0, 1
    for frame in range(frames):
        if mode == "min":
            columns.append(spec[:, frame] if frame < n else torch.full_like(spec[:, 0], float(spec.min())))
            continue
        columns.append(spec[:, place])
        if mode == "wrap":
            place = 0 if place + 1 == n else place + 1
        elif n > 1:
            if not 0 <= place + step < n:
                step = -step
            place += step
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("mode", PAD_MODES)
def test_a_filled_clip_agrees_with_a_walk_over_it(mode):
    for n in (1, 2, 3, 5, 11):
        spec = torch.randn(4, n, generator=torch.Generator().manual_seed(n))
        for frames in (n, n + 1, 2 * n - 1, 2 * n, 3 * n + 2, 50):
            if frames >= n:
                assert torch.equal(pad_frames(spec, frames, mode), slow_fill(spec, frames, mode)), (
                    n,
                    frames,
                )


def test_a_filled_clip_begins_with_the_clip_itself():
    spec = torch.randn(3, 7)
    for mode in PAD_MODES:
        assert torch.equal(pad_frames(spec, 30, mode)[:, :7], spec)


def test_a_fill_that_cannot_be_is_refused_with_the_right_words():
    for frames in (3, 5):
        with pytest.raises(KitError, match="unknown pad_mode 'zeros': the choices are: min, reflect, wrap"):
            pad_frames(torch.zeros(2, 3), frames, "zeros")
    for n, frames in ((0, 5), (6, 5)):
        with pytest.raises(KitError, match=f"cannot pad {n} frames up to {frames}"):
            pad_frames(torch.zeros(2, n), frames, "wrap")


def test_batches_hold_one_length_each_and_every_clip_once():
    generator = np.random.default_rng(3)
    for _ in range(30):
        n = int(generator.integers(0, 200))
        lengths = generator.choice([1, 32, 33, 40, 500, 1000, 5000], n).tolist()
        budget, most = int(generator.integers(1, 6000)), int(generator.integers(1, 70))
        batches = batches_by_length(lengths, budget, most)
        assert sorted(i for batch in batches for i in batch) == list(range(n))
        for batch in batches:
            assert len({lengths[i] for i in batch}) == 1
            assert len(batch) <= most
            assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
        heads = [lengths[batch[0]] for batch in batches]
        assert heads == sorted(heads)


def test_batches_are_as_few_as_the_budget_allows():
    lengths = [100] * 50 + [300] * 7 + [9000] * 3
    batches = batches_by_length(lengths, 1000)
    assert [len(batch) for batch in batches] == [10] * 5 + [3, 3, 1] + [1] * 3
    assert [len(b) for b in batches_by_length([10] * 130, 10**6)] == [64, 64, 2]
    assert batches_by_length([], 1000) == []


def test_freesound_like_clips_fill_batches_of_sixteen_thousand_frames_with_about_eleven():
    lengths = [LengthBuckets(32).round_up(f) for f in freesound_like_frames()]
    batches = batches_by_length(lengths, 16000)
    assert 7 <= len(lengths) / len(batches) <= 14
