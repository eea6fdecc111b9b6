'''Caches of predictions and of spectrograms.'''

import contextlib
import glob
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.core.files import file_identity, write_whole
from kit.core.runtime import get_rank
from kit.infer.predictor import WindowLogits


class PredictionCache:
    '''One model's logits of each file, by the file's sha256; without a path nothing is written.

    The path's name has the hash of the checkpoint and its inference settings. Processes that share the work have a file
    each, in folders by rank. At most a twentieth of the time goes into writing. `digests` finds the sha256 of a file by
    its identity, without reading the file.
    '''

    def __init__(
        self, path: Path | None = None, now: Callable[[], float] = time.monotonic, flush_every_s: float = 2.0
    ) -> None:
        self.path = path
        self.now = now
        self.flush_every_s = flush_every_s
        self.entries: dict[str, WindowLogits] = {}
        self.digests: dict[str, str] = {}
        self.flushed_at = now()
        self.unsaved = 0
        self.problem: str | None = None
        self.files_read: dict[Path, str] = {}

    @classmethod
    def open(cls, path: Path | None, now: Callable[[], float] = time.monotonic) -> 'PredictionCache':
        '''Create a cache with what an earlier job wrote to its path.'''
        own = path if path is None or get_rank() == 0 else path.parent / str(get_rank()) / path.name
        cache = cls(own, now)
        if path is not None:
            cache.read_files(path)
        return cache

    def read_files(self, path: Path) -> None:
        '''Add what this and other processes wrote to a path, and to those in folders by rank beside it.'''
        for file in [path, *sorted(path.parent.glob(f'[0-9]*/{glob.escape(path.name)}'))]:
            identity = file_identity(file)
            if identity and self.files_read.get(file) != identity:
                self.files_read[file] = identity
                entries, digests = read_entries(file)
                self.entries = entries | self.entries
                self.digests |= digests

    def __contains__(self, digest: str) -> bool:
        return digest in self.entries

    def find(self, identity: str) -> WindowLogits | None:
        '''The logits of a file by its identity, where they are cached and the file is the same.'''
        return self.entries.get(self.digests.get(identity, ''))

    def add(self, outputs: Iterable[tuple[str, WindowLogits]]) -> None:
        '''Add the logits of files, and write now and then. Of equal files the first stays: all get one prediction.'''
        before = len(self.entries)
        for digest, logits in outputs:
            self.entries.setdefault(digest, logits)
        self.unsaved += len(self.entries) - before
        if self.now() - self.flushed_at >= self.flush_every_s:
            self.flush()

    def flush(self) -> None:
        '''Write all entries. Where that fails, `problem` says why, and they stay in memory only.'''
        began = self.now()
        if self.path and self.unsaved:
            try:
                write_whole(self.path, self.write_entries)
            except KitError as error:
                self.stop(str(error))
        self.unsaved = 0
        self.flushed_at = self.now()
        self.flush_every_s = max(self.flush_every_s, 20 * (self.flushed_at - began))

    def stop(self, problem: str) -> None:
        '''Write no more, and delete what was written: the CSV needs a full disk's space more.'''
        if self.path:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            self.path = None
            self.problem = problem

    def write_entries(self, file: IO[bytes]) -> None:
        '''Write the joined arrays of all entries.'''
        digests = sorted(self.entries)
        outputs = [self.entries[digest] for digest in digests]
        np.savez(
            file,
            digests=digests,
            files=list(self.digests.items()),
            counts=[len(output.spans) for output in outputs],
            logits=np.concatenate([output.logits for output in outputs]),
            spans=[span for output in outputs for span in output.spans],
        )


def read_entries(path: Path) -> tuple[dict[str, WindowLogits], dict[str, str]]:
    '''Read the entries of a prediction cache, and the digests of its files; a damaged one holds none.'''
    entries: dict[str, WindowLogits] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            logits = arrays['logits']
            spans = [(start, end) for start, end in arrays['spans'].tolist()]
            files = dict(arrays['files'].tolist())
            counts = dict(zip(arrays['digests'].tolist(), arrays['counts'].tolist(), strict=True))
        first = 0
        for digest, count in counts.items():
            rows = slice(first, first + count)
            entries[digest] = WindowLogits(logits[rows], tuple(spans[rows]))
            first += count
    except Exception:  # a damaged archive makes zipfile and numpy raise many kinds of errors
        return {}, {}
    return entries, files


def map_to_disk(tensors: Sequence[Tensor]) -> list[Tensor]:
    '''Move tensors of one type to a memory-mapped file without a name, which vanishes with them.

    A process may have some 65,000 maps: map many tensors together.
    '''
    with tempfile.NamedTemporaryFile(prefix='audiotag_kit_') as file:
        for tensor in tensors:
            file.write(tensor.numpy().tobytes())
        file.flush()
        sizes = [tensor.numel() for tensor in tensors]
        mapped = torch.from_file(file.name, size=sum(sizes), dtype=tensors[0].dtype)
    return [part.view(tensor.shape) for part, tensor in zip(torch.split(mapped, sizes), tensors, strict=True)]


class SpectrogramCache:
    '''Keeps spectrograms for the models that follow; past `budget_bytes` they are mapped to disk.

    Where the disk is full, they stay in memory until `drop_unmapped`, and are computed again for the next model.
    '''

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.kept: dict[Hashable, Tensor] = {}
        self.spilled: set[Hashable] = set()
        self.unmapped: set[Hashable] = set()

    def put(self, key: Hashable, spec: Tensor) -> None:
        '''Keep a spectrogram as float32 in host memory or on disk.'''
        self.drop(key)
        spec = spec.detach().to('cpu', torch.float32).contiguous()
        if self.used_bytes + spec.nbytes > self.budget_bytes:
            self.spilled.add(key)
            try:
                (spec,) = map_to_disk([spec])
            except OSError:
                self.unmapped.add(key)
        else:
            self.used_bytes += spec.nbytes
        self.kept[key] = spec

    def get(self, key: Hashable) -> Tensor:
        '''A key's spectrogram.'''
        return self.kept[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept

    def drop_unmapped(self) -> None:
        '''Delete what is in memory as the disk is full.'''
        for key in list(self.unmapped):
            self.drop(key)

    def drop(self, key: Hashable) -> None:
        '''Delete a key's spectrogram, if any.'''
        spec = self.kept.pop(key, None)
        if spec is not None and key not in self.spilled:
            self.used_bytes -= spec.nbytes
        self.spilled.discard(key)
        self.unmapped.discard(key)
