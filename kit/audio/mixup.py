"""Mixup of crops and their labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.audio.frontend import FrontendConfig
from kit.audio.spectrogram import log_scaled
from kit.audio.waveform import EXTRA_ROWS, mix_extra_rows
from kit.core.config import Config, setting
from kit.core.errors import KitError


def probability_of(what: str) -> Any:
    """The setting of a chance, off at first."""
    return setting(0.0, f"chance of {what}", low=0, high=1)


def check_ranges(**ranges: tuple[float, ...]) -> None:
    """Raise KitError unless each is (low, high)."""
    for name, ends in ranges.items():
        if len(ends) != 2 or ends[0] > ends[1]:
            raise KitError(f"{name} wants a range from low to high, got {ends}.")


def within_range(ends: tuple[float, ...], coins: Tensor) -> Tensor:
    """Numbers of [0, 1) stretched over a range."""
    return ends[0] + (ends[1] - ends[0]) * coins


@dataclass(frozen=True)
class MixupConfig(Config):
    """How crops and their labels are mixed."""

    p: float = probability_of("being mixed with another crop")
    domain: str = setting("energy", "what is added", choices=("energy", "spec", "wave"))
    convex: bool = setting(False, "the own share is 1 less the partner's, not 1")
    low: float = setting(1.0, "least share of the partner", low=0, high=1)
    high: float = setting(1.0, "greatest share of the partner", low=0, high=1)
    beta: float = setting(0.0, "above 0: draw it from Beta(beta, beta)", low=0)
    fade_p: float = probability_of("fading into the partner instead")
    fade_steepness: tuple[float, ...] = setting((3.0, 12.0), "its sigmoid goes from -this to this", low=0)
    fade_centre: tuple[float, ...] = setting((0.25, 0.75), "its middle, of the crop", low=0, high=1)
    labels: str = setting("union", "weighted: by shares; sum: up to 1", choices=("union", "weighted", "sum"))
    masks: str = setting("known", "either: unknown is 0 beside known", choices=("known", "either"))
    partners: str = setting("any", "who is mixed with whom", choices=("any", "sure-negatives"))

    def check(self) -> None:
        check_ranges(share=(self.low, self.high), steepness=self.fade_steepness, centre=self.fade_centre)


@dataclass(frozen=True)
class MixupDraw:
    """Who is mixed with whom, and how. Shape: (B,) each, mixed and fade bool"""

    mixed: Tensor
    partner: Tensor
    share: Tensor
    fade: Tensor
    centre: Tensor
    steepness: Tensor


def draw_mixup(
    config: MixupConfig, targets: Tensor | int, generator: torch.Generator, chance: Tensor | float = 1.0
) -> MixupDraw:
    """Which clips are mixed; each is the partner of "any" other once, never of itself.

    "sure-negatives": the partner shares most known-false classes; a clip that would lose all of its own stays unmixed.
    Shape:  targets (B, K), or the number of clips; chance (B,) times p
    """
    clips = targets if isinstance(targets, int) else len(targets)
    order = torch.randperm(clips, generator=generator)
    partner = order.roll(-1)[order.argsort()]
    mix, share, fade, centre, steepness = torch.rand(5, clips, generator=generator)
    mixed = (mix < config.p * chance) & (clips > 1)
    if config.partners == "sure-negatives" and clips:
        if isinstance(targets, int):
            raise KitError("sure-negatives want labels: give targets.")
        false = (targets.cpu() == 0).float()
        shared = (false @ false.T).fill_diagonal_(-2.0)
        partner = (shared + torch.rand(clips, clips, generator=generator)).argmax(dim=1)
        mixed &= shared.amax(dim=1) >= false.amax(dim=1)
    share = within_range((config.low, config.high), share)
    if config.beta:
        numbers = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=generator)))
        share = torch.from_numpy(numbers.beta(config.beta, config.beta, clips)).float()
    return MixupDraw(
        mixed, partner, share, mixed & (fade < config.fade_p),
        within_range(config.fade_centre, centre), within_range(config.fade_steepness, steepness),
    )  # fmt: skip


def shares_in_time(draw: MixupDraw, config: MixupConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """What is heard of a clip itself and of its partner. Shape: like (B, R, N) -> (B, 1, N) each"""
    mixed, share, fade, centre, steepness = (
        part[:, None, None].to(like)
        for part in (draw.mixed, draw.share, draw.fade, draw.centre, draw.steepness)
    )
    time = (torch.arange(like.shape[-1]).to(like) + 0.5) / like.shape[-1]
    other = mixed * share.lerp(torch.sigmoid(2 * steepness * (time - centre)), fade)
    return 1 - (other if config.convex else other * fade), other


def mix_specs(pictures: Tensor, draw: MixupDraw, config: MixupConfig) -> Tensor:
    """Pictures laid over each other as they are. Shape: (B, R, N) -> the same"""
    own, other = shares_in_time(draw, config, pictures)
    return pictures * own + pictures[draw.partner] * other


def mix_waves(waves: Tensor, draw: MixupDraw, config: MixupConfig) -> Tensor:
    """The weighted sum of the samples, not clipped. Shape: (B, T) -> the same"""
    return mix_specs(waves[:, None], draw, config)[:, 0]


def log_to_energy(spec: Tensor, config: FrontendConfig) -> Tensor:
    """The energies under a raw log spectrogram. Errors: KitError for PCEN"""
    if config.log == "pcen":
        raise KitError("PCEN gives no energies back: mix waves or pictures.")
    if config.log == "db":
        return torch.pow(10.0, spec / 10.0)
    return (spec.exp() - config.log_offset).clamp_min(0.0).pow(2 / config.power)


def mix_energies(specs: Tensor, draw: MixupDraw, config: MixupConfig, frontend: FrontendConfig) -> Tensor:
    """The weighted sum of the energies, as if phases were random; side rows by the roots of the shares.

    Shape:  raw kept spectrograms (B, R, N) -> the same. Errors: as log_to_energy
    """
    energies = mix_specs(log_to_energy(specs[:, : frontend.n_spec_rows], frontend), draw, config)
    mixed = log_scaled(frontend, energies.pow(frontend.power / 2))
    if frontend.extra_rows:
        side = specs[:, frontend.n_spec_rows :]
        own, other = (share.sqrt() for share in shares_in_time(draw, config, specs))
        lengths = [kind == "clip_length" for kind in frontend.extra_rows for _ in range(EXTRA_ROWS[kind])]
        heard = side.where(torch.tensor(lengths, device=side.device)[:, None], side * own)
        mixed = torch.cat(
            [mixed, mix_extra_rows(heard, side[draw.partner] * other, frontend.extra_rows)], dim=1
        )
    return mixed.where(draw.mixed.to(specs.device)[:, None, None], specs)


def mix_labels(targets: Tensor, draw: MixupDraw, config: MixupConfig) -> Tensor:
    """Labels of mixed clips; those that fade unite in any case.

    union: true if either is, unknown if either is, else the greater; sum: soft ones add up to 1.
    Shape:  targets (B, K), NaN where unknown -> the same
    """
    one, two = targets, targets[draw.partner]
    if config.masks == "either":
        one, two = (a.where(~a.isnan() | b.isnan(), 0.0) for a, b in ((one, two), (two, one)))
    greater = torch.fmax(one, two)
    united = mixed = torch.maximum(one, two).where(greater < 1, greater)
    if config.labels == "sum":
        mixed = (one + two).clamp(max=1).where(greater < 1, greater)
    elif config.labels == "weighted":
        mixed = one.lerp(two, draw.share.to(targets)[:, None])
    fade, chosen = (part.to(targets.device)[:, None] for part in (draw.fade, draw.mixed))
    return united.where(fade, mixed).where(chosen, targets)
