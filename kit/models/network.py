"""A backbone and a head in, one network from spectrograms to logits out."""

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kit.audio.windows import Span
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.models.heads import Head, HeadConfig, NetworkOutput


@dataclass(frozen=True)
class InputShape:
    """What a network is shown: (B, channels, bins + n_extra_rows, N).

    Units:  bin_hz, the centre of each bin in hertz; empty where it is not known
            bands, how many bands of equally many bins stand one below the other
    """

    channels: int
    bins: int
    n_extra_rows: int = 0
    bin_hz: tuple[float, ...] = ()
    bands: int = 1

    def rows_of_band(self, low_hz: float, high_hz: float) -> tuple[int, int]:
        """First and end row inside a band, else the row nearest its middle. Errors: KitError"""
        hz = np.array(self.bin_hz)
        if len(hz) != self.bins or (np.diff(hz) <= 0).any():
            raise KitError(
                "a band wants rising frequencies of all rows: no frontend.bands_hz, no image_size."
            )
        inside = np.flatnonzero((hz >= low_hz) & (hz <= high_hz)).tolist()
        inside = inside or [int(np.abs(hz - (low_hz + high_hz) / 2).argmin())]
        return inside[0], inside[-1] + 1


@dataclass(frozen=True)
class NetworkConfig(Config):
    """What every family has."""

    head: HeadConfig = setting(HeadConfig(), "how maps become logits")
    noisy_head: bool = setting(False, "a second head, trained on noisy labels alone")


class Maps(NamedTuple):
    """What a backbone hears. Shape: main (B, D_i, [M_i,] N_i), the deepest last; auxiliary likewise"""

    main: Sequence[Tensor]
    auxiliary: Sequence[Tensor] = ()


class Backbone(nn.Module):
    """Spectrograms in, maps out.

    Shape:  spec (B, C, M, N), N >= min_frames -> Maps
    Units:  strides, input frames per step of each main map, 0 for a map without time
    """

    widths: Sequence[int]
    strides: Sequence[int]
    auxiliary_widths: Sequence[int] = ()
    min_frames: int = 1
    channels_last: bool = True


class Network(nn.Module):
    """A backbone under heads, of `make_head` or Head.

    Shape:  spec (B, C, M, N) -> logits (B, K); any N >= min_frames
    Units:  `stride` frames per step of the deepest map
    """

    def __init__(
        self,
        backbone: Backbone,
        config: NetworkConfig,
        classes: int,
        make_head: Callable[[], Head] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        make_head = make_head or (lambda: Head(config.head, backbone.widths, classes))
        self.head = make_head()
        self.noisy_head = make_head() if config.noisy_head else None
        plain = replace(config.head, pool="mean", recurrent=None, embedding=0)
        self.auxiliary_heads = nn.ModuleList(Head(plain, (w,), classes) for w in backbone.auxiliary_widths)
        self.channels_last, self.min_frames = backbone.channels_last, backbone.min_frames
        self.stride = backbone.strides[-1]

    def forward(self, spec: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.backbone(spec).main).clip)

    def outputs(self, spec: Tensor) -> NetworkOutput:
        """All that training asks of a batch. Shape: spec (B, C, M, N)"""
        maps = self.backbone(spec)
        said: NetworkOutput = self.head(maps.main)
        skips = zip(self.auxiliary_heads, maps.auxiliary, strict=True)
        auxiliary = tuple(head([skip]).clip for head, skip in skips)
        noisy = self.noisy_head(maps.main).clip if self.noisy_head else None
        return said._replace(auxiliary=auxiliary, noisy=noisy)

    def span_logits(self, maps: Maps, spans: Sequence[Span]) -> Tensor:
        """Logits of spans of one pass.

        Shape:  maps of (B, C, M, N), W spans in frames of the input -> (B, W, K)
        """
        paced = list(zip(maps.main, self.backbone.strides, strict=True))
        cuts = (
            [m[..., first // s : max(first // s + 1, math.ceil(last / s))] if s else m for m, s in paced]
            for first, last in spans
        )
        return torch.stack([self.head(cut).clip for cut in cuts], dim=1)


def check_input(
    family: str, picture: InputShape, least_bins: int = 1, n_extra_rows: Sequence[int] = (0,)
) -> None:
    """Raise KitError where a family cannot see a picture."""
    if picture.bins < least_bins:
        wanted = f"at least {least_bins} frequency bins with these settings"
        raise KitError(f"{family} needs {wanted}, got {picture.bins}: raise n_mels.")
    if picture.n_extra_rows not in n_extra_rows:
        wanted = f"{' or '.join(map(str, n_extra_rows))} side rows"
        raise KitError(f"{family} reads {wanted}, got {picture.n_extra_rows}: set frontend.extra_rows to [].")


def receptive_field(backbone: Backbone, picture: InputShape) -> int | None:
    """Input frames that one step of the deepest map hears, None for 64 strides to one side and more.

    NaN spoils what hears it: inputs grow until their middle step hears neither end.
    """
    twin = copy.deepcopy(backbone).to("cpu", torch.float32).eval()

    def hears(frames: int, part: slice) -> bool:
        spec = torch.zeros(1, picture.channels, picture.bins + picture.n_extra_rows, frames)
        spec[..., part] = torch.nan
        with torch.no_grad():
            deepest = twin(spec).main[-1]
        return bool(deepest[..., deepest.shape[-1] // 2].isnan().any())

    for steps in (16, 32, 64, 128):
        frames = steps * backbone.strides[-1]
        if not (hears(frames, slice(1)) or hears(frames, slice(frames - 1, None))):
            first = bisect_left(range(frames), True, key=lambda n: hears(frames, slice(n + 1)))
            return bisect_left(range(frames), True, key=lambda n: not hears(frames, slice(n, None))) - first
    return None
