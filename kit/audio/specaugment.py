"""Augmentation of spectrograms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kit.audio.frontend import Frontend
from kit.audio.mixup import check_ranges, probability_of, within_range
from kit.core.config import Config, setting
from kit.core.errors import KitError

FILTER_POINTS = 5


@dataclass(frozen=True)
class SpecAugmentConfig(Config):
    """What happens to a clip's pictures, in this order; its side rows stay.

    Source: Park et al. 2019, arXiv:1904.08779; the crop: first place, Freesound 2019, aspects of 1.7 to 2.3;
            the linear filter: Nam et al. 2021, arXiv:2110.03282
    """

    filter_p: float = probability_of("a filter: gains at five frequencies, linear between")
    filter_share: float = setting(0.5, "the greatest, of the picture's standard deviation", low=0)
    mask_p: float = probability_of("masks over time and frequency")
    time_masks: int = setting(2, "masks over time, from 1 to this", low=0)
    time_share: float = setting(0.2, "greatest share of the frames in one", low=0, high=1)
    freq_masks: int = setting(2, "masks over frequency, from 1 to this", low=0)
    freq_share: float = setting(0.15, "greatest share of the bins in one", low=0, high=1)
    mask_fill: str = setting("min", "what masks hold, of each picture", choices=("min", "mean", "zero"))
    outside_p: float = probability_of("a mask below and one above a clip's box")
    outside_share: float = setting(0.3, "greatest share of the bins in one", low=0, high=1)
    warp_p: float = probability_of("a point in time that moves")
    warp_share: float = setting(0.1, "greatest move, of the frames", low=0, high=0.15)
    crop_p: float = probability_of("a crop, stretched to the whole picture")
    crop_scale: tuple[float, ...] = setting((0.8, 1.0), "its share of the picture", low=0.01, high=1)
    crop_aspect: tuple[float, ...] = setting((0.85, 1.15), "width / height, the picture's being 1", low=0.1)

    def check(self) -> None:
        check_ranges(crop_scale=self.crop_scale, crop_aspect=self.crop_aspect)


@dataclass(frozen=True)
class SpecDraw:
    """What happens to each clip; NaN, or a mask from 0 to 0, where nothing does.

    Shape:  time and freq (B, masks, 2) first and end; warp (B, 2) from and to; crop (B, 4) top, left, height, width;
            gains (B, 5)
    Units:  frames and bins; a crop's in shares of the picture, gains in standard deviations
    """

    time: Tensor
    freq: Tensor
    warp: Tensor
    crop: Tensor
    gains: Tensor


def draw_spec_augment(
    config: SpecAugmentConfig, clips: int, rows: int, frames: int, generator: torch.Generator,
    boxes: Tensor | None = None, chance: Tensor | float = 1.0,
) -> SpecDraw:  # fmt: skip
    """Draw everything, so that one chance changes nothing else that is drawn.

    Shape:  boxes (B, 2), first and end bin that outside masks spare, -1 without; chance (B,) times each p
    """

    def coins(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def spans(widest: float, first: Tensor | int, end: Tensor, used: Tensor) -> Tensor:
        wide, start = coins(2, *used.shape)
        width = (wide * ((end - first).clamp(max=int(widest)) + 1)).floor()
        start = first + (start * (end - first - width + 1)).floor()
        return torch.stack([start, start + width], dim=-1).long() * used[..., None]

    chances = [config.mask_p, config.outside_p, config.warp_p, config.crop_p, config.filter_p]
    happens = torch.outer(torch.tensor(chances), chance * torch.ones(clips)) > coins(5, clips)
    masked, outside, warped, cropped, filtered = happens[..., None]
    time, freq = (
        spans(share * size, 0, torch.tensor(size), masked & (torch.arange(most) <= most * coins(clips, 1)))
        for most, share, size in (
            (config.time_masks, config.time_share, frames), (config.freq_masks, config.freq_share, rows)
        )
    )  # fmt: skip
    box = torch.full((clips, 2), -1) if boxes is None else boxes.cpu().long()
    first, end = F.pad(box[:, 1:], (1, 0)), F.pad(box[:, :1], (0, 1), value=rows)
    around = spans(config.outside_share * rows, first, end, outside & (box[:, :1] >= 0))
    place, move, scale, aspect, top, left = coins(6, clips, 1)
    place = within_range((0.2 * frames, 0.8 * frames), place)
    warp = torch.cat([place, place + config.warp_share * frames * (2 * move - 1)], dim=1)
    scale, (low, high) = within_range(config.crop_scale, scale), config.crop_aspect
    aspect = low * (high / low) ** aspect
    height, width = (scale / aspect).sqrt().clamp(max=1), (scale * aspect).sqrt().clamp(max=1)
    crop = torch.cat([top * (1 - height), left * (1 - width), height, width], dim=1)
    gains = config.filter_share * (2 * coins(clips, FILTER_POINTS) - 1)
    drawn = (part.where(own, torch.nan) for part, own in ((warp, warped), (crop, cropped), (gains, filtered)))
    return SpecDraw(time, torch.cat([freq, around], dim=1), *drawn)


def filter_specs(pictures: Tensor, gains: Tensor) -> Tensor:
    """Gains over frequency, linear between even places. Shape: (b, P, M, N), (b, points) -> as pictures"""
    curve = F.interpolate(gains.to(pictures)[:, None], pictures.shape[-2], mode="linear", align_corners=True)
    return pictures + curve[..., None] * pictures.std((-2, -1), correction=0, keepdim=True)


def mask_specs(pictures: Tensor, draw: SpecDraw, mask_fill: str) -> Tensor:
    """Masks over a clip's pictures, all alike, each filled by itself. Shape: (B, P, M, N) -> the same"""
    bins, frames = (
        ((place >= spans[..., :1]) & (place < spans[..., 1:])).any(1).to(pictures.device)
        for place, spans in zip(map(torch.arange, pictures.shape[-2:]), (draw.freq, draw.time), strict=True)
    )
    value = pictures.amin((-2, -1), keepdim=True)
    if mask_fill != "min":
        value = pictures.mean(-1, keepdim=True).mean(-2, keepdim=True) * (mask_fill == "mean")
    return value.where(bins[:, None, :, None] | frames[:, None, None, :], pictures)


def time_warp(pictures: Tensor, warp: Tensor) -> Tensor:
    """What was heard at `from` is heard at `to`, the rest stretched. Shape: (b, P, M, N), (b, 2) -> as pictures"""
    frames = pictures.shape[-1]
    source, target = warp.to(pictures)[..., None].unbind(1)
    time = torch.arange(frames).to(pictures)
    later = source + (time - target) * (frames - source) / (frames - target)
    place = torch.where(time < target, time * source / target, later).clamp(max=frames - 1)[:, None, None]
    left = place.long()
    near, far = (pictures.take_along_dim(at.clamp(max=frames - 1), -1) for at in (left, left + 1))
    return near.lerp(far, place.frac())


def crop_and_resize(pictures: Tensor, crop: Tensor) -> Tensor:
    """A crop of each picture, as large as the picture again, bilinear. Shape: (b, P, M, N), (b, 4) -> as pictures"""
    top, left, height, width = crop.to(pictures).unbind(1)
    still = torch.zeros_like(top)
    corners = torch.stack([width, still, 2 * left + width - 1, still, height, 2 * top + height - 1], dim=1)
    grid = F.affine_grid(corners.view(-1, 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def augment_specs(specs: Tensor, draw: SpecDraw, config: SpecAugmentConfig, frontend: Frontend) -> Tensor:
    """The clips as drawn: filtered, masked, warped, cropped; those without a change bit for bit as they were.

    Shape:  normalize_spec kept spectrograms (B, R, N) -> the same
    Errors: KitError for another number of clips than drawn
    """
    if len(specs) != len(draw.warp):
        raise KitError(f"{len(specs)} spectrograms for a draw of {len(draw.warp)}: draw for as many.")
    pictures, side = frontend.split(specs)

    def changed(drawn: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if not len(rows := (~drawn.isnan().any(1)).nonzero()[:, 0]):
            return pictures
        return pictures.index_copy(0, rows.to(specs.device), change(pictures[rows], drawn[rows]))

    pictures = changed(draw.gains, filter_specs)
    pictures = mask_specs(pictures, draw, config.mask_fill)
    pictures = changed(draw.warp, time_warp)
    pictures = changed(draw.crop, crop_and_resize)
    return torch.cat([pictures.flatten(-3, -2), side], dim=-2)
