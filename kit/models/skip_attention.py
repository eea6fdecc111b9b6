'''The skip-attention family: a VGG-like network whose early blocks skip to the end, weighted by attention.'''

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from kit.core.config import setting
from kit.models.heads import HEAD_HELP, HeadConfig
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input


@dataclass(frozen=True)
class SkipAttentionConfig(NetworkConfig):
    '''Size of a skip-attention network: with three channels and 80 classes it has 17.02 M weights.'''

    width: int = setting(64, 'channels of the first of four blocks; each block doubles them', low=4, high=2**16)
    ratio: int = setting(16, 'channels per hidden unit of channel attention', low=1, high=2**16)
    head: HeadConfig = setting(HeadConfig(hidden=128), HEAD_HELP)


def conv_layers(width_in: int, width: int) -> list[nn.Module]:
    '''Build a 3x3 convolution, batch norm and ReLU.'''
    conv = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return [conv, nn.BatchNorm2d(width), nn.ReLU()]


class ChannelAttention(nn.Module):
    '''Weight each channel, from the mean and maximum of all channels.'''

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        hidden = max(1, width // ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))[..., None, None]


class SpatialAttention(nn.Module):
    '''Weight each cell, from the channels' mean and maximum around it.'''

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(torch.stack([x.mean(1), x.amax(1)], dim=1)))


class SkipAttention(Backbone):
    '''Four blocks that halve their map; the first three also skip to the end, where attention weights all four.

    The auxiliary maps are the skips of blocks 3, 2 and 1. The published loss weights the clip and these 1, .4, .2 and
    .1. The published recurrent variant has head.recurrent=lstm, recurrent_width=512 and embedding=512.

    Shape:  spec (B, C, M, N) -> main and each auxiliary (B, 8 width, M / 16, N / 16), rounded up, for any N >= 1
    Source: first place, Freesound Audio Tagging 2019; attention: Woo et al. 2018, CBAM, arXiv:1807.06521
    '''

    min_frames = 16

    def __init__(self, settings: SkipAttentionConfig, shape: InputShape) -> None:
        super().__init__()
        check_input('skip-attention', shape, min_bins=16)
        widths = [settings.width * 2**k for k in range(4)]
        deep = widths[-1]
        self.blocks = nn.ModuleList(
            nn.Sequential(*conv_layers(before, width), *conv_layers(width, width), nn.AvgPool2d(2, ceil_mode=True))
            for before, width in pairwise([shape.channels, *widths])
        )
        # Blocks 1, 2 and 3 have strides 2, 4 and 8: these sizes bring their maps to stride 16.
        self.skips = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(size, ceil_mode=True), *conv_layers(width, deep))
            for size, width in zip((8, 4, 2), widths[:3], strict=True)
        )
        self.merge = nn.Sequential(
            ChannelAttention(4 * deep, settings.ratio), SpatialAttention(), *conv_layers(4 * deep, deep)
        )
        self.widths = (deep,)
        self.strides = (16,)
        self.auxiliary_widths = (deep,) * 3

    def forward(self, spec: Tensor) -> Maps:
        x = spec
        skips = []
        for k, skip in enumerate(self.skips):
            x = self.blocks[k](x)
            skips.append(skip(x))
        return Maps([self.merge(torch.cat([self.blocks[3](x), *skips], dim=1))], skips[::-1])
