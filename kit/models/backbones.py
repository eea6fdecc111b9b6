'''The kit's own families: max-pyramid, skip-attention, axis-pool, and freq-crop, whose classes have bands.'''

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.audio.windows import Span
from kit.core.config import setting
from kit.core.errors import KitError
from kit.models.network import (
    HEAD_HELP,
    Backbone,
    Head,
    HeadConfig,
    InputShape,
    Maps,
    Network,
    NetworkConfig,
    NetworkOutput,
    check_input,
    run_recurrence,
    with_frequency,
)


@dataclass(frozen=True)
class PyramidConfig(NetworkConfig):
    '''Size of a max-pyramid; by default the published network of 9.25 M weights.'''

    dims: int = setting(2, '2: convolve frequency and time; 1: time, bins are channels', choices=(1, 2))
    blocks: int = setting(5, 'number of blocks; each halves its map', low=2, high=8)
    width: int = setting(100, 'channels of the first block', low=4, high=2**16)
    growth: float = setting(1.5, 'factor on the channels from block to block', low=1, high=4)
    head: HeadConfig = setting(HeadConfig('max', hidden=None, norm_first=True, dropout=0.5), HEAD_HELP)


LAYERS_OF_DIMS = {1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d), 2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)}


class FastPReLU(nn.PReLU):
    '''PReLU as an interpolation of relu(x) and x in training, whose gradient takes half the time on CPUs.'''

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().lerp(x, self.weight) if self.training else super().forward(x)


class BottleneckResidual(nn.Module):
    '''Add to the input three convolutions of it (1x1, 3x3, 1x1), each with batch norm.'''

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        conv_class, norm_class, _ = LAYERS_OF_DIMS[dims]
        layers: list[nn.Module] = []
        for size in (1, 3, 1):
            layers += [conv_class(width, width, size, padding=size // 2, bias=False), norm_class(width), FastPReLU()]
        # The last activation follows the sum.
        self.body = nn.Sequential(*layers[:-1])
        self.activation = layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.body(x))


class MaxPyramid(Backbone):
    '''Blocks that each halve their map; the head reads the maps from the second on.

    Shape:  spec (B, C, M, N) -> maps (B, D, [M',] N'), N' = N / 4, N / 8, ... rounded up, for any N >= 1
    Source: third place, Freesound Audio Tagging 2019; its recurrent variant has head.recurrent=gru
    '''

    def __init__(self, settings: PyramidConfig, shape: InputShape) -> None:
        super().__init__()
        self.settings = settings
        self.channels_last = settings.dims == 2
        self.min_frames = 2**settings.blocks
        check_input('max-pyramid', shape, min_bins=self.min_frames if settings.dims == 2 else 1)
        width_in = shape.channels if settings.dims == 2 else shape.channels * shape.bins
        widths = [round(settings.width * settings.growth**k) for k in range(settings.blocks)]
        conv_class, norm_class, pool_class = LAYERS_OF_DIMS[settings.dims]
        self.blocks = nn.ModuleList()
        for before, width in pairwise([width_in, *widths]):
            conv = conv_class(before, width, 3, padding=1, bias=False)
            pool = pool_class(2, ceil_mode=True)  # an odd last frame makes a step of its own
            residual = BottleneckResidual(settings.dims, width)
            self.blocks.append(nn.Sequential(norm_class(before), conv, pool, norm_class(width), FastPReLU(), residual))
        self.widths = widths[1:]
        self.strides = [2 ** (k + 1) for k in range(1, settings.blocks)]

    def forward(self, spec: Tensor) -> Maps:
        # Batch norm over one or two channels is much faster in the contiguous layout.
        x = spec.contiguous() if self.settings.dims == 2 else spec.flatten(1, 2)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return Maps(maps[1:])


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

    The auxiliary maps are the skips of blocks 3, 2 and 1. The published loss weights the clip and these 1, .4, .2, .1;
    the published recurrent variant has head.recurrent=lstm, recurrent_width=512 and embedding=512.

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


N_WAVE_STATS = 12


@dataclass(frozen=True)
class AxisPoolConfig(NetworkConfig):
    '''Size of an axis-pool network: nine convolutions and an output layer.'''

    width: int = setting(512, 'channels of the last block; before it 1/8, 3/16, 1/4, 1/2', low=16, high=2**16)
    stat_steps: int = setting(128, 'time steps that the wave statistics are averaged to', low=1, high=2**16)
    stat_width: int = setting(64, 'units of their recurrence in each direction', low=1, high=2**16)
    head: HeadConfig = setting(HeadConfig('time-max'), HEAD_HELP)


class AxisPool(Backbone):
    '''Nine convolutions. Between blocks they pool by the mean over time and the maximum over frequency.

    Extra rows below the bins, 12 wave statistics and the clip's length, become two maps without time. A bidirectional
    recurrence reads the statistics.

    Shape:  spec (B, C, M [+ 13], N) -> [statistics (B, 2 stat_width, 1, stat_steps), length (B, 1, 1, 1),]
            (B, width, M / 8, N / 8), rounded up, for any N >= 1
    Source: second place, Freesound Audio Tagging 2019; without its pixel shuffle
    '''

    min_frames = 8

    def __init__(self, settings: AxisPoolConfig, shape: InputShape) -> None:
        super().__init__()
        check_input('axis-pool', shape, min_bins=8, n_extra_rows=(0, N_WAVE_STATS + 1))
        self.settings = settings
        self.bins = shape.bins
        self.has_extra_rows = shape.n_extra_rows > 0
        stem, *widths = (settings.width * share // 16 for share in (2, 3, 4, 8, 16))
        layers = conv_layers(shape.channels, stem)
        for before, width in pairwise([stem, *widths]):
            layers += [*conv_layers(before, width), *conv_layers(width, width)]
            if width != widths[-1]:
                layers += [nn.AvgPool2d((1, 2), ceil_mode=True), nn.MaxPool2d((2, 1), ceil_mode=True)]
        self.blocks = nn.Sequential(*layers)
        self.widths = [widths[-1]]
        self.strides = [8]
        if self.has_extra_rows:
            self.stat_norm = nn.BatchNorm1d(N_WAVE_STATS)
            self.stat_gru = nn.GRU(N_WAVE_STATS, settings.stat_width, batch_first=True, bidirectional=True)
            self.widths = [2 * settings.stat_width, 1, widths[-1]]
            self.strides = [0, 0, 8]

    def forward(self, spec: Tensor) -> Maps:
        deepest = self.blocks(spec[:, :, : self.bins])
        if not self.has_extra_rows:
            return Maps([deepest])
        extra = spec[:, 0, self.bins :]
        stats = F.adaptive_avg_pool1d(extra[:, :N_WAVE_STATS], self.settings.stat_steps)
        stats_map = run_recurrence(self.stat_gru, self.stat_norm(stats)).unsqueeze(2)
        # The length is the same in every frame; the first frame holds it even where the rest is padding.
        return Maps([stats_map, extra[:, None, N_WAVE_STATS:, :1], deepest])


@dataclass(frozen=True)
class FreqCropConfig(NetworkConfig):
    '''How classes read their bands; published: crops of 32 mel rows through EfficientNet-B0.'''

    form: str = setting(
        'crops',
        'crops: read each band of frontend.bands_hz by itself; pooled: read all bins, each class pools its rows',
        choices=('crops', 'pooled'),
    )
    bands_hz: tuple[tuple[float, ...], ...] = setting((), '(low, high) of each class, for form=pooled', low=0, high=2e6)
    backbone: dict[str, Any] = setting({'family': 'timm'}, 'settings of another family, without its heads')
    head: HeadConfig = setting(HeadConfig(pool='positive-mean'), 'how each class reads its rows')

    def check(self) -> None:
        if self.form == 'crops' and self.bands_hz:
            raise KitError('bands_hz belongs to form=pooled: with form=crops set frontend.bands_hz.')
        for band in self.bands_hz:
            if len(band) != 2 or not band[0] < band[1]:
                raise KitError(f'bands_hz needs pairs of low < high in hertz, got {band}.')
        if self.head.pool == 'attention' or self.head.recurrent or self.head.hidden != 0:
            raise KitError('freq-crop needs no attention, head.recurrent=None, head.hidden=0.')
        if self.backbone.get('family') == 'freq-crop' or 'head' in self.backbone:
            raise KitError("freq-crop's backbone must be another family without head.")


class BandCrops(Backbone):
    '''Run one backbone on each band by itself; input and output stack the bands along frequency.

    Shape:  spec (B, C, K m, N) -> one map (B, D, K m', N')
    '''

    def __init__(self, inner: Backbone, bands: int) -> None:
        super().__init__()
        self.inner = inner
        self.bands = bands
        self.widths = inner.widths[-1:]
        self.strides = inner.strides[-1:]
        self.min_frames = inner.min_frames
        self.channels_last = inner.channels_last

    def forward(self, spec: Tensor) -> Maps:
        crops = torch.stack(spec.chunk(self.bands, dim=2), dim=1).flatten(0, 1)
        deepest = with_frequency(self.inner(crops).main[-1])
        return Maps([deepest.reshape(-1, self.bands, *deepest.shape[1:]).transpose(1, 2).flatten(2, 3)])


class BandHead(Head):
    '''Pool, for each class, the rows of the deepest map that overlap its band, and classify them.

    Units:  bands, first and end row of each class in the input of `bins` rows
    '''

    def __init__(self, config: HeadConfig, width: int, bins: int, bands: Sequence[tuple[int, int]]) -> None:
        super().__init__(config, (width,), len(bands))
        self.bins = bins
        self.bands = bands

    def forward(self, maps: Sequence[Tensor], spans: Sequence[Sequence[Span]] = ()) -> NetworkOutput:
        deepest = maps[-1]
        rows = deepest.shape[2]
        pooled = []
        for first, end in self.bands:
            overlap = slice(first * rows // self.bins, -(-end * rows // self.bins))
            pooled.append(self.features([deepest[:, :, overlap]], spans[-1:]))
        features = F.dropout(torch.stack(pooled, dim=1), self.config.dropout, self.training)
        # Class k has row k of one linear layer (B, K, F) -> (B, K), applied to its own features.
        weight, bias = self.classifier.parameters()
        return NetworkOutput(torch.einsum('bkf,kf->bk', features, weight) + bias)


def freq_crop_backbone_shape(config: FreqCropConfig, shape: InputShape, classes: int) -> InputShape:
    '''Find the input shape of the inner backbone: one band, or all bins.'''
    check_input('freq-crop', shape)
    is_crops = config.form == 'crops'
    bands = shape.bands if is_crops else len(config.bands_hz)
    if bands != classes:
        name = 'frontend.bands_hz' if is_crops else 'bands_hz'
        wanted = f'form={config.form} needs {name} with a band for each of {classes} classes, got {bands}'
        raise KitError(f'{wanted}: train with --boxes, or set them.')
    return InputShape(shape.channels, shape.bins // classes) if is_crops else shape


def build_freq_crop(config: FreqCropConfig, shape: InputShape, classes: int, inner: Backbone) -> Network:
    '''Put the inner backbone, which reads `freq_crop_backbone_shape`, under a layer per class.

    Source: 32nd place, RFCX Species Audio Detection
    '''
    if config.form == 'crops':
        backbone: Backbone = BandCrops(inner, classes)
        rows = shape.bins // classes
        bands = [(k * rows, (k + 1) * rows) for k in range(classes)]
    else:
        backbone = inner
        bands = [shape.rows_of_band(*band) for band in config.bands_hz]
        probe = copy.deepcopy(inner).to('meta').eval()
        spec = torch.empty(1, shape.channels, shape.bins, inner.min_frames, device='meta')
        if probe(spec).main[-1].ndim != 4:
            raise KitError('form=pooled needs a backbone whose map has rows of frequency.')
    return Network(backbone, BandHead(config.head, backbone.widths[-1], shape.bins, bands))
