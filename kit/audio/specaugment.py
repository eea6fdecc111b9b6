'''Augment spectrograms: filter, mask, warp and crop them.'''

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.frontend import Frontend
from kit.audio.mixup import check_ranges, probability_of, scale_to_range
from kit.core.config import Config, setting

FILTER_POINTS = 5


@dataclass(frozen=True)
class SpecAugmentConfig(Config):
    '''How spectrograms are augmented, in this order. Extra rows stay as they are.

    Source: masks and warp: Park et al. 2019, SpecAugment, arXiv:1904.08779; filter: Nam et al. 2021, FilterAugment,
            arXiv:2110.03282, linear; crop: first place, Freesound Audio Tagging 2019, with aspects of 1.7 to 2.3
    '''

    filter_p: float = probability_of('a filter: gains at five frequencies, linear between them')
    filter_share: float = setting(0.5, 'largest gain, in standard deviations of the spectrogram', low=0, high=1e3)
    mask_p: float = probability_of('masks over time and frequency')
    time_masks: int = setting(2, 'most masks over time; at least one is drawn', low=0, high=1000)
    time_share: float = setting(0.2, 'widest time mask, as a share of the frames', low=0, high=1)
    freq_masks: int = setting(2, 'most masks over frequency; at least one is drawn', low=0, high=1000)
    freq_share: float = setting(0.15, 'widest frequency mask, as a share of the bins', low=0, high=1)
    outside_p: float = probability_of("one frequency mask below and one above the clip's box")
    outside_share: float = setting(0.3, 'widest of these masks, as a share of the bins', low=0, high=1)
    warp_p: float = probability_of('a time warp: one point in time moves, the rest is stretched')
    warp_share: float = setting(0.1, 'largest move of that point, as a share of the frames', low=0, high=0.15)
    crop_p: float = probability_of('a random crop, resized to the size before')
    crop_scale: tuple[float, ...] = setting((0.8, 1.0), "range of the crop's share of the area", low=0.01, high=1)
    crop_aspect: tuple[float, ...] = setting(
        (0.85, 1.15), "range of the crop's width / height, 1 for the whole", low=0.1, high=10
    )

    def check(self) -> None:
        check_ranges(self, 'crop_scale', 'crop_aspect')


@dataclass(frozen=True)
class SpecDraw:
    '''What was drawn for each clip: NaN for an effect that is off, 0 to 0 for a mask.

    Shape:  time and freq (B, masks, 2): first and end of each mask; warp (B, 2): where a point is and where it goes;
            crop (B, 4): top, left, height, width; gains (B, FILTER_POINTS)
    Units:  masks and warp in frames and bins; crop in shares of the spectrogram; gains in standard deviations
    '''

    time: Tensor
    freq: Tensor
    warp: Tensor
    crop: Tensor
    gains: Tensor


def draw_spec_augment(
    config: SpecAugmentConfig,
    clips: int,
    rows: int,
    frames: int,
    generator: torch.Generator,
    boxes: Tensor | None = None,
    chance: Tensor | float = 1.0,
) -> SpecDraw:
    '''Draw what happens to each clip.

    Shape:  boxes (B, 2): first and end bin of what outside masks must not cover, -1 for no box;
            chance (B,) multiplies every probability of each clip
    '''
    # As in draw_wave_augment, all numbers are drawn, also for effects that are off.
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64)
    probabilities = [config.mask_p, config.outside_p, config.warp_p, config.crop_p, config.filter_p]
    happens = torch.outer(torch.tensor(probabilities), chance * torch.ones(clips)) > uniform(5, clips)
    is_masked, is_outside, is_warped, is_cropped, is_filtered = happens[..., None]

    # Mask k is used if k <= most * u: any number from 1 to `most` is equally likely.
    masks = []
    limits = [(config.time_masks, frames, config.time_share), (config.freq_masks, rows, config.freq_share)]
    for most, size, share in limits:
        used = is_masked & (torch.arange(most) <= most * uniform(clips, 1))
        start, end = torch.tensor([0, size])
        masks.append(place_masks(uniform(2, clips, most), start, end, share * size, used))
    time, freq = masks

    # Outside masks lie in the bins [0, first of the box) and [end of the box, rows).
    box = torch.full((clips, 2), -1) if boxes is None else boxes.cpu().long()
    box_first, box_end = box[:, :1], box[:, 1:]
    area_first = torch.cat([0 * box_end, box_end], dim=1)
    area_end = torch.cat([box_first, torch.full_like(box_first, rows)], dim=1)
    used = is_outside & (box_first >= 0)
    outside = place_masks(uniform(2, clips, 1), area_first, area_end, config.outside_share * rows, used)

    point, move, scale, aspect, top, left = uniform(6, clips, 1)
    point = scale_to_range(point, (0.2 * frames, 0.8 * frames))
    warp = torch.cat([point, point + config.warp_share * frames * (2 * move - 1)], dim=1)
    area = scale_to_range(scale, config.crop_scale)
    low, high = config.crop_aspect
    aspect = low * (high / low) ** aspect
    height = (area / aspect).sqrt().clamp(max=1)
    width = (area * aspect).sqrt().clamp(max=1)
    crop = torch.cat([top * (1 - height), left * (1 - width), height, width], dim=1)
    return SpecDraw(
        time,
        torch.cat([freq, outside], dim=1),
        warp.where(is_warped, torch.nan),
        crop.where(is_cropped, torch.nan),
        (config.filter_share * (2 * uniform(clips, FILTER_POINTS) - 1)).where(is_filtered, torch.nan),
    )


def place_masks(uniform: Tensor, first: Tensor, end: Tensor, widest: float, used: Tensor) -> Tensor:
    '''Turn uniform numbers (2, B, masks) into masks from `first` to `end`, 0 to 0 where not used.'''
    for_width, for_start = uniform
    length = end - first
    width = (for_width * (length.clamp(max=int(widest)) + 1)).floor()
    start = first + (for_start * (length - width + 1)).floor()
    return torch.stack([start, start + width], dim=-1).long() * used[..., None]


def filter_specs(specs: Tensor, gains: Tensor) -> Tensor:
    '''Add gains over frequency, linear between evenly spaced points.'''
    curve = F.interpolate(gains.to(specs)[:, None], specs.shape[-2], mode='linear', align_corners=True)
    return specs + curve[..., None] * specs.std((-2, -1), correction=0, keepdim=True)


def mask_specs(specs: Tensor, draw: SpecDraw) -> Tensor:
    '''Mask all spectrograms of a clip alike, each with its minimum.'''
    bins, frames = specs.shape[-2:]
    masked_bins = under_masks(draw.freq, bins).to(specs.device)[:, None, :, None]
    masked_frames = under_masks(draw.time, frames).to(specs.device)[:, None, None, :]
    return specs.amin((-2, -1), keepdim=True).where(masked_bins | masked_frames, specs)


def under_masks(masks: Tensor, size: int) -> Tensor:
    '''Which bins or frames lie under any mask. Shape: (B, masks, 2) -> (B, size)'''
    place = torch.arange(size)
    return ((place >= masks[..., :1]) & (place < masks[..., 1:])).any(1)


def time_warp(specs: Tensor, warp: Tensor) -> Tensor:
    '''Move one point in time and stretch both sides, linear between frames.'''
    frames = specs.shape[-1]
    source, target = warp.to(specs)[..., None].unbind(1)
    time = torch.arange(frames).to(specs)
    before = time * source / target
    after = source + (time - target) * (frames - source) / (frames - target)
    place = torch.where(time < target, before, after).clamp(max=frames - 1)[:, None, None]
    left = place.long()
    right = (left + 1).clamp(max=frames - 1)
    return specs.take_along_dim(left, -1).lerp(specs.take_along_dim(right, -1), place.frac())


def crop_and_resize(specs: Tensor, crop: Tensor) -> Tensor:
    '''Crop each spectrogram and resize the crop to the size before, bilinear.'''
    top, left, height, width = crop.to(specs).unbind(1)
    zero = torch.zeros_like(top)
    # affine_grid counts from -1 to 1: the place x of the result comes from width * x + the crop's middle.
    to_x = [width, zero, 2 * left + width - 1]
    to_y = [zero, height, 2 * top + height - 1]
    affine = torch.stack(to_x + to_y, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(specs.shape), align_corners=False)
    return F.grid_sample(specs, grid, padding_mode='border', align_corners=False)


def apply_drawn(specs: Tensor, drawn: Tensor, effect: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    '''Apply an effect to the clips whose draw is not NaN; the others stay bit for bit.'''
    rows = (~drawn.isnan().any(1)).nonzero()[:, 0]
    return specs.index_copy(0, rows.to(specs.device), effect(specs[rows], drawn[rows])) if len(rows) else specs


def augment_specs(specs: Tensor, draw: SpecDraw, config: SpecAugmentConfig, frontend: Frontend) -> Tensor:
    '''Augment spectrograms as drawn. Clips without any effect stay bit for bit.

    Shape:  normalized spectrograms (B, R, N) -> the same; effects get the S resolutions (B, S, M, N)
    '''
    images, extra_rows = frontend.split(specs)
    images = apply_drawn(images, draw.gains, filter_specs)
    images = mask_specs(images, draw)
    images = apply_drawn(images, draw.warp, time_warp)
    images = apply_drawn(images, draw.crop, crop_and_resize)
    return torch.cat([images.flatten(-3, -2), extra_rows], dim=-2)
