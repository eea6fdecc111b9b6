"""Network settings in, a freshly initialised network of one of the kit's families out."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kit.core.errors import choose
from kit.models.axis_pool import AxisPool, AxisPoolConfig
from kit.models.freq_crop import FreqCropConfig, build_freq_crop
from kit.models.network import Backbone, InputShape, Network, NetworkConfig
from kit.models.pyramid import MaxPyramid, PyramidConfig
from kit.models.skip_attention import SkipAttention, SkipAttentionConfig
from kit.models.timm_backbone import TimmBackbone, TimmConfig, load_pretrained

BACKBONES: dict[str, tuple[type[NetworkConfig], type[Backbone]]] = {
    "max-pyramid": (PyramidConfig, MaxPyramid),
    "skip-attention": (SkipAttentionConfig, SkipAttention),
    "axis-pool": (AxisPoolConfig, AxisPool),
    "timm": (TimmConfig, TimmBackbone),
}
FAMILIES = {name: config for name, (config, _) in BACKBONES.items()} | {"freq-crop": FreqCropConfig}


def merge_settings(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Given settings over defaults, group by group."""
    merged = defaults | given
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            merged[name] = merge_settings(defaults[name], value)
    return merged


def read_network(settings: dict[str, Any]) -> tuple[str, NetworkConfig]:
    """The family and the checked settings of a network. Errors: KitError for an unknown family, setting or value"""
    rest = dict(settings)
    family = str(rest.pop("family", "none given"))
    config_class = choose("network family", family, FAMILIES)
    config = config_class.from_dict(merge_settings(config_class().to_dict(), rest))
    if isinstance(config, FreqCropConfig):
        shared = complete_network(config.backbone)
        del shared["head"], shared["noisy_head"]
        config = replace(config, backbone=shared)
    return family, config


def complete_network(settings: dict[str, Any]) -> dict[str, Any]:
    """Network settings with every default filled in. Errors: as read_network"""
    family, config = read_network(settings)
    return {"family": family, **config.to_dict()}


def build_backbone(family: str, config: NetworkConfig, picture: InputShape, start: bool) -> Backbone:
    """A family's backbone, random; `start` reads the pretrained file of its settings."""
    backbone = BACKBONES[family][1](config, picture)
    if start and isinstance(backbone, TimmBackbone) and backbone.settings.weights is not None:
        load_pretrained(backbone, backbone.settings.weights)
    return backbone


def build_network(
    settings: dict[str, Any], picture: InputShape, classes: int, start: bool = False
) -> nn.Module:
    """A freshly initialised network; `start` as build_backbone."""
    family, config = read_network(settings)
    if isinstance(config, FreqCropConfig):
        shared = read_network(config.backbone)
        return build_freq_crop(config, picture, classes, lambda shown: build_backbone(*shared, shown, start))
    return Network(build_backbone(family, config, picture, start), config, classes)


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """The memory layout of a network's inputs."""
    return torch.channels_last if getattr(network, "channels_last", False) else torch.contiguous_format
