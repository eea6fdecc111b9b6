"""What is kept beside the CSV and in memory comes back as it went in, or not at all."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from kit.audio.decode import DECODERS, Decoder, Sound
from kit.infer.cache import PredictionCache, SpectrogramCache
from kit.infer.ensemble import EnsembleMember, collect_frontends, predict_ensemble
from kit.infer.loader import SpectrogramLoader
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor, WindowLogits
from kit.models.checkpoint import load_tagger
from tests.behaviour.trained import Trained


def said(seed: int, windows: int = 3, classes: int = 4) -> WindowLogits:
    """Some logits of some windows."""
    logits = np.random.default_rng(seed).standard_normal((windows, classes)).astype(np.float32)
    return WindowLogits(logits, tuple((10 * w, 10 * w + 20) for w in range(windows)))


def filled(path: Path, entries: int = 5) -> PredictionCache:
    """A ledger with some entries on disk."""
    ledger = PredictionCache(path, lambda: 0.0)
    ledger.add((f"{seed:064x}", said(seed, windows=1 + seed)) for seed in range(entries))
    ledger.flush()
    return ledger


def test_a_ledger_reads_back_every_bit(tmp_path: Path) -> None:
    filled(tmp_path / "a.npz")
    again = PredictionCache(tmp_path / "a.npz", lambda: 0.0)
    assert len(again.entries) == 5
    for seed in range(5):
        entry, wanted = again.entries[f"{seed:064x}"], said(seed, windows=1 + seed)
        assert np.array_equal(entry.logits, wanted.logits) and entry.spans == wanted.spans


def test_a_ledger_writes_at_most_as_often_as_it_was_told(tmp_path: Path) -> None:
    now = [0.0]
    ledger = PredictionCache(tmp_path / "a.npz", lambda: now[0], flush_every_s=2.0)
    ledger.add([("0" * 64, said(0))])
    assert not (tmp_path / "a.npz").exists()
    now[0] = 2.0
    ledger.add([("1" * 64, said(1))])
    assert len(PredictionCache(tmp_path / "a.npz", lambda: 0.0).entries) == 2


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-10],
    "one byte": lambda content: content[:1],
    "text": lambda content: b"these are no arrays\n" * 20,
    "zeros": lambda content: bytes(len(content)),
    "a flipped bit": lambda content: content[:400] + bytes([content[400] ^ 255]) + content[401:],
    "an archive of something else": None,
    "a single array": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_counts_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.npz"
    filled(path)
    change = DAMAGES[damage]
    if change is not None:
        path.write_bytes(change(path.read_bytes()))
    elif damage == "a single array":
        with open(path, "wb") as handle:
            np.save(handle, np.zeros(3))
    else:
        with open(path, "wb") as handle:
            np.savez(handle, other=np.zeros(3))
    ledger = PredictionCache(path, lambda: 0.0)
    assert ledger.entries == {}
    ledger.add([("2" * 64, said(2))])
    ledger.flush()
    assert set(PredictionCache(path, lambda: 0.0).entries) == {"2" * 64}


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
    store.put("a", spec)
    assert torch.equal(store.get("a"), spec) and store.used_bytes == 0


def test_putting_a_key_again_takes_the_memory_of_one() -> None:
    store = SpectrogramCache(budget_bytes=10_000)
    for _ in range(2):
        store.put("a", torch.zeros(10, 10))
    store.drop("a")
    assert store.used_bytes == 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_what_was_spilled_holds_no_handle_and_leaves_nothing_when_it_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store, handles = SpectrogramCache(budget_bytes=0), len(os.listdir("/proc/self/fd"))
    before = Path("/proc/self/maps").read_text().count("audiotag_kit_")
    for key in range(50):
        store.put(key, torch.zeros(10, 100))
    assert len(os.listdir("/proc/self/fd")) == handles
    assert Path("/proc/self/maps").read_text().count("audiotag_kit_") == before + 50
    assert not list(tmp_path.iterdir())
    for key in range(50):
        store.drop(key)
    assert Path("/proc/self/maps").read_text().count("audiotag_kit_") == before


def at_work(checkpoints: Sequence[str], folder: Path) -> tuple[list[EnsembleMember], SpectrogramLoader]:
    """Models and the clips of a folder, ready to be heard."""
    device = torch.device("cpu")
    members = [
        EnsembleMember(name, Predictor(load_tagger(name), device), PredictionCache(None, lambda: 0.0))
        for name in checkpoints
    ]
    return members, SpectrogramLoader(sorted(folder.iterdir()), collect_frontends(members, device), device)


def test_models_hear_the_same_from_memory_and_from_disk(trained: Trained, clips: Path) -> None:
    said_by: dict[int, dict[tuple[str, int], np.ndarray]] = {}
    for budget in (10**9, 20_000, 0):
        members, loader = at_work(trained.all, clips)
        loader.store = SpectrogramCache(budget)
        heard: dict[tuple[str, int], np.ndarray] = {}
        spilled: set[object] = set()

        def take(
            member: EnsembleMember, i: int, said: WindowLogits, heard=heard, spilled=spilled, loader=loader
        ) -> None:
            heard[member.name, i] = said.logits
            spilled |= loader.store.spilled

        predict_ensemble(members, loader, take)
        assert bool(spilled) == (budget < 10**9)
        loader.close()
        said_by[budget] = heard
    for budget in (20_000, 0):
        assert said_by[budget].keys() == said_by[10**9].keys()
        assert all(np.array_equal(said_by[budget][key], said_by[10**9][key]) for key in said_by[budget])


def test_spectrograms_are_dropped_when_their_last_model_has_heard_them(trained: Trained, clips: Path) -> None:
    members, loader = at_work(trained.all, clips)
    most: list[int] = []
    predict_ensemble(members, loader, lambda *_: most.append(loader.store.used_bytes))
    loader.close()
    assert max(most) > 0 and loader.store.used_bytes == 0 and not loader.store.kept


def test_every_file_is_opened_once_for_all_models(trained: Trained, clips: Path) -> None:
    opened: list[Path] = []

    def read(path: Path) -> Sound:
        opened.append(path)
        return DECODERS[0].read(path)

    decoders = [Decoder("counting", read, DECODERS[0].duration_s)]
    predict_clips([*trained.all, trained.windows], clips, decoders=decoders)
    assert sorted(opened) == sorted(clips.iterdir())
