'''Plots of clips: predictions over time, lengths and augmentations.'''

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
from kit.core.errors import KitError, choose
from kit.infer.ensemble import clip_probabilities
from kit.infer.loader import SpectrogramLoader
from kit.infer.predictor import Predictor
from kit.models.checkpoint import load_tagger
from kit.models.tagger import Tagger
from kit.plots.figure import Plot, draw_spectrogram, new_figure, shown_name


def draw_clip(checkpoint: str | Path | Tagger, clip: str | Path, truth: Sequence[str] = ()) -> Plot:
    '''One clip: its spectrogram above each window's probabilities, with the whole clip's at the right.

    The rows are the true classes, marked ✓, and the most probable others, 8 in all. A tagger that predicts
    whole clips also predicts short windows here, although its out-of-fold score does not measure that.

    Units:  kHz over seconds; calibrated probabilities
    Errors: KitError for an unknown class, a clip that cannot be decoded, or a ranking without calibration
    '''
    tagger = checkpoint if isinstance(checkpoint, Tagger) else load_tagger(checkpoint)
    card = tagger.card
    class_index = {name: k for k, name in enumerate(card.classes)}
    true = [choose('class', name, class_index) for name in truth]
    if not card.is_calibrated:
        raise KitError('this tagger gives a ranking, not probabilities: run `oof`, which calibrates it.')
    device = next((part.device for part in tagger.parameters()), torch.device('cpu'))
    loader = SpectrogramLoader([Path(clip)], {'': tagger.frontend.to(device)}, device, threads=1)
    specs = [spec for chunk in loader.load_chunks('load', progress=False) for spec in loader.specs(chunk, '')[1]]
    if not specs:
        raise KitError(f'{clip} {loader.failures[0]}: pass another clip.')

    frames_per_s = card.frontend.frames_per_s
    frames = specs[0].shape[-1]
    seconds = frames / frames_per_s
    by_window = card.inference
    if by_window.mode == 'full':
        window_s = max(0.02, tagger.min_frames / frames_per_s, min(2.0, seconds / 4))
        by_window = replace(by_window, mode='windows', window_s=window_s, hop_s=window_s / 4)
    outputs = Predictor(tagger, device, inference=card.inference).predict(specs)[0]
    windows = Predictor(tagger, device, inference=by_window).predict(specs)[0]
    assert outputs and windows  # nothing stops these predictions
    clip_probs = clip_probabilities(tagger, card.inference, outputs.logits)
    ranked = np.argsort(-clip_probs, kind='stable').tolist()
    others = [k for k in ranked if k not in true][: max(0, 8 - len(true))]
    rows = sorted(true + others, key=lambda k: -clip_probs[k])
    window_probs = tagger.probabilities(torch.from_numpy(windows.logits)).numpy()[:, rows]

    figure, ((top, key), (bottom, right)) = new_figure(
        10, 6, 2, 2, sharex='col', sharey='row', width_ratios=(4, 1), height_ratios=(5, 4)
    )
    image = tagger.frontend.split(tagger.frontend.normalize(specs[0]))[0][0].float().cpu().numpy()
    low, high = np.percentile(image, (10, 99.9))
    draw_spectrogram(top, image, seconds, card.frontend.bin_hz, low, high)
    top.set(ylabel='kHz', title=f'{shown_name(Path(clip).name)}: {seconds:.3g} s')

    # Windows overlap: each is drawn up to the middle between its centre and the next one's.
    centres = np.mean(windows.spans, axis=1)
    edges = np.concatenate([[0], (centres[1:] + centres[:-1]) / 2, [frames]]) / frames_per_s
    row_edges = np.arange(len(rows) + 1) - 0.5
    mesh = bottom.pcolormesh(edges, row_edges, window_probs.T, cmap='viridis', vmin=0, vmax=1)
    bottom.grid(visible=False)
    labels = [('✓ ' if k in true else '') + shown_name(card.classes[k]) for k in rows]
    bottom.set(yticks=range(len(rows)), yticklabels=labels, ylim=(row_edges[-1], row_edges[0]))
    bottom.set(xlabel='seconds', title=f'windows of {by_window.window_s:.3g} s every {by_window.hop_s:.3g} s')

    right.bar_label(right.barh(range(len(rows)), clip_probs[rows]), fmt=' %.2f')
    right.set(xlim=(0, 1.3), xlabel='probability', title='whole clip')
    key.set_axis_off()
    figure.colorbar(mesh, key.inset_axes((0, 0.3, 1, 0.1)), orientation='horizontal', label='probability in a window')
    return Plot(figure)


def draw_lengths(seconds: Sequence[float]) -> Plot:
    '''Clip lengths: their histogram.

    Errors: KitError without clips, or for a length that is not a number above 0
    '''
    lengths = np.asarray(seconds, float)
    if not (len(lengths) and np.isfinite(lengths).all() and lengths.min() > 0):
        raise KitError(f'wanted seconds above 0, got {len(lengths)} lengths: leave out clips without one.')
    figure, axes = new_figure(10, 3.6)
    low, high = lengths.min() / 1.05, lengths.max() * 1.05
    axes.hist(lengths, np.geomspace(low, high, 41))
    title = f'{len(lengths):,} clips, {lengths.sum() / 3600:.3g} h in all, median {np.median(lengths):.3g} s'
    axes.set(xscale='log', xlim=(low, high), xlabel='seconds', ylabel='clips', title=title)
    ticks = np.outer(10.0 ** np.arange(-3, 5), (1, 2, 5)).ravel()
    axes.set_xticks(ticks[(low <= ticks) & (ticks <= high)])
    axes.xaxis.set_major_formatter('{x:g}')
    axes.minorticks_off()
    return Plot(figure)


SHEET_COLUMNS = 5
SPEC_PANELS = ('filter', 'mask', 'outside', 'warp', 'crop')
MIX_PANELS = {
    'energies': MixupConfig(p=1.0),
    'waves': MixupConfig(p=1.0, domain='wave', low=0.2, high=0.8),
    'spectrograms': MixupConfig(p=1.0, domain='spec', convex=True, low=0.2, high=0.5),
    'fading spectrograms': MixupConfig(p=1.0, domain='spec', fade_p=1.0),
}


def sheet_panels(waves: Tensor, frontend: Frontend, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    '''Yield the title and the spectrogram (M, N) of each panel. Shape: waves (2, T), a clip and its mixup partner'''

    def spectrograms(batch: Tensor) -> Tensor:
        return frontend.normalize(torch.stack(frontend.spectrograms(list(batch))))

    specs = spectrograms(waves)
    yield 'original', specs[0]

    for name in WAVE_AUGMENTS:
        wave_config = WaveAugmentConfig().override([f'{name}_p=1'])
        wave_draw = draw_wave_augment(wave_config, 1, waves.shape[1], generator)
        changed = augment_waves(waves[:1], wave_draw, wave_config, frontend.config.sample_rate, waves[1:])
        yield f'{name}: {float(wave_draw.amounts[name][0]):.3g}', spectrograms(changed)[0]

    rows, frames = specs.shape[1:]
    box = torch.tensor([[rows // 3, rows // 2]])
    for name in SPEC_PANELS:
        spec_config = SpecAugmentConfig().override([f'{name}_p=1'])
        spec_draw = draw_spec_augment(spec_config, 1, rows, frames, generator, box)
        yield name, augment_specs(specs[:1], spec_draw, spec_config, frontend)[0]

    for name, mix_config in MIX_PANELS.items():
        mix_draw = draw_mixup(mix_config, torch.zeros(2, 1), generator)
        if mix_config.domain == 'energy':
            mixed = mix_energies(specs, mix_draw, mix_config, frontend.config)
        elif mix_config.domain == 'wave':
            mixed = spectrograms(mix_waves(waves, mix_draw, mix_config))
        else:
            mixed = mix_specs(specs, mix_draw, mix_config)
        amount = float(mix_draw.centre[0] if mix_config.fade_p else mix_draw.share[0])
        yield f'mixup of {name}: {amount:.0%}', mixed[0]


def draw_contact_sheet(clip: str | Path, out: str | Path = 'augmentations.png', seed: int = 0) -> Plot:
    '''One page with a clip's spectrogram under every augmentation. Mixup mixes the clip with itself reversed.

    Titles show the drawn amounts in the units of the recipe's settings; a shift is in samples.

    Options:
        clip: the audio file; its first 5 s are shown
        out: the image to write
        seed: seed of the random draws
    '''
    sound = decode_file(Path(clip))
    if isinstance(sound, Undecodable):
        raise KitError(f'{clip} {sound.reason}: pass another clip.')
    wave = torch.from_numpy(sound.wave[: round(5.0 * sound.sample_rate)]).float()
    frontend = Frontend(FrontendConfig(sample_rate=sound.sample_rate, top_db=80.0))
    panels = list(sheet_panels(torch.stack([wave, wave.flip(0)]), frontend, torch.Generator().manual_seed(seed)))
    # All panels have the colours of the original: their levels can be compared.
    peak_db = float(panels[0][1].max())
    seconds = len(wave) / sound.sample_rate
    figure, grid = new_figure(16, 9.5, -(-len(panels) // SHEET_COLUMNS), SHEET_COLUMNS, sharex=True, sharey=True)
    for axes, (title, spec) in zip(grid.flat, panels, strict=False):
        draw_spectrogram(axes, spec.numpy(), seconds, frontend.config.bin_hz, peak_db - 80, peak_db)
        axes.set_title(title, fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(f'{shown_name(Path(clip).name)}: kHz over seconds, 80 dB from black to white')
    return Plot(figure).save(out)
