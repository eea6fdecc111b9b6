"""Spectrograms in, clip logits out: the max-pyramid network, 2-D on mel or 1-D on STFT."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.sound.windows import Span


@dataclass(frozen=True)
class PyramidConfig(Config):
    """Size of a max-pyramid; the published one is dims 2, 5 blocks, width 100, growth 1.5 (9.25 M)."""

    dims: int = setting(
        2, "2: convolve over frequency and time; 1: over time, bins as channels", choices=(1, 2)
    )
    blocks: int = setting(5, "blocks, each halving its map", low=1, high=8)
    width: int = setting(100, "channels of the first block", low=4)
    growth: float = setting(1.5, "channels grow by this factor per block", low=1.0, high=4.0)
    pooled_from: int = setting(1, "first block (from 0) whose map reaches the head", low=0)
    dropout: float = setting(0.5, "dropout before the last layer", low=0.0, high=0.95)

    def check(self) -> None:
        if self.pooled_from >= self.blocks:
            raise KitError(f"pooled_from must be below blocks ({self.blocks}), got {self.pooled_from}.")


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d}


class BottleneckResidual(nn.Module):
    """x plus 1x1, 3x3, 1x1 convolutions of it, each normalised. Shape: (B, D, ...) -> the same"""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for kernel in (1, 3, 1):
            layers += [
                CONVOLUTIONS[dims](width, width, kernel, padding=kernel // 2, bias=False),
                BATCH_NORMS[dims](width),
                nn.PReLU(),
            ]
        self.body = nn.Sequential(*layers[:-1])
        self.activation = layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.activation(x + self.body(x)))


def pyramid_block(dims: int, width_in: int, width: int) -> nn.Sequential:
    """Normalise, convolve, halve (the odd frame kept), normalise, bend, refine."""
    return nn.Sequential(
        BATCH_NORMS[dims](width_in),
        CONVOLUTIONS[dims](width_in, width, 3, padding=1, bias=False),
        MAX_POOLS[dims](2, ceil_mode=True),
        BATCH_NORMS[dims](width),
        nn.PReLU(),
        BottleneckResidual(dims, width),
    )


class MaxPyramid(nn.Module):
    """Blocks that halve their maps; the maximum of every map over the clip goes to the head.

    Shape:  spec (B, C, M, N) -> logits (B, K); any N >= 1, `min_frames` is the least that it was meant for
    Units:  `stride` frames per step of the last map
    Source: third place, Freesound Audio Tagging 2019
    """

    def __init__(self, settings: PyramidConfig, channels: int, bins: int, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.channels_last = settings.dims == 2
        self.stride = self.min_frames = 2**settings.blocks
        if settings.dims == 2 and bins < self.stride:
            raise KitError(
                f"{settings.blocks} blocks need at least {self.stride} frequency bins, got {bins}: use fewer blocks."
            )
        width_in = channels if settings.dims == 2 else channels * bins
        widths = [round(settings.width * settings.growth**k) for k in range(settings.blocks)]
        self.blocks = nn.ModuleList()
        for width in widths:
            self.blocks.append(pyramid_block(settings.dims, width_in, width))
            width_in = width
        features = sum(widths[settings.pooled_from :])
        self.classifier = nn.Sequential(
            nn.BatchNorm1d(features),
            nn.Linear(features, features),
            nn.BatchNorm1d(features),
            nn.PReLU(),
            nn.Dropout(settings.dropout),
            nn.Linear(features, classes),
        )

    def features(self, spec: Tensor) -> list[Tensor]:
        """The map of every block that reaches the head.

        Shape: spec (B, C, M, N) -> maps (B, D, [M',] N'), N' = N / 2, N / 4, ... rounded up
        """
        x = spec if self.settings.dims == 2 else spec.flatten(1, 2)
        maps = []
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k >= self.settings.pooled_from:
                maps.append(x)
        return maps

    def pool(self, maps: Sequence[Tensor], spans: Sequence[Span] | None = None) -> Tensor:
        """Maxima of the maps over the whole clip, or over each span of input frames.

        Shape: maps -> (B, F); with spans of input frames -> (B, W, F)
        """
        if spans is None:
            return torch.cat([m.flatten(2).amax(dim=2) for m in maps], dim=1)
        windows = []
        for first, last in spans:
            parts = []
            for k, m in enumerate(maps):
                step = 2 ** (self.settings.pooled_from + k + 1)
                parts.append(
                    m[..., first // step : max(first // step + 1, -(-last // step))].flatten(2).amax(dim=2)
                )
            windows.append(torch.cat(parts, dim=1))
        return torch.stack(windows, dim=1)

    def head(self, pooled: Tensor) -> Tensor:
        """Logits of pooled features. Shape: (..., F) -> (..., K)"""
        return torch.as_tensor(self.classifier(pooled.flatten(0, -2)).unflatten(0, pooled.shape[:-1]))

    def forward(self, spec: Tensor) -> Tensor:
        return self.head(self.pool(self.features(spec)))
