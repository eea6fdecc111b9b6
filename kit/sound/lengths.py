"""Clip lengths in, a grid of lengths and batches of one length out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.core.errors import KitError, choose

FILL_MODES = ("loop", "reflect", "floor")


@dataclass(frozen=True)
class LengthGrid:
    """Lengths that grow by `ratio`, so that none adds `ratio - 1` to a clip. Units: frames

    It depends on the clip alone, so clips of one grid length share a batch without hearing each other. Below
    `shortest`, the network's least input, a clip is filled up to it.
    """

    shortest: int = 1
    ratio: float = 1.05

    def __post_init__(self) -> None:
        if self.shortest < 1 or not 1.0 <= self.ratio <= 2.0:
            raise KitError(f"a length grid wants shortest >= 1 and ratio in [1, 2], got {self}.")

    def round_up(self, frames: int) -> int:
        """The least grid length that holds so many frames."""
        length = self.shortest
        while length < frames:
            length = max(length + 1, int(length * self.ratio))
        return length


def reflected(places: Tensor, length: int) -> Tensor:
    """Places beyond the ends as places inside, to and fro. Shape: any -> the same"""
    period = max(1, 2 * length - 2)
    places = places % period
    return torch.minimum(places, period - places)


def fill_frames(spec: Tensor, frames: int, mode: str, floor: Tensor | None = None) -> Tensor:
    """A spectrogram lengthened by what it holds itself.

    "loop" repeats it, "reflect" goes to and fro, "floor" appends its least value, or `floor`.
    Shape:  spec (..., N), floor (..., 1) -> (..., frames), N <= frames
    Errors: KitError for an empty or a longer spectrogram, or an unknown mode
    """
    n = spec.shape[-1]
    if not 0 < n <= frames:
        raise KitError(f"cannot fill {n} frames up to {frames}: give 1 to {frames} frames.")
    choose("fill mode", mode, dict.fromkeys(FILL_MODES))
    if n == frames:
        return spec
    if mode == "floor":
        rest = (spec.amin() if floor is None else floor).expand(*spec.shape[:-1], frames - n)
        return torch.cat([spec, rest], dim=-1)
    index = torch.arange(frames, device=spec.device)
    return spec[..., index % n if mode == "loop" else reflected(index, n)]


def batches_by_length(lengths: Sequence[int], batch_frames: int, batch_clips: int = 64) -> list[list[int]]:
    """Indices in batches of one length, short ones first, to `batch_frames` frames or one clip.

    Shape:  n lengths -> lists of indices into them
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        room = min(batch_clips, max(1, batch_frames // length))
        if batches and lengths[batches[-1][0]] == length and len(batches[-1]) < room:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
