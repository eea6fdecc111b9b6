'''Spectrograms are filtered, masked, warped and cropped as drawn: within bounds, outside boxes, alike in a clip.'''

import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.specaugment import (
    SpecAugmentConfig,
    SpecDraw,
    augment_specs,
    crop_and_resize,
    draw_spec_augment,
    time_warp,
)
from kit.core.errors import KitError

M, N = 20, 50
FRONTEND = Frontend(
    FrontendConfig(
        sample_rate=8000, n_fft=256, hop_length=128, n_mels=M, resolutions=((512, 128),), extra_rows=('clip_length',)
    )
)
EVERYTHING = {'mask_p': 1.0, 'outside_p': 1.0, 'warp_p': 1.0, 'crop_p': 1.0, 'filter_p': 1.0}
BOXES = torch.tensor([[4, 9], [0, 20], [0, 3], [15, 20], [-1, -1], [8, 9]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_specs(clips=6, seed=1):
    '''Clips of two spectrograms and an extra row, far from 0.'''
    return torch.randn(clips, 2 * M + 1, N, generator=generator(seed)) - 40.0


def drawn(clips=6, seed=0, boxes=None, chance=1.0, **settings):
    '''A draw and its settings.'''
    config = SpecAugmentConfig(**settings)
    return draw_spec_augment(config, clips, M, N, generator(seed), boxes, chance), config


def augment(specs, **settings):
    '''The spectrograms under a fresh draw.'''
    return augment_specs(specs, *drawn(len(specs), **settings), FRONTEND)


def masked_places(**settings):
    '''Which places of random spectrograms masks cover. Shape: (B, 2, M, N)'''
    # A spectrogram's minimum stays as it is under a mask; the other set has it elsewhere.
    changed = [augment(specs, **settings) != specs for specs in (random_specs(), random_specs(seed=2))]
    return (changed[0] | changed[1])[:, : 2 * M].unflatten(1, (2, M))


def test_masks_cover_no_more_than_their_shares_and_lie_in_bands():
    limits = {'time_masks': 1, 'freq_masks': 1, 'time_share': 0.2, 'freq_share': 0.15}
    widths = set()
    for seed in range(30):
        masked = masked_places(seed=seed, mask_p=1.0, **limits)
        frames, bins = masked.all(2), masked.all(3)
        assert torch.equal(masked, frames[:, :, None, :] | bins[..., None])
        for row in frames[:, 0].tolist() + bins[:, 0].tolist():
            runs = ''.join('x' if hit else ' ' for hit in row).split()
            assert len(runs) <= 1
            widths.add((len(row), sum(row)))
    assert {width for size, width in widths if size == N} == set(range(11))
    assert {width for size, width in widths if size == M} == set(range(4))


def test_any_number_of_masks_from_one_to_the_highest_is_equally_likely():
    draw, _ = drawn(2000, mask_p=1.0, time_masks=3, freq_masks=1, time_share=1.0)
    numbers = (draw.time[..., 1] > 0).sum(1)
    shares = [float((numbers == n).float().mean()) for n in range(4)]
    assert shares[1:] == pytest.approx([1 / 3] * 3, abs=0.05)
    specs = random_specs()
    assert torch.equal(augment(specs, mask_p=1.0, time_masks=0, freq_masks=0), specs)


def test_masks_hold_the_minimum_of_their_own_clip_and_spectrogram():
    specs = random_specs() * torch.arange(1, 7)[:, None, None]
    changed = augment(specs, mask_p=1.0, seed=4)
    for clip in range(6):
        for rows in (slice(0, M), slice(M, 2 * M)):
            spec = specs[clip, rows]
            masked = changed[clip, rows][changed[clip, rows] != spec]
            assert len(masked) > 0
            assert bool((masked == spec.min()).all())


def test_outside_masks_cover_all_places_but_the_box():
    covered = torch.zeros(6, M, dtype=torch.int)
    for seed in range(200):
        masked = masked_places(seed=seed, boxes=BOXES, outside_p=1.0, outside_share=0.5)
        assert bool((masked == masked[..., :1]).all())
        covered += masked[:, 0, :, 0]
    for clip, (first, end) in enumerate(BOXES.tolist()):
        outside = [row for row in range(M) if first >= 0 and not first <= row < end]
        assert covered[clip].nonzero().flatten().tolist() == outside
    assert not masked_places(outside_p=1.0).any()


@pytest.mark.parametrize('settings', [{'mask_p': 1.0}, {'outside_p': 1.0}, EVERYTHING], ids=str)
def test_all_spectrograms_of_a_clip_change_alike_and_extra_rows_stay(settings):
    specs = random_specs()
    specs[:, M : 2 * M] = specs[:, :M]
    changed = augment(specs, boxes=BOXES, **settings)
    assert torch.equal(changed[:, M : 2 * M], changed[:, :M]) and not torch.equal(changed, specs)
    assert torch.equal(changed[:, -1], specs[:, -1])


@pytest.mark.parametrize('name', list(EVERYTHING))
def test_clips_that_are_not_drawn_stay_bit_for_bit(name):
    specs, boxes = random_specs(200), torch.tensor([[8, 12]]).expand(200, 2)
    draw, config = drawn(200, boxes=boxes, **{name: 0.5})
    changed = (augment_specs(specs, draw, config, FRONTEND) != specs).flatten(1).any(1)
    assert 60 < int(changed.sum()) < 120
    if name in ('warp_p', 'crop_p', 'filter_p'):
        part = {'warp_p': draw.warp, 'crop_p': draw.crop, 'filter_p': draw.gains}[name]
        assert torch.equal(changed, ~part.isnan().all(1))


def test_batchmates_do_not_matter():
    specs = random_specs()
    draw, config = drawn(boxes=BOXES, **EVERYTHING)
    together = augment_specs(specs, draw, config, FRONTEND)
    for i in range(6):
        row = slice(i, i + 1)
        alone = SpecDraw(*(part[row] for part in vars(draw).values()))
        assert torch.equal(augment_specs(specs[row], alone, config, FRONTEND), together[row])


def test_a_filter_adds_its_gains_and_a_line_between_them_to_every_frame():
    specs = random_specs(200)
    draw, config = drawn(200, filter_p=1.0, filter_share=0.3)
    assert 0.29 < float(draw.gains.max()) <= 0.3 and -0.3 <= float(draw.gains.min()) < -0.29
    changed = augment_specs(specs, draw, config, FRONTEND)
    before, after = (x[:, : 2 * M].unflatten(1, (2, M)) for x in (specs, changed))
    added = (after - before) / before.std((-2, -1), correction=0, keepdim=True)
    curves = [np.interp(np.arange(M), np.linspace(0, M - 1, 5), gains) for gains in draw.gains.numpy()]
    expected = torch.tensor(np.array(curves)).float()[:, None, :, None].expand_as(added)
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=0)
    constant = torch.full((2, 2 * M + 1, N), -80.0)
    assert torch.equal(augment(constant, filter_p=1.0), constant)


def test_a_warp_moves_one_frame_as_drawn_and_keeps_order_and_ends():
    ramp = torch.arange(N, dtype=torch.float64).expand(40, 1, 3, N)
    draw, _ = drawn(40, warp_p=1.0, warp_share=0.15)
    warped = time_warp(ramp, draw.warp)[:, 0, 0]
    for row, (source, target) in zip(warped, draw.warp.tolist(), strict=True):
        assert abs(target - source) <= 0.15 * N and 0.2 * N <= source <= 0.8 * N
        expected = np.interp(np.arange(N), [0, target, N], [0, source, N])
        torch.testing.assert_close(row, torch.tensor(expected).clamp(max=N - 1))
    assert bool((warped.diff(dim=-1) >= 0).all())


def test_a_crop_is_resized_to_the_size_before():
    down, across = torch.arange(M, dtype=torch.float64), torch.arange(N, dtype=torch.float64)
    specs = (1000 * down[:, None] + across).expand(30, 1, M, N)
    draw, _ = drawn(30, crop_p=1.0)
    crops = crop_and_resize(specs, draw.crop)[:, 0]
    for spec, (top, left, height, width) in zip(crops, draw.crop.tolist(), strict=True):
        assert top >= 0 and left >= 0 and top + height <= 1 + 1e-9 and left + width <= 1 + 1e-9
        rows = ((down + 0.5) / M * height + top) * M - 0.5
        columns = ((across + 0.5) / N * width + left) * N - 0.5
        expected = 1000 * rows.clamp(0, M - 1)[:, None] + columns.clamp(0, N - 1)
        torch.testing.assert_close(spec, expected, rtol=0, atol=0.5)


def test_crops_have_the_scale_and_the_aspect_that_are_set():
    draw, _ = drawn(4000, crop_p=1.0, crop_scale=(0.5, 0.6), crop_aspect=(0.85, 1.15))
    _, _, height, width = draw.crop.unbind(1)
    area, aspect = height * width, width / height
    assert 0.5 - 1e-6 <= float(area.min()) < 0.505 and 0.595 < float(area.max()) <= 0.6 + 1e-6
    assert 0.85 - 1e-6 <= float(aspect.min()) < 0.86 and 1.14 < float(aspect.max()) <= 1.15 + 1e-6
    whole = augment(random_specs(), crop_p=1.0, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    torch.testing.assert_close(whole, random_specs())


def test_the_same_seed_draws_the_same_and_leaves_other_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (augment(random_specs(), seed=seed, boxes=BOXES, **EVERYTHING) for seed in (7, 7, 8))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.rand(3), expected)


def test_one_probability_changes_nothing_else_that_is_drawn():
    few, _ = drawn(boxes=BOXES, crop_p=0.5)
    many, _ = drawn(boxes=BOXES, **{**EVERYTHING, 'crop_p': 0.5})
    torch.testing.assert_close(few.crop, many.crop, rtol=0, atol=0, equal_nan=True)


def test_the_chance_of_a_clip_multiplies_the_probabilities_of_all_effects():
    chance = torch.tensor([0.0, 1.0, 2.0]).repeat(2000)
    boxes = torch.tensor([[8, 12]]).expand(6000, 2)
    draw, _ = drawn(6000, boxes=boxes, chance=chance, **dict.fromkeys(EVERYTHING, 0.4))
    for part in (draw.warp, draw.crop, draw.gains):
        shares = [float((~part[i::3].isnan().any(1)).float().mean()) for i in range(3)]
        assert shares == pytest.approx([0, 0.4, 0.8], abs=0.04)
    assert not bool(draw.time[0::3].any()) and not bool(draw.freq[0::3].any())


@pytest.mark.parametrize('rows, frames', [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_the_smallest_spectrograms_stay_finite(rows, frames):
    frontend = Frontend(FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=rows))
    config = SpecAugmentConfig(**EVERYTHING)
    specs = torch.randn(8, rows, frames, generator=generator())
    for seed in range(10):
        draw = draw_spec_augment(config, 8, rows, frames, generator(seed))
        changed = augment_specs(specs, draw, config, frontend)
        assert changed.shape == specs.shape and bool(changed.isfinite().all())


def test_ranges_that_run_backwards_are_refused():
    with pytest.raises(KitError, match='from low to high'):
        SpecAugmentConfig(crop_scale=(1.0, 0.8))
