"""Five folds of the third-place network on 100 clips: `submit` against the public way and the pure forward.

    python -m tests.benchmarks submit [REPEATS]

Same weights, same files, float32, one process. The public way goes fold by fold, decodes again for each, pads
batches in file order to their longest clip, and transforms inside the network.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from kit.audio.windows import batches_by_length, pad_frames
from kit.infer.loader import SpectrogramLoader
from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.toydata import TOY_CLASSES, toy_clip
from kit.train.recipes import find_recipe
from tests.benchmarks.timing import ratios, show_times, take_turns

CLIPS, FOLDS, CLASSES, BATCH = 100, 5, 80, 16


def make_clips(folder: Path) -> None:
    """100 FLAC clips at 44.1 kHz, their lengths log-normal around 5 s, between 0.3 and 30 s."""
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        seconds = float(np.clip(np.exp(rng.normal(np.log(5.0), 0.95)), 0.3, 30.0))
        wave = toy_clip(2 * seconds, [str(rng.choice(TOY_CLASSES))], rng)
        soundfile.write(folder / f"{i:03d}.flac", wave[: int(seconds * 44100)], 44100)


def make_folds_of(folder: Path) -> list[Path]:
    """Five checkpoints of the published network (9.25 M)."""
    recipe = find_recipe("max-pyramid-mel")
    paths = []
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        card = TaggerCard(
            classes=tuple(f"class_{k}" for k in range(CLASSES)),
            prevalences=(0.02,) * CLASSES,
            frontend=recipe.frontend,
            inference=recipe.inference,
            network=recipe.network,
            fold=fold,
        )
        paths.append(folder / f"fold_{fold}.pt")
        save_tagger(paths[-1], build_tagger(card))
    return paths


def public_way(checkpoints: list[Path], files: list[Path]) -> np.ndarray:
    """Fold by fold, decoding again, padded to the longest of each batch, spectrogram in the forward pass."""
    total = np.zeros((len(files), CLASSES))
    for path in checkpoints:
        tagger = load_tagger(path)
        window = torch.hann_window(2048)
        filters = torch.tensor(tagger.card.frontend.filters(), dtype=torch.float32)
        for first in range(0, len(files), BATCH):
            waves = [
                torch.from_numpy(soundfile.read(f, dtype="float32")[0]) for f in files[first : first + BATCH]
            ]
            batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            with torch.inference_mode():
                magnitudes = torch.stft(batch, 2048, 1024, window=window, return_complex=True).abs()
                mel = (magnitudes.transpose(1, 2) @ filters).transpose(1, 2)
                spec = tagger.frontend.stack((mel + 1e-4).log())
                total[first : first + BATCH] += tagger.network(spec).sigmoid().numpy()
    return total / len(checkpoints)


def pure_inputs(tagger: Tagger, files: list[Path]) -> list[torch.Tensor]:
    """The very batches that `submit` gives the networks, channels-last, made beforehand."""
    loader = SpectrogramLoader(files, {"": tagger.frontend}, torch.device("cpu"))
    inputs = []
    for chunk in loader.walk("pure inputs", progress=False):
        _, specs = loader.specs(chunk, "")
        spans = [
            tagger.card.inference.spans(s.shape[-1], tagger.card.frontend.frames_per_s)[0] for s in specs
        ]
        lengths = [tagger.card.inference.input_frames(span, tagger.min_frames) for span in spans]
        for batch in batches_by_length(lengths, 4000):
            stacked = torch.stack([pad_frames(specs[i], lengths[i], "wrap") for i in batch])
            inputs.append(tagger.frontend.stack(stacked).contiguous(memory_format=torch.channels_last))
    return inputs


def main(repeats: int = 3) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        (folder / "audio").mkdir()
        make_clips(folder / "audio")
        checkpoints = make_folds_of(folder)
        files = sorted((folder / "audio").iterdir())
        by_length = sorted(files, key=lambda f: soundfile.info(f).frames)
        taggers = [load_tagger(path) for path in checkpoints]
        networks = [t.network.to(memory_format=torch.channels_last).eval() for t in taggers]
        apart: list[float] = []

        def ours() -> None:
            shutil.rmtree(folder / "out", ignore_errors=True)
            report = submit(
                checkpoints, folder / "audio", folder / "out" / "submission.csv", progress=False
            ).report
            apart.append(report["seconds_total"])

        ours()
        inputs = pure_inputs(taggers[0], files)

        def forward() -> None:
            with torch.inference_mode():
                for network in networks:
                    for batch in inputs:
                        network(batch)

        forward()
        frames = sum(x.shape[0] * x.shape[-1] for x in inputs)
        print(
            f"submit: {CLIPS} clips, {FOLDS} folds, {frames} frames a fold, {torch.get_num_threads()} threads"
        )
        near = take_turns({"submit": ours, "pure channels-last forward": forward}, repeats)
        near["good version of the public way (sorted)"] = (
            take_turns({"": lambda: public_way(checkpoints, by_length)}, max(1, repeats // 2))[""] * repeats
        )
        near["public way (file order)"] = (
            take_turns({"": lambda: public_way(checkpoints, files)}, 1)[""] * repeats
        )
        near = {name: times[:repeats] for name, times in near.items()}
        show_times(near)
        print(
            "  public way / submit:", ratios(near, "public way (file order)", "submit"), "(bar: at least 5)"
        )
        print(
            "  sorted public way / submit:", ratios(near, "good version of the public way (sorted)", "submit")
        )
        print(
            "  submit / pure forward:",
            ratios(near, "submit", "pure channels-last forward"),
            "(bar: at most 1.25)",
        )
