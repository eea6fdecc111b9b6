"""Caches of spectrograms and of predictions."""

import tempfile
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.files import write_whole
from kit.infer.predictor import WindowLogits


class PredictionCache:
    """What one model said of each file, by the file's sha256; without a path nothing is written.

    The path's name carries the hash of checkpoint and listening, so that another model never reads it.
    At most a twentieth of the time goes into writing.
    """

    def __init__(
        self, path: Path | None = None, now: Callable[[], float] = time.monotonic, flush_every_s: float = 2.0
    ) -> None:
        self.path, self.now, self.flush_every_s = path, now, flush_every_s
        self.entries: dict[str, WindowLogits] = {}
        self.flushed_at = now()
        self.unsaved = 0
        self.problem: str | None = None
        if path and path.is_file():
            self.entries = read_entries(path)

    def __contains__(self, digest: str) -> bool:
        return digest in self.entries

    def add(self, heard: Iterable[tuple[str, WindowLogits]]) -> None:
        """Take in some clips, the first answer to a content staying; write now and then."""
        before = len(self.entries)
        for digest, said in heard:
            self.entries.setdefault(digest, said)
        self.unsaved += len(self.entries) - before
        if self.now() - self.flushed_at >= self.flush_every_s:
            self.flush()

    def flush(self) -> None:
        """Write everything, whole; where that fails, `problem` says why and memory alone keeps it."""
        began = self.now()
        if self.path and self.unsaved:
            try:
                write_whole(self.path, self.write_entries)
            except KitError as error:
                self.path, self.problem = None, str(error)
        self.unsaved, self.flushed_at = 0, self.now()
        self.flush_every_s = max(self.flush_every_s, 20 * (self.flushed_at - began))

    def write_entries(self, handle: IO[bytes]) -> None:
        """The arrays of all entries, one after the other."""
        digests, said = zip(*sorted(self.entries.items()), strict=True)
        spans = [one.spans for one in said]
        logits = np.concatenate([one.logits for one in said])
        np.savez(handle, digests=digests, counts=list(map(len, spans)), logits=logits, spans=sum(spans, ()))


def read_entries(path: Path) -> dict[str, WindowLogits]:
    """The entries of a ledger's file; a damaged one counts as none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            digests, counts = arrays["digests"].tolist(), arrays["counts"].tolist()
            logits, spans = arrays["logits"], arrays["spans"].tolist()
        ends = np.cumsum(counts).tolist()
        return {
            digest: WindowLogits(
                logits[end - count : end], tuple((a, b) for a, b in spans[end - count : end])
            )
            for digest, end, count in zip(digests, ends, counts, strict=True)
        }
    except Exception:  # whatever a damaged archive makes zipfile and numpy raise
        return {}


def map_to_disk(tensor: Tensor) -> Tensor:
    """A float32 tensor that lives in a file without a name, gone with it; no handle stays open."""
    with tempfile.NamedTemporaryFile(prefix="audiotag_kit_") as file:
        file.write(tensor.numpy().tobytes())
        file.flush()
        return torch.from_file(file.name, size=tensor.numel(), dtype=torch.float32).view(tensor.shape)


class SpectrogramCache:
    """Keeps spectrograms for the next model that listens; past `budget_bytes` they are mapped to disk."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes, self.used_bytes = budget_bytes, 0
        self.kept: dict[Hashable, Tensor] = {}
        self.spilled: set[Hashable] = set()

    def put(self, key: Hashable, spec: Tensor) -> None:
        """Keep a float32 spectrogram, on the host."""
        self.drop(key)
        spec = spec.detach().to("cpu", torch.float32).contiguous()
        if self.used_bytes + spec.nbytes > self.budget_bytes:
            self.spilled.add(key)
            spec = map_to_disk(spec)
        else:
            self.used_bytes += spec.nbytes
        self.kept[key] = spec

    def get(self, key: Hashable) -> Tensor:
        """The spectrogram kept under a key."""
        return self.kept[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        spec = self.kept.pop(key, None)
        if spec is not None and key not in self.spilled:
            self.used_bytes -= spec.nbytes
        self.spilled.discard(key)
