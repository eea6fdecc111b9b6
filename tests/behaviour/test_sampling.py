"""What is drawn: clips once, sources by share, classes alike; crops at boxes, and what is known of each crop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.core.errors import KitError
from kit.labels.boxes import Boxes, window_targets
from kit.labels.soft import SoftLabels
from kit.train.recipe import Recipe, SamplingConfig
from kit.train.sampler import (
    TrainingSet,
    batches_per_epoch,
    crop_at_box,
    draw_batches,
    draw_box,
    draw_chances,
    draw_order,
    rows_of_box,
)

CLASSES = ("a", "b", "c")
TINY = Recipe(
    frontend=FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, f_min_hz=20.0),
    network={"family": "max-pyramid", "blocks": 2, "width": 4}, crop_s=0.4, mixup=MixupConfig(p=0.0), epochs=4,
    no_augment_epochs=0, batch_size=8,
)  # fmt: skip
PER_S = TINY.frontend.frames_per_s
EVERY = Frontend(TINY.frontend)


def seeded(seed=0):
    """Randomness of our own."""
    return torch.Generator().manual_seed(seed)


def drawn_with(recipe=TINY, shares=None, **sampling):
    """The recipe with ways of drawing; `shares` by source."""
    sources = {} if shares is None else {name: {"share": share} for name, share in shares.items()}
    return replace(recipe, sampling=SamplingConfig(**sampling), sources=sources)


def clips_of(targets, sources=None, seconds=None, weights=None, names=(), **more):
    """Clips that are their own number in every place, and as long as said; else 60 frames."""
    targets = np.array(targets, np.float32)
    n = len(targets)
    frames = [60] * n if seconds is None else [max(1, round(s * PER_S)) for s in seconds]
    specs = [torch.full((16, length), float(i)) for i, length in enumerate(frames)]
    weights = np.ones(n, np.float32) if weights is None else np.array(weights, np.float32)
    sources = None if sources is None else np.array(sources)
    return TrainingSet(
        specs, targets, weights, list(names), sources, None if seconds is None else np.array(seconds), **more
    )


def counts_of(order, n):
    """How often each clip was drawn."""
    return np.bincount(np.concatenate(order), minlength=n)


def rates_by_class(clips, recipe, epochs=40):
    """How often each class is drawn, the mean being 1. Shape: -> (K,)"""
    generator, n = seeded(), len(clips.specs)
    counts = sum(counts_of(draw_order(clips, recipe, generator), n) for _ in range(epochs))
    drawn = counts @ np.nan_to_num(clips.targets)
    return drawn / drawn.mean()


def boxes_of(*rows):
    """Boxes from (recording, class, true, begin, end[, low, high])."""
    rows = [(*row, *(500.0, 1500.0)[len(row) - 5 :]) for row in rows]
    recordings, species, true, begin, end, low, high = zip(*rows, strict=True)
    return Boxes(
        CLASSES, np.array(recordings), np.array(species), np.array(true, bool),
        *(np.array(edge, float) for edge in (begin, end, low, high)),
    )  # fmt: skip


def believed(name, step_s, seconds, low=0.1):
    """Soft labels every so many seconds, each window saying where it lies."""
    begin = np.arange(0, seconds, step_s)
    targets = np.stack([low + begin / (2 * seconds)] * 3, axis=1)
    return SoftLabels((name,) * len(begin), CLASSES, targets, begin, begin + step_s)


@pytest.mark.parametrize("n", [2, 7, 8, 16, 21])
def test_without_chances_every_clip_comes_once_an_epoch_but_for_a_remainder_below_a_batch(n):
    clips = clips_of(np.eye(3)[np.arange(n) % 3], sources=np.arange(n) % 2)
    recipe = drawn_with(shares={"x": None, "y": None})
    order = draw_order(clips, recipe, seeded())
    size = min(8, n)
    assert draw_chances(clips, recipe) is None
    assert [len(batch) for batch in order] == [size] * (n // size) and len(order) == batches_per_epoch(
        clips, recipe
    )
    assert counts_of(order, n).max() == 1


def test_a_table_of_one_source_is_heard_whole_whatever_its_share():
    clips = clips_of(np.eye(3)[np.arange(16) % 3], sources=[1] * 16)
    order = draw_order(clips, drawn_with(shares={"x": 0.9, "y": 0.1}), seeded())
    assert counts_of(order, 16).tolist() == [1] * 16


def test_sources_without_any_share_are_refused():
    clips = clips_of(np.eye(3)[np.arange(16) % 3], sources=[0, 1] * 8)
    with pytest.raises(KitError, match="share above 0"):
        draw_order(clips, drawn_with(shares={"x": 0.0, "y": 0.0}), seeded())


def test_steps_are_as_many_as_asked_and_no_clip_comes_twice_in_a_batch_that_holds_fewer():
    clips = clips_of(np.eye(3)[np.arange(12) % 3])
    recipe = drawn_with(steps=50)
    order = draw_order(clips, recipe, seeded())
    assert len(order) == 50 == batches_per_epoch(clips, recipe)
    assert all(len(set(batch)) == 8 for batch in order)
    few = draw_order(clips_of(np.eye(3)[[0, 1, 2]]), recipe, seeded())
    assert all(sorted(np.bincount(batch)) == [2, 3, 3] for batch in few)
    counts = counts_of(order, 12)
    assert abs(counts / counts.mean() - 1).max() < 0.25


@pytest.mark.parametrize("shares", [(0.25, 0.25, 0.5), (0.01, 0.42, 0.57), (2.0, 1.0, 1.0)])
def test_a_source_has_its_share_of_every_batch_to_the_crop(shares):
    sources = np.repeat([0, 1, 2], [30, 5, 11])
    clips = clips_of(np.eye(3)[np.arange(46) % 3], sources)
    recipe = drawn_with(shares=dict(zip("xyz", shares, strict=True)), steps=400)
    by_batch = np.array([np.bincount(sources[b], minlength=3) for b in draw_order(clips, recipe, seeded())])
    wanted = np.array(shares) / sum(shares) * 8
    assert (np.abs(by_batch - wanted) < 1).all()
    assert np.allclose(by_batch.mean(axis=0), wanted, atol=0.06)


def test_a_share_of_none_is_as_the_source_has_rows():
    clips = clips_of(np.eye(3)[np.arange(40) % 3], np.repeat([0, 1], [10, 30]))
    chances = draw_chances(clips, drawn_with(shares={"x": None, "y": 0.25}))
    assert chances[:10].sum() == pytest.approx(0.5) and chances[10:].sum() == pytest.approx(0.5)
    assert np.ptp(chances[:10]) == np.ptp(chances[10:]) == 0


def test_a_source_without_rows_gives_its_share_to_the_others_and_one_of_no_share_is_never_drawn():
    clips = clips_of(np.eye(3)[np.arange(24) % 3], np.repeat([0, 2, 3], 8))
    recipe = drawn_with(shares={"x": 0.2, "none": 0.5, "y": 0.3, "silent": 0.0}, steps=50)
    chances = draw_chances(clips, recipe)
    np.testing.assert_allclose(chances, np.repeat([0.4 / 8, 0.6 / 8, 0], 8), rtol=1e-12)
    assert counts_of(draw_order(clips, recipe, seeded()), 24)[16:].sum() == 0


def test_classes_are_drawn_alike_however_few_clips_they_have():
    """One clip against sixty, in batches of eight: it must come again and again in each."""
    clips = clips_of(np.eye(3)[[0] + [1] * 9 + [2] * 60])
    assert rates_by_class(clips, TINY).min() < 0.1
    np.testing.assert_allclose(rates_by_class(clips, drawn_with(balance="clips")), 1, atol=0.05)


def test_classes_are_drawn_alike_by_their_seconds_and_a_class_s_clips_by_theirs():
    seconds = np.array([0.5] * 4 + [2.0] * 4 + [1.0, 3.0] * 10)
    clips = clips_of(np.eye(3)[[0] * 4 + [1] * 4 + [2] * 20], seconds=seconds)
    recipe = drawn_with(balance="seconds")
    np.testing.assert_allclose(rates_by_class(clips, recipe, 400), 1, atol=0.05)
    chances = draw_chances(clips, recipe)
    np.testing.assert_allclose(chances[9] / chances[8], 3.0)
    by_clips = draw_chances(clips, drawn_with(balance="clips"))
    np.testing.assert_allclose(by_clips[9], by_clips[8])


def test_an_unknown_or_doubtful_label_makes_no_class_rare():
    targets = np.array([[1, 0, np.nan], [1, 0, np.nan], [0, 1, 0.2], [1, 0, 0]])
    chances = draw_chances(clips_of(targets), drawn_with(balance="clips"))
    np.testing.assert_allclose(chances, [1 / 6, 1 / 6, 3 / 6, 1 / 6])


def test_weights_are_chances_where_told_and_then_no_factors_of_the_loss():
    weights = np.array([1.0, 1, 1, 1, 4, 4, 4, 8])
    clips = clips_of(np.eye(3)[np.arange(8) % 3], weights=weights)
    recipe = drawn_with(sample_by_weight=True, steps=400)
    counts = counts_of(draw_order(clips, recipe, seeded()), 8)
    np.testing.assert_allclose(counts / counts.sum(), weights / weights.sum(), atol=0.01)
    batch = next(draw_batches(clips, recipe, EVERY, seeded()))
    assert batch.weights.tolist() == [1.0] * 8
    plain = next(draw_batches(clips, drawn_with(steps=400), EVERY, seeded()))
    assert plain.weights.tolist() == weights[plain.clips].tolist()


def test_clips_of_rare_classes_are_changed_more_often():
    clips = clips_of(np.eye(3)[[0] + [1] * 4 + [2] * 16])
    chances = np.zeros(21)
    for batch in draw_batches(clips, replace(drawn_with(rare_boost=1.0), batch_size=21), EVERY, seeded()):
        chances[batch.clips] = batch.chances
    np.testing.assert_allclose(chances[[0, 1, 5]], [2.0, 1.5, 1.0])
    even = next(draw_batches(clips, TINY, EVERY, seeded()))
    assert even.chances.tolist() == [1.0] * 8


def test_the_same_seed_draws_the_same_and_another_draws_otherwise():
    boxes = boxes_of(("r0", 0, True, 0.2, 0.5), ("r1", 1, False, 0.0, 0.3))
    names = [f"r{i}" for i in range(12)]
    clips = clips_of(np.eye(3)[np.arange(12) % 3], np.arange(12) % 2, [0.9] * 12, names=names, boxes=boxes)
    recipe = drawn_with(shares={"x": 0.3, "y": 0.7}, balance="clips")

    def drawn(seed):
        return list(draw_batches(clips, recipe, EVERY, seeded(seed)))

    one, same, other = drawn(1), drawn(1), drawn(2)
    for a, b in zip(one, same, strict=True):
        assert list(a.clips) == list(b.clips)
        assert all(
            torch.equal(p.nan_to_num(-1.0), q.nan_to_num(-1.0)) for p, q in zip(a[:6], b[:6], strict=True)
        )
    assert [list(b.clips) for b in one] != [list(b.clips) for b in other]


@pytest.mark.parametrize(
    "begin, end", [(0.0, 0.1), (1.0, 1.4), (1.9, 2.0), (0.5, 1.9), (0.0, 2.0), (1.0, 3.0)]
)
@pytest.mark.parametrize("crop_s", [0.4, 1.0, 5.0])
def test_a_crop_at_a_box_holds_as_much_of_it_as_can_be_and_lies_in_the_clip(begin, end, crop_s):
    seconds, generator = 2.0, seeded()
    most = min(crop_s, end - begin, seconds - begin)
    starts = [crop_at_box(begin, end, seconds, crop_s, generator) for _ in range(200)]
    for start in starts:
        assert 0 <= start <= max(0.0, seconds - crop_s) + 1e-9
        held = min(end, start + crop_s, seconds) - max(begin, start)
        assert held == pytest.approx(most) or held > most - 1e-9
    low, high = sorted((begin, end - crop_s))
    low, high = max(0.0, low), min(high, max(0.0, seconds - crop_s))
    assert max(starts) - min(starts) >= 0.8 * max(0.0, high - low)


def test_crops_of_a_recording_with_boxes_hold_one_and_know_what_it_says():
    boxes = boxes_of(("r0", 0, True, 0.20, 0.30), ("r1", 1, False, 2.5, 2.7))
    clips = clips_of(np.eye(3)[[0, 1]], names=["r0", "r1"], seconds=[3.0, 3.0], boxes=boxes)
    for _ in range(20):
        for batch in draw_batches(clips, replace(TINY, batch_size=2), EVERY, seeded()):
            for i, targets in zip(batch.clips, batch.targets.tolist(), strict=True):
                assert targets[i] == 1 - i and np.isnan([t for k, t in enumerate(targets) if k != i]).all()


@pytest.mark.parametrize("true_p", [0.0, 0.25, 1.0])
def test_true_and_false_boxes_are_drawn_by_their_chance(true_p):
    boxes = boxes_of(
        ("r", 0, True, 0, 1), ("r", 1, False, 1, 2), ("r", 2, False, 2, 3), ("only", 0, False, 0, 1)
    )
    clips = clips_of(np.eye(3)[[0, 0]], names=["r", "only"], boxes=boxes)
    generator, config = seeded(), SamplingConfig(true_p=true_p)
    drawn = np.bincount([draw_box(clips, 0, config, generator) for _ in range(2000)], minlength=3) / 2000
    np.testing.assert_allclose(drawn, [true_p, (1 - true_p) / 2, (1 - true_p) / 2], atol=0.04)
    assert {draw_box(clips, 1, config, generator) for _ in range(20)} == {3}


def test_crops_lie_elsewhere_only_where_soft_labels_tell_of_other_places():
    boxes = boxes_of(("told", 0, True, 0, 1), ("untold", 0, True, 0, 1))
    clips = clips_of(np.eye(3)[[0, 0, 0]], names=["told", "untold", "no box"], boxes=boxes)
    of_windows = replace(clips, soft=believed("told", 0.5, 3.0))
    of_clips = replace(clips, soft=SoftLabels(("told",), CLASSES, np.full((1, 3), 0.5)))
    generator, config = seeded(), SamplingConfig(box_p=0.3)

    def at_boxes(which, clip):
        return np.mean([draw_box(which, clip, config, generator) is not None for _ in range(1000)])

    assert at_boxes(of_windows, 0) == pytest.approx(0.3, abs=0.05)
    assert at_boxes(of_windows, 1) == at_boxes(of_clips, 0) == at_boxes(clips, 0) == 1.0
    assert at_boxes(of_windows, 2) == 0.0


def test_a_crop_knows_its_boxes_first_then_the_nearest_window_of_soft_labels():
    """Law 5: soft labels fill what is unknown, and nothing else."""
    boxes = boxes_of(("r", 0, True, 0.5, 1.0), ("r", 1, False, 2.0, 2.5))
    soft = believed("r", 0.5, 4.0)
    clips = clips_of(np.eye(3)[[0, 1]], names=["r", "other"], boxes=boxes, soft=soft)
    for begin in (0.0, 0.4, 0.8, 1.3, 2.1, 3.5):
        known = window_targets(boxes, "r", begin, begin + 0.5, 0.5)
        centres = np.arange(0, 4, 0.5) + 0.25
        belief = soft.targets[np.abs(centres - (begin + 0.25)).argmin()]
        expected = [b if np.isnan(k) else k for k, b in zip(known, belief, strict=True)]
        np.testing.assert_array_equal(clips.labels_of(0, begin, begin + 0.5, 0.5), np.float32(expected))
    assert np.isnan(clips.labels_of(1, 0.0, 0.5, 0.5)).all()
    plain = clips_of([[1, np.nan, 0]], names=["r"], soft=soft)
    np.testing.assert_array_equal(plain.labels_of(0, 0.0, 0.5, 0.5), np.float32([1, soft.targets[0, 1], 0]))


def test_the_share_of_a_box_that_a_crop_must_hear_is_the_recipe_s():
    boxes = boxes_of(("r", 0, True, 0.0, 2.0))
    clips = clips_of(np.eye(3)[[0, 0]], names=["r", "r"], seconds=[0.3, 0.3], boxes=boxes)
    for share, known in ((0.5, True), (1.0, False)):
        recipe = replace(drawn_with(box_share=share), crop_s=1.0, batch_size=2)
        short = replace(clips, boxes=boxes_of(("r", 0, True, 0.1, 0.4)))
        batch = next(draw_batches(short, recipe, EVERY, seeded()))
        assert bool((batch.targets[:, 0] == 1).all()) == known


def test_the_rows_of_a_box_are_those_whose_bins_lie_in_its_band():
    hz = np.array(TINY.frontend.bin_hz)
    for low, high in ((0, 4000), (500, 1500), (1000, 1001), (3990, 4000)):
        first, end = rows_of_box(EVERY, low, high)
        inside = np.flatnonzero((hz >= low) & (hz < high)).tolist()
        assert list(range(first, end)) == inside or (not inside and (first == -1 or end == first + 1))
    banded = FrontendConfig(
        sample_rate=8000, n_fft=256, hop_length=128, n_mels=4, bands_hz=((100.0, 900.0), (500.0, 2000.0))
    )
    assert rows_of_box(Frontend(banded), 200, 800) == (-1, -1)
    boxes = boxes_of(("r0", 0, True, 0.2, 0.5))
    clips = clips_of(np.eye(3)[[0, 1]], names=["r0", "r1"], seconds=[0.9, 0.9], boxes=boxes)
    batch = next(draw_batches(clips, TINY, EVERY, seeded()))
    rows = dict(zip(batch.clips, batch.band_rows.tolist(), strict=True))
    assert tuple(rows[0]) == rows_of_box(EVERY, 500, 1500) and rows[1] == [-1, -1]


def test_a_crop_is_the_part_of_its_clip_that_it_says():
    """Spectrograms and waveforms alike: a clip that tells the time is cut where its labels are looked up."""
    soft = believed("r", 0.01, 2.0, 0.0)
    frames = round(2.0 * PER_S)
    spec = torch.arange(frames).float().expand(16, frames)
    clips = TrainingSet(
        [spec, spec], np.full((2, 3), np.nan, np.float32), np.ones(2, np.float32), ["r", "r"], soft=soft
    )
    waves = replace(clips, specs=[torch.arange(16000).float()[None]] * 2)
    shifted = TINY.override(["wave_augment.gain_p=1.0"])
    assert shifted.needs_waveforms and not TINY.needs_waveforms
    for recipe, heard, per_s in ((TINY, clips, PER_S), (shifted, waves, 8000)):
        for seed in range(5):
            batch = next(draw_batches(heard, recipe, EVERY, seeded(seed)))
            centre_s = batch.pieces[:, 0].mean(-1) / per_s
            assert torch.allclose(batch.targets[:, 0], (centre_s / 4).float(), atol=0.01)
            assert bool((batch.pieces.diff(dim=-1) == 1).all())


def test_crops_by_belief_lie_at_soft_windows_as_often_as_their_labels_add_up_to():
    """Clips without beliefs, and all clips where it is not asked for, are cut anywhere."""
    times, sums = np.arange(4.0), np.array([0.0, 0.3, 0.0, 0.9])
    targets = np.stack([sums, np.full(4, np.nan), np.zeros(4)], axis=1)
    soft = SoftLabels(("r",) * 4, CLASSES, targets, times, times + 1)
    frames = round(4.0 * PER_S)
    spec = torch.arange(frames).float().expand(16, frames)
    clips = TrainingSet(
        [spec, spec], np.full((2, 3), np.nan, np.float32), np.ones(2, np.float32), ["r", "s"], soft=soft
    )
    recipe, centres = (
        replace(drawn_with(sample_by_probs=True, steps=150), batch_size=8, crop_s=0.5),
        {0: [], 1: []},
    )
    for batch in draw_batches(clips, recipe, EVERY, seeded()):
        for clip, piece in zip(batch.clips, batch.pieces, strict=True):
            centres[clip].append(float(piece[0].mean()) / PER_S)
    told = np.array(centres[0])
    assert np.abs(told - np.where(told < 2.5, 1.5, 3.5)).max() < 0.05
    assert (told > 2.5).mean() == pytest.approx(0.75, abs=0.06)
    assert np.std(centres[1]) > 0.8 and min(centres[1]) < 0.5 and max(centres[1]) > 3.5
    anywhere = replace(recipe, sampling=replace(recipe.sampling, sample_by_probs=False))
    batches = list(draw_batches(clips, anywhere, EVERY, seeded()))
    assert np.std([float(p[0].mean()) / PER_S for b in batches for p in b.pieces]) > 0.8
