'''What the tests of submission share: trained checkpoints by name, plain networks, clips, tables. No kit at import.'''

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

RATE = 8000
HOP = 200
FLOAT = re.compile(r'-?\d+\.\d+(e[+-]\d+)?|-?\d(\.\d+)?e[+-]\d+')


@dataclass(frozen=True)
class Trained:
    '''Paths of checkpoints whose networks learnt toy sounds; `mel` are two folds.'''

    mel: tuple[str, ...]
    stft: str
    windows: str
    uncalibrated: str
    classes: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        '''Both folds and the one of another frontend.'''
        return [*self.mel, self.stft]


class LoudBands(nn.Module):
    '''The greatest level of K groups of bands: any sound anywhere moves it. Shape: (B, C, M, N) -> (B, K)'''

    def __init__(self, classes: int = 3, before: Callable[[Tensor], None] = lambda spec: None) -> None:
        super().__init__()
        self.classes, self.before = classes, before
        self.scale = nn.Parameter(Tensor([0.25]))

    def forward(self, spec: Tensor) -> Tensor:
        self.before(spec)
        bands = spec[:, 0].amax(dim=-1)
        groups = bands[:, : bands.shape[1] // self.classes * self.classes].unflatten(1, (self.classes, -1))
        return (groups.mean(dim=2) + 4.0) * self.scale


@dataclass
class HandClock:
    '''A clock that moves only when a test moves it.'''

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


def plain_frontend(**changes: Any) -> Any:
    '''Log-mel at 8 kHz, 40 frames a second, settings changed as given.'''
    from kit.audio.frontend import FrontendConfig

    asked = {
        'sample_rate': RATE, 'n_fft': 400, 'hop_length': HOP, 'n_mels': 30, 'power': 1, 'log': 'ln', 'f_min_hz': 0.0,
    }  # fmt: skip
    return FrontendConfig(**(asked | changes))


def loud_tagger(network: nn.Module | None = None, classes: Sequence[str] = ('a', 'b', 'c'), **changes: Any) -> Any:
    '''A tagger of a network of our own; the priors are 0.1, 0.2, 0.3, ...'''
    from kit.models.tagger import wrap_network

    asked = {'prevalences': [0.1 * (k + 1) for k in range(len(classes))]}
    return wrap_network(network or LoudBands(len(classes)), plain_frontend(), classes, **(asked | changes))


def noise(samples: int, seed: int = 0, level: float = 0.05) -> np.ndarray:
    '''Faint noise of so many samples.'''
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def write_wav(path: Path, wave: np.ndarray, rate: int = RATE) -> Path:
    '''A float WAV, folders made as needed.'''
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype='FLOAT', format='WAV')
    return path


def write_folder(folder: Path, names: Sequence[str], samples: int = 4000) -> Path:
    '''A folder of short clips, each different from the others.'''
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        write_wav(folder / name, noise(samples + 500 * (i % 5), seed=i, level=0.01 * (1 + i)))
    return folder


def write_template(path: Path, ids: Sequence[str], classes: Sequence[str], value: str = '0') -> Path:
    '''A sample submission.'''
    with open(path, 'w', encoding='utf-8', newline='') as handle:
        writer = csv.writer(handle, lineterminator='\n')
        writer.writerows([['fname', *classes], *([name, *[value] * len(classes)] for name in ids)])
    return path


def read_scores(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    '''Header and rows of a submission; fails where it is not whole, repeats an id, or a score looks like no float.'''
    content = path.read_bytes()
    assert content.endswith(b'\n') and b'\r\n' not in content and not content.startswith(b'\xef\xbb\xbf')
    header, *rows = csv.reader(content.decode('utf-8').splitlines(keepends=True))
    assert len({row[0] for row in rows}) == len(rows)
    for row in rows:
        assert len(row) == len(header)
        assert all(FLOAT.fullmatch(text) for text in row[1:]), row
    return header, {row[0]: np.array([float(text) for text in row[1:]]) for row in rows}


def nine_digits(values: Sequence[float]) -> list[float]:
    '''Numbers as nine significant digits tell them.'''
    return [float(f'{value:.9g}') for value in values]
