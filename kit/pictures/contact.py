"""A clip in, one page out: its spectrogram under every augmentation, each with what was drawn."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kit.core.errors import KitError
from kit.pictures.figure import Drawing, draw_spectrogram, new_figure
from kit.sound.augment import WAVE_CHANGES, WaveAugmentConfig, change_waves, draw_wave_changes
from kit.sound.decode import Undecodable, decode_file
from kit.sound.frontend import Frontend, FrontendConfig
from kit.sound.mixing import MixConfig, draw_mixes, mix_energies, mix_pictures, mix_waves
from kit.sound.specaugment import SpecAugmentConfig, change_specs, draw_spec_changes

SHEET_S = 5.0
WAVE_UNITS = {"roll": "samples", "speed": "times", "pitch": "times", "tempo": "times", "reverb": "s"}
SPEC_PANELS = {"filter": "gains", "mask": "time", "outside": "freq", "warp": "warp", "crop": "crop"}
MIX_PANELS = {
    "energies": MixConfig(p=1.0),
    "waves": MixConfig(p=1.0, domain="wave", low=0.2, high=0.8),
    "pictures": MixConfig(p=1.0, domain="picture", convex=True, low=0.2, high=0.5),
    "fading pictures": MixConfig(p=1.0, domain="picture", fade_p=1.0),
}


def sheet_panels(
    waves: Tensor, frontend: Frontend, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """The title and picture of each panel. Shape: waves (2, T), the clip and its company -> (M, N) each"""

    def seen(some: Tensor) -> Tensor:
        return frontend.level(torch.stack(frontend.spectrograms(list(some))))

    specs = seen(waves)
    yield "as it is", specs[0]
    for name in [*WAVE_CHANGES, "roll into silence"]:
        kind, *silence_too = name.split(maxsplit=1)
        config = WaveAugmentConfig.from_dict({f"{kind}_p": 1.0, "roll_silence": bool(silence_too)})
        changes = draw_wave_changes(config, 1, waves.shape[1], generator)
        changed = change_waves(waves[:1], changes, config, frontend.config.sample_rate, waves[1:])
        yield f"{name}: {changes.amounts[kind][0]:.3g} {WAVE_UNITS.get(kind, 'dB')}", seen(changed)[0]
    rows, frames = specs.shape[1:]
    box = torch.tensor([[rows // 3, rows // 2]])
    for name, part in SPEC_PANELS.items():
        settings = SpecAugmentConfig.from_dict({f"{name}_p": 1.0})
        drawn = draw_spec_changes(settings, 1, rows, frames, generator, box)
        numbers = " ".join(f"{number:.3g}" for number in getattr(drawn, part).flatten().tolist())
        yield f"{name}: {part} {numbers}", change_specs(specs[:1], drawn, settings, frontend)[0]
    for name, mix in MIX_PANELS.items():
        draw = draw_mixes(mix, 2, generator)
        if mix.domain == "energy":
            mixed = mix_energies(specs, draw, mix, frontend.config)
        else:
            wave = mix.domain == "wave"
            mixed = seen(mix_waves(waves, draw, mix)) if wave else mix_pictures(specs, draw, mix)
        yield f"mixed {name}: {draw.centre[0] if mix.fade_p else draw.share[0]:.0%}", mixed[0]


def draw_contact_sheet(clip: str | Path, out: str | Path = "augmentations.png", seed: int = 0) -> Drawing:
    """One page with a clip's log-mel under every augmentation; what it is mixed with is itself, reversed.

    Options:
        clip: the audio file; its first 5 s are shown
        out: the picture to write
        seed: of what is drawn
    """
    sound = decode_file(Path(clip))
    if isinstance(sound, Undecodable):
        raise KitError(f"{clip} {sound.reason}: give another.")
    wave = torch.from_numpy(sound.wave[: round(SHEET_S * sound.sample_rate)]).float()
    frontend = Frontend(FrontendConfig(sample_rate=sound.sample_rate, top_db=80.0))
    generator = torch.Generator().manual_seed(seed)
    panels = list(sheet_panels(torch.stack([wave, wave.flip(0)]), frontend, generator))
    peak, seconds = float(panels[0][1].max()), len(wave) / sound.sample_rate
    figure, grid = new_figure(16, 9.5, -(-len(panels) // 5), 5, sharex=True, sharey=True)
    for axes, (title, picture) in zip(grid.flat, panels, strict=False):
        draw_spectrogram(axes, picture.numpy(), seconds, frontend.config.bin_hz, peak - 80, peak)
        axes.set_title(title, fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(f"{Path(clip).name}: kHz over seconds, 80 dB from black to white")
    return Drawing(figure).save(out)
