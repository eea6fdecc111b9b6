'''The network: a backbone turns a spectrogram into feature maps, heads pool these and turn them into logits.'''

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kit.audio.windows import Span
from kit.core.config import Config, setting
from kit.core.errors import KitError

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    'mean': lambda x: x.mean((2, 3)),
    'max': lambda x: x.amax((2, 3)),
    'mean-max': lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1),
    'time-max': lambda x: x.amax(3).mean(2),
    # Of the positive activations; 0 where there are none.
    'positive-mean': lambda x: x.float().relu().sum((2, 3)) / (x > 0).sum((2, 3)).clamp(min=1),
}
RECURRENCES = {'gru': nn.GRU, 'lstm': nn.LSTM}
HEAD_HELP = 'how feature maps become logits'


@dataclass(frozen=True)
class HeadConfig(Config):
    '''How feature maps become logits: [recurrence], pooling, dropout, [hidden layer], output layer.'''

    pool: str = setting('mean', 'pooling; attention: weighted mean over time', choices=(*POOLS, 'gem', 'attention'))
    recurrent: str | None = setting(None, 'bidirectional recurrence before pooling', choices=(None, *RECURRENCES))
    recurrent_width: int = setting(128, 'units of the recurrence in each direction', low=1, high=2**16)
    embedding: int = setting(0, 'width its output is projected to; 0: none', low=0, high=2**16)
    hidden: int | None = setting(0, 'units of a hidden layer; 0: none; None: as many as its input', low=0, high=2**16)
    norm_first: bool = setting(False, 'batch norm first; without attention also after the hidden layer, then dropout')
    dropout: float = setting(0.2, 'dropout before the output layer', low=0, high=0.95)

    def check(self) -> None:
        if self.embedding and self.recurrent is None:
            raise KitError(f'embedding={self.embedding} needs a recurrence: set recurrent.')
        if self.norm_first and self.hidden == 0 and self.pool != 'attention':
            raise KitError('norm_first needs a hidden layer or pool=attention: set norm_first=False.')


class NetworkOutput(NamedTuple):
    '''Logits of a batch.

    Shape:  clip (B, K); frames (B, N', K), only from attention over time; auxiliary, (B, K) for each auxiliary map;
            deepest (B, D, [M',] N'), the deepest feature map
    '''

    clip: Tensor
    frames: Tensor | None = None
    auxiliary: tuple[Tensor, ...] = ()
    deepest: Tensor | None = None


def classifier_layers(config: HeadConfig, features: int, classes: int) -> nn.Sequential:
    '''Build the layers from pooled features to logits.'''
    hidden = features if config.hidden is None else config.hidden
    dropout = nn.Dropout(config.dropout)
    if not hidden:
        return nn.Sequential(dropout, nn.Linear(features, classes))
    first, last = nn.Linear(features, hidden), nn.Linear(hidden, classes)
    norm, activation = nn.BatchNorm1d(hidden), nn.PReLU()
    if config.norm_first:
        return nn.Sequential(nn.BatchNorm1d(features), first, norm, activation, dropout, last)
    return nn.Sequential(dropout, first, activation, norm, nn.Dropout(config.dropout / 2), last)


class GeneralisedMean(nn.Module):
    '''Pool with a generalised mean: the p-th root of the mean p-th power; p is learnt and starts at 3.

    Source: Radenovic, Tolias & Chum 2018, arXiv:1711.02512
    '''

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        power = self.power.clamp(1.0, 30.0)
        positive = x.float().clamp(min=1e-6)
        # Powers up to 30 overflow float32, so each channel is divided by its maximum first.
        peak = positive.detach().amax((2, 3), keepdim=True)
        return peak[..., 0, 0] * (positive / peak).pow(power).mean((2, 3)).pow(1 / power)


class FrameAttention(nn.Module):
    '''Classify each frame, then average the frames' probabilities with one attention over time per class.

    Shape:  (B, D, N') -> clip (B, K), frames (B, N', K)
    Source: Kong et al. 2020, PANNs, arXiv:1912.10211 (decision-level attention)
    '''

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.attention = nn.Conv1d(features, classes, 1)
        self.classifier = nn.Conv1d(features, classes, 1)

    def forward(self, x: Tensor) -> NetworkOutput:
        frames = self.classifier(x).float()
        log_weights = F.log_softmax(self.attention(x).float(), dim=2)
        # logit(p) = log(p) - log(1 - p), both by logsumexp: of a p rounded to 0 or 1 it would be infinite.
        log_true = torch.logsumexp(log_weights + F.logsigmoid(frames), dim=2)
        log_false = torch.logsumexp(log_weights + F.logsigmoid(-frames), dim=2)
        return NetworkOutput(log_true - log_false, frames.transpose(1, 2))


def with_frequency(x: Tensor) -> Tensor:
    '''Add a frequency axis of one bin where a map has none. Shape: (B, D, [M,] N) -> (B, D, M, N)'''
    return x if x.ndim == 4 else x.unsqueeze(2)


def aligned_sequence(maps: Sequence[Tensor]) -> Tensor:
    '''Average maps over frequency and join them at the frame rate of the last one.

    Shape:  (B, D_i, [M_i,] N_i) -> (B, sum of D_i, N of the last)
    '''
    steps = maps[-1].shape[-1]
    return torch.cat([F.adaptive_avg_pool1d(with_frequency(x).mean(2), steps) for x in maps], dim=1)


def run_recurrence(recurrence: nn.Module, x: Tensor) -> Tensor:
    '''Run a recurrence over time in its own precision, without autocast. Shape: (B, D, N') -> (B, 2 units, N')'''
    with torch.autocast(x.device.type, enabled=False):
        return recurrence(x.transpose(1, 2).to(next(recurrence.parameters()).dtype))[0].transpose(1, 2)


class Head(nn.Module):
    '''Pool each feature map, join the results and classify them.

    A recurrence, or attention over time, reads all maps as one sequence.

    Shape:  maps (B, D_i, [M_i,] N_i), the deepest last -> clip (B, K), frames (B, N', K) or None. With spans, for
            each map as many of equal length, of one clip (B = 1) -> clip (W, K)
    Units:  spans, steps of their map
    '''

    def __init__(self, config: HeadConfig, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.config = config
        features = sum(widths)
        self.recurrence: nn.Module | None = None
        if config.recurrent:
            units = config.recurrent_width
            self.recurrence = RECURRENCES[config.recurrent](features, units, batch_first=True, bidirectional=True)
            features = 2 * units
        self.embedding: nn.Module = nn.Identity()
        if config.embedding:
            self.embedding = nn.Linear(features, config.embedding)
            features = config.embedding
        self.classifier: nn.Module
        if config.pool == 'attention':
            hidden = features if config.hidden is None else config.hidden
            norm = [nn.BatchNorm1d(features)] if config.norm_first else []
            layers = [nn.Conv1d(features, hidden, 1), nn.ReLU()] if hidden else []
            self.projection = nn.Sequential(*norm, nn.Dropout(config.dropout), *layers)
            self.classifier = FrameAttention(hidden or features, classes)
        else:
            self.pool = GeneralisedMean() if config.pool == 'gem' else POOLS[config.pool]
            if config.pool == 'mean-max':
                features *= 2
            self.classifier = classifier_layers(config, features, classes)

    def features(self, maps: Sequence[Tensor], spans: Sequence[Sequence[Span]] = ()) -> Tensor:
        '''Compute the classifier's input, or that of each span where one clip's maps have spans.

        Shape:  maps -> (B or W, F), or (B or W, F, N') for attention over time
        '''
        if self.recurrence is not None:
            sequence = run_recurrence(self.recurrence, aligned_sequence(maps))
            maps = [self.embedding(sequence.transpose(1, 2)).transpose(1, 2)]
            spans = spans[-1:]
        if self.config.pool == 'attention':
            sequence = self.projection(aligned_sequence(maps))
            return torch.cat([sequence[..., a:b] for a, b in spans[-1]]) if spans else sequence
        pooled = []
        for i, x in enumerate(map(with_frequency, maps)):
            cuts = [x[..., start:end] for start, end in spans[i]] if spans else [x]
            pooled.append(torch.cat([self.pool(cut) for cut in cuts]))
        return torch.cat(pooled, dim=1)

    def forward(self, maps: Sequence[Tensor], spans: Sequence[Sequence[Span]] = ()) -> NetworkOutput:
        logits = self.classifier(self.features(maps, spans))
        return logits if isinstance(logits, NetworkOutput) else NetworkOutput(logits)


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
    # On the meta device filling takes long, and 2 s the first time, as it imports torch's compiler.
    with torch.device('meta'), SkipInit():
        yield


def spans_in_steps(spans: Sequence[Span], stride: int, steps: int) -> list[Span]:
    '''Turn spans of equal length from input frames to steps of a map, of `stride` frames each.

    Each starts with the step whose start is nearest to its own, and has as many as reach its end from there at worst.
    So windows that cover a clip cover all steps of its map.
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
    '''A backbone with its heads: the head reads the main maps, an auxiliary head one auxiliary map each.

    Shape:  spec (B, C, M, N) -> logits (B, K), for any N >= min_frames
    '''

    def __init__(self, backbone: Backbone, head: Head, auxiliary_heads: Sequence[Head] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)
        self.channels_last = backbone.channels_last
        self.min_frames = backbone.min_frames
        self.strides = backbone.strides

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
            pairs = zip(self.strides, of_clip, strict=True)
            in_steps = [spans_in_steps(spans, stride, x.shape[-1]) for stride, x in pairs]
            logits.append(self.head(of_clip, in_steps).clip)
        return torch.cat(logits)

    def outputs(self, spec: Tensor) -> NetworkOutput:
        '''Compute every output that a loss may need.'''
        maps = self.backbone(spec)
        auxiliary = tuple(head([x]).clip for head, x in zip(self.auxiliary_heads, maps.auxiliary, strict=True))
        return self.head(maps.main)._replace(auxiliary=auxiliary, deepest=maps.main[-1])


def check_input(family: str, shape: InputShape, min_bins: int = 1, n_extra_rows: Sequence[int] = (0,)) -> None:
    '''Raise KitError unless a family can read an input.'''
    if shape.bins < min_bins:
        raise KitError(f'{family} needs at least {min_bins} frequency bins, got {shape.bins}: raise n_mels.')
    if shape.n_extra_rows not in n_extra_rows:
        wanted = f'{" or ".join(map(str, n_extra_rows))} extra rows'
        raise KitError(f'{family} reads {wanted}, got {shape.n_extra_rows}: set frontend.extra_rows to [].')
