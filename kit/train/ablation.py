'''`probe`: measure what held-out predictions lose without parts of their input.'''

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
from kit.core.runtime import start_runtime
from kit.infer.ensemble import clip_probabilities
from kit.infer.predictor import Predictor
from kit.labels.metrics import compute_metric, log_losses
from kit.models.tagger import Tagger
from kit.train.held_out import HeldOut, held_out_models, predict_held_out

# Changes cut windows before they enter the network. Shape: (B, R, N) -> (B, C, M + S, N)
Alter = Callable[[Frontend, Tensor], Tensor]


class ProbeRow(NamedTuple):
    '''Held-out clips under one change: the mean log loss of true and of false labels, and the score.'''

    name: str
    positive_loss: float
    negative_loss: float
    score: float


@dataclass(frozen=True)
class ProbeReport:
    '''A row per change, the first without any, all on the same held-out clips.'''

    clips: int
    failed: int
    metric: str
    rows: tuple[ProbeRow, ...]

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f'{self.clips} held-out clips, {self.failed} more without predictions']
        lines.append(f'{"":{width}}  positive  negative  {self.metric:>11}  change')
        for name, positive, negative, score in self.rows:
            change = score - self.rows[0].score
            lines.append(f'{name:{width}}  {positive:8.4f}  {negative:8.4f}  {score:11.4f}  {change:+.4f}')
        return '\n'.join(lines)

    __repr__ = __str__


class AlteredPredictor(Predictor):
    '''A predictor whose network gets changed windows.'''

    def __init__(self, tagger: Tagger, device: torch.device, alter: Alter) -> None:
        super().__init__(tagger, device)
        self.alter = alter

    def make_inputs(self, batch: Tensor) -> Tensor:
        return self.alter(self.tagger.frontend, batch)


def silence(rows: np.ndarray, part: int = 0, parts: int = 1) -> Alter:
    '''Replace rows, in one of equal parts of time, by the spectrogram's least value; extra rows by 0.'''

    def alter(frontend: Frontend, pieces: Tensor) -> Tensor:
        altered = pieces.clone()
        least = frontend.floor(pieces)
        least[:, frontend.config.n_spec_rows :] = 0.0
        frames = pieces.shape[-1]
        altered[:, rows, part * frames // parts : (part + 1) * frames // parts] = least[:, rows]
        return frontend.stack(altered)

    return alter


def replace_coordinate(name: str, noise: bool = False) -> Alter:
    '''Replace a coordinate channel by zeros or by uniform noise in its range.'''

    def alter(frontend: Frontend, pieces: Tensor) -> Tensor:
        config = frontend.config
        inputs = frontend.stack(pieces)
        values = torch.zeros(config.n_bins, inputs.shape[-1])
        if noise:
            values.uniform_(COORDINATES[name], 1.0, generator=torch.Generator().manual_seed(0))
        inputs[:, config.channel_names.index(name), : config.n_bins] = values.to(inputs)
        return inputs

    return alter


def probe_alterations(config: FrontendConfig, bands: int, stretches: int) -> list[tuple[str, Alter]]:
    '''List the changes that suit a frontend, by name.'''
    alterations: list[tuple[str, Alter]] = [('everything', Frontend.stack)]
    for name in sorted(set(COORDINATES) & set(config.channels)):
        alterations.append((f'{name} zeroed', replace_coordinate(name)))
        alterations.append((f'{name} noise', replace_coordinate(name, noise=True)))
    heights = [config.n_spec_rows, *(EXTRA_ROWS[kind] for kind in config.extra_rows)]
    kind_of_row = np.repeat(['spectrogram', *config.extra_rows], heights)
    for kind in config.extra_rows:
        alterations.append((f'{kind} zeroed', silence(np.flatnonzero(kind_of_row == kind))))
    bins = config.n_spec_bins
    hz = config.bin_hz
    # Sorted, as with bands_hz the rows rise anew from the lowest frequency in every band.
    order = np.argsort(hz, kind='stable')
    for group in np.array_split(order, min(bands, bins)) if bands else []:
        rows = np.concatenate([group + first for first in range(0, config.n_spec_rows, bins)])
        alterations.append((f'without {hz[group[0]]:.0f}-{hz[group[-1]]:.0f} Hz', silence(rows)))
    rows = np.flatnonzero(kind_of_row != 'clip_length')
    for part in range(stretches):
        alterations.append((f'without time {part + 1}/{stretches}', silence(rows, part, stretches)))
    return alterations


def probe(
    run: str | Path | Mapping[str, HeldOut],
    audio: str | Path,
    bands: int = 8,
    stretches: int = 4,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> ProbeReport:
    '''Measure what taggers use: the cost of removing each part of their input, on clips they never trained on.

    Options:
        run: the folder that `train` wrote
        bands: groups of neighbouring frequency bins to silence
        stretches: parts of each input in time to silence

    Source: asked of the second place of RFCX 2021: losses with the frequency channel zeroed or noise
    '''
    runtime = start_runtime(device, threads, progress)
    models = run if isinstance(run, Mapping) else held_out_models(Path(run))
    configs = {held.tagger.card.frontend for held in models.values()}
    if len(configs) != 1 or min(bands, stretches) < 0:
        got = f'{len(configs)} frontends, {bands} and {stretches}'
        raise KitError(f'a probe wants one frontend, bands and stretches from 0, got {got}.')
    alterations = probe_alterations(configs.pop(), bands, stretches)
    metric = next(iter(models.values())).tagger.card.metric
    truths = []
    probs_of_models = []
    for path, held in models.items():
        if not held.tagger.card.is_calibrated:
            raise KitError(f'{path} gives rank scores without a calibration: run `oof`.')
        predictors = [AlteredPredictor(held.tagger, runtime.device, alter) for _, alter in alterations]
        outputs, _ = predict_held_out(held, predictors, Path(path).name, Path(audio), runtime)
        probs = np.full((len(predictors), *held.truth.shape), np.nan)
        for number, of_change in enumerate(outputs):
            for clip, output in of_change.items():
                probs[number, clip] = clip_probabilities(held.tagger, predictors[0].inference, output.logits)
        # Only clips with a prediction under every change are compared.
        is_complete = np.isfinite(probs).all(axis=(0, 2))
        truths.append(held.truth[is_complete])
        probs_of_models.append(probs[:, is_complete])
    truth = np.concatenate(truths)
    rows = []
    for (name, _), probs in zip(alterations, np.concatenate(probs_of_models, axis=1), strict=True):
        rows.append(ProbeRow(name, *log_losses(truth, probs), compute_metric(metric, truth, probs)))
    return ProbeReport(len(truth), sum(len(held.names) for held in models.values()) - len(truth), metric, tuple(rows))
