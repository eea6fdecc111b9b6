'''All settings of a training run.'''

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kit.audio.augment import WaveAugmentConfig
from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.audio.specaugment import SpecAugmentConfig
from kit.audio.windows import PAD_MODES, InferenceConfig
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.labels.metrics import METRICS
from kit.models.families import complete_network
from kit.models.network import NetworkOutput
from kit.train.losses import LOSSES, RowLossFunction
from kit.train.optim import OptimConfig
from kit.train.pseudo_labels import SelfTrainingConfig, at_iteration

# Losses whose best logits are no log odds: scores need a calibration. They compare logits, whose level stays open; BCE
# added to soft-auc sets it, but not the scale for soft labels.
RANKING_LOSSES = ('lsep', 'soft-auc', 'cross-entropy')
# Losses that compare a clip's classes, and need two.
CLASS_LOSSES = ('lsep', 'cross-entropy')


@dataclass(frozen=True)
class SourceConfig(Config):
    '''How clips of one source are used. The table's column `source` names each clip's source.'''

    share: float | None = setting(None, 'share of the drawn crops; None: its share of the clips', low=0, high=1e6)
    weight: float = setting(1.0, 'factor of the loss', low=0, high=1e6)
    loss: str | None = setting(None, "loss of these clips; None: the recipe's loss", choices=(None, *LOSSES))
    loss_settings: dict[str, Any] = setting({}, 'settings of that loss')
    scored: bool = setting(True, 'whether validation counts the labels of these clips')


@dataclass(frozen=True)
class SamplingConfig(Config):
    '''Which crops are drawn. Without steps, shares and balance, an epoch draws every clip once.'''

    steps: int | None = setting(None, 'batches per epoch; None: every clip once', low=1, high=10**9)
    balance: str = setting('none', 'draw classes equally, by clips or seconds', choices=('none', 'clips', 'seconds'))
    box_p: float = setting(0.5, 'chance to cut a crop at a box where there are soft labels; else always', low=0, high=1)
    true_p: float | None = setting(0.5, 'chance of a true box where both exist; None: equal for all', low=0, high=1)
    box_share: float = setting(0.5, 'overlap with a box that labels a crop, a share of the shorter', low=0.01, high=1)
    sample_by_probs: str = setting(
        'none',
        'drawn by the sum of soft labels: windows away from boxes, or clips without labels, too',
        choices=('none', 'windows', 'clips'),
    )
    rare_boost: float = setting(0.0, 'extra augmentation of the rarest class (1: twice as often)', low=0, high=1e3)


@dataclass(frozen=True)
class Recipe(Config):
    '''A tagger and its training: losses, sampling, augmentation, and schedule.'''

    source: str = setting('', 'where the recipe was published')
    frontend: FrontendConfig = setting(FrontendConfig(), 'how audio becomes a spectrogram')
    network: dict[str, Any] = setting({'family': 'max-pyramid'}, 'family of the network, and its settings')
    inference: InferenceConfig = setting(InferenceConfig(), 'how validation and submission predict clips')
    name: str = setting('own', 'name of the recipe')
    loss: str = setting('lsep', 'loss on the logits', choices=tuple(LOSSES))
    loss_settings: dict[str, Any] = setting({}, 'settings of the loss')
    distill_weight: float = setting(
        0.0, 'weight of a second loss on labelled clips: BCE with the soft labels of their windows', low=0, high=1e6
    )
    average_over: str = setting('clips', 'a loss is the mean over clips or known labels', choices=('clips', 'labels'))
    clip_weight: float = setting(1.0, "weight of the loss at the clip's logits", low=0, high=1e6)
    frame_mean_weight: float = setting(0.0, "weight of the loss at the frames' mean logits over time", low=0, high=1e6)
    frame_max_weight: float = setting(0.0, 'weight of the loss at their maximum over time', low=0, high=1e6)
    auxiliary: tuple[float, ...] = setting((), "weights of the losses at the network's skips", low=0, high=1e6)
    coordinate_weight: float = setting(
        0.0, "weight of the squared error of each row's place, 0 to 1, read from the deepest map", low=0, high=1e6
    )
    sources: dict[str, Any] = setting({}, 'settings for each source in the table')
    weight_by_share: bool = setting(True, 'multiply the loss of a source by its share of the batch')
    secondary_target: float | None = setting(
        None, 'target of classes in secondary_labels; None: unknown', low=0, high=1
    )
    weigh_by_rating: bool = setting(False, 'multiply weights by rating / 5; without a rating by 1')
    crop_s: float = setting(10.0, 'seconds of a training crop', low=0.05, high=86400)
    crop_pad_modes: tuple[str, ...] = setting(
        (), 'short crops are padded in one of these ways, drawn; []: as in inference', choices=PAD_MODES
    )
    wave_augment: WaveAugmentConfig = setting(WaveAugmentConfig(), 'augmentation of waveforms')
    spec_augment: SpecAugmentConfig = setting(SpecAugmentConfig(), 'augmentation of spectrograms')
    mixup: MixupConfig = setting(MixupConfig(), 'how crops are mixed')
    mixup_until: float = setting(1.0, 'share of the epochs, from the first, with mixup', low=0, high=1)
    no_augment_epochs: int = setting(10, 'last epochs without mixup and augmentation', low=0, high=10**6)
    sampling: SamplingConfig = setting(SamplingConfig(), 'which crops are drawn')
    image_sizes: tuple[tuple[int, ...], ...] = setting(
        (), 'growing sizes, each for as many epochs; the last is frontend.image_size', low=1, high=2**16
    )
    epochs: int = setting(100, 'passes over the clips, or over sampling.steps batches', low=1, high=10**6)
    batch_size: int = setting(32, 'crops per batch', low=2, high=2**20)
    optim: OptimConfig = setting(OptimConfig(), 'optimiser and learning rates')
    amp: bool = setting(True, 'train in float16 autocast on a GPU')
    metric: str = setting('lwlrap', 'score of validations, of the best epoch, and of runs', choices=METRICS)
    scored_classes: tuple[str, ...] = setting((), 'classes that count in scores; []: all')
    validate_every: int = setting(10, 'epochs between validations; the last is validated too', low=1, high=10**6)
    keep: str = setting('last', 'which weights the checkpoint holds', choices=('last', 'best'))
    patience: int = setting(
        0, 'validations without a gain that end a training; the best is kept; 0: none', low=0, high=10**6
    )
    n_folds: int = setting(5, 'number of folds, if the table has no fold column', low=2, high=1000)
    seeds: int = setting(1, 'networks per fold', low=1, high=1000)
    seed: int = setting(0, 'seed of all random numbers', low=0, high=2**63 - 1)
    pretrain: str = setting('', "'key=value ...' of a training before, whose networks this one starts from")
    self_training: SelfTrainingConfig = setting(SelfTrainingConfig(), 'self-training with pseudo-labels')

    def check(self) -> None:
        object.__setattr__(self, 'network', complete_network(self.network))
        sources = {name: SourceConfig(**values).to_dict() for name, values in self.sources.items()}
        object.__setattr__(self, 'sources', sources)
        pool = self.network['head']['pool']
        if self.uses_frames and pool != 'attention':
            cure = 'set network.head.pool=attention, or frame_mean_weight=0 and frame_max_weight=0'
            raise KitError(f'network.head.pool={pool} gives no logits of frames: {cure}.')
        if not self.uses_frames and self.clip_weight == 0:
            raise KitError('clip_weight, frame_mean_weight and frame_max_weight are all 0: set clip_weight=1.')
        self.check_augmentation()
        for number in range(len(self.self_training.stages)):
            self.at_stage(number + 1)  # raises for a stage that cannot be
        if self.pretrain:
            self.at_pretraining()
        if self.optim.freeze_epochs > self.epochs:
            limit = f'at most epochs ({self.epochs})'
            raise KitError(f'optim.freeze_epochs must be {limit}, got {self.optim.freeze_epochs}.')
        if self.image_sizes and self.image_sizes[-1] != self.frontend.image_size:
            sizes = f'image_sizes end at {self.image_sizes[-1]}, frontend.image_size is {self.frontend.image_size}'
            raise KitError(f'{sizes}: make them equal.')

    def check_augmentation(self) -> None:
        '''Raise KitError if the frontend's output cannot be mixed or recomputed as the recipe asks.'''
        frontend = self.frontend
        if self.mixup.is_used and self.mixup.domain == 'energy' and frontend.normalize != 'none':
            cure = 'mixup.domain=spec, frontend.normalize=none, or mixup.p=0'
            raise KitError(f'energies of normalised crops cannot be mixed: {cure}.')
        needs_clip_level = frontend.reference == 'clip' and (
            frontend.top_db is not None or frontend.normalize in ('clip', 'peak', 'minmax')
        )
        # An augmented crop is computed from its own waveform, without the rest of the clip to measure.
        if self.needs_waveforms and (needs_clip_level or frontend.trim_db):
            cure = 'frontend.reference=window and trim_db=None, or no wave_augment'
            raise KitError(f'changed waveforms have no level of their clip: {cure}.')

    def at_stage(self, number: int) -> 'Recipe':
        '''The recipe of a training of self-training: the first has number 0.'''
        changes = at_iteration(self.self_training.stages, number) if number else None
        return self.override([*changes.split(), 'self_training.stages=[]']) if changes is not None else self

    def at_pretraining(self) -> 'Recipe':
        '''The recipe of the training before, whose networks this one starts from.'''
        return self.override([*self.pretrain.split(), 'pretrain='])

    @property
    def needs_waveforms(self) -> bool:
        '''Whether crops are cut from waveforms, to augment or mix them, and not from spectrograms.'''
        chances = [value for name, value in vars(self.wave_augment).items() if name.endswith('_p')]
        return any(chances) or (self.mixup.is_used and self.mixup.domain == 'wave')

    @property
    def uses_frames(self) -> bool:
        '''Whether the logits of frames are trained.'''
        return self.frame_mean_weight + self.frame_max_weight > 0

    def weighted_logits(self, output: NetworkOutput) -> list[tuple[float, Tensor]]:
        '''Select the logits that are trained, each with the weight of its loss. Shape: each (B, K)'''
        logits = [(self.clip_weight, output.clip), *zip(self.auxiliary, output.auxiliary, strict=False)]
        if (frames := output.frames) is not None:
            logits += [(self.frame_mean_weight, frames.mean(dim=1)), (self.frame_max_weight, frames.amax(dim=1))]
        return [(weight, x) for weight, x in logits if weight > 0]

    @property
    def output(self) -> str:
        '''What the logits are after the training: "probability" or "ranking".'''
        # Trained at frames alone, frames have log odds, and the clip has not.
        return 'ranking' if self.loss in RANKING_LOSSES or self.clip_weight == 0 else 'probability'

    @property
    def crop_frames(self) -> int:
        '''Spectrogram frames of a training crop.'''
        return max(1, round(self.crop_s * self.frontend.frames_per_s))


def check_recipe(recipe: object) -> None:
    '''Raise KitError unless it is a Recipe.'''
    if not isinstance(recipe, Recipe):
        raise KitError(f"a recipe is e.g. find_recipe('max-pyramid-mel', small=True), got {recipe!r:.60}.")


def source_losses(recipe: Recipe) -> list[tuple[RowLossFunction, float]]:
    '''The loss of each source and its weight; without sources one for all rows.'''
    recipe_loss = functools.partial(LOSSES[recipe.loss], **recipe.loss_settings)
    if not recipe.sources:
        return [(recipe_loss, 1.0)]
    losses: list[tuple[RowLossFunction, float]] = []
    for source in recipe.sources.values():
        own_loss = source['loss'] and functools.partial(LOSSES[source['loss']], **source['loss_settings'])
        losses.append((own_loss or recipe_loss, source['weight']))
    return losses
