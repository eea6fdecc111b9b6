'''Measure the published systems' networks: size, speed, stride, receptive field and shortest input.

python -m tests.benchmarks families [REPEATS]
'''

import statistics

import torch

from kit.infer.predictor import Predictor
from kit.models.families import complete_network
from kit.models.network import Network
from kit.models.tagger import TaggerCard, build_tagger, input_shape
from kit.train.recipe import Recipe
from kit.train.recipes import RECIPES
from tests.behaviour.receptive import receptive_field
from tests.benchmarks.timing import interleaved_times

SECONDS = 20.0
COLUMNS = ('system', 'family', 'parameters', 'ms per s of audio', 'stride', 'receptive field', 'shortest input')


def make_predictor(system: Recipe) -> Predictor:
    '''Build a system's tagger with fresh weights and as many classes as its competition had.'''
    n_classes = 24 if system.frontend.sample_rate == 48000 else 80
    if system.network['family'] == 'freq-crop':
        bands = [[400 * k, 400 * k + 3000] for k in range(n_classes)]
        system = system.override([f'frontend.bands_hz={bands}'])
    card = TaggerCard(
        classes=tuple(f'c{k}' for k in range(n_classes)),
        prevalences=(0.5,) * n_classes,
        frontend=system.frontend,
        network=system.network,
        inference=system.inference,
    )
    return Predictor(build_tagger(card).eval(), torch.device('cpu'))


def family_text(system: Recipe) -> str:
    '''Name the family of a system's network, and the timm model that it is built on.'''
    network = complete_network(system.network)
    name = network.get('name') or network.get('backbone', {}).get('name')
    return f'{network["family"]} ({name.partition(".")[0]})' if name else str(network['family'])


def stride_text(system: Recipe, stride: int) -> str:
    '''Describe one step of the deepest feature map, in frames or in columns of a resized image, and in time.'''
    size = system.frontend.image_size
    if size:
        unit = 'columns'
        per_s = size[1] / system.inference.window_s
    else:
        unit = 'frames'
        per_s = system.frontend.frames_per_s
    return f'{stride} {unit}, {1e3 * stride / per_s:.0f} ms'


def field_text(predictor: Predictor) -> str:
    '''Describe the receptive field over time of one step of the deepest feature map.'''
    network = predictor.tagger.network
    config = predictor.tagger.card.frontend
    if not isinstance(network, Network) or config.image_size:
        return '-'
    frames = receptive_field(network.backbone, input_shape(config))
    return 'all' if frames is None else f'{frames / config.frames_per_s:.2f} s'


def main(repeats: int = 3) -> None:
    '''Print a row per system, with the network's time in the system's own inference mode.'''
    predictors = {name: make_predictor(system) for name, system in RECIPES.items()}
    generator = torch.Generator().manual_seed(0)
    works = {}
    for name, predictor in predictors.items():
        config = predictor.tagger.card.frontend
        spec = torch.rand(config.rows, round(SECONDS * config.frames_per_s), generator=generator)
        works[name] = lambda predictor=predictor, spec=spec: predictor.predict([spec])
        works[name]()  # once before timing
    times = interleaved_times(works, repeats)
    print(f'networks alone on {SECONDS:.0f} s of audio, {torch.get_num_threads()} threads, {repeats} turns')
    print(f'| {" | ".join(COLUMNS)} |')
    print('|---' * len(COLUMNS) + '|')
    for name, predictor in predictors.items():
        system = RECIPES[name]
        tagger = predictor.tagger
        parameters = sum(p.numel() for p in tagger.network.parameters())
        ms_per_s = [1e3 * seconds / SECONDS for seconds in times[name]]
        shortest = 'any, resized'
        if tagger.min_frames > 1:
            shortest_s = tagger.min_frames / system.frontend.frames_per_s
            shortest = f'{tagger.min_frames} frames, {shortest_s:.2f} s'
        cells = [
            f'`{name}`',
            family_text(system),
            f'{parameters / 1e6:.2f} M',
            f'{statistics.median(ms_per_s):.1f} ({min(ms_per_s):.1f}-{max(ms_per_s):.1f})',
            stride_text(system, tagger.network.strides[-1]),
            field_text(predictor),
            shortest,
        ]
        print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
