'''Measure mode frames against mode windows on a minute of audio, and fused batch norms.

python -m tests.benchmarks frames [REPEATS]
'''

import time
from dataclasses import replace

import torch
from torch import nn

from kit.audio.windows import InferenceConfig
from kit.infer.predictor import Predictor
from kit.models.tagger import Tagger, TaggerCard, build_tagger
from kit.train.recipe import Recipe
from kit.train.recipes import RECIPES, find_recipe
from tests.benchmarks.timing import interleaved_times, print_times, time_ratio

SECONDS = 60.0
WINDOWS = InferenceConfig(mode='windows', window_s=4.0, hop_s=0.5)


def make_tagger(system: Recipe) -> Tagger:
    '''Build a system's tagger for 24 classes, with fresh weights and batch norms that change their input.'''
    card = TaggerCard(classes=tuple(f'c{k}' for k in range(24)), frontend=system.frontend, network=system.network)
    tagger = build_tagger(card).eval()
    generator = torch.Generator().manual_seed(0)
    for module in tagger.network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return tagger


def systems() -> dict[str, Recipe]:
    '''The networks to measure: a large EfficientNet, and a small pyramid on the same windows.'''
    small = find_recipe('max-pyramid-mel', small=True)
    return {
        'freq-coord (EfficientNet-B3)': RECIPES['freq-coord'],
        'max-pyramid-mel --small': small,
        'max-pyramid-mel': RECIPES['max-pyramid-mel'],
        'sed (EfficientNetV2-S, attention)': RECIPES['sed'],
    }


def main(repeats: int = 3) -> None:
    '''Print the time of each mode over a minute, and the speed-up of frames over windows, and of fusing.'''
    torch.set_num_threads(1)
    device = torch.device('cpu')
    print(f'4-s windows every 0.5 s over {SECONDS:.0f} s, 1 thread, processor seconds, {repeats} turns')
    for name, system in systems().items():
        tagger = make_tagger(system)
        generator = torch.Generator().manual_seed(0)
        frames = round(SECONDS * system.frontend.frames_per_s)
        spec = torch.randn(system.frontend.rows, frames, generator=generator)
        modes = {mode: replace(WINDOWS, mode=mode) for mode in ('windows', 'frames')}
        predictors = {mode: Predictor(tagger, device, inference=way, fuse=True) for mode, way in modes.items()}
        predictors['windows, unfused'] = Predictor(tagger, device, inference=modes['windows'])
        works = {mode: lambda p=predictor, s=spec: p.predict([s]) for mode, predictor in predictors.items()}
        for work in works.values():
            work()  # once before timing
        times = interleaved_times(works, repeats, time.process_time)
        print(name)
        print_times(times)
        print(f'  frames against windows: {time_ratio(times, "windows", "frames")}')
        print(f'  fused against unfused: {time_ratio(times, "windows, unfused", "windows")}')


if __name__ == '__main__':
    main()
