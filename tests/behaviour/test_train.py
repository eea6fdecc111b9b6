"""Training: the same seed the same bits, killed or not; held-out clips stay unheard; folds score as submitted."""

import copy
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from kit.audio.frontend import Frontend, FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import KitError
from kit.core.files import write_text
from kit.infer.predict import predict_clips
from kit.infer.predictor import Predictor
from kit.labels.metrics import lwlrap
from kit.labels.table import label_targets, read_clip_table
from kit.models.checkpoint import load_tagger, save_tagger
from kit.models.families import complete_network
from kit.train.dataset import Dataset, load_dataset
from kit.train.losses import LOSSES
from kit.train.oof import predict_oof
from kit.train.recipe import Recipe
from kit.train.run import new_tagger, run_files, train_run
from kit.train.sampler import TrainingSet, draw_batches, draw_crop
from kit.train.trainer import Trainer, prepare_batch

pytestmark = pytest.mark.usefixtures("one_core")

CPU = torch.device("cpu")
CLASSES = ("high", "low", "noisy")
TINY = Recipe(
    frontend=FrontendConfig(
        sample_rate=8000, n_fft=256, hop_length=128, n_mels=16, f_min_hz=20.0, channels=("log", "coordinate")
    ),
    network={"family": "max-pyramid", "blocks": 2, "width": 4},
    crop_s=0.4,
    mixup=MixupConfig(p=0.5),
    epochs=4,
    no_augment_epochs=1,
    batch_size=4,
    validate_every=2,
    n_folds=2,
)  # fmt: skip
WINDOWS = InferenceConfig(mode="windows", window_s=0.25, hop_s=0.125, pool="mean")


def write_clip(path, labels, seconds, rng):
    """A clip with one event per label, somewhere in it, over faint noise."""
    import soundfile

    n = int(8000 * seconds)
    wave = 0.01 * rng.normal(size=n)
    for label in labels:
        length = min(n, 1600)
        start = int(rng.integers(0, n - length + 1))
        t = np.arange(length) / 8000
        event = {
            "high": np.sin(2 * np.pi * rng.uniform(2000, 3000) * t),
            "low": np.sin(2 * np.pi * rng.uniform(200, 400) * t),
            "noisy": rng.normal(size=length),
        }[label]
        wave[start : start + length] += 0.2 * event
    soundfile.write(path, wave.clip(-1, 1), 8000, subtype="PCM_16")


def make_set(folder, clips=14, seed=0, **columns):
    """clips/ and table.csv with folds 0 and 1 in turn, and further columns. Returns both paths"""
    pytest.importorskip("soundfile")
    rng = np.random.default_rng(seed)
    audio = folder / "clips"
    audio.mkdir(parents=True)
    rows = []
    for i in range(clips):
        labels = sorted(rng.choice(CLASSES, size=int(rng.integers(1, 3)), replace=False).tolist())
        write_clip(audio / f"{i:02d}.wav", labels, rng.uniform(0.2, 1.2), rng)
        rows.append({"fname": f"{i:02d}.wav", "labels": ",".join(labels), "fold": i % 2})
    pd.DataFrame(rows).assign(**columns).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv", audio


def train_quietly(recipe, table, audio, out, **options):
    """A run on the CPU without a progress bar."""
    return train_run(recipe, table, audio, out, device="cpu", threads=1, progress=False, **options)


def weights_of(path):
    """The tensors of a checkpoint."""
    return load_tagger(path).network.state_dict()


def same_bits(one, other):
    """Whether two state dicts are equal, bit for bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Clips and their table."""
    return make_set(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A run of two folds on them; tests that write into it take a copy."""
    return train_quietly(TINY, *toy, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def data(toy):
    """What that run learns from."""
    frame = read_clip_table(toy[0])
    return load_dataset(TINY, frame, np.asarray(frame["fold"]), toy[1], CPU, 1, False)


def fold_training(data, recipe=TINY, fold=0):
    """The training of one fold, as a run begins it."""
    tagger = new_tagger(recipe, data, fold)
    Predictor(tagger, CPU)
    return Trainer(recipe, tagger, data.train_split(fold), fold, CPU)


def no_score():
    """A validation that says nothing."""
    return 0.0


class Killed(Exception):
    """Stands for a kill."""


def killed_after(epochs):
    """A callback that stops the training after so many epochs."""

    def after_epoch(row):
        if row["epoch"] == epochs:
            raise Killed

    return after_epoch


def test_a_run_is_a_folder_of_its_parts(run):
    folder = run.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "fold_0.pt", "fold_1.pt", "folds.csv", "history.csv", "oof.csv", "recipe.json", "state"
    ]  # fmt: skip
    assert Recipe.from_dict(json.loads((folder / "recipe.json").read_text())) == TINY
    history = pd.read_csv(folder / "history.csv")
    assert history["fold"].tolist() == [0] * 4 + [1] * 4 and history["epoch"].tolist() == [1, 2, 3, 4] * 2
    assert history["lwlrap"].notna().tolist() == [False, True] * 4
    assert np.isfinite(history["loss"]).all()
    assert "lwlrap" in str(run) and "fold 1" in str(run)


def test_a_checkpoint_states_what_it_is(run, data):
    truth = label_targets(read_clip_table(run.folder / "folds.csv")["labels"], CLASSES)
    for fold in (0, 1):
        tagger = load_tagger(run.folder / f"fold_{fold}.pt")
        card = tagger.card
        assert (card.classes, card.fold, card.seed, card.output) == (CLASSES, fold, 0, "ranking")
        assert card.frontend == TINY.frontend and card.inference == TINY.inference
        assert Recipe.from_dict(card.recipe) == TINY
        learnt = [i for i in range(14) if i % 2 != fold]
        np.testing.assert_allclose(card.prevalences, truth[learnt].mean(axis=0), rtol=1e-6)
        assert card.cost is not None and card.cost > 0 and card.cost_device == "cpu"


def test_a_label_that_nobody_knows_is_no_false_one_from_the_table_to_the_score(toy, tmp_path):
    frame = read_clip_table(toy[0])
    truth = label_targets(frame["labels"], CLASSES)
    hidden = (np.arange(truth.size).reshape(truth.shape) % 4 == 0) & (truth == 0)
    false = [",".join(CLASSES[k] for k in np.flatnonzero((truth[i] == 0) & ~hidden[i])) for i in range(14)]
    frame.assign(false_labels=false).to_csv(tmp_path / "partial.csv", index=False)
    partial = train_quietly(TINY, tmp_path / "partial.csv", toy[1], tmp_path / "run")
    expected = np.where(hidden, np.nan, truth)
    np.testing.assert_array_equal(partial.oof.truth, expected)
    assert partial.oof.lwlrap == pytest.approx(lwlrap(expected, partial.oof.probabilities))
    np.testing.assert_array_equal(predict_oof(partial.folder, toy[1], "cpu", 1, False).truth, expected)
    for fold in (0, 1):
        card = load_tagger(partial.folder / f"fold_{fold}.pt").card
        learnt = expected[[i for i in range(14) if i % 2 != fold]]
        np.testing.assert_allclose(card.prevalences, np.nanmean(learnt, axis=0), rtol=1e-6)


def without_seconds(folder, name):
    """A table of a run as text, without how long its epochs took."""
    return pd.read_csv(folder / name).drop(columns="seconds", errors="ignore").to_csv()


def test_the_same_seed_gives_the_same_bits(run, toy, tmp_path):
    again = train_quietly(TINY, *toy, tmp_path / "again")
    for fold in (0, 1):
        name = f"fold_{fold}.pt"
        assert same_bits(weights_of(run.folder / name), weights_of(again.folder / name))
    for name in ("oof.csv", "folds.csv", "recipe.json"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
    assert without_seconds(again.folder, "history.csv") == without_seconds(run.folder, "history.csv")


def test_folds_trained_apart_are_the_folds_trained_together(run, toy, tmp_path):
    train_quietly(TINY, *toy, tmp_path / "one", only_folds=[1])
    assert not (tmp_path / "one" / "fold_0.pt").exists()
    assert same_bits(weights_of(tmp_path / "one" / "fold_1.pt"), weights_of(run.folder / "fold_1.pt"))


def test_folds_trained_one_call_after_the_other_end_in_the_same_tables(run, toy, tmp_path):
    for fold in (0, 1):
        train_quietly(TINY, *toy, tmp_path / "run", only_folds=[fold])
    for name in ("oof.csv", "history.csv"):
        assert without_seconds(tmp_path / "run", name) == without_seconds(run.folder, name)


def test_another_seed_or_fold_gives_other_weights(run, data):
    first = new_tagger(TINY, data, 0).network.state_dict()
    other_seed = new_tagger(TINY.override(["seed=1"]), data, 0).network.state_dict()
    assert same_bits(first, new_tagger(TINY, data, 0).network.state_dict())
    assert not same_bits(first, other_seed) and not same_bits(
        first, new_tagger(TINY, data, 1).network.state_dict()
    )


def test_training_leaves_the_callers_randomness_alone(data, tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2).tolist(), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    fold_training(data).train(tmp_path / "state.pt", no_score, lambda row: None)
    assert (torch.rand(2).tolist(), np.random.rand()) == expected


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_a_killed_training_goes_on_to_the_same_bits(data, tmp_path, keep, epochs):
    recipe = TINY.override([f"keep={keep}"])
    scores = {2: 0.9, 4: 0.1}

    def validate(training):
        return lambda: scores[training.epoch]

    whole = fold_training(data, recipe)
    whole.train(tmp_path / "whole.pt", validate(whole), lambda row: None)
    killed = fold_training(data, recipe)
    with pytest.raises(Killed):
        killed.train(tmp_path / "killed.pt", validate(killed), killed_after(epochs))
    resumed = fold_training(data, recipe)
    resumed.restore(tmp_path / "killed.pt")
    rows = []
    resumed.train(tmp_path / "killed.pt", validate(resumed), rows.append)
    assert [row["epoch"] for row in rows] == list(range(epochs + 1, 5))
    assert same_bits(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.history == whole.history and resumed.prevalences == whole.prevalences
    one, other = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert all(torch.equal(one[p][k], other[p][k]) for p in one for k in one[p])


def test_a_kill_within_an_epoch_loses_that_epoch_alone(data, tmp_path):
    whole = fold_training(data)
    whole.train(tmp_path / "whole.pt", no_score, lambda row: None)
    killed = fold_training(data)

    def dies_validating():
        if killed.epoch == 4:
            raise Killed
        return 0.0

    with pytest.raises(Killed):
        killed.train(tmp_path / "killed.pt", dies_validating, lambda row: None)
    (tmp_path / ".killed.pt.part").write_bytes(b"half a state")
    resumed, rows = fold_training(data), []
    resumed.restore(tmp_path / "killed.pt")
    resumed.train(tmp_path / "killed.pt", no_score, rows.append)
    assert [row["epoch"] for row in rows] == [4]
    assert same_bits(resumed.network.state_dict(), whole.network.state_dict())


def test_a_killed_run_ends_as_if_it_had_not_been(run, toy, data, tmp_path):
    frame = read_clip_table(toy[0])
    for name, text in run_files(TINY, frame, np.asarray(frame["fold"])).items():
        write_text(tmp_path / "run" / name, text)
    with pytest.raises(Killed):
        fold_training(data).train(tmp_path / "run" / "state" / "fold_0.resume.pt", no_score, killed_after(3))
    again = train_quietly(TINY, *toy, tmp_path / "run")
    for fold in (0, 1):
        assert same_bits(
            weights_of(again.folder / f"fold_{fold}.pt"), weights_of(run.folder / f"fold_{fold}.pt")
        )
    assert (again.folder / "oof.csv").read_bytes() == (run.folder / "oof.csv").read_bytes()


def test_a_finished_run_is_not_trained_again(run, toy, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (folder / "fold_0.pt").unlink()
    states = {path.name: path.stat().st_mtime_ns for path in (folder / "state").glob("*.pt")}
    again = train_quietly(TINY, *toy, folder)
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "state").glob("*.pt")} == states
    assert same_bits(weights_of(folder / "fold_0.pt"), weights_of(run.folder / "fold_0.pt"))
    np.testing.assert_array_equal(again.oof.probabilities, run.oof.probabilities)


def test_what_was_trained_already_is_said_and_what_is_not_used_too(run, toy, data, tmp_path, capsys):
    shutil.copytree(run.folder, tmp_path / "run")
    capsys.readouterr()
    train_quietly(TINY, *toy, tmp_path / "run", only_folds=[1, 1])
    said = capsys.readouterr().out
    assert "fold 1 was trained already up to epoch 4 of 4" in said and "fold 0" not in said
    assert len(pd.read_csv(tmp_path / "run" / "oof.csv")) == 14
    assert (tmp_path / "run" / "history.csv").read_bytes() == (run.folder / "history.csv").read_bytes()
    three = TINY.override(["n_folds=3", "epochs=2"])
    state = tmp_path / "half" / "state" / "fold_0.resume.pt"
    with pytest.raises(Killed):
        fold_training(data, three).train(state, no_score, killed_after(1))
    train_quietly(three, *toy, tmp_path / "half", only_folds=[0])
    said = capsys.readouterr().out
    assert "the table has 2 folds; n_folds=3 is not used" in said and "up to epoch 1 of 2" in said
    train_quietly(replace(TINY, epochs=1), *toy, tmp_path / "fresh")
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", ["last", "best"])
def test_what_the_last_validation_said_is_not_heard_again(toy, tmp_path, keep):
    """Two validations, and a third pass only where other weights than the last are kept."""
    heard = []

    def count(module, inputs):
        if type(module).__name__ == "Network" and not module.training:
            heard.append(len(inputs[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    try:
        recipe = TINY.override([f"keep={keep}", "loss=bce"])
        run = train_quietly(recipe, *toy, tmp_path / "run", only_folds=[0])
        times = sum(heard) / 7
        history = pd.read_csv(run.folder / "history.csv")["lwlrap"].dropna().tolist()
        assert times == (2 if keep == "last" or history[1] > history[0] else 3)
        card = load_tagger(run.folder / "fold_0.pt").card
        assert card.oof_score == pytest.approx(history[1] if keep == "last" else max(history), abs=1e-6)
        assert card.cost > 0
        heard.clear()
        again = train_quietly(recipe, *toy, tmp_path / "run", only_folds=[0])
        assert sum(heard) == 7
        np.testing.assert_array_equal(again.oof.probabilities, run.oof.probabilities)
    finally:
        hook.remove()


def test_a_fold_goes_on_without_the_pretrained_file_that_it_began_with(data, toy, tmp_path):
    timm = pytest.importorskip("timm")
    name, file = "test_efficientnet.r160_in1k", tmp_path / "pretrained.pt"
    torch.save(timm.create_model(name, in_chans=2).state_dict(), file)
    settings = {"family": "timm", "name": name, "weights": str(file)}
    wide = replace(TINY.frontend, n_mels=32)
    recipe = replace(
        TINY,
        network=complete_network(settings),
        frontend=wide,
        epochs=2,
        no_augment_epochs=0,
        validate_every=2,
    )
    train_quietly(recipe, *toy, tmp_path / "whole", only_folds=[0])
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "fold_0.pt").unlink()
    file.unlink()
    train_quietly(recipe, *toy, tmp_path / "run", only_folds=[0])
    whole = tmp_path / "whole" / "fold_0.pt"
    assert same_bits(weights_of(tmp_path / "run" / "fold_0.pt"), weights_of(whole))
    with pytest.raises(KitError, match="no pretrained file"):
        train_quietly(recipe, *toy, tmp_path / "run", only_folds=[1])


def test_another_run_in_the_same_folder_is_refused_and_changes_nothing(run, toy, tmp_path):
    table, audio = toy
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    with pytest.raises(KitError, match=r"recipe\.json belongs to another run.*choose another --out"):
        train_quietly(TINY.override(["optim.lr_peak=0.001"]), table, audio, run.folder)
    frame = pd.read_csv(table)
    frame["fold"] = 1 - frame["fold"]
    frame.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(KitError, match=r"folds\.csv belongs to another run"):
        train_quietly(TINY, tmp_path / "table.csv", audio, run.folder)
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before


def test_a_state_of_another_recipe_is_refused(data, tmp_path):
    fold_training(data, TINY.override(["optim.lr_peak=0.001"])).train(
        tmp_path / "state.pt", no_score, lambda row: None
    )
    with pytest.raises(KitError, match=r"state\.pt belongs to another recipe"):
        fold_training(data).restore(tmp_path / "state.pt")


def test_a_damaged_state_is_an_error_with_the_cure(data, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"no state at all")
    with pytest.raises(KitError, match=r"state\.pt"):
        fold_training(data).restore(tmp_path / "state.pt")


def test_a_held_out_clip_leaves_no_trace_in_the_weights(run, toy, tmp_path):
    """Fold 0 keeps its weights whatever its held-out clips hold, and loses them when a training clip changes."""
    table, audio = toy
    recipe = TINY.override(["epochs=2"])
    outcomes = []
    for changed in (None, 4, 5):
        folder = tmp_path / f"changed_{changed}"
        shutil.copytree(audio, folder / "clips")
        frame = pd.read_csv(table)
        if changed is not None:
            write_clip(folder / "clips" / f"{changed:02d}.wav", CLASSES, 3.0, np.random.default_rng(9))
            frame.loc[changed, "labels"] = "high,low,noisy"
        frame.to_csv(folder / "table.csv", index=False)
        train_quietly(recipe, folder / "table.csv", folder / "clips", folder / "run", only_folds=[0])
        outcomes.append(
            (weights_of(folder / "run" / "fold_0.pt"), load_tagger(folder / "run" / "fold_0.pt").card)
        )
    plain, held_out, learnt = outcomes
    assert same_bits(plain[0], held_out[0]) and plain[1].prevalences == held_out[1].prevalences
    assert not same_bits(plain[0], learnt[0]) and plain[1].prevalences != learnt[1].prevalences


def planted_data(folds, failed=()):
    """Clip i is the number i in every place, so that it can be recognised wherever it turns up."""
    n = len(folds)
    specs = {i: torch.full((16, 5 + i % 7), float(i)) for i in range(n) if i not in failed}
    names = tuple(f"{i}.wav" for i in range(n))
    truth = np.eye(3, dtype=np.float32)[np.arange(n) % 3]
    return Dataset(names, CLASSES, truth, np.ones(n, np.float32), np.array(folds), specs, {}, {})


def test_a_planted_clip_is_drawn_by_every_fold_but_its_own():
    folds = [0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2]
    data = planted_data(folds, failed=(3,))
    frontend = Frontend(TINY.frontend)
    for fold in (0, 1, 2):
        clips = data.train_split(fold)
        drawn = set()
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            for batch in draw_batches(clips, TINY, frontend, generator):
                specs, targets = batch.pieces, batch.targets
                drawn |= {(int(s.amin()), int(t.argmax())) for s, t in zip(specs, targets, strict=True)}
                assert bool((specs.amin((1, 2)) == specs.amax((1, 2))).all())
        assert drawn == {(i, i % 3) for i, f in enumerate(folds) if f != fold and i != 3}
        assert data.held_out(fold).tolist() == [i for i, f in enumerate(folds) if f == fold]


def test_every_clip_is_drawn_once_an_epoch_and_mixed_only_when_told():
    data = planted_data([1] * 12)
    clips, frontend = data.train_split(0), Frontend(TINY.frontend)
    mixing = TINY.override(["mixup.p=1.0"])
    for plain in (True, False):
        generator = torch.Generator().manual_seed(0)
        drawn = list(draw_batches(clips, mixing, frontend, generator))
        batches = [prepare_batch(batch, mixing, frontend, CPU, generator, plain) for batch in drawn]
        assert [specs.shape for specs, _ in batches] == [(4, 16, TINY.crop_frames)] * 3
        values = torch.cat([specs[:, 0, 0] for specs, _ in batches])
        if plain:
            assert sorted(values.tolist()) == list(range(12))
        else:
            # In decibels a sum of energies lies above both, and at most 3 dB above the louder.
            assert not set(values.tolist()) & set(range(12))
            assert float(values.max()) <= 11 + 10 * math.log10(2)
            labels = torch.cat([targets for _, targets in batches])
            assert bool((labels.sum(dim=1) >= 1).all()) and bool((labels.sum(dim=1) <= 2).all())


def test_crops_lie_anywhere_in_a_clip_and_never_beyond_it():
    generator = torch.Generator().manual_seed(0)
    starts = [draw_crop(torch.zeros(2, 30), 20, generator) for _ in range(500)]
    assert {start for start, _ in starts} == set(range(11)) and all(
        end - start == 20 for start, end in starts
    )
    for frames in (20, 10):
        assert draw_crop(torch.zeros(2, frames), 20, generator) == (0, 20)


def test_a_step_minimises_the_weighted_mean_of_the_losses(data):
    recipe = TINY.override(["network.head.dropout=0.0", "mixup.p=0"])
    training = fold_training(data, recipe)
    weights = torch.tensor([0.1, 5.0, 1.0, 0.0])
    batch = next(draw_batches(training.clips, recipe, training.tagger.frontend, torch.Generator()))
    batch = batch._replace(weights=weights)
    network = copy.deepcopy(training.network).train()
    losses = LOSSES["lsep"](network(training.tagger.frontend.stack(batch.pieces)), batch.targets).loss
    slow = sum(w * x for w, x in zip(weights.tolist(), losses.tolist(), strict=True)) / float(weights.sum())
    training.network.train()
    before = copy.deepcopy(training.network.state_dict())
    assert training.train_step(batch, torch.Generator()) == pytest.approx(slow, rel=1e-5)
    assert not same_bits(before, training.network.state_dict())


def test_the_learning_rate_makes_one_cycle(data, tmp_path):
    training = fold_training(data, TINY.override(["epochs=10", "validate_every=10"]))
    rates = []
    training.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    training.train(tmp_path / "state.pt", no_score, lambda row: None)
    assert len(rates) == 10 * training.steps == 10
    assert rates[0] == pytest.approx(TINY.optim.lr_start) and rates[-1] == pytest.approx(TINY.optim.lr_end)
    assert max(rates) == pytest.approx(TINY.optim.lr_peak) and rates.index(max(rates)) == 2
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


def test_a_loss_that_is_no_number_stops_with_the_cure(data):
    training = fold_training(data)
    with torch.no_grad():
        next(training.network.parameters()).fill_(torch.nan)
    named = r"loss of fold 0, epoch 0, step 0 is nan \(clips .*\.wav.*\): lower optim\.lr_peak"
    with pytest.raises(KitError, match=named):
        training.run_epoch()


@pytest.mark.parametrize("keep, kept", [("last", 4), ("best", 2)])
def test_the_checkpoint_keeps_the_best_or_the_last_weights(data, tmp_path, keep, kept):
    training = fold_training(data, TINY.override([f"keep={keep}", "validate_every=1"]))
    seen = {}

    def validate():
        seen[training.epoch] = copy.deepcopy(training.network.state_dict())
        return {1: 0.3, 2: 0.8, 3: 0.8, 4: 0.5}[training.epoch]

    training.train(tmp_path / "state.pt", validate, lambda row: None)
    assert sorted(seen) == [1, 2, 3, 4] and not same_bits(seen[2], seen[4])
    assert same_bits(training.network.state_dict(), seen[kept])


def test_the_last_epoch_is_always_validated(data, tmp_path):
    training = fold_training(data, TINY.override(["epochs=3"]))
    training.train(tmp_path / "state.pt", no_score, lambda row: None)
    assert [("lwlrap" in row) for row in training.history] == [False, True, True]


def test_out_of_fold_predictions_are_what_the_folds_checkpoint_submits(run, toy):
    """Law 3: on its held-out files, a checkpoint predicts from Python what training wrote into oof.csv."""
    frame = pd.read_csv(run.folder / "oof.csv", dtype={"fname": str})
    assert frame["fname"].tolist() == [f"{i:02d}.wav" for i in range(14)]
    for fold in (0, 1):
        rows = frame[frame["fold"] == fold]
        paths = [toy[1] / name for name in rows["fname"]]
        said = predict_clips(run.folder / f"fold_{fold}.pt", paths, device="cpu", threads=1)
        assert said.classes == CLASSES and not said.failures
        np.testing.assert_allclose(rows[list(CLASSES)].to_numpy(), said.probabilities, atol=1e-5, rtol=0)
        other = predict_clips(run.folder / f"fold_{1 - fold}.pt", paths, device="cpu", threads=1)
        assert np.abs(other.probabilities - said.probabilities).max() > 1e-3


def test_the_scores_of_a_run_agree_with_its_table(run):
    frame = pd.read_csv(run.folder / "oof.csv")
    truth = label_targets(read_clip_table(run.folder / "folds.csv")["labels"], CLASSES)
    probabilities = frame[list(CLASSES)].to_numpy()
    assert run.oof.lwlrap == pytest.approx(lwlrap(truth, probabilities), abs=1e-6)
    np.testing.assert_array_equal(run.oof.truth, truth)
    for fold in (0, 1):
        rows = (frame["fold"] == fold).to_numpy()
        score = load_tagger(run.folder / f"fold_{fold}.pt").card.oof_score
        assert score == pytest.approx(lwlrap(truth[rows], probabilities[rows]), abs=2e-6)


def test_rank_scores_become_probabilities_by_a_scale_and_an_offset_fitted_out_of_fold(run, toy, data):
    for fold in (0, 1):
        tagger = load_tagger(run.folder / f"fold_{fold}.pt")
        assert (
            tagger.card.output == "ranking" and tagger.card.calibrated and tagger.card.calibration.scale > 0
        )
        rows = data.held_out(fold)
        predictor = Predictor(tagger, CPU)
        logits = np.concatenate([s.logits for s in predictor.predict([data.specs[i] for i in rows])])
        calibration = tagger.card.calibration
        by_hand = 1 / (1 + np.exp(-(calibration.scale * logits.astype(np.float64) + calibration.offset)))
        np.testing.assert_allclose(run.oof.probabilities[rows], by_hand, atol=1e-5)
        known = data.truth[rows].astype(np.float64)

        def cost(scale, offset, known=known, logits=logits):
            p = 1 / (1 + np.exp(-(scale * logits.astype(np.float64) + offset)))
            high, low = (known.sum() + 1) / (known.sum() + 2), 1 / ((1 - known).sum() + 2)
            wanted = low + known * (high - low)
            return -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p)).mean()

        best = cost(calibration.scale, calibration.offset)
        for ds, do in [(1.05, 0), (0.95, 0), (1, 0.05), (1, -0.05)]:
            assert cost(calibration.scale * ds, calibration.offset + do) >= best - 1e-7


def test_probabilities_need_no_calibration(toy, tmp_path):
    run = train_quietly(TINY.override(["loss=bce", "epochs=2"]), *toy, tmp_path / "run", only_folds=[0])
    card = load_tagger(run.folder / "fold_0.pt").card
    assert card.output == "probability" and card.calibration is None and card.calibrated
    assert run.oof.names == tuple(f"{i:02d}.wav" for i in range(0, 14, 2))


def test_oof_repeats_what_training_said(run, toy, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "oof.csv").unlink()
    before = weights_of(run.folder / "fold_1.pt")
    result = predict_oof(tmp_path / "run", toy[1], device="cpu", threads=1, progress=False)
    assert result.names == run.oof.names and result.failures == {}
    np.testing.assert_allclose(result.probabilities, run.oof.probabilities, atol=1e-5)
    assert result.lwlrap == pytest.approx(run.oof.lwlrap, abs=1e-6)
    assert (tmp_path / "run" / "oof.csv").is_file()
    assert same_bits(weights_of(tmp_path / "run" / "fold_1.pt"), before)


@pytest.mark.parametrize("change", ["swapped", "added", "removed"])
def test_oof_refuses_folds_that_were_changed_after_training(run, toy, tmp_path, change):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    frame = pd.read_csv(folder / "folds.csv", dtype={"fname": str})
    if change == "swapped":
        frame.loc[[0, 1], "fold"] = [1, 0]
    elif change == "added":
        frame = pd.concat([frame, frame.iloc[[3]].assign(fname="new.wav", fold=0)])
    else:
        frame = frame.drop(index=2)
    frame.to_csv(folder / "folds.csv", index=False)
    before = (folder / "oof.csv").read_bytes()
    with pytest.raises(KitError, match=r"fold_0\.pt was trained with other folds.*would leak"):
        predict_oof(folder, toy[1], device="cpu", threads=1, progress=False)
    assert (folder / "oof.csv").read_bytes() == before


def test_oof_of_no_run_says_the_cure(run, toy, tmp_path):
    with pytest.raises(KitError, match=r"holds no run \(no folds\.csv\): give the folder that `train` wrote"):
        predict_oof(tmp_path, toy[1], progress=False)
    shutil.copy(run.folder / "folds.csv", tmp_path)
    with pytest.raises(KitError, match=r"no checkpoint fold_\*\.pt yet: let `train` finish a fold"):
        predict_oof(tmp_path, toy[1], progress=False)


def test_a_group_in_two_folds_stops_before_anything_is_written(tmp_path):
    table, audio = make_set(tmp_path, 8, recording=["a", "b", "c", "d", "e", "f", "g", "a"])
    with pytest.raises(KitError, match=r"group 'a' lies in fold 0 and in fold 1"):
        train_quietly(TINY, table, audio, tmp_path / "run", group_column="recording")
    assert not (tmp_path / "run").exists()


def test_folds_made_from_groups_keep_them_whole(tmp_path):
    recordings = [f"r{i // 2}" for i in range(12)]
    table, audio = make_set(tmp_path, 12, recording=recordings)
    pd.read_csv(table).drop(columns="fold").to_csv(table, index=False)
    run = train_quietly(TINY.override(["epochs=1"]), table, audio, tmp_path / "run", group_column="recording")
    folds = pd.read_csv(run.folder / "folds.csv")
    assert folds.groupby("recording")["fold"].nunique().max() == 1 and folds["fold"].nunique() == 2
    assert sorted(run.oof.names) == [f"{i:02d}.wav" for i in range(12)]


def test_a_group_column_that_is_not_there_is_an_error_with_the_right_names(toy, tmp_path):
    with pytest.raises(KitError, match=r"unknown column 'recording'"):
        train_quietly(TINY, *toy, tmp_path / "run", group_column="recording")


def test_a_fold_that_is_not_there_lists_those_that_are(toy, tmp_path):
    with pytest.raises(KitError, match=r"folds \[5\] were asked for, the table has \[0, 1\]"):
        train_quietly(TINY, *toy, tmp_path / "run", only_folds=[5])


def test_a_fold_without_training_clips_says_so(tmp_path):
    table, audio = make_set(tmp_path, 4)
    frame = pd.read_csv(table)
    frame["fold"] = [0, 0, 0, 1]
    frame.to_csv(table, index=False)
    with pytest.raises(KitError, match=r"fold 0 has 1 training clips: at least 2 are needed"):
        train_quietly(TINY, table, audio, tmp_path / "run")


@pytest.mark.parametrize("labelled", [None, "gone.wav"])
def test_a_fold_that_cannot_be_scored_says_so_before_anything_is_trained(tmp_path, labelled):
    table, audio = make_set(tmp_path, 7)
    frame = pd.read_csv(table).assign(fold=[0, 0, 0, 0, 1, 1, 1])
    frame.loc[4, "fname"] = labelled or "04.wav"
    frame.loc[5 if labelled else 4 :, "labels"] = ""
    frame.to_csv(table, index=False)
    with pytest.raises(KitError, match="fold 1 holds no clip that can be heard and has a label"):
        train_quietly(TINY, table, audio, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_clip_of_which_a_network_says_no_number_is_named_and_gets_the_prior(run, toy, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    tagger = load_tagger(tmp_path / "run" / "fold_1.pt")
    with torch.no_grad():
        tagger.network.head.classifier[-1].bias[0] = torch.nan
    save_tagger(tmp_path / "run" / "fold_1.pt", tagger)
    result = predict_oof(tmp_path / "run", toy[1], device="cpu", threads=1, progress=False)
    assert list(result.failures) == [f"{i:02d}.wav" for i in range(1, 14, 2)]
    assert set(result.failures.values()) == {"the network's answer is no finite number"}
    np.testing.assert_allclose(result.probabilities[1], tagger.card.prevalences, rtol=1e-6)


def test_classes_that_nobody_has_do_not_crowd_out_the_hardest(run):
    names = tuple("abcdefgh")
    truth = np.zeros((4, 8))
    truth[:2, 6], truth[2:, 7] = 1, 1
    scores = np.tile(np.linspace(0, 1, 8), (4, 1))
    oof = replace(
        run.oof, names=names[:4], classes=names, folds=np.zeros(4), truth=truth, probabilities=scores
    )
    assert "hardest classes: g 0.500, h 1.000" in str(oof)


@pytest.fixture(scope="module")
def patchy_set(tmp_path_factory):
    """Ten clips, of which one is text and one is not there, in fold 0 and 1."""
    table, audio = make_set(tmp_path_factory.mktemp("patchy"), 10)
    (audio / "04.wav").write_text("no sound at all")
    (audio / "07.wav").unlink()
    return table, audio


def test_clips_that_cannot_be_heard_are_named_and_get_the_prior(patchy_set, tmp_path, capsys):
    run = train_quietly(TINY.override(["epochs=1"]), *patchy_set, tmp_path / "run")
    assert sorted(run.oof.failures) == ["04.wav", "07.wav"]
    assert "could not hear 04.wav" in capsys.readouterr().out and "07.wav" in str(run)
    for row, fold in ((4, 0), (7, 1)):
        prior = load_tagger(run.folder / f"fold_{fold}.pt").card.prevalences
        np.testing.assert_allclose(run.oof.probabilities[row], prior, rtol=1e-6)
    assert np.isfinite(run.oof.probabilities).all()


def test_a_folder_in_which_nothing_can_be_heard_stops(toy, tmp_path):
    with pytest.raises(KitError, match=r"none of the 14 clips of the table could be heard"):
        train_quietly(TINY, toy[0], tmp_path, tmp_path / "run")


def test_fewer_clips_than_a_batch_still_train():
    data = planted_data([0, 0, 1, 1, 1])
    training = fold_training(data, TINY.override(["batch_size=32"]))
    assert training.steps == 1 and math.isfinite(training.run_epoch()["loss"])


def test_validation_pools_windows_as_submission_does(toy, tmp_path):
    """Law 3: for probabilities, the last row of the history is the score on the checkpoint's card."""
    recipe = TINY.override(["loss=bce", "epochs=2", "seed=1"])
    recipe = Recipe.from_dict({**recipe.to_dict(), "inference": WINDOWS.to_dict()})
    run = train_quietly(recipe, *toy, tmp_path / "run")
    history = pd.read_csv(run.folder / "history.csv")
    for fold in (0, 1):
        last = history[history["fold"] == fold]["lwlrap"].iloc[-1]
        assert last == pytest.approx(load_tagger(run.folder / f"fold_{fold}.pt").card.oof_score, abs=1e-6)


def test_windows_are_scored_out_of_fold_as_they_are_submitted(toy, tmp_path):
    recipe = Recipe.from_dict({**TINY.override(["epochs=1"]).to_dict(), "inference": WINDOWS.to_dict()})
    run = train_quietly(recipe, *toy, tmp_path / "run", only_folds=[0])
    paths = [toy[1] / name for name in run.oof.names]
    said = predict_clips(run.folder / "fold_0.pt", paths, device="cpu", threads=1)
    np.testing.assert_allclose(run.oof.probabilities, said.probabilities, atol=1e-5, rtol=0)


def test_a_small_training_learns_its_clips(data):
    overrides = [
        "epochs=30",
        "network.head.dropout=0.0",
        "crop_s=1.2",
        "mixup.p=0.0",
        "optim.lr_peak=0.02",
        "batch_size=7",
    ]
    training = fold_training(data, TINY.override(overrides))
    losses = [training.run_epoch()["loss"] for _ in range(30)]
    assert losses[-1] < 0.25 * losses[0]
    predictor = Predictor(training.tagger, CPU)
    said = predictor.predict(training.clips.specs)
    scores = np.stack([s.logits.max(axis=0) for s in said])
    assert lwlrap(training.clips.targets, scores) > 0.9


def test_training_clips_may_have_unknown_labels(data):
    truth = data.truth.copy()
    truth[::3, 1] = np.nan
    clips = data.train_split(0)
    rows = [i for i in range(14) if data.folds[i] != 0]
    unknown = TrainingSet(clips.specs, truth[rows], clips.weights)
    training = Trainer(TINY, new_tagger(TINY, data, 0), unknown, 0, CPU)
    assert math.isfinite(training.run_epoch()["loss"])
    assert all(bool(p.isfinite().all()) for p in training.network.parameters())


def test_a_start_that_failed_does_not_stand_in_the_way_of_its_correction(toy, tmp_path):
    with pytest.raises(KitError, match="does not exist"):
        train_quietly(TINY, toy[0], tmp_path / "nowhere", tmp_path / "run")
    assert train_quietly(replace(TINY, epochs=1, no_augment_epochs=0), *toy, tmp_path / "run").oof.lwlrap > 0
    with pytest.raises(KitError, match="epochs is 1 there and 4 here"):
        train_quietly(TINY, *toy, tmp_path / "run")


def test_oof_on_the_wrong_folder_changes_nothing(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    (tmp_path / "empty").mkdir()
    before = {path.name: path.read_bytes() for path in sorted(folder.glob("*.*"))}
    with pytest.raises(KitError, match="nothing was changed"):
        predict_oof(folder, tmp_path / "empty", device="cpu", progress=False)
    assert {path.name: path.read_bytes() for path in sorted(folder.glob("*.*"))} == before


def test_a_table_may_leave_the_extensions_out(run, toy, tmp_path):
    text = toy[0].read_text().replace(".wav", "")
    (tmp_path / "bare.csv").write_text(text)
    again = train_quietly(TINY, tmp_path / "bare.csv", toy[1], tmp_path / "run")
    np.testing.assert_array_equal(again.oof.probabilities, run.oof.probabilities)
