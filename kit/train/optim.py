"""Optimizers, learning-rate schedules and weight averaging."""

import itertools
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
    """How weights move: the optimiser, its learning rate over time and depth, and what is averaged of them."""

    kind: str = setting("adamw", "the optimiser", choices=("adamw", "nadam", "sgd"))
    schedule: str = setting(
        "one-cycle",
        "one-cycle; cosine to lr_end; constant; times `factor` at milestones (steps) or a plateau",
        choices=("one-cycle", "cosine", "steps", "plateau", "constant"),
    )
    lr_start: float = setting(1e-4, "learning rate at the first step (one-cycle)", low=1e-9)
    lr_peak: float = setting(5e-3, "learning rate at its greatest", low=1e-9)
    lr_end: float = setting(1e-7, "learning rate at the last step (one-cycle, cosine)", low=1e-12)
    warmup: float = setting(0.3, "share of the steps before the peak (one-cycle)", low=0.01, high=0.99)
    milestones: tuple[float, ...] = setting(
        (0.35, 0.525, 0.7), "shares of the training (steps)", low=0, high=1
    )
    factor: float = setting(0.5, "what a milestone or a plateau multiplies by", low=1e-3, high=1)
    patience: int = setting(6, "validations without gain (plateau)", low=0)
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0)
    clip_norm: float = setting(10.0, "largest norm of the gradient", low=1e-6)
    accumulate: int = setting(1, "batches whose gradients make one step", low=1)
    layer_decay: float = setting(
        1.0, "the first layer's learning rate over the last one's, geometric between", low=1e-4, high=1
    )
    average: str = setting(
        "none",
        "weights that are kept: ema: of all steps; swa: of the last epochs",
        choices=("none", "ema", "swa"),
    )
    ema_decay: float = setting(0.998, "what the average keeps of itself at a step (ema)", low=0, high=0.99999)
    swa_share: float = setting(
        0.25, "share of the training whose epochs are averaged (swa)", low=0.01, high=1
    )

    def check(self) -> None:
        if not self.lr_end <= self.lr_start <= self.lr_peak:
            raise KitError("learning rates must rise from lr_start to lr_peak and fall to lr_end.")


def layer_groups(network: nn.Module, rate: float, lr: float) -> list[dict[str, Any]]:
    """The parameters in order, in eight groups by depth whose learning rates rise to `lr`; one group for rate 1.

    Source: layer-wise rates, Howard & Ruder 2018, arXiv:1801.06146
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    if rate == 1.0:
        return [{"params": parameters, "lr": lr}]
    n = len(parameters)
    level = [LAYER_GROUPS * (n - 1 - i) // n for i in range(n)]
    pairs = itertools.groupby(zip(level, parameters, strict=True), key=lambda pair: pair[0])
    return [
        {"params": [p for _, p in group], "lr": lr * rate ** (k / (LAYER_GROUPS - 1))} for k, group in pairs
    ]


def build_optimizer(config: OptimConfig, network: nn.Module, share: float = 1.0) -> torch.optim.Optimizer:
    """The optimiser of a network's free parameters, learning rates times `share`."""
    groups, decay = layer_groups(network, config.layer_decay, config.lr_peak * share), config.weight_decay
    if config.kind == "nadam":
        return torch.optim.NAdam(groups, weight_decay=decay, decoupled_weight_decay=True)
    if config.kind == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(groups, weight_decay=decay, amsgrad=True)


def build_schedule(config: OptimConfig, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """The learning rate over so many steps; a plateau's is told scores instead."""
    steps = max(2, steps)
    if config.schedule == "one-cycle":
        return lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], steps, pct_start=config.warmup,
            div_factor=config.lr_peak / config.lr_start, final_div_factor=config.lr_start / config.lr_end,
            cycle_momentum=False,
        )  # fmt: skip
    if config.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, steps, config.lr_end)
    if config.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(optimizer, "max", config.factor, config.patience)
    places = [round(share * steps) for share in config.milestones] if config.schedule == "steps" else []
    return lr_scheduler.MultiStepLR(optimizer, places, config.factor)


def averaged_model(config: OptimConfig, network: nn.Module) -> AveragedModel | None:
    """A copy of a network that follows it by averages of its parameters; its batch norms want estimating anew.

    Source: EMA, Tarvainen & Valpola 2017, arXiv:1703.01780; tail, Izmailov et al. 2018, arXiv:1803.05407
    """
    if config.average == "none":
        return None
    mean: Any = get_ema_multi_avg_fn(config.ema_decay) if config.average == "ema" else None  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=mean)
