'''Draw crops and batches from a dataset, and augment them.'''

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.audio.augment import augment_waves, draw_wave_augment
from kit.audio.frontend import Frontend
from kit.audio.mixup import draw_mixup, mix_energies, mix_into, mix_labels, mix_specs, mix_waves
from kit.audio.specaugment import augment_specs, draw_spec_augment
from kit.core.errors import KitError
from kit.infer.predictor import cut_window
from kit.labels.soft import fill_unknown
from kit.train.clip_store import RawWaveforms
from kit.train.dataset import Dataset, crop_steps, source_numbers
from kit.train.recipe import Recipe, SamplingConfig

NO_BOX = (-1, -1)


class Batch(NamedTuple):
    '''Crops of one training step, before augmentation and mixup.

    `augment_factor` multiplies the chances of augmentation. `band_rows` are the first and end row of the
    box that a crop was cut around, -1 without one. `rows` are the crops' rows in the dataset, `has_label` tells which
    have known labels. The last P crops are pseudo-labelled ones, to be mixed into the crops `mixed_into`.
    Shape:  crops (B + P, M, N), or waveforms (B + P, 1, T); targets and soft labels (B + P, K);
            augment_factor (B + P,); mixed_into (P,); weights, sources, has_label (B,); band_rows (B, 2)
    '''

    crops: Tensor
    targets: Tensor
    soft: Tensor
    mixed_into: Tensor
    has_label: Tensor
    weights: Tensor
    sources: Tensor
    augment_factor: Tensor
    band_rows: Tensor
    rows: Sequence[int]


def draw_box(clips: Dataset, row: int, config: SamplingConfig, generator: torch.Generator) -> int | None:
    '''Draw a box of a recording, or None for a crop that need not hold one.

    A recording with boxes but without soft labels always gets a box: elsewhere no label is known.
    '''
    name = clips.names[row]
    if clips.boxes is None or name not in clips.boxes.rows:
        return None
    boxes = clips.boxes.rows[name]
    uniform_box, uniform_true, uniform_which = torch.rand(3, generator=generator).tolist()
    if clips.has_windows(name) and uniform_box >= config.box_p:
        return None
    of_this_kind = boxes
    if config.true_p is not None:
        of_this_kind = boxes[clips.boxes.is_true[boxes] == (uniform_true < config.true_p)]
    candidates = of_this_kind if len(of_this_kind) else boxes
    return int(candidates[int(uniform_which * len(candidates))])


def crop_at_box(begin_s: float, end_s: float, seconds: float, crop_s: float, generator: torch.Generator) -> float:
    '''Draw where a crop begins that covers a box as far as it can. Units: seconds'''
    low, high = sorted((begin_s, end_s - crop_s))
    start = low + float(torch.rand(1, generator=generator)) * (high - low)
    return max(0.0, min(start, seconds - crop_s))


def draw_begin(clips: Dataset, row: int, box: int | None, recipe: Recipe, generator: torch.Generator) -> int:
    '''Draw where a crop begins: at its box, else anywhere in the clip. Units: frames or samples

    With sample_by_probs, it is centred on a window with soft labels, drawn in proportion to their sum.
    Source: BirdCLEF 2024 and 2025 (crops of pseudo-labelled windows, drawn by that sum)
    '''
    length, steps_per_s = crop_steps(recipe)
    n_steps = clips.audio[row].shape[-1]
    n_starts = max(1, n_steps - length + 1)
    crop_s = length / steps_per_s
    name = clips.names[row]
    soft = clips.soft_labels
    row_begin_s, row_end_s = clips.stretches[row]
    if box is not None and clips.boxes is not None:
        box_s = clips.boxes.begin_s[box] - row_begin_s, clips.boxes.end_s[box] - row_begin_s
        begin_s = crop_at_box(*box_s, n_steps / steps_per_s, crop_s, generator)
    elif recipe.sampling.sample_by_probs != 'none' and soft is not None and clips.has_windows(name):
        windows = soft.rows[name]
        centres_s = np.mean(soft.times, axis=0)[windows]
        is_inside = (row_begin_s <= centres_s) & (centres_s < row_end_s)
        # The small constants let clips be drawn whose soft labels are all zero, and rows without a window's centre.
        sums = (np.nan_to_num(soft.targets[windows]).sum(axis=1) + 1e-6) * np.where(is_inside, 1, 1e-9)
        cumulative = sums.cumsum()
        uniform = float(torch.rand(1, generator=generator)) * cumulative[-1]
        begin_s = centres_s[np.searchsorted(cumulative, uniform)] - row_begin_s - crop_s / 2
    else:
        return int(torch.randint(n_starts, (1,), generator=generator)) if n_starts > 1 else 0
    return max(0, min(round(begin_s * steps_per_s), n_starts - 1))


def rarity(targets: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    '''How many times rarer each clip's rarest class is than the commonest, by amount; 1 for a clip without a class.

    Shape:  targets (n, K), amounts (n,) -> (n,)
    '''
    targets = np.nan_to_num(targets)
    class_amounts = (targets * amounts[:, None]).sum(axis=0)
    times_rarer = class_amounts.max() / np.maximum(class_amounts, 1e-9)
    rarest = np.where(targets >= 0.5, times_rarer, 0.0).max(axis=1)
    return np.where(rarest > 0, rarest, 1.0)


def seconds_by_row(clips: Dataset) -> np.ndarray:
    '''Seconds of audio of each row. Shape: -> (n,)'''
    return np.array([clips.seconds[row] for row in range(len(clips))])


def sums_of_probs(clips: Dataset, recipe: Recipe) -> np.ndarray:
    '''The sum over classes of each clip's greatest soft label, 1 on average.

    It is 1 for clips with a known label, and for all unless sample_by_probs="clips".
    Shape:  -> (n,)
    Source: first place, BirdCLEF 2025 (recordings drawn by that sum)
    '''
    sums = np.ones(len(clips))
    rows = [row for row in np.flatnonzero(~clips.has_label) if clips.has_windows(clips.names[row])]
    soft = clips.soft_labels
    if recipe.sampling.sample_by_probs == 'clips' and soft is not None and rows:
        greatest = [soft.targets[soft.rows[clips.names[row]]].max(axis=0) for row in rows]
        of_rows = np.nansum(greatest, axis=1) + 1e-6
        sums[rows] = of_rows / of_rows.mean()
    return sums


def draw_chances(clips: Dataset, recipe: Recipe) -> np.ndarray | None:
    '''The chance of each clip to be drawn next, from its boxes or soft labels, class balance, weights and shares.

    None if an epoch draws every clip once. Where all boxes are equally likely and nothing but boxes has labels, a
    recording's chance is its number of boxes. With a balance, the chance grows with the rarity of the clip's
    rarest class; balanced by seconds, with the clip's length, too.
    Shape:  -> (n,), with sum 1
    '''
    config = recipe.sampling
    shares = [source['share'] for source in recipe.sources.values()]
    sources = source_numbers(clips.sources, recipe)
    by_source = len(np.unique(sources)) > 1 and any(share is not None for share in shares)
    chances = sums_of_probs(clips, recipe)
    by_chance = by_source or (chances != 1).any()
    if config.steps is None and config.balance == 'none' and not by_chance:
        return None
    if clips.boxes is not None and config.true_p is None and clips.soft_labels is None:
        chances = np.array([float(len(clips.boxes.rows.get(name, 'x'))) for name in clips.names])
    if config.balance != 'none':
        amounts = seconds_by_row(clips) if config.balance == 'seconds' else np.ones(len(clips))
        chances = chances * rarity(clips.targets, amounts) * amounts
    if by_source:
        # Each source's chances are scaled to a total of its share, or of its share of the rows.
        totals = np.bincount(sources, chances, len(shares))
        row_shares = np.bincount(sources, minlength=len(shares)) / len(sources)
        wanted = [row_shares[k] if share is None else share for k, share in enumerate(shares)]
        chances = chances * (np.array(wanted) / np.where(totals > 0, totals, 1.0))[sources]
    if not chances.sum() > 0:
        raise KitError('no clip has a chance to be drawn: set a share above 0 for a source in the table.')
    return chances / chances.sum()


def drawn_rows(clips: Dataset, recipe: Recipe) -> np.ndarray:
    '''The rows to draw batches from: with mixup.pseudo_p those with a known label, else all. Shape: -> (m,)'''
    if not recipe.mixup.pseudo_p:
        return np.arange(len(clips))
    if not clips.has_label.any():
        raise KitError('mixup.pseudo_p mixes into clips with labels, and there are none: set it to 0.')
    return np.flatnonzero(clips.has_label)


def batches_per_epoch(clips: Dataset, recipe: Recipe) -> int:
    '''The number of batches in an epoch.'''
    n = len(drawn_rows(clips, recipe))
    return recipe.sampling.steps or n // min(recipe.batch_size, n)


def draw_order(clips: Dataset, recipe: Recipe, generator: torch.Generator) -> list[list[int]]:
    '''Draw the rows of every batch of an epoch: each clip once, or by their chances.

    With chances, every batch holds each source's share, rounded to whole crops at random. A clip comes twice
    in a batch only if its chance is above 1 / batch size.
    '''
    steps = batches_per_epoch(clips, recipe)
    drawn = torch.from_numpy(drawn_rows(clips, recipe))
    clips = clips.select(drawn.numpy())
    n = len(clips)
    size = recipe.batch_size if recipe.sampling.steps else min(recipe.batch_size, n)
    chances = draw_chances(clips, recipe)
    if chances is None:
        return drawn[torch.randperm(n, generator=generator)[: steps * size]].view(steps, size).tolist()
    sources = torch.from_numpy(source_numbers(clips.sources, recipe))
    batches = []
    for _ in range(steps):
        # Systematic sampling. The chances lie end to end on a line, sorted by source, in random order within it.
        # `size` evenly spaced points, shifted at random, pick the clips. So each clip and each source is drawn
        # as often as its chance says, up to one crop: independent draws would vary much more.
        shuffled = torch.randperm(n, generator=generator)
        line = shuffled[sources[shuffled].argsort(stable=True)]
        edges = torch.from_numpy(chances)[line].cumsum(0)
        points = torch.arange(size) + torch.rand(1, generator=generator, dtype=torch.float64)
        picked = torch.searchsorted(edges / edges[-1], points / size, right=True)
        batches.append(drawn[line[picked]].tolist())
    return batches


def rows_of_box(frontend: Frontend, low_hz: float, high_hz: float) -> tuple[int, int]:
    '''The first and end row of the spectrogram whose bins lie in a band.

    Returns (-1, -1) for a band above all bins, and for a frontend with a band per class, whose rows overlap.
    '''
    bin_hz = frontend.config.bin_hz
    first, end = np.searchsorted(bin_hz, [low_hz, high_hz]).tolist()
    if len(frontend.config.mel_bands) > 1 or first >= len(bin_hz):
        return NO_BOX
    return first, max(end, first + 1)


def draw_batches(clips: Dataset, recipe: Recipe, frontend: Frontend, generator: torch.Generator) -> Iterator[Batch]:
    '''Draw one epoch of crops, neither augmented nor mixed, in whole batches.'''
    config = recipe.sampling
    length, steps_per_s = crop_steps(recipe)
    cutter: Any = RawWaveforms(recipe.frontend) if recipe.needs_waveforms else frontend
    sources = source_numbers(clips.sources, recipe)
    # Chances of augmentation are multiplied by 1 + rare_boost for the rarest class, by 1 for the commonest.
    factors = np.ones(len(clips))
    if config.rare_boost:
        log_rarity = np.log(rarity(clips.targets, seconds_by_row(clips)))
        factors += config.rare_boost * log_rarity / max(1e-9, float(log_rarity.max()))
    has_label = clips.has_label
    partner_chances = torch.from_numpy(sums_of_probs(clips, recipe) * ~has_label)
    partner_p = recipe.mixup.pseudo_p if not has_label.all() else 0.0
    for rows in draw_order(clips, recipe, generator):
        mixed_into, partners = torch.zeros(2, 0, dtype=torch.int64)
        if partner_p:
            mixed_into = (torch.rand(len(rows), generator=generator) < partner_p).nonzero()[:, 0]
            partners = torch.multinomial(partner_chances, len(rows), replacement=True, generator=generator)
            partners = partners[: len(mixed_into)]
        crops, targets, soft_labels, band_rows = [], [], [], []
        for row in [*rows, *partners.tolist()]:
            audio = clips.audio[row]
            box = draw_box(clips, row, config, generator)
            begin = draw_begin(clips, row, box, recipe, generator)
            end = min(begin + length, audio.shape[-1])
            pad_mode = recipe.inference.pad_mode
            if recipe.crop_pad_modes and end - begin < length:
                number = int(torch.randint(len(recipe.crop_pad_modes), (1,), generator=generator))
                pad_mode = recipe.crop_pad_modes[number]
            crops.append(cut_window(cutter, audio, (begin, end), length, pad_mode))
            known, soft = clips.crop_targets(row, begin / steps_per_s, end / steps_per_s, config.box_share)
            # With distill_weight, soft labels have their own loss, and unknown labels stay unknown.
            is_distilled = recipe.distill_weight > 0 and has_label[row]
            targets.append(known if is_distilled else fill_unknown(known, soft))
            soft_labels.append(soft)
            band = NO_BOX
            if box is not None and clips.boxes is not None:
                band = rows_of_box(frontend, clips.boxes.low_hz[box], clips.boxes.high_hz[box])
            band_rows.append(band)
        yield Batch(
            crops=torch.stack(crops),
            targets=torch.from_numpy(np.stack(targets)),
            soft=torch.from_numpy(np.stack(soft_labels)),
            mixed_into=mixed_into,
            has_label=torch.from_numpy(has_label[rows]),
            weights=torch.from_numpy(clips.weights[rows]),
            sources=torch.from_numpy(sources[rows]),
            augment_factor=torch.from_numpy(factors[[*rows, *partners]]).float(),
            band_rows=torch.tensor(band_rows[: len(rows)]),
            rows=rows,
        )


def prepare_batch(
    batch: Batch,
    recipe: Recipe,
    frontend: Frontend,
    device: torch.device,
    generator: torch.Generator,
    plain: bool = False,
    mixing: bool = True,
    backgrounds: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    '''Augment and mix a batch as the recipe says, unless it is `plain`.

    Waveforms are augmented and mixed as such, then become spectrograms. Energies are mixed before the
    normalisation, spectrograms after it.
    Shape:  -> normalised spectrograms (B, M, N), before channels are stacked; targets (B, K); soft labels (B, K) of
            clips with known labels, NaN for others
    '''
    mixup = recipe.mixup
    n = len(batch.rows)
    mixes = mixing and not plain
    mixed_into = batch.mixed_into[: len(batch.mixed_into) * mixes]
    crops = batch.crops[: n + len(mixed_into)].to(device)
    factor = batch.augment_factor[: len(crops)] * (not plain)
    mix = mix_into(draw_mixup(mixup, batch.targets[:n], generator, factor[:n] * mixes), mixed_into)
    if recipe.needs_waveforms:
        config = recipe.wave_augment
        waves = crops[:, 0]
        augment = draw_wave_augment(config, len(waves), waves.shape[1], generator, factor)
        waves = augment_waves(waves, augment, config, recipe.frontend.sample_rate, backgrounds)
        if mixup.domain == 'wave':
            waves = mix_waves(waves, mix, mixup)
        crops = torch.stack(frontend.spectrograms(list(waves)))
    if mixup.domain == 'energy' and mix.mixed.any():
        crops = mix_energies(crops, mix, mixup, recipe.frontend)
    if recipe.needs_waveforms:
        crops = torch.stack([frontend.normalize(spec) for spec in crops])
    if mixup.domain == 'spec':
        crops = mix_specs(crops, mix, mixup)
    size = n, recipe.frontend.n_spec_bins, crops.shape[-1]
    masks = draw_spec_augment(recipe.spec_augment, *size, generator, batch.band_rows, factor[:n])
    specs = augment_specs(crops[:n], masks, recipe.spec_augment, frontend)
    targets, soft = (mix_labels(labels[: len(crops)], mix, mixup)[:n] for labels in (batch.targets, batch.soft))
    return specs, targets, soft.where(batch.has_label[:, None], torch.nan)
