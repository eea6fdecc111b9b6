'''Optimizers, learning-rate schedules and weight averaging.'''

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kit.core.config import Config, setting
from kit.core.errors import KitError

LAYER_GROUPS = 8


@dataclass(frozen=True)
class OptimConfig(Config):
    '''The optimizer, its learning rate over time and layers, and the averaging of weights.'''

    kind: str = setting('adamw', 'the optimizer', choices=('adamw', 'nadam', 'sgd'))
    schedule: str = setting(
        'one-cycle',
        'learning rate over time: one-cycle, by half cosines, or linear-cycle; cosine down to lr_end; '
        'steps or plateau, which multiply by `factor`',
        choices=('one-cycle', 'linear-cycle', 'cosine', 'steps', 'plateau', 'constant'),
    )
    lr_start: float = setting(1e-4, 'learning rate of the first step (cycles)', low=1e-9)
    lr_peak: float = setting(5e-3, 'highest learning rate', low=1e-9)
    lr_end: float = setting(1e-7, 'learning rate of the last step (cycles, cosine)', low=1e-12)
    warmup: float = setting(0.3, 'share of the steps before the peak (cycles)', low=0.01, high=0.99)
    milestones: tuple[float, ...] = setting(
        (0.35, 0.525, 0.7), 'shares of the training after which the rate falls (steps)', low=0, high=1
    )
    factor: float = setting(0.5, 'factor of the learning rate at a milestone or a plateau', low=1e-3, high=1)
    patience: int = setting(6, 'validations without improvement that are allowed (plateau)', low=0)
    weight_decay: float = setting(0.0, 'decoupled weight decay', low=0)
    clip_norm: float = setting(10.0, 'highest norm of the gradient; larger ones are scaled down', low=1e-6)
    layer_decay: float = setting(1.0, 'learning rate of the first layers over that of the last', low=1e-3, high=1e3)
    freeze_epochs: int = setting(0, 'first epochs, in which only the heads train', low=0, high=10**6)
    average: str = setting('none', 'weights kept: ema of all steps, swa of last epochs', choices=('none', 'ema', 'swa'))
    ema_decay: float = setting(0.998, 'share of the old average kept at each step (ema)', low=0, high=0.99999)
    swa_share: float = setting(0.25, 'share of the last epochs that are averaged (swa)', low=0.01, high=1)

    def check(self) -> None:
        if not self.lr_end <= self.lr_start <= self.lr_peak:
            raise KitError('learning rates must rise from lr_start to lr_peak and fall to lr_end.')


def layer_groups(network: nn.Module, layer_decay: float, lr: float) -> list[dict[str, Any]]:
    '''Divide the trainable parameters into groups by depth, the last with learning rate `lr`.

    The parameters, in the order of the layers, form up to eight nearly equal groups. The rate falls geometrically to
    `lr * layer_decay` in the first ones, as early layers of a pretrained network hold general features that should
    change least. Above 1 it rises.

    Source: discriminative fine-tuning, Howard & Ruder 2018, arXiv:1801.06146
    '''
    parameters = [p for p in network.parameters() if p.requires_grad]
    if layer_decay == 1.0:
        return [{'params': parameters, 'lr': lr}]
    members: dict[int, list[nn.Parameter]] = {}
    for i, parameter in enumerate(parameters):
        # Counted from the last parameter: the last group, with the full rate, is never empty.
        level = LAYER_GROUPS * (len(parameters) - 1 - i) // len(parameters)
        members.setdefault(level, []).append(parameter)
    rates = {level: lr * layer_decay ** (level / (LAYER_GROUPS - 1)) for level in members}
    return [{'params': group, 'lr': rates[level]} for level, group in members.items()]


def build_optimizer(config: OptimConfig, network: nn.Module) -> torch.optim.Optimizer:
    '''Build the optimizer of a network's trainable parameters.'''
    groups = layer_groups(network, config.layer_decay, config.lr_peak)
    decay = config.weight_decay
    if config.kind == 'nadam':
        return torch.optim.NAdam(groups, weight_decay=decay, decoupled_weight_decay=True)
    if config.kind == 'sgd':
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(groups, weight_decay=decay, amsgrad=True)


def build_schedule(config: OptimConfig, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    '''Build the learning-rate schedule; "plateau" is stepped with a score at each validation.'''
    steps = max(2, steps)
    if config.schedule in ('one-cycle', 'linear-cycle'):
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group['lr'] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=config.warmup,
            div_factor=config.lr_peak / config.lr_start,
            final_div_factor=config.lr_start / config.lr_end,
            cycle_momentum=False,
            anneal_strategy='linear' if config.schedule == 'linear-cycle' else 'cos',
        )
    if config.schedule == 'cosine':
        return lr_scheduler.CosineAnnealingLR(optimizer, steps, config.lr_end)
    if config.schedule == 'plateau':
        return lr_scheduler.ReduceLROnPlateau(optimizer, 'max', config.factor, config.patience)
    milestones = [round(share * steps) for share in config.milestones if config.schedule == 'steps']
    return lr_scheduler.MultiStepLR(optimizer, milestones, config.factor)


def averaged_model(config: OptimConfig, network: nn.Module) -> AveragedModel | None:
    '''Copy a network into a model that averages its parameters; None where nothing is averaged.

    Source: EMA, Tarvainen & Valpola 2017, arXiv:1703.01780; SWA, Izmailov et al. 2018, arXiv:1803.05407
    '''
    if config.average == 'none':
        return None
    average: Any = None  # AveragedModel's default is the plain mean, as SWA wants.
    if config.average == 'ema':
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=average)
