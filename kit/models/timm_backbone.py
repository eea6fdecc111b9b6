'''The timm family: any convolutional model of timm as a backbone.'''

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.core.config import setting
from kit.core.errors import KitError, one_line
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input, meta_device

# The two lengths in frames whose maps show a model's stride.
PROBE_FRAMES = (2048, 4096)


@dataclass(frozen=True)
class TimmConfig(NetworkConfig):
    '''Which timm model; EfficientNet-B0, B1, B3 and ReXNet-150, 200 have won medals.'''

    name: str = setting('tf_efficientnet_b0.ns_jft_in1k', 'any convolutional model of timm')
    weights: str | None = setting(None, 'local pretrained file to start training from')
    stem_stride: int | None = setting(None, '1: the first layer keeps every cell; None: as in timm', choices=(None, 1))
    drop_path: float = setting(0.0, 'stochastic depth: probability of dropping a branch', low=0, high=0.9)


class TimmBackbone(Backbone):
    '''A timm model without its pooling and classifier, randomly initialised.

    Shape:  spec (B, C, M, N) -> one map (B, D, M', N')
    Source: Wightman, PyTorch Image Models, doi:10.5281/zenodo.4414861
    '''

    def __init__(self, settings: TimmConfig, shape: InputShape) -> None:
        super().__init__()
        check_input('timm', shape)
        self.settings = settings
        self.model = timm_model(settings, shape.channels)
        width, stride, self.min_frames = measure_timm_map(settings, shape)
        self.widths = (width,)
        self.strides = (stride,)

    def forward(self, spec: Tensor) -> Maps:
        return Maps([self.model.forward_features(spec)])  # type: ignore[operator]


def timm_model(settings: TimmConfig, channels: int) -> nn.Module:
    '''Build a timm model without its classifier, randomly initialised.'''
    try:
        import timm
    except ImportError as error:
        raise KitError(f'timm cannot be imported ({error}): pip install timm, or attach it.') from error
    # create_model would download a name with a prefix such as hf-hub:. A registered name never does.
    if not timm.is_model(settings.name):
        names = [*timm.list_models(), *timm.list_models(pretrained=True)]
        near = ', '.join(difflib.get_close_matches(settings.name[:100], names, 5, 0.4)) or 'none'
        raise KitError(f'timm has no model {settings.name[:100]!r}; near are: {near}.')
    options: dict[str, Any] = {'drop_path_rate': settings.drop_path} if settings.drop_path else {}
    try:
        model = create_timm_model(settings.name, in_chans=channels, num_classes=0, **options)
    except Exception as error:
        tags = ', '.join(timm.list_models(settings.name.partition('.')[0] + '.*', pretrained=True)) or 'none'
        raise KitError(
            f'timm cannot build {settings.name!r} with {channels} channels and drop_path '
            f'{settings.drop_path:g}: {one_line(error)[:160]}. Its pretrained forms: {tags}.'
        ) from error
    if settings.stem_stride == 1:
        stems = [model.get_submodule(name) for name in layer_names(model, 'first_conv')]
        if len(stems) != 1 or not isinstance(stems[0], nn.Conv2d) or stems[0].stride != (2, 2):
            needed = f'one first convolution of stride 2, which {settings.name} does not have'
            raise KitError(f'stem_stride=1 needs {needed}: set stem_stride=None.')
        stems[0].stride = (1, 1)
    return model


def create_timm_model(name: str, **options: Any) -> nn.Module:
    '''Create a registered model. Old versions of timm build some on the CPU only.'''
    import timm

    try:
        model: nn.Module = timm.create_model(name, **options)
    except Exception:
        if torch.get_default_device().type != 'meta':
            raise
        with torch.device('cpu'):
            model = timm.create_model(name, **options).to('meta')
    return model


def layer_names(model: Any, role: str) -> tuple[str, ...]:
    '''The names of a timm model's layers in the role `first_conv` or `classifier`.'''
    names = model.pretrained_cfg.get(role) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def feature_map_shape(model: Any, shape: InputShape, frames: int) -> tuple[int, ...]:
    '''The shape of a timm model's map of one clip; () where it refuses the input.'''
    # On the meta device tensors have shapes but no numbers.
    spec = torch.empty(1, shape.channels, shape.bins, frames, device='meta')
    try:
        with torch.no_grad():
            return tuple(model.forward_features(spec).shape)
    except Exception:  # models refuse inputs by assertions, views and broadcasts of many error types
        return ()


@functools.cache
def measure_timm_map(settings: TimmConfig, shape: InputShape) -> tuple[int, int, int]:
    '''Measure the channels, stride in frames and shortest input of a timm model's map. This takes long.'''
    # Building a model may draw random numbers; the caller's next ones must not change.
    with torch.random.fork_rng(devices=[]), meta_device():
        model = timm_model(settings, shape.channels).eval()
    short, long = (feature_map_shape(model, shape, frames) for frames in PROBE_FRAMES)
    # A map (B, D, M', N') grows along its last axis. Tokens and maps with channels last do not.
    if not (len(short) == len(long) == 4 and short[3] < long[3]):
        problem = f'returns {long} for' if long else 'refuses'
        what = f'{settings.name} {problem} an input of {shape.bins} x {PROBE_FRAMES[1]}'
        raise KitError(f"{what}, not a map (1, D, M', N'): choose a convolutional model, or more bins.")
    stride = round((PROBE_FRAMES[1] - PROBE_FRAMES[0]) / (long[3] - short[3]))
    accepted = (frames for frames in range(stride, PROBE_FRAMES[0], stride) if feature_map_shape(model, shape, frames))
    return long[1], stride, next(accepted, PROBE_FRAMES[0])


def load_pretrained(backbone: TimmBackbone, path: str | Path) -> None:
    '''Fill a backbone from a file of its timm model, the first convolution adapted to the channels.'''
    from timm.models import adapt_input_conv, load_state_dict

    if not Path(path).is_file():
        raise KitError(f'no pretrained file {path}: attach it, or set weights=None.')
    try:
        content = load_state_dict(str(path), weights_only=True)
        tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:
        raise KitError(f'{path} cannot be read as tensors ({one_line(error)[:160]}): save a state_dict.') from error
    target = backbone.model.state_dict()
    for layer in layer_names(backbone.model, 'first_conv'):
        name = f'{layer}.weight'
        if name in target and name in tensors and tensors[name].shape[1:2] == (3,):
            tensors[name] = adapt_input_conv(target[name].shape[1], tensors[name])

    # timm silently loads another model's file in part, so all tensors are checked first. Old files lack
    # num_batches_tracked, which nothing reads.
    required = [name for name in target if not name.endswith('num_batches_tracked')]
    missing = [name for name in required if name not in tensors or tensors[name].shape != target[name].shape]
    classifier = tuple(name.partition('.')[0] + '.' for name in layer_names(backbone.model, 'classifier'))
    unexpected = [name for name in tensors if name not in target and not name.startswith(classifier)]
    if unexpected or missing:
        total = len(required)
        filled = total - len(missing)
        example = (unexpected + missing)[0]
        raise KitError(
            f'{path} is no file of {backbone.settings.name}: it fills {filled} of its {total} tensors '
            f'({filled / total:.0%}) and has {len(unexpected)} others, e.g. {example}: set the name of its model.'
        )
    backbone.model.load_state_dict(tensors, strict=False)
