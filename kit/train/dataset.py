"""Load the clips of a table with their labels and audio, and split them by fold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kit.audio.decode import list_audio
from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.windows import pad_frames
from kit.core.errors import KitError, choose, closest
from kit.core.files import read_table
from kit.core.runtime import Runtime
from kit.infer.loader import SpectrogramLoader
from kit.infer.template import locate_clips
from kit.labels.boxes import Boxes, recording_labels, window_targets
from kit.labels.soft import SoftLabels, align_soft_labels, fill_unknown, nearest_window
from kit.labels.table import ClipLabels, clip_labels, column_of_class, scored_truth, stretches_of
from kit.train.recipe import Recipe

MAX_BACKGROUNDS = 64

OfClip = TypeVar("OfClip")


@dataclass(frozen=True)
class Dataset(ClipLabels):
    """Labels and audio of a table, one row per clip, or per stretch of a clip.

    `targets` are for training, `truth` is for validation: soft labels fill only the first, and labels of
    unscored sources are unknown in the second. Mappings go from a row to its value. Rows without audio are
    only in `failures`. `waveforms` is None unless the recipe cuts its crops from waveforms.
    Shape:  n rows; targets and truth (n, K); spectrograms (M, N_i), waveforms (1, T_i); backgrounds (m, T)
    """

    truth: np.ndarray
    folds: np.ndarray
    spectrograms: Mapping[int, Tensor]
    seconds: Mapping[int, float]
    failures: Mapping[int, str]
    waveforms: Mapping[int, Tensor] | None = None
    is_stretch: np.ndarray | None = None
    boxes: Boxes | None = None
    soft_labels: SoftLabels | None = None
    backgrounds: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def audio(self) -> Mapping[int, Tensor]:
        """What crops are cut from, by row: waveforms where the recipe needs them, else spectrograms."""
        return self.waveforms or self.spectrograms

    def select(self, rows: Sequence[int]) -> "Dataset":
        """Some of the rows, in this order and numbered anew."""
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            targets=self.targets[rows],
            weights=self.weights[rows],
            sources=self.sources[rows],
            truth=self.truth[rows],
            folds=self.folds[rows],
            spectrograms=renumber(self.spectrograms, rows),
            seconds=renumber(self.seconds, rows),
            failures=renumber(self.failures, rows),
            waveforms=None if self.waveforms is None else renumber(self.waveforms, rows),
            is_stretch=None if self.is_stretch is None else self.is_stretch[rows],
        )

    def train_split(self, fold: int | None) -> "Dataset":
        """The rows of all other folds (None: of all folds) that have audio and a known or soft label."""
        has_label = ~np.isnan(self.targets).all(axis=1)
        rows = []
        for row, name in enumerate(self.names):
            is_trained_on = fold is None or self.folds[row] != fold
            if is_trained_on and row in self.spectrograms and (has_label[row] or self.has_windows(name)):
                rows.append(row)
        return self.select(rows)

    def held_out(self, fold: int | None) -> np.ndarray:
        """The rows that validate a fold: its whole clips. Stretches are for training only. Shape: -> (m,)"""
        if fold is None:
            return np.zeros(0, np.int64)
        is_whole = np.ones(len(self), bool) if self.is_stretch is None else ~self.is_stretch
        return np.flatnonzero((self.folds == fold) & is_whole)

    def has_windows(self, name: str) -> bool:
        """Whether windows of this clip have soft labels."""
        soft = self.soft_labels
        return soft is not None and bool(soft.times) and name in soft.rows

    def crop_targets(self, row: int, begin_s: float, end_s: float, box_share: float) -> np.ndarray:
        """Targets of a crop: by the boxes, filled from the nearest window with soft labels.

        Without boxes, they start from the targets of the whole clip. Shape: -> (K,)
        """
        name = self.names[row]
        targets = self.targets[row]
        if self.boxes is not None:
            targets = window_targets(self.boxes, name, begin_s, end_s, box_share)
        if self.soft_labels is not None and self.has_windows(name):
            centre_s = (begin_s + end_s) / 2
            targets = fill_unknown(targets, nearest_window(self.soft_labels, name, centre_s))
        return np.asarray(targets)


def renumber(values: Mapping[int, OfClip], rows: Sequence[int]) -> dict[int, OfClip]:
    """The values of some rows, by their position among these rows."""
    return {new: values[old] for new, old in enumerate(rows) if old in values}


class RawWaveforms:
    """A frontend that returns waveforms unchanged. Shape: [(T_i,)] -> [(1, T_i)]"""

    def __init__(self, config: FrontendConfig) -> None:
        self.config = replace(config, reference="window")

    def spectrograms(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Add a row axis to each waveform."""
        return [wave[None] for wave in waves]


def box_table(boxes: Boxes, folds: str | Path | None) -> Any:
    """Make a clip table of recordings from their boxes, with folds from a CSV `recording_id,fold`, if given.

    Recordings that are only in that CSV get no known label.
    Errors: KitError for a recording with a box but without a fold
    """
    import pandas

    labels = recording_labels(boxes)
    names = list(labels.names)
    fold_of: dict[str, int] = {}
    if folds is not None:
        fold_of = read_recording_folds(folds)
        without_fold = [name for name in names if name not in fold_of]
        if without_fold:
            raise KitError(
                f"{folds} has no fold for {len(without_fold)} recordings with boxes, e.g. {without_fold[0]!r}."
            )
        with_box = set(names)
        names += [name for name in fold_of if name not in with_box]
    n_missing = len(names) - len(labels.names)
    targets = np.pad(labels.targets, ((0, n_missing), (0, 0)), constant_values=np.nan)
    classes = np.array(labels.classes)
    columns: dict[str, list[Any]] = {
        "fname": names,
        "labels": [",".join(classes[of_row == 1]) for of_row in targets],
        "false_labels": [",".join(classes[of_row == 0]) for of_row in targets],
    }
    if folds is not None:
        columns["fold"] = [fold_of[name] for name in names]
    return pandas.DataFrame(columns)


def read_recording_folds(path: str | Path) -> dict[str, int]:
    """Read the fold of each recording from a CSV `recording_id,fold` or `fname,fold`."""
    table = read_table(path, ("fold",))
    key = "fname" if "fname" in table.columns else "recording_id"
    names = choose("column", key, table.columns)
    table.check_names(key)
    folds = table.numbers("fold", "a whole number", lambda fold: True, int)
    return dict(zip(names, folds, strict=True))


def source_numbers(sources: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The position of each row's source among the recipe's sources; 0 for all if the recipe has none.

    A row without a source belongs to the first source that is scored. Shape: (n,) str -> (n,) int64
    Errors: KitError for a source that the recipe does not have
    """
    if not recipe.sources:
        return np.zeros(len(sources), np.int64)
    number_of = {name: number for number, name in enumerate(recipe.sources)}
    scored = [number_of[name] for name, settings in recipe.sources.items() if settings["scored"]]
    number_of.setdefault("", scored[0] if scored else 0)
    unknown = sorted(set(sources.tolist()) - set(number_of))
    if unknown:
        raise KitError(f"the table has a source {unknown[0]!r}: {closest(unknown[0], recipe.sources)}.")
    return np.array([number_of[name] for name in sources.tolist()], np.int64)


def load_clips(
    names: Sequence[str], audio: Path, frontends: Mapping[str, Any], runtime: Runtime
) -> tuple[SpectrogramLoader, dict[str, dict[int, Tensor]]]:
    """Decode every clip once and apply each frontend to it.

    Returns the loader, which holds seconds and failures, and for each frontend the spectrograms by clip.
    Errors: KitError if no clip can be decoded
    """
    paths = locate_clips(names, audio)
    loader = SpectrogramLoader(paths, frontends, runtime.device, threads=runtime.threads)
    spectrograms: dict[str, dict[int, Tensor]] = {key: {} for key in frontends}
    for chunk in loader.walk("load", runtime.progress):
        for key, by_clip in spectrograms.items():
            clips, specs = loader.specs(chunk, key)
            by_clip.update(zip(clips, specs, strict=True))
    loader.print_failures(names)
    if not any(spectrograms.values()):
        raise KitError(f"none of the {len(names)} clips of the table can be decoded in {audio}.")
    return loader, spectrograms


def load_dataset(
    recipe: Recipe,
    frame: Any,
    folds: np.ndarray,
    audio: Path,
    runtime: Runtime,
    boxes: Boxes | None = None,
    soft: SoftLabels | None = None,
    backgrounds: Path | None = None,
) -> Dataset:
    """Decode every clip of a table once and keep its spectrogram.

    Errors: KitError if no clip can be decoded, and for a source that the recipe does not have
    """
    classes = None if soft is None else soft.classes
    if boxes is not None:
        classes = boxes.classes
        soft = None if soft is None else with_classes(soft, classes)
    labels = clip_labels(frame, classes)
    source_numbers(labels.sources, recipe)  # raises for an unknown source before anything is decoded
    clips = list(dict.fromkeys(labels.names))
    frontends: dict[str, Any] = {"spec": Frontend(recipe.frontend)}
    if recipe.needs_waveforms:
        frontends["wave"] = RawWaveforms(recipe.frontend)
    loader, loaded = load_clips(clips, audio, frontends, runtime)

    # Several rows may be stretches of one clip.
    clip_numbers = {name: number for number, name in enumerate(clips)}
    clip_of_row = [clip_numbers[name] for name in labels.names]
    spectrograms = rows_of_clips(loaded["spec"], clip_of_row)
    waveforms = rows_of_clips(loaded["wave"], clip_of_row) if recipe.needs_waveforms else None
    seconds = rows_of_clips(loader.seconds, clip_of_row)
    digests = rows_of_clips(loader.digests, clip_of_row)
    warn_about_copies({row: digests[row] for row in spectrograms}, folds)

    stretches = stretches_of(frame)
    is_stretch = None
    if stretches is not None:
        is_stretch = stretches[:, 1] < np.inf
        spectrograms = cut_stretches(spectrograms, stretches, recipe.frontend.frames_per_s)
        if waveforms is not None:
            waveforms = cut_stretches(waveforms, stretches, recipe.frontend.sample_rate)
        for row, clip_s in seconds.items():
            begin_s, end_s = stretches[row]
            seconds[row] = max(0.0, min(end_s, clip_s) - begin_s)

    targets = labels.targets
    if soft is not None and not soft.times:
        targets = fill_unknown(targets, align_soft_labels(soft, labels.names, labels.classes))
    return Dataset(
        names=labels.names,
        classes=labels.classes,
        targets=targets,
        weights=labels.weights,
        sources=labels.sources,
        truth=scored_truth(labels, recipe.sources),
        folds=folds,
        spectrograms=spectrograms,
        seconds=seconds,
        failures=rows_of_clips(loader.failures, clip_of_row),
        waveforms=waveforms,
        is_stretch=is_stretch,
        boxes=boxes,
        soft_labels=soft,
        backgrounds=load_backgrounds(recipe, backgrounds, runtime),
    )


def with_classes(soft: SoftLabels, classes: tuple[str, ...]) -> SoftLabels:
    """Soft labels with other classes, or in another order; NaN for a class that they do not have."""
    column = column_of_class(soft.classes)
    unknown = np.full((len(soft.names), 1), np.nan, np.float32)
    padded = np.concatenate([soft.targets, unknown], axis=1)  # column -1 is unknown
    columns = [column.get(name, -1) for name in classes]
    return replace(soft, classes=classes, targets=padded[:, columns])


def rows_of_clips(by_clip: Mapping[int, OfClip], clip_of_row: Iterable[int]) -> dict[int, OfClip]:
    """Values of clips as values of rows, without rows whose clip has none."""
    return {row: by_clip[clip] for row, clip in enumerate(clip_of_row) if clip in by_clip}


def cut_stretches(
    by_row: Mapping[int, Tensor], stretches: np.ndarray, steps_per_s: float
) -> dict[int, Tensor]:
    """Cut each row's audio to its stretch. Shape: stretches (n, 2), seconds"""
    return {row: cut_stretch(spec, stretches[row], steps_per_s) for row, spec in by_row.items()}


def cut_stretch(spec: Tensor, stretch_s: Sequence[float], steps_per_s: float) -> Tensor:
    """Cut a clip's spectrogram or waveform to a stretch of at least one step. Shape: (R, N) -> (R, N')"""
    begin_s, end_s = stretch_s
    first = min(spec.shape[-1] - 1, round(begin_s * steps_per_s))
    if end_s == np.inf:
        return spec[:, first:]
    end = max(first + 1, round(end_s * steps_per_s))
    return spec[:, first:end]


def load_backgrounds(recipe: Recipe, folder: Path | None, runtime: Runtime) -> Tensor | None:
    """Load sounds to mix under crops, looped or cut to a crop's length; None if the recipe uses none.

    Shape:  -> (n, T), n at most 64
    Errors: KitError for a missing folder or one without audio
    """
    if not recipe.wave_augment.background_p:
        return None
    if folder is None:
        raise KitError(
            "wave_augment.background_p wants a folder of sounds: "
            "--backgrounds DIR, or wave_augment.background_p=0."
        )
    files = list_audio(folder)[:MAX_BACKGROUNDS]
    if not files:
        raise KitError(f"{folder} holds no audio to mix under crops.")
    names = [path.relative_to(folder).as_posix() for path in files]
    quiet = replace(runtime, progress=False)
    _, loaded = load_clips(names, folder, {"wave": RawWaveforms(recipe.frontend)}, quiet)
    samples = max(1, (recipe.crop_frames - 1) * recipe.frontend.hop_length)
    sounds = [pad_frames(wave[:, :samples], samples, "wrap") for wave in loaded["wave"].values()]
    return torch.cat(sounds).cpu()


def warn_about_copies(digests: Mapping[int, str], folds: np.ndarray) -> None:
    """Print a warning if files with the same content are in several folds. `digests` are by row."""
    folds_of_content: dict[str, set[int]] = {}
    for row, digest in digests.items():
        folds_of_content.setdefault(digest, set()).add(int(folds[row]))
    count = sum(len(of_content) > 1 for of_content in folds_of_content.values())
    if count:
        print(
            f"WARNING: {count} recordings are in several folds under several names: use a group_column.",
            flush=True,
        )
