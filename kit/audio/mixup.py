'''Mix pairs of crops and their labels.'''

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.audio.frontend import FrontendConfig
from kit.audio.spectrogram import log_scaled
from kit.core.config import Config, setting
from kit.core.errors import KitError

# A fade is the sigmoid of -s to s, around its middle, in crop lengths: the ranges of both.
FADE_STEEPNESS = (3.0, 12.0)
FADE_CENTRE = (0.25, 0.75)


def probability_of(event: str) -> Any:
    '''The setting of an event's probability, 0 by default.'''
    return setting(0.0, f'probability of {event}', low=0, high=1)


def check_ranges(config: Config, *names: str) -> None:
    '''Raise KitError unless each of these settings is (low, high).'''
    for name in names:
        ends = getattr(config, name)
        if len(ends) != 2 or ends[0] > ends[1]:
            raise KitError(f'{name} must be two numbers from low to high, got {ends}.')


def scale_to_range(uniform: Tensor, ends: tuple[float, ...]) -> Tensor:
    '''Scale uniform random numbers of [0, 1) to the range (low, high).'''
    low, high = ends
    return low + (high - low) * uniform


@dataclass(frozen=True)
class MixupConfig(Config):
    '''How crops and their labels are mixed.'''

    p: float = probability_of('mixing a crop with a partner')
    pseudo_p: float = probability_of('mixing in a pseudo-labelled crop; above 0, clips without labels come only so')
    domain: str = setting(
        'energy', 'what is added: energies, normalized spectrograms, or waves', choices=('energy', 'spec', 'wave')
    )
    convex: bool = setting(False, "weight the crop itself by 1 - the partner's share, not by 1")
    low: float = setting(1.0, 'lowest share of the partner', low=0, high=1)
    high: float = setting(1.0, 'highest share of the partner', low=0, high=1)
    beta: float = setting(0.0, 'above 0: draw the share from Beta(beta, beta), not from low to high', low=0, high=1e6)
    fade_p: float = probability_of('a mixed crop fading into its partner instead')
    labels: str = setting(
        'union',
        'mixed labels: the greater of both, the mean weighted by share, or the sum up to 1',
        choices=('union', 'weighted', 'sum'),
    )
    masks: str = setting('known', 'a class unknown in one crop is masked, or is false', choices=('known', 'either'))
    partners: str = setting(
        'any', 'a random crop, or the one that shares most known-false classes', choices=('any', 'sure-negatives')
    )

    def check(self) -> None:
        check_ranges(self, 'low_high')

    @property
    def is_used(self) -> bool:
        '''Whether any crop is mixed.'''
        return self.p + self.pseudo_p > 0

    @property
    def low_high(self) -> tuple[float, float]:
        '''The range of the partner's share.'''
        return self.low, self.high


@dataclass(frozen=True)
class MixupDraw:
    '''Which clips are mixed, with which partner, and how.

    Shape:  (B,) each; `mixed` and `fade` are bool, `partner` holds indices into the batch
    Units:  `share` is the partner's, in [0, 1]; `centre` in crop lengths
    '''

    mixed: Tensor
    partner: Tensor
    share: Tensor
    fade: Tensor
    centre: Tensor
    steepness: Tensor


def draw_mixup(
    config: MixupConfig, targets: Tensor, generator: torch.Generator, chance: Tensor | float = 1.0
) -> MixupDraw:
    '''Draw which clips of a batch are mixed, and how.

    With partners="any" each clip is the partner of exactly one other clip, never of itself. With "sure-negatives"
    a clip is not mixed where it shares no known-false class with any partner: all these labels would be lost.
    Shape:  targets (B, K); chance (B,) multiplies the probability p of each clip
    '''
    clips = len(targets)
    # In a random order, each clip's partner is the one before it.
    order = torch.randperm(clips, generator=generator)
    partner = order.roll(-1)[order.argsort()]
    for_mixed, for_share, for_fade, for_centre, for_steepness = torch.rand(5, clips, generator=generator)
    mixed = (for_mixed < config.p * chance) & (clips > 1)
    if config.partners == 'sure-negatives':
        false = (targets.cpu() == 0).float()
        shared = (false @ false.T).fill_diagonal_(-2.0)
        # Counts are whole numbers, so uniform numbers below 1 only choose among equal counts.
        partner = (shared + torch.rand(clips, clips, generator=generator)).argmax(dim=1)
        mixed &= shared.amax(dim=1) >= false.amax(dim=1)
    share = scale_to_range(for_share, config.low_high)
    if config.beta:
        # torch draws from no Beta distribution with a generator; numpy does.
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        share = torch.from_numpy(np.random.default_rng(seed).beta(config.beta, config.beta, clips)).float()
    fade = mixed & (for_fade < config.fade_p)
    centre = scale_to_range(for_centre, FADE_CENTRE)
    return MixupDraw(mixed, partner, share, fade, centre, scale_to_range(for_steepness, FADE_STEEPNESS))


def mix_into(draw: MixupDraw, crops: Tensor) -> MixupDraw:
    '''Append partners to a batch: each is mixed into one of the crops, not its drawn partner.

    Shape:  crops (P,), indices into the batch of B -> a draw of B + P
    '''
    longer = {name: torch.cat([value, value.new_zeros(len(crops))]) for name, value in vars(draw).items()}
    longer['partner'][crops] = len(draw.mixed) + torch.arange(len(crops))
    longer['mixed'][crops] = True
    return MixupDraw(**longer)


def mix_specs(specs: Tensor, draw: MixupDraw, config: MixupConfig) -> Tensor:
    '''The weighted sum of each clip and its partner. Shape: (B, R, N) -> the same'''
    parts = (draw.mixed, draw.share, draw.fade, draw.centre, draw.steepness)
    mixed, share, fade, centre, steepness = (part[:, None, None].to(specs) for part in parts)
    frames = specs.shape[-1]
    time = (torch.arange(frames).to(specs) + 0.5) / frames
    sigmoid = torch.sigmoid(2 * steepness * (time - centre))
    partner_share = mixed * share.lerp(sigmoid, fade)
    # A clip that fades loses what its partner gains; others keep their full weight unless convex.
    own_share = 1 - (partner_share if config.convex else partner_share * fade)
    return specs * own_share + specs[draw.partner] * partner_share


def mix_waves(waves: Tensor, draw: MixupDraw, config: MixupConfig) -> Tensor:
    '''The weighted sum of waveforms, not clipped. Shape: (B, T) -> the same'''
    return mix_specs(waves[:, None], draw, config)[:, 0]


def mix_energies(specs: Tensor, draw: MixupDraw, config: MixupConfig, frontend: FrontendConfig) -> Tensor:
    '''Mix raw log spectrograms by the weighted sum of their energies: that of mixed waveforms, on average over phases.

    Clips that are not mixed stay bit for bit. Shape: (B, R, N) -> the same
    '''
    if frontend.extra_rows:
        raise KitError('extra_rows have no energy to mix: mixup.domain=wave or spec, or frontend.extra_rows=[].')
    # With power=1 the bands are magnitudes, the square roots of energies.
    if frontend.log == 'db':
        energies = torch.pow(10.0, specs / 10.0)
    else:
        energies = (specs.exp() - frontend.log_offset).clamp_min(0.0).pow(2 / frontend.power)
    energies = mix_specs(energies, draw, config)
    mixed = log_scaled(frontend, energies.pow(frontend.power / 2))
    return mixed.where(draw.mixed.to(specs.device)[:, None, None], specs)


def mix_labels(targets: Tensor, draw: MixupDraw, config: MixupConfig) -> Tensor:
    '''Mix the labels of mixed clips, keeping true, false and unknown apart.

    Union: true if either is true, else unknown if either is unknown, else the greater probability. Labels of clips
    that fade are always united: each of the two sounds is at full level at one end.
    Shape:  targets (B, K), NaN where unknown -> the same
    '''
    first, second = targets, targets[draw.partner]
    if config.masks == 'either':
        # An unknown label counts as 0 where the other clip's label is known.
        first = targets.where(~targets.isnan() | second.isnan(), 0.0)
        second = second.where(~second.isnan() | targets.isnan(), 0.0)
    # fmax ignores NaN and maximum returns it: NaN beside 1 gives 1, and NaN beside anything less gives NaN.
    greater = torch.fmax(first, second)
    united = torch.maximum(first, second).where(greater < 1, greater)
    if config.labels == 'sum':
        mixed = (first + second).clamp(max=1).where(greater < 1, greater)
    elif config.labels == 'weighted':
        mixed = first.lerp(second, draw.share.to(targets)[:, None])
    else:
        mixed = united
    fades = draw.fade.to(targets.device)[:, None]
    return united.where(fades, mixed).where(draw.mixed.to(targets.device)[:, None], targets)
