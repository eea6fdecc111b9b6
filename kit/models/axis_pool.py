'''The axis-pool family: pooling that takes the mean over one axis and the maximum over the other.'''

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.config import setting
from kit.models.heads import HEAD_HELP, HeadConfig, run_recurrence
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input
from kit.models.skip_attention import conv_layers

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

    Extra rows below the bins, 12 wave statistics and the clip's length, become two further maps without time. A
    bidirectional recurrence reads the statistics.

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
        layers: list[nn.Module] = [*conv_layers(shape.channels, stem)]
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
        length_map = extra[:, None, N_WAVE_STATS:, :1]
        return Maps([stats_map, length_map, deepest])
