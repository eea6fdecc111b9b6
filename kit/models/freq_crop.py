'''The freq-crop family: each class is classified from its own frequency band.'''

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.windows import Span
from kit.core.config import setting
from kit.core.errors import KitError
from kit.models.network import (
    Backbone,
    Head,
    HeadConfig,
    InputShape,
    Maps,
    Network,
    NetworkConfig,
    NetworkOutput,
    check_input,
    with_frequency,
)


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
        by_band = deepest.reshape(-1, self.bands, *deepest.shape[1:])
        return Maps([by_band.transpose(1, 2).flatten(2, 3)])


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
