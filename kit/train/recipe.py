"""A recipe: all settings of a training."""

from dataclasses import dataclass
from typing import Any

from kit.audio.augment import WaveAugmentConfig
from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.audio.specaugment import SpecAugmentConfig
from kit.audio.windows import InferenceConfig
from kit.core.config import Config, setting
from kit.core.errors import KitError
from kit.models.families import complete_network
from kit.train.losses import LOSSES
from kit.train.optim import OptimConfig
from kit.train.pseudo_labels import SelfTrainingConfig

RANKING_LOSSES = ("lsep",)


@dataclass(frozen=True)
class System(Config):
    """The parts of a tagger; a recipe adds how it is trained."""

    source: str = setting("", "whose system it is")
    frontend: FrontendConfig = setting(FrontendConfig(), "how sound becomes a picture")
    network: dict[str, Any] = setting({"family": "max-pyramid"}, "its family and settings")
    inference: InferenceConfig = setting(InferenceConfig(), "how validation and submission hear clips")

    def check(self) -> None:
        object.__setattr__(self, "network", complete_network(self.network))


@dataclass(frozen=True)
class SourceConfig(Config):
    """How rows of one `source` of the table are learnt from."""

    share: float | None = setting(None, "its share of the drawn crops; None: as it has rows", low=0)
    weight: float = setting(1.0, "weight of its loss", low=0)
    loss: str | None = setting(None, "its loss; None: the recipe's", choices=(None, *LOSSES))
    loss_settings: dict[str, Any] = setting({}, "settings of that loss")
    head: str = setting("clip", "noisy: network.noisy_head learns from it", choices=("clip", "noisy"))
    scored: bool = setting(True, "its labels count in validation")


@dataclass(frozen=True)
class SamplingConfig(Config):
    """Which crops are drawn; without steps, shares or balance, every clip once an epoch."""

    steps: int | None = setting(None, "batches per epoch; None: as hold every clip once", low=1)
    balance: str = setting(
        "none", "what classes have alike: drawn clips, or seconds", choices=("none", "clips", "seconds")
    )
    sample_by_weight: bool = setting(False, "weights are chances to be drawn, not factors of the loss")
    box_p: float = setting(
        0.5, "chance of a crop at a box, where soft labels tell of other places too", low=0, high=1
    )
    true_p: float = setting(0.5, "chance that it is a true one, where there are both", low=0, high=1)
    box_share: float = setting(
        0.5, "of the shorter of box and crop, what a crop must hear of it", low=0.01, high=1
    )
    sample_by_probs: bool = setting(False, "crops elsewhere are drawn by the sum of soft labels")
    rare_boost: float = setting(
        0.0, "what the rarest class's augmentation chances grow by, others less", low=0
    )


@dataclass(frozen=True)
class Recipe(System):
    """A training as data: a system, its losses, what is drawn and changed, and a schedule."""

    name: str = setting("own", "what it is called")
    loss: str = setting("lsep", "what is minimised, on logits", choices=tuple(LOSSES))
    loss_settings: dict[str, Any] = setting({}, "settings of the loss")
    average_over: str = setting("clips", "what a batch's loss is the mean of", choices=("clips", "labels"))
    auxiliary: tuple[float, ...] = setting((), "weights of the losses of the network's skips", low=0)
    sources: dict[str, Any] = setting({}, "the table's sources, each with its settings")
    weight_by_share: bool = setting(True, "a source's loss counts by its share of the batch")
    finetune_loss: str | None = setting(None, "the loss of the last epochs", choices=(None, *LOSSES))
    finetune_epochs: int = setting(0, "epochs of fine-tuning at the end, a schedule of their own", low=0)
    finetune_lr: float = setting(0.1, "their learning rates, as a share of optim's", low=1e-6)
    finetune_freeze: bool = setting(False, "only the heads are fine-tuned")
    crop_s: float = setting(10.0, "seconds of a training crop", low=0.05)
    wave_augment: WaveAugmentConfig = setting(WaveAugmentConfig(), "what happens to waveforms")
    spec_augment: SpecAugmentConfig = setting(SpecAugmentConfig(), "what happens to spectrograms")
    mixup: MixupConfig = setting(MixupConfig(), "how crops are mixed")
    mixup_until: float = setting(1.0, "share of the epochs that mix", low=0, high=1)
    no_augment_epochs: int = setting(10, "epochs at the end without mixing or augmentation", low=0)
    sampling: SamplingConfig = setting(SamplingConfig(), "which crops are drawn")
    image_sizes: tuple[tuple[int, ...], ...] = setting(
        (), "growing picture sizes, each for as many epochs; the last is the frontend's"
    )
    epochs: int = setting(100, "passes over the clips, or over sampling.steps batches", low=1)
    batch_size: int = setting(32, "crops per batch", low=2)
    optim: OptimConfig = setting(OptimConfig(), "how weights move")
    amp: bool = setting(True, "float16 autocast in training where the device is a GPU")
    validate_every: int = setting(10, "epochs between validations; the last is one", low=1)
    keep: str = setting("last", "which weights become the checkpoint", choices=("last", "best"))
    n_folds: int = setting(5, "folds made where the table has no fold column", low=2)
    seeds: int = setting(1, "networks per fold", low=1)
    seed: int = setting(0, "seed of everything that is drawn", low=0)
    self_training: SelfTrainingConfig = setting(SelfTrainingConfig(), "rounds of relabelling")

    def check(self) -> None:
        super().check()
        whole = {name: SourceConfig.from_dict(given).to_dict() for name, given in self.sources.items()}
        object.__setattr__(self, "sources", whole)
        if any(of["head"] == "noisy" for of in whole.values()) and not self.network.get("noisy_head"):
            raise KitError("a source with head=noisy wants network.noisy_head=true.")
        front, refers = self.frontend, self.frontend.reference == "clip"
        if (
            self.mixup.p
            and self.mixup.domain == "energy"
            and (front.normalize != "none" or front.log == "pcen")
        ):
            raise KitError(
                "energies of normalised crops or PCEN cannot be mixed: mixup.domain=spec, "
                "frontend.normalize=none, or mixup.p=0."
            )
        if self.needs_waveforms and (
            front.trim_db or (refers and (front.top_db or front.normalize in MEASURED))
        ):
            raise KitError(
                "changed waveforms have no level of their clip: frontend.reference=window and trim_db=None, or no wave_augment."
            )
        if self.finetune_epochs and not 0 < self.finetune_epochs < self.epochs:
            raise KitError(
                f"finetune_epochs must be below epochs ({self.epochs}), got {self.finetune_epochs}."
            )
        if self.image_sizes and self.image_sizes[-1] != front.image_size:
            raise KitError(
                f"image_sizes end at {self.image_sizes[-1]}, frontend.image_size is {front.image_size}."
            )

    @property
    def needs_waveforms(self) -> bool:
        """Whether crops are cut from waveforms: something changes or mixes them."""
        changes = any(v for k, v in vars(self.wave_augment).items() if k.endswith("_p"))
        return changes or (self.mixup.p > 0 and self.mixup.domain == "wave")

    @property
    def output(self) -> str:
        """What the logits of a network trained by it mean."""
        return self.output_at(self.epochs)

    def output_at(self, epoch: int) -> str:
        """What the logits of a network trained to an epoch mean, the first being 1."""
        late = self.finetune_loss and epoch > self.epochs - self.finetune_epochs
        return "ranking" if (self.finetune_loss if late else self.loss) in RANKING_LOSSES else "probability"

    @property
    def crop_frames(self) -> int:
        """Frames of a training crop."""
        return max(1, round(self.crop_s * self.frontend.frames_per_s))


MEASURED = ("clip", "peak", "minmax")


def check_recipe(recipe: object) -> None:
    """Raise KitError unless it is one."""
    if not isinstance(recipe, Recipe):
        raise KitError(f"a recipe is e.g. find_recipe('max-pyramid-mel', small=True), got {recipe!r:.60}.")
