"""Maps of a backbone in, logits of the clip out, and of each frame where the head attends over time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kit.core.config import Config, setting
from kit.core.errors import KitError


def positive_mean(x: Tensor) -> Tensor:
    """Mean of the positive activations only; 0 where there are none. Shape: (B, D, M, N) -> (B, D)"""
    return x.float().relu().sum((2, 3)) / (x > 0).sum((2, 3)).clamp(min=1)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean((2, 3)),
    "max": lambda x: x.amax((2, 3)),
    "mean-max": lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1),
    "time-max": lambda x: x.mean(2).amax(2),
    "positive-mean": positive_mean,
}
RECURRENCES = {"gru": nn.GRU, "lstm": nn.LSTM}


@dataclass(frozen=True)
class HeadConfig(Config):
    """How a backbone's maps become logits: [recurrence], pool, dropout, [hidden layer], output."""

    pool: str = setting(
        "mean", "how maps are read; attention: weights over time", choices=(*POOLS, "gem", "attention")
    )
    recurrent: str | None = setting(None, "bidirectional, before the pool", choices=(None, *RECURRENCES))
    recurrent_width: int = setting(128, "its units per direction", low=1)
    embedding: int = setting(0, "channels it is projected to; 0: as it is", low=0)
    hidden: int | None = setting(0, "units of a hidden layer; None: as many as it reads", low=0)
    norm_first: bool = setting(False, "normalize before and after the hidden layer, drop out after it")
    dropout: float = setting(0.2, "dropout before the output", low=0, high=0.95)

    def check(self) -> None:
        if self.embedding and self.recurrent is None:
            raise KitError(f"embedding={self.embedding} wants a recurrence: set recurrent.")
        if self.norm_first and (self.hidden == 0 or self.pool == "attention"):
            raise KitError("norm_first wants a hidden layer and no attention: set norm_first=False.")


class NetworkOutput(NamedTuple):
    """All that a network, or the first two that a head, says of a batch.

    Shape:  clip (B, K); frames (B, N', K) with attention over time; (B, K) of each skip, and of a second head
    """

    clip: Tensor
    frames: Tensor | None = None
    auxiliary: tuple[Tensor, ...] = ()
    noisy: Tensor | None = None


def classifier_layers(config: HeadConfig, features: int, classes: int) -> nn.Sequential:
    """Layers from pooled features to logits. Shape: (B, features) -> (B, classes)"""
    hidden, dropout = features if config.hidden is None else config.hidden, nn.Dropout(config.dropout)
    if not hidden:
        return nn.Sequential(dropout, nn.Linear(features, classes))
    middle, output = nn.Linear(features, hidden), nn.Linear(hidden, classes)
    norm, bend = nn.BatchNorm1d(hidden), nn.PReLU()
    if config.norm_first:
        return nn.Sequential(nn.BatchNorm1d(features), middle, norm, bend, dropout, output)
    return nn.Sequential(dropout, middle, bend, norm, nn.Dropout(config.dropout / 2), output)


class GeneralisedMean(nn.Module):
    """Root of the mean of p-th powers of the positive activations; p is learnt, from 3.

    Shape:  (B, D, M, N) -> (B, D)
    Source: Radenovic, Tolias & Chum 2018, arXiv:1711.02512
    """

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        power, positive = self.power.clamp(1.0, 30.0), x.float().clamp(min=1e-6)
        scale = positive.detach().amax((2, 3), keepdim=True)
        return scale[..., 0, 0] * (positive / scale).pow(power).mean((2, 3)).pow(1 / power)


class FrameAttention(nn.Module):
    """Logits of every frame, and of their mean probability, each class by an attention of its own.

    Shape:  (B, D, N') -> clip (B, K), frames (B, N', K)
    Source: Kong et al. 2020, PANNs, arXiv:1912.10211 (decision-level attention)
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.attention, self.tagging = nn.Conv1d(features, classes, 1), nn.Conv1d(features, classes, 1)

    def forward(self, x: Tensor) -> NetworkOutput:
        frames = self.tagging(x).float()
        # In logarithms the logit of a mean of probabilities stays finite.
        weights = F.log_softmax(self.attention(x).float(), dim=2)
        true = torch.logsumexp(weights + F.logsigmoid(frames), dim=2)
        false = torch.logsumexp(weights + F.logsigmoid(-frames), dim=2)
        return NetworkOutput(true - false, frames.transpose(1, 2))


def with_frequency(x: Tensor) -> Tensor:
    """A map with a frequency axis, of one bin where it had none. Shape: (B, D, [M,] N) -> (B, D, M, N)"""
    return x if x.ndim == 4 else x.unsqueeze(2)


def aligned_sequence(maps: Sequence[Tensor]) -> Tensor:
    """Maps as one sequence at the pace of the last. Shape: (B, D_i, [M_i,] N_i) -> (B, sum of D_i, N of the last)"""
    steps = maps[-1].shape[-1]
    return torch.cat([F.adaptive_avg_pool1d(with_frequency(m).mean(2), steps) for m in maps], dim=1)


def run_recurrence(recurrence: nn.Module, x: Tensor) -> Tensor:
    """A recurrence over time, never in float16. Shape: (B, D, N') -> (B, 2 units, N')"""
    with torch.autocast(x.device.type, enabled=False):
        sequence = x.transpose(1, 2).to(next(recurrence.parameters()).dtype)
        return torch.as_tensor(recurrence(sequence)[0].transpose(1, 2))


class Head(nn.Module):
    """Pools maps one by one and classifies them together; recurrence and attention read them aligned.

    Shape:  maps (B, D_i, [M_i,] N_i), the deepest last -> clip (B, K), frames (B, N', K) or None
    """

    def __init__(self, config: HeadConfig, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.config = config
        features = sum(widths)
        self.recurrence: nn.Module | None = None
        if config.recurrent:
            kind, width = RECURRENCES[config.recurrent], config.recurrent_width
            self.recurrence = kind(features, width, batch_first=True, bidirectional=True)
            features = config.embedding or 2 * width
            self.embedding = nn.Linear(2 * width, features) if config.embedding else nn.Identity()
        self.classifier: nn.Module
        if config.pool == "attention":
            hidden = features if config.hidden is None else config.hidden
            layers = [nn.Conv1d(features, hidden, 1), nn.ReLU()] if hidden else []
            self.before = nn.Sequential(nn.Dropout(config.dropout), *layers)
            self.classifier = FrameAttention(hidden or features, classes)
        else:
            self.pool = GeneralisedMean() if config.pool == "gem" else POOLS[config.pool]
            features *= 2 if config.pool == "mean-max" else 1
            self.classifier = classifier_layers(config, features, classes)

    def features(self, maps: Sequence[Tensor]) -> Tensor:
        """What the classifier reads. Shape: maps -> (B, F), or (B, F, N') for attention over time"""
        if self.recurrence is not None:
            sequence = run_recurrence(self.recurrence, aligned_sequence(maps))
            maps = [self.embedding(sequence.transpose(1, 2)).transpose(1, 2)]
        if self.config.pool == "attention":
            return torch.as_tensor(self.before(aligned_sequence(maps)))
        return torch.cat([self.pool(with_frequency(m)) for m in maps], dim=1)

    def forward(self, maps: Sequence[Tensor]) -> NetworkOutput:
        said = self.classifier(self.features(maps))
        return said if isinstance(said, NetworkOutput) else NetworkOutput(said)
