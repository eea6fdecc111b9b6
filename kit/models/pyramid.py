"""Spectrograms in, a pyramid of ever coarser maps out, 2-D on mel or 1-D on STFT: max-pyramid."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from kit.core.config import setting
from kit.core.errors import KitError
from kit.models.heads import HeadConfig
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input


@dataclass(frozen=True)
class PyramidConfig(NetworkConfig):
    """Size of a max-pyramid; as published it has 9.25 M weights."""

    dims: int = setting(2, "1: convolve over time alone, bins as channels", choices=(1, 2))
    blocks: int = setting(5, "blocks, each halving its map", low=1, high=8)
    width: int = setting(100, "channels of the first block", low=4)
    growth: float = setting(1.5, "channels grow by this factor per block", low=1, high=4)
    pooled_from: int = setting(1, "first block (from 0) whose map reaches the head", low=0)
    head: HeadConfig = setting(HeadConfig(pool="max", hidden=None, norm_first=True, dropout=0.5), "its head")

    def check(self) -> None:
        if self.pooled_from >= self.blocks:
            raise KitError(f"pooled_from must be below blocks ({self.blocks}), got {self.pooled_from}.")


LAYERS_OF_DIMS = {1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d), 2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)}


class TrainedPReLU(nn.PReLU):
    """PReLU; its gradient in half the time on CPUs, by an interpolation."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().lerp(x, self.weight) if self.training else super().forward(x)


class BottleneckResidual(nn.Module):
    """x plus 1x1, 3x3, 1x1 convolutions of it, each normalised. Shape: (B, D, ...) -> the same"""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        convolution, norm, _ = LAYERS_OF_DIMS[dims]
        layers: list[nn.Module] = []
        for size in (1, 3, 1):
            convolve = convolution(width, width, size, padding=size // 2, bias=False)
            layers += [convolve, norm(width), TrainedPReLU()]
        self.body, self.activation = nn.Sequential(*layers[:-1]), layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.activation(x + self.body(x)))


def pyramid_block(dims: int, width_in: int, width: int) -> nn.Sequential:
    """Normalise, convolve, halve and keep the odd frame, normalize, bend, refine."""
    convolution, norm, pool = LAYERS_OF_DIMS[dims]
    halve = convolution(width_in, width, 3, padding=1, bias=False), pool(2, ceil_mode=True)
    return nn.Sequential(norm(width_in), *halve, norm(width), TrainedPReLU(), BottleneckResidual(dims, width))


class MaxPyramid(Backbone):
    """Blocks that halve their maps; the head reads all from `pooled_from` on.

    Shape:  spec (B, C, M, N) -> maps (B, D, [M',] N'), N' = N / 4, N / 8, ... rounded up; N >= 1
    Source: third place, Freesound Audio Tagging 2019; recurrent variant: head.recurrent=gru
    """

    def __init__(self, settings: PyramidConfig, picture: InputShape) -> None:
        super().__init__()
        self.settings = settings
        self.channels_last = flat = settings.dims == 2
        check_input("max-pyramid", picture, 2**settings.blocks if flat else 1)
        widths = [round(settings.width * settings.growth**k) for k in range(settings.blocks)]
        first = picture.channels * (1 if flat else picture.bins)
        self.blocks = nn.ModuleList(
            pyramid_block(settings.dims, before, width) for before, width in pairwise([first, *widths])
        )
        self.widths = widths[settings.pooled_from :]
        self.strides = [2 ** (k + 1) for k in range(settings.pooled_from, settings.blocks)]
        self.min_frames = 2**settings.blocks

    def forward(self, spec: Tensor) -> Maps:
        # Few channels are normalised many times faster plane by plane.
        maps = [spec.contiguous() if self.channels_last else spec.flatten(1, 2)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return Maps(maps[1 + self.settings.pooled_from :])
