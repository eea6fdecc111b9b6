'''Lengths are rounded up to buckets that depend on the clip alone; a batch holds one length.'''

from itertools import pairwise

import numpy as np
import pytest
import torch

from kit.audio.windows import PAD_MODES, batches_by_length, bucket_length, pad_frames


@pytest.mark.parametrize('shortest', [1, 7, 32, 128])
@pytest.mark.parametrize('ratio', [1.0, 1.02, 1.05, 1.25])
def test_a_bucket_adds_less_than_its_ratio(shortest, ratio):
    previous = 0
    for frames in [*range(1, 2000), 4097, 8191, 20000]:
        length = bucket_length(frames, shortest, ratio)
        assert length >= max(frames, shortest, previous)
        assert length == shortest or length - frames <= (ratio - 1) * frames
        assert bucket_length(length, shortest, ratio) == length
        previous = length


def test_buckets_grow_geometrically_and_are_not_rounded_to_strides():
    lengths = sorted({bucket_length(frames, 32, 1.05) for frames in range(1, 20_000)})
    steps = [after / before for before, after in pairwise(lengths) if before > 500]
    assert all(1.045 < step <= 1.05 for step in steps)
    assert len({length % 32 for length in lengths}) > 10


def test_freesound_like_clips_fall_into_about_ninety_buckets_and_batches_of_about_eleven():
    # Seconds are log-normal between 0.3 and 30, at 44100 / 512 frames a second.
    seconds = np.exp(np.random.default_rng(0).normal(np.log(5.0), 1.0, 1120)).clip(0.3, 30.0)
    frames = [int(s * 44100) // 512 + 1 for s in seconds]
    lengths = [bucket_length(n, 32, 1.05) for n in frames]
    assert 70 <= len(set(lengths)) <= 105
    assert 0.01 < sum(lengths) / sum(frames) - 1 < 0.035
    assert 7 <= len(lengths) / len(batches_by_length(lengths, 16000)) <= 14


@pytest.mark.parametrize('frames', [5, 6, 9, 10, 17, 50])
@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_padding_agrees_with_numpy(n, frames):
    spec = torch.randn(4, n, generator=torch.Generator().manual_seed(n))
    widths = ((0, 0), (0, frames - n))
    for mode, numpy_mode in (('wrap', 'wrap'), ('reflect', 'reflect')):
        expected = np.pad(spec.numpy(), widths, mode=numpy_mode)
        np.testing.assert_array_equal(pad_frames(spec, frames, mode), expected)
    expected = np.pad(spec.numpy(), widths, constant_values=float(spec.min()))
    np.testing.assert_array_equal(pad_frames(spec, frames, 'min'), expected)


@pytest.mark.parametrize('mode', PAD_MODES)
def test_a_spectrogram_that_is_long_enough_is_not_padded(mode):
    spec = torch.randn(3, 7)
    assert torch.equal(pad_frames(spec, 7, mode), spec)


def test_a_batch_holds_one_length_and_every_clip_is_in_one_batch():
    generator = np.random.default_rng(3)
    for _ in range(30):
        n_clips = int(generator.integers(0, 200))
        lengths = generator.choice([1, 32, 33, 40, 500, 1000, 5000], n_clips).tolist()
        batch_frames = int(generator.integers(1, 6000))
        batches = batches_by_length(lengths, batch_frames)
        assert sorted(i for batch in batches for i in batch) == list(range(n_clips))
        for batch in batches:
            assert len({lengths[i] for i in batch}) == 1
            assert len(batch) <= 64
            assert len(batch) == 1 or sum(lengths[i] for i in batch) <= batch_frames
        by_batch = [lengths[batch[0]] for batch in batches]
        assert by_batch == sorted(by_batch)


def test_batches_are_as_few_as_the_limits_allow():
    batches = batches_by_length([100] * 50 + [300] * 7 + [9000] * 3, 1000)
    assert [len(batch) for batch in batches] == [10] * 5 + [3, 3, 1] + [1] * 3
    assert [len(batch) for batch in batches_by_length([10] * 130, 10**6)] == [64, 64, 2]
