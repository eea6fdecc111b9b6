"""Clips, or how they are heard, in, pictures out: what a tagger says over time, its filters, padding."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from kit.core.errors import KitError, choose
from kit.infer.checkpoint import load_tagger
from kit.infer.engine import Listener
from kit.infer.hearing import Hearing
from kit.infer.session import clip_scores
from kit.models.tagger import Tagger
from kit.pictures.figure import Drawing, draw_spectrogram, new_figure, shown_name
from kit.sound.frontend import FrontendConfig
from kit.sound.lengths import LengthGrid


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
    hearing = Hearing([Path(clip)], {"": tagger.frontend.to(device)}, device, threads=1)
    specs = [spec for burst in hearing.walk("listen", progress=False) for spec in hearing.specs(burst, "")[1]]
    if not specs:
        raise KitError(f"{clip} {hearing.failures[0]}: give another.")
    along, per_s, frames = card.listening, card.frontend.frames_per_s, specs[0].shape[-1]
    if along.mode == "full":
        window_s = max(0.02, tagger.min_frames / per_s, min(2.0, frames / per_s / 4))
        along = replace(along, mode="windows", window_s=window_s, hop_s=window_s / 4)
    ways = (card.listening, along)
    said, windows = (s for way in ways for s in Listener(tagger, device, listening=way).listen(specs) if s)
    whole = clip_scores(tagger, card.listening, said.logits)
    best = [k for k in np.argsort(-whole, kind="stable") if k not in true]
    rows = sorted(true + best[: max(0, 8 - len(true))], key=lambda k: -whole[k])
    centres = np.mean(windows.spans, axis=1)
    edges = np.concatenate([[0], (centres[1:] + centres[:-1]) / 2, [frames]]) / per_s
    beliefs = tagger.probabilities(torch.from_numpy(windows.logits)).numpy()[:, rows].T
    figure, ((top, key), (below, bars)) = new_figure(
        10, 6, 2, 2, sharex="col", sharey="row", width_ratios=(4, 1), height_ratios=(5, 4)
    )
    picture = tagger.frontend.split(tagger.frontend.level(specs[0]))[0][0].float().cpu().numpy()
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
    filled["the kit's grid"] = np.array([LengthGrid().round_up(n) for n in frames.tolist()])
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
