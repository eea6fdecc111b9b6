'''Train the network of one fold.'''

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import write_whole
from kit.models.families import memory_format_of
from kit.models.network import Network, NetworkOutput
from kit.models.tagger import Tagger
from kit.train.dataset import Dataset
from kit.train.losses import CoordinateLoss, average_loss, bce_loss, sum_by_source
from kit.train.optim import averaged_model, build_optimizer, build_schedule
from kit.train.recipe import Recipe, source_losses
from kit.train.sampler import Batch, batches_per_epoch, draw_batches, prepare_batch

# Batches whose statistics become those of the batch norms of averaged weights.
NORM_BATCHES = 40
# The fold's number in seeds of networks that are trained on all folds.
ALL_FOLDS_SEED = 2**21
# The parts of a Trainer with a state dict.
STATEFUL_PARTS = ('network', 'coordinate', 'optimizer', 'schedule', 'scaler', 'averaged')


def mixed_seed(*numbers: int) -> int:
    '''Combine several numbers into one seed.'''
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def network_seed(recipe: Recipe, fold: int | None, replica: int, *more: int) -> int:
    '''The seed of one network of a run, and of a part of its training.'''
    fold_number = ALL_FOLDS_SEED if fold is None else fold
    return mixed_seed(recipe.seed, fold_number, *([replica] if replica else []), *more)


class Trainer:
    '''Trains one network on the train split of a fold, and saves its whole state after every epoch.

    The same seed gives the same weights, bit for bit on the CPU, also when the training is killed and resumed: every
    epoch draws its random numbers from seed, fold, replica and epoch. `replica` counts a fold's networks. Fold None
    stands for all clips.
    '''

    def __init__(
        self, recipe: Recipe, tagger: Tagger, clips: Dataset, fold: int | None, device: torch.device, replica: int = 0
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
        self.amp = recipe.amp and device.type == 'cuda'
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=self.amp)
        self.averaged = averaged_model(recipe.optim, self.network)
        self.losses = source_losses(recipe)
        self.coordinate: CoordinateLoss | None = None
        if recipe.coordinate_weight and isinstance(self.network, Network):
            self.coordinate = CoordinateLoss(self.network.backbone.widths[-1]).to(device)
        trained = [self.network] if self.coordinate is None else [self.network, self.coordinate]
        self.optimizer = build_optimizer(recipe.optim, nn.ModuleList(trained))
        self.schedule = build_schedule(recipe.optim, self.optimizer, recipe.epochs * self.steps)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.best_weights: dict[str, Tensor] = {}
        self.label_counts = torch.tensor(0.0)  # true and known labels that were drawn; (2, K) after a batch

    def train(
        self, state_path: Path, validate: Callable[[], float], deadline: Deadline | None = None
    ) -> Iterator[dict[str, float]]:
        '''Train the epochs that are left, and yield the history row of each; then load the weights to keep.

        `validate` returns the network's score. A training that would miss its deadline stops early, after a validation,
        and keeps the weights of the best one. So does one that is stalled.
        '''
        recipe = self.recipe
        clock = deadline or Deadline()
        wants_best = recipe.keep == 'best' or recipe.patience > 0 or math.isfinite(clock.at)
        keeps_best = wants_best and self.fold is not None
        validation_s = 0.0
        while self.epoch < recipe.epochs and not self.is_stalled and (self.epoch == 0 or clock.left_s() > 0):
            start = clock.now()
            row = self.run_epoch()
            self.history.append(row)
            trained_at = clock.now()
            # Another epoch and its validation may take twice as long as the slowest so far.
            stops = clock.left_s() < 2.0 * (trained_at - start + validation_s)
            is_last = stops or self.epoch == recipe.epochs
            if is_last or self.epoch % recipe.validate_every == 0:
                weights = copy.deepcopy(self.network.state_dict())
                self.load_averaged_weights()
                row['score'] = validate()
                if keeps_best and self.best_epoch == self.epoch:
                    self.best_weights = {name: value.cpu().clone() for name, value in self.network.state_dict().items()}
                self.network.load_state_dict(weights)
                validation_s = max(validation_s, clock.now() - trained_at)
                if recipe.optim.schedule == 'plateau':
                    self.schedule.step(-row['loss'] if self.fold is None else row['score'])
            self.save(state_path)
            yield row
            if is_last:
                break
        if self.kept_epoch == self.epoch:
            self.load_averaged_weights()
        else:
            self.network.load_state_dict(self.best_weights)

    def run_epoch(self) -> dict[str, float]:
        '''Train one epoch, and return its history row: epoch, loss and lr.'''
        recipe = self.recipe
        start = time.perf_counter()
        self.network.train()
        if isinstance(self.network, Network):
            # A frozen backbone keeps its weights and its batch norms' statistics.
            is_frozen = self.epoch < recipe.optim.freeze_epochs
            self.network.backbone.requires_grad_(not is_frozen)
            self.network.backbone.train(not is_frozen)
        total_loss = 0.0
        with self.seeded() as generator:
            for step, batch in enumerate(draw_batches(self.clips, recipe, self.tagger.frontend, generator)):
                loss = self.train_step(batch, generator)
                if not math.isfinite(loss):
                    names = ', '.join(self.clips.names[row] for row in batch.rows[:8])
                    place = f'{self.name}, epoch {self.epoch}, step {step}'
                    raise KitError(f'the loss of {place} is {loss} (clips {names}): lower optim.lr_peak or clip_norm.')
                total_loss += loss
        lr = max(float(group['lr']) for group in self.optimizer.param_groups)
        self.epoch += 1
        is_swa_epoch = self.epoch > (1 - recipe.optim.swa_share) * recipe.epochs
        if self.averaged and recipe.optim.average == 'swa' and is_swa_epoch:
            self.averaged.update_parameters(self.network)
        self.seconds.append(time.perf_counter() - start)
        return {'epoch': self.epoch, 'loss': total_loss / self.steps, 'lr': lr}

    def train_step(self, batch: Batch, generator: torch.Generator) -> float:
        '''Step the optimiser along a batch's gradient, and return the loss.'''
        optim = self.recipe.optim
        plain = self.epoch >= self.recipe.epochs - self.recipe.no_augment_epochs
        inputs, targets, soft = self.make_inputs(batch, generator, plain)
        self.label_counts = self.label_counts + torch.stack([targets.nansum(0), (~targets.isnan()).sum(0)])
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            output = self.forward(inputs)
        loss = self.loss(output, targets, soft, batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if optim.schedule != 'plateau':
            self.schedule.step()
        if self.averaged and optim.average == 'ema':
            self.averaged.update_parameters(self.network)
        return float(loss.detach())

    def make_inputs(self, batch: Batch, generator: torch.Generator, plain: bool) -> tuple[Tensor, Tensor, Tensor]:
        '''Augment a batch and stack the network's input channels, at this epoch's image size.

        Shape:  -> inputs (B, C, M, N), targets and soft labels (B, K), on the device
        '''
        recipe = self.recipe
        frontend = self.tagger.frontend
        mixing = self.epoch < recipe.mixup_until * recipe.epochs
        specs, targets, soft = prepare_batch(
            batch, recipe, frontend, self.device, generator, plain, mixing, self.clips.backgrounds
        )
        sizes = recipe.image_sizes
        size = sizes[min(len(sizes) - 1, int(self.epoch / recipe.epochs * len(sizes)))] if sizes else None
        inputs = frontend.stack(specs, size).contiguous(memory_format=self.layout)
        return inputs, targets.to(self.device), soft.to(self.device)

    def forward(self, inputs: Tensor) -> NetworkOutput:
        '''Apply the network: clip logits, and those of frames and skips if the recipe trains them.'''
        n_auxiliary = len(self.recipe.auxiliary)
        if not (n_auxiliary or self.recipe.uses_frames or self.coordinate):
            return NetworkOutput(self.network(inputs))
        output: NetworkOutput = self.network.outputs(inputs)  # type: ignore[operator]
        if len(output.auxiliary) < n_auxiliary:
            has = f'{n_auxiliary} weights, the network {len(output.auxiliary)} skips'
            raise KitError(f'auxiliary has {has}: give a weight per skip, or [].')
        return output

    def loss(self, output: NetworkOutput, targets: Tensor, soft: Tensor, batch: Batch) -> Tensor:
        '''Sum the weighted losses of sources, distillation and the coordinate, at all outputs. Shape: -> scalar'''
        recipe = self.recipe
        weights = batch.weights.to(self.device)
        sources = batch.sources.to(self.device)
        reduction = recipe.average_over, recipe.weight_by_share
        losses = []
        for weight, logits in recipe.weighted_logits(output):
            loss = sum_by_source(logits, targets, sources, self.losses, weights, *reduction)
            if recipe.distill_weight:
                loss = loss + recipe.distill_weight * average_loss(bce_loss(logits, soft), weights, recipe.average_over)
            losses.append(weight * loss)
        if self.coordinate and output.deepest is not None:
            losses.append(recipe.coordinate_weight * self.coordinate(output.deepest))
        return torch.stack(losses).sum()

    def load_averaged_weights(self) -> None:
        '''Copy the averaged weights, if there are any yet, into the network.

        The batch norms' statistics are computed anew on some training batches: their averages would be wrong. While the
        backbone is frozen, its statistics must stay, and so do all weights.
        '''
        is_frozen = self.epoch <= self.recipe.optim.freeze_epochs
        if self.averaged is None or not int(self.averaged.n_averaged) or is_frozen:
            return
        self.network.load_state_dict(self.averaged.module.state_dict())
        with self.seeded(1) as generator, torch.no_grad():
            batches = draw_batches(self.clips, self.recipe, self.tagger.frontend, generator)
            first = itertools.islice(batches, NORM_BATCHES)
            update_bn((self.make_inputs(batch, generator, plain=True)[0] for batch in first), self.network)

    @contextlib.contextmanager
    def seeded(self, *more: int) -> Iterator[torch.Generator]:
        '''Yield a generator for the draws of this epoch, with torch's own seeded alike.'''
        seed = network_seed(self.recipe, self.fold, self.replica, self.epoch, *more)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == 'cuda' else []):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)

    @property
    def name(self) -> str:
        '''The fold and the number of the network, for messages.'''
        fold = 'all clips' if self.fold is None else f'fold {self.fold}'
        return f'{fold}, seed {self.replica}' if self.replica else fold

    @property
    def prevalences(self) -> list[float]:
        '''Each class's share of true labels among the known ones drawn, with half a label of each kind more.'''
        # So no share is 0 or 1.
        n_true, n_known = self.label_counts.double()
        return ((n_true + 0.5) / (n_known + 1)).tolist()

    @property
    def best_epoch(self) -> int:
        '''The first epoch with the best score.'''
        return int(max(self.history, key=lambda row: row.get('score', -math.inf))['epoch'])

    @property
    def is_stalled(self) -> bool:
        '''Whether the last `patience` validations of a fold found no better score.'''
        if self.fold is None or not self.recipe.patience or not self.history:
            return False
        best = self.best_epoch
        return sum('score' in row and row['epoch'] > best for row in self.history) >= self.recipe.patience

    @property
    def kept_epoch(self) -> int:
        '''The epoch whose weights are kept: the last, or the best, also at a deadline.'''
        keeps_last = self.recipe.keep == 'last' and not self.recipe.patience and self.epoch == self.recipe.epochs
        return self.epoch if keeps_last or not self.best_weights else self.best_epoch

    def save(self, path: Path) -> None:
        '''Write all that a resumed training needs, as one whole file.'''
        state = {
            'recipe': self.recipe.canonical_json(),
            'epoch': self.epoch,
            'history': self.history,
            'seconds': self.seconds,
            'best': self.best_weights,
            'drawn': self.label_counts,
        }
        for name in STATEFUL_PARTS:
            part = getattr(self, name)
            state[name] = {} if part is None else part.state_dict()
        write_whole(path, lambda handle: torch.save(state, handle))

    def restore(self, path: Path) -> None:
        '''Continue from a state on disk, if any.'''
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location='cpu', weights_only=True)
            is_of_recipe = state['recipe'] == self.recipe.canonical_json()
            if is_of_recipe:
                for name in STATEFUL_PARTS:
                    # The scaler's state is empty if the training began on a device without AMP.
                    if state.get(name):
                        getattr(self, name).load_state_dict(state[name])
                self.epoch = state['epoch']
                self.history = state['history']
                self.seconds = state['seconds']
                self.best_weights = state['best']
                self.label_counts = state['drawn'].to(self.device)
        except Exception as error:
            raise KitError(f'{path} cannot be read: remove it, and its fold is trained anew.') from error
        if not is_of_recipe:
            raise KitError(f'{path} belongs to another recipe: choose another --out, or remove it.')
