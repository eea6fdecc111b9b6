"""Pictures are filtered, masked, warped and cropped as drawn: within bounds, outside of boxes, alike in a clip."""

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
        sample_rate=8000,
        n_fft=256,
        hop_length=128,
        n_mels=M,
        resolutions=((512, 128),),
        extra_rows=("clip_length",),
    )
)
EVERYTHING = {"mask_p": 1.0, "outside_p": 1.0, "warp_p": 1.0, "crop_p": 1.0, "filter_p": 1.0}
BOXES = torch.tensor([[4, 9], [0, 20], [0, 3], [15, 20], [-1, -1], [8, 9]])


def generator(seed=0):
    """Randomness of its own."""
    return torch.Generator().manual_seed(seed)


def normalize_spec(clips=6, seed=1):
    """Levelled spectrograms of two pictures and a side row, far from 0."""
    return torch.randn(clips, 2 * M + 1, N, generator=generator(seed)) - 40.0


def drawn(clips=6, seed=0, boxes=None, chance=1.0, **settings):
    """A draw with its settings."""
    config = SpecAugmentConfig(**settings)
    return draw_spec_augment(config, clips, M, N, generator(seed), boxes, chance), config


def touched(specs, draw, config):
    """Which places of each clip's two pictures changed. Shape: -> (B, 2, M, N)"""
    changed = augment_specs(specs, draw, config, FRONTEND) != specs
    return changed[:, : 2 * M].unflatten(1, (2, M))


def test_masks_cover_no_more_than_their_shares_and_lie_in_bands():
    widths = set()
    for seed in range(30):
        draw, config = drawn(
            seed=seed,
            mask_p=1.0,
            time_masks=1,
            freq_masks=1,
            time_share=0.2,
            freq_share=0.15,
            mask_fill="zero",
        )
        held = touched(normalize_spec(), draw, config)
        frames, bins = held.all(2), held.all(3)
        assert torch.equal(held, frames[:, :, None, :] | bins[..., None])
        assert int(frames.sum(-1).max()) <= 10 and int(bins.sum(-1).max()) <= 3
        for row in frames[:, 0].tolist() + bins[:, 0].tolist():
            runs = "".join("x" if hit else " " for hit in row).split()
            assert len(runs) <= 1
            widths.add((len(row), sum(row)))
    assert {width for size, width in widths if size == N} == set(range(11))
    assert {width for size, width in widths if size == M} == set(range(4))


def test_one_to_the_greatest_number_of_masks_are_drawn():
    draw, _ = drawn(2000, mask_p=1.0, time_masks=3, freq_masks=1, time_share=1.0)
    numbers = (draw.time[..., 1] > 0).sum(1)
    shares = [float((numbers == n).float().mean()) for n in range(4)]
    assert shares[1:] == pytest.approx([1 / 3] * 3, abs=0.05)
    none, config = drawn(mask_p=1.0, time_masks=0, freq_masks=0)
    assert torch.equal(augment_specs(normalize_spec(), none, config, FRONTEND), normalize_spec())


@pytest.mark.parametrize("fill", ["min", "mean", "zero"])
def test_masks_are_filled_by_each_clips_and_pictures_own_value(fill):
    specs = normalize_spec() * torch.arange(1, 7)[:, None, None]
    draw, config = drawn(mask_p=1.0, mask_fill=fill, seed=4)
    changed = augment_specs(specs, draw, config, FRONTEND)
    for clip in range(6):
        for rows in (slice(0, M), slice(M, 2 * M)):
            picture = specs[clip, rows]
            value = {"min": picture.min(), "mean": picture.mean(), "zero": torch.tensor(0.0)}[fill]
            held = changed[clip, rows][changed[clip, rows] != picture]
            assert len(held) > 0
            torch.testing.assert_close(held, value.expand(len(held)))


def test_masks_outside_never_touch_a_box():
    covered = torch.zeros(6, M, dtype=torch.int)
    for seed in range(200):
        draw, config = drawn(seed=seed, boxes=BOXES, outside_p=1.0, outside_share=0.5, mask_fill="zero")
        held = touched(normalize_spec(), draw, config)
        assert bool((held == held[..., :1]).all())
        covered += held[:, 0, :, 0]
        assert int(held[:, 0, :, 0].sum(1).max()) <= M
    for clip, (first, end) in enumerate(BOXES.tolist()):
        outside = [row for row in range(M) if first >= 0 and not first <= row < end]
        assert covered[clip].nonzero().flatten().tolist() == outside
    draw, config = drawn(outside_p=1.0)
    assert torch.equal(augment_specs(normalize_spec(), draw, config, FRONTEND), normalize_spec())


def test_all_pictures_of_a_clip_get_the_same_masks_and_side_rows_stay():
    for settings in ({"mask_p": 1.0}, {"outside_p": 1.0}, EVERYTHING):
        specs = normalize_spec()
        specs[:, M : 2 * M] = specs[:, :M]
        draw, config = drawn(boxes=BOXES, **settings)
        changed = augment_specs(specs, draw, config, FRONTEND)
        assert torch.equal(changed[:, M : 2 * M], changed[:, :M]) and not torch.equal(changed, specs)
        assert torch.equal(changed[:, -1], specs[:, -1])


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_clips_that_are_not_drawn_stay_bit_for_bit(name):
    specs, boxes = normalize_spec(200), torch.tensor([[8, 12]]).expand(200, 2)
    draw, config = drawn(200, boxes=boxes, **{name: 0.5})
    changed = (augment_specs(specs, draw, config, FRONTEND) != specs).flatten(1).any(1)
    assert 60 < int(changed.sum()) < 120
    if name in ("warp_p", "crop_p", "filter_p"):
        off = {"warp_p": draw.warp, "crop_p": draw.crop, "filter_p": draw.gains}[name].isnan().all(1)
        assert torch.equal(changed, ~off)


def test_batchmates_do_not_matter():
    specs = normalize_spec()
    draw, config = drawn(boxes=BOXES, mask_fill="mean", **EVERYTHING)
    together = augment_specs(specs, draw, config, FRONTEND)
    for i in range(6):
        row = slice(i, i + 1)
        alone = SpecDraw(*(part[row] for part in vars(draw).values()))
        assert torch.equal(augment_specs(specs[row], alone, config, FRONTEND), together[row])


def test_a_filter_raises_every_frame_alike_by_its_gains_and_what_lies_between():
    specs = normalize_spec(200)
    draw, config = drawn(200, filter_p=1.0, filter_share=0.3)
    assert 0.29 < float(draw.gains.abs().max()) <= 0.3 and draw.gains.min() < -0.29
    pictures, changed = (
        s[:, : 2 * M].unflatten(1, (2, M)) for s in (specs, augment_specs(specs, draw, config, FRONTEND))
    )
    deviation = pictures.std((-2, -1), correction=0)
    raised = (changed - pictures) / deviation[..., None, None]
    torch.testing.assert_close(raised, raised[..., :1].expand_as(raised), atol=1e-4, rtol=0)
    curve = raised.mean(-1)
    torch.testing.assert_close(curve[:, 0], curve[:, 1], atol=1e-4, rtol=0)
    for place, gain in zip((0, M - 1), (draw.gains[:, 0], draw.gains[:, -1]), strict=True):
        torch.testing.assert_close(curve[:, 0, place], gain.float(), atol=1e-4, rtol=0)
    wanted = [np.interp(np.arange(M), np.linspace(0, M - 1, 5), gains) for gains in draw.gains.numpy()]
    np.testing.assert_allclose(curve[:, 0], np.array(wanted), atol=1e-4)
    quiet = torch.full((2, 2 * M + 1, N), -80.0)
    assert torch.equal(augment_specs(quiet, *drawn(2, filter_p=1.0), FRONTEND), quiet)


def test_a_warp_moves_one_frame_as_drawn_and_holds_the_ends():
    ramp = torch.arange(N, dtype=torch.float64).expand(40, 1, 3, N)
    draw, _ = drawn(40, warp_p=1.0, warp_share=0.15)
    warped = time_warp(ramp, draw.warp)[:, 0, 0]
    for row, (source, target) in zip(warped, draw.warp.tolist(), strict=True):
        assert abs(target - source) <= 0.15 * N and 0.2 * N <= source <= 0.8 * N
        wanted = [
            t * source / target if t < target else N - (N - t) * (N - source) / (N - target) for t in range(N)
        ]
        torch.testing.assert_close(row, torch.tensor(wanted, dtype=torch.float64).clamp(max=N - 1))
    assert float(warped[:, 0].abs().max()) == 0 and float((warped[:, -1] - (N - 1)).abs().max()) < 3.1
    assert bool((warped.diff(dim=-1) >= 0).all())


def test_a_crop_is_stretched_to_the_whole_picture():
    down, across = torch.arange(M, dtype=torch.float64), torch.arange(N, dtype=torch.float64)
    pictures = (1000 * down[:, None] + across).expand(30, 1, M, N)
    draw, _ = drawn(30, crop_p=1.0)
    crops = crop_and_resize(pictures, draw.crop)[:, 0]
    for picture, (top, left, height, width) in zip(crops, draw.crop.tolist(), strict=True):
        assert top >= 0 and left >= 0 and top + height <= 1 + 1e-9 and left + width <= 1 + 1e-9
        rows = ((down + 0.5) / M * height + top) * M - 0.5
        columns = ((across + 0.5) / N * width + left) * N - 0.5
        wanted = 1000 * rows.clamp(0, M - 1)[:, None] + columns.clamp(0, N - 1)
        torch.testing.assert_close(picture, wanted, rtol=0, atol=0.5)


def test_crops_have_the_scale_and_the_aspect_that_are_set():
    draw, _ = drawn(4000, crop_p=1.0, crop_scale=(0.5, 0.6), crop_aspect=(0.85, 1.15))
    _, _, height, width = draw.crop.unbind(1)
    area, aspect = height * width, width / height
    assert 0.5 - 1e-6 <= float(area.min()) < 0.505 and 0.595 < float(area.max()) <= 0.6 + 1e-6
    assert 0.85 - 1e-6 <= float(aspect.min()) < 0.86 and 1.14 < float(aspect.max()) <= 1.15 + 1e-6
    whole, config = drawn(crop_p=1.0, crop_scale=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    torch.testing.assert_close(augment_specs(normalize_spec(), whole, config, FRONTEND), normalize_spec())


def test_the_same_seed_draws_the_same_and_leaves_other_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (
        augment_specs(normalize_spec(), *drawn(seed=seed, boxes=BOXES, **EVERYTHING), FRONTEND)
        for seed in (7, 7, 8)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.rand(3), expected)


def test_one_chance_changes_nothing_else_that_is_drawn():
    few, _ = drawn(boxes=BOXES, crop_p=0.5)
    many, _ = drawn(boxes=BOXES, **{**EVERYTHING, "crop_p": 0.5})
    torch.testing.assert_close(few.crop, many.crop, rtol=0, atol=0, equal_nan=True)


def test_the_chance_of_a_clip_multiplies_that_of_all():
    chance = torch.tensor([0.0, 1.0, 2.0]).repeat(2000)
    boxes = torch.tensor([[8, 12]]).expand(6000, 2)
    draw, _ = drawn(6000, boxes=boxes, chance=chance, **dict.fromkeys(EVERYTHING, 0.4))
    for part in (draw.warp, draw.crop, draw.gains):
        shares = [float((~part[i::3].isnan().any(1)).float().mean()) for i in range(3)]
        assert shares == pytest.approx([0, 0.4, 0.8], abs=0.04)
    assert not bool(draw.time[0::3].any()) and not bool(draw.freq[0::3].any())


@pytest.mark.parametrize("rows, frames", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_the_smallest_pictures_stay_finite(rows, frames):
    frontend = Frontend(FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=rows))
    config = SpecAugmentConfig(**EVERYTHING)
    specs = torch.randn(8, rows, frames, generator=generator())
    for seed in range(10):
        draw = draw_spec_augment(config, 8, rows, frames, generator(seed))
        changed = augment_specs(specs, draw, config, frontend)
        assert changed.shape == specs.shape and bool(changed.isfinite().all())


def test_draws_for_other_clips_and_ranges_that_run_backwards_are_refused():
    draw, config = drawn(5)
    with pytest.raises(KitError, match="draw of 5"):
        augment_specs(normalize_spec(), draw, config, FRONTEND)
    with pytest.raises(KitError, match="from low to high"):
        SpecAugmentConfig(crop_scale=(1.0, 0.8))
