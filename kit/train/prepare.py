"""Augment and mix the crops of a batch."""

import torch
from torch import Tensor

from kit.audio.augment import augment_waves, draw_wave_augment
from kit.audio.frontend import Frontend
from kit.audio.mixup import draw_mixup, mix_energies, mix_labels, mix_specs, mix_waves
from kit.audio.specaugment import augment_specs, draw_spec_augment
from kit.train.recipe import Recipe
from kit.train.sampler import Batch


def prepare_batch(
    batch: Batch,
    recipe: Recipe,
    frontend: Frontend,
    device: torch.device,
    generator: torch.Generator,
    plain: bool = False,
    mixing: bool = True,
    backgrounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Augment and mix a batch as the recipe says, unless it is `plain`.

    Waveforms are augmented and mixed as such, then become spectrograms. Energies are mixed before the
    normalisation, spectrograms after it.
    Shape:  -> normalised spectrograms (B, M, N), before channels are stacked, and targets (B, K)
    """
    crops = batch.crops.to(device)
    mixup = recipe.mixup
    factor = torch.zeros(len(crops)) if plain else batch.augment_factor
    mix = draw_mixup(mixup, batch.targets, generator, factor if mixing else torch.zeros(len(crops)))
    if recipe.needs_waveforms:
        config = recipe.wave_augment
        waves = crops[:, 0]
        augment = draw_wave_augment(config, len(waves), waves.shape[1], generator, factor)
        waves = augment_waves(waves, augment, config, recipe.frontend.sample_rate, backgrounds)
        if mixup.domain == "wave":
            waves = mix_waves(waves, mix, mixup)
        crops = torch.stack(frontend.spectrograms(list(waves)))
    if mixup.domain == "energy" and mix.mixed.any():
        crops = mix_energies(crops, mix, mixup, recipe.frontend)
    if recipe.needs_waveforms:
        crops = torch.stack([frontend.normalize(spec) for spec in crops])
    if mixup.domain == "spec":
        crops = mix_specs(crops, mix, mixup)
    size = len(crops), recipe.frontend.n_spec_bins, crops.shape[-1]
    masks = draw_spec_augment(recipe.spec_augment, *size, generator, batch.band_rows, factor)
    specs = augment_specs(crops, masks, recipe.spec_augment, frontend)
    return specs, mix_labels(batch.targets, mix, mixup)
