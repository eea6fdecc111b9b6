'''What several tests share: a small trained ensemble, a folder of clips for it, and a network that is refused.'''

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.behaviour.trained import Trained

SMALL_MEL = [
    'frontend.sample_rate=8000', 'frontend.hop_length=200', 'frontend.n_fft=400', 'frontend.n_mels=32',
    'network.blocks=4', 'network.width=8', 'network.head.dropout=0.1', 'crop_s=1.5', 'epochs=20', 'no_augment_epochs=8',
    'mixup.p=0.3', 'batch_size=8', 'n_folds=2', 'validate_every=20',
]  # fmt: skip
SMALL_STFT = [
    'frontend.sample_rate=11025', 'frontend.hop_length=128', 'frontend.n_fft=256', 'network.blocks=5',
    'network.width=12', 'network.head.dropout=0.1', 'crop_s=1.5', 'epochs=12', 'no_augment_epochs=2', 'batch_size=8',
    'n_folds=2', 'validate_every=12', 'loss=bce',
]  # fmt: skip


@pytest.fixture(scope='module')
def one_core() -> Iterator[None]:
    '''Networks this small only wait for each other on several.'''
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    '''Two folds on mel with calibrated rank scores, one fold on STFT, and variants of the first fold's card.'''
    from kit.audio.windows import InferenceConfig
    from kit.demo import make_toy_set
    from kit.models.checkpoint import load_tagger, save_tagger
    from kit.models.tagger import Tagger
    from kit.train.recipes import find_recipe
    from kit.train.run import train_run

    folder = tmp_path_factory.mktemp('trained')
    make_toy_set(folder / 'data', clips=64, test=1, seed=3)
    table, audio = folder / 'data' / 'train.csv', folder / 'data' / 'train'
    mel = find_recipe('max-pyramid-mel', overrides=SMALL_MEL)
    train_run(mel, table, audio, folder / 'mel', device='cpu', progress=False)
    stft = find_recipe('max-pyramid-stft', overrides=SMALL_STFT)
    train_run(stft, table, audio, folder / 'stft', only_folds=[0], device='cpu', progress=False)
    first = load_tagger(folder / 'mel' / 'fold_0.pt')
    windows = InferenceConfig(mode='windows', window_s=1.0, hop_s=0.5)
    save_tagger(folder / 'windows.pt', Tagger(replace(first.card, inference=windows), first.network))
    save_tagger(folder / 'uncalibrated.pt', Tagger(replace(first.card, calibration=None), first.network))
    return Trained(
        tuple(str(folder / 'mel' / f'fold_{k}.pt') for k in (0, 1)),
        str(folder / 'stft' / 'fold_0.pt'),
        str(folder / 'windows.pt'),
        str(folder / 'uncalibrated.pt'),
        first.card.classes,
    )


@pytest.fixture(scope='session')
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    '''A folder of fourteen toy clips of 0.1 to 6 s, in WAV, FLAC and Vorbis.'''
    import soundfile

    from kit.demo import TOY_CLASSES, TOY_RATE, toy_clip

    folder, rng = tmp_path_factory.mktemp('clips'), np.random.default_rng(11)
    for i, seconds in enumerate((0.1, 0.3, 0.5, 0.5, 0.9, 1.2, 1.2, 1.6, 2.0, 2.4, 3.1, 3.1, 4.5, 6.0)):
        labels = list(rng.choice(TOY_CLASSES, size=2, replace=False))
        suffix = ('wav', 'flac', 'ogg')[i % 3]
        soundfile.write(folder / f'clip_{i:02d}.{suffix}', toy_clip(seconds, labels, rng), TOY_RATE)
    return folder


@pytest.fixture(scope='session')
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    '''A table of fourteen clips for the tiny recipe of training, and their folder.'''
    from tests.behaviour.training import make_set

    return make_set(tmp_path_factory.mktemp('toy'))


@pytest.fixture(scope='session')
def data(toy: tuple[Path, Path]) -> Any:
    '''Their dataset.'''
    from tests.behaviour.training import TINY, load_table

    return load_table(TINY, *toy)


@pytest.fixture
def calls_out(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    '''Every attempt to reach the network: noted, and refused.'''
    attempts: list[Any] = []

    def refuse(*given: Any, **named: Any) -> Any:
        attempts.append(given)
        raise OSError('no network here')

    for name in ('connect', 'connect_ex', 'sendto', 'bind'):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ('getaddrinfo', 'gethostbyname', 'create_connection'):
        monkeypatch.setattr(socket, name, refuse)
    return attempts
