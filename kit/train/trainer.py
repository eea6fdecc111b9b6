"""Train one fold."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from kit.audio.augment import augment_waves, draw_wave_augment
from kit.audio.frontend import Frontend
from kit.audio.mixup import draw_mixup, mix_energies, mix_labels, mix_specs, mix_waves
from kit.audio.normalize import image_size_at
from kit.audio.specaugment import augment_specs, draw_spec_augment
from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import write_whole
from kit.models.families import memory_format_of
from kit.models.heads import NetworkOutput
from kit.models.network import Network
from kit.models.tagger import Tagger
from kit.train.losses import LOSSES, RowLossFunction, sum_by_source
from kit.train.optim import averaged_model, build_optimizer, build_schedule
from kit.train.recipe import Recipe
from kit.train.sampler import Batch, TrainingSet, batches_per_epoch, draw_batches

NORM_BATCHES = 40


def mixed_seed(*numbers: int) -> int:
    """One seed from several: each epoch of each fold draws its own, resumed or not."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def prepare_batch(
    batch: Batch, recipe: Recipe, frontend: Frontend, device: torch.device, generator: torch.Generator,
    plain: bool = False, mixing: bool = True, backgrounds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Crops changed and mixed as the recipe says, and their labels.

    Shape:  -> normalize_spec spectrograms (B, R, N), before channels are stacked; targets (B, K)
    """
    pieces, targets, mix = batch.pieces.to(device), batch.targets, recipe.mixup
    chance = torch.zeros(len(targets)) if plain else batch.chances
    draw = draw_mixup(mix, targets, generator, chance if mixing else torch.zeros_like(chance))
    if recipe.needs_waveforms:
        waves = pieces[:, 0]
        changes = draw_wave_augment(recipe.wave_augment, len(waves), waves.shape[1], generator, chance)
        waves = augment_waves(waves, changes, recipe.wave_augment, recipe.frontend.sample_rate, backgrounds)
        if mix.domain == "wave":
            waves = mix_waves(waves, draw, mix)
        pieces = torch.stack(frontend.spectrograms(list(waves)))
    if mix.domain == "energy" and draw.mixed.any():
        pieces = mix_energies(pieces, draw, mix, recipe.frontend)
    if recipe.needs_waveforms:
        pieces = torch.stack([frontend.normalize(spec) for spec in pieces])
    if mix.domain == "spec":
        pieces = mix_specs(pieces, draw, mix)
    rows, frames = recipe.frontend.n_spec_bins, pieces.shape[-1]
    masks = draw_spec_augment(
        recipe.spec_augment, len(pieces), rows, frames, generator, batch.band_rows, chance
    )
    return augment_specs(pieces, masks, recipe.spec_augment, frontend), mix_labels(targets, draw, mix)


class Trainer:
    """The training of one fold, kept whole on disk after every epoch.

    The same seed gives the same weights, bit for bit on the CPU, killed on the way or not. `replica` numbers the
    networks of one fold; fold None learns from all clips.
    """

    def __init__(
        self, recipe: Recipe, tagger: Tagger, clips: TrainingSet, fold: int | None, device: torch.device,
        replica: int = 0, backgrounds: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.tagger, self.clips, self.device = recipe, tagger, clips, device
        self.judged = fold is not None
        self.place = f"fold {fold}" if self.judged else "all clips"
        self.place += f", seed {replica}" if replica else ""
        self.seeds = [recipe.seed, 2**21 if fold is None else fold, *([replica] if replica else [])]
        self.backgrounds = backgrounds
        self.network: nn.Module = tagger.network.to(device)
        self.layout = memory_format_of(self.network)
        self.steps = batches_per_epoch(clips, recipe)
        self.amp = recipe.amp and device.type == "cuda"
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self.amp)
        self.averaged = averaged_model(recipe.optim, self.network)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.drawn = torch.tensor(0.0)
        self.begin_phase(late=False)

    def begin_phase(self, late: bool) -> None:
        """Optimiser, schedule and losses of the epochs before fine-tuning, or of it."""
        recipe = self.recipe
        epochs = recipe.finetune_epochs if late else recipe.epochs - recipe.finetune_epochs
        self.frozen = late and recipe.finetune_freeze and isinstance(self.network, Network)
        if self.frozen:
            self.network.backbone.requires_grad_(False)
        self.optimizer = build_optimizer(recipe.optim, self.network, recipe.finetune_lr if late else 1.0)
        steps = -(-self.steps // recipe.optim.accumulate)  # an epoch's last one may have fewer batches
        self.schedule = build_schedule(recipe.optim, self.optimizer, epochs * steps)
        kind, settings = recipe.loss, recipe.loss_settings
        if late and recipe.finetune_loss and recipe.finetune_loss != kind:
            kind, settings = recipe.finetune_loss, {}
        own = functools.partial(LOSSES[kind], **settings)
        self.losses: list[tuple[RowLossFunction, float]] = [(own, 1.0)] * (not recipe.sources)
        self.noisy = []
        for given in recipe.sources.values():
            other = functools.partial(LOSSES[given["loss"] or kind], **given["loss_settings"])
            self.losses.append((other if given["loss"] else own, given["weight"]))
            self.noisy.append(given["head"] == "noisy")

    @property
    def parts(self) -> dict[str, Any]:
        """What a resumed training loads."""
        parts = {"network": self.network, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts | {"scaler": self.scaler} | ({"averaged": self.averaged} if self.averaged else {})

    def run_epoch(self) -> dict[str, float]:
        """One pass over the clips; its mean loss."""
        recipe, began = self.recipe, time.perf_counter()
        if recipe.finetune_epochs and self.epoch == recipe.epochs - recipe.finetune_epochs:
            self.begin_phase(late=True)
        generator, total = self.generator(), 0.0
        self.network.train()
        if self.frozen:
            self.network.backbone.eval()  # type: ignore[union-attr]
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(mixed_seed(*self.seeds, self.epoch))
            self.optimizer.zero_grad(set_to_none=True)
            for step, batch in enumerate(draw_batches(self.clips, recipe, self.tagger.frontend, generator)):
                first = step - step % recipe.optim.accumulate
                of = min(recipe.optim.accumulate, self.steps - first)
                loss = self.train_step(batch, generator, step + 1 == first + of, of)
                if not math.isfinite(loss):
                    raise KitError(self.explain_loss(loss, step, batch))
                total += loss
        lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.epoch += 1
        if (
            self.averaged
            and recipe.optim.average == "swa"
            and self.epoch > (1 - recipe.optim.swa_share) * recipe.epochs
        ):
            self.averaged.update_parameters(self.network)
        self.seconds.append(time.perf_counter() - began)
        return {"epoch": self.epoch, "loss": total / self.steps, "lr": lr}

    @property
    def prevalences(self) -> list[float]:
        """Each class's share in the known labels that were learnt from, half a label true and half false more."""
        true, known = self.drawn.double()
        return ((true + 0.5) / (known + 1)).tolist()  # type: ignore[no-any-return]

    def generator(self, *more: int) -> torch.Generator:
        """The randomness of this epoch."""
        return torch.Generator().manual_seed(mixed_seed(*self.seeds, self.epoch, *more))

    def explain_loss(self, loss: float, step: int, batch: Batch) -> str:
        """What to say of a loss that is no number."""
        named, where = self.clips.names, f"{self.place}, epoch {self.epoch}, step {step}"
        clips = ", ".join(named[i] for i in batch.clips[:8]) if named else "without names"
        return f"the loss of {where} is {loss} (clips {clips}): lower optim.lr_peak or optim.clip_norm."

    def make_inputs(self, batch: Batch, generator: torch.Generator, plain: bool) -> tuple[Tensor, Tensor]:
        """A batch's inputs, as large as pictures have grown, and targets. Shape: (B, C, M + S, N), (B, K)"""
        recipe, front = self.recipe, self.tagger.frontend
        mixing = self.epoch < recipe.mixup_until * recipe.epochs
        given = recipe, front, self.device, generator, plain, mixing, self.backgrounds
        specs, targets = prepare_batch(batch, *given)
        size = image_size_at(recipe.image_sizes, self.epoch / recipe.epochs) if recipe.image_sizes else None
        return front.stack(specs, size).contiguous(memory_format=self.layout), targets.to(self.device)

    def train_step(self, batch: Batch, generator: torch.Generator, last: bool = True, of: int = 1) -> float:
        """Gradients of one batch `of` some, and a step of the optimiser at their `last`; the batch's loss."""
        recipe, optim = self.recipe, self.recipe.optim
        plain = self.epoch >= recipe.epochs - recipe.no_augment_epochs
        inputs, targets = self.make_inputs(batch, generator, plain)
        self.drawn = self.drawn + torch.stack([targets.nansum(0), (~targets.isnan()).sum(0)])
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            said = self.forward(inputs)
        loss = self.loss(said, targets, batch)
        torch.autograd.backward(self.scaler.scale(loss / of))
        if last:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if optim.schedule != "plateau":
                self.schedule.step()
            if self.averaged and optim.average == "ema":
                self.averaged.update_parameters(self.network)
        return float(loss.detach())

    def forward(self, inputs: Tensor) -> NetworkOutput:
        """The network's clip logits, and those of skips and noisy head where they learn."""
        if self.recipe.auxiliary or any(self.noisy):
            said: NetworkOutput = self.network.outputs(inputs)  # type: ignore[operator]
            if len(said.auxiliary) < len(self.recipe.auxiliary):
                skips = f"{len(self.recipe.auxiliary)} weights, the network {len(said.auxiliary)} skips"
                raise KitError(f"auxiliary has {skips}: give a weight per skip, or [].")
            return said
        return NetworkOutput(self.network(inputs))

    def loss(self, said: NetworkOutput, targets: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch: each source's own, over clip and skips."""
        recipe, clip = self.recipe, said.clip
        weights, sources = batch.weights.to(self.device), batch.sources.to(self.device)
        if any(self.noisy) and said.noisy is not None:
            clip = torch.where(
                torch.tensor(self.noisy, device=self.device)[sources][:, None], said.noisy, clip
            )
        pairs = [(clip, 1.0), *zip(said.auxiliary, recipe.auxiliary, strict=False)]
        how = self.losses, weights, recipe.average_over, recipe.weight_by_share
        return torch.stack([share * sum_by_source(one, targets, sources, *how) for one, share in pairs]).sum()

    @contextlib.contextmanager
    def kept_weights(self) -> Iterator[None]:
        """The network with the weights that would be kept now."""
        if self.averaged is None or not int(self.averaged.n_averaged):
            yield
            return
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.averaged.module.state_dict())
        self.estimate_norms()
        yield
        self.network.load_state_dict(own)

    def estimate_norms(self) -> None:
        """Batch norms take the statistics of some training batches."""
        generator = self.generator(1)
        drawn = draw_batches(self.clips, self.recipe, self.tagger.frontend, generator)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(mixed_seed(*self.seeds, self.epoch, 1))
            update_bn(
                (self.make_inputs(b, generator, True)[0] for b in itertools.islice(drawn, NORM_BATCHES)),
                self.network,
            )

    def train(
        self,
        state_path: Path,
        validate: Callable[[], float],
        after_epoch: Callable[[Mapping[str, float]], None],
        deadline: Deadline | None = None,
    ) -> None:
        """All epochs that are left, or that fit; then the network holds the weights that the recipe keeps.

        Cut by the deadline, those of the best validation are kept, the last included.
        """
        recipe, clock, heard_s = self.recipe, deadline or Deadline(), 0.0
        keep_best = self.judged and (recipe.keep == "best" or math.isfinite(clock.at))
        while self.epoch < recipe.epochs and (not self.epoch or clock.left_s() > 0):
            began = clock.now()
            row = self.run_epoch()
            self.history.append(row)
            learnt = clock.now()
            cut = clock.left_s() < 2.0 * (learnt - began + heard_s)
            if self.epoch % recipe.validate_every == 0 or self.epoch == recipe.epochs or cut:
                with self.kept_weights():
                    row["lwlrap"] = validate()
                    if keep_best and self.best_epoch == self.epoch:
                        self.best = {
                            k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()
                        }
                heard_s = max(heard_s, clock.now() - learnt)
                if recipe.optim.schedule == "plateau":
                    self.schedule.step(row["lwlrap"] if self.judged else -row["loss"])
            write_whole(state_path, lambda handle: torch.save(self.state(), handle))
            after_epoch(row)
            if cut and self.epoch < recipe.epochs:
                break
        if self.kept_epoch != self.epoch or (self.best and recipe.keep == "best"):
            self.network.load_state_dict(self.best)
        elif self.averaged and int(self.averaged.n_averaged):
            self.network.load_state_dict(self.averaged.module.state_dict())
            self.estimate_norms()

    @property
    def best_epoch(self) -> int:
        """The first epoch that scored best."""
        return int(max(self.history, key=lambda row: row.get("lwlrap", -math.inf))["epoch"])

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept: the last of a whole training, or the first that scored best."""
        whole = self.recipe.keep == "last" and self.epoch == self.recipe.epochs
        return self.best_epoch if self.best and not whole else self.epoch

    def state(self) -> dict[str, Any]:
        """Everything a resumed training needs; random numbers follow from seed, fold and epoch."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        facts = {"recipe": self.recipe.digest_text(), "epoch": self.epoch, "history": self.history}
        return {**facts, "seconds": self.seconds, "best": self.best, "drawn": self.drawn, **parts}

    def restore(self, path: Path) -> None:
        """Go on from a state on disk, if there is one. Errors: KitError where it is damaged, or another recipe's"""
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if own := state["recipe"] == self.recipe.digest_text():
                if (
                    self.recipe.finetune_epochs
                    and state["epoch"] > self.recipe.epochs - self.recipe.finetune_epochs
                ):
                    self.begin_phase(late=True)
                for name, part in self.parts.items():
                    if state[name]:  # a scaler's is empty where the run began on a device without AMP
                        part.load_state_dict(state[name])
                self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
                self.seconds, self.drawn = state["seconds"], state["drawn"].to(self.device)
        except Exception as error:
            raise KitError(f"{path} cannot be read: remove it, and its fold is trained anew.") from error
        if not own:
            raise KitError(f"{path} belongs to another recipe: choose another --out, or remove it.")
