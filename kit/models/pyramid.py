'''The max-pyramid family: blocks that halve their maps, in 2-D on mel or in 1-D on STFT spectrograms.'''

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from kit.core.config import setting
from kit.models.heads import HEAD_HELP, HeadConfig
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input


@dataclass(frozen=True)
class PyramidConfig(NetworkConfig):
    '''Size of a max-pyramid; the defaults are the published network of 9.25 M weights.'''

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
            conv = conv_class(width, width, size, padding=size // 2, bias=False)
            layers += [conv, norm_class(width), FastPReLU()]
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
            layers = [
                norm_class(before),
                conv_class(before, width, 3, padding=1, bias=False),
                pool_class(2, ceil_mode=True),  # an odd last frame makes a step of its own
                norm_class(width),
                FastPReLU(),
                BottleneckResidual(settings.dims, width),
            ]
            self.blocks.append(nn.Sequential(*layers))
        self.widths = widths[1:]
        self.strides = [2 ** (k + 1) for k in range(1, settings.blocks)]

    def forward(self, spec: Tensor) -> Maps:
        # Batch norm over one or two channels is many times faster in the contiguous layout.
        x = spec.contiguous() if self.settings.dims == 2 else spec.flatten(1, 2)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return Maps(maps[1:])
