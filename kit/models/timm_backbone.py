"""Backbones from timm."""

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.audio.decode import one_line
from kit.core.config import setting
from kit.core.errors import KitError
from kit.models.network import Backbone, InputShape, Maps, NetworkConfig, check_input


@dataclass(frozen=True)
class TimmConfig(NetworkConfig):
    """Which timm model, and how it begins; published: EfficientNet-B0, B1, B3 and ReXNet-150, 200."""

    name: str = setting("tf_efficientnet_b0.ns_jft_in1k", "any convolutional model of timm")
    weights: str | None = setting(None, "local pretrained file to start from")
    stem_stride: int | None = setting(None, "1: its first convolution skips nothing", choices=(None, 1))
    drop_path: float = setting(0.0, "share of branches left out in training", low=0, high=0.9)


class TimmBackbone(Backbone):
    """A timm model up to its last map, random; stride and shortest input are measured on it.

    Shape:  spec (B, C, M, N) -> one map (B, D, M', N')
    Source: Wightman, PyTorch Image Models, doi:10.5281/zenodo.4414861
    Errors: KitError for a name that timm has not, and for a model that makes no map (D, M', N') of any N
    """

    def __init__(self, settings: TimmConfig, picture: InputShape) -> None:
        super().__init__()
        check_input("timm", picture)
        self.settings = settings
        self.model = timm_model(settings, picture.channels)
        if settings.stem_stride:
            stems = [self.model.get_submodule(name) for name in names_in_card(self.model, "first_conv")]
            if len(stems) != 1 or not isinstance(stems[0], nn.Conv2d) or stems[0].stride != (2, 2):
                raise KitError(f"stem_stride=1: {settings.name} has another stem: use None.")
            stems[0].stride = (1, 1)
        short, long = (feature_map_shape(self, picture, frames) for frames in (2048, 4096))
        # What grows with the picture is the last of four axes; (B, M', N', D) and (B, tokens, D) have others.
        if not (len(short) == len(long) == 4 and short[3] < long[3]):
            came = f"{settings.name} {f'makes {long} of' if long else 'refuses'} a picture of {picture.bins} x 4096"
            raise KitError(f"{came}, no map (1, D, M', N'): take a convolutional model, or more bins.")
        stride = round(2048 / (long[3] - short[3]))
        self.widths, self.strides = (long[1],), (stride,)
        fits = (frames for frames in range(stride, 2048, stride) if feature_map_shape(self, picture, frames))
        self.min_frames = next(fits, 2048)

    def forward(self, spec: Tensor) -> Maps:
        return Maps([self.model.forward_features(spec)])  # type: ignore[operator]


def timm_model(settings: TimmConfig, channels: int) -> nn.Module:
    """A timm model without classifier, random. Errors: KitError without timm, and for what timm cannot build"""
    try:
        import timm
    except ImportError as error:
        raise KitError(f"timm cannot be imported ({error}): pip install timm, or attach it.") from error
    # A prefix such as hf-hub: would ask the network; a name of the registry never does.
    if not timm.is_model(settings.name):
        names = [*timm.list_models(), *timm.list_models(pretrained=True)]
        near = ", ".join(difflib.get_close_matches(settings.name, names, 5, 0.4)) or "none"
        raise KitError(f"timm has no model {settings.name!r}; near are: {near}.")
    facts: dict[str, Any] = {"drop_path_rate": settings.drop_path} if settings.drop_path else {}
    try:
        model: nn.Module = timm.create_model(settings.name, in_chans=channels, num_classes=0, **facts)
    except Exception as error:
        tags = ", ".join(timm.list_models(f"{settings.name.partition('.')[0]}.*", pretrained=True)) or "none"
        why = f"with {channels} channels and drop_path {settings.drop_path:g}: {one_line(error)[:160]}"
        raise KitError(f"timm cannot build {settings.name!r} {why}. Its pretrained forms: {tags}.") from error
    return model


def names_in_card(model: Any, fact: str) -> tuple[str, ...]:
    """The modules that timm's card of a model calls "first_conv" or "classifier"."""
    names = model.pretrained_cfg.get(fact) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def feature_map_shape(backbone: Backbone, picture: InputShape, frames: int) -> tuple[int, ...]:
    """Shape of one clip's deepest map, () where the backbone refuses it; nothing is computed."""
    twin = copy.deepcopy(backbone).to("meta").eval()
    spec = torch.empty(1, picture.channels, picture.bins + picture.n_extra_rows, frames, device="meta")
    try:
        with torch.no_grad():
            return tuple(twin(spec).main[-1].shape)
    except Exception:  # of whatever type a model's assertions, views and broadcasts raise
        return ()


def load_pretrained(backbone: TimmBackbone, path: str | Path) -> None:
    """Fill a backbone from a local file of its model, whose stem follows the channels.

    Errors: KitError for a file that is missing, cannot be read as tensors, or is of another model
    """
    from timm.models import adapt_input_conv, load_state_dict

    if not Path(path).is_file():
        raise KitError(f"no pretrained file {path}: attach it, or set weights=None.")
    try:
        content = load_state_dict(str(path), weights_only=True)
        given = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:
        why = one_line(error)[:160]
        raise KitError(f"{path} cannot be read as tensors ({why}): save a state_dict.") from error
    wanted = backbone.model.state_dict()
    for stem in (f"{name}.weight" for name in names_in_card(backbone.model, "first_conv")):
        if stem in wanted and stem in given and given[stem].shape[1:2] == (3,):
            given[stem] = adapt_input_conv(wanted[stem].shape[1], given[stem])
    # Old files do not count batches, and nothing here reads the count.
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    empty = [name for name in needed if name not in given or given[name].shape != wanted[name].shape]
    tops = tuple(name.partition(".")[0] + "." for name in names_in_card(backbone.model, "classifier"))
    strange = [name for name in given if name not in wanted and not name.startswith(tops)]
    if odd := strange + empty:
        wanting, filled = len(needed), len(needed) - len(empty)
        share = f"{filled} of its {wanting} tensors ({filled / wanting:.0%})"
        told = f"it fills {share} and has {len(strange)} others, e.g. {odd[0]}"
        raise KitError(f"{path} is no file of {backbone.settings.name}: {told}: set its own name.")
    backbone.model.load_state_dict({name: given[name] for name in wanted if name in given}, strict=False)
