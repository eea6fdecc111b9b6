'''The tagger: a frontend and a network, from waveforms to logits, and taggers of networks that are not of the kit.'''

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.config import Config, setting
from kit.core.errors import KitError, one_line
from kit.core.files import expand_pattern
from kit.core.runtime import VERSION
from kit.labels.calibration import Calibration
from kit.models.families import FAMILIES, build_network, complete_network
from kit.models.network import InputShape


def input_shape(config: FrontendConfig) -> InputShape:
    '''Describe what a frontend gives to its network; bins resized to an image have no frequencies.'''
    bin_hz = () if config.image_size else tuple(config.bin_hz.tolist())
    return InputShape(len(config.channel_names), config.n_bins, config.n_extra_rows, bin_hz, len(config.mel_bands))


@dataclass(frozen=True)
class TaggerCard(Config):
    '''Everything about a tagger except its tensors; a checkpoint stores it as JSON.'''

    classes: tuple[str, ...] = setting((), 'class names, in the order of the logits')
    prevalences: tuple[float, ...] = setting((), 'shares of classes: prediction for an unreadable clip', low=0, high=1)
    frontend: FrontendConfig = setting(FrontendConfig(), 'how waveforms become spectrograms')
    inference: InferenceConfig = setting(InferenceConfig(), 'how a clip is predicted')
    network: dict[str, Any] = setting({}, "the network's family and settings")
    min_frames: int = setting(1, 'frames to which shorter clips are padded', low=1, high=1_000_000)
    output: str = setting(
        'probability', 'what sigmoid(logits) is; ranking: only their order counts', choices=('probability', 'ranking')
    )
    returns: str = setting('logits', 'what the network returns', choices=('logits', 'probabilities'))
    calibration: Calibration | None = setting(None, 'scale and offset of the logits, fitted out of fold')
    fold: int | None = setting(None, 'the fold it was not trained on', low=-1, high=10**6)
    held_out: str = setting('', "digest of that fold's clip names")
    seed: int = setting(0, 'seed of its training', low=-(2**63), high=2**64)
    oof_score: float | None = setting(None, "the recipe's metric on that fold", low=-1e9, high=1e9)
    recipe: dict[str, Any] = setting({}, 'the recipe of its training')
    train_prevalences: tuple[float, ...] = setting((), 'share of true ones in drawn labels, by class', low=0, high=1e6)
    version: str = setting(VERSION, 'version of the kit that wrote it')

    def check(self) -> None:
        n = len(self.classes)
        if n == 0 or len(set(self.classes)) != n:
            raise KitError(f'a tagger needs class names, each once, got {n}.')
        if not self.prevalences:
            object.__setattr__(self, 'prevalences', (1.0 / n,) * n)
        if len(self.prevalences) != n:
            raise KitError(f'{n} classes need as many prevalences, got {len(self.prevalences)}.')

    @property
    def family(self) -> str:
        '''The family of its network, custom:NAME for one that is not of the kit.'''
        return str(self.network.get('family'))

    @property
    def metric(self) -> str:
        '''The name of the metric of oof_score.'''
        return str(self.recipe.get('metric', 'lwlrap'))

    @property
    def is_custom(self) -> bool:
        '''Whether its network is the user's own, whose code is not in the checkpoint.'''
        return self.family.startswith('custom:')

    @property
    def is_calibrated(self) -> bool:
        '''Whether its scores are probabilities, by training or by calibration.'''
        return self.output == 'probability' or self.calibration is not None


class Tagger(nn.Module):
    '''A frontend and a network. Shape: wave (B, T) at the card's sample rate -> logits (B, K)'''

    def __init__(self, card: TaggerCard, network: nn.Module) -> None:
        super().__init__()
        self.card = card
        self.frontend = Frontend(card.frontend)
        self.network = network
        least = int(getattr(network, 'min_frames', 1))
        image = card.frontend.image_size
        if image and image[1] < least:
            raise KitError(f'image_size {image} has {image[1]} frames, the network needs {least} or more.')
        # A clip of any length is resized to the image.
        self.min_frames = card.min_frames if image else max(card.min_frames, least)

    def forward(self, wave: Tensor) -> Tensor:
        return self.read_logits(self.network(self.frontend(wave)))

    def read_logits(self, output: Any) -> Any:
        '''Turn the network's output into logits: probabilities are converted. Shape: (B, K) -> (B, K)'''
        if self.card.returns == 'logits' or not isinstance(output, Tensor):
            return output
        probs = output.float()
        if ((probs < 0) | (probs > 1)).any():
            raise KitError("the network returns no probabilities: leave out returns='probabilities'.")
        return probs.logit(eps=1e-7)

    def probabilities(self, logits: Tensor) -> Tensor:
        '''Turn logits into probabilities, calibrated where the card has a calibration.'''
        return (self.card.calibration or Calibration()).probabilities(logits)


def build_tagger(card: TaggerCard, start: bool = False) -> Tagger:
    '''Build the tagger that a card describes, with random weights; `start` as in build_network.'''
    return Tagger(card, build_network(card.network, input_shape(card.frontend), len(card.classes), start))


NetworkBuilder = Callable[[], nn.Module]
NetworkType = TypeVar('NetworkType', bound=nn.Module)
STATE_KEYS = ('state_dict', 'model_state_dict', 'model')


def wrap_network(
    network: nn.Module | Mapping[str, Tensor],
    frontend: FrontendConfig,
    classes: Sequence[str],
    *,
    name: str = 'own',
    settings: dict[str, Any] | None = None,
    inference: InferenceConfig | None = None,
    prevalences: Sequence[float] | None = None,
    output: str = 'probability',
    returns: str = 'logits',
    min_frames: int = 1,
) -> Tagger:
    '''Make a tagger of any network that returns logits, or probabilities where `returns` says so.

    A checkpoint holds the network's tensors, never its code. For one of the kit's families pass `settings` with its
    `family`: the checkpoint stores them, and `network` may be a plain state dict. Any other network needs a function
    that builds it: `load_tagger(path, networks={name: build})`.

    Shape:  network (B, C, M, N) -> logits or probabilities (B, K); prevalences (K,), by default 1 / K each: the
            prediction for a clip that cannot be read
    Units:  min_frames, the network's shortest input: shorter clips are padded to it
    '''
    if isinstance(classes, str):
        raise KitError(f'classes is a list of names, got the text {classes!r}: pass [{classes!r}].')
    if isinstance(classes, set | frozenset):
        raise KitError("classes is a list in the order of the network's outputs, got a set, which has no order.")
    if callable(network) and not isinstance(network, nn.Module):
        raise KitError('network is a function that builds one: call it, wrap_network(build(), ...).')
    try:
        shares = () if prevalences is None else tuple(map(float, prevalences))
    except (TypeError, ValueError) as error:
        raise KitError(f'prevalences is a list, a number per class, got a {type(prevalences).__name__}.') from error
    card = TaggerCard(
        classes=tuple(classes),
        prevalences=shares,
        frontend=frontend,
        inference=inference or InferenceConfig(),
        network=complete_network(settings) if settings else {'family': f'custom:{name}'},
        min_frames=min_frames,
        output=output,
        returns=returns,
    )
    if settings is None:
        if not isinstance(network, nn.Module):
            families = ', '.join(FAMILIES)
            raise KitError(
                f"a plain state dict needs settings={{'family': ...}}, which build its network ({families}). For "
                'another network, load the state dict into your module and pass the module.'
            )
        return Tagger(card, unwrap_network(network))
    tensors = unwrap_network(network).state_dict() if isinstance(network, nn.Module) else network
    tagger = build_tagger(card)
    fits = tensors.keys() == tagger.network.state_dict().keys()
    fill_network(tagger.network, tensors if fits else strip_prefixes(tensors), 'the state dict: ')
    return tagger.eval()


def wrap_ensemble(
    build: NetworkBuilder,
    states: Sequence[str | Path | Mapping[str, Any]],
    frontend: FrontendConfig,
    classes: Sequence[str],
    **options: Any,
) -> list[Tagger]:
    '''Make a tagger of each state dict of a network of your own: an ensemble for submit or predict_clips.

    `build` is called without arguments and returns the network. `states` are state dicts, or
    paths and patterns of files that hold one, alone or as "state_dict", "model_state_dict" or "model". The `options`
    are those of wrap_network.

    Errors: KitError for a wrong builder, a pattern without a file, and a state dict that does not fit
    '''
    taggers: list[Tagger] = []
    stripped: list[str] = []
    for source, state in read_states(states):
        network = build_custom('build', build)
        if any(network is tagger.network for tagger in taggers):
            raise KitError('build() returned one network twice: let it make a new one in each call.')
        wanted = network.state_dict()
        if state.keys() != wanted.keys():
            bare = strip_prefixes(state)
            stripped += [source] * (bare.keys() != state.keys())
            state = bare
        fill_network(network, state, f'{source}: ')
        taggers.append(wrap_network(network, frontend, classes, **options).eval())
    if stripped:
        print(f'note: removed the prefixes of wrappers, as module., from the names in {len(stripped)} state dicts.')
    return taggers


def read_states(states: Any) -> list[tuple[str, Mapping[str, Any]]]:
    '''Read state dicts from tables, files and patterns, with their names.'''
    found: list[tuple[str, Any]] = []
    for item in [states] if isinstance(states, str | Path | Mapping) else states:
        if isinstance(item, str | Path):
            paths = expand_pattern(item)
            if not paths:
                raise KitError(f"no file matches {str(item)!r}: e.g. 'run/fold_*.pth'.")
            found += [(str(path), path) for path in paths]
        else:
            found.append((f'state dict {len(found)}', item))
    if not found:
        raise KitError("no state dicts given: e.g. ['fold_0.pth', 'fold_1.pth'].")
    return [(source, find_state(source, item)) for source, item in found]


def find_state(source: str, item: Any) -> Mapping[str, Any]:
    '''Read a file where `item` is a path, and find the state dict in it.'''
    if isinstance(item, Path):
        try:
            item = torch.load(item, map_location='cpu', weights_only=True)
        except Exception as error:
            reason = one_line(error)[:160]
            if 'Weights only' in reason:
                reason = 'it holds pickled objects, which are never loaded'
            raise KitError(f'{source} cannot be read as tensors ({reason}): save network.state_dict().') from error
    if isinstance(item, Mapping):
        inner = (item[key] for key in STATE_KEYS if isinstance(item.get(key), Mapping))
        item = next(inner, item)
    if isinstance(item, Mapping) and item and all(isinstance(value, Tensor) for value in item.values()):
        return item
    holds = ', '.join(str(key)[:40] for key in list(item)[:4]) if isinstance(item, Mapping) else ''
    came = f'a {type(item).__name__}' + (f' of {holds}' if holds else '')
    raise KitError(f'{source} is no state dict but {came}: pass network.state_dict(), or a file with it.')


def unwrap_network(network: nn.Module) -> nn.Module:
    '''The network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile.'''
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while isinstance(network, wrappers) or hasattr(network, '_orig_mod'):
        network = getattr(network, 'module' if isinstance(network, wrappers) else '_orig_mod')
    return network


def strip_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    '''Remove what wrappers put before every name: module., _orig_mod. or model.'''
    names = dict(tensors)
    names.pop('n_averaged', None)  # the counter of AveragedModel is no weight
    for prefix in ('module.', '_orig_mod.', 'model.') * 2:
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def fill_network(
    network: NetworkType, tensors: Mapping[str, Tensor], source: str = '', assign: bool = False
) -> NetworkType:
    '''Load tensors into a network, or `assign` them.'''
    try:
        network.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        wanted, shapes = (
            {name: str(tuple(getattr(value, 'shape', ()))) for name, value in table.items()}
            for table in (network.state_dict(), tensors)
        )
        wrong = [name for name in wanted | shapes if shapes.get(name) != wanted.get(name)]
        problem = f"{len(wanted.keys() - wrong)} of the network's {len(wanted)} tensors match, " + ', '.join(
            f'{name!r} has the shape {shapes.get(name, "of none")}, wanted {wanted.get(name, "none")}'
            for name in wrong[:1]
        )
        raise KitError(f'{source}its tensors do not fit its network: {problem}.') from error
    return network.eval()


def build_custom(where: str, builder: NetworkBuilder) -> nn.Module:
    '''Build a network of the user's.'''
    if isinstance(builder, nn.Module) or not callable(builder):
        raise KitError(f'{where} is a {type(builder).__name__}: pass the function that builds it, build, not build().')
    try:
        network = builder()
    except Exception as error:
        raise KitError(f'{where}() failed: {one_line(error)[:200]}. It is called without arguments.') from error
    if not isinstance(network, nn.Module):
        raise KitError(f'{where}() returned a {type(network).__name__}, not a torch.nn.Module.')
    return unwrap_network(network)
