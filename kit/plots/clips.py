"""Plots of clips: predictions over time, filters, lengths, augmentations."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kit.audio.augment import WAVE_AUGMENTS, WaveAugmentConfig, augment_waves, draw_wave_augment
from kit.audio.decode import Undecodable, decode_file
from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig, draw_mixup, mix_energies, mix_specs, mix_waves
from kit.audio.specaugment import SpecAugmentConfig, augment_specs, draw_spec_augment
from kit.audio.windows import LengthBuckets
from kit.core.errors import KitError, choose
from kit.infer.ensemble import clip_probabilities
from kit.infer.loader import SpectrogramLoader
from kit.infer.predictor import Predictor
from kit.models.checkpoint import load_tagger
from kit.models.tagger import Tagger
from kit.plots.figure import Drawing, draw_spectrogram, new_figure, shown_name


def draw_clip(checkpoint: str | Path | Tagger, clip: str | Path, truth: Sequence[str] = ()) -> Drawing:
    """A clip's spectrogram over what a tagger says in time, and of the whole clip at the right.

    Shown are true classes, with a mark, and the likeliest, 8 in all. A tagger that listens to whole clips is asked
    about short windows here, which it is not scored by.
    Units: kHz over seconds; calibrated probabilities
    """
    tagger = checkpoint if isinstance(checkpoint, Tagger) else load_tagger(checkpoint)
    card, place = tagger.card, {known: k for k, known in enumerate(tagger.card.classes)}
    true = [choose("class", label, place) for label in truth]
    if not card.calibrated:
        raise KitError("ranks are no probabilities: run `oof` on the tagger's run, which fits them.")
    device = next((part.device for part in tagger.parameters()), torch.device("cpu"))
    loader = SpectrogramLoader([Path(clip)], {"": tagger.frontend.to(device)}, device, threads=1)
    specs = [spec for chunk in loader.walk("listen", progress=False) for spec in loader.specs(chunk, "")[1]]
    if not specs:
        raise KitError(f"{clip} {loader.failures[0]}: give another.")
    along, per_s, frames = card.inference, card.frontend.frames_per_s, specs[0].shape[-1]
    if along.mode == "full":
        window_s = max(0.02, tagger.min_frames / per_s, min(2.0, frames / per_s / 4))
        along = replace(along, mode="windows", window_s=window_s, hop_s=window_s / 4)
    ways = (card.inference, along)
    said, windows = (s for way in ways for s in Predictor(tagger, device, inference=way).predict(specs) if s)
    whole = clip_probabilities(tagger, card.inference, said.logits)
    best = [k for k in np.argsort(-whole, kind="stable") if k not in true]
    rows = sorted(true + best[: max(0, 8 - len(true))], key=lambda k: -whole[k])
    centres = np.mean(windows.spans, axis=1)
    edges = np.concatenate([[0], (centres[1:] + centres[:-1]) / 2, [frames]]) / per_s
    beliefs = tagger.probabilities(torch.from_numpy(windows.logits)).numpy()[:, rows].T
    figure, ((top, key), (below, bars)) = new_figure(
        10, 6, 2, 2, sharex="col", sharey="row", width_ratios=(4, 1), height_ratios=(5, 4)
    )
    picture = tagger.frontend.split(tagger.frontend.normalize(specs[0]))[0][0].float().cpu().numpy()
    draw_spectrogram(top, picture, edges[-1], card.frontend.bin_hz, *np.percentile(picture, (10, 99.9)))
    top.set(ylabel="kHz", title=f"{shown_name(Path(clip).name)}: {edges[-1]:.3g} s")
    places = np.arange(len(rows) + 1) - 0.5
    seen = below.pcolormesh(edges, places, beliefs, cmap="viridis", vmin=0, vmax=1)
    below.grid(visible=False)
    names = ["✓ " * (k in true) + shown_name(card.classes[k]) for k in rows]
    below.set(
        xlabel="seconds", title=f"windows of {along.window_s:.3g} s every {along.hop_s:.3g} s",
        yticks=range(len(rows)), yticklabels=names, ylim=(places[-1], -0.5),
    )  # fmt: skip
    bars.bar_label(bars.barh(range(len(rows)), whole[rows]), fmt=" %.2f")
    bars.set(xlim=(0, 1.3), xlabel="probability", title="of the clip")
    key.set_axis_off()
    figure.colorbar(seen, key.inset_axes((0, 0.3, 1, 0.1)), orientation="horizontal", label="of a window")
    return Drawing(figure)


def draw_filters(frontend: FrontendConfig) -> Drawing:
    """The mel filters of a frontend, of every band, over kHz. Errors: KitError for kind stft, which has none"""
    if frontend.kind != "mel":
        raise KitError("kind='stft' has FFT bins, not filters: give kind='mel'.")
    filters, bin_hz = frontend.filters(), frontend.sample_rate / frontend.n_fft
    figure, axes = new_figure(10, 3.6)
    axes.plot(np.arange(len(filters)) * bin_hz / 1000, filters, linewidth=0.8)
    title = f"{filters.shape[1]} {frontend.mel_scale} mel filters on bins of {bin_hz:.3g} Hz"
    axes.set(xlabel="kHz", ylabel="weight", title=title)
    return Drawing(figure)


def padding_shares(seconds: Sequence[float], frontend: FrontendConfig) -> dict[str, float]:
    """The share of padding in all frames, of batches of 32 filled up to their longest clip, and of the kit's grid."""
    frames = np.array([frontend.frames_of(round(s * frontend.sample_rate)) for s in seconds])
    first = np.arange(0, len(frames), 32)
    filled = {
        name: np.maximum.reduceat(lengths, first).repeat(32)[: len(frames)]
        for name, lengths in (("file order", frames), ("sorted", np.sort(frames)))
    }
    filled["the kit's grid"] = np.array([LengthBuckets().round_up(n) for n in frames.tolist()])
    return {name: 1 - float(frames.sum() / lengths.sum()) for name, lengths in filled.items()}


def draw_lengths(seconds: Sequence[float], frontend: FrontendConfig | None = None) -> Drawing:
    """How long clips are, in the order of their files, and how much of what a network hears would be padding."""
    lasting = np.asarray(seconds, float)
    if not (len(lasting) and np.isfinite(lasting).all() and lasting.min() > 0):
        raise KitError(f"wanted seconds above 0 of some clips, got {len(lasting)}: leave out what fails.")
    figure, (left, right) = new_figure(10, 3.6, 1, 2, width_ratios=(2, 1))
    low, high = lasting.min() / 1.05, lasting.max() * 1.05
    left.hist(lasting, np.geomspace(low, high, 41))
    title = f"{len(lasting):,} clips, {lasting.sum() / 3600:.3g} h; half are over {np.median(lasting):.3g} s"
    left.set(xscale="log", xlim=(low, high), xlabel="seconds", ylabel="clips", title=title)
    ticks = np.outer(10.0 ** np.arange(-3, 5), (1, 2, 5)).ravel()
    left.set_xticks(ticks[(low <= ticks) & (ticks <= high)])
    left.xaxis.set_major_formatter("{x:g}")
    left.minorticks_off()
    shares = padding_shares(lasting.tolist(), frontend or FrontendConfig())
    bars = right.bar([*shares], [100 * share for share in shares.values()])
    right.bar_label(bars, fmt="%.1f %%")
    right.set(ylabel="% of all frames", title="padding, in batches of 32")
    return Drawing(figure)


SHEET_S = 5.0
WAVE_UNITS = {"shift": "samples", "speed": "times", "pitch": "times", "tempo": "times", "reverb": "s"}
SPEC_PANELS = {"filter": "gains", "mask": "time", "outside": "freq", "warp": "warp", "crop": "crop"}
MIX_PANELS = {
    "energies": MixupConfig(p=1.0),
    "waves": MixupConfig(p=1.0, domain="wave", low=0.2, high=0.8),
    "pictures": MixupConfig(p=1.0, domain="spec", convex=True, low=0.2, high=0.5),
    "fading pictures": MixupConfig(p=1.0, domain="spec", fade_p=1.0),
}


def sheet_panels(
    waves: Tensor, frontend: Frontend, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """The title and picture of each panel. Shape: waves (2, T), the clip and its company -> (M, N) each"""

    def seen(some: Tensor) -> Tensor:
        return frontend.normalize(torch.stack(frontend.spectrograms(list(some))))

    specs = seen(waves)
    yield "as it is", specs[0]
    for name in [*WAVE_AUGMENTS, "shift into silence"]:
        kind, *silence_too = name.split(maxsplit=1)
        config = WaveAugmentConfig.from_dict({f"{kind}_p": 1.0, "shift_silence": bool(silence_too)})
        changes = draw_wave_augment(config, 1, waves.shape[1], generator)
        changed = augment_waves(waves[:1], changes, config, frontend.config.sample_rate, waves[1:])
        yield f"{name}: {changes.amounts[kind][0]:.3g} {WAVE_UNITS.get(kind, 'dB')}", seen(changed)[0]
    rows, frames = specs.shape[1:]
    box = torch.tensor([[rows // 3, rows // 2]])
    for name, part in SPEC_PANELS.items():
        settings = SpecAugmentConfig.from_dict({f"{name}_p": 1.0})
        drawn = draw_spec_augment(settings, 1, rows, frames, generator, box)
        numbers = " ".join(f"{number:.3g}" for number in getattr(drawn, part).flatten().tolist())
        yield f"{name}: {part} {numbers}", augment_specs(specs[:1], drawn, settings, frontend)[0]
    for name, mix in MIX_PANELS.items():
        draw = draw_mixup(mix, 2, generator)
        if mix.domain == "energy":
            mixed = mix_energies(specs, draw, mix, frontend.config)
        else:
            wave = mix.domain == "wave"
            mixed = seen(mix_waves(waves, draw, mix)) if wave else mix_specs(specs, draw, mix)
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
