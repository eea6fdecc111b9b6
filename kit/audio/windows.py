"""Windows over a clip, length buckets, and pooling over windows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kit.core.config import Config, setting
from kit.core.errors import KitError, choose

PAD_MODES = ("wrap", "reflect", "min")


@dataclass(frozen=True)
class LengthBuckets:
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


def pad_frames(spec: Tensor, frames: int, mode: str, floor: Tensor | None = None) -> Tensor:
    """A spectrogram lengthened by what it holds itself.

    "wrap" repeats it, "reflect" goes to and fro, "min" appends its least value, or `floor`.
    Shape:  spec (..., N), floor (..., 1) -> (..., frames), N <= frames
    Errors: KitError for an empty or a longer spectrogram, or an unknown mode
    """
    n = spec.shape[-1]
    if not 0 < n <= frames:
        raise KitError(f"cannot pad {n} frames up to {frames}: give 1 to {frames} frames.")
    choose("pad_mode", mode, dict.fromkeys(PAD_MODES))
    if n == frames:
        return spec
    if mode == "min":
        rest = (spec.amin() if floor is None else floor).expand(*spec.shape[:-1], frames - n)
        return torch.cat([spec, rest], dim=-1)
    index = torch.arange(frames, device=spec.device)
    return spec[..., index % n if mode == "wrap" else reflected(index, n)]


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


Span = tuple[int, int]
LEAST_SCORE = 1e-30


def window_spans(frames: int, length: int, hop: float) -> list[Span]:
    """Windows that cover every frame: one each `hop`, without drift, the last at the end.

    A clip shorter than one window gives the one span (0, length), to be filled.
    Shape:  -> list of (first frame, frame after the last)
    Errors: KitError where hop is outside (0, length]
    """
    if not 0 < hop <= length:
        raise KitError(f"hop must be in (0, {length}] frames, got {hop}: a longer hop leaves audio unheard.")
    last = max(0, frames - length)
    starts = {min(round(k * hop), last) for k in range(math.ceil(last / hop) + 1)}
    return [(start, start + length) for start in sorted(starts)]


def power_mean(scores: Tensor, power: float) -> Tensor:
    """Between mean (power 1) and maximum (infinity). Shape: (W, K) -> (K,)"""
    peak = scores.amax(dim=0).clamp_min(LEAST_SCORE)
    return peak * (scores / peak).pow(power).mean(dim=0).pow(1.0 / power)


def mean_by_snr(scores: Tensor, k: int) -> Tensor:
    """Mean weighted by the share of a window's top k classes in its sum.

    Shape:  (W, K) -> (K,)
    Source: Freesound 2019, signal-to-noise listening
    """
    share = scores.topk(min(k, scores.shape[1])).values.sum(1) / scores.sum(1).clamp_min(LEAST_SCORE)
    return (scores * share[:, None]).sum(dim=0) / share.sum().clamp_min(LEAST_SCORE)


WINDOW_POOLS: dict[str, Callable[[Tensor, int, float], Tensor]] = {
    "max": lambda s, k, power: s.amax(dim=0),
    "mean": lambda s, k, power: s.mean(dim=0),
    "top_k": lambda s, k, power: s.topk(min(k, len(s)), dim=0).values.mean(dim=0),
    "power": lambda s, k, power: power_mean(s, power),
    "geometric": lambda s, k, power: s.clamp_min(LEAST_SCORE).log().mean(dim=0).exp(),
    "snr": lambda s, k, power: mean_by_snr(s, k),
}


@dataclass(frozen=True)
class InferenceConfig(Config):
    """How a tagger hears a clip; checkpoints carry it."""

    mode: str = setting("full", "whole clips or fixed windows", choices=("full", "windows"))
    window_s: float = setting(5.0, "seconds heard at once (mode windows)", low=0.01, high=86400)
    hop_s: float = setting(2.5, "seconds between window starts", low=0.001)
    pool: str = setting("max", "how windows become one score", choices=tuple(WINDOW_POOLS))
    pool_k: int = setting(3, "windows (top_k) or classes (snr)", low=1)
    pool_power: float = setting(2.0, "exponent (power)", low=1e-3, high=1e3)
    pad_mode: str = setting("wrap", "how a short clip is lengthened", choices=PAD_MODES)
    bucket_ratio: float = setting(1.05, "growth of the length grid (mode full)", low=1, high=1.25)
    max_frames: int = setting(8192, "longest input (mode full); more comes in pieces", low=64)

    def check(self) -> None:
        if self.hop_s > self.window_s:
            span = f"(0, {self.window_s:g}], got {self.hop_s:g}"
            raise KitError(f"hop_s must be in {span}: a longer hop leaves audio unheard.")

    def spans(self, frames: int, frames_per_s: float) -> list[Span]:
        """The pieces of a clip that the network hears, in frames."""
        if self.mode == "windows":
            length = math.ceil(self.window_s * frames_per_s - 1e-6)
            return window_spans(frames, length, max(1.0, min(length, self.hop_s * frames_per_s)))
        if frames <= self.max_frames:
            return [(0, frames)]
        return window_spans(frames, self.max_frames, self.max_frames // 2)

    def input_frames(self, span: Span, shortest: int) -> int:
        """The length a span is filled to: on the grid, or a window's."""
        frames = span[1] - span[0]
        if self.mode == "windows" or frames >= self.max_frames:
            return max(frames, shortest)
        return LengthBuckets(shortest, self.bucket_ratio).round_up(frames)


def pool_windows(scores: Tensor, inference: InferenceConfig) -> Tensor:
    """One score per class from a clip's windows. Shape: scores (W, K) in [0, 1] -> (K,)"""
    return WINDOW_POOLS[inference.pool](scores, inference.pool_k, inference.pool_power)
