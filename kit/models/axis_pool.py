"""The axis-pool family."""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.config import setting
from kit.models.heads import HeadConfig, run_recurrence
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input
from kit.models.skip_attention import convolved

WAVE_FACTS = 12


@dataclass(frozen=True)
class AxisPoolConfig(NetworkConfig):
    """Size of an axis-pool network: eight convolutions and an output layer."""

    width: int = setting(64, "channels of the first of four blocks, doubled by each", low=4)
    stat_steps: int = setting(128, "steps that wave statistics are averaged to", low=1)
    stat_width: int = setting(64, "units per direction of the recurrence over them", low=1)
    head: HeadConfig = setting(HeadConfig(pool="time-max", dropout=0.2), "its head")


class AxisPool(Backbone):
    """Nine layers whose pooling takes the mean over frequency, then the maximum over time, as its head does.

    Below the picture there may be side rows: 12 statistics of the wave, heard by a bidirectional recurrence, and the
    clip's length. They become maps of stride 0: every span of a pass is told the same of them.
    Shape:  spec (B, C, M [+ 13], N) -> [statistics (B, 2 stat_width, 1, stat_steps), length (B, 1, 1, 1),]
            (B, 8 width, M / 8, N / 8), rounded up; N >= 1
    Units:  side rows as in the first channel; length in ln(s)
    Source: second place, Freesound Audio Tagging 2019
    """

    min_frames = 8

    def __init__(self, settings: AxisPoolConfig, picture: InputShape) -> None:
        super().__init__()
        check_input("axis-pool", picture, 8, n_extra_rows=(0, WAVE_FACTS + 1))
        self.settings, self.bins, self.with_side = settings, picture.bins, picture.n_extra_rows > 0
        widths = [settings.width * 2**k for k in range(4)]
        layers: list[nn.Module] = []
        for before, width in pairwise([picture.channels, *widths]):
            layers += [*convolved(before, width), *convolved(width, width)]
            if width != widths[-1]:
                layers += [nn.AvgPool2d((2, 1), ceil_mode=True), nn.MaxPool2d((1, 2), ceil_mode=True)]
        self.blocks = nn.Sequential(*layers)
        self.widths, self.strides = [widths[-1]], [8]
        if self.with_side:
            self.stat_norm = nn.BatchNorm1d(WAVE_FACTS)
            self.stat_gru = nn.GRU(WAVE_FACTS, settings.stat_width, batch_first=True, bidirectional=True)
            self.widths, self.strides = [2 * settings.stat_width, 1, *self.widths], [0, 0, 8]

    def forward(self, spec: Tensor) -> Maps:
        deepest = self.blocks(spec[:, :, : self.bins])
        if not self.with_side:
            return Maps([deepest])
        side = spec[:, 0, self.bins :]
        steps = self.stat_norm(F.adaptive_avg_pool1d(side[:, :WAVE_FACTS], self.settings.stat_steps))
        heard = run_recurrence(self.stat_gru, steps).unsqueeze(2)
        return Maps([heard, side[:, None, WAVE_FACTS:, :1], deepest])
