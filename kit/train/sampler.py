"""Draw crops and batches from a training set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.audio.frontend import Frontend
from kit.audio.windows import pad_frames
from kit.core.errors import KitError
from kit.infer.predictor import cut_window
from kit.labels.boxes import Boxes, window_targets
from kit.labels.soft import SoftLabels, fill_unknown, nearest_window
from kit.train.recipe import Recipe, SamplingConfig

NO_BOX = (-1, -1)


@dataclass(frozen=True)
class TrainingSet:
    """What a fold learns from; crops of clips with boxes or soft windows have labels of their own.

    Shape:  one (R, N_i) or, where waveforms are changed, (1, T_i) per clip; targets (n, K), NaN where unknown
    Units:  sources, each clip's place among the recipe's sources; seconds, how long it lasts
    """

    specs: Sequence[Tensor]
    targets: np.ndarray
    weights: np.ndarray
    names: Sequence[str] = ()
    sources: np.ndarray | None = None
    seconds: np.ndarray | None = None
    boxes: Boxes | None = None
    soft: SoftLabels | None = None

    def labels_of(self, clip: int, begin_s: float, end_s: float, least: float) -> np.ndarray:
        """What is known of a stretch: by boxes, then the nearest soft window, or of the clip."""
        targets, name = self.targets[clip], self.names[clip] if self.names else ""
        if self.boxes:
            targets = window_targets(self.boxes, name, begin_s, end_s, least)
        if self.soft and self.soft.times and name in self.soft.rows:
            targets = fill_unknown(targets, nearest_window(self.soft, name, (begin_s + end_s) / 2))
        return np.asarray(targets)


class Batch(NamedTuple):
    """Crops of one step. Shape: pieces (B, R, N) or waves (B, 1, T), targets (B, K), weights, sources, chances (B,)

    `band_rows` are the first and end row of the box that a crop was cut around, -1 without. Shape: (B, 2)
    """

    pieces: Tensor
    targets: Tensor
    weights: Tensor
    sources: Tensor
    chances: Tensor
    band_rows: Tensor
    clips: Sequence[int]


def draw_crop(spec: Tensor, frames: int, generator: torch.Generator) -> tuple[int, int]:
    """Where a crop lies in a clip: anywhere, or the whole of a shorter one. Units: frames"""
    room = spec.shape[-1] - frames
    start = int(torch.randint(room + 1, (1,), generator=generator)) if room > 0 else 0
    return start, start + frames


def draw_box(clips: TrainingSet, clip: int, config: SamplingConfig, generator: torch.Generator) -> int | None:
    """A box of a clip for a crop to hold, true ones and false ones by their chance; None for a crop anywhere."""
    here = clips.boxes.rows.get(clips.names[clip]) if clips.boxes else None
    if clips.boxes is None or here is None:
        return None
    anywhere, true, which = torch.rand(3, generator=generator).tolist()
    # Without beliefs, nothing is known where there is no box.
    if clips.soft and clips.soft.times and clips.names[clip] in clips.soft.rows and anywhere >= config.box_p:
        return None
    wanted = here[clips.boxes.is_true[here] == (true < config.true_p)]
    pool = wanted if len(wanted) else here
    return int(pool[int(which * len(pool))])


def crop_at_box(
    begin_s: float, end_s: float, seconds: float, crop_s: float, generator: torch.Generator
) -> float:
    """Where a crop begins that holds as much of a box as it can, anywhere so; inside the clip. Units: seconds"""
    low, high = sorted((begin_s, end_s - crop_s))
    start = low + float(torch.rand(1, generator=generator)) * (high - low)
    return max(0.0, min(start, seconds - crop_s))


def draw_span(
    clips: TrainingSet, clip: int, box: int | None, length: int, per_s: float, config: SamplingConfig,
    generator: torch.Generator,
) -> tuple[int, int]:  # fmt: skip
    """Where a clip's crop lies: at its box; sample_by_probs, at a soft window, drawn by the sum of its labels; or anywhere.

    Units:  frames or samples
    Source: BirdCLEF 2024 and 2025 (pseudo-labelled pieces are drawn by that sum)
    """
    spec, soft, crop_s = clips.specs[clip], clips.soft, length / per_s
    if box is not None and clips.boxes:
        at = clips.boxes.begin_s[box], clips.boxes.end_s[box]
        begin_s = crop_at_box(*at, spec.shape[-1] / per_s, crop_s, generator)
    elif config.sample_by_probs and soft and soft.times and clips.names[clip] in soft.rows:
        rows = soft.rows[clips.names[clip]]
        edges = (np.nan_to_num(soft.targets[rows]).sum(axis=1) + 1e-6).cumsum()
        row = rows[np.searchsorted(edges, float(torch.rand(1, generator=generator)) * edges[-1])]
        begin_s = (sum(times[row] for times in soft.times) - crop_s) / 2
    else:
        return draw_crop(spec, length, generator)
    begin = max(0, min(round(begin_s * per_s), spec.shape[-1] - length))
    return begin, begin + length


def class_amounts(targets: np.ndarray, seconds: np.ndarray | None) -> np.ndarray:
    """Clips, or seconds of sound, that each class has. Shape: (n, K), (n,) -> (K,)"""
    shares = np.ones(len(targets)) if seconds is None else seconds
    return np.asarray((np.nan_to_num(targets) * shares[:, None]).sum(axis=0))


def rarity(targets: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """The rarest class of each clip against the commonest of all, 1 for a clip without any. Shape: -> (n,)"""
    times = amounts.max() / np.maximum(amounts, 1e-9)
    rarest = np.where(np.nan_to_num(targets) >= 0.5, times, 0.0).max(axis=1)
    return np.where(rarest > 0, rarest, 1.0)


def draw_chances(clips: TrainingSet, recipe: Recipe) -> np.ndarray | None:
    """Each clip's chance to be the next that is drawn, by balance, weight and its source's share; None: all alike.

    A class is balanced by a clip's chance growing as its rarest class is rare; by seconds, with its length too.
    Shape:  -> (n,), their sum 1
    """
    config, n = recipe.sampling, len(clips.specs)
    given = [source["share"] for source in recipe.sources.values()]
    by_source = clips.sources is not None and len({*clips.sources}) > 1 and {*given} - {None}
    if config.steps is None and config.balance == "none" and not (config.sample_by_weight or by_source):
        return None
    chances = np.ones(n)
    if config.balance != "none":
        lasting = clips.seconds if config.balance == "seconds" else None
        chances = rarity(clips.targets, class_amounts(clips.targets, lasting)) * (
            1.0 if lasting is None else lasting
        )
    if config.sample_by_weight:
        chances = chances * clips.weights
    if by_source and clips.sources is not None:
        totals = np.bincount(clips.sources, chances, len(given))
        rows = np.bincount(clips.sources, minlength=len(given)) / n
        shares = np.array([row if share is None else share for share, row in zip(given, rows, strict=True)])
        chances = chances * (shares / np.where(totals > 0, totals, 1.0))[clips.sources]
    if not chances.sum() > 0:
        raise KitError("no clip has a chance to be drawn: give a source that is here a share above 0.")
    return np.asarray(chances / chances.sum())


def batches_per_epoch(clips: TrainingSet, recipe: Recipe) -> int:
    """Batches of an epoch."""
    n = len(clips.specs)
    return recipe.sampling.steps or n // min(recipe.batch_size, n)


def draw_order(clips: TrainingSet, recipe: Recipe, generator: torch.Generator) -> list[list[int]]:
    """The clips of every batch of an epoch: each clip once, or by their chances.

    With chances, a source has its share of every batch, to the crop: what is left over is drawn. A clip comes twice in
    a batch only where its chances call for it.
    """
    n, steps = len(clips.specs), batches_per_epoch(clips, recipe)
    size = recipe.batch_size if recipe.sampling.steps else min(recipe.batch_size, n)
    chances = draw_chances(clips, recipe)
    if chances is None:
        order = torch.randperm(n, generator=generator).tolist()
        return [order[first : first + size] for first in range(0, steps * size, size)]
    sources = torch.zeros(n) if clips.sources is None else torch.from_numpy(clips.sources)
    batches = []
    for _ in range(steps):
        # Even steps through all chances, laid end to end by source: each clip and source to the nearest crop.
        laid = torch.randperm(n, generator=generator)
        laid = laid[sources[laid].argsort(stable=True)]
        edges = torch.from_numpy(chances)[laid].cumsum(0)
        places = torch.arange(size) + torch.rand(1, generator=generator, dtype=torch.float64)
        batches.append(laid[torch.searchsorted(edges / edges[-1], places / size, right=True)].tolist())
    return batches


def rows_of_box(frontend: Frontend, low_hz: float, high_hz: float) -> tuple[int, int]:
    """First and end row of a picture whose bins lie in a band. Rows of bands_hz have none of their own."""
    hz = frontend.config.bin_hz
    if len(frontend.config.mel_bands) > 1:
        return NO_BOX
    first, end = np.searchsorted(hz, [low_hz, high_hz]).tolist()
    return (first, max(end, first + 1)) if first < len(hz) else NO_BOX


def draw_batches(
    clips: TrainingSet, recipe: Recipe, frontend: Frontend, generator: torch.Generator
) -> Iterator[Batch]:
    """One epoch of crops as they are cut, not yet changed or mixed; a remainder below one batch is left out."""
    config, frames = recipe.sampling, recipe.crop_frames
    waves, front = recipe.needs_waveforms, frontend.config
    per_s = front.sample_rate if waves else front.frames_per_s
    length = max(1, (frames - 1) * front.hop_length) if waves else frames
    chances = np.ones(len(clips.specs))
    if config.rare_boost:
        times = rarity(clips.targets, class_amounts(clips.targets, clips.seconds))
        chances += config.rare_boost * np.log(times) / max(1e-9, float(np.log(times).max()))
    for chosen in draw_order(clips, recipe, generator):
        pieces, targets, bands = [], [], []
        for i in chosen:
            spec, box = clips.specs[i], draw_box(clips, i, config, generator)
            span = draw_span(clips, i, box, length, per_s, config, generator)
            bands.append(NO_BOX)
            if box is not None and clips.boxes:
                bands[-1] = rows_of_box(frontend, clips.boxes.low_hz[box], clips.boxes.high_hz[box])
            end = min(span[1], spec.shape[-1])
            targets.append(clips.labels_of(i, span[0] / per_s, end / per_s, config.box_share))
            if waves:
                wave = spec[:, span[0] : end]
                silence = wave.new_zeros(1, 1) if recipe.inference.pad_mode == "min" else None
                pieces.append(pad_frames(wave, length, recipe.inference.pad_mode, silence))
            else:
                pieces.append(cut_window(frontend, spec, span, frames, recipe.inference.pad_mode))
        weights = np.ones(len(chosen), np.float32) if config.sample_by_weight else clips.weights[chosen]
        sources = np.zeros(len(chosen), np.int64) if clips.sources is None else clips.sources[chosen]
        yield Batch(
            torch.stack(pieces), torch.from_numpy(np.stack(targets)), torch.from_numpy(weights),
            torch.from_numpy(sources), torch.from_numpy(chances[chosen]).float(), torch.tensor(bands), chosen,
        )  # fmt: skip
