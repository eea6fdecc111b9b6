'''Which clips and crops are drawn: by epoch, share, balance and weight; at boxes and windows; with which labels.'''

from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend
from kit.core.errors import KitError
from kit.labels.boxes import Boxes, window_targets
from kit.labels.soft import SoftLabels, fill_unknown
from kit.train.recipe import SamplingConfig
from kit.train.sampler import (
    batches_per_epoch,
    crop_at_box,
    draw_batches,
    draw_begin,
    draw_box,
    draw_chances,
    draw_order,
    prepare_batch,
    rows_of_box,
)
from tests.behaviour import training
from tests.behaviour.training import CLASSES, clips_of, one_hot, seeded

TINY = training.TINY.override(['mixup.p=0', 'no_augment_epochs=0', 'batch_size=8'])
FRAMES_PER_S = TINY.frontend.frames_per_s
FRONTEND = Frontend(TINY.frontend)


def recipe_with(shares=None, **sampling):
    '''The tiny recipe with these shares by source, and other sampling settings.'''
    sources = {name: {'share': share} for name, share in (shares or {}).items()}
    return replace(TINY, sampling=SamplingConfig(**sampling), sources=sources)


def ramp_clips(seconds, soft_labels):
    '''Two clips, r and s, without known labels, whose spectrogram is its own frame number.'''
    frames = round(seconds * FRAMES_PER_S)
    spec = torch.arange(frames).float().expand(16, frames)
    unknown = np.full((2, 3), np.nan)
    return clips_of(unknown, names=['r', 's'], spectrograms={0: spec, 1: spec}, soft_labels=soft_labels)


def filled(clips, row, begin_s):
    '''Targets of a crop of half a second, filled with soft labels. Shape: -> (3,)'''
    return fill_unknown(*clips.crop_targets(row, begin_s, begin_s + 0.5, 0.5))


def counts_of(order, n):
    '''How often each clip was drawn.'''
    return np.bincount(np.concatenate(order), minlength=n)


def class_rates(clips, recipe, epochs=40):
    '''How often each class is drawn, relative to the mean. Shape: -> (K,)'''
    generator = seeded()
    counts = sum(counts_of(draw_order(clips, recipe, generator), len(clips)) for _ in range(epochs))
    drawn = counts @ np.nan_to_num(clips.targets)
    return drawn / drawn.mean()


def boxes_of(*rows):
    '''Boxes from (recording, class, is_true, begin_s, end_s), between 500 and 1500 Hz.'''
    recordings, species, is_true, begin_s, end_s = zip(*rows, strict=True)
    return Boxes(
        classes=CLASSES,
        recordings=np.array(recordings),
        species=np.array(species),
        is_true=np.array(is_true, bool),
        begin_s=np.array(begin_s, float),
        end_s=np.array(end_s, float),
        low_hz=np.full(len(rows), 500.0),
        high_hz=np.full(len(rows), 1500.0),
    )


def soft_windows(name, step_s, seconds, low=0.1):
    '''Soft labels of windows side by side, which grow with the window's time.'''
    begin_s = np.arange(0, seconds, step_s)
    targets = np.stack([low + begin_s / (2 * seconds)] * 3, axis=1)
    return SoftLabels((name,) * len(begin_s), CLASSES, targets, begin_s, begin_s + step_s)


# Clips


@pytest.mark.parametrize('n', [2, 7, 8, 21])
def test_without_chances_every_clip_comes_once_an_epoch_but_for_a_rest_below_a_batch(n):
    clips = clips_of(one_hot(np.arange(n) % 3), sources=np.array(['x', 'y'])[np.arange(n) % 2])
    recipe = recipe_with(shares={'x': None, 'y': None})
    order = draw_order(clips, recipe, seeded())
    size = min(8, n)
    assert draw_chances(clips, recipe) is None
    assert [len(batch) for batch in order] == [size] * (n // size)
    assert len(order) == batches_per_epoch(clips, recipe) and counts_of(order, n).max() == 1


def test_a_table_of_one_source_is_drawn_whole_and_sources_without_any_share_are_refused():
    targets = one_hot(np.arange(16) % 3)
    recipe = recipe_with(shares={'x': 0.9, 'y': 0.0})
    order = draw_order(clips_of(targets, sources=['y'] * 16), recipe, seeded())
    assert counts_of(order, 16).tolist() == [1] * 16
    with pytest.raises(KitError, match='share above 0'):
        draw_order(clips_of(targets, sources=['x', 'y'] * 8), recipe_with(shares={'x': 0.0, 'y': 0.0}), seeded())


def test_an_epoch_has_as_many_steps_as_asked_and_few_clips_come_equally_often():
    clips = clips_of(one_hot(np.arange(12) % 3))
    recipe = recipe_with(steps=50)
    order = draw_order(clips, recipe, seeded())
    assert len(order) == 50 == batches_per_epoch(clips, recipe)
    assert all(len(set(batch)) == 8 for batch in order)
    counts = counts_of(order, 12)
    assert abs(counts / counts.mean() - 1).max() < 0.25
    few = draw_order(clips_of(one_hot([0, 1, 2])), recipe, seeded())
    assert all(sorted(np.bincount(batch)) == [2, 3, 3] for batch in few)


@pytest.mark.parametrize('shares', [(0.25, 0.25, 0.5), (0.01, 0.42, 0.57), (2.0, 1.0, 1.0)])
def test_a_source_has_its_share_of_every_batch_to_the_crop(shares):
    numbers = np.repeat([0, 1, 2], [30, 5, 11])
    clips = clips_of(one_hot(np.arange(46) % 3), np.array(list('xyz'))[numbers])
    recipe = recipe_with(shares=dict(zip('xyz', shares, strict=True)), steps=400)
    order = draw_order(clips, recipe, seeded())
    by_batch = np.array([np.bincount(numbers[batch], minlength=3) for batch in order])
    expected = np.array(shares) / sum(shares) * 8
    assert (np.abs(by_batch - expected) < 1).all()
    np.testing.assert_allclose(by_batch.mean(axis=0), expected, atol=0.06)


def test_a_share_of_none_is_that_of_the_rows_a_share_without_rows_goes_to_the_others_and_0_is_never_drawn():
    clips = clips_of(one_hot(np.arange(40) % 3), np.repeat(['x', 'y'], [10, 30]))
    chances = draw_chances(clips, recipe_with(shares={'x': None, 'y': 0.25}))
    np.testing.assert_allclose(chances, np.repeat([0.5 / 10, 0.5 / 30], [10, 30]))
    clips = clips_of(one_hot(np.arange(24) % 3), np.repeat(['x', 'y', 'silent'], 8))
    recipe = recipe_with(shares={'x': 0.2, 'none': 0.5, 'y': 0.3, 'silent': 0.0}, steps=50)
    np.testing.assert_allclose(draw_chances(clips, recipe), np.repeat([0.4 / 8, 0.6 / 8, 0], 8), rtol=1e-12)
    assert counts_of(draw_order(clips, recipe, seeded()), 24)[16:].sum() == 0


def test_classes_are_drawn_equally_often_however_few_clips_they_have():
    '''One clip against sixty, in batches of eight: it must come several times in each.'''
    clips = clips_of(one_hot([0] + [1] * 9 + [2] * 60))
    assert class_rates(clips, TINY).min() < 0.1
    np.testing.assert_allclose(class_rates(clips, recipe_with(balance='clips')), 1, atol=0.05)


def test_balanced_by_seconds_classes_and_clips_are_drawn_by_their_seconds():
    seconds = np.array([0.5] * 4 + [2.0] * 4 + [1.0, 3.0] * 10)
    clips = clips_of(one_hot([0] * 4 + [1] * 4 + [2] * 20), seconds=seconds)
    recipe = recipe_with(balance='seconds')
    np.testing.assert_allclose(class_rates(clips, recipe, 400), 1, atol=0.05)
    chances = draw_chances(clips, recipe)
    np.testing.assert_allclose(chances[9] / chances[8], 3.0)


def test_an_unknown_or_improbable_label_makes_no_class_rare():
    targets = np.array([[1, 0, np.nan], [1, 0, np.nan], [0, 1, 0.2], [1, 0, 0]])
    chances = draw_chances(clips_of(targets), recipe_with(balance='clips'))
    np.testing.assert_allclose(chances, [1 / 6, 1 / 6, 3 / 6, 1 / 6])


def test_clips_of_rare_classes_are_augmented_more_often():
    clips = clips_of(one_hot([0] + [1] * 4 + [2] * 16))
    factors = np.zeros(21)
    for batch in draw_batches(clips, replace(recipe_with(rare_boost=1.0), batch_size=21), FRONTEND, seeded()):
        factors[batch.rows] = batch.augment_factor
    np.testing.assert_allclose(factors[[0, 1, 5]], [2.0, 1.5, 1.0])
    even = next(draw_batches(clips, TINY, FRONTEND, seeded()))
    assert even.augment_factor.tolist() == [1.0] * 8


def test_the_same_seed_draws_the_same_and_another_draws_other_crops():
    '''Law 14.'''
    boxes = boxes_of(('0.wav', 0, True, 0.2, 0.5), ('1.wav', 1, False, 0.0, 0.3))
    sources = np.array(['x', 'y'])[np.arange(12) % 2]
    clips = clips_of(one_hot(np.arange(12) % 3), sources, [0.9] * 12, boxes=boxes)
    recipe = recipe_with(shares={'x': 0.3, 'y': 0.7}, balance='clips')
    one, same, other = (list(draw_batches(clips, recipe, FRONTEND, seeded(seed))) for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        assert a.rows == b.rows
        assert all(torch.equal(x.nan_to_num(-1.0), y.nan_to_num(-1.0)) for x, y in zip(a[:6], b[:6], strict=True))
    assert [batch.rows for batch in one] != [batch.rows for batch in other]


# Crops at boxes


@pytest.mark.parametrize('begin, end', [(0.0, 0.1), (1.0, 1.4), (1.9, 2.0), (0.0, 2.0), (1.0, 3.0)])
@pytest.mark.parametrize('crop_s', [0.4, 1.0, 5.0])
def test_a_crop_at_a_box_covers_as_much_of_it_as_it_can_inside_the_clip(begin, end, crop_s):
    seconds = 2.0
    generator = seeded()
    starts = [crop_at_box(begin, end, seconds, crop_s, generator) for _ in range(200)]
    for start in starts:
        assert 0 <= start <= max(0.0, seconds - crop_s) + 1e-9
        covered = min(end, start + crop_s, seconds) - max(begin, start)
        assert covered > min(crop_s, end - begin, seconds - begin) - 1e-9
    low, high = sorted((begin, end - crop_s))
    low, high = max(0.0, low), min(high, max(0.0, seconds - crop_s))
    assert max(starts) - min(starts) >= 0.8 * max(0.0, high - low)


def test_crops_of_a_recording_with_boxes_hold_one_and_have_its_label_alone():
    boxes = boxes_of(('r0', 0, True, 0.20, 0.30), ('r1', 1, False, 2.5, 2.7))
    clips = clips_of(one_hot([0, 1]), names=['r0', 'r1'], seconds=[3.0, 3.0], boxes=boxes)
    for seed in range(20):
        for batch in draw_batches(clips, replace(TINY, batch_size=2), FRONTEND, seeded(seed)):
            for row, targets in zip(batch.rows, batch.targets.numpy(), strict=True):
                assert targets[row] == 1 - row and np.isnan(np.delete(targets, row)).all()


@pytest.mark.parametrize('true_p', [0.0, 0.25, 1.0])
def test_true_and_false_boxes_are_drawn_by_their_chance(true_p):
    false = [('r', 1, False, 1, 2), ('r', 2, False, 2, 3)]
    boxes = boxes_of(('r', 0, True, 0, 1), *false, ('only', 0, False, 0, 1))
    clips = clips_of(one_hot([0, 0]), names=['r', 'only'], boxes=boxes)
    generator = seeded()
    config = SamplingConfig(true_p=true_p)
    drawn = np.bincount([draw_box(clips, 0, config, generator) for _ in range(2000)], minlength=3) / 2000
    np.testing.assert_allclose(drawn, [true_p, (1 - true_p) / 2, (1 - true_p) / 2], atol=0.04)
    assert {draw_box(clips, 1, config, generator) for _ in range(20)} == {3}


def test_crops_leave_the_boxes_only_where_windows_have_soft_labels():
    boxes = boxes_of(('soft', 0, True, 0, 1), ('hard', 0, True, 0, 1))
    clips = clips_of(one_hot([0, 0, 0]), names=['soft', 'hard', 'no box'], boxes=boxes)
    with_windows = replace(clips, soft_labels=soft_windows('soft', 0.5, 3.0))
    with_clips = replace(clips, soft_labels=SoftLabels(('soft',), CLASSES, np.full((1, 3), 0.5)))
    generator = seeded()
    config = SamplingConfig(box_p=0.3)

    def box_rate(dataset, row):
        return np.mean([draw_box(dataset, row, config, generator) is not None for _ in range(1000)])

    assert box_rate(with_windows, 0) == pytest.approx(0.3, abs=0.05)
    assert box_rate(with_windows, 1) == box_rate(with_clips, 0) == box_rate(clips, 0) == 1.0
    assert box_rate(with_windows, 2) == 0.0


def test_a_crop_has_labels_by_its_boxes_then_by_the_nearest_window_with_soft_labels():
    '''Law 5: soft labels fill what is unknown, and nothing else.'''
    boxes = boxes_of(('r', 0, True, 0.5, 1.0), ('r', 1, False, 2.0, 2.5))
    soft = soft_windows('r', 0.5, 4.0)
    clips = clips_of(one_hot([0, 1]), names=['r', 'other'], boxes=boxes, soft_labels=soft)
    centres = np.arange(0, 4, 0.5) + 0.25
    for begin in (0.0, 0.4, 0.8, 1.3, 2.1, 3.5):
        by_boxes = window_targets(boxes, 'r', begin, begin + 0.5, 0.5)
        nearest = soft.targets[np.abs(centres - (begin + 0.25)).argmin()]
        expected = np.where(np.isnan(by_boxes), nearest, by_boxes)
        np.testing.assert_array_equal(filled(clips, 0, begin), expected)
    # A clip without boxes has its own labels.
    np.testing.assert_array_equal(filled(clips, 1, 0.0), [0, 1, 0])
    plain = clips_of([[1, np.nan, 0]], names=['r'], soft_labels=soft)
    np.testing.assert_array_equal(filled(plain, 0, 0.0), [1, soft.targets[0, 1], 0])


@pytest.mark.parametrize('box_share, is_known', [(0.5, True), (1.0, False)])
def test_a_crop_has_the_label_of_a_box_by_the_recipe_s_box_share(box_share, is_known):
    boxes = boxes_of(('r', 0, True, 0.1, 0.4))
    clips = clips_of(one_hot([0, 0]), names=['r', 'r'], seconds=[0.3, 0.3], boxes=boxes)
    recipe = replace(recipe_with(box_share=box_share), crop_s=1.0, batch_size=2)
    batch = next(draw_batches(clips, recipe, FRONTEND, seeded()))
    assert bool((batch.targets[:, 0] == 1).all()) == is_known


def test_the_rows_of_a_box_are_those_whose_bins_lie_in_its_band():
    hz = np.array(TINY.frontend.bin_hz)
    for low, high in ((0, 4000), (500, 1500), (1000, 1001), (3990, 4000)):
        first, end = rows_of_box(FRONTEND, low, high)
        inside = np.flatnonzero((hz >= low) & (hz < high)).tolist()
        assert list(range(first, end)) == inside or (not inside and (first == -1 or end == first + 1))
    banded = replace(TINY.frontend, n_mels=4, bands_hz=((100.0, 900.0), (500.0, 2000.0)))
    assert rows_of_box(Frontend(banded), 200, 800) == (-1, -1)
    clips = clips_of(one_hot([0, 1]), names=['r0', 'r1'], seconds=[0.9, 0.9], boxes=boxes_of(('r0', 0, True, 0.2, 0.5)))
    batch = next(draw_batches(clips, TINY, FRONTEND, seeded()))
    rows = dict(zip(batch.rows, batch.band_rows.tolist(), strict=True))
    assert tuple(rows[0]) == rows_of_box(FRONTEND, 500, 1500) and rows[1] == [-1, -1]


# Crops elsewhere


def test_crops_lie_anywhere_in_a_clip_and_never_beyond_it():
    frames = TINY.crop_frames
    specs = {i: torch.zeros(16, n) for i, n in enumerate((frames + 10, frames, frames - 10))}
    clips = clips_of(one_hot([0, 1, 2]), spectrograms=specs)
    generator = seeded()
    begins = [{draw_begin(clips, row, None, TINY, generator) for _ in range(300)} for row in range(3)]
    assert begins == [set(range(11)), {0}, {0}]


def test_a_crop_s_labels_are_those_of_the_part_that_was_cut():
    '''Spectrograms and waveforms: clips that are their own time are cut where their labels are looked up.'''
    clips = ramp_clips(2.0, soft_windows('r', 0.01, 2.0, 0.0)).select([0, 0])
    waves = replace(clips, waveforms={i: torch.arange(16000).float()[None] for i in (0, 1)})
    augmented = TINY.override(['wave_augment.gain_p=1.0'])
    assert augmented.needs_waveforms and not TINY.needs_waveforms
    for recipe, dataset, steps_per_s in ((TINY, clips, FRAMES_PER_S), (augmented, waves, 8000)):
        for seed in range(5):
            batch = next(draw_batches(dataset, recipe, FRONTEND, seeded(seed)))
            centre_s = batch.crops[:, 0].mean(-1) / steps_per_s
            assert torch.allclose(batch.targets[:, 0], (centre_s / 4).float(), atol=0.01)
            assert bool((batch.crops.diff(dim=-1) == 1).all())


def test_crops_by_probability_are_centred_on_windows_in_proportion_to_their_soft_labels():
    '''Clips without soft labels, and all clips without sample_by_probs, are cut anywhere.'''
    begin_s = np.arange(4.0)
    sums = np.array([0.0, 0.3, 0.0, 0.9])
    targets = np.stack([sums, np.full(4, np.nan), np.zeros(4)], axis=1)
    clips = ramp_clips(4.0, SoftLabels(('r',) * 4, CLASSES, targets, begin_s, begin_s + 1))

    def crop_centres(by_probs):
        '''Centres of the crops of each clip, in seconds.'''
        recipe = replace(recipe_with(sample_by_probs=by_probs, steps=150), crop_s=0.5)
        centres = {0: [], 1: []}
        for batch in draw_batches(clips, recipe, FRONTEND, seeded()):
            for row, crop in zip(batch.rows, batch.crops, strict=True):
                centres[row].append(float(crop[0].mean()) / FRAMES_PER_S)
        return np.array(centres[0]), np.array(centres[1])

    soft, plain = crop_centres('windows')
    assert np.abs(soft - np.where(soft < 2.5, 1.5, 3.5)).max() < 0.05
    assert (soft > 2.5).mean() == pytest.approx(0.75, abs=0.06)
    assert np.std(plain) > 0.8 and plain.min() < 0.5 and plain.max() > 3.5
    assert np.std(crop_centres('none')[0]) > 0.8


def mixed_clips():
    '''Four labelled clips, and four with only soft labels of their two windows; a spectrogram is its row's number.

    The sums of the latter's greatest soft labels are 0, 1, 1 and 2.
    '''
    targets = np.concatenate([one_hot([0, 1, 2, 0]), np.full((4, 3), np.nan)])
    targets[0, 2] = np.nan
    names = np.repeat([f'{i}.wav' for i in range(8)], 2)
    begin_s = np.tile([0.0, 0.4], 8)
    sums = np.array([0.6, 0.6, 0.6, 0.6, 0.0, 1.0, 1.0, 2.0])
    probs = np.repeat(sums, 2)[:, None] * [0.5, 0.5, 0.0] * np.tile([1.0, 0.5], 8)[:, None]
    soft = SoftLabels(tuple(names), CLASSES, probs, begin_s, begin_s + 0.4)
    return clips_of(targets, soft_labels=soft)


def test_clips_without_labels_are_drawn_by_the_sum_of_their_greatest_soft_labels():
    chances = draw_chances(mixed_clips(), recipe_with(sample_by_probs='clips'))
    np.testing.assert_allclose(chances, np.array([1, 1, 1, 1, 0, 1, 1, 2]) / 8, atol=1e-5)
    for what in ('none', 'windows'):
        assert draw_chances(mixed_clips(), recipe_with(sample_by_probs=what)) is None


@pytest.mark.parametrize('domain', ['energy', 'spec'])
def test_with_pseudo_p_clips_without_labels_are_only_mixed_into_labelled_ones(domain):
    '''Their labels are united. Without mixing, at the end of a training, only labelled crops are left.'''
    clips = mixed_clips()
    recipe = recipe_with(sample_by_probs='clips', steps=200)
    mixup = ['mixup.pseudo_p=0.75', f'mixup.domain={domain}', 'mixup.convex=true', 'mixup.low=0.5', 'mixup.high=0.5']
    recipe = recipe.override(mixup)
    assert batches_per_epoch(clips, replace(recipe, sampling=SamplingConfig())) == 1
    partners = np.zeros(8)
    n_crops = 0
    for batch in draw_batches(clips, recipe, FRONTEND, seeded()):
        n_crops += len(batch.rows)
        assert set(batch.rows) <= {0, 1, 2, 3}
        extra = batch.crops[len(batch.rows) :, 0, 0]
        specs, targets, _ = prepare_batch(batch, recipe, FRONTEND, torch.device('cpu'), seeded())
        plain, labels, _ = prepare_batch(batch, recipe, FRONTEND, torch.device('cpu'), seeded(), plain=True)
        assert specs.shape == plain.shape and plain[:, 0, 0].tolist() == batch.rows
        assert torch.equal(labels, batch.targets[: len(batch.rows)])
        for crop, partner, soft in zip(batch.mixed_into, extra, batch.targets[len(batch.rows) :], strict=True):
            partners[int(partner)] += 1
            low, high = sorted([batch.rows[crop], float(partner)])
            assert low < float(specs[crop, 0, 0]) < high
            torch.testing.assert_close(targets[crop], torch.maximum(labels[crop], soft))
    assert partners[:5].sum() == 0 and partners.sum() / n_crops == pytest.approx(0.75, abs=0.03)
    np.testing.assert_allclose(partners[5:] / partners.sum(), [0.25, 0.25, 0.5], atol=0.05)


def test_mixing_in_pseudo_labels_wants_labelled_clips():
    clips = mixed_clips().select([4, 5, 6])
    with pytest.raises(KitError, match=r'mixup\.pseudo_p mixes into clips with labels.*set it to 0'):
        batches_per_epoch(clips, TINY.override(['mixup.pseudo_p=0.5', 'mixup.p=0']))


def test_distilled_labels_are_those_of_labelled_clips_and_fill_no_unknown_label():
    '''Law 5: the unknown label of clip 0 stays unknown, and is learnt from the teachers alone.'''
    clips = mixed_clips()
    recipe = recipe_with().override(['distill_weight=0.5'])
    batch = next(draw_batches(clips, recipe, FRONTEND, seeded()))
    _, targets, soft = prepare_batch(batch, recipe, FRONTEND, torch.device('cpu'), seeded())
    plain = next(draw_batches(clips, recipe_with(), FRONTEND, seeded())).targets
    for i, row in enumerate(batch.rows):
        assert torch.equal(targets[i].isnan(), torch.tensor([False, False, row == 0]))
        expected = batch.soft[i] if row < 4 else torch.full((3,), torch.nan)
        torch.testing.assert_close(soft[i], expected, equal_nan=True)
        assert not plain[i].isnan().any() and torch.equal(targets[i][:2], plain[i][:2])


def test_with_equally_likely_boxes_a_recording_is_drawn_as_often_as_it_has_boxes():
    rows = [('r', 0, True, 0.0, 1.0), ('r', 1, False, 1.0, 2.0), ('r', 1, False, 2.0, 3.0), ('s', 0, False, 0.0, 1.0)]
    clips = replace(ramp_clips(4.0, None), boxes=boxes_of(*rows))
    config = SamplingConfig(steps=10, true_p=None)
    recipe = replace(TINY, sampling=config)
    np.testing.assert_allclose(draw_chances(clips, recipe), [0.75, 0.25])
    generator = seeded()
    drawn = np.bincount([draw_box(clips, 0, config, generator) for _ in range(3000)], minlength=3)
    assert (abs(drawn / 1000 - 1) < 0.1).all(), 'true and false boxes alike'


def test_short_crops_are_padded_in_the_ways_that_are_named_half_and_half():
    clips = ramp_clips(TINY.crop_s / 2, None)
    recipe = replace(TINY, crop_pad_modes=('wrap', 'min'), sampling=SamplingConfig(steps=100))
    batches = list(draw_batches(clips, recipe, FRONTEND, seeded()))
    crops = torch.cat([batch.crops for batch in batches])
    is_floor = crops[:, 0, -1] == crops[:, 0, -2]  # the sound itself rises from frame to frame
    assert 0.4 < float(is_floor.float().mean()) < 0.6
    plain = replace(recipe, crop_pad_modes=())
    crops = torch.cat([batch.crops for batch in draw_batches(clips, plain, FRONTEND, seeded())])
    assert (crops[:, 0, -1] != crops[:, 0, -2]).all()
