'''The tagger: a frontend and a network, from waveforms to logits, with the card that describes them.'''

from dataclasses import dataclass
from typing import Any

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
    def metric(self) -> str:
        '''The name of the metric of oof_score.'''
        return str(self.recipe.get('metric', 'lwlrap'))

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
