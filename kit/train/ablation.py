"""`probe`: what held-out predictions lose without parts of their input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kit.audio.frontend import COORDINATES, Frontend, FrontendConfig
from kit.audio.waveform import EXTRA_ROWS
from kit.core.errors import KitError
from kit.core.runtime import pick_device, tune_process
from kit.infer.ensemble import clip_probabilities
from kit.infer.predictor import Predictor
from kit.labels.metrics import log_losses, lwlrap
from kit.models.tagger import Tagger
from kit.train.oof import HeldOut, held_out_models, predict_held_out

Alter = Callable[[Frontend, Tensor], Tensor]


class ProbeRow(NamedTuple):
    """What held-out clips cost under one alteration: mean log loss on true and on false labels, lwlrap."""

    heard: str
    positive_loss: float
    negative_loss: float
    lwlrap: float


@dataclass(frozen=True)
class ProbeReport:
    """A row per alteration, the first without any, on the same held-out clips."""

    clips: int
    unheard: int
    rows: tuple[ProbeRow, ...]

    def __str__(self) -> str:
        width = max(len(row.heard) for row in self.rows)
        lines = (
            f"{row.heard:{width}}  {row.positive_loss:8.4f}  {row.negative_loss:8.4f}  {row.lwlrap:6.4f}  "
            f"{row.lwlrap - self.rows[0].lwlrap:+.4f}"
            for row in self.rows
        )
        title = f"{self.clips} held-out clips, {self.unheard} more could not be heard"
        return "\n".join([title, f"{'':{width}}  positive  negative  lwlrap  change", *lines])

    __repr__ = __str__


class AlteredPredictor(Predictor):
    """A listener whose network is shown pieces altered. Shape: alter maps (B, R, N) -> (B, C, M + S, N)"""

    def __init__(self, tagger: Tagger, device: torch.device, alter: Alter) -> None:
        super().__init__(tagger, device)
        self.alter = alter

    def make_inputs(self, batch: Tensor) -> Tensor:
        return self.alter(self.tagger.frontend, batch)


def silence(rows: np.ndarray, part: int = 0, parts: int = 1) -> Alter:
    """Some rows, in one of equal parts of time, take their picture's least value, or 0 below the pictures."""

    def alter(frontend: Frontend, pieces: Tensor) -> Tensor:
        altered, least, frames = pieces.clone(), frontend.floor(pieces), pieces.shape[-1]
        least[:, frontend.config.n_spec_rows :] = 0.0
        altered[:, rows, part * frames // parts : (part + 1) * frames // parts] = least[:, rows]
        return frontend.stack(altered)

    return alter


def replace_coordinate(name: str, seed: int | None = None) -> Alter:
    """A coordinate channel becomes zeros or, with a seed, uniform noise in its range."""

    def alter(frontend: Frontend, pieces: Tensor) -> Tensor:
        config, shown = frontend.config, frontend.stack(pieces)
        channel = config.channel_names.index(name)
        fill = torch.zeros(config.n_bins, shown.shape[-1])
        if seed is not None:
            fill.uniform_(COORDINATES[name], 1.0, generator=torch.Generator().manual_seed(seed))
        shown[:, channel, : config.n_bins] = fill.to(shown)
        return shown

    return alter


def probe_alterations(
    config: FrontendConfig, bands: int, stretches: int, seed: int
) -> list[tuple[str, Alter]]:
    """What a frontend's pictures can be deprived of, by name."""
    found: list[tuple[str, Alter]] = [("everything", Frontend.stack)]
    for name in sorted(set(COORDINATES) & set(config.channels)):
        found.append((f"{name} zeroed", replace_coordinate(name)))
        found.append((f"{name} noise", replace_coordinate(name, seed)))
    bins, hz = config.n_spec_bins, config.bin_hz
    heights = [config.n_spec_rows, *(EXTRA_ROWS[kind] for kind in config.extra_rows)]
    of_row = np.repeat(["picture", *config.extra_rows], heights)
    found += [(f"{kind} zeroed", silence(np.flatnonzero(of_row == kind))) for kind in config.extra_rows]
    # Sorted, because the rows of bands_hz rise anew in every band.
    for band in np.array_split(np.argsort(hz, kind="stable"), min(bands, bins)) if bands else []:
        rows = np.concatenate([band + first for first in range(0, config.n_spec_rows, bins)])
        found.append((f"without {hz[band[0]]:.0f}-{hz[band[-1]]:.0f} Hz", silence(rows)))
    rows = np.flatnonzero(of_row != "clip_length")
    parts = range(stretches)
    return found + [(f"without time {i + 1}/{stretches}", silence(rows, i, stretches)) for i in parts]


def probe(
    run: str | Path | Mapping[str, HeldOut],
    audio: str | Path,
    bands: int = 8,
    stretches: int = 4,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> ProbeReport:
    """What taggers hear: the cost of each thing that they are deprived of, on clips they never saw.

    Options:
        run: the folder that `train` wrote
        audio: the folder that holds the clips
        bands: groups of neighbouring frequency bins to silence
        stretches: parts of each input in time to silence
        seed: of the noise that replaces coordinates
        device: cpu or cuda; else one that computes
        threads: that decode; else one per core
        progress: show a bar

    Source: asked of the second place of RFCX 2021: losses with the frequency channel zeroed or noise
    """
    tune_process()
    models = run if isinstance(run, Mapping) else held_out_models(Path(run))
    configs = {held.tagger.card.frontend for held in models.values()}
    if len(configs) != 1 or min(bands, stretches) < 0:
        came = f"{len(configs)} frontends, {bands} and {stretches}"
        raise KitError(f"a probe wants one frontend, bands and stretches from 0, got {came}.")
    alterations = probe_alterations(configs.pop(), bands, stretches, seed)
    chosen, truths, answers = pick_device(device)[0], [], []
    for path, held in models.items():
        if not held.tagger.card.calibrated:
            raise KitError(f"{path} gives rank scores without a calibration: run `oof`.")
        predictors = [AlteredPredictor(held.tagger, chosen, alter) for _, alter in alterations]
        said, _ = predict_held_out(held, predictors, Path(path).name, Path(audio), threads, progress)
        scores = np.full((len(said), *held.truth.shape), np.nan)
        for predictor, probabilities, logits in zip(predictors, scores, said, strict=True):
            for i, of_clip in logits.items():
                if of_clip:
                    probabilities[i] = clip_probabilities(held.tagger, predictor.inference, of_clip.logits)
        heard = np.isfinite(scores).all(axis=(0, 2))
        truths.append(held.truth[heard])
        answers.append(scores[:, heard])
    truth = np.concatenate(truths)
    rows = (
        ProbeRow(name, *log_losses(truth, altered), lwlrap(truth, altered))
        for (name, _), altered in zip(alterations, np.concatenate(answers, axis=1), strict=True)
    )
    return ProbeReport(len(truth), sum(len(held.names) for held in models.values()) - len(truth), tuple(rows))
