"""How weights move: rates over time and depth, several batches to a step, averages of weights, resumed to the bit."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.core.errors import KitError
from kit.infer.predictor import Predictor
from kit.models.checkpoint import load_tagger
from kit.train.dataset import Dataset
from kit.train.optim import OptimConfig, build_optimizer, build_schedule, layer_groups
from kit.train.recipe import Recipe
from kit.train.run import new_tagger
from kit.train.sampler import draw_batches
from kit.train.trainer import NORM_BATCHES, Trainer
from tests.behaviour.test_train import make_set, train_quietly

pytestmark = pytest.mark.usefixtures("one_core")

CPU = torch.device("cpu")
CLASSES = ("high", "low", "noisy")
TINY = Recipe(
    frontend=FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, f_min_hz=20.0),
    network={"family": "max-pyramid", "blocks": 2, "width": 4}, crop_s=0.2, mixup=MixupConfig(p=0.5), epochs=4,
    no_augment_epochs=1, batch_size=4, validate_every=1, n_folds=2,
)  # fmt: skip


def noise_data(n=12, fold_of=lambda i: i % 2, seed=0):
    """Spectrograms of noise with a class each."""
    generator = torch.Generator().manual_seed(seed)
    specs = {i: torch.randn(16, 20 + i, generator=generator) * 10 for i in range(n)}
    truth = np.eye(3, dtype=np.float32)[np.arange(n) % 3]
    folds = np.array([fold_of(i) for i in range(n)])
    names = tuple(f"{i}.wav" for i in range(n))
    seconds = dict.fromkeys(range(n), 0.5)
    sources = np.full(n, "")
    return Dataset(names, CLASSES, truth, np.ones(n, np.float32), sources, truth, folds, specs, seconds, {})


DATA = noise_data()


def fold_training(recipe, data=DATA, fold=0):
    """The training of one fold, as a run begins it."""
    tagger = new_tagger(recipe, data, fold)
    Predictor(tagger, CPU)
    return Trainer(recipe, tagger, data.train_split(fold), fold, CPU)


def copied(network):
    """The weights of a network as they are now."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def same_bits(one, other):
    """Whether two state dicts are equal, bit for bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def trained(training, folder, scores=lambda epoch: 0.5, after=lambda row: None):
    """A training to its end; what it was at each validation."""
    seen = {}

    def validate():
        seen[training.epoch] = copied(training.network)
        return scores(training.epoch)

    for row in training.train(folder / "state.pt", validate):
        after(row)
    return seen


def rates_of(config, steps, score=lambda step: 0.0, rate=1.0, share=1.0):
    """The learning rates of every group at every step. Shape: -> (steps, groups)"""
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(8 if rate < 1 else 1)])
    optimizer = build_optimizer(replace(config, layer_decay=rate), network, share)
    schedule = build_schedule(config, optimizer, steps)
    rates = []
    for step in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        schedule.step(*([score(step)] if config.schedule == "plateau" else []))
    return np.array(rates)


def slow_one_cycle(c, steps):
    """Half a cosine up to the peak in the first `warmup` of the steps, half a cosine down to the end in the rest."""
    peak_at, rates = c.warmup * steps - 1, []
    for step in range(steps):
        up = step <= peak_at
        a, b = (c.lr_start, c.lr_peak) if up else (c.lr_peak, c.lr_end)
        done = step / peak_at if up else (step - peak_at) / (steps - 1 - peak_at)
        rates.append(b + (a - b) * (1 + math.cos(math.pi * done)) / 2)
    return rates


def test_each_schedule_has_its_rates():
    config = OptimConfig(lr_start=1e-3, lr_peak=1e-2, lr_end=1e-5, warmup=0.3)
    np.testing.assert_allclose(rates_of(config, 20)[:, 0], slow_one_cycle(config, 20), rtol=1e-9)
    cosine = replace(config, schedule="cosine")
    slow = [1e-5 + (1e-2 - 1e-5) * (1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)]
    np.testing.assert_allclose(rates_of(cosine, 20)[:, 0], slow, rtol=1e-9)
    steps = replace(config, schedule="steps", milestones=(0.25, 0.5, 0.9), factor=0.1)
    slow = [1e-2 * 0.1 ** sum(k >= 20 * m for m in steps.milestones) for k in range(20)]
    np.testing.assert_allclose(rates_of(steps, 20)[:, 0], slow, rtol=1e-9)
    np.testing.assert_allclose(rates_of(replace(config, schedule="constant"), 5)[:, 0], 1e-2)


def test_a_plateau_lowers_the_rate_after_so_many_validations_without_gain():
    config = OptimConfig(lr_start=1e-3, lr_peak=1e-2, schedule="plateau", patience=2, factor=0.5)
    scores = [0.5, 0.6, 0.6, 0.55, 0.6, 0.7, 0.7, 0.7, 0.7, 0.8]
    rates = rates_of(config, 10, scores.__getitem__)[:, 0]
    np.testing.assert_allclose(rates, [1e-2] * 5 + [5e-3] * 4 + [2.5e-3])


def test_rates_by_depth_are_geometric_from_the_first_layer_to_the_last():
    for schedule in ("one-cycle", "cosine", "steps", "constant"):
        config = OptimConfig(lr_start=1e-3, lr_peak=1e-2, lr_end=1e-9, schedule=schedule)
        rates = rates_of(config, 10, rate=0.01)[:9]
        ratios = rates[:, 1:] / rates[:, :-1]
        np.testing.assert_allclose(ratios, 0.01 ** (-1 / 7), rtol=1e-3)
        np.testing.assert_allclose(rates[:, -1], rates_of(config, 10)[:9, 0], rtol=1e-3)


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 8, 9, 40])
def test_groups_by_depth_hold_every_parameter_once_and_the_last_has_the_whole_rate(layers):
    network = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(layers)])
    network[0].requires_grad_(layers > 1 and layers != 3)
    groups = layer_groups(network, 0.1, 1e-2)
    held = [p for group in groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in network.parameters() if p.requires_grad]
    if held:
        assert groups[-1]["lr"] == 1e-2 and len(groups) <= 8
        assert [g["lr"] for g in groups] == sorted(g["lr"] for g in groups)
    if layers in (8, 9, 40):
        assert groups[0]["lr"] == pytest.approx(1e-3)
    (alone,) = layer_groups(network, 1.0, 1e-2)
    assert len(alone["params"]) == len(held)


def test_the_optimiser_is_the_one_asked_for_and_its_decay_is_decoupled():
    """With no gradient, a weight shrinks by the rate times the decay alone; SGD's own decay is L2, the same here."""
    kinds = {"adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam, "sgd": torch.optim.SGD}
    for kind, wanted in kinds.items():
        network = nn.Linear(2, 2, bias=False)
        before = network.weight.detach().clone()
        optimizer = build_optimizer(OptimConfig(kind=kind, weight_decay=0.1, lr_peak=1e-2), network, 0.5)
        assert isinstance(optimizer, wanted) and optimizer.param_groups[0]["lr"] == 5e-3
        network.weight.grad = torch.zeros(2, 2)
        optimizer.step()
        factor = 1 - 5e-3 * 0.1 * (1.9 if kind == "sgd" else 1)
        torch.testing.assert_close(network.weight.detach(), before * factor, rtol=1e-5, atol=1e-7)


def test_rates_that_do_not_rise_and_fall_are_refused():
    with pytest.raises(KitError, match="must rise from lr_start to lr_peak"):
        OptimConfig(lr_start=1.0)


def without_norms(network):
    """Batch norms in evaluation mode, so that a batch is the sum of its parts."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.Dropout):
            module.eval()


def test_batches_that_make_one_step_move_weights_as_one_big_batch_does():
    plain = ["network.head.dropout=0", "mixup.p=0", "loss=bce", "optim.kind=sgd", "optim.schedule=constant"]
    many = fold_training(TINY.override([*plain, "batch_size=2", "optim.accumulate=3"]))
    one = fold_training(TINY.override([*plain, "batch_size=6"]))
    assert same_bits(many.network.state_dict(), one.network.state_dict())
    for training in (many, one):
        without_norms(training.network)
    whole = next(draw_batches(one.clips, one.recipe, one.tagger.frontend, torch.Generator()))
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        part = type(whole)(*(column[rows] for column in whole))
        many.train_step(part, torch.Generator(), k == 2, 3)
        assert (k < 2) == (not many.optimizer.state)
    one.train_step(whole, torch.Generator())
    for a, b in zip(many.network.parameters(), one.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulate, clips, steps", [(2, 6, 2), (2, 12, 3), (4, 12, 2), (5, 16, 2)])
def test_an_epoch_ends_with_a_step_and_the_schedule_knows_how_many_there_are(
    tmp_path, accumulate, clips, steps
):
    """Two clips a batch; the last step of an epoch may be of fewer batches, whose mean it takes all the same."""
    data = noise_data(2 * clips)
    recipe = TINY.override(
        [f"optim.accumulate={accumulate}", "batch_size=2", "epochs=3", "no_augment_epochs=0"]
    )
    training, rates, calls = fold_training(recipe, data), [], []
    training.optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    given, own = calls, training.train_step

    def train_step(batch, generator, last, of):
        given.append((last, of))
        return own(batch, generator, last, of)

    training.train_step = train_step
    trained(training, tmp_path)
    assert len(rates) == 3 * steps
    assert rates[0] == pytest.approx(recipe.optim.lr_start) and rates[-1] == pytest.approx(
        recipe.optim.lr_end
    )
    batches = clips // 2
    sizes = [min(accumulate, batches - k * accumulate) for k in range(steps)]
    assert given == [(j + 1 == size, size) for size in sizes for j in range(size)] * 3


def test_ema_is_its_definition(tmp_path):
    recipe = TINY.override(["optim.average=ema", "optim.ema_decay=0.7"])
    training = fold_training(recipe)
    slow = None

    def note(*_):
        nonlocal slow
        now = {name: p.detach().double().clone() for name, p in training.network.named_parameters()}
        slow = now if slow is None else {name: 0.7 * slow[name] + 0.3 * now[name] for name in now}

    training.optimizer.register_step_post_hook(note)
    trained(training, tmp_path)
    for name, p in training.network.named_parameters():
        torch.testing.assert_close(p.double(), slow[name], rtol=1e-4, atol=1e-6)


def test_the_tail_average_is_the_mean_of_the_last_epochs(tmp_path):
    recipe = TINY.override(["optim.average=swa", "optim.swa_share=0.5", "epochs=6"])
    training, after = fold_training(recipe), []
    trained(training, tmp_path, after=lambda row: after.append(copied(training.network)))
    for name, p in training.network.named_parameters():
        mean = torch.stack([weights[name].double() for weights in after[3:]]).mean(0)
        torch.testing.assert_close(p.double(), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_averaged_weights_are_what_is_heard_and_kept_and_training_goes_on_from_its_own(tmp_path, average):
    """Law 3."""
    averaging = fold_training(TINY.override([f"optim.average={average}", "optim.ema_decay=0.5"]))
    plain = fold_training(TINY)
    heard, own = trained(averaging, tmp_path), trained(plain, tmp_path / "plain")
    moving = torch.load(tmp_path / "state.pt", weights_only=True)["network"]
    assert same_bits(moving, plain.network.state_dict())
    assert same_bits(averaging.network.state_dict(), heard[4])
    assert not same_bits(heard[4], own[4]) or average == "swa"
    assert same_bits(heard[1], own[1]) == (average == "swa")
    best = fold_training(TINY.override([f"optim.average={average}", "optim.ema_decay=0.5", "keep=best"]))
    at = trained(best, tmp_path, lambda epoch: {1: 0.1, 2: 0.9}.get(epoch, 0.5))
    assert same_bits(best.network.state_dict(), at[2]) and same_bits(at[4], heard[4])


def test_averaged_weights_have_batch_norms_of_what_they_hear_themselves(tmp_path):
    training = fold_training(
        TINY.override(["optim.average=ema", "optim.ema_decay=0.9", "network.head.dropout=0"])
    )
    trained(training, tmp_path)
    network, recipe = training.network, training.recipe
    twin, inputs = copy.deepcopy(network).train(), []
    norms = [(name, m) for name, m in twin.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    first, module = norms[0]
    module.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    assert training.steps <= NORM_BATCHES
    for batch in draw_batches(training.clips, recipe, training.tagger.frontend, training.generator(1)):
        twin(training.make_inputs(batch, torch.Generator(), True)[0])
    kept = network.get_submodule(first)
    heard = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], dim=1)
    torch.testing.assert_close(kept.running_mean, heard.mean(1), rtol=1e-3, atol=1e-4)
    assert all(bool(m.running_var.isfinite().all()) for _, m in norms)


def test_norms_of_averages_do_not_follow_the_caller_s_randomness(tmp_path):
    recipe = TINY.override(["optim.average=ema", "network.head.dropout=0.5", "epochs=2"])
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        training = fold_training(recipe)
        before = torch.get_rng_state()
        trained(training, tmp_path)
        assert torch.equal(torch.get_rng_state(), before)
        drawn = []
        hook = nn.modules.module.register_module_forward_hook(
            lambda m, _, said, drawn=drawn: drawn.append(said.clone()) if isinstance(m, nn.Dropout) else None
        )
        training.estimate_norms()
        hook.remove()
        outcomes.append(drawn)
    assert outcomes[0] and all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


class Killed(Exception):
    """Stands for a kill."""


WAYS = {
    "ema": ["optim.average=ema", "optim.ema_decay=0.9"],
    "swa": ["optim.average=swa", "optim.swa_share=0.6"],
    "accumulate": ["optim.accumulate=2", "batch_size=2"],
    "plateau": ["optim.schedule=plateau", "optim.patience=0"],
    "steps": ["optim.schedule=steps"],
    "cosine": ["optim.schedule=cosine", "optim.kind=nadam"],
    "sgd": ["optim.kind=sgd", "optim.schedule=constant", "optim.layer_decay=0.1"],
    "late": ["finetune_epochs=2", "finetune_loss=bce"],
    "late and frozen": [
        "finetune_epochs=2",
        "finetune_loss=bce",
        "finetune_freeze=true",
        "optim.average=ema",
        "keep=best",
    ],
    "balanced": ["sampling.balance=clips", "sampling.steps=2"],
    "noisy": ["network.noisy_head=true", 'sources={"x":{},"y":{"head":"noisy","share":0.5}}'],
}


@pytest.mark.parametrize(
    "way, epochs",
    [(way, 2) for way in WAYS] + [("late and frozen", 3), ("late", 1), ("swa", 3), ("plateau", 1)],
)
def test_a_killed_training_goes_on_to_the_same_bits_in_every_way_of_training(tmp_path, way, epochs):
    recipe, data = TINY.override(WAYS[way]), DATA
    if way == "noisy":
        data = replace(DATA, sources=np.repeat(["x", "y"], 6))

    def scores(epoch):
        return {1: 0.4, 2: 0.6, 3: 0.5, 4: 0.3}[epoch]

    def dies(row):
        if row["epoch"] == epochs:
            raise Killed

    whole = fold_training(recipe, data)
    heard = trained(whole, tmp_path, scores)
    with pytest.raises(Killed):
        trained(fold_training(recipe, data), tmp_path / "killed", scores, dies)
    resumed = fold_training(recipe, data)
    resumed.restore(tmp_path / "killed" / "state.pt")
    again = trained(resumed, tmp_path / "killed", scores)
    assert same_bits(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.history == whole.history and sorted(again) == list(range(epochs + 1, 5))
    assert all(same_bits(again[epoch], heard[epoch]) for epoch in again)
    done = fold_training(recipe, data)
    done.restore(tmp_path / "killed" / "state.pt")
    assert trained(done, tmp_path / "killed") == {}
    assert same_bits(done.network.state_dict(), whole.network.state_dict())


def test_a_plateau_follows_validations_and_without_any_the_loss(tmp_path):
    """A model of all clips has no score: its rate falls where its loss stays, not because nothing is known."""
    recipe = TINY.override(
        ["optim.schedule=plateau", "optim.patience=1", "optim.factor=0.5", "epochs=8", "no_augment_epochs=8"]
    )
    falling = fold_training(recipe)
    trained(falling, tmp_path, lambda epoch: 0.1)
    rates = [row["lr"] / recipe.optim.lr_peak for row in falling.history]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]
    alone = fold_training(recipe, fold=None)
    trained(alone, tmp_path / "all", lambda epoch: math.nan)
    losses, best, bad, rate = [row["loss"] for row in alone.history], math.inf, 0, 1.0
    assert losses[-1] < losses[0]
    for loss, row in zip(losses, alone.history, strict=True):
        assert row["lr"] / recipe.optim.lr_peak == rate
        best, bad = (loss, 0) if loss < best else (best, bad + 1)
        rate, bad = (rate / 2, 0) if bad > 1 else (rate, bad)


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_a_checkpoint_holds_the_averaged_weights_that_its_score_was_heard_with(tmp_path, average):
    toy = make_set(tmp_path / "toy", 12)
    recipe = TINY.override(
        [f"optim.average={average}", "loss=bce", "optim.ema_decay=0.8", "epochs=3", "optim.swa_share=0.7"]
    )
    run = train_quietly(recipe, *toy, tmp_path / "run", only_folds=[0])
    card = load_tagger(run.folder / "fold_0.pt").card
    last = (run.folder / "history.csv").read_text().splitlines()[-1].split(",")[5]
    assert card.oof_score == pytest.approx(float(last), abs=1e-6) == pytest.approx(run.oof.lwlrap, abs=1e-6)
    state = torch.load(run.folder / "state" / "fold_0.resume.pt", weights_only=True)
    kept = load_tagger(run.folder / "fold_0.pt").network.state_dict()
    averaged = {k.removeprefix("module."): v for k, v in state["averaged"].items() if k.startswith("module.")}
    name = "head.classifier.0.weight" if "head.classifier.0.weight" in kept else next(iter(averaged))
    assert torch.equal(kept[name], averaged[name]) and not torch.equal(kept[name], state["network"][name])
