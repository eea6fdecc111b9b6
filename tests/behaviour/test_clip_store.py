'''The clips of a training beyond memory: kept as float16, mapped to disk, and said before anything is decoded.'''

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from kit.audio.frontend import Frontend
from kit.core.errors import KitError
from kit.train.clip_store import ClipStore, RawWaveforms
from tests.behaviour.training import TINY, load_table, make_set, same_checkpoints, train_quietly

pytestmark = pytest.mark.usefixtures('one_core')

Usage = namedtuple('Usage', 'total used free')
WAVES = ['wave_augment.gain_p=0.5']


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    '''A table and a folder of clips.'''
    return make_set(tmp_path_factory.mktemp('toy'))


@pytest.mark.parametrize('settings', [[], WAVES], ids=['spectrograms', 'waveforms'])
def test_clips_past_the_budget_are_float16_on_disk_and_train_alike(toy, tmp_path, capsys, settings):
    recipe = TINY.override(settings)
    plain = train_quietly(recipe, *toy, tmp_path / 'plain')
    assert 'GB' not in capsys.readouterr().out
    small = [train_quietly(recipe, *toy, tmp_path / name, memory_gb=1e-5) for name in ('one', 'two')]
    note = capsys.readouterr().out
    assert 'hours of audio take 0.0 GB as float32' in note and 'as float16, of which' in note
    # The same budget gives the same weights, bit for bit; float16 changes them a little.
    assert same_checkpoints(small[0].folder / 'fold_0.pt', small[1].folder / 'fold_0.pt')
    np.testing.assert_allclose(small[0].oof.probabilities, plain.oof.probabilities, atol=0.1)


def test_what_is_kept_is_equal_up_to_half_precision_wherever_it_lies(toy):
    whole = load_table(TINY.override(WAVES), *toy)
    part = load_table(TINY.override(WAVES), *toy, memory_gb=2e-5)
    for row in whole.spectrograms:
        for one, other in ((whole.spectrograms, part.spectrograms), (whole.waveforms, part.waveforms)):
            assert one[row].dtype == torch.float32 and other[row].dtype == torch.float16
            torch.testing.assert_close(other[row].float(), one[row], rtol=1e-3, atol=1e-5)


def test_a_store_keeps_float32_within_its_budget_and_counts_what_it_holds(tmp_path):
    frontends = {'spec': Frontend(TINY.frontend), 'wave': RawWaveforms(TINY.frontend)}
    values_per_s = TINY.frontend.n_mels * TINY.frontend.frames_per_s + TINY.frontend.sample_rate
    gb = 4 * values_per_s * 60 / 1e9
    assert ClipStore(1.01 * gb, 60, frontends).dtype == torch.float32
    store = ClipStore(0.99 * gb, 60, frontends)
    assert store.dtype == torch.float16
    kept = store.keep([torch.ones(2, 3), torch.zeros(1, 4)])
    assert [tensor.shape for tensor in kept] == [(2, 3), (1, 4)] and store.used_bytes == 20
    store.budget_bytes = 0
    mapped = store.keep([torch.ones(2, 3), 2 * torch.ones(1, 4)])
    assert store.used_bytes == 20 and [tensor.sum().item() for tensor in mapped] == [6, 8]


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_decoded(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: Usage(1, 1, 0))
    with pytest.raises(KitError, match=r'has 0\.0 GB free for .*set TMPDIR to a larger disk'):
        train_quietly(TINY, *toy, tmp_path / 'run', memory_gb=1e-6)
    assert not (tmp_path / 'run').exists()
