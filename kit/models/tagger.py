"""A frontend and a network in, one tagger from waveforms to logits out, with the card that describes it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.core.runtime import VERSION
from kit.labels.calibration import Calibration
from kit.models.families import build_network
from kit.models.network import InputShape


def input_shape(config: FrontendConfig) -> InputShape:
    """What a frontend shows; a resized picture does not tell its frequencies."""
    hz = () if config.image_size else tuple(config.bin_hz.tolist())
    return InputShape(config.n_channels, config.n_bins, config.n_extra_rows, hz, len(config.mel_bands))


@dataclass(frozen=True)
class TaggerCard(Config):
    """All that is known of a tagger besides its tensors; a checkpoint's JSON."""

    classes: tuple[str, ...] = setting((), "in the order of the logits")
    prevalences: tuple[float, ...] = setting((), "share of training clips with each class", low=0, high=1)
    frontend: FrontendConfig = setting(FrontendConfig(), "sound to picture")
    inference: InferenceConfig = setting(InferenceConfig(), "how a clip is heard")
    network: dict[str, Any] = setting({}, "its family and settings")
    min_frames: int = setting(1, "shortest input, in frames", low=1)
    output: str = setting("probability", "what its logits mean", choices=("probability", "ranking"))
    calibration: Calibration | None = setting(None, "scale and offset fitted out of fold")
    fold: int | None = setting(None, "the fold it never saw")
    held_out: str = setting("", "digest of its clips' names")
    seed: int = setting(0, "of its training")
    oof_score: float | None = setting(None, "lwlrap on that fold")
    cost: float | None = setting(None, "measured seconds of network time per second of audio")
    cost_device: str = setting("", "measured there")
    recipe: dict[str, Any] = setting({}, "what it was trained by")
    drawn: tuple[float, ...] = setting((), "classes' shares in the known labels that it learnt from")
    version: str = setting(VERSION, "of the kit that wrote it")

    def check(self) -> None:
        n = len(self.classes)
        if not n or len({*self.classes}) != n:
            raise KitError(f"a tagger needs class names, each once, got {n}.")
        if not self.prevalences:
            object.__setattr__(self, "prevalences", (1.0 / n,) * n)
        if len(self.prevalences) != n:
            raise KitError(f"{n} classes need as many prevalences, got {len(self.prevalences)}.")

    @property
    def calibrated(self) -> bool:
        """Whether its scores are probabilities, by training or by a fit."""
        return self.output == "probability" or self.calibration is not None


class Tagger(nn.Module):
    """A frontend and a network as one module, with the card that describes them.

    Shape:  wav (B, T) at the card's rate -> logits (B, K)
    Errors: KitError for pictures resized to fewer frames than the network takes
    """

    def __init__(self, card: TaggerCard, network: nn.Module) -> None:
        super().__init__()
        self.card, self.frontend, self.network = card, Frontend(card.frontend), network
        shortest, image = int(getattr(network, "min_frames", 1)), card.frontend.image_size
        if image and image[1] < shortest:
            raise KitError(f"image_size {image} has {image[1]} frames, the network takes {shortest} or more.")
        self.min_frames = max(card.min_frames, 1 if image else shortest)

    def forward(self, wave: Tensor) -> Tensor:
        return torch.as_tensor(self.network(self.frontend(wave)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits as probabilities, calibrated where that was fitted. Shape: (..., K) -> the same"""
        return (self.card.calibration or Calibration()).probabilities(logits)


def build_tagger(card: TaggerCard, start: bool = False) -> Tagger:
    """A tagger as its card says, freshly initialised; `start` as build_network."""
    return Tagger(card, build_network(card.network, input_shape(card.frontend), len(card.classes), start))
