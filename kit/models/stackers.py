'''Second-level networks: they read the predictions of other models.'''

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kit.core.config import Config, setting


@dataclass(frozen=True)
class StackerConfig(Config):
    '''Settings of a second-level network; the gated MLP's are as published.'''

    widths: tuple[int, ...] = setting(
        (32, 64), 'channels of each block, which halves the image (image-stacker)', low=1, high=2**16, longest=64
    )
    mlp_widths: tuple[int, ...] = setting((1024, 512), 'hidden units (gated-mlp)', low=1, high=2**16, longest=64)
    dropout: float = setting(0.2, 'dropout: hidden layers (gated-mlp), last layer (image-stacker)', low=0, high=0.95)
    C: float = setting(1.0, 'inverse strength of the L2 penalty, as in scikit-learn (logistic)', low=1e-6, high=1e12)


class GatedMlp(nn.Module):
    '''An MLP over all models' predictions, each weighted by a squeeze-and-excite gate.

    Shape:  probabilities or any finite scores (B, m, K) -> logits (B, K)
    Source: first place, Freesound Audio Tagging 2019; gate: Hu et al. 2018, arXiv:1709.01507
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        width = models * classes
        narrow = max(1, width // 16)
        self.gate = nn.Sequential(nn.Linear(width, narrow), nn.PReLU(), nn.Linear(narrow, width), nn.Sigmoid())
        layers: list[nn.Module] = []
        for hidden in settings.mlp_widths:
            layers += [nn.Linear(width, hidden), nn.PReLU(), nn.Dropout(settings.dropout)]
            width = hidden
        self.mlp = nn.Sequential(*layers, nn.Linear(width, classes))

    def forward(self, predictions: Tensor) -> Tensor:
        x = predictions.flatten(1)
        return self.mlp(x * self.gate(x))


class ClassMixer(nn.Module):
    '''A weighted mean of the models' probabilities per class, its logit, then a K x K layer; at first the plain mean.

    Shape:  probabilities (B, m, K) -> logits (B, K), float32 or wider outside autocast
    Source: second place, Freesound Audio Tagging 2019
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        self.model_weights = nn.Parameter(torch.zeros(models, classes))
        self.mix = nn.Linear(classes, classes)
        nn.init.eye_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, predictions: Tensor) -> Tensor:
        # The float32 weights widen half precision, in which 1 - eps would be 1 and its logit infinite.
        mean = (predictions * self.model_weights.softmax(dim=0)).sum(dim=1)
        return self.mix(torch.logit(mean, eps=1e-7))


class ImageStacker(nn.Module):
    '''A small CNN over prediction images, pooled over time by mean and maximum; the rows of classes stay apart.

    Shape:  images (B, m, K, W), any W >= 1 -> logits (B, K)
    Source: Freesound Audio Tagging 2019
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = models
        rows = classes
        for channels in settings.widths:
            conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.PReLU(), nn.MaxPool2d(2, ceil_mode=True)]
            width = channels
            rows = -(-rows // 2)
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(settings.dropout), nn.Linear(2 * width * rows, classes))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(images)
        pooled = torch.cat([maps.mean(dim=3), maps.amax(dim=3)], dim=1).flatten(1)
        return self.head(pooled)


class LogisticStacker(nn.Module):
    '''One logistic regression per class on the models' logits of that class; unfitted, their mean.

    Its weights are plain tensors: scikit-learn fits them, but submitting needs only torch.
    Shape:  probabilities (B, m, K) -> logits (B, K)
    Source: Wolpert 1992, Stacked generalization, with logistic regression as the second level
    '''

    def __init__(self, settings: StackerConfig, models: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((models, classes), 1 / models))
        self.bias = nn.Parameter(torch.zeros(classes))

    def run_logits(self, predictions: Tensor) -> Tensor:
        '''Compute the logits of the models' probabilities, finite for 0 and 1.'''
        return torch.logit(predictions.to(self.weight.dtype), eps=1e-6)

    def forward(self, predictions: Tensor) -> Tensor:
        return (self.run_logits(predictions) * self.weight).sum(dim=1) + self.bias


STACKERS: dict[str, Callable[[StackerConfig, int, int], nn.Module]] = {
    'gated-mlp': GatedMlp,
    'class-mixer': ClassMixer,
    'image-stacker': ImageStacker,
    'logistic': LogisticStacker,
}
