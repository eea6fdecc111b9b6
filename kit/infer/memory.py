"""Spectrograms in by key, the same out later: from memory, or from files where memory is short."""

import tempfile
from collections.abc import Hashable

import torch
from torch import Tensor


def map_to_disk(tensor: Tensor) -> Tensor:
    """A float32 tensor that lives in a file without a name, gone with it; no handle stays open."""
    with tempfile.NamedTemporaryFile(prefix="audiotag_kit_") as file:
        file.write(tensor.numpy().tobytes())
        file.flush()
        return torch.from_file(file.name, size=tensor.numel(), dtype=torch.float32).view(tensor.shape)


class SpecStore:
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
