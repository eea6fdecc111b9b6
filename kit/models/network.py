'''The network: a backbone turns a spectrogram into feature maps, heads turn those into logits.'''

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kit.audio.windows import Span
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.models.heads import HEAD_HELP, Head, HeadConfig, NetworkOutput


@dataclass(frozen=True)
class InputShape:
    '''The shape of a network's input (B, channels, bins + n_extra_rows, N) and the meaning of its bins.

    Units:  bin_hz, centre of each bin in hertz, rising; empty where it is unknown
            bands, number of frequency bands of equally many bins, stacked along the bin axis
    '''

    channels: int
    bins: int
    n_extra_rows: int = 0
    bin_hz: tuple[float, ...] = ()
    bands: int = 1

    def rows_of_band(self, low_hz: float, high_hz: float) -> tuple[int, int]:
        '''Find the first and end row of a band; a band without a row gets the row nearest to its centre.'''
        hz = np.array(self.bin_hz)
        if len(hz) != self.bins or (np.diff(hz) <= 0).any():
            raise KitError('bands need rising frequency for every row: use no frontend.bands_hz and no image_size.')
        rows = np.flatnonzero((hz >= low_hz) & (hz <= high_hz))
        if not len(rows):
            rows = np.argsort(np.abs(hz - (low_hz + high_hz) / 2), kind='stable')[:1]
        return int(rows[0]), int(rows[-1]) + 1


@dataclass(frozen=True)
class NetworkConfig(Config):
    '''Settings that every family has.'''

    head: HeadConfig = setting(HeadConfig(), HEAD_HELP)


# What initialisation fills tensors with; without numbers these operations change nothing.
FILLING_OPERATIONS = ('normal_', 'uniform_', 'erfinv_', 'mul_', 'add_', 'clamp_', 'zero_', 'fill_')


class SkipInit(TorchFunctionMode):
    '''Leave tensors as they are where initialisation would fill them.'''

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        name = getattr(func, '__name__', '')
        if name in FILLING_OPERATIONS:
            return args[0] if args else options['tensor']
        if name == 'eye' and 'out' in options:
            return options['out']
        return func(*args, **options)


@contextmanager
def meta_device() -> Iterator[None]:
    '''Build networks without numbers: in no memory, in a tenth of the time, and without random draws.'''
    # On the meta device these operations take long, and 2 s the first time, when they import torch's compiler.
    with torch.device('meta'), SkipInit():
        yield


def spans_in_steps(spans: Sequence[Span], stride: int, steps: int) -> list[Span]:
    '''Turn spans of equal length from input frames to steps of a map, of `stride` frames each.

    Each starts with the step whose start is nearest to its own, and has as many steps as reach its end from there at
    worst. So windows that cover a clip cover all steps of its map.
    '''
    frames = spans[0][1] - spans[0][0]
    count = min(steps, -(-(2 * frames + stride) // (2 * stride)))
    starts = [min((2 * start + stride) // (2 * stride), steps - count) for start, _ in spans]
    return [(start, start + count) for start in starts]


class Maps(NamedTuple):
    '''A backbone's feature maps. Shape: main (B, D_i, [M_i,] N_i), the deepest last; auxiliary likewise'''

    main: Sequence[Tensor]
    auxiliary: Sequence[Tensor] = ()


class Backbone(nn.Module):
    '''Base of all backbones: from a spectrogram to feature maps.

    Shape:  spec (B, C, M, N) with N >= min_frames -> Maps
    Units:  widths, channels of each main map
            strides, input frames per step of each main map; 0 for a map without time
    '''

    widths: Sequence[int]
    strides: Sequence[int]
    auxiliary_widths: Sequence[int] = ()
    min_frames: int = 1
    channels_last: bool = True


class Network(nn.Module):
    '''A backbone with its heads: the head reads the main maps, each auxiliary head one auxiliary map.

    Shape:  spec (B, C, M, N) -> logits (B, K), for any N >= min_frames
    Units:  stride, input frames per step of the deepest map
    '''

    def __init__(self, backbone: Backbone, head: Head, auxiliary_heads: Sequence[Head] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)
        self.channels_last = backbone.channels_last
        self.min_frames = backbone.min_frames
        self.strides = backbone.strides
        self.stride = backbone.strides[-1]

    def forward(self, spec: Tensor) -> Tensor:
        return self.head(self.backbone(spec).main).clip

    def window_logits(self, spec: Tensor, windows: Sequence[Sequence[Span]]) -> Tensor:
        '''Compute the logits of windows of equal length from one pass of the backbone.

        Shape:  spec (B, C, M, N), windows of each clip in frames -> (windows of all clips, K)
        '''
        maps = self.backbone(spec).main
        logits = []
        for clip, spans in enumerate(windows):
            of_clip = [x[clip : clip + 1] for x in maps]
            in_steps = [
                spans_in_steps(spans, stride, x.shape[-1]) for stride, x in zip(self.strides, of_clip, strict=True)
            ]
            logits.append(self.head(of_clip, in_steps).clip)
        return torch.cat(logits)

    def outputs(self, spec: Tensor) -> NetworkOutput:
        '''Compute every output that a loss may need.'''
        maps = self.backbone(spec)
        pairs = zip(self.auxiliary_heads, maps.auxiliary, strict=True)
        auxiliary = tuple(head([x]).clip for head, x in pairs)
        return self.head(maps.main)._replace(auxiliary=auxiliary, deepest=maps.main[-1])


def check_input(family: str, shape: InputShape, min_bins: int = 1, n_extra_rows: Sequence[int] = (0,)) -> None:
    '''Raise KitError unless a family can read an input.'''
    if shape.bins < min_bins:
        raise KitError(f'{family} needs at least {min_bins} frequency bins, got {shape.bins}: raise n_mels.')
    rows = shape.n_extra_rows
    if rows not in n_extra_rows:
        counts = ' or '.join(map(str, n_extra_rows))
        raise KitError(f'{family} reads {counts} extra rows, got {rows}: set frontend.extra_rows to [].')
