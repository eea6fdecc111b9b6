'''Compare `submit` with the code that is usually published, and with the networks alone.

    python -m tests.benchmarks submit [REPEATS]

Five folds of the third-place network predict 100 clips in float32, in one process. The published way predicts fold
by fold: it decodes the files again for each fold, pads batches in file order to their longest clip, and computes
the spectrogram inside the network.
'''

import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from kit.audio.windows import batches_by_length, pad_frames
from kit.demo import TOY_CLASSES, toy_clip
from kit.infer.loader import SpectrogramLoader
from kit.infer.submit import submit
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.train.recipes import find_recipe
from tests.benchmarks.timing import interleaved_times, print_times, time_ratio

CLIPS = 100
FOLDS = 5
CLASSES = 80
BATCH = 16


def write_clips(folder: Path) -> None:
    '''Write 100 FLAC clips at 44.1 kHz; their lengths are log-normal around 5 s, from 0.3 to 30 s.'''
    rng = np.random.default_rng(0)
    for i in range(CLIPS):
        seconds = float(np.clip(np.exp(rng.normal(np.log(5.0), 0.95)), 0.3, 30.0))
        wave = toy_clip(2 * seconds, [str(rng.choice(TOY_CLASSES))], rng)
        soundfile.write(folder / f'{i:03d}.flac', wave[: int(seconds * 44100)], 44100)


def write_checkpoints(folder: Path) -> list[Path]:
    '''Write five checkpoints of the published network (9.25 M parameters) with random weights.'''
    recipe = find_recipe('max-pyramid-mel')
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
        paths.append(folder / f'fold_{fold}.pt')
        save_tagger(paths[-1], build_tagger(card))
    return paths


def published_way(checkpoints: list[Path], files: list[Path]) -> np.ndarray:
    '''Predict fold by fold, as published code does. Shape: -> (n, K)'''
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


def network_inputs(tagger: Tagger, files: list[Path]) -> list[torch.Tensor]:
    '''Compute the batches that `submit` passes to the networks, channels-last.'''
    loader = SpectrogramLoader(files, {'': tagger.frontend}, torch.device('cpu'))
    inference = tagger.card.inference
    inputs = []
    for chunk in loader.load_chunks('inputs', progress=False):
        _, specs = loader.specs(chunk, '')
        lengths = []
        for spec in specs:
            span = inference.spans(spec.shape[-1], tagger.card.frontend.frames_per_s)[0]
            lengths.append(inference.input_frames(span, tagger.min_frames))
        for batch in batches_by_length(lengths, 4000):
            stacked = torch.stack([pad_frames(specs[i], lengths[i], 'wrap') for i in batch])
            inputs.append(tagger.frontend.stack(stacked).contiguous(memory_format=torch.channels_last))
    return inputs


def main(repeats: int = 3) -> None:
    '''Print the times and their ratios. The published ways are slow, so they run less often.'''
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        audio = folder / 'audio'
        audio.mkdir()
        write_clips(audio)
        checkpoints = write_checkpoints(folder)
        files = sorted(audio.iterdir())
        by_length = sorted(files, key=lambda file: soundfile.info(file).frames)
        taggers = [load_tagger(path) for path in checkpoints]
        networks = [t.network.to(memory_format=torch.channels_last).eval() for t in taggers]

        def run_submit() -> None:
            shutil.rmtree(folder / 'out', ignore_errors=True)
            submit(checkpoints, audio, folder / 'out' / 'submission.csv', progress=False)

        run_submit()  # once before timing
        inputs = network_inputs(taggers[0], files)

        def run_networks() -> None:
            with torch.inference_mode():
                for network in networks:
                    for batch in inputs:
                        network(batch)

        run_networks()
        frames = sum(batch.shape[0] * batch.shape[-1] for batch in inputs)
        threads = torch.get_num_threads()
        print(f'submit: {CLIPS} clips, {FOLDS} folds, {frames} frames per fold, {threads} threads')
        times = interleaved_times({'submit': run_submit, 'networks alone': run_networks}, repeats)
        slow = interleaved_times(
            {'published way, sorted': lambda: published_way(checkpoints, by_length)}, max(1, repeats // 2)
        )
        slow |= interleaved_times({'published way': lambda: published_way(checkpoints, files)}, 1)
        for name, seconds in slow.items():
            times[name] = (seconds * repeats)[:repeats]
        print_times(times)
        print('  published way / submit:', time_ratio(times, 'published way', 'submit'), '(goal: at least 5)')
        print('  published way, sorted / submit:', time_ratio(times, 'published way, sorted', 'submit'))
        print('  submit / networks alone:', time_ratio(times, 'submit', 'networks alone'), '(goal: at most 1.25)')
