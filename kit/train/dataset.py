"""Load a table, boxes, soft labels and audio as one training set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.audio.decode import list_audio
from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.windows import pad_frames
from kit.core.errors import KitError, choose, closest
from kit.core.files import read_table
from kit.infer.loader import SpectrogramLoader
from kit.infer.template import locate_clips
from kit.labels.boxes import Boxes, recording_labels
from kit.labels.soft import SoftLabels, align_soft_labels, fill_unknown
from kit.labels.table import ClipLabels, clip_labels, column_of_class, scored_truth, stretches_of
from kit.train.recipe import Recipe
from kit.train.sampler import TrainingSet

BACKGROUNDS = 64


@dataclass(frozen=True)
class Dataset:
    """Everything a run learns from, a row per clip, or per stretch of a clip where the table has begin_s and end_s.

    Shape:  truth (n, K); specs by row, of clips that could be heard; waves likewise, where crops are cut from waveforms
            targets (n, K), truth with soft labels where it is unknown; scored (n,) bool
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    truth: np.ndarray
    weights: np.ndarray
    folds: np.ndarray
    specs: Mapping[int, Tensor]
    seconds: Mapping[int, float]
    failures: Mapping[int, str]
    waves: Mapping[int, Tensor] | None = None
    targets: np.ndarray | None = None
    sources: np.ndarray | None = None
    stretches: np.ndarray | None = None
    boxes: Boxes | None = None
    soft: SoftLabels | None = None
    backgrounds: Tensor | None = None

    def train_split(self, fold: int | None) -> TrainingSet:
        """The clips of all other folds of which anything is known; of all folds, for None."""
        heard, targets = self.waves or self.specs, self.truth if self.targets is None else self.targets
        told = self.soft.rows if self.soft and self.soft.times else {}
        known = ~np.isnan(targets).all(axis=1)
        rows = [i for i in sorted(self.specs) if known[i] or self.names[i] in told]
        rows = [i for i in rows if fold is None or self.folds[i] != fold]
        return TrainingSet(
            [heard[i] for i in rows], targets[rows], self.weights[rows], [self.names[i] for i in rows],
            None if self.sources is None else self.sources[rows],
            np.array([self.seconds[i] for i in rows]) if self.seconds else None, self.boxes, self.soft,
        )  # fmt: skip

    def held_out(self, fold: int | None) -> np.ndarray:
        """The rows that a fold never sees, whole clips alone: stretches are learnt from only."""
        if fold is None:
            return np.zeros(0, np.int64)
        whole = np.ones(len(self.folds), bool) if self.stretches is None else ~self.stretches
        return np.flatnonzero((self.folds == fold) & whole)


class RawWaveforms:
    """A frontend that leaves sound as it is. Shape: [(T_i,)] -> [(1, T_i)]"""

    def __init__(self, config: FrontendConfig) -> None:
        self.config = replace(config, reference="window")

    def spectrograms(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Each wave as a row."""
        return [wave[None] for wave in waves]


def box_table(boxes: Boxes, folds: str | Path | None) -> Any:
    """A clip table of recordings by their boxes, with the folds of a CSV `recording_id,fold`, if given.

    A recording of that CSV without a box is wholly unknown.
    Errors: KitError for a recording with a box and without a fold
    """
    import pandas

    labels = recording_labels(boxes)
    fold_of: dict[str, int] = {}
    names = list(labels.names)
    if folds is not None:
        table = read_table(folds, ("fold",))
        column = "fname" if "fname" in table.columns else "recording_id"
        key = choose("column", column, table.columns)
        table.check_names(column)
        fold_of = dict(zip(key, table.numbers("fold", "a whole number", lambda n: True, int), strict=True))
        if strange := [name for name in names if name not in fold_of]:
            raise KitError(
                f"{folds} has no fold for {len(strange)} recordings with boxes, e.g. {strange[0]!r}."
            )
        names += [name for name in fold_of if name not in set(names)]
    row = {name: i for i, name in enumerate(labels.names)}

    def listed(name: str, state: int) -> str:
        states = labels.targets[row[name]] if name in row else ()
        return ",".join(
            c for c, known in zip(labels.classes, states, strict=bool(len(states))) if known == state
        )

    columns: dict[str, list[Any]] = {"fname": names, "labels": [listed(name, 1) for name in names]}
    columns["false_labels"] = [listed(name, 0) for name in names]
    if folds is not None:
        columns["fold"] = [fold_of[name] for name in names]
    return pandas.DataFrame(columns)


def source_places(labels: ClipLabels, recipe: Recipe) -> np.ndarray | None:
    """Each row's place among the recipe's sources, the first scored one for no name; None where there are none.

    Errors: KitError for a source that the recipe does not know
    """
    if not recipe.sources:
        return None
    place = {name: i for i, name in enumerate(recipe.sources)}
    place.setdefault("", next((place[name] for name, given in recipe.sources.items() if given["scored"]), 0))
    if strange := sorted(set(labels.sources.tolist()) - place.keys()):
        raise KitError(f"the table has a source {strange[0]!r}: {closest(strange[0], recipe.sources)}.")
    return np.array([place[name] for name in labels.sources.tolist()])


def load_clips(
    names: Sequence[str], audio: Path, frontends: Mapping[str, Any], device: torch.device, threads: int | None,
    progress: bool,
) -> tuple[SpectrogramLoader, dict[str, dict[int, Tensor]]]:  # fmt: skip
    """Every clip decoded once: what each frontend makes of it, by place. Errors: KitError where none is heard"""
    loader = SpectrogramLoader(locate_clips(names, audio), frontends, device, threads=threads)
    heard: dict[str, dict[int, Tensor]] = {key: {} for key in frontends}
    for number in loader.walk("hear", progress):
        for key, found in heard.items():
            found.update(zip(*loader.specs(number, key), strict=True))
    loader.print_failures(names)
    if not heard[""]:
        raise KitError(f"none of the {len(names)} clips of the table could be heard in {audio}.")
    return loader, heard


def load_dataset(
    recipe: Recipe, frame: Any, folds: np.ndarray, audio: Path, device: torch.device, threads: int | None,
    progress: bool, boxes: Boxes | None = None, soft: SoftLabels | None = None, backgrounds: Path | None = None,
) -> Dataset:  # fmt: skip
    """Decode every clip of a table once and keep its spectrogram. Errors: KitError where none can be heard"""
    if boxes and soft and soft.classes != boxes.classes:
        column, padded = (
            column_of_class(soft.classes),
            np.pad(soft.targets, ((0, 0), (0, 1)), constant_values=np.nan),
        )
        beliefs = padded[:, [column.get(name, -1) for name in boxes.classes]]
        soft = replace(soft, classes=boxes.classes, targets=beliefs)
    labels = clip_labels(frame, boxes.classes if boxes else None if soft is None else soft.classes)
    clips = list(dict.fromkeys(labels.names))
    frontends: dict[str, Any] = {"": Frontend(recipe.frontend)}
    if recipe.needs_waveforms:
        frontends["wave"] = RawWaveforms(recipe.frontend)
    loader, heard = load_clips(clips, audio, frontends, device, threads, progress)
    place = {name: i for i, name in enumerate(clips)}
    clip_of = [place[name] for name in labels.names]
    warn_about_copies({row: loader.digests[i] for row, i in enumerate(clip_of) if i in heard[""]}, folds)
    spans = stretches_of(frame)
    seconds = {row: loader.seconds[i] for row, i in enumerate(clip_of) if i in loader.seconds}
    if spans is not None:
        seconds |= {i: max(0.0, min(spans[i, 1], s) - spans[i, 0]) for i, s in seconds.items()}

    def rows_of(key: str, per_s: float) -> dict[int, Tensor]:
        """What was heard, by row; of a stretch, its part."""
        found = {row: heard[key][i] for row, i in enumerate(clip_of) if i in heard[key]}
        if spans is None:
            return found
        return {i: cut_stretch(spec, spans[i], per_s) for i, spec in found.items()}

    rate, truth = recipe.frontend.sample_rate, scored_truth(labels, recipe.sources)
    targets = labels.targets
    if soft is not None and not soft.times:
        targets = fill_unknown(targets, align_soft_labels(soft, labels.names, labels.classes))
    return Dataset(
        labels.names, labels.classes, truth, labels.weights, folds, rows_of("", recipe.frontend.frames_per_s), seconds,
        {row: loader.failures[i] for row, i in enumerate(clip_of) if i in loader.failures},
        rows_of("wave", rate) if recipe.needs_waveforms else None, targets, source_places(labels, recipe),
        None if spans is None else spans[:, 1] < np.inf, boxes, soft,
        load_backgrounds(recipe, backgrounds, device, threads) if recipe.wave_augment.background_p else None,
    )  # fmt: skip


def cut_stretch(spec: Tensor, span_s: Sequence[float], per_s: float) -> Tensor:
    """A stretch of a clip, one step of time at least. Shape: (R, N) -> (R, N')"""
    steps = spec.shape[-1]
    first = min(steps - 1, round(span_s[0] * per_s))
    return (
        spec[:, first:] if span_s[1] == np.inf else spec[:, first : max(first + 1, round(span_s[1] * per_s))]
    )


def load_backgrounds(
    recipe: Recipe, folder: Path | None, device: torch.device, threads: int | None
) -> Tensor:
    """Sounds to lay under crops, looped to a crop's length. Shape: -> (n, T). Errors: KitError without a folder"""
    if folder is None:
        raise KitError(
            "wave_augment.background_p wants a folder of sounds: --backgrounds DIR, or wave_augment.background_p=0."
        )
    clips = [path.relative_to(folder).as_posix() for path in list_audio(folder)][:BACKGROUNDS]
    if not clips:
        raise KitError(f"{folder} holds no audio to lay under crops.")
    found = load_clips(clips, folder, {"": RawWaveforms(recipe.frontend)}, device, threads, False)[1][""]
    samples = max(1, (recipe.crop_frames - 1) * recipe.frontend.hop_length)
    return torch.cat([pad_frames(wave[:, :samples], samples, "wrap") for wave in found.values()]).cpu()


def warn_about_copies(digests: Mapping[int, str], folds: np.ndarray) -> None:
    """Say so where files of one content lie in several folds."""
    homes = Counter(digest for digest, _ in {(digest, folds[i]) for i, digest in digests.items()})
    twins = sum(count > 1 for count in homes.values())
    if twins:
        print(
            f"WARNING: {twins} recordings lie in several folds under several names: use a group_column.",
            flush=True,
        )
