'''Load the clips of a table with their labels and audio, and split them by fold.'''

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.audio.decode import list_audio
from kit.audio.frontend import Frontend
from kit.audio.windows import pad_frames
from kit.core.errors import KitError, suggest
from kit.core.runtime import Runtime
from kit.infer.loader import SpectrogramLoader
from kit.labels.boxes import Boxes, window_targets
from kit.labels.soft import SoftLabels, align_soft_labels, fill_unknown, nearest_window
from kit.labels.table import (
    BIRDCLEF_SOURCES,
    UNLABELLED,
    ClipLabels,
    class_names,
    clip_labels,
    is_secondary,
    is_validated,
    rating_weights,
    row_names,
    scored_truth,
    stretches_of,
)
from kit.train.clip_store import RawWaveforms, load_clips
from kit.train.pseudo_labels import pick_soft
from kit.train.recipe import Recipe

MAX_BACKGROUNDS = 64
TEST_FOLD = -2  # no network is trained on its clips


@dataclass(frozen=True)
class Dataset(ClipLabels):
    '''Labels and audio of a table. Arrays and dicts have an entry per row: a clip, or a stretch of one.

    Soft labels fill `targets`, for training. Labels of unscored sources are unknown in `truth`, for validation. Rows
    without audio are only in `failures`. `waveforms` is empty unless crops are cut from them. `recordings` are whole.
    Shape:  n rows; targets and truth (n, K); stretches (n, 2), seconds, infinite ends for whole clips;
            spectrograms (M, N_i), waveforms (1, T_i); backgrounds (m, T)
    '''

    truth: np.ndarray
    folds: np.ndarray
    stretches: np.ndarray
    recordings: dict[str, Tensor]
    spectrograms: dict[int, Tensor] = field(default_factory=dict)
    waveforms: dict[int, Tensor] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    boxes: Boxes | None = None
    soft_labels: SoftLabels | None = None
    backgrounds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def audio(self) -> dict[int, Tensor]:
        '''What crops are cut from, by row: waveforms where the recipe needs them, else spectrograms.'''
        return self.waveforms or self.spectrograms

    def select(self, rows: Sequence[int] | np.ndarray) -> 'Dataset':
        '''Some of the rows, in this order and numbered anew.'''
        changes: dict[str, Any] = {'names': tuple(self.names[row] for row in rows)}
        for column in fields(self):
            values = getattr(self, column.name)
            if isinstance(values, np.ndarray):
                changes[column.name] = values[rows]
            elif isinstance(values, dict) and column.name != 'recordings':
                changes[column.name] = {new: values[old] for new, old in enumerate(rows) if old in values}
        return replace(self, **changes)

    def train_split(self, fold: int | None) -> 'Dataset':
        '''The rows that the network of a fold learns from: they have audio, and a known or soft label.'''
        is_usable = self.is_trained(fold) & (self.has_label | [self.has_windows(name) for name in self.names])
        return self.select(np.flatnonzero(is_usable & [row in self.spectrograms for row in range(len(self))]))

    def is_trained(self, fold: int | None) -> np.ndarray:
        '''Whether the network of a fold (None: of all folds) may learn from a row. Shape: -> (n,)'''
        return ~np.isin(self.folds, (fold, TEST_FOLD) if fold is not None else TEST_FOLD)

    def held_out(self, fold: int | None) -> np.ndarray:
        '''The rows that validate a fold: whole clips, and stretches of recordings without such a row. Shape: -> (m,)'''
        return np.flatnonzero((self.folds == fold) & is_validated(self.names, self.stretches))

    @property
    def row_names(self) -> list[str]:
        '''The name of each row: its clip's, or of a stretch <clip>_<end second>.'''
        return row_names(self.names, self.stretches)

    @property
    def has_label(self) -> np.ndarray:
        '''Whether any label of a row is known, not counting those of windows. Shape: -> (n,)'''
        return ~np.isnan(self.targets).all(axis=1)

    def has_windows(self, name: str) -> bool:
        '''Whether windows of this clip have soft labels.'''
        soft = self.soft_labels
        return soft is not None and bool(soft.times) and name in soft.rows

    def crop_targets(self, row: int, begin_s: float, end_s: float, box_share: float) -> tuple[np.ndarray, np.ndarray]:
        '''Targets of a crop, by boxes or its clip, and the soft labels of the nearest window; times are in its row.

        Shape:  -> (K,) each, NaN where unknown
        '''
        name = self.names[row]
        targets = self.targets[row]
        soft = np.full_like(targets, np.nan)
        begin_s, end_s = begin_s + self.stretches[row, 0], end_s + self.stretches[row, 0]
        if self.boxes is not None and name in self.boxes.rows:
            targets = window_targets(self.boxes, name, begin_s, end_s, box_share)
        if self.soft_labels is not None and self.has_windows(name):
            soft = nearest_window(self.soft_labels, name, (begin_s + end_s) / 2)
        return targets, soft


def source_numbers(sources: np.ndarray, recipe: Recipe) -> np.ndarray:
    '''The position of each row's source among the recipe's sources; 0 for all if the recipe has none.

    A row without a source, or of one of BirdCLEF's, belongs to the first source that is scored.

    Shape:  (n,) str -> (n,) int64
    '''
    if not recipe.sources:
        return np.zeros(len(sources), np.int64)
    number_of = {name: number for number, name in enumerate(recipe.sources)}
    scored = [number_of[name] for name, settings in recipe.sources.items() if settings['scored']]
    for name in ('', *BIRDCLEF_SOURCES):
        number_of.setdefault(name, scored[0] if scored else 0)
    unknown = sorted(set(sources.tolist()) - set(number_of))
    if unknown:
        raise KitError(f'the table has a source {unknown[0]!r}: {suggest(unknown[0], recipe.sources)}.')
    return np.array([number_of[name] for name in sources.tolist()], np.int64)


def load_dataset(
    recipe: Recipe,
    frame: Any,
    audio: Path,
    runtime: Runtime,
    boxes: Boxes | None = None,
    soft: SoftLabels | None = None,
    backgrounds: str | Path | None = None,
    memory_gb: float | None = None,
) -> Dataset:
    '''Decode every clip of a table with folds once and keep its spectrogram.

    Stretches, boxes and windows that begin after the end of their sound are left out, with a note.
    '''
    folds = np.asarray(frame['fold'])
    named = boxes or soft
    labels = clip_labels(frame, named.classes if named else None)
    source_numbers(labels.sources, recipe)  # raises for an unknown source before anything is decoded
    stretches = stretches_of(frame)
    note_odd_labels(frame, labels, stretches)
    if soft and soft.names and not {*soft.names} & {*labels.names}:
        raise KitError(f'soft labels are of no clip of the table, e.g. of {soft.names[0]!r}: use the same names.')
    has_times = boxes is not None or np.isfinite(stretches).all(axis=1).any() or bool(soft and soft.times)
    if recipe.frontend.trim_db is not None and has_times:
        raise KitError('frontend.trim_db cuts the ends of clips, which moves all times: use frontend.trim_db=null.')
    clips = names_to_decode(labels, soft)
    frontends: dict[str, Any] = {'spec': Frontend(recipe.frontend)}
    if recipe.needs_waveforms:
        frontends['wave'] = RawWaveforms(recipe.frontend)
    loader, loaded = load_clips(clips, audio, frontends, runtime, memory_gb)

    recordings = {clips[clip]: spec for clip, spec in loaded['spec'].items()}
    sound_s = {clips[clip]: loader.seconds[clip] for clip in loaded['spec']}
    truth = scored_truth(labels, vars(recipe))
    labels = apply_label_settings(recipe, frame, labels)
    is_inside = begins_inside('stretches', labels.names, stretches[:, 0], stretches[:, 1], sound_s)
    if boxes is not None:
        labels, boxes = boxes_inside(labels, boxes, sound_s, recipe.frontend.sample_rate / 2)
    if soft and soft.times:
        soft = soft_windows_inside(soft, labels.classes, sound_s)
    elif soft:
        of_clips = align_soft_labels(soft, labels.names, labels.classes)
        if soft.names and not (np.isnan(labels.targets) & ~np.isnan(of_clips)).any():
            print(
                'WARNING: soft labels fill unknown ones, and none is unknown in their clips: see false_labels.',
                flush=True,
            )
        labels = replace(labels, targets=fill_unknown(labels.targets, of_clips))
    data = Dataset(
        **vars(labels),
        truth=truth,
        folds=folds,
        stretches=stretches,
        recordings=recordings,
        boxes=boxes,
        soft_labels=soft,
        backgrounds=load_backgrounds(recipe, backgrounds, runtime),
    )
    add_audio(data, recipe, clips, loader, loaded, is_inside)
    return data


def add_audio(
    data: Dataset,
    recipe: Recipe,
    clips: Sequence[str],
    loader: SpectrogramLoader,
    loaded: Mapping[str, Mapping[int, Tensor]],
    is_inside: np.ndarray,
) -> None:
    '''Cut each row's stretch out of the sound of its clip; warn of one sound in several folds.'''
    clip_numbers = {name: clip for clip, name in enumerate(clips)}
    folds_of: dict[str, set[int]] = {}
    for row, name in enumerate(data.names):
        clip = clip_numbers.get(name)
        if clip is None:
            continue
        begin_s, end_s = data.stretches[row]
        if clip in loader.failures or not is_inside[row]:
            data.failures[row] = loader.failures.get(clip, f'begins at {begin_s:g} s, after the end of its sound')
            continue
        data.spectrograms[row] = cut_stretch(data.recordings[name], begin_s, end_s, recipe.frontend.frames_per_s)
        if recipe.needs_waveforms:
            data.waveforms[row] = cut_stretch(loaded['wave'][clip], begin_s, end_s, recipe.frontend.sample_rate)
        data.seconds[row] = max(0.0, min(end_s, loader.seconds[clip]) - begin_s)
        folds_of.setdefault(loader.digests[clip], set()).add(int(data.folds[row]))
    copies = sum(len(folds) > 1 for folds in folds_of.values())
    if copies:
        places = 'in several folds under several names'
        print(f'WARNING: {copies} recordings are {places}: use a group_column.', flush=True)


def note_odd_labels(frame: Any, labels: ClipLabels, stretches: np.ndarray) -> None:
    '''Note secondary labels that are no class, and stretches that overlap although their labels differ.'''
    others = sorted({*class_names(frame.get('secondary_labels', ()))} - {*labels.classes})
    if others:
        print(f'note: {len(others)} secondary labels are no class and are ignored, e.g. {others[0]!r}', flush=True)
    order = sorted(np.flatnonzero(np.isfinite(stretches[:, 1])), key=lambda row: (labels.names[row], *stretches[row]))
    for row, other in pairwise(order):
        is_apart = labels.names[row] != labels.names[other] or stretches[other, 0] >= stretches[row, 1]
        if not is_apart and not np.array_equal(labels.targets[row], labels.targets[other], equal_nan=True):
            times = f'{stretches[row].tolist()} and {stretches[other].tolist()} s of {labels.names[row]!r}'
            print(f'WARNING: {times} overlap, and a class of one is false in the other: see false_labels.', flush=True)
            return


def names_to_decode(labels: ClipLabels, soft: SoftLabels | None) -> list[str]:
    '''List the clips to decode. Nothing is learnt from unlabelled soundscapes without pseudo-labels.'''
    is_used = labels.sources != UNLABELLED
    if soft and soft.times:
        is_used |= [name in soft.rows for name in labels.names]
    return list(dict.fromkeys(name for name, used in zip(labels.names, is_used, strict=True) if used))


def apply_label_settings(recipe: Recipe, frame: Any, labels: ClipLabels) -> ClipLabels:
    '''Give secondary labels their target and clips the weights of their ratings, where the recipe asks for it.'''
    if recipe.secondary_target is not None:
        mask = is_secondary(frame, labels.classes)
        labels = replace(labels, targets=np.where(mask, np.float32(recipe.secondary_target), labels.targets))
    if recipe.weigh_by_rating:
        labels = replace(labels, weights=labels.weights * rating_weights(frame))
    return labels


def soft_windows_inside(soft: SoftLabels, classes: tuple[str, ...], sound_s: Mapping[str, float]) -> SoftLabels:
    '''Keep the windows with soft labels that begin inside their sound, with these classes.'''
    import pandas

    begin_s, end_s = soft.times
    soft = pick_soft(soft, begins_inside('windows with soft labels', soft.names, begin_s, end_s, sound_s))
    probs = pandas.DataFrame(soft.targets, columns=list(soft.classes)).reindex(columns=list(classes))
    return replace(soft, classes=classes, targets=probs.to_numpy())


def begins_inside(
    what: str, names: Sequence[str], begin_s: np.ndarray, end_s: np.ndarray, sound_s: Mapping[str, float]
) -> np.ndarray:
    '''Find the stretches that begin inside their sound; a note tells how many do not.

    Shape:  names, begin_s and end_s (n,); sound_s the decoded seconds of each name -> (n,) bool
    '''
    length_s = np.array([sound_s.get(name, np.nan) for name in names])
    length_s[np.isinf(end_s)] = np.nan
    is_outside = begin_s >= length_s
    is_far = is_outside | (end_s >= 100 * length_s)
    marked = is_outside if is_outside.any() else is_far
    if not marked.any():
        return ~is_outside
    first = int(marked.argmax())
    times = f'{begin_s[first]:g} to {end_s[first]:g} s of {length_s[first]:.4g} s'
    example = f'e.g. {names[first]!r}, {times}'
    n_stretches = int(np.isfinite(length_s).sum())
    if 2 * is_far.sum() > n_stretches:
        places = f'{is_far.sum()} of {n_stretches} {what} lie outside their sound, {example}'
        raise KitError(f'{places}: are the times in milliseconds? Give seconds.')
    if is_outside.any():
        where = 'begin after the end of their sound and are left out'
        print(f'note: {is_outside.sum()} {what} {where}, {example}', flush=True)
    return ~is_outside


def boxes_inside(
    labels: ClipLabels, boxes: Boxes, sound_s: Mapping[str, float], nyquist_hz: float
) -> tuple[ClipLabels, Boxes]:
    '''Select the boxes that begin inside their recording; without one left, its labels are unknown.'''
    is_inside = begins_inside('boxes', boxes.recordings.tolist(), boxes.begin_s, boxes.end_s, sound_s)
    inside = boxes.select(is_inside)
    is_above = inside.low_hz >= nyquist_hz
    if is_above.any():
        first = int(is_above.argmax())
        example = f'e.g. {inside.recordings.tolist()[first]!r} from {inside.low_hz[first]:g} Hz'
        unseen = f'{is_above.sum()} boxes lie above {nyquist_hz:g} Hz, half of frontend.sample_rate, so'
        print(f'note: {unseen} the network cannot see them, {example}', flush=True)
    lost = np.array([name in boxes.rows and name not in inside.rows for name in labels.names])
    return replace(labels, targets=np.where(lost[:, None], np.float32(np.nan), labels.targets)), inside


def cut_stretch(spec: Tensor, begin_s: float, end_s: float, steps_per_s: float) -> Tensor:
    '''Cut a clip's spectrogram or waveform to a stretch of at least one step. Shape: (R, N) -> (R, N')'''
    first = min(spec.shape[-1] - 1, round(begin_s * steps_per_s))
    if np.isinf(end_s):
        return spec[:, first:]
    return spec[:, first : max(first + 1, round(end_s * steps_per_s))]


def crop_steps(recipe: Recipe) -> tuple[int, float]:
    '''Steps of a training crop and of a second: samples if crops are cut from waveforms, else frames.'''
    if recipe.needs_waveforms:
        return max(1, (recipe.crop_frames - 1) * recipe.frontend.hop_length), recipe.frontend.sample_rate
    return recipe.crop_frames, recipe.frontend.frames_per_s


def load_backgrounds(recipe: Recipe, folder: str | Path | None, runtime: Runtime) -> Tensor | None:
    '''Load sounds to mix under crops, looped or cut to their length, if the recipe uses any.

    Shape:  -> (n, T), n at most 64
    '''
    if not recipe.wave_augment.background_p:
        return None
    if folder is None:
        raise KitError('wave_augment.background_p wants sounds: --backgrounds DIR, or wave_augment.background_p=0.')
    folder = Path(folder)
    names = [path.relative_to(folder).as_posix() for path in list_audio(folder)[:MAX_BACKGROUNDS]]
    if not names:
        raise KitError(f'{folder} holds no audio to mix under crops.')
    quiet = replace(runtime, progress=False)
    _, loaded = load_clips(names, folder, {'wave': RawWaveforms(recipe.frontend)}, quiet)
    samples, _ = crop_steps(recipe)
    sounds = [pad_frames(wave[:, :samples].float(), samples, 'wrap') for wave in loaded['wave'].values()]
    return torch.cat(sounds).cpu()
