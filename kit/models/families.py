'''The network families: read their settings, build their networks.'''

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from kit.core.errors import choose
from kit.models.backbones import (
    AxisPool,
    AxisPoolConfig,
    FreqCropConfig,
    MaxPyramid,
    PyramidConfig,
    SkipAttention,
    SkipAttentionConfig,
    build_freq_crop,
    freq_crop_backbone_shape,
)
from kit.models.network import Backbone, Head, InputShape, Network, NetworkConfig
from kit.models.timm_backbone import TimmBackbone, TimmConfig, load_pretrained

BACKBONES: dict[str, tuple[type[NetworkConfig], type[Backbone]]] = {
    'max-pyramid': (PyramidConfig, MaxPyramid),
    'skip-attention': (SkipAttentionConfig, SkipAttention),
    'axis-pool': (AxisPoolConfig, AxisPool),
    'timm': (TimmConfig, TimmBackbone),
}
FAMILIES = {name: config for name, (config, _) in BACKBONES.items()} | {'freq-crop': FreqCropConfig}


def merge_settings(defaults: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    '''Put settings over defaults, group by group.'''
    merged = defaults | settings
    for name, value in settings.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            merged[name] = merge_settings(defaults[name], value)
    return merged


def read_network(settings: dict[str, Any]) -> tuple[str, NetworkConfig]:
    '''Check a network's settings and return its family and config.'''
    family = str(settings.get('family', 'none given'))[:100]
    config_class = choose('network family', family, FAMILIES)
    changes = {name: value for name, value in settings.items() if name != 'family'}
    config = config_class(**merge_settings(config_class().to_dict(), changes))
    if isinstance(config, FreqCropConfig):
        backbone = complete_network(config.backbone)
        del backbone['head']
        config = replace(config, backbone=backbone)
    return family, config


def complete_network(settings: dict[str, Any]) -> dict[str, Any]:
    '''Fill in every default of a network's settings.'''
    family, config = read_network(settings)
    return {'family': family, **config.to_dict()}


def build_backbone(family: str, config: NetworkConfig, shape: InputShape, start: bool) -> Backbone:
    '''Build a family's backbone with random weights; with `start`, load its pretrained file if it has one.'''
    backbone = BACKBONES[family][1](config, shape)
    if start and isinstance(backbone, TimmBackbone) and backbone.settings.weights is not None:
        load_pretrained(backbone, backbone.settings.weights)
    return backbone


def build_network(settings: dict[str, Any], shape: InputShape, classes: int, start: bool = False) -> Network:
    '''Build a network with random weights; with `start`, load the pretrained file of its settings.'''
    family, config = read_network(settings)
    if isinstance(config, FreqCropConfig):
        inner = build_backbone(*read_network(config.backbone), freq_crop_backbone_shape(config, shape, classes), start)
        return build_freq_crop(config, shape, classes, inner)
    backbone = build_backbone(family, config, shape, start)
    head = Head(config.head, backbone.widths, classes)
    plain = replace(config.head, pool='mean', recurrent=None, embedding=0)
    return Network(backbone, head, [Head(plain, (width,), classes) for width in backbone.auxiliary_widths])


def memory_format_of(network: nn.Module) -> torch.memory_format:
    '''The memory layout of a network's inputs.'''
    return torch.channels_last if getattr(network, 'channels_last', False) else torch.contiguous_format
