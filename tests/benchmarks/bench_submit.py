'''Compare `submit` with the code that is usually published, and with the networks alone.

    python -m tests.benchmarks submit [REPEATS [CLIPS [RECIPE ...]]]

Five folds of the third place's network (max-pyramid-mel), or of the first place's (skip-attention), predict 100 clips
in float32, in one process. The published way predicts fold by fold, and decodes the files again for each. The third
place's pads batches in file order to their longest clip, and computes the spectrogram inside the network. The first
place's cuts each clip into tiles of 256 frames, one every 64, and predicts these in batches.
'''

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from kit.audio.windows import batches_by_length, pad_frames
from kit.demo import TOY_CLASSES, toy_clip
from kit.infer.loader import SpectrogramLoader
from kit.infer.predictor import compute_spectrograms
from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.train.recipes import find_recipe
from tests.benchmarks.timing import interleaved_times, print_times, time_ratio

FOLDS = 5
CLASSES = 80
BATCH = 16


def write_clips(folder: Path, clips: int) -> None:
    '''Write FLAC clips at 44.1 kHz; their lengths are log-normal around 5 s, from 0.3 to 30 s.'''
    rng = np.random.default_rng(0)
    for i in range(clips):
        seconds = float(np.clip(np.exp(rng.normal(np.log(5.0), 0.95)), 0.3, 30.0))
        wave = toy_clip(2 * seconds, [str(rng.choice(TOY_CLASSES))], rng)
        soundfile.write(folder / f'{i:04d}.flac', wave[: int(seconds * 44100)], 44100)


def write_checkpoints(folder: Path, name: str) -> list[Path]:
    '''Write five checkpoints of a recipe's published network with random weights.'''
    recipe = find_recipe(name)
    paths = []
    for fold in range(FOLDS):
        torch.manual_seed(fold)
        card = TaggerCard(
            classes=tuple(f'class_{k}' for k in range(CLASSES)),
            prevalences=(0.02,) * CLASSES,
            frontend=recipe.frontend,
            inference=recipe.inference,
            network=recipe.network,
            fold=fold,
        )
        paths.append(folder / f'{name}_{fold}.pt')
        save_tagger(paths[-1], build_tagger(card))
    return paths


def predict_in_file_order(checkpoints: list[Path], files: list[Path]) -> np.ndarray:
    '''Predict fold by fold, as the third place's code does. Shape: -> (n, K)'''
    total = np.zeros((len(files), CLASSES))
    for path in checkpoints:
        tagger = load_tagger(path)
        window = torch.hann_window(2048)
        filters = torch.tensor(tagger.card.frontend.filters(), dtype=torch.float32)
        for first in range(0, len(files), BATCH):
            waves = []
            for file in files[first : first + BATCH]:
                samples, _ = soundfile.read(file, dtype='float32')
                waves.append(torch.from_numpy(samples))
            batch = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
            with torch.inference_mode():
                magnitudes = torch.stft(batch, 2048, 1024, window=window, return_complex=True).abs()
                mel = (magnitudes.transpose(1, 2) @ filters).transpose(1, 2)
                spec = tagger.frontend.stack((mel + 1e-4).log())
                total[first : first + BATCH] += tagger.network(spec).sigmoid().numpy()
    return total / len(checkpoints)


def predict_in_tiles(checkpoints: list[Path], files: list[Path]) -> np.ndarray:
    '''Predict fold by fold, as the first place's code does. Shape: -> (n, K)'''
    total = np.zeros((len(files), CLASSES))
    for path in checkpoints:
        tagger = load_tagger(path)
        inference = tagger.card.inference
        tiles: list[torch.Tensor] = []
        clip_of: list[int] = []
        for clip, file in enumerate(files):
            samples, _ = soundfile.read(file, dtype='float32')
            (spec,) = compute_spectrograms(tagger.frontend, [torch.from_numpy(samples)])
            spans = inference.spans(spec.shape[-1], tagger.card.frontend.frames_per_s)
            tiles += [pad_frames(spec[:, start:end], spans[0][1] - spans[0][0], 'wrap') for start, end in spans]
            clip_of += [clip] * len(spans)
        counts = np.bincount(clip_of)
        with torch.inference_mode():
            for first in range(0, len(tiles), BATCH):
                batch = slice(first, first + BATCH)
                probs = tagger.network(tagger.frontend.stack(torch.stack(tiles[batch]))).sigmoid().numpy()
                np.add.at(total, clip_of[batch], probs / counts[clip_of[batch], None])
    return total / len(checkpoints)


def network_inputs(tagger: Tagger, files: list[Path]) -> list[torch.Tensor]:
    '''Compute the batches that `submit` passes to the networks, channels-last.'''
    loader = SpectrogramLoader(files, {'': tagger.frontend}, torch.device('cpu'))
    inference = tagger.card.inference
    inputs = []
    for chunk in loader.load_chunks('inputs', progress=False):
        parts = []
        lengths = []
        for spec in loader.specs(chunk, '')[1]:
            for span in inference.spans(spec.shape[-1], tagger.card.frontend.frames_per_s):
                lengths.append(inference.input_frames(span, tagger.min_frames))
                parts.append(spec[:, slice(*span)])
        for batch in batches_by_length(lengths, 4000):
            stacked = torch.stack([pad_frames(parts[i], lengths[i], 'wrap') for i in batch])
            inputs.append(tagger.frontend.stack(stacked).contiguous(memory_format=torch.channels_last))
    return inputs


def compare(name: str, audio: Path, repeats: int) -> None:
    '''Print the times of one recipe's five folds, and their ratios. The published ways are slow: they run once.'''
    checkpoints = write_checkpoints(audio.parent, name)
    files = sorted(audio.iterdir())
    by_length = sorted(files, key=lambda file: soundfile.info(file).frames)
    taggers = [load_tagger(path) for path in checkpoints]
    networks = [tagger.network.to(memory_format=torch.channels_last).eval() for tagger in taggers]
    inputs = network_inputs(taggers[0], files)
    submit_clips = functools.partial(
        submit, checkpoints, audio, audio.parent / 'out' / 'submission.csv', progress=False
    )

    def run_submit(**options: Any) -> None:
        shutil.rmtree(audio.parent / 'out', ignore_errors=True)
        submit_clips(**options)

    def run_networks() -> None:
        with torch.inference_mode():
            for network in networks:
                for batch in inputs:
                    network(batch)

    published: dict[str, Callable[[], object]] = {
        'published way': lambda: predict_in_file_order(checkpoints, files),
        'published way, sorted': lambda: predict_in_file_order(checkpoints, by_length),
    }
    ours: dict[str, Callable[[], object]] = {'submit': run_submit, 'networks alone': run_networks}
    if taggers[0].card.inference.mode == 'windows':
        published = {'published way': lambda: predict_in_tiles(checkpoints, files)}
        ours['submit --mode full'] = lambda: run_submit(mode='full')
    run_submit()  # once before timing
    run_networks()
    frames = sum(batch.shape[0] * batch.shape[-1] for batch in inputs)
    print(f'{name}: {len(files)} clips, {FOLDS} folds, {frames} frames per fold, {torch.get_num_threads()} threads')
    times = interleaved_times(ours, repeats)
    for way, seconds in interleaved_times(published, 1).items():
        times[way] = seconds * repeats
    print_times(times)
    for way in times:
        print(f'  {way} / submit:', time_ratio(times, way, 'submit'))


def main(repeats: int = 3, clips: int = 100, *recipes: str) -> None:
    '''Compare the recipes one after the other.'''
    with tempfile.TemporaryDirectory() as name:
        audio = Path(name) / 'audio'
        audio.mkdir()
        write_clips(audio, clips)
        for recipe in recipes or ('max-pyramid-mel', 'skip-attention'):
            compare(recipe, audio, repeats)
