"""Ways to train: from waveforms, by several losses, late and frozen, many seeds, all clips, until a deadline."""

import copy
import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.augment import WaveAugmentConfig
from kit.audio.frontend import Frontend
from kit.audio.specaugment import SpecAugmentConfig
from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.labels.table import read_clip_table
from kit.models.checkpoint import load_tagger
from kit.train.dataset import load_dataset
from kit.train.losses import LOSSES
from kit.train.oof import predict_oof
from kit.train.recipe import Recipe
from kit.train.run import new_tagger, train_run
from kit.train.sampler import draw_batches
from kit.train.trainer import Trainer, prepare_batch
from tests.behaviour.test_train import (
    CPU,
    TINY,
    make_set,
    no_score,
    planted_data,
    same_bits,
    train_quietly,
    weights_of,
)

pytestmark = pytest.mark.usefixtures("one_core")

PLAIN = TINY.override(["mixup.p=0", "network.head.dropout=0", "no_augment_epochs=0"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Fourteen clips and their table."""
    return make_set(tmp_path_factory.mktemp("toy"))


def heard(toy, recipe):
    """What a run learns from."""
    frame = read_clip_table(toy[0])
    return load_dataset(recipe, frame, np.asarray(frame["fold"]), toy[1], CPU, 1, False)


@pytest.fixture(scope="module")
def data(toy):
    """What a run of the tiny recipe learns from."""
    return heard(toy, TINY)


def fold_training(data, recipe, fold=0):
    """The training of one fold, as a run begins it."""
    tagger = new_tagger(recipe, data, fold)
    Predictor(tagger, CPU)
    return Trainer(recipe, tagger, data.train_split(fold), fold, CPU)


def copied(network):
    """The weights of a network as they are now."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def first_batch(training, seed=0):
    """A batch as it is drawn."""
    generator = torch.Generator().manual_seed(seed)
    return next(draw_batches(training.clips, training.recipe, training.tagger.frontend, generator))


# Waveforms


def test_without_changes_a_crop_of_a_waveform_looks_like_a_crop_of_the_spectrogram(toy):
    """All but the frames whose window reaches over a crop's edge; of a short clip, which is looped, its own sound."""
    waves = PLAIN.override(
        [
            "wave_augment.noise_p=1",
            "wave_augment.gain_p=1",
            "wave_augment.shift_p=1",
            "frontend.reference=window",
        ]
    )
    waves = replace(waves, batch_size=7)
    data, hop = heard(toy, waves), TINY.frontend.hop_length
    clips, tagger = data.train_split(0), new_tagger(waves, data, 0)
    batch = next(draw_batches(clips, waves, tagger.frontend, torch.Generator().manual_seed(3)))
    shown, targets = prepare_batch(batch, waves, tagger.frontend, CPU, torch.Generator(), plain=True)
    other, _ = prepare_batch(batch, waves, tagger.frontend, CPU, torch.Generator(), plain=False)
    assert shown.shape == (7, 16, waves.crop_frames) and torch.equal(targets, batch.targets)
    names = {name: i for i, name in enumerate(data.names)}
    for k, clip in enumerate(batch.clips):
        row = names[clips.names[clip]]
        wave, spec, crop = data.waves[row][0], data.specs[row], batch.pieces[k, 0]
        length = min(len(crop), len(wave))
        start = next(
            s for s in range(len(wave) - length + 1) if torch.equal(wave[s : s + length], crop[:length])
        )
        inner = torch.arange(2, length // hop - 1)
        assert len(inner) > 5
        near = spec[:, start // hop :][:, inner], spec[:, start // hop + (start % hop > 0) :][:, inner]
        got = shown[k][:, inner]
        if start % hop == 0:
            torch.testing.assert_close(got, near[0], rtol=0, atol=1e-3)
        else:  # between two frames of the whole clip's, as smooth as its own neighbours are
            low, high = torch.minimum(*near), torch.maximum(*near)
            assert float(((got > low - 6) & (got < high + 6)).float().mean()) > 0.9
        assert float((other[k] - shown[k]).abs().max()) > 1


def test_crops_of_waveforms_on_the_grid_are_the_spectrogram_s_bit_for_bit_inside(toy):
    recipe = replace(PLAIN, wave_augment=WaveAugmentConfig(gain_p=0.5), batch_size=7)
    data = heard(toy, recipe)
    hop, frontend = TINY.frontend.hop_length, new_tagger(recipe, data, 0).frontend
    row = max(data.waves, key=lambda i: data.waves[i].shape[-1])
    wave = data.waves[row][:, 10 * hop : 10 * hop + (recipe.crop_frames - 1) * hop]
    batch = first_batch(fold_training(data, recipe))
    batch = batch._replace(pieces=wave[None].repeat(7, 1, 1))
    shown, _ = prepare_batch(batch, recipe, frontend, CPU, torch.Generator(), plain=True)
    inside = slice(1, recipe.crop_frames - 1)
    expected = data.specs[row][:, 10 : 10 + recipe.crop_frames]
    torch.testing.assert_close(shown[0][:, inside], expected[:, inside], rtol=0, atol=1e-3)
    by_crop = recipe.override(["mixup.domain=spec", "frontend.normalize=clip", "frontend.reference=window"])
    normalize_spec, _ = prepare_batch(
        batch, by_crop, Frontend(by_crop.frontend), CPU, torch.Generator(), plain=True
    )
    standard = (shown[0] - shown[0].mean()) / shown[0].std(correction=0)
    torch.testing.assert_close(normalize_spec[0], standard, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("domain", ["energy", "spec", "wave"])
def test_a_recipe_with_changed_waveforms_trains_and_repeats_itself(toy, tmp_path, domain):
    recipe = replace(TINY, wave_augment=WaveAugmentConfig(shift_p=0.5, noise_p=0.5), epochs=2, validate_every=2)
    recipe = recipe.override([f"mixup.domain={domain}"])
    assert recipe.needs_waveforms
    one = train_quietly(recipe, *toy, tmp_path / "one", only_folds=[0])
    two = train_quietly(recipe, *toy, tmp_path / "two", only_folds=[0])
    plain = train_quietly(replace(recipe, wave_augment=WaveAugmentConfig()), *toy, tmp_path / "plain", only_folds=[0])
    first, again, other = (weights_of(run.folder / "fold_0.pt") for run in (one, two, plain))
    assert same_bits(first, again) and not same_bits(first, other)
    said = predict_clips(
        one.folder / "fold_0.pt", [toy[1] / n for n in one.oof.names], device="cpu", threads=1
    )
    np.testing.assert_allclose(one.oof.probabilities, said.probabilities, atol=1e-5)


def test_waveforms_are_mixed_before_they_are_seen(toy):
    recipe = PLAIN.override(["mixup.p=1", "mixup.domain=wave"])
    data = heard(toy, recipe)
    assert recipe.needs_waveforms and data.waves
    batch = first_batch(fold_training(data, recipe))
    generator, frontend = torch.Generator().manual_seed(1), new_tagger(recipe, data, 0).frontend
    shown, targets = prepare_batch(batch, recipe, frontend, CPU, generator)
    sums = {(i, j): frontend.network_input(frontend.spectrograms([batch.pieces[i, 0] + batch.pieces[j, 0]])[0])[0]
            for i in range(4) for j in range(4) if i != j}  # fmt: skip
    for i in range(4):
        partner = min((j for j in range(4) if j != i), key=lambda j: (sums[i, j] - shown[i]).abs().max())
        torch.testing.assert_close(shown[i], sums[i, partner], rtol=0, atol=1e-3)
        assert torch.equal(targets[i], torch.maximum(batch.targets[i], batch.targets[partner]))


@pytest.mark.parametrize(
    "setting", ["normalize=clip", "normalize=peak", "normalize=minmax", "top_db=80", "trim_db=60"]
)
def test_changed_waveforms_cannot_be_levelled_by_a_clip_that_is_not_there(setting):
    changed = ["wave_augment.gain_p=0.5", "mixup.domain=spec", f"frontend.{setting}"]
    with pytest.raises(
        KitError, match=r"changed waveforms have no level of their clip: frontend\.reference=window"
    ):
        TINY.override(changed)
    TINY.override(changed[1:])
    if "trim" not in setting:
        TINY.override([*changed, "frontend.reference=window"])
    with pytest.raises(KitError, match=r"energies of normalised crops or PCEN cannot be mixed"):
        TINY.override(["frontend.normalize=peak"])


def test_crops_are_mixed_until_told_and_neither_mixed_nor_changed_at_the_end(data):
    recipe = replace(
        TINY, epochs=10, mixup_until=0.4, no_augment_epochs=3, spec_augment=SpecAugmentConfig(mask_p=1.0)
    )
    recipe = recipe.override(["mixup.p=1"])
    training, seen = fold_training(data, recipe), []
    batch = first_batch(training)
    for epoch in range(10):
        training.epoch = epoch
        inputs, targets = training.make_inputs(batch, torch.Generator().manual_seed(5), epoch >= 7)
        masked = not torch.equal(inputs[:, :1], training.tagger.frontend.stack(batch.pieces)[:, :1])
        seen.append((not torch.equal(targets, batch.targets), masked))
    assert seen == [(True, True)] * 4 + [(False, True)] * 3 + [(False, False)] * 3
    own, plains = training.make_inputs, []
    training.make_inputs = lambda batch, generator, plain: (plains.append(plain), own(batch, generator, plain))[1]
    for epoch in (0, 6, 7, 9):
        training.epoch = epoch
        training.train_step(batch, torch.Generator())
    assert plains == [False, False, True, True]


# Losses


def sourced(data, sources):
    """The clips, each of a source."""
    return replace(data, sources=np.array([sources[i % len(sources)] for i in range(len(data.names))]))


def slow_mean(name, logits, targets, weights, over, **settings):
    """The weighted mean of a loss over clips, or over labels, a clip at a time."""
    rows = LOSSES[name](logits, targets, **settings)
    counts = (rows.known if over == "labels" else (rows.known > 0).float()) * weights
    return float((rows.loss * counts).sum() / counts.sum()) if counts.sum() else 0.0


@pytest.mark.parametrize("weight_by_share", [True, False])
@pytest.mark.parametrize("over", ["clips", "labels"])
def test_a_step_s_loss_is_each_source_s_own_by_weight_and_share(data, weight_by_share, over):
    trust = {"trust": 0.6}
    recipe = replace(
        PLAIN, weight_by_share=weight_by_share, average_over=over, batch_size=7, loss="bce", loss_settings={"smoothing": 0.1},
        sources={"a": {"weight": 0.5}, "b": {"loss": "bootstrap", "loss_settings": trust, "weight": 2.0}, "c": {}},
    )  # fmt: skip
    training = fold_training(sourced(data, [0, 0, 1, 1]), recipe)
    batch = first_batch(training)
    targets = batch.targets.clone()
    targets[0, 1:] = targets[3, 0] = math.nan
    batch = batch._replace(targets=targets, weights=torch.linspace(0.5, 2, 7))
    network = copy.deepcopy(training.network).train()
    logits = network(training.tagger.frontend.stack(batch.pieces)).detach()
    slow = 0.0
    for k, (name, weight, settings) in enumerate(
        [("bce", 0.5, {"smoothing": 0.1}), ("bootstrap", 2.0, trust)]
    ):
        rows = batch.sources == k
        share = float(rows.float().mean()) if weight_by_share else 1.0
        slow += (
            weight
            * share
            * slow_mean(name, logits[rows], targets[rows], batch.weights[rows], over, **settings)
        )
    training.network.train()
    assert set(batch.sources.tolist()) == {0, 1}
    assert training.train_step(batch, torch.Generator()) == pytest.approx(slow, rel=1e-5)


def test_a_noisy_head_learns_from_its_sources_alone_and_the_clip_s_head_from_the_others(data):
    recipe = replace(
        PLAIN.override(["network.noisy_head=true"]), batch_size=7, loss="bce",
        sources={"clean": {}, "noisy": {"head": "noisy", "weight": 0.5}},
    )  # fmt: skip
    training = fold_training(sourced(data, [0, 0, 1, 1]), recipe)
    batch = first_batch(training)
    network = copy.deepcopy(training.network).train()
    said = network.outputs(training.tagger.frontend.stack(batch.pieces))
    of = [batch.sources == k for k in (0, 1)]
    means = [
        slow_mean("bce", logits[rows].detach(), batch.targets[rows], batch.weights[rows], "clips")
        for logits, rows in zip((said.clip, said.noisy), of, strict=True)
    ]
    slow = means[0] * float(of[0].float().mean()) + 0.5 * means[1] * float(of[1].float().mean())
    training.network.train()
    assert training.train_step(batch, torch.Generator(), last=False) == pytest.approx(slow, rel=1e-5)
    for part in ("head", "noisy_head"):
        assert all(p.grad.abs().max() > 0 for p in list(getattr(training.network, part).parameters())[-2:])
    training.optimizer.zero_grad()
    clean = batch._replace(sources=torch.zeros(7, dtype=torch.long))
    training.train_step(clean, torch.Generator(), last=False)
    assert all(p.grad is None or not p.grad.any() for p in training.network.noisy_head.parameters())


def test_a_noisy_head_that_is_not_there_is_asked_for():
    with pytest.raises(KitError, match=r"head=noisy wants network\.noisy_head=true"):
        replace(TINY, sources={"clean": {}, "noisy": {"head": "noisy"}})


def test_skips_add_their_weighted_losses(toy):
    recipe = replace(
        PLAIN, network={"family": "skip-attention", "width": 4, "ratio": 2, "head": {"hidden": 8, "dropout": 0.0}},
        auxiliary=(0.4, 0.2, 0.1), loss="bce",
    )  # fmt: skip
    training = fold_training(heard(toy, recipe), recipe)
    batch = first_batch(training)
    network = copy.deepcopy(training.network).train()
    torch.manual_seed(0)
    said = network.outputs(training.tagger.frontend.stack(batch.pieces))
    assert len(said.auxiliary) == 3
    parts = [
        share * slow_mean("bce", logits.detach(), batch.targets, batch.weights, "clips")
        for logits, share in zip((said.clip, *said.auxiliary), (1, 0.4, 0.2, 0.1), strict=True)
    ]
    training.network.train()
    torch.manual_seed(0)
    assert training.train_step(batch, torch.Generator()) == pytest.approx(sum(parts), rel=1e-5)


def test_more_weights_than_skips_are_refused(toy):
    recipe = replace(PLAIN, auxiliary=(0.4, 0.2))
    training = fold_training(heard(toy, recipe), recipe)
    with pytest.raises(KitError, match="auxiliary has 2 weights, the network 0 skips"):
        training.train_step(first_batch(training), torch.Generator())


def test_a_loss_that_is_no_number_names_the_clips_of_its_batch():
    data = planted_data([1] * 12)
    data.specs[5][:] = math.nan
    training = fold_training(data, replace(PLAIN, batch_size=4))
    seen, own = [], training.train_step
    training.train_step = lambda batch, *more: (seen.append(batch.clips), own(batch, *more))[1]
    with pytest.raises(KitError) as error:
        training.run_epoch()
    named = str(error.value).partition("(clips ")[2].partition(")")[0].split(", ")
    assert named == [f"{i}.wav" for i in seen[-1]] and "5.wav" in named
    assert f"step {len(seen) - 1} is nan" in str(error.value) and "lower optim.lr_peak" in str(error.value)


def test_pictures_grow_over_the_epochs_and_end_at_the_size_that_is_listened_to(data):
    recipe = PLAIN.override(
        ["frontend.image_size=[32,32]", "image_sizes=[[8,8],[16,16],[32,32]]", "epochs=6"]
    )
    training, sizes = fold_training(data, recipe), []
    training.network.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape[2:])))
    for _ in range(6):
        training.run_epoch()
    assert sizes == [(8, 8)] * 2 + [(16, 16)] * 2 + [(32, 32)] * 2
    with pytest.raises(KitError, match=r"image_sizes end at \(16, 16\), frontend.image_size is \(32, 32\)"):
        recipe.override(["image_sizes=[[8,8],[16,16]]"])


# Fine-tuning


def parts_moved(before, after):
    """Which parts of a network changed, norms' statistics included."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("freeze", [True, False])
def test_late_epochs_have_a_loss_and_rates_of_their_own_and_move_only_heads_where_told(
    data, tmp_path, freeze
):
    recipe = replace(
        PLAIN, loss="bce", loss_settings={"smoothing": 0.1}, finetune_loss="lsep", finetune_epochs=2, finetune_lr=0.1,
        finetune_freeze=freeze, epochs=5, validate_every=1,
    ).override(["optim.schedule=cosine"])  # fmt: skip
    training, states, costs, rates = fold_training(data, recipe), [], [], []
    own = training.loss

    def cost(said, targets, batch):
        kind = {"bce": {"smoothing": 0.1}, "lsep": {}}
        clip, weights = said.clip.detach(), batch.weights
        costs.append(
            {name: slow_mean(name, clip, targets, weights, "clips", **of) for name, of in kind.items()}
        )
        rates.append(training.optimizer.param_groups[0]["lr"])
        loss = own(said, targets, batch)
        costs[-1]["own"] = float(loss.detach())
        return loss

    training.loss = cost
    states = [copied(training.network)]
    training.train(tmp_path / "state.pt", no_score, lambda row: states.append(copied(training.network)))
    for epoch, said in enumerate(costs):
        assert said["own"] == pytest.approx(said["lsep" if epoch >= 3 else "bce"], rel=1e-5)
    moved = [parts_moved(one, two) for one, two in itertools.pairwise(states)]
    assert moved[:3] == [{"backbone", "head"}] * 3
    assert moved[3:] == [{"head"} if freeze else {"backbone", "head"}] * 2
    assert [rates[0], rates[3]] == pytest.approx([recipe.optim.lr_peak, 0.1 * recipe.optim.lr_peak])
    assert rates[2] < rates[1] < rates[0] and rates[4] < rates[3]


def test_a_score_is_of_the_last_loss_s_kind(data):
    assert TINY.output == "ranking" and TINY.override(["loss=bce"]).output == "probability"
    late = TINY.override(["loss=bce", "finetune_loss=lsep"])
    assert late.output == "probability" and late.override(["finetune_epochs=1"]).output == "ranking"
    assert TINY.override(["finetune_loss=bce", "finetune_epochs=1"]).output == "probability"
    assert new_tagger(late.override(["finetune_epochs=1"]), data, 0).card.output == "ranking"
    for epochs in (4, 9):
        with pytest.raises(KitError, match=r"finetune_epochs must be below epochs \(4\)"):
            TINY.override([f"finetune_epochs={epochs}"])


# Seeds and all clips


@pytest.fixture(scope="module")
def seeded(toy, tmp_path_factory):
    """A run with two networks per fold."""
    recipe = replace(TINY, seeds=2, epochs=2)
    return train_quietly(recipe, *toy, tmp_path_factory.mktemp("seeds") / "run")


def test_several_seeds_per_fold_are_networks_of_their_own_whose_mean_is_out_of_fold(seeded, toy, tmp_path):
    folder = seeded.folder
    names = ["fold_0.pt", "fold_0_seed_1.pt", "fold_1.pt", "fold_1_seed_1.pt"]
    assert sorted(path.name for path in folder.glob("*.pt")) == names
    alone = train_quietly(replace(seeded.recipe, seeds=1), *toy, tmp_path / "alone")
    for fold in (0, 1):
        assert same_bits(weights_of(folder / f"fold_{fold}.pt"), weights_of(alone.folder / f"fold_{fold}.pt"))
        other = folder / f"fold_{fold}_seed_1.pt"
        assert not same_bits(weights_of(other), weights_of(folder / f"fold_{fold}.pt"))
        card, first = load_tagger(other).card, load_tagger(folder / f"fold_{fold}.pt").card
        assert (card.seed, card.fold, card.held_out) == (1, fold, first.held_out)
        paths = [toy[1] / f"{i:02d}.wav" for i in range(fold, 14, 2)]
        both = [
            predict_clips(path, paths, device="cpu", threads=1)
            for path in (folder / f"fold_{fold}.pt", other)
        ]
        mean = np.mean([said.probabilities for said in both], axis=0)
        np.testing.assert_allclose(seeded.oof.probabilities[fold::2], mean, atol=1e-5)
    history = pd.read_csv(folder / "history.csv")
    rows = [[fold, seed, epoch] for fold in (0, 1) for seed in (0, 1) for epoch in (1, 2)]
    assert history[["fold", "seed", "epoch"]].values.tolist() == rows


def test_oof_repeats_a_run_of_several_seeds(seeded, toy, tmp_path):
    shutil.copytree(seeded.folder, tmp_path / "run")
    (tmp_path / "run" / "oof.csv").unlink()
    again = predict_oof(tmp_path / "run", toy[1], "cpu", 1, False)
    assert again.names == seeded.oof.names == tuple(f"{i:02d}.wav" for i in range(14))
    np.testing.assert_allclose(again.probabilities, seeded.oof.probabilities, atol=1e-5)
    assert len(pd.read_csv(tmp_path / "run" / "oof.csv")) == 14


def test_one_model_of_all_clips_learns_from_every_row_and_takes_the_folds_calibrations(
    seeded, toy, tmp_path, capsys
):
    shutil.copytree(seeded.folder, tmp_path / "run")
    before = (tmp_path / "run" / "oof.csv").read_bytes()
    run = train_quietly(seeded.recipe, *toy, tmp_path / "run", all_data=True)
    assert run.oof is None and "one model of all clips" in str(run)
    assert (tmp_path / "run" / "oof.csv").read_bytes() == before
    cards = [load_tagger(path).card for path in sorted((tmp_path / "run").glob("fold_*.pt"))]
    for name in ("all.pt", "all_seed_1.pt"):
        card = load_tagger(tmp_path / "run" / name).card
        assert card.fold is None and card.output == "ranking" and card.oof_score is None
        for what in ("scale", "offset"):
            mean = np.mean([getattr(c.calibration, what) for c in cards])
            assert getattr(card.calibration, what) == pytest.approx(mean)
    history = pd.read_csv(tmp_path / "run" / "history.csv", dtype={"fold": str})
    assert history["fold"].tolist() == ["0"] * 4 + ["1"] * 4 + ["all"] * 4
    assert history[history["fold"] == "all"]["lwlrap"].isna().all()
    capsys.readouterr()
    alone = train_quietly(seeded.recipe, *toy, tmp_path / "alone", all_data=True)
    assert "a rank score without folds in its folder has no calibration" in capsys.readouterr().out
    assert load_tagger(alone.folder / "all.pt").card.calibration is None
    assert same_bits(weights_of(alone.folder / "all.pt"), weights_of(tmp_path / "run" / "all.pt"))


def test_a_model_of_all_clips_hears_each_of_them(data):
    training = fold_training(data, PLAIN, fold=None)
    drawn, own = set(), training.train_step

    def train_step(batch, *more):
        drawn.update(training.clips.names[i] for i in batch.clips)
        return own(batch, *more)

    training.train_step = train_step
    for _ in range(4):
        training.run_epoch()
    assert drawn == set(data.names) and training.place == "all clips"


@pytest.mark.parametrize("way", ["keep=best", "optim.average=ema", "deadline"])
def test_a_model_of_all_clips_keeps_its_last_weights_as_it_has_no_best(data, tmp_path, way):
    recipe = replace(PLAIN, validate_every=1)
    recipe = recipe if way == "deadline" else recipe.override([way])
    clock = Deadline(1e9, lambda: 0.0) if way == "deadline" else None
    training = fold_training(data, recipe, fold=None)
    training.train(tmp_path / "state.pt", lambda: math.nan, lambda row: None, clock)
    plain = fold_training(data, PLAIN, fold=None)
    plain.train(tmp_path / "plain.pt", lambda: math.nan, lambda row: None)
    assert training.kept_epoch == 4
    averaged = training.averaged.module.state_dict() if training.averaged else {}
    expected = {**plain.network.state_dict(), **averaged}
    for name, p in training.network.named_parameters():
        assert torch.equal(p, expected[name])


# The clock


class Clock:
    """Seconds that pass when something is done."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        """The time."""
        return self.seconds

    def passes(self, seconds):
        """Something was done."""
        self.seconds += seconds


def timed(data, recipe, epoch_s, heard_s, clock, scores=lambda epoch: 0.5, seen=None):
    """A training whose steps and validations take their time; its validation."""
    training = fold_training(data, recipe)
    assert training.steps == 1
    training.optimizer.register_step_pre_hook(lambda *_: clock.passes(epoch_s))

    def validate():
        clock.passes(heard_s)
        if seen is not None:
            seen[training.epoch] = copied(training.network)
        return scores(training.epoch)

    return training, validate


@pytest.mark.parametrize("epoch_s, heard_s", [(10, 0), (1, 10), (3, 3), (0.1, 20)])
@pytest.mark.parametrize("deadline", [45, 60, 100])
def test_a_training_stops_before_its_deadline_and_is_validated(data, tmp_path, epoch_s, heard_s, deadline):
    clock, recipe = Clock(), replace(PLAIN, epochs=40, validate_every=2)
    training, validate = timed(data, recipe, epoch_s, heard_s, clock)
    training.train(tmp_path / "state.pt", validate, lambda row: None, Deadline(deadline, clock.now))
    assert clock.seconds <= deadline
    assert "lwlrap" in training.history[-1]
    if training.epoch < 40:
        assert clock.seconds + 3 * (epoch_s + heard_s) > deadline


def no_time(*_):
    """What must not be called."""
    pytest.fail("no time is left")


def test_a_training_that_was_cut_keeps_its_best_weights_and_goes_on_to_where_it_would_have_ended(
    data, tmp_path
):
    clock, recipe, seen = Clock(), replace(PLAIN, epochs=8, validate_every=2), {}
    training, validate = timed(
        data, recipe, 10, 0, clock, lambda epoch: {2: 0.9, 4: 0.4}.get(epoch, 0.1), seen
    )
    training.train(tmp_path / "state.pt", validate, lambda row: None, Deadline(68, clock.now))
    assert training.epoch == 5 and training.kept_epoch == 2
    assert same_bits(training.network.state_dict(), seen[2]) and not same_bits(seen[2], seen[5])
    late = fold_training(data, recipe)
    late.restore(tmp_path / "state.pt")
    late.train(tmp_path / "state.pt", no_time, no_time, Deadline(5, clock.now))
    assert same_bits(late.network.state_dict(), seen[2])
    resumed, whole = fold_training(data, recipe), fold_training(data, recipe)
    resumed.restore(tmp_path / "state.pt")
    resumed.train(tmp_path / "state.pt", no_score, lambda row: None)
    whole.train(tmp_path / "whole.pt", no_score, lambda row: None)
    assert resumed.epoch == 8 == resumed.kept_epoch
    assert same_bits(resumed.network.state_dict(), whole.network.state_dict())


def test_a_first_epoch_is_learnt_even_where_no_time_is_left(data, tmp_path):
    clock = Clock()
    training, validate = timed(data, PLAIN, 10, 1, clock)
    training.train(tmp_path / "state.pt", validate, lambda row: None, Deadline(-5, clock.now))
    assert training.epoch == 1 and "lwlrap" in training.history[0]


def test_a_run_that_was_cut_says_so_and_the_same_call_goes_on(toy, tmp_path, capsys):
    recipe = replace(TINY, epochs=3, no_augment_epochs=0, validate_every=3)
    options = {"device": "cpu", "threads": 1, "progress": False, "only_folds": [0]}
    cut = train_run(recipe, *toy, tmp_path / "run", deadline=1e-3, **options)
    assert "the deadline cut fold 0 after epoch 1 of 3" in capsys.readouterr().out
    card = load_tagger(tmp_path / "run" / "fold_0.pt").card
    assert len(cut.oof.names) == 7 and cut.oof.lwlrap == pytest.approx(card.oof_score, abs=1e-6)
    train_run(recipe, *toy, tmp_path / "run", **options)
    train_run(recipe, *toy, tmp_path / "whole", **options)
    assert same_bits(weights_of(tmp_path / "run" / "fold_0.pt"), weights_of(tmp_path / "whole" / "fold_0.pt"))


def test_a_run_that_was_cut_before_its_late_loss_says_what_its_scores_are(toy, tmp_path):
    recipe = replace(
        TINY, epochs=3, no_augment_epochs=0, validate_every=3, finetune_loss="bce", finetune_epochs=1
    )
    options = {"device": "cpu", "threads": 1, "progress": False, "only_folds": [0]}
    train_run(recipe, *toy, tmp_path, deadline=1e-3, **options)
    cut = load_tagger(tmp_path / "fold_0.pt").card
    assert cut.output == "ranking" and cut.calibration is not None
    train_run(recipe, *toy, tmp_path, **options)
    whole = load_tagger(tmp_path / "fold_0.pt").card
    assert whole.output == "probability" and whole.calibration is None


def test_a_recipe_reads_as_it_was_written():
    recipe = replace(
        TINY, sources={"a": {"share": 0.5}, "b": {}}, finetune_loss="bce", finetune_epochs=1, auxiliary=(0.4, 0.2),
        spec_augment=SpecAugmentConfig(mask_p=0.5), wave_augment=WaveAugmentConfig(gain_p=0.1), seeds=3,
    )  # fmt: skip
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
