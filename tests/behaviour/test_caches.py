'''Caches of predictions and spectrograms return what was put in, or nothing; the ensemble generator's laws.'''

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.decode import DECODERS, Decoder, Sound
from kit.infer.cache import PredictionCache, SpectrogramCache
from kit.infer.ensemble import collect_frontends, predict_ensemble
from kit.infer.loader import SpectrogramLoader
from kit.infer.planner import EnsembleMember
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, WindowLogits
from kit.models.checkpoint import load_tagger
from tests.behaviour.trained import Trained


def logits_of(seed: int, windows: int = 3, classes: int = 4) -> WindowLogits:
    '''Some logits of some windows.'''
    logits = np.random.default_rng(seed).standard_normal((windows, classes)).astype(np.float32)
    return WindowLogits(logits, tuple((10 * w, 10 * w + 20) for w in range(windows)))


def filled(path: Path, entries: int = 5) -> PredictionCache:
    '''A cache with some entries on disk.'''
    cache = PredictionCache(path, lambda: 0.0)
    cache.add((f'{seed:064x}', logits_of(seed, windows=1 + seed)) for seed in range(entries))
    cache.flush()
    return cache


def test_a_cache_reads_back_every_bit(tmp_path: Path) -> None:
    filled(tmp_path / 'a.npz')
    again = PredictionCache.open(tmp_path / 'a.npz', lambda: 0.0)
    assert len(again.entries) == 5
    for seed in range(5):
        entry, wanted = again.entries[f'{seed:064x}'], logits_of(seed, windows=1 + seed)
        assert np.array_equal(entry.logits, wanted.logits) and entry.spans == wanted.spans


def test_a_cache_writes_at_most_as_often_as_it_is_allowed(tmp_path: Path) -> None:
    now = [0.0]
    cache = PredictionCache(tmp_path / 'a.npz', lambda: now[0], flush_every_s=2.0)
    cache.add([('0' * 64, logits_of(0))])
    assert not (tmp_path / 'a.npz').exists()
    now[0] = 2.0
    cache.add([('1' * 64, logits_of(1))])
    assert len(PredictionCache.open(tmp_path / 'a.npz', lambda: 0.0).entries) == 2


DAMAGES = {
    'empty': lambda content: b'',
    'half': lambda content: content[: len(content) // 2],
    'without its end': lambda content: content[:-10],
    'one byte': lambda content: content[:1],
    'text': lambda content: b'these are no arrays\n' * 20,
    'zeros': lambda content: bytes(len(content)),
    'a flipped bit': lambda content: content[:400] + bytes([content[400] ^ 255]) + content[401:],
    'an archive of something else': None,
    'a single array': None,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_cache_counts_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / 'a.npz'
    filled(path)
    change = DAMAGES[damage]
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    elif damage == 'a single array':
        with open(path, 'wb') as handle:
            np.save(handle, np.zeros(3))
    else:
        with open(path, 'wb') as handle:
            np.savez(handle, other=np.zeros(3))
    cache = PredictionCache.open(path, lambda: 0.0)
    assert cache.entries == {}
    cache.add([('2' * 64, logits_of(2))])
    cache.flush()
    assert set(PredictionCache.open(path, lambda: 0.0).entries) == {'2' * 64}


def test_what_the_store_spills_to_disk_comes_back_bit_for_bit() -> None:
    store = SpectrogramCache(budget_bytes=5000)
    specs = {i: torch.randn(7, 11 + 37 * i) for i in range(12)}
    for key, spec in specs.items():
        store.put(key, spec)
    assert store.kept and store.spilled and store.used_bytes <= 5000
    for key, spec in reversed(specs.items()):
        assert key in store and torch.equal(store.get(key), spec)
    for key in specs:
        store.drop(key)
        assert key not in store
    assert store.used_bytes == 0 and not store.spilled
    with pytest.raises(KeyError):
        store.get(3)


def test_a_store_without_memory_keeps_everything_on_disk_even_what_is_not_contiguous() -> None:
    store = SpectrogramCache(budget_bytes=0)
    spec = torch.randn(40, 9).T
    store.put('a', spec)
    assert torch.equal(store.get('a'), spec) and store.used_bytes == 0


def test_putting_a_key_again_takes_the_memory_of_one() -> None:
    store = SpectrogramCache(budget_bytes=10_000)
    for _ in range(2):
        store.put('a', torch.zeros(10, 10))
    store.drop('a')
    assert store.used_bytes == 0


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='the system does not tell what is mapped')
def test_what_was_spilled_holds_no_handle_and_leaves_nothing_when_it_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    store, handles = SpectrogramCache(budget_bytes=0), len(os.listdir('/proc/self/fd'))
    before = Path('/proc/self/maps').read_text().count('audiotag_kit_')
    for key in range(50):
        store.put(key, torch.zeros(10, 100))
    assert len(os.listdir('/proc/self/fd')) == handles
    assert Path('/proc/self/maps').read_text().count('audiotag_kit_') == before + 50
    assert not list(tmp_path.iterdir())
    for key in range(50):
        store.drop(key)
    assert Path('/proc/self/maps').read_text().count('audiotag_kit_') == before


def make_ensemble(checkpoints: Sequence[str], folder: Path) -> tuple[list[EnsembleMember], SpectrogramLoader]:
    '''Load models, and make a loader of a folder's clips whose headers are read.'''
    device = torch.device('cpu')
    members = [EnsembleMember(name, Predictor(load_tagger(name), device)) for name in checkpoints]
    loader = SpectrogramLoader(sorted(folder.iterdir()), collect_frontends(members, device), device)
    loader.read_headers()
    return members, loader


def test_predictions_are_the_same_from_memory_and_from_disk(trained: Trained, clips: Path) -> None:
    logits_by: dict[int, dict[tuple[str, int], np.ndarray]] = {}
    for budget in (10**9, 20_000, 0):
        members, loader = make_ensemble(trained.all, clips)
        loader.cache = SpectrogramCache(budget)
        logits_by[budget] = {}
        spilled: set[object] = set()
        for member, clip, output in predict_ensemble(members, loader):
            logits_by[budget][member.name, clip] = output.logits
            spilled |= loader.cache.spilled
        assert bool(spilled) == (budget < 10**9)
        loader.close()
    for budget in (20_000, 0):
        assert logits_by[budget].keys() == logits_by[10**9].keys()
        assert all(np.array_equal(logits_by[budget][key], logits_by[10**9][key]) for key in logits_by[budget])


def test_spectrograms_are_dropped_after_the_last_model_that_needs_them(trained: Trained, clips: Path) -> None:
    members, loader = make_ensemble(trained.all, clips)
    used = [loader.cache.used_bytes for _ in predict_ensemble(members, loader)]
    loader.close()
    assert max(used) > 0 and loader.cache.used_bytes == 0 and not loader.cache.kept


def test_models_come_in_order_each_with_every_clip_and_a_mark_at_its_last_one(trained: Trained, clips: Path) -> None:
    members, loader = make_ensemble(trained.all, clips)
    order = [(member.name, clip, member.finished) for member, clip, _ in predict_ensemble(members, loader)]
    loader.close()
    n = len(list(clips.iterdir()))
    assert [name for name, _, _ in order] == [name for name in trained.all for _ in range(n)]
    for first in range(0, len(order), n):
        assert sorted(clip for _, clip, _ in order[first : first + n]) == list(range(n))
        assert [done for _, _, done in order[first : first + n]] == [False] * (n - 1) + [True]


def test_a_model_that_raises_is_noted_and_the_others_predict_every_clip(trained: Trained, clips: Path) -> None:
    members, loader = make_ensemble(trained.mel, clips)
    members[0].tagger.network.register_forward_pre_hook(lambda *_: 1 / 0)
    found = {(member.name, clip) for member, clip, _ in predict_ensemble(members, loader)}
    loader.close()
    assert members[0].failure == 'division by zero' and members[1].failure is None
    assert found == {(trained.mel[1], clip) for clip in range(len(list(clips.iterdir())))}


def test_every_file_is_opened_once_for_all_models(trained: Trained, clips: Path) -> None:
    opened: list[Path] = []

    def read(path: Path) -> Sound:
        opened.append(path)
        return DECODERS[0].read(path)

    decoders = [Decoder('counting', read, DECODERS[0].duration_s)]
    predict_clips([*trained.all, trained.windows], clips, decoders=decoders)
    assert sorted(opened) == sorted(clips.iterdir())
