"""Spectrograms in by key, the same out later: from memory, or from a file where memory is short."""

import math
import tempfile
from collections.abc import Hashable
from typing import IO

import numpy as np
import torch
from torch import Tensor


class SpecStore:
    """Keeps spectrograms for the next model that listens; past `budget_bytes` they go to a temporary file.

    The file has no name and does not outlive the process; the room of what was dropped is used again.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = self.file_bytes = 0
        self.kept: dict[Hashable, Tensor] = {}
        self.spilled: dict[Hashable, tuple[int, tuple[int, ...]]] = {}
        self.holes: list[tuple[int, int]] = []  # (bytes, offset) of the file that can be written again
        self.file: IO[bytes] | None = None

    def put(self, key: Hashable, spec: Tensor) -> None:
        """Keep a float32 spectrogram, on the host."""
        self.drop(key)
        spec = spec.detach().to("cpu", torch.float32).contiguous()
        size = spec.numel() * 4
        if self.used_bytes + size <= self.budget_bytes:
            self.kept[key] = spec
            self.used_bytes += size
            return
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix="audiotag_kit_")
        offset = self.find_room(size)
        self.file.seek(offset)
        self.file.write(spec.numpy().tobytes())
        self.file.flush()
        self.spilled[key] = (offset, tuple(spec.shape))

    def find_room(self, size: int) -> int:
        """An offset of the file with room for `size` bytes: the smallest hole that fits, else its end."""
        fitting = sorted(hole for hole in self.holes if hole[0] >= size)
        if not fitting:
            self.file_bytes += size
            return self.file_bytes - size
        room, offset = fitting[0]
        self.holes.remove(fitting[0])
        if room > size:
            self.holes.append((room - size, offset + size))
        return offset

    def get(self, key: Hashable) -> Tensor:
        """The spectrogram kept under a key. Raises KeyError where there is none."""
        if key in self.kept:
            return self.kept[key]
        offset, shape = self.spilled[key]
        assert self.file is not None
        return torch.from_numpy(np.memmap(self.file, dtype=np.float32, mode="r+", offset=offset, shape=shape))

    def __contains__(self, key: Hashable) -> bool:
        return key in self.kept or key in self.spilled

    def drop(self, key: Hashable) -> None:
        """Forget a key."""
        spec = self.kept.pop(key, None)
        if spec is not None:
            self.used_bytes -= spec.numel() * 4
        if key in self.spilled:
            offset, shape = self.spilled.pop(key)
            self.holes.append((4 * math.prod(shape), offset))
