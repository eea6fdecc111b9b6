"""Train the network of one fold."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from kit.audio.normalize import image_size_at
from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import write_whole
from kit.models.families import memory_format_of
from kit.models.heads import NetworkOutput
from kit.models.network import Network
from kit.models.tagger import Tagger
from kit.train.dataset import Dataset
from kit.train.losses import sum_by_source
from kit.train.optim import averaged_model, build_optimizer, build_schedule
from kit.train.prepare import prepare_batch
from kit.train.recipe import Recipe, source_losses
from kit.train.sampler import Batch, batches_per_epoch, draw_batches

# Batches whose statistics become those of the batch norms of averaged weights.
NORM_BATCHES = 40
# Takes the place of the fold's number in seeds where a network is trained on all folds.
ALL_FOLDS_SEED = 2**21


def mixed_seed(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Trainer:
    """Trains one network on the train split of a fold, and saves its whole state after every epoch.

    The same seed gives the same weights, bit for bit on the CPU, also when the training is killed and resumed:
    every epoch draws its random numbers from seed, fold, replica and epoch. `replica` counts the networks of one
    fold. Fold None stands for all clips.
    """

    def __init__(
        self,
        recipe: Recipe,
        tagger: Tagger,
        clips: Dataset,
        fold: int | None,
        device: torch.device,
        replica: int = 0,
    ) -> None:
        self.recipe = recipe
        self.tagger = tagger
        self.clips = clips
        self.fold = fold
        self.replica = replica
        self.device = device
        self.network: nn.Module = tagger.network.to(device)
        self.layout = memory_format_of(self.network)
        self.steps = batches_per_epoch(clips, recipe)
        self.amp = recipe.amp and device.type == "cuda"
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self.amp)
        self.averaged = averaged_model(recipe.optim, self.network)
        self.is_finetuning = False
        self.losses = source_losses(recipe, finetune=False)
        self.uses_noisy_head = [source["head"] == "noisy" for source in recipe.sources.values()]
        self.optimizer = build_optimizer(recipe.optim, self.network, 1.0)
        n_epochs = recipe.epochs - recipe.finetune_epochs
        self.schedule = build_schedule(recipe.optim, self.optimizer, n_epochs * self.optimizer_steps)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.best_weights: dict[str, Tensor] = {}
        self.label_counts = torch.tensor(0.0)  # true and known labels that were drawn; (2, K) after a batch

    def train(
        self, state_path: Path, validate: Callable[[], float], deadline: Deadline | None = None
    ) -> Iterator[dict[str, float]]:
        """Train all epochs that are left, and yield the history row of each; then load the weights to keep.

        `validate` returns the score of the network as it is. A training that would miss its deadline stops
        early, after a validation, and keeps the weights of the best validation.
        """
        recipe = self.recipe
        clock = deadline or Deadline()
        keeps_best = self.fold is not None and (recipe.keep == "best" or math.isfinite(clock.at))
        validation_s = 0.0
        while self.epoch < recipe.epochs and (self.epoch == 0 or clock.left_s() > 0):
            start = clock.now()
            row = self.run_epoch()
            self.history.append(row)
            trained_at = clock.now()
            # Another epoch and its validation may take twice as long as the slowest so far.
            stops = clock.left_s() < 2.0 * (trained_at - start + validation_s)
            is_last = stops or self.epoch == recipe.epochs
            if is_last or self.epoch % recipe.validate_every == 0:
                with self.averaged_weights():
                    row["lwlrap"] = validate()
                    if keeps_best and self.best_epoch == self.epoch:
                        self.best_weights = cpu_copy(self.network)
                validation_s = max(validation_s, clock.now() - trained_at)
                if recipe.optim.schedule == "plateau":
                    self.schedule.step(-row["loss"] if self.fold is None else row["lwlrap"])
            self.save(state_path)
            yield row
            if is_last:
                break
        self.load_kept_weights()

    def run_epoch(self) -> dict[str, float]:
        """Train on every batch of one epoch. Returns its row of the history: epoch, loss and lr."""
        recipe = self.recipe
        start = time.perf_counter()
        if recipe.finetune_epochs and self.epoch == recipe.epochs - recipe.finetune_epochs:
            self.start_finetuning()
        self.network.train()
        if self.has_frozen_backbone:
            self.network.backbone.eval()  # type: ignore[union-attr]
        accumulate = recipe.optim.accumulate
        total_loss = 0.0
        with self.seeded_torch():
            generator = self.generator()
            self.optimizer.zero_grad(set_to_none=True)
            batches = draw_batches(self.clips, recipe, self.tagger.frontend, generator)
            for step, batch in enumerate(batches):
                # The last optimiser step of an epoch may have fewer batches.
                first = step - step % accumulate
                n_batches = min(accumulate, self.steps - first)
                is_last = step == first + n_batches - 1
                loss = self.train_step(batch, generator, is_last, n_batches)
                if not math.isfinite(loss):
                    raise KitError(self.loss_error(loss, step, batch))
                total_loss += loss
        lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.epoch += 1
        is_swa_epoch = self.epoch > (1 - recipe.optim.swa_share) * recipe.epochs
        if self.averaged and recipe.optim.average == "swa" and is_swa_epoch:
            self.averaged.update_parameters(self.network)
        self.seconds.append(time.perf_counter() - start)
        return {"epoch": self.epoch, "loss": total_loss / self.steps, "lr": lr}

    def train_step(
        self, batch: Batch, generator: torch.Generator, is_last: bool = True, n_batches: int = 1
    ) -> float:
        """Add the gradient of one of `n_batches`, and step the optimiser at the last. Returns the batch's loss."""
        plain = self.epoch >= self.recipe.epochs - self.recipe.no_augment_epochs
        inputs, targets = self.make_inputs(batch, generator, plain)
        n_true = targets.nansum(0)
        n_known = (~targets.isnan()).sum(0)
        self.label_counts = self.label_counts + torch.stack([n_true, n_known])
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            output = self.forward(inputs)
        loss = self.loss(output, targets, batch)
        torch.autograd.backward(self.scaler.scale(loss / n_batches))
        if is_last:
            self.step_optimizer()
        return float(loss.detach())

    def make_inputs(self, batch: Batch, generator: torch.Generator, plain: bool) -> tuple[Tensor, Tensor]:
        """Augment a batch and stack the network's input channels, at the image size of this epoch.

        Shape:  -> inputs (B, C, M, N) and targets (B, K), on the device
        """
        recipe = self.recipe
        frontend = self.tagger.frontend
        mixing = self.epoch < recipe.mixup_until * recipe.epochs
        specs, targets = prepare_batch(
            batch, recipe, frontend, self.device, generator, plain, mixing, self.clips.backgrounds
        )
        size = None
        if recipe.image_sizes:
            size = image_size_at(recipe.image_sizes, self.epoch / recipe.epochs)
        inputs = frontend.stack(specs, size).contiguous(memory_format=self.layout)
        return inputs, targets.to(self.device)

    def forward(self, inputs: Tensor) -> NetworkOutput:
        """Apply the network: clip logits, and those of skips and noisy head if the recipe trains them."""
        n_auxiliary = len(self.recipe.auxiliary)
        if not n_auxiliary and not any(self.uses_noisy_head):
            return NetworkOutput(self.network(inputs))
        output: NetworkOutput = self.network.outputs(inputs)  # type: ignore[operator]
        if len(output.auxiliary) < n_auxiliary:
            raise KitError(
                f"auxiliary has {n_auxiliary} weights, the network {len(output.auxiliary)} skips: "
                "give a weight per skip, or []."
            )
        return output

    def loss(self, output: NetworkOutput, targets: Tensor, batch: Batch) -> Tensor:
        """Sum the losses of all sources, at the clip logits and at the skips. Shape: -> scalar"""
        recipe = self.recipe
        weights = batch.weights.to(self.device)
        sources = batch.sources.to(self.device)
        logits = output.clip
        if any(self.uses_noisy_head) and output.noisy is not None:
            is_noisy = torch.tensor(self.uses_noisy_head, device=self.device)[sources]
            logits = torch.where(is_noisy[:, None], output.noisy, logits)
        reduction = recipe.average_over, recipe.weight_by_share
        weighted = [(1.0, logits), *zip(recipe.auxiliary, output.auxiliary, strict=False)]
        losses = []
        for weight, logits in weighted:
            loss = sum_by_source(logits, targets, sources, self.losses, weights, *reduction)
            losses.append(weight * loss)
        return torch.stack(losses).sum()

    def step_optimizer(self) -> None:
        """Clip the gradient, move the weights, and move the learning rate and the moving average on."""
        optim = self.recipe.optim
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if optim.schedule != "plateau":
            self.schedule.step()
        if self.averaged and optim.average == "ema":
            self.averaged.update_parameters(self.network)

    def start_finetuning(self) -> None:
        """Begin the fine-tuning epochs: their own loss, optimiser and schedule, the backbone frozen if asked."""
        recipe = self.recipe
        self.is_finetuning = True
        if self.has_frozen_backbone:
            self.network.backbone.requires_grad_(False)
        self.losses = source_losses(recipe, finetune=True)
        self.optimizer = build_optimizer(recipe.optim, self.network, recipe.finetune_lr)
        n_steps = recipe.finetune_epochs * self.optimizer_steps
        self.schedule = build_schedule(recipe.optim, self.optimizer, n_steps)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block, the network has its averaged weights, if there are any yet."""
        if self.averaged is None or not int(self.averaged.n_averaged):
            yield
            return
        weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.load_averaged_weights()
        yield
        self.network.load_state_dict(weights)

    def load_averaged_weights(self) -> None:
        """Copy the averaged weights into the network."""
        assert self.averaged is not None
        self.network.load_state_dict(self.averaged.module.state_dict())
        self.estimate_norms()

    def estimate_norms(self) -> None:
        """Compute the batch norms' statistics on some training batches: averages of statistics would be wrong."""
        generator = self.generator(1)
        batches = draw_batches(self.clips, self.recipe, self.tagger.frontend, generator)
        first_batches = itertools.islice(batches, NORM_BATCHES)
        inputs = (self.make_inputs(batch, generator, plain=True)[0] for batch in first_batches)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(mixed_seed(*self.seeds, self.epoch, 1))
            update_bn(inputs, self.network)

    def load_kept_weights(self) -> None:
        """Load the weights to keep: of the best validation, averaged, or as they are."""
        if self.kept_epoch != self.epoch or (self.best_weights and self.recipe.keep == "best"):
            self.network.load_state_dict(self.best_weights)
        elif self.averaged and int(self.averaged.n_averaged):
            self.load_averaged_weights()

    @property
    def name(self) -> str:
        """The fold and the number of the network, for messages."""
        fold = "all clips" if self.fold is None else f"fold {self.fold}"
        return f"{fold}, seed {self.replica}" if self.replica else fold

    @property
    def seeds(self) -> list[int]:
        """The numbers that all random numbers of this training depend on."""
        fold = ALL_FOLDS_SEED if self.fold is None else self.fold
        replica = [self.replica] if self.replica else []
        return [self.recipe.seed, fold, *replica]

    @property
    def has_frozen_backbone(self) -> bool:
        """Whether only the heads are trained now."""
        freezes = self.is_finetuning and self.recipe.finetune_freeze
        return freezes and isinstance(self.network, Network)

    @property
    def optimizer_steps(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(self.steps / self.recipe.optim.accumulate)

    @property
    def prevalences(self) -> list[float]:
        """The share of true labels among the known labels that were drawn, for each class.

        Half a true and half a false label are added, so that no share is 0 or 1.
        """
        n_true, n_known = self.label_counts.double()
        return ((n_true + 0.5) / (n_known + 1)).tolist()  # type: ignore[no-any-return]

    @property
    def best_epoch(self) -> int:
        """The first epoch with the best score."""
        best = max(self.history, key=lambda row: row.get("lwlrap", -math.inf))
        return int(best["epoch"])

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept: the last, or the best (also if a deadline cut the training)."""
        keeps_last = self.recipe.keep == "last" and self.epoch == self.recipe.epochs
        return self.epoch if keeps_last or not self.best_weights else self.best_epoch

    def generator(self, *more: int) -> torch.Generator:
        """A generator for the draws of this epoch."""
        return torch.Generator().manual_seed(mixed_seed(*self.seeds, self.epoch, *more))

    @contextlib.contextmanager
    def seeded_torch(self) -> Iterator[None]:
        """Within the block, torch's own generators are seeded for this epoch, e.g. for dropout."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(mixed_seed(*self.seeds, self.epoch))
            yield

    def loss_error(self, loss: float, step: int, batch: Batch) -> str:
        """The message for a loss that is not finite, with the clips of the batch."""
        names = ", ".join(self.clips.names[row] for row in batch.rows[:8])
        return (
            f"the loss of {self.name}, epoch {self.epoch}, step {step} is {loss} (clips {names}): "
            "lower optim.lr_peak or optim.clip_norm."
        )

    @property
    def parts(self) -> dict[str, Any]:
        """Everything with a state dict."""
        parts: dict[str, Any] = {
            "network": self.network,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        if self.averaged:
            parts["averaged"] = self.averaged
        return parts

    def save(self, path: Path) -> None:
        """Write all that a resumed training needs, as one whole file."""
        state = {
            "recipe": self.recipe.digest_text(),
            "epoch": self.epoch,
            "history": self.history,
            "seconds": self.seconds,
            "best": self.best_weights,
            "drawn": self.label_counts,
        }
        for name, part in self.parts.items():
            state[name] = part.state_dict()
        write_whole(path, lambda handle: torch.save(state, handle))

    def restore(self, path: Path) -> None:
        """Continue from a state on disk, if there is one.

        Errors: KitError for a damaged file and for one of another recipe
        """
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            is_of_recipe = state["recipe"] == self.recipe.digest_text()
            if is_of_recipe:
                self.load_state(state)
        except Exception as error:
            raise KitError(f"{path} cannot be read: remove it, and its fold is trained anew.") from error
        if not is_of_recipe:
            raise KitError(f"{path} belongs to another recipe: choose another --out, or remove it.")

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over a saved state of the same recipe."""
        recipe = self.recipe
        if recipe.finetune_epochs and state["epoch"] > recipe.epochs - recipe.finetune_epochs:
            self.start_finetuning()
        for name, part in self.parts.items():
            # The scaler's state is empty if the training began on a device without AMP.
            if state[name]:
                part.load_state_dict(state[name])
        self.epoch = state["epoch"]
        self.history = state["history"]
        self.seconds = state["seconds"]
        self.best_weights = state["best"]
        self.label_counts = state["drawn"].to(self.device)


def cpu_copy(network: nn.Module) -> dict[str, Tensor]:
    """Copy a network's weights to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
