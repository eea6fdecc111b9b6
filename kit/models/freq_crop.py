"""The freq-crop family: each class reads its own frequency band."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.core.config import setting
from kit.core.errors import KitError
from kit.models.heads import Head, HeadConfig, NetworkOutput, with_frequency
from kit.models.network import Backbone, InputShape, Maps, Network, NetworkConfig, check_input
from kit.models.timm_backbone import feature_map_shape


@dataclass(frozen=True)
class FreqCropConfig(NetworkConfig):
    """How classes hear their bands; the published form is crops of 32 mel rows through EfficientNet-B0."""

    form: str = setting(
        "crops", "crops: frontend.bands_hz one by one; pooled: rows of one map", choices=("crops", "pooled")
    )
    bands_hz: tuple[tuple[float, ...], ...] = setting((), "each class's band, for form=pooled")
    backbone: dict[str, Any] = setting({"family": "timm"}, "another family's settings, without head")
    head: HeadConfig = setting(HeadConfig(pool="positive-mean"), "what each class pools, then classifies")

    def check(self) -> None:
        if self.form == "crops" and self.bands_hz:
            raise KitError("bands_hz is of form=pooled, frontend.bands_hz of form=crops.")
        for band in self.bands_hz:
            if len(band) != 2 or not band[0] < band[1]:
                raise KitError(f"bands_hz wants pairs of low < high in hertz, got {band}.")
        if self.head.pool == "attention" or self.head.recurrent or self.head.hidden != 0:
            raise KitError("freq-crop wants no attention, head.recurrent=None, head.hidden=0.")
        if self.backbone.get("family") == "freq-crop" or {"head", "noisy_head"} & set(self.backbone):
            raise KitError("freq-crop's backbone is another family without head.")


class BandCrops(Backbone):
    """One backbone that hears every band by itself; bands lie one below the other.

    Shape:  spec (B, C, K m, N) -> one map (B, D, K m', N')
    """

    def __init__(self, inner: Backbone, bands: int) -> None:
        super().__init__()
        self.inner, self.bands = inner, bands
        self.widths, self.strides = inner.widths[-1:], inner.strides[-1:]
        self.min_frames, self.channels_last = inner.min_frames, inner.channels_last

    def forward(self, spec: Tensor) -> Maps:
        crops = torch.stack(spec.chunk(self.bands, dim=2), dim=1).flatten(0, 1)
        deepest = with_frequency(self.inner(crops).main[-1])
        by_band = deepest.reshape(-1, self.bands, *deepest.shape[1:])
        return Maps([by_band.transpose(1, 2).flatten(2, 3)])


class BandHead(Head):
    """Pools the rows of the deepest map that a class's band reaches into, under an output of its own.

    Shape:  maps, the last (B, D, M', N') -> clip (B, K)
    Units:  bands, first and end row of the picture for each class
    """

    def __init__(self, config: HeadConfig, width: int, bins: int, bands: Sequence[tuple[int, int]]) -> None:
        super().__init__(config, (width,), len(bands))
        self.bins, self.bands = bins, bands

    def forward(self, maps: Sequence[Tensor]) -> NetworkOutput:
        deepest, bins = maps[-1], self.bins
        rows = deepest.shape[2]
        spans = [(first * rows // bins, -(-end * rows // bins)) for first, end in self.bands]
        pooled = torch.stack([self.features([deepest[:, :, a:b]]) for a, b in spans], dim=1)
        heard = F.dropout(pooled, self.config.dropout, self.training)
        weight, bias = self.classifier.parameters()
        return NetworkOutput(torch.einsum("bkf,kf->bk", heard, weight) + bias)


def build_freq_crop(
    config: FreqCropConfig, picture: InputShape, classes: int, backbone_of: Callable[[InputShape], Backbone]
) -> Network:
    """The network of either form; its backbone is built for what it will be shown.

    Source: 32nd place, RFCX Species Audio Detection
    Errors: KitError for bands that are not one per class, and for a picture or map without their rows
    """
    check_input("freq-crop", picture)
    bins = picture.bins
    if config.form == "crops":
        if picture.bands != classes:
            came = f"each of {classes} classes, got {picture.bands}"
            raise KitError(f"form=crops wants frontend.bands_hz with a band for {came}.")
        rows = bins // classes
        bands = [(k * rows, (k + 1) * rows) for k in range(classes)]
        backbone: Backbone = BandCrops(backbone_of(InputShape(picture.channels, rows)), classes)
    else:
        if len(config.bands_hz) != classes:
            raise KitError(f"wanted a band for each of {classes} classes, got {len(config.bands_hz)}.")
        bands = [picture.rows_of_band(*band) for band in config.bands_hz]
        backbone = backbone_of(picture)
        if len(feature_map_shape(backbone, picture, backbone.min_frames)) != 4:
            raise KitError("form=pooled wants a backbone whose map has rows of frequency.")
    width = backbone.widths[-1]
    return Network(backbone, config, classes, lambda: BandHead(config.head, width, bins, bands))
