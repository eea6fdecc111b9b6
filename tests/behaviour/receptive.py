'''Slow definition of a backbone's receptive field.'''

import copy
from bisect import bisect_left

import torch

from kit.models.network import Backbone, InputShape


def receptive_field(backbone: Backbone, shape: InputShape) -> int | None:
    '''Measure how many input frames one step of the deepest map reads; None if more than about 64 strides.

    A NaN spreads to every step that reads it. The input grows until its middle step reads neither its first nor its
    last frame; bisection then finds the ends.
    '''
    probe = copy.deepcopy(backbone).to('cpu', torch.float32).eval()

    def reads(frames: int, part: slice) -> bool:
        spec = torch.zeros(1, shape.channels, shape.bins + shape.n_extra_rows, frames)
        spec[..., part] = torch.nan
        with torch.no_grad():
            deepest = probe(spec).main[-1]
        return bool(deepest[..., deepest.shape[-1] // 2].isnan().any())

    for steps in (16, 32, 64, 128):
        frames = steps * backbone.strides[-1]
        if not reads(frames, slice(1)) and not reads(frames, slice(frames - 1, None)):
            first = bisect_left(range(frames), True, key=lambda n: reads(frames, slice(n + 1)))
            return bisect_left(range(frames), True, key=lambda n: not reads(frames, slice(n, None))) - first
    return None
