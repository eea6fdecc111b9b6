"""The skip-attention family."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from kit.core.config import setting
from kit.models.heads import HeadConfig
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input


@dataclass(frozen=True)
class SkipAttentionConfig(NetworkConfig):
    """Size of a skip-attention network: 17.02 M weights for three channels and 80 classes, 17.33 M with hidden=256."""

    width: int = setting(64, "channels of the first of four blocks, doubled by each", low=4)
    ratio: int = setting(16, "channels per unit that channel attention looks through", low=1)
    head: HeadConfig = setting(HeadConfig(pool="mean", hidden=128, dropout=0.2), "its head")


def convolved(width_in: int, width: int) -> list[nn.Module]:
    """A 3x3 convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


def mean_pool(size: int) -> nn.AvgPool2d:
    """Means of size x size cells, odd rows and frames of their own."""
    return nn.AvgPool2d(size, ceil_mode=True)


class ChannelAttention(nn.Module):
    """Weighs every channel by what all hear over the whole input. Shape: (B, D, M, N) -> the same"""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        narrow = max(1, width // ratio)
        squeeze, widen = nn.Linear(width, narrow, bias=False), nn.Linear(narrow, width, bias=False)
        self.look = nn.Sequential(squeeze, nn.ReLU(), widen)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.look(x.mean((2, 3))) + self.look(x.amax((2, 3))))
        return x * weights[..., None, None]


class SpatialAttention(nn.Module):
    """Weighs every cell by the mean and maximum of the channels around it. Shape: (B, D, M, N) -> the same"""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        nn.init.kaiming_normal_(self.look.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.look(torch.stack([x.mean(1), x.amax(1)], dim=1)))


class SkipAttention(Backbone):
    """Four blocks that halve their map; the first three skip to the end, and attention weighs what is merged.

    Auxiliary are the skips from block 3, 2, 1; the published loss weighs the clip and these 1, .4, .2, .1.
    The recurrent variant is a head of recurrent=lstm, recurrent_width=512, embedding=512.
    Shape:  spec (B, C, M, N) -> main and each auxiliary (B, 8 width, M / 16, N / 16), rounded up; N >= 1
    Source: first place, Freesound Audio Tagging 2019; attention: Woo et al. 2018, CBAM, arXiv:1807.06521
    """

    min_frames = 16

    def __init__(self, settings: SkipAttentionConfig, picture: InputShape) -> None:
        super().__init__()
        check_input("skip-attention", picture, 16)
        widths = [settings.width * 2**k for k in range(4)]
        deep = widths[-1]
        self.blocks = nn.ModuleList(
            nn.Sequential(*convolved(before, width), *convolved(width, width), mean_pool(2))
            for before, width in pairwise([picture.channels, *widths])
        )
        self.skips = nn.ModuleList(
            nn.Sequential(mean_pool(size), *convolved(width, deep))
            for size, width in zip((8, 4, 2), widths, strict=False)
        )
        weigh = ChannelAttention(4 * deep, settings.ratio), SpatialAttention()
        self.merge = nn.Sequential(*weigh, *convolved(4 * deep, deep))
        self.widths, self.strides, self.auxiliary_widths = (deep,), (16,), (deep,) * 3

    def forward(self, spec: Tensor) -> Maps:
        x, skips = spec, []
        for block, skip in zip(self.blocks, self.skips, strict=False):
            x = block(x)
            skips.append(skip(x))
        merged = self.merge(torch.cat([self.blocks[3](x), *skips], dim=1))
        return Maps([merged], skips[::-1])
