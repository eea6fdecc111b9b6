"""The systems' networks: size, pace, stride and shortest input, as a table of the README.

Run: python -m tests.benchmarks families [REPEATS]
"""

import statistics

import torch

from kit.infer.predictor import Predictor
from kit.models.families import complete_network
from kit.models.network import Network, receptive_field
from kit.models.tagger import TaggerCard, build_tagger, input_shape
from kit.train.recipes import SYSTEMS, System
from tests.benchmarks.timing import take_turns

SECONDS = 20.0


def listener_of(system: System) -> Predictor:
    """A tagger of a system with fresh weights, at work on the CPU; as many classes as its competition had."""
    n_classes = len(system.frontend.bands_hz) or (24 if system.frontend.sample_rate == 48000 else 80)
    classes = tuple(f"c{k}" for k in range(n_classes))
    card = TaggerCard(classes=classes, prevalences=(0.5,) * n_classes, frontend=system.frontend,
                      network=system.network, inference=system.inference)  # fmt: skip
    return Predictor(build_tagger(card).eval(), torch.device("cpu"))


def heard_field(predictor: Predictor) -> str:
    """Seconds that one step of the deepest map hears."""
    network, config = predictor.tagger.network, predictor.tagger.card.frontend
    if not isinstance(network, Network) or config.image_size:
        return "-"
    frames = receptive_field(network.backbone, input_shape(config))
    return "all" if frames is None else f"{frames / config.frames_per_s:.2f} s"


def family_of(system: System) -> str:
    """The family of a system's network, and the timm model that it is built on."""
    network = complete_network(system.network)
    name = network.get("name") or network.get("backbone", {}).get("name")
    return f"{network['family']} ({name.partition('.')[0]})" if name else str(network["family"])


def step_of(system: System, stride: int) -> str:
    """A step of the deepest map, in frames or in columns of a resized picture, and in time."""
    image, inference = system.frontend.image_size, system.inference
    unit, per_s = (
        ("columns", image[1] / inference.window_s) if image else ("frames", system.frontend.frames_per_s)
    )
    return f"{stride} {unit}, {1e3 * stride / per_s:.0f} ms"


def main(repeats: int = 3) -> None:
    """Print a row per system: median milliseconds of network time per second of audio, listened to its own way."""
    predictors = {name: listener_of(system) for name, system in SYSTEMS.items()}
    generator = torch.Generator().manual_seed(0)
    works = {}
    for name, predictor in predictors.items():
        config = predictor.tagger.card.frontend
        spec = torch.rand(config.rows, round(SECONDS * config.frames_per_s), generator=generator)
        works[name] = lambda predictor=predictor, spec=spec: predictor.predict([spec])
        works[name]()
    times = take_turns(works, repeats)
    print(f"networks alone on {SECONDS:.0f} s of audio, {torch.get_num_threads()} threads, {repeats} turns")
    print("| system | family | parameters | ms per s of audio | stride | hears | shortest input |")
    print("|---|---|---|---|---|---|---|")
    for name, predictor in predictors.items():
        tagger, per_s = predictor.tagger, SYSTEMS[name].frontend.frames_per_s
        millions = sum(p.numel() for p in tagger.network.parameters()) / 1e6
        pace = [1e3 * t / SECONDS for t in times[name]]
        stride, least = tagger.network.stride, tagger.min_frames
        print(
            f"| `{name}` | {family_of(SYSTEMS[name])} | {millions:.2f} M "
            f"| {statistics.median(pace):.1f} ({min(pace):.1f}-{max(pace):.1f}) "
            f"| {step_of(SYSTEMS[name], stride)} | {heard_field(predictor)} "
            f"| {f'{least} frames, {least / per_s:.2f} s' if least > 1 else 'any, resized'} |"
        )


if __name__ == "__main__":
    main()
